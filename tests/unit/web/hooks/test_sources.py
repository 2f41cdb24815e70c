"""What each system's deliveries mean, and what nobody's delivery can do."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.web.hooks.heard import NotUnderstood
from controller.web.hooks.sources import READERS, read_signals
from schemas.signal import Signal
from schemas.terms import SignalStatus
from tests.unit.web.hooks import deliveries

MONITOR, ERROR = deliveries.BETTER_STACK_MONITOR, deliveries.BETTER_STACK_ERROR
NOW = datetime(2026, 11, 22, 3, 1, tzinfo=UTC)
STARTED = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)


def read(source: str, document: Any, now: datetime = NOW, delivery: str = "") -> list[Signal]:
    """Return what a delivery says."""
    return read_signals(source, "prod", json.dumps(document).encode(), now, delivery)


@pytest.mark.parametrize(("source", "document"), deliveries.ALL)
def test_every_source_tells_that_something_fires(source: str, document: dict[str, Any]) -> None:
    """With a title, a condition, and an id that is the same for the same delivery."""
    first = read(source, document)[0]
    assert first.status is SignalStatus.FIRING
    assert first.hook == f"{source}/prod"
    assert first.condition
    assert first.title
    assert first.received_at == NOW
    assert read(source, document)[0] == first


@pytest.mark.parametrize(
    ("source", "document", "service", "severity", "began"),
    [
        ("alertmanager", deliveries.ALERTMANAGER, "checkout", "critical", True),
        ("better_stack", deliveries.BETTER_STACK_INCIDENT, "shop.example", "", True),
        ("better_stack", deliveries.BETTER_STACK_MONITOR, "Shop", "", False),
        ("better_stack", deliveries.BETTER_STACK_ERROR, "checkout", "", False),
        ("pagerduty", deliveries.PAGERDUTY, "Checkout", "high", True),
        ("sentry", deliveries.SENTRY_METRIC, "checkout errors", "critical", True),
        ("datadog", deliveries.DATADOG, "checkout", "p1", True),
        ("uptime_kuma", deliveries.UPTIME_KUMA, "Checkout", "", False),
        ("cloudevents", deliveries.CLOUD_EVENT, "checkout", "critical", True),
    ],
)
def test_service_severity_and_begin_are_found(
    source: str, document: dict[str, Any], service: str, severity: str, began: bool
) -> None:
    """As far as a system tells them."""
    one = read(source, document)[0]
    assert (one.service, one.severity) == (service, severity)
    assert (one.started_at is not None) is began
    if began:
        assert one.started_at is not None
        assert abs(one.started_at - STARTED) < timedelta(hours=24)


def test_a_group_of_alerts_is_one_signal_each() -> None:
    """Alertmanager sends firing and resolved ones together."""
    firing, resolved = read("alertmanager", deliveries.ALERTMANAGER)
    assert (firing.status, resolved.status) == (SignalStatus.FIRING, SignalStatus.RESOLVED)
    assert resolved.service == "search"
    assert resolved.title == "SearchSlow"
    assert firing.labels["severity"] == "critical"
    assert firing.condition == "af12b34cd56ef789"


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a delivery with one value changed."""
    made = copy.deepcopy(document)
    at: Any = made
    *steps, last = path.split(".")
    for step in steps:
        at = at[int(step)] if step.isdigit() else at[step]
    at[last] = value
    return made


@pytest.mark.parametrize(
    ("source", "document", "path", "value", "status"),
    [
        ("alertmanager", deliveries.ALERTMANAGER, "alerts.0.status", "resolved", "resolved"),
        (
            "better_stack",
            deliveries.BETTER_STACK_INCIDENT,
            "data.attributes.resolved_at",
            "2026-11-22T03:09:00Z",
            "resolved",
        ),
        (
            "better_stack",
            deliveries.BETTER_STACK_INCIDENT,
            "data.attributes.acknowledged_at",
            "2026-11-22T03:09:00Z",
            "note",
        ),
        ("better_stack", MONITOR, "data.attributes.status", "up", "resolved"),
        ("better_stack", MONITOR, "data.attributes.status", "paused", "note"),
        ("better_stack", ERROR, "data.attributes.event", "resolved", "resolved"),
        ("pagerduty", deliveries.PAGERDUTY, "event.event_type", "incident.resolved", "resolved"),
        ("pagerduty", deliveries.PAGERDUTY, "event.event_type", "incident.acknowledged", "note"),
        ("pagerduty", deliveries.PAGERDUTY, "event.event_type", "pagey.ping", "note"),
        ("sentry", deliveries.SENTRY_METRIC, "action", "resolved", "resolved"),
        ("datadog", deliveries.DATADOG, "transition", "Recovered", "resolved"),
        ("datadog", deliveries.DATADOG, "transition", "No Data", "note"),
        ("uptime_kuma", deliveries.UPTIME_KUMA, "heartbeat.status", 1, "resolved"),
        ("uptime_kuma", deliveries.UPTIME_KUMA, "heartbeat.status", 3, "note"),
        ("uptime_kuma", deliveries.UPTIME_KUMA, "heartbeat", None, "note"),
        ("standard_webhooks", deliveries.OWN, "status", "resolved", "resolved"),
    ],
)  # fmt: skip
def test_what_is_over_and_what_is_no_verdict(
    source: str, document: dict[str, Any], path: str, value: Any, status: str
) -> None:
    """An acknowledgement, a test and missing data are neither firing nor over."""
    one = read(source, changed(document, path, value))[0]
    assert one.status.value == status
    if status == "resolved":
        assert one.condition == read(source, document)[0].condition
        assert one.id != read(source, document)[0].id


def test_two_firings_of_one_condition_are_two_signals() -> None:
    """Told by when they began, by the delivery's own id, or by when they came."""
    later = NOW + timedelta(minutes=9)
    again = changed(deliveries.ALERTMANAGER, "alerts.0.startsAt", "2026-11-22T03:08:00Z")
    pairs = [
        (read("alertmanager", deliveries.ALERTMANAGER), read("alertmanager", again)),
        (
            read("standard_webhooks", deliveries.OWN, delivery="msg_1"),
            read("standard_webhooks", deliveries.OWN, delivery="msg_2"),
        ),
        (
            read("better_stack", deliveries.BETTER_STACK_MONITOR),
            read("better_stack", deliveries.BETTER_STACK_MONITOR, later),
        ),
    ]
    for one, other in pairs:
        assert one[0].id != other[0].id
        assert one[0].condition == other[0].condition


def test_what_people_wrote_in_an_issue_is_not_kept() -> None:
    """An event of Sentry may hold personal data."""
    (one,) = read("sentry", deliveries.SENTRY_ISSUE)
    assert "private" not in one.model_dump_json()


def test_a_variable_that_datadog_left_is_not_told() -> None:
    """It stays in the text as it was written."""
    one = read("datadog", changed(deliveries.DATADOG, "link", "$LINK"))[0]
    assert one.link == ""
    assert one.labels == {"env": "prod", "service": "checkout", "monitor": ""}


def test_lines_and_control_characters_do_not_get_through() -> None:
    """A title goes into logs, terminals and chats."""
    hostile = "down\n\x1b[2J\u202eINFO ok" + "x" * 10_000
    one = read("standard_webhooks", changed(deliveries.OWN, "title", hostile))[0]
    assert "\n" not in one.title
    assert "\x1b" not in one.title
    assert len(one.title) <= 300


@pytest.mark.parametrize(
    ("source", "body", "words"),
    [
        ("alertmanager", b"", "no JSON"),
        ("alertmanager", b"[]", "no JSON object"),
        ("alertmanager", b"\xff\xfe", "no JSON"),
        ("alertmanager", b"{}", "the body.alerts is not a list"),
        ("alertmanager", b'{"alerts": [1]}', "alerts[0] has no status"),
        ("alertmanager", b'{"alerts": [{"status": "maybe"}]}', "maybe"),
        ("alertmanager", b'{"alerts": %s}' % (b"[" * 30_000), "brackets"),
        ("alertmanager", json.dumps({"alerts": [{}] * 1001}).encode(), "1001 entries"),
        ("standard_webhooks", b'{"status": "down", "condition": "x"}', "firing, resolved or note"),
        ("cloudevents", b'{"id": "1", "source": "/x"}', "has no data"),
        ("better_stack", b'{"data": {"id": 1}}', "has no type"),
    ],
)
def test_what_is_not_in_its_form_is_refused_with_the_place(
    source: str, body: bytes, words: str
) -> None:
    """Each with words that say what is wrong."""
    with pytest.raises(NotUnderstood) as refused:
        read_signals(source, "prod", body, NOW)
    assert words in str(refused.value)


_NAMES = sorted(
    {
        name
        for _, document in deliveries.ALL
        for name in json.dumps(document).split('"')
        if name.isidentifier()
    }
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=9), inner, max_size=6)
    ),
    max_leaves=20,
)


@given(st.sampled_from(sorted(READERS)), _JSON)
def test_no_document_does_more_than_be_refused(source: str, document: Any) -> None:
    """Whatever its values are, a signal fits its record, or there is a word why not."""
    body = json.dumps(document).encode()
    with suppress(NotUnderstood):
        for one in read_signals(source, "prod", body, NOW):
            assert Signal.model_validate_json(one.model_dump_json()) == one


@given(st.sampled_from(deliveries.ALL), st.data())
def test_no_change_of_a_delivery_does_more_than_be_refused(
    delivery: tuple[str, dict[str, Any]], data: st.DataObject
) -> None:
    """One value anywhere is anything."""
    source, document = delivery
    made = copy.deepcopy(document)
    at: Any = made
    for _ in range(6):
        places = list(at) if isinstance(at, dict) else list(range(len(at)))
        place = data.draw(st.sampled_from(places))
        if isinstance(at[place], dict | list) and at[place] and data.draw(st.booleans()):
            at = at[place]
            continue
        at[place] = data.draw(_JSON)
        break
    with suppress(NotUnderstood):
        for one in read(source, made):
            assert Signal.model_validate_json(one.model_dump_json()) == one
