"""A fault of the native fold costs nothing: the reference goes on from what was saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from controller.counting.folding.engine import Fold, NativeFault
from controller.counting.folding.native import NATIVE, native_fold
from controller.counting.folding.partition_fold import PartitionFold
from tests.builders import make_plan, make_rollout
from tests.native_builds import planted_module
from tests.records import arms_in
from tests.unit.counting.ingest_bench import EVALUATIONS, ON, OUTCOMES, Bench, make_settings, until

FLAG = "new-checkout"
CONTEXTS = 60
_IS_ANOTHER = 'digest != crate::hashing::digest_of(b"panic-{}")'.format
#: Where a build panics: a file, a line of it, and what must hold behind that line.
PANICS = (
    ("fold.rs", "        arm.counts.evaluations += 1;\n", _IS_ANOTHER("evaluation")),
    ("fold.rs", "        let digest = outcome.digest;\n", _IS_ANOTHER("outcome")),
    (
        "partition_fold/joining.rs",
        "        let mut seen: Vec<&str> = Vec::new();\n",
        _IS_ANOTHER("join"),
    ),
    (
        "partition_fold/saves.rs",
        "        let (names, members) = self.fold.sets.drain();\n",
        'self.fold.flags.slot_of("panic-save").is_none()',
    ),
    (
        "partition_fold/saves.rs",
        "        self.fold.sets.place(number, name);\n",
        '!name.starts_with("panic-load")',
    ),
    (
        "fold.rs",
        '        let prefix = format!("{flag_key}|{rollout_id}|");\n',
        'flag_key != "panic-drop"',
    ),
)


class FaultyFold(PartitionFold):
    """A fold like the native one that fails, for good, when a context with a mark comes."""

    has_failed = False

    def count_evaluations(self, events: Any) -> Any:
        """Count what came before the mark, then fail."""
        if self.has_failed:
            raise NativeFault("as before")
        for event in events:
            if event[0] == "panic-evaluation":
                self.has_failed = True
                raise NativeFault("a panic")
            super().count_evaluations([event])
        return super().count_evaluations([])


def traffic(bench: Bench, panic: str) -> None:
    """Send evaluations, and outcomes with and without flags; one context has the panic's mark."""
    for number in range(CONTEXTS):
        context = f"panic-{panic}" if number == CONTEXTS // 2 else f"u{number}"
        bench.evaluate(context)
        bench.happen(context, ON, error=number % 7 == 0)
        bench.happen(context, latency_ms=None)


def counted(bench: Bench) -> list[object]:
    """Return the totals of both partitions that do not depend on where saves lie."""
    found: list[object] = []
    for topic in (EVALUATIONS, OUTCOMES):
        records = bench.progress(topic)
        found.append((records.counted, records.quarantined, records.late, records.ignored))
        for name, arm in sorted((arms_in(bench.stored(topic)) or {}).items()):
            numbers = arm.evaluations, arm.exposures, arm.switched, arm.outcomes, arm.errors
            found.append((name, *numbers, arm.first_errors, sum(arm.latency.values())))
    return found


async def recount(panic: str) -> list[object]:
    """Return what the reference counts of the same traffic."""
    bench = Bench(new_fold=PartitionFold)
    traffic(bench, panic)
    async with bench.running():
        await until(bench.is_all_saved)
    return counted(bench)


async def test_the_reference_goes_on_where_the_native_fold_fails() -> None:
    """What came before and after the fault counts once, nothing is set aside, and it is shown."""
    bench = Bench(new_fold=FaultyFold, settings=make_settings(fetch_max_records=10))
    traffic(bench, "evaluation")
    with structlog.testing.capture_logs() as logs:
        async with bench.running() as ingest:
            await until(bench.is_all_saved)
            await until(lambda: not bench.faults.current)
            assert ingest.counters.native_faults == 2  # both of the pair
            assert ingest.counters.mistakes == 0
            bench.evaluate("panic-evaluation")
            await until(bench.is_all_saved)
            assert ingest.counters.native_faults == 2
    assert [line["event"] for line in logs].count("native_fold_failed") == 2
    assert bench.quarantined == []
    found = bench.metrics.registry.get_sample_value("rolloutd_native_faults_total")
    assert found == 2
    assert bench.progress(EVALUATIONS).counted == CONTEXTS + 1
    treated = arms_in(bench.stored(EVALUATIONS))[FLAG, 0, "treatment"]
    assert (treated.evaluations, treated.exposures) == (CONTEXTS + 1, CONTEXTS)


async def test_a_fault_of_one_partition_is_no_mistake_of_the_other() -> None:
    """What the reference already counts of a pair is loaded again, and not blamed."""
    bench = Bench(new_fold=PartitionFold)
    traffic(bench, "evaluation")
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        (pair,) = ingest.assignment.pairs.values()
        evaluations, _ = pair.owned()
        evaluations.is_by_reference = True
        ingest.assignment.fail(pair, NativeFault("a panic of the other one"))
        bench.evaluate("after")
        await until(bench.is_all_saved)
        assert ingest.counters.native_faults == 1
        assert ingest.counters.mistakes == 0
    assert bench.progress(EVALUATIONS).counted == CONTEXTS + 1


async def test_a_save_ends_where_its_partition_was_loaded_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its old totals are closed then: to go on with them would be taken for a mistake."""
    bench = Bench(new_fold=PartitionFold)
    bench.evaluate("u0")
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        (pair,) = ingest.assignment.pairs.values()
        evaluations, _ = pair.owned()
        drained: list[bool] = []

        def drain(_: object) -> Iterator[None]:
            ingest.assignment.reload(evaluations)
            drained.append(True)
            yield
            raise NativeFault("drained after its end")

        monkeypatch.setattr(evaluations.totals, "drain_changes", drain, raising=False)
        bench.evaluate("u1")
        await until(lambda: bool(drained))
        await until(bench.is_all_saved)
        assert (ingest.counters.native_faults, ingest.counters.mistakes) == (0, 0)
    assert bench.progress(EVALUATIONS).counted == 2


async def test_a_fault_while_records_are_tried_sets_none_aside() -> None:
    """Near a poisonous record the fold may fail, too: then no record is to blame."""
    bench = Bench(new_fold=FaultyFold)
    traffic(bench, "evaluation")
    async with bench.running() as ingest:
        for owned in ingest.assignment.owned.values():
            owned.careful_to = CONTEXTS
        await until(bench.is_all_saved)
    assert bench.quarantined == []
    assert counted(bench) == await recount("evaluation")


async def test_all_partitions_are_let_go_where_a_fold_fails_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it would have passed on is for people alone; a handover must not stop for it."""
    bench = Bench(new_fold=PartitionFold)
    bench.evaluate("u0")
    async with bench.running() as ingest:
        await until(bench.is_all_saved)

        def fail() -> None:
            raise NativeFault("a panic")

        for owned in ingest.assignment.owned.values():
            monkeypatch.setattr(owned.totals.flags.fold, "take_evaluations", fail)
    assert ingest.assignment.owned == {}


# --- with real panics ---


@pytest.fixture(scope="module")
def panicking(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Fold]:
    """The native fold, built with a panic in the midst of each kind of change."""
    if NATIVE is None:
        pytest.skip("NO NATIVE FOLD: `make native` builds it, with Rust 1.85")
    replacements = [
        (file, line, f'{line}        assert!({condition}, "planted");\n')
        for file, line, condition in PANICS
    ]
    module = planted_module(tmp_path_factory.mktemp("panicking"), replacements, "panicking")
    return native_fold(module)


@pytest.mark.rare
@pytest.mark.parametrize("panic", ["evaluation", "outcome", "join"])
async def test_a_panic_over_a_record_costs_nothing(
    panic: str, panicking: Callable[..., Fold]
) -> None:
    """Whichever part of the fold panics over a record, the counts are those of a recount."""
    bench = Bench(new_fold=panicking, settings=make_settings(fetch_max_records=10))
    traffic(bench, panic)
    async with bench.running() as ingest:
        await until(bench.is_all_saved)
        assert ingest.counters.native_faults == 2
        assert ingest.counters.mistakes == 0
    assert bench.quarantined == []
    assert counted(bench) == await recount(panic)


@pytest.mark.rare
@pytest.mark.parametrize("panic", ["save", "load", "drop"])
async def test_a_panic_beside_records_costs_nothing(
    panic: str, panicking: Callable[..., Fold]
) -> None:
    """While a partition is saved or loaded, or a rollout is dropped, it is the same."""
    flag_key = f"panic-{panic}"
    bench = Bench(new_fold=PartitionFold if panic == "load" else panicking)
    bench.evaluate("u0", flag=flag_key)
    bench.happen("u0", (flag_key, "on"))
    for is_again in (False, True):
        async with bench.running() as ingest:
            ingest.count_for(make_rollout(plan=make_plan(flag_key=flag_key)))
            bench.evaluate("u1", flag=flag_key)
            bench.happen("u1", (flag_key, "on"), error=True)
            await until(bench.is_all_saved)
            if panic == "drop":
                ingest.retire(flag_key, 10)
                bench.evaluate("u2")
                await until(bench.is_all_saved)
            if is_again or panic != "load":
                assert ingest.counters.native_faults > 0
            assert ingest.counters.mistakes == 0
        bench.new_fold = panicking
    if panic != "drop":
        arms = arms_in(bench.stored(EVALUATIONS)) | arms_in(bench.stored(OUTCOMES))
        assert arms[flag_key, 0, "treatment"].outcomes == 3
        assert bench.progress(EVALUATIONS).counted == 3
    assert bench.quarantined == []
