"""The announcements of a transition: decisions for the audit log, alerts, answers to commands.

The texts for people stand here. What happens, and when, is decided elsewhere in the package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from controller.core.effects import AnswerCommand, Effect, PublishDecision, RaiseAlert
from controller.core.events import CommandReceived, CommandUnusable
from controller.core.judging.judgement import Judgement, MetricReport
from controller.core.machine.cause import Cause
from controller.core.machine.health import action_for, is_alarming
from controller.core.rollout import CONTROLLER, Gating, Rollout
from schemas.terms import (
    AlertKind,
    CommandStatus,
    DecisionKind,
    FlagType,
    HoldReason,
    Severity,
)

#: What is left for people to do once a flag has reached the end of its plan.
AFTER_COMPLETION: Mapping[FlagType, str] = {
    FlagType.RELEASE: "remove the flag from the code",
    FlagType.EXPERIMENT: "read what it showed; then remove the flag from the code",
    FlagType.OPS: "keep the flag: `rolloutctl kill` switches it off at once",
    FlagType.PERMISSION: "keep the flag: `rolloutctl kill` takes it from everybody at once",
}

# --- decisions ---


def decision(before: Rollout, after: Rollout, kind: DecisionKind, cause: Cause) -> PublishDecision:
    """Return the entry of the audit log.

    It names the gate that the transition leaves, else the one that it opens, with its last advice.
    """
    phases = (before.phase, after.phase)
    gate = next((phase for phase in phases if isinstance(phase, Gating)), None)
    return PublishDecision(
        kind=kind,
        reason=cause.reason,
        from_percent=before.percent,
        to_percent=after.percent,
        stage=after.stage_index,
        issuer=CONTROLLER if cause.command is None else cause.command.issuer,
        judgement=cause.judgement,
        advice=None if gate is None or gate.advice is None else gate.advice.answer,
        gate_id=None if gate is None else gate.gate_id,
        command_id=None if cause.command is None else cause.command.command_id,
    )


# --- alerts ---


def alert(
    rollout: Rollout,
    kind: AlertKind,
    severity: Severity,
    summary: str,
    action: str,
    judgement: Judgement | None,
    of: str = "",
) -> RaiseAlert:
    """Return an alert; there is one page per kind and visit, and per `of` where it is given."""
    key = f"{rollout.flag_key}/{rollout.rollout_id}/{len(rollout.visits)}/{kind}"
    return RaiseAlert(kind, severity, summary, action, f"{key}/{of}" if of else key, judgement)


def not_there_yet(after: Rollout, command: CommandReceived) -> tuple[RaiseAlert, ...]:
    """Return the alert that a rollout begins without something that it needs, none without that."""
    if not command.missing:
        return ()
    summary = f"{after.flag_key} was started without: {'; '.join(command.missing)}"
    action = "check `rolloutctl doctor`; pause or abort if the rollout must not run without it"
    return (alert(after, AlertKind.PREFLIGHT, Severity.WARNING, summary, action, None),)


def completed(after: Rollout, cause: Cause) -> RaiseAlert:
    """Return the message that the plan has reached its end, and what is left to do."""
    summary = f"{after.flag_key} completed at {after.served_words}"
    action = AFTER_COMPLETION[after.plan.flag_type]
    return alert(after, AlertKind.COMPLETED, Severity.INFO, summary, action, cause.judgement)


def moved_past_gate(after: Rollout, cause: Cause) -> RaiseAlert:
    """Return the alert that an operator advanced a rollout whose stage was not judged."""
    summary = (
        f"{after.flag_key} was moved to {after.served_words} without a passed gate"
        f"{cause.by_words}: {cause.reason}"
    )
    action = "watch it: the stage before this one was not judged to its end"
    return alert(after, AlertKind.FORCED, Severity.WARNING, summary, action, cause.judgement)


def asks_for_approval(after: Rollout, reason: HoldReason, cause: Cause) -> RaiseAlert:
    """Return the alert that a person has to decide."""
    is_advised = reason is HoldReason.ADVISOR
    kind = AlertKind.ADVISOR_HOLDS if is_advised else AlertKind.APPROVAL_NEEDED
    summary = f"{after.flag_key} at {after.served_words} waits for a person: {cause.reason}"
    action = f"approve or reject revision {after.revision}"
    return alert(after, kind, Severity.WARNING, summary, action, cause.judgement)


def breach(after: Rollout, found: MetricReport, judgement: Judgement) -> RaiseAlert:
    """Return the alert that another guardrail is breached while a breach pauses the rollout."""
    summary = (
        f"{after.flag_key} is paused at {after.served_words}, and guardrail {found.metric} is "
        f"breached: {found.reason}"
    )
    action = "check every guardrail that is breached; then resume, promote or roll back"
    severity = Severity.CRITICAL
    return alert(after, AlertKind.BREACH, severity, summary, action, judgement, found.metric)


def breach_over(after: Rollout, metric: str, judgement: Judgement) -> RaiseAlert:
    """Return the message that a guardrail is not breached any more; the pause stays."""
    summary = (
        f"{after.flag_key} at {after.served_words}: guardrail {metric} is not breached any more; "
        f"it stays paused"
    )
    action = "check the evidence; then resume, promote or roll back"
    return alert(after, AlertKind.BREACH, Severity.INFO, summary, action, judgement, metric)


def hold_alerts(after: Rollout, cause: Cause) -> tuple[Effect, ...]:
    """Return the alert about a hold, none when the stage only waits for more data."""
    judgement = cause.judgement
    if after.hold is HoldReason.SIGNAL:
        kind, severity = AlertKind.SIGNAL_REGRESSION, Severity.WARNING
        action = "check the signal; then promote or roll back"
    elif after.hold is HoldReason.ADVISOR:
        kind, severity = AlertKind.ADVISOR_HOLDS, Severity.INFO
        action = "read the advice"
    elif after.hold is HoldReason.WEBHOOK:
        kind, severity = AlertKind.WEBHOOK_HOLDS, Severity.INFO
        action = "see what the gate webhook waits for; the gate passes once it answers pass"
    elif after.hold is HoldReason.HEALTH and judgement is not None:
        return (health_gap(after, cause),) if any(map(is_alarming, judgement.gaps)) else ()
    else:
        return ()
    summary = f"{after.flag_key} holds at {after.served_words}: {cause.reason}"
    return (alert(after, kind, severity, summary, action, judgement),)


def health_gap(after: Rollout, cause: Cause) -> RaiseAlert:
    """Return the alert that the evidence cannot be judged."""
    assert cause.judgement is not None
    summary = f"{after.flag_key} cannot be judged at {after.served_words}: {cause.reason}"
    action = action_for(cause.judgement.gaps)
    return alert(after, AlertKind.HEALTH_GAP, Severity.WARNING, summary, action, cause.judgement)


def health_gap_over(after: Rollout, cause: Cause) -> RaiseAlert:
    """Return the message that the evidence can be judged again; its dedup key is the gap's."""
    summary = f"{after.flag_key} at {after.served_words}: {cause.reason}"
    kind, action = AlertKind.HEALTH_GAP, "nothing is left to do about it"
    return alert(after, kind, Severity.INFO, summary, action, cause.judgement)


def with_evidence(
    effects: Iterable[Effect], newest: Judgement | None, trouble: str | None = None
) -> tuple[Effect, ...]:
    """Return the effects; decisions and alerts without evidence of their own get the newest.

    So commands, ticks and deadlines say too what was counted when they came. Without any, decisions
    say why: `trouble`.
    """
    return tuple(_with_evidence(effect, newest, trouble) for effect in effects)


def _with_evidence(effect: Effect, newest: Judgement | None, trouble: str | None) -> Effect:
    if not isinstance(effect, PublishDecision | RaiseAlert) or effect.judgement is not None:
        return effect
    if newest is None and isinstance(effect, PublishDecision):
        return replace(effect, evidence_trouble=trouble)
    return replace(effect, judgement=newest)


# --- answers to commands ---


def accepted(command: CommandReceived, rollout: Rollout, reason: str = "done") -> AnswerCommand:
    """Return the answer to a command that was carried out, or had nothing left to do."""
    return AnswerCommand(
        command.command_id,
        command.verb,
        CommandStatus.ACCEPTED,
        reason,
        rollout.revision,
        issuer=command.issuer,
    )


def rejected(
    command: CommandReceived | CommandUnusable, rollout: Rollout | None, reason: str
) -> AnswerCommand:
    """Return the answer to a command that changes nothing."""
    revision = 0 if rollout is None else rollout.revision
    return AnswerCommand(
        command.command_id,
        command.verb,
        CommandStatus.REJECTED,
        reason,
        revision,
        issuer=command.issuer,
    )
