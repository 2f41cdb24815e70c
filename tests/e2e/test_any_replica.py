"""Any replica answers for every flag, and goes on when the one that runs the flag is killed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas.terms import CommandStatus, CommandVerb
from tests.live import Client, DaemonProcess, Traffic, quick_plan

FLAG = "new-checkout"


async def answered(
    daemon: DaemonProcess, path: str, holds: Callable[[dict[str, Any]], bool], seconds: float = 60
) -> dict[str, Any]:
    """Return a replica's answer about the flag once `holds` of it."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            answer = await daemon.get(f"/api/v1/rollouts/{FLAG}/{path}")
        except httpx.HTTPError as error:
            last = repr(error)
        else:
            last = answer.text
            if answer.status_code == 200 and holds(answer.json()):
                document: dict[str, Any] = answer.json()
                return document
        await asyncio.sleep(0.2)
    raise AssertionError(f"{path} of {daemon.url}: {last}")


@pytest.mark.rare
async def test_any_replica_answers_and_goes_on_when_one_is_killed(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Evidence, its course, planes and decisions; the same from all, and newer after a kill."""
    plan = quick_plan(FLAG)
    stage = {**plan.stages[0].model_dump(mode="json", exclude_none=True), "bake": "9m"}
    plan = quick_plan(FLAG, stages=[stage])
    async with AsyncExitStack() as stack:
        replicas = []
        for name in ("a", "b", "c"):
            (tmp_path / name).mkdir()
            replica = DaemonProcess(kafka, redis_url, tmp_path / name, prefix=topic_prefix)
            replicas.append(await stack.enter_async_context(replica))
        client = await stack.enter_async_context(Client(kafka, topic_prefix))
        answer = await client.command(CommandVerb.START, FLAG, plan=plan)
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        async with asyncio.timeout(60):  # a thread of its own writes the log
            while not (deciding := [one for one in replicas if one.log_lines("decision_made")]):
                await asyncio.sleep(0.1)
        (runner,) = deciding
        others = [one for one in replicas if one is not runner]
        await stack.enter_async_context(Traffic(client, others[0], FLAG))

        users = 0
        for replica in replicas:
            seen = await answered(
                replica, "evidence", lambda doc: doc["exposures"].get("treatment", 0) > 50
            )
            users = max(users, seen["exposures"]["treatment"])
            page = (await replica.get(f"/ui/rollouts/{FLAG}")).text
            assert "users of the new version" in page
            assert '<svg class="interval"' in page
            course = await answered(replica, "history", lambda doc: len(doc["points"]) > 3)
            times = [point["at"] for point in course["points"]]
            assert times == sorted(set(times))
            planes = await answered(replica, "planes", lambda doc: bool(doc["is_converged"]))
            assert planes["planes"]
            decided = await answered(replica, "decisions", lambda doc: bool(doc["decisions"]))
            assert decided["decisions"][0]["data"]["kind"] == "start"

        runner.kill9()
        newer = users + 100
        for replica in others:
            await answered(
                replica, "evidence", lambda doc: doc["exposures"]["treatment"] > newer, 120
            )
