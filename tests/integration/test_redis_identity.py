"""A Redis serves one environment, and only a server that keeps what is written."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from controller import bootstrap
from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.identity import EnvironmentIdentity, StoredIdentity
from controller.adapters.redis.rollouts import RedisRollouts
from controller.adapters.redis.server_check import check_server
from controller.deciding.raise_guard import RaiseGuard
from controller.errors import ConfigInvalid, StoreUnavailable
from controller.health import Scope
from controller.running import environment
from controller.settings import Settings
from tests.brokers import RedisServer
from tests.builders import make_rollout

OURS = EnvironmentIdentity("one", "", "production")


def store_url(store: RedisConnection) -> str:
    """Return the address of a store's server."""
    where = store.client.connection_pool.connection_kwargs
    return f"redis://{where['host']}:{where['port']}/0"


async def test_another_kafka_cluster_is_refused(store: RedisConnection) -> None:
    """A prefix belongs to one Kafka cluster.

    Two replicas that start together both find it theirs.
    """
    await asyncio.gather(*(StoredIdentity(store).check(OURS, 1) for _ in range(4)))
    await StoredIdentity(store).check(OURS, 1)
    with pytest.raises(ConfigInvalid, match="belongs to Kafka cluster 'one'"):
        await StoredIdentity(store).check(replace(OURS, cluster_id="two"), 1)


async def test_names_alone_tell_whose_keys_may_be_read(store: RedisConnection) -> None:
    """Without Kafka the cluster is not known; keys without an identity are nobody's."""
    stored = StoredIdentity(store)
    before = await stored.is_of("", ["production"])
    await stored.check(OURS, 1)
    asked = [("", ["production"]), ("", ["prod", "production"]), ("", ["staging"]), ("x.", ["one"])]
    assert [await stored.is_of(*one) for one in asked] == [True, True, False, False]
    assert before is False


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"topic_prefix": "staging."}, "belongs to topic prefix '', not to 'staging.'"),
        ({"environment": "staging"}, "belongs to environment 'production', not to 'staging'"),
        ({"cluster_id": "two"}, "belongs to Kafka cluster 'one', not to 'two'"),
    ],
)
async def test_another_environment_is_refused(
    store: RedisConnection, change: dict[str, Any], why: str
) -> None:
    """A prefix belongs to one environment: cluster, topic prefix and name.

    The message says more.
    """
    await StoredIdentity(store).check(OURS, 1)
    with pytest.raises(ConfigInvalid, match=why) as refusal:
        await StoredIdentity(store).check(replace(OURS, **change), 1)
    assert "set redis.key_prefix" in str(refusal.value)
    await StoredIdentity(store).check(OURS, 1)


async def test_a_former_name_is_taken_over(store: RedisConnection) -> None:
    """An environment that was renamed keeps its data, once its former name is in the settings."""
    await StoredIdentity(store).check(OURS, 1)
    renamed = EnvironmentIdentity("one", "", "live", former_environments=("production",))
    await StoredIdentity(store).check(renamed, 1)
    assert await store.client.hget("rolloutd:identity", "environment") == b"live"
    with pytest.raises(ConfigInvalid, match="former name"):
        await StoredIdentity(store).check(OURS, 1)


async def test_an_identity_of_an_early_release_goes_to_whom_it_can_belong(
    store: RedisConnection,
) -> None:
    """Without names in it, the shared prefix is not given to an environment with a topic prefix."""
    early = {"cluster_id": "one", "epoch": "1", "digest": "x"}
    await store.client.hset("rolloutd:identity", mapping=early)
    staging = EnvironmentIdentity("one", "staging.", "staging")
    with pytest.raises(ConfigInvalid, match="HSET rolloutd:identity topic_prefix"):
        await StoredIdentity(store).check(staging, 1)
    await StoredIdentity(store).check(OURS, 1)
    with pytest.raises(ConfigInvalid, match="topic prefix ''"):
        await StoredIdentity(store).check(staging, 1)
    own = RedisConnection.connect(store_url(store), prefix="staging:")
    await own.client.hset("staging:identity", mapping=early)
    await StoredIdentity(own).check(staging, 1)
    assert await own.client.hget("staging:identity", "topic_prefix") == b"staging."
    await own.close()


async def test_a_damaged_identity_is_named(store: RedisConnection) -> None:
    """An epoch that is no number is the operator's to fix, and not an exception of ours."""
    await store.client.hset("rolloutd:identity", mapping={"cluster_id": "one", "epoch": "x"})
    with pytest.raises(ConfigInvalid, match="damaged"):
        await StoredIdentity(store).check(OURS, 1)


async def test_nothing_is_decided_on_a_redis_that_became_another(store: RedisConnection) -> None:
    """While the identity is another's, calls are refused unsent.

    When it is ours again, they go on.
    """
    rollouts = RedisRollouts(store)
    await StoredIdentity(store).check(OURS, 1)
    assert await StoredIdentity(store).recheck(OURS, 1) is None
    await store.client.hset("rolloutd:identity", "environment", "staging")
    why = await StoredIdentity(store).recheck(OURS, 1)
    assert why is not None
    assert "belongs to environment 'staging'" in why
    with pytest.raises(StoreUnavailable, match="belongs to environment 'staging'"):
        await rollouts.save("f", expected_token=0, rollout=make_rollout())
    assert await store.client.exists("rolloutd:ro:{f}", "rolloutd:flags") == 0
    await store.client.hset("rolloutd:identity", "environment", "production")
    assert await StoredIdentity(store).recheck(OURS, 1) is None
    assert await rollouts.save("f", expected_token=0, rollout=make_rollout())


async def watching_daemon(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> tuple[bootstrap.Daemon, asyncio.Task[None]]:
    """Return a daemon, and its task that checks its own Redis again and again."""
    monkeypatch.setattr(environment, "IDENTITY_SECONDS", 0.02)
    daemon = bootstrap.Daemon(Settings.model_validate({"redis": {"url": own_redis.url}}))
    daemon.oversight.environment._identity = OURS
    await StoredIdentity(daemon.connections.redis).check(OURS, 1)
    return daemon, asyncio.create_task(daemon.oversight.environment.run())


async def test_a_running_daemon_notices_that_redis_became_another(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a fault with what to do, nothing is decided meanwhile, and it passes by itself."""
    daemon, watching = await watching_daemon(own_redis, monkeypatch)
    store = daemon.connections.redis

    async def fault(*, expected: bool) -> None:
        async with asyncio.timeout(60):
            while (daemon.faults.of(Scope.DEPENDENCY, "redis_identity") is not None) != expected:
                await asyncio.sleep(0.01)

    for name, other in (("environment", "staging"), ("cluster_id", "two"), ("topic_prefix", "x.")):
        ours = await store.client.hget("rolloutd:identity", name)
        await store.client.hset("rolloutd:identity", name, other)
        await fault(expected=True)
        with pytest.raises(StoreUnavailable, match="belongs to"):
            await RedisRollouts(store).load("f")
        await store.client.hset("rolloutd:identity", name, ours)
        await fault(expected=False)
        assert (await RedisRollouts(store).load("f")).rollout is None
    own_redis.kill9()
    await asyncio.sleep(0.2)
    assert not watching.done(), "an outage is not the end of it"
    watching.cancel()
    await store.close()


async def test_a_running_daemon_notices_that_redis_would_drop_keys(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that was set after the start is a fault, until it is corrected."""
    daemon, watching = await watching_daemon(own_redis, monkeypatch)
    store = daemon.connections.redis

    async def fault(words: str) -> None:
        async with asyncio.timeout(60):
            while words not in str(daemon.faults.of(Scope.DEPENDENCY, environment.REDIS_SETTINGS)):
                await asyncio.sleep(0.01)

    await store.client.config_set("maxmemory", "100mb")
    await store.client.config_set("maxmemory-policy", "allkeys-lru")
    await fault("has maxmemory-policy allkeys-lru")
    await store.client.config_set("maxmemory-policy", "noeviction")
    await fault("None")
    assert not watching.done()
    watching.cancel()
    await store.close()


async def test_a_running_daemon_notices_that_others_have_a_newer_epoch(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises nothing: it sees only the events that it counts itself. Lowering goes on."""
    monkeypatch.setattr(environment, "IDENTITY_SECONDS", 0.02)
    daemon = bootstrap.Daemon(Settings.model_validate({"redis": {"url": own_redis.url}}))
    daemon.oversight.environment._identity = OURS
    store = daemon.connections.redis
    await StoredIdentity(store).check(OURS, 1)
    watching = asyncio.create_task(daemon.oversight.environment.run())
    heard = SimpleNamespace(silent_seconds=0.0, why_not=lambda: None)
    guard = RaiseGuard(heard, heard, daemon.faults, session_timeout_seconds=10.0)

    async def until(words: str) -> None:
        async with asyncio.timeout(60):
            while words not in str(daemon.faults.of(Scope.DEPENDENCY, "topic_epoch")):
                await asyncio.sleep(0.01)

    await StoredIdentity(store).check(OURS, 2)
    await until("count under topic epoch 2 and this one under 1")
    assert "topic epoch 2" in str(guard.why_not())
    assert await daemon.oversight.environment.why_not_ours() is None
    await store.client.hset("rolloutd:identity", "epoch", "1")
    await until("None")
    assert guard.why_not() is None
    watching.cancel()
    await store.close()


async def test_an_emptied_redis_is_claimed_again(store: RedisConnection) -> None:
    """A Redis that lost everything is still ours: the identity is written again."""
    await StoredIdentity(store).check(OURS, 1)
    await store.client.flushall()
    assert await StoredIdentity(store).recheck(OURS, 1) is None
    assert await store.client.hget("rolloutd:identity", "environment") == b"production"


async def test_data_under_the_prefix_of_early_releases_is_noticed(store: RedisConnection) -> None:
    """Who comes with a prefix of its own and finds data that names nobody is told of it."""
    own = RedisConnection.connect(store_url(store), prefix="rolloutd:staging:")
    assert not await StoredIdentity(own).has_shared_data()
    await store.client.hset("rolloutd:identity", mapping={"cluster_id": "one", "epoch": "1"})
    assert await StoredIdentity(own).has_shared_data()
    await StoredIdentity(own).check(EnvironmentIdentity("one", "", "staging"), 1)
    assert not await StoredIdentity(own).has_shared_data()
    await own.close()


async def test_an_epoch_rises_and_never_falls(store: RedisConnection) -> None:
    """A greater epoch is an operator's new count; a smaller one is an old configuration."""
    await StoredIdentity(store).check(OURS, 1)
    await StoredIdentity(store).check(OURS, 3)
    with pytest.raises(ConfigInvalid, match="out of date"):
        await StoredIdentity(store).check(OURS, 2)
    await StoredIdentity(store).check(OURS, 3)


async def test_a_server_that_evicts_is_refused(store: RedisConnection) -> None:
    """A server that may drop keys when memory is short is refused at start.

    With the setting to fix.
    """
    assert list(await check_server(store)) == []
    await store.client.config_set("maxmemory-policy", "allkeys-lru")
    assert list(await check_server(store)) == []  # no limit set, nothing is ever evicted
    await store.client.config_set("maxmemory", "1gb")
    with pytest.raises(ConfigInvalid, match="noeviction"):
        await check_server(store)


async def test_a_server_without_a_file_is_named() -> None:
    """A server that forgets on restart is usable, and the operator is told what that costs."""
    with RedisServer(appendonly=False) as server:
        store = RedisConnection.connect(server.url)
        (warning,) = await check_server(store)
        assert "no append-only file" in warning
        await store.close()


@pytest.mark.parametrize("prefix", ["", "with space", "with{brace}", "x" * 65])
def test_a_prefix_that_would_break_keys_is_refused(prefix: str) -> None:
    """A prefix is made of plain characters: braces would move every key into one slot."""
    with pytest.raises(ConfigInvalid, match="prefix"):
        RedisConnection.connect("redis://127.0.0.1:6379/0", prefix=prefix)


def test_an_address_that_is_none_is_refused() -> None:
    """A Redis address that cannot be used is the operator's to fix."""
    with pytest.raises(ConfigInvalid, match="address"):
        RedisConnection.connect("http://127.0.0.1:6379")
