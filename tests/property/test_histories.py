"""The histories that the invariants are tried on are worth trying."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.effects import AnswerCommand
from controller.core.events import CommandReceived
from controller.core.machine import decide
from controller.core.rollout import (
    Aborted,
    AwaitingApproval,
    Baking,
    Completed,
    Gating,
    Paused,
    RolledBack,
    Rollout,
    Scheduled,
)
from schemas.terms import CommandVerb, HoldReason
from tests.builders import T0, make_stages
from tests.histories import (
    CAN_HOLD,
    GAPS,
    NIGHTLY,
    OBSERVED,
    PLAIN,
    REQUIRED,
    events_near,
    walk,
)
from tests.property.history_checks import (
    is_accepted,
)

pytestmark = pytest.mark.property


def test_histories_reach_every_phase_and_verb_and_hold() -> None:
    """What is drawn is worth drawing.

    Every phase, every accepted verb and every hold reason is met, but the one that takes five gates
    of one stage.
    """
    met: set[object] = set()
    rng = random.Random(7)
    for _ in range(1500):
        for step in walk(rng.randbytes(240)):
            if step.after is not None:
                met |= {type(step.after.phase), step.after.hold}
            if isinstance(step.event, CommandReceived) and is_accepted(step, step.event.verb):
                met.add(step.event.verb)
    phases = {Scheduled, Baking, Gating, AwaitingApproval, Paused, Completed, RolledBack, Aborted}
    assert phases <= met
    assert set(CommandVerb) <= met
    assert set(HoldReason) - met <= {HoldReason.OSCILLATES}


@given(st.data())
def test_single_events_are_drawn_near_the_state_too(data: st.DataObject) -> None:
    """Drawn one by one, histories keep time, revision and answers as those of scripts do."""
    rollout: Rollout | None = None
    now = T0
    for _ in range(15):
        event, now = data.draw(events_near(rollout, now))
        after, effects = decide(rollout, event, now)
        if after is not None and rollout is not None:
            assert after.revision - rollout.revision in (0, 1)
            assert after.updated_at >= rollout.updated_at
        assert len(
            [effect for effect in effects if isinstance(effect, AnswerCommand)]
        ) == isinstance(event, CommandReceived)
        rollout = after


def test_the_plans_of_histories_are_alike_in_stages() -> None:
    """The comparisons above rest on plans that differ in policies alone."""
    assert {plan.stages[0].percent for plan in (PLAIN, CAN_HOLD, REQUIRED, OBSERVED, NIGHTLY)} == {
        1.0
    }
    assert len(make_stages(1, 10, 50, 100)) == len(PLAIN.stages)
    assert {gap.gaps[0].kind for gap in GAPS}
