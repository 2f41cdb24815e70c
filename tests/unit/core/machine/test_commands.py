"""Each command in each phase, and commands that are too old or meant for another rollout."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from controller.core.effects import AnswerCommand, Effect, PublishDecision
from controller.core.events import AdviceUnavailable, CommandReceived, Event, Restarted, Ticked
from controller.core.machine import actions, decide, next_deadline
from controller.core.machine.commands import TOO_MANY_VISITS, table_of
from controller.core.machine.obstacles import MOST_VISITS
from controller.core.plan import Plan
from controller.core.rollout import Baking, Completed, Rollout
from schemas.terms import (
    CommandStatus,
    CommandVerb,
    DecisionKind,
    PhaseName,
)
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_command,
    make_plan,
    make_rollout,
    make_stages,
)
from tests.unit.core.machine.states import (
    SECOND,
    SOON,
    after,
    in_phase,
    judged,
)

# --- before the first start ---


@pytest.mark.parametrize(
    "event", [Ticked(), Restarted(), judged(), AdviceUnavailable("gate-1", 1, "away")]
)
def test_a_flag_never_started_is_moved_by_nothing(event: Event) -> None:
    """Without a rollout only a command means anything."""
    assert decide(None, event, SOON) == (None, ())


@pytest.mark.parametrize("verb", set(CommandVerb) - {CommandVerb.START})
def test_a_flag_never_started_rejects_all_but_start(verb: CommandVerb) -> None:
    """Every other command is answered, at revision 0."""
    rollout, effects = decide(None, make_command(verb, plan=make_plan()), SOON)
    assert rollout is None
    (answer,) = effects
    assert isinstance(answer, AnswerCommand)
    assert (answer.status, answer.revision) == (CommandStatus.REJECTED, 0)


def test_a_start_enters_the_first_stage() -> None:
    """The rollout has the command's id, revision 1, the first percentage.

    And bakes from the end of settle.
    """
    rollout, effects = decide(None, make_command(CommandVerb.START, plan=make_plan()), T0)
    assert rollout is not None
    assert (rollout.rollout_id, rollout.revision, rollout.percent) == ("command-1", 1, 10.0)
    assert rollout.phase == Baking(0, T0 + 11 * MINUTE)
    assert rollout.visits[0].counts_from == T0 + MINUTE
    assert [type(effect) for effect in effects] == [PublishDecision, AnswerCommand]


def test_a_start_without_a_plan_is_rejected() -> None:
    """There is nothing to begin."""
    assert decide(None, make_command(CommandVerb.START), SOON)[0] is None


def test_a_command_has_one_row_per_phase() -> None:
    """A second row for the same command in the same phase is a mistake in the table."""
    row = (CommandVerb.PAUSE, (PhaseName.BAKING,), actions.pause, (PhaseName.PAUSED,))
    with pytest.raises(ValueError, match="two rows"):
        table_of((row, row))


# --- commands by phase ---

#: What each accepted command leads to; every pair that is not here is rejected and changes nothing.
LEADS_TO: dict[tuple[PhaseName, CommandVerb], PhaseName] = {
    **{
        (phase, CommandVerb.ROLL_BACK): PhaseName.ROLLED_BACK
        for phase in PhaseName
        if phase not in (PhaseName.ABORTED, PhaseName.RETIRED)
    },
    **{
        (phase, CommandVerb.ABORT): PhaseName.ABORTED
        for phase in PhaseName
        if phase not in (PhaseName.ROLLED_BACK, PhaseName.RETIRED)
    },
    **{(phase, CommandVerb.PAUSE): PhaseName.PAUSED for phase in list(PhaseName)[:5]},
    **{(phase, CommandVerb.PAUSE): phase for phase in list(PhaseName)[5:8]},
    **{(phase, CommandVerb.FREEZE): phase for phase in list(PhaseName)[:5]},
    **{(phase, CommandVerb.STEP_BACK): PhaseName.BAKING for phase in list(PhaseName)[1:4]},
    **{
        (phase, verb): PhaseName.COMPLETED
        for phase in list(PhaseName)[1:5]
        for verb in (CommandVerb.PROMOTE, CommandVerb.PROMOTE_FULL)
    },
    **{
        (phase, verb): PhaseName.BAKING
        for phase in list(PhaseName)[5:8]
        for verb in (CommandVerb.START, CommandVerb.RESTART)
    },
    **{(phase, CommandVerb.RETIRE): PhaseName.RETIRED for phase in list(PhaseName)[5:]},
    (PhaseName.RETIRED, CommandVerb.START): PhaseName.BAKING,
    **{(phase, CommandVerb.APPLY): phase for phase in list(PhaseName)[:5]},
    **{(phase, CommandVerb.RETRY): PhaseName.BAKING for phase in list(PhaseName)[1:5]},
    (PhaseName.COMPLETED, CommandVerb.APPLY): PhaseName.COMPLETED,
    (PhaseName.ABORTED, CommandVerb.ROLL_BACK): PhaseName.ABORTED,
    (PhaseName.ROLLED_BACK, CommandVerb.ABORT): PhaseName.ROLLED_BACK,
    (PhaseName.SCHEDULED, CommandVerb.PROMOTE): PhaseName.BAKING,
    (PhaseName.SCHEDULED, CommandVerb.PROMOTE_FULL): PhaseName.BAKING,
    (PhaseName.PAUSED, CommandVerb.RESUME): PhaseName.BAKING,
    (PhaseName.PAUSED, CommandVerb.STEP_BACK): PhaseName.PAUSED,
    (PhaseName.AWAITING_APPROVAL, CommandVerb.APPROVE): PhaseName.COMPLETED,
    (PhaseName.AWAITING_APPROVAL, CommandVerb.REJECT): PhaseName.PAUSED,
}


@pytest.mark.parametrize("verb", CommandVerb)
@pytest.mark.parametrize("phase", PhaseName)
def test_what_a_command_does_in_a_phase(phase: PhaseName, verb: CommandVerb) -> None:
    """In each phase a command leads where the table says, with one answer.

    What is not in it is rejected and inert.
    """
    before = in_phase(phase)
    rollout, effects = decide(
        before,
        make_command(verb, expected_revision=1, plan=make_plan(stages=make_stages(10, 50))),
        SOON,
    )
    answer = effects[-1]
    assert isinstance(answer, AnswerCommand)
    if (phase, verb) in LEADS_TO:
        assert rollout is not None
        assert (answer.status, rollout.phase.name) == (
            CommandStatus.ACCEPTED,
            LEADS_TO[phase, verb],
        )
    else:
        assert (answer.status, rollout) == (CommandStatus.REJECTED, before)


@pytest.mark.parametrize("phase", list(PhaseName)[:5])
@pytest.mark.parametrize("verb", CommandVerb)
def test_a_stale_revision_is_rejected_except_where_it_lowers_or_holds(
    phase: PhaseName, verb: CommandVerb
) -> None:
    """Whoever saw another revision does nothing, unless it is pause, roll back or abort."""
    command = make_command(verb, expected_revision=7, plan=make_plan())
    _, effects = decide(in_phase(phase), command, SOON)
    answer = effects[-1]
    assert isinstance(answer, AnswerCommand)
    is_safe = verb in (CommandVerb.PAUSE, CommandVerb.ROLL_BACK, CommandVerb.ABORT)
    assert (answer.status is CommandStatus.ACCEPTED) == is_safe


@pytest.mark.parametrize(
    ("age", "is_accepted"), [(10 * MINUTE, True), (10 * MINUTE + SECOND, False), (-HOUR, True)]
)
def test_a_raising_command_is_too_old_after_ten_minutes(age: timedelta, is_accepted: bool) -> None:
    """Exactly ten minutes is young enough; an issuer whose clock runs ahead is believed."""
    at = T0 + HOUR
    _, effects = decide(
        in_phase(PhaseName.BAKING), make_command(CommandVerb.PROMOTE, issued_at=at - age), at
    )
    assert (
        any(
            isinstance(effect, AnswerCommand) and effect.status is CommandStatus.ACCEPTED
            for effect in effects
        )
        == is_accepted
    )


def test_a_fresh_command_is_fresh_whatever_another_replica_s_clock_said() -> None:
    """After a replica whose clock ran an hour ahead, operators are not locked out for an hour."""
    ahead = replace(in_phase(PhaseName.BAKING), updated_at=T0 + HOUR)
    promote = make_command(CommandVerb.PROMOTE, issued_at=T0)
    assert after(ahead, promote, T0).phase == Completed(T0 + HOUR)


def test_who_and_why_stand_in_the_decision() -> None:
    """A command's decision names its issuer, reason, id, and the percentages before and after."""
    _, effects = decide(in_phase(PhaseName.BAKING), make_command(CommandVerb.STEP_BACK), SOON)
    decision = effects[0]
    assert isinstance(decision, PublishDecision)
    assert (decision.kind, decision.issuer, decision.reason) == (
        DecisionKind.STEP_BACK,
        "ada",
        "because",
    )
    assert (decision.command_id, decision.from_percent, decision.to_percent) == (
        "command-1",
        50.0,
        10.0,
    )


def test_the_next_rollout_s_revision_goes_on() -> None:
    """A flag's revision never falls, over all its rollouts."""
    ended = replace(in_phase(PhaseName.ABORTED), revision=41)
    started = after(ended, make_command(CommandVerb.RESTART, command_id="restart-1"))
    assert (started.revision, started.rollout_id, started.plan) == (42, "restart-1", ended.plan)


# --- orders for another time ---


LATER = T0 + 5 * HOUR


def issued(verb: CommandVerb, ago: timedelta, **overrides: object) -> CommandReceived:
    """Return a command that was issued so long before `LATER`."""
    return make_command(verb, issued_at=LATER - ago, **overrides)


@pytest.mark.parametrize(
    "verb", [CommandVerb.ROLL_BACK, CommandVerb.ABORT, CommandVerb.PAUSE, CommandVerb.STEP_BACK]
)
@pytest.mark.parametrize("phase", [None, Completed(T0 + HOUR)])
def test_an_order_read_again_lowers_no_later_rollout(
    verb: CommandVerb, phase: Completed | None
) -> None:
    """Issued before the rollout began and in the log before we read there.

    Rejected, and it says for which one it was.
    """
    rollout = make_rollout(phase=phase, percent=10.0)
    assert (
        status(decide(rollout, issued(verb, timedelta(hours=5, minutes=6), is_backlog=True), LATER))
        is CommandStatus.REJECTED
    )
    order = issued(verb, timedelta(hours=5, minutes=6), is_backlog=True)
    after, effects = decide(rollout, order, LATER)
    assert after is rollout
    assert isinstance(effects[-1], AnswerCommand)
    assert "before this rollout began at 2026-01-05T09:00:00" in effects[-1].reason


@pytest.mark.parametrize(
    ("ago", "overrides"),
    [
        (
            timedelta(hours=4),
            {"is_backlog": True},
        ),  # during the rollout: an outage of hours makes it no less an order
        (timedelta(hours=5, minutes=4), {"is_backlog": True}),  # clocks differ by minutes
        (timedelta(hours=23), {}),  # sent just now by a clock that is slow by nearly a day
        (
            timedelta(days=40),
            {"expected_revision": 1, "is_backlog": True},
        ),  # whoever names the revision has seen it
    ],
)
def test_an_order_for_this_rollout_lowers_it_late_and_by_a_slow_clock(
    ago: timedelta, overrides: dict[str, object]
) -> None:
    """An operator with a slow clock is heard: 0 % is served."""
    after, effects = decide(make_rollout(), issued(CommandVerb.ROLL_BACK, ago, **overrides), LATER)
    assert after is not None
    assert after.percent == 0
    assert status((after, effects)) is CommandStatus.ACCEPTED


@pytest.mark.parametrize("verb", [CommandVerb.ROLL_BACK, CommandVerb.ABORT, CommandVerb.PAUSE])
def test_a_command_for_one_rollout_lowers_no_other(verb: CommandVerb) -> None:
    """Also where it was issued after this one began: a replica took it for the one it served."""
    rollout = make_rollout()
    other = issued(verb, HOUR, for_rollout="the-one-before")
    after, effects = decide(rollout, other, LATER)
    assert after is rollout
    assert isinstance(effects[-1], AnswerCommand)
    assert "another one has begun" in effects[-1].reason
    slow = issued(verb, timedelta(hours=9), for_rollout=rollout.rollout_id, is_backlog=True)
    assert status(decide(rollout, slow, LATER)) is CommandStatus.ACCEPTED


def test_an_order_of_more_than_a_day_ago_is_none_for_now() -> None:
    """Whatever was read again after a day lowers nothing, also in the rollout it was for."""
    rollout = make_rollout(started_at=T0 - 90 * HOUR)
    assert (
        status(decide(rollout, issued(CommandVerb.ROLL_BACK, timedelta(hours=25)), LATER))
        is CommandStatus.REJECTED
    )
    assert (
        status(decide(rollout, issued(CommandVerb.ROLL_BACK, timedelta(hours=23)), LATER))
        is CommandStatus.ACCEPTED
    )


def status(outcome: tuple[Rollout | None, tuple[Effect, ...]]) -> CommandStatus:
    """Return how the command was answered."""
    (answer,) = (effect for effect in outcome[1] if isinstance(effect, AnswerCommand))
    return answer.status


def test_a_completed_rollout_gets_another_end() -> None:
    """Its end can come later, with a reason, or never; no stage is left to run by another plan."""
    old = make_plan(stages=make_stages(10, 50), ends_at=T0 + HOUR, expires_at=T0 + SECOND)
    before = make_rollout(plan=old, phase=Completed(T0), percent=50.0, updated_at=T0)
    kept = replace(old, ends_at=None)

    def applied(plan: Plan, reason: str = "", now: datetime = SOON) -> tuple[Rollout, str]:
        command = make_command(
            CommandVerb.APPLY, plan=plan, reason=reason, expected_revision=1, issued_at=now
        )
        after, effects = decide(before, command, now)
        answer = effects[-1]
        assert after is not None
        assert isinstance(answer, AnswerCommand)
        return after, answer.reason

    assert applied(kept)[0] is before
    later, _ = applied(replace(old, ends_at=T0 + 9 * HOUR), "it sells")
    assert (later.phase, later.percent, later.revision) == (before.phase, 50.0, 2)
    assert next_deadline(later) == T0 + 9 * HOUR
    assert next_deadline(applied(kept, "it stays")[0]) is None
    assert applied(replace(old, ends_at=T0 + HOUR / 2))[0].plan.ends_at == T0 + HOUR / 2
    shorter, why = applied(replace(old, stages=make_stages(10, 20)), "less")
    assert (shorter, "only its end and active windows can change" in why) == (before, True)
    assert applied(kept, "too late", T0 + HOUR)[0] is before


# --- the bound on visits ---


def with_visits(count: int) -> Rollout:
    """Return a rollout in its second stage that has entered its stages so often."""
    rollout = in_phase(PhaseName.BAKING)
    earlier = (rollout.visits[0],) * (count - 1)
    return replace(rollout, visits=(*earlier, rollout.visits[-1]))


def test_the_last_visit_is_reached_and_not_passed() -> None:
    """Retries add visits up to the bound; then each is rejected with what to do."""
    rollout = with_visits(MOST_VISITS - 2)
    for number in range(5):
        moved, effects = decide(rollout, make_command(CommandVerb.RETRY), SOON)
        assert moved is not None
        is_accepted = status((moved, effects)) is CommandStatus.ACCEPTED
        assert is_accepted == (number < 2)
        if not is_accepted:
            assert moved is rollout
            assert isinstance(effects[-1], AnswerCommand)
            assert effects[-1].reason == TOO_MANY_VISITS
        rollout = moved
    assert len(rollout.visits) == MOST_VISITS


@pytest.mark.parametrize("visits", [MOST_VISITS, MOST_VISITS + 5])
@pytest.mark.parametrize(
    "command",
    [
        make_command(CommandVerb.RETRY),
        make_command(
            CommandVerb.APPLY,
            plan=make_plan(stages=make_stages(10, 40)),
            expected_revision=1,
        ),
    ],
)
def test_commands_that_repeat_end_at_the_bound(visits: int, command: CommandReceived) -> None:
    """Also a plan that begins the stage again."""
    rollout = with_visits(visits)
    assert after(rollout, command) is rollout


@pytest.mark.parametrize("visits", [MOST_VISITS, MOST_VISITS + 5])
@pytest.mark.parametrize(
    "verb",
    [CommandVerb.PROMOTE, CommandVerb.PROMOTE_FULL],
)
def test_promotion_to_another_stage_ends_at_the_bound(visits: int, verb: CommandVerb) -> None:
    """The last gate may be passed all the same: completing adds no visit."""
    rollout = with_visits(visits)
    assert isinstance(after(rollout, make_command(verb)).phase, Completed)
    earlier = replace(rollout, phase=Baking(0, T0 + HOUR), percent=10.0)
    assert after(earlier, make_command(verb)) is earlier


@pytest.mark.parametrize(
    "verb",
    [CommandVerb.ROLL_BACK, CommandVerb.ABORT, CommandVerb.STEP_BACK, CommandVerb.PAUSE],
)
def test_lowering_is_never_refused_for_visits(verb: CommandVerb) -> None:
    """A step back goes beyond the bound."""
    outcome = decide(with_visits(MOST_VISITS), make_command(verb), SOON)
    assert status(outcome) is CommandStatus.ACCEPTED


def test_the_next_rollout_begins_with_one_visit() -> None:
    """The bound is of one rollout, not of the flag."""
    rollout = after(with_visits(MOST_VISITS + 5), make_command(CommandVerb.ABORT))
    command = make_command(CommandVerb.RESTART, command_id="restart-1", issued_at=SOON)
    assert len(after(rollout, command).visits) == 1
