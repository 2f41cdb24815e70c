"""What a web app reports to rolloutd, without making a request wait. Copy this file.

Two small parts hang on to the frameworks: `EvaluationHook` on OpenFeature says who was served which
variant, and `OutcomeMiddleware` around the app says how each request ended. Both hand their events
to the `Emitter`, whose queue is bounded: while Kafka is away or slow it fills up, and what does not
fit is dropped and counted. Requests notice nothing.

Needs openfeature-sdk, aiokafka and any ASGI framework; nothing of rolloutd.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from openfeature.flag_evaluation import FlagEvaluationDetails
from openfeature.hook import Hook, HookContext, HookHints

EVALUATIONS, OUTCOMES = "flag.evaluations", "request.outcomes"
_TYPES = {EVALUATIONS: "io.rolloutd.evaluation.v1", OUTCOMES: "io.rolloutd.outcome.v1"}
_HEADERS = [("content-type", b"application/cloudevents+json; charset=UTF-8")]

_LOOK_EVERY_SECONDS = (
    0.02  # how long an event may lie in the queue: nothing beside what Kafka takes
)
_MOST_AT_ONCE = 500
_RETRY_SECONDS = 1.0

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(slots=True)
class Counts:
    """What became of the events so far."""

    queued: int = 0
    sent: int = 0  # acknowledged by Kafka
    dropped: int = 0  # the queue was full
    lost: int = 0  # Kafka did not take them


class Emitter:
    """Sends events to Kafka behind the requests' backs."""

    def __init__(self, bootstrap: str, *, source: str, capacity: int = 10_000) -> None:
        """`source` names the app, such as /checkout-api.

        `capacity` events wait at most: about 5 MB.
        """
        self._bootstrap = bootstrap
        self._source = source
        self._waiting: queue.Queue[tuple[str, bytes, bytes]] = queue.Queue(capacity)
        self._counting = threading.Lock()  # endpoints run in threads, too
        self._pump: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._counts = Counts()

    def emit(self, topic: str, context_id: str, data: dict[str, Any]) -> None:
        """Queue one event, from any thread; never waits, never raises."""
        event = {
            "specversion": "1.0",
            "type": _TYPES[topic],
            "source": self._source,
            "id": uuid.uuid4().hex,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "data": {"feature_flag.context.id": context_id, **data},
        }
        try:
            # Keyed by context: rolloutd counts users per partition.
            self._waiting.put_nowait((topic, context_id.encode(), json.dumps(event).encode()))
        except queue.Full:
            with self._counting:
                self._counts.dropped += 1
        else:
            with self._counting:
                self._counts.queued += 1

    def counts(self) -> dict[str, int]:
        """Return what became of the events so far.

        Put it on your metrics, and watch `dropped` and `lost`.
        """
        return asdict(self._counts)

    async def start(self) -> None:
        """Begin to send. Kafka need not be there yet."""
        self._pump = asyncio.create_task(self._send_all(), name="telemetry")

    async def stop(self, seconds: float = 2.0) -> None:
        """Send what is queued, for at most so long."""
        self._is_stopping = True
        if self._pump is not None:
            await asyncio.wait({self._pump}, timeout=seconds)
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)

    @property
    def _is_done(self) -> bool:
        return self._is_stopping and self._waiting.empty()

    async def _send_all(self) -> None:
        while not self._is_done:
            producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap, linger_ms=10)
            try:
                await producer.start()
                while not self._is_done:
                    await self._send_some(producer)
            except (KafkaError, OSError):
                await asyncio.sleep(
                    _RETRY_SECONDS
                )  # what comes meanwhile waits in the queue, as far as it fits
            finally:
                await producer.stop()

    async def _send_some(self, producer: AIOKafkaProducer) -> None:
        """Send what is queued now. Raises KafkaError when events were lost."""
        batch: list[tuple[str, bytes, bytes]] = []
        while len(batch) < _MOST_AT_ONCE:
            try:
                batch.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        if not batch:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            return
        pending = []
        try:
            for topic, key, value in batch:
                pending.append(await producer.send(topic, value, key, headers=_HEADERS))
        finally:
            results = await asyncio.gather(*pending, return_exceptions=True)
            sent = sum(not isinstance(result, BaseException) for result in results)
            self._counts.sent += sent
            self._counts.lost += len(batch) - sent


@dataclass(slots=True)
class _Served:
    """A variant that was served in the request under way."""

    context_id: str
    flag_key: str
    variant: str


_served: ContextVar[list[_Served] | None] = ContextVar("served", default=None)


class EvaluationHook(Hook):
    """Says of each flag evaluation who was served which variant.

    `api.add_hooks([EvaluationHook(emitter)])`.
    """

    def __init__(self, emitter: Emitter) -> None:
        """Emit through `emitter`."""
        self._emitter = emitter

    def after(
        self, hook_context: HookContext, details: FlagEvaluationDetails[Any], hints: HookHints
    ) -> None:
        """Emit the evaluation, and note it for the outcome of the request it belongs to."""
        context = hook_context.evaluation_context
        if details.variant is None or not context.targeting_key:
            return  # served from the code's default, or to nobody in particular
        self._emitter.emit(
            EVALUATIONS,
            context.targeting_key,
            {"feature_flag.key": details.flag_key, "feature_flag.result.variant": details.variant},
        )
        served = _served.get()
        if served is not None:
            served.append(_Served(context.targeting_key, details.flag_key, details.variant))


class OutcomeMiddleware:
    """Says of each request that evaluated a flag how it ended and how long it took.

    `app.add_middleware(...)`.
    """

    def __init__(self, app: App, emitter: Emitter) -> None:
        """Wrap `app`; emit through `emitter`."""
        self._app = app
        self._emitter = emitter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        served: list[
            _Served
        ] = []  # a list, because an endpoint in a thread has a copy of the context variable
        token = _served.set(served)
        began = time.perf_counter()
        status = 500  # if the app raises before it answers

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_look)
        finally:
            _served.reset(token)
            self._report(served, time.perf_counter() - began, status)

    def _report(self, served: list[_Served], seconds: float, status: int) -> None:
        for context_id in {one.context_id for one in served}:
            outcome: dict[str, Any] = {
                "http.server.request.duration": seconds,
                "http.response.status_code": status,
                "rolloutd.flags": [
                    {"feature_flag.key": one.flag_key, "feature_flag.result.variant": one.variant}
                    for one in served
                    if one.context_id == context_id
                ],
            }
            if status >= 500:
                outcome["error.type"] = str(status)
            self._emitter.emit(OUTCOMES, context_id, outcome)
