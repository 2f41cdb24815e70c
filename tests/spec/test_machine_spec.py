"""What the architecture promises of the state machine, sentence by sentence.

Each test's docstring is the sentence.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pytest

from controller.core.effects import AnswerCommand, AskAdvice, PublishDecision, RaiseAlert
from controller.core.events import (
    AdviceReceived,
    AdviceUnavailable,
    CommandReceived,
    Event,
    EvidenceJudged,
    Restarted,
    Ticked,
)
from controller.core.machine import decide
from controller.core.plan import AdvisorPolicy
from controller.core.rollout import (
    AwaitingApproval,
    Baking,
    Completed,
    Freeze,
    Gating,
    Paused,
    RolledBack,
    Rollout,
)
from schemas.terms import (
    AdvisorMode,
    Approval,
    CommandStatus,
    CommandVerb,
    HoldReason,
    OnBreach,
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
    make_stages,
)
from tests.histories import GAPS

GATE = Gating(0, "gate-1", T0 + 11 * MINUTE, T0 + HOUR)
SOON = T0 + 12 * MINUTE


def judged(rollout: Rollout, **overrides: object) -> EvidenceJudged:
    """Return a judgement of the rollout's present visit."""
    return EvidenceJudged(make_judgement(at=SOON, visit=rollout.visit_index, **overrides))


def command(verb: CommandVerb, **overrides: object) -> CommandReceived:
    """Return a command that is issued when it is decided."""
    return make_command(verb, **{"issued_at": SOON, **overrides})


def gating(
    mode: AdvisorMode = AdvisorMode.OFF,
    approval: Approval = Approval.NOT_REQUIRED,
    **overrides: object,
) -> Rollout:
    """Return a rollout at its first gate."""
    plan = make_plan(
        stages=make_stages(10, 50, approval=approval),
        advisor=AdvisorPolicy(mode=mode, hold_rounds=2),
    )
    return make_rollout(plan=plan, phase=GATE, **overrides)


def run(rollout: Rollout, *events: Event, now: datetime = SOON) -> Rollout:
    """Return the rollout after these events, all decided at `now`."""
    for event in events:
        moved, _ = decide(rollout, event, now)
        assert moved is not None
        rollout = moved
    return rollout


def breachable() -> Iterator[Rollout]:
    """Yield rollouts in which something might stand before a roll back."""
    yield make_rollout()
    yield gating()
    yield run(gating(AdvisorMode.REQUIRED), judged(gating()))
    yield gating(freeze=Freeze(T0, "ada", "because"))
    yield make_rollout(phase=AwaitingApproval(0, "gate-1", T0, HoldReason.APPROVAL))
    yield make_rollout(phase=Paused(T0, HoldReason.OPERATOR, GATE))


# --- architecture, section 2: words ---


def test_s2_revision_grows_by_one_per_transition_not_per_batch_of_evidence() -> None:
    """`revision` grows by one per transition, not per batch of evidence."""
    rollout = make_rollout()
    assert run(rollout, *[judged(rollout)] * 5).revision == rollout.revision
    assert run(gating(), judged(gating())).revision == gating().revision + 1


def test_s2_a_breach_needs_no_gate_and_no_advice() -> None:
    """Breach: a guardrail regression found at any moment, during bake too.

    Needs no gate and no advice.
    """
    for rollout in breachable():
        assert run(rollout, judged(rollout, metrics=(make_breach(),))).percent == 0


def test_s2_a_freeze_advances_nothing_and_delays_no_rollback() -> None:
    """Freeze: nothing advances; never delays a rollback."""
    frozen = gating(freeze=Freeze(T0, "ada", "because"))
    assert run(frozen, judged(frozen)).percent == frozen.percent
    assert run(frozen, command(CommandVerb.ROLL_BACK)).percent == 0


def test_s2_pinned_when_it_starts() -> None:
    """Plan: the declared journey of one flag, pinned when the rollout starts."""
    rollout = make_rollout()
    other = make_plan(version="fedcba9876543210")
    assert run(rollout, command(CommandVerb.START, plan=other)).plan == rollout.plan


# --- architecture, section 4: deciding ---


def test_s4_roll_back_has_the_top_rows() -> None:
    """No advice, approval, freeze, pause or lag elsewhere stands before a roll back."""
    for rollout in breachable():
        lagging = judged(
            rollout, metrics=(make_breach(),), gaps=tuple(gap for seen in GAPS for gap in seen.gaps)
        )
        assert isinstance(run(rollout, lagging).phase, RolledBack)


def test_s4_after_an_outage_no_stage_approval_or_gate_is_skipped() -> None:
    """After the outage no stage, approval or gate is skipped.

    And bake is never shortened by a clock.
    """
    rollout = make_rollout(plan=make_plan(stages=make_stages(10, 50, approval=Approval.REQUIRED)))
    much_later = T0 + 1000 * HOUR
    woken = run(rollout, Restarted(), Ticked(), now=much_later)
    assert isinstance(woken.phase, Gating)
    assert woken.percent == rollout.percent
    assert isinstance(run(rollout, Ticked(), now=T0 - HOUR).phase, Baking)


# --- architecture, section 5: the gate ---


@pytest.mark.parametrize("seen", GAPS, ids=lambda seen: seen.gaps[0].kind)
def test_s5_1_silence_never_advances(seen: object) -> None:
    """Each gap has its own name and its own policy; silence never advances."""
    rollout = gating()
    moved = run(rollout, judged(rollout, gaps=seen.gaps))  # type: ignore[attr-defined]
    assert moved.percent <= rollout.percent
    assert moved.hold is HoldReason.HEALTH


@pytest.mark.parametrize("safe", [Verdict.INCONCLUSIVE, Verdict.NO_DATA])
def test_s5_2_a_gate_asks_for_shown_not_worse(safe: Verdict) -> None:
    """At the gate: is treatment shown not worse? That harm was not found is no pass."""
    rollout = gating()
    assert (
        run(rollout, judged(rollout, metrics=(make_report(safe=safe),))).percent == rollout.percent
    )


@pytest.mark.parametrize("mode", set(AdvisorMode) - {AdvisorMode.OFF})
def test_s5_3_advice_never_advances_a_failing_gate(mode: AdvisorMode) -> None:
    """It never advances a failing gate."""
    asked = run(gating(mode), judged(gating()))
    failing = judged(asked, metrics=(make_report(safe=Verdict.INCONCLUSIVE),))
    assert (
        run(asked, AdviceReceived("gate-1", 1, make_advice("proceed")), failing).percent
        == asked.percent
    )


@pytest.mark.parametrize("mode", set(AdvisorMode) - {AdvisorMode.OFF})
def test_s5_3_advice_never_rolls_back(mode: AdvisorMode) -> None:
    """It never rolls back by itself."""
    asked = run(gating(mode), judged(gating()))
    assert (
        run(asked, AdviceReceived("gate-1", 1, make_advice("roll_back")), judged(asked)).percent
        >= asked.percent
    )


def test_s5_3_observe_records_it() -> None:
    """`observe` records it: the decision carries the advice that it did not heed."""
    asked = run(gating(AdvisorMode.OBSERVE), judged(gating()))
    answered = run(asked, AdviceReceived("gate-1", 1, make_advice("hold")))
    moved, effects = decide(answered, judged(answered), SOON)
    assert moved is not None
    assert moved.percent == 50
    assert any(
        isinstance(effect, PublishDecision) and effect.advice == make_advice("hold")
        for effect in effects
    )


def test_s5_3_can_hold_lets_it_hold_a_bounded_number_of_rounds() -> None:
    """`can_hold` lets it hold a bounded number of rounds and then a person decides."""
    rollout = gating(AdvisorMode.CAN_HOLD)
    for number in (1, 2):
        at = SOON + number * 11 * MINUTE
        look = judged(rollout)
        rollout, effects = decide(rollout, look, at)  # type: ignore[assignment]
        assert [effect.round for effect in effects if isinstance(effect, AskAdvice)] == [number]
        rollout = run(rollout, AdviceReceived("gate-1", number, make_advice("hold")), look, now=at)
    assert isinstance(rollout.phase, AwaitingApproval)


@pytest.mark.parametrize(
    ("mode", "percent"), [(AdvisorMode.CAN_HOLD, 50), (AdvisorMode.REQUIRED, 10)]
)
def test_s5_3_no_advice(mode: AdvisorMode, percent: float) -> None:
    """Absent advice is `no advice`.

    Under `can_hold` the statistics decide alone, `required` needs its `proceed`.
    """
    asked = run(gating(mode), judged(gating()))
    assert run(asked, AdviceUnavailable("gate-1", 1, "away"), judged(asked)).percent == percent


def test_s5_4_people_are_asked_last() -> None:
    """`approval: required` is asked for last, when everything else has passed.

    And is bound to the revision seen.
    """
    rollout = gating(approval=Approval.REQUIRED)
    undecided = judged(rollout, metrics=(make_report(safe=Verdict.INCONCLUSIVE),))
    assert isinstance(run(rollout, undecided).phase, Gating)
    asked = run(rollout, judged(rollout))
    assert isinstance(asked.phase, AwaitingApproval)
    for expected, percent in ((None, 10), (asked.revision - 1, 10), (asked.revision, 50)):
        assert (
            run(asked, command(CommandVerb.APPROVE, expected_revision=expected)).percent == percent
        )


# --- the main job, item 6: commands ---


@pytest.mark.parametrize("verb", CommandVerb)
def test_i2_6_one_result_per_command(verb: CommandVerb) -> None:
    """One result per id, with the revision after it."""
    moved, effects = decide(gating(), command(verb, plan=make_plan()), SOON)
    (answer,) = (effect for effect in effects if isinstance(effect, AnswerCommand))
    assert moved is not None
    assert answer.revision == moved.revision


@pytest.mark.parametrize("verb", [CommandVerb.PAUSE, CommandVerb.ROLL_BACK, CommandVerb.ABORT])
def test_i2_6_pause_roll_back_and_abort_always_work(verb: CommandVerb) -> None:
    """A stale revision is rejected except for `pause`, `roll_back` and `abort`.

    Which always work.
    """
    stale = command(verb, expected_revision=99, issued_at=T0 - 23 * HOUR)
    for rollout in (*breachable(), make_rollout(phase=Completed(T0))):
        answer = decide(rollout, stale, SOON)[1][-1]
        assert isinstance(answer, AnswerCommand)
        assert answer.status is CommandStatus.ACCEPTED


def test_i2_7_an_alert_says_what_to_do() -> None:
    """Alerts carry severity, kind, dedup key, and harm accounting.

    One dedup key for what one page is enough for.
    """
    rollout = make_rollout()
    keys = set()
    for policy in OnBreach:
        _, effects = decide(
            rollout, judged(rollout, metrics=(make_breach(on_breach=policy),)), SOON
        )
        (alert,) = (effect for effect in effects if isinstance(effect, RaiseAlert))
        assert alert.action
        assert alert.judgement is not None
        keys.add((alert.kind, alert.dedup_key))
    assert len({key for _, key in keys}) == len({kind for kind, _ in keys})
