"""What is written to Redis, on one server and on a cluster, and what cannot be read."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import replace
from typing import Any

import pytest
import redis.asyncio
import redis.exceptions

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.identity import EnvironmentIdentity, StoredIdentity
from controller.adapters.redis.rollouts import ANSWERS_KEPT, ANSWERS_PRUNED_EVERY, RedisRollouts
from controller.adapters.redis.server_check import check_server
from controller.adapters.redis.totals import RedisTotals
from controller.codec.outbox import outbox_entry
from controller.errors import DocumentUnreadable
from controller.ports import OutboxEntry, StoredRollout
from schemas.totals import (
    MAX_FIELDS_PER_SAVE,
    ArmCounts,
    PartitionCounts,
    encode_arm,
    encode_progress,
)
from tests.brokers import RedisServer
from tests.builders import T0, make_plan, make_rollout
from tests.integration.redis_data import FIELD, HASH, KEY, fields

OURS = EnvironmentIdentity("one", "", "production")


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
    await rollouts.remove_effects("f", ["outbox:0"])
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
        b"format": b"3",
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


async def test_everything_works_on_a_cluster() -> None:
    """On a Redis Cluster of two nodes every call works.

    Also after the slots have moved from one to the other.
    """
    options = ("--cluster-node-timeout", "2000")
    with (
        RedisServer(is_cluster_node=True, options=options) as one,
        RedisServer(is_cluster_node=True, options=options) as two,
    ):
        first = redis.asyncio.Redis.from_url(one.url)
        second = redis.asyncio.Redis.from_url(two.url)
        await _ask(first, "CLUSTER ADDSLOTSRANGE", 0, 8191)
        await _ask(second, "CLUSTER ADDSLOTSRANGE", 8192, 16383)
        await _ask(second, "CLUSTER SET-CONFIG-EPOCH", 2)
        await _ask(first, "CLUSTER MEET", "127.0.0.1", two.port, two.bus_port)
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
        together = await asyncio.gather(*map(rollouts.load, "abcd"))
        assert [one.tests for one in together] == [b"a", b"b", b"c", b"d"]
        assert list(await rollouts.flag_keys()) == ["a", "b", "c", "d"]
        assert list(await rollouts.newer_than({})) == []
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


def test_a_cluster_node_listens_only_where_it_has_drawn_a_port() -> None:
    """The port that a node takes for its bus by itself may be taken by anybody."""
    node = RedisServer(is_cluster_node=True)
    with socket.create_server(("127.0.0.1", node.port + 10_000)), node:
        assert node.is_running()


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


@pytest.mark.parametrize("damage", [b"", b"[[[", b"x\n{}", b"-7\n{}", b"9" * 5_000 + b"\n{}"])
async def test_an_answer_that_we_did_not_write_is_none(
    store: RedisConnection, damage: bytes
) -> None:
    """It keeps no flag from being retired, and is the first that goes."""
    rollouts, client = RedisRollouts(store), store.client
    await rollouts.save(
        "f", expected_token=0, rollout=make_rollout(flag_key="f"), answer=("c", b"y")
    )
    await client.hset(f"{store.prefix}ro:{{f}}", "answer:damaged", damage)
    assert await rollouts.answer_to("f", "damaged") is None
    await rollouts._prune_answers("f")
    assert await rollouts.answer_to("f", "c") == b"y"
    assert await rollouts.bury("f", expected_token=1, revision=1)
    assert await rollouts.answer_to("f", "c") == b"y"


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


async def test_a_buried_flag_leaves_its_answers_for_a_day_and_one_number(
    store: RedisConnection,
) -> None:
    """Everything else of a thousand flags is gone, and the next rollout counts on from there."""
    rollouts, client = RedisRollouts(store), store.client
    before = {key async for key in client.scan_iter()}
    for number in range(20):
        flag = f"f{number}"
        rollout = make_rollout(flag_key=flag, plan=make_plan(flag_key=flag), revision=number)
        saved = await rollouts.save(
            flag, expected_token=0, rollout=rollout, tests=b"x" * 5_000, answer=("c", b"yes")
        )
        assert saved
        assert not await rollouts.bury(flag, expected_token=7, revision=number)
        assert await rollouts.bury(flag, expected_token=1, revision=number)
        assert await rollouts.bury(flag, expected_token=1, revision=number)  # after a crash
    assert await rollouts.flag_keys() == []
    left = {key async for key in client.scan_iter()} - before
    assert left == {b"rolloutd:ro:{#}"} | {
        b"rolloutd:ro:{f%d}:retired" % number for number in range(20)
    }
    for key in left - {b"rolloutd:ro:{#}"}:
        assert 0 < await client.ttl(key) <= 25 * 3600
    assert await rollouts.answer_to("f3", "c") == b"yes"
    stored = await rollouts.load("f3")
    assert (stored.rollout, stored.token) == (None, 0)
    assert (stored.retired_revision, stored.last_revision) == (3, 19)
    assert (await rollouts.load("never-started")).last_revision == 19
