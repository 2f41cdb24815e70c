"""Reads some of the counted records again, to show and to judge what events are for their flags.

Counting itself keeps no reason per event: that would cost as much as counting. Instead a bounded
number of records per second is read again after they were counted, spread over the partitions. Each
stands for those between it and the one before, so the numbers in the tally are estimates; while few
records come, all are read, and the numbers are exact. Belongs here: which records are read. Does
not belong here: what is found (`event_tally.py`), who is alerted (`running/event_watch.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from controller.counting.event_tally import EventTally, FlagsOf
from controller.counting.folding.engine import NativeFault
from controller.ports import Record, TopicPartition
from schemas.envelope import MAX_AHEAD_MS

#: Records read again per second: about 6 ms of work.
READ_PER_SECOND: Final = 300
_MOST_PER_BATCH: Final = 50
_WINDOW_SECONDS: Final = 1.0
#: A record of many events takes as long as many others: of each partition one is read so often.
_PACKED_WINDOW_SECONDS: Final = 10.0
_EVENTS_PER_RECORD: Final = 100


class _Place:
    """What may be read of one partition, and for how many records the next one stands."""

    __slots__ = ("allowed_until", "left", "passed")

    def __init__(self) -> None:
        self.left = 0
        self.allowed_until = 0.0
        self.passed = 0


class EventSampling:
    """Gives the tally some of the records that are counted."""

    def __init__(self, tally: EventTally, *, of_packed: bool) -> None:
        """`of_packed`: the records of a topic hold many events each."""
        self.tally = tally
        tally.most_per_record = _EVENTS_PER_RECORD
        self._per_window = 1 if of_packed else READ_PER_SECOND
        self._window_seconds = _PACKED_WINDOW_SECONDS if of_packed else _WINDOW_SECONDS
        self._places: dict[TopicPartition, _Place] = {}
        self._is_broken = False
        self._logger = structlog.get_logger()

    def offer(
        self,
        partition: TopicPartition,
        records: Sequence[Record],
        now: float,
        now_ms: int,
        *,
        of_evaluations: bool,
        flags_of: FlagsOf,
    ) -> None:
        """Read some of the records of a batch that was counted. Raises nothing.

        `now` is monotonic seconds, `now_ms` the time since 1970; `flags_of` gives the flags of an
        outcome that names none.
        """
        if self._is_broken:
            return
        try:
            self._read_some(partition, records, now, now_ms, of_evaluations, flags_of)
        except NativeFault as fault:  # of the fold that exposures were asked of, and told by it
            self._logger.info("event_sampling_left_out", error=str(fault))
        except Exception:  # a mistake of ours here must not stop counting
            self._is_broken = True
            self._logger.exception("event_sampling_failed", topic_partition=partition)

    def _read_some(
        self,
        partition: TopicPartition,
        records: Sequence[Record],
        now: float,
        now_ms: int,
        of_evaluations: bool,
        flags_of: FlagsOf,
    ) -> None:
        place = self._places.get(partition)
        if place is None:
            place = self._places[partition] = _Place()
        if now >= place.allowed_until:
            place.allowed_until = now + self._window_seconds
            place.left = max(1, self._per_window // len(self._places))
        place.passed += len(records)
        count = min(len(records), place.left, _MOST_PER_BATCH)
        if count <= 0:
            return
        place.left -= count
        weight = place.passed / count
        place.passed = 0
        latest_ms = now_ms + MAX_AHEAD_MS
        where = (partition[0].partition("#")[0], partition[1])  # a stream's topic is before the #
        for number in range(count):
            record = records[(number * len(records)) // count]
            if of_evaluations:
                self.tally.add_evaluations(where, record, weight, latest_ms=latest_ms)
            else:
                self.tally.add_outcomes(
                    where, record, weight, flags_of=flags_of, latest_ms=latest_ms
                )

    def forget(self, partition: TopicPartition) -> None:
        """Give the share of a partition that is ours no longer to the others."""
        self._places.pop(partition, None)
