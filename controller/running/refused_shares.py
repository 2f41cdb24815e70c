"""Reports a topic of events while a share of its newest records is refused.

A refused record often names no flag, so no alert of a flag tells of it (`event_watch.py`). Where
all are refused, rollouts just lack evidence, and say so when their `health_grace` is over. Here it
is a fault of the topic, seconds after its first records.

Each replica judges the records that it counts. Does not belong here: why a record is refused
(`schemas/`), what is alerted of one flag (`event_watch.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from controller.counting.dependencies import ReadRecords
from controller.health import Faults, Scope
from controller.ports import Clock
from controller.text import plural
from schemas.terms import QuarantineReason

#: A share of a topic's records that is reported. Below it a few old clients explain it.
SHARE: Final = 0.05
#: Fewer refused records are no share of anything: one of twenty says little.
LEAST_REFUSED: Final = 20
#: A share that records of so long no longer have is over.
OVER_AFTER_SECONDS: Final = 300.0
#: Among so many records the least number that is reported is less than the share.
_JUDGED_AT: Final = int(LEAST_REFUSED / SHARE)
_MOST_REASONS: Final = 3
_REPORTER: Final = "refused_shares"
_FIX: Final = "`rolloutctl quarantine` shows the newest of them, and how to fix each"


@dataclass(slots=True)
class _Judged:
    """How a topic stood when it was last judged, and what was found; times are monotonic."""

    read: int = 0
    refused: int = 0
    reasons: Counter[QuarantineReason] = field(default_factory=Counter)  # before what was found
    found: str | None = None  # what is reported, but for the reasons; None: nothing
    found_at: float = 0.0
    is_found_no_more: bool = False  # since `found_at`
    seen: int = 0  # refused records, at the last look
    refused_at: float = 0.0  # when there were last more of them


class RefusedShares:
    """Judges the records of each topic as they are counted here."""

    def __init__(self, records: Mapping[str, ReadRecords], faults: Faults, clock: Clock) -> None:
        """`records` are those since the start, by topic."""
        self._records = records
        self._faults = faults
        self._clock = clock
        self._judged: dict[str, _Judged] = {}

    def judge(self) -> None:
        """Judge what came since a topic was last judged. Call it every second or so."""
        now = self._clock.monotonic()
        for name, records in self._records.items():
            topic = self._judged.setdefault(name, _Judged())
            if records.refused > topic.seen:
                topic.seen, topic.refused_at = records.refused, now
            _judge(topic, records, now)
            if topic.found is None:
                continue
            since = topic.found_at if topic.is_found_no_more else topic.refused_at
            if now - since < OVER_AFTER_SECONDS:
                self._tell(name, topic.found, records.reasons - topic.reasons)
            else:
                topic.found, topic.reasons = None, records.reasons.copy()
                self._faults.clear(Scope.DEPENDENCY, fault_of(name), reporter=_REPORTER)

    def _tell(self, name: str, found: str, reasons: Counter[QuarantineReason]) -> None:
        """Report what was found of a topic, where that is news."""
        most = ", ".join(reason.value for reason, _ in reasons.most_common(_MOST_REASONS))
        why = f"{found}: {most}" if most else found
        fault = fault_of(name)
        told = self._faults.of(Scope.DEPENDENCY, fault, reporter=_REPORTER)
        if told is None or told.why != why:
            self._faults.report(Scope.DEPENDENCY, fault, why, _FIX, reporter=_REPORTER)


def fault_of(topic: str) -> str:
    """Return the name of the fault of a topic, which no other dependency can have."""
    return f"topic/{topic}"


def _judge(topic: _Judged, records: ReadRecords, now: float) -> None:
    """Judge a topic, once enough of its records came to tell a share of them."""
    read, refused = records.read - topic.read, records.refused - topic.refused
    if refused < LEAST_REFUSED and read < _JUDGED_AT:
        return
    topic.read, topic.refused = records.read, records.refused
    if refused >= LEAST_REFUSED and refused >= SHARE * read:
        topic.found = (
            f"{100 * refused / read:.0f} % of the newest {plural(read, 'record')} are refused and "
            "count nowhere"
        )
        topic.found_at, topic.is_found_no_more = now, False
        return
    topic.is_found_no_more = True
    if topic.found is None:
        topic.reasons = records.reasons.copy()
