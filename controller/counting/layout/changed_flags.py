"""Which flags' totals the last saves of one partition have changed, for those who read them.

A reader remembers the number of the last save that it knows, and reads the flags of later ones
alone. The field's description is in `schemas/totals.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from uuid import uuid4

from schemas.totals import MOST_CHANGED, LatelyChanged


class ChangedFlags:
    """The flags of the last saves, since this replica loaded the partition."""

    def __init__(self) -> None:
        self._writer = uuid4().hex
        self._number = 0  # of the last save that changed totals
        self._since = 0
        self._flags: dict[str, int] = {}  # in the order of their last save

    def note(self, flag_keys: Collection[str]) -> None:
        """Note whose totals the next save changes; none: it changes no totals."""
        if not flag_keys:
            return
        self._number += 1
        if len(flag_keys) > MOST_CHANGED:
            self._flags.clear()
            self._since = self._number
            return
        for flag_key in flag_keys:
            self._flags.pop(flag_key, None)
            self._flags[flag_key] = self._number
        while len(self._flags) > MOST_CHANGED:
            self._since = self._flags.pop(next(iter(self._flags)))

    def at(self, next_offset: int) -> LatelyChanged:
        """Return what the next save tells readers; `next_offset` is its fence."""
        return LatelyChanged(
            self._writer, self._number, self._since, next_offset, dict(self._flags)
        )
