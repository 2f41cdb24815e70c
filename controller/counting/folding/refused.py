"""Refused records, from a reader to what is kept of them.

Does not belong here: why they are refused (`schemas/wire.py`), and where they go (`refusals.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from controller.ports import Record
from schemas.quarantine import Refusal, WrittenRefusals, refusal, written
from schemas.record_refused import RecordRefused


def refusal_of(record: Record, why: RecordRefused) -> Refusal:
    """Return what is kept of a refused record."""
    return refusal(record.offset, record.timestamp, record.value, why)


class FoundUnusable:
    """Records that a reader has refused.

    What is kept is made of all at once: hashing now and then finds its code out of the CPU's
    caches.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._found: list[tuple[Record, RecordRefused]] = []

    def add(self, record: Record, why: RecordRefused) -> None:
        """Add one, and why."""
        self._found.append((record, why))

    def refusals(self) -> Sequence[WrittenRefusals]:
        """Return what is kept of all."""
        return written([refusal_of(record, why) for record, why in self._found])
