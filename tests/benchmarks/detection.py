"""False alarms, delay and power of the gate's tests, beside an oracle and other methods.

    python -m tests.benchmarks.detection [--runs 2000] [--seed 1] [--only
    errors|ramp|late|latency|srm|safe|others|cost]

All streams of a cell run side by side in numpy, through the very functions the gate calls; before
anything else one stream goes through `judge` as well and must give the same e-values. Every stream
is looked at after each of 200 batches.

The oracle is Wald's sequential probability ratio test that knows the true effect but not the base
rate, at the same threshold: no valid test is much faster. For latency it knows both distributions,
which is more than any test can. "most" is what chance allows a test exactly at alpha in that many
runs (1 in 1000).
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from controller.core.analysis import sample_ratio
from controller.core.analysis.change_point import Bets, scheduled_mass
from controller.core.analysis.latency import Ordered, ordered
from controller.core.analysis.proportion import (
    Counts,
    harm_alternatives,
    ratio_increment,
    safe_alternatives,
)
from controller.core.analysis.sequential_tests import encode_tests
from controller.core.analysis.slowness import SHAPE_LOG_WEIGHTS, SHAPES, slowness_increment
from controller.core.evidence import GAMMA
from controller.core.judging.gate import check_harm, judge
from controller.core.judging.questions import MIN_HARMED, gate_margin
from controller.core.plan import Guardrail
from controller.core.rollout import Baking
from schemas.terms import Arm
from tests.builders import T0, make_plan, make_rollout, make_stages, make_visit
from tests.streams import Watched

LOOKS = 200
SHARES = (0.01, 0.1, 0.5)
BASE_RATES = (0.001, 0.005, 0.02)
EFFECTS = (1.25, 1.5, 2.0, 5.0)
NEVER = 10**9

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Random = np.random.Generator


@dataclass
class Batch:
    """One look of many streams: observations and events per arm, and the decided share."""

    n_t: Integers
    k_t: Integers
    n_c: Integers
    k_c: Integers
    share: float

    def columns(self) -> Counts:
        """Return what broadcasts against alternatives."""
        return Counts(*(counts[:, None] for counts in (self.n_t, self.k_t, self.n_c, self.k_c)))  # type: ignore[arg-type]


Stream = Iterator[Batch]


# --- streams ---


def plain(
    rng: Random,
    runs: int,
    share: float,
    rate: float,
    per_look: int,
    *,
    worse: float = 1.0,
    begins: int = 0,
) -> Stream:
    """Yield batches whose treatment fails `worse` times as often from look `begins` on."""
    for look in range(LOOKS):
        yield sampled(rng, runs, share, per_look, rate * (worse if look >= begins else 1.0), rate)


def sampled(
    rng: Random,
    runs: int,
    share: float,
    per_look: int,
    rate_t: float | Floats,
    rate_c: float | Floats,
) -> Batch:
    """Return one batch of independent contexts."""
    n_t = rng.binomial(per_look, share, runs)
    n_c = per_look - n_t
    return Batch(
        n_t, rng.binomial(n_t, np.minimum(rate_t, 1.0)), n_c, rng.binomial(n_c, rate_c), share
    )


def drifting(rng: Random, runs: int, share: float, rate: float, per_look: int) -> Stream:
    """Yield batches whose base rate swings over the day and makes jumps, in both arms alike."""
    level = np.ones(runs)
    for look in range(LOOKS):
        level = np.clip(level * np.exp(rng.normal(0, 0.1, runs)), 0.3, 3.0)
        now = np.minimum(rate * level * (1 + 0.5 * math.sin(2 * math.pi * look / 50)), 0.9)
        yield sampled(rng, runs, share, per_look, now, now)


def bursting(rng: Random, runs: int, share: float, rate: float, per_look: int) -> Stream:
    """Yield batches of which one in twenty is an outage: twenty times the errors, in both arms."""
    for _ in range(LOOKS):
        now = np.minimum(np.where(rng.random(runs) < 0.05, 20 * rate, rate), 0.9)
        yield sampled(rng, runs, share, per_look, now, now)


def returning(rng: Random, runs: int, share: float, rate: float, per_look: int) -> Stream:
    """Yield batches of users who come back, a few of whom fail again and again.

    A user counts until the first error.
    """
    users = 4 * per_look
    in_treatment = rng.random((runs, users)) < share
    unlucky = (
        rng.random((runs, users)) < rate / 2
    )  # these fail every second time, the others make up for the rest
    failed = np.zeros((runs, users), bool)
    rows = np.arange(runs)[:, None]
    for _ in range(LOOKS):
        begin = rng.integers(0, users - per_look // 4, runs)[:, None]
        active = begin + np.arange(per_look // 4)[None, :]
        fails = rng.random(active.shape) < np.where(unlucky[rows, active], 0.5, rate * 0.75)
        at_risk = ~failed[rows, active]
        treated = in_treatment[rows, active]
        failed[rows, active] |= fails
        first = fails & at_risk
        yield Batch(
            (at_risk & treated).sum(1),
            (first & treated).sum(1),
            (at_risk & ~treated).sum(1),
            (first & ~treated).sum(1),
            share,
        )


def ramping(rng: Random, runs: int, rate: float, per_look: int, *, worse: float = 1.0) -> Stream:
    """Yield batches of a ramp over 1, 10 and 50 % while the base rate grows fivefold."""
    for look in range(LOOKS):
        share = (0.01, 0.1, 0.5)[3 * look // LOOKS]
        now = rate * 5 ** (look / LOOKS)
        yield sampled(rng, runs, share, per_look, now * worse, now)


HEALTHY: dict[str, Callable[[Random, int, float, float, int], Stream]] = {
    "plain": plain,
    "drift": drifting,
    "bursts": bursting,
    "returning": returning,
}


# --- tests of a stream ---


def log_mean(values: Floats, log_weights: Floats) -> Floats:
    """Return the log of the weighted mean of exp(values) along the last axis."""
    weighted = values + log_weights
    top = weighted.max(axis=1)
    result: Floats = top + np.log(np.exp(weighted - top[:, None]).sum(axis=1))
    return result


class Ours:
    """The gate's test of harm in errors, for many streams at once."""

    def __init__(self, runs: int, margin: float = 0.0) -> None:
        self.log_null = math.log1p(margin)
        self.alternatives = harm_alternatives(self.log_null)
        self.bets = Bets.fresh(runs, len(self.alternatives.log_effects))
        self.harmed = np.zeros(runs, np.int64)
        self.look = 0

    def log_e_values(self, batch: Batch) -> Floats:
        """Return the log e-values after one more batch."""
        self.look += 1
        increment = ratio_increment(self.alternatives.log_effects, self.log_null, batch.columns())
        log_weights = self.alternatives.log_weights
        self.bets = self.bets.after(increment, log_weights, scheduled_mass(0, self.look))
        self.harmed += batch.k_t
        return self.bets.log_e_values(log_weights)

    def found(self, batch: Batch, alpha: float) -> NDArray[np.bool_]:
        """Return which streams are rolled back at this look."""
        e_values = self.log_e_values(batch)
        return (e_values >= -math.log(alpha)) & (self.harmed >= MIN_HARMED)


class Oracle:
    """Wald's test with the true effect."""

    def __init__(self, runs: int, effect: float, begins: int = 0) -> None:
        self.effect, self.begins, self.look = effect, begins, 0
        self.log_ratio = np.zeros(runs)

    def found(self, batch: Batch, alpha: float) -> NDArray[np.bool_]:
        """Return which streams have crossed."""
        if self.look >= self.begins:
            scale = np.log((batch.n_t * self.effect + batch.n_c) / (batch.n_t + batch.n_c))
            self.log_ratio += batch.k_t * math.log(self.effect) - (batch.k_t + batch.k_c) * scale
        self.look += 1
        crossed: NDArray[np.bool_] = self.log_ratio >= -math.log(alpha)
        return crossed


class Pooled:
    """What many tools do: totals so far, judged again at every look."""

    def __init__(self, runs: int) -> None:
        self.sums = np.zeros((4, runs))

    def add(self, batch: Batch) -> None:
        """Add a batch up."""
        self.sums += (batch.n_t, batch.k_t, batch.n_c, batch.k_c)

    def rates(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Return (n_t, rate of treatment, n_c, rate of control)."""
        n_t, k_t, n_c, k_c = self.sums
        return n_t, k_t / np.maximum(n_t, 1), n_c, k_c / np.maximum(n_c, 1)


class Threshold(Pooled):
    """Roll back when treatment's rate is above twice control's, from 100 contexts on."""

    def found(self, batch: Batch, alpha: float) -> NDArray[np.bool_]:
        """Return which streams are rolled back; alpha plays no part."""
        self.add(batch)
        n_t, rate_t, _, rate_c = self.rates()
        found: NDArray[np.bool_] = (n_t >= 100) & (rate_t > 2 * rate_c)
        return found


class RepeatedZ(Pooled):
    """A one-sided two-proportion z-test at every look, as if each were the only one."""

    def found(self, batch: Batch, alpha: float) -> NDArray[np.bool_]:
        """Return which streams are rolled back."""
        self.add(batch)
        n_t, rate_t, n_c, rate_c = self.rates()
        pooled = (n_t * rate_t + n_c * rate_c) / np.maximum(n_t + n_c, 1)
        error = np.sqrt(
            np.maximum(
                pooled * (1 - pooled) * (1 / np.maximum(n_t, 1) + 1 / np.maximum(n_c, 1)), 1e-30
            )
        )
        found: NDArray[np.bool_] = (self.sums[1] >= MIN_HARMED) & (
            (rate_t - rate_c) / error > stats.norm.isf(alpha)
        )
        return found


class AsymptoticSequence(Pooled):
    """A one-sided asymptotic confidence sequence, as in GrowthBook's `gbstats` (N* = 5,000).

    Source: I. Waudby-Smith et al., arXiv 2103.06476.
    """

    def found(self, batch: Batch, alpha: float) -> NDArray[np.bool_]:
        """Return which streams are rolled back."""
        self.add(batch)
        n_t, rate_t, n_c, rate_c = self.rates()
        n = n_t + n_c
        variance = n * (
            rate_t * (1 - rate_t) / np.maximum(n_t, 1) + rate_c * (1 - rate_c) / np.maximum(n_c, 1)
        )
        two_sided = 2 * alpha
        rho2 = (-2 * math.log(two_sided) + math.log(-2 * math.log(two_sided) + 1)) / 5000
        width = np.sqrt(variance) * np.sqrt(
            2 * (n * rho2 + 1) / (n**2 * rho2) * np.log(np.sqrt(n * rho2 + 1) / two_sided)
        )
        found: NDArray[np.bool_] = (self.sums[1] >= MIN_HARMED) & (rate_t - rate_c > width)
        return found


Test = Ours | Oracle | Threshold | RepeatedZ | AsymptoticSequence


def first_looks(stream: Stream, tests: list[Test], runs: int, alpha: float) -> list[Integers]:
    """Return, per test, the look at which each stream was rolled back, NEVER where it was not."""
    looks = [np.full(runs, NEVER) for _ in tests]
    for number, batch in enumerate(stream):
        for test, found_at in zip(tests, looks, strict=True):
            found_at[test.found(batch, alpha) & (found_at == NEVER)] = number + 1
    return looks


# --- cells ---


def per_look_for(share: float, rate: float, effect: float, looks: int) -> int:
    """Return the contexts a look that let the oracle take about `looks` looks at alpha 1 %."""
    mixed = share * effect + 1 - share
    information = rate * (share * effect * math.log(effect) - mixed * math.log(mixed))
    return max(2, round(math.log(100) / information / looks))


def errors(runs: int, seed: int) -> bool:
    """Print false alarms and delays for errors.

    Return whether all figures are as they should be.
    """
    is_good = True
    for alpha in (0.01, 0.05):
        most = int(stats.binom.ppf(0.999, runs, alpha))
        print(f"A/A, alpha {alpha:.0%}, {runs} runs a cell, {LOOKS} looks; most by chance {most}")
        for number, (kind, make_stream) in enumerate(HEALTHY.items()):
            worst, cells = 0, []
            for share in SHARES:
                for rate in BASE_RATES:
                    rng = np.random.default_rng(
                        [seed, number, round(1e4 * share), round(1e4 * rate)]
                    )
                    # enough contexts that errors are many in some cells and a handful in others
                    looks = first_looks(
                        make_stream(rng, runs, share, rate, 400), [Ours(runs)], runs, alpha
                    )[0]
                    false = int((looks < NEVER).sum())
                    worst = max(worst, false)
                    cells.append(f"{false / runs:.2%}")
            is_good &= worst <= most
            print(
                f"  {kind:<10} {' '.join(cells)}   worst "
                f"{worst}{'' if worst <= most else '  TOO MANY'}",
                flush=True,
            )
    runs = max(runs // 4, 100)
    print(
        f"harm from the start, alpha 1 %, {runs} runs a cell: median look of ours / of the "
        f"oracle = ratio"
    )
    ratios = []
    for share in SHARES:
        for rate in BASE_RATES:
            said = []
            for effect in EFFECTS:
                rng = np.random.default_rng(
                    [seed, 50, round(1e4 * share), round(1e4 * rate), round(100 * effect)]
                )
                stream = plain(
                    rng, runs, share, rate, per_look_for(share, rate, effect, 70), worse=effect
                )
                ours, oracle = (
                    np.median(each)
                    for each in first_looks(stream, [Ours(runs), Oracle(runs, effect)], runs, 0.01)
                )
                ratios.append(float(ours / oracle))
                said.append(f"x{effect:g} {ours:.0f}/{oracle:.0f} = {ours / oracle:.2f}")
            print(f"  share {share:>4.0%} base {rate:.1%}: {'; '.join(said)}", flush=True)
    mean = statistics.geometric_mean(ratios)
    print(f"  geometric mean {mean:.3f} (1.35 asked for), largest {max(ratios):.2f} (1.5)")
    return is_good and mean <= 1.35 and max(ratios) <= 1.5


def ramp(runs: int, seed: int) -> bool:
    """Print the same through a ramp with a base rate that grows fivefold."""
    rng = np.random.default_rng([seed, 60])
    most = int(stats.binom.ppf(0.999, runs, 0.01))
    false = int(
        (first_looks(ramping(rng, runs, 0.004, 1000), [Ours(runs)], runs, 0.01)[0] < NEVER).sum()
    )
    stream = ramping(rng, runs, 0.004, 1000, worse=2.0)
    ours, oracle = (
        float(np.median(each))
        for each in first_looks(stream, [Ours(runs), Oracle(runs, 2.0)], runs, 0.01)
    )
    print(f"ramp 1 -> 10 -> 50 %, base rate x5: false {false} of {runs} (most by chance {most})")
    print(f"  harm x2: {ours:.0f}/{oracle:.0f} = {ours / oracle:.2f} (1.5)")
    return false <= most and ours / oracle <= 1.5


def late(runs: int, seed: int) -> bool:
    """Print the delay of trouble that begins half-way."""
    runs = max(runs // 4, 100)
    rng = np.random.default_rng([seed, 70])
    is_good = True
    for effect in (1.5, 2.0, 5.0):
        begins = LOOKS // 2
        stream = plain(
            rng, runs, 0.1, 0.01, per_look_for(0.1, 0.01, effect, 20), worse=effect, begins=begins
        )
        ours, oracle = first_looks(stream, [Ours(runs), Oracle(runs, effect, begins)], runs, 0.01)
        is_late = ours > begins
        delay, best = (
            float(np.median(ours[is_late]) - begins),
            float(np.median(oracle[is_late]) - begins),
        )
        print(
            f"harm x{effect:g} from half-way on: {delay:.0f}/{best:.0f} = "
            f"{delay / best:.2f} (2.5 for x2)"
        )
        is_good &= effect != 2.0 or delay / best <= 2.5
    return is_good


def srm(runs: int, seed: int) -> bool:
    """Print false alarms and delay of the sample-ratio test."""
    rng = np.random.default_rng([seed, 80])
    threshold = -math.log(sample_ratio.ALPHA_SRM)
    false = 0
    is_good = True
    for share in SHARES:
        state = np.zeros((runs, len(sample_ratio.LOG_FACTORS)))
        ever = np.zeros(runs, bool)
        for _ in range(LOOKS):
            treatment = rng.binomial(1000, share, runs)[:, None]
            state = sample_ratio.add_exposures(state, share, treatment, 1000 - treatment)  # type: ignore[arg-type]
            ever |= log_mean(state, sample_ratio.LOG_WEIGHTS) >= threshold
        false = int(ever.sum())
        most = int(stats.binom.ppf(0.999, runs, sample_ratio.ALPHA_SRM))
        factor = 0.8
        observed = share * factor / (share * factor + 1 - share)
        information = observed * math.log(observed / share) + (1 - observed) * math.log(
            (1 - observed) / (1 - share)
        )
        per_look = max(2, round(threshold / information / 60))
        state = np.zeros((runs, len(sample_ratio.LOG_FACTORS)))
        ratio, ours, oracle = np.zeros(runs), np.full(runs, NEVER), np.full(runs, NEVER)
        for look in range(2 * LOOKS):
            n_t = rng.binomial(per_look, observed, runs)
            pair = (n_t[:, None], (per_look - n_t)[:, None])
            state = sample_ratio.add_exposures(state, share, *pair)  # type: ignore[arg-type]
            ratio += n_t * math.log(observed / share) + (per_look - n_t) * math.log(
                (1 - observed) / (1 - share)
            )
            ours[(log_mean(state, sample_ratio.LOG_WEIGHTS) >= threshold) & (ours == NEVER)] = (
                look + 1
            )
            oracle[(ratio >= threshold) & (oracle == NEVER)] = look + 1
        delay = float(np.median(ours) / np.median(oracle))
        print(
            f"sample ratio at {share:.0%}: false {false} of {runs} (most {most}); 0.8 x "
            f"the share: {delay:.2f} x oracle (1.5)"
        )
        is_good &= false <= most and delay <= 1.5
    return is_good


def safe(runs: int, seed: int) -> bool:
    """Print how often a gate passes a release exactly at its margin, and how soon an equal one."""
    beta = 0.05
    most = int(stats.binom.ppf(0.999, runs, beta))
    is_good = True
    for share in SHARES:
        margin = gate_margin(Guardrail("error_rate", margin=0.1), 100 * share)
        log_null = math.log1p(margin)
        alternatives = safe_alternatives(log_null)
        said = []
        for worse in (1 + margin, 1.0):
            rng = np.random.default_rng([seed, 90, round(100 * share), round(100 * worse)])
            evidence = np.zeros((runs, len(alternatives.log_effects)))
            passed = np.full(runs, NEVER)
            shown = np.zeros(runs)
            per_look = per_look_for(share, 0.01, 1 + margin, 40)
            for look, batch in enumerate(plain(rng, runs, share, 0.01, per_look, worse=worse)):
                evidence += ratio_increment(alternatives.log_effects, log_null, batch.columns())
                passed[
                    (log_mean(evidence, alternatives.log_weights) >= -math.log(beta))
                    & (passed == NEVER)
                ] = look + 1
                shown += batch.n_t
            if worse > 1:
                count = int((passed < NEVER).sum())
                is_good &= count <= most
                said.append(f"at the margin of {margin:.0%} passes {count} of {runs} (most {most})")
            else:
                contexts = float(np.median(passed)) * per_look * share
                said.append(f"equal passes after {contexts:,.0f} treatment contexts")
        print(f"gate at {share:.0%}, base 1 %: {'; '.join(said)}", flush=True)
    return is_good


def others(runs: int, seed: int) -> bool:
    """Print the same streams judged by what other tools use."""
    print(
        f"side by side, alpha 1 %, share 10 %, base rate 1 %, {runs} runs: false alarms; "
        f"under drift; delay at x2"
    )
    kinds: dict[str, Callable[[], Test]] = {
        "rolloutd": lambda: Ours(runs),
        "gbstats sequential": lambda: AsymptoticSequence(runs),
        "z-test at every look": lambda: RepeatedZ(runs),
        "above 2 x control": lambda: Threshold(runs),
    }

    def looks_of(stream: Stream, *more: Test) -> list[Integers]:
        return first_looks(stream, [*(make() for make in kinds.values()), *more], runs, 0.01)

    rng = np.random.default_rng([seed, 95])
    healthy_looks = looks_of(plain(rng, runs, 0.1, 0.01, 400))
    ramped_looks = looks_of(ramping(rng, runs, 0.004, 1000))
    per_look = per_look_for(0.1, 0.01, 2.0, 60)
    *harmed_looks, oracle = looks_of(
        plain(rng, runs, 0.1, 0.01, per_look, worse=2.0), Oracle(runs, 2.0)
    )
    for name, healthy, ramped, harmed in zip(
        kinds, healthy_looks, ramped_looks, harmed_looks, strict=True
    ):
        delay = float(np.median(harmed) / np.median(oracle))
        print(
            f"  {name:<32} {np.mean(healthy < NEVER):>6.1%}  in a ramp with drift "
            f"{np.mean(ramped < NEVER):>6.1%}  "
            f"x2 found after {delay:.2f} x oracle"
        )
    return True


# --- latency ---

_MU, _SIGMA = math.log(40.0), 0.6


def _log_density(values: Floats, factor: float = 1.0) -> Floats:
    place = (np.log(values) - _MU - math.log(factor)) / _SIGMA
    result: Floats = -np.log(values) - 0.5 * place**2
    return result


@dataclass
class Slower:
    """A regression: `part` of the requests take `factor` times as long.

    Or with `tail` whatever is above p95 does.
    """

    name: str
    part: float
    factor: float
    tail: bool = False
    bound: float = 4.0

    def sample(self, rng: Random, size: int) -> Floats:
        """Return treatment's latencies in ms."""
        values = rng.lognormal(_MU, _SIGMA, size)
        if self.tail:
            edge = math.exp(_MU + 1.645 * _SIGMA)
            return np.where(values > edge, edge + (values - edge) * self.factor, values)
        return values * np.where(rng.random(size) < self.part, self.factor, 1.0)

    def log_ratio(self, values: Floats) -> float:
        """Return the log likelihood ratio against control."""
        if self.tail:
            edge = math.exp(_MU + 1.645 * _SIGMA)
            back = np.where(values > edge, edge + (values - edge) / self.factor, values)
            density = _log_density(back) - np.where(values > edge, math.log(self.factor), 0.0)
        else:
            parts = np.log1p(-self.part) if self.part < 1 else -np.inf
            density = np.logaddexp(
                parts + _log_density(values),
                math.log(self.part) + _log_density(values, self.factor),
            )
        return float((density - _log_density(values)).sum())


SLOWER = (
    Slower("+10 % for all", 1.0, 1.1, bound=2.5),
    Slower("tail above p95 +50 %", 0.0, 1.5, tail=True),
    Slower("2 % take 5 x", 0.02, 5.0),
)


def _one_latency(
    rng: Random,
    share: float,
    per_look: int,
    treatment: Callable[[Random, int], Floats],
    alpha: float,
) -> Iterator[tuple[bool, Floats]]:
    """Yield, per look, whether ours has found it, and treatment's new values."""
    histograms: dict[Arm, dict[int, int]] = {arm: {} for arm in Arm}
    before: dict[Arm, Ordered] = {arm: ordered({}) for arm in Arm}
    bets = Bets.fresh(SHAPES)
    for look in range(LOOKS):
        n_t = int(rng.binomial(per_look, share))
        values = treatment(rng, n_t)
        for arm, new in (
            (Arm.TREATMENT, values),
            (Arm.CONTROL, rng.lognormal(_MU, _SIGMA, per_look - n_t)),
        ):
            buckets, counts = np.unique(
                np.ceil(np.log(new) / math.log(GAMMA)).astype(int), return_counts=True
            )
            for bucket, count in zip(buckets.tolist(), counts.tolist(), strict=True):
                histograms[arm][bucket] = histograms[arm].get(bucket, 0) + count
        now = {arm: ordered(histogram) for arm, histogram in histograms.items()}
        increment = slowness_increment(before, now, 0)
        if increment is not None:
            bets = bets.after(increment, SHAPE_LOG_WEIGHTS, scheduled_mass(0, look + 1))
        before = now
        yield bets.log_e_value(SHAPE_LOG_WEIGHTS) >= -math.log(alpha), values


def latency(runs: int, seed: int) -> bool:
    """Print false alarms and delays for latency as a whole.

    Mann-Whitney at every look beside it.
    """
    is_good = True
    for share in (0.01, 0.1):
        rng = np.random.default_rng([seed, 110, round(100 * share)])
        false = whitney = 0
        for _ in range(runs):
            new: list[Floats] = []
            is_whitney = is_found = False
            control = rng.lognormal(_MU, _SIGMA, LOOKS * 40)
            for look, (found, values) in enumerate(
                _one_latency(rng, share, round(4 / share), _healthy, 0.01)
            ):
                new.append(values)
                is_found |= found
                if look % 10 == 9 and not is_whitney:  # at one look in ten: already enough
                    seen = np.concatenate(new)
                    p_value = stats.mannwhitneyu(
                        seen, control[: 40 * look], alternative="greater"
                    ).pvalue
                    is_whitney = bool(p_value < 0.01)
            false, whitney = false + is_found, whitney + is_whitney
        most = int(stats.binom.ppf(0.999, runs, 0.01))
        print(
            f"latency A/A at {share:.0%}: false {false} of {runs} (most {most}); "
            f"Mann-Whitney at one look in ten: {whitney}",
            flush=True,
        )
        is_good &= false <= most
    runs = max(runs // 50, 20)
    for slower in SLOWER:
        for share in (0.01, 0.1):
            rng = np.random.default_rng([seed, 120, round(100 * share), round(100 * slower.factor)])
            growth = slower.log_ratio(slower.sample(rng, 50_000)) / 50_000
            per_look = max(10, round(math.log(100) / growth / 40 / share))
            ours, oracle = [], []
            for _ in range(runs):
                total, found_at, oracle_at = 0.0, NEVER, NEVER
                for look, (found, values) in enumerate(
                    _one_latency(rng, share, per_look, slower.sample, 0.01)
                ):
                    total += slower.log_ratio(values)
                    oracle_at = (
                        look + 1 if oracle_at == NEVER and total >= math.log(100) else oracle_at
                    )
                    found_at = look + 1 if found_at == NEVER and found else found_at
                    if max(found_at, oracle_at) < NEVER:
                        break
                ours.append(found_at)
                oracle.append(oracle_at)
            ratio = statistics.median(ours) / statistics.median(oracle)
            print(
                f"latency, {slower.name}, at {share:.0%}: {ratio:.2f} x an oracle that "
                f"knows both distributions",
                flush=True,
            )
            is_good &= ratio <= slower.bound
    return is_good


def _healthy(rng: Random, size: int) -> Floats:
    return rng.lognormal(_MU, _SIGMA, size)


# --- through judge itself ---


def watch(percent: float, *guardrails: Guardrail) -> Watched:
    """Return a rollout under watch at the default alpha, planned to take `LOOKS` looks."""
    stages = make_stages(percent, bake=timedelta(seconds=LOOKS), settle=timedelta(0))
    plan = make_plan(guardrails=guardrails, stages=stages)
    phase = Baking(stage=0, until=T0 + timedelta(hours=1))
    visits = (make_visit(percent=percent, entered_at=T0, counts_from=T0),)
    return Watched(make_rollout(plan=plan, phase=phase, visits=visits, percent=percent), at=T0)


def same_as_judge(runs: int, seed: int) -> bool:
    """Print whether one stream has the same e-values here and in `judge`."""
    watched = watch(10.0, Guardrail("error_rate", margin=0.1))
    ours = Ours(1, 0.1)
    largest = 0.0
    for batch in plain(np.random.default_rng([seed, 1]), 1, 0.1, 0.02, 400, worse=1.3):
        watched.treatment.add(int(batch.n_t[0]), int(batch.k_t[0]))
        watched.control.add(int(batch.n_c[0]), int(batch.k_c[0]))
        e_value = watched.look().metrics[0].e_value
        largest = max(largest, abs(math.log(e_value) - float(ours.log_e_values(batch)[0])))
    print(
        f"against judge, one stream of {LOOKS} looks: log e-values differ by at most {largest:.1e}"
    )
    return largest < 1e-6


def cost(runs: int, seed: int) -> bool:
    """Print what one look costs with errors and latency, limits and comparisons.

    As the daemon does it.

    The goal is the evaluation's. Intervals are computed when somebody reads them: with decisions
    and on request.
    """
    rng = np.random.default_rng(seed)
    watched = watch(
        10.0,
        Guardrail("error_rate", limit=0.05, margin=0.1),
        Guardrail("latency_p99", limit=400.0, margin=0.1),
    )
    alone, looks, told, whole, size = [], [], [], [], 0
    for _ in range(LOOKS):
        watched.treatment.add(50, int(rng.binomial(50, 0.01)))
        watched.treatment.add_latencies(rng.lognormal(_MU, _SIGMA, 50))
        watched.control.add(450, int(rng.binomial(450, 0.01)))
        watched.control.add_latencies(rng.lognormal(_MU, _SIGMA, 450))
        watched.at += timedelta(seconds=1)
        evidence = watched.evidence()
        began = time.process_time()
        check_harm(watched.rollout, evidence, watched.tests, watched.at)
        alone.append(time.process_time() - began)
        began = time.process_time()
        judgement, watched.tests = judge(watched.rollout, evidence, watched.tests, watched.at)
        looks.append(time.process_time() - began)
        for metric in judgement.metrics:
            dict(metric.arms)  # reads them
        told.append(time.process_time() - began)
        size = len(encode_tests(watched.tests))
        whole.append(time.process_time() - began)
    harm, judged, read, saved = (
        f"{1000 * statistics.median(seconds):.2f} ms" for seconds in (alone, looks, told, whole)
    )
    print(
        f"one look, CPU, median of {LOOKS}: {harm} while a stage bakes (harm alone), "
        f"{judged} with all that a gate asks for, "
        f"{read} with both arms' intervals, as decisions and people read them, {saved} "
        f"with its state's bytes; "
        f"state {size:,} bytes"
    )
    return statistics.median(looks) < 1e-3 and size < 16_384


SECTIONS: dict[str, Callable[[int, int], bool]] = {
    "cost": cost,
    "errors": errors,
    "ramp": ramp,
    "late": late,
    "srm": srm,
    "safe": safe,
    "others": others,
    "latency": latency,
}


def main() -> int:
    """Run every section, or one; 1 when a figure misses its goal."""
    parser = argparse.ArgumentParser(
        description="False alarms, delay and power of the gate's tests."
    )
    parser.add_argument("--runs", type=int, default=2000, help="healthy streams per cell")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=list(SECTIONS), default=None)
    options = parser.parse_args()
    is_good = same_as_judge(options.runs, options.seed)
    for name, section in SECTIONS.items():
        if options.only in (None, name):
            is_good &= section(options.runs, options.seed)
    print("every figure meets its goal" if is_good else "A FIGURE MISSES ITS GOAL")
    return 0 if is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
