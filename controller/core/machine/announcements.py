"""What is announced of a transition: decisions for the audit log, alerts, answers to commands.

The texts for people stand here. What happens, and when, is decided elsewhere in the package.
"""

from __future__ import annotations

from collections.abc import Mapping

from controller.core.judging.judgement import Judgement
from controller.core.machine.cause import Cause
from controller.core.machine.obstacles import gaps_to_fix
from controller.core.rollout import (
    CONTROLLER,
    AnswerCommand,
    CommandReceived,
    CommandUnusable,
    Effect,
    Gating,
    PublishDecision,
    RaiseAlert,
    Rollout,
)
from schemas.terms import (
    AlertKind,
    CommandStatus,
    DecisionKind,
    FlagType,
    HealthGap,
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

_REPEATS_ACTION = (
    "find who sends outcomes a second time: a replay into the live topic, or producers "
    "without enable.idempotence; "
    "the share falls as new outcomes come in, and `promote` does not wait for that"
)
_DRIFT_ACTION = (
    "check that the planes serve the flag and that the apps follow them; if apps ask less often "
    "than once per settle, lengthen settle"
)

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


def _alert(
    rollout: Rollout,
    kind: AlertKind,
    severity: Severity,
    summary: str,
    action: str,
    judgement: Judgement | None,
) -> RaiseAlert:
    """Return an alert; there is one page per kind and visit."""
    key = f"{rollout.flag_key}/{rollout.rollout_id}/{len(rollout.visits)}/{kind}"
    return RaiseAlert(kind, severity, summary, action, key, judgement)


def rolled_back(before: Rollout, after: Rollout, cause: Cause) -> RaiseAlert:
    """Return the alert that 0 % is served because of a fault."""
    summary = f"{before.flag_key} rolled back from {before.served_words} to 0 %: {cause.reason}"
    action = "find the cause; then start a new rollout"
    kind = AlertKind.ROLLED_BACK
    return _alert(after, kind, Severity.CRITICAL, summary, action, cause.judgement)


def stepped_back(before: Rollout, after: Rollout, cause: Cause) -> RaiseAlert:
    """Return the alert that a guardrail led back to the stage below."""
    summary = (
        f"{before.flag_key} stepped back from {before.served_words} to "
        f"{after.served_words}: {cause.reason}"
    )
    action = "find the cause before it goes on"
    kind = AlertKind.STEPPED_BACK
    return _alert(after, kind, Severity.CRITICAL, summary, action, cause.judgement)


def completed(after: Rollout, cause: Cause) -> RaiseAlert:
    """Return the message that the plan has reached its end, and what is left to do."""
    summary = f"{after.flag_key} completed at {after.served_words}"
    action = AFTER_COMPLETION[after.plan.flag_type]
    return _alert(after, AlertKind.COMPLETED, Severity.INFO, summary, action, cause.judgement)


def moved_past_gate(after: Rollout, command: CommandReceived) -> RaiseAlert:
    """Return the alert that an operator advanced a rollout whose stage was not judged."""
    summary = (
        f"{after.flag_key} was moved past a gate to {after.served_words} by "
        f"{command.issuer}: {command.reason}"
    )
    action = "watch it: this stage was not judged"
    return _alert(after, AlertKind.FORCED, Severity.WARNING, summary, action, None)


def asks_for_approval(after: Rollout, reason: HoldReason, cause: Cause) -> RaiseAlert:
    """Return the alert that a person has to decide."""
    is_advised = reason is HoldReason.ADVISOR
    kind = AlertKind.ADVISOR_HOLDS if is_advised else AlertKind.APPROVAL_NEEDED
    summary = f"{after.flag_key} at {after.served_words} waits for a person: {cause.reason}"
    action = f"approve or reject revision {after.revision}"
    return _alert(after, kind, Severity.WARNING, summary, action, cause.judgement)


def paused(before: Rollout, after: Rollout, kind: AlertKind, cause: Cause) -> RaiseAlert:
    """Return the alert that the controller paused the rollout; `kind` unless its plan expired."""
    action = "check the evidence; then resume, promote or roll back"
    if after.hold is HoldReason.EXPIRED:
        kind, action = AlertKind.PLAN_EXPIRED, "decide, as its owner: promote, roll back or abort"
    severity = Severity.CRITICAL if after.hold is HoldReason.BREACH else Severity.WARNING
    summary = f"{before.flag_key} paused at {before.served_words}: {cause.reason}"
    return _alert(after, kind, severity, summary, action, cause.judgement)


def hold_alerts(after: Rollout, cause: Cause) -> tuple[Effect, ...]:
    """Return the alert about a hold, none when the stage only waits for more data."""
    judgement = cause.judgement
    if after.hold is HoldReason.SIGNAL:
        kind, severity = AlertKind.SIGNAL_REGRESSION, Severity.WARNING
        action = "check the signal; then promote or roll back"
    elif after.hold is HoldReason.ADVISOR:
        kind, severity = AlertKind.ADVISOR_HOLDS, Severity.INFO
        action = "read the advice"
    elif after.hold is HoldReason.HEALTH and judgement is not None and _is_alarming(judgement):
        kind, severity = AlertKind.HEALTH_GAP, Severity.WARNING
        action = _health_action(judgement)
    else:
        return ()
    summary = f"{after.flag_key} holds at {after.served_words}: {cause.reason}"
    return (_alert(after, kind, severity, summary, action, judgement),)


def _is_alarming(judgement: Judgement) -> bool:
    return any(gap.kind is not HealthGap.BELOW_MIN_SAMPLE for gap in judgement.gaps)


def _health_action(judgement: Judgement) -> str:
    """Return what to do about a gap that an operator must fix, else about missing events."""
    kinds = {gap.kind for gap in gaps_to_fix(judgement)}
    if HealthGap.ACTUATION_DRIFT in kinds:
        return _DRIFT_ACTION
    if HealthGap.REPEATED_OUTCOMES in kinds:
        return _REPEATS_ACTION
    return "check that events arrive in both arms"


# --- answers to commands ---


def accepted(command: CommandReceived, rollout: Rollout, reason: str = "done") -> AnswerCommand:
    """Return the answer to a command that was carried out, or had nothing left to do."""
    return AnswerCommand(
        command.command_id, command.verb, CommandStatus.ACCEPTED, reason, rollout.revision
    )


def rejected(
    command: CommandReceived | CommandUnusable, rollout: Rollout | None, reason: str
) -> AnswerCommand:
    """Return the answer to a command that changes nothing."""
    revision = 0 if rollout is None else rollout.revision
    return AnswerCommand(command.command_id, command.verb, CommandStatus.REJECTED, reason, revision)
