"""Remembers where each context was last exposed, over the attribution window.

Outcomes that name no flags are joined to these exposures. They are kept by slices of event time.

Belongs here: the slices and what expires. Does not belong here: which exposures an outcome is
joined to (`partition_fold.py`), what is stored of them (`layout/stored_exposures.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from controller.counting.folding.context_sets import ENTRY, pack

_NO_END = 2**62 - 1


class ExposureSlice:
    """The exposures of one slice of event time: their log, and an index by context.

    Most producers name the flags in their outcomes. For them the log alone is kept; the index is
    made when a join needs it.
    """

    __slots__ = ("_exposed", "_indexed", "_log", "_logged", "_saved", "_tail")

    def __init__(self) -> None:
        """Start empty."""
        # Set number and digest of each exposure that may be its context's last one to its flag, in
        # order: packed, then those since the last save, flat. A context's repeated exposures to one
        # arm are in it at most twice.
        self._log = bytearray()
        self._tail: list[int] = []
        # Flag key -> digest -> the set number that `record` logged last.
        self._logged: dict[str, dict[int, int]] = {}
        # Digest -> set numbers, oldest first, as far as the log is indexed.
        self._exposed: dict[int, tuple[int, ...]] = {}
        self._indexed = 0  # entries

    def record(self, flag_key: str, number: int, digest: int) -> None:
        """Log an exposure to a flag unless it is known to be its context's last one."""
        logged = self._logged.get(flag_key)
        if logged is None:
            logged = self._logged[flag_key] = {}
        if logged.get(digest) != number:
            logged[digest] = number
            self._tail += (number, digest)

    def record_first(self, number: int, digest: int) -> None:
        """Log the very first exposure of a context to a flag: there is nothing to look up."""
        self._tail += (number, digest)

    def add(self, entries: bytes) -> None:
        """Log what is stored, in order."""
        self._log += entries

    @property
    def entries(self) -> int:
        """How many exposures are logged."""
        return len(self._log) // ENTRY.size + len(self._tail) // 2

    @property
    def added(self) -> int:
        """How many exposures were logged since the last save."""
        return len(self._tail) // 2

    def drain(self) -> bytes:
        """Return the entries since the last save; they count as saved from now on."""
        added = pack(self._tail)
        self._log += added
        self._tail = []
        return added

    def index(self, at_least: int) -> int:
        """Index `at_least` more entries, or all there are; return how many it indexed."""
        begin = self._indexed
        end = min(begin + at_least, self.entries)
        packed = len(self._log) // ENTRY.size
        log = memoryview(self._log)[begin * ENTRY.size : end * ENTRY.size]
        for number, digest in ENTRY.iter_unpack(log[: len(log) - len(log) % ENTRY.size]):
            self._index_one(number, digest)
        tail = self._tail[2 * max(0, begin - packed) : 2 * max(0, end - packed)]
        for number, digest in zip(tail[::2], tail[1::2], strict=True):
            self._index_one(number, digest)
        self._indexed = end
        return end - begin

    def _index_one(self, number: int, digest: int) -> None:
        before = self._exposed.get(digest)
        if before is None:
            self._exposed[digest] = (number,)
        elif before[-1] != number:
            self._exposed[digest] = (*(other for other in before if other != number), number)

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
        self._forgotten: list[int] = []
        # The slice of the last time, and from when until when it lasts.
        self._at_hand: ExposureSlice | None = None
        self._from_ms = self._until_ms = 0

    def set_time(self, now_ms: int, latest_ms: int) -> None:
        """Remember nothing later than `latest_ms`, and expire nothing before its time.

        Otherwise one timestamp from the future would expire everything that outcomes still need.
        """
        self._present = now_ms // self.slice_ms
        self._latest = latest_ms // self.slice_ms
        self._from_ms = self._until_ms = 0  # none is at hand

    def slice_of(self, time_ms: int) -> ExposureSlice | None:
        """Return the slice of a time, as `slice_at` does; that of the last time is at hand."""
        if not self._from_ms <= time_ms < self._until_ms:
            number = time_ms // self.slice_ms
            exposures = self.slice_at(number)
            self._from_ms, self._at_hand = number * self.slice_ms, exposures
            self._until_ms = self._from_ms + self.slice_ms
        return self._at_hand

    def slice_at(self, number: int) -> ExposureSlice | None:
        """Return one slice, a new one if needed; None when it is too old or too far ahead."""
        exposures = self._slices.get(number)
        if exposures is None:
            # One more than the window needs, because the clocks of two apps differ.
            if number < self._newest - self.PER_WINDOW - 1 or number > self._latest:
                return None
            exposures = self._slices[number] = ExposureSlice()
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
    def added(self) -> list[int]:
        """How many exposures of each slice are new since the last save, where any are."""
        return [exposures.added for exposures in self._slices.values() if exposures.added]

    def drain(self) -> tuple[dict[int, bytes], list[int]]:
        """Return new entries by slice, and slices that were forgotten; they count as saved now."""
        added = {
            number: exposures.drain()
            for number, exposures in self._slices.items()
            if exposures.added
        }
        forgotten, self._forgotten = self._forgotten, []
        return added, forgotten

    def restore(self, slices: dict[int, bytes]) -> None:
        """Continue from stored entries by slice."""
        for number in sorted(slices):
            if number > self._latest:  # stored by a release that believed every time
                self._forgotten.append(number)
                continue
            exposures = self._slices[number] = ExposureSlice()
            exposures.add(slices[number])
        if self._slices:
            self._expire(min(max(self._slices), self._present))

    @property
    def entries(self) -> int:
        """How many exposures are remembered."""
        return sum([exposures.entries for exposures in self._slices.values()])

    def clear(self) -> None:
        """Forget every exposure, because none of their sets is left."""
        self._from_ms = self._until_ms = 0  # none is at hand
        self._forgotten.extend(self._slices)
        self._slices.clear()

    def forget_oldest(self) -> bool:
        """Forget the oldest slice, never the newest one; return whether there was one to forget."""
        if len(self._slices) < 2:
            return False
        self._forget(min(self._slices))
        return True

    def expire_at(self, time_ms: int) -> None:
        """Drop what no outcome of this time or later can reach."""
        self._expire(max(self._newest, min(time_ms // self.slice_ms, self._present)))

    def _expire(self, newest: int) -> None:
        """Drop the slices that no outcome can reach any more."""
        self._newest = newest
        for number in [number for number in self._slices if number < newest - self.PER_WINDOW - 1]:
            self._forget(number)

    def _forget(self, number: int) -> None:
        self._from_ms = self._until_ms = 0  # none is at hand
        del self._slices[number]
        self._forgotten.append(number)
