"""rolloutd is taken away from real clients that use it, and each user keeps the variant.

The table of ops/serving.md, tried: who keeps what while rolloutd is down, while it starts in an
outage of Kafka and Redis, and when all are back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import pytest
import redis.asyncio
from last_known_provider import LastKnownProvider
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.provider import FeatureProvider

from schemas.terms import CommandVerb
from tests.brokers import LocalKafka, RedisServer, free_port
from tests.flag_clients import (
    details_of,
    flagd_file,
    flagd_sync,
    installed_ofrep_clients,
    ofrep_client,
    users_in,
)
from tests.live import Client, DaemonProcess, quick_plan

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"
USERS = 10_000
AWAY_SECONDS = 60
AT_HALF = [{"percent": 50, "bake": "900s", "settle": "1s", "min_sample": 50, "max_bake": "1000s"}]
#: Web clients are pages, one for each user: a process of Node.js holds so many.
PAGES = 50
#: Users that are tried with the clients that keep nothing, each by a request.
PLAIN = 200

Ask = Callable[[Sequence[str]], Awaitable[set[str]]]
"""Returns those of the users whom a client serves the treatment."""


@asynccontextmanager
async def openfeature(**providers: FeatureProvider) -> AsyncIterator[Mapping[str, Ask]]:
    """Run several clients of OpenFeature's Python SDK, each by its name."""
    for name, provider in providers.items():
        await asyncio.to_thread(api.set_provider_and_wait, provider, name)

    async def ask(client: OpenFeatureClient, users: Sequence[str]) -> set[str]:
        return await asyncio.to_thread(users_in, client, FLAG, users)

    try:
        yield {name: partial(ask, api.get_client(name)) for name in providers}
    finally:
        await asyncio.to_thread(api.shutdown)
        api.clear_providers()


async def by_redis_keys(url: str, key_prefix: str, users: Sequence[str]) -> set[str]:
    """Do what a simple reader does: one MGET, and a hash of its own."""
    client = redis.asyncio.Redis.from_url(url)
    try:
        switch, percent = await client.mget(f"{key_prefix}{FLAG}", f"{key_prefix}{FLAG}:rollout")
    finally:
        await client.aclose()
    share = float(percent or 0) if switch == b"true" else 0.0
    return {user for user in users if int(user.removeprefix("user-")) % 100 < share}


async def by_node(process: asyncio.subprocess.Process, users: Sequence[str]) -> set[str]:
    """Ask the server client, or the web clients, of a process of Node.js."""
    details = await details_of(process, users)
    return {user for user, one in zip(users, details, strict=True) if one["value"]}


@dataclass
class Fleet:
    """Clients of one flag, by name, and whom each served the treatment at first."""

    supported: Mapping[str, Ask]
    plain: Mapping[str, Ask]  # OFREP's server-side clients, which keep nothing
    pages: Ask  # a web client for each user
    users: Sequence[str]
    before: dict[str, set[str]] = field(default_factory=dict)

    async def until_followed(self) -> None:
        """Return once every client serves the treatment to some users, and note to whom."""
        for name, ask in {**self.supported, **self.plain}.items():
            end = time.monotonic() + 120
            while not await ask(self.users[:50]):
                assert time.monotonic() < end, f"{name} serves the treatment to nobody"
                await asyncio.sleep(0.2)
        self.before = await self._served(with_plain=True)
        assert self.before["pages"], "no page has the treatment"
        cached = self.before["cached"]
        for name in ("flagd_grpc", "flagd_file", "node_cached"):
            assert self.before[name] == cached, name
        assert self.before["plain"] == self.before["node"] == cached & {*self.users[:PLAIN]}

    async def _served(self, *, with_plain: bool) -> dict[str, set[str]]:
        served = {name: await ask(self.users) for name, ask in self.supported.items()}
        if with_plain:
            served |= {name: await ask(self.users[:PLAIN]) for name, ask in self.plain.items()}
        return {**served, "pages": await self.pages(self.users[:PAGES])}

    async def changed(self, *, with_plain: bool) -> dict[str, set[str]]:
        """Return the users whom a client serves another variant than at first, by client."""
        now = await self._served(with_plain=with_plain)
        changed = {name: served ^ self.before[name] for name, served in now.items()}
        return {name: users for name, users in changed.items() if users}


@asynccontextmanager
async def fleet(
    daemon: DaemonProcess, sync_port: int, file: Path, by_redis: Ask, users: Sequence[str]
) -> AsyncIterator[Fleet]:
    """Run every kind of client; `by_redis` is the one that reads the keys of the Redis plane."""
    installed = installed_ofrep_clients()
    async with (
        openfeature(
            cached=LastKnownProvider(OFREPProvider(daemon.url, timeout=5.0)),
            plain=OFREPProvider(daemon.url, timeout=5.0),
            flagd_grpc=flagd_sync(sync_port),
            flagd_file=flagd_file(file),
        ) as python,
        ofrep_client(installed, "server", daemon.url, FLAG) as node,
        ofrep_client(installed, "cached", daemon.url, FLAG) as node_cached,
        ofrep_client(installed, "pages", daemon.url, FLAG) as pages,
    ):
        supported = {name: ask for name, ask in python.items() if name != "plain"}
        yield Fleet(
            {
                **supported,
                "node_cached": partial(by_node, node_cached),
                "redis": by_redis,
            },
            {"plain": python["plain"], "node": partial(by_node, node)},
            partial(by_node, pages),
            users,
        )


async def until_answered(daemon: DaemonProcess) -> None:
    """Return once OFREP answers."""
    path = f"{daemon.url}/ofrep/v1/evaluate/flags/{FLAG}"
    body = {"context": {"targetingKey": "user-1"}}
    async with httpx.AsyncClient() as http, asyncio.timeout(120):
        while True:
            with suppress(httpx.HTTPError):
                if (await http.post(path, json=body, timeout=2)).status_code == 200:
                    return
            await asyncio.sleep(0.05)


@pytest.mark.rare
async def test_no_user_changes_the_variant_while_rolloutd_is_away(
    own_kafka: LocalKafka,
    own_redis: RedisServer,
    redis_url: str,
    topic_prefix: str,
    tmp_path: Path,
) -> None:
    """Killed, started without Kafka and Redis, and back: every supported client keeps every user.

    OFREP's plain server clients keep nothing while rolloutd is down, as the document says.
    """
    file, sync_port = tmp_path / "flags.json", free_port()
    # Markers that other tests left in the shared Redis would refuse this rollout's revisions.
    key_prefix = f"{topic_prefix}flag:"
    daemon = DaemonProcess(
        own_kafka.bootstrap,
        own_redis.url,
        tmp_path,
        prefix=topic_prefix,
        ROLLOUTD_FLAGD_SYNC__PORT=str(sync_port),
        ROLLOUTD_PLANES__REDIS__URL=redis_url,
        ROLLOUTD_PLANES__REDIS__KEY_PREFIX=key_prefix,
        ROLLOUTD_PLANES__FILES__EDGE__PATH=str(file),
    )
    users = [f"user-{number}" for number in range(USERS)]
    async with daemon, Client(own_kafka.bootstrap, topic_prefix) as operator:
        plan = quick_plan(FLAG, stages=AT_HALF)
        await operator.command(CommandVerb.START, FLAG, plan=plan)
        await daemon.until(FLAG, lambda document: document["percent"] == 50)
        by_redis = partial(by_redis_keys, redis_url, key_prefix)
        async with fleet(daemon, sync_port, file, by_redis, users) as clients:
            await clients.until_followed()
            daemon.kill9()
            away_until = time.monotonic() + AWAY_SECONDS
            assert await clients.changed(with_plain=False) == {}
            while time.monotonic() < away_until:
                await asyncio.sleep(0.5)
                assert await clients.changed(with_plain=False) == {}
            # The honest part of the table: without a cache everybody gets the default.
            for name, ask in clients.plain.items():
                assert await ask(users[:50]) == set(), name

            own_kafka.pause()
            own_redis.pause()
            try:
                daemon.spawn()
                await until_answered(daemon)
                assert await clients.changed(with_plain=True) == {}
            finally:
                own_redis.resume()
                own_kafka.resume()
            await daemon.ready()
            assert await clients.changed(with_plain=True) == {}
