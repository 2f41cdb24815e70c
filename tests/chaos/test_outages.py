"""Each dependency hangs, refuses, resets or is slow: the daemon serves, says so, and comes back.

A table of 4 dependencies, 4 faults and 3 lengths, on a real Kafka and a real Redis. Ten minutes are
compressed: half a minute under deadlines of about a twentieth (`outage_stand.COMPRESSED`).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import pytest

from schemas.terms import CommandVerb
from tests.chaos.outage_stand import DEPENDENCIES, TOKEN, OutageStand
from tests.live import Client, DaemonProcess, quick_plan
from tests.patience import SLACK
from tests.tcp_proxy import Fault

pytestmark = [pytest.mark.real_kafka, pytest.mark.one_worker]

#: What is promised: an outage is in `/readyz` after so long, counted from when it is met.
SAID_WITHIN = 5.0
#: What it may take to be as before, once the dependency is back.
BACK_WITHIN = 30.0
#: What `/readyz` says does not work while a dependency is away, and a word of each reason.
COMPONENTS = {
    "kafka": {
        "kafka": "no broker has answered",
        "state": "has not been read",
        "counting": "no broker has answered",
    },
    "redis": {"redis": "Redis has not answered", "saves": "was last saved"},
    "model": {"advisor": ""},
    "plane": {"actuation": "own"},
}
FAULTS = [Fault.HANG, Fault.REFUSE, Fault.RESET, Fault.SLOW]


@dataclass(frozen=True, slots=True)
class Outage:
    """One cell of the table."""

    dependency: str
    fault: Fault
    seconds: float

    @property
    def is_noticed(self) -> bool:
        """Whether it has to be in `/readyz`: it lasts, and what is late is not away."""
        return self.seconds > SAID_WITHIN and self.fault is not Fault.SLOW


_flags = (f"flag-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutageStand]:
    """Servers and proxies with the settings of production."""
    with OutageStand(tmp_path_factory.mktemp("stand")) as stand:
        yield stand


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutageStand]:
    """Servers and proxies with short deadlines."""
    directory = tmp_path_factory.mktemp("compressed")
    with OutageStand(directory, is_compressed=True) as stand:
        yield stand


class Cell:
    """A daemon in one outage after another."""

    def __init__(self, stand: OutageStand, daemon: DaemonProcess, client: Client) -> None:
        self.stand, self.daemon, self.client = stand, daemon, client

    async def until(self, holds: Callable[[], Awaitable[bool]], seconds: float, what: str) -> float:
        """Return after how many seconds something held."""
        began = time.monotonic()
        while time.monotonic() - began < seconds * SLACK:
            self.expect_alive()
            with suppress(httpx.HTTPError):
                if await holds():
                    return time.monotonic() - began
            await asyncio.sleep(0.1)
        standing = await self.daemon.standing()
        raise AssertionError(
            f"not within {seconds:.0f} s: {what}\n{standing}\n{self.daemon.log_tail()}"
        )

    def expect_alive(self) -> None:
        """Expect the process that was started."""
        process = self.daemon.process
        assert process is not None
        assert process.poll() is None, f"it ended:\n{self.daemon.log_tail()}"

    async def is_well(self) -> bool:
        """Return whether nothing is away."""
        standing = await self.daemon.standing()
        components = standing["components"].values()
        return bool(standing["ready"]) and all(one["ready"] for one in components)

    async def start(self, dependency: str) -> str:
        """Start a rollout that meets the dependency by itself; return its flag at 50 %."""
        flag_key = next(_flags)
        asks = {"mode": "required", "deadline": "2s", "hold_rounds": 10, "hold_for": "1s"}
        stage = {"percent": 50, "bake": "1s", "settle": "0s", "max_bake": "3h"}
        if dependency != "model":
            stage["bake"] = "3h"
        plan = quick_plan(
            flag_key,
            stages=[stage],
            blind=True,
            guardrails=[],
            advisor=asks if dependency == "model" else {"mode": "off"},
        )
        answer = await self.client.command(CommandVerb.START, flag_key, plan=plan)
        assert answer.status == "accepted", answer.reason
        await self.daemon.until(flag_key, lambda one: one["percent"] == 50)
        return flag_key

    async def served(self, flag_key: str) -> dict[str, Any]:
        """Return one evaluation over OFREP."""
        path = f"{self.daemon.url}/ofrep/v1/evaluate/flags/{flag_key}"
        async with httpx.AsyncClient() as http:
            answer = await http.post(path, json={"context": {"targetingKey": "ann"}}, timeout=5)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def lower(self, flag_key: str) -> httpx.Response:
        """Roll a flag back over HTTP."""
        async with httpx.AsyncClient() as http:
            return await http.post(
                f"{self.daemon.url}/rollouts/{flag_key}/roll-back",
                headers={"authorization": f"Bearer {TOKEN}"},
                json={"id": f"lower-{flag_key}", "reason": "an outage"},
                timeout=30,
            )

    async def is_said(self, dependency: str) -> bool:
        """Return whether `/readyz` names what is away, since when, and why."""
        standing = await self.daemon.standing()
        for name, word in COMPONENTS[dependency].items():
            component = standing["components"][name]
            if component["ready"]:
                return False
            assert standing["degraded"] is True
            assert word in component["reason"], component
            assert component["for_seconds"] >= 0
            assert datetime.fromisoformat(component["since"]).tzinfo is not None
        return True


@pytest.fixture
async def cell_of(
    stand: OutageStand, request: pytest.FixtureRequest
) -> AsyncIterator[Callable[[bool], Awaitable[Cell]]]:
    """Give what makes a cell; the daemon of a stand goes on from cell to cell."""
    clients: list[Client] = []

    async def make(is_compressed: bool) -> Cell:
        used: OutageStand = request.getfixturevalue("compressed") if is_compressed else stand
        daemon = _daemons.get(used)
        if daemon is None:
            daemon = _daemons[used] = used.daemon()
            await daemon.start()
        client = Client(used.kafka.bootstrap, used.prefix)
        await client.__aenter__()
        clients.append(client)
        return Cell(used, daemon, client)

    yield make
    for client in clients:
        await client.__aexit__(None, None, None)


_daemons: dict[OutageStand, DaemonProcess] = {}


@pytest.fixture(scope="module", autouse=True)
def _end_daemons() -> Iterator[None]:
    """End what the cells left running."""
    yield
    for daemon in _daemons.values():
        daemon.kill9()
    _daemons.clear()


#: One fault of each dependency, each fault once: what `make test` tries.
QUICK = {"kafka": Fault.HANG, "redis": Fault.REFUSE}


def _cells() -> Iterator[Any]:
    for seconds, dependency, fault in itertools.product((1, 30, 600), DEPENDENCIES, FAULTS):
        yield pytest.param(
            Outage(dependency, fault, seconds),
            marks=_marks(dependency, fault, seconds),
            id=f"{dependency}-{fault}-{seconds}s",
        )


def _marks(dependency: str, fault: Fault, seconds: int) -> tuple[pytest.MarkDecorator, ...]:
    """Return what keeps a cell out of `make test`, and of the longest all but hangs out of CI."""
    if seconds == 1 and QUICK.get(dependency) is fault:
        return ()
    if seconds == 600 and fault is not Fault.HANG:
        return (pytest.mark.long,)
    return (pytest.mark.rare,)


@pytest.mark.parametrize("outage", list(_cells()))
async def test_an_outage_is_survived_and_said(
    cell_of: Callable[[bool], Awaitable[Cell]], outage: Outage
) -> None:
    """The process lives and serves, `/readyz` says what is away, 0 % can be had, all comes back."""
    is_compressed = outage.seconds > 60
    cell = await cell_of(is_compressed)
    await cell.until(cell.is_well, BACK_WITHIN, "well before the outage")
    # The model is needed at a gate, so its rollout starts in the outage; so does the plane's.
    needs_early = outage.dependency in ("kafka", "redis")
    flag_key = await cell.start(outage.dependency) if needs_early else ""
    proxy = cell.stand.proxies[outage.dependency]
    proxy.apply(outage.fault)
    try:
        began = time.monotonic()
        flag_key = flag_key or await cell.start(outage.dependency)
        lasts = 30.0 if is_compressed else outage.seconds
        if outage.is_noticed:

            async def is_said() -> bool:
                return await cell.is_said(outage.dependency)

            await cell.until(is_said, SAID_WITHIN, f"/readyz says that {outage.dependency} is away")
        await cell.served(flag_key)
        lowered = await cell.lower(flag_key)
        is_pending = lowered.status_code == 202
        assert lowered.status_code == 200 or (
            is_pending and outage.dependency == "redis" and outage.fault is not Fault.SLOW
        ), lowered.text
        assert (await cell.served(flag_key))["variant"] == "off"
        while time.monotonic() - began < lasts:
            cell.expect_alive()
            assert (await cell.served(flag_key))["variant"] == "off"
            await asyncio.sleep(0.2)
        if outage.is_noticed:
            assert await cell.is_said(outage.dependency)
    finally:
        proxy.apply(Fault.NONE)
    await cell.until(cell.is_well, BACK_WITHIN, "well after the outage")
    result = await cell.client.result(f"lower-{flag_key}")
    assert result.status == "accepted"

    async def is_lowered_everywhere() -> bool:
        document = await cell.daemon.rollout(flag_key)
        return (
            document is not None
            and document["phase"]["name"] == "rolled_back"
            and cell.stand.plane.percents.get(flag_key, 0) == 0
        )

    await cell.until(is_lowered_everywhere, BACK_WITHIN, "0 % is saved, and on the plane")
