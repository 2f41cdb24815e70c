"""What the native fold costs per event, alone or beside another build of it.

`python -m tests.benchmarks.fold [--flags 10000] [--contexts 100000] [--events 2000000]
[--rounds 3] [--against OTHER.so]`

Folds the events of `event_load` from fetched record batches: four pairs of partitions in turn, a
thousand records at a time, with drains in between, as the daemon does at full load. No Kafka, no
Redis, no storage. Each round is a process of its own, so that memory is fresh; the builds take
turns, because others use the machine, too. Printed are microseconds of CPU per event by median
(least, most): evaluations, outcomes, drains; then resident bytes per event that was added.
Exits 1 when the builds drained different bytes.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from controller.counting.counted_flags import FLAGS_WITH_OWN_FIELDS
from controller.counting.folding.engine import Fold
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.counting.folding.native import native_fold
from controller.ports import Record
from schemas.totals import bundle_of
from schemas.wire import read_evaluations, read_outcomes
from tests.benchmarks.event_load import PARTITIONS, LoadOptions, Recount, records
from tests.both_folds import batches_of
from tests.builders import HOUR, make_plan, make_rollout, make_visit
from tests.process_memory import resident_bytes
from tests.records import at_ms

_AT_ONCE = 1_000  # records of a partition: `pair_order.FOLDED_AT_ONCE`
_FETCHED_AT_ONCE = 3_500  # of 300 bytes: a fetch of 1 MiB
_DRAINED_EVERY = 130_000  # records of a partition: some seconds at full load
_LATEST_MS = 2**50
#: Made once, and inherited by the process of each round.
_FETCHES: list[tuple[list[bytes], list[bytes]]] = []


class Spent(NamedTuple):
    """What one round cost, in us of CPU per event, and what it left."""

    evaluations: float
    outcomes: float
    drains: float
    resident_bytes: float
    drained: str


def fetched(options: LoadOptions) -> list[tuple[list[bytes], list[bytes]]]:
    """Return the fetches of each pair of partitions: evaluations, outcomes."""
    now_ms = at_ms(datetime.now(UTC))
    topics = ("evaluations", "outcomes")
    waiting: dict[tuple[int, str], list[Record]] = {
        (number, topic): [] for number in range(PARTITIONS) for topic in topics
    }
    content: dict[tuple[int, str], list[bytes]] = {place: [] for place in waiting}
    offsets = dict.fromkeys(waiting, 0)
    for topic, key, value, *_ in records(options, Recount()):
        place = (xxhash.xxh3_64_intdigest(key, 1) % PARTITIONS, topic)
        waiting[place].append(Record(topic, 0, offsets[place], now_ms, key, value, ()))
        offsets[place] += 1
        if len(waiting[place]) == _FETCHED_AT_ONCE:
            content[place].append(batches_of(waiting[place], 200))
            waiting[place] = []
    return [
        (content[number, "evaluations"], content[number, "outcomes"])
        for number in range(PARTITIONS)
    ]


def _bundle_among(flags: int, flag_key: str, _: str) -> int | None:
    return None if flags <= FLAGS_WITH_OWN_FIELDS else bundle_of(flag_key)


def directory_of(options: LoadOptions) -> FlagsToCount:
    """Return a directory in which every flag has a rollout since yesterday."""
    directory = FlagsToCount()
    began = datetime.now(UTC) - 24 * HOUR
    visits = (make_visit(entered_at=began, counts_from=began),)
    for number in range(options.flags):
        plan = make_plan(flag_key=options.flag_key(number))
        directory.count_for(make_rollout(plan=plan, visits=visits))
    return directory


class Pair:
    """One pair of partitions, and what is left to fold of it."""

    def __init__(
        self, module: Any, directory: FlagsToCount, fetches: Sequence[list[bytes]]
    ) -> None:
        new_fold: Callable[..., Fold] = native_fold(module)
        self._module = module
        self._fetches = fetches
        self.folds = [
            new_fold(
                directory,
                counts_exposures=counts_exposures,
                exact_limit=100_000,
                window_ms=1_800_000 if counts_exposures else None,
                bundle_of=partial(_bundle_among, len(directory.flags)),
                indexed_per_turn=20_000,
            )
            for counts_exposures in (True, False)
        ]
        self.seconds = [0.0, 0.0]
        self.drain_seconds = 0.0
        self.counted = 0
        self._undrained = 0
        self._digest = hashlib.sha256()

    def fold(self, number: int) -> None:
        """Fold the fetches with this number of both partitions."""
        evaluations, outcomes = (
            self._module.read_batches(its[number], 0, 0)[0] for its in self._fetches
        )
        for begin in range(0, _FETCHED_AT_ONCE, _AT_ONCE):
            some = outcomes[begin : begin + _AT_ONCE]
            began = time.thread_time()
            done = self.folds[1].read_outcomes(
                some, read_outcomes, [], _LATEST_MS, 1e9, self.folds[0], 1e18
            )
            self.seconds[1] += time.thread_time() - began
            self.counted += done.counted
            some = evaluations[begin : begin + _AT_ONCE]
            began = time.thread_time()
            done = self.folds[0].read_evaluations(some, read_evaluations, [], _LATEST_MS)
            self.seconds[0] += time.thread_time() - began
            self.counted += done.counted
        self._undrained += _FETCHED_AT_ONCE
        if self._undrained >= _DRAINED_EVERY:
            self.drain()

    def drain(self) -> None:
        """Take what has changed, as a save does."""
        self._undrained = 0
        for fold in reversed(self.folds):
            began = time.thread_time()
            difference = fold.drain()
            arms: list[object] = []
            for begin in range(0, len(difference.arms), 400):
                arms += fold.take_totals(difference.arms[begin : begin + 400])
            arms += [fold.take_bundle(bundle) for bundle in fold.bundles_to_write()]
            self.drain_seconds += time.thread_time() - began
            self._digest.update(repr((difference, arms)).encode())

    @property
    def drained(self) -> str:
        """A digest of all that was drained."""
        return self._digest.hexdigest()


def run(module: Any, options: LoadOptions, fetches: Sequence[Any]) -> Spent:
    """Fold everything once."""
    directory = directory_of(options)
    pairs = [Pair(module, directory, its) for its in fetches]
    gc.collect()
    gc.freeze()
    gc.disable()
    first = resident_bytes(os.getpid())
    for number in range(min(len(one) for its in fetches for one in its)):
        for pair in pairs:
            pair.fold(number)
    left = resident_bytes(os.getpid()) - first
    for pair in pairs:
        pair.drain()
    counted = sum(pair.counted for pair in pairs)
    evaluations, outcomes = (
        2e6 * sum(pair.seconds[kind] for pair in pairs) / counted for kind in (0, 1)
    )
    drains = 1e6 * sum(pair.drain_seconds for pair in pairs) / counted
    drained = " ".join(pair.drained for pair in pairs)
    return Spent(evaluations, outcomes, drains, left / counted, drained)


def run_apart(path: Path, options: LoadOptions) -> Spent:
    """Fold everything once in a process of its own, which has its memory fresh."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process:
        return process.submit(_run_build, path, options).result()


def _run_build(path: Path, options: LoadOptions) -> Spent:
    name = "controller.counting._native"
    loader = ExtensionFileLoader(name, str(path))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return run(module, options, _FETCHES)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}, {max(values):.3f})"


def main() -> int:
    """Measure, print, and return 1 when the builds differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--flags", type=int, default=10_000)
    parser.add_argument("--contexts", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another build of the native fold")
    chosen = parser.parse_args()
    built = Path(__file__).parents[2] / "controller/counting/_native.abi3.so"
    builds = {path: path for path in (chosen.against, built) if path is not None}
    options = LoadOptions(chosen.events, chosen.flags, chosen.contexts)
    _FETCHES.extend(fetched(options))
    gc.freeze()
    spent: dict[Path, list[Spent]] = {path: [] for path in builds}
    for _ in range(chosen.rounds):
        for path in builds:
            spent[path].append(run_apart(path, options))
    for path, rounds in spent.items():
        print(
            f"{path.name}: evaluations {_spread([one.evaluations for one in rounds])}, outcomes "
            f"{_spread([one.outcomes for one in rounds])}, drains "
            f"{_spread([one.drains for one in rounds])} us; "
            f"{statistics.median(one.resident_bytes for one in rounds):.1f} bytes an event"
        )
    return int(len({one.drained for rounds in spent.values() for one in rounds}) > 1)


if __name__ == "__main__":
    raise SystemExit(main())
