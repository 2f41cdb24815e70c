"""Validity of the gate's tests on random streams: false alarms first, then power. Seeded.

More runs: benchmarks/detection.py. A generous alpha makes false alarms frequent enough to count in
few runs; bounds are one-sided binomial at about 1 in 1000.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from controller.core.analysis.proportion import Counts, harm_alternatives, ratio_increment
from controller.core.analysis.sequential_tests import SequentialTests, decode_tests, encode_tests
from controller.core.evidence import ArmTotals, VisitTotals
from controller.core.judging.batches import MIN_BATCH
from controller.core.judging.gate import judge
from controller.core.plan import Guardrail
from controller.core.rollout import Baking
from schemas.terms import Verdict
from tests.builders import T0, make_plan, make_rollout, make_stages, make_visit
from tests.streams import Watched, looks_until_breach, make_evidence

ALPHA = 0.2
RUNS = 40
LOOKS = 50

Rates = Callable[[int], tuple[float, float]]


def watch(
    percent: float = 10.0, metric: str = "error_rate", alpha: float = ALPHA, margin: float = 0.0
) -> Watched:
    """Return a rollout under watch with one comparison, in a stage of `percent`."""
    plan = make_plan(
        guardrails=(Guardrail(metric, margin=margin),),
        stages=make_stages(percent, 100, bake=timedelta(seconds=LOOKS)),
        alpha=alpha,
    )
    phase = Baking(stage=0, until=T0 + timedelta(hours=1))
    return Watched(
        make_rollout(plan=plan, phase=phase, visits=(make_visit(percent=percent),), percent=percent)
    )


def most_by_chance(runs: int, alpha: float) -> int:
    """Return the alarms in `runs` that a test at alpha exceeds in fewer than 1 of 1000 tries."""
    return int(scipy.stats.binom.ppf(0.999, runs, alpha))


def alarms(runs: int, seed: int, one_run: Callable[[np.random.Generator], bool]) -> int:
    """Return how many runs alarmed."""
    rng = np.random.default_rng(seed)
    return sum(one_run(rng) for _ in range(runs))


@pytest.mark.parametrize(("percent", "rate"), [(1.0, 0.02), (10.0, 0.005), (50.0, 0.02)])
def test_healthy_streams_are_seldom_rolled_back(percent: float, rate: float) -> None:
    """Equal error rates, looked at after every batch, alarm at most as often as alpha says."""

    def one_run(rng: np.random.Generator) -> bool:
        return (
            looks_until_breach(watch(percent), rng, LOOKS, 4000, lambda _: (rate, rate)) is not None
        )

    assert alarms(RUNS, 1, one_run) <= most_by_chance(RUNS, ALPHA)


@pytest.mark.parametrize("worse", [2.0, 5.0])
@pytest.mark.parametrize("percent", [1.0, 10.0, 50.0])
def test_harm_is_found(percent: float, worse: float) -> None:
    """Twice and five times the errors are found in every run, at the default alpha."""
    rate = 0.02

    def one_run(rng: np.random.Generator) -> bool:
        watched = watch(percent, alpha=0.01)
        return (
            looks_until_breach(watched, rng, 2 * LOOKS, 20_000, lambda _: (rate * worse, rate))
            is not None
        )

    assert alarms(10, 2, one_run) == 10


def test_a_ramp_under_a_drifting_base_rate_does_not_alarm() -> None:
    """Shares of 1, 10 and 50 % while both arms' error rate grows fivefold are no regression."""

    def one_run(rng: np.random.Generator) -> bool:
        watched = watch(1.0)
        for stage, percent in enumerate((1.0, 10.0, 50.0)):
            if stage:
                watched.go_on(percent, 0)
            if looks_until_breach(watched, rng, 20, 4000, partial(drifting, stage)) is not None:
                return True
        return False

    assert alarms(RUNS, 3, one_run) <= most_by_chance(RUNS, ALPHA)


def test_a_burst_of_one_context_does_not_alarm() -> None:
    """A treatment context that fails a thousand times is one first error."""

    def one_run(rng: np.random.Generator) -> bool:
        watched = watch(10.0)
        for _ in range(LOOKS):
            n_t = int(rng.binomial(1000, 0.1))
            k_t = int(rng.binomial(n_t, 0.005))
            watched.treatment.add(n_t, k_t, errors=1000 * k_t)
            watched.control.add(1000 - n_t, int(rng.binomial(1000 - n_t, 0.005)))
            if watched.look().breach is not None:
                return True
        return False

    assert alarms(RUNS, 4, one_run) <= most_by_chance(RUNS, ALPHA)


def test_equal_latencies_are_seldom_rolled_back() -> None:
    """With equal, drifting distributions in both arms, alarms stay within alpha."""

    def one_run(rng: np.random.Generator) -> bool:
        watched = watch(10.0, "latency_p95")
        for look in range(30):
            n_t = int(rng.binomial(600, 0.1))
            median = 40 * (1 + 0.5 * np.sin(look / 5))
            for arm, size in ((watched.treatment, n_t), (watched.control, 600 - n_t)):
                arm.add(size)
                arm.add_latencies(rng.lognormal(np.log(median), 0.6, size))
            if watched.look().breach is not None:
                return True
        return False

    assert alarms(RUNS, 5, one_run) <= most_by_chance(RUNS, ALPHA)


def test_release_at_the_gates_margin_is_seldom_passed() -> None:
    """A release exactly at the margin passes at most as often as beta says."""

    def one_run(rng: np.random.Generator) -> bool:
        watched = watch(50.0, alpha=1e-9)
        for _ in range(LOOKS):
            watched.treatment.add(1000, int(rng.binomial(1000, 0.02 * 1.25)))
            watched.control.add(1000, int(rng.binomial(1000, 0.02)))
            if watched.look().metrics[0].safe is Verdict.PASS:
                return True
        return False

    assert alarms(RUNS, 6, one_run) <= most_by_chance(RUNS, 0.05)


def test_slower_conversions_in_both_arms_do_not_alarm() -> None:
    """Equal conversions that come ten batches late raise alarms within alpha."""

    def one_run(rng: np.random.Generator) -> bool:
        watched = watch(50.0, "conversion:bought")
        waiting: list[tuple[int, int]] = []
        for _ in range(LOOKS):
            n_t = int(rng.binomial(400, 0.5))
            waiting.append((int(rng.binomial(n_t, 0.2)), int(rng.binomial(400 - n_t, 0.2))))
            late_t, late_c = waiting.pop(0) if len(waiting) > 10 else (0, 0)
            watched.treatment.add(n_t, converted=late_t)
            watched.control.add(400 - n_t, converted=late_c)
            if watched.look().breach is not None:
                return True
        return False

    assert alarms(RUNS, 7, one_run) <= most_by_chance(RUNS, ALPHA)


def drifting(stage: int, look: int) -> tuple[float, float]:
    """Return both arms' error rate in a look of a ramp's stage: five times as high in the end."""
    rate = 0.004 * 5 ** ((stage + look / 20) / 3)
    return rate, rate


counts = st.integers(min_value=0, max_value=10**9)


@st.composite
def batches(draw: st.DrawFn) -> Counts:
    """A batch of any size with any number of events."""
    n_t, n_c = draw(counts.filter(bool)), draw(counts.filter(bool))
    return Counts(n_t, draw(st.integers(0, n_t)), n_c, draw(st.integers(0, n_c)))


@given(batch=batches(), margin=st.floats(0, 10))
def test_increments_are_finite_for_any_counts(batch: Counts, margin: float) -> None:
    """From one context to a billion.

    With no error or nothing but errors, every increment is a number.
    """
    log_null = float(np.log1p(margin))
    increment = ratio_increment(harm_alternatives(log_null).log_effects, log_null, batch)
    assert np.isfinite(increment).all()


@st.composite
def arms(draw: st.DrawFn, largest: int = 10**6) -> ArmTotals:
    """Any totals of an arm, also such as never should be."""
    number = st.integers(0, largest)
    return ArmTotals(
        evaluations=draw(number),
        exposures=draw(number),
        outcomes=draw(number),
        errors=draw(number),
        at_risk=draw(number),
        first_errors=draw(number),
        converted=draw(st.dictionaries(st.just("bought"), number)),
        latency=draw(st.dictionaries(st.integers(-300, 900), st.integers(1, 1000), max_size=5)),
    )


@given(
    looks=st.lists(st.tuples(arms(), arms()), min_size=1, max_size=4),
    percent=st.sampled_from([0.01, 1.0, 50.0, 100.0]),
)
def test_any_totals_are_judged(looks: list[tuple[ArmTotals, ArmTotals]], percent: float) -> None:
    """Any counts, rising or falling, give numbers, and the state survives its encoding."""
    plan = make_plan(
        guardrails=(
            Guardrail("error_rate", limit=0.05, margin=0.1),
            Guardrail("latency_p99", limit=200.0, margin=0.1),
            Guardrail("conversion:bought", limit=0.01, margin=0.1),
        ),
        stages=make_stages(percent),
    )
    rollout = make_rollout(plan=plan, visits=(make_visit(percent=percent),), percent=percent)
    tests = SequentialTests()
    for second, (treatment, control) in enumerate(looks):
        at = T0 + timedelta(minutes=1, seconds=second)
        judgement, tests = judge(
            rollout, make_evidence({0: VisitTotals(treatment, control)}, at), tests, at
        )
        assert encode_tests(decode_tests(encode_tests(tests))) == encode_tests(tests)
        for report in judgement.metrics:
            assert np.isfinite(report.e_value)
            for arm in report.arms.values():
                if arm.estimate is not None and arm.low is not None and arm.high is not None:
                    assert arm.low <= arm.estimate <= arm.high


@given(
    parts=st.lists(
        st.tuples(st.integers(MIN_BATCH, 500), st.integers(0, 8)), min_size=1, max_size=10
    )
)
def test_each_context_is_used_once(parts: list[tuple[int, int]]) -> None:
    """However the totals arrive, and with looks at lost totals in between.

    The tests use exactly what was counted.
    """
    watched = watch(10.0)
    for contexts, errors in parts:
        watched.treatment.add(contexts, errors)
        watched.control.add(9 * contexts, errors)
        watched.look()
        whole = watched.arms[0]
        watched.arms[0] = (type(whole[0])(), type(whole[1])())
        watched.look()
        watched.arms[0] = whole
    total = sum(contexts for contexts, _ in parts)
    bad = sum(errors for _, errors in parts)
    assert watched.tests.ratios[0].counts == Counts(total, bad, 9 * total, bad)
