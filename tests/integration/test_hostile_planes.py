"""Planes that answer as nobody expects.

Each is its own trouble, and the loop, other planes and the daemon go on.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import stat
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.actuating.reconciler import FlagReconciler
from controller.adapters.file_plane import FilePlane
from controller.adapters.http_plane.plane import HttpPlane
from controller.adapters.memory import MemoryFlagPlane
from controller.adapters.redis.plane import RedisPlane
from controller.adapters.unleash.plane import UnleashPlane
from controller.clock import SystemClock
from controller.core.effects import RaiseAlert
from controller.core.rollout import Rollout
from controller.errors import FlagPlaneUnavailable
from controller.health import Faults, Scope
from controller.ports import FlagPlane
from controller.settings.planes import FilePlaneSettings, HttpPlaneSettings
from controller.telemetry import Metrics
from tests.builders import make_rollout
from tests.fault_server import Exchange, FaultServer, Script, answering, fault_server, repeating
from tests.unleash.given import decided, make_settings

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
# : A loop that stands still for longer is held up by an answer. Twice the goal: on a busy machine
# work takes more CPU time.
STALL_SECONDS = 0.5


def json_of(percent: Any) -> str:
    """Return an answer with this percentage, as both planes' servers word it."""
    strategy = {"id": "1", "name": "flexibleRollout", "parameters": {"rollout": percent}}
    environment = {"name": "development", "enabled": True, "strategies": [strategy]}
    return json.dumps({"name": "new-checkout", "percent": percent, "environments": [environment]})


async def one_byte_chunks(exchange: Exchange) -> None:
    """Send the slowest thing that an HTTP parser can read, as fast as it takes it."""
    await exchange.send(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        await exchange.send(b"1\r\n \r\n" * 10_000)


ANSWERS: dict[str, Script] = {
    "10 MB": answering("[" + "0," * 5_000_000 + "0]"),
    "10 MB, no length": repeating(b" " * 65_536, head=OK + b"\r\n", times=160),
    "deep": answering("[" * 400_000),
    "deep and closed": answering('{"percent":' + "[" * 900 + "]" * 900 + "}"),
    "NaN": answering(json_of(float("nan"))),
    "infinity": answering(json_of(float("inf"))),
    "huge number": answering('{"percent": 1' + "0" * 4_000 + "}"),
    "huger number": answering('{"percent": 1' + "0" * 100_000 + "}"),
    "tiny number": answering('{"percent": 1e-999999}'),
    "negative": answering(json_of(-5)),
    "text": answering(json_of("\u001b[2J")),
    "surrogate": answering('{"percent": "\\ud800", "\\udfff": 1}'),
    "a list": answering(json_of([1])),
    "an object": answering(json_of({"a": {}})),
    "null": answering("null"),
    "nothing": answering(""),
    "true": answering(json_of(True)),
    "twice": answering('{"percent": 10, "percent": [], "environments": {}, "environments": 7}'),
    "no UTF-8": answering(b"\xff\xfe{\x00}"),
    "redirect to itself": answering("", status="307 T", location="/"),
    "redirect to a file": answering("", status="302 T", location="file:///etc/passwd"),
    "status 99999": answering("{}", status="99999 X"),
    "interim": repeating(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "two lengths": answering("{}", content_length="5000, 2"),
    "negative length": answering("{}", content_length="-1"),
    "gzip bomb": answering(gzip.compress(b"0" * 50_000_000), content_encoding="gzip"),
    "slow drip": repeating(b" ", head=OK + b"\r\n", pause_seconds=0.01),
    "one-byte chunks": one_byte_chunks,
    "odd date": answering("", status="429 X", retry_after="Fri, 99 Zzz 999999 25:61:61 +9999"),
    "year one": answering("", status="503 X", retry_after="Mon, 01 Jan 0001 00:00:00 +2359"),
    "endless header": repeating(b"a: " + b"b" * 8_192 + b"\r\n", head=OK),
    "odd header": repeating(b"x\x00y: \xff\r\n\r\n", head=OK, times=1),
}


@asynccontextmanager
async def http_plane(url: str, directory: Path) -> AsyncIterator[FlagPlane]:
    """Give a plane by a template that reads and writes."""
    path = directory / "own.yaml"
    document = {
        "values": {"base": None},
        "read": [{"url": "{base}/{flag}", "extract": {"there": "/percent", "all": ""}}],
        "percent": [{"is": "{there}"}],
        "write": {
            "method": "PUT",
            "url": "{base}/{flag}",
            "body": {"$edit": "{all}", "$set": {"/percent": "{percent}"}},
        },
    }
    path.write_text(yaml.safe_dump(document))
    settings = HttpPlaneSettings(
        template=str(path), values={"base": url}, call_timeout_seconds=0.3, check_interval_seconds=1
    )
    plane = HttpPlane("test", settings, SystemClock())
    try:
        yield plane
    finally:
        await plane.close()


@asynccontextmanager
async def unleash_plane(url: str, _directory: Path) -> AsyncIterator[FlagPlane]:
    """Give an Unleash plane."""
    plane = UnleashPlane(make_settings(url, request_timeout_seconds=0.3), SystemClock())
    try:
        yield plane
    finally:
        await plane.close()


class Loop:
    """A reconcile loop over one hostile plane and one that works."""

    def __init__(self, hostile: FlagPlane) -> None:
        self.whole = MemoryFlagPlane("whole")
        self.faults = Faults(SystemClock().now)
        self.stall = 0.0
        self.actuation = FlagReconciler(
            [hostile, self.whole],
            SystemClock(),
            self,
            Metrics(version="test"),
            self.faults,
            period_seconds=0.1,
        )

    def alert(self, flag_key: str, alert: RaiseAlert) -> None:
        """Take an alert."""

    async def run(self, seconds: float, rollout: Rollout) -> None:
        """Run it so long, and until both planes were tried; note the longest standstill."""
        watching = asyncio.create_task(self._watch())
        running = asyncio.create_task(self.actuation.run())
        self.actuation.request(rollout)
        await asyncio.sleep(seconds)
        async with asyncio.timeout(60):
            while not (self.whole.history and self.actuation.mismatches):
                await asyncio.sleep(0.02)
        assert not running.done(), running.exception()
        for task in (running, watching):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _watch(self) -> None:
        while True:
            before, cpu = time.monotonic(), time.thread_time()
            await asyncio.sleep(0.005)
            # What others do to this machine is no stall of ours: both clocks must say so.
            late = min(time.monotonic() - before, time.thread_time() - cpu)
            self.stall = max(self.stall, late)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("plane_at", [http_plane, unleash_plane])
async def test_an_answer_that_nobody_expects(plane_at: Any, answer: Script, tmp_path: Path) -> None:
    """The hostile plane has a gap with a reason, the other plane serves.

    And the loop has its turns.
    """
    async with fault_server(answer) as server, plane_at(server.url, tmp_path) as plane:
        loop = Loop(plane)
        await loop.run(0.7, decided("new-checkout", 25, revision=3))
        assert [entry[2] for entry in loop.whole.history] == [25.0]
        why = loop.actuation.mismatches["new-checkout", plane.name]
        assert why.isprintable()
        assert len(why) < 1_000
        assert loop.stall < STALL_SECONDS
        assert len(server.requests) < 40


@pytest.mark.parametrize("answers", [100, pytest.param(500, marks=pytest.mark.rare)])
async def test_no_mutation_of_a_good_answer_gets_out_of_the_plane(
    tmp_path: Path, answers: int
) -> None:
    """Of hundreds of answers with wrong types in them each ends in a look.

    Or in FlagPlaneUnavailable.
    """
    chance = random.Random(7)
    odd: list[Any] = [None, True, -1, 1e308, "x", "", [], {}, [None], {"a": 1}, "9" * 400, 2**70]

    def mutated(value: Any) -> Any:
        if chance.random() < 0.12:
            return chance.choice(odd)
        if isinstance(value, dict):
            return {key: mutated(each) for key, each in value.items()}
        if isinstance(value, list):
            return [mutated(each) for each in value]
        return value

    title = "rolloutd: 25 % by revision 1 (00000000.1.00000000)"
    strategy = {
        "id": "1",
        "name": "flexibleRollout",
        "title": title,
        "disabled": False,
        "parameters": {"rollout": "25", "stickiness": "userId", "groupId": "new-checkout"},
        "constraints": [{"contextName": "a", "operator": "IN", "values": ["b"]}],
        "variants": [{"name": "on", "weight": 1000}],
        "segments": [1],
    }
    environment = {"name": "development", "enabled": True, "strategies": [strategy, strategy]}
    change = {"id": 1, "type": "feature-strategy-add", "createdBy": "a", "data": strategy}
    good = {
        "name": "new-checkout",
        "percent": 10,
        "environments": [environment],
        "events": [change, {**change, "type": "feature-environment-enabled"}],
    }

    async def script(exchange: Exchange) -> None:
        await exchange.answer(json.dumps(mutated(good)))

    unexpected: list[str] = []
    async with AsyncExitStack() as stack:
        server: FaultServer = await stack.enter_async_context(fault_server(script))
        planes = [
            await stack.enter_async_context(plane_at(server.url, tmp_path))
            for plane_at in (http_plane, unleash_plane)
        ]
        for number in range(answers):
            for plane in planes:
                rollout = make_rollout(percent=chance.choice([0.0, 25.0]), revision=number + 1)
                forget_trouble(plane)
                try:
                    await plane.look(rollout)
                    await plane.serve(rollout)
                except FlagPlaneUnavailable:
                    continue
                except Exception as error:
                    unexpected.append(f"{plane.name}: {error!r}")
    assert unexpected == []


def forget_trouble(plane: FlagPlane) -> None:
    """Let the plane ask again at once."""
    owner = plane._api if isinstance(plane, UnleashPlane) else plane
    owner._cooldown.worked()  # type: ignore[union-attr]


REPLIES: dict[str, bytes] = {
    "huge bulk": b"$1000000000000\r\n",
    "negative bulk": b"$-5\r\n",
    "deep": b"*1\r\n" * 50_000,
    "an error": b"-NOPERM \x1b[31mno\r\n",
    "another kind": b":7\r\n",
    "too few": b"*1\r\n$4\r\ntrue\r\n",
    "not UTF-8": b"*3\r\n$2\r\n\xff\xfe\r\n$1\r\nx\r\n$3\r\n\x1b[2\r\n",
    "numbers": b"*3\r\n:1\r\n:2\r\n:3\r\n",
    "nan": b"*3\r\n$4\r\ntrue\r\n$3\r\nnan\r\n$8\r\n1 true 9\r\n",
    "huge revision": b"*3\r\n$4\r\ntrue\r\n$2\r\n10\r\n$5000\r\n" + b"9" * 5_000 + b"\r\n",
    "no RESP": b"HTTP/1.1 200 OK\r\n\r\n",
    "RESP3": b"%1\r\n$1\r\na\r\n$1\r\nb\r\n",
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
async def test_a_redis_that_answers_anything(reply: bytes) -> None:
    """Whatever bytes come in place of a reply, the other plane serves and this one has a gap."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while request := await reader.read(65_536):
                is_greeting = b"CLIENT" in request
                writer.write(b"+OK\r\n" * request.count(b"CLIENT") if is_greeting else reply)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    plane = RedisPlane(f"redis://127.0.0.1:{port}/0", call_seconds=0.2)
    loop = Loop(plane)
    await loop.run(0.5, decided("new-checkout", 25, revision=3))
    await plane.close()
    server.close()
    assert [entry[2] for entry in loop.whole.history] == [25.0]
    why = loop.actuation.mismatches["new-checkout", "redis"]
    assert why
    assert loop.stall < STALL_SECONDS
    assert all(fault.scope is Scope.PLANE for fault in loop.faults.current)


async def test_a_pipe_is_neither_read_nor_replaced_and_holds_nothing_up_later(
    tmp_path: Path,
) -> None:
    """It held the plane up until a restart, also once it was gone."""
    path, pipe = tmp_path / "flags.json", tmp_path / "pipe"
    os.mkfifo(pipe)
    path.symlink_to(pipe)
    plane = FilePlane("edge", FilePlaneSettings.model_validate({"path": path}))
    async with asyncio.timeout(20):
        for attempt in (plane.look, plane.serve):
            with pytest.raises(FlagPlaneUnavailable, match="no regular file"):
                await attempt(make_rollout())
        assert stat.S_ISFIFO(pipe.lstat().st_mode)
        pipe.unlink()
        await plane.serve(make_rollout())
        assert (await plane.look(make_rollout())).difference is None
