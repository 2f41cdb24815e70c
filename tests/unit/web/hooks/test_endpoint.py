"""Who may deliver, what is answered, and that nothing is taken without a proof."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.routing import Route
from structlog.testing import capture_logs

from controller.errors import EventLogUnavailable
from controller.settings import HookSettings, HooksSettings
from controller.web.hooks.endpoint import PATH, Hooks
from controller.web.hooks.proofs import standard_webhook
from controller.web.hooks.sources import READERS
from schemas.signal import Signal
from tests.unit.web.hooks import deliveries

NOW = datetime(2026, 11, 22, 3, 1, tzinfo=UTC)
SECRET = "a secret of more than sixteen"
KEY = base64.b64encode(b"a key of twenty-four byte").decode()
BODIES = {source: json.dumps(document).encode() for source, document in deliveries.ALL}


class Inlet:
    """Takes signals, or refuses them."""

    def __init__(self) -> None:
        self.stored: list[Signal] = []
        self.trouble = ""

    async def store(self, signals: Sequence[Signal]) -> None:
        """Keep them."""
        if self.trouble:
            raise EventLogUnavailable(self.trouble)
        self.stored += signals


class Bench:
    """Endpoints of every source, and a client of them."""

    def __init__(self, **hooks: Mapping[str, Any]) -> None:
        self.inlet = Inlet()
        self.counted: list[tuple[str, str]] = []
        settings = HooksSettings.model_validate({"endpoints": hooks, "max_body_bytes": 20_000})
        self.hooks = Hooks(
            settings, self.inlet, lambda: NOW, lambda hook, what: self.counted.append((hook, what))
        )
        app = Starlette(routes=[Route(PATH, self.hooks, methods=["POST", "OPTIONS"])])
        transport = httpx.ASGITransport(app, client=("192.0.2.7", 40000))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://rolloutd")

    async def post(self, path: str, body: bytes, **headers: str) -> httpx.Response:
        """Deliver."""
        named = [
            (name.replace("_", "-").encode(), value.encode("latin-1"))
            for name, value in headers.items()
        ]
        return await self.client.post(f"/hooks/{path}", content=body, headers=named)


def signed(secret: str, body: bytes) -> str:
    """Return an HMAC in hex."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def standard(body: bytes, at: float | None = None) -> dict[str, str]:
    """Return the headers of a Standard Webhook."""
    stamp = str(int(time.time() if at is None else at))
    signed_bytes = f"msg_1.{stamp}.".encode() + body
    digest = hmac.new(base64.b64decode(KEY), signed_bytes, hashlib.sha256).digest()
    return {
        "webhook_id": "msg_1",
        "webhook_timestamp": stamp,
        "webhook_signature": f"v1,{base64.b64encode(digest).decode()}",
    }


PAGERDUTY = {"prod": {"source": "pagerduty", "secret": SECRET}}
STANDARD = {"prod": {"source": "standard_webhooks", "secret": f"whsec_{KEY}"}}
ALERTMANAGER = {"prod": {"source": "alertmanager", "token": SECRET}}


@pytest.mark.parametrize("source", sorted(set(READERS) - {"sentry"}))
async def test_a_delivery_with_a_token_is_stored(source: str) -> None:
    """Before it is answered, with the ids that it has got."""
    bench = Bench(prod={"source": source, "token": SECRET})
    answer = await bench.post(f"{source}/prod", BODIES[source], authorization=f"Bearer {SECRET}")
    assert answer.status_code == 202
    assert answer.json() == {"signals": [one.id for one in bench.inlet.stored]}
    assert bench.inlet.stored
    assert bench.counted == [(f"{source}/prod", "taken")]


async def test_a_name_with_its_password_is_a_proof() -> None:
    """For sources that send basic authentication."""
    bench = Bench(prod={"source": "better_stack", "username": "stack", "password": SECRET})
    body = BODIES["better_stack"]
    for name, password, status in (("stack", SECRET, 202), ("stack", "wrong", 401), ("", "", 401)):
        given = base64.b64encode(f"{name}:{password}".encode()).decode()
        answer = await bench.post("better_stack/prod", body, authorization=f"Basic {given}")
        assert answer.status_code == status
    assert len(bench.inlet.stored) == 1


@pytest.mark.parametrize(
    ("source", "secret", "headers"),
    [
        ("pagerduty", SECRET, {"x_pagerduty_signature": "v1={right}"}),
        ("pagerduty", SECRET, {"x_pagerduty_signature": "v1=00,v1={right}"}),
        ("sentry", SECRET, {"sentry_hook_signature": "{right}"}),
        ("grafana", SECRET, {"x_grafana_alerting_signature": "{right}"}),
        ("grafana", SECRET, {"x_grafana_alert_signature": "{right}"}),
    ],
)
async def test_a_signature_is_over_the_bytes_as_they_came(
    source: str, secret: str, headers: dict[str, str]
) -> None:
    """Of another secret, of other bytes, cut off or missing: refused."""
    bench, body = Bench(prod={"source": source, "secret": secret}), BODIES[source]

    async def delivered(right: str, what: bytes = body) -> int:
        sent = {name: value.replace("{right}", right) for name, value in headers.items()}
        return (await bench.post(f"{source}/prod", what, **sent)).status_code

    assert await delivered(signed(secret, body)) == 202
    assert await delivered(signed("another secret of this length", body)) == 401
    assert await delivered(signed(secret, body), body + b" ") == 401
    assert await delivered(signed(secret, body)[:-1]) == 401
    assert await delivered("") == 401
    assert (await bench.post(f"{source}/prod", body)).status_code == 401
    assert len({one.id for one in bench.inlet.stored}) == len(bench.inlet.stored)


async def test_a_time_that_grafana_signs_is_near() -> None:
    """The header that the documents name."""
    bench, body = Bench(prod={"source": "grafana", "secret": SECRET}), BODIES["grafana"]
    for at, status in ((time.time(), 202), (time.time() - 900, 401)):
        stamp = str(int(at))
        answer = await bench.post(
            "grafana/prod",
            body,
            x_grafana_alerting_signature=signed(SECRET, stamp.encode() + b":" + body),
            x_grafana_alerting_timestamp=stamp,
        )
        assert answer.status_code == status


def test_a_standard_webhook_is_signed_as_its_specification_shows() -> None:
    """The example of the documents of Standard Webhooks."""
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    assert standard_webhook(lambda name: headers.get(name, ""), body, secret, 1614265331.0)
    assert not standard_webhook(lambda name: headers.get(name, ""), body, secret, 1614265931.0)


async def test_a_standard_webhook_is_for_once_and_for_five_minutes() -> None:
    """A replay after them is refused, and so is another body or id."""
    bench, body = Bench(**STANDARD), BODIES["standard_webhooks"]
    assert (await bench.post("standard_webhooks/prod", body, **standard(body))).status_code == 202
    for headers in (
        standard(body, time.time() - 301),
        standard(body, time.time() + 600),
        standard(body + b" "),
        {**standard(body), "webhook_id": "msg_2"},
        {**standard(body), "webhook_timestamp": "9" * 400},
        {**standard(body), "webhook_timestamp": "\u00b2"},  # a digit, and no number
        {**standard(body), "webhook_signature": "v1a,xx  v1,"},
        {},
    ):
        answer = await bench.post("standard_webhooks/prod", body, **headers)
        assert answer.status_code in (401, 429)
    assert len(bench.inlet.stored) == 1


async def test_without_a_proof_nothing_is_looked_at_and_soon_nothing_answered() -> None:
    """Each wrong attempt costs its sender alone; the right one goes on."""
    bench = Bench(**ALERTMANAGER)
    statuses = [
        (await bench.post("alertmanager/prod", b"{", authorization="Bearer x")).status_code
        for _ in range(30)
    ]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    answer = await bench.post(
        "alertmanager/prod", BODIES["alertmanager"], authorization=f"Bearer {SECRET}"
    )
    assert answer.status_code == 202
    assert {what for _, what in bench.counted[:-1]} == {"unproven"}


async def test_an_endpoint_that_nobody_set_is_none() -> None:
    """Of another source, too."""
    bench = Bench(**ALERTMANAGER)
    for path in ("grafana/prod", "alertmanager/other", "nobody/prod"):
        answer = await bench.post(path, b"{}", authorization=f"Bearer {SECRET}")
        assert answer.status_code == 404
    assert {what for _, what in bench.counted} == {"no_endpoint"}


async def test_a_delivery_for_another_name_is_counted_and_logged() -> None:
    """An operator would look for it at the monitor alone; probes of strangers are not logged."""
    bench = Bench(**ALERTMANAGER)
    scope = {"method": "POST", "client": ("192.0.2.7", 1), "headers": [(b"host", b"other.example")]}
    with capture_logs() as lines:
        for path in ("/hooks/alertmanager/prod", "/rollouts", "/hooks/x" + "y" * 900):
            bench.hooks.misdirected({**scope, "path": path})
        bench.hooks.misdirected({**scope, "path": "/hooks/alertmanager/prod", "method": "GET"})
    assert [what for _, what in bench.counted] == ["wrong_host"] * 2
    assert bench.counted[0][0] == "alertmanager/prod"
    (line, _) = (one for one in lines if one["event"] == "hook_misdirected")
    assert line["host"] == "other.example"
    assert "http.allowed_hosts" in line["fix"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "no JSON"),
        (b"{}", 400, "alerts is not a list"),
        (b"x" * 20_001, 413, "longer than 20000 bytes"),
    ],
)
async def test_what_cannot_be_taken_is_answered_with_why(
    body: bytes, status: int, words: str
) -> None:
    """To whoever has proven who it is."""
    bench = Bench(**ALERTMANAGER)
    answer = await bench.post("alertmanager/prod", body, authorization=f"Bearer {SECRET}")
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert bench.inlet.stored == []


async def test_what_kafka_does_not_take_is_to_be_sent_again() -> None:
    """503 with a time: every source repeats by its own rules."""
    bench = Bench(**ALERTMANAGER)
    bench.inlet.trouble = "no broker answers"
    answer = await bench.post(
        "alertmanager/prod", BODIES["alertmanager"], authorization=f"Bearer {SECRET}"
    )
    assert answer.status_code == 503
    assert "no broker answers" in answer.json()["error"]
    assert answer.headers["retry-after"] == "5"
    assert bench.counted == [("alertmanager/prod", "not_stored")]


async def test_cloud_events_ask_first_and_may_put_all_in_headers() -> None:
    """The handshake names who may deliver; a binary event is the same signal."""
    bench = Bench(prod={"source": "cloudevents", "token": SECRET})
    asked = await bench.client.options(
        "/hooks/cloudevents/prod", headers={"webhook-request-origin": "monitor.example"}
    )
    assert asked.headers["webhook-allowed-origin"] == "monitor.example"
    assert asked.headers["webhook-allowed-rate"]
    await bench.post("cloudevents/prod", BODIES["cloudevents"], authorization=f"Bearer {SECRET}")
    await bench.post(
        "cloudevents/prod",
        json.dumps(deliveries.OWN).encode(),
        authorization=f"Bearer {SECRET}",
        ce_id="e-1",
        ce_source="/monitor",
    )
    one, other = bench.inlet.stored
    assert one == other
    other_source = Bench(**ALERTMANAGER).client
    assert (await other_source.options("/hooks/alertmanager/prod")).status_code == 405


async def test_slow_senders_keep_nobody_out() -> None:
    """However many there are: the oldest gives way, and memory stays bounded."""
    bench = Bench(
        prod={"source": "pagerduty", "secret": SECRET},
        other={"source": "alertmanager", "token": SECRET},
    )
    goes_on = asyncio.Event()

    async def slow() -> Any:
        yield b"x" * 15_000
        await goes_on.wait()
        yield b"x"

    tasks = [
        asyncio.create_task(bench.client.post("/hooks/pagerduty/prod", content=slow()))
        for _ in range(60)
    ]
    await asyncio.sleep(0.1)
    refused = [one.result() for one in tasks if one.done()]
    assert len(refused) >= 49, "the room is for eight bodies of the greatest length"
    assert {one.status_code for one in refused} == {503}
    assert {one.headers["retry-after"] for one in refused} == {"5"}
    body = BODIES["pagerduty"]
    right = signed(SECRET, body)
    answer = await bench.post("pagerduty/prod", body, x_pagerduty_signature=f"v1={right}")
    assert answer.status_code == 202
    token = {"authorization": f"Bearer {SECRET}"}
    answer = await bench.post("alertmanager/other", BODIES["alertmanager"], **token)
    assert answer.status_code == 202
    goes_on.set()
    assert {(await one).status_code for one in tasks} <= {401, 429, 503}


async def test_a_token_in_the_address_is_taken_where_it_is_allowed() -> None:
    """Only there, only once, and not beside a header; no answer and no log repeats it."""
    body, path = BODIES["cloudevents"], f"cloudevents/prod?access_token={quote(SECRET)}"
    with capture_logs() as logs:
        for setting, status in ((True, 202), (False, 401)):
            bench = Bench(prod={"source": "cloudevents", "token": SECRET, "query_token": setting})
            assert (await bench.post(path, body)).status_code == status
        bench = Bench(prod={"source": "cloudevents", "token": SECRET, "query_token": True})
        for wrong in ("cloudevents/prod?access_token=guess", f"{path}&access_token=x"):
            answer = await bench.post(wrong, body)
            assert answer.status_code == 401
            assert SECRET not in answer.text
        answer = await bench.post(path, body, authorization="Bearer guess")
        assert answer.status_code == 401
        answer = await bench.post("cloudevents/prod", body, authorization=f"Bearer {SECRET}")
        assert answer.status_code == 202
    assert "access_token" not in str(logs)
    assert SECRET not in str(logs)


@given(
    st.sampled_from(sorted(READERS)),
    st.binary(max_size=200) | st.sampled_from(list(BODIES.values())),
    st.dictionaries(
        st.sampled_from(
            [
                "authorization",
                "x-pagerduty-signature",
                "sentry-hook-signature",
                "x-grafana-alerting-signature",
                "x-grafana-alerting-timestamp",
                "webhook-id",
                "webhook-timestamp",
                "webhook-signature",
                "ce-id",
            ]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60),
        max_size=5,
    ),
)
def test_no_guess_is_taken(source: str, body: bytes, headers: dict[str, str]) -> None:
    """Without the secret nothing is stored, and nothing fails, whatever is sent."""
    proof = (
        {"secret": f"whsec_{KEY}"}
        if source == "standard_webhooks"
        else {"secret": SECRET}
        if source in ("pagerduty", "sentry", "grafana")
        else {"token": SECRET}
    )

    async def send() -> None:
        bench = Bench(prod={"source": source, **proof})
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        answer = await bench.client.post(f"/hooks/{source}/prod", content=body, headers=raw)
        assert answer.status_code in (401, 429)
        assert bench.inlet.stored == []

    asyncio.run(send())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "alertmanager"}, "exactly one of token, password or certificates"),
        ({"source": "alertmanager", "certificates": ["cn:x"], "token": SECRET}, "exactly one of"),
        ({"source": "alertmanager", "certificates": ["me"]}, "names no certificate"),
        ({"source": "alertmanager", "certificates": ["sha256:12"]}, "names no certificate"),
        ({"source": "sentry", "certificates": ["cn:x"]}, "signs and sends nothing else"),
        (
            {"source": "datadog", "token": SECRET, "query_token": True},
            "is for an endpoint of cloud",
        ),
        ({"source": "sentry", "token": SECRET}, "signs and sends nothing else"),
        ({"source": "alertmanager", "secret": SECRET}, "signs nothing"),
        ({"source": "pagerduty", "secret": SECRET, "token": SECRET}, "exactly one of"),
        ({"source": "datadog", "password": SECRET}, "belong together"),
        ({"source": "datadog", "token": "short"}, "shorter than 16"),
        ({"source": "nagios", "token": SECRET}, "alertmanager"),
        ({"source": "standard_webhooks", "secret": "whsec_not-base64-at-all!"}, "random bytes in"),
        ({"source": "standard_webhooks", "secret": "whsec_AAAAAAAAAA=="}, "random bytes in"),
        ({"source": "standard_webhooks", "secret": "================"}, "random bytes in"),
    ],
)
def test_an_endpoint_that_anybody_could_call_is_refused(
    settings: dict[str, str], words: str
) -> None:
    """At the start, with what is missing; no message repeats a secret."""
    with pytest.raises(ValidationError) as refused:
        HookSettings.model_validate(settings)
    assert words in str(refused.value)
    assert SECRET not in str(refused.value)
