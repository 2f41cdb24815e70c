"""A daemon under fire: everything that writes to it turns hostile at once, for as long as asked.

    python -m tests.hostile.siege --minutes 20 --seed 1

On a real Kafka and a real Redis. Records, headers, timestamps, compressed batches, commands, plans,
state documents, stored rollouts, HTTP requests, answers of the model and of flag planes come from
`material.py`. Beside them one honest flag has honest traffic, and another is started and rolled
back again and again. At the end: the process has never ended, no honest event is lost or doubled,
each roll back was served within a second, the event loop never stood still for more than 250 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import re
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import redis.asyncio
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from schemas.terms import CommandVerb
from tests.brokers import LocalKafka, RedisServer
from tests.fault_server import Exchange, fault_server
from tests.hostile import honest
from tests.hostile.edges import LONGEST_SECONDS
from tests.hostile.material import Hostile
from tests.live import Client, DaemonProcess, make_command, quick_plan
from tests.patience import SLACK
from tests.process_memory import resident_bytes
from tests.records import arms_in

HONEST = "honest"
TARGET = "new-checkout"  # the flag that hostile documents speak of
EVENT_TOPICS = ("flag.evaluations", "request.outcomes")
_BOMB_BYTES = (1_000_000, 20_000_000, 150_000_000)
_CODECS = ("zstd", "gzip", "lz4", "snappy")
_ROLL_BACK_SECONDS = 1.0
_STOP_SECONDS = 6.0


@dataclass(slots=True)
class Figures:
    """What a siege came to."""

    seconds: float = 0.0
    cases: Counter[str] = field(default_factory=Counter)
    honest_sent: int = 0
    honest_counted: int = 0
    stop_seconds: float = 0.0  # from SIGTERM to the process's end
    roll_backs: list[float] = field(default_factory=list)  # seconds from publishing to 0 % served
    stalls: float = 0.0  # longest, an upper bound: the edge of a histogram's bucket
    rss_mb: tuple[float, float] = (0.0, 0.0)  # at the start and at the end
    faults: list[str] = field(default_factory=list)  # of ours

    def __str__(self) -> str:
        """Return a page for a person."""
        slowest = max(self.roll_backs, default=0.0)
        cases = ", ".join(f"{count:,} {kind}" for kind, count in self.cases.most_common())
        return "\n".join(
            [
                f"{sum(self.cases.values()):,} hostile cases in {self.seconds:.0f} s: {cases}",
                f"honest events: {self.honest_sent:,} sent, {self.honest_counted:,} counted",
                f"roll backs: {len(self.roll_backs)}, slowest {slowest:.2f} s",
                f"longest stall of the event loop: at most {self.stalls * 1000:.0f} ms",
                (
                    f"resident memory: {self.rss_mb[0]:.0f} MB at the start, "
                    f"{self.rss_mb[1]:.0f} MB at the end"
                ),
                *(f"FAULT: {fault}" for fault in self.faults),
            ]
        )


class Siege:
    """One daemon, its honest users, and everybody else."""

    def __init__(
        self, bootstrap: str, redis_url: str, directory: Path, *, seed: int, prefix: str
    ) -> None:
        self._bootstrap, self._redis_url, self._directory, self._prefix = (
            bootstrap,
            redis_url,
            directory,
            prefix,
        )
        self._seeds = itertools.count(seed * 1_000_003)
        self.figures = Figures()
        self._stack = AsyncExitStack()
        self._next_id = itertools.count()

    def material(self) -> Hostile:
        """Return a source of hostile input with a seed of its own."""
        return Hostile(next(self._seeds))

    async def run(self, seconds: float) -> Figures:
        """Lay siege for so long, then count."""
        async with self._stack as stack:
            hostile_server = await stack.enter_async_context(fault_server(self._answer))
            self.daemon = DaemonProcess(
                self._bootstrap,
                self._redis_url,
                self._directory,
                prefix=self._prefix,
                ROLLOUTD_ADVISOR__URL=hostile_server.url,
                ROLLOUTD_ADVISOR__DEADLINE_SECONDS="2",
                ROLLOUTD_PLANES__HTTP__HOSTILE__TEMPLATE="webhook",
                ROLLOUTD_PLANES__HTTP__HOSTILE__VALUES=json.dumps({"url": hostile_server.url}),
                ROLLOUTD_PLANES__HTTP__HOSTILE__SECRET="whsec_"
                + base64.b64encode(bytes(32)).decode(),
                ROLLOUTD_PLANES__UNLEASH__URL=hostile_server.url,
                ROLLOUTD_PLANES__UNLEASH__TOKEN="secret",
            )
            await stack.enter_async_context(self.daemon)
            self.client = await stack.enter_async_context(Client(self._bootstrap, self._prefix))
            self.raw = AIOKafkaProducer(
                bootstrap_servers=self._bootstrap, linger_ms=5, max_request_size=1_000_000
            )
            await self.raw.start()
            stack.push_async_callback(self.raw.stop)
            self.redis: redis.asyncio.Redis = redis.asyncio.Redis.from_url(self._redis_url)
            stack.push_async_callback(self.redis.aclose)
            self.http = await stack.enter_async_context(
                httpx.AsyncClient(base_url=self.daemon.url, timeout=30)
            )
            await self._prepare()
            began = time.monotonic()
            self.figures.rss_mb = (self._rss_mb(), 0.0)
            await self._fire(seconds)
            self.figures.seconds = time.monotonic() - began
            await self._settle_accounts()
        return self.figures

    async def _prepare(self) -> None:
        long = [{"percent": 50, "bake": "10h", "settle": "0.3s", "min_sample": 50}]
        for flag_key in (HONEST, TARGET):
            answer = await self.client.command(
                CommandVerb.START, flag_key, plan=quick_plan(flag_key, stages=long)
            )
            assert answer.status == "accepted", answer.reason
        await asyncio.sleep(1.0)  # settle is over

    async def _fire(self, seconds: float) -> None:
        """Let everybody loose until the time is over."""
        works: list[Callable[[], Coroutine[Any, Any, None]]] = [
            self._honest_traffic,
            self._roll_backs,
            self._gates,
            self._watch,
            self._events,
            self._commands,
            self._states,
            self._stored,
            self._requests,
            self._bombs,
        ]
        tasks = [asyncio.create_task(self._forever(work), name=work.__name__) for work in works]
        try:
            await asyncio.wait(tasks, timeout=seconds)
            deadline = time.monotonic() + 120
            while not self.figures.roll_backs and time.monotonic() < deadline:
                await asyncio.wait(tasks, timeout=0.5)  # a busy machine has not got that far
        finally:
            pending = set(tasks)
            while pending:  # a client library may swallow a cancellation
                for task in pending:
                    task.cancel()
                _, pending = await asyncio.wait(pending, timeout=1)

    async def _forever(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except (
                KafkaError,
                httpx.HTTPError,
                redis.RedisError,
                OSError,
                TimeoutError,
            ) as trouble:
                self._note(f"{work.__name__.strip('_')}: {type(trouble).__name__}")
            await asyncio.sleep(0.01)

    def _note(self, kind: str) -> None:
        self.figures.cases[kind] += 1

    # - the honest -

    async def _honest_traffic(self) -> None:
        """One honest request.

        Its two events are counted exactly once, whatever lies beside them.
        """
        number = next(self._next_id)
        # Not the context of the hostile ones: their outcomes that lost their flags would count for
        # it.
        user, variant = f"guest-{number % 5_000}", "on" if number % 2 else "off"
        served = honest.evaluation(HONEST, user, variant)
        happened = honest.outcome(HONEST, user, variant)
        del happened["data"]["error.type"]
        for topic, event in zip(EVENT_TOPICS, (served, happened), strict=True):
            await self.client.producer.send(
                self._prefix + topic, json.dumps(event).encode(), user.encode()
            )
            self.figures.honest_sent += 1

    async def _roll_backs(self) -> None:
        """Start a flag, roll it back, and see how soon nobody is served it."""
        flag_key = f"victim-{next(self._next_id)}"
        stage = [{"percent": 100, "bake": "10h", "settle": "0.3s", "min_sample": 50}]
        plan = quick_plan(
            flag_key, stages=stage, guardrails=[{"metric": "error_rate", "limit": 0.2}]
        )
        answer = await self.client.command(CommandVerb.START, flag_key, plan=plan)
        if answer.status != "accepted":
            self.figures.faults.append(f"an honest start was rejected: {answer.reason}")
            return
        began = time.monotonic()
        await self.client.publish(make_command(CommandVerb.ROLL_BACK, flag_key))
        while await self._is_served(flag_key):
            if time.monotonic() - began > 30 * SLACK:
                self.figures.faults.append(f"{flag_key} was not rolled back")
                return
            await asyncio.sleep(0.01)
        self.figures.roll_backs.append(time.monotonic() - began)
        await asyncio.sleep(5)

    async def _is_served(self, flag_key: str) -> bool:
        body = {"context": {"targetingKey": "user-1"}}
        answer = await self.http.post(f"/ofrep/v1/evaluate/flags/{flag_key}", json=body)
        return answer.status_code != 200 or answer.json()["value"] is not False

    async def _gates(self) -> None:
        """Run rollouts whose gates ask the hostile model, over a hostile plane."""
        flag_key = f"gate-{next(self._next_id)}"
        plan = quick_plan(
            flag_key,
            advisor={"mode": "can_hold", "deadline": "2s", "hold_for": "1s"},
            blind=True,
            guardrails=[],
        )
        await self.client.publish(make_command(CommandVerb.START, flag_key, plan=plan))
        await asyncio.sleep(8)
        await self.client.publish(make_command(CommandVerb.ABORT, flag_key))

    async def _watch(self) -> None:
        """Say when the process ended, or its health does not answer."""
        assert self.daemon.process is not None
        code = self.daemon.process.poll()
        if code is not None:
            self.figures.faults.append(
                f"the process ended with {code}:\n{self.daemon.log_tail(30)}"
            )
            await asyncio.sleep(3_600)
        answer = await self.http.get("/healthz")
        if answer.status_code != 200:
            self.figures.faults.append(f"/healthz said {answer.status_code}: {answer.text[:500]}")
        await asyncio.sleep(1)

    # - the hostile -

    async def _events(self) -> None:
        material = self.material()
        for topic, make in zip(EVENT_TOPICS, (honest.evaluation, honest.outcome), strict=True):
            for _ in range(25):
                value = None if material.dice.random() < 0.02 else material.bytes_of(make(TARGET))
                await self._send(topic, value, material)
                self._note("records")

    async def _send(self, topic: str, value: bytes | None, material: Hostile) -> None:
        key = material.dice.choice(
            (None, b"user-1", material.text().encode("utf-8", "surrogatepass"))
        )
        headers = [(name, content) for name, content in material.headers() if content is not None]
        timestamp_ms = material.timestamp_ms() if material.dice.random() < 0.3 else None
        with suppress(
            KafkaError, ValueError, AssertionError, OverflowError
        ):  # refused by our own client: not sent
            await self.raw.send(
                self._prefix + topic,
                value,
                key,
                partition=material.dice.randrange(4),
                timestamp_ms=None if timestamp_ms is None else max(timestamp_ms, 0) % 2**63,
                headers=headers,
            )

    async def _commands(self) -> None:
        material = self.material()
        for _ in range(10):
            verb = material.dice.choice(list(CommandVerb)).value
            flag_key = material.dice.choice((TARGET, f"junk-{material.dice.randrange(10**6)}"))
            value = material.bytes_of(honest.command(verb, flag_key))
            if not _is_about_honest(value):
                await self._send("rollout.commands", value, material)
                self._note("commands")

    async def _states(self) -> None:
        material = self.material()
        document = json.loads(self._document())
        document["flag"] = TARGET
        value = material.bytes_of(
            {"specversion": "1.0", "type": "io.rolloutd.state.v1", "data": document}
        )
        if not _is_about_honest(value):
            await self.raw.send(
                self._prefix + "rollout.state",
                value,
                f"junk-{material.dice.randrange(50)}".encode(),
            )
            self._note("state documents")
        await asyncio.sleep(0.05)

    def _document(self) -> bytes:
        from controller.codec.rollouts import rollout_to_json

        return rollout_to_json(honest.rollouts()[next(self._next_id) % 8])

    async def _stored(self) -> None:
        """Damage what is stored of flags that nobody honest has."""
        material = self.material()
        flag_key = f"junk-{material.dice.randrange(50)}"
        key = f"{self._prefix}ro:{{{flag_key}}}"
        name = material.dice.choice(
            ("document", "token", "tests", "outbox:1", "outbox:x", "answer:c", "digest")
        )
        content = material.bytes_of(json.loads(self._document()))
        await self.redis.hset(key, name, content)
        await self.redis.sadd(f"{self._prefix}flags", flag_key)
        self._note("stored rollouts")
        await asyncio.sleep(0.1)

    async def _requests(self) -> None:
        material = self.material()
        paths = (
            "/ofrep/v1/evaluate/flags/honest",
            "/ofrep/v1/evaluate/flags",
            "/rollouts/honest",
            "/readyz",
            "/metrics",
            "/%00",
        )
        content = material.bytes_of(honest.ofrep())
        if material.dice.random() < 0.8:
            await self.http.request(
                material.dice.choice(("GET", "POST")), material.dice.choice(paths), content=content
            )
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.daemon.port)
            try:
                writer.write(
                    material.torn(
                        b"POST /ofrep/v1/evaluate/flags HTTP/1.1\r\nHost: localhost\r\n\r\n"
                        + content
                    )
                )
                await writer.drain()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await reader.read(1_000)
            finally:  # also when the siege ends meanwhile: nothing of it is left to collect
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
        self._note("requests")

    async def _bombs(self) -> None:
        """Send a batch that is small on the wire and large in memory."""
        material = self.material()
        size, codec = material.dice.choice(_BOMB_BYTES), material.dice.choice(_CODECS)
        topic = self._prefix + material.dice.choice((*EVENT_TOPICS, "rollout.commands"))
        await asyncio.to_thread(_drop_bomb, self._bootstrap, topic, size, codec)
        self._note("compressed batches")
        await asyncio.sleep(10)

    async def _answer(self, exchange: Exchange) -> None:
        """Answer whatever the daemon asks of a model or a plane."""
        material = self.material()
        self._note("answers")
        match material.dice.randrange(8):
            case 0:
                await exchange.reset()
            case 1:
                await exchange.send(
                    material.torn(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n" + b"x" * 20)
                )
            case 2:
                await asyncio.sleep(material.dice.choice((0.1, 3.0, 20.0)))
            case 3:
                await exchange.answer(b"[" * 100_000)
            case 4:
                status = material.dice.choice(
                    ("500 No", "401 No", "429 Wait", "302 Found", "204 None", "999 What")
                )
                headers = {
                    "Retry-After": material.text().encode("ascii", "ignore").decode().strip()
                    or "1e9"
                }
                headers = {
                    name: "".join(c for c in value if c.isprintable())
                    for name, value in headers.items()
                }
                await exchange.answer(b"{}", status=status, headers=headers)
            case _:
                await exchange.answer(material.bytes_of(honest.completion()))

    # - the accounts -

    async def _settle_accounts(self) -> None:
        """Wait until everything honest was counted, and take the figures."""
        await self.client.producer.flush()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.figures.honest_counted = await self._honest_counted()
            if self.figures.honest_counted >= self.figures.honest_sent:
                break
            await asyncio.sleep(1)
        await asyncio.sleep(2)  # long enough for a second count of anything
        self.figures.honest_counted = await self._honest_counted()
        self.figures.stalls = await self._longest_stall()
        self.figures.rss_mb = (self.figures.rss_mb[0], self._rss_mb())
        if self.daemon.process is None or self.daemon.process.poll() is not None:
            self.figures.faults.append("the process did not live to the end")
            return
        began = time.monotonic()
        code = await self.daemon.stop()
        self.figures.stop_seconds = time.monotonic() - began
        if code != 0:
            self.figures.faults.append(f"SIGTERM: exit code {code}")

    async def _honest_counted(self) -> int:
        counted = 0
        for key in await self.redis.keys(f"{self._prefix}agg:*"):
            raw: dict[Any, Any] = await self.redis.hgetall(key)
            stored = {name.decode(): value for name, value in raw.items()}
            own = {
                name: value
                for name, value in stored.items()
                if "|" in name or name.startswith("arms/")
            }
            for (flag_key, _, _), counts in arms_in(own).items():
                if flag_key == HONEST:
                    counted += counts.evaluations + counts.outcomes
        return counted

    async def _longest_stall(self) -> float:
        text = (await self.http.get(self._metrics_address())).text
        edges = {
            float(edge): int(float(count))
            for edge, count in re.findall(
                r'rolloutd_stall_seconds_bucket\{le="([^"]+)"\} (\S+)', text
            )
        }
        total = max(edges.values(), default=0)
        return min((edge for edge, count in edges.items() if count == total), default=float("nan"))

    def _metrics_address(self) -> str:
        return f"{getattr(self.daemon, 'ops_url', self.daemon.url)}/metrics"

    def _rss_mb(self) -> float:
        assert self.daemon.process is not None
        with suppress(OSError):
            return resident_bytes(self.daemon.process.pid) / 2**20
        return 0.0


def _is_about_honest(value: bytes) -> bool:
    """Whether bytes happen to name what must not be touched."""
    return any(name in value for name in (b"honest", b"victim-", b"gate-"))


def _drop_bomb(bootstrap: str, topic: str, size: int, codec: str) -> None:
    """Publish one batch of zeros that unpacks to `size` bytes."""
    from confluent_kafka import KafkaException, Producer

    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "compression.codec": codec,
            "message.max.bytes": 1_000_000_000,
            "batch.size": 2_000_000_000,
            "queue.buffering.max.kbytes": 2_000_000,
            "linger.ms": 50,
            "log_level": 0,
        }
    )
    with suppress(KafkaException, BufferError):
        producer.produce(topic, value=bytes(size), key=b"bomb")
        producer.flush(30)


def problems(figures: Figures, *, is_timed: bool) -> list[str]:
    """Return what did not hold.

    `is_timed`: on a machine with nothing else to do, where seconds mean something.
    """
    found = list(figures.faults)
    if figures.honest_counted != figures.honest_sent:
        found.append(
            f"{figures.honest_sent} honest events were sent, {figures.honest_counted} counted"
        )
    if not figures.roll_backs:
        found.append("no roll back was tried")
    if is_timed and max(figures.roll_backs, default=0.0) > _ROLL_BACK_SECONDS:
        found.append(f"a roll back took {max(figures.roll_backs):.2f} s")
    if is_timed and figures.stop_seconds > _STOP_SECONDS:
        found.append(f"the process took {figures.stop_seconds:.1f} s to stop")
    if is_timed and not figures.stalls <= LONGEST_SECONDS:
        found.append(f"the event loop stood still for up to {figures.stalls:g} s")
    return found


def main() -> int:
    """Run a siege from the command line; 0 when everything held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--directory", type=Path, help="where the daemon's log is kept")
    arguments = parser.parse_args()
    began = datetime.now(UTC)
    with LocalKafka() as kafka, RedisServer() as store, tempfile.TemporaryDirectory() as directory:
        prefix = f"s{uuid.uuid4().hex[:8]}."
        keep = arguments.directory or Path(directory)
        keep.mkdir(parents=True, exist_ok=True)
        siege = Siege(kafka.bootstrap, store.url, keep, seed=arguments.seed, prefix=prefix)
        figures = asyncio.run(siege.run(timedelta(minutes=arguments.minutes).total_seconds()))
    found = problems(figures, is_timed=True)
    print(f"seed {arguments.seed}, {began:%Y-%m-%d %H:%M} UTC\n{figures}")
    for problem in found:
        print(f"DID NOT HOLD: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
