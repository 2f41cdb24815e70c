"""Kills and freezes real daemons while apps and operators go on, then has everything recounted.

    python -m tests.chaos.rounds --kills 200 --zombies 50 --seed 1

runs on the Kafka at ROLLOUTD_TEST_KAFKA (host:port), else on one it starts, with a Redis of its own
per world; it prints a line per round, the figures at the end, and exits 1 if anything was lost,
counted twice, answered twice, left unanswered or raised. The seed draws the traffic, the commands
and the moments; the machine's own timing differs from run to run.

A kill round is SIGKILL at a random moment and a start; a zombie round freezes one of two replicas,
lets the other take over, and lets the frozen one go on. Does not belong here: what is right
(`recount.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zlib import crc32

import httpx
import redis.asyncio
from aiokafka import AIOKafkaProducer
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from schemas.plan import PlanDocument
from schemas.terms import CommandVerb
from tests.brokers import LocalKafka, RedisServer
from tests.chaos.recount import (
    EVALUATIONS,
    OUTCOMES,
    Findings,
    Place,
    end_offsets,
    read_world,
    verify,
)
from tests.live import Client, DaemonProcess, make_command, start_or_stop

PARTITIONS = 4
STEADY = (
    "steady-0",
    "steady-1",
    "steady-2",
    "steady-3",
)  # started once; commands never move them to another stage
MOVING = ("moving-0", "moving-1")  # promoted, stepped back, rolled back, started again
GATED = "gated"  # advances by itself, through gates
USERS = 3_000
JOINING_USERS = 300
DRAIN_SECONDS = 120.0
READY_AT_THE_END_SECONDS = (
    90.0  # a start takes 2 s on an idle machine; this one may be anything but
)


def long_plan(flag_key: str, settle: timedelta) -> PlanDocument:
    """Return a plan that bakes for longer than any run: what moves it is a command."""
    return PlanDocument.model_validate(
        {
            "name": "long",
            "flag": flag_key,
            "stages": [
                {
                    "percent": percent,
                    "bake": "10h",
                    "settle": f"{settle.total_seconds():g}s",
                    "max_bake": "20h",
                }
                for percent in (50, 60, 80)
            ],
            "guardrails": [
                {"metric": "error_rate", "compare": {"margin": 3.0}, "limit": 0.9},
                {"metric": "latency_p99", "limit": 60_000},
                {"metric": "conversion:purchase", "role": "observe", "compare": {"margin": 0.9}},
            ],
            "health": {"srm": "wait"},
            "advisor": {"mode": "off"},
            "owner": "tests",
        }
    )


def gated_plan(settle: timedelta) -> PlanDocument:
    """Return a plan of many small stages that each end by a gate."""
    return PlanDocument.model_validate(
        {
            "name": "gated",
            "flag": GATED,
            "blind": True,
            "stages": [
                {
                    "percent": percent,
                    "bake": f"{settle.total_seconds() + 1:g}s",
                    "settle": f"{settle.total_seconds():g}s",
                    "min_sample": 10,
                    "max_bake": "10h",
                }
                for percent in range(1, 101)
            ],
            "health": {"srm": "wait"},
            "advisor": {"mode": "off"},
            "owner": "tests",
        }
    )


# --- apps ---


class Apps:
    """A seeded stream of evaluations and outcomes, and what the brokers acknowledged of it."""

    def __init__(self, bootstrap: str, prefix: str, dice: random.Random, per_second: int) -> None:
        self.acknowledged: dict[Place, dict[int, int]] = defaultdict(dict)
        self.unacknowledged = 0
        self.sent = 0
        self._prefix = prefix
        self._dice = dice
        self._per_second = per_second
        self._waiting = 0
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap,
            linger_ms=5,
            enable_idempotence=True,
            request_timeout_ms=30_000,
        )
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await start_or_stop(self._producer)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
        await self._producer.stop()

    async def begin(self) -> None:
        """Expose the contexts whose outcomes are joined, and go on from there until `stop`."""
        for number in range(JOINING_USERS):
            for flag in STEADY[number % 3 : number % 3 + 2]:
                await self._evaluate(f"joining-{number}", flag)
        await self._acknowledge_all()
        self._task = asyncio.create_task(self._run(), name="apps")

    async def stop(self) -> None:
        """Send no more, and return once everything sent is acknowledged or known not to be."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled() and self._task.exception() is not None:
                raise RuntimeError("the apps failed") from self._task.exception()
            self._task = None
            await self._acknowledge_all()

    async def _acknowledge_all(self) -> None:
        async with asyncio.timeout(180):
            while self._waiting:
                await asyncio.sleep(0.01)

    async def _run(self) -> None:
        began, done = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - began) * self._per_second)
            while done < due and self._waiting < 5_000:
                await self._request()
                done += 2
            done = max(done, due - 2 * self._per_second)  # after an outage no flood to catch up
            await asyncio.sleep(0.01)

    async def _request(self) -> None:
        """Serve one request: one of the many ways in which apps report."""
        dice = self._dice
        chance = dice.random()
        if chance < 0.03:
            await self._send_poison()
        elif chance < 0.08:
            await self._evaluate(f"user-{dice.randrange(USERS)}", f"unknown-{dice.randrange(500)}")
        elif chance < 0.10:
            await self._send(
                OUTCOMES, f"stranger-{dice.randrange(500)}", self._outcome(None, "stranger")
            )
        elif chance < 0.20:
            number = dice.randrange(JOINING_USERS)
            context = f"joining-{number}"
            await self._send(OUTCOMES, context, self._outcome(None, context))
            if chance < 0.12:
                await self._evaluate(context, STEADY[number % 3])
        else:
            # Squared: some contexts come again and again, most now and then.
            context = f"user-{int(USERS * dice.random() ** 2)}"
            flags = dice.sample((*STEADY, *MOVING, GATED), dice.randrange(1, 4))
            for flag in flags:
                await self._evaluate(context, flag)
            value = self._outcome(flags, context)
            await self._send(OUTCOMES, context, value)
            if (
                dice.random() < 0.02
            ):  # as a producer that was not told in time: each copy counts, and shows as one
                await self._send(OUTCOMES, context, value)

    def _variant(self, flag: str, context: str) -> str:
        """Return what a context is served; a few contexts of users change sides."""
        is_fickle = context.startswith("user-") and crc32(context.encode()) % 20 == 0
        side = crc32(f"{flag}{context}".encode()) % 2 if not is_fickle else self._dice.randrange(2)
        return "on" if side else "off"

    async def _evaluate(self, context: str, flag: str) -> None:
        variant = (
            "other"
            if self._dice.random() < 0.01 and context.startswith("user-")
            else self._variant(flag, context)
        )
        data = {
            "feature_flag.key": flag,
            "feature_flag.result.variant": variant,
            "feature_flag.context.id": context,
        }
        await self._send(EVALUATIONS, context, self._event("evaluation", data))

    def _outcome(self, flags: Sequence[str] | None, context: str) -> bytes:
        dice = self._dice
        data: dict[str, Any] = {"feature_flag.context.id": context}
        if dice.random() < 0.9:
            data["http.server.request.duration"] = round(dice.lognormvariate(-3.0, 0.8), 6)
        if dice.random() < 0.05:
            data["error.type"] = "500"
        if dice.random() < 0.05:
            data["rolloutd.conversions"] = ["purchase"]
        if flags:
            data["rolloutd.flags"] = [
                {
                    "feature_flag.key": flag,
                    "feature_flag.result.variant": self._variant(flag, context),
                }
                for flag in flags
            ]
        return self._event("outcome", data)

    def _event(self, kind: str, data: Mapping[str, Any]) -> bytes:
        event = {
            "specversion": "1.0",
            "type": f"io.rolloutd.{kind}.v1",
            "source": "/chaos",
            "id": str(self.sent),
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "data": data,
        }
        return json.dumps(event).encode()

    async def _send_poison(self) -> None:
        topic = self._dice.choice((EVALUATIONS, OUTCOMES))
        kind = "evaluation" if topic == EVALUATIONS else "outcome"
        poison = (
            b"",
            b"\x00\xff no JSON",
            b'{"specversion": "1.0"}',
            self._event("nothing_we_know", {}),
            self._event(
                kind,
                {"feature_flag.key": "a|b", "feature_flag.result.variant": "on"}
                if kind == "evaluation"
                else {},
            ),
            self._event(
                kind, {"feature_flag.context.id": "c", "http.server.request.duration": -1.0}
            ),
        )
        await self._send(topic, None, self._dice.choice(poison))

    async def _send(self, topic: str, context: str | None, value: bytes) -> None:
        self.sent += 1
        self._waiting += 1
        try:
            sent = await self._producer.send(
                self._prefix + topic, value, context.encode() if context else None
            )
        except (
            BaseException
        ):  # stopped while the broker was away: whether it is under way nobody knows
            self._waiting -= 1
            self.unacknowledged += 1
            raise
        check = crc32(value)

        def note(done: asyncio.Future[Any]) -> None:
            self._waiting -= 1
            if done.cancelled() or done.exception() is not None:
                self.unacknowledged += 1
            else:
                record = done.result()
                self.acknowledged[topic, record.partition][record.offset] = check

        sent.add_done_callback(note)


# --- operators ---


class Operators:
    """Commands at random, some given twice, some that nobody can obey."""

    def __init__(
        self, client: Client, dice: random.Random, settle: timedelta, longest_pause: float
    ) -> None:
        """Leave up to `longest_pause` seconds between two commands."""
        self.sent = 0
        self._client = client
        self._dice = dice
        self._settle = settle
        self._longest_pause = longest_pause
        self._earlier: list[tuple[str, bytes]] = []
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Give commands until `stop`."""
        self._task = asyncio.create_task(self._run(), name="operators")

    async def stop(self) -> None:
        """Give no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled() and self._task.exception() is not None:
                raise RuntimeError("the operators failed") from self._task.exception()
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._dice.uniform(0.05, self._longest_pause))
            await self._order()

    async def _order(self) -> None:
        dice, chance = self._dice, self._dice.random()
        if chance < 0.1 and self._earlier:
            await self._write(*dice.choice(self._earlier[-50:]))  # again, perhaps long after
            return
        flag = dice.choice((*STEADY, *MOVING, *MOVING, GATED))
        if chance < 0.15:
            await self._write(flag, self._impossible(flag))
            return
        value = self._possible(flag)
        for _ in range(2 if chance < 0.3 else 1):
            await self._write(flag, value)
        self._earlier.append((flag, value))

    def _possible(self, flag: str) -> bytes:
        verbs = [
            CommandVerb.PAUSE,
            CommandVerb.RESUME,
            CommandVerb.RESUME,
            CommandVerb.FREEZE,
            CommandVerb.UNFREEZE,
        ]
        fields: dict[str, Any] = {}
        if flag in MOVING:
            verbs += [
                CommandVerb.PROMOTE,
                CommandVerb.PROMOTE,
                CommandVerb.STEP_BACK,
                CommandVerb.STEP_BACK,
            ]
            verbs += [
                CommandVerb.ROLL_BACK,
                CommandVerb.START,
                CommandVerb.RESTART,
                CommandVerb.PROMOTE_FULL,
            ]
        verb = self._dice.choice(verbs)
        if verb is CommandVerb.START:
            fields["plan"] = long_plan(flag, self._settle)
        if self._dice.random() < 0.1:
            fields["expected_revision"] = self._dice.randrange(10)
        return make_command(verb, flag, **fields).model_dump_json(by_alias=True).encode()

    def _impossible(self, flag: str) -> bytes:
        """Return an order without what its verb needs: it has an id, so it gets an answer."""
        order = json.loads(make_command(CommandVerb.PAUSE, flag).model_dump_json())
        order["verb"] = self._dice.choice(("promote", "approve", "start", "dance"))
        order["reason"] = ""
        return json.dumps(order).encode()

    async def _write(self, flag: str, value: bytes) -> None:
        self.sent += 1
        event = {
            "specversion": "1.0",
            "type": "io.rolloutd.command.v1",
            "source": "/chaos",
            "id": json.loads(value)["id"],
            "time": datetime.now(UTC).isoformat(),
            "data": json.loads(value),
        }
        topic = f"{self._client.prefix}rollout.commands"
        headers = [("content-type", b"application/cloudevents+json")]
        with suppress(
            Exception
        ):  # a broker that is away: whether the command arrived is seen in the topic
            await self._client.producer.send_and_wait(
                topic, json.dumps(event).encode(), flag.encode(), headers=headers
            )


# --- the world ---


@dataclass
class Figures:
    """What was seen while it ran."""

    rounds: int = 0
    busy_seconds: list[float] = field(
        default_factory=list
    )  # kill -9 -> first save of the next process
    take_over_seconds: list[float] = field(
        default_factory=list
    )  # SIGSTOP -> first save of the other on a partition taken over
    frozen_seconds: list[float] = field(default_factory=list)
    fences_lost: int = 0
    seconds: float = 0.0

    def summary(self) -> str:
        """Return the figures in one line."""
        words = [
            f"{self.rounds} rounds in {self.seconds:.0f} s",
            f"{self.fences_lost} late saves refused",
        ]
        for name, values in (
            ("kill -9 to first save", self.busy_seconds),
            ("freeze to first save of the other", self.take_over_seconds),
            ("frozen", self.frozen_seconds),
        ):
            if values:
                words.append(
                    f"{name}: median {statistics.median(values):.1f} s, longest "
                    f"{max(values):.1f} s ({len(values)})"
                )
        return ", ".join(words)


class Chaos:
    """One Kafka prefix, one Redis, some replicas, apps and operators; a context manager."""

    def __init__(
        self,
        bootstrap: str,
        directory: Path,
        *,
        seed: int,
        replicas: int = 1,
        settle: timedelta = timedelta(seconds=1),
        session_seconds: float = 6.0,
        is_static: bool = False,
        per_second: int = 400,
        command_pause: float = 0.6,
        package: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`package` is a directory with a `controller` and `schemas` to run in place of ours.

        A copy with a planted bug.
        """
        self.bootstrap = bootstrap
        self.prefix = f"chaos{random.SystemRandom().randrange(16**8):08x}."
        self.settle = settle
        self.dice = random.Random(seed)
        self.figures = Figures()
        self.redis = RedisServer()
        self.served: set[tuple[str, int, float]] = set()
        self._replicas, self._session, self._is_static = replicas, session_seconds, is_static
        self._package = package
        self._environ = dict(environ or {})
        self._directory = directory
        self._command_pause = command_pause
        self.apps = Apps(bootstrap, self.prefix, random.Random(seed + 1), per_second)
        self.daemons: list[DaemonProcess] = []
        self._began = time.monotonic()
        self._is_killed = False

    async def __aenter__(self) -> Self:
        self.redis.start()
        try:
            await self._begin()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end()

    async def _begin(self) -> None:
        self.daemons = [self._daemon(number) for number in range(self._replicas)]
        # Killed and frozen servers are what this is about: look again for as long as they may be
        # away.
        retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), 40)
        self.store: Any = redis.asyncio.Redis.from_url(
            self.redis.url,
            socket_timeout=5,
            retry=retry,
            retry_on_error=[redis.ConnectionError, redis.TimeoutError],
        )
        await self.daemons[0].start()
        await asyncio.gather(*(daemon.start() for daemon in self.daemons[1:]))
        self.client = await Client(self.bootstrap, self.prefix).__aenter__()
        for flag in (*STEADY, *MOVING, GATED):
            plan = gated_plan(self.settle) if flag == GATED else long_plan(flag, self.settle)
            await self._start(flag, plan)
        for daemon in (
            self.daemons
        ):  # every replica that counts must know the flags, or it rightly ignores their events
            for flag in (*STEADY, *MOVING, GATED):
                await daemon.until(flag, lambda document: document["revision"] >= 1)
        self.operators = Operators(
            self.client, random.Random(self.dice.random()), self.settle, self._command_pause
        )
        await self.apps.__aenter__()
        await self.apps.begin()
        self.operators.begin()

    async def _start(self, flag_key: str, plan: PlanDocument) -> None:
        """Start a rollout; a busy replica may refuse until a broker has answered it."""
        async with asyncio.timeout(120):
            while True:
                answer = await self.client.command(CommandVerb.START, flag_key, plan=plan)
                if answer.status == "accepted":
                    return
                assert "no broker has said" in (answer.reason or ""), answer.reason
                await asyncio.sleep(0.5)

    async def _end(self) -> None:
        for daemon in self.daemons:
            daemon.send(signal.SIGCONT)
            daemon.kill9()
        if hasattr(self, "operators"):
            await self.operators.stop()
            await self.apps.__aexit__(None, None, None)
        if hasattr(self, "client"):
            await self.client.__aexit__(None, None, None)
        await self.store.aclose()
        self.redis.stop()

    def _daemon(self, number: int) -> DaemonProcess:
        session = self._session
        environ = {
            "ROLLOUTD_KAFKA__SESSION_TIMEOUT_SECONDS": f"{session}",
            "ROLLOUTD_KAFKA__HEARTBEAT_INTERVAL_SECONDS": f"{session / 4}",
            "ROLLOUTD_KAFKA__REVOKE_SECONDS": f"{min(3.0, session / 2)}",
            "ROLLOUTD_COUNTING__EXACT_SET_LIMIT": "100000",
            "ROLLOUTD_COUNTING__ATTRIBUTION_WINDOW_SECONDS": "36000",
            **self._environ,
        }
        if self._is_static:
            environ["ROLLOUTD_KAFKA__STATIC_MEMBER_ID"] = f"replica-{number}"
        if self._package is not None:
            environ["PYTHONPATH"] = str(self._package)
        return DaemonProcess(
            self.bootstrap, self.redis.url, self._directory, prefix=self.prefix, **environ
        )

    # - rounds -

    async def kill_round(self) -> None:
        """Kill one replica at a random moment, mostly soon after it became busy.

        And start it again.
        """
        daemon = self.dice.choice(self.daemons)
        before = await self.fence_sum()
        if self.dice.random() < 0.15:  # while it starts, joins, loads: before it was ever ready
            await asyncio.sleep(self.dice.uniform(0.2, 4.0))
        else:
            await self.until_busy(before)
            await asyncio.sleep(self.dice.uniform(0.05, 2.0))
        daemon.kill9()
        self._is_killed = True
        at = time.monotonic()
        standing = await self.fence_sum()
        daemon.spawn()
        self.figures.rounds += 1
        if len(self.daemons) == 1:
            with suppress(TimeoutError):
                await self.until_busy(standing, 30)
                self.figures.busy_seconds.append(time.monotonic() - at)
            await self.look()

    async def zombie_round(self) -> None:
        """Freeze one of two replicas until the other has taken over, mostly.

        Then let it go on with what it believes.
        """
        frozen = self.dice.choice(self.daemons)
        await asyncio.sleep(self.dice.uniform(0.1, 1.5))
        frozen.send(signal.SIGSTOP)
        began = time.monotonic()
        seconds = self.dice.uniform(1.0, 15.0)
        stuck = {key for key, moved in (await self._moved_within(1.0)).items() if not moved}
        if stuck and self.dice.random() < 0.8:
            with suppress(TimeoutError):
                async with asyncio.timeout(40):
                    while stuck:
                        stuck -= {
                            key for key, moved in (await self._moved_within(0.3)).items() if moved
                        }
                self.figures.take_over_seconds.append(time.monotonic() - began)
        await asyncio.sleep(max(0.0, seconds - (time.monotonic() - began)))
        frozen.send(signal.SIGCONT)
        self.figures.frozen_seconds.append(time.monotonic() - began)
        self.figures.rounds += 1
        await self.look()

    async def look(self) -> None:
        """Note what the replicas serve now: it must be what was decided."""
        async with httpx.AsyncClient(timeout=2) as http:
            for daemon in self.daemons:
                for flag in (*STEADY, *MOVING, GATED):
                    with suppress(httpx.HTTPError):
                        answer = await http.get(f"{daemon.url}/rollouts/{flag}")
                        if answer.status_code == 200:
                            document = answer.json()
                            self.served.add((flag, document["revision"], document["percent"]))

    async def _fences(self) -> dict[str, int]:
        """Return the offset counted up to, by partition."""
        found: dict[str, int] = {}
        for topic in (EVALUATIONS, OUTCOMES):
            for number in range(PARTITIONS):
                key = f"{self.prefix}agg:{{{self.prefix}{topic}/{number}/1}}"
                found[f"{topic}/{number}"] = int(await self.store.hget(key, "next") or 0)
        return found

    async def fence_sum(self) -> int:
        return sum((await self._fences()).values())

    async def until_busy(self, before: int, seconds: float = 60.0) -> None:
        """Return once more has been counted than `before`. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while await self.fence_sum() <= before:
                await asyncio.sleep(0.02)

    async def _moved_within(self, seconds: float) -> dict[str, bool]:
        before = await self._fences()
        await asyncio.sleep(seconds)
        return {key: after > before[key] for key, after in (await self._fences()).items()}

    # - the end -

    async def finish(self) -> Findings:
        """Stop apps and operators, wait until all is counted, answered and published.

        And recount.
        """
        await self.operators.stop()
        await self.apps.stop()
        never_ready: list[str] = []
        for number, daemon in enumerate(self.daemons):
            if daemon.process is None or daemon.process.poll() is not None:
                daemon.spawn()
            try:
                await daemon.ready(READY_AT_THE_END_SECONDS)
            except AssertionError as why:
                never_ready.append(f"replica {number}: {str(why)[:500]}")
        await self._drained()
        await self.look()
        self.figures.fences_lost = sum(
            len(daemon.log_lines("fence_lost")) for daemon in self.daemons
        )
        self.figures.seconds = time.monotonic() - self._began
        world = await read_world(self.bootstrap, self.redis.url, self.prefix, self.settle)
        findings = verify(
            world,
            self.apps.acknowledged,
            unacknowledged=self.apps.unacknowledged,
            served=self.served,
            is_killed=self._is_killed,
        )
        findings.faults[:0] = never_ready
        return findings

    async def _drained(self) -> None:
        """Return once nothing moves any more, or when it ought to have.

        What is missing then is found by the recount.
        """
        ends = await end_offsets(
            self.bootstrap, [self.prefix + topic for topic in (EVALUATIONS, OUTCOMES)]
        )
        deadline, still_since, last = time.monotonic() + DRAIN_SECONDS, time.monotonic(), None
        results = f"{self.prefix}rollout.results"
        while time.monotonic() < deadline:
            fences = {
                (self.prefix + key.rsplit("/", 1)[0], int(key.rsplit("/", 1)[1])): n
                for key, n in (await self._fences()).items()
            }
            said = await end_offsets(self.bootstrap, [results])
            if (fences, said) != last:
                last, still_since = (fences, said), time.monotonic()
            if fences == ends and time.monotonic() - still_since > 4:
                return
            await asyncio.sleep(0.3)


def say(line: str) -> None:
    """Print a line at once, also into a file."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


# --- the command ---


async def run(
    bootstrap: str,
    *,
    kills: int,
    zombies: int,
    seed: int,
    directory: Path,
    package: Path | None = None,
    longest_seconds: float = math.inf,
) -> list[tuple[str, Figures, Findings]]:
    """Run the rounds and return (kind, figures, findings) of each world.

    `longest_seconds`: no further round of a kind is begun after it; a busy machine then does fewer.
    """
    done: list[tuple[str, Figures, Findings]] = []
    worlds = (
        ("kill -9", kills, 1, timedelta(seconds=1), Chaos.kill_round),
        ("zombie", zombies, 2, timedelta(seconds=12), Chaos.zombie_round),
    )
    for kind, rounds, replicas, settle, act in worlds:
        if rounds == 0:
            continue
        async with Chaos(
            bootstrap, directory, seed=seed, replicas=replicas, settle=settle, package=package
        ) as chaos:
            began = time.monotonic()
            for number in range(1, rounds + 1):
                if time.monotonic() - began > longest_seconds:
                    break
                await act(chaos)
                say(
                    f"{kind} {number}/{rounds}: {chaos.apps.sent} records, "
                    f"{chaos.operators.sent} commands"
                )
            findings = await chaos.finish()
        done.append((kind, chaos.figures, findings))
        say(f"{kind}: {chaos.figures.summary()}")
        say(f"{kind}: {findings.summary()}")
        for fault in findings.faults[:200]:
            say(f"  FAULT {fault}")
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.rounds", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--kills", type=int, default=200, metavar="N", help="kill -9 rounds (default 200)"
    )
    parser.add_argument(
        "--zombies", type=int, default=50, metavar="N", help="SIGSTOP/SIGCONT rounds (default 50)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=random.SystemRandom().randrange(10**6),
        metavar="N",
        help="default: drawn",
    )
    parser.add_argument(
        "--package",
        type=Path,
        metavar="DIR",
        help="run the daemon from here: a copy with a planted bug",
    )
    parser.add_argument(
        "--logs", type=Path, metavar="DIR", help="keep the daemons' logs here (default: temporary)"
    )
    options = parser.parse_args(arguments)
    say(f"seed {options.seed}")
    with ExitStack() as stack:
        directory = options.logs or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="rolloutd-chaos-"))
        )
        directory.mkdir(parents=True, exist_ok=True)
        bootstrap = (
            os.environ.get("ROLLOUTD_TEST_KAFKA") or stack.enter_context(LocalKafka()).bootstrap
        )
        done = asyncio.run(
            run(
                bootstrap,
                kills=options.kills,
                zombies=options.zombies,
                seed=options.seed,
                directory=directory,
                package=options.package,
            )
        )
    faults = sum(len(findings.faults) for _, _, findings in done)
    say(
        f"{faults} faults; again with --kills {options.kills} --zombies {options.zombies} "
        f"--seed {options.seed}"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
