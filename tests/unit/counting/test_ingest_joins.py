"""How ingest joins outcomes to exposures, and what it keeps of flags and rollouts."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from controller.core.rollout import Aborted
from controller.telemetry import Metrics
from tests.builders import HOUR, MINUTE, T0, make_rollout, make_visit
from tests.records import LINES, arms_in, at_ms, evaluation_value, outcome_value
from tests.unit.counting.ingest_bench import (
    EVALUATIONS,
    NOW,
    ON,
    OUTCOMES,
    TOPICS,
    Bench,
    make_pacing,
    make_settings,
    until,
)


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
        ingest.count_for(ended)
        for _ in range(200):
            await asyncio.sleep(0)
        assert arms_in(bench.stored(EVALUATIONS))
        bench.clock.advance(HOUR)
        await until(lambda: not arms_in(bench.stored(EVALUATIONS)))
        await until(lambda: not arms_in(bench.stored(OUTCOMES)))
        await until(
            lambda: not any("start-1" in str(value) for value in bench.stored(EVALUATIONS).values())
        )
        ingest.count_for(ended)  # as the state topic says it again
        bench.evaluate("late")
        await until(bench.is_all_saved)
        assert ingest.flags_to_count.unknown_flags == 0
        assert not arms_in(bench.stored(EVALUATIONS))
        left = sum(len(value) for value in bench.stored(EVALUATIONS).values())
    assert left < full / 2


async def test_the_next_rollout_of_a_flag_that_was_given_back_is_counted() -> None:
    """A flag whose last rollout is over and forgotten starts again as any other."""
    bench = Bench()
    ingest, _ = bench.make()
    long_ago = make_rollout(flag_key="other", revision=9, phase=Aborted(NOW - 2 * HOUR, "enough"))
    ingest.count_for(long_ago)
    assert "other" not in ingest.flags_to_count.flags
    ingest.count_for(make_rollout(flag_key="other", rollout_id="start-2", revision=10))
    assert ingest.flags_to_count.flags["other"].rollout_id == "start-2"


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
        assert ingest.flags_to_count.unjoined == 1
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
        assert ingest.flags_to_count.unjoined == 2
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
        assert ingest.flags_to_count.unknown_flags == 2000
        assert len(ingest.flags_to_count.unknown_names) <= 10
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
        assert ingest.flags_to_count.unknown_flags == 2000
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
        ingest.count_for(make_rollout(rollout_id="start-2", revision=7, visits=(visit,)))
        bench.evaluate("a", at=T0 + HOUR + MINUTE)
        await until(bench.is_all_saved)
        await until(lambda: not any("start-1" in name for name in bench.stored(EVALUATIONS)))
        ingest.count_for(make_rollout(revision=2))  # late news of the first
    names = [name for name in bench.stored(EVALUATIONS) if name.startswith("new-checkout|")]
    assert names == ["new-checkout|start-2|0|treatment"]
    assert arms_in(bench.stored(EVALUATIONS))["new-checkout", 0, "treatment"].exposures == 1


@pytest.mark.parametrize("flags", [600, 3000])
async def test_more_flags_than_fit_in_one_save(flags: int) -> None:
    """Counting saves early when more fields have changed than one save may carry."""
    bench = Bench(settings=make_settings(fetch_max_records=500))
    async with bench.running() as ingest:
        for number in range(flags):
            ingest.count_for(make_rollout(flag_key=f"flag-{number}"))
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
