"""One plan drives every flag plane at once.

The installed daemon, real Redis keys, a real file, a real HTTP receiver.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import redis.asyncio
from openfeature.schemas.protobuf.flagd.sync.v1 import sync_pb2, sync_pb2_grpc

from schemas.terms import CommandVerb
from tests.brokers import free_port
from tests.fault_server import Exchange, fault_server
from tests.live import Client, DaemonProcess, quick_plan

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"
SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()


async def until(holds: Callable[[], Any], seconds: float = 20.0) -> None:
    """Return once it holds."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.05)


async def status(kafka: str, prefix: str, daemon: DaemonProcess, *options: str) -> str:
    """Return what `rolloutctl status` says of the flag."""
    environ = {
        **os.environ,
        "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": kafka,
        "ROLLOUTD_KAFKA__TOPIC_PREFIX": prefix,
    }
    command = (
        str(Path(sys.executable).with_name("rolloutctl")),
        "status",
        FLAG,
        "--daemon",
        daemon.url,
        *options,
    )
    process = await asyncio.create_subprocess_exec(
        *command, env=environ, stdout=asyncio.subprocess.PIPE
    )
    return (await process.communicate())[0].decode()


async def test_every_plane_serves_what_is_decided(
    kafka: str, redis_url: str, redis_client: redis.asyncio.Redis, topic_prefix: str, tmp_path: Path
) -> None:
    """Start, an edit behind our back, a plane that is away, a roll back.

    Each plane follows, and says whether it does.
    """
    told: list[float] = []
    is_away = False

    async def receive(exchange: Exchange) -> None:
        if is_away:
            await exchange.answer("", status="503 Away")
            return
        told.append(json.loads(exchange.request.body)["data"]["percent"])
        await exchange.answer("")

    path = tmp_path / "flags.json"

    def in_file() -> int | None:
        flags = json.loads(path.read_text())["flags"] if path.exists() else {}
        return flags[FLAG]["targeting"]["fractional"][0][1] if FLAG in flags else None

    async def are_converged() -> bool:
        planes = json.loads(await status(kafka, topic_prefix, daemon, "--json"))["planes"]
        return all(one["is_converged"] for one in planes)

    sync_port = free_port()
    async with (
        fault_server(receive) as receiver,
        grpc.aio.insecure_channel(f"127.0.0.1:{sync_port}") as channel,
    ):
        planes = {
            "ROLLOUTD_PLANES__REDIS__URL": redis_url,
            "ROLLOUTD_PLANES__REDIS__KEY_PREFIX": f"{topic_prefix}flag:",
            "ROLLOUTD_PLANES__FILES__EDGE__PATH": str(path),
            "ROLLOUTD_FLAGD_SYNC__PORT": str(sync_port),
            "ROLLOUTD_PLANES__HTTP__OURS__TEMPLATE": "webhook",
            "ROLLOUTD_PLANES__HTTP__OURS__SECRET": SECRET,
            "ROLLOUTD_PLANES__HTTP__OURS__VALUES": json.dumps({"url": f"{receiver.url}/hook"}),
        }
        async with (
            DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix, **planes) as daemon,
            Client(kafka, topic_prefix) as client,
        ):
            plan = quick_plan(FLAG)
            await client.command(CommandVerb.START, FLAG, plan=plan)
            await until(lambda: told == [10] and in_file() == 1_000)
            share = f"{topic_prefix}flag:{FLAG}:rollout"
            async with asyncio.timeout(60):
                while await redis_client.get(share) != b"10":
                    await asyncio.sleep(0.05)
            standings = (await daemon.get(f"/api/v1/rollouts/{FLAG}/planes")).json()
            assert [one["plane"] for one in standings["planes"]] == [
                "ofrep",
                "state_topic",
                "file:edge",
                "redis",
                "http:ours",
            ]

            await redis_client.set(share, "80")
            async with asyncio.timeout(60):
                while await redis_client.get(share) != b"10":
                    await asyncio.sleep(0.05)

            synced = await sync_pb2_grpc.FlagSyncServiceStub(channel).FetchAllFlags(
                sync_pb2.FetchAllFlagsRequest()
            )
            assert json.loads(synced.flag_configuration)["flags"][FLAG]["targeting"] == {
                "fractional": [["on", 1000], ["off", 9000]]
            }

            is_away = True
            await client.command(CommandVerb.PAUSE, FLAG, reason="lunch")
            await until(lambda: len(receiver.requests) > 2)
            said = ""
            async with asyncio.timeout(60):  # the answer is noted after it was given
                while "answered 503" not in said:
                    said = await status(kafka, topic_prefix, daemon)
            assert "http:ours: NOT CONVERGED" in said
            assert "redis: serves 10" in said
            metrics = (await daemon.get("/metrics")).text
            assert f'rolloutd_plane_converged{{flag_key="{FLAG}",plane="http:ours"}} 0.0' in metrics
            assert f'rolloutd_plane_converged{{flag_key="{FLAG}",plane="redis"}} 1.0' in metrics

            is_away = False
            await client.command(CommandVerb.ROLL_BACK, FLAG, reason="it smells")
            await until(lambda: told[-1] == 0 and in_file() == 0)
            async with asyncio.timeout(60):
                while await redis_client.get(f"{topic_prefix}flag:{FLAG}") != b"false":
                    await asyncio.sleep(0.05)
            async with asyncio.timeout(60):  # who has got it says so a moment later
                while not await are_converged():
                    await asyncio.sleep(0.2)
            assert await client.alerts("foreign_edit", 1)
            assert SECRET.removeprefix("whsec_") not in daemon.log_path.read_text()
