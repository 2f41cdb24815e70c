"""What a wrong clock wrote is brought back to now, and no bake becomes shorter by it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.events import Ticked
from controller.core.future_times import healed, seconds_ahead
from controller.core.machine import decide
from controller.core.rollout import (
    AdviceRound,
    AwaitingApproval,
    Baking,
    Freeze,
    Gating,
    Paused,
    Phase,
    RolledBack,
    Rollout,
)
from schemas.terms import HoldReason
from tests.builders import HOUR, MINUTE, T0, make_command, make_rollout, make_visit

DAY = timedelta(days=1)
FULL = 11 * MINUTE  # settle and bake of the builders' stages


def at_end(rollout: Rollout, start: datetime, limit: timedelta) -> timedelta:
    """Return after how long the bake ends when a look comes every 10 s."""
    step = timedelta(seconds=10)
    passed = timedelta(0)
    while passed <= limit:
        after, _ = decide(rollout, Ticked(), start + passed)
        assert after is not None
        if isinstance(after.phase, Gating):
            return passed
        passed += step
    raise AssertionError(f"still baking after {limit}")


def ahead_by(error: timedelta) -> Rollout:
    """Return the second stage as a machine entered it whose clock was so far ahead."""
    after, _ = decide(make_rollout(), make_command("promote", issued_at=T0 + error), T0 + error)
    assert after is not None
    assert isinstance(after.phase, Baking)
    return after


def test_a_stage_entered_tomorrow_is_entered_now() -> None:
    """It counts from now on and bakes its whole time, in place of standing still for a day."""
    rollout = ahead_by(DAY)
    now = T0 + 5 * MINUTE
    assert seconds_ahead(rollout, now) == (DAY - 5 * MINUTE).total_seconds()
    with pytest.raises(AssertionError, match="still baking"):
        at_end(rollout, now, HOUR)
    good = healed(rollout, now)
    assert good.revision == rollout.revision + 1
    assert good.percent == rollout.percent
    assert good.visits[-1].entered_at == good.updated_at == good.visits[0].left_at == now
    assert good.visits[-1].counts_from == now + MINUTE
    assert at_end(good, now, HOUR) == FULL
    assert seconds_ahead(good, now) == 0


@given(
    error=st.timedeltas(min_value=timedelta(seconds=1), max_value=400 * DAY),
    passed=st.timedeltas(min_value=timedelta(0), max_value=2 * DAY),
)
def test_no_bake_becomes_shorter(error: timedelta, passed: timedelta) -> None:
    """For any clock fault, a whole bake passes between entering a stage and its gate."""
    rollout = ahead_by(error)
    now = T0 + passed
    if not seconds_ahead(rollout, now):
        return
    good = healed(rollout, now)
    assert isinstance(good.phase, Baking)
    entered = good.visits[-1].entered_at
    assert good.phase.until - entered >= FULL
    assert good.phase.until <= now + FULL
    assert all(visit.entered_at <= now for visit in good.visits)


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (
            Gating(0, "g", T0 + DAY, T0 + DAY + HOUR, AdviceRound(1, T0 + DAY + MINUTE)),
            Gating(0, "g", T0, T0 + HOUR, AdviceRound(1, T0 + MINUTE)),
        ),
        (
            AwaitingApproval(0, "g", T0 + DAY, HoldReason.APPROVAL),
            AwaitingApproval(0, "g", T0, HoldReason.APPROVAL),
        ),
        (
            Paused(T0 + DAY, HoldReason.OPERATOR, Baking(0, T0 + DAY + 3 * MINUTE)),
            Paused(T0, HoldReason.OPERATOR, Baking(0, T0 + 3 * MINUTE)),
        ),
        (RolledBack(T0 + DAY, "guardrail"), RolledBack(T0, "guardrail")),
    ],
)
def test_every_phase_keeps_its_distances(phase: Phase, expected: Phase) -> None:
    """What was left when it was set is left still."""
    rollout = replace(
        make_rollout(phase=phase), updated_at=T0 + DAY, freeze=Freeze(T0 + DAY, "ada", "x")
    )
    good = healed(rollout, T0)
    assert good.phase == expected
    assert good.freeze == Freeze(T0, "ada", "x")


def test_an_opening_of_a_wrong_clock_counts_again_after_one_settle() -> None:
    """Events count again a settle from now at the latest, not on the day that the clock showed."""
    visit = make_visit().closed(T0 + HOUR).opened(T0 + DAY)
    rollout = make_rollout(visits=(visit,), updated_at=T0 + DAY - MINUTE)
    now = T0 + 2 * HOUR
    good = healed(rollout, now).visits[-1]
    assert good.closings[-1].since == T0 + HOUR
    assert good.counting_since == now + MINUTE
