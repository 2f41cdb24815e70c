"""A fleet of flags that is rolled out and retired again on a real daemon, and what it leaves.

For the benchmark of 10,000 flags and the test of some hundred.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import redis.asyncio
from aiokafka import AIOKafkaConsumer, TopicPartition

from controller.running.decision_relay import RELAY
from controller.running.use_keeper import BEAT_SECONDS
from schemas import evaluation
from schemas.command import Command
from schemas.envelope import write
from schemas.terms import CommandStatus, CommandVerb
from tests.live import Client, DaemonProcess, make_command, quick_plan
from tests.patience import SLACK
from tests.process_memory import resident_bytes

#: Runs in the daemon, because Python imports it at start: on SIGUSR2 it writes what lives there.
#: Blocks are all objects, whether or not the garbage collector tracks them.
_COUNTING = """
import collections, gc, json, os, signal, sys

def count(number, frame):
    gc.collect()
    kinds = collections.Counter(f"{type(o).__module__}.{type(o).__qualname__}"
                                for o in gc.get_objects())
    found = {"blocks": sys.getallocatedblocks(), "tracked": sum(kinds.values()), "kinds": kinds}
    path = os.environ["COUNTED_OBJECTS"]
    with open(path + ".new", "w") as file:
        json.dump(found, file)
    os.replace(path + ".new", path)

if os.environ.get("COUNTED_OBJECTS"):
    signal.signal(signal.SIGUSR2, count)
"""
#: Commands that wait for their result at a time.
_AT_ONCE = 200
#: In the refusal of a start on a machine where brokers answer late.
_BUSY = "no broker has said"
#: A command of a fleet waits behind those of two hundred other flags.
RESULT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the flags take in Redis, metrics and memory."""

    redis_keys: Counter[str]  # by pattern: the flag's name left out
    redis_bytes: int
    redis_memory: int
    series: int
    rss_bytes: int
    blocks: int
    tracked: int
    kinds: Counter[str]

    def line(self) -> dict[str, Any]:
        """Return the figures as they are printed."""
        return {
            "redis_keys": sum(self.redis_keys.values()),
            "redis_key_bytes": self.redis_bytes,
            "redis_used_memory": self.redis_memory,
            "series": self.series,
            "rss_mb": round(self.rss_bytes / 1e6, 1),
            "blocks": self.blocks,
            "tracked_objects": self.tracked,
            "keys": dict(self.redis_keys.most_common()),
        }


class Fleet:
    """Flags of one daemon, and the operator and apps around it."""

    def __init__(self, daemon: DaemonProcess, client: Client, redis_url: str, path: Path) -> None:
        """`path` is where the daemon writes its objects (`counting_objects`)."""
        self.daemon, self.client = daemon, client
        self._store = redis.asyncio.Redis.from_url(redis_url)
        self._path = path
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def _read_results(self) -> None:
        consumer = AIOKafkaConsumer(bootstrap_servers=self.client.bootstrap, group_id=None)
        topic = f"{self.client.prefix}rollout.results"
        try:
            await consumer.start()
            await consumer._client._wait_on_metadata(topic)
            parts = [TopicPartition(topic, one) for one in consumer.partitions_for_topic(topic)]
            consumer.assign(parts)
            await consumer.seek_to_end()
            self._is_reading.set()
            async for record in consumer:
                result = json.loads(record.value)
                waiting = self._waiting.pop(result["id"], None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(result["data"])
        finally:
            await consumer.stop()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Fleet]:
        """Read results until the end."""
        self._is_reading = asyncio.Event()
        self._reading = asyncio.create_task(self._read_results())
        try:
            await asyncio.wait_for(self._is_reading.wait(), 60)
            yield self
        finally:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            await self._store.aclose()

    async def _command(self, command: Command) -> dict[str, Any]:
        async with self._slots:
            answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
            self._waiting[command.id] = answer
            await self.client.publish(command)
            done, _ = await asyncio.wait(
                (answer, self._reading),
                timeout=RESULT_SECONDS * SLACK,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self._reading in done:
                self._reading.result()
            assert answer in done, f"no result of {command.verb} {command.flag} ({command.id})"
            return answer.result()

    async def each(self, verb: CommandVerb, flags: Sequence[str]) -> None:
        """Give every flag a command, which must be accepted."""

        async def one(flag: str) -> None:
            fields: dict[str, Any] = {}
            if verb is CommandVerb.START:
                stage = {"percent": 50, "bake": "9m", "settle": "0s", "min_sample": 50}
                fields["plan"] = quick_plan(flag, stages=[stage])
            result = await self._command(make_command(verb, flag, **fields))
            while _BUSY in result["reason"]:  # brokers on a busy machine; nothing was raised
                await asyncio.sleep(1)
                result = await self._command(make_command(verb, flag, **fields))
            assert result["status"] == CommandStatus.ACCEPTED, result

        await asyncio.gather(*map(one, flags))

    async def report_uses(self, flags: Sequence[str], users: int) -> None:
        """Report that users were served each flag, and wait until all of it is counted."""
        before = await self._counted()
        topic, sent = f"{self.client.prefix}flag.evaluations", []
        for number, flag in enumerate(flags):
            for user in range(users):
                context = f"user-{user}"
                data = {
                    "feature_flag.key": flag,
                    "feature_flag.result.variant": ("on", "off")[user % 2],
                    "feature_flag.context.id": context,
                }
                value, headers = write(
                    evaluation.TYPE,
                    source="/tests",
                    id=f"{flag}-{number}-{user}",
                    time=datetime.now(UTC),
                    subject=flag,
                    data=data,
                )
                sent.append(
                    await self.client.producer.send(
                        topic, value, context.encode(), headers=list(headers)
                    )
                )
        await asyncio.gather(*sent)

        async def is_counted() -> bool:
            return await self._counted() >= before + len(flags) * users

        await until(is_counted, "events counted", 60 + len(sent) / 200)

    async def _counted(self) -> float:
        return await self._sum(r'rolloutd_events_total\{.*topic="evaluations"')

    async def _sum(self, pattern: str) -> float:
        lines = (await self.daemon.get("/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(pattern, line))

    async def let_go(self, flags: Sequence[str]) -> None:
        """Return once nothing is stored of retired flags but what is kept on purpose."""
        names = set(flags)

        async def kept() -> str:
            keys = [
                key
                for key in await self._keys()
                if names & set(re.findall(r"[\w-]+", key)) and not key.endswith(":retired")
            ]
            if keys:
                return f"{len(keys)} keys, such as {keys[:5]}"
            # Notes on a flag without a rollout are dropped by the second beat that finds them.
            notes = cast("list[bytes]", await self._store.hkeys(f"{self.client.prefix}uses"))
            noted = [one.decode() for one in notes if one.decode().partition("|")[2] in names]
            return f"{len(noted)} notes, such as {noted[:5]}" if noted else ""

        seconds = 60 + len(flags) / 20 + 3 * BEAT_SECONDS
        await until_nothing(kept, "kept of retired flags", seconds)

    async def _keys(self) -> list[str]:
        prefix = f"{self.client.prefix}*"
        return [key.decode() async for key in self._store.scan_iter(prefix, count=5000)]

    async def footprint(self, *, names: str) -> Footprint:
        """Return what is taken now. `names` is a pattern of the flags' names."""
        # The relay is one hash that is there for some minutes after Kafka was slow.
        keys = [key for key in await self._keys() if key != f"{self.client.prefix}{RELAY}"]
        sizes = []
        for start in range(0, len(keys), 1000):
            async with self._store.pipeline(transaction=False) as pipe:
                for key in keys[start : start + 1000]:
                    pipe.memory_usage(key, samples=0)
                sizes += [size or 0 for size in await pipe.execute()]
        kinds = Counter(
            re.sub(
                r"[0-9a-f]{12,}|\d+",
                "N",
                re.sub(names, "FLAG", key.removeprefix(self.client.prefix)),
            )
            for key in keys
        )
        info = await self._store.info("memory")
        text = (await self.daemon.get("/metrics")).text
        objects = await self._objects()
        assert self.daemon.process is not None
        return Footprint(
            kinds,
            sum(sizes),
            info["used_memory"],
            len([line for line in text.splitlines() if line and line[0] != "#"]),
            resident_bytes(self.daemon.process.pid),
            objects["blocks"],
            objects["tracked"],
            Counter(objects["kinds"]),
        )

    async def _objects(self) -> Any:
        self._path.unlink(missing_ok=True)
        self.daemon.send(signal.SIGUSR2)

        async def is_written() -> bool:
            return self._path.exists()

        await until(is_written, "the daemon's objects counted", 60)
        return json.loads(self._path.read_text())


def counting_objects(directory: Path) -> dict[str, str]:
    """Return the environment of a daemon that counts its objects when asked."""
    (directory / "sitecustomize.py").write_text(_COUNTING)
    return {"PYTHONPATH": str(directory), "COUNTED_OBJECTS": str(directory / "objects.json")}


async def until(holds: Callable[[], Awaitable[bool]], what: str, seconds: float) -> None:
    """Return once `holds` says so. Raises AssertionError."""

    async def missing() -> str:
        return "" if await holds() else "not so"

    await until_nothing(missing, what, seconds)


async def until_nothing(rest: Callable[[], Awaitable[str]], what: str, seconds: float) -> None:
    """Return once `rest` names nothing any more. Raises AssertionError with what it named."""
    deadline = time.monotonic() + seconds * SLACK
    while found := await rest():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds * SLACK:.0f} s, {what}: {found}")
        await asyncio.sleep(2)  # what is asked costs the daemon a lot where there are many flags
