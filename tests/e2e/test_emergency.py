"""A flag is lowered while Kafka hangs or is stopped, on real servers, by real requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas.terms import CommandVerb
from tests.chaos.outage_stand import TOKEN, OutageStand
from tests.live import Client, DaemonProcess, quick_plan
from tests.patience import SLACK
from tests.tcp_proxy import Fault

pytestmark = [pytest.mark.real_kafka, pytest.mark.one_worker]

FLAG = "new-checkout"


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutageStand]:
    """Kafka and Redis behind proxies."""
    with OutageStand(tmp_path_factory.mktemp("stand")) as stand:
        yield stand


async def start(client: Client, *daemons: DaemonProcess, flag: str = FLAG) -> None:
    """Bring a flag to 50 % on every replica."""
    stage = {"percent": 50, "bake": "3h", "settle": "0s", "max_bake": "4h"}
    plan = quick_plan(flag, stages=[stage], blind=True, guardrails=[])
    answer = await client.command(CommandVerb.START, flag, plan=plan)
    assert answer.status == "accepted", answer.reason
    for daemon in daemons:
        await daemon.until(flag, lambda one: one["percent"] == 50)


async def post(daemon: DaemonProcess, name: str, flag: str = FLAG, **body: Any) -> httpx.Response:
    """Give a command over HTTP."""
    async with httpx.AsyncClient() as http:
        return await http.post(
            f"{daemon.url}/rollouts/{flag}/{name}",
            headers={"authorization": f"Bearer {TOKEN}"},
            json=body,
            timeout=30,
        )


async def variant(daemon: DaemonProcess, flag: str = FLAG) -> set[str]:
    """Return what a hundred users are served."""
    path = f"{daemon.url}/ofrep/v1/evaluate/flags/{flag}"
    async with httpx.AsyncClient() as http:
        answers = [
            await http.post(path, json={"context": {"targetingKey": f"user-{number}"}}, timeout=5)
            for number in range(100)
        ]
    return {answer.json()["variant"] for answer in answers}


async def until_off(daemon: DaemonProcess, seconds: float, flag: str = FLAG) -> float:
    """Return after how many seconds nobody gets treatment."""
    began = time.monotonic()
    while time.monotonic() - began < seconds * SLACK:
        if await variant(daemon, flag) == {"off"}:
            return time.monotonic() - began
        await asyncio.sleep(0.1)
    raise AssertionError(f"still on after {seconds} s:\n{daemon.log_tail()}")


async def issuers_of_lowering(client: Client, flag: str) -> list[str]:
    """Return who lowered a flag to 0 %, by the audit log, once somebody did."""
    async with asyncio.timeout(60):
        while True:
            # A record that is published twice has one id: receivers drop repeats by it.
            decisions = {one["id"]: one["data"] for one in await client.read("rollout.decisions")}
            mine = [
                one for one in decisions.values() if one["flag"] == flag and one["to_percent"] == 0
            ]
            if mine:
                return [one["issuer"] for one in mine]
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("fault", [Fault.HANG, pytest.param(Fault.REFUSE, marks=pytest.mark.rare)])
async def test_any_replica_lowers_without_kafka(stand: OutageStand, fault: Fault) -> None:
    """Of two replicas the one that is asked serves 0 % at once and the other within seconds.

    Kafka is told everything once it is back: one decision, one result.
    """
    flag = f"{FLAG}-{fault}"
    async with (
        stand.daemon() as first,
        stand.daemon() as second,
        Client(stand.kafka.bootstrap, stand.prefix) as client,
    ):
        await start(client, first, second, flag=flag)
        stand.proxies["kafka"].apply(fault)
        try:
            issued = {"id": f"http-{fault}", "issuer": "ann", "reason": "5xx"}
            async with httpx.AsyncClient() as http:
                wrong = await http.post(
                    f"{first.url}/rollouts/{flag}/roll-back",
                    headers={"authorization": "Bearer guess"},
                )
            assert wrong.status_code == 401
            assert await variant(first, flag) == {"on", "off"}
            answer = await post(first, "roll-back", flag, **issued)
            assert (answer.status_code, answer.json()["status"]) == (200, "accepted")
            assert await variant(first, flag) == {"off"}
            await until_off(second, 3, flag)
            for daemon in (first, second):
                again = await post(daemon, "roll-back", flag, **issued)
                assert again.json()["status"] == "accepted"
                assert again.json()["revision"] == answer.json()["revision"]
        finally:
            stand.proxies["kafka"].apply(Fault.NONE)
        result = await client.result(f"http-{fault}")
        assert result.status == "accepted"
        assert await issuers_of_lowering(client, flag) == ["ann"]
        for daemon in (first, second):
            assert await variant(daemon, flag) == {"off"}


async def until_taken(daemon: DaemonProcess, name: str, flag: str) -> httpx.Response:
    """Return the first answer that says that a command was carried out."""
    async with asyncio.timeout(60):
        while True:
            with suppress(httpx.ConnectError):
                answer = await post(daemon, name, flag, id="late", issuer="ann")
                if answer.status_code == 200:
                    return answer
            await asyncio.sleep(0.2)


@pytest.mark.rare
@pytest.mark.parametrize("has_owner", [True, False])
async def test_a_replica_that_started_in_the_outage_lowers_everywhere(
    stand: OutageStand, has_owner: bool
) -> None:
    """The flag planes follow too: by the owner within seconds, and without one by the replica."""
    flag = f"{FLAG}-late-{has_owner}".lower()
    late = stand.daemon()
    async with stand.daemon() as owner, Client(stand.kafka.bootstrap, stand.prefix) as client:
        await start(client, owner, flag=flag)
        async with asyncio.timeout(30):
            while stand.plane.percents.get(flag) != 50:
                await asyncio.sleep(0.1)
        stand.proxies["kafka"].apply(Fault.HANG)
        try:
            await asyncio.sleep(3)
            if not has_owner:
                owner.kill9()
            late.spawn()
            answer = await until_taken(late, "kill", flag)
            assert answer.json()["status"] == "accepted"
            assert await variant(late, flag) == {"off"}
            if has_owner:
                await until_off(owner, 3, flag)
            async with asyncio.timeout(3 * SLACK):
                while stand.plane.percents[flag] != 0:
                    await asyncio.sleep(0.1)
            await asyncio.sleep(6)  # longer than a comparison of the planes
            assert stand.plane.percents[flag] == 0
        finally:
            stand.proxies["kafka"].apply(Fault.NONE)
            late.kill9()


@pytest.mark.rare
async def test_a_replica_that_started_without_kafka_and_redis_lowers_and_keeps_it(
    stand: OutageStand,
) -> None:
    """By its file it serves 50 %; told to, 0 %, also after kill -9, and Kafka hears of it."""
    flag, outages = f"{FLAG}-file", (stand.proxies["kafka"], stand.proxies["redis"])
    async with stand.daemon() as daemon, Client(stand.kafka.bootstrap, stand.prefix) as client:
        await start(client, daemon, flag=flag)
        kept = next((stand.directory / "last-known").glob(f"last-known-*-{daemon.port}.jsonl"))
        async with asyncio.timeout(30):
            while f'"{flag}"' not in kept.read_text():
                await asyncio.sleep(0.05)
        daemon.kill9()
        for proxy in outages:
            proxy.apply(Fault.HANG)
        try:
            daemon.spawn()
            assert await first_variants(daemon, flag) == {"on", "off"}
            answer = await post(daemon, "kill", flag, id="in-the-dark", issuer="ann")
            assert answer.status_code == 202
            assert "this replica serves 0 % already" in answer.json()["reason"]
            assert "also after a restart" in answer.json()["reason"]
            assert await variant(daemon, flag) == {"off"}
            daemon.kill9()
            daemon.spawn()
            assert await first_variants(daemon, flag) == {"off"}
        finally:
            for proxy in outages:
                proxy.apply(Fault.NONE)
        result = await client.result("in-the-dark")
        assert result.status == "accepted"
        assert await issuers_of_lowering(client, flag) == ["ann"]
        assert await variant(daemon, flag) == {"off"}


async def first_variants(daemon: DaemonProcess, flag: str) -> set[str]:
    """Return what users are served as soon as a started process serves anything."""
    async with asyncio.timeout(60):
        while True:
            with suppress(httpx.HTTPError, KeyError):
                return await variant(daemon, flag)
            await asyncio.sleep(0.01)


async def test_rolloutctl_goes_over_http_by_itself(stand: OutageStand, tmp_path: Path) -> None:
    """Kafka hangs: roll-back works; what raises, or lacks the token, says what to do."""
    flag, token_file = f"{FLAG}-cli", tmp_path / "token"
    token_file.write_text(f"{TOKEN}\n")
    async with (
        stand.daemon() as daemon,
        Client(stand.kafka.bootstrap, stand.prefix) as client,
    ):
        await start(client, daemon, flag=flag)
        known = {"ROLLOUTCTL_DAEMON": daemon.url, "ROLLOUTCTL_TOKEN_FILE": str(token_file)}
        stand.proxies["kafka"].apply(Fault.HANG)
        try:
            call = asyncio.to_thread
            raising = await call(stand.rolloutctl, "resume", flag, **known)
            assert raising.returncode == 4, raising.stderr
            assert "only rollback, abort, kill and pause" in raising.stderr
            blind = await call(stand.rolloutctl, "roll-back", flag)
            assert blind.returncode == 4
            assert "set ROLLOUTCTL_DAEMON and ROLLOUTCTL_TOKEN_FILE" in blind.stderr
            status = await call(stand.rolloutctl, "status")
            assert (status.returncode, "next: " in status.stderr) == (4, True)
            assert await variant(daemon, flag) == {"on", "off"}
            lowered = await call(stand.rolloutctl, "roll-back", flag, "-r", "5xx", **known)
            assert lowered.returncode == 0, lowered.stderr
            assert "accepted" in lowered.stdout
            assert "over HTTP" in lowered.stderr
            assert await variant(daemon, flag) == {"off"}
        finally:
            stand.proxies["kafka"].apply(Fault.NONE)
