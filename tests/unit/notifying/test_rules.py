"""The rules file of notifications: what fits, and each fault with its place."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controller.errors import ConfigInvalid
from controller.notifying.rules import (
    Hours,
    NotificationRules,
    parse_notification_rules,
    rules_of,
)
from controller.settings import NotificationsSettings
from schemas.terms import Severity
from tests.builders import T0
from tests.unit.notifying.news_of import news

CHANNELS = ("chat", "pager")


@pytest.mark.parametrize(
    ("hours", "at", "is_in"),
    [
        ({}, "2026-11-24T03:00", True),
        ({"days": "mon-fri"}, "2026-11-24T03:00", True),
        ({"days": "mon-fri"}, "2026-11-28T03:00", False),
        ({"days": "Mon - Fri"}, "2026-11-24T03:00", True),
        ({"days": ["sat", "sun"]}, "2026-11-28T03:00", True),
        ({"days": "fri-mon"}, "2026-11-29T12:00", True),
        ({"days": "fri-mon"}, "2026-11-25T12:00", False),
        ({"start": "09:00", "end": "17:00"}, "2026-11-24T17:00", False),
        ({"start": "09:00", "end": "17:00"}, "2026-11-24T09:00", True),
        # Over midnight: what began on Friday goes on, what would begin on Saturday does not.
        ({"days": "fri", "start": "22:00", "end": "06:00"}, "2026-11-28T05:59", True),
        ({"days": "fri", "start": "22:00", "end": "06:00"}, "2026-11-28T22:00", False),
        ({"days": "mon", "start": "22:00", "end": "06:00"}, "2026-11-24T03:00", True),
        ({"start": "09:00", "end": "17:00", "zone": "Europe/Vienna"}, "2026-07-01T07:30", True),
        ({"start": "09:00", "end": "17:00", "zone": "Europe/Vienna"}, "2026-12-01T07:30", False),
        ({"start": 570, "end": 600}, "2026-11-24T09:45", True),  # 09:30 as YAML reads it
    ],
)
def test_hours_of_the_week(hours: dict[str, Any], at: str, *, is_in: bool) -> None:
    """Days, times over midnight, and zones with summer time."""
    moment = datetime.fromisoformat(at).replace(tzinfo=UTC)
    assert Hours.model_validate(hours).contain(moment) is is_in


@pytest.mark.parametrize(
    ("when", "told", "is_meant"),
    [
        ({}, {}, True),
        ({}, {"severity": Severity.INFO}, False),
        ({"severity": "critical"}, {"severity": Severity.WARNING}, False),
        ({"flags": "check*"}, {}, True),
        ({"flags": ["search", "cart"]}, {}, False),
        ({"owners": "PAYMENTS"}, {}, True),
        ({"kinds": "paused"}, {}, False),
        ({"kinds": "advanced"}, {"kind": "advanced", "severity": Severity.INFO}, True),
    ],
)
def test_what_a_route_is_for(when: dict[str, Any], told: dict[str, Any], *, is_meant: bool) -> None:
    """Warnings and worse, unless it names kinds or a severity."""
    route = {"name": "a", "when": when, "to": "chat"}
    rules = NotificationRules.model_validate({"routes": [route]})
    assert bool(rules.routes_for(news(**told), T0)) is is_meant


FAULTS = [
    ("routes: [{name: a, to: chatt}]", "2:20: there is no channel chatt; notifications.channels"),
    ("routes: [{name: a, to: chat}, {name: a, to: pager}]", "there are two called a: rename one"),
    ("routes: [{name: a, to: chat, escalation: x}]", "there is no escalation x"),
    ("routes: [{name: a, when: {kinds: rolledback}, to: chat}]", "no kind of news is called"),
    (
        "routes: [{name: a, when: {kind: x}, to: chat}]",
        "when.kind: is not known here; write one of flags, owners, kinds, severity, hours",
    ),
    (
        "routes: [{name: a, when: {severity: info}, to: chat}, {name: b, to: pager}]",
        "takes all, so that b below gets none",
    ),
    ("escalations: [{name: e}]", "does nothing: give it `repeat` or `steps`"),
    ("escalations: [{name: e, repeat: 10s}]", "is less than a minute"),
    (
        "escalations: [{name: e, steps: [{after: 9m, to: chat}, {after: 5m, to: pager}]}]",
        "are not in the order of their times",
    ),
    ("escalations: [{name: e, steps: [{after: 9m, to: nobody}]}]", "there is no channel nobody"),
    (
        "mutes: [{name: m, when: {}, start: 2026-12-02T00:00Z, until: 2026-12-01T00:00Z}]",
        "is not after `start`",
    ),
    (
        "routes: [{name: a, when: {hours: {zone: Vienna}}, to: chat}]",
        "is no time zone: write it as in Europe/Vienna",
    ),
    ("routes: [{name: a, when: {hours: {start: 9am}}, to: chat}]", "is a time of day, as in 09:30"),
    ("templates: [{channels: chat, title: '{{ flagg }}'}]", "'flagg' is undefined"),
    ("templates: [{channels: chat, title: '{{ flag }'}]", "cannot be filled in: line 1"),
    ("templates: [{channels: chat, text: '{{ ().__class__.__base__ }}'}]", "cannot be filled in"),
]


@pytest.mark.parametrize(("text", "fault"), FAULTS, ids=[fault for _, fault in FAULTS])
def test_each_fault_has_its_place(text: str, fault: str) -> None:
    """File, line and column, and what is there instead."""
    with pytest.raises(ConfigInvalid) as refused:
        parse_notification_rules(f"version: 1\n{text}\n", "rules.yaml", CHANNELS)
    assert str(refused.value).startswith("rules.yaml:2:")
    assert fault in str(refused.value)


def test_a_file_without_routes_leaves_them_as_without_a_file(tmp_path: Path) -> None:
    """Whoever adds a mute still hears of everything else."""
    file = tmp_path / "rules.yaml"
    mute = "{name: m, when: {flags: x}, start: 2026-12-01T20:00Z, until: 2026-12-01T23:00Z}"
    file.write_text(f"mutes: [{mute}]\n")
    channel = {"type": "slack_webhook", "url": "https://hooks.example.org/x"}
    settings = {"rules_file": str(file), "channels": {"chat": channel}}
    rules = rules_of(NotificationsSettings.model_validate(settings))
    assert [route.to for route in rules.routes] == [("chat",)]
    assert [mute.name for mute in rules.mutes] == ["m"]


def test_a_file_with_everything_is_read() -> None:
    """That of the documentation, too: see test_notifications_page."""
    text = """
version: 1
routes:
  - {name: nights, when: {severity: critical, hours: {start: 22:00, end: 06:00}}, to: [pager],
     escalation: on-call, go_on: true}
  - {name: rest, to: [chat]}
escalations:
  - {name: on-call, repeat: 15m, steps: [{after: 10m, to: [chat]}]}
mutes:
  - {name: move, when: {flags: "*"}, until: "2026-12-01T00:00:00Z", reason: new data center}
templates:
  - {channels: [chat], title: "{{ flag|upper }}: {{ percent }}", text: "{{ action }}"}
"""
    rules = parse_notification_rules(text, "rules.yaml", CHANNELS)
    assert [one.name for one in rules.routes] == ["nights", "rest"]
