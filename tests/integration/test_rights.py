"""The rights that ops/security.md lists are enough, and each of them is needed.

On a real Redis and a real Kafka.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import re
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis.asyncio
import yaml

from controller.adapters.redis.claims import RedisClaims
from controller.adapters.redis.connection import RedisConnection, RightMissing
from controller.adapters.redis.flag_uses import RedisFlagUses
from controller.adapters.redis.identity import EnvironmentIdentity, StoredIdentity
from controller.adapters.redis.plane import RedisPlane
from controller.adapters.redis.relay import RedisRelay
from controller.adapters.redis.reports import RedisReports
from controller.adapters.redis.rollouts import RedisRollouts
from controller.adapters.redis.server_check import check_server
from controller.adapters.redis.sign_outs import RedisSignOuts
from controller.adapters.redis.totals import RedisTotals
from controller.deciding.flag.flag_inbox import NewTotals
from controller.errors import FlagPlaneUnavailable, StoreUnavailable
from controller.health import Scope
from controller.ports import CourseKey, OutboxEntry, Use
from schemas.terms import UseKind
from schemas.totals import PartitionCounts, encode_progress
from tests.brokers import RedisServer, free_port, redis_binary
from tests.builders import make_rollout
from tests.unit.deciding.worker_world import WATCHED, World, start

GUIDE = (Path(__file__).parents[2] / "ops" / "security.md").read_text(encoding="utf-8")
PARTITION = "flag.evaluations/3/1"
FIELDS = encode_progress(PartitionCounts(end=5, counted=5))
COURSE = CourseKey("start-1", 0)
USE = Use(UseKind.TREATMENT, "f")
IDENTITY = EnvironmentIdentity("one", "", "production")

Call = Callable[[RedisConnection, RedisTotals, RedisRollouts], Awaitable[object]]


def rules_of(user: str) -> list[str]:
    """Return what the guide gives a Redis user, word by word, with a password of the test's."""
    lines = re.findall(rf"^ACL SETUSER {user} (.*)$", GUIDE, flags=re.MULTILINE)
    return shlex.split(" ".join(lines).replace(">PASSWORD", ">secret").replace("{*", "'{'*"))


async def grant(server: RedisServer, user: str, rules: list[str]) -> None:
    """Make a user with these rights and no others."""
    admin: Any = redis.asyncio.Redis.from_url(server.url)
    await admin.execute_command("ACL", "SETUSER", user, "reset", *rules)
    await admin.aclose()


def url_of(server: RedisServer, user: str) -> str:
    """Return the server's address for a user."""
    return server.url.replace("redis://", f"redis://{user}:secret@").removesuffix("/0") + "/1"


@pytest.fixture
async def store(own_redis: RedisServer) -> AsyncIterator[RedisConnection]:
    """A store that comes as the guide's user."""
    await grant(own_redis, "rolloutd", rules_of("rolloutd"))
    store = RedisConnection.connect(url_of(own_redis, "rolloutd"))
    yield store
    await store.close()


def entry(number: int) -> OutboxEntry:
    """Return an effect."""
    return OutboxEntry(f"outbox:{number}", "f/1/0", "decisions", "f", b"{}")


async def prune(store: RedisConnection, totals: RedisTotals, rollouts: RedisRollouts) -> None:
    """Leave out old answers, as every some saves do."""
    await rollouts._prune_answers("f")


def reports(store: RedisConnection) -> RedisReports:
    """Return the reports in this store."""
    return RedisReports(store, keep_seconds=60)


#: Every call there is, in an order in which each can work, by the name of what is called.
CALLS: dict[str, Call] = {
    "check_server": lambda store, totals, rollouts: check_server(store),
    "identity.check": lambda store, totals, rollouts: StoredIdentity(store).check(IDENTITY, 1),
    "identity.recheck": lambda store, totals, rollouts: StoredIdentity(store).recheck(IDENTITY, 1),
    "identity.is_of": lambda store, totals, rollouts: StoredIdentity(store).is_of("", ["one"]),
    "identity.environment_at": lambda store, totals, rollouts: StoredIdentity(store).environment_at(
        "rolloutd:"
    ),
    "identity.has_shared_data": lambda store, totals, rollouts: StoredIdentity(
        store
    ).has_shared_data(),
    "totals.save": lambda store, totals, rollouts: totals.save(
        PARTITION, expected=None, next_offset=5, fields=FIELDS
    ),
    "totals.load": lambda store, totals, rollouts: totals.load(PARTITION),
    "totals.read": lambda store, totals, rollouts: totals.read(
        [PARTITION], {"f": ("start-1", [0])}
    ),
    "totals.heads": lambda store, totals, rollouts: totals.heads([PARTITION]),
    "totals.drop": lambda store, totals, rollouts: totals.drop(PARTITION, ["gone"]),
    "rollouts.save": lambda store, totals, rollouts: rollouts.save(
        "f", expected_token=0, rollout=make_rollout(), outbox=[entry(0)], answer=("c", b"y")
    ),
    "rollouts.load": lambda store, totals, rollouts: rollouts.load("f"),
    "rollouts.answer_to": lambda store, totals, rollouts: rollouts.answer_to("f", "c"),
    "rollouts.remove_effects": lambda store, totals, rollouts: rollouts.remove_effects(
        "f", ["outbox:0"]
    ),
    "rollouts.flag_keys": lambda store, totals, rollouts: rollouts.flag_keys(),
    "rollouts.newer_than": lambda store, totals, rollouts: rollouts.newer_than({}),
    "rollouts.prune": prune,
    "ask_time": lambda store, totals, rollouts: store.ask_time(),
    "claims.claim": lambda store, totals, rollouts: RedisClaims(store).claim({3: b"1 a"}),
    "claims.claims": lambda store, totals, rollouts: RedisClaims(store).claims(),
    "claims.drop_claims": lambda store, totals, rollouts: RedisClaims(store).drop_claims([3]),
    "relay.write": lambda store, totals, rollouts: RedisRelay(store).write({"f": 3}),
    "relay.read": lambda store, totals, rollouts: RedisRelay(store).read(),
    "relay.drop": lambda store, totals, rollouts: RedisRelay(store).drop(["f"]),
    "sign_outs.write": lambda store, totals, rollouts: RedisSignOuts(store).write({"a": 3}),
    "sign_outs.read": lambda store, totals, rollouts: RedisSignOuts(store).read(),
    "sign_outs.drop": lambda store, totals, rollouts: RedisSignOuts(store).drop(["a"]),
    "reports.write": lambda store, totals, rollouts: reports(store).write(
        "f", b"{}", COURSE, {9: b"a"}, [8]
    ),
    "reports.read": lambda store, totals, rollouts: reports(store).read("f"),
    "reports.course": lambda store, totals, rollouts: reports(store).course("f", COURSE),
    "reports.append_news": lambda store, totals, rollouts: reports(store).append_news(
        "f", "alerts", [b"{}"]
    ),
    "reports.news": lambda store, totals, rollouts: reports(store).news("f", "alerts"),
    "reports.discard": lambda store, totals, rollouts: reports(store).discard("f", [COURSE]),
    "uses.add": lambda store, totals, rollouts: RedisFlagUses(store).add(
        9, {USE: 1}, writer="a", number=1
    ),
    "uses.hour": lambda store, totals, rollouts: RedisFlagUses(store).hour(9),
    "uses.write_notes": lambda store, totals, rollouts: RedisFlagUses(store).write_notes(
        {USE: b"9"}
    ),
    "uses.notes": lambda store, totals, rollouts: RedisFlagUses(store).notes(),
    "uses.drop_notes": lambda store, totals, rollouts: RedisFlagUses(store).drop_notes([USE]),
    "totals.discard": lambda store, totals, rollouts: totals.discard(PARTITION),
    "rollouts.bury": lambda store, totals, rollouts: rollouts.bury(
        "f", expected_token=1, revision=1
    ),
    "rollouts.unlist": lambda store, totals, rollouts: rollouts.unlist("g"),
    "rollouts.discard": lambda store, totals, rollouts: rollouts.discard("f"),
}


def test_every_call_is_tried() -> None:
    """A call that is added to the adapters is tried with the guide's rights too."""
    adapters = {
        "totals": RedisTotals,
        "rollouts": RedisRollouts,
        "identity": StoredIdentity,
        "claims": RedisClaims,
        "relay": RedisRelay,
        "sign_outs": RedisSignOuts,
        "reports": RedisReports,
        "uses": RedisFlagUses,
    }
    calls = {"check_server", "ask_time"}
    for prefix, adapter in adapters.items():
        methods = inspect.getmembers(adapter, inspect.iscoroutinefunction)
        calls |= {f"{prefix}.{name}" for name, _ in methods if not name.startswith("_")}
    assert calls - CALLS.keys() == set(), "give these calls their place in CALLS"


def count_as_idle(store: RedisConnection) -> None:
    """Let the next call begin with a check that the connection still works, by PING."""
    for connection in store.client.connection_pool._available_connections:
        connection.next_health_check = 0


async def test_the_listed_rights_are_enough(store: RedisConnection) -> None:
    """Every call works with the guide's rights, without a warning."""
    totals, rollouts = RedisTotals(store), RedisRollouts(store)
    assert list(await check_server(store)) == []
    for name, call in CALLS.items():
        count_as_idle(store)
        try:
            await call(store, totals, rollouts)
        except StoreUnavailable as trouble:
            pytest.fail(f"{name}: {trouble}")


async def test_the_listed_rights_reach_nothing_else(store: RedisConnection) -> None:
    """Other keys, other commands and other users are out of reach."""
    for words in (
        ("GET", "flag:new-checkout"),
        ("HSET", "rolloutd:staging:identity", "environment", "x"),
        ("DEL", "rolloutd:identity"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("SCRIPT", "FLUSH"),
        ("PUBLISH", "a", "b"),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            await store.client.execute_command(*words)


NEEDED = [word for word in rules_of("rolloutd") if word.startswith("+")]
#: Rights that redis-py can do without, or that another stands in for.
SOFT = {"+client|setinfo", "+evalsha"}


@pytest.mark.parametrize("right", [right for right in NEEDED if right not in SOFT])
async def test_each_listed_right_is_needed_and_named(own_redis: RedisServer, right: str) -> None:
    """Without any one of them some call fails, in words that name the command."""
    rules = [word for word in rules_of("rolloutd") if word != right]
    await grant(own_redis, "rolloutd", rules)
    store = RedisConnection.connect(url_of(own_redis, "rolloutd"), deadline_seconds=5.0)
    totals, rollouts = RedisTotals(store), RedisRollouts(store)
    said: list[str] = list(await warnings_of(store))
    for call in CALLS.values():
        count_as_idle(store)
        try:
            await call(store, totals, rollouts)
        except StoreUnavailable as trouble:
            said.append(str(trouble))
    await store.close()
    command = right.removeprefix("+")
    if command in (
        "hset",
        "hmget",
    ):  # the script's own command: Redis says which script, not which command
        assert any("permission" in words for words in said), said
    else:
        assert any(command in words.lower() for words in said), said


async def warnings_of(store: RedisConnection) -> list[str]:
    """Return what `check_server` warns of; nothing when it fails."""
    try:
        return list(await check_server(store))
    except StoreUnavailable:
        return []


async def test_a_start_without_info_goes_on_with_a_warning(own_redis: RedisServer) -> None:
    """INFO is a dangerous command to some: without it the start says what to check by hand."""
    await grant(own_redis, "rolloutd", [word for word in rules_of("rolloutd") if word != "+info"])
    store = RedisConnection.connect(url_of(own_redis, "rolloutd"))
    (warning,) = await check_server(store)
    assert "'info' command" in warning
    assert "noeviction" in warning
    await store.close()


async def test_a_missing_right_is_told_from_an_outage(own_redis: RedisServer) -> None:
    """It is not tried again for a second first: nobody grants a right that fast."""
    await grant(
        own_redis, "rolloutd", ["on", ">secret", "~*", "+ping", "+select", "+client|setname"]
    )
    store = RedisConnection.connect(url_of(own_redis, "rolloutd"), deadline_seconds=5)
    with pytest.raises(RightMissing, match=r"'hgetall' command.*ops/security\.md"):
        await StoredIdentity(store).check(IDENTITY, 1)
    await store.close()


async def test_a_right_to_save_that_a_running_worker_loses_is_a_fault(
    own_redis: RedisServer,
) -> None:
    """Everything else of Redis works: the flag says so, and goes on once the right is back."""
    rules = rules_of("rolloutd")
    await grant(own_redis, "rolloutd", rules)
    store = RedisConnection.connect(url_of(own_redis, "rolloutd"), deadline_seconds=0.5)
    world = World()
    async with world.worker(rollouts=RedisRollouts(store)) as worker:
        await worker.submit(start(WATCHED, issued_at=world.clock.now()))
        assert worker.rollout is not None

        async def until(*, failing: bool) -> None:
            async with asyncio.timeout(60):
                while (world.faults.of(Scope.FLAG, worker.flag_key) is not None) != failing:
                    assert worker.rollout is not None
                    totals = NewTotals(worker.rollout.rollout_id, world.evidence(worker.rollout))
                    worker.inbox.put_totals(totals)
                    await asyncio.sleep(0.5)

        read_only = ["%R~rolloutd:ro:{*" if word == "~rolloutd:ro:{*" else word for word in rules]
        assert read_only != rules
        await grant(own_redis, "rolloutd", read_only)
        await until(failing=True)
        assert "its state has not been saved for" in (worker.unsaved or "")
        handled_at = worker.handled_at
        await grant(own_redis, "rolloutd", rules)
        await until(failing=False)
        assert worker.unsaved is None
        await asyncio.sleep(0.5)
        assert (worker.handled_at or 0) > (handled_at or 0)
    await store.close()


async def test_the_planes_rights_are_enough(own_redis: RedisServer) -> None:
    """The plane for simple readers works with its rights, and cannot touch rolloutd's own keys."""
    await grant(own_redis, "flags", rules_of("flags"))
    plane = RedisPlane(url_of(own_redis, "flags"))
    rollout = make_rollout()
    await plane.look(rollout)
    await plane.serve(rollout)
    assert (await plane.look(rollout)).percent == rollout.percent
    await plane.close()
    outside = RedisPlane(url_of(own_redis, "flags"), key_prefix="rolloutd:")
    with pytest.raises(FlagPlaneUnavailable, match=r"(?i)permissions"):
        await outside.look(rollout)
    await outside.close()


async def test_composes_redis_comes_up_with_its_users(tmp_path: Path) -> None:
    """The script in docker-compose.yml makes the users that it means to, whatever the password."""
    compose = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text())
    service = compose["services"]["redis"]
    port = free_port()
    script = (
        service["command"][-1]
        .replace("$$", "$")
        .replace("/tmp/", f"{tmp_path}/")
        .replace(
            "exec redis-server",
            f"exec {redis_binary()} --port {port} --dir {tmp_path} --bind 127.0.0.1",
        )
    )
    environ = {**os.environ, "REDIS_PASSWORD": "p%s/w\\n'd"}
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "sh", "-ec", script, env=environ, stdout=log, stderr=log
        )
    try:
        probe = redis.asyncio.Redis(port=port, username="probe", password="none", protocol=2)
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(redis.exceptions.ConnectionError):
                    assert await probe.ping()
                    break
                await asyncio.sleep(0.05)
        with pytest.raises(redis.exceptions.NoPermissionError):
            await probe.get("rolloutd:identity")
        await probe.aclose()
        stranger = redis.asyncio.Redis(port=port, protocol=2)
        with pytest.raises(redis.exceptions.AuthenticationError):
            await stranger.ping()
        await stranger.aclose()
        password = quote("p%s/w\\n'd", safe="")
        store = RedisConnection.connect(f"redis://rolloutd:{password}@127.0.0.1:{port}/0")
        assert list(await check_server(store)) == []
        await StoredIdentity(store).check(IDENTITY, 1)
        await store.close()
    finally:
        process.kill()
        await process.wait()
