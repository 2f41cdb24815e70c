"""Every action that a rule may name is known wherever it must be."""

from __future__ import annotations

import pytest

from controller.responding.commanding import verb_of
from controller.responding.matching import Response, response
from controller.responding.words import alert_of, done_words
from schemas.result import Result
from schemas.terms import CommandStatus, CommandVerb, SignalAction
from tests.builders import T0
from tests.unit.responding.test_matching import rollout, rule, signal


def lead_to(action: SignalAction) -> Response:
    """Return what a signal leads to under a rule with this action."""
    one = rollout("checkout-v2")
    return response([rule(do=action.value)], signal(), {one.flag_key: one})


@pytest.mark.parametrize("action", SignalAction)
def test_an_action_has_a_verb_and_words(action: SignalAction) -> None:
    """What only tells has no verb. People read what was done, and what to do next."""
    answer = lead_to(action)
    (intent,) = answer.intents
    assert (verb_of(intent) is None) == (action is SignalAction.NOTE)
    done = done_words(intent, None)
    alert = alert_of(intent, answer, signal(), done)
    assert done in alert.summary
    assert alert.action


def carried_out(action: SignalAction, verb: CommandVerb | None) -> str:
    """Return what people read of a command that was accepted."""
    (intent,) = lead_to(action).intents
    accepted = Result(
        command_id="c-1",
        flag="checkout-v2",
        verb=verb,
        status=CommandStatus.ACCEPTED,
        reason="",
        revision=2,
        at=T0,
    )
    return done_words(intent, accepted)


@pytest.mark.parametrize("action", SignalAction)
def test_what_was_commanded_is_in_the_words_of_its_action(action: SignalAction) -> None:
    """Also where the answer does not say its verb: nobody reads an empty sentence."""
    (intent,) = lead_to(action).intents
    own = carried_out(action, intent.usual_verb)
    assert own == carried_out(action, None) != ""


def test_a_verb_that_stood_in_is_named() -> None:
    """In the first stage there is nothing to step back to."""
    assert carried_out(SignalAction.STEP_BACK, CommandVerb.PAUSE).startswith("paused: there is no")
    assert carried_out(SignalAction.PAUSE, CommandVerb.PAUSE) == "paused"
    assert carried_out(SignalAction.HOLD, CommandVerb.FREEZE) == "frozen while it fires"
