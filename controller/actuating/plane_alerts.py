"""What is told about flag planes that do not serve what was decided."""

from __future__ import annotations

from datetime import datetime

from controller.core.rollout import RaiseAlert, Rollout
from schemas.terms import AlertKind, Severity


def not_served(rollout: Rollout, plane: str, why: str, since: datetime) -> RaiseAlert:
    """Alert that a plane has not served the decided percentage since a time."""
    return RaiseAlert(
        AlertKind.NOT_ACTUATED,
        Severity.CRITICAL,
        f"{rollout.flag_key}: decided {rollout.percent:g} %, but {plane} {why}",
        f"see whether {plane} is reachable and who else edits the flag",
        _dedup_key(rollout, plane),
        occasion=since.isoformat(),
    )


def served_again(rollout: Rollout, plane: str, since: datetime) -> RaiseAlert:
    """Alert that what `not_served` told of the same time is over."""
    return RaiseAlert(
        AlertKind.NOT_ACTUATED,
        Severity.INFO,
        f"{rollout.flag_key}: {plane} serves what was decided again, {rollout.percent:g} %",
        "nothing",
        _dedup_key(rollout, plane),
        occasion=f"{since.isoformat()}/over",
    )


def _dedup_key(rollout: Rollout, plane: str) -> str:
    return f"{rollout.flag_key}/{rollout.rollout_id}/{plane}/{AlertKind.NOT_ACTUATED}"
