"""Active windows at their edges: what lies far ahead, what nobody ran, and what keeps them shut."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from controller.core.effects import AnswerCommand, PublishDecision, RaiseAlert, Transition
from controller.core.events import EvidenceJudged, Ticked
from controller.core.judging.judgement import Gap
from controller.core.machine import decide, next_deadline
from controller.core.plan import Window
from controller.core.rollout import (
    Baking,
    Completed,
    Gating,
    Paused,
    RolledBack,
    Rollout,
    Scheduled,
)
from schemas.terms import CommandStatus, HealthGap, HoldReason, OnBreach
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_breach,
    make_command,
    make_judgement,
    make_plan,
    make_rollout,
    make_visit,
)
from tests.unit.core.machine.test_active import EVENING, MORNING, OFFICE, PLAN, closed

DAY = timedelta(days=1)
ALWAYS = frozenset(range(1, 8))
SPLIT = Gap(HealthGap.SRM, "treatment has 5 % in place of 10 %")


def alert_of(transition: Transition) -> RaiseAlert:
    """Return the one alert of a transition."""
    (alert,) = (each for each in transition.effects if isinstance(each, RaiseAlert))
    return alert


def answer_of(transition: Transition) -> AnswerCommand:
    """Return the one answer of a transition."""
    (answer,) = (each for each in transition.effects if isinstance(each, AnswerCommand))
    return answer


def completed(**overrides: object) -> Rollout:
    """Return a rollout of 10 % that has completed."""
    fields = {"phase": Completed(T0), "visits": (make_visit(left_at=T0),), "percent": 10.0}
    return make_rollout(**{"plan": PLAN, **fields, **overrides})


def test_a_window_that_ends_in_years_closes_on_its_day() -> None:
    """Ticks are wanted now and then until the end can be seen, never one right after another."""
    season = Window(ALWAYS, 0, 1440, "UTC", T0.date(), (T0 + 1000 * DAY).date())
    rollout, at = completed(plan=make_plan(active=(season,))), T0
    ticks = 0
    while rollout.closed_since is None:
        due = next_deadline(rollout, at)
        assert due is not None
        assert due > at
        rollout, _ = decide(rollout, Ticked(), due)  # type: ignore[assignment]
        at, ticks = due, ticks + 1
    assert (rollout.percent, at.date(), ticks < 10) == (0, (T0 + 1001 * DAY).date(), True)


def test_an_opening_that_nobody_ran_wants_no_tick_before_the_next() -> None:
    """A deadline in the past that a tick does not move would be asked for again at once."""
    night = MORNING + 12 * HOUR
    assert next_deadline(closed(), night) == MORNING + DAY
    scheduled = make_rollout(plan=PLAN, phase=Scheduled(EVENING), visits=(), percent=0.0)
    assert next_deadline(scheduled, night) == MORNING + DAY


@pytest.mark.parametrize("verb", ["freeze", "pause"])
def test_a_completed_rollout_is_kept_closed(verb: str) -> None:
    """Its windows open it again: a freeze holds until `unfreeze`, and a pause is one."""
    rollout = closed(phase=Completed(T0), visits=(make_visit(left_at=T0),), percent=10.0)
    frozen, effects = decide(rollout, make_command(verb, issued_at=EVENING), EVENING)
    assert frozen is not None
    assert answer_of(Transition(frozen, effects)).status is CommandStatus.ACCEPTED
    (decision,) = (effect for effect in effects if isinstance(effect, PublishDecision))
    assert "frozen" in decision.reason
    assert next_deadline(frozen, EVENING) is None
    again = decide(frozen, make_command("pause", command_id="c-3", issued_at=EVENING), EVENING)
    assert again[0] is frozen
    assert answer_of(again).reason == "frozen already"
    kept, _ = decide(frozen, Ticked(), MORNING)
    assert kept is frozen
    lifted, _ = decide(frozen, make_command("unfreeze", issued_at=MORNING), MORNING)
    assert lifted is not None
    opened, _ = decide(lifted, Ticked(), MORNING)
    assert opened is not None
    assert opened.percent == 10


def test_a_closed_rollout_whose_windows_were_taken_away_is_kept_closed() -> None:
    """Without windows it opens at the next tick, so a pause has to freeze it, too."""
    rollout = closed(phase=Completed(T0), visits=(make_visit(left_at=T0),), percent=10.0)
    rollout = replace(rollout, plan=make_plan(active=()))
    assert next_deadline(rollout, EVENING) is not None
    frozen, effects = decide(rollout, make_command("pause", issued_at=EVENING), EVENING)
    assert frozen is not None
    assert answer_of(Transition(frozen, effects)).reason != "nothing moves: the rollout has ended"
    kept, _ = decide(frozen, Ticked(), MORNING)
    assert kept is frozen


def test_a_completed_rollout_without_windows_is_not_frozen() -> None:
    """Nothing moves there."""
    transition = decide(completed(plan=make_plan()), make_command("freeze"), EVENING)
    assert answer_of(transition).status is CommandStatus.REJECTED


def test_a_frozen_rollout_that_closes_says_what_opens_it() -> None:
    """A freeze that was forgotten would be 0 % in silence."""
    frozen, _ = decide(make_rollout(plan=PLAN), make_command("freeze", issued_at=T0), T0)
    _, effects = decide(frozen, Ticked(), EVENING)
    (alert,) = (effect for effect in effects if isinstance(effect, RaiseAlert))
    assert "an operator has frozen it" in alert.summary
    assert "`unfreeze`" in alert.action


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_nothing_starts_where_freezes_cover_every_window_to_come(verb: str) -> None:
    """Neither inside the freeze nor outside the windows: the answer says what to change."""
    last = replace(OFFICE, first_day=T0.date(), last_day=T0.date())
    plan = make_plan(active=(last,), freeze_windows=(Window(ALWAYS, 0, 1440, "UTC"),))
    ended = make_rollout(plan=plan, phase=RolledBack(T0, "errors"), percent=0.0)
    command = make_command(verb, plan=plan, issued_at=T0 + HOUR)
    transition = decide(ended, command, T0 + HOUR)
    assert transition.after is ended
    assert "freeze windows cover every active window" in answer_of(transition).reason


def test_windows_that_are_over_are_not_applied() -> None:
    """The flag would stay at 0 % for good, with the answer `done`."""
    past = replace(OFFICE, first_day=T0.date(), last_day=T0.date())
    rollout = closed()
    command = make_command(
        "apply",
        plan=make_plan(active=(past,)),
        reason="summer is over",
        issued_at=EVENING,
        expected_revision=rollout.revision,
    )
    transition = decide(rollout, command, EVENING)
    assert transition.after is rollout
    assert "no active window of the plan comes any more" in answer_of(transition).reason


def test_a_longer_bake_counts_no_closed_time() -> None:
    """A gate that opened a minute before closing bakes for the whole difference after it."""
    gate = Gating(0, "gate", EVENING - MINUTE, EVENING + HOUR)
    opened, _ = decide(closed(phase=gate), Ticked(), MORNING)
    assert opened is not None
    stages = tuple(
        replace(one, bake=one.bake + HOUR, max_bake=one.max_bake + HOUR) for one in PLAN.stages
    )
    command = make_command(
        "apply", plan=replace(PLAN, stages=stages), issued_at=MORNING + 5 * MINUTE
    )
    after, effects = decide(opened, command, MORNING + 5 * MINUTE)
    assert after is not None, effects
    assert isinstance(after.phase, Baking)
    assert after.phase.until == MORNING + MINUTE + HOUR - MINUTE


def test_a_late_closing_says_what_was_served_until_then() -> None:
    """Three hours without Redis: nothing could be closed, and the audit log must tell."""
    rollout = make_rollout(plan=PLAN, phase=Baking(0, MORNING))
    _, effects = decide(rollout, Ticked(), EVENING + 3 * HOUR)
    (decision,) = (effect for effect in effects if isinstance(effect, PublishDecision))
    assert "should have closed Mon 17:00 UTC, and 10 % was served until now" in decision.reason
    _, effects = decide(rollout, Ticked(), EVENING)
    (decision,) = (effect for effect in effects if isinstance(effect, PublishDecision))
    assert "should have" not in decision.reason


def test_what_held_it_holds_it_again_after_opening() -> None:
    """Gaps that people were told of are not over because a window closed and opened."""
    told = frozenset({HealthGap.STALE})
    shut = closed(phase=Baking(0, MORNING), told_gaps=told, hold=HoldReason.HEALTH)
    opened, _ = decide(shut, Ticked(), MORNING)
    assert opened is not None
    assert (opened.hold, opened.told_gaps) == (HoldReason.HEALTH, told)


def test_a_gate_passes_on_no_evidence_from_before_the_closing() -> None:
    """A judgement made before apps have followed the opening says nothing of this morning."""
    gate = Gating(0, "gate", EVENING - HOUR, EVENING + HOUR)
    opened, _ = decide(closed(phase=gate), Ticked(), MORNING)
    assert opened is not None
    old = make_judgement(at=MORNING + MINUTE / 2)
    kept, _ = decide(opened, EvidenceJudged(old), MORNING + MINUTE / 2)
    assert kept is opened
    new = make_judgement(at=MORNING + 2 * MINUTE)
    passed, _ = decide(opened, EvidenceJudged(new), MORNING + 2 * MINUTE)
    assert passed is not None
    assert passed.stage_index == 1


@pytest.mark.parametrize("verb", ["roll_back", "abort"])
def test_lowering_while_closed_says_what_does_not_come_back(verb: str) -> None:
    """Nobody was served: `from 0 % to 0 %` would say that nothing has changed."""
    transition = decide(closed(), make_command(verb, issued_at=EVENING), EVENING)
    summary = alert_of(transition).summary
    assert "while it was closed" in summary
    assert "10 % does not come back with the next active window" in summary


def test_lowering_before_the_first_stage_says_so() -> None:
    """A rollout that waits for its start serves nobody."""
    scheduled = make_rollout(phase=Scheduled(T0 + HOUR), visits=(), percent=0.0)
    transition = decide(scheduled, make_command("roll_back", issued_at=T0), T0)
    assert "before its first stage, 0 % is served already" in alert_of(transition).summary


def test_late_harm_steps_back_while_closed_and_says_so() -> None:
    """The stage below is what opens."""
    visits = (make_visit(left_at=T0), make_visit(stage=1, percent=25.0))
    phase = Baking(1, MORNING + HOUR)
    rollout = closed(phase=phase, visits=visits, percent=25.0)
    harm = make_judgement(at=EVENING, visit=1, metrics=(make_breach(on_breach=OnBreach.STEP_BACK),))
    transition = decide(rollout, EvidenceJudged(harm), EVENING + MINUTE)
    summary = alert_of(transition).summary
    assert "from 25 % to 10 % while it was closed, 0 % is served" in summary
    assert transition.after is not None
    assert transition.after.percent == 0
    opened, _ = decide(transition.after, Ticked(), MORNING)
    assert opened is not None
    assert opened.percent == 10


def test_a_gap_does_nothing_while_closed() -> None:
    """Not even a broken split, which acts at once while it is open: it is judged when it opens."""
    rollout = closed(phase=Baking(0, MORNING + HOUR))
    judgement = make_judgement(at=EVENING + MINUTE, gaps=(SPLIT,))
    transition = decide(rollout, EvidenceJudged(judgement), EVENING + MINUTE)
    assert transition == Transition(rollout)
    opened, _ = decide(rollout, Ticked(), MORNING)
    assert opened is not None
    judgement = make_judgement(at=MORNING + HOUR, gaps=(SPLIT,))
    after, _ = decide(opened, EvidenceJudged(judgement), MORNING + HOUR)
    assert after is not None
    assert isinstance(after.phase, Paused)
