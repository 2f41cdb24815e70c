"""The invariants of the state machine, on whole histories drawn near what the state waits for.

What advice may do is in `test_machine_advice.py`. Which planted bugs each test catches is in
`tests/planted/test_planted_bugs.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest

from controller.codec.rollouts import rollout_from_json, rollout_to_json
from controller.core.command_ages import COMMAND_MAX_AGE
from controller.core.effects import AskAdvice, PublishDecision, RaiseAlert
from controller.core.events import CommandReceived, EvidenceJudged, Ticked
from controller.core.invariants import Step, violations
from controller.core.machine import decide, is_frozen, next_deadline
from controller.core.rollout import (
    Aborted,
    AwaitingApproval,
    Baking,
    Completed,
    Gating,
    Paused,
    Retired,
    RolledBack,
    Rollout,
    Scheduled,
)
from schemas.terms import (
    METRIC_GAPS,
    WEBHOOK_GAPS,
    CommandStatus,
    CommandVerb,
    HealthGap,
    HoldReason,
    OnBreach,
    Verdict,
)
from tests.property.history_checks import (
    MANY,
    answers,
    has_ended,
    invariant,
    is_accepted,
    percent,
    visible,
)

pytestmark = pytest.mark.property

RAISING_COMMANDS = {
    CommandVerb.START,
    CommandVerb.RESTART,
    CommandVerb.APPROVE,
    CommandVerb.PROMOTE,
    CommandVerb.PROMOTE_FULL,
}


@invariant(MANY)
def test_i1_percent_rises_only_by_a_passed_gate_a_command_or_the_scheduled_start(
    steps: Iterator[Step],
) -> None:
    """Percent rises by a passed gate of the present stage, or to what it was before a closing.

    One stage at most, by a command that may, or by the start time.
    """
    for step in steps:
        if percent(step.after) <= percent(step.before):
            continue
        assert step.after is not None
        if isinstance(step.event, EvidenceJudged):
            assert step.before is not None
            assert isinstance(step.before.phase, Gating)
            assert step.after.stage_index == step.before.phase.stage + 1
            decision = next(
                effect for effect in step.effects if isinstance(effect, PublishDecision)
            )
            assert decision.gate_id == step.before.phase.gate_id
        elif isinstance(step.event, Ticked):
            assert step.before is not None
            if step.before.closed_since is not None:  # an active window begins
                assert step.after.percent == step.before.decided_percent
                assert step.after.stage_index == step.before.stage_index
                continue
            assert isinstance(step.before.phase, Scheduled)
            assert step.after.stage_index == 0
        else:
            assert is_accepted(step, *RAISING_COMMANDS)
            assert isinstance(step.event, CommandReceived)
            assert step.now - step.event.issued_at <= COMMAND_MAX_AGE


@invariant(MANY)
def test_i3_a_breach_acts_at_once_in_every_live_phase(steps: Iterator[Step]) -> None:
    """Whatever else is the case, a breach lowers to 0 %.

    Or does what its own policy says, in the very step that sees it.
    """
    for step in steps:
        if not isinstance(step.event, EvidenceJudged) or step.event.judgement.breach is None:
            continue
        if step.before is None or not isinstance(
            step.before.phase, Baking | Gating | AwaitingApproval | Paused
        ):
            # A window of the plan may close or open at any event, and its end may come, at which
            # nothing is served any more.
            assert step.after is step.before or (
                step.before is not None
                and step.after is not None
                and (
                    (step.after.phase == step.before.phase and step.before.plan.active)
                    or (has_ended(step) and step.after.percent == 0)
                )
            )
            continue
        assert step.after is not None
        if not step.before.visits:  # paused before the start: nobody is exposed
            assert step.after.percent == 0
            continue
        match step.event.judgement.breach.on_breach:
            case OnBreach.ROLL_BACK:
                assert isinstance(step.after.phase, RolledBack)
                assert step.after.percent == 0
            case OnBreach.STEP_BACK:
                assert percent(step.after) < percent(step.before) or step.before.percent == 0
            case OnBreach.PAUSE:
                # A lasting gap may be harsher.
                assert isinstance(step.after.phase, Paused | RolledBack)
                assert (
                    isinstance(step.after.phase, RolledBack)
                    or step.after.phase.reason is HoldReason.BREACH
                    or step.before.stage_index is None
                )


@invariant(MANY)
def test_i4_a_roll_back_is_final_until_another_command_starts_another_rollout(
    steps: Iterator[Step],
) -> None:
    """After a rollback or abort, 0 % is served until a new start or restart is accepted."""
    begun: set[str] = set()
    for step in steps:
        if step.after is None:
            continue
        if step.before is None or step.after.rollout_id != step.before.rollout_id:
            assert is_accepted(step, CommandVerb.START, CommandVerb.RESTART)
            assert isinstance(step.event, CommandReceived)
            assert step.event.command_id == step.after.rollout_id
            assert step.after.rollout_id not in begun
            begun.add(step.after.rollout_id)
        elif isinstance(step.before.phase, RolledBack | Aborted):
            assert step.after.percent == 0
            assert isinstance(step.after.phase, RolledBack | Aborted | Retired)


@invariant(MANY)
def test_i4_nothing_advances_without_a_pass_that_has_no_gap(steps: Iterator[Step]) -> None:
    """Evidence raises a stage only when it passes, has no gap and is current (also I17)."""
    for step in steps:
        if step.before is None or step.after is None or not isinstance(step.event, EvidenceJudged):
            continue
        has_advanced = percent(step.after) > percent(step.before) or (
            isinstance(step.after.phase, Completed) and not isinstance(step.before.phase, Completed)
        )
        if has_advanced:
            seen = step.event.judgement
            assert seen.gaps == ()
            assert seen.statistics is Verdict.PASS
            assert seen.visit == step.before.visit_index


@invariant(MANY)
def test_i5_each_command_gets_one_answer_and_a_rejected_one_changes_nothing(
    steps: Iterator[Step],
) -> None:
    """A command is answered once, with its id and the revision after it.

    No other event answers; a rejected one is inert.
    """
    for step in steps:
        given_answers = answers(step)
        if not isinstance(step.event, CommandReceived):
            assert given_answers == []
            continue
        (answer,) = given_answers
        assert (answer.command_id, answer.verb) == (step.event.command_id, step.event.verb)
        assert answer.revision == (0 if step.after is None else step.after.revision)
        if answer.status is CommandStatus.REJECTED:
            assert step.after is step.before
            assert len(step.effects) == 1


@invariant(MANY)
def test_i5_lowering_always_works(steps: Iterator[Step]) -> None:
    """Pause, roll back and abort are accepted with any revision.

    And roll back and abort serve 0 % after.

    Refused are those that were issued for an earlier rollout and are read again, see the next test.
    """
    for step in steps:
        if isinstance(step.event, CommandReceived) and step.before is not None:
            if is_for_another_time(step.event, step.before):
                continue
            if isinstance(step.before.phase, Retired):
                continue  # nothing is served for it: there is nothing to lower
            if step.event.verb in (CommandVerb.ROLL_BACK, CommandVerb.ABORT):
                assert is_accepted(step, step.event.verb)
                assert percent(step.after) == 0
            if step.event.verb is CommandVerb.PAUSE:
                assert is_accepted(step, CommandVerb.PAUSE)
                assert step.after is not None
                assert isinstance(step.after.phase, Paused) or step.after.has_ended


def is_for_another_time(command: CommandReceived, rollout: Rollout) -> bool:
    """Tell whether a command was issued, surely, before the rollout began.

    And may be one that is read again.
    """
    began = rollout.started_at - timedelta(minutes=5)
    return (
        command.is_backlog
        and command.issued_at < began
        and command.expected_revision != rollout.revision
    )


@invariant(MANY)
def test_b7_an_order_for_an_earlier_rollout_changes_nothing(steps: Iterator[Step]) -> None:
    """Commands read again after a loss change no rollout that began after they were issued."""
    for step in steps:
        if not isinstance(step.event, CommandReceived) or step.before is None:
            continue
        if step.event.verb in (CommandVerb.START, CommandVerb.RESTART):
            continue
        if is_for_another_time(step.event, step.before):
            assert step.after is step.before
            assert [answer.status for answer in answers(step)] == [CommandStatus.REJECTED]


@invariant(MANY)
def test_no_history_breaks_a_rule_that_is_checked_in_production(steps: Iterator[Step]) -> None:
    """What stands in `core/invariants.py` holds of every decision of the machine."""
    for step in steps:
        assert violations(step, outbox=0, outbox_limit=200, bake_left_seconds=None) == []


@invariant(MANY)
def test_i7_the_revision_grows_by_one_per_transition_and_time_never_falls(
    steps: Iterator[Step],
) -> None:
    """What an operator or an app can see changes with the revision and only then.

    Nothing is published without one.
    """
    for step in steps:
        if step.before is None or step.after is None:
            assert step.after is None or step.after.revision == 1
            continue
        grown = step.after.revision - step.before.revision
        assert grown in (0, 1)
        assert step.after.updated_at >= step.before.updated_at
        if grown == 0:
            assert visible(step.after) == visible(step.before)
            assert not any(
                isinstance(effect, PublishDecision | RaiseAlert) for effect in step.effects
            )
            assert step.after.updated_at == step.before.updated_at
        if step.after is not step.before and grown == 0:
            assert isinstance(
                step.before.phase, Gating
            )  # the question to the model is no transition
            assert isinstance(step.after.phase, Gating)
            assert replace(step.before.phase, advice=None) == replace(step.after.phase, advice=None)


@invariant(MANY)
def test_the_timeline_is_closed(steps: Iterator[Step]) -> None:
    """Visits follow each other without overlap, only the last of a live rollout is open.

    And it is the percentage served.
    """
    for step in steps:
        if step.after is None:
            continue
        visits = step.after.visits
        for earlier, later in pairwise(visits):
            assert earlier.left_at == later.entered_at
        for visit in visits:
            assert visit.entered_at <= visit.counts_from
            assert visit.left_at is None or visit.left_at >= visit.entered_at
        if step.after.stage_index is not None:
            assert visits[-1].left_at is None
            assert visits[-1].stage == step.after.stage_index
            assert (
                visits[-1].percent
                == step.after.decided_percent
                == step.after.plan.stages[step.after.stage_index].percent
            )
        elif visits:
            assert visits[-1].left_at is not None


@invariant(MANY)
def test_i12_a_replay_gives_the_same_rollout_and_a_round_trip_changes_nothing(
    steps: Iterator[Step],
) -> None:
    """The rollout is the fold of its events.

    Also when it is stored as JSON and read again in the middle.
    """
    rollout: Rollout | None = None
    for number, step in enumerate(steps):
        if number % 9 == 8 and rollout is not None:
            rollout = rollout_from_json(rollout_to_json(rollout))
        rollout, effects = decide(rollout, step.event, step.now)
        assert effects == step.effects
        assert rollout == step.after
    if rollout is not None:
        assert rollout_from_json(rollout_to_json(rollout)) == rollout


@invariant(MANY)
def test_i16_a_live_phase_has_a_deadline_and_its_tick_makes_progress(steps: Iterator[Step]) -> None:
    """A rollout that waits for time says until when, unless an operator froze it.

    Being woken then is never in vain.
    """
    for step in steps:
        rollout = step.after
        if rollout is None or not isinstance(rollout.phase, Scheduled | Baking | Gating):
            continue
        deadline = next_deadline(rollout)
        if deadline is None:
            assert rollout.freeze is not None
            assert not isinstance(rollout.phase, Baking) or rollout.closed_since is not None
            continue
        after, _ = decide(rollout, Ticked(), deadline)
        assert after is not rollout


@invariant(MANY)
def test_i16_a_gate_left_alone_closes(steps: Iterator[Step]) -> None:
    """When only time passes, a gate ends at its deadline, an open question at its own."""
    for step in steps:
        rollout = step.after
        ticks = 0
        closed = 0
        while rollout is not None and isinstance(rollout.phase, Gating) and rollout.freeze is None:
            closed += rollout.closed_since is not None
            deadline = next_deadline(rollout)
            assert deadline is not None
            rollout, _ = decide(rollout, Ticked(), deadline)
            ticks += 1
            # The question, the end of a freeze, the gate; and the edges of active windows.
            assert ticks <= 4 + 3 * closed


@invariant(MANY)
def test_i16_an_asked_round_is_closed_at_its_deadline_whatever_comes(steps: Iterator[Step]) -> None:
    """The first event past a round's deadline ends it, as no advice.

    Rounds are counted and bounded.
    """
    asked: Counter[str] = Counter()
    for step in steps:
        for effect in step.effects:
            if isinstance(effect, AskAdvice) and step.before is not None:
                assert 1 <= effect.round <= step.before.plan.advisor.hold_rounds
                assert effect.until > step.now or effect.until > step.before.updated_at
                asked[effect.gate_id] += 1
        if (
            step.before is None
            or isinstance(step.event, CommandReceived)
            or not isinstance(step.before.phase, Gating)
        ):
            continue
        round_ = step.before.phase.advice
        if (
            round_ is None
            or round_.is_closed
            or max(step.now, step.before.updated_at) < round_.until
        ):
            continue
        after = step.after
        assert after is not None
        if isinstance(after.phase, Gating):
            assert after.phase.advice is None or after.phase.advice.is_closed
            assert after.phase.advice is None or after.phase.advice.answer is None


@invariant(MANY)
def test_i17_gaps_never_raise(steps: Iterator[Step]) -> None:
    """Incomplete evidence (stale, tainted, too small, ...) raises nothing under any policy."""
    for step in steps:
        if isinstance(step.event, EvidenceJudged) and step.event.judgement.gaps:
            assert percent(step.after) <= percent(step.before)


@invariant(MANY)
def test_i17_what_a_person_approves_still_passed_a_minute_ago(steps: Iterator[Step]) -> None:
    """A request to a person is withdrawn when, after a minute, evidence no longer passes.

    A gap that time may close has the plan's grace time as well.
    """
    closes = {HealthGap.NO_TRAFFIC, HealthGap.NO_OUTCOMES, HealthGap.STALE}
    closes |= {HealthGap.MULTIPLE_EXPOSURE, HealthGap.ACTUATION_DRIFT, *METRIC_GAPS}
    closes |= {*WEBHOOK_GAPS}
    for step in steps:
        if step.before is None or not isinstance(step.before.phase, AwaitingApproval):
            continue
        if (
            not isinstance(step.event, EvidenceJudged)
            or step.event.judgement.visit != step.before.visit_index
        ):
            continue
        seen = step.event.judgement
        now = max(step.now, step.before.updated_at)
        grace = step.before.plan.health_grace.total_seconds()
        gaps = [
            gap
            for gap in seen.gaps
            if gap.kind not in closes or gap.is_observed or seen.seconds_of(gap.kind) >= grace
        ]
        if now - step.before.updated_at < timedelta(minutes=1):
            continue
        assert step.after is not None
        if seen.statistics is Verdict.PASS and not gaps and seen.breach is None:
            is_kept = step.after is step.before or not isinstance(step.after.phase, Gating)
            assert is_kept, "a gap of a moment withdraws nothing"
        if gaps or seen.statistics is not Verdict.PASS:
            assert not isinstance(step.after.phase, AwaitingApproval)
            assert step.after.revision == step.before.revision + 1


@invariant(MANY)
def test_i19_a_clock_set_back_never_shortens_a_bake(steps: Iterator[Step]) -> None:
    """A gate opens at or after the end of the bake by the event's own clock.

    And pauses take nothing off the bake.
    """
    baked = timedelta(0)
    for step in steps:
        before, after = step.before, step.after
        if before is None or after is None:
            continue
        if len(after.visits) != len(before.visits) or after.rollout_id != before.rollout_id:
            baked = timedelta(0)
        elif isinstance(before.phase, Baking):
            baked += after.updated_at - before.updated_at
        if isinstance(before.phase, Baking) and isinstance(after.phase, Gating):
            visit = before.visits[-1]
            assert (
                step.now >= before.phase.until or before.phase.until <= before.updated_at
            )  # or no bake was owed
            assert (
                baked >= visit.counts_from - visit.entered_at + before.plan.stages[visit.stage].bake
            )


@invariant(MANY)
def test_nothing_advances_in_a_freeze(steps: Iterator[Step]) -> None:
    """During a freeze nothing raises the percentage or completes; lowering works."""
    for step in steps:
        if step.before is None or step.before.has_ended or step.after is None:
            continue
        if is_frozen(step.before, max(step.now, step.before.updated_at)):
            assert percent(step.after) <= percent(step.before)
            assert not isinstance(step.after.phase, Completed)


@invariant(MANY)
def test_gate_ids_name_one_gate_each(steps: Iterator[Step]) -> None:
    """No two gates of a flag share an id, so that no answer can be taken for another gate's."""
    seen: set[str] = set()
    for step in steps:
        if step.after is None or not isinstance(step.after.phase, Gating):
            continue
        gate_id = step.after.phase.gate_id
        is_same = (
            step.before is not None
            and isinstance(step.before.phase, Gating)
            and step.before.phase.gate_id == gate_id
        )
        assert is_same or gate_id not in seen
        seen.add(gate_id)
