"""Each row of `decide`, each command in each phase, each deadline.

Whole rollouts are in `tests/scenarios`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controller.core.audience import Audience, Condition
from controller.core.judging.judgement import Gap
from controller.core.machine import decide, is_frozen, next_deadline
from controller.core.plan import DEFAULT_GAP_POLICIES, AdvisorPolicy, FreezeWindow
from controller.core.rollout import (
    Aborted,
    AdviceReceived,
    AdviceRound,
    AdviceUnavailable,
    AnswerCommand,
    AskAdvice,
    AwaitingApproval,
    Baking,
    CommandReceived,
    Completed,
    Effect,
    Event,
    EvidenceJudged,
    Freeze,
    Gating,
    Paused,
    Phase,
    PublishDecision,
    RaiseAlert,
    Restarted,
    RolledBack,
    Rollout,
    Scheduled,
    Ticked,
)
from schemas.terms import (
    AdvisorMode,
    AlertKind,
    CommandStatus,
    CommandVerb,
    DecisionKind,
    FlagType,
    GapPolicy,
    HealthGap,
    HoldReason,
    MetricRole,
    OnBreach,
    Operator,
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
    make_judgement,
    make_plan,
    make_report,
    make_rollout,
    make_stage,
    make_stages,
)

SECOND = timedelta(seconds=1)
SOON = T0 + 2 * MINUTE
ADVISED = AdvisorPolicy(
    mode=AdvisorMode.CAN_HOLD, deadline=30 * SECOND, hold_rounds=2, hold_for=5 * MINUTE
)
GATE = Gating(0, "gate-1", T0, T0 + HOUR)
ASKED = replace(GATE, advice=AdviceRound(1, T0 + 30 * SECOND))
FROZEN = Freeze(T0, "ada", "because")

PHASES: dict[PhaseName, Phase] = {
    PhaseName.SCHEDULED: Scheduled(T0 + HOUR),
    PhaseName.BAKING: Baking(1, T0 + HOUR),
    PhaseName.GATING: Gating(1, "gate-1", T0, T0 + HOUR),
    PhaseName.AWAITING_APPROVAL: AwaitingApproval(1, "gate-1", T0, HoldReason.APPROVAL),
    PhaseName.PAUSED: Paused(T0, HoldReason.OPERATOR, Baking(1, T0 + HOUR)),
    PhaseName.COMPLETED: Completed(T0),
    PhaseName.ROLLED_BACK: RolledBack(T0, "because"),
    PhaseName.ABORTED: Aborted(T0, "because"),
}


def in_phase(name: PhaseName, **overrides: object) -> Rollout:
    """Return a rollout of two stages in the second of them, in this phase."""
    return make_rollout(
        plan=make_plan(stages=make_stages(10, 50)), phase=PHASES[name], updated_at=T0, **overrides
    )


def after(rollout: Rollout | None, event: Event, now: datetime = SOON) -> Rollout:
    """Return the rollout after an event."""
    moved, _ = decide(rollout, event, now)
    assert moved is not None
    return moved


def judged(**overrides: object) -> EvidenceJudged:
    """Return a judgement of the present visit of `make_rollout`'s first stage."""
    return EvidenceJudged(make_judgement(**{"at": SOON, **overrides}))


# --- before the first start
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event", [Ticked(), Restarted(), judged(), AdviceUnavailable("gate-1", 1, "away")]
)
def test_a_flag_never_started_is_moved_by_nothing(event: Event) -> None:
    """Without a rollout only a command means anything."""
    assert decide(None, event, SOON) == (None, ())


@pytest.mark.parametrize("verb", set(CommandVerb) - {CommandVerb.START})
def test_a_flag_never_started_rejects_all_but_start(verb: CommandVerb) -> None:
    """Every other command is answered, at revision 0."""
    rollout, effects = decide(None, make_command(verb, plan=make_plan()), SOON)
    assert rollout is None
    (answer,) = effects
    assert isinstance(answer, AnswerCommand)
    assert (answer.status, answer.revision) == (CommandStatus.REJECTED, 0)


def test_a_start_enters_the_first_stage() -> None:
    """The rollout has the command's id, revision 1, the first percentage.

    And bakes from the end of settle.
    """
    rollout, effects = decide(None, make_command(CommandVerb.START, plan=make_plan()), T0)
    assert rollout is not None
    assert (rollout.rollout_id, rollout.revision, rollout.percent) == ("command-1", 1, 10.0)
    assert rollout.phase == Baking(0, T0 + 11 * MINUTE)
    assert rollout.visits[0].counts_from == T0 + MINUTE
    assert [type(effect) for effect in effects] == [PublishDecision, AnswerCommand]


def test_a_start_without_a_plan_is_rejected() -> None:
    """There is nothing to begin."""
    assert decide(None, make_command(CommandVerb.START), SOON)[0] is None


# --- commands by phase
# --------------------------------------------------------------------------------------------------

#: What each accepted command leads to; every pair that is not here is rejected and changes nothing.
LEADS_TO: dict[tuple[PhaseName, CommandVerb], PhaseName] = {
    **{
        (phase, CommandVerb.ROLL_BACK): PhaseName.ROLLED_BACK
        for phase in PhaseName
        if phase is not PhaseName.ABORTED
    },
    **{
        (phase, CommandVerb.ABORT): PhaseName.ABORTED
        for phase in PhaseName
        if phase is not PhaseName.ROLLED_BACK
    },
    **{(phase, CommandVerb.PAUSE): PhaseName.PAUSED for phase in list(PhaseName)[:5]},
    **{(phase, CommandVerb.PAUSE): phase for phase in list(PhaseName)[5:]},
    **{(phase, CommandVerb.FREEZE): phase for phase in list(PhaseName)[:5]},
    **{(phase, CommandVerb.STEP_BACK): PhaseName.BAKING for phase in list(PhaseName)[1:4]},
    **{
        (phase, verb): PhaseName.COMPLETED
        for phase in list(PhaseName)[1:5]
        for verb in (CommandVerb.PROMOTE, CommandVerb.PROMOTE_FULL)
    },
    **{
        (phase, verb): PhaseName.BAKING
        for phase in list(PhaseName)[5:]
        for verb in (CommandVerb.START, CommandVerb.RESTART)
    },
    (PhaseName.ABORTED, CommandVerb.ROLL_BACK): PhaseName.ABORTED,
    (PhaseName.ROLLED_BACK, CommandVerb.ABORT): PhaseName.ROLLED_BACK,
    (PhaseName.SCHEDULED, CommandVerb.PROMOTE): PhaseName.BAKING,
    (PhaseName.SCHEDULED, CommandVerb.PROMOTE_FULL): PhaseName.BAKING,
    (PhaseName.PAUSED, CommandVerb.RESUME): PhaseName.BAKING,
    (PhaseName.PAUSED, CommandVerb.STEP_BACK): PhaseName.PAUSED,
    (PhaseName.AWAITING_APPROVAL, CommandVerb.APPROVE): PhaseName.COMPLETED,
    (PhaseName.AWAITING_APPROVAL, CommandVerb.REJECT): PhaseName.PAUSED,
}


@pytest.mark.parametrize("verb", CommandVerb)
@pytest.mark.parametrize("phase", PhaseName)
def test_what_a_command_does_in_a_phase(phase: PhaseName, verb: CommandVerb) -> None:
    """In each phase a command leads where the table says, with one answer.

    What is not in it is rejected and inert.
    """
    before = in_phase(phase)
    rollout, effects = decide(
        before,
        make_command(verb, expected_revision=1, plan=make_plan(stages=make_stages(10, 50))),
        SOON,
    )
    answer = effects[-1]
    assert isinstance(answer, AnswerCommand)
    if (phase, verb) in LEADS_TO:
        assert rollout is not None
        assert (answer.status, rollout.phase.name) == (
            CommandStatus.ACCEPTED,
            LEADS_TO[phase, verb],
        )
    else:
        assert (answer.status, rollout) == (CommandStatus.REJECTED, before)


@pytest.mark.parametrize("phase", list(PhaseName)[:5])
@pytest.mark.parametrize("verb", CommandVerb)
def test_a_stale_revision_is_rejected_except_where_it_lowers_or_holds(
    phase: PhaseName, verb: CommandVerb
) -> None:
    """Whoever saw another revision does nothing, unless it is pause, roll back or abort."""
    command = make_command(verb, expected_revision=7, plan=make_plan())
    _, effects = decide(in_phase(phase), command, SOON)
    answer = effects[-1]
    assert isinstance(answer, AnswerCommand)
    is_safe = verb in (CommandVerb.PAUSE, CommandVerb.ROLL_BACK, CommandVerb.ABORT)
    assert (answer.status is CommandStatus.ACCEPTED) == is_safe


@pytest.mark.parametrize(
    ("age", "is_accepted"), [(10 * MINUTE, True), (10 * MINUTE + SECOND, False), (-HOUR, True)]
)
def test_a_raising_command_is_too_old_after_ten_minutes(age: timedelta, is_accepted: bool) -> None:
    """Exactly ten minutes is young enough; an issuer whose clock runs ahead is believed."""
    at = T0 + HOUR
    _, effects = decide(
        in_phase(PhaseName.BAKING), make_command(CommandVerb.PROMOTE, issued_at=at - age), at
    )
    assert (
        any(
            isinstance(effect, AnswerCommand) and effect.status is CommandStatus.ACCEPTED
            for effect in effects
        )
        == is_accepted
    )


def test_a_fresh_command_is_fresh_whatever_another_replica_s_clock_said() -> None:
    """After a replica whose clock ran an hour ahead, operators are not locked out for an hour."""
    ahead = replace(in_phase(PhaseName.BAKING), updated_at=T0 + HOUR)
    promote = make_command(CommandVerb.PROMOTE, issued_at=T0)
    assert after(ahead, promote, T0).phase == Completed(T0 + HOUR)


def test_who_and_why_stand_in_the_decision() -> None:
    """A command's decision names its issuer, reason, id, and the percentages before and after."""
    _, effects = decide(in_phase(PhaseName.BAKING), make_command(CommandVerb.STEP_BACK), SOON)
    decision = effects[0]
    assert isinstance(decision, PublishDecision)
    assert (decision.kind, decision.issuer, decision.reason) == (
        DecisionKind.STEP_BACK,
        "ada",
        "because",
    )
    assert (decision.command_id, decision.from_percent, decision.to_percent) == (
        "command-1",
        50.0,
        10.0,
    )


def test_the_next_rollout_s_revision_goes_on() -> None:
    """A flag's revision never falls, over all its rollouts."""
    ended = replace(in_phase(PhaseName.ABORTED), revision=41)
    started = after(ended, make_command(CommandVerb.RESTART, command_id="restart-1"))
    assert (started.revision, started.rollout_id, started.plan) == (42, "restart-1", ended.plan)


# --- breach
# --------------------------------------------------------------------------------------------------


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


# --- health
# --------------------------------------------------------------------------------------------------


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
    gaps = tuple(
        Gap(kind, "for a test")
        for kind in (HealthGap.NO_OUTCOMES, HealthGap.STALE, HealthGap.TAINTED)
    )
    assert isinstance(after(rollout, judged(gaps=gaps)).phase, RolledBack)
    assert isinstance(after(rollout, judged(gaps=gaps[:2])).phase, Paused)
    assert after(rollout, judged(gaps=gaps[:1])).hold is HoldReason.HEALTH


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


def test_evidence_of_an_earlier_stay_passes_no_gate() -> None:
    """A look that began before the stage was entered says nothing of it."""
    rollout = make_rollout(phase=replace(GATE, stage=1))
    assert after(rollout, judged(visit=0), T0 + 2 * HOUR).percent == 50


# --- holds
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (make_report(safe=Verdict.INCONCLUSIVE), HoldReason.INCONCLUSIVE),
        (make_report(safe=Verdict.NO_DATA), HoldReason.HEALTH),
        (make_report(safe=Verdict.ERROR), HoldReason.FAILING),
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


# --- the gate's time
# --------------------------------------------------------------------------------------------------


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


def test_a_bake_ends_at_its_end() -> None:
    """A tick a microsecond early changes nothing."""
    rollout = make_rollout()
    assert after(rollout, Ticked(), T0 + 11 * MINUTE - timedelta(microseconds=1)) is rollout


# --- advice
# --------------------------------------------------------------------------------------------------


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


# --- deadlines
# --------------------------------------------------------------------------------------------------

_WEEKEND = FreezeWindow(frozenset({6, 7}), 0, 24 * 60, "UTC")
_SATURDAY, _MONDAY = T0.replace(hour=0) + timedelta(days=5), T0.replace(hour=0) + timedelta(days=7)


@pytest.mark.parametrize(
    ("phase", "deadline"),
    [
        (Scheduled(T0 + HOUR), T0 + HOUR),
        (Scheduled(_SATURDAY), _MONDAY),
        (Scheduled(T0 - HOUR), T0),
        (Baking(0, T0 + HOUR), T0 + HOUR),
        (Baking(0, _SATURDAY), _SATURDAY),  # gathering evidence is no advance
        (GATE, T0 + HOUR),
        (replace(GATE, until=_SATURDAY), _MONDAY),
        (ASKED, T0 + 30 * SECOND),
        (replace(ASKED, until=T0 + SECOND), T0 + SECOND),
        (AwaitingApproval(0, "gate-1", T0, HoldReason.APPROVAL), None),
        (Paused(T0, HoldReason.OPERATOR, GATE), None),
        (Completed(T0), None),
        (RolledBack(T0, "because"), None),
        (Aborted(T0, "because"), None),
    ],
)
def test_when_a_phase_wants_to_be_woken(phase: Phase, deadline: datetime | None) -> None:
    """Each phase that waits for time says until when, freezes considered."""
    rollout = make_rollout(plan=make_plan(freeze_windows=(_WEEKEND,)), phase=phase, updated_at=T0)
    assert next_deadline(rollout) == deadline


@pytest.mark.parametrize(
    ("phase", "is_woken"),
    [
        (Scheduled(T0 + HOUR), True),
        (Baking(0, T0 + HOUR), True),
        (GATE, True),
        (AwaitingApproval(0, "gate-1", T0, HoldReason.APPROVAL), True),
        (Paused(T0, HoldReason.OPERATOR, GATE), False),
        (Completed(T0), False),
    ],
)
def test_whatever_waits_is_woken_when_its_plan_expires(phase: Phase, is_woken: bool) -> None:
    """Expiry is a deadline of everything that could still go on."""
    rollout = make_rollout(
        plan=make_plan(expires_at=T0 + MINUTE), phase=phase, freeze=FROZEN, updated_at=T0
    )
    assert next_deadline(rollout) == (T0 + MINUTE if is_woken else None)
    if is_woken:
        assert isinstance(phase, Scheduled | Baking | Gating | AwaitingApproval)
        paused = after(rollout, Ticked(), T0 + MINUTE)
        assert (paused.phase, paused.hold) == (
            Paused(T0 + MINUTE, HoldReason.EXPIRED, phase),
            HoldReason.EXPIRED,
        )


def test_an_operator_s_freeze_has_no_deadline() -> None:
    """Only unfreeze ends it; the bake goes on under it."""
    for phase in (Scheduled(T0 + HOUR), GATE):
        assert next_deadline(make_rollout(phase=phase, freeze=FROZEN)) is None
    assert next_deadline(make_rollout(freeze=FROZEN)) is not None


def test_frozen_by_an_operator_or_by_the_calendar() -> None:
    """Either is a freeze."""
    assert is_frozen(make_rollout(freeze=FROZEN), T0)
    assert is_frozen(make_rollout(plan=make_plan(freeze_windows=(_WEEKEND,))), _SATURDAY)
    assert not is_frozen(make_rollout(plan=make_plan(freeze_windows=(_WEEKEND,))), T0)


def test_unfreezing_a_gate_gives_it_its_time_again() -> None:
    """It could not close while frozen, so that time is not counted against it; one transition."""
    rollout = make_rollout(phase=GATE, freeze=FROZEN, hold=HoldReason.FROZEN)
    later = T0 + timedelta(days=3)
    thawed = after(rollout, make_command(CommandVerb.UNFREEZE, issued_at=later), later)
    assert isinstance(thawed.phase, Gating)
    assert (thawed.phase.until, thawed.freeze, thawed.hold) == (later + 50 * MINUTE, None, None)
    assert thawed.revision == rollout.revision + 1


# --- pausing
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "resumed"),
    [
        (Scheduled(T0 + HOUR), Scheduled(T0 + 5 * HOUR)),
        (Scheduled(T0 + 9 * HOUR), Scheduled(T0 + 9 * HOUR)),
        (Baking(0, T0 + 3 * HOUR), Baking(0, T0 + 7 * HOUR)),  # two hours were left
        (Baking(0, T0), Baking(0, T0 + 5 * HOUR)),
        (GATE, Baking(0, T0 + 5 * HOUR)),
        (AwaitingApproval(0, "gate-1", T0, HoldReason.APPROVAL), Baking(0, T0 + 5 * HOUR)),
    ],
)
def test_a_resume_owes_what_was_left(held: Phase, resumed: Phase) -> None:
    """Paused after one hour and resumed after five.

    Bake that was left is still owed, and a gate is opened anew.
    """
    assert isinstance(held, Scheduled | Baking | Gating | AwaitingApproval)
    rollout = make_rollout(phase=Paused(T0 + HOUR, HoldReason.OPERATOR, held))
    resumed_at = T0 + 5 * HOUR
    moved = after(rollout, make_command(CommandVerb.RESUME, issued_at=resumed_at), resumed_at)
    assert (moved.phase, moved.hold) == (resumed, None)


def test_a_clock_set_back_does_not_turn_time_back() -> None:
    """A transition is never older than the one before it."""
    rollout = replace(make_rollout(), updated_at=T0 + HOUR)
    paused = after(rollout, make_command(CommandVerb.PAUSE, issued_at=T0), T0)
    expected = Paused(T0 + HOUR, HoldReason.OPERATOR, rollout.phase)  # type: ignore[arg-type]
    assert (paused.updated_at, paused.phase) == (T0 + HOUR, expected)


@pytest.mark.parametrize("flag_type", FlagType)
def test_completion_says_what_is_left_to_do_by_the_flags_type(flag_type: FlagType) -> None:
    """A release leaves the code; an ops flag stays, and its kill switch works on long after."""
    plan = make_plan(stages=make_stages(100), flag_type=flag_type)
    gate = Gating(0, "gate-1", T0, T0 + HOUR)
    completed, effects = decide(
        make_rollout(plan=plan, phase=gate), EvidenceJudged(make_judgement()), T0 + MINUTE
    )
    assert completed is not None
    assert isinstance(completed.phase, Completed)
    (told,) = (effect for effect in effects if isinstance(effect, RaiseAlert))
    assert ("remove the flag" in told.action) == (
        flag_type in (FlagType.RELEASE, FlagType.EXPERIMENT)
    )
    killed, _ = decide(
        completed, make_command(CommandVerb.ROLL_BACK, reason="kill switch"), T0 + 24 * HOUR
    )
    assert killed is not None
    assert (killed.percent, type(killed.phase)) == (0, RolledBack)


def test_what_is_told_of_an_audience_names_it() -> None:
    """All of staff is not everybody: who is paged must not think so."""
    staff = Audience("staff", ((Condition("staff", Operator.EQ, (True,)),),))
    plan = make_plan(
        stages=(make_stage(percent=100.0, audience="staff"), make_stage(percent=1.0)),
        audiences=(staff,),
    )
    seen = make_judgement(metrics=(make_breach(),))
    _, effects = decide(make_rollout(plan=plan), EvidenceJudged(seen), T0 + MINUTE)
    (told,) = (effect for effect in effects if isinstance(effect, RaiseAlert))
    assert "rolled back from 100 % of staff to 0 %" in told.summary


# --- orders for another time
# ------------------------------------------------------------------------------------------


LATER = T0 + 5 * HOUR


def issued(verb: CommandVerb, ago: timedelta, **overrides: object) -> CommandReceived:
    """Return a command that was issued so long before `LATER`."""
    return make_command(verb, issued_at=LATER - ago, **overrides)


@pytest.mark.parametrize(
    "verb", [CommandVerb.ROLL_BACK, CommandVerb.ABORT, CommandVerb.PAUSE, CommandVerb.STEP_BACK]
)
@pytest.mark.parametrize("phase", [None, Completed(T0 + HOUR)])
def test_an_order_read_again_lowers_no_later_rollout(
    verb: CommandVerb, phase: Completed | None
) -> None:
    """Issued before the rollout began and in the log before we read there.

    Rejected, and it says for which one it was.
    """
    rollout = make_rollout(phase=phase, percent=10.0)
    assert (
        status(decide(rollout, issued(verb, timedelta(hours=5, minutes=6), is_backlog=True), LATER))
        is CommandStatus.REJECTED
    )
    order = issued(verb, timedelta(hours=5, minutes=6), is_backlog=True)
    after, effects = decide(rollout, order, LATER)
    assert after is rollout
    assert isinstance(effects[-1], AnswerCommand)
    assert "before this rollout began at 2026-01-05T09:00:00" in effects[-1].reason


@pytest.mark.parametrize(
    ("ago", "overrides"),
    [
        (
            timedelta(hours=4),
            {"is_backlog": True},
        ),  # during the rollout: an outage of hours makes it no less an order
        (timedelta(hours=5, minutes=4), {"is_backlog": True}),  # clocks differ by minutes
        (timedelta(hours=23), {}),  # sent just now by a clock that is slow by nearly a day
        (
            timedelta(days=40),
            {"expected_revision": 1, "is_backlog": True},
        ),  # whoever names the revision has seen it
    ],
)
def test_an_order_for_this_rollout_lowers_it_late_and_by_a_slow_clock(
    ago: timedelta, overrides: dict[str, object]
) -> None:
    """An operator with a slow clock is heard: 0 % is served."""
    after, effects = decide(make_rollout(), issued(CommandVerb.ROLL_BACK, ago, **overrides), LATER)
    assert after is not None
    assert after.percent == 0
    assert status((after, effects)) is CommandStatus.ACCEPTED


def test_an_order_of_more_than_a_day_ago_is_none_for_now() -> None:
    """Whatever was read again after a day lowers nothing, also in the rollout it was for."""
    rollout = make_rollout(started_at=T0 - 90 * HOUR)
    assert (
        status(decide(rollout, issued(CommandVerb.ROLL_BACK, timedelta(hours=25)), LATER))
        is CommandStatus.REJECTED
    )
    assert (
        status(decide(rollout, issued(CommandVerb.ROLL_BACK, timedelta(hours=23)), LATER))
        is CommandStatus.ACCEPTED
    )


def status(outcome: tuple[Rollout | None, tuple[Effect, ...]]) -> CommandStatus:
    """Return how the command was answered."""
    (answer,) = (effect for effect in outcome[1] if isinstance(effect, AnswerCommand))
    return answer.status
