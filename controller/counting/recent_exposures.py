"""Remembers where each context was last exposed, over the attribution window.

Outcomes that name no flags are joined to these exposures. They are kept by slices of event time:

| field | content |
|---|---|
| `recent/<slice>/<chunk>` | journal entries: who was exposed to what in this slice, in order |

Belongs here: the slices and what expires. Does not belong here: which exposures an outcome is
joined to (`fold.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from controller.counting.journal import EntryLog

_NO_END = 2**62 - 1


class ExposureSlice:
    """The exposures of one slice of event time: their log, and an index by context.

    Most producers name the flags in their outcomes. For them the log alone is kept; the index is
    made when a join needs it.
    """

    __slots__ = ("_exposed", "_indexed_to", "_logged", "log")

    def __init__(self, number: int) -> None:
        """Start empty."""
        # Set number and digest of each exposure that may be its context's last one to its flag, in
        # order. A context's repeated exposures to one arm are in it at most twice.
        self.log = EntryLog(f"recent/{number}")
        # Flag key -> digest -> the set number that `record` logged last.
        self._logged: dict[str, dict[int, int]] = {}
        # Digest -> set numbers, oldest first, as far as the log is indexed.
        self._exposed: dict[int, tuple[int, ...]] = {}
        self._indexed_to = (0, 0)

    def record(self, flag_key: str, number: int, digest: int) -> None:
        """Log an exposure to a flag unless it is known to be its context's last one.

        The very first of a context to a flag goes straight into `log.tail` instead: nothing has to
        be looked up or remembered.
        """
        logged = self._logged.get(flag_key)
        if logged is None:
            logged = self._logged[flag_key] = {}
        if logged.get(digest) != number:
            logged[digest] = number
            tail = self.log.tail
            tail.append(number)
            tail.append(digest)

    @property
    def entries(self) -> int:
        """How many exposures are logged."""
        return self.log.entries_kept

    def index(self, at_least: int) -> int:
        """Index `at_least` more entries, or all there are; return how many it indexed."""
        indexed, exposed = 0, self._exposed
        while indexed < at_least:
            entries, place = self.log.read_on(self._indexed_to)
            if place == self._indexed_to:
                break
            self._indexed_to = place
            indexed += len(entries) // 2
            for number, digest in zip(entries[::2], entries[1::2], strict=True):
                before = exposed.get(digest)
                if before is None:
                    exposed[digest] = (number,)
                elif number not in before:
                    exposed[digest] = (*before, number)
                elif before[-1] != number:
                    exposed[digest] = (*(other for other in before if other != number), number)
        return indexed

    def last(self, digest: int) -> Iterable[int]:
        """Return the set numbers of a context's exposures, newest first, of what is indexed."""
        return reversed(self._exposed.get(digest, ()))


class RecentExposures:
    """Where each context was last exposed, over the attribution window, by slices of event time.

    A window is three slices, so an exposure is found for at least the window and at most a third
    longer. Whether it is found depends on event times alone.
    """

    PER_WINDOW: ClassVar = 3

    def __init__(self, window_ms: int) -> None:
        """Start empty."""
        self.slice_ms = max(1, window_ms // self.PER_WINDOW)
        self._slices: dict[int, ExposureSlice] = {}
        self._newest = -1
        self._present = _NO_END  # the slice of this moment
        self._latest = _NO_END  # the last slice that may be opened
        self._garbage: list[str] = []

    def set_time(self, now_ms: int, latest_ms: int) -> None:
        """Remember nothing later than `latest_ms`, and expire nothing before its time.

        Otherwise one timestamp from the future would expire everything that outcomes still need.
        """
        self._present = now_ms // self.slice_ms
        self._latest = latest_ms // self.slice_ms

    def slice_at(self, number: int) -> ExposureSlice | None:
        """Return one slice, a new one if needed; None when it is too old or too far ahead."""
        exposures = self._slices.get(number)
        if exposures is None:
            # One more than the window needs, because the clocks of two apps differ.
            if number < self._newest - self.PER_WINDOW - 1 or number > self._latest:
                return None
            exposures = self._slices[number] = ExposureSlice(number)
            self._expire(max(min(number, self._present), self._newest))
        return exposures

    def catch_up(self, at_least: int) -> bool:
        """Index `at_least` more exposures, or all there are; return whether all are indexed.

        Only then does `last` find all.
        """
        for exposures in self._slices.values():
            at_least -= exposures.index(at_least)
            if at_least <= 0:
                return False
        return True

    def last(self, digest: int, time_ms: int) -> list[int]:
        """Return the set numbers of a context's indexed exposures up to `time_ms`, newest first."""
        newest = time_ms // self.slice_ms
        exposed: list[int] = []
        for number in range(newest, newest - self.PER_WINDOW - 1, -1):
            exposures = self._slices.get(number)
            if exposures is not None:
                exposed.extend(exposures.last(digest))
        return exposed

    @property
    def changed(self) -> int:
        """How many fields the next save will carry."""
        return sum(exposures.log.changed for exposures in self._slices.values())

    def drain_changes(self) -> tuple[dict[str, bytes], list[str]]:
        """Return the fields to write and the fields to delete after that.

        Both count as done from now on.
        """
        fields: dict[str, bytes] = {}
        for exposures in self._slices.values():
            fields.update(exposures.log.drain_changes())
        garbage, self._garbage = self._garbage, []
        return fields, garbage

    def restore(self, fields: Mapping[str, bytes]) -> int:
        """Continue from the stored fields; return a number above all set numbers in them.

        Raises ValueError for a cut chunk.
        """
        chunks: dict[int, dict[int, bytes]] = {}
        above = 0
        for field, value in fields.items():
            kind, _, rest = field.partition("/")
            if kind == "recent":
                of, _, chunk = rest.partition("/")
                chunks.setdefault(int(of), {})[int(chunk)] = value
        for number in sorted(chunks):
            exposures = self._slices[number] = ExposureSlice(number)
            exposures.log.restore(chunks[number])
            for numbers, _ in exposures.log.arrays():
                above = max(above, 1 + int(numbers.max()))
            if number > self._latest:  # stored by a release that believed every time
                self._garbage.extend(self._slices.pop(number).log.fields())
        if self._slices:
            self._expire(min(max(self._slices), self._present))
        return above

    @property
    def entries(self) -> int:
        """How many exposures are remembered."""
        return sum([exposures.entries for exposures in self._slices.values()])

    def clear(self) -> None:
        """Forget every exposure, because none of their sets is left."""
        for exposures in self._slices.values():
            self._garbage.extend(exposures.log.fields())
        self._slices.clear()

    def forget_oldest(self) -> bool:
        """Forget the oldest slice, never the newest one; return whether there was one to forget."""
        if len(self._slices) < 2:
            return False
        self._garbage.extend(self._slices.pop(min(self._slices)).log.fields())
        return True

    def expire_at(self, time_ms: int) -> None:
        """Drop what no outcome of this time or later can reach."""
        self._expire(max(self._newest, min(time_ms // self.slice_ms, self._present)))

    def _expire(self, newest: int) -> None:
        """Drop the slices that no outcome can reach any more."""
        self._newest = newest
        for number in [number for number in self._slices if number < newest - self.PER_WINDOW - 1]:
            self._garbage.extend(self._slices.pop(number).log.fields())
