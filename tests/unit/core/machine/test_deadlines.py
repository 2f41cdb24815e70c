"""Deadlines, freezes, pauses and the end: what time does to a rollout."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controller.core.audience import Audience, Condition
from controller.core.effects import RaiseAlert
from controller.core.events import EvidenceJudged, Ticked
from controller.core.machine import decide, is_frozen, next_deadline
from controller.core.plan import Window
from controller.core.rollout import (
    Aborted,
    AwaitingApproval,
    Baking,
    Completed,
    Gating,
    Paused,
    Phase,
    RolledBack,
    Scheduled,
)
from schemas.terms import (
    CommandVerb,
    FlagType,
    HoldReason,
    Operator,
)
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_breach,
    make_command,
    make_judgement,
    make_plan,
    make_rollout,
    make_stage,
    make_stages,
)
from tests.unit.core.machine.states import (
    ASKED,
    FROZEN,
    GATE,
    SECOND,
    after,
)

# --- deadlines ---

_WEEKEND = Window(frozenset({6, 7}), 0, 24 * 60, "UTC")
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


# --- pausing ---


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

    Bake that was left is still owed, and a gate is opened again.
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
