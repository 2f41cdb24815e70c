"""Better Stack: webhooks of incidents, monitors and errors.

Sources: betterstack.com/docs/uptime/webhooks, .../errors/integrations/outgoing-webhooks.
"""

from __future__ import annotations

from collections.abc import Iterator

from controller.web.hooks.heard import Document, Heard, labels_of
from schemas.terms import SignalStatus

_MONITOR = {"down": SignalStatus.FIRING, "up": SignalStatus.RESOLVED}
_INCIDENT = {
    "started": SignalStatus.FIRING,
    "created": SignalStatus.FIRING,
    "acknowledged": SignalStatus.NOTE,
    "resolved": SignalStatus.RESOLVED,
}
_ERROR = {
    "resolved": SignalStatus.RESOLVED,
    "ignored": SignalStatus.RESOLVED,
}


def read(body: Document) -> Iterator[Heard]:
    """Yield what a delivery says. Raises NotUnderstood."""
    data = body.part("data")
    kind, number = data.required("type"), data.required("id")
    told = data.part("attributes")
    match kind:
        case "monitor":
            yield _heard(told, f"monitor {number}", _monitor_status(told), number)
        case "incident":
            monitor = data.part("relationships").part("monitor").part("data").text("id")
            status = _incident_status(told, body.text("event"))
            yield _heard(told, f"incident {number}", status, monitor)
        case "error":
            status = _ERROR.get(told.text("event").lower(), SignalStatus.FIRING)
            yield Heard(
                status=status,
                condition=f"error {number}",
                title=told.text("error_message", "error_type"),
                service=told.text("application_name"),
                labels=told.texts(),
                link=told.text("error_url"),
            )
        case _:
            yield _heard(told, f"{kind} {number}", SignalStatus.NOTE)


def _monitor_status(told: Document) -> SignalStatus:
    """Return what a monitor's status means; paused, pending and maintenance are no verdict."""
    return _MONITOR.get(told.text("status").lower(), SignalStatus.NOTE)


def _incident_status(told: Document, event: str) -> SignalStatus:
    """Return what an incident says: its times come first, as every form of it has them."""
    if _is_told(told, "resolved_at"):
        return SignalStatus.RESOLVED
    if _is_told(told, "acknowledged_at"):
        return SignalStatus.NOTE  # it fires on, and was told when it began
    word = (event or told.text("status")).lower()
    return _INCIDENT.get(word, SignalStatus.FIRING)


def _is_told(told: Document, name: str) -> bool:
    """Return whether a time is there. Templates quote everything, so that null is a word."""
    return told.text(name).lower() not in ("", "null", "none")


def _heard(told: Document, condition: str, status: SignalStatus, monitor: str = "") -> Heard:
    name = told.text("pronounceable_name", "name", "url")
    cause = told.text("cause")
    return Heard(
        status=status,
        condition=condition,
        title=f"{name}: {cause}" if name and cause else name or cause,
        service=name,
        labels=told.texts() | labels_of([("monitor", name), ("monitor_id", monitor)]),
        link=told.text("incident_url", "url"),
        started_at=told.moment("started_at"),
    )
