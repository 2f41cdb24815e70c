"""Every action that a rule may name is known wherever it must be."""

from __future__ import annotations

import pytest

from controller.responding.commanding import verb_of
from controller.responding.matching import Response, response
from controller.responding.words import alert_of, done_words
from schemas.terms import SignalAction
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
