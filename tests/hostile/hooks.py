"""Deliveries of monitoring systems by seed: honest, hostile, and with proofs that are wrong.

An edge is one source: its endpoint, and everything that acts on what it stores. What must hold is
checked after each case:

- Without the proof nothing is stored, whatever is sent.
- With it the answer is one that is documented, and never 5xx while Kafka takes what is stored.
- What was accepted is read again from the topic, and a firing acts once, also when the same comes
  five times at once.
- Nothing that a delivery says beside its essentials hides that something fires.
- An honest delivery behind a hostile one acts.

Belongs here: what is sent, and what must hold in this process. Does not belong here: real sockets
(`tests/integration/test_hook_delivery.py`) and a real Kafka (`tests/e2e/test_signals.py`).
"""

from __future__ import annotations

import asyncio
import base64
import copy
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address
from typing import Any, Final

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Message

from controller.codec.signals import signal_event
from controller.settings import HooksSettings
from controller.web.hooks.endpoint import PATH, Hooks
from schemas.envelope import MAX_TIME_MS
from schemas.envelope import read as read_envelope
from schemas.signal import TYPE, Signal
from schemas.terms import SignalStatus
from tests.hostile.material import Hostile
from tests.unit.responding.test_matching import rollout, rule
from tests.unit.responding.test_responder import World
from tests.unit.web.hooks import deliveries as documented

SECRET: Final = "a secret of more than sixteen"
KEY: Final = base64.b64encode(b"a key of twenty-four byte").decode()
USERNAME: Final = "monitor"
MOST_BYTES: Final = 200_000

Headers = dict[str, str]
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of delivery, and the values without which it says nothing."""

    source: str
    document: Document
    essentials: Mapping[str, Any]  # by path; they say that something fires


KINDS: Final[Sequence[Kind]] = (
    Kind("alertmanager", documented.ALERTMANAGER, {"alerts.0.status": "firing"}),
    Kind("grafana", documented.GRAFANA, {"alerts.0.status": "firing"}),
    Kind(
        "better_stack",
        documented.BETTER_STACK_INCIDENT,
        {
            "data.id": "4711",
            "data.type": "incident",
            "data.attributes.status": "Started",
            "data.attributes.acknowledged_at": None,
            "data.attributes.resolved_at": "null",  # as templates write it
        },
    ),
    Kind(
        "better_stack",
        documented.BETTER_STACK_MONITOR,
        {"data.id": "238", "data.type": "monitor", "data.attributes.status": "down"},
    ),
    Kind(
        "better_stack",
        documented.BETTER_STACK_ERROR,
        {"data.id": "99", "data.type": "error", "data.attributes.event": "new_error"},
    ),
    Kind(
        "pagerduty",
        documented.PAGERDUTY,
        {"event.id": "01BZ1", "event.event_type": "incident.triggered"},
    ),
    Kind(
        "sentry",
        documented.SENTRY_METRIC,
        {"action": "critical", "data.metric_alert.id": "7"},
    ),
    Kind(
        "sentry",
        documented.SENTRY_ISSUE,
        {"action": "triggered", "data.metric_alert": None, "data.event.issue_id": "11"},
    ),
    Kind("datadog", documented.DATADOG, {"transition": "Triggered", "alert_id": "1234"}),
    Kind("uptime_kuma", documented.UPTIME_KUMA, {"heartbeat.status": 0, "msg": "[Down]"}),
    Kind("standard_webhooks", documented.OWN, {"status": "firing", "condition": "c"}),
    Kind(
        "cloudevents",
        documented.CLOUD_EVENT,
        {"id": "e-1", "source": "/monitor", "data.status": "firing", "data.condition": "c"},
    ),
)
SOURCES: Final = tuple(dict.fromkeys(kind.source for kind in KINDS))
#: How each source proves who it is, as its endpoint is set.
PROOFS: Final[Mapping[str, Mapping[str, str]]] = {
    "alertmanager": {"token": SECRET},
    "better_stack": {"username": USERNAME, "password": SECRET},
    "cloudevents": {"token": SECRET},
    "datadog": {"username": USERNAME, "password": SECRET},
    "grafana": {"secret": SECRET},
    "pagerduty": {"secret": SECRET},
    "sentry": {"secret": SECRET},
    "standard_webhooks": {"secret": f"whsec_{KEY}"},
    "uptime_kuma": {"token": SECRET},
}


# --- proofs ---


def proof(source: str, body: bytes, *, secret: str = SECRET, at: float | None = None) -> Headers:
    """Return the headers that a source sends with a body; `at`: when it is signed."""
    stamp = str(int(time.time() if at is None else at))
    match source:
        case "pagerduty":
            return {"x-pagerduty-signature": f"v1={'0' * 64},v1={_hex(secret, body)}"}
        case "sentry":
            return {"sentry-hook-signature": _hex(secret, body), "sentry-hook-timestamp": stamp}
        case "grafana":
            return {
                "x-grafana-alerting-signature": _hex(secret, stamp.encode() + b":" + body),
                "x-grafana-alerting-timestamp": stamp,
            }
        case "standard_webhooks":
            key = base64.b64decode(KEY) if secret == SECRET else secret.encode()
            digest = hmac.new(key, f"msg_1.{stamp}.".encode() + body, hashlib.sha256).digest()
            signature = f"v1,{base64.b64encode(digest).decode()}"
            return {
                "webhook-id": "msg_1",
                "webhook-timestamp": stamp,
                "webhook-signature": signature,
            }
        case "better_stack" | "datadog":
            named = base64.b64encode(f"{USERNAME}:{secret}".encode()).decode()
            return {"authorization": f"Basic {named}"}
        case _:
            return {"authorization": f"Bearer {secret}"}


def _hex(secret: str, signed: bytes) -> str:
    return hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def wrong_proof(material: Hostile, source: str, body: bytes) -> Headers:
    """Return headers that prove nothing: missing, guessed, of other bytes, cut off, or too old."""
    right = proof(source, body)
    if source == "pagerduty":  # of several signatures any one proves it
        right = {name: value.rpartition(",")[2] for name, value in right.items()}
    dice = material.dice
    name = dice.choice(list(right))
    is_signed = "secret" in PROOFS[source]
    other = dice.choice([one for one in SOURCES if one != source])
    guesses: list[Callable[[], Headers]] = [
        dict,
        lambda: proof(source, body, secret="another secret of this length"),
        lambda: {**right, name: right[name][: dice.randrange(len(right[name]))]},
        lambda: {**right, name: _sendable(material.text()) + right[name]},
        lambda: {key: value for key, value in right.items() if key != name},
        lambda: {one: _sendable(material.text()) for one in right},
        lambda: proof(other, body) if _differs(source, other) else {},
    ]
    if is_signed:
        guesses.append(lambda: proof(source, body + b" "))
    if source in ("grafana", "standard_webhooks"):
        off = dice.choice((-301, -3600, 301, 86_400))
        guesses.append(lambda: proof(source, body, at=time.time() + off * 1.05))
    guess = dice.choice(guesses)()
    # A header that is not looked at may be wrong, or be missing.
    needed = {key: value for key, value in right.items() if key != "sentry-hook-timestamp"}
    is_right = needed.items() <= guess.items()
    return {} if is_right else guess


def _differs(source: str, other: str) -> bool:
    """Return whether what proves one source proves nothing at another's endpoint."""
    return proof(source, b"", at=0).items() != proof(other, b"", at=0).items()


def _sendable(text: str) -> str:
    """Return a text as it can stand in a header."""
    kept = "".join(one for one in text if one.isprintable() and ord(one) < 256)
    return kept[:2_000].strip()


# --- deliveries ---


def hostile_body(material: Hostile, kind: Kind) -> bytes:
    """Return a body that was an honest one; sometimes far too long, or of another source."""
    chance = material.dice.random()
    if chance < 0.02:
        document = {**kind.document, "padding": "x" * (MOST_BYTES + 1)}
        return json.dumps(document).encode()
    if chance < 0.04:
        depth = material.dice.choice((500, 5_000, 40_000))
        opening = material.dice.choice((b"[", b'{"a":'))
        return opening * depth
    if chance < 0.07:
        kind = material.dice.choice(KINDS)
    return material.bytes_of(copy.deepcopy(kind.document))


def firing_body(material: Hostile, kind: Kind) -> bytes:
    """Return a body with hostile values everywhere but in what says that something fires."""
    document = material.mutated(copy.deepcopy(kind.document))
    if not isinstance(document, dict):
        document = {}
    for path, value in kind.essentials.items():
        put(document, path.split("."), value)
    return material.dumps(document)


def put(document: Any, steps: Sequence[str], value: Any) -> None:
    """Set a value in a document, with the objects and lists on the way to it."""
    step, *rest = steps
    key: Any = int(step) if step.isdigit() else step
    if not rest:
        document[key] = value
        return
    held = document[key] if isinstance(key, int) else document.get(key)
    if not isinstance(held, list if rest[0].isdigit() else dict):
        held = document[key] = [] if rest[0].isdigit() else {}
    if isinstance(held, list) and (not held or not isinstance(held[0], dict)):
        held.insert(0, {})
    put(held, rest, value)


def honest_body(kind: Kind) -> bytes:
    """Return a delivery as its source documents it."""
    return json.dumps(kind.document).encode()


# --- the edge ---


class Inlet:
    """Takes signals as Kafka would: as the bytes of a record."""

    def __init__(self) -> None:
        self.records: list[bytes] = []

    async def store(self, signals: Sequence[Signal]) -> None:
        """Keep them."""
        await asyncio.sleep(0)  # others deliver meanwhile
        self.records += [signal_event(one, "/rolloutd/test") for one in signals]

    def taken(self) -> list[Signal]:
        """Return what whoever reads the topic gets, and forget it."""
        records, self.records = self.records, []
        return [
            Signal.model_validate(read_envelope(one, MAX_TIME_MS, (), (TYPE,)).data)
            for one in records
        ]


class HookEdge:
    """One source: its endpoints, and what acts on their signals."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._kinds = [kind for kind in KINDS if kind.source == source]
        self._inlet = Inlet()
        self._at = rollout("checkout-a").visits[0].entered_at + timedelta(hours=1)
        endpoint = {"source": source, **PROOFS[source]}
        settings = HooksSettings.model_validate(
            {"endpoints": {"prod": endpoint, "honest": endpoint}, "max_body_bytes": MOST_BYTES}
        )
        hooks = Hooks(settings, self._inlet, self._now)
        self._app = Starlette(routes=[Route(PATH, hooks, methods=["POST", "OPTIONS"])])
        self._loop = asyncio.new_event_loop()
        self._clients = 0

    def _now(self) -> datetime:
        self._at += timedelta(milliseconds=1)
        return self._at

    def close(self) -> None:
        """Close the loop."""
        self._loop.close()

    def __call__(self, material: Hostile) -> str:
        """Put one hostile delivery, and then an honest one."""
        return self._loop.run_until_complete(self._case(material))

    async def _case(self, material: Hostile) -> str:
        kind = material.dice.choice(self._kinds)
        must_fire = material.dice.random() < 0.4
        body = (firing_body if must_fire else hostile_body)(material, kind)
        await self._without_proof(material, body)
        world = World(
            rule(name="hostile", when={"hooks": f"{self._source}/prod"}, flags="checkout-a"),
            rule(name="honest", when={"hooks": f"{self._source}/honest"}, flags="checkout-b"),
            rollouts=(rollout("checkout-a"), rollout("checkout-b")),
        )
        with material.timed():
            status, answer = await self._deliver("prod", body, proof(self._source, body))
        assert status in (202, 400, 413), (status, answer)
        assert "error" in answer or answer["signals"] is not None
        taken = self._inlet.taken()
        assert len(taken) == (len(answer["signals"]) if status == 202 else 0)
        if must_fire and len(body) <= MOST_BYTES:
            assert (status, _fires(taken)) == (202, True), (status, answer, body)
        for one in taken:
            await world.responder.handle(one)
        assert self._acted(world) == (["checkout-a"] if _fires(taken) else [])
        await self._five_at_once(world, body, status)
        await self._honest(world, kind)
        return f"fires: {status}" if _fires(taken) else f"{status}"

    async def _without_proof(self, material: Hostile, body: bytes) -> None:
        headers = wrong_proof(material, self._source, body)
        status, _ = await self._deliver("prod", body, headers)
        assert status in ((401, 413) if len(body) > MOST_BYTES else (401,)), (status, headers)
        assert self._inlet.records == [], headers

    async def _five_at_once(self, world: World, body: bytes, status: int) -> None:
        """Deliver the same five times at once: each is answered alike, and none acts again."""
        before = len(world.commands)
        answers = await asyncio.gather(
            *(self._deliver("prod", body, proof(self._source, body)) for _ in range(5))
        )
        assert [one for one, _ in answers] == [status] * 5
        for one in self._inlet.taken():
            await world.responder.handle(one)
        assert len(world.commands) == before

    async def _honest(self, world: World, kind: Kind) -> None:
        before, body = len(world.commands), honest_body(kind)
        status, answer = await self._deliver("honest", body, proof(self._source, body))
        assert status == 202, answer
        for one in self._inlet.taken():
            await world.responder.handle(one)
        assert [one.flag for one in world.commands[before:]] == ["checkout-b"]

    def _acted(self, world: World) -> list[str]:
        return [one.flag for one in world.commands]

    async def _deliver(
        self, name: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, Any]]:
        """Deliver in pieces, each time as another client; return status and answer."""
        self._clients += 1
        scope = {
            "type": "http",
            "method": "POST",
            "path": f"/hooks/{self._source}/{name}",
            "query_string": b"",
            "headers": [(one.encode(), value.encode("latin-1")) for one, value in headers.items()],
            "client": (str(IPv4Address(0x0A000000 + self._clients)), 1),
        }
        size = max(1, len(body) // 3 + 1)
        pieces = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
        coming = iter(enumerate(pieces, start=1))
        sent: list[Message] = []

        async def receive() -> Message:
            await asyncio.sleep(0)
            number, piece = next(coming)
            return {"type": "http.request", "body": piece, "more_body": number < len(pieces)}

        async def send(message: Message) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        return sent[0]["status"], json.loads(b"".join(one["body"] for one in sent[1:]))


def _fires(signals: Sequence[Signal]) -> bool:
    return any(one.status is SignalStatus.FIRING for one in signals)
