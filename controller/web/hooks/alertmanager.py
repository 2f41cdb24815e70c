"""Alertmanager's webhook, version 4, and Grafana's, which has the same form.

Each delivery has all alerts of a group, firing and resolved ones, also those that were told before.
Sources: Alertmanager 0.34 `notify/webhook/webhook.go`; grafana/alerting `receivers/webhook/v1`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from controller.text import plural
from controller.web.hooks.heard import MOST_CONDITIONS, Document, Heard, NotUnderstood
from schemas.terms import SignalStatus

_STATUSES = {"firing": SignalStatus.FIRING, "resolved": SignalStatus.RESOLVED}
#: The labels that name the service, in the order in which they are looked for.
_SERVICE = ("service", "app", "application", "job")


def read(body: Document) -> Iterator[Heard]:
    """Yield what a delivery says of each alert; of too many the firing ones. Raises NotUnderstood.

    A group that was refused would come again for ever, and nothing would be done about it.
    """
    alerts = body.parts("alerts")
    if (left_out := len(alerts) - MOST_CONDITIONS) > 0:
        alerts.sort(key=lambda one: one.text("status").lower() != SignalStatus.FIRING)
        yield Heard(
            SignalStatus.NOTE,
            "alerts that were left out",
            f"{plural(left_out, 'alert was', 'alerts were')} left out of one delivery: set "
            f"max_alerts to {MOST_CONDITIONS}",
        )
    faults: list[str] = []
    for one in alerts[:MOST_CONDITIONS]:
        try:
            yield _heard(one, body)
        except NotUnderstood as fault:  # it hides none of the others
            faults.append(str(fault))
    if faults and len(faults) == min(len(alerts), MOST_CONDITIONS):
        raise NotUnderstood(faults[0])
    if faults:
        yield Heard(SignalStatus.NOTE, "alerts that are not understood", faults[0])


def _heard(one: Document, body: Document) -> Heard:
    """Return what is said of one alert. Raises NotUnderstood."""
    status = _STATUSES.get(one.required("status").lower())
    if status is None:
        raise NotUnderstood(f"an alert's status is {one.text('status')!r}: firing or resolved")
    labels, annotations = one.part("labels"), one.part("annotations")
    is_ours = labels.text("source") == "rolloutd" and bool(labels.text("incident"))
    if is_ours and status is SignalStatus.FIRING:
        status = SignalStatus.NOTE  # what we did to one flag must not lower another
    name = labels.text("alertname")
    return Heard(
        status=status,
        condition=one.text("fingerprint") or json.dumps(labels.texts(), sort_keys=True),
        title=annotations.text("summary", "description") or name,
        service=labels.text(*_SERVICE),
        severity=labels.text("severity"),
        labels=labels.texts(),
        link=one.text("panelURL", "generatorURL") or body.text("externalURL"),
        started_at=one.moment("startsAt"),
    )
