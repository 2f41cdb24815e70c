"""The loop around counting: what happens when, on the memory adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import structlog

from controller.adapters.memory import ManualClock, MemoryBroker, MemoryEventLog, MemoryTotals
from controller.core.rollout import Aborted
from controller.counting.ingest import Ingest
from controller.counting.owned_partition import PartitionState
from controller.counting.pacing import Pacing
from controller.counting.partition_totals import PartitionTotals, ReadEvaluations, ReadOutcomes
from controller.errors import EventLogUnavailable
from controller.health import Faults, Scope
from controller.metrics import Metrics
from controller.ports import Record, TopicPartition
from controller.settings import CountingSettings
from schemas.envelope import MAX_TIME_MS
from schemas.events import EvaluationFields
from schemas.quarantine import Refusal
from schemas.totals import PartitionCounts, decode_progress
from schemas.wire import RecordRefused, read_evaluations, read_outcomes
from tests.builders import HOUR, MINUTE, T0, make_rollout, make_visit
from tests.records import LINES, arms_in, at_ms, evaluation_value, outcome_value

EVALUATIONS, OUTCOMES = TOPICS = ("flag.evaluations", "request.outcomes")
NOW = T0 + 10 * MINUTE
ON, OFF = ("new-checkout", "on"), ("new-checkout", "off")


class TickingClock(ManualClock):
    """A clock on which each look takes 2 ms, so that what is due comes due without waiting."""

    def __init__(self) -> None:
        super().__init__(NOW)
        self._monotonic = 0.0

    def monotonic(self) -> float:
        self._monotonic += 0.002
        return self._monotonic + super().monotonic()


def make_pacing(**overrides: float) -> Pacing:
    """Return a pacing that waits little, for a clock that ticks at each look."""
    quick = Pacing(
        retry_seconds=0,
        ends_seconds=0,
        failed_seconds=0.02,
        stopped_seconds=0.1,
        join_grace_seconds=0.05,
        heartbeat_seconds=0.1,
    )
    return replace(quick, **overrides)  # type: ignore[arg-type]


def make_settings(**overrides: float) -> CountingSettings:
    """Return settings that save every few looks at the clock."""
    return CountingSettings(**{"flush_interval_seconds": 0.005, **overrides})


@dataclass
class KnownTopics:
    """A topology that a test sets."""

    count: int
    ids: dict[str, str] = field(default_factory=dict)

    def partitions(self, logical: str) -> int:
        return self.count

    def topic_id(self, logical: str) -> str | None:
        return self.ids.get(logical)


@dataclass
class Bench:
    """An ingest on memory adapters, with what it did."""

    partitions: int = 1
    settings: CountingSettings = field(default_factory=make_settings)
    pacing: Pacing = field(default_factory=make_pacing)
    readers: tuple[ReadEvaluations, ReadOutcomes] = (read_evaluations, read_outcomes)

    def __post_init__(self) -> None:
        self.clock = TickingClock()
        self.faults = Faults(self.clock.now)
        self.broker = MemoryBroker(self.clock, dict.fromkeys(TOPICS, self.partitions))
        self.totals = MemoryTotals()
        self.quarantined: list[tuple[str, int, Sequence[Refusal]]] = []
        self.is_quarantine_down = False
        self.topology = KnownTopics(self.partitions)
        self.told: list[frozenset[str]] = []
        self.members: list[tuple[Ingest, MemoryEventLog]] = []
        self.metrics = Metrics(version="test")

    async def quarantine(self, topic: str, partition: int, refusals: Sequence[Refusal]) -> None:
        if self.is_quarantine_down:
            raise EventLogUnavailable("down")
        self.quarantined.append((topic, partition, list(refusals)))

    def make(self) -> tuple[Ingest, MemoryEventLog]:
        """Return one more member, watching the flag, not yet started."""
        log = MemoryEventLog(self.broker, "counting", TOPICS)
        ingest = Ingest(
            log,
            self.totals,
            clock=self.clock,
            metrics=self.metrics,
            settings=self.settings,
            topics=TOPICS,
            epoch=1,
            quarantine=self.quarantine,
            on_counted=self.told.append,
            read_evaluations=self.readers[0],
            read_outcomes=self.readers[1],
            pacing=self.pacing,
            faults=self.faults,
            topology=self.topology,
        )
        ingest.watch(make_rollout())
        return ingest, log

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Ingest]:
        """Run one more member until the end of the block, then stop it in order."""
        ingest, log = self.make()
        self.members.append((ingest, log))
        task = asyncio.create_task(ingest.run())
        await log.start()
        try:
            yield ingest
        finally:
            if not task.done():
                await ingest.stop()
            await task
            await log.stop()

    def evaluate(
        self, context: str, variant: str = "on", *, at: datetime = NOW, flag: str = "new-checkout"
    ) -> None:
        """Append an evaluation."""
        value = evaluation_value(context, variant, time_ms=at_ms(at), flag=flag)
        self.broker.append(EVALUATIONS, value, key=context.encode(), timestamp_ms=at_ms(at))

    def happen(
        self,
        context: str,
        *flags: tuple[str, str],
        at: datetime = NOW,
        error: bool = False,
        latency_ms: float | None = 5.0,
    ) -> None:
        """Append an outcome."""
        value = outcome_value(
            context, time_ms=at_ms(at), flags=flags, error=error, latency_ms=latency_ms
        )
        self.broker.append(OUTCOMES, value, key=context.encode(), timestamp_ms=at_ms(at))

    def stored(self, topic: str, partition: int = 0) -> dict[str, bytes]:
        """Return a partition's hash."""
        return self.totals.hashes.get(f"{topic}/{partition}/1", {})

    def fence(self, topic: str, partition: int = 0) -> int:
        """Return a partition's fence, -1 for none."""
        return int(self.stored(topic, partition).get("next", b"-1"))

    def progress(self, topic: str, partition: int = 0) -> PartitionCounts:
        """Return what became of a partition's records."""
        return decode_progress(self.stored(topic, partition))

    def is_all_saved(self) -> bool:
        """Whether every fence is at its log's end."""
        return all(
            self.fence(topic, partition) == self.broker.bounds((topic, partition))[1]
            for topic in TOPICS
            for partition in range(self.partitions)
        )


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Let the loop turn until `condition` holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0)


async def test_events_become_totals_with_the_fence() -> None:
    """Evaluations and outcomes are counted per arm and saved with the next offset."""
    bench = Bench()
    bench.evaluate("a", "on")
    bench.evaluate("a", "on")
    bench.evaluate("b", "off")
    bench.happen("a", ON, error=True)
    async with bench.running():
        await until(bench.is_all_saved)
    arms = arms_in(bench.stored(EVALUATIONS))
    assert arms["new-checkout", 0, "treatment"].evaluations == 2
    assert arms["new-checkout", 0, "treatment"].exposures == 1
    assert arms["new-checkout", 0, "control"].exposures == 1
    assert arms_in(bench.stored(OUTCOMES))["new-checkout", 0, "treatment"].first_errors == 1
    assert bench.told[0] == {"new-checkout"}
    assert bench.progress(EVALUATIONS).counted == 3
    assert bench.progress(EVALUATIONS).freshest_ms == at_ms(NOW)


async def test_position_comes_from_the_fence() -> None:
    """A new owner reads on from the stored fence, whatever the group has committed."""
    bench = Bench()
    for number in range(5):
        bench.evaluate(f"u{number}")
    async with bench.running():
        await until(bench.is_all_saved)
    bench.broker.committed("counting")[EVALUATIONS, 0] = 1
    bench.evaluate("u0")
    async with bench.running():
        await until(bench.is_all_saved)
    bench.broker.committed("counting")[EVALUATIONS, 0] = 6
    bench.evaluate("u9")
    async with bench.running():
        await until(bench.is_all_saved)
    arm = arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"]
    assert (arm.evaluations, arm.exposures) == (7, 6)


async def test_two_members_share_and_hand_over() -> None:
    """When members come and go, each record is counted by exactly one of them."""
    bench = Bench(partitions=4)
    for number in range(100):
        bench.evaluate(f"u{number}")
        bench.happen(f"u{number}", ON)
    async with bench.running():
        await until(lambda: bench.fence(EVALUATIONS) > 0)
        async with bench.running():
            for number in range(100):
                bench.evaluate(f"u{number}")
            await until(bench.is_all_saved)
        for number in range(100):
            bench.evaluate(f"v{number}")
        await until(bench.is_all_saved)
    arms = [
        arms_in(bench.stored(EVALUATIONS, partition))["new-checkout", 0, "treatment"]
        for partition in range(4)
    ]
    assert sum(arm.evaluations for arm in arms) == 300
    assert sum(arm.exposures for arm in arms) == 200


async def test_a_lost_fence_means_counting_again_from_it() -> None:
    """A member whose fence another one moved drops its memory and loads what is stored."""
    bench = Bench()
    bench.evaluate("a")
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        old = {name: dict(stored) for name, stored in bench.totals.hashes.items()}
        bench.evaluate("b")
        await until(bench.is_all_saved)
        bench.totals.hashes.update(old)  # a fail-over lost the last save
        bench.evaluate("c")
        await until(bench.is_all_saved)
        assert ingest.counters.fences_lost >= 1
    assert arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"].exposures == 3


async def test_an_emptied_store_is_filled_from_the_log() -> None:
    """After all is lost, counting begins at the earliest record that is left."""
    bench = Bench()
    bench.evaluate("a")
    bench.evaluate("b")
    async with bench.running():
        await until(bench.is_all_saved)
        bench.totals.hashes.clear()
        await until(bench.is_all_saved)
    assert arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"].exposures == 2


async def test_a_save_of_unknown_outcome_is_repeated() -> None:
    """A lost reply is asked for again with the same arguments and counts once."""
    bench = Bench()
    bench.evaluate("a")
    bench.totals.outage.lost_replies = 5
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        assert ingest.counters.fences_lost == 0
    assert arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"].evaluations == 1


async def test_an_outage_of_the_store_stops_fetching_at_a_bound_and_loses_nothing() -> None:
    """While nothing can be saved only a bounded number of records is taken.

    Afterwards all are counted.
    """
    bench = Bench(
        settings=make_settings(max_unsaved_records=50, fetch_max_records=10),
        pacing=make_pacing(pending_records=20),
    )
    async with bench.running() as ingest:
        await until(lambda: bench.fence(EVALUATIONS) == 0)
        bench.totals.outage.is_down = True
        for number in range(500):
            bench.evaluate(f"u{number}")
        await until(lambda: ingest.counters.save_troubles > 0)
        for _ in range(200):
            await asyncio.sleep(0)
        view = next(view for view in ingest.views() if view.topic == EVALUATIONS)
        assert view.next_offset < 100
        bench.totals.outage.is_down = False
        await until(bench.is_all_saved)
    assert arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"].exposures == 500


async def test_a_backlog_is_saved_less_often_and_its_end_at_once() -> None:
    """While the log has much more than was folded, catching up comes first.

    What was caught up with is saved as ever.
    """
    bench = Bench(
        settings=make_settings(fetch_max_records=10),
        pacing=make_pacing(pending_records=20, backlog_seconds=1000.0),
    )
    for number in range(500):
        bench.evaluate(f"u{number}")
    fences = set()
    async with bench.running():
        async with asyncio.timeout(60):
            while not bench.is_all_saved():
                fences.add(bench.fence(EVALUATIONS))
                await asyncio.sleep(0)
    assert fences <= {-1, *range(481, 501)}


async def test_a_busy_partition_is_never_paused() -> None:
    """What is at hand is folded before more is fetched.

    A pause would throw away what the client has read ahead.
    """
    bench = Bench(settings=CountingSettings())
    for _ in range(12_000):
        bench.evaluate("a")
    ingest, log = bench.make()
    paused: list[object] = []
    log.pause = paused.append  # type: ignore[method-assign, assignment]
    task = asyncio.create_task(ingest.run())
    await log.start()
    await until(lambda: bench.fence(EVALUATIONS) == 12_000)
    await ingest.stop()
    await task
    await log.stop()
    assert paused == []


async def test_refusals_are_published_before_the_fence_moves() -> None:
    """While the quarantine answers, a refused record is there before the fence moves past it."""
    bench = Bench()
    fences: list[int] = []
    publish = bench.quarantine

    async def quarantine(topic: str, partition: int, refusals: Sequence[Refusal]) -> None:
        fences.append(bench.fence(EVALUATIONS))
        await publish(topic, partition, refusals)

    bench.quarantine = quarantine  # type: ignore[method-assign]
    bench.evaluate("a")
    bench.broker.append(EVALUATIONS, b"{", partition=0, timestamp_ms=at_ms(NOW))
    bench.evaluate("b")
    async with bench.running():
        await until(bench.is_all_saved)
    assert fences == [-1]
    [(topic, partition, [refused])] = bench.quarantined
    assert (topic, partition, refused.offset) == (EVALUATIONS, 0, 1)
    assert bench.progress(EVALUATIONS).quarantined == 1
    assert arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"].exposures == 2


async def test_counting_does_not_wait_for_a_quarantine_that_is_away() -> None:
    """One bad record and no quarantine.

    Everything is counted, the fault is shown, and details come later.
    """
    bench = Bench(pacing=make_pacing(quarantine_seconds=0.01, retry_seconds=0.001))
    bench.is_quarantine_down = True
    bench.broker.append(OUTCOMES, b"{", partition=0, timestamp_ms=at_ms(NOW))
    for number in range(300):
        bench.happen(f"u{number}", ON, error=True)
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        assert bench.quarantined == []
        fault = bench.faults.of(Scope.DEPENDENCY, "quarantine")
        assert fault is not None
        assert "1 refusals wait" in fault.why
        bench.is_quarantine_down = False
        await until(lambda: ingest.refusals.waiting == 0)
        await until(lambda: bench.faults.of(Scope.DEPENDENCY, "quarantine") is None)
    assert [one.offset for _, _, refusals in bench.quarantined for one in refusals] == [0]
    arm = arms_in(bench.stored(OUTCOMES))["new-checkout", 0, "treatment"]
    assert arm.first_errors == 300


async def test_more_poison_than_one_quarantine_record_holds() -> None:
    """A partition full of poison is quarantined whole, and in batches."""
    bench = Bench()
    for _ in range(1234):
        bench.broker.append(OUTCOMES, b"?", partition=0, timestamp_ms=at_ms(NOW))
    async with bench.running():
        await until(bench.is_all_saved)
    assert [refusal.offset for _, _, refusals in bench.quarantined for refusal in refusals] == list(
        range(1234)
    )
    assert bench.progress(OUTCOMES).quarantined == 1234


async def test_records_eaten_by_retention_are_a_recorded_gap() -> None:
    """A fence below the log's start goes on at the start.

    With the gap counted as holes and a taint since the last event.
    """
    bench = Bench()
    bench.evaluate("a", at=NOW - MINUTE)
    async with bench.running():
        await until(bench.is_all_saved)
    for _ in range(9):
        bench.evaluate("b")
    bench.broker.truncate((EVALUATIONS, 0), 6)
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        assert ingest.counters.gaps == 1
    progress = bench.progress(EVALUATIONS)
    assert (progress.holes, progress.counted) == (5, 5)
    assert progress.losses == [(at_ms(NOW - MINUTE), at_ms(NOW))]


async def test_offsets_without_records_are_holes_and_no_taint() -> None:
    """Transaction markers and compacted offsets are counted as holes; nothing is lost by them."""
    bench = Bench()
    bench.evaluate("a")
    bench.broker.skip((EVALUATIONS, 0), 3)
    bench.evaluate("b")
    async with bench.running():
        await until(bench.is_all_saved)
    progress = bench.progress(EVALUATIONS)
    assert (progress.holes, progress.counted, progress.losses) == (3, 2, [])


@pytest.mark.parametrize("trouble", ["unanswered", "overtaken"])
async def test_a_loss_is_noted_although_a_save_has_gone_past_it(trouble: str) -> None:
    """What the log forgot is a loss also if it did not answer before a save, or more was folded."""
    bench = Bench()
    ingest, log = bench.make()
    task = asyncio.create_task(ingest.run())
    await log.start()
    bench.evaluate("a", at=NOW - MINUTE)
    await until(bench.is_all_saved)
    bounds = log.bounds
    is_told = False

    def lose(first: int) -> None:
        for _ in range(9):
            bench.evaluate("b")
        bench.broker.truncate((EVALUATIONS, 0), first)

    async def failing(partition: TopicPartition) -> tuple[int, int]:
        nonlocal is_told
        if partition[0] == EVALUATIONS and not is_told:
            is_told = True
            if trouble == "unanswered":
                raise EventLogUnavailable("no answer")
            answer = await bounds(partition)
            lose(12)
            [owned] = [one for one in ingest.assignment.owned.values() if one.is_counting_exposures]
            await until(lambda: owned.totals.position > 12)
            return answer
        return await bounds(partition)

    log.bounds = failing  # type: ignore[method-assign]
    if trouble == "unanswered":
        lose(6)
    else:
        bench.broker.skip((EVALUATIONS, 0), 3)
        bench.evaluate("c")
    await until(lambda: is_told and bench.is_all_saved())
    bench.evaluate("d")
    await until(lambda: bench.progress(EVALUATIONS).losses != [])
    await ingest.stop()
    await task
    await log.stop()
    began = NOW - MINUTE if trouble == "unanswered" else NOW
    assert bench.progress(EVALUATIONS).losses == [(at_ms(began), at_ms(NOW))]


async def test_each_loss_is_noted_and_not_the_first_alone() -> None:
    """A second loss in a partition is a second interval, closed by the next record."""
    bench = Bench()
    for turn, begin in enumerate((NOW - 4 * MINUTE, NOW - 2 * MINUTE)):
        bench.evaluate("a", at=begin)
        async with bench.running():
            await until(bench.is_all_saved)
        for _ in range(3):
            bench.evaluate("lost", at=begin + MINUTE / 2)
        bench.evaluate("kept", at=begin + MINUTE)
        bench.broker.truncate((EVALUATIONS, 0), 5 * (turn + 1) - 1)
        async with bench.running():
            await until(bench.is_all_saved)
    progress = bench.progress(EVALUATIONS)
    assert (progress.holes, progress.counted) == (6, 4)
    assert progress.losses == [
        (at_ms(NOW - 4 * MINUTE), at_ms(NOW - 3 * MINUTE)),
        (at_ms(NOW - 2 * MINUTE), at_ms(NOW - MINUTE)),
    ]


async def test_a_log_that_begins_late_has_lost_its_beginning() -> None:
    """Without a fence, what retention deleted is a loss up to the first record (F14)."""
    bench = Bench()
    for minute in range(5):
        bench.evaluate(f"u{minute}", at=NOW - (5 - minute) * MINUTE)
    bench.broker.truncate((EVALUATIONS, 0), 4)
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        assert ingest.counters.gaps == 1
    progress = bench.progress(EVALUATIONS)
    assert (progress.counted, progress.start, progress.losses) == (1, 4, [(0, at_ms(NOW - MINUTE))])
    assert bench.progress(OUTCOMES).losses == []


async def test_a_topic_made_again_is_counted_on_from_its_beginning() -> None:
    """Another topic under the same name, grown past the old fence.

    All of it counts, and the loss is noted (F26).
    """
    bench = Bench()
    bench.topology.ids = {"evaluations": "one", "outcomes": "one"}
    for number in range(10):
        bench.happen(f"u{number}", ON, at=NOW - MINUTE)
    async with bench.running():
        await until(bench.is_all_saved)
    await bench.broker.remake(OUTCOMES)
    bench.topology.ids = {"evaluations": "one", "outcomes": "two"}
    for number in range(50):
        bench.happen(f"v{number}", ON, error=True)
    async with bench.running() as ingest:
        await until(lambda: bench.fence(OUTCOMES) == 50)
        assert ingest.counters.rebases == 1
        fault = bench.faults.of(Scope.PARTITION, f"{OUTCOMES}/0")
        assert fault is not None
        assert "made again" in fault.why
    arm = arms_in(bench.stored(OUTCOMES))["new-checkout", 0, "treatment"]
    assert (arm.outcomes, arm.first_errors) == (60, 50)
    progress = bench.progress(OUTCOMES)
    assert (progress.start, progress.counted, progress.topic_id, progress.rebased) == (
        0,
        50,
        "two",
        1,
    )
    assert progress.losses == [(at_ms(NOW - MINUTE), at_ms(NOW))]
    async with bench.running() as ingest:  # and is an ordinary partition from then on
        bench.happen("w", ON)
        await until(lambda: bench.fence(OUTCOMES) == 51)
        assert (ingest.counters.rebases, ingest.counters.fences_lost) == (0, 0)


@pytest.mark.parametrize("is_noticed", [True, False])
async def test_a_topic_made_again_while_it_is_counted(is_noticed: bool) -> None:
    """The change is found without a restart, with or without a new assignment."""
    bench = Bench()
    bench.topology.ids = {"evaluations": "one", "outcomes": "one"}
    for number in range(10):
        bench.happen(f"u{number}", ON)
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        bench.topology.ids["outcomes"] = "two"
        if is_noticed:
            await bench.broker.remake(OUTCOMES)
        else:
            bench.broker.cut((OUTCOMES, 0), 0)
        for number in range(20):
            bench.happen(f"v{number}", ON)
        await until(lambda: bench.progress(OUTCOMES).rebased == 1 and bench.fence(OUTCOMES) == 20)
        assert ingest.counters.rebases == 1
        assert bench.progress(OUTCOMES).counted == 20


async def test_a_log_that_was_cut_is_counted_on_from_its_end() -> None:
    """After an unclean election counting goes on at the end, with a loss.

    No evidence is dropped, none counted twice.
    """
    bench = Bench()
    for number in range(10):
        bench.happen(f"u{number}", ON)
    async with bench.running():
        await until(bench.is_all_saved)
        bench.broker.cut((OUTCOMES, 0), 6)
        await until(lambda: bench.fence(OUTCOMES) == 6)
        bench.happen("v", ON, error=True)
        await until(lambda: bench.fence(OUTCOMES) == 7)
    arm = arms_in(bench.stored(OUTCOMES))["new-checkout", 0, "treatment"]
    assert (arm.outcomes, arm.first_errors) == (11, 1)
    progress = bench.progress(OUTCOMES)
    assert (progress.start, progress.counted, progress.losses) == (6, 1, [(at_ms(NOW), at_ms(NOW))])


async def test_an_end_that_is_behind_for_a_moment_is_no_cut() -> None:
    """A broker that says once that the log ends earlier is asked again.

    Nothing is counted twice.
    """
    bench = Bench()
    for number in range(10):
        bench.happen(f"u{number}", ON)
    async with bench.running():
        await until(bench.is_all_saved)
    bounds = bench.broker.bounds
    answers = iter([(0, 4), (0, 7)])
    ingest, log = bench.make()

    async def lagging(partition: TopicPartition) -> tuple[int, int]:
        return next(answers, bounds(partition)) if partition[0] == OUTCOMES else bounds(partition)

    log.bounds = lagging  # type: ignore[method-assign]
    task = asyncio.create_task(ingest.run())
    await log.start()
    bench.happen("v", ON)
    await until(bench.is_all_saved)
    await ingest.stop()
    await task
    await log.stop()
    assert ingest.counters.rebases == 0
    assert arms_in(bench.stored(OUTCOMES))["new-checkout", 0, "treatment"].outcomes == 11


async def test_a_topics_id_is_adopted_when_none_is_known() -> None:
    """A fence of a release that kept no id, or of brokers that gave none, stays as it is."""
    bench = Bench()
    bench.happen("a", ON)
    async with bench.running():
        await until(bench.is_all_saved)
    bench.topology.ids = {"outcomes": "one"}
    async with bench.running() as ingest:
        await until(lambda: bench.progress(OUTCOMES).topic_id == "one")
        assert ingest.counters.rebases == 0
    bench.topology.ids = {}
    async with bench.running():
        bench.happen("a", ON)
        await until(bench.is_all_saved)
    assert (bench.progress(OUTCOMES).topic_id, bench.progress(OUTCOMES).counted) == ("one", 2)


async def test_a_damaged_partition_stops_alone_and_is_repaired_while_running() -> None:
    """A hash that cannot be read costs its partition, with a fix.

    Once it is discarded counting begins again.
    """
    bench = Bench(partitions=2)
    for number in range(20):
        bench.evaluate(f"u{number}")
    async with bench.running():
        await until(bench.is_all_saved)
    victim = next(partition for partition in range(2) if bench.fence(EVALUATIONS, partition) > 0)
    key = f"{EVALUATIONS}/{victim}/1"
    bench.totals.hashes[key]["counted"] = b"?"
    async with bench.running() as ingest:
        await until(lambda: any(view.state is PartitionState.STOPPED for view in ingest.views()))
        fault = bench.faults.of(Scope.PARTITION, f"{EVALUATIONS}/{victim}")
        assert fault is not None
        assert fault.fix == f"rolloutd repair partition {EVALUATIONS}/{victim}"
        for number in range(20):
            bench.happen(f"u{number}", ON)
        await until(
            lambda: sum(max(0, bench.fence(OUTCOMES, partition)) for partition in range(2)) == 20
        )
        assert await bench.totals.discard(key)
        await until(bench.is_all_saved)
        await until(lambda: not bench.faults.current)
    arms = [arms_in(bench.stored(EVALUATIONS, partition)) for partition in range(2)]
    assert sum(arm["new-checkout", 0, "treatment"].exposures for arm in arms if arm) == 20


async def test_a_format_from_the_future_stops_its_partition_alone() -> None:
    """What a newer release has written is not touched, and everything else goes on."""
    bench = Bench()
    bench.evaluate("a")
    async with bench.running():
        await until(bench.is_all_saved)
    stored = bench.stored(EVALUATIONS)
    stored["format"] = b"3"
    before = dict(stored)
    async with bench.running() as ingest:
        await until(lambda: any(view.state is PartitionState.STOPPED for view in ingest.views()))
        bench.happen("a", ON)
        await until(lambda: bench.fence(OUTCOMES) == 1)
    assert bench.stored(EVALUATIONS) == before


async def test_a_record_that_cannot_be_counted_is_set_aside() -> None:
    """A mistake of ours over one record costs that record.

    It goes to quarantine, all others count once.
    """

    def read(
        records: Iterable[Record],
        refused: Callable[[Record, RecordRefused], None],
        *,
        latest_ms: int = MAX_TIME_MS,
    ) -> Iterator[EvaluationFields]:
        for record in records:
            if b"poison" in (record.value or b""):
                raise ZeroDivisionError("a bug")
            yield from read_evaluations([record], refused, latest_ms=latest_ms)

    bench = Bench(partitions=2, readers=(read, read_outcomes))
    contexts = [f"u{number}" for number in range(40)]
    for context in (*contexts[:20], "poison-1", *contexts[20:], "poison-2"):
        bench.evaluate(context)
    async with bench.running() as ingest:
        await until(bench.is_all_saved, seconds=20)
        assert ingest.counters.mistakes > 0
        await until(lambda: not bench.faults.current)
    arms = [arms_in(bench.stored(EVALUATIONS, partition)) for partition in range(2)]
    treated = [arm["new-checkout", 0, "treatment"] for arm in arms if arm]
    assert (sum(arm.exposures for arm in treated), sum(arm.evaluations for arm in treated)) == (
        40,
        40,
    )
    details = [one.detail for _, _, refusals in bench.quarantined for one in refusals]
    assert len(details) == 2
    assert all("ZeroDivisionError" in detail for detail in details)


def failing_on(poison: bytes) -> ReadEvaluations:
    """Return a reader whose records with `poison` fail in the midst of counting."""

    def read(
        records: Iterable[Record],
        refused: Callable[[Record, RecordRefused], None],
        *,
        latest_ms: int = MAX_TIME_MS,
    ) -> Iterator[EvaluationFields]:
        for record in records:
            for event in read_evaluations([record], refused, latest_ms=latest_ms):
                if poison in (record.value or b""):
                    yield (None, *event[1:])  # type: ignore[misc]
                yield event

    return read


async def test_a_tenth_of_records_that_cannot_be_counted_costs_one_load() -> None:
    """Records that fail while they are counted are found in one go, and all others count once."""
    bench = Bench(
        settings=CountingSettings(fetch_max_records=100),
        pacing=Pacing(),
        readers=(failing_on(b"poison"), read_outcomes),
    )
    for number in range(1000):
        bench.evaluate(f"poison{number}" if number % 10 == 5 else f"u{number}")
        bench.happen(f"u{number}")
    loads = 0
    load = bench.totals.load

    async def counting_loads(partition_key: str) -> Any:
        nonlocal loads
        loads += partition_key.startswith(EVALUATIONS)
        return await load(partition_key)

    bench.totals.load = counting_loads  # type: ignore[method-assign]
    async with bench.running() as ingest:
        with structlog.testing.capture_logs():
            await until(bench.is_all_saved, seconds=3)
        assert loads == 2  # at the start, and after the first failure
        assert ingest.counters.mistakes >= 100
        [owned] = [one for one in ingest.assignment.owned.values() if one.is_counting_exposures]
        assert owned.poisoned == {}
        await until(lambda: not bench.faults.current)
    arm = arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"]
    assert (arm.exposures, arm.evaluations) == (900, 900)
    assert arms_in(bench.stored(OUTCOMES))["new-checkout", 0, "treatment"].outcomes == 900
    refused = [one for _, _, refusals in bench.quarantined for one in refusals]
    assert sorted({one.offset for one in refused}) == list(range(5, 1000, 10))
    assert all("rolloutd failed on this record" in one.detail for one in refused)


async def test_each_failure_that_no_trial_shows_moves_the_fence() -> None:
    """A record that fails on what was counted alone is saved up to, set aside and gone past."""
    bench = Bench(settings=make_settings(fetch_max_records=100))
    ingest, log = bench.make()
    fold = PartitionTotals.fold_evaluations

    def failing(totals: PartitionTotals, batch: Sequence[Record], *args: Any, **more: Any) -> int:
        taken = fold(totals, batch, *args, **more)
        is_real = any(owned.totals is totals for owned in ingest.assignment.owned.values())
        if is_real and any(b"poison" in (record.value or b"") for record in batch):
            raise ZeroDivisionError("a bug")
        return taken

    for number in range(100):
        bench.evaluate(f"poison{number}" if number % 10 == 5 else f"u{number}")
    fences: list[int] = []
    load = bench.totals.load

    async def noting(partition_key: str) -> Any:
        if partition_key.startswith(EVALUATIONS):
            fences.append(bench.fence(EVALUATIONS))
        return await load(partition_key)

    bench.totals.load = noting  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartitionTotals, "fold_evaluations", failing)
        task = asyncio.create_task(ingest.run())
        await log.start()
        with structlog.testing.capture_logs():
            await until(bench.is_all_saved)
        await ingest.stop()
        await task
    await log.stop()
    arm = arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"]
    assert (arm.exposures, arm.evaluations) == (90, 90)
    assert bench.progress(EVALUATIONS).quarantined == 10
    assert fences == [-1, -1, -1, *range(6, 96, 10)]


async def test_what_failed_in_a_log_is_not_blamed_on_its_successor() -> None:
    """A topic that was made again has other records at the offsets that were set aside."""
    bench = Bench(readers=(failing_on(b"poison"), read_outcomes))
    bench.topology.ids = {"evaluations": "one", "outcomes": "one"}
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        bench.totals.outage.is_down = True
        for _ in range(20):
            bench.evaluate("poison")
        with structlog.testing.capture_logs():
            await until(lambda: ingest.counters.mistakes > 0)
        [owned] = [one for one in ingest.assignment.owned.values() if one.is_counting_exposures]
        owned.poisoned[2] = "it failed in the other log"
        bench.topology.ids["evaluations"] = "two"
        bench.broker.cut((EVALUATIONS, 0), 0)
        bench.totals.outage.is_down = False
        await until(lambda: bench.progress(EVALUATIONS).rebased == 1)
        for number in range(5):
            bench.evaluate(f"u{number}")
        await until(bench.is_all_saved)
        assert owned.failed_at == 0
    assert bench.progress(EVALUATIONS).counted == 5


async def test_a_partition_that_stopped_is_tried_again_rarely() -> None:
    """While saving fails by a mistake of ours, a stopped partition is loaded every 10 s."""
    bench = Bench(pacing=make_pacing(failed_seconds=0.01, stopped_seconds=10))
    loads = 0
    load = bench.totals.load

    async def counting_loads(partition_key: str) -> Any:
        nonlocal loads
        loads += partition_key.startswith(EVALUATIONS)
        return await load(partition_key)

    async def failing(partition_key: str, **arguments: Any) -> int | None:
        raise KeyError("a bug")

    bench.totals.load = counting_loads  # type: ignore[method-assign]
    bench.totals.save = failing  # type: ignore[method-assign]
    bench.evaluate("a")
    async with bench.running() as ingest:
        with structlog.testing.capture_logs():
            await until(lambda: any(one.state is PartitionState.STOPPED for one in ingest.views()))
        before = loads
        await asyncio.sleep(0.3)
        assert all(one.state is PartitionState.STOPPED for one in ingest.views())
        assert loads == before


async def test_a_save_that_fails_by_a_mistake_of_ours_stops_its_pair_alone() -> None:
    """Whatever a save raises, other partitions go on, and the pair does once it is over."""
    bench = Bench(partitions=2)
    save = bench.totals.save
    is_broken = True

    async def failing(partition_key: str, **arguments: Any) -> int | None:
        if is_broken and partition_key == f"{EVALUATIONS}/0/1":
            raise KeyError("a bug")
        return await save(partition_key, **arguments)

    bench.totals.save = failing  # type: ignore[method-assign]
    for number in range(40):
        bench.evaluate(f"u{number}")
    async with bench.running() as ingest:
        await until(lambda: bench.fence(EVALUATIONS, 1) == bench.broker.bounds((EVALUATIONS, 1))[1])
        await until(lambda: any(view.state is PartitionState.STOPPED for view in ingest.views()))
        is_broken = False
        await until(bench.is_all_saved)
        await until(lambda: not bench.faults.current)


async def test_one_time_from_the_future_blinds_nobody() -> None:
    """A record and an event far ahead cost themselves.

    Outcomes after them are joined, and freshness stays true.
    """
    bench = Bench()
    bench.evaluate("a", "on", at=NOW - MINUTE)
    for ahead in (
        55 * MINUTE,
        timedelta(days=1),
        timedelta(days=365 * 75),
        timedelta(days=365 * 7000),
    ):
        bench.evaluate("a", "off", at=NOW + ahead)
    value = evaluation_value("a", "off", time_ms=at_ms(NOW))
    bench.broker.append(EVALUATIONS, value, key=b"a", timestamp_ms=2**62)
    bench.evaluate("b", "on", at=NOW - MINUTE)
    for context in ("a", "b"):
        bench.happen(context, error=True)
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        assert ingest.watched_flags.unjoined == 0
    assert arms_in(bench.stored(OUTCOMES))["new-checkout", 0, "treatment"].first_errors == 2
    assert bench.progress(EVALUATIONS).quarantined == 5
    assert bench.progress(EVALUATIONS).freshest_ms == at_ms(NOW - MINUTE)


async def test_stored_times_from_the_future_are_healed() -> None:
    """Times in the future that an earlier release counted are dropped at loading."""
    bench = Bench()
    bench.evaluate("a", "on", at=NOW - MINUTE)
    async with bench.running():
        await until(bench.is_all_saved)
    stored = bench.stored(EVALUATIONS)
    stored["freshest"] = stored["last"] = b"%d" % at_ms(NOW + timedelta(days=9999))
    [recent] = [name for name in stored if name.startswith("recent/")]
    far = f"recent/{10**9}/0"
    stored[far] = stored[recent]
    bench.happen("a", error=True)
    async with bench.running():
        await until(bench.is_all_saved)
        await until(lambda: bench.progress(EVALUATIONS).freshest_ms == at_ms(NOW))
        await until(lambda: far not in bench.stored(EVALUATIONS))
    assert recent in bench.stored(EVALUATIONS)
    assert arms_in(bench.stored(OUTCOMES))["new-checkout", 0, "treatment"].first_errors == 1


async def test_an_owner_that_hears_nothing_reports_nothing() -> None:
    """While brokers hang, the time of the report stands still, although saves go on."""
    bench = Bench()
    async with bench.running() as ingest:
        await until(lambda: bench.fence(OUTCOMES) == 0)
        bench.broker.outage.is_down = True
        saves = ingest.counters.saves
        bench.clock.advance(timedelta(seconds=1))
        await until(
            lambda: (
                bench.progress(OUTCOMES).reported_at_ms > 0 and ingest.counters.saves > saves + 4
            )
        )
        before = bench.progress(OUTCOMES).reported_at_ms
        bench.clock.advance(timedelta(seconds=30))
        saves = ingest.counters.saves
        await until(lambda: ingest.counters.saves > saves + 12)
        after = bench.progress(OUTCOMES).reported_at_ms
        assert after <= before
        assert min(view.heard_seconds or 0 for view in ingest.views()) > 30


async def test_lag_is_the_logs_also_while_nothing_can_be_saved() -> None:
    """With the store away and reading stopped, the lag shows what waits.

    And the age of what is not saved.
    """
    bench = Bench(
        settings=make_settings(max_unsaved_records=50, fetch_max_records=10),
        pacing=make_pacing(pending_records=20),
    )
    async with bench.running() as ingest:
        await until(lambda: bench.fence(EVALUATIONS) == 0)
        bench.members[0][1].end_offset = lambda partition: 0  # type: ignore[method-assign]
        bench.totals.outage.is_down = True
        for number in range(5000):
            bench.evaluate(f"u{number}")
        lag = bench.metrics.lag_records.of("evaluations")
        await until(lambda: lag._value.get() == 5000)
        await until(lambda: max(view.unsaved_seconds for view in ingest.views()) > 0.2)
        [view] = [view for view in ingest.views() if view.topic == EVALUATIONS]
        assert view.lag == 5000
        bench.totals.outage.is_down = False
        await until(bench.is_all_saved, 20)
        await until(lambda: max(view.unsaved_seconds for view in ingest.views()) == 0)


async def test_what_ended_is_given_back_after_an_hour() -> None:
    """Totals, memberships and exposures of an ended rollout are deleted an hour later.

    And its events are ignored.
    """
    bench = Bench(pacing=make_pacing(sweep_seconds=0.0))
    for number in range(5000):
        bench.evaluate(f"u{number}")
        bench.happen(f"u{number}", ON, error=True)
    ended = make_rollout(revision=9, phase=Aborted(NOW, "enough"), percent=0.0)
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        full = sum(len(value) for value in bench.stored(EVALUATIONS).values())
        ingest.watch(ended)
        for _ in range(200):
            await asyncio.sleep(0)
        assert arms_in(bench.stored(EVALUATIONS))
        bench.clock.advance(HOUR)
        await until(lambda: not arms_in(bench.stored(EVALUATIONS)))
        await until(lambda: not arms_in(bench.stored(OUTCOMES)))
        await until(
            lambda: not any("start-1" in str(value) for value in bench.stored(EVALUATIONS).values())
        )
        ingest.watch(ended)  # as the state topic says it again
        bench.evaluate("late")
        await until(bench.is_all_saved)
        assert ingest.watched_flags.unknown_flags == 0
        assert not arms_in(bench.stored(EVALUATIONS))
        left = sum(len(value) for value in bench.stored(EVALUATIONS).values())
    assert left < full / 2


async def test_the_next_rollout_of_a_flag_that_was_given_back_is_counted() -> None:
    """A flag whose last rollout is over and forgotten starts again as any other."""
    bench = Bench()
    ingest, _ = bench.make()
    long_ago = make_rollout(flag_key="other", revision=9, phase=Aborted(NOW - 2 * HOUR, "enough"))
    ingest.watch(long_ago)
    assert "other" not in ingest.watched_flags.flags
    ingest.watch(make_rollout(flag_key="other", rollout_id="start-2", revision=10))
    assert ingest.watched_flags.flags["other"].rollout_id == "start-2"


async def test_an_idle_partition_reports_every_second() -> None:
    """Without events the hash still says when its owner last wrote.

    So that silence of traffic is not silence of the owner.
    """
    bench = Bench()
    async with bench.running() as ingest:
        await until(lambda: bench.fence(OUTCOMES) == 0)
        saves = ingest.counters.saves
        await until(lambda: ingest.counters.saves >= saves + 4)
    assert at_ms(NOW) - 5000 < bench.progress(OUTCOMES).reported_at_ms <= at_ms(NOW)
    assert bench.progress(OUTCOMES).freshest_ms is None


async def test_stop_saves_what_was_folded() -> None:
    """A stop in order leaves nothing to count again."""
    bench = Bench(
        settings=make_settings(flush_interval_seconds=10.0),
        pacing=make_pacing(longest_flush_seconds=10.0),
    )
    async with bench.running() as ingest:
        await until(lambda: bench.fence(EVALUATIONS) == 0)
        bench.evaluate("a")
        await until(lambda: any(view.next_offset == 1 for view in ingest.views()))
    assert bench.is_all_saved()


async def test_stop_ends_while_the_store_is_away() -> None:
    """A stop does not wait for a store that gives no answer."""
    bench = Bench(pacing=make_pacing(drain_seconds=0.05, retry_seconds=0.001))
    bench.evaluate("a")
    async with bench.running() as ingest:
        await until(lambda: bench.fence(EVALUATIONS) >= 0)
        bench.totals.outage.is_down = True
        bench.evaluate("b")
        await until(lambda: ingest.counters.save_troubles > 0)
        async with asyncio.timeout(60):
            await ingest.stop()


async def test_an_outcome_without_flags_joins_the_last_exposure() -> None:
    """An outcome that names a context alone counts for the arm that context saw last.

    For every flag with a rollout.
    """
    bench = Bench()
    bench.evaluate("a", "off", at=NOW)
    bench.evaluate("a", "on", at=NOW + MINUTE)
    bench.happen("a", at=NOW + 2 * MINUTE, error=True)
    bench.happen("b", at=NOW + 2 * MINUTE, error=True)
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        assert ingest.watched_flags.unjoined == 1
    assert arms_in(bench.stored(OUTCOMES)).keys() == {("new-checkout", 0, "treatment")}
    assert bench.progress(OUTCOMES).ignored == 1


async def test_a_join_looks_back_one_window_and_not_ahead() -> None:
    """An exposure older than the window plus a third.

    Or younger than the outcome, is not joined.
    """
    bench = Bench()
    bench.clock.advance(HOUR)
    bench.evaluate("old", "on", at=T0 + 2 * MINUTE)
    bench.evaluate("within", "on", at=T0 + 13 * MINUTE)
    bench.evaluate("filler", "on", at=T0 + 42 * MINUTE)
    for context in ("old", "within", "later"):
        bench.happen(context, at=T0 + 43 * MINUTE)
    bench.evaluate("later", "on", at=T0 + 44 * MINUTE)
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        assert ingest.watched_flags.unjoined == 2
    assert arms_in(bench.stored(OUTCOMES))["new-checkout", 0, "treatment"].outcomes == 1


async def test_joins_survive_a_restart() -> None:
    """What was exposed before a crash is joined after it."""
    bench = Bench()
    bench.evaluate("a", "on")
    async with bench.running():
        await until(bench.is_all_saved)
    bench.happen("a", at=NOW + MINUTE)
    async with bench.running():
        await until(bench.is_all_saved)
    assert arms_in(bench.stored(OUTCOMES))["new-checkout", 0, "treatment"].outcomes == 1


async def test_an_outcome_waits_for_the_evaluations_before_it() -> None:
    """While the evaluation partition is behind, an outcome to be joined is held back.

    And the fence with it.
    """
    bench = Bench(pacing=make_pacing(join_patience_seconds=1e9))
    ingest, log = bench.make()
    task = asyncio.create_task(ingest.run())
    await log.start()
    await until(lambda: bench.fence(EVALUATIONS) == 0 == bench.fence(OUTCOMES))
    log.pause([(EVALUATIONS, 0)])
    bench.evaluate("a", "on")
    bench.happen("a", at=NOW + MINUTE)
    await until(lambda: log.end_offset((OUTCOMES, 0)) == 1)
    for _ in range(300):
        await asyncio.sleep(0)
    assert bench.fence(OUTCOMES) == 0
    log.resume([(EVALUATIONS, 0)])
    await until(bench.is_all_saved)
    await ingest.stop()
    await task
    assert arms_in(bench.stored(OUTCOMES))["new-checkout", 0, "treatment"].outcomes == 1


async def test_outcomes_are_saved_before_the_evaluations_of_their_pair() -> None:
    """Stored exposures are never ahead of stored outcomes.

    A replay joins what the first reading joined.
    """
    bench = Bench()
    saved: list[tuple[str, bool]] = []
    save = bench.totals.save

    async def recording(partition_key: str, **arguments: Any) -> int | None:
        saved.append((partition_key, arguments["next_offset"] > (arguments["expected"] or 0)))
        return await save(partition_key, **arguments)

    bench.totals.save = recording  # type: ignore[method-assign]
    async with bench.running():
        for number in range(20):
            bench.evaluate(f"u{number}")
            bench.happen(f"u{number}", ON)
            await until(bench.is_all_saved)
    moved = [key for key, has_moved in saved if has_moved]
    assert moved == [f"{OUTCOMES}/0/1", f"{EVALUATIONS}/0/1"] * 20


async def test_evaluations_that_never_come_do_not_stop_outcomes() -> None:
    """An end of the log that is never reached.

    As after a transaction's marker, holds outcomes only for a while.
    """
    bench = Bench(pacing=make_pacing(join_patience_seconds=0.2))
    bench.broker.skip((EVALUATIONS, 0), 1)
    bench.happen("a")
    async with bench.running():
        await until(lambda: bench.fence(OUTCOMES) == 1)


async def test_evaluations_and_outcomes_are_folded_in_time_order_once_joins_are_needed() -> None:
    """In a catch-up each outcome is joined to what its context had seen by then.

    Not to what it saw later.
    """
    bench = Bench()
    for minute in range(20):
        at = NOW + minute * timedelta(seconds=1)
        bench.evaluate("a", "on" if minute % 2 else "off", at=at)
        bench.happen("a", at=at + timedelta(milliseconds=1))
    async with bench.running():
        await until(bench.is_all_saved)
    arms = arms_in(bench.stored(OUTCOMES))
    assert {arm: totals.outcomes for (_, _, arm), totals in arms.items()} == {
        "treatment": 10,
        "control": 10,
    }


async def test_unknown_flags_cost_one_counter() -> None:
    """Flags without a rollout leave a number and a bounded list of names."""
    bench = Bench(settings=make_settings(unknown_flags_limit=10))
    for number in range(2000):
        bench.evaluate("a", flag=f"flag-{number}")
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        assert ingest.watched_flags.unknown_flags == 2000
        assert len(ingest.watched_flags.unknown_names) == 10
    assert bench.progress(EVALUATIONS).ignored == 2000
    assert sum(len(name) + len(value) for name, value in bench.stored(EVALUATIONS).items()) < 400


def series_of(metrics: Metrics) -> set[tuple[str, str]]:
    """Return the series of /metrics: names with their labels."""
    return {
        (sample.name, str(sorted(sample.labels.items())))
        for family in metrics.registry.collect()
        for sample in family.samples
    }


async def test_unknown_flags_add_no_series() -> None:
    """/metrics has the same series after a thousand flags without a rollout as before.

    A sender of names cannot grow it.
    """
    bench = Bench()
    bench.evaluate("a")
    bench.happen("a", ON)
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        before = series_of(bench.metrics)
        for number in range(1000):
            bench.evaluate("a", flag=f"flag-{number}")
            bench.happen("a", (f"flag-{number}", "on"))
        await until(bench.is_all_saved)
        assert ingest.watched_flags.unknown_flags == 2000
    assert series_of(bench.metrics) == before
    assert len(before) > 10


async def test_the_next_rollout_drops_the_last_ones_fields() -> None:
    """When a flag's next rollout starts.

    The fields of the one before are deleted and its own begin at zero.
    """
    bench = Bench()
    bench.clock.advance(HOUR)
    bench.evaluate("a")
    visit = make_visit(entered_at=T0 + HOUR, counts_from=T0 + HOUR)
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        ingest.watch(make_rollout(rollout_id="start-2", revision=7, visits=(visit,)))
        bench.evaluate("a", at=T0 + HOUR + MINUTE)
        await until(bench.is_all_saved)
        await until(lambda: not any("start-1" in name for name in bench.stored(EVALUATIONS)))
        ingest.watch(make_rollout(revision=2))  # late news of the first
    names = [name for name in bench.stored(EVALUATIONS) if name.startswith("new-checkout|")]
    assert names == ["new-checkout|start-2|0|treatment"]
    assert arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"].exposures == 1


@pytest.mark.parametrize("flags", [600, 3000])
async def test_more_flags_than_fit_in_one_save(flags: int) -> None:
    """Counting saves early when more fields have changed than one save may carry."""
    bench = Bench(settings=make_settings(fetch_max_records=500))
    async with bench.running() as ingest:
        for number in range(flags):
            ingest.watch(make_rollout(flag_key=f"flag-{number}"))
        for number in range(flags):
            bench.evaluate(f"u{number}", "on", flag=f"flag-{number}")
            bench.evaluate(f"u{number}", "off", flag=f"flag-{number}")
        await until(bench.is_all_saved, 20)
    arms = arms_in(bench.stored(EVALUATIONS))
    assert len(arms) == 2 * flags
    assert all(arm.exposures == 1 for arm in arms.values())


async def test_the_log_being_away_is_waited_for() -> None:
    """While the log is away nothing happens, and afterwards counting goes on."""
    bench = Bench()
    bench.broker.outage.is_down = True
    bench.evaluate("a")
    async with bench.running() as ingest:
        await until(lambda: ingest.counters.fetch_troubles > 3)
        bench.broker.outage.is_down = False
        await until(bench.is_all_saved)


async def test_large_records_of_many_events_are_counted() -> None:
    """However large records of many events are.

    And more than may wait in memory, all are counted.
    """
    bench = Bench(readers=LINES)
    event = evaluation_value("a", "on", time_ms=at_ms(NOW))
    value = b"\n".join([event] * (300_000 // len(event)))
    outcome = outcome_value("a", time_ms=at_ms(NOW), flags=[ON], latency_ms=5.0)
    for _ in range(100):  # 30 MB: more than may wait
        bench.broker.append(EVALUATIONS, value, timestamp_ms=at_ms(NOW))
    bench.broker.append(OUTCOMES, b"\n".join([outcome, b"{"]), timestamp_ms=at_ms(NOW))
    async with bench.running():
        await until(bench.is_all_saved, seconds=60)
    assert bench.progress(EVALUATIONS).counted == 100
    assert bench.progress(OUTCOMES).quarantined == 1
    assert len(bench.quarantined) == 1
    assert arms_in(bench.stored(OUTCOMES))["new-checkout", 0, "treatment"].outcomes == 1


async def test_a_run_that_was_cut_short_can_be_run_again() -> None:
    """Ingest that is started again counts what was not saved, each record once."""
    bench = Bench(partitions=2)
    ingest, log = bench.make()
    task = asyncio.create_task(ingest.run())
    await log.start()
    for number in range(50):
        bench.evaluate(f"user-{number}")
    await until(lambda: bench.fence(EVALUATIONS) >= 0)
    for number in range(50, 100):
        bench.evaluate(f"user-{number}")
    bench.totals.outage.is_down = True
    await until(lambda: ingest.counters.save_troubles > 0)  # what changed was taken, and not saved
    task.cancel()
    await asyncio.wait([task])
    bench.totals.outage.is_down = False
    task = asyncio.create_task(ingest.run())
    await until(bench.is_all_saved)
    counted = [bench.progress(EVALUATIONS, partition).counted for partition in range(2)]
    assert sum(counted) == 100
    arms = [arms_in(bench.stored(EVALUATIONS, partition)) for partition in range(2)]
    assert sum(arm["new-checkout", 0, "treatment"].exposures for arm in arms) == 100
    await ingest.stop()
    await task
    await log.stop()


async def test_the_end_of_a_transaction_is_no_lag() -> None:
    """Offsets behind the last record that hold none are holes, and the fence moves past them."""
    bench = Bench()
    bench.evaluate("a")
    bench.happen("a", ON)
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        for topic in TOPICS:
            bench.broker.skip((topic, 0), 2)
        await until(bench.is_all_saved)
        assert [view.lag for view in ingest.views()] == [0, 0]
        bench.evaluate("b")
        await until(bench.is_all_saved)
    progress = bench.progress(EVALUATIONS)
    assert (progress.counted, progress.holes, progress.losses) == (2, 2, [])
    assert int(bench.stored(EVALUATIONS)["end"]) == 4
    assert bench.progress(OUTCOMES).holes == 2
