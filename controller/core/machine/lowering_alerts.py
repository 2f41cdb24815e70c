"""The alerts that a rollout is lowered or stopped, and from where.

A rollout may serve 0 % before that: it has not begun, or it is closed by its active windows. Then
the alert says so, and what does not come back. The other announcements are in `announcements.py`.
"""

from __future__ import annotations

from controller.core.effects import RaiseAlert
from controller.core.machine.announcements import alert
from controller.core.machine.cause import Cause
from controller.core.rollout import Rollout
from schemas.terms import AlertKind, HoldReason, Severity


def rolled_back(before: Rollout, after: Rollout, cause: Cause) -> RaiseAlert:
    """Return the alert that 0 % is served because of a fault."""
    where = _while_off(before) or f"from {before.served_words} to 0 %"
    summary = f"{before.flag_key} rolled back {where}{cause.by_words}: {cause.reason}"
    action = f"{cause.fix or 'find the cause'}; then start a new rollout"
    kind = AlertKind.ROLLED_BACK
    return alert(after, kind, Severity.CRITICAL, summary, action, cause.judgement)


def aborted(before: Rollout, after: Rollout, cause: Cause) -> RaiseAlert:
    """Return the alert that 0 % is served because an operator decided so."""
    where = _while_off(before) or f"at {before.served_words}, 0 % is served"
    summary = f"{before.flag_key} aborted {where}{cause.by_words}: {cause.reason}"
    action = "nothing is left to do for safety; start a new rollout when it may go on"
    return alert(after, AlertKind.ABORTED, Severity.WARNING, summary, action, cause.judgement)


def ended(before: Rollout, after: Rollout, cause: Cause) -> RaiseAlert:
    """Return the message that 0 % is served because the plan says until when."""
    where = _while_off(before) or f"at {before.served_words}, 0 % is served"
    summary = f"{before.flag_key} ended {where}: {cause.reason}"
    action = "nothing; everybody has control again"
    return alert(after, AlertKind.ENDED, Severity.INFO, summary, action, cause.judgement)


def _while_off(before: Rollout) -> str:
    """Return why 0 % was served already, and what does not come back; empty where more was."""
    if before.closed_since is not None:
        decided = before.words_of(before.decided_percent)
        return (
            f"while it was closed, 0 % is served already and {decided} does not come back with the "
            "next active window"
        )
    if before.unpaused_phase.serves_nothing:
        return "before its first stage, 0 % is served already"
    return ""


def stepped_back(before: Rollout, after: Rollout, cause: Cause) -> RaiseAlert:
    """Return the alert that a guardrail led back to the stage below."""
    summary = (
        f"{before.flag_key} stepped back from {before.words_of(before.decided_percent)} to "
        f"{after.words_of(after.decided_percent)}{_closed_words(after)}: {cause.reason}"
    )
    action = "find the cause before it goes on"
    kind = AlertKind.STEPPED_BACK
    return alert(after, kind, Severity.CRITICAL, summary, action, cause.judgement)


def paused(before: Rollout, after: Rollout, kind: AlertKind, cause: Cause) -> RaiseAlert:
    """Return the alert that the controller paused the rollout; `kind` unless its plan expired."""
    action = f"{cause.fix or 'check the evidence'}; then resume, promote or roll back"
    if after.hold is HoldReason.EXPIRED:
        kind, action = AlertKind.PLAN_EXPIRED, "decide, as its owner: promote, roll back or abort"
    elif after.hold is HoldReason.OSCILLATES:
        action = "find out why it came down; then promote, roll back or abort"
    elif after.closed_since is not None:
        first = cause.fix or "check the evidence"
        action = f"{first}; then resume, so that it opens again, or roll back"
    severity = Severity.CRITICAL if after.hold is HoldReason.BREACH else Severity.WARNING
    summary = (
        f"{before.flag_key} paused at {before.words_of(before.decided_percent)}"
        f"{_closed_words(after)}: {cause.reason}"
    )
    return alert(after, kind, severity, summary, action, cause.judgement)


def _closed_words(after: Rollout) -> str:
    """Return that 0 % is served all the same, because it is closed; empty while it is open."""
    return "" if after.closed_since is None else " while it was closed, 0 % is served"


def retired(before: Rollout, after: Rollout, cause: Cause) -> RaiseAlert:
    """Return the alert that rolloutd serves nothing for a flag any more."""
    is_served = before.percent > 0
    summary = (
        f"{before.flag_key} retired{cause.by_words}: apps get the default of their own code, and "
        f"no longer {before.served_words}: {cause.reason}"
    )
    action = "nothing, if the code does not use the flag any more; else start a new rollout"
    severity = Severity.WARNING if is_served else Severity.INFO
    return alert(after, AlertKind.RETIRED, severity, summary, action, cause.judgement)
