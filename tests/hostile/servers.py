"""Servers that we ask and that answer with anything: a model, an Unleash, a webhook.

Real sockets, our own adapters.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Any

from controller.adapters.http_plane.plane import HttpPlane
from controller.adapters.llm.advisor import ModelAdvisor
from controller.adapters.unleash.plane import UnleashPlane
from controller.clock import SystemClock
from controller.core.effects import AskAdvice
from controller.errors import AdviceUnavailableError, FlagPlaneUnavailable
from controller.settings import AdvisorSettings
from controller.settings.planes import HttpPlaneSettings
from tests.builders import make_judgement, make_rollout
from tests.fault_server import Exchange, FaultServer, chat_response, completion, fault_server
from tests.hostile import honest
from tests.hostile.material import Hostile
from tests.unleash.given import make_settings
from tests.unleash.server import ENVIRONMENT

Ask = Callable[[], Coroutine[Any, Any, str]]

#: What an Unleash says of a flag, as far as we read it.
_FEATURE = {
    "name": "new-checkout",
    "environments": [
        {
            "name": ENVIRONMENT,
            "enabled": True,
            "lastSeenAt": "2026-11-22T03:00:00Z",
            "strategies": [
                {
                    "id": "1",
                    "name": "flexibleRollout",
                    "title": "rolloutd start-1 1/1",
                    "parameters": {
                        "rollout": "10",
                        "stickiness": "userId",
                        "groupId": "new-checkout",
                    },
                    "constraints": [],
                    "variants": [],
                    "segments": [],
                    "disabled": False,
                }
            ],
        }
    ],
}

_LAUNCHDARKLY = {
    "key": "new-checkout",
    "kind": "boolean",
    "variations": [{"_id": "a", "value": True}, {"_id": "b", "value": False}],
    "environments": {
        "production": {
            "on": True,
            "offVariation": 1,
            "fallthrough": {
                "rollout": {
                    "variations": [
                        {"variation": 0, "weight": 25_000},
                        {"variation": 1, "weight": 75_000},
                    ],
                    "bucketBy": "key",
                }
            },
        }
    },
}


class HostileServer:
    """An edge for `run`: one question of one of our adapters, one hostile answer."""

    def __init__(
        self,
        name: str,
        *,
        make: Callable[[FaultServer], tuple[Ask, Callable[[], Coroutine[Any, Any, None]]]],
    ) -> None:
        """`make` gives what asks the server, and what closes it."""
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._material = Hostile(0)
        self._ask, close = self._loop.run_until_complete(self._open(make))
        self._close = close

    async def _open(self, make: Any) -> Any:
        server = await self._stack.enter_async_context(fault_server(self._answer))
        return make(server)

    def __call__(self, material: Hostile) -> str:
        """Ask once."""
        self._material = material
        with material.timed():
            outcome: str = self._loop.run_until_complete(self._ask())
        return outcome

    def _honest(self, line: str) -> Any:
        if self._name == "webhook":
            return _LAUNCHDARKLY
        return _CHANGES if "search/events" in line else _FEATURE

    def close(self) -> None:
        """Close the server and whoever asked it."""
        self._loop.run_until_complete(self._close())
        self._loop.run_until_complete(self._stack.aclose())
        self._loop.close()

    async def _answer(self, exchange: Exchange) -> None:
        material = self._material
        line = exchange.request.line
        body: bytes
        if "/chat" in line:
            content = material.bytes_of(honest.advice()).decode("utf-8", "replace")
            wrapped = chat_response(content) if "/api/chat" in line else completion(content)
            body = wrapped.encode("utf-8", "replace")
            if material.dice.random() < 0.5:
                body = material.bytes_of(honest.completion())
        else:
            honest_body = json.dumps(self._honest(line)).encode()
            body = honest_body
            if material.dice.random() < 0.7:
                body = material.bytes_of(json.loads(honest_body))
        match material.dice.randrange(10):
            case 0:
                await exchange.reset()
            case 1:
                head = (
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
                    b"%d\r\n\r\n" % len(body)
                )
                await exchange.send(material.torn(head + body))
            case 2:
                await exchange.answer(b"[" * material.dice.choice((10, 1_000, 60_000)))
            case 3:
                status = material.dice.choice(
                    ("500 No", "401 No", "404 No", "429 Wait", "302 Found", "204 None", "999 What")
                )
                after = material.dice.choice(
                    ("1e9", "-5", "99999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT", "soon")
                )
                await exchange.answer(
                    body,
                    status=status,
                    headers={"Retry-After": after, "Location": "http://127.0.0.1:1/"},
                )
            case _:
                await exchange.answer(body)


_CHANGES = {
    "events": [
        {"id": 1, "type": "feature-strategy-update", "createdBy": "ada", "data": {}, "preData": {}}
    ]
}


class Forgetful(SystemClock):
    """A clock that jumps a day at each look, so that no backoff ever lasts."""

    def monotonic(self) -> float:
        self._jumps = getattr(self, "_jumps", 0) + 1
        return super().monotonic() + 86_400.0 * self._jumps


def model(protocol: str) -> HostileServer:
    """Return a model server that answers anything."""

    def make(server: FaultServer) -> Any:
        settings = AdvisorSettings.model_validate(
            {
                "url": server.url,
                "protocol": protocol,
                "deadline_seconds": 2,
                "breaker_seconds": 0.000_001,
                "questions_per_day": 10**9,
            }
        )
        clock = SystemClock()
        advisor = ModelAdvisor(settings, clock)

        async def ask() -> str:
            question = AskAdvice("gate-1", 1, clock.now() + timedelta(seconds=2), make_judgement())
            try:
                advice = await advisor.ask(make_rollout(), question)
            except AdviceUnavailableError:
                return "none"
            return f"advice {advice.choice}"

        return ask, advisor.close

    return HostileServer(protocol, make=make)


def unleash() -> HostileServer:
    """Return an Unleash that answers anything."""

    def make(server: FaultServer) -> Any:
        plane = UnleashPlane(make_settings(server.url, request_timeout_seconds=0.5), Forgetful())
        return _plane(plane)

    return HostileServer("unleash", make=make)


def webhook() -> HostileServer:
    """Return a webhook's receiver that answers anything."""

    def make(server: FaultServer) -> Any:
        settings = HttpPlaneSettings.model_validate(
            {
                "template": "launchdarkly",
                "secret": "secret",
                "values": {"base": server.url, "project": "p", "environment": "production"},
                "call_timeout_seconds": 0.5,
            }
        )
        return _plane(HttpPlane("hostile", settings, Forgetful()))

    return HostileServer("webhook", make=make)


def _plane(plane: Any) -> Any:
    async def ask() -> str:
        rollout = make_rollout()
        try:
            served = await plane.look(rollout)
        except FlagPlaneUnavailable:
            return "unavailable"
        with suppress(FlagPlaneUnavailable):
            if served.difference is not None:
                await plane.serve(rollout)
        return "looked"

    return ask, plane.close


SERVERS: dict[str, Callable[[], HostileServer]] = {
    "openai": lambda: model("openai"),
    "ollama": lambda: model("ollama"),
    "unleash": unleash,
    "webhook": webhook,
}
