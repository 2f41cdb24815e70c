"""Active windows of a rollout: what closes, what opens, and how time counts meanwhile."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controller.core.effects import AnswerCommand, PublishDecision, RaiseAlert
from controller.core.events import Ticked
from controller.core.future_times import healed
from controller.core.invariants import Step, violations
from controller.core.machine import decide, hold_back, next_deadline
from controller.core.plan import Window
from controller.core.rollout import (
    AdviceRound,
    AwaitingApproval,
    Baking,
    Completed,
    Gating,
    Paused,
    Rollout,
    Scheduled,
)
from controller.core.serving import percent_to_serve, serving
from controller.core.timeline import locate
from controller.core.visits import MOST_CLOSINGS
from schemas.terms import AlertKind, CommandStatus, CommandVerb, DecisionKind, HoldReason
from tests.builders import HOUR, MINUTE, T0, make_command, make_plan, make_rollout, make_visit

#: 09:00 to 17:00 UTC on weekdays; `T0` is Monday 09:00.
OFFICE = Window(frozenset(range(1, 6)), 540, 480, "UTC")
EVENING, MORNING = T0 + 8 * HOUR, T0 + 24 * HOUR
PLAN = make_plan(active=(OFFICE,))
DAILY = Window(frozenset(range(1, 8)), 540, 480, "UTC")


def tick(rollout: Rollout, at: datetime) -> Rollout:
    """Return the rollout after a tick."""
    after, _ = decide(rollout, Ticked(), at)
    assert after is not None
    return after


def closed(**overrides: object) -> Rollout:
    """Return a rollout that closed on Monday evening."""
    rollout = tick(make_rollout(**{"plan": PLAN, **overrides}), EVENING)
    assert rollout.closed_since == EVENING
    return rollout


def test_a_closed_rollout_serves_control_on_every_plane() -> None:
    """Its percentage is 0, whatever a plane reads; what was decided is kept."""
    rollout = closed()
    assert (rollout.percent, rollout.decided_percent) == (0, 10)
    assert percent_to_serve(rollout) == 0
    assert serving(rollout).is_off
    assert next_deadline(rollout) == MORNING


def test_a_bake_goes_on_where_it_was_and_settles_again() -> None:
    """Closed time is no bake, and neither is the settle after it."""
    until = EVENING + 3 * HOUR
    opened = tick(closed(phase=Baking(0, until)), MORNING)
    assert (opened.percent, opened.phase) == (10, Baking(0, MORNING + MINUTE + 3 * HOUR))
    assert opened.visits[-1].counting_since == MORNING + MINUTE


def test_a_closing_within_settle_costs_no_bake() -> None:
    """The bake that is left begins at the end of the next settle."""
    visit = make_visit(entered_at=EVENING - MINUTE / 2, counts_from=EVENING + MINUTE / 2)
    phase = Baking(0, EVENING + MINUTE / 2 + HOUR)
    opened = tick(closed(phase=phase, visits=(visit,)), MORNING)
    assert opened.phase == Baking(0, MORNING + MINUTE + HOUR)


def test_a_gate_gets_its_time_back_and_asks_again() -> None:
    """An open question is asked again, because its evidence is old in the morning."""
    gate = Gating(0, "g", EVENING - MINUTE, EVENING + HOUR, AdviceRound(1, EVENING + MINUTE))
    rollout = closed(phase=gate)
    assert rollout.phase == replace(gate, advice=None)
    opened = tick(rollout, MORNING)
    assert isinstance(opened.phase, Gating)
    assert opened.phase.until == MORNING + MINUTE + HOUR
    assert opened.phase.since <= MORNING


@pytest.mark.parametrize("paused_at", [EVENING - HOUR, EVENING + HOUR])
def test_a_pause_and_a_closing_count_once(paused_at: datetime) -> None:
    """Paused before or after it closed, resumed while closed: the bake that was left is left."""
    rollout = make_rollout(plan=PLAN, phase=Baking(0, EVENING + 3 * HOUR))
    left = EVENING + 3 * HOUR - min(paused_at, EVENING)
    for at, verb in ((paused_at, CommandVerb.PAUSE), (EVENING + 2 * HOUR, CommandVerb.RESUME)):
        rollout = tick(rollout, EVENING) if at > EVENING else rollout
        after, _ = decide(rollout, make_command(verb, command_id=verb, issued_at=at), at)
        assert after is not None
        assert after is not rollout
        rollout = after
    opened = tick(rollout, MORNING)
    assert opened.phase == Baking(0, MORNING + MINUTE + left)


def test_a_paused_rollout_stays_closed_and_says_so() -> None:
    """People are told when it closes, with what opens it again."""
    paused = make_rollout(
        plan=PLAN, phase=Paused(T0, HoldReason.OPERATOR, Baking(0, EVENING + HOUR))
    )
    rollout, effects = decide(paused, Ticked(), EVENING)
    assert rollout is not None
    (alert,) = (effect for effect in effects if isinstance(effect, RaiseAlert))
    assert alert.kind is AlertKind.PAUSED
    assert "Tue 09:00 UTC" in alert.action
    assert next_deadline(rollout) is None
    assert tick(rollout, MORNING) is rollout
    after, _ = decide(rollout, make_command("resume", issued_at=MORNING), MORNING)
    assert after is not None
    assert next_deadline(after) == MORNING
    assert tick(after, MORNING).percent == 10


def test_a_rollout_whose_windows_are_over_says_so() -> None:
    """The last window is over: nothing opens it, and an alert asks for a decision."""
    last = replace(OFFICE, first_day=T0.date(), last_day=T0.date())
    rollout, effects = decide(make_rollout(plan=make_plan(active=(last,))), Ticked(), EVENING)
    assert rollout is not None
    assert any(isinstance(effect, RaiseAlert) for effect in effects)
    assert next_deadline(rollout) is None


@pytest.mark.parametrize("verb", ["promote", "promote_full", "retry", "freeze"])
def test_commands_while_closed_raise_nothing(verb: str) -> None:
    """What would advance is refused with the time of the next window; nothing else raises."""
    rollout = closed()
    command = make_command(verb, issued_at=EVENING + MINUTE)
    after, effects = decide(rollout, command, EVENING + MINUTE)
    assert after is not None
    assert after.percent == 0
    (answer,) = (effect for effect in effects if isinstance(effect, AnswerCommand))
    is_refused = verb.startswith("promote")
    assert (answer.status is CommandStatus.REJECTED) is is_refused
    assert ("closed until Tue 09:00 UTC" in answer.reason) is is_refused


def test_a_start_outside_windows_waits_for_one_that_is_not_frozen() -> None:
    """The first moment that is both active and not frozen is Wednesday morning."""
    freeze = Window(frozenset({2}), 0, 1440, "UTC")
    plan = make_plan(active=(OFFICE,), freeze_windows=(freeze,))
    rollout, _ = decide(None, make_command("start", plan=plan, issued_at=EVENING), EVENING)
    assert rollout is not None
    assert rollout.phase == Scheduled(MORNING + 24 * HOUR)
    assert next_deadline(rollout) == MORNING + 24 * HOUR
    assert tick(rollout, MORNING + 24 * HOUR).percent == 10


def test_a_plan_whose_windows_are_over_starts_nothing() -> None:
    """Neither at once nor ever: the answer says what to change."""
    past = replace(OFFICE, first_day=T0.date(), last_day=T0.date())
    command = make_command("start", plan=make_plan(active=(past,)), issued_at=EVENING)
    rollout, effects = decide(None, command, EVENING)
    assert rollout is None
    (answer,) = (effect for effect in effects if isinstance(effect, AnswerCommand))
    assert (answer.status, "give it later ones" in answer.reason) == (CommandStatus.REJECTED, True)


def test_freeze_windows_do_not_keep_it_closed_an_operator_does() -> None:
    """Both windows come from one author; an operator who freezes wants nothing to rise."""
    freeze = Window(frozenset({2}), 0, 1440, "UTC")
    plan = make_plan(active=(OFFICE,), freeze_windows=(freeze,))
    rollout = closed(plan=plan)
    assert tick(rollout, MORNING).percent == 10
    frozen, _ = decide(rollout, make_command("freeze", issued_at=EVENING), EVENING)
    assert frozen is not None
    assert next_deadline(frozen) is None
    assert tick(frozen, MORNING).percent == 0


def test_taking_windows_away_needs_a_reason_and_then_opens() -> None:
    """`apply` raises nothing by itself: the tick after it opens."""
    rollout = closed(phase=Completed(T0), visits=(make_visit(left_at=T0),), percent=10.0)
    bare = make_command("apply", plan=make_plan(), reason="", issued_at=EVENING)
    after, _ = decide(rollout, bare, EVENING)
    assert after is rollout
    given = replace(bare, reason="day and night", expected_revision=rollout.revision)
    after, _ = decide(rollout, given, EVENING)
    assert after is not None
    assert after.percent == 0
    assert next_deadline(after) == EVENING
    assert tick(after, EVENING).percent == 10


def test_narrower_windows_are_taken_at_once_and_close() -> None:
    """A window that is over already closes with the next tick."""
    rollout = make_rollout(plan=PLAN, phase=Baking(0, EVENING))
    plan = make_plan(active=(replace(OFFICE, minutes=60),))
    at = T0 + 2 * HOUR
    command = make_command("apply", plan=plan, reason="", issued_at=at)
    after, _ = decide(rollout, command, at)
    assert after is not None
    assert next_deadline(after) == at
    assert tick(after, at).percent == 0


def test_a_replica_that_slept_over_a_closing_says_so_once() -> None:
    """It was open and is to be open: nothing is raised, and the log says what was served."""
    rollout = make_rollout(plan=PLAN, phase=Baking(0, MORNING + 9 * HOUR))
    after, effects = decide(rollout, Ticked(), MORNING + HOUR)
    assert after is not None
    (decision,) = (effect for effect in effects if isinstance(effect, PublishDecision))
    assert (decision.kind, decision.to_percent) == (DecisionKind.HOLD, 10)
    assert "should have closed Mon 17:00 UTC" in decision.reason
    assert tick(after, MORNING + HOUR) is after
    assert next_deadline(after) == MORNING + 8 * HOUR


def test_a_replica_that_may_raise_nothing_holds_the_opening() -> None:
    """The reason says that a window has begun, not that a gate has passed."""
    held, effects = hold_back(closed(), "the clock is wrong", None, MORNING)
    assert held is not None
    assert held.percent == 0
    (decision,) = (effect for effect in effects if isinstance(effect, PublishDecision))
    assert decision.reason == "an active window of the plan has begun; the clock is wrong"
    assert tick(held, MORNING + MINUTE).percent == 10


def test_no_closing_takes_back_what_was_counted() -> None:
    """A stage that closes every night for years counts the same in a replay as it did at first."""
    rollout, day = make_rollout(plan=make_plan(active=(DAILY,))), T0
    approval = AwaitingApproval(0, "gate", T0, HoldReason.APPROVAL)
    rollout = replace(rollout, phase=approval, hold=HoldReason.APPROVAL)
    counted = {}
    for _ in range(MOST_CLOSINGS + 5):
        noon = day + 3 * HOUR
        counted[noon] = locate(rollout.visits, noon)
        rollout = tick(tick(rollout, day + 8 * HOUR), day + 24 * HOUR)
        day += 24 * HOUR
        assert len(rollout.visits[-1].closings) <= MOST_CLOSINGS
    assert None not in counted.values()
    assert counted == {noon: locate(rollout.visits, noon) for noon in counted}
    assert (rollout.percent, len(rollout.visits)) == (10, 2)
    assert isinstance(rollout.phase, Baking)
    assert rollout.hold is None


def test_a_stage_that_closed_too_often_says_that_it_begins_again() -> None:
    """Whoever was asked to approve it sees why the request is gone."""
    visit = make_visit()
    for day in range(-MOST_CLOSINGS, 0):
        closing = T0 + timedelta(days=day, hours=8)
        visit = visit.closed(closing).opened(closing + 16 * HOUR)
    full = replace(visit, closings=visit.closings[1:])
    rollout = tick(make_rollout(plan=PLAN, visits=(full,)), EVENING)
    after, effects = decide(rollout, Ticked(), MORNING)
    (decision,) = (effect for effect in effects if isinstance(effect, PublishDecision))
    assert (decision.kind, decision.to_percent) == (DecisionKind.OPEN, 10)
    assert "the stage begins again, because it has closed 1000 times" in decision.reason
    step = Step(rollout, Ticked(), MORNING, after, effects)
    assert not violations(step, outbox=0, outbox_limit=10, bake_left_seconds=None)


def test_after_its_end_only_the_last_closing_is_kept() -> None:
    """A flag that has completed closes every night for as long as it lives."""
    visit = replace(make_visit().closed(T0 + HOUR).opened(T0 + 2 * HOUR), left_at=T0 + 3 * HOUR)
    for day in range(40):
        closing = T0 + timedelta(days=day, hours=8)
        visit = visit.closed(closing).opened(closing + 16 * HOUR)
    assert [one.since for one in visit.closings] == [T0 + HOUR, T0 + timedelta(days=39, hours=8)]


def test_a_wrong_clock_s_closing_is_brought_back() -> None:
    """A closing from the future began now at the latest, so that it opens with the next window."""
    rollout = closed()
    now = T0 + HOUR
    right = healed(rollout, now)
    assert right.closed_since == now
    assert tick(right, now).percent == 10


def test_a_start_that_waits_says_for_what() -> None:
    """In local time: for its window, its start_at or the end of a freeze."""
    sunday = T0 - 24 * HOUR
    freeze = (Window(frozenset({7}), 0, 24 * 60, "UTC"),)
    for plan, waits, begins in (
        (PLAN, "Mon 09:00 UTC, when an active window of the plan begins", "an active window"),
        (replace(PLAN, active=(), start_at=T0), "Mon 09:00 UTC, the plan's start_at", "the start"),
        (
            make_plan(freeze_windows=freeze),
            "Mon 00:00 UTC, when the plan's freeze window is over",
            "the plan's freeze window is over",
        ),
    ):
        command = make_command(CommandVerb.START, plan=plan, issued_at=sunday)
        waiting, effects = decide(None, command, sunday)
        assert waiting is not None
        [told] = [one for one in effects if isinstance(one, PublishDecision)]
        assert f"scheduled for {waits}" in told.reason
        _, effects = decide(waiting, Ticked(), T0)
        [told] = [one for one in effects if isinstance(one, PublishDecision)]
        assert told.reason.startswith(begins)
