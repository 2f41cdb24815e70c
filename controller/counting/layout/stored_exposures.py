"""Where recent exposures are stored: a journal of its own for each slice of event time.

| field | content |
|---|---|
| `recent/<slice>/<chunk>` | journal entries: who was exposed to what in this slice, in order |

Does not belong here: what a slice is (`folding/recent_exposures.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from controller.counting.folding.context_sets import ENTRIES
from controller.counting.folding.difference import Difference
from controller.counting.folding.engine import Fold
from controller.counting.layout.journal import EntryLog


class StoredExposures:
    """The journals of all slices."""

    def __init__(self) -> None:
        """Start with nothing stored."""
        self._logs: dict[int, EntryLog] = {}
        self._garbage: list[str] = []

    def restore(self, fields: Mapping[str, bytes], fold: Fold) -> int:
        """Give a fold its stored exposures; return a number above all set numbers in them.

        Raises ValueError for a chunk that is cut.
        """
        chunks: dict[int, dict[int, bytes]] = {}
        for field, value in fields.items():
            kind, _, rest = field.partition("/")
            if kind == "recent":
                of, _, chunk = rest.partition("/")
                chunks.setdefault(int(of), {})[int(chunk)] = value
        above = 0
        slices: dict[int, bytes] = {}
        for number, stored in chunks.items():
            log = self._logs[number] = _log(number)
            log.restore(stored)
            slices[number] = b"".join(stored[chunk] for chunk in sorted(stored))
            numbers = np.frombuffer(slices[number], dtype=ENTRIES)["number"]
            above = max(above, 1 + int(numbers.max(initial=0)))
        fold.restore_exposures(slices)
        return above

    def changed_fields(self, added: Iterable[int]) -> int:
        """Return about how many fields a save will carry; `added` exposures are new per slice."""
        return sum(2 + count // 256 for count in added)

    def write(self, difference: Difference) -> tuple[dict[str, bytes], list[str]]:
        """Return the fields to write and the fields to delete after that."""
        fields: dict[str, bytes] = {}
        garbage: list[str] = []
        begins: dict[int, int] = {}
        for number in difference.forgotten:
            log = self._logs.pop(number, None)
            if log is not None:
                garbage += log.fields()
                begins[number] = log.next_chunk
        for number, entries in difference.exposures.items():
            log = self._logs.get(number)
            if log is None:
                # Not over the chunks that are about to be deleted.
                log = self._logs[number] = _log(number, begins.get(number, 0))
            log.append(entries)
            fields |= log.drain()
        return fields, garbage


def _log(number: int, begin: int = 0) -> EntryLog:
    return EntryLog(f"recent/{number}", begin=begin, keeps_content=False)
