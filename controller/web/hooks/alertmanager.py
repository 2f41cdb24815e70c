"""Alertmanager's webhook, version 4, and Grafana's, which has the same form.

Each delivery has all alerts of a group, firing and resolved ones, also those that were told before.
Sources: Alertmanager 0.34 `notify/webhook/webhook.go`; grafana/alerting `receivers/webhook/v1`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from controller.web.hooks.heard import Document, Heard, NotUnderstood
from schemas.terms import SignalStatus

_STATUSES = {"firing": SignalStatus.FIRING, "resolved": SignalStatus.RESOLVED}
#: The labels that name the service, in the order in which they are looked for.
_SERVICE = ("service", "app", "application", "job")


def read(body: Document) -> Iterator[Heard]:
    """Yield what a delivery says of each alert. Raises NotUnderstood."""
    for one in body.parts("alerts"):
        status = _STATUSES.get(one.required("status").lower())
        if status is None:
            raise NotUnderstood(f"an alert's status is {one.text('status')!r}: firing or resolved")
        labels, annotations = one.part("labels"), one.part("annotations")
        name = labels.text("alertname")
        yield Heard(
            status=status,
            condition=one.text("fingerprint") or json.dumps(labels.texts(), sort_keys=True),
            title=annotations.text("summary", "description") or name,
            service=labels.text(*_SERVICE),
            severity=labels.text("severity"),
            labels=labels.texts(),
            link=one.text("panelURL", "generatorURL") or body.text("externalURL"),
            started_at=one.moment("startsAt"),
        )
