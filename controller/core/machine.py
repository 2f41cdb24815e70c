"""The whole state machine: what can happen to a flag, and when to look again.

`decide` is the one screen to read. Rows are tried from the top, the first that fits wins. Below it,
one small function per outcome; every change of phase, stage, percent or hold goes through `_move`,
which alone raises the revision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from controller.core.judging.judgement import Gap, Judgement, MetricReport
from controller.core.rollout import (
    CLOCK_TOLERANCE,
    COMMAND_MAX_AGE,
    CONTROLLER,
    LOWERING_MAX_AGE,
    Aborted,
    AdviceReceived,
    AdviceRound,
    AdviceUnavailable,
    AnswerCommand,
    AskAdvice,
    AwaitingApproval,
    Baking,
    CommandReceived,
    CommandUnusable,
    Completed,
    Effect,
    Ended,
    Event,
    EvidenceJudged,
    Freeze,
    Gating,
    Paused,
    Phase,
    PublishDecision,
    RaiseAlert,
    Restarted,
    RolledBack,
    Rollout,
    Scheduled,
    Ticked,
    Visit,
)
from controller.core.timeline import frozen_until
from schemas.terms import (
    ALWAYS_ACCEPTED,
    AdviceChoice,
    AdvisorMode,
    AlertKind,
    Approval,
    CommandStatus,
    CommandVerb,
    DecisionKind,
    FlagType,
    GapPolicy,
    HealthGap,
    HoldReason,
    OnBreach,
    Severity,
    Verdict,
)

Outcome = tuple[Rollout, tuple[Effect, ...]]

#: What is left to do for people once a flag is where its plan wanted it.
AFTER_COMPLETION: Mapping[FlagType, str] = {
    FlagType.RELEASE: "remove the flag from the code",
    FlagType.EXPERIMENT: "read what it showed; then remove the flag from the code",
    FlagType.OPS: "keep the flag: `rolloutctl kill` switches it off at once",
    FlagType.PERMISSION: "keep the flag: `rolloutctl kill` takes it from everybody at once",
}

# : A hold whose reason changes is announced at most this often, so that evidence on the edge cannot
# flood the audit log.
HOLD_ANNOUNCED_EVERY = timedelta(minutes=1)


def decide(
    rollout: Rollout | None, event: Event, now: datetime
) -> tuple[Rollout | None, tuple[Effect, ...]]:
    """Return the rollout after `event`, and what the world must be told.

    Pure; `now` is the time of the decision. None stands for a flag never started.
    """
    if isinstance(event, CommandUnusable):
        return rollout, (_rejected(event, 0 if rollout is None else rollout.revision, event.why),)
    if rollout is None:
        return _begin(None, event, now) if isinstance(event, CommandReceived) else (None, ())
    clock, now = now, max(now, rollout.updated_at)  # a clock set back never gives or takes time
    match (rollout.phase, event):
        # A regression is final: no advice, approval, freeze, pause or lag stands before it.
        case (
            Baking() | Gating() | AwaitingApproval() | Paused(),
            EvidenceJudged(judgement=seen),
        ) if seen.breach is not None:
            return _breach(rollout, seen.breach, seen, now)
        case (_, CommandReceived() as command):
            return _obey(rollout, command, clock)
        case (_, EvidenceJudged(judgement=seen)) if (gap := _urgent_gap(rollout, seen)) is not None:
            return _close_for_gap(rollout, gap, seen, now)
        # Time. Evidence that comes before the tick of a deadline does not slip past it.
        case (
            Scheduled() | Baking() | Gating() | AwaitingApproval(),
            Ticked() | EvidenceJudged(),
        ) if _is_expired(rollout, now):
            return _pause(
                rollout, HoldReason.EXPIRED, "the plan has expired; its owner decides", now
            )
        case (Scheduled(start_at=start_at), Ticked()) if now >= start_at and not is_frozen(
            rollout, now
        ):
            return _enter(rollout, 0, now, DecisionKind.START, "the start time has come")
        case (Baking(stage=stage, until=until), Ticked()) if now >= until:
            return _open_gate(rollout, stage, now), ()
        case (Gating(until=until) as gate, Ticked() | EvidenceJudged()) if (
            now >= until and not is_frozen(rollout, now)
        ):
            if rollout.hold is HoldReason.FROZEN:
                return _thaw(rollout, gate, now), ()
            return _pause(rollout, HoldReason.MAX_BAKE, _undecided(rollout, event), now)
        # Advice: late, absent and unreadable are one thing, `no advice`.
        case (
            Gating(advice=AdviceRound(is_closed=False, until=until)) as gate,
            Ticked() | EvidenceJudged() | AdviceReceived() | AdviceUnavailable(),
        ) if now >= until:
            return decide(_close_round(rollout, gate, None, now), event, clock)
        case (Gating() as gate, AdviceReceived() | AdviceUnavailable()) if _is_answer(event, gate):
            return _close_round(rollout, gate, event, now), ()
        case (Gating(advice=AdviceRound(is_closed=False)) as gate, Restarted()):
            return _reopen_round(rollout, gate, now), ()
        # What somebody has to fix, and would not hear of before the bake is over.
        case (Baking(), EvidenceJudged(judgement=seen)) if _is_told_in_bake(rollout, seen):
            return _hold(rollout, *_why_not(replace(seen, gaps=_to_be_told(seen))), seen, now)
        case (Baking(), EvidenceJudged(judgement=seen)) if _is_over_in_bake(rollout, seen, now):
            return _move(rollout, now, hold=None), ()
        # The gate itself. A look at an earlier stay says nothing of this one.
        case (Gating() as gate, EvidenceJudged(judgement=seen)) if (
            seen.visit == len(rollout.visits) - 1
        ):
            return _judge_gate(rollout, gate, seen, now)
        case (AwaitingApproval() as asked, EvidenceJudged(judgement=seen)) if _no_longer_passes(
            rollout, seen, now
        ):
            return _withdraw(rollout, asked, seen, now)
        case _:
            return rollout, ()  # late or repeated: nothing to do


def next_deadline(rollout: Rollout) -> datetime | None:
    """Return when `decide` wants a `Ticked` at the latest, None when only people or evidence can move the rollout."""
    now = rollout.updated_at
    match rollout.phase:
        case Scheduled(start_at=start_at):
            soonest = [_unfrozen(rollout, max(start_at, now))]
        case Baking(until=until):
            soonest = [until]
        case Gating(until=until, advice=advice):
            soonest = [_unfrozen(rollout, max(until, now))]
            if advice is not None and not advice.is_closed:
                soonest.append(advice.until)
        case AwaitingApproval():
            soonest = []
        case _:
            return None
    return min((at for at in (*soonest, rollout.plan.expires_at) if at is not None), default=None)


def is_frozen(rollout: Rollout, at: datetime) -> bool:
    """Tell whether nothing may advance now.

    An operator's freeze, or a freeze window of the plan.
    """
    return rollout.freeze is not None or frozen_until(rollout.plan.freeze_windows, at) is not None


# --- the gate: health, statistics, freeze, advice, people, in this order
# ----------------------------------------------------


def _judge_gate(rollout: Rollout, gate: Gating, judgement: Judgement, now: datetime) -> Outcome:
    """Close the gate, or hold with the first thing that is in the way."""
    for gap in judgement.gaps:
        if rollout.plan.gap_policies[gap.kind] is GapPolicy.PAUSE:
            return _close_for_gap(rollout, gap, judgement, now)
    if not _passes(judgement):
        return _hold(rollout, *_why_not(judgement), judgement, now)
    if is_frozen(rollout, now):
        return _hold(rollout, HoldReason.FROZEN, "everything has passed; frozen", judgement, now)
    return _consider_advice(rollout, gate, judgement, now)


def _consider_advice(
    rollout: Rollout, gate: Gating, judgement: Judgement, now: datetime
) -> Outcome:
    """Ask, wait for, or heed the model.

    Whatever it says, the only ways on from here are those open without it, or a hold.
    """
    policy, round_ = rollout.plan.advisor, gate.advice
    if policy.mode is AdvisorMode.OFF:
        return _consider_people(rollout, gate, judgement, now)
    if round_ is None:
        return _ask(rollout, gate, 1, judgement, now)
    if not round_.is_closed:
        return rollout, ()
    if round_.held_until is None:
        return _consider_people(rollout, gate, judgement, now)
    if round_.number >= policy.hold_rounds:
        return _await_person(
            rollout,
            gate,
            HoldReason.ADVISOR,
            "advice held in every round it has; a person decides",
            judgement,
            now,
        )
    if now >= round_.held_until:
        return _ask(rollout, gate, round_.number + 1, judgement, now)
    return _hold(rollout, HoldReason.ADVISOR, _advice_words(round_), judgement, now)


def _consider_people(
    rollout: Rollout, gate: Gating, judgement: Judgement, now: datetime
) -> Outcome:
    """Ask for approval last, when everything else has passed; without need of one, go on."""
    if rollout.plan.stages[gate.stage].approval is Approval.REQUIRED:
        return _await_person(
            rollout,
            gate,
            HoldReason.APPROVAL,
            "everything else has passed; the plan asks for approval",
            judgement,
            now,
        )
    return _advance(rollout, now, _passed_words(gate), judgement=judgement, gate=gate)


def _passed_words(gate: Gating) -> str:
    """Return that the gate has passed, and when it was without the advice that was asked for."""
    is_unadvised = gate.advice is not None and gate.advice.answer is None
    return (
        "the gate has passed; no advice came, the statistics decide alone"
        if is_unadvised
        else "the gate has passed"
    )


def _ask(
    rollout: Rollout, gate: Gating, number: int, judgement: Judgement, now: datetime
) -> Outcome:
    until = now + rollout.plan.advisor.deadline
    asked = replace(rollout, phase=replace(gate, advice=AdviceRound(number, until)))
    earlier = None if gate.advice is None else gate.advice.answer
    return asked, (AskAdvice(gate.gate_id, number, until, judgement, earlier),)


def _is_answer(event: AdviceReceived | AdviceUnavailable, gate: Gating) -> bool:
    """Tell whether this is the answer the gate waits for, and not one to an earlier question."""
    waits = gate.advice is not None and not gate.advice.is_closed
    return waits and (event.gate_id, event.round) == (
        gate.gate_id,
        gate.advice.number if gate.advice else 0,
    )


def _close_round(
    rollout: Rollout, gate: Gating, answer: AdviceReceived | AdviceUnavailable | None, now: datetime
) -> Rollout:
    """Note the answer, or that there is none. No transition: the next judgement decides with it."""
    assert gate.advice is not None
    policy = rollout.plan.advisor
    advice = answer.advice if isinstance(answer, AdviceReceived) else None
    objects = advice is not None and advice.choice is not AdviceChoice.PROCEED
    is_missing = advice is None and policy.mode is AdvisorMode.REQUIRED
    holds = is_missing or (objects and policy.mode is not AdvisorMode.OBSERVE)
    closed = replace(
        gate.advice,
        answer=advice,
        is_closed=True,
        held_until=now + policy.hold_for if holds else None,
    )
    return replace(rollout, phase=replace(gate, advice=closed))


def _reopen_round(rollout: Rollout, gate: Gating, now: datetime) -> Rollout:
    """Forget an open question, so that the next judgement asks it again as the same round."""
    assert gate.advice is not None
    earlier = gate.advice.number - 1
    advice = (
        replace(gate.advice, number=earlier, is_closed=True, held_until=now) if earlier else None
    )
    return replace(rollout, phase=replace(gate, advice=advice))


def _passes(judgement: Judgement) -> bool:
    return not judgement.gaps and judgement.statistics is Verdict.PASS


def _no_longer_passes(rollout: Rollout, judgement: Judgement, now: datetime) -> bool:
    """Tell whether what a person is asked to approve has ceased to pass.

    On the edge, not before a minute has gone by.
    """
    is_current = judgement.visit == len(rollout.visits) - 1
    return (
        is_current and not _passes(judgement) and now - rollout.updated_at >= HOLD_ANNOUNCED_EVERY
    )


def _withdraw(
    rollout: Rollout, asked: AwaitingApproval, judgement: Judgement, now: datetime
) -> Outcome:
    """Take the question to a person back and open the gate anew.

    An approval of what was seen then is stale now.
    """
    reason, why = _why_not(judgement)
    after = replace(_open_gate(rollout, asked.stage, now), hold=reason)
    why = f"no longer asks for approval: {why}"
    gate = after.phase if isinstance(after.phase, Gating) else None
    decision = _decision(rollout, after, DecisionKind.HOLD, why, judgement=judgement, gate=gate)
    return after, (decision, *_hold_alerts(after, reason, why, judgement))


def _urgent_gap(rollout: Rollout, judgement: Judgement) -> Gap | None:
    """Return the gap that waits for nothing: at a gate one that rolls back.

    A broken split, which is bad at any moment, too.

    While paused a broken split matters only if it lowers: everything else is standing still
    already.
    """
    if not isinstance(rollout.phase, Baking | Gating | AwaitingApproval | Paused):
        return None
    policies = rollout.plan.gap_policies
    is_at_gate = isinstance(rollout.phase, Gating | AwaitingApproval)
    splits = [
        gap
        for gap in judgement.gaps
        if gap.kind is HealthGap.SRM and policies[gap.kind] is not GapPolicy.WAIT
    ]
    lowering = [
        gap
        for gap in judgement.gaps
        if policies[gap.kind] is GapPolicy.ROLL_BACK and (is_at_gate or gap in splits)
    ]
    lowering += [gap for gap in splits if gap.treatment_missing]
    pausing = [] if isinstance(rollout.phase, Paused) else splits
    return next(iter((*lowering, *pausing)), None)


def _close_for_gap(rollout: Rollout, gap: Gap, judgement: Judgement, now: datetime) -> Outcome:
    """Pause or roll back, as the plan says.

    A treatment that went missing may have crashed before it could report.
    """
    why = f"{gap.kind}: {gap.detail}"
    if rollout.plan.gap_policies[gap.kind] is GapPolicy.ROLL_BACK or gap.treatment_missing:
        return _roll_back(rollout, why, now, judgement=judgement)
    alert = AlertKind.SRM if gap.kind is HealthGap.SRM else AlertKind.PAUSED
    return _pause(rollout, HoldReason.HEALTH, why, now, judgement=judgement, kind=alert)


def _to_be_told(judgement: Judgement) -> tuple[Gap, ...]:
    """Return the gaps that time does not close.

    Exposures that do not follow the decision, outcomes that are sent again.
    """
    return tuple(
        gap
        for gap in judgement.gaps
        if gap.kind is HealthGap.REPEATED_OUTCOMES
        or (gap.kind is HealthGap.ACTUATION_DRIFT and gap.is_observed)
    )


def _is_told_in_bake(rollout: Rollout, judgement: Judgement) -> bool:
    is_current = judgement.visit == len(rollout.visits) - 1
    return is_current and rollout.hold is None and bool(_to_be_told(judgement))


def _is_over_in_bake(rollout: Rollout, judgement: Judgement, now: datetime) -> bool:
    """Tell whether what was told has passed; on the edge, not before a minute has gone by."""
    is_current = judgement.visit == len(rollout.visits) - 1
    has_waited = now - rollout.updated_at >= HOLD_ANNOUNCED_EVERY
    return (
        is_current
        and rollout.hold is HoldReason.HEALTH
        and has_waited
        and not _to_be_told(judgement)
    )


def _statistical_hold(judgement: Judgement) -> HoldReason:
    match judgement.statistics:
        case Verdict.FAIL:
            return HoldReason.SIGNAL
        case Verdict.INCONCLUSIVE:
            return HoldReason.INCONCLUSIVE
        case Verdict.NO_DATA:
            return HoldReason.HEALTH
        case _:
            return HoldReason.FAILING


def _why_not(judgement: Judgement) -> tuple[HoldReason, str]:
    """Return what stands in the way of a judgement that does not pass.

    Its gaps, else the metrics that did not pass.
    """
    if judgement.gaps:
        return HoldReason.HEALTH, "; ".join(f"{gap.kind}: {gap.detail}" for gap in judgement.gaps)
    failing = [
        metric
        for metric in judgement.metrics
        if metric.harm is Verdict.FAIL or metric.safe is not Verdict.PASS
    ]
    return _statistical_hold(judgement), "; ".join(
        f"{metric.metric}: {metric.reason}" for metric in failing
    )


def _undecided(rollout: Rollout, event: Event) -> str:
    """Return why the gate's time ran out.

    By the evidence that comes with `event`, else by the hold last announced.
    """
    said = "the gate is still undecided at max_bake"
    if isinstance(event, EvidenceJudged) and not _passes(event.judgement):
        return f"{said}: {_why_not(event.judgement)[1]}"
    return said if rollout.hold is None else f"{said}, held for {rollout.hold}"


def _advice_words(round_: AdviceRound) -> str:
    if round_.answer is None:
        return f"advice is required, and there is none in round {round_.number}"
    reasons = "; ".join(reason.rstrip(".") for reason in round_.answer.reasons)
    return f"advice in round {round_.number}: {round_.answer.choice}: {reasons}"


# --- commands
# --------------------------------------------------------------------------------------------------


def _begin(
    previous: Rollout | None, command: CommandReceived, clock: datetime
) -> tuple[Rollout | None, tuple[Effect, ...]]:
    """Start a flag's first or next rollout.

    The revision goes on where the previous rollout's ended.
    """
    revision = 0 if previous is None else previous.revision
    now = clock if previous is None else max(clock, previous.updated_at)
    is_restart = command.verb is CommandVerb.RESTART and previous is not None
    plan = command.plan or (previous.plan if is_restart and previous is not None else None)
    if command.verb is not CommandVerb.START and not is_restart:
        return previous, (_rejected(command, revision, "the flag has no rollout: start one"),)
    if plan is None:
        return previous, (_rejected(command, revision, "start needs a plan"),)
    if previous is not None and command.command_id == previous.rollout_id:
        # Read again after Redis forgot the answer: what it started has ended, and only another
        # command may start anew.
        return previous, (_accepted(command, previous, _BEGUN),)
    if _is_outdated(command, clock):
        return previous, (_rejected(command, revision, _OUTDATED),)
    if plan.expires_at is not None and now >= plan.expires_at:
        return previous, (
            _rejected(command, revision, "the plan has expired: give it a later expires_at"),
        )
    if command.expected_revision not in (None, revision):
        return previous, (_rejected(command, revision, _stale(command, revision)),)
    rollout = Rollout(
        flag_key=plan.flag_key,
        rollout_id=command.command_id,
        revision=revision,
        plan=plan,
        phase=Scheduled(now),
        percent=0.0,
        visits=(),
        started_at=now,
        updated_at=now,
    )
    start_at = _unfrozen(rollout, max(plan.start_at or now, now)) or now
    if start_at > now:
        scheduled = _move(rollout, now, phase=Scheduled(start_at))
        decision = _decision(
            rollout,
            scheduled,
            DecisionKind.HOLD,
            f"scheduled for {start_at.isoformat()}",
            command=command,
        )
        return scheduled, (decision, _accepted(command, scheduled))
    started, effects = _enter(rollout, 0, now, DecisionKind.START, "started", command=command)
    return started, (*effects, _accepted(command, started))


def _obey(
    rollout: Rollout, command: CommandReceived, clock: datetime
) -> tuple[Rollout | None, tuple[Effect, ...]]:
    """Do what the operator asks, or say why not.

    Lowering works whatever revision was seen, if it is meant for this rollout.
    """
    verb, phase, now = command.verb, rollout.phase, max(clock, rollout.updated_at)
    is_start = verb in (CommandVerb.START, CommandVerb.RESTART)
    if is_start and rollout.has_ended:
        return _begin(rollout, command, clock)
    is_late = verb in _RAISING and _is_outdated(
        command, clock
    )  # said below: its limit is the shorter one
    if (
        not (is_start or is_late)
        and (why := _for_another_time(rollout, command, clock)) is not None
    ):
        return rollout, (_rejected(command, rollout.revision, why),)
    if verb not in ALWAYS_ACCEPTED:
        if command.expected_revision not in (None, rollout.revision):
            return rollout, (
                _rejected(command, rollout.revision, _stale(command, rollout.revision)),
            )
        if verb in _RAISING and _is_outdated(command, clock):
            return rollout, (_rejected(command, rollout.revision, _OUTDATED),)
    match (verb, phase):
        case (CommandVerb.ROLL_BACK | CommandVerb.ABORT, RolledBack() | Aborted()):
            return rollout, (_accepted(command, rollout, "0 % is served already"),)
        case (CommandVerb.ROLL_BACK, _):
            outcome = _roll_back(rollout, command.reason, now, command=command)
        case (CommandVerb.ABORT, _):
            outcome = _abort(rollout, command, now)
        case (CommandVerb.PAUSE, Paused()):
            return rollout, (_accepted(command, rollout, "paused already"),)
        case (CommandVerb.PAUSE, Completed() | RolledBack() | Aborted()):
            return rollout, (_accepted(command, rollout, "nothing moves: the rollout has ended"),)
        case (CommandVerb.PAUSE, _):
            outcome = _pause(rollout, HoldReason.OPERATOR, command.reason, now, command=command)
        case (_, Completed() | RolledBack() | Aborted()):
            return rollout, (
                _rejected(
                    command,
                    rollout.revision,
                    f"the rollout has ended ({phase.name}): start or restart",
                ),
            )
        case (CommandVerb.START | CommandVerb.RESTART, _) if (
            command.command_id == rollout.rollout_id
        ):
            return rollout, (_accepted(command, rollout, _BEGUN),)
        case (CommandVerb.START | CommandVerb.RESTART, _):
            return rollout, (
                _rejected(
                    command,
                    rollout.revision,
                    f"a rollout is under way ({phase.name}): abort it first",
                ),
            )
        case (CommandVerb.RESUME, Paused()) if _is_expired(rollout, now):
            return rollout, (
                _rejected(
                    command, rollout.revision, "the plan has expired: promote, roll back or abort"
                ),
            )
        case (CommandVerb.RESUME, Paused()):
            outcome = _resume(rollout, phase, command, now)
        case (CommandVerb.APPROVE, AwaitingApproval()) if command.expected_revision is None:
            return rollout, (
                _rejected(
                    command,
                    rollout.revision,
                    "an approval is bound to what was seen: give expected_revision",
                ),
            )
        case (CommandVerb.APPROVE | CommandVerb.PROMOTE | CommandVerb.PROMOTE_FULL, _) if is_frozen(
            rollout, now
        ):
            return rollout, (
                _rejected(
                    command,
                    rollout.revision,
                    "frozen: nothing advances; unfreeze, or wait for the window to end",
                ),
            )
        case (CommandVerb.APPROVE, AwaitingApproval()):
            outcome = _advance(rollout, now, f"approved: {command.reason}", command=command)
        case (CommandVerb.REJECT, AwaitingApproval()):
            outcome = _pause(rollout, HoldReason.REJECTED, command.reason, now, command=command)
        case (CommandVerb.PROMOTE, _):
            outcome = _advance(
                rollout, now, f"promoted past its gate: {command.reason}", command=command
            )
        case (CommandVerb.PROMOTE_FULL, _):
            outcome = _promote_full(rollout, command, now)
        case (CommandVerb.STEP_BACK, _) if (rollout.stage_index or 0) > 0:
            outcome = _step_back(rollout, command.reason, now, command=command)
        case (CommandVerb.STEP_BACK, _):
            return rollout, (
                _rejected(command, rollout.revision, "no stage lies below: roll back, or abort"),
            )
        case (CommandVerb.FREEZE, _):
            outcome = _freeze(rollout, command, now)
        case (CommandVerb.UNFREEZE, _) if rollout.freeze is not None:
            outcome = _unfreeze(rollout, command, now)
        case (CommandVerb.UNFREEZE, _):
            return rollout, (_rejected(command, rollout.revision, "no operator has frozen it"),)
        case _:
            return rollout, (
                _rejected(
                    command, rollout.revision, f"{verb} does not fit a rollout that is {phase.name}"
                ),
            )
    after, effects = outcome
    return after, (*effects, _accepted(command, after))


def _resume(rollout: Rollout, paused: Paused, command: CommandReceived, now: datetime) -> Outcome:
    """Go on where the pause began: bake that was left is still owed, and a gate is asked anew."""
    match paused.held:
        case Scheduled(start_at=start_at):
            phase: Phase = Scheduled(max(start_at, now))
        case Baking(stage=stage, until=until):
            phase = Baking(stage, now + max(until - paused.since, timedelta(0)))
        case held:
            phase = Baking(held.stage, now)
    after = _move(rollout, now, phase=phase, hold=None)
    return after, (_decision(rollout, after, DecisionKind.RESUME, command.reason, command=command),)


def _promote_full(rollout: Rollout, command: CommandReceived, now: datetime) -> Outcome:
    """Jump to the last stage; its own limits stay armed. From the last stage, complete."""
    last = len(rollout.plan.stages) - 1
    if rollout.stage_index == last:
        return _advance(rollout, now, f"completed past its gate: {command.reason}", command=command)
    after, effects = _enter(
        rollout,
        last,
        now,
        DecisionKind.ADVANCE,
        f"promoted past every gate: {command.reason}",
        command=command,
    )
    return after, (*effects, _forced(after, command))


def _freeze(rollout: Rollout, command: CommandReceived, now: datetime) -> Outcome:
    after = _move(rollout, now, freeze=Freeze(now, command.issuer, command.reason))
    return after, (
        _decision(rollout, after, DecisionKind.HOLD, f"frozen: {command.reason}", command=command),
    )


def _unfreeze(rollout: Rollout, command: CommandReceived, now: datetime) -> Outcome:
    """Lift the freeze. A gate gets its full time again: it could not close while frozen."""
    if isinstance(rollout.phase, Gating):
        after = replace(_thaw(rollout, rollout.phase, now), freeze=None)
    else:
        after = _move(rollout, now, freeze=None)
    return after, (
        _decision(
            rollout, after, DecisionKind.RESUME, f"unfrozen: {command.reason}", command=command
        ),
    )


def _thaw(rollout: Rollout, gate: Gating, now: datetime) -> Rollout:
    """Give a gate that a freeze kept from closing its time again."""
    hold = None if rollout.hold is HoldReason.FROZEN else rollout.hold
    return _move(
        rollout, now, phase=replace(gate, until=now + _gate_time(rollout, gate.stage)), hold=hold
    )


_REPEATS_ACTION = (
    "find who sends outcomes a second time: a replay into the live topic, or producers "
    "without enable.idempotence; "
    "the share falls as new outcomes come in, and `promote` does not wait for that"
)
_DRIFT_ACTION = (
    "see whether the planes serve the flag and the apps follow them; if they ask more rarely "
    "than settle, lengthen it"
)

# : Verbs that raise exposure or open the way to it; all others only ever make it more careful,
# however late they come.
_RAISING = frozenset(
    {
        CommandVerb.START,
        CommandVerb.RESTART,
        CommandVerb.RESUME,
        CommandVerb.APPROVE,
        CommandVerb.PROMOTE,
        CommandVerb.PROMOTE_FULL,
        CommandVerb.UNFREEZE,
    }
)
_BEGUN = "this command has started its rollout already"
_OUTDATED = (
    f"issued more than {COMMAND_MAX_AGE.seconds // 60} min ago: an order from before an "
    f"outage is not an order for now; "
    "send it again"
)


def _is_outdated(command: CommandReceived, clock: datetime) -> bool:
    """Tell whether a command is too old, by the clock it was received by.

    Another replica's may have run ahead.
    """
    return clock - command.issued_at > COMMAND_MAX_AGE


def _for_another_time(rollout: Rollout, command: CommandReceived, clock: datetime) -> str | None:
    """Return why an order is not one for this rollout; None when it may be.

    Offsets and answers can be lost together, and then last week's orders are read again: none may
    lower this week's rollout. An operator with a slow clock must be heard all the same: what
    arrives now is believed for a day, and whoever names the present revision has seen it.
    """
    if command.expected_revision == rollout.revision:
        return None
    issued = command.issued_at.isoformat(timespec="seconds")
    again = f"send it again, with the clock set or with expected_revision {rollout.revision}"
    if clock - command.issued_at > LOWERING_MAX_AGE:
        hours = LOWERING_MAX_AGE // timedelta(hours=1)
        return f"issued at {issued}, more than {hours} h ago: not an order for now; {again}"
    if command.is_backlog and command.issued_at < rollout.started_at - CLOCK_TOLERANCE:
        began = rollout.started_at.isoformat(timespec="seconds")
        return (
            f"issued at {issued}, before this rollout began at {began}: for an earlier one; {again}"
        )
    return None


def _stale(command: CommandReceived, revision: int) -> str:
    return (
        f"stale: revision {command.expected_revision} was expected, it is {revision}; look "
        f"again and repeat"
    )


# --- movements
# --------------------------------------------------------------------------------------------------


def _breach(rollout: Rollout, found: MetricReport, judgement: Judgement, now: datetime) -> Outcome:
    """Act on a guardrail regression as its policy says; below the first stage lies only 0 %."""
    why = f"guardrail {found.metric}: {found.reason}"
    if found.on_breach is OnBreach.PAUSE:
        if isinstance(rollout.phase, Paused) and rollout.phase.reason is HoldReason.BREACH:
            return rollout, ()
        return _pause(
            rollout, HoldReason.BREACH, why, now, judgement=judgement, severity=Severity.CRITICAL
        )
    if found.on_breach is OnBreach.STEP_BACK and (rollout.stage_index or 0) > 0:
        return _step_back(rollout, why, now, judgement=judgement)
    return _roll_back(rollout, why, now, judgement=judgement)


def _roll_back(
    rollout: Rollout,
    why: str,
    now: datetime,
    *,
    judgement: Judgement | None = None,
    command: CommandReceived | None = None,
) -> Outcome:
    after = _move(rollout, now, phase=RolledBack(now, why), percent=0.0, hold=None, freeze=None)
    decision = _decision(
        rollout, after, DecisionKind.ROLL_BACK, why, judgement=judgement, command=command
    )
    summary = f"{rollout.flag_key} rolled back from {rollout.served_words} to 0 %: {why}"
    return after, (
        decision,
        _alert(
            after,
            AlertKind.ROLLED_BACK,
            Severity.CRITICAL,
            summary,
            "find the cause; then start a new rollout",
            judgement,
        ),
    )


def _abort(rollout: Rollout, command: CommandReceived, now: datetime) -> Outcome:
    after = _move(
        rollout, now, phase=Aborted(now, command.reason), percent=0.0, hold=None, freeze=None
    )
    return after, (_decision(rollout, after, DecisionKind.ABORT, command.reason, command=command),)


def _step_back(
    rollout: Rollout,
    why: str,
    now: datetime,
    *,
    judgement: Judgement | None = None,
    command: CommandReceived | None = None,
) -> Outcome:
    """Serve the stage below. A paused rollout stays paused there."""
    assert rollout.stage_index is not None
    was_paused = isinstance(rollout.phase, Paused)
    after, effects = _enter(
        rollout,
        rollout.stage_index - 1,
        now,
        DecisionKind.STEP_BACK,
        why,
        judgement=judgement,
        command=command,
    )
    if was_paused and isinstance(rollout.phase, Paused) and isinstance(after.phase, Baking):
        after = replace(
            after, phase=Paused(now, rollout.phase.reason, after.phase), hold=rollout.hold
        )
    if command is None:
        summary = (
            f"{rollout.flag_key} stepped back from {rollout.served_words} to "
            f"{after.served_words}: {why}"
        )
        effects = (
            *effects,
            _alert(
                after,
                AlertKind.STEPPED_BACK,
                Severity.CRITICAL,
                summary,
                "find the cause before it goes on",
                judgement,
            ),
        )
    return after, effects


def _advance(
    rollout: Rollout,
    now: datetime,
    why: str,
    *,
    judgement: Judgement | None = None,
    gate: Gating | None = None,
    command: CommandReceived | None = None,
) -> Outcome:
    """Go one stage up, or complete after the last."""
    forced = () if command is None or command.verb is CommandVerb.APPROVE else (command,)
    following = 0 if rollout.stage_index is None else rollout.stage_index + 1
    if following < len(rollout.plan.stages):
        kind = DecisionKind.START if rollout.stage_index is None else DecisionKind.ADVANCE
        after, effects = _enter(
            rollout, following, now, kind, why, judgement=judgement, gate=gate, command=command
        )
    else:
        after = _move(rollout, now, phase=Completed(now), hold=None, freeze=None)
        decision = _decision(
            rollout,
            after,
            DecisionKind.COMPLETE,
            why,
            judgement=judgement,
            gate=gate,
            command=command,
        )
        summary = f"{rollout.flag_key} completed at {after.served_words}"
        effects = (
            decision,
            _alert(
                after,
                AlertKind.COMPLETED,
                Severity.INFO,
                summary,
                AFTER_COMPLETION[after.plan.flag_type],
                judgement,
            ),
        )
    return after, (*effects, *(_forced(after, order) for order in forced))


def _enter(
    rollout: Rollout,
    stage_index: int,
    now: datetime,
    kind: DecisionKind,
    why: str,
    *,
    judgement: Judgement | None = None,
    gate: Gating | None = None,
    command: CommandReceived | None = None,
) -> Outcome:
    """Begin a visit of a stage: its bake counts from the end of settle."""
    stage = rollout.plan.stages[stage_index]
    counts_from = now + stage.settle
    visits = (*_left(rollout.visits, now), Visit(stage_index, stage.percent, now, counts_from))
    after = _move(
        rollout,
        now,
        phase=Baking(stage_index, counts_from + stage.bake),
        percent=stage.percent,
        visits=visits,
        hold=None,
    )
    return after, (
        _decision(rollout, after, kind, why, judgement=judgement, gate=gate, command=command),
    )


def _open_gate(rollout: Rollout, stage: int, now: datetime) -> Rollout:
    gate_id = f"{rollout.rollout_id}.{rollout.revision + 1}"
    return _move(rollout, now, phase=Gating(stage, gate_id, now, now + _gate_time(rollout, stage)))


def _gate_time(rollout: Rollout, stage: int) -> timedelta:
    """Return how long a gate may stay undecided.

    What max_bake leaves, and always time for every round of advice.
    """
    policy, declared = rollout.plan.advisor, rollout.plan.stages[stage]
    rounds = (
        timedelta(0)
        if policy.mode is AdvisorMode.OFF
        else (policy.deadline + policy.hold_for) * policy.hold_rounds
    )
    return max(declared.max_bake - declared.bake, rounds)


def _await_person(
    rollout: Rollout,
    gate: Gating,
    reason: HoldReason,
    why: str,
    judgement: Judgement,
    now: datetime,
) -> Outcome:
    after = _move(
        rollout, now, phase=AwaitingApproval(gate.stage, gate.gate_id, now, reason), hold=reason
    )
    kind = AlertKind.ADVISOR_HOLDS if reason is HoldReason.ADVISOR else AlertKind.APPROVAL_NEEDED
    action = f"approve or reject revision {after.revision}"
    alert = _alert(
        after,
        kind,
        Severity.WARNING,
        f"{rollout.flag_key} at {rollout.served_words} waits for a person: {why}",
        action,
        judgement,
    )
    return after, (
        _decision(rollout, after, DecisionKind.HOLD, why, judgement=judgement, gate=gate),
        alert,
    )


def _hold(
    rollout: Rollout, reason: HoldReason, why: str, judgement: Judgement, now: datetime
) -> Outcome:
    """Say once why nothing moves.

    Evidence on the edge between two reasons does not say it every second.
    """
    if rollout.hold is reason or (
        rollout.hold is not None and now - rollout.updated_at < HOLD_ANNOUNCED_EVERY
    ):
        return rollout, ()
    after = _move(rollout, now, hold=reason)
    gate = rollout.phase if isinstance(rollout.phase, Gating) else None
    decision = _decision(rollout, after, DecisionKind.HOLD, why, judgement=judgement, gate=gate)
    return after, (decision, *_hold_alerts(after, reason, why, judgement))


def hold_back(rollout: Rollout, why: str, judgement: Judgement | None, now: datetime) -> Outcome:
    """Return the rollout where it stands, held and said why once.

    This replica may raise nothing now.
    """
    now = max(now, rollout.updated_at)
    is_recent = rollout.hold is not None and now - rollout.updated_at < HOLD_ANNOUNCED_EVERY
    if rollout.hold is HoldReason.HEALTH or is_recent or rollout.has_ended:
        return rollout, ()
    after = _move(rollout, now, hold=HoldReason.HEALTH)
    gate = rollout.phase if isinstance(rollout.phase, Gating) else None
    why = f"everything else has passed; {why}"
    return after, (
        _decision(rollout, after, DecisionKind.HOLD, why, judgement=judgement, gate=gate),
    )


def _health_action(judgement: Judgement) -> str:
    """Return what to do about the gap that somebody has to fix, else about events that do not arrive."""
    kinds = {gap.kind for gap in _to_be_told(judgement)}
    if HealthGap.ACTUATION_DRIFT in kinds:
        return _DRIFT_ACTION
    return (
        _REPEATS_ACTION
        if HealthGap.REPEATED_OUTCOMES in kinds
        else "see whether events arrive in both arms"
    )


def _hold_alerts(
    rollout: Rollout, reason: HoldReason, why: str, judgement: Judgement
) -> tuple[Effect, ...]:
    """Waiting for enough data is no news; silence, a broken split and a regressed signal are."""
    summary = f"{rollout.flag_key} holds at {rollout.served_words}: {why}"
    if reason is HoldReason.SIGNAL:
        return (
            _alert(
                rollout,
                AlertKind.SIGNAL_REGRESSION,
                Severity.WARNING,
                summary,
                "look at the signal; promote or roll back",
                judgement,
            ),
        )
    if reason is HoldReason.ADVISOR:
        return (
            _alert(
                rollout,
                AlertKind.ADVISOR_HOLDS,
                Severity.INFO,
                summary,
                "read the advice",
                judgement,
            ),
        )
    if reason is HoldReason.HEALTH and any(
        gap.kind is not HealthGap.BELOW_MIN_SAMPLE for gap in judgement.gaps
    ):
        return (
            _alert(
                rollout,
                AlertKind.HEALTH_GAP,
                Severity.WARNING,
                summary,
                _health_action(judgement),
                judgement,
            ),
        )
    return ()


def _pause(
    rollout: Rollout,
    reason: HoldReason,
    why: str,
    now: datetime,
    *,
    judgement: Judgement | None = None,
    command: CommandReceived | None = None,
    kind: AlertKind = AlertKind.PAUSED,
    severity: Severity = Severity.WARNING,
) -> Outcome:
    """Stop here. The percentage stays, guardrails stay armed."""
    phase = rollout.phase
    assert not isinstance(phase, Ended)
    # Paused already, for a lesser reason: whoever resumes must know of this one. The pause began
    # when it began.
    paused = (
        replace(phase, reason=reason) if isinstance(phase, Paused) else Paused(now, reason, phase)
    )
    after = _move(rollout, now, phase=paused, hold=reason)
    decision = _decision(
        rollout, after, DecisionKind.PAUSE, why, judgement=judgement, command=command
    )
    if command is not None:
        return after, (decision,)
    action = "look at the evidence; then resume, promote or roll back"
    if reason is HoldReason.EXPIRED:
        kind, action = AlertKind.PLAN_EXPIRED, "decide, as its owner: promote, roll back or abort"
    summary = f"{rollout.flag_key} paused at {rollout.served_words}: {why}"
    return after, (
        decision,
        _alert(after, kind, severity, summary, action, judgement),
    )


def _move(rollout: Rollout, now: datetime, **changes: object) -> Rollout:
    """Return the next revision.

    The one place where a transition is made, so the one that keeps the timeline closed.
    """
    after = replace(rollout, revision=rollout.revision + 1, updated_at=now, **changes)  # type: ignore[arg-type]
    return replace(after, visits=_left(after.visits, now)) if after.has_ended else after


def _left(visits: tuple[Visit, ...], now: datetime) -> tuple[Visit, ...]:
    """Close the present visit."""
    if not visits or visits[-1].left_at is not None:
        return visits
    return (*visits[:-1], replace(visits[-1], left_at=now))


def _is_expired(rollout: Rollout, now: datetime) -> bool:
    return rollout.plan.expires_at is not None and now >= rollout.plan.expires_at


def _unfrozen(rollout: Rollout, at: datetime) -> datetime | None:
    """Return the first moment from `at` on that no freeze covers.

    None while an operator's freeze lasts.
    """
    if rollout.freeze is not None:
        return None
    return frozen_until(rollout.plan.freeze_windows, at) or at


# --- what the world is told
# -----------------------------------------------------------------------------------------------


def _decision(
    before: Rollout,
    after: Rollout,
    kind: DecisionKind,
    why: str,
    *,
    judgement: Judgement | None = None,
    gate: Gating | None = None,
    command: CommandReceived | None = None,
) -> PublishDecision:
    asked = gate or (before.phase if isinstance(before.phase, Gating) else None)
    return PublishDecision(
        kind=kind,
        reason=why,
        from_percent=before.percent,
        to_percent=after.percent,
        stage=after.stage_index,
        issuer=CONTROLLER if command is None else command.issuer,
        judgement=judgement,
        advice=asked.advice.answer if asked is not None and asked.advice is not None else None,
        gate_id=asked.gate_id if asked is not None else None,
        command_id=None if command is None else command.command_id,
    )


def _alert(
    rollout: Rollout,
    kind: AlertKind,
    severity: Severity,
    summary: str,
    action: str,
    judgement: Judgement | None,
) -> RaiseAlert:
    stay = len(rollout.visits)
    return RaiseAlert(
        kind,
        severity,
        summary,
        action,
        f"{rollout.flag_key}/{rollout.rollout_id}/{stay}/{kind}",
        judgement,
    )


def _forced(rollout: Rollout, command: CommandReceived) -> RaiseAlert:
    summary = (
        f"{rollout.flag_key} was moved past a gate to {rollout.served_words} by "
        f"{command.issuer}: {command.reason}"
    )
    return _alert(
        rollout,
        AlertKind.FORCED,
        Severity.WARNING,
        summary,
        "know that this stage was not judged",
        None,
    )


def _accepted(command: CommandReceived, rollout: Rollout, reason: str = "done") -> AnswerCommand:
    return AnswerCommand(
        command.command_id, command.verb, CommandStatus.ACCEPTED, reason, rollout.revision
    )


def _rejected(
    command: CommandReceived | CommandUnusable, revision: int, reason: str
) -> AnswerCommand:
    return AnswerCommand(command.command_id, command.verb, CommandStatus.REJECTED, reason, revision)
