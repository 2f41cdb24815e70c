"""What ingest does when the log has lost records, was cut or was made again."""

from __future__ import annotations

import asyncio

import pytest

from controller.errors import EventLogUnavailable
from controller.health import Scope
from controller.ports import TopicPartition
from tests.builders import MINUTE
from tests.records import arms_in, at_ms
from tests.unit.counting.ingest_bench import EVALUATIONS, NOW, ON, OUTCOMES, Bench, until


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
