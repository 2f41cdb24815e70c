"""What each system's deliveries mean, and what nobody's delivery can do."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.codec.signals import signal_event
from controller.responding.memory import KEPT
from controller.settings.hooks import SIGNING, Source
from controller.web.hooks.heard import OLDEST_EVENT, NotUnderstood
from controller.web.hooks.proofs import SIGNATURES
from controller.web.hooks.sources import READERS, read_signals
from schemas.envelope import MAX_TIME_MS
from schemas.envelope import read as read_envelope
from schemas.signal import TYPE, Signal
from schemas.terms import NotificationRequest, SignalStatus
from tests.unit.web.hooks import deliveries

MONITOR, ERROR = deliveries.BETTER_STACK_MONITOR, deliveries.BETTER_STACK_ERROR
NOW = datetime(2026, 11, 22, 3, 1, tzinfo=UTC)
STARTED = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)


def read(source: str, document: Any, now: datetime = NOW, delivery: str = "") -> list[Signal]:
    """Return what a delivery says."""
    return read_signals(source, "prod", json.dumps(document).encode(), now, delivery)


def test_what_the_settings_name_can_be_read_and_checked() -> None:
    """A source without a reader, or a secret that nothing checks, gets 500 for each delivery."""
    assert set(READERS) == set(get_args(Source)) == {source for source, _ in deliveries.ALL}
    assert set(SIGNATURES) == SIGNING


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
        ("datadog", deliveries.DATADOG, "checkout", "p1", False),
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


OURS = {"source": "rolloutd", "incident": "checkout-a/start-1/rolled_back", "severity": "critical"}


@pytest.mark.parametrize(
    ("source", "document", "path", "value"),
    [
        ("alertmanager", deliveries.ALERTMANAGER, "alerts.0.labels", OURS),
        ("grafana", deliveries.GRAFANA, "alerts.0.labels", OURS),
        ("pagerduty", deliveries.PAGERDUTY, "event.data.incident_key", OURS["incident"]),
        ("pagerduty", deliveries.PAGERDUTY, "event.data.incident_key", "a/start-1/2/paused"),
        ("pagerduty", deliveries.PAGERDUTY, "event.client", {"name": "rolloutd"}),
    ],
)
def test_what_we_told_comes_back_as_a_note(
    source: str, document: dict[str, Any], path: str, value: Any
) -> None:
    """An alert about one flag, which a pager sends on, must not lower another one."""
    assert read(source, document)[0].status is SignalStatus.FIRING
    assert read(source, changed(document, path, value))[0].status is SignalStatus.NOTE


def test_what_others_name_like_us_fires() -> None:
    """A label or a key alone is not enough."""
    for source, document, path, value in (
        ("alertmanager", deliveries.ALERTMANAGER, "alerts.0.labels", {"source": "rolloutd"}),
        ("alertmanager", deliveries.ALERTMANAGER, "alerts.0.labels", {"incident": "a/b/paused"}),
        ("pagerduty", deliveries.PAGERDUTY, "event.data.incident_key", "paused/ended"),
        ("pagerduty", deliveries.PAGERDUTY, "event.client", {"name": "Prometheus"}),
    ):
        assert read(source, changed(document, path, value))[0].status is SignalStatus.FIRING


def test_a_warning_of_sentry_that_becomes_critical_is_news() -> None:
    """Of the same alert, since the same moment."""
    (critical,) = read("sentry", deliveries.SENTRY_METRIC)
    (warning,) = read("sentry", changed(deliveries.SENTRY_METRIC, "action", "warning"))
    assert critical.id != warning.id
    assert (critical.condition, critical.started_at) == (warning.condition, warning.started_at)


def test_a_delivery_of_pagerduty_that_is_sent_again_much_later_is_a_note() -> None:
    """Its signature tells no time, and what it led to is forgotten by then."""
    for days, status in ((6, SignalStatus.FIRING), (8, SignalStatus.NOTE)):
        (one,) = read("pagerduty", deliveries.PAGERDUTY, STARTED + timedelta(days=days))
        assert one.status is status
    assert OLDEST_EVENT <= KEPT


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


def test_null_in_quotes_is_null() -> None:
    """A template of Better Stack quotes every value: an incident that is not over fires."""
    document = changed(deliveries.BETTER_STACK_INCIDENT, "data.attributes.resolved_at", "null")
    document = changed(document, "data.attributes.acknowledged_at", "")
    assert read("better_stack", document)[0].status is SignalStatus.FIRING
    for event, status in (("resolved", "resolved"), ("acknowledged", "note"), ("x", "firing")):
        assert read("better_stack", {**document, "event": event})[0].status.value == status


def test_an_incident_of_better_stack_names_its_monitor() -> None:
    """So that a rule can be about one monitor, whatever its name becomes."""
    monitor = {"monitor": {"data": {"id": "42", "type": "monitor"}}}
    data = {**deliveries.BETTER_STACK_INCIDENT["data"], "relationships": monitor}
    assert read("better_stack", {"data": data})[0].labels["monitor_id"] == "42"
    assert read("better_stack", MONITOR)[0].labels["monitor_id"] == "238"


@pytest.mark.parametrize(
    "written",
    [
        rb'"half of \ud83d an emoji"',
        b'"latin \xe4 bytes"',
        b"NaN",
        b'"a line\nend"',
        b"1" * 4_000,
    ],
)
def test_a_text_that_is_badly_written_hides_nothing(written: bytes) -> None:
    """Systems cut texts of strangers in the middle, and put them into JSON as they are."""
    body = json.dumps({**deliveries.OWN, "title": "TITLE"}).encode().replace(b'"TITLE"', written)
    (one,) = read_signals("standard_webhooks", "prod", body, NOW)
    assert one.status is SignalStatus.FIRING
    assert read_signals("standard_webhooks", "prod", b"\xef\xbb\xbf" + body, NOW)


def test_an_alert_that_is_not_understood_hides_no_other() -> None:
    """It is told beside them, and alone it is refused."""
    firing = deliveries.ALERTMANAGER["alerts"][0]
    told = read("alertmanager", {"alerts": [None, firing, {"status": "maybe"}]})
    assert [one.status.value for one in told] == ["firing", "note"]
    assert "alerts[0] has no status" in told[1].title


def test_brackets_in_a_title_do_not_keep_a_signal_from_being_read() -> None:
    """Readers of a topic refuse records with hundreds of them."""
    text = "[{" * 150 + chr(92) + "[" + chr(34) + "{"
    own = {**deliveries.OWN, "service": text, "severity": text, "labels": {"a": text}, "link": text}
    (one,) = read("standard_webhooks", {**own, "title": text})
    record = signal_event(one, "/rolloutd/test")
    envelope = read_envelope(record, MAX_TIME_MS, (), (TYPE,))
    assert Signal.model_validate(envelope.data) == one


def test_of_too_many_alerts_the_firing_ones_are_taken() -> None:
    """A storm that was refused would come again for ever, and do nothing."""
    firing, resolved = deliveries.ALERTMANAGER["alerts"]
    many = {"alerts": [resolved] * 1_500 + [firing]}
    told, first, *others = read("alertmanager", many)
    assert (told.status, first.status) == (SignalStatus.NOTE, SignalStatus.FIRING)
    assert "501 alerts" in told.title
    assert len(others) == 999


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
        ("alertmanager", b"{}", "body.alerts is not a list"),
        ("alertmanager", b'{"alerts": [1]}', "alerts[0] has no status"),
        ("alertmanager", b'{"alerts": [{"status": "maybe"}]}', "maybe"),
        ("alertmanager", b'{"alerts": %s}' % (b"[" * 30_000), "brackets"),
        ("alertmanager", json.dumps({"alerts": [{}] * 1001}).encode(), "alerts[0] has no status"),
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
    assert "the body." not in str(refused.value)


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


@pytest.mark.parametrize("source", ["standard_webhooks", "cloudevents"])
def test_our_own_form_takes_an_incident(source: str) -> None:
    """By its key, in somebody's name: it fires nothing and ends nothing."""
    told: dict[str, Any] = {"acknowledges": "checkout/r1/rolled_back", "taken_by": "ada"}
    body = told if source == "standard_webhooks" else {"id": "1", "source": "/x", "data": told}
    (one,) = read(source, body)
    assert (one.status, one.request, one.request_about, one.issuer) == (
        SignalStatus.NOTE,
        NotificationRequest.ACKNOWLEDGE,
        "checkout/r1/rolled_back",
        "ada",
    )
