from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import redis.asyncio
import redis.exceptions

from controller import bootstrap
from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.identity import Identity, StoredIdentity
from controller.adapters.redis.rollouts import ANSWERS_KEPT, ANSWERS_PRUNED_EVERY, RedisRollouts
from controller.adapters.redis.server_check import check_server
from controller.adapters.redis.totals import RedisTotals
from controller.codec.outbox import outbox_entry
from controller.errors import BrokenInvariant, ConfigInvalid, DocumentUnreadable, StoreUnavailable
from controller.health import Scope
from controller.ports import OutboxEntry, StoredRollout
from controller.running import environment
from controller.settings import Settings
from schemas.terms import Arm
from schemas.totals import (
    FORMAT,
    MAX_FIELDS_PER_SAVE,
    ArmCounts,
    PartitionCounts,
    arm_field,
    encode_arm,
    encode_progress,
)
from tests.brokers import RedisServer
from tests.builders import T0, make_rollout

OURS = Identity("one", "", "production")
KEY = "flag.evaluations/3/1"
HASH = "rolloutd:agg:{flag.evaluations/3/1}"
FIELD = arm_field("new-checkout", "start-1", 0, Arm.TREATMENT)


def fields(exposures: int) -> dict[str, bytes]:
    """Return what ingest saves after so many evaluations, one exposure each."""
    return {
        **encode_progress(PartitionCounts(end=exposures, counted=exposures)),
        FIELD: encode_arm(ArmCounts(exposures=exposures)),
    }


def store_url(store: RedisConnection) -> str:
    """Return the address of a store's server."""
    where = store.client.connection_pool.connection_kwargs
    return f"redis://{where['host']}:{where['port']}/0"


@pytest.fixture
async def store(own_redis: RedisServer) -> AsyncIterator[RedisConnection]:
    """A store on a server of the test's own, impatient: a try takes 150 ms, a call 600 ms."""
    store = RedisConnection.connect(own_redis.url, try_seconds=0.15, deadline_seconds=0.6)
    yield store
    await store.close()


@dataclass
class ReplyThief:
    """A TCP proxy before Redis that can keep replies to itself and count what was asked."""

    target_port: int
    port: int = 0
    steals: int = 0  # so many next replies are dropped, together with their connection
    asked: int = 0  # saves seen
    relays: set[asyncio.Task[None]] = field(default_factory=set)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a new connection."""
        self.relays.add(asyncio.ensure_future(self.relay(reader, writer)))

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side ends it, or a reply is stolen."""
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target_port)

        async def forward() -> None:
            while request := await reader.read(65536):
                self.asked += b"EVALSHA" in request or b"$4\r\nEVAL\r\n" in request
                up_writer.write(request)
                await up_writer.drain()

        async def backward() -> None:
            while reply := await up_reader.read(65536):
                if self.steals and reply.startswith(
                    (b"*1\r\n:1", b"*2\r\n:0")
                ):  # an answer of our script
                    self.steals -= 1
                    return
                writer.write(reply)
                await writer.drain()

        ways = [asyncio.ensure_future(forward()), asyncio.ensure_future(backward())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (writer, up_writer):
                each.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


@pytest.fixture
async def thief(own_redis: RedisServer) -> AsyncIterator[ReplyThief]:
    """A reply thief before the test's own Redis."""
    thief = ReplyThief(own_redis.port)
    server = await asyncio.start_server(thief.accept, "127.0.0.1", 0)
    thief.port = server.sockets[0].getsockname()[1]
    yield thief
    server.close()
    for relay in thief.relays:
        relay.cancel()
    await asyncio.gather(*thief.relays, return_exceptions=True)
    await server.wait_closed()


# --- unknown outcomes
# --------------------------------------------------------------------------------------------------


async def test_a_lost_reply_counts_once(thief: ReplyThief) -> None:
    """A save whose reply is lost is sent again by us, within the deadline, and is counted once."""
    store = RedisConnection.connect(f"redis://127.0.0.1:{thief.port}/0", deadline_seconds=2.0)
    totals = RedisTotals(store)
    assert await totals.save(KEY, expected=None, next_offset=5, fields=fields(5)) is None
    thief.steals, before = 2, thief.asked
    assert await totals.save(KEY, expected=5, next_offset=9, fields=fields(9)) is None
    assert thief.steals == 0
    assert thief.asked - before == 3
    stored = await totals.load(KEY)
    assert (stored.next_offset, dict(stored.fields)) == (9, fields(9))
    await store.close()


async def test_the_client_repeats_nothing_by_itself(thief: ReplyThief) -> None:
    """A lost reply is an error to us after one sending.

    What is repeated, and when, is ours to say.
    """
    store = RedisConnection.connect(f"redis://127.0.0.1:{thief.port}/0")
    thief.steals = 1
    with pytest.raises(redis.exceptions.ConnectionError):
        await store.client.eval("return {1}", 0)
    assert (thief.steals, thief.asked) == (0, 1)
    await store.close()


async def test_a_lost_reply_does_not_hide_that_another_won(thief: ReplyThief) -> None:
    """A compare-and-set whose reply is lost is known to have won.

    And one that lost is known to have lost.
    """
    store = RedisConnection.connect(f"redis://127.0.0.1:{thief.port}/0", deadline_seconds=2.0)
    rollouts = RedisRollouts(store)
    thief.steals = 1
    assert await rollouts.save("f", expected_token=0, tests=b"first")
    thief.steals = 1
    assert not await rollouts.save("f", expected_token=0, tests=b"second")
    assert (await rollouts.load("f")).tests == b"first"
    await store.close()


async def test_a_save_that_timed_out_and_runs_later_counts_once(
    store: RedisConnection, own_redis: RedisServer
) -> None:
    """A save given up on is carried out when Redis wakes.

    Repeated by us it is done once, and a different one is refused.
    """
    totals = RedisTotals(store)
    assert await totals.save(KEY, expected=None, next_offset=5, fields=fields(5)) is None
    own_redis.pause()
    with pytest.raises(StoreUnavailable, match=r"within 0\.6 s"):
        await totals.save(KEY, expected=5, next_offset=9, fields=fields(9))
    own_redis.resume()
    assert await totals.save(KEY, expected=5, next_offset=7, fields=fields(7)) == 9
    assert await totals.save(KEY, expected=5, next_offset=9, fields=fields(9)) is None
    stored = await totals.load(KEY)
    assert (stored.next_offset, dict(stored.fields)) == (9, fields(9))


async def test_a_late_run_behind_a_newer_save_changes_nothing(
    store: RedisConnection, own_redis: RedisServer
) -> None:
    """A save that is carried out after its successor's meets a moved fence."""
    totals = RedisTotals(store)
    assert await totals.save(KEY, expected=None, next_offset=5, fields=fields(5)) is None
    assert await totals.save(KEY, expected=5, next_offset=9, fields=fields(9)) is None
    assert await totals.save(KEY, expected=9, next_offset=12, fields=fields(12)) is None
    assert await totals.save(KEY, expected=5, next_offset=9, fields=fields(9)) == 12
    assert dict((await totals.load(KEY)).fields) == fields(12)


# --- a server in trouble
# --------------------------------------------------------------------------------------------------


async def test_a_server_that_is_away_is_trouble_in_time(
    own_redis: RedisServer, store: RedisConnection
) -> None:
    """Without a server every call ends by its deadline, as StoreUnavailable.

    With it back the same call works.
    """
    totals, rollouts = RedisTotals(store), RedisRollouts(store)
    own_redis.kill9()
    for call in (
        lambda: totals.save(KEY, expected=None, next_offset=5, fields=fields(5)),
        lambda: totals.read([KEY], {}),
        lambda: rollouts.save("f", expected_token=0, tests=b"x"),
        lambda: rollouts.load("f"),
    ):
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await call()
        assert time.monotonic() - began < 20  # the deadline is 0.6 s
    own_redis.start()
    assert await totals.save(KEY, expected=None, next_offset=5, fields=fields(5)) is None


async def test_a_restart_within_the_deadline_goes_unnoticed(own_redis: RedisServer) -> None:
    """A call meets a server that starts up, and is carried out when it is there.

    Scripts are loaded anew, data are.
    """
    store = RedisConnection.connect(own_redis.url, deadline_seconds=10)
    totals = RedisTotals(store)
    assert await totals.save(KEY, expected=None, next_offset=5, fields=fields(5)) is None
    own_redis.kill9()
    saving = asyncio.create_task(totals.save(KEY, expected=5, next_offset=9, fields=fields(9)))
    await asyncio.to_thread(own_redis.start)
    assert await saving is None
    assert (await totals.load(KEY)).next_offset == 9
    await store.close()


async def test_out_of_memory_refuses_before_anything_is_written(
    store: RedisConnection, own_redis: RedisServer
) -> None:
    """A server out of memory refuses the script whole and at once.

    When there is memory again the same save works.
    """
    patient = RedisConnection.connect(own_redis.url, deadline_seconds=60)
    totals = RedisTotals(patient)
    await totals.save(KEY, expected=None, next_offset=5, fields=fields(5))
    await store.client.config_set("maxmemory", "1")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="maxmemory"):
        await totals.save(KEY, expected=5, next_offset=9, fields=fields(9))
    assert time.monotonic() - began < 30, "it was retried until its deadline"
    stored = await totals.load(KEY)
    assert (stored.next_offset, dict(stored.fields)) == (5, fields(5))
    await store.client.config_set("maxmemory", "0")
    assert await totals.save(KEY, expected=5, next_offset=9, fields=fields(9)) is None
    await patient.close()


async def test_a_replica_is_trouble_and_passes(
    store: RedisConnection, own_redis: RedisServer
) -> None:
    """A former primary refuses writes.

    It is tried until it is primary again or the deadline is over.
    """
    totals = RedisTotals(store)
    await totals.save(KEY, expected=None, next_offset=5, fields=fields(5))
    await store.client.config_set("replica-serve-stale-data", "yes")
    await store.client.replicaof("127.0.0.1", 1)
    with pytest.raises(StoreUnavailable, match="read only replica"):
        await totals.save(KEY, expected=5, next_offset=9, fields=fields(9))
    saving = asyncio.create_task(totals.save(KEY, expected=5, next_offset=9, fields=fields(9)))
    await asyncio.sleep(0)
    await store.client.replicaof("NO", "ONE")
    assert await saving is None


async def test_a_forgotten_script_is_sent_again(store: RedisConnection) -> None:
    """A server that has lost its scripts gets ours again with the same call."""
    totals = RedisTotals(store)
    await totals.save(KEY, expected=None, next_offset=5, fields=fields(5))
    await store.client.script_flush()
    assert await totals.save(KEY, expected=5, next_offset=9, fields=fields(9)) is None


async def test_a_foreign_key_under_our_name_is_a_broken_invariant(store: RedisConnection) -> None:
    """A key that is no hash.

    Or a hash that is not ours or of a newer release, stops the worker and is not overwritten.
    """
    totals = RedisTotals(store)
    await store.client.set(HASH, "not a hash")
    with pytest.raises(BrokenInvariant, match="WRONGTYPE"):
        await totals.save(KEY, expected=None, next_offset=5, fields=fields(5))
    with pytest.raises(BrokenInvariant, match="WRONGTYPE"):
        await totals.load(KEY)
    await store.client.delete(HASH)
    await store.client.hset(HASH, "next", "5")
    with pytest.raises(BrokenInvariant, match="not written by rolloutd"):
        await totals.load(KEY)
    await store.client.hset(HASH, mapping={"format": str(FORMAT + 1), **fields(5)})
    with pytest.raises(BrokenInvariant, match="upgrade"):
        await totals.load(KEY)
    assert await totals.read([KEY], {}) == ({}, [])  # which costs nobody else anything
    await store.client.hset(HASH, "format", "1")
    assert (await totals.load(KEY)).next_offset == 5  # what an earlier rolloutd has written is read


async def test_an_unreadable_document_stops_its_flag_only(store: RedisConnection) -> None:
    """A damaged rollout document is never guessed at, and the other flags are read as ever."""
    rollouts = RedisRollouts(store)
    await rollouts.save("good", expected_token=0, rollout=make_rollout())
    await rollouts.save("bad", expected_token=0, rollout=make_rollout())
    await store.client.hset("rolloutd:ro:{bad}", "document", "{")
    stored = await rollouts.load("bad")
    assert stored.rollout is None
    assert "not JSON" in stored.trouble
    assert (await rollouts.load("good")).rollout == make_rollout()


async def test_a_cancelled_call_leaves_the_next_one_its_own_answer(store: RedisConnection) -> None:
    """Cancelling a call at any moment never gives its answer to another one."""
    totals = RedisTotals(store)
    await totals.save(KEY, expected=None, next_offset=5, fields=fields(5))
    for turn in range(60):
        task = asyncio.create_task(totals.load(f"never/{turn}/1"))
        for _ in range(turn % 12):
            await asyncio.sleep(0)
        task.cancel()
        assert (await totals.load(KEY)).next_offset == 5
        with contextlib.suppress(asyncio.CancelledError):
            await task


# --- what is written
# --------------------------------------------------------------------------------------------------


async def test_the_file_holds_no_transaction(
    store: RedisConnection, own_redis: RedisServer
) -> None:
    """Whatever we save reaches the append-only file as single commands.

    No MULTI that a torn tail could keep a part of.
    """
    totals, rollouts = RedisTotals(store), RedisRollouts(store)
    await StoredIdentity(store).check(OURS, 1)
    await totals.save(KEY, expected=None, next_offset=5, fields=fields(5))
    await totals.save(KEY, expected=5, next_offset=5, fields=fields(5))
    await totals.drop(KEY, [FIELD])
    effect = OutboxEntry("outbox:0", "f/1/0", "decisions", "f", b"{}")
    await rollouts.save(
        "f",
        expected_token=0,
        rollout=make_rollout(),
        tests=b"x",
        outbox=[effect],
        answer=("c", b"y"),
    )
    await rollouts.settle("f", ["outbox:0"])
    own_redis.terminate()
    written = own_redis.aof_tail().read_bytes().upper()
    assert written.count(b"\r\nHSET\r\n") == 4
    assert b"\r\nMULTI\r\n" not in written
    own_redis.start()


async def test_an_operator_can_read_the_hash(store: RedisConnection) -> None:
    """What stands in Redis reads without a manual."""
    totals = RedisTotals(store)
    arm = ArmCounts(
        evaluations=812, exposures=400, errors=3, converted={"signup": 7}, latency={231: 17, 240: 3}
    )
    saved = {
        **encode_progress(
            PartitionCounts(start=2, end=900, freshest_ms=5, reported_at_ms=6, counted=812)
        )
    }
    await totals.save(KEY, expected=None, next_offset=814, fields={**saved, FIELD: encode_arm(arm)})
    stored = await store.client.hgetall(HASH)
    del stored[b"digest"]
    assert stored == {
        b"next": b"814",
        b"format": b"2",
        b"start": b"2",
        b"end": b"900",
        b"freshest": b"5",
        b"reported_at": b"6",
        b"counted": b"812",
        b"quarantined": b"0",
        b"late": b"0",
        b"ignored": b"0",
        b"holes": b"0",
        b"last": b"",
        b"losses": b"[]",
        b"tainted_from": b"",
        b"topic_id": b"",
        b"rebased": b"",
        b"new-checkout|start-1|0|treatment": b'{"evaluations":812,"exposures":400,"errors":3,'
        b'"converted":{"signup":7},"latency":{"231":17,"240":3}}',
    }


async def test_the_largest_save_fits_into_one_call(store: RedisConnection) -> None:
    """The promised number of fields stays below what a script can hand to one command.

    With room for the store's own.
    """
    totals = RedisTotals(store)
    many = {f"f{n}|start-1|0|treatment": b"x" * 400 for n in range(MAX_FIELDS_PER_SAVE)}
    assert await totals.save(KEY, expected=None, next_offset=1, fields=many) is None
    assert await store.client.hlen(HASH) == MAX_FIELDS_PER_SAVE + 3


async def test_answers_are_kept_newest_first_and_bounded(store: RedisConnection) -> None:
    """A flag keeps its newest answers; a flood of commands does not grow its hash without bound."""
    rollouts = RedisRollouts(store)
    saves = ANSWERS_KEPT + 2 * ANSWERS_PRUNED_EVERY
    for token in range(saves):
        assert await rollouts.save("f", expected_token=token, answer=(f"c{token}", b"a"))
    assert await store.client.hlen("rolloutd:ro:{f}") <= ANSWERS_KEPT + ANSWERS_PRUNED_EVERY + 2
    assert await rollouts.answer_to("f", "c0") is None
    assert await rollouts.answer_to("f", f"c{saves - ANSWERS_KEPT}") == b"a"
    assert await rollouts.answer_to("f", f"c{saves - 1}") == b"a"


# --- the right server
# --------------------------------------------------------------------------------------------------


async def test_another_kafka_cluster_is_refused(store: RedisConnection) -> None:
    """A prefix belongs to one Kafka cluster.

    Two replicas that start together both find it theirs.
    """
    await asyncio.gather(*(StoredIdentity(store).check(OURS, 1) for _ in range(4)))
    await StoredIdentity(store).check(OURS, 1)
    with pytest.raises(ConfigInvalid, match="belongs to Kafka cluster 'one'"):
        await StoredIdentity(store).check(replace(OURS, cluster_id="two"), 1)


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
    renamed = Identity("one", "", "live", former_environments=("production",))
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
    staging = Identity("one", "staging.", "staging")
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


async def test_a_running_daemon_notices_that_redis_became_another(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a fault with what to do, nothing is decided meanwhile, and it passes by itself."""
    monkeypatch.setattr(environment, "IDENTITY_SECONDS", 0.02)
    daemon = bootstrap.Daemon(Settings.model_validate({"redis": {"url": own_redis.url}}))
    daemon.oversight.environment._identity = OURS
    store = daemon.connections.redis
    await StoredIdentity(store).check(OURS, 1)
    watching = asyncio.create_task(daemon.oversight.environment.run())

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
    await StoredIdentity(own).check(Identity("one", "", "staging"), 1)
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


# --- cluster
# --------------------------------------------------------------------------------------------------


async def test_everything_works_on_a_cluster() -> None:
    """On a Redis Cluster of two nodes every call works.

    Also after the slots have moved from one to the other.
    """
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    with RedisServer(options=options) as one, RedisServer(options=options) as two:
        first = redis.asyncio.Redis.from_url(one.url)
        second = redis.asyncio.Redis.from_url(two.url)
        await _ask(first, "CLUSTER ADDSLOTSRANGE", 0, 8191)
        await _ask(second, "CLUSTER ADDSLOTSRANGE", 8192, 16383)
        await _ask(second, "CLUSTER SET-CONFIG-EPOCH", 2)
        await _ask(first, "CLUSTER MEET", "127.0.0.1", two.port)
        async with asyncio.timeout(60):
            for node in (first, second):
                while (await _ask(node, "CLUSTER INFO"))["cluster_state"] != "ok":
                    await asyncio.sleep(0.05)
        store = RedisConnection.connect(
            one.url.removesuffix("/0"), is_cluster=True, deadline_seconds=5
        )
        totals, rollouts = RedisTotals(store), RedisRollouts(store)
        assert list(await check_server(store)) == []
        await StoredIdentity(store).check(OURS, 1)
        keys = [f"flag.evaluations/{partition}/1" for partition in range(8)]
        for key in keys:
            assert await totals.save(key, expected=None, next_offset=5, fields=fields(5)) is None
        found, partitions = await totals.read(keys, {"new-checkout": ("start-1", [0])})
        assert found["new-checkout"][0].treatment.exposures == 40
        assert len(partitions) == 8
        for flag in ("a", "b", "c", "d"):
            assert await rollouts.save(flag, expected_token=0, tests=flag.encode())
            assert await rollouts.load(flag) == StoredRollout(None, 1, flag.encode(), [])
        assert list(await rollouts.flag_keys()) == ["a", "b", "c", "d"]
        assert await first.dbsize() > 0
        assert await second.dbsize() > 0

        # Give one empty slot of the first node to the second: the store still has the old map and
        # is redirected.
        moved, slot = await _key_in_an_empty_slot(first)
        owner = await _ask(second, "CLUSTER MYID")
        for node in (second, first):
            await _ask(node, "CLUSTER SETSLOT", slot, "NODE", owner)
        assert await totals.save(moved, expected=None, next_offset=5, fields=fields(5)) is None
        assert (await totals.load(moved)).next_offset == 5
        await store.close()
        await first.aclose()
        await second.aclose()


async def _ask(node: redis.asyncio.Redis, *words: str | int) -> Any:
    """Return one node's answer to a command redis-py has no typed method for."""
    return await node.execute_command(*words)  # type: ignore[no-untyped-call]


async def _key_in_an_empty_slot(node: redis.asyncio.Redis) -> tuple[str, int]:
    """Return a partition key whose hash would fall into a slot of `node` that is empty.

    And the slot.
    """
    for n in range(1000):
        key = f"moved/{n}/1"
        slot = await _ask(node, "CLUSTER KEYSLOT", f"rolloutd:agg:{{{key}}}")
        if slot <= 8191 and not await _ask(node, "CLUSTER COUNTKEYSINSLOT", slot):
            return key, slot
    raise AssertionError("a thousand keys and no empty slot")


# --- what cannot be read concerns one flag
# --------------------------------------------------------------------------------


async def test_damage_of_any_kind_is_left_out_of_start_up_and_reported(
    store: RedisConnection,
) -> None:
    """A newer schema_version, no JSON, numbers beyond any clock, another type of key.

    The other flags are found.
    """
    told: dict[str, str] = {}
    client = store.client
    rollouts = RedisRollouts(store, unreadable=told.__setitem__)
    good = make_rollout()
    names = ("newer", "no-json", "too-long", "no-hash", "good")
    for name in names:
        rollout = replace(good, flag_key=name, plan=replace(good.plan, flag_key=name), revision=3)
        await rollouts.save(name, expected_token=0, rollout=rollout)

    def key(name: str) -> str:
        return f"{store.prefix}ro:{{{name}}}"

    document = json.loads(await client.hget(key("newer"), "document"))
    await client.hset(key("newer"), "document", json.dumps(document | {"schema_version": 99}))
    await client.hset(key("no-json"), "document", b"\xff{")
    document["plan"]["stages"][0]["bake"] = "P9999999D"
    await client.hset(key("too-long"), "document", json.dumps(document))
    await client.delete(key("no-hash"))
    await client.set(key("no-hash"), "a string")
    await client.sadd(f"{store.prefix}flags", b"\xff\xfe", "not a name")
    assert [rollout.flag_key for rollout in await rollouts.newer_than({})] == ["good"]
    assert set(told) == {"newer", "no-json", "too-long", "no-hash"}
    assert "schema_version 99" in told["newer"]


async def test_a_damaged_document_is_described_and_its_copy_in_the_outbox_found(
    store: RedisConnection,
) -> None:
    """Loading says what is wrong and whether a newer release wrote it.

    What waits to be published is a second copy.
    """
    rollouts, client = RedisRollouts(store), store.client
    rollout = make_rollout(revision=2)
    entry = replace(
        outbox_entry(rollout, "new-checkout", rollout, "new-checkout/2/0", T0), field="outbox:100"
    )
    await rollouts.save("new-checkout", expected_token=0, rollout=rollout, outbox=[entry])
    key = f"{store.prefix}ro:{{new-checkout}}"
    await client.hset(key, "document", b"{}")
    await client.hset(key, "outbox:101", b"not an effect")
    stored = await rollouts.load("new-checkout")
    assert (stored.rollout, stored.token, stored.is_newer) == (rollout, 1, False)
    assert stored.trouble
    assert stored.outbox == [entry]
    await client.hset(key, "document", b'{"schema_version": 99}')
    stored = await rollouts.load("new-checkout")
    assert (stored.rollout, stored.is_newer) == (None, True)
    await client.hset(key, "token", b"x")
    with pytest.raises(DocumentUnreadable, match="token"):
        await rollouts.load("new-checkout")


async def test_a_discarded_flag_leaves_nothing(store: RedisConnection) -> None:
    """Document, answers, effects and the name in the index go, whatever they are.

    Other flags stay.
    """
    rollouts, client = RedisRollouts(store), store.client
    for name in ("new-checkout", "other"):
        rollout = replace(make_rollout(), flag_key=name)
        await rollouts.save(name, expected_token=0, rollout=rollout, answer=("c", b"{}"))
    assert await rollouts.discard("new-checkout")
    assert not await rollouts.discard("new-checkout")
    assert list(await rollouts.flag_keys()) == ["other"]
    assert await client.exists(f"{store.prefix}ro:{{new-checkout}}") == 0
    assert (await rollouts.load("new-checkout")).token == 0
