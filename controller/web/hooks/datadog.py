"""Datadog, whose deliveries are what the user's template says: ours is in `ops/signals.md`.

Source: docs.datadoghq.com/integrations/webhooks.
"""

from __future__ import annotations

from collections.abc import Iterator

from controller.web.hooks.heard import Document, Heard, bounded, plain
from schemas.signal import LONGEST_LABEL
from schemas.terms import SignalStatus

_TRANSITIONS = {
    "triggered": SignalStatus.FIRING,
    "re-triggered": SignalStatus.FIRING,
    "recovered": SignalStatus.RESOLVED,
}


def read(body: Document) -> Iterator[Heard]:
    """Yield what a delivery says. Raises NotUnderstood."""
    transition = body.required("transition").lower()
    labels = _tags(_told(body, "tags"))
    # One cycle lasts from the trigger to the recovery.
    condition = _told(body, "cycle") or _told(body, "alert_id") or body.required("title")
    yield Heard(
        status=_TRANSITIONS.get(transition, SignalStatus.NOTE),
        condition=f"cycle {condition}",
        title=_told(body, "title"),
        service=labels.get("service", ""),
        severity=_told(body, "priority"),
        labels=labels,
        link=_told(body, "link"),
        # Not since when it fires: each repetition has its own date.
        delivery=_told(body, "date"),
    )


def _told(body: Document, name: str) -> str:
    """Return a value, empty where Datadog left the variable's name in its place."""
    value = body.text(name)
    return "" if value.startswith("$") else value


def _tags(text: str) -> dict[str, str]:
    """Return `env:prod,service:web` as labels."""
    pairs = (one.strip().partition(":") for one in text.split(",") if one.strip())
    return bounded(
        {plain(name)[:LONGEST_LABEL]: plain(value)[:LONGEST_LABEL] for name, _, value in pairs}
    )
