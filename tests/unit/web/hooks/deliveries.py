"""Deliveries of each source, as it documents them."""

from __future__ import annotations

from typing import Any, Final

ALERTMANAGER: Final[dict[str, Any]] = {
    "version": "4",
    "groupKey": '{}:{alertname="CheckoutDown"}',
    "truncatedAlerts": 0,
    "notification_reason": "first notification",
    "status": "firing",
    "receiver": "rolloutd",
    "groupLabels": {"alertname": "CheckoutDown"},
    "commonLabels": {"alertname": "CheckoutDown"},
    "commonAnnotations": {},
    "externalURL": "http://alertmanager:9093",
    "alerts": [
        {
            "status": "firing",
            "labels": {
                "alertname": "CheckoutDown",
                "severity": "critical",
                "service": "checkout",
            },
            "annotations": {"summary": "checkout answers 503"},
            "startsAt": "2026-11-22T03:00:00.123456789Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "http://prometheus:9090/graph?g0.expr=up",
            "fingerprint": "af12b34cd56ef789",
        },
        {
            "status": "resolved",
            "labels": {"alertname": "SearchSlow", "severity": "warning", "job": "search"},
            "annotations": {},
            "startsAt": "2026-11-22T02:00:00Z",
            "endsAt": "2026-11-22T02:30:00Z",
            "generatorURL": "",
            "fingerprint": "0011223344556677",
        },
    ],
}
GRAFANA: Final[dict[str, Any]] = {
    **ALERTMANAGER,
    "version": "1",
    "orgId": 1,
    "title": "[FIRING:1] CheckoutDown",
    "state": "alerting",
    "message": "**Firing**",
    "alerts": [
        {
            **ALERTMANAGER["alerts"][0],
            "values": {"B": 22, "C": 1},
            "panelURL": "https://grafana.example/d/checkout?viewPanel=1",
        }
    ],
}
BETTER_STACK_INCIDENT: Final[dict[str, Any]] = {
    "data": {
        "id": "4711",
        "type": "incident",
        "attributes": {
            "name": "shop.example",
            "url": "https://shop.example/health",
            "cause": "Status 503",
            "incident_group_id": None,
            "started_at": "2026-11-22T03:00:00.000Z",
            "acknowledged_at": None,
            "resolved_at": None,
            "status": "Started",
        },
    }
}
BETTER_STACK_MONITOR: Final[dict[str, Any]] = {
    "data": {
        "id": "238",
        "type": "monitor",
        "attributes": {
            "url": "https://shop.example",
            "pronounceable_name": "Shop",
            "monitor_type": "status",
            "status": "down",
        },
    }
}
BETTER_STACK_ERROR: Final[dict[str, Any]] = {
    "data": {
        "id": "99",
        "type": "error",
        "attributes": {
            "event": "new_error",
            "application_id": 5,
            "application_name": "checkout",
            "error_url": "https://errors.betterstack.com/99",
            "error_type": "ValueError",
            "error_message": "no such basket",
        },
    }
}
PAGERDUTY: Final[dict[str, Any]] = {
    "event": {
        "id": "01BZ1",
        "event_type": "incident.triggered",
        "resource_type": "incident",
        "occurred_at": "2026-11-22T03:00:00Z",
        "agent": None,
        "client": None,
        "data": {
            "id": "PGR0VU2",
            "type": "incident",
            "html_url": "https://acme.pagerduty.com/incidents/PGR0VU2",
            "number": 2,
            "status": "triggered",
            "incident_key": "d3640fbd41094207a1c11e58e46b1662",
            "title": "checkout is down",
            "service": {"id": "PF9KMXH", "type": "service_reference", "summary": "Checkout"},
            "urgency": "high",
            "priority": None,
        },
    }
}
SENTRY_METRIC: Final[dict[str, Any]] = {
    "action": "critical",
    "data": {
        "metric_alert": {
            "id": "7",
            "title": "errors of checkout",
            "status": 20,
            "date_started": "2026-11-22T03:00:00Z",
            "date_closed": None,
            "alert_rule": {
                "id": "3",
                "name": "checkout errors",
                "query": "",
                "aggregate": "count()",
                "environment": "prod",
            },
        },
        "description_title": "Critical: errors of checkout",
        "description_text": "200 events in the last minute",
        "web_url": "https://sentry.example/alerts/7",
    },
    "actor": {"type": "application", "id": "sentry", "name": "Sentry"},
    "installation": {"uuid": "a8e5d37a-696c-4c54-adb5-b3f28d64c7de"},
}
SENTRY_ISSUE: Final[dict[str, Any]] = {
    "action": "triggered",
    "data": {
        "event": {
            "event_id": "e4874d664c3540c1a32eab185f12c5ab",
            "issue_id": "1170820242",
            "project": 1,
            "web_url": "https://sentry.example/issues/1170820242",
            "user": {"email": "private@example.org"},
            "request": {"cookies": [["session", "private"]]},
        },
        "triggered_rule": "new issue in checkout",
    },
    "installation": {"uuid": "a8e5d37a-696c-4c54-adb5-b3f28d64c7de"},
}
DATADOG: Final[dict[str, Any]] = {
    "alert_id": "1234",
    "cycle": "cycle-77",
    "transition": "Triggered",
    "title": "[Triggered] checkout latency",
    "priority": "P1",
    "type": "metric alert",
    "date": "1795316400000",
    "tags": "env:prod,service:checkout,monitor",
    "scope": "$ALERT_SCOPE",
    "link": "https://app.datadoghq.com/monitors/1234",
}
UPTIME_KUMA: Final[dict[str, Any]] = {
    "heartbeat": {
        "monitorID": 3,
        "status": 0,
        "time": "2026-11-22 03:00:00.000",
        "msg": "connect ECONNREFUSED",
        "important": True,
    },
    "monitor": {"id": 3, "name": "Checkout", "url": "https://shop.example", "type": "http"},
    "msg": "[Checkout] [Down] connect ECONNREFUSED",
}
OWN: Final[dict[str, Any]] = {
    "status": "firing",
    "condition": "checkout availability",
    "title": "checkout is down",
    "service": "checkout",
    "severity": "critical",
    "labels": {"team": "payments"},
    "started_at": "2026-11-22T03:00:00Z",
}
CLOUD_EVENT: Final[dict[str, Any]] = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/monitor",
    "type": "org.example.alert",
    "datacontenttype": "application/json",
    "data": OWN,
}

#: Source and delivery.
ALL: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("alertmanager", ALERTMANAGER),
    ("grafana", GRAFANA),
    ("better_stack", BETTER_STACK_INCIDENT),
    ("better_stack", BETTER_STACK_MONITOR),
    ("better_stack", BETTER_STACK_ERROR),
    ("pagerduty", PAGERDUTY),
    ("sentry", SENTRY_METRIC),
    ("sentry", SENTRY_ISSUE),
    ("datadog", DATADOG),
    ("uptime_kuma", UPTIME_KUMA),
    ("standard_webhooks", OWN),
    ("cloudevents", CLOUD_EVENT),
)
