"""Uptime Kuma's webhook. A test of it has no heartbeat.

Source: louislam/uptime-kuma 2.5.
"""

from __future__ import annotations

from collections.abc import Iterator

from controller.web.hooks.heard import Document, Heard, labels_of
from schemas.terms import SignalStatus

#: 2 is pending, 3 is maintenance: neither is up.
_STATUSES = {"0": SignalStatus.FIRING, "1": SignalStatus.RESOLVED}


def read(body: Document) -> Iterator[Heard]:
    """Yield what a delivery says. Raises NotUnderstood."""
    heartbeat, monitor = body.part("heartbeat"), body.part("monitor")
    message = body.required("msg")
    number, name = monitor.text("id") or heartbeat.text("monitorID"), monitor.text("name")
    yield Heard(
        status=_STATUSES.get(heartbeat.text("status"), SignalStatus.NOTE),
        condition=f"monitor {number or name or 'unknown'}",
        title=message,
        service=name,
        labels=labels_of([("monitor", name), ("type", monitor.text("type"))]),
        link=monitor.text("url"),
        delivery=heartbeat.text("time"),
    )
