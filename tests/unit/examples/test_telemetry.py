"""The telemetry that the FastAPI example tells readers to copy.

What is emitted, and that nobody waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import httpx
import pytest
from checkout.telemetry import EVALUATIONS, OUTCOMES, Emitter, EvaluationHook, OutcomeMiddleware
from fastapi import FastAPI, Response
from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

from schemas.wire import decode_evaluation, decode_outcome

NOBODY = "127.0.0.1:1"  # where no Kafka listens


class Kept(Emitter):
    """An emitter that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(NOBODY, source="/test")

    def taken(self) -> list[tuple[str, bytes, bytes]]:
        """Return what waits to be sent."""
        return [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]


@pytest.fixture
def openfeature() -> Iterator[None]:
    """A provider with one flag, and no hooks left over."""
    api.set_provider(InMemoryProvider({"new": InMemoryFlag("on", {"on": True, "off": False})}))
    yield
    api.clear_hooks()
    api.clear_providers()


def make_app(emitter: Emitter) -> FastAPI:
    """Return an app whose endpoints evaluate the flag in a thread, on the loop, not at all.

    Or break afterwards.
    """
    flags = api.get_client()
    app = FastAPI()
    app.add_middleware(OutcomeMiddleware, emitter=emitter)

    def is_new() -> bool:
        return flags.get_boolean_value("new", False, EvaluationContext(targeting_key="u1"))

    @app.get("/thread")
    def in_a_thread() -> bool:
        return is_new()

    @app.get("/loop")
    async def on_the_loop(response: Response) -> bool:
        response.status_code = 404
        return is_new()

    @app.get("/nothing")
    def nothing() -> None:
        """Evaluate nothing."""

    @app.get("/broken")
    def broken() -> None:
        is_new()
        raise RuntimeError

    return app


@pytest.mark.parametrize(
    ("path", "is_error"), [("/thread", False), ("/loop", False), ("/broken", True)]
)
@pytest.mark.usefixtures("openfeature")
async def test_a_request_is_an_evaluation_and_an_outcome(path: str, is_error: bool) -> None:
    """What the hook and the middleware emit is what rolloutd reads.

    Keyed by context, with flags, latency and failure.
    """
    emitter = Kept()
    api.add_hooks([EvaluationHook(emitter)])
    transport = httpx.ASGITransport(make_app(emitter), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        await client.get(path)
    (first, key, evaluation), (second, _, outcome) = emitter.taken()
    now_ms = round(time.time() * 1000)
    assert (first, second, key) == (EVALUATIONS, OUTCOMES, b"u1")
    assert decode_evaluation(evaluation, None, now_ms, ())[:3] == ("u1", "new", "on")
    told = decode_outcome(outcome, None, now_ms, ())
    assert list(told.flags) == [("new", "on")]
    assert told.is_error is is_error
    assert told.latency_ms is not None
    assert 0 < told.latency_ms < 5_000


@pytest.mark.usefixtures("openfeature")
async def test_a_request_without_flags_says_nothing() -> None:
    """A request that evaluated no flag is nobody's outcome."""
    emitter = Kept()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(make_app(emitter)), base_url="http://shop"
    ) as client:
        await client.get("/nothing")
    assert emitter.taken() == []


async def test_without_kafka_nobody_waits_and_what_does_not_fit_is_counted() -> None:
    """With Kafka away events wait up to the bound, the rest is dropped and counted.

    And each call returns at once.
    """
    emitter = Emitter(NOBODY, source="/test", capacity=100)
    await emitter.start()
    longest = 0.0
    for number in range(1_000):
        began = time.perf_counter()
        emitter.emit(EVALUATIONS, f"u{number}", {})
        longest = max(longest, time.perf_counter() - began)
    await asyncio.sleep(0)
    await emitter.stop(seconds=0)
    assert emitter.counts() == {"queued": 100, "sent": 0, "dropped": 900, "lost": 0}
    assert longest < 0.5
