"""What a person is told about a rollout."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controller.cli.situation import Safe, Situation, about, clock, moment
from controller.codec.decisions import to_judgement_record
from controller.core.judging.judgement import Judgement
from controller.core.plan import FreezeWindow
from controller.core.rollout import (
    AdviceRound,
    AwaitingApproval,
    Baking,
    Completed,
    Freeze,
    Gating,
    Paused,
    Phase,
    RolledBack,
    Rollout,
    Scheduled,
)
from schemas.advice import AdviceRecord
from schemas.decision import Decision, PlanReference
from schemas.terms import DecisionKind, HoldReason
from tests.builders import HOUR, MINUTE, T0, make_advice, make_judgement, make_plan, make_rollout

BAKING = Baking(0, T0 + 11 * MINUTE)
GATING = Gating(0, "gate-1", T0, T0 + HOUR)


def advised(revision: int, choice: str, gate_id: str, **overrides: object) -> Decision:
    """Return a hold at a gate that a model had advised on."""
    advice = AdviceRecord.model_validate(make_advice(choice), from_attributes=True)
    return make_decision("r", revision=revision).model_copy(
        update={"advice": advice, "gate_id": gate_id, **overrides}
    )


def test_advice_so_far_and_at_the_end() -> None:
    """The last word at each gate counts.

    Once the evidence has ended the rollout, it is held against how it ended.
    """
    gates = [
        advised(2, "hold", "g-1"),
        advised(3, "proceed", "g-1"),
        advised(4, "proceed", "g-2"),
        advised(5, "hold", "g-3"),
    ]
    so_far = make_situation(make_rollout(), *gates)
    assert list(so_far.advised) == ["proceed", "proceed", "hold"]
    assert so_far.advice_agreement is None
    completed = make_decision("done", revision=6).model_copy(update={"kind": DecisionKind.COMPLETE})
    assert make_situation(make_rollout(), *gates, completed).advice_agreement == (2, 3)
    back = completed.model_copy(update={"kind": DecisionKind.ROLL_BACK})
    assert make_situation(make_rollout(), *gates, back).advice_agreement == (1, 3)
    by_hand = back.model_copy(update={"issuer": "ada"})
    assert make_situation(make_rollout(), *gates, by_hand).advice_agreement is None
    assert make_situation(make_rollout(), completed).advice_agreement is None


def make_situation(
    rollout: Rollout, *decisions: Decision, now: datetime = T0 + MINUTE
) -> Situation:
    """Return where a rollout stands a minute after `T0`."""
    return Situation(rollout, decisions, now)


def make_decision(
    reason: str,
    *,
    revision: int = 1,
    judgement: Judgement | None = None,
    rollout_id: str = "start-1",
) -> Decision:
    """Return a hold."""
    return Decision(
        flag="new-checkout",
        rollout_id=rollout_id,
        revision=revision,
        at=T0,
        kind=DecisionKind.HOLD,
        reason=reason,
        issuer="rolloutd",
        phase=GATING.name,
        stage=0,
        from_percent=10,
        to_percent=10,
        plan=PlanReference(name="three-steps", version="0"),
        gate_id=None,
        command_id=None,
        judgement=None if judgement is None else to_judgement_record(judgement),
        advice=None,
    )


@pytest.mark.parametrize(
    ("phase", "hold", "answer", "words"),
    [
        (Scheduled(T0 + HOUR), None, Safe.NOT_YET, "the start at 10:00:00 UTC (in 59m)"),
        (BAKING, None, Safe.NOT_YET, "the bake to end at 09:11:00 UTC (in 10m)"),
        (GATING, None, Safe.NOT_YET, "being judged"),
        (GATING, HoldReason.INCONCLUSIVE, Safe.NOT_YET, "not enough evidence"),
        (GATING, HoldReason.HEALTH, Safe.NOT_YET, "cannot be judged"),
        (GATING, HoldReason.SIGNAL, Safe.NO, "a signal regressed"),
        (GATING, HoldReason.ADVISOR, Safe.NO, "advises to hold"),
        (
            AwaitingApproval(0, "gate-1", T0, HoldReason.APPROVAL),
            HoldReason.APPROVAL,
            Safe.YES,
            "approving revision 1",
        ),
        (
            AwaitingApproval(0, "gate-1", T0, HoldReason.ADVISOR),
            HoldReason.ADVISOR,
            Safe.NO,
            "model held",
        ),
        (
            Paused(T0, HoldReason.BREACH, GATING),
            HoldReason.BREACH,
            Safe.NO,
            "a guardrail was breached",
        ),
        (RolledBack(T0, "errors"), None, Safe.ENDED, "rolled back: errors"),
        (Completed(T0), None, Safe.ENDED, "completed"),
    ],
)
def test_one_answer_says_whether_it_is_safe_to_advance(
    phase: Phase, hold: HoldReason | None, answer: Safe, words: str
) -> None:
    """Each phase and hold has one answer and says why.

    Only a passed gate that asks for approval is a yes.
    """
    said, why = make_situation(make_rollout(phase=phase, hold=hold)).safe_to_advance
    assert (said, words in why) == (answer, True), why


@pytest.mark.parametrize("hold", HoldReason)
def test_every_hold_reason_has_words(hold: HoldReason) -> None:
    """No hold is told by its name alone."""
    said = make_situation(make_rollout(phase=GATING, hold=hold)).hold
    assert said is not None
    assert " " in said or said == "frozen"


def test_a_hold_is_told_with_the_numbers_of_its_decision() -> None:
    """The decision of the same revision says why.

    One of another revision would explain another hold.
    """
    rollout = make_rollout(phase=GATING, hold=HoldReason.INCONCLUSIVE, revision=3)
    about_it = make_decision("about 800 more treatment contexts", revision=3)
    assert (
        make_situation(rollout, about_it).hold
        == "not enough evidence yet: about 800 more treatment contexts"
    )
    assert make_situation(rollout, replace_revision(about_it, 2)).hold == "not enough evidence yet"


def replace_revision(decision: Decision, revision: int) -> Decision:
    """Return the decision as of another revision."""
    return decision.model_copy(update={"revision": revision})


def test_evidence_is_that_of_the_present_stay() -> None:
    """Decisions about an earlier stay or another rollout are no evidence for this one.

    Later ones without do not hide it.
    """
    rollout = make_rollout(phase=Baking(1, T0 + 3 * HOUR))
    here = make_decision("here", judgement=make_judgement(visit=1))
    before = make_decision("before", judgement=make_judgement(visit=0))
    other = make_decision("other", judgement=make_judgement(visit=1), rollout_id="start-0")
    silent = make_decision("a pause by hand")
    assert make_situation(rollout, other, before, here, silent).judged_by is here
    assert make_situation(rollout, other, before, silent).judgement is None


def test_an_operators_freeze_says_who_and_why_and_that_nothing_may_advance() -> None:
    """A freeze is a no whatever the gate says, and names who can be asked."""
    asked = AwaitingApproval(0, "gate-1", T0, HoldReason.APPROVAL)
    one = make_situation(make_rollout(phase=asked, freeze=Freeze(T0, "ada", "incident 7")))
    answer, why = one.safe_to_advance
    assert answer is Safe.NO
    assert why == "frozen by ada at 09:00:00 UTC (1m ago): incident 7"
    assert one.waits_for == "unfreeze, then approval"


def test_a_freeze_window_says_when_it_ends() -> None:
    """The end of the window is told."""
    window = FreezeWindow(frozenset({1}), 9 * 60, 120, "UTC")
    one = make_situation(make_rollout(plan=make_plan(freeze_windows=(window,)), phase=GATING))
    assert one.safe_to_advance == (
        Safe.NO,
        "in a freeze window that ends at 11:00:00 UTC (in 1h 59m)",
    )


def test_a_bake_goes_on_while_frozen() -> None:
    """Frozen or not, what a baking stage waits for first is the end of its bake."""
    one = make_situation(make_rollout(freeze=Freeze(T0, "ada", "")))
    assert one.waits_for == "the bake to end at 09:11:00 UTC (in 10m)"


def test_a_deadline_that_nobody_acted_on_is_overdue() -> None:
    """A bake that ended long ago without a gate says that nobody is at work.

    A paused rollout has no deadline.
    """
    late = T0 + HOUR
    assert "is rolloutd running?" in (make_situation(make_rollout(), now=late).overdue or "")
    assert (
        make_situation(make_rollout(), now=T0 + 11 * MINUTE + timedelta(seconds=5)).overdue is None
    )
    assert (
        make_situation(
            make_rollout(phase=Paused(T0, HoldReason.OPERATOR, BAKING)), now=late
        ).overdue
        is None
    )


def test_open_advice_is_waited_for_until_its_deadline() -> None:
    """A gate with an open question waits for the model, and says how long at most."""
    gate = replace(GATING, advice=AdviceRound(1, T0 + 2 * MINUTE))
    assert (
        make_situation(make_rollout(phase=gate)).waits_for
        == "the model's advice, at most until 09:02:00 UTC"
    )


def test_moments_are_told_in_utc_with_their_distance() -> None:
    """Today's moments go without a date, others with it; distances have two units."""
    assert moment(T0 + MINUTE, T0) == "at 09:01:00 UTC (in 1m)"
    assert moment(T0 - 26 * HOUR, T0) == "at 2026-01-04 07:00 UTC (1d 2h ago)"
    assert clock(T0, T0) == "09:00:00 UTC"
    assert about(timedelta(days=1, hours=2, minutes=3)) == "1d 2h"
    assert about(timedelta(seconds=-1)) == "0s"
