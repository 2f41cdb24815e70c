"""What evidence and advice do: breaches, gaps, holds, the gate and its questions to the model."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from controller.core.analysis.sequential_tests import GapTime
from controller.core.effects import AnswerCommand, AskAdvice, PublishDecision, RaiseAlert
from controller.core.events import AdviceReceived, AdviceUnavailable, Restarted, Ticked
from controller.core.judging.judgement import Gap
from controller.core.machine import decide
from controller.core.machine.obstacles import MOST_CLIMBS, MOST_VISITS
from controller.core.plan import DEFAULT_GAP_POLICIES, AdvisorPolicy
from controller.core.rollout import AdviceRound, Baking, Gating, Paused, Phase, RolledBack, Rollout
from schemas.terms import (
    AdvisorMode,
    AlertKind,
    CommandVerb,
    GapPolicy,
    HealthGap,
    HoldReason,
    MetricRole,
    OnBreach,
    PhaseName,
    Severity,
    Verdict,
)
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_advice,
    make_breach,
    make_command,
    make_plan,
    make_report,
    make_rollout,
    make_stages,
)
from tests.unit.core.machine.states import (
    ADVISED,
    GATE,
    PHASES,
    SECOND,
    SOON,
    after,
    in_phase,
    judged,
)

# --- breach ---


def test_the_harshest_of_several_breaches_counts() -> None:
    """Two guardrails regress, one of them rolls back: rolled back."""
    metrics = (make_breach(on_breach=OnBreach.PAUSE), make_breach(metric="latency_p99"))
    assert isinstance(after(make_rollout(), judged(metrics=metrics)).phase, RolledBack)


@pytest.mark.parametrize("role", [MetricRole.SIGNAL, MetricRole.OBSERVE])
def test_only_guardrails_breach(role: MetricRole) -> None:
    """A regressed signal or observed metric rolls nothing back."""
    rollout = make_rollout()
    assert after(rollout, judged(metrics=(make_breach(role=role),))) is rollout


@pytest.mark.parametrize(
    "phase", [PhaseName.SCHEDULED, PhaseName.COMPLETED, PhaseName.ROLLED_BACK, PhaseName.ABORTED]
)
def test_where_nothing_is_watched_a_breach_is_nobody_s(phase: PhaseName) -> None:
    """Before the start and after the end evidence changes nothing."""
    rollout = in_phase(phase)
    assert decide(rollout, judged(metrics=(make_breach(),)), SOON) == (rollout, ())


def test_a_breach_tells_what_it_cost() -> None:
    """Decision and alert carry the judgement with the harm, and the alert is critical."""
    event = judged(metrics=(make_breach(),))
    _, (decision, alert) = decide(make_rollout(), event, SOON)
    assert isinstance(decision, PublishDecision)
    assert isinstance(alert, RaiseAlert)
    assert decision.judgement is alert.judgement is event.judgement
    assert (alert.kind, alert.severity) == (AlertKind.ROLLED_BACK, Severity.CRITICAL)
    assert alert.dedup_key == "new-checkout/start-1/1/rolled_back"


# --- health ---


def with_policies(**policies: GapPolicy) -> Rollout:
    """Return a rollout at its first gate under these gap policies."""
    gaps = {
        **DEFAULT_GAP_POLICIES,
        **{HealthGap(name): policy for name, policy in policies.items()},
    }
    return make_rollout(plan=make_plan(gap_policies=gaps), phase=GATE)


def test_the_harshest_of_several_gaps_counts() -> None:
    """One gap asks to wait, one to pause, one to roll back, in this order: rolled back."""
    rollout = with_policies(tainted=GapPolicy.ROLL_BACK, stale=GapPolicy.PAUSE)
    kinds = (HealthGap.NO_OUTCOMES, HealthGap.STALE, HealthGap.TAINTED)
    gaps = tuple(Gap(kind, "for a test") for kind in kinds)
    times = dict.fromkeys(kinds, GapTime(lasted=300))
    assert isinstance(after(rollout, judged(gaps=gaps, gap_times=times)).phase, RolledBack)
    assert isinstance(after(rollout, judged(gaps=gaps[:2], gap_times=times)).phase, Paused)
    assert after(rollout, judged(gaps=gaps[:1], gap_times=times)).hold is HoldReason.HEALTH


def test_a_treatment_that_went_missing_rolls_back_from_everywhere() -> None:
    """It may have crashed before it could report.

    A plan that would only pause rolls back, also while paused.
    """
    gap = (Gap(HealthGap.SRM, "treatment is away", treatment_missing=True),)
    for phase in (Baking(0, T0 + HOUR), GATE, Paused(T0, HoldReason.OPERATOR, GATE)):
        assert isinstance(after(make_rollout(phase=phase), judged(gaps=gap)).phase, RolledBack)


def test_a_broken_split_that_may_wait_waits_in_the_bake() -> None:
    """With policy `wait` it is a reason to hold at the gate and nothing before."""
    gap = (Gap(HealthGap.SRM, "for a test"),)
    plan = make_plan(gap_policies={**DEFAULT_GAP_POLICIES, HealthGap.SRM: GapPolicy.WAIT})
    baking = make_rollout(plan=plan)
    assert after(baking, judged(gaps=gap)) is baking
    assert after(make_rollout(plan=plan, phase=GATE), judged(gaps=gap)).hold is HoldReason.HEALTH


def test_evidence_of_an_earlier_visit_passes_no_gate() -> None:
    """A look that began before the stage was entered says nothing of it."""
    rollout = make_rollout(phase=replace(GATE, stage=1))
    assert after(rollout, judged(visit=0), T0 + 2 * HOUR).percent == 50


# --- holds ---


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (make_report(safe=Verdict.INCONCLUSIVE), HoldReason.INCONCLUSIVE),
        (make_report(safe=Verdict.NO_DATA), HoldReason.HEALTH),
        (make_report(role=MetricRole.SIGNAL, harm=Verdict.FAIL), HoldReason.SIGNAL),
    ],
)
def test_a_gate_that_does_not_pass_says_why(metric: object, reason: HoldReason) -> None:
    """Each verdict short of a pass holds for its own reason."""
    held = after(make_rollout(phase=GATE), judged(metrics=(metric,)))
    assert (held.phase, held.hold, held.revision) == (GATE, reason, 2)


def test_a_hold_is_said_once_and_another_reason_after_a_minute() -> None:
    """Evidence on the edge between two reasons does not flood the audit log."""
    undecided, silent = (
        (make_report(safe=Verdict.INCONCLUSIVE),),
        (make_report(safe=Verdict.NO_DATA),),
    )
    held = after(make_rollout(phase=GATE), judged(metrics=undecided))
    at = held.updated_at
    assert after(held, judged(metrics=undecided), at + 20 * MINUTE) is held
    assert after(held, judged(metrics=silent), at + 59 * SECOND) is held
    assert after(held, judged(metrics=silent), at + MINUTE).hold is HoldReason.HEALTH


# --- the gate's time ---


@pytest.mark.parametrize(
    ("max_bake", "policy", "minutes"),
    [
        (HOUR, AdvisorPolicy(mode=AdvisorMode.OFF), 50),
        (10 * MINUTE, AdvisorPolicy(mode=AdvisorMode.OFF), 0),
        (10 * MINUTE, ADVISED, 11),  # twice 30 s and 5 min
        (HOUR, ADVISED, 50),
    ],
)
def test_a_gate_has_what_max_bake_leaves_and_time_for_every_round(
    max_bake: timedelta, policy: AdvisorPolicy, minutes: int
) -> None:
    """The gate's deadline is max_bake after the end of settle, or later if advice needs it."""
    plan = make_plan(stages=make_stages(10, 50, max_bake=max_bake), advisor=policy)
    gate = after(make_rollout(plan=plan), Ticked(), T0 + 11 * MINUTE).phase
    assert isinstance(gate, Gating)
    assert (gate.since, gate.until) == (T0 + 11 * MINUTE, T0 + (11 + minutes) * MINUTE)


def test_without_a_model_a_gate_has_what_max_bake_leaves_and_asks_nobody() -> None:
    """Advice that nobody can give is not waited for, and not missed in the decision."""
    plan = make_plan(stages=make_stages(10, 50, max_bake=11 * MINUTE), advisor=ADVISED)
    rollout = make_rollout(plan=plan, has_advisor=False)
    gating = after(rollout, Ticked(), T0 + 11 * MINUTE)
    assert isinstance(gating.phase, Gating)
    assert gating.phase.until == T0 + 12 * MINUTE
    passed, effects = decide(gating, judged(), T0 + 11 * MINUTE + SECOND)
    assert passed is not None
    assert passed.percent == 50
    (decision,) = [effect for effect in effects if isinstance(effect, PublishDecision)]
    assert decision.reason == "the gate has passed"
    paused = after(gating, Ticked(), T0 + 12 * MINUTE)
    assert (paused.phase.name, paused.hold) == (PhaseName.PAUSED, HoldReason.MAX_BAKE)


def test_a_model_that_is_removed_is_no_longer_waited_for() -> None:
    """A gate whose question is open passes by the statistics; required advice still holds it."""
    without = replace(asked(), has_advisor=False)
    assert after(without, judged(), T0 + SECOND).percent == 50
    required = replace(ADVISED, mode=AdvisorMode.REQUIRED)
    still = replace(without, plan=make_plan(advisor=required))
    assert after(still, judged(), T0 + SECOND) is still


@pytest.mark.parametrize("verb", [CommandVerb.START, CommandVerb.RESTART])
def test_required_advice_without_a_model_is_refused_at_the_start(verb: CommandVerb) -> None:
    """The rollout would wait at its first gate for a person, which nobody expects then."""
    plan = make_plan(advisor=AdvisorPolicy(mode=AdvisorMode.REQUIRED))
    command = make_command(verb, plan=plan, has_advisor=False)
    ended = make_rollout(plan=plan, phase=RolledBack(T0, "because"))
    for before in (None, ended) if verb is CommandVerb.START else (ended,):
        rollout, effects = decide(before, command, T0 + MINUTE)
        assert rollout is before
        (answer,) = effects
        assert isinstance(answer, AnswerCommand)
        assert "set advisor.url, or write `advisor: {mode: can_hold}`" in answer.reason


def test_a_bake_ends_at_its_end() -> None:
    """A tick a microsecond early changes nothing."""
    rollout = make_rollout()
    assert after(rollout, Ticked(), T0 + 11 * MINUTE - timedelta(microseconds=1)) is rollout


# --- advice ---


def asked(number: int = 1) -> Rollout:
    """Return a rollout whose model was asked."""
    return make_rollout(
        plan=make_plan(advisor=ADVISED),
        phase=replace(GATE, advice=AdviceRound(number, T0 + 30 * SECOND)),
        updated_at=T0,
    )


@pytest.mark.parametrize(("gate_id", "number"), [("gate-0", 1), ("gate-1", 0), ("gate-1", 2)])
def test_an_answer_to_another_question_is_nobody_s(gate_id: str, number: int) -> None:
    """Gate and round must be those that are open."""
    rollout = asked()
    assert after(rollout, AdviceReceived(gate_id, number, make_advice()), T0 + SECOND) is rollout
    assert after(rollout, AdviceUnavailable(gate_id, number, "away"), T0 + SECOND) is rollout


def test_an_answer_at_the_deadline_is_late() -> None:
    """From its deadline on, a round has no advice, however it is answered."""
    closed = after(
        asked(), AdviceReceived("gate-1", 1, make_advice("hold")), T0 + 30 * SECOND
    ).phase
    assert isinstance(closed, Gating)
    assert closed.advice == AdviceRound(1, T0 + 30 * SECOND, None, is_closed=True)


def test_the_next_round_is_told_what_the_last_one_said() -> None:
    """A question carries the answer of the round before it."""
    advice = make_advice("hold")
    held = AdviceRound(1, T0, advice, is_closed=True, held_until=T0 + MINUTE)
    rollout = make_rollout(plan=make_plan(advisor=ADVISED), phase=replace(GATE, advice=held))
    _, (question,) = decide(rollout, judged(), T0 + MINUTE)
    assert isinstance(question, AskAdvice)
    assert (question.round, question.earlier, question.until) == (
        2,
        advice,
        T0 + MINUTE + 30 * SECOND,
    )


@pytest.mark.parametrize("number", [1, 2])
def test_a_restart_asks_an_open_question_again_as_the_same_round(number: int) -> None:
    """No round is lost or gained by a change of process."""
    restarted = after(asked(number), Restarted(), T0 + SECOND)
    _, (question,) = decide(restarted, judged(), T0 + 2 * SECOND)
    assert isinstance(question, AskAdvice)
    assert question.round == number


@pytest.mark.parametrize(
    "phase", [phase for phase in PHASES.values() if not isinstance(phase, Gating)]
)
def test_a_restart_moves_nothing_else(phase: Phase) -> None:
    """A process that takes a flag over changes nothing by that."""
    rollout = make_rollout(plan=make_plan(stages=make_stages(10, 50)), phase=phase)
    assert decide(rollout, Restarted(), T0 + 900 * HOUR) == (rollout, ())


# --- up and down ---


def test_a_rollout_that_goes_up_and_down_by_itself_pauses_and_tells() -> None:
    """Steps back by a breach and advances by a gate take turns: not for ever."""
    plan = make_plan(stages=make_stages(10, 50, 100))
    rollout, now = make_rollout(plan=plan, phase=GATE), SOON
    breach = make_breach(on_breach=OnBreach.STEP_BACK)
    for _ in range(MOST_CLIMBS):
        now += 2 * HOUR
        gated = replace(rollout, phase=replace(GATE, since=now, until=now + HOUR))
        moved = after(gated, judged(at=now, visit=gated.visit_index), now)
        assert moved.percent == 50
        evidence = judged(metrics=(breach,), at=now, visit=moved.visit_index)
        rollout = after(moved, evidence, now)
        assert rollout.percent == 10
    now += 2 * HOUR
    gated = replace(rollout, phase=replace(GATE, since=now, until=now + HOUR))
    passed = judged(at=now, visit=gated.visit_index)
    moved, effects = after(gated, passed, now), decide(gated, passed, now).effects
    assert moved.hold is HoldReason.OSCILLATES
    (alert,) = [each for each in effects if isinstance(each, RaiseAlert)]
    assert (alert.kind, alert.severity) == (AlertKind.PAUSED, Severity.WARNING)
    assert "went up to stage 50% 5 times and came down again each time" in alert.summary
    assert "promote, roll back or abort" in alert.action
    promote = make_command(CommandVerb.PROMOTE, issued_at=now)
    assert after(moved, promote, now).percent == 50


def test_no_gate_adds_a_visit_past_the_bound() -> None:
    """Commands have added 200 visits: then a gate pauses, so that the document stays small."""
    rollout = make_rollout(phase=GATE)
    full = replace(rollout, visits=rollout.visits * MOST_VISITS)
    moved = after(full, judged(visit=full.visit_index))
    assert (moved.hold, len(moved.visits)) == (HoldReason.OSCILLATES, MOST_VISITS)
