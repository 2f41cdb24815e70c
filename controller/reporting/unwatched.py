"""That nobody sees what a live rollout does: the alert `unwatched`, as people read it later.

Pure. Does not belong here: when people are alerted (`running/visibility.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from controller.core.rollout import Rollout
from schemas.alert import Alert
from schemas.terms import AlertKind, Severity


@dataclass(frozen=True, slots=True)
class Unwatched:
    """A live rollout whose guardrails see nothing now."""

    why: str  # what is served, and why nobody sees what it does
    action: str  # what helps
    since: datetime


def unwatched_words(rollout: Rollout, why: str) -> str:
    """Return what is served and why nobody sees what it does, without the flag's key."""
    return f"{rollout.served_words} is served and nobody sees what it does: {why}"


def open_unwatched(rollout: Rollout, alerts: Iterable[Alert]) -> Unwatched | None:
    """Return what the alerts of a flag, oldest first, tell of its rollout; None: it is watched.

    An alert is open until its all-clear, which comes with severity `info`. What a model says of an
    alert has that severity, too, and ends nothing.
    """
    if rollout.has_ended:
        return None
    found: Unwatched | None = None
    for alert in alerts:
        is_about = alert.kind is AlertKind.UNWATCHED and alert.rollout_id == rollout.rollout_id
        if not is_about or alert.explanation is not None:
            continue
        if alert.severity is Severity.INFO:
            found = None
        else:
            since = alert.at if found is None else found.since
            why = alert.summary.removeprefix(f"{alert.flag}: ")
            found = Unwatched(why, alert.action, since)
    return found
