"""A topic of which most records are refused is a fault, until they are not."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import timedelta

from controller.adapters.memory import ManualClock
from controller.counting.dependencies import ReadRecords
from controller.health import Fault, Faults, Scope
from controller.running.refused_shares import RefusedShares
from schemas.terms import QuarantineReason
from tests.builders import T0

TOPIC = "flag.evaluations"
OTHER = "request.outcomes"
#: Seconds.
WINDOW = 10
OVER_AFTER = 300


@dataclass
class Bench:
    """The records that one replica counts, and the faults that it tells of."""

    clock: ManualClock = field(default_factory=lambda: ManualClock(T0))
    records: defaultdict[str, ReadRecords] = field(default_factory=lambda: defaultdict(ReadRecords))

    def __post_init__(self) -> None:
        self.faults = Faults(self.clock.now)
        self.shares = RefusedShares(self.records, self.faults, self.clock)
        for topic in (OTHER, TOPIC):
            self.count(0, topic=topic)
        self.look(1)

    def count(
        self,
        good: int,
        bad: int = 0,
        reason: QuarantineReason = QuarantineReason.NOT_JSON,
        *,
        topic: str = TOPIC,
    ) -> None:
        """Count records, of which `bad` are refused for a reason."""
        records = self.records[topic]
        records.read += good + bad
        records.refused += bad
        records.reasons[reason] += bad

    def look(self, seconds: int = WINDOW, topic: str = TOPIC) -> str | None:
        """Look at the records once a second, for so long; return what is told of the topic."""
        for _ in range(seconds):
            self.clock.advance(timedelta(seconds=1))
            self.shares.judge()
        fault = self.fault(topic)
        return None if fault is None else fault.why

    def fault(self, topic: str = TOPIC) -> Fault | None:
        """Return what is told of a topic."""
        return self.faults.of(Scope.TOPIC, topic)


def found() -> Bench:
    """Return a bench with a fault that was found just now."""
    bench = Bench()
    bench.count(0, 20)
    assert bench.look() is not None
    return bench


def test_a_topic_of_which_every_record_is_refused_is_told_after_twenty() -> None:
    """Its rollouts would only lack evidence, and say so minutes later."""
    bench = Bench()
    bench.count(0, 19)
    assert bench.look(60) is None
    bench.count(0, 1)
    assert bench.look(1) == (
        "20 of the last 20 records read are refused and count nowhere: not_json"
    )
    fault = bench.fault()
    assert fault is not None
    assert "rolloutctl quarantine" in fault.fix


def test_half_of_the_records_are_told_and_fewer_are_not() -> None:
    """A few old clients, or one that sends again and again, are no fault of a topic."""
    bench = Bench()
    bench.count(5_001, 4_999)
    assert bench.look() is None
    bench.count(5_000, 5_000)
    assert bench.look() == (
        "5,000 of the last 10,000 records read are refused and count nowhere: not_json"
    )


def test_a_burst_of_one_sender_is_judged_with_what_comes_beside_it() -> None:
    """Partitions are saved in turn, so at one look there may be those of one sender alone."""
    bench = Bench()
    for _ in range(60):
        bench.count(0, 200)
        assert bench.look(5) is None
        bench.count(250)
        assert bench.look(5) is None


def test_a_topic_whose_records_are_good_hides_no_other() -> None:
    """They have different producers."""
    for good, bad in ((OTHER, TOPIC), (TOPIC, OTHER)):
        bench = Bench()
        bench.count(1_000, topic=good)
        bench.count(0, 20, topic=bad)
        assert bench.look(topic=bad) is not None
        assert bench.fault(good) is None


def test_two_streams_of_one_topic_are_one() -> None:
    """People know the topic, and find its records in the quarantine by that."""
    bench = Bench()
    for stream in (TOPIC, f"{TOPIC}#outcomes"):
        bench.count(0, 10, topic=stream)
    assert bench.look() is not None
    assert bench.fault(f"{TOPIC}#outcomes") is None


def test_the_fault_is_over_five_minutes_after_records_became_good() -> None:
    """Some are always refused, but that is not what was found."""
    bench = found()
    for _ in range(OVER_AFTER // WINDOW):
        bench.count(100, 30)
        assert bench.look() is not None
    bench.count(100, 30)
    assert bench.look() is None


def test_a_share_that_comes_back_within_five_minutes_lasts() -> None:
    """A fault that goes and comes each minute would be told each minute."""
    bench = found()
    since = bench.fault()
    assert since is not None
    for _ in range(5):
        bench.count(1_000)
        assert bench.look(200) is not None
        bench.count(0, 20)
        assert bench.look(200) is not None
    now = bench.fault()
    assert now is not None
    assert now.since == since.since


def test_where_few_records_come_the_fault_lasts_while_any_is_refused() -> None:
    """Twenty of a quiet topic take longer than five minutes."""
    bench = found()
    for _ in range(15):
        bench.count(0, 1)
        assert bench.look(OVER_AFTER - 1) is not None
    assert bench.look(2) is None


def test_the_fault_is_over_five_minutes_after_the_last_record() -> None:
    """The test records of an app must not be a fault until the app sends others."""
    bench = found()
    assert bench.look(OVER_AFTER - 1) is not None
    assert bench.look(1) is None


def test_what_was_over_is_found_again() -> None:
    """Each time is told with its own beginning."""
    bench = found()
    assert bench.look(OVER_AFTER) is None
    bench.count(0, 20, QuarantineReason.EMPTY)
    assert (why := bench.look()) is not None
    assert why.endswith(": empty")


def test_only_the_reasons_of_the_newest_records_are_named() -> None:
    """Those of long ago would send people to what was mended."""
    bench = Bench()
    bench.count(0, 1_000, QuarantineReason.TOO_LARGE)
    assert bench.look() is not None
    for reason, bad in zip(list(QuarantineReason)[1:5], (40, 10, 30, 20), strict=True):
        bench.count(0, bad, reason)
    assert (why := bench.look()) is not None
    assert why == (
        "100 of the last 100 records read are refused and count nowhere: "
        "empty, not_cloudevent, unknown_type"
    )


def test_nothing_is_told_again_while_nothing_comes() -> None:
    """People would take the number of reports for so many faults."""
    bench = found()
    bench.look(100)
    fault = bench.fault()
    assert fault is not None
    assert fault.times == 1


def test_records_are_added_by_topic() -> None:
    """The streams of a topic are summed up, and themselves not changed."""
    one = ReadRecords(3, 1, Counter({QuarantineReason.EMPTY: 1}))
    both = ReadRecords()
    both.add(one)
    both.add(one)
    assert both == ReadRecords(6, 2, Counter({QuarantineReason.EMPTY: 2}))
    assert one == ReadRecords(3, 1, Counter({QuarantineReason.EMPTY: 1}))
