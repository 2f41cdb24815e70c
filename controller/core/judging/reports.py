"""From a guardrail's tests to its report: both verdicts, both arms, and one sentence with numbers.

Sentences do not name their metric: whoever shows them has put it in front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from controller.core.analysis.change_point import as_e_value, log_sum_exp, mean_log_effect
from controller.core.analysis.latency import Ordered
from controller.core.analysis.proportion import (
    SAFE_LOG_WEIGHTS,
    RatioEstimate,
    excess_growth,
    harm_alternatives,
    limit_alternatives,
    limit_growth,
    limit_increment,
    limit_log_e_value,
    ratio_estimate,
    safe_growth,
    trials_until,
)
from controller.core.analysis.sequential_tests import (
    FloorTest,
    LimitTest,
    RatioTest,
    SequentialTests,
)
from controller.core.evidence import VisitTotals
from controller.core.judging.guardrail_inputs import Arms, GuardrailInputs
from controller.core.judging.judgement import MetricReport, difference
from controller.core.judging.questions import (
    MIN_HARM_RATIO,
    MIN_HARMED,
    NEGLIGIBLE_WEIGHT,
    gate_bound,
    gate_margin,
    limit_share,
    log_tolerated,
    worst_left,
)
from controller.core.metrics.kind import ArmSummary, share_words
from controller.core.plan import Guardrail
from schemas.terms import Arm, Verdict


@dataclass(frozen=True, slots=True)
class HarmAnswer:
    """One question's evidence of harm, and whether it counts."""

    log_harm: float  # log e-value
    veto: str | None  # why it does not count although it is evidence
    words: str  # what was found


@dataclass(frozen=True, slots=True)
class SafetyAnswer:
    """One question's answer on whether treatment is shown to be no worse."""

    verdict: Verdict
    log_e_value: float | None  # None: not a question at this stage
    words: str


def report(
    guardrail: Guardrail,
    number: int,
    tests: SequentialTests,
    totals: VisitTotals,
    latencies: Mapping[Arm, Ordered],
    *,
    percent: float,
    elapsed_seconds: float,
    alpha_share: float,
    alpha: float,
    beta: float,
) -> MetricReport:
    """Return one guardrail's report for a stage at `percent`, counting for `elapsed_seconds`.

    `alpha_share` is its part of `alpha`; intervals are at `alpha`. Evidence of harm is the whole
    rollout's, everything else the present visit's.
    """
    test = tests.ratios.get(number)
    has_control = percent < 100
    is_compared = guardrail.margin is not None and has_control
    inputs = GuardrailInputs(
        guardrail=guardrail,
        limit=tests.limits.get(number),
        floor=tests.floors.get(number),
        ratio=test,
        totals=totals,
        latencies=latencies,
        elapsed_seconds=elapsed_seconds,
        alpha=alpha,
        beta=beta,
        gate_margin=gate_margin(guardrail, percent) if is_compared else None,
    )
    ratio = ratio_estimate(test.curve, alpha) if test is not None and has_control else None
    estimate, low, high = (None, None, None) if ratio is None else ratio
    arms = Arms(inputs)
    answers = _safety_answers(inputs, ratio, arms)
    threshold = 1 / (alpha * alpha_share)
    e_value = harm_e_value(guardrail, number, tests)
    harm, safe, reason = _verdicts(inputs, answers, e_value, threshold)
    log_safes = [answer.log_e_value for answer in answers if answer.log_e_value is not None]
    return MetricReport(
        metric=guardrail.metric,
        role=guardrail.role,
        on_breach=guardrail.on_breach,
        harm=harm,
        safe=safe,
        arms=arms,
        e_value=e_value,
        threshold=threshold,
        e_value_safe=as_e_value(min(log_safes)) if log_safes else None,
        threshold_safe=1 / beta if log_safes else None,
        margin=guardrail.margin,
        in_points=guardrail.in_points,
        limit=guardrail.limit,
        reason=reason,
        gate_margin=inputs.gate_margin,
        ratio=estimate,
        ratio_low=low,
        ratio_high=high,
    )


def _verdicts(
    inputs: GuardrailInputs, answers: list[SafetyAnswer], e_value: float, threshold: float
) -> tuple[Verdict, Verdict, str]:
    """Return the verdict on harm, the verdict on safety, and the sentence."""
    verdicts = [answer.verdict for answer in answers]
    # What is not compared at 100 % is no question, so it is no data either.
    asked = [answer.verdict for answer in answers if answer.log_e_value is not None]
    has_data = any(verdict is not Verdict.NO_DATA for verdict in asked)
    has_data = has_data or (not asked and inputs.observed().trials > 0)
    harm = Verdict.INCONCLUSIVE if has_data else Verdict.NO_DATA
    reason = "; ".join(answer.words for answer in answers)
    if e_value < threshold:
        return harm, _worst(verdicts), reason
    harms = _harm_answers(inputs)
    counting = [answer for answer in harms if answer.veto is None]
    if sum(as_e_value(answer.log_harm) for answer in counting) / len(harms) < threshold:
        veto = next(answer.veto for answer in harms if answer.veto is not None)
        reason = f"{reason}; harm would be certain but does not count: {veto}"
        return harm, _worst(verdicts), reason
    culprit = max(counting, key=lambda answer: answer.log_harm)
    reason = f"{culprit.words}; e-value {_number(e_value)} against {_number(threshold)}"
    # What is found harmful is not shown safe, whatever an earlier stage had shown.
    return Verdict.FAIL, Verdict.FAIL, reason


def harm_e_value(guardrail: Guardrail, number: int, tests: SequentialTests) -> float:
    """Return the e-value of harm: the mean over the guardrail's questions."""
    e_values = []
    if guardrail.limit is not None:
        test = tests.floors.get(number) if guardrail.has_floor else tests.limits.get(number)
        e_values.append(as_e_value(_log_limit_harm(guardrail, test)))
    if guardrail.margin is not None:
        e_values.append(as_e_value(_log_comparison_harm(guardrail, tests.ratios.get(number))))
    return sum(e_values) / len(e_values)


def _log_limit_harm(guardrail: Guardrail, test: LimitTest | FloorTest | None) -> float:
    if test is None:
        return 0.0
    is_above = not guardrail.has_floor
    weights = limit_alternatives(limit_share(guardrail), is_above=is_above)[2].log_weights
    return test.log_e_value(weights)


def _log_comparison_harm(guardrail: Guardrail, test: RatioTest | None) -> float:
    if test is None:
        return 0.0
    weights = guardrail.kind.harm_log_weights(log_tolerated(guardrail))
    return test.bets.log_e_value(weights)


def _worst(verdicts: list[Verdict]) -> Verdict:
    for verdict in (Verdict.NO_DATA, Verdict.INCONCLUSIVE):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS


# --- is it worse


def _harm_answers(inputs: GuardrailInputs) -> list[HarmAnswer]:
    """Return each question's evidence of harm, in the order of `harm_e_value`'s."""
    answers = []
    if inputs.guardrail.limit is not None:
        answers.append(_below_floor(inputs) if inputs.floor is not None else _over_limit(inputs))
    if inputs.guardrail.margin is not None:
        answers.append(_worse_than_control(inputs))
    return answers


def _over_limit(inputs: GuardrailInputs) -> HarmAnswer:
    trials, events = inputs.observed()
    # The tests search for a beginning too: what broke a minute ago is found although the stage's
    # own average is still within the limit.
    is_over = bool(trials) and events / trials > limit_share(inputs.guardrail)
    words = f"{_limit_words(inputs)}: over the limit"
    if not is_over and inputs.limit is not None:
        words = _recent_words(inputs, inputs.limit)
    harmed = 0 if inputs.limit is None else inputs.limit.harmed
    doubt = inputs.guardrail.kind.limit_doubt(
        inputs.guardrail.limit or 0.0, inputs.latencies[Arm.CONTROL]
    )
    return HarmAnswer(
        _log_limit_harm(inputs.guardrail, inputs.limit),
        doubt or _too_few(harmed),
        words,
    )


def _recent_words(inputs: GuardrailInputs, test: LimitTest) -> str:
    """Return what breached the limit a while ago although the whole stage's share is within it."""
    guardrail, (trials, events), (of, bad) = inputs.guardrail, inputs.observed(), test.recent
    what = guardrail.kind.limit_words(guardrail.limit or 0.0)
    stage = f"; {share_words(events / trials)} over the whole stage" if trials else ""
    return (
        f"{share_words(bad / max(of, 1))} of the last {of:,} {guardrail.kind.unit_words} {what} "
        f"({bad:,}), "
        f"limit {share_words(limit_share(guardrail))}{stage}"
    )


def _below_floor(inputs: GuardrailInputs) -> HarmAnswer:
    guardrail, test = inputs.guardrail, inputs.floor
    veto = None
    if test is None or test.trials == 0:
        trials = events = 0
        veto = "no user has had its time to convert yet"
    else:
        trials, events = test.trials, test.events
        if not test.is_reported:
            veto = "no user of either arm has converted: is the conversion reported?"
    words = guardrail.kind.limit_words(guardrail.limit or 0.0)
    minutes = guardrail.within.total_seconds() / 60
    return HarmAnswer(
        _log_limit_harm(guardrail, test),
        veto,
        f"{words}: {share_words(events / max(trials, 1))} ({events:,} of {trials:,} users exposed "
        f"{minutes:g} min ago or earlier), at least {share_words(limit_share(guardrail))}: "
        "below it",
    )


def _worse_than_control(inputs: GuardrailInputs) -> HarmAnswer:
    guardrail, test = inputs.guardrail, inputs.ratio
    log_harm = _log_comparison_harm(guardrail, test)
    if test is None:
        return HarmAnswer(log_harm, _too_few(0), "worse than control")
    veto = _too_few(test.harmed)
    if (words := guardrail.kind.harm_words(inputs.latencies)) is not None:
        return HarmAnswer(log_harm, veto, words)
    alternatives = harm_alternatives(log_tolerated(guardrail))
    effect = math.exp(
        mean_log_effect(test.bets.evidence, alternatives.log_weights, alternatives.log_effects)
    )
    if veto is None and effect < MIN_HARM_RATIO and not guardrail.in_points:
        least = share_words(MIN_HARM_RATIO - 1)
        veto = f"it is about {share_words(effect - 1)} worse, less than {least}"
    than = "control" if not guardrail.in_points else f"control + {_points(guardrail.margin or 0)}"
    return HarmAnswer(
        log_harm,
        veto,
        # Of the time of harm alone, so it is not the ratio of the stage's two rates.
        f"treatment is about {effect:.2f} times as bad as {than}, as estimated since the harm "
        f"began; in this stage {_both(inputs, test)}",
    )


def _too_few(harmed: int) -> str | None:
    """Return the veto of too few bad events, None when they are enough."""
    if harmed >= MIN_HARMED:
        return None
    return f"only {harmed} bad events in treatment, {MIN_HARMED} are asked for"


# --- is it shown not to be worse


def _safety_answers(
    inputs: GuardrailInputs, ratio: RatioEstimate | None, arms: Mapping[Arm, ArmSummary]
) -> list[SafetyAnswer]:
    """Return each question's answer on safety."""
    answers = []
    if inputs.guardrail.limit is not None:
        answers.append(_against_limit(inputs))
    if inputs.guardrail.margin is not None:
        answers.append(_against_control(inputs, ratio, arms))
    return answers


def _against_limit(inputs: GuardrailInputs) -> SafetyAnswer:
    """Return whether treatment is shown to be within its limit."""
    share, is_floor = limit_share(inputs.guardrail), inputs.guardrail.kind.is_better_when_higher
    words = _limit_words(inputs)
    trials, events = inputs.observed()
    if trials == 0:
        return SafetyAnswer(Verdict.NO_DATA, 0.0, f"nothing measured yet, {words}")
    increment = limit_increment(share, trials, events, is_above=is_floor)
    log_weights = limit_alternatives(share, is_above=is_floor)[2].log_weights
    log_safe, threshold = log_sum_exp(log_weights + increment), -math.log(inputs.beta)
    if log_safe >= threshold:
        return SafetyAnswer(Verdict.PASS, log_safe, f"confirmed: {words}")
    # One trial at the limit is added: a sample within the limit stays within, however small.
    growth = limit_growth(share, (events + share) / (trials + 1), is_above=is_floor)
    missing = trials_until(increment, log_weights, growth, threshold)
    outlook = (
        "not at this rate" if missing is None else _outlook(inputs, missing, "treatment", trials)
    )
    return SafetyAnswer(Verdict.INCONCLUSIVE, log_safe, f"not confirmed yet: {words}; {outlook}")


def _limit_words(inputs: GuardrailInputs) -> str:
    """Return both counts and the limit in words; without data the limit alone."""
    kind, (trials, events) = inputs.guardrail.kind, inputs.observed()
    share = share_words(limit_share(inputs.guardrail))
    what = kind.limit_words(inputs.guardrail.limit or 0.0)
    if trials == 0:
        return kind.bound_words(inputs.guardrail.limit or 0.0, share)
    limit = f"{'at least' if kind.is_better_when_higher else 'limit'} {share}"
    return (
        f"{share_words(events / trials)} of treatment's {kind.unit_words} {what} "
        f"({events:,} of {trials:,}), {limit}"
    )


def _against_control(
    inputs: GuardrailInputs, ratio: RatioEstimate | None, arms: Mapping[Arm, ArmSummary]
) -> SafetyAnswer:
    """Return whether treatment is shown not to be worse than control by the gate's margin."""
    guardrail, test, margin = inputs.guardrail, inputs.ratio, inputs.gate_margin
    if margin is None:
        return SafetyAnswer(Verdict.PASS, None, "not compared: no control at 100 %")
    if test is None or test.counts.n_t == 0 or test.counts.n_c == 0:
        return SafetyAnswer(Verdict.NO_DATA, 0.0, "nothing to compare yet")
    log_safe = log_sum_exp(test.safe) - math.log(len(test.safe))
    threshold = ratio_threshold = -math.log(inputs.beta)
    if (negligible := guardrail.kind.negligible_rate) is not None:
        log_negligible = limit_log_e_value(negligible, *inputs.observed(), is_above=False)
        ratio_threshold -= math.log1p(-NEGLIGIBLE_WEIGHT)
        log_safe = max(
            log_safe + math.log1p(-NEGLIGIBLE_WEIGHT), log_negligible + math.log(NEGLIGIBLE_WEIGHT)
        )
    words = _both(inputs, test)
    side = "above" if guardrail.kind.is_better_when_higher else "below"
    limit = gate_bound(guardrail.kind, margin, in_points=guardrail.in_points)
    bound = f"{side} the gate's margin ({limit})"
    if log_safe >= threshold:
        return SafetyAnswer(Verdict.PASS, log_safe, f"confirmed {bound}: {words}")
    outlook = _comparison_outlook(inputs, test, margin, ratio_threshold)
    high = ratio.high if ratio else None
    if (worst := worst_left(guardrail, high, lambda: difference(arms)[1])) is not None:
        outlook = f"{outlook}; anything worse than {worst} is ruled out already"
    return SafetyAnswer(
        Verdict.INCONCLUSIVE, log_safe, f"not confirmed {bound} yet: {words}; {outlook}"
    )


def _comparison_outlook(
    inputs: GuardrailInputs, test: RatioTest, margin: float, log_threshold: float
) -> str:
    """Return how far a comparison is from showing safety, if treatment is as good as control."""
    n_t, k_t, n_c, k_c = test.counts
    share, rate = n_t / (n_t + n_c), (k_t + k_c + 0.5) / (n_t + n_c + 1)
    growth = (
        excess_growth(margin, share, rate)
        if inputs.guardrail.in_points
        else safe_growth(math.log1p(margin), share, rate)
    )
    missing = trials_until(test.safe, SAFE_LOG_WEIGHTS, growth, log_threshold)
    until_negligible = _until_negligible(inputs)
    if until_negligible is not None and (missing is None or until_negligible < missing):
        return f"{_outlook(inputs, until_negligible, 'treatment', n_t)} if it goes on so"
    if missing is None:
        return "out of reach"
    if inputs.guardrail.kind.is_better_when_higher:
        # Where a fall is the harm, the counts have the arms exchanged. And each batch counts
        # everyone who has not converted so far, so that there are more observations than users.
        users = inputs.guardrail.kind.observed(
            inputs.totals.control, inputs.latencies[Arm.CONTROL], None
        ).trials
        missing = math.ceil(missing * users / n_t)
        return f"{_outlook(inputs, missing, 'control', users)} if it is as good as control"
    return f"{_outlook(inputs, missing, 'treatment', n_t)} if it is as good as control"


def _until_negligible(inputs: GuardrailInputs) -> int | None:
    """Return how many more observations of treatment at its rate show that it is negligible.

    None where the metric has no such rate, or treatment's is above it.
    """
    share = inputs.guardrail.kind.negligible_rate
    trials, events = inputs.observed()
    if share is None:
        return None
    growth = limit_growth(share, (events + share) / (trials + 1), is_above=False)
    log_weights = limit_alternatives(share, is_above=False)[2].log_weights
    evidence = limit_increment(share, trials, events, is_above=False)
    log_threshold = -math.log(inputs.beta * NEGLIGIBLE_WEIGHT)
    return trials_until(evidence, log_weights, growth, log_threshold)


def _outlook(inputs: GuardrailInputs, missing: int, arm: str, counted: int) -> str:
    """Return how many more observations it takes, and how long at the traffic so far."""
    words = f"about {missing:,} more {inputs.guardrail.kind.unit_words} in {arm}"
    if counted <= 0 or inputs.elapsed_seconds <= 0:
        return words
    seconds = missing * inputs.elapsed_seconds / counted
    for unit, length in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 1.5 * length or unit == "s":
            return f"{words} ({seconds / length:,.0f} {unit} at this traffic)"
    raise AssertionError("seconds are the last unit")


def _both(inputs: GuardrailInputs, test: RatioTest) -> str:
    """Return both arms' rates side by side.

    A test takes whole batches, so the newest events are in the arms' totals only. Where both are of
    the same kind the totals are shown, as in the table and in the sentence about the limit. A
    latency's place was another one in each batch, so only the test has its counts.
    """
    kind = inputs.guardrail.kind
    n_t, k_t, n_c, k_c = test.counts
    if kind.is_share:
        n_t, k_t = kind.observed(inputs.totals.treatment, inputs.latencies[Arm.TREATMENT], None)
        n_c, k_c = kind.observed(inputs.totals.control, inputs.latencies[Arm.CONTROL], None)
    rate_t, rate_c = k_t / max(n_t, 1), k_c / max(n_c, 1)
    return (
        f"{kind.place_words(test.place, inputs.guardrail.margin or 0.0)}"
        f"{share_words(rate_t)} of treatment's {kind.unit_words} "
        f"({k_t:,} of {n_t:,}) against {share_words(rate_c)} of control's ({k_c:,} of {n_c:,})"
    )


def _points(difference: float) -> str:
    return f"{100 * difference:.3g} pp"


def _number(value: float) -> str:
    return f"{value:,.0f}" if 10 <= value < 1e6 else f"{value:.3g}"
