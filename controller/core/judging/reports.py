"""From a guardrail's tests to its report.

Both verdicts, both arms with intervals, and one sentence with the numbers.

Sentences do not name their metric: whoever shows them has put it in front.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from controller.core.analysis.change_point import (
    as_e_value,
    log_e_value,
    log_sum_exp,
    mean_log_effect,
)
from controller.core.analysis.latency import Spread, margin_buckets, quantile_interval
from controller.core.analysis.proportion import (
    SAFE_LOG_WEIGHTS,
    Counts,
    RatioEstimate,
    excess_growth,
    harm_alternatives,
    limit_alternatives,
    limit_growth,
    limit_increment,
    limit_log_e_value,
    rate_interval,
    ratio_estimate,
    safe_growth,
    trials_until,
)
from controller.core.analysis.sequential_tests import LimitTest, RatioTest, SequentialTests
from controller.core.analysis.slowness import SHAPE_LOG_WEIGHTS
from controller.core.evidence import ArmTotals, VisitTotals, bucket_value
from controller.core.judging.judgement import ArmSummary, MetricReport
from controller.core.judging.questions import (
    MIN_HARM_RATIO,
    MIN_HARMED,
    NEGLIGIBLE_ERROR_RATE,
    NEGLIGIBLE_WEIGHT,
    gate_margin,
    limit_bucket,
    limit_share,
    log_tolerated,
)
from controller.core.plan import Guardrail
from schemas.terms import Arm, Verdict

_ARMS = (Arm.TREATMENT, Arm.CONTROL)  # the order in which people read them


@dataclass(frozen=True, slots=True)
class Suspicion:
    """One question's evidence of harm, once there is enough of it to act."""

    log_harm: float  # log e-value
    veto: str | None  # why it does not count all the same
    found: str


@dataclass(frozen=True, slots=True)
class Safety:
    """One question's answer on whether treatment is shown to be no worse."""

    verdict: Verdict
    log_e_value: float | None  # None: not asked at this stage
    shown: str  # what is said of it, either way


@dataclass(frozen=True, slots=True)
class _Look:
    """Everything that one guardrail's questions are about, at one look."""

    guardrail: Guardrail
    limit: LimitTest | None
    ratio: RatioTest | None
    totals: VisitTotals
    latencies: Mapping[Arm, Spread]
    elapsed_seconds: float
    alpha: float
    beta: float
    at_gate: float | None  # the margin of a gate in this stage; None where nothing is compared


def report(
    guardrail: Guardrail,
    number: int,
    tests: SequentialTests,
    totals: VisitTotals,
    latencies: Mapping[Arm, Spread],
    *,
    percent: float,
    elapsed_seconds: float,
    alpha_share: float,
    alpha: float,
    beta: float,
) -> MetricReport:
    """Return one guardrail's report for a stage at `percent` that has counted for `elapsed_seconds`.

    `alpha_share` is its part of `alpha`; intervals are at `alpha`. Evidence of harm is the whole
    rollout's, everything else the present visit's.
    """
    has_control = percent < 100
    look = _Look(
        guardrail,
        tests.limits.get(number),
        tests.ratios.get(number),
        totals,
        latencies,
        elapsed_seconds,
        alpha,
        beta,
        gate_margin(guardrail, percent) if guardrail.margin is not None and has_control else None,
    )
    ratio = (
        ratio_estimate(look.ratio.curve, alpha) if look.ratio is not None and has_control else None
    )
    answers = []
    if guardrail.limit is not None:
        answers.append(_against_limit(look))
    if guardrail.margin is not None:
        answers.append(_against_control(look, ratio))
    threshold = 1 / (alpha * alpha_share)
    e_value = harm_e_value(guardrail, number, tests)
    safe = _worst([answer.verdict for answer in answers])
    harm = (
        Verdict.NO_DATA
        if all(answer.verdict is Verdict.NO_DATA for answer in answers)
        else Verdict.INCONCLUSIVE
    )
    reason = "; ".join(answer.shown for answer in answers)
    if e_value >= threshold:
        suspicions = _suspicions(look)
        counting = [suspicion for suspicion in suspicions if suspicion.veto is None]
        if (
            sum(as_e_value(suspicion.log_harm) for suspicion in counting) / len(suspicions)
            >= threshold
        ):
            harm = safe = (
                Verdict.FAIL
            )  # what is found harmful is not shown safe, whatever an earlier stage had shown
            culprit = max(counting, key=lambda suspicion: suspicion.log_harm)
            reason = f"{culprit.found}; e-value {_number(e_value)} against {_number(threshold)}"
        else:
            veto = next(suspicion.veto for suspicion in suspicions if suspicion.veto is not None)
            reason = f"{reason}; harm would be certain but does not count: {veto}"
    log_safes = [answer.log_e_value for answer in answers if answer.log_e_value is not None]
    return MetricReport(
        metric=guardrail.metric,
        role=guardrail.role,
        on_breach=guardrail.on_breach,
        harm=harm,
        safe=safe,
        arms=_Arms(look),
        e_value=e_value,
        threshold=threshold,
        e_value_safe=as_e_value(min(log_safes)) if log_safes else None,
        threshold_safe=1 / beta if log_safes else None,
        margin=guardrail.margin,
        in_points=guardrail.in_points,
        limit=guardrail.limit,
        reason=reason,
        gate_margin=look.at_gate,
        ratio=None if ratio is None else ratio.estimate,
        ratio_low=None if ratio is None else ratio.low,
        ratio_high=None if ratio is None else ratio.high,
    )


def harm_e_value(guardrail: Guardrail, number: int, tests: SequentialTests) -> float:
    """Return the e-value of harm: the mean over the guardrail's questions."""
    e_values = []
    if guardrail.limit is not None:
        e_values.append(as_e_value(_log_limit_harm(guardrail, tests.limits.get(number))))
    if guardrail.margin is not None:
        e_values.append(as_e_value(_log_comparison_harm(guardrail, tests.ratios.get(number))))
    return sum(e_values) / len(e_values)


def _log_limit_harm(guardrail: Guardrail, test: LimitTest | None) -> float:
    if test is None:
        return 0.0
    return log_e_value(
        test.evidence,
        limit_alternatives(limit_share(guardrail), is_above=True)[2].log_weights,
        test.released,
    )


def _log_comparison_harm(guardrail: Guardrail, test: RatioTest | None) -> float:
    if test is None:
        return 0.0
    weights = (
        SHAPE_LOG_WEIGHTS
        if guardrail.is_distribution
        else harm_alternatives(log_tolerated(guardrail)).log_weights
    )
    return log_e_value(test.evidence, weights, test.released)


def _worst(verdicts: list[Verdict]) -> Verdict:
    for verdict in (Verdict.NO_DATA, Verdict.INCONCLUSIVE):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS


# --- is it worse


def _suspicions(look: _Look) -> list[Suspicion]:
    """Return what each question has to say of harm, in the order of `harm_e_value`'s."""
    suspicions = []
    if look.guardrail.limit is not None:
        suspicions.append(_over_limit(look))
    if look.guardrail.margin is not None:
        suspicions.append(_worse_than_control(look))
    return suspicions


def _over_limit(look: _Look) -> Suspicion:
    said, trials, events = _limit_counts(look)
    # The tests look for a beginning too: what broke a minute ago is found although the stage's own
    # average is still fine.
    is_over = bool(trials) and events / trials > limit_share(look.guardrail)
    when = (
        "over the limit" if is_over else "over the limit of late, though not on the stage's average"
    )
    harmed = 0 if look.limit is None else look.limit.harmed
    return Suspicion(
        _log_limit_harm(look.guardrail, look.limit), _too_few(harmed), f"{said}: {when}"
    )


def _worse_than_control(look: _Look) -> Suspicion:
    guardrail, test = look.guardrail, look.ratio
    log_harm = _log_comparison_harm(guardrail, test)
    if test is None:
        return Suspicion(log_harm, _too_few(0), "worse than control")
    if guardrail.is_distribution:
        found = f"treatment is slower than control: {_quantiles(look.latencies)} in this stage"
        return Suspicion(log_harm, _too_few(test.harmed), found)
    alternatives = harm_alternatives(log_tolerated(guardrail))
    effect = math.exp(
        mean_log_effect(test.evidence, alternatives.log_weights, alternatives.log_effects)
    )
    veto = _too_few(test.harmed)
    if veto is None and effect < MIN_HARM_RATIO and not guardrail.in_points:
        veto = f"it is about {_percent(effect - 1)} worse, less than {_percent(MIN_HARM_RATIO - 1)}"
    than = "control" if not guardrail.in_points else f"control + {_points(guardrail.margin or 0)}"
    place, stage = _place(guardrail, test), _both(guardrail, test.counts)
    return Suspicion(
        log_harm,
        veto,
        f"{place}treatment is about {effect:.2f} times as bad as {than}; this stage {stage}",
    )


def _too_few(harmed: int) -> str | None:
    return (
        None
        if harmed >= MIN_HARMED
        else f"only {harmed} bad events in treatment, {MIN_HARMED} are asked for"
    )


# --- is it shown not to be worse


def _against_limit(look: _Look) -> Safety:
    """Return whether treatment is shown to be within its limit."""
    guardrail = look.guardrail
    share, is_floor = limit_share(guardrail), guardrail.is_better_when_higher
    said, trials, events = _limit_counts(look)
    if trials == 0:
        return Safety(Verdict.NO_DATA, 0.0, f"{said}: nothing measured")
    increment = limit_increment(share, trials, events, is_above=is_floor)
    log_weights = limit_alternatives(share, is_above=is_floor)[2].log_weights
    log_safe, goal = log_sum_exp(log_weights + increment), -math.log(look.beta)
    if log_safe >= goal:
        return Safety(Verdict.PASS, log_safe, f"{said}: shown")
    growth = limit_growth(share, (events + 0.5) / (trials + 1), is_above=is_floor)
    missing = trials_until(increment, log_weights, growth, goal)
    outlook = (
        "not at this rate"
        if missing is None
        else _outlook(missing, "treatment", trials, look.elapsed_seconds)
    )
    return Safety(Verdict.INCONCLUSIVE, log_safe, f"{said}: not shown yet, {outlook}")


def _limit_counts(look: _Look) -> tuple[str, int, int]:
    """Return (both counts and the limit in words, observations, events)."""
    guardrail, arm = look.guardrail, look.totals.treatment
    if guardrail.quantile is not None:
        tested = look.latencies[Arm.TREATMENT].tested
        trials, events, what = (
            tested.total,
            tested.above(limit_bucket(guardrail)),
            f"treatment above {guardrail.limit:g} ms:",
        )
    elif guardrail.is_better_when_higher:
        goal = guardrail.metric.removeprefix("conversion:")
        trials, events = arm.exposures, min(arm.converted.get(goal, 0), arm.exposures)
        what = f"treatment converting {goal}:"
    else:
        trials, events, what = arm.at_risk, min(arm.first_errors, arm.at_risk), "treatment failing:"
    if trials == 0:
        return what.removesuffix(":"), 0, 0
    bound = "at least" if guardrail.is_better_when_higher else "limit"
    share = _percent(limit_share(guardrail))
    return (
        f"{what} {_percent(events / trials)} ({events:,} of {trials:,}), {bound} {share}",
        trials,
        events,
    )


def _against_control(look: _Look, ratio: RatioEstimate | None) -> Safety:
    """Return whether treatment is shown not to be worse than control by the gate's margin."""
    guardrail, test = look.guardrail, look.ratio
    at_gate = look.at_gate
    if at_gate is None:
        return Safety(Verdict.PASS, None, "no control at 100 %, not asked")
    if test is None or test.counts.n_t == 0 or test.counts.n_c == 0:
        return Safety(Verdict.NO_DATA, 0.0, "nothing to compare yet")
    log_safe = log_sum_exp(test.safe) - math.log(len(test.safe))
    goal = ratio_goal = -math.log(look.beta)
    if guardrail.metric == "error_rate":
        arm = look.totals.treatment
        negligible = limit_log_e_value(
            NEGLIGIBLE_ERROR_RATE, arm.at_risk, min(arm.first_errors, arm.at_risk), is_above=False
        )
        ratio_goal -= math.log1p(-NEGLIGIBLE_WEIGHT)
        log_safe = max(
            log_safe + math.log1p(-NEGLIGIBLE_WEIGHT), negligible + math.log(NEGLIGIBLE_WEIGHT)
        )
    said = f"{_place(guardrail, test)}{_both(guardrail, test.counts)}"
    bound = (
        f"below control's + {_points(at_gate)}"
        if guardrail.in_points
        else f"below {1 + at_gate:.2f} times control's"
    )
    if log_safe >= goal:
        return Safety(Verdict.PASS, log_safe, f"{said}: shown {bound}")
    n_t, k_t, n_c, k_c = test.counts
    share, rate = n_t / (n_t + n_c), (k_t + k_c + 0.5) / (n_t + n_c + 1)
    growth = (
        excess_growth(at_gate, share, rate)
        if guardrail.in_points
        else safe_growth(math.log1p(at_gate), share, rate)
    )
    missing = trials_until(test.safe, SAFE_LOG_WEIGHTS, growth, ratio_goal)
    unit = "control" if guardrail.is_better_when_higher else "treatment"
    if missing is None:
        outlook = "out of reach"
    else:
        outlook = (
            f"{_outlook(missing, unit, n_t, look.elapsed_seconds)} if it is as good as control"
        )
    if guardrail.quantile is None and ratio is not None and ratio.high is not None:
        worst = k_c / max(n_c, 1) * (ratio.high - 1)
        outlook = f"{outlook}; a harm above +{100 * worst:.2g} pp is excluded by now"
    return Safety(Verdict.INCONCLUSIVE, log_safe, f"{said}: not shown {bound} yet, {outlook}")


def _outlook(missing: int, arm: str, seen: int, elapsed_seconds: float) -> str:
    """Return how many more contexts it takes, and how long that is at the traffic so far."""
    said = f"about {missing:,} more {arm} contexts"
    if seen <= 0 or elapsed_seconds <= 0:
        return said
    seconds = missing * elapsed_seconds / seen
    for unit, length in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 1.5 * length or unit == "s":
            return f"{said}, {seconds / length:,.0f} {unit} at this traffic"
    raise AssertionError("seconds are the last unit")


def _quantiles(latencies: Mapping[Arm, Spread]) -> str:
    """Return both arms' latencies side by side, for people."""
    said = []
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        both = [
            (
                latencies[arm].every if latencies[arm].every.total else latencies[arm].tested
            ).quantile(q)
            for arm in _ARMS
        ]
        said.append(
            f"{name} "
            + " against ".join("nothing" if ms is None else f"{ms:.3g} ms" for ms in both)
        )
    return ", ".join(said)


def _place(guardrail: Guardrail, test: RatioTest | None) -> str:
    """Return where control's tail begins, to stand before what is said of a latency.

    Nothing for other metrics.
    """
    if guardrail.quantile is None or test is None or test.place is None:
        return ""
    return f"above control's {bucket_value(test.place):.3g} ms: "


def _both(guardrail: Guardrail, counts: Counts) -> str:
    n_t, k_t, n_c, k_c = counts.swapped() if guardrail.is_better_when_higher else counts
    rate_t, rate_c = k_t / max(n_t, 1), k_c / max(n_c, 1)
    return (
        f"{_percent(rate_t)} of treatment ({k_t:,} of {n_t:,}) against {_percent(rate_c)} of "
        f"control ({k_c:,} of {n_c:,})"
    )


# --- the arms


class _Arms(Mapping[Arm, ArmSummary]):
    """Both arms of the present visit, summed up when somebody reads them.

    Verdicts do not stand on them, their intervals cost a quarter of a look, and most looks lead to
    no decision that tells them.
    """

    def __init__(self, look: _Look) -> None:
        """Take what they are made of, which never changes."""
        self._look = look

    @cached_property
    def _summaries(self) -> dict[Arm, ArmSummary]:
        look = self._look
        if look.guardrail.quantile is None:
            return {
                arm: _share_arm(look.guardrail, look.totals.arm(arm), look.alpha) for arm in Arm
            }
        return {
            arm: _latency_arm(look.guardrail, look.ratio, look.latencies[arm], arm, look.alpha)
            for arm in Arm
        }

    def __getitem__(self, arm: Arm) -> ArmSummary:
        return self._summaries[arm]

    def __iter__(self) -> Iterator[Arm]:
        return iter(self._summaries)

    def __len__(self) -> int:
        return len(self._summaries)

    def __repr__(self) -> str:
        return repr(self._summaries)


def _share_arm(guardrail: Guardrail, arm: ArmTotals, alpha: float) -> ArmSummary:
    """Return an arm's share.

    Errors: estimate from raw requests, since that is what people see elsewhere; interval from
    contexts, whose errors are independent, carried over in proportion where a context had several.
    """
    if guardrail.is_better_when_higher:
        goal = guardrail.metric.removeprefix("conversion:")
        trials, events = arm.exposures, min(arm.converted.get(goal, 0), arm.exposures)
        if trials == 0:
            return ArmSummary(0, 0, None, None, None)
        low, high = rate_interval(events, trials, alpha)
        return ArmSummary(trials, events, events / trials, low, high)
    if arm.outcomes == 0:
        return ArmSummary(0, 0, None, None, None)
    errors = min(arm.errors, arm.outcomes)
    estimate = errors / arm.outcomes
    if arm.at_risk == 0:
        return ArmSummary(arm.outcomes, errors, estimate, 0.0, 1.0)
    first_errors = min(arm.first_errors, arm.at_risk)
    low, high = rate_interval(first_errors, arm.at_risk, alpha)
    repeats = estimate / (first_errors / arm.at_risk) if first_errors else 1.0
    return ArmSummary(
        arm.outcomes,
        errors,
        estimate,
        min(low * repeats, estimate),
        max(min(high * repeats, 1.0), estimate),
        repeats=errors / first_errors if first_errors else 1.0,
    )


def _latency_arm(
    guardrail: Guardrail, test: RatioTest | None, latency: Spread, arm: Arm, alpha: float
) -> ArmSummary:
    """Return an arm's quantile in ms.

    Estimate from every value, interval from one value per context and batch.

    Events are the values above the limit, or without one above the place of comparison.
    """
    q = guardrail.quantile
    if q is None or latency.every.total == 0:
        return ArmSummary(0, 0, None, None, None)
    estimate = latency.every.quantile(q)
    low, high = quantile_interval(latency.tested, q, alpha)
    if guardrail.limit is not None:
        place: int | None = limit_bucket(guardrail)
    elif test is not None and test.place is not None:
        place = test.place + (margin_buckets(guardrail.margin or 0) if arm is Arm.TREATMENT else 0)
    else:
        place = None
    return ArmSummary(
        trials=latency.every.total,
        events=0 if place is None else latency.every.above(place),
        estimate=estimate,
        low=low if low is None or estimate is None else min(low, estimate),
        high=high if high is None or estimate is None else max(high, estimate),
    )


def _points(difference: float) -> str:
    return f"{100 * difference:.3g} pp"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _number(value: float) -> str:
    return f"{value:,.0f}" if 10 <= value < 1e6 else f"{value:.3g}"
