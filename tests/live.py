"""A real daemon as a process, an operator and apps around it.

For tests that watch from outside: e2e, chaos, benchmarks.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from aiokafka import AIOKafkaProducer

from controller.codec.commands import command_event
from controller.web.bucketing import Generation, bucketer
from schemas import evaluation, outcome
from schemas.command import Command
from schemas.envelope import HEADERS, write
from schemas.plan import PlanDocument
from schemas.result import Result
from schemas.terms import CommandVerb
from tests.brokers import OrphanGuard, free_port
from tests.whole_topics import read_topic

READY_SECONDS = 120.0


class DaemonProcess:
    """The installed `rolloutd run`, with settings by environment and its log in a file."""

    def __init__(
        self, bootstrap: str, redis_url: str, directory: Path, *, prefix: str, **environ: str
    ) -> None:
        """`prefix` keeps topics, group and Redis keys apart from other tests'.

        `environ` are further ROLLOUTD_ variables.
        """
        self.port = free_port()
        self.ops_port = free_port()
        self.log_path = directory / f"rolloutd-{self.port}.log"
        self._environ = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("ROLLOUTD_")
            },
            "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            "ROLLOUTD_KAFKA__TOPIC_PREFIX": prefix,
            "ROLLOUTD_KAFKA__PARTITIONS": "4",
            "ROLLOUTD_REDIS__URL": redis_url,
            "ROLLOUTD_REDIS__KEY_PREFIX": prefix,
            "ROLLOUTD_HTTP__PORT": str(self.port),
            "ROLLOUTD_HTTP__OPS_PORT": str(self.ops_port),
            "ROLLOUTD_LAST_KNOWN__DIRECTORY": str(directory / "last-known"),
            **environ,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._guard: OrphanGuard | None = None

    @property
    def environ(self) -> dict[str, str]:
        """The variables of its process; `rolloutctl` finds the same Kafka by them."""
        return dict(self._environ)

    @property
    def url(self) -> str:
        """Base address of its HTTP surface."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ops_url(self) -> str:
        """Base address of what probes and monitors ask."""
        return f"http://127.0.0.1:{self.ops_port}"

    def spawn(self) -> None:
        """Start the process; it is not ready yet."""
        command = [str(Path(sys.executable).with_name("rolloutd")), "run"]
        self._unguard()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self._environ, stdout=log, stderr=subprocess.STDOUT
            )
        self._guard = OrphanGuard()
        self._guard.watch(self.process.pid)

    def _unguard(self) -> None:
        """Watch no more over a process that has ended: its number may be given to another."""
        if self._guard is not None and self.process is not None and self.process.poll() is not None:
            self._guard.forget(self.process.pid)
            self._guard.close()
            self._guard = None

    async def start(self) -> Self:
        """Start the process and return once it is ready."""
        self.spawn()
        await self.ready()
        return self

    async def ready(self, seconds: float = READY_SECONDS) -> None:
        """Return once /readyz says that it is ready and has started.

        Raises AssertionError with the log's end when it does not in time.
        """
        deadline = time.monotonic() + seconds
        why = ""
        async with httpx.AsyncClient() as client:
            while time.monotonic() < deadline:
                assert self.process is not None
                assert self.process.poll() is None, (
                    f"exited with {self.process.returncode}:\n{self.log_tail()}"
                )
                with suppress(httpx.HTTPError):
                    answer = await client.get(f"{self.url}/readyz", timeout=1)
                    why = answer.text
                    if answer.status_code == 200 and not answer.json()["starting"]:
                        return
                await asyncio.sleep(0.1)
        raise AssertionError(f"not ready in {seconds:.0f} s: {why}\n{self.log_tail()}")

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of its log."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def log_lines(self, event: str) -> list[dict[str, Any]]:
        """Return its log lines of one name."""
        lines = []
        for line in self.log_path.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                parsed = json.loads(line)
                if parsed.get("event") == event:
                    lines.append(parsed)
        return lines

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill9(self) -> None:
        """End it without warning."""
        self.send(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        self._unguard()

    async def stop(self, seconds: float = 60.0) -> int:
        """End it with SIGTERM and return its exit code."""
        assert self.process is not None
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        code: int = await asyncio.to_thread(self.process.wait, seconds)
        self._unguard()
        return code

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.send(signal.SIGCONT)
        self.kill9()

    # --- what it serves ---

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """GET from its HTTP surface, metrics from the port of probes and monitors."""
        base = self.ops_url if path == "/metrics" else self.url
        async with httpx.AsyncClient() as client:
            return await client.get(f"{base}{path}", headers=headers, timeout=5)

    async def ofrep_status(self, flag: str) -> int:
        """Return the status of OFREP's answer about a flag."""
        async with httpx.AsyncClient() as client:
            answer = await client.post(
                f"{self.url}/ofrep/v1/evaluate/flags/{flag}",
                json={"context": {"targetingKey": "user-1"}},
            )
        return answer.status_code

    async def standing(self) -> dict[str, Any]:
        """Return what /readyz says of everything."""
        async with httpx.AsyncClient() as client:
            body: dict[str, Any] = (await client.get(f"{self.ops_url}/readyz", timeout=5)).json()
            return body

    async def rollout(self, flag_key: str) -> dict[str, Any] | None:
        """Return the rollout's document as served, None while there is none."""
        answer = await self.get(f"/rollouts/{flag_key}")
        return answer.json() if answer.status_code == 200 else None

    async def until(
        self, flag_key: str, holds: Callable[[dict[str, Any]], bool], seconds: float = 240.0
    ) -> dict[str, Any]:
        """Return the rollout's document once `holds` of it.

        Raises AssertionError with the last one.
        """
        deadline = time.monotonic() + seconds
        document: dict[str, Any] | None = None
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                document = await self.rollout(flag_key)
                if document is not None and holds(document):
                    return document
            await asyncio.sleep(0.05)
        raise AssertionError(
            f"not so in {seconds:.0f} s: {json.dumps(document)[:2000]}\n{self.log_tail()}"
        )


class Client:
    """A Kafka client that writes as apps and operators do, and reads what the daemon says."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self.bootstrap = bootstrap
        self.prefix = prefix
        self.producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap, linger_ms=5, enable_idempotence=True
        )

    async def __aenter__(self) -> Self:
        await start_or_stop(self.producer)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.producer.stop()

    async def command(
        self, verb: CommandVerb, flag_key: str, *, wait_seconds: float = 60.0, **fields: Any
    ) -> Result:
        """Publish a command and return its result."""
        command = make_command(verb, flag_key, **fields)
        await self.publish(command)
        return await self.result(command.id, wait_seconds)

    async def publish(self, command: Command) -> None:
        """Publish a command."""
        topic = f"{self.prefix}rollout.commands"
        await self.producer.send_and_wait(
            topic, command_event(command), command.flag.encode(), headers=list(HEADERS)
        )

    async def result(self, command_id: str, seconds: float = 60.0) -> Result:
        """Return the result of a command id. Raises TimeoutError when none comes."""
        async with asyncio.timeout(seconds):
            while True:
                for record in await self.read("rollout.results"):
                    if record["id"] == command_id:
                        return Result.model_validate(record["data"])
                await asyncio.sleep(0.05)

    async def read(self, topic: str) -> list[dict[str, Any]]:
        """Return every event of one of the daemon's topics, from the first."""
        return [json.loads(value) for _, _, value in await self.records(topic)]

    async def until_read(
        self, topic: str, holds: Callable[[list[Any]], bool], seconds: float = 60.0
    ) -> list[Any]:
        """Return the data of a topic's events once `holds` of them.

        What the daemon publishes follows what it serves and answers. Raises AssertionError with
        what there is.
        """
        deadline = time.monotonic() + seconds
        while True:
            found = [event["data"] for event in await self.read(topic)]
            if holds(found):
                return found
            assert time.monotonic() < deadline, f"{topic} has only {json.dumps(found)[-2000:]}"
            await asyncio.sleep(0.1)

    async def alerts(self, kind: str, count: int, seconds: float = 60.0) -> list[dict[str, Any]]:
        """Return the alerts of a kind once there are so many; a busy machine may cause more."""
        return await self._told("rollout.alerts", kind, count, seconds)

    async def decisions(self, kind: str, count: int, seconds: float = 60.0) -> list[dict[str, Any]]:
        """Return the decisions of a kind once there are so many."""
        return await self._told("rollout.decisions", kind, count, seconds)

    async def _told(self, topic: str, kind: str, count: int, seconds: float) -> list[Any]:
        events = await self.until_read(
            topic, lambda events: sum(one["kind"] == kind for one in events) >= count, seconds
        )
        return [one for one in events if one["kind"] == kind]

    async def refusals(self, count: int) -> list[dict[str, Any]]:
        """Return the records in quarantine once there are so many."""
        events = await self.until_read(
            "rollout.quarantine",
            lambda events: sum(len(event["refusals"]) for event in events) >= count,
        )
        return [one for event in events for one in event["refusals"]]

    async def records(self, topic: str) -> list[tuple[int, int, bytes]]:
        """Return (partition, offset, value) of every record of a topic."""
        records = await read_topic(self.bootstrap, self.prefix + topic)
        return [(record.partition, record.offset, record.value) for record in records]


async def start_or_stop(producer: AIOKafkaProducer) -> None:
    """Start a producer. Of one that cannot start nothing goes on."""
    try:
        await producer.start()
    except BaseException:
        await producer.stop()
        raise


def make_command(verb: CommandVerb, flag_key: str, **fields: Any) -> Command:
    """Return a command as an operator would give it now."""
    return Command(
        **{
            "id": uuid.uuid4().hex,
            "flag": flag_key,
            "verb": verb,
            "issuer": "tests",
            "reason": "a test wants it",
            "issued_at": datetime.now(UTC),
            **fields,
        }
    )


def quick_plan(flag_key: str, **fields: Any) -> PlanDocument:
    """Return a plan with bakes of about a second and the guardrails of a real plan."""
    return PlanDocument.model_validate(
        {
            "name": "quick",
            "flag": flag_key,
            "stages": [
                {
                    "percent": percent,
                    "bake": "1s",
                    "settle": "0.3s",
                    "min_sample": 50,
                    "max_bake": "10m",  # chance decides how long the proof takes
                }
                for percent in (10, 50, 100)
            ],
            "guardrails": [{"metric": "error_rate", "compare": {"margin": 0.1}, "limit": 0.2}],
            "advisor": {"mode": "off"},
            "owner": "tests",
            **fields,
        }
    )


#: Apps follow a change of the flag well within the settle time of `quick_plan`, 0.3 s. On a busy
#: machine they wait for the flag rather than serve what was decided before: that would be an SRM.
FOLLOWS_WITHIN_SECONDS = 0.15


class Traffic:
    """Apps that serve the flag as the daemon says and report outcomes, at a steady rate."""

    def __init__(
        self,
        client: Client,
        daemon: DaemonProcess,
        flag_key: str,
        *,
        per_second: int = 400,
        users: int = 20_000,
        error_rates: Mapping[str, float] | None = None,
        seed: int = 1,
    ) -> None:
        """`error_rates` by variant (`on`, `off`) may be changed while it runs."""
        self.error_rates = dict(error_rates or {"on": 0.05, "off": 0.05})
        self.is_reporting = True
        self.sent = 0
        self.served_zero_at: float | None = None
        self._client, self._daemon, self._flag_key = client, daemon, flag_key
        self._per_second, self._users = per_second, users
        self._random = random.Random(seed)
        self._bucket = bucketer(flag_key, Generation.V3)
        self._weight = 0
        self._weight_at = 0.0  # monotonic seconds at which it was the daemon's, as far as is known
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_flag())
            tasks.create_task(self._send())

    async def _follow_flag(self) -> None:
        """Take the flag from the flagd document, as flagd would."""
        async with httpx.AsyncClient() as http:
            while True:
                asked_at = time.monotonic()
                try:
                    answer = await http.get(f"{self._daemon.url}/flagd/flags.json", timeout=1)
                    flag = (
                        answer.json().get("flags", {}).get(self._flag_key)
                        if answer.status_code == 200
                        else None
                    )
                    if flag is not None:
                        self._weight = flag["targeting"]["fractional"][0][1]
                    self._weight_at = asked_at
                except httpx.HTTPError:
                    self._weight_at = time.monotonic()  # apps keep what they have
                await asyncio.sleep(0.05)

    async def _send(self) -> None:
        began, done = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - began) * self._per_second) - done
            for _ in range(due):
                while time.monotonic() - self._weight_at > FOLLOWS_WITHIN_SECONDS:
                    await asyncio.sleep(0.01)
                await self.request(f"user-{self._random.randrange(self._users)}")
            done += due
            await asyncio.sleep(0.01)

    async def request(self, user: str) -> None:
        """Serve one request: evaluate, and report both events."""
        variant = "on" if self._bucket(user) < self._weight else "off"
        is_error = self._random.random() < self.error_rates[variant]
        now = datetime.now(UTC)
        if self.is_reporting:
            await self.emit_evaluation(user, variant, now)
            await self.emit_outcome(user, variant, now, is_error=is_error)

    async def emit_evaluation(self, user: str, variant: str, at: datetime) -> None:
        """Report that a user was served a variant."""
        data = {
            "feature_flag.key": self._flag_key,
            "feature_flag.result.variant": variant,
            "feature_flag.context.id": user,
        }
        await self._emit("flag.evaluations", evaluation.TYPE, user, at, data)

    async def emit_outcome(
        self, user: str, variant: str, at: datetime, *, is_error: bool, seconds: float | None = None
    ) -> None:
        """Report what happened to a request; latency is exponential around 50 ms unless given."""
        data: dict[str, Any] = {
            "feature_flag.context.id": user,
            "http.server.request.duration": self._random.expovariate(20.0)
            if seconds is None
            else seconds,
            "rolloutd.flags": [
                {"feature_flag.key": self._flag_key, "feature_flag.result.variant": variant}
            ],
        }
        if is_error:
            data["error.type"] = "500"
        await self._emit("request.outcomes", outcome.TYPE, user, at, data)

    async def _emit(
        self, topic: str, event_type: str, user: str, at: datetime, data: dict[str, Any]
    ) -> None:
        self.sent += 1
        value, headers = write(
            event_type,
            source="/tests",
            id=f"{self.sent}",
            time=at,
            subject=self._flag_key,
            data=data,
        )
        await self._client.producer.send(
            self._client.prefix + topic, value, user.encode(), headers=list(headers)
        )
