"""How often healthy rollouts are rolled back where one context makes a large part of all requests.

    python -m tests.benchmarks.heavy_context [--runs 500] [--only rates|errors|latency|few|harm]
        [--match WORDS] [--equal-weight] [--processes 2] [--seed 1]

Requests are drawn one by one and counted by the real fold: 8 partitions, ten batches a second. The
real tests judge the totals every second or two. The plan compares `error_rate` and `latency` with
control, each with a margin of 10 %, at alpha 1 %. People are many, with lognormal activity (sigma
1), and 1 % of their requests fail. Durations of people differ by 0.5 in the logarithm, those of one
person by 0.6. A bot is one context in either arm by turns; it never fails.

`rates` is the same for error rates alone, and much faster: half an hour of many rollouts side by
side. Only the actions in the bot's arm and partition are counted one by one, all others are drawn
as numbers.

With `--equal-weight` every action counts, as before there was `folding/activity.py`. The cells
`few` and `harm` have no bot: they say what the rule costs.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from controller.core.analysis.change_point import Bets
from controller.core.analysis.proportion import Counts
from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.evidence import ArmTotals, VisitTotals
from controller.core.judging.batches import MIN_BATCH
from controller.core.judging.gate import check_harm, judge
from controller.core.judging.judgement import Judgement
from controller.core.metrics.error_rate import ErrorRate
from controller.core.rollout import Rollout
from controller.counting.folding import activity
from controller.counting.folding.events import OutcomeOfRecord
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.counting.folding.partition_fold import PartitionFold
from controller.ports import Record
from schemas.terms import Arm
from schemas.totals import decode_arm, parse_field
from tests.benchmarks.late_harm import LOG_THRESHOLD, Question, Streams
from tests.builders import MINUTE, T0, make_guardrail, make_plan, make_rollout, make_visit
from tests.records import at_ms
from tests.streams import make_evidence

PARTITIONS = 8
RATE_SECONDS = 1800
BATCHES = 10  # a second
ERRORS = 0.01
AT_MS = at_ms(T0 + 2 * MINUTE)
VARIANTS = {Arm.TREATMENT: "on", Arm.CONTROL: "off"}


@dataclass(frozen=True)
class Cell:
    """One kind of rollout."""

    name: str
    per_second: float  # all requests
    bot: float = 0.0  # the bot's part of them
    bot_speed: float = 1.0  # its durations, as a multiple of people's
    people: int = 20_000
    spread: float = 1.0  # of their activity, in the logarithm
    percent: float = 50.0
    seconds: int = 900
    harm_from: int = 0  # seconds
    errors: float = 1.0  # treatment's, as a multiple of control's
    slower: float = 1.0  # likewise


class Result(NamedTuple):
    """What came of one rollout."""

    metric: str | None  # that breached
    seconds: int  # until then


def cells(only: str | None) -> Iterator[Cell]:
    """Yield what is measured."""
    if only in (None, "errors", "latency"):
        speeds = {"errors": (1.0,), "latency": (1 / 3, 3.0)}
        for kind in speeds if only is None else (only,):
            for per_second, seconds in ((5, 3600), (50, 900), (500, 240)):
                for bot in (0.03, 0.1, 0.3):
                    for speed in speeds[kind]:
                        name = f"bot {bot:.0%} of {per_second}/s, durations x{speed:.2g}"
                        yield Cell(name, per_second, bot, speed, seconds=seconds)
    if only in (None, "few"):
        for people, spread in ((60, 0.0), (60, 1.0), (300, 1.0), (1000, 1.0)):
            yield Cell(f"{people} people, sigma {spread:g}", 30, people=people, spread=spread)
    if only in (None, "harm"):
        for people, spread in ((20_000, 1.0), (300, 1.0), (60, 0.0), (60, 1.0)):
            cell = Cell(f"{people} people, sigma {spread:g}", 50, people=people, spread=spread)
            for begin in (0, 300):
                begun = replace(cell, harm_from=begin)
                name = f"{cell.name}, from {begin} s on"
                yield replace(begun, name=f"{name}: errors x2", errors=2.0)
                yield replace(begun, name=f"{name}: errors x10", errors=10.0)
                yield replace(begun, name=f"{name}: latency x1.5", slower=1.5)


class World:
    """One rollout with its people, folds and tests."""

    def __init__(self, cell: Cell, seed: int) -> None:
        self.cell = cell
        self.chance = chance = np.random.default_rng([seed, round(cell.per_second)])
        people = cell.people + 1  # the last one is the bot
        self.names = [f"{seed}-{number}" for number in range(people)]
        self.activity = np.cumsum(np.exp(chance.normal(0, cell.spread, cell.people)))
        self.activity /= self.activity[-1]
        is_treatment = chance.random(people) < cell.percent / 100
        is_treatment[-1] = seed * 37 % 100 < cell.percent  # by turns
        self.flags = [
            (("new-checkout", VARIANTS[Arm.TREATMENT if treated else Arm.CONTROL]),)
            for treated in is_treatment
        ]
        self.is_treatment = is_treatment
        self.speed = np.exp(chance.normal(0, 0.5, people)) * 50
        self.speed[-1] = 50 * cell.bot_speed
        self.partition = chance.integers(0, PARTITIONS, people).tolist()
        plan = make_plan(
            guardrails=(
                make_guardrail(limit=None),
                make_guardrail(metric="latency", limit=None),
            )
        )
        self.rollout: Rollout = make_rollout(
            plan=plan, visits=(make_visit(percent=cell.percent, counts_from=T0 + MINUTE),)
        )
        directory = FlagsToCount()
        directory.count_for(self.rollout)
        self.folds = [
            PartitionFold(
                directory,
                counts_exposures=False,
                exact_limit=100_000,
                window_ms=None,
                bundle_of=lambda flag_key, name: None,
            )
            for _ in range(PARTITIONS)
        ]
        self.arms: dict[tuple[int, Arm], ArmTotals] = {}
        self.offset = 0

    def count(self, begin: int, seconds: int) -> None:
        """Count the requests of some seconds."""
        cell, chance = self.cell, self.chance
        expected = cell.per_second * seconds
        people = chance.poisson(expected * (1 - cell.bot))
        bots = chance.poisson(expected * cell.bot)
        drawn = np.searchsorted(self.activity, chance.random(people))
        who = chance.permutation(np.concatenate([drawn, np.full(bots, cell.people)]))
        is_harmed = self.is_treatment[who] & (begin >= cell.harm_from)
        rates = np.where(who == cell.people, 0.0, ERRORS) * np.where(is_harmed, cell.errors, 1.0)
        slower = np.where(is_harmed, cell.slower, 1.0)
        took = self.speed[who] * slower * np.exp(chance.normal(0, 0.6, len(who)))
        rows = zip(
            np.sort(chance.integers(0, seconds * BATCHES, len(who))).tolist(),
            who.tolist(),
            (chance.random(len(who)) < rates).tolist(),
            took.tolist(),
            strict=True,
        )
        for _, batch in groupby(rows, key=itemgetter(0)):
            events: dict[int, list[OutcomeOfRecord]] = {}
            for _, person, has_failed, ms in batch:
                self.offset += 1
                record = Record("o", 0, self.offset, AT_MS, None, b"%d" % self.offset, ())
                outcome = (self.names[person], AT_MS, self.flags[person], has_failed, ms, ())
                events.setdefault(self.partition[person], []).append((record, *outcome))
            for partition, some in events.items():
                self.folds[partition].begin_batch()
                self.folds[partition].count_outcomes(some, math.inf, None, 0.0)

    def totals(self) -> VisitTotals:
        """Return what is counted so far, as it is stored and merged."""
        for partition, fold in enumerate(self.folds):
            for changed in fold.take_totals(fold.drain().arms):
                counts = decode_arm(changed.value)
                place = parse_field(changed.field)
                assert place is not None
                assert place.arm is not None
                self.arms[partition, place.arm] = ArmTotals(
                    **{name: getattr(counts, name) for name in counts.__struct_fields__}
                )
        sums = {
            arm: sum(
                (totals for (_, of), totals in self.arms.items() if of is arm), start=ArmTotals()
            )
            for arm in Arm
        }
        return VisitTotals(sums[Arm.TREATMENT], sums[Arm.CONTROL])

    def run(self) -> Result:
        """Watch the rollout to its end or until it is rolled back."""
        tests = SequentialTests()
        step = max(1, self.cell.seconds // 300)
        for second in range(0, self.cell.seconds, step):
            self.count(second, step)
            at = T0 + timedelta(seconds=60 + second + step)
            evidence = make_evidence({0: self.totals()}, at)
            before = tests
            signals, tests = check_harm(self.rollout, evidence, before, at)
            if any(signal.is_possible for signal in signals):
                judgement, _ = judge(self.rollout, evidence, before, at)
                if breached := breach(judgement):
                    return Result(breached, second + step)
        return Result(None, self.cell.seconds)


# --- error rates alone, of many rollouts side by side ---


def rates(
    runs: int, seed: int, per_second: int, bot: float, share: float, *, equal_weight: bool
) -> tuple[int, float]:
    """Return how many healthy rollouts were rolled back, and how often the bot counted: median."""
    rng = np.random.default_rng([seed, per_second, round(100 * bot), round(100 * share)])
    question = Question("against control", ERRORS, None)
    streams = Streams(question, Bets.fresh(runs, len(question.log_weights)))
    threshold = LOG_THRESHOLD - math.log(ErrorRate.alpha_weight)
    in_treatment = rng.random(runs) < share
    of_bot = [activity.Activity() for _ in range(runs)]
    is_in_batch = -math.expm1(-per_second * bot / BATCHES)
    found, times = np.zeros(runs, np.bool_), np.zeros(runs, np.int64)
    open_batch = np.zeros((4, runs), np.int64)
    for second in range(1, RATE_SECONDS + 1):
        requests = rng.poisson(per_second * (1 - bot), runs)
        n_t = rng.binomial(requests, share)
        n_c = requests - n_t
        k_t, k_c = rng.binomial(n_t, ERRORS), rng.binomial(n_c, ERRORS)
        counted = rng.binomial(BATCHES, is_in_batch, runs)
        if not equal_weight:
            beside = rng.binomial(np.where(in_treatment, n_t, n_c), 1 / PARTITIONS)
            each = zip(of_bot, counted.tolist(), beside.tolist(), strict=True)
            counted = np.array([counted_actions(*one, rng) for one in each])
        times += counted
        open_batch += n_t + counted * in_treatment, k_t, n_c + counted * ~in_treatment, k_c
        if open_batch[[0, 2]].mean(axis=1).min() >= MIN_BATCH:
            # An arm without an observation has one without an event: it says nothing.
            n_t, k_t, n_c, k_c = open_batch
            batch = Counts(np.maximum(n_t, 1), k_t, np.maximum(n_c, 1), k_c)  # type: ignore[arg-type]
            streams.look(batch, second - streams.seconds)
            found |= streams.bets.log_e_values(question.log_weights) >= threshold
            open_batch[:] = 0
    return int(found.sum()), float(np.median(times))


def counted_actions(
    of_bot: activity.Activity, actions: int, beside: int, rng: np.random.Generator
) -> int:
    """Return how many of a bot's actions count that come by turns with those of people."""
    counted, people = 0, rng.integers(0, 2**63, beside).tolist()
    for number in range(max(actions, beside)):
        if number < actions:
            counted += of_bot.add(0)
        if number < beside:
            of_bot.add(people[number])
    return counted


def print_rates(runs: int, seed: int, *, equal_weight: bool) -> None:
    """Print each cell of error rates."""
    for share in (0.5, 0.1):
        for per_second in (5, 50, 500):
            for bot in (0.03, 0.1, 0.3):
                found, times = rates(runs, seed, per_second, bot, share, equal_weight=equal_weight)
                print(
                    f"{share:.0%} in treatment, bot {bot:.0%} of {per_second}/s: rolled back "
                    f"{found} of {runs}; the bot counted {times:.0f} times",
                    flush=True,
                )


def breach(judgement: Judgement) -> str | None:
    """Return the first metric that breached, None when none did."""
    return next((report.metric for report in judgement.metrics if report.is_breach), None)


def run(cell: Cell, equal_weight: bool, seed: int) -> Result:
    """Run one rollout."""
    if equal_weight:
        activity.ALWAYS = 10**9
    return World(cell, seed).run()


def main() -> None:
    """Print each cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--only", choices=("rates", "errors", "latency", "few", "harm"))
    parser.add_argument("--match", default="", help="a part of the names of the cells to run")
    parser.add_argument("--equal-weight", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.only in (None, "rates"):
        print_rates(options.runs, options.seed, equal_weight=options.equal_weight)
    with multiprocessing.Pool(options.processes) as pool:
        for cell in cells(options.only):
            if options.match not in cell.name:
                continue
            one = partial(run, cell, options.equal_weight)
            seeds = range(options.seed, options.seed + options.runs)
            results = pool.map(one, seeds, chunksize=4)
            found = [result for result in results if result.metric]
            by_metric = [
                f"{sum(result.metric == metric for result in found)} by {metric}"
                for metric in ("error_rate", "latency")
            ]
            delays = [result.seconds if result.metric else 10**6 for result in results]
            late = statistics.median(delays) - cell.harm_from
            median = f"; median after {late:.0f} s" if late < 10**5 else ""
            print(
                f"{cell.name:48} rolled back {len(found)} of {options.runs} "
                f"({', '.join(by_metric)}){median}",
                flush=True,
            )


if __name__ == "__main__":
    main()
