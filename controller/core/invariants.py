"""Rules that no transition may break, whatever decided it: checked in production before each save.

They state from the outside, each independently, what `machine/` is built to do. A transition that
would raise the percentage against one of them is not saved. Everything is pure: one small function
per rule, with the numbers of the specification.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from controller.core.effects import AnswerCommand, Effect, PublishDecision
from controller.core.events import CommandReceived, CommandUnusable, Event, EvidenceJudged, Ticked
from controller.core.judging.webhooks import is_about
from controller.core.machine import decide, is_frozen
from controller.core.machine.times import missed_closing
from controller.core.plan import AdvisorPolicy
from controller.core.rollout import (
    Aborted,
    Baking,
    Completed,
    Gating,
    Paused,
    Retired,
    RolledBack,
    Rollout,
    Scheduled,
)
from controller.core.windows import is_active
from schemas.terms import (
    AdvisorMode,
    Arm,
    CommandStatus,
    CommandVerb,
    DecisionKind,
    GateAnswer,
    HealthGap,
    OnBreach,
)

#: Labels of the counter, one per function below.
RULES = ("I1", "I3", "I4", "I4'", "I5", "I6", "I7", "I14", "I16", "I17", "I19", "I25")
#: A gate decides at the first event past its deadline. The two readings of the clock may differ by
#: this.
GATE_EPSILON = timedelta(seconds=1)
#: A bake ends by a timer that may fire a little early.
BAKE_EPSILON_SECONDS = 1.0

_RAISED_BY = frozenset(
    {DecisionKind.START, DecisionKind.ADVANCE, DecisionKind.COMPLETE, DecisionKind.OPEN}
)
_MAY_RAISE = frozenset(
    {
        CommandVerb.START,
        CommandVerb.RESTART,
        CommandVerb.APPROVE,
        CommandVerb.PROMOTE,
        CommandVerb.PROMOTE_FULL,
    }
)


@dataclass(frozen=True, slots=True)
class Step:
    """One decision before it is saved: what was, what happened and when, and what follows."""

    before: Rollout | None
    event: Event
    now: datetime  # when it was decided
    after: Rollout | None
    effects: tuple[Effect, ...]

    @property
    def decision(self) -> PublishDecision | None:
        """The entry for the audit log; None where nothing was decided."""
        return next((each for each in self.effects if isinstance(each, PublishDecision)), None)

    @property
    def is_raise(self) -> bool:
        """Whether more contexts may see treatment after it."""
        return self.after is not None and raises_exposure(self.before, self.after)


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that a transition breaks."""

    rule: str
    why: str  # with the numbers
    forbids: bool  # True: the transition must not be saved; False: it only lowers or holds


def raises_exposure(before: Rollout | None, after: Rollout) -> bool:
    """Return whether more contexts may see treatment.

    That is so at a higher percentage, and in a later stage of the same rollout.
    """
    if before is None or before.rollout_id != after.rollout_id:
        return after.percent > (0.0 if before is None else before.percent)
    if after.percent > before.percent:
        return True
    if after.stage_index is None or before.stage_index is None:
        return False
    # A stage may be later and lower: 10 % of all contexts after 50 % of a small audience.
    return after.stage_index > before.stage_index


def violations(
    step: Step,
    *,
    outbox: int,
    outbox_limit: int,
    bake_left_seconds: float | None,
) -> list[Violation]:
    """Return every rule that the step breaks; empty when all is well.

    `outbox` is the number of effects that wait for Kafka. `bake_left_seconds` is what is left of
    the bake by the monotonic clock of this process, None when no bake lasts.
    """
    is_raise = step.is_raise
    checks: Iterator[tuple[str, str | None]] = iter(
        (
            ("I1", raise_without_cause(step)),
            ("I3", breach_unanswered(step)),
            ("I4", revived(step)),
            ("I4'", too_small_a_sample(step)),
            ("I5", answers(step)),
            ("I6", higher_with_advice(step)),
            ("I7", revision(step)),
            ("I14", outbox_overflow(step, outbox, outbox_limit)),
            ("I16", gate_past_deadline(step)),
            ("I17", advance_despite_gaps(step)),
            ("I19", shortened_bake(step, bake_left_seconds)),
            ("I25", served_outside_windows(step)),
        )
    )
    forbidding = ("I4", "I19", "I25")
    return [
        Violation(rule, why, is_raise or rule in forbidding)
        for rule, why in checks
        if why is not None
    ]


def raise_without_cause(step: Step) -> str | None:
    """I1: percent rises only with a decision that names a passed gate, or a command.

    A gate leads up by one stage. An active window that begins leads to what was decided before.
    """
    before, after = step.before, step.after
    if after is None or not step.is_raise:
        return None
    decision = step.decision
    if decision is None or decision.kind not in _RAISED_BY:
        kind = "no decision" if decision is None else f"a decision to {decision.kind}"
        return f"{kind} raises to {after.percent:g} %"
    event = step.event
    if isinstance(event, CommandReceived):
        if event.verb not in _MAY_RAISE or decision.command_id != event.command_id:
            return f"command {event.command_id} ({event.verb}) raises to {after.percent:g} %"
        return None
    if before is None or before.rollout_id != after.rollout_id:
        return f"{type(event).__name__} starts a rollout"
    if decision.kind is DecisionKind.OPEN:
        return _opened_wrongly(before, event, after)
    if isinstance(event, Ticked) and isinstance(before.phase, Scheduled):
        return None if after.stage_index == 0 else f"its start leads to stage {after.stage_index}"
    if not isinstance(event, EvidenceJudged) or not isinstance(before.phase, Gating):
        return f"{type(event).__name__} in phase {before.phase.name} raises to {after.percent:g} %"
    if decision.gate_id != before.phase.gate_id:
        return f"gate {decision.gate_id} is named, {before.phase.gate_id} was asked"
    if after.stage_index != before.phase.stage + 1:
        return f"one gate leads from stage {before.phase.stage} to {after.stage_index}"
    return None


def _opened_wrongly(before: Rollout, event: Event, after: Rollout) -> str | None:
    """Return what is wrong with a rise at the begin of an active window, None for nothing."""
    if not isinstance(event, Ticked) or before.closed_since is None:
        return f"{type(event).__name__} opens a rollout that is {before.phase.name}"
    if isinstance(before.phase, Paused) or before.freeze is not None:
        return "a rollout opens that is paused or frozen"
    if (after.percent, after.stage_index) != (before.visits[-1].percent, before.stage_index):
        return f"it opens at {after.percent:g} %, {before.visits[-1].percent:g} % was decided"
    return None


def served_outside_windows(step: Step) -> str | None:
    """I25: while a rollout is closed it serves 0 %, and nothing rises outside active windows."""
    after = step.after
    if after is None or not after.plan.active:
        return None
    if after.closed_since is not None and after.percent > 0:
        return f"{after.percent:g} % is served while it is closed"
    if step.is_raise and after.percent > 0 and not is_active(after.plan.active, after.updated_at):
        return f"{after.percent:g} % is reached outside the active windows"
    return None


def breach_unanswered(step: Step) -> str | None:
    """I3: a breach leads in the same step to 0 %, the stage below or a pause, as the plan says."""
    before, after, event = step.before, step.after, step.event
    if before is None or after is None or not isinstance(event, EvidenceJudged):
        return None
    breach = event.judgement.breach
    if breach is None or not before.phase.is_guarded or before.stage_index is None:
        return None  # before the first stage nothing is served that could be lowered
    is_lower = after.percent < before.percent or after.phase.serves_nothing
    is_lower = is_lower or (after.stage_index or 0) < (before.stage_index or 0)
    if is_lower or (breach.on_breach is OnBreach.PAUSE and isinstance(after.phase, Paused)):
        return None
    return f"{breach.metric} is breached and {before.percent:g} % becomes {after.percent:g} %"


def revived(step: Step) -> str | None:
    """I4: a roll back is final: percent stays 0 until a start with a new rollout id."""
    before, after = step.before, step.after
    if before is None or not isinstance(before.phase, RolledBack | Aborted | Retired):
        return None
    if after is None:
        return "a rollout that has ended is gone"
    if after.rollout_id == before.rollout_id:
        if after.percent != 0 or not isinstance(after.phase, RolledBack | Aborted | Retired):
            return f"{before.phase.name} becomes {after.phase.name} at {after.percent:g} %"
        return None
    event = step.event
    is_start = isinstance(event, CommandReceived) and event.verb in (
        CommandVerb.START,
        CommandVerb.RESTART,
    )
    return None if is_start else f"{type(event).__name__} starts rollout {after.rollout_id}"


def too_small_a_sample(step: Step) -> str | None:
    """I4': no verdict without the minimum sample in both arms; at 100 % there is one arm."""
    before, event = step.before, step.event
    if before is None or not isinstance(event, EvidenceJudged) or before.plan.blind:
        return None
    if not _has_passed(step) or before.stage is None:
        return None
    arms = [Arm.TREATMENT, Arm.CONTROL] if before.percent < 100 else [Arm.TREATMENT]
    few = [arm for arm in arms if event.judgement.exposures.get(arm, 0) < before.stage.min_sample]
    if not few:
        return None
    counted = ", ".join(f"{arm} {event.judgement.exposures.get(arm, 0)}" for arm in few)
    return f"a gate passes with {counted} of {before.stage.min_sample} contexts"


def answers(step: Step) -> str | None:
    """I5: each command gets exactly one result, and a rejected one changes nothing."""
    given = [each for each in step.effects if isinstance(each, AnswerCommand)]
    event = step.event
    if not isinstance(event, CommandReceived | CommandUnusable):
        return f"{type(event).__name__} answers {given[0].command_id}" if given else None
    if [each.command_id for each in given] != [event.command_id]:
        return f"command {event.command_id} gets {len(given)} answers"
    if given[0].status is CommandStatus.REJECTED and step.after is not step.before:
        return f"command {event.command_id} is rejected and changes the rollout"
    return None


def higher_with_advice(step: Step) -> str | None:
    """I6: for any advice, percent with it is at most percent without an advisor."""
    before, after = step.before, step.after
    if before is None or after is None or before.rollout_id != after.rollout_id:
        return None
    if before.plan.advisor.mode is AdvisorMode.OFF or not step.is_raise:
        return None
    plain, _ = decide(without_advice(before), step.event, step.now)
    if plain is not None and after.percent <= plain.percent:
        return None
    lower = 0.0 if plain is None else plain.percent
    return f"{after.percent:g} % with advice, {lower:g} % without"


def without_advice(rollout: Rollout) -> Rollout:
    """Return the same moment of the same rollout under a plan without an advisor."""
    plan = replace(rollout.plan, advisor=AdvisorPolicy(mode=AdvisorMode.OFF))
    phase = rollout.phase
    if isinstance(phase, Gating):
        phase = replace(phase, advice=None)
    elif isinstance(phase, Paused) and isinstance(phase.held, Gating):
        phase = replace(phase, held=replace(phase.held, advice=None))
    return replace(rollout, plan=plan, phase=phase)


def revision(step: Step) -> str | None:
    """I7: the revision grows by 1 per transition; the same revision is the same document."""
    before, after = step.before, step.after
    if after is None or after is before:
        return None
    event = step.event
    first = event.last_revision if isinstance(event, CommandReceived) else 0
    previous = first if before is None else before.revision
    if after.revision == previous + 1:
        return None
    if before is not None and after.revision == previous and _visible(before) == _visible(after):
        return None  # a change of the question to the model is no transition
    return f"revision {previous} is followed by {after.revision}"


def outbox_overflow(step: Step, outbox: int, limit: int) -> str | None:
    """I14: the outbox is bounded; when it is full the controller stops raising, never lowering."""
    if outbox < limit or not step.is_raise:
        return None
    return f"the percentage rises while {outbox} effects wait"


def gate_past_deadline(step: Step) -> str | None:
    """I16: the gate decides at its deadline at the latest, whatever the model does."""
    before, after, now = step.before, step.after, step.now
    if before is None or not isinstance(before.phase, Gating) or after is None:
        return None
    if not isinstance(step.event, Ticked | EvidenceJudged) or is_frozen(before, now):
        return None
    if before.closed_since is not None or after.closed_since is not None:
        return None  # its time stands still
    if missed_closing(before, now) is not None:
        return None  # the next tick closes the gate
    if now < before.phase.until + GATE_EPSILON or not isinstance(after.phase, Gating):
        return None
    if after.phase.gate_id != before.phase.gate_id or after.phase.until > now:
        return None
    return f"gate {before.phase.gate_id} is open {now - before.phase.until} after its deadline"


def advance_despite_gaps(step: Step) -> str | None:
    """I17: no advance on stale, tainted, too small or otherwise incomplete evidence.

    Nor without the `pass` of each gate webhook about this very gate and its present plan.
    """
    event, before = step.event, step.before
    if not isinstance(event, EvidenceJudged) or before is None or not _has_passed(step):
        return None
    passed = {
        one.endpoint
        for one in event.judgement.replies
        if one.answer is GateAnswer.PASS and is_about(one, before)
    }
    missing = {one.endpoint for one in before.plan.gate_webhooks} - passed
    if missing:
        return f"a gate passes without the `pass` of {', '.join(sorted(missing))}"
    if not event.judgement.gaps:
        return None
    kinds = ", ".join(sorted({HealthGap(gap.kind).value for gap in event.judgement.gaps}))
    return f"a gate passes with gaps: {kinds}"


def shortened_bake(step: Step, bake_left_seconds: float | None) -> str | None:
    """I19: no clock shortens a bake: it has passed by the monotonic clock of this process too."""
    before, after = step.before, step.after
    if before is None or after is None or bake_left_seconds is None:
        return None
    if not isinstance(before.phase, Baking) or not isinstance(after.phase, Gating):
        return None
    if bake_left_seconds <= BAKE_EPSILON_SECONDS:
        return None
    return f"the gate opens {bake_left_seconds:.0f} s before the bake is over"


def _has_passed(step: Step) -> bool:
    """Return whether evidence let the rollout advance."""
    after = step.after
    if after is None or step.before is None:
        return False
    is_complete = isinstance(after.phase, Completed) and not isinstance(
        step.before.phase, Completed
    )
    return step.is_raise or is_complete


def _visible(rollout: Rollout) -> object:
    """Return all of a document but the state of the question to the model."""
    phase = (
        replace(rollout.phase, advice=None) if isinstance(rollout.phase, Gating) else rollout.phase
    )
    return replace(rollout, phase=phase)
