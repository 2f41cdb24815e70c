"""What ingest does with damage, with poison and with times from the future."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
import structlog

from controller.counting.owned_partition import PartitionState
from controller.counting.pacing import Pacing
from controller.counting.partition_totals import PartitionTotals, ReadEvaluations
from controller.health import Scope
from controller.ports import Record
from controller.settings import CountingSettings
from schemas.envelope import MAX_TIME_MS
from schemas.events import EvaluationFields
from schemas.totals import FORMAT
from schemas.wire import RecordRefused, read_evaluations, read_outcomes
from tests.builders import MINUTE
from tests.records import arms_in, at_ms, evaluation_value
from tests.unit.counting.ingest_bench import (
    EVALUATIONS,
    NOW,
    ON,
    OUTCOMES,
    Bench,
    make_pacing,
    make_settings,
    until,
)


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
    stored["format"] = b"%d" % (FORMAT + 1)
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
            await until(bench.is_all_saved)
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
        assert ingest.flags_to_count.unjoined == 0
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


async def test_saves_go_on_while_the_log_takes_no_commit() -> None:
    """Committed offsets are for lag tools alone: what hangs there must not delay what is judged."""
    bench = Bench(pacing=make_pacing(commit_seconds=0))
    async with bench.running():
        _, log = bench.members[0]
        asked = asyncio.Event()

        async def hang(_: object) -> None:
            asked.set()
            await asyncio.Event().wait()

        log.commit = hang  # type: ignore[method-assign, assignment]
        bench.evaluate("a")
        await until(asked.is_set)
        for number in range(3):
            bench.evaluate(f"u{number}")
            await until(bench.is_all_saved)


async def test_a_save_waits_briefly_to_learn_whether_records_were_lost() -> None:
    """Offsets without a record are checked with the log's begin, which a hanging log never tells.

    The check is made again before the next save.
    """
    bench = Bench(pacing=make_pacing(holes_seconds=0.01))
    async with bench.running():
        _, log = bench.members[0]
        bench.evaluate("a")
        await until(bench.is_all_saved)

        async def hang(_: object) -> tuple[int, int]:
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

        log.bounds, bounds = hang, log.bounds  # type: ignore[method-assign, assignment]
        bench.broker.skip((EVALUATIONS, 0), 3)
        bench.evaluate("b")
        await until(bench.is_all_saved)
        log.bounds = bounds  # type: ignore[method-assign]
