"""A topic whose newest records are refused is a fault, until they are not."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta

from controller.adapters.memory import ManualClock
from controller.counting.dependencies import ReadRecords
from controller.health import KAFKA, Faults, Scope
from controller.running.refused_shares import (
    LEAST_REFUSED,
    OVER_AFTER_SECONDS,
    SHARE,
    RefusedShares,
    fault_of,
)
from schemas.terms import QuarantineReason
from tests.builders import T0

TOPIC = "flag.evaluations"
ENOUGH = int(LEAST_REFUSED / SHARE)


@dataclass
class Bench:
    """The records that one replica counts, and the faults that it tells of."""

    clock: ManualClock = field(default_factory=lambda: ManualClock(T0))
    records: defaultdict[str, ReadRecords] = field(default_factory=lambda: defaultdict(ReadRecords))

    def __post_init__(self) -> None:
        self.faults = Faults(self.clock.now)
        self.shares = RefusedShares(self.records, self.faults, self.clock)

    def count(
        self,
        good: int,
        bad: int = 0,
        reason: QuarantineReason | None = QuarantineReason.NOT_JSON,
        *,
        topic: str = TOPIC,
    ) -> None:
        """Count records, of which `bad` are refused for a reason; None: it is not known yet."""
        records = self.records[topic]
        records.read += good + bad
        records.refused += bad
        if reason is not None:
            records.reasons[reason] += bad

    def judge(self, seconds: float = 1.0) -> str | None:
        """Judge a while later; return what is told of the topic."""
        self.clock.advance(timedelta(seconds=seconds))
        self.shares.judge()
        fault = self.faults.of(Scope.DEPENDENCY, fault_of(TOPIC))
        return None if fault is None else fault.why


def test_a_topic_of_which_every_record_is_refused_is_told_after_twenty() -> None:
    """Such a rollout would only lack evidence, and say so minutes later."""
    bench = Bench()
    bench.count(0, LEAST_REFUSED - 1)
    assert bench.judge() is None
    bench.count(0, 1)
    assert bench.judge() == (
        "100 % of the newest 20 records are refused and count nowhere: not_json"
    )


def test_a_share_that_a_few_old_clients_explain_is_not_told() -> None:
    """One client of hundreds must not be a fault of the topic, and 5 % is one."""
    bench = Bench()
    for _ in range(10):
        bench.count(ENOUGH, LEAST_REFUSED - 1)
        assert bench.judge() is None
    bench.count(ENOUGH - LEAST_REFUSED, LEAST_REFUSED)
    assert (why := bench.judge()) is not None
    assert why.startswith("5 % of the newest 400 records ")


def test_the_fault_is_over_once_a_smaller_share_is_refused_for_five_minutes() -> None:
    """Some are refused for ever, but that is not what was found."""
    bench = Bench()
    bench.count(0, LEAST_REFUSED)
    assert bench.judge() is not None
    for _ in range(int(OVER_AFTER_SECONDS) - 1):
        bench.count(ENOUGH, 1)
        assert bench.judge() is not None
    bench.count(ENOUGH, 1)
    assert bench.judge() is None


def test_a_share_that_comes_back_lasts() -> None:
    """A fault that goes and comes each minute would be told each minute."""
    bench = Bench()
    for _ in range(3):
        bench.count(0, LEAST_REFUSED)
        assert bench.judge(OVER_AFTER_SECONDS / 3) is not None
        bench.count(ENOUGH)
        assert bench.judge(OVER_AFTER_SECONDS / 3) is not None


def test_the_fault_is_over_once_nothing_is_refused_any_more_or_comes_at_all() -> None:
    """The test records of an app must not be a fault until the app sends others."""
    bench = Bench()
    bench.count(0, LEAST_REFUSED)
    assert bench.judge() is not None
    assert bench.judge(OVER_AFTER_SECONDS - 1) is not None
    assert bench.judge() is None


def test_topics_are_judged_apart() -> None:
    """They have different producers."""
    bench = Bench()
    bench.count(0, LEAST_REFUSED)
    bench.count(ENOUGH, topic="request.outcomes")
    assert bench.judge() is not None
    assert bench.faults.of(Scope.DEPENDENCY, fault_of("request.outcomes")) is None


def test_rare_records_are_judged_together() -> None:
    """A quiet topic takes long to have enough of them."""
    bench = Bench()
    for _ in range(LEAST_REFUSED - 1):
        bench.count(1, 1)
        assert bench.judge(60.0) is None
    bench.count(1, 1)
    assert bench.judge(60.0) == (
        "50 % of the newest 40 records are refused and count nowhere: not_json"
    )


def test_the_reasons_follow_as_they_are_known() -> None:
    """The most frequent ones, of all that were refused since it began."""
    bench = Bench()
    bench.count(0, LEAST_REFUSED, None)
    assert bench.judge() == "100 % of the newest 20 records are refused and count nowhere"
    bench.count(0, 2, QuarantineReason.BAD_TIME)
    bench.count(0, 18, QuarantineReason.EMPTY)
    assert bench.judge() == (
        "100 % of the newest 20 records are refused and count nowhere: empty, bad_time"
    )
    told = bench.faults.of(Scope.DEPENDENCY, fault_of(TOPIC))
    bench.judge()
    assert bench.faults.of(Scope.DEPENDENCY, fault_of(TOPIC)) == told, "nothing is new"


def test_reasons_of_long_ago_are_not_named() -> None:
    """They would send people to what was mended."""
    bench = Bench()
    bench.count(ENOUGH, 10, QuarantineReason.TOO_LARGE)
    assert bench.judge() is None
    bench.count(0, LEAST_REFUSED)
    assert (why := bench.judge()) is not None
    assert why.endswith(": not_json")
    assert bench.judge(OVER_AFTER_SECONDS) is None
    bench.count(0, LEAST_REFUSED, QuarantineReason.EMPTY)
    assert (why := bench.judge()) is not None
    assert why.endswith(": empty")


def test_a_topic_that_is_called_kafka_is_not_taken_for_an_outage_of_kafka() -> None:
    """The fault of Kafka explains all others, and says how to start it."""
    bench = Bench()
    bench.count(0, LEAST_REFUSED, topic=KAFKA)
    bench.judge()
    assert bench.faults.degrading
    assert bench.faults.of(Scope.DEPENDENCY, KAFKA) is None
