from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc.aio
import pytest
from openfeature.schemas.protobuf.flagd.sync.v1 import sync_pb2, sync_pb2_grpc

from schemas.terms import CommandVerb
from tests.brokers import LocalKafka, RedisServer, free_port
from tests.fault_server import Exchange, FaultServer, fault_server
from tests.live import Client, DaemonProcess, Traffic, quick_plan
from tests.notification_services import SECRET
from tests.patience import SLACK

#: What the issue promises, from SIGTERM to exit.
EXIT_SECONDS = 5.0
FLAG = "new-checkout"


async def stop_seconds(daemon: DaemonProcess, *, again_after: float | None = None) -> float:
    """Send SIGTERM, perhaps a second one, and return how long the process took to exit 0.

    Raises AssertionError.
    """
    assert daemon.process is not None
    began = time.monotonic()
    daemon.send(signal.SIGTERM)
    if again_after is not None:
        await asyncio.sleep(again_after)
        daemon.send(signal.SIGTERM)
    code = await asyncio.to_thread(daemon.process.wait, 120)
    took = time.monotonic() - began
    assert code == 0, daemon.log_tail()
    return took


@asynccontextmanager
async def running(
    kafka: str, redis_url: str, directory: Path, prefix: str
) -> AsyncIterator[tuple[DaemonProcess, Client]]:
    """A ready daemon with a started flag."""
    async with (
        DaemonProcess(kafka, redis_url, directory, prefix=prefix) as daemon,
        Client(kafka, prefix) as client,
    ):
        answer = await client.command(
            CommandVerb.START, FLAG, plan=quick_plan(FLAG), wait_seconds=120
        )
        assert answer.status == "accepted"
        yield daemon, client


@pytest.mark.real_kafka
@pytest.mark.parametrize("is_busy", [False, True])
async def test_sigterm_ends_it_in_time(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path, is_busy: bool
) -> None:
    """SIGTERM to exit 0 takes less than 5 s, idle and in the midst of traffic.

    What it had folded is saved.
    """
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG), wait_seconds=120)
        if not is_busy:
            assert await stop_seconds(daemon) < EXIT_SECONDS * SLACK
        else:
            async with Traffic(client, daemon, FLAG, per_second=500):
                await asyncio.sleep(2)
                assert await stop_seconds(daemon) < EXIT_SECONDS * SLACK
        assert daemon.log_lines("daemon_stopped"), daemon.log_tail()
        assert not daemon.log_lines("stop_incomplete")


@pytest.mark.parametrize(
    "frozen",
    [
        pytest.param("broker", marks=pytest.mark.rare),
        pytest.param("redis", marks=pytest.mark.rare),
        "both",
    ],
)
async def test_sigterm_with_frozen_dependencies(
    own_kafka: LocalKafka,
    own_redis: RedisServer,
    topic_prefix: str,
    tmp_path: Path,
    frozen: str,
) -> None:
    """With Kafka or Redis accepting connections but not answering, SIGTERM ends it within 5 s."""
    async with running(own_kafka.bootstrap, own_redis.url, tmp_path, topic_prefix) as (
        daemon,
        client,
    ):
        traffic = Traffic(client, daemon, FLAG, per_second=300)
        await traffic.__aenter__()
        await asyncio.sleep(1.5)
        if frozen in ("broker", "both"):
            own_kafka.pause()
        if frozen in ("redis", "both"):
            own_redis.pause()
        try:
            await asyncio.sleep(1.5)  # for calls to hang
            took = await stop_seconds(daemon)
        finally:
            own_kafka.resume()
            own_redis.resume()
            await traffic.__aexit__(None, None, None)
        assert took < EXIT_SECONDS * SLACK


async def test_sigterm_while_it_waits_for_its_surroundings(
    own_redis: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    """A daemon that never reached Kafka, because packets to it vanish, stops in time as well."""
    with socket.socket() as hole:  # takes connections and never reads
        hole.bind(("127.0.0.1", 0))
        hole.listen(64)
        port = hole.getsockname()[1]
        daemon = DaemonProcess(f"127.0.0.1:{port}", own_redis.url, tmp_path, prefix=topic_prefix)
        daemon.spawn()
        try:
            deadline = time.monotonic() + 120
            while not daemon.log_lines("http_started") and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
            await asyncio.sleep(1)
            assert await stop_seconds(daemon) < EXIT_SECONDS * SLACK
        finally:
            daemon.kill9()


@pytest.mark.real_kafka
async def test_sigterm_with_a_hanging_model(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A question that the model never answers does not hold the exit up."""

    async def hang(exchange: Exchange) -> None:
        await asyncio.Event().wait()

    async with (
        fault_server(hang) as model,
        DaemonProcess(
            kafka, redis_url, tmp_path, prefix=topic_prefix, ROLLOUTD_ADVISOR__URL=model.url
        ) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        plan = quick_plan(FLAG, advisor={"mode": "required", "deadline": "60s"})
        await client.command(CommandVerb.START, FLAG, plan=plan, wait_seconds=120)
        async with Traffic(client, daemon, FLAG, per_second=800):
            deadline = time.monotonic() + 240
            while not model.requests and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
            assert model.requests, f"never asked\n{daemon.log_tail()}"
            assert await stop_seconds(daemon) < EXIT_SECONDS * SLACK


@pytest.mark.real_kafka
async def test_sigterm_with_channels_and_a_heartbeat_that_hang(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A message that no channel takes holds nothing up, and the next replica sends it at once.

    Apprise sends in a thread that nothing can interrupt.
    """
    is_stuck = True

    async def answer(exchange: Exchange) -> None:
        if is_stuck:
            await asyncio.Event().wait()
        await exchange.answer("OK")

    async with fault_server(answer) as service:
        host = service.url.removeprefix("http://")
        config = tmp_path / "rolloutd.yaml"
        config.write_text(
            f"notifications:\n"
            f"  channels:\n"
            f"    mine: {{type: webhook, url: '{service.url}/mine', secret: {SECRET}}}\n"
            f"    mail: {{type: email, server: 127.0.0.1, port: {host.rpartition(':')[2]},\n"
            f"      tls: 'off', sender: a@example.org, recipients: [b@example.org]}}\n"
            f"    any: {{type: apprise, url: 'json://{host}/any'}}\n"
            f"dead_mans_switch: {{url: '{service.url}/beat', every_seconds: 5,\n"
            f"  timeout_seconds: 60}}\n"
        )
        changed = {"ROLLOUTD_CONFIG": str(config)}
        daemon = DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix, **changed)
        async with daemon, Client(kafka, topic_prefix) as client:
            await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG), wait_seconds=120)
            await client.command(CommandVerb.ROLL_BACK, FLAG, reason="bad", wait_seconds=120)
            await until_called(service, "/mine", "/any", "/beat")
            assert await stop_seconds(daemon) < EXIT_SECONDS * SLACK
            assert not daemon.log_lines("stop_incomplete")
        is_stuck = False
        service.requests.clear()
        async with DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix, **changed):
            await until_called(service, "/mine", "/any", "/beat")


async def until_called(service: FaultServer, *paths: str) -> None:
    """Return once each of these paths was called."""
    async with asyncio.timeout(20 * SLACK):
        while not all(any(path in one.line for one in service.requests) for path in paths):
            await asyncio.sleep(0.05)


@pytest.mark.real_kafka
async def test_sigterm_with_open_connections(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Clients with an open connection, request or stream, HTTP or gRPC, do not delay the exit."""
    sync_port = free_port()
    offered = {"ROLLOUTD_FLAGD_SYNC__PORT": str(sync_port)}
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix, **offered) as daemon,
        grpc.aio.insecure_channel(f"127.0.0.1:{sync_port}") as channel,
    ):
        idle = await asyncio.open_connection("127.0.0.1", daemon.port)
        idle[1].write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await idle[0].readuntil(b"\r\n\r\n")
        half = await asyncio.open_connection("127.0.0.1", daemon.port)
        half[1].write(
            b"POST /ofrep/v1/evaluate/flags/f HTTP/1.1\r\nHost: "
            b"localhost\r\nContent-Length: 1000\r\n\r\n{"
        )
        await half[1].drain()
        stream = await asyncio.open_connection("127.0.0.1", daemon.port)
        stream[1].write(b"GET /ofrep/v1/sse HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await stream[0].readuntil(b"refetchEvaluation")
        synced = sync_pb2_grpc.FlagSyncServiceStub(channel).SyncFlags(sync_pb2.SyncFlagsRequest())
        assert json.loads((await synced.read()).flag_configuration)["flags"] == {}
        assert await stop_seconds(daemon) < EXIT_SECONDS * SLACK
        for _, writer in (idle, half, stream):
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def test_a_second_sigterm_does_not_wait(
    own_kafka: LocalKafka, own_redis: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    """Asked twice, it stops at once: what was not saved is counted again."""
    async with running(own_kafka.bootstrap, own_redis.url, tmp_path, topic_prefix) as (
        daemon,
        client,
    ):
        async with Traffic(client, daemon, FLAG, per_second=300):
            await asyncio.sleep(1.5)
            own_redis.pause()
            try:
                await asyncio.sleep(1)
                took = await stop_seconds(daemon, again_after=0.3)
            finally:
                own_redis.resume()
        assert took < 1.5, "it waited for what Redis cannot take"
