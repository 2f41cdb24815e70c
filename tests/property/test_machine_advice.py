"""I6: what advice may do to a rollout, on whole histories: it can only make it more careful."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controller.core.effects import AskAdvice, PublishDecision
from controller.core.events import (
    AdviceReceived,
    AdviceUnavailable,
    CommandReceived,
    Event,
    EvidenceJudged,
)
from controller.core.invariants import Step, without_advice
from controller.core.judging.judgement import Judgement
from controller.core.machine import decide
from controller.core.plan import AdvisorPolicy
from controller.core.rollout import Gating, Rollout
from schemas.terms import AdvisorMode, CommandVerb, HoldReason, Verdict
from tests.histories import (
    APPROVED,
    BREACHES,
    CAN_HOLD,
    NIGHTLY,
    OBSERVED,
    OPEN,
    PASSING,
    REQUIRED,
    Alphabet,
)
from tests.property.history_checks import (
    MANY,
    VERY_MANY,
    invariant,
    visible,
)

pytestmark = pytest.mark.property


@invariant(VERY_MANY)
def test_i6_no_step_is_higher_with_advice_than_without(steps: Iterator[Step]) -> None:
    """From every state, any advice leads at most as high as none, and a breach just as low."""
    for step in steps:
        if (
            step.before is None
            or step.after is None
            or step.before.rollout_id != step.after.rollout_id
        ):
            continue
        plain, effects = decide(without_advice(step.before), step.event, step.now)
        assert plain is not None
        assert step.after.percent <= plain.percent
        if isinstance(step.event, EvidenceJudged) and step.event.judgement.breach is not None:
            assert without_advice(step.after) == plain
            assert [strip(effect) for effect in step.effects] == [
                strip(effect) for effect in effects
            ]


def strip(effect: object) -> object:
    """Return a decision without the advice that stands in it."""
    return replace(effect, advice=None) if isinstance(effect, PublishDecision) else effect


# : Who is ahead may complete, be restarted, step back, time out or ask a person sooner: what
# depends on that, and what the : person says, is left to the test above.
_NEVER = timedelta(days=400)
COMPARABLE = Alphabet(
    plans=tuple(
        replace(
            plan,
            stages=tuple(replace(stage, max_bake=_NEVER) for stage in plan.stages),
            expires_at=None,
        )
        for plan in (CAN_HOLD, REQUIRED, APPROVED, OBSERVED, NIGHTLY)
    ),
    judgements=(
        *PASSING,
        *(one for one in OPEN if one.statistics is not Verdict.FAIL),
        *BREACHES[:2],
    ),
    verbs=(
        CommandVerb.PROMOTE,
        CommandVerb.PAUSE,
        CommandVerb.RESUME,
        CommandVerb.FREEZE,
        CommandVerb.UNFREEZE,
        CommandVerb.PROMOTE_FULL,
        CommandVerb.START,
    ),
    jumps_back=False,
    is_untidy=False,
)


@invariant(VERY_MANY, COMPARABLE)
def test_i6_no_history_is_higher_with_advice_than_without_an_advisor(steps: Iterator[Step]) -> None:
    """A history with any advice is never above the same history with the advisor off."""
    compare(steps, is_silent=False)


@invariant(VERY_MANY, COMPARABLE)
def test_i6_no_history_is_higher_with_advice_than_with_a_model_that_is_away(
    steps: Iterator[Step],
) -> None:
    """A history with any advice is never above the same history without answers."""
    compare(steps, is_silent=True)


def compare(steps: Iterator[Step], *, is_silent: bool) -> None:
    """Follow the history without advice beside it."""
    plain: Rollout | None = None
    for step in steps:
        event = step.event
        if (
            isinstance(event, CommandReceived)
            and event.plan is not None
            and step.before is not None
        ):
            return  # the one ahead has ended and would begin again
        plain = follow(plain, event, step.now, is_silent=is_silent)
        if step.after is None or plain is None:
            assert step.after is plain is None
            continue
        assert step.after.percent <= plain.percent
        if (
            isinstance(event, EvidenceJudged)
            and event.judgement.breach is not None
            and not plain.has_ended
        ):
            assert step.after.percent == plain.percent == 0
        if HoldReason.MAX_BAKE in (step.after.hold, plain.hold):
            # a tick came to the end of even this wait: one has timed out, and what a person says is
            # said to that one
            return


def follow(
    plain: Rollout | None, event: Event, now: datetime, *, is_silent: bool
) -> Rollout | None:
    """Return the rollout without advice after the same event.

    With the advisor off, or a model that answers nothing.
    """
    match event:
        case CommandReceived(plan=plan) if plan is not None and not is_silent:
            event = replace(event, plan=replace(plan, advisor=AdvisorPolicy(mode=AdvisorMode.OFF)))
        case CommandReceived(plan=plan) if plan is not None:
            event = replace(
                event, plan=replace(plan, advisor=replace(plan.advisor, mode=AdvisorMode.CAN_HOLD))
            )
        case CommandReceived(expected_revision=int()) if plain is not None:
            event = replace(event, expected_revision=plain.revision)
        case EvidenceJudged() if plain is not None:
            event = replace(event, judgement=of_present_visit(event.judgement, plain))
        case AdviceReceived() | AdviceUnavailable():
            return plain
    after, effects = decide(plain, event, now)
    for effect in effects:
        if isinstance(effect, AskAdvice):
            after, _ = decide(after, AdviceUnavailable(effect.gate_id, effect.round, "away"), now)
            after, _ = decide(after, event, now)
    return after


def of_present_visit(judgement: Judgement, rollout: Rollout) -> Judgement:
    """Return the judgement as one of the present visit of `rollout`."""
    return replace(judgement, visit=rollout.visit_index)


@invariant(MANY, Alphabet(plans=(OBSERVED,)))
def test_i6_observed_advice_moves_nothing(steps: Iterator[Step]) -> None:
    """In observe mode no answer makes a difference: every answer leads where any other does."""
    for step in steps:
        if not isinstance(step.event, AdviceReceived):
            continue
        unavailable = AdviceUnavailable(step.event.gate_id, step.event.round, "away")
        silent, effects = decide(step.before, unavailable, step.now)
        assert effects == step.effects == ()
        if step.after is not None and silent is not None:
            assert visible(step.after) == visible(silent)
            if isinstance(step.after.phase, Gating) and step.after.phase.advice is not None:
                assert step.after.phase.advice.held_until is None
