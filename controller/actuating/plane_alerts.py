"""What is told about flag planes that do not serve what was decided."""

from __future__ import annotations

from datetime import datetime

from controller.core.effects import RaiseAlert
from controller.core.rollout import Rollout
from controller.core.serving import percent_to_serve
from controller.ports import Served
from schemas.alert import Alert
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


def edited(
    rollout: Rollout, plane: str, served: Served, at: datetime, *, is_lower: bool
) -> RaiseAlert:
    """Alert that somebody changed the flag in the plane itself, found at a time.

    `is_lower`: below what was decided, so that it is left as it is.
    """
    percent = percent_to_serve(rollout)
    what_to_do = (
        f"put it back to {percent:g} %, or decide again: rolloutctl step-back, promote or rollback"
        if is_lower
        else f"nothing, unless an alert follows that it could not be put back. Ask "
        f"{served.edited_by} to use rolloutctl"
    )
    kind = AlertKind.FOREIGN_EDIT
    return RaiseAlert(
        kind,
        Severity.WARNING,
        f"{rollout.flag_key}: {served.edited_by} changed the flag in {plane}, which "
        f"{served.difference}",
        what_to_do,
        f"{rollout.flag_key}/{rollout.rollout_id}/{plane}/{kind}/{served.difference}",
        occasion=at.isoformat(),
    )


def plane_of(told: Alert) -> str:
    """Return the plane that an alert of `not_served` is about."""
    plane = told.dedup_key.removeprefix(f"{told.flag}/{told.rollout_id}/")
    return plane.removesuffix(f"/{AlertKind.NOT_ACTUATED}")


def _dedup_key(rollout: Rollout, plane: str) -> str:
    return f"{rollout.flag_key}/{rollout.rollout_id}/{plane}/{AlertKind.NOT_ACTUATED}"
