"""Events of random contexts in Kafka, what totals they must give, and how fast a client reads them.

What the benchmarks of counting have in common. Fills both event topics (4 partitions each, keyed by
context, about 250 bytes an event) and recounts while it writes. `read_bare` is the measure: an
aiokafka consumer as it comes, with the daemon's settings, that decodes nothing, in a process of its
own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import random
import resource
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer
from confluent_kafka import Producer

from controller.adapters.kafka.client import client_options
from controller.adapters.kafka.group_member import FETCH_MAX_BYTES
from controller.settings import KafkaSettings
from schemas import evaluation, outcome
from schemas.terms import Arm

T = TypeVar("T")
PARTITIONS = 4
#: What is compared with the recount.
FIELDS = ("evaluations", "exposures", "outcomes", "errors", "first_errors", "repeated")
_TREATED_ONE_IN = 10


class Unusual(StrEnum):
    """What senders do beside plain JSON in batches that are not compressed."""

    REFUSED = "refused"  # see `POISON`
    HEADERS = "headers"  # CloudEvents in binary mode
    ESCAPES = "escapes"  # JSON as PHP writes it, with `\/` for a slash
    COMPRESSED = "compressed"  # batches, by LZ4


@dataclass(frozen=True)
class LoadOptions:
    """Which events; `share` is of those that are unusual."""

    events: int
    flags: int
    contexts: int
    share: float = 0.0
    unusual: Unusual = Unusual.REFUSED
    seed: int = 1

    @staticmethod
    def flag_key(number: int) -> str:
        """Return the key of one flag."""
        return f"flag-{number:05d}"


class Sent(NamedTuple):
    """A record as it is sent."""

    topic: str  # logical
    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]] = ()
    is_compressed: bool = False


@dataclass
class Recount:
    """What the totals must say, by plain counting while writing."""

    totals: dict[tuple[str, Arm], Counter[str]] = field(default_factory=dict)
    exposed: set[tuple[str, int]] = field(default_factory=set)
    failed: set[tuple[str, int]] = field(default_factory=set)
    refused: int = 0
    bytes: int = 0

    def arm(self, flag_key: str, arm: Arm) -> Counter[str]:
        """Return the counters of one arm."""
        return self.totals.setdefault((flag_key, arm), Counter())

    def note_evaluation(self, flag_key: str, arm: Arm, context: int) -> None:
        """Count an evaluation; a context is exposed once."""
        counts = self.arm(flag_key, arm)
        counts["evaluations"] += 1
        if (flag_key, context) not in self.exposed:
            self.exposed.add((flag_key, context))
            counts["exposures"] += 1

    def note_outcome(self, flag_key: str, arm: Arm, context: int, *, is_error: bool) -> None:
        """Count an outcome; a context fails for the first time once."""
        counts = self.arm(flag_key, arm)
        counts["outcomes"] += 1
        counts["errors"] += is_error
        if is_error and (flag_key, context) not in self.failed:
            self.failed.add((flag_key, context))
            counts["first_errors"] += 1


def records(options: LoadOptions, recount: Recount) -> Iterator[Sent]:
    """Yield evaluations and outcomes in turn, of random contexts."""
    chance, unusual = random.Random(options.seed), random.Random(f"unusual {options.seed}")
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for number in range(options.events):
        context = chance.randrange(options.contexts)
        flag_key = options.flag_key(chance.randrange(options.flags))
        is_treated = context % _TREATED_ONE_IN == 0
        arm, variant = (Arm.TREATMENT, "on") if is_treated else (Arm.CONTROL, "off")
        key = f"user-{context:08d}"
        topic = "evaluations" if number % 2 == 0 else "outcomes"
        served = {"feature_flag.key": flag_key, "feature_flag.result.variant": variant}
        named: dict[str, Any] = {"feature_flag.context.id": key}
        is_error = chance.random() < 0.01
        if topic == "evaluations":
            kind, data = evaluation.TYPE, {**served, **named}
        else:
            took = round(chance.expovariate(20), 6)
            data = {**named, "http.server.request.duration": took, "rolloutd.flags": [served]}
            kind, data = outcome.TYPE, {**data, **({"error.type": "500"} if is_error else {})}
        head = {"specversion": "1.0", "source": "/checkout-api", "id": f"{number:08x}"}
        event = {**head, "time": moment, "type": kind, "data": data}
        value = json.dumps(event, separators=(",", ":")).encode()
        sent = Sent(topic, key.encode(), value)
        is_unusual = unusual.random() < options.share
        if is_unusual:
            sent = _unusual(sent, event, options.unusual, unusual)
        if is_unusual and options.unusual is Unusual.REFUSED:
            recount.refused += 1
        elif topic == "evaluations":
            recount.note_evaluation(flag_key, arm, context)
        else:
            recount.note_outcome(flag_key, arm, context, is_error=is_error)
        recount.bytes += len(sent.value) + sum(len(name) + len(it) for name, it in sent.headers)
        yield sent


def _unusual(
    plain: Sent, event: Mapping[str, object], kind: Unusual, chance: random.Random
) -> Sent:
    """Return a plain record as another sender would send its event."""
    if kind is Unusual.REFUSED:
        return plain._replace(value=chance.choice(POISON)(plain.value))
    if kind is Unusual.HEADERS:
        head = [(f"ce_{name}", str(event[name]).encode()) for name in event if name != "data"]
        data = json.dumps(event["data"], separators=(",", ":")).encode()
        headers = [*head, ("content-type", b"application/json")]
        return plain._replace(value=data, headers=headers)
    if kind is Unusual.ESCAPES:
        return plain._replace(value=plain.value.replace(b"/", b"\\/"))
    return plain._replace(is_compressed=True)


#: What is made of an event that is to be refused: what faulty senders send, in equal shares.
POISON: Sequence[Callable[[bytes], bytes]] = (
    lambda event: event[: len(event) // 2],
    lambda event: b"\x00\x00\x00\x01\xff" + event,  # of a schema registry
    lambda _: b'{"level":"info","message":"started"}',
    lambda event: event.replace(b"io.rolloutd.", b"com.example."),
    lambda event: event.replace(b'"feature_flag.key"', b'"flag"'),
    lambda event: event.replace(b'"time":"2', b'"time":"3'),  # a thousand years ahead
)


def fill(settings: KafkaSettings, options: LoadOptions) -> Recount:
    """Write all events; return the recount."""
    recount = Recount()
    write(settings, records(options, recount))
    return recount


def write(settings: KafkaSettings, made: Iterable[Sent]) -> None:
    """Write records, as `records` yields them."""
    names = dict(zip(("evaluations", "outcomes"), settings.event_topics, strict=True))
    plain, compressing = (
        Producer(
            {
                "bootstrap.servers": settings.bootstrap_servers,
                "linger.ms": 50,
                "partitioner": "murmur2_random",
                "acks": "all",
                "compression.type": codec,
            }
        )
        for codec in ("none", "lz4")
    )
    for number, sent in enumerate(made):
        producer = compressing if sent.is_compressed else plain
        while True:
            try:
                producer.produce(
                    names[sent.topic], sent.value, sent.key, headers=list(sent.headers)
                )
                break
            except BufferError:
                producer.poll(0.1)
        if number % 100 == 0:
            plain.poll(0)
            compressing.poll(0)
    plain.flush()
    compressing.flush()


class Spent(NamedTuple):
    """What some events cost."""

    events: int
    seconds: float
    cpu_seconds: float

    @property
    def microseconds(self) -> float:
        """CPU time of one event."""
        return 1e6 * self.cpu_seconds / self.events

    @property
    def per_second(self) -> float:
        """Events per second of wall time."""
        return self.events / self.seconds


async def read_bare(settings: KafkaSettings, events: int) -> Spent:
    """Read everything with `getmany`, decode nothing, and return what that cost.

    The first batch is not part of it: with it the consumer was still joining.
    """
    # Not the daemon's own consumer, whose connections read otherwise.
    consumer = AIOKafkaConsumer(
        *settings.event_topics,
        **client_options(settings),
        group_id=f"bare-{uuid.uuid4().hex[:6]}",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=round(settings.fetch_max_wait_seconds * 1000),
        fetch_max_bytes=FETCH_MAX_BYTES,
    )
    await consumer.start()
    got, first, began, cpu = 0, 0, 0.0, 0.0
    while got < events:
        batches = await consumer.getmany(timeout_ms=100, max_records=500)
        got += sum(len(batch) for batch in batches.values())
        if got and not first:
            first, began, cpu = got, time.perf_counter(), _own_cpu_seconds()
    spent = Spent(got - first, time.perf_counter() - began, _own_cpu_seconds() - cpu)
    await consumer.stop()
    return spent


def alone(work: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    """Return `work(*arguments)`, run in a fresh process on the core that is measured."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _be_alone) as process:
        return process.submit(_run_to_end, work, *arguments).result()


def measured_core() -> set[int]:
    """Return the core that all that is compared runs on."""
    return set(sorted(os.sched_getaffinity(0))[:1])


def cpu_seconds_of(pid: int) -> float:
    """Return the CPU time of a process, all threads. Linux: the clock of a process by its id."""
    return time.clock_gettime((~pid << 3) | 2)


def _be_alone() -> None:
    os.sched_setaffinity(0, measured_core())
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


def _run_to_end(work: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    return asyncio.run(work(*arguments))


def _own_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
