"""Reports a topic of events while most of its records are refused.

A refused record often names no flag, so no alert of a flag tells of it (`event_watch.py`). Where
all are refused, rollouts just lack evidence, and say so when their `health_grace` is over. Here it
is a fault of the topic, some ten seconds after the first twenty. Smaller shares are left to the
alerts of flags: a few old clients, or one that sends again and again, are no fault of a topic.

Each replica judges the records that it counts. Does not belong here: why a record is refused
(`schemas/`), what is alerted of one flag (`event_watch.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from controller.adapters.kafka.shared_topic import topic_of
from controller.counting.dependencies import ReadRecords
from controller.health import Faults, Scope
from controller.ports import Clock

#: A share of refused records that is reported.
SHARE: Final = 0.5
#: Fewer refused records say little.
LEAST_REFUSED: Final = 20
#: Records are judged together that come within this time at least: partitions are saved in turn,
#: and one that is bad must not stand for all.
JUDGED_EVERY_SECONDS: Final = 10.0
#: A fault ends so long after most records were last refused, or any were, where few come.
OVER_AFTER_SECONDS: Final = 300.0
_LEAST_READ: Final = int(LEAST_REFUSED / SHARE)
_MOST_REASONS: Final = 3
_FIX: Final = "`rolloutctl quarantine` shows the newest of them, and how to fix each"


@dataclass(slots=True)
class _Topic:
    """A topic since it was last judged; times are monotonic."""

    judged_at: float
    judged: ReadRecords = field(default_factory=ReadRecords)  # all up to then
    refused: int = 0  # at the last look
    is_found: bool = False
    is_mended: bool = False  # since it was found
    bad_at: float = 0.0  # when most records were last refused, as far as that is known


class RefusedShares:
    """Judges the records of each topic as they are counted here."""

    def __init__(self, records: Mapping[str, ReadRecords], faults: Faults, clock: Clock) -> None:
        """`records` are those since the start, by topic or stream of one."""
        self._records = records
        self._faults = faults
        self._clock = clock
        self._topics: dict[str, _Topic] = {}

    def judge(self) -> None:
        """Judge what came since a topic was last judged. Call it every second or so."""
        now = self._clock.monotonic()
        of_topics: dict[str, ReadRecords] = {}
        for stream, records in self._records.items():
            of_topics.setdefault(topic_of(stream), ReadRecords()).add(records)
        for name, records in of_topics.items():
            self._look(name, self._topics.setdefault(name, _Topic(now)), records, now)

    def _look(self, name: str, topic: _Topic, records: ReadRecords, now: float) -> None:
        new = records.since(topic.judged)
        is_enough = new.refused >= LEAST_REFUSED or new.read >= _LEAST_READ
        if is_enough and now - topic.judged_at >= JUDGED_EVERY_SECONDS:
            if new.refused >= SHARE * new.read:
                topic.is_found, topic.is_mended, topic.bad_at = True, False, now
                self._report(name, new)
            elif not topic.is_mended:
                topic.is_mended, topic.bad_at = True, now
            topic.judged_at, topic.judged = now, records
        elif records.refused > topic.refused and not topic.is_mended:
            topic.bad_at = now  # too few to judge: they are like those before
        topic.refused = records.refused
        if topic.is_found and now - topic.bad_at >= OVER_AFTER_SECONDS:
            topic.is_found = False
            self._faults.clear(Scope.TOPIC, name)

    def _report(self, name: str, new: ReadRecords) -> None:
        """Report that most of the newest records are refused."""
        why = f"{new.refused:,} of the last {new.read:,} records read are refused and count nowhere"
        reasons = new.reasons.most_common(_MOST_REASONS)
        if reasons:
            why += f": {', '.join(reason.value for reason, _ in reasons)}"
        self._faults.report(Scope.TOPIC, name, why, _FIX)
