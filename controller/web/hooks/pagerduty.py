"""PagerDuty's webhooks, version 3: one event a delivery, signed, and repeated under its id.

Source: PagerDuty/developer-docs docs/webhooks.
"""

from __future__ import annotations

from collections.abc import Iterator

from controller.web.hooks.heard import Document, Heard, labels_of
from schemas.terms import AlertKind, SignalStatus

_STATUSES = {
    "incident.triggered": SignalStatus.FIRING,
    "incident.reopened": SignalStatus.FIRING,
    "incident.resolved": SignalStatus.RESOLVED,
}
_KINDS = frozenset(kind.value for kind in AlertKind)


def read(body: Document) -> Iterator[Heard]:
    """Yield what a delivery says. Raises NotUnderstood."""
    event = body.part("event")
    kind = event.required("event_type")
    data = event.part("data")
    number, service = data.text("id"), data.part("service").text("summary")
    status = _STATUSES.get(kind, SignalStatus.NOTE)
    is_ours = event.part("client").text("name") == "rolloutd" or _is_ours(data.text("incident_key"))
    if is_ours and status is SignalStatus.FIRING:
        status = SignalStatus.NOTE  # what we did to one flag must not lower another
    yield Heard(
        status=status,
        condition=f"incident {number}" if number else kind,
        title=data.text("title") or kind,
        service=service,
        severity=data.part("priority").text("summary") or data.text("urgency"),
        labels=labels_of(
            [
                ("event_type", kind),
                ("service_id", data.part("service").text("id")),
                ("urgency", data.text("urgency")),
                ("incident_key", data.text("incident_key")),
            ]
        ),
        link=data.text("html_url"),
        started_at=event.moment("occurred_at"),
        happened_at=event.moment("occurred_at"),
        delivery=event.required("id"),
        # The dedup key with which an incident was triggered, by us perhaps.
        acknowledges=data.text("incident_key") if kind == "incident.acknowledged" else "",
        taken_by=event.part("agent").text("summary"),
    )


def _is_ours(key: str) -> bool:
    """Return whether an incident's key is one of ours: flag, rollout, and what the alert is of."""
    return not _KINDS.isdisjoint(key.split("/")[2:])
