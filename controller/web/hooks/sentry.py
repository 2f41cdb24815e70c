"""Sentry's integration platform: metric alerts and issue alerts.

Of an issue alert only the rule's name and the issue's number are kept: its event may hold personal
data. Sources: getsentry/sentry-docs integration-platform/webhooks.
"""

from __future__ import annotations

from collections.abc import Iterator

from controller.web.hooks.heard import Document, Heard, labels_of
from schemas.terms import SignalStatus

_ACTIONS = {
    "critical": SignalStatus.FIRING,
    "warning": SignalStatus.FIRING,
    "resolved": SignalStatus.RESOLVED,
}


def read(body: Document) -> Iterator[Heard]:
    """Yield what a delivery says. Raises NotUnderstood."""
    action, data = body.required("action").lower(), body.part("data")
    alert, event = data.part("metric_alert"), data.part("event")
    if alert:
        rule = alert.part("alert_rule")
        yield Heard(
            status=_ACTIONS.get(action, SignalStatus.NOTE),
            condition=f"metric alert {alert.required('id')}",
            title=data.text("description_title") or alert.text("title"),
            service=rule.text("name"),
            severity="" if action == "resolved" else action,
            labels=labels_of(
                [("rule", rule.text("name")), ("environment", rule.text("environment"))]
            ),
            link=data.text("web_url"),
            started_at=alert.moment("date_started"),
            delivery=action,  # a warning that becomes critical is news
        )
    elif event:
        issue = event.text("issue_id", "event_id")
        rule_name = data.text("triggered_rule")
        yield Heard(
            status=SignalStatus.FIRING if action == "triggered" else SignalStatus.NOTE,
            condition=f"issue {issue} of rule {rule_name}",
            title=f"{rule_name}: issue {issue}" if rule_name else f"issue {issue}",
            service=event.text("project_name", "project"),
            labels=labels_of([("rule", rule_name)]),
            link=event.text("web_url"),
            delivery=event.text("event_id"),
        )
    else:
        yield Heard(SignalStatus.NOTE, action, f"Sentry says {action}")
