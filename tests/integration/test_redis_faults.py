"""A Redis in trouble: lost replies, restarts, full memory, replicas and damage."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis.asyncio
import redis.exceptions
from local_kafka import free_port

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.rollouts import RedisRollouts
from controller.adapters.redis.totals import RedisTotals
from controller.errors import BrokenInvariant, StoreUnavailable
from schemas.totals import (
    FORMAT,
)
from tests.brokers import RedisServer
from tests.builders import make_rollout
from tests.certificates import write_certificate
from tests.integration.redis_data import HASH, KEY, fields


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
    with pytest.raises(StoreUnavailable, match=r"for 0\.6 s"):
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

    Scripts are loaded again, and so are data.
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


async def test_wrong_credentials_name_the_setting_to_correct(
    store: RedisConnection, own_redis: RedisServer
) -> None:
    """A user who is asked to give none, or whose password is wrong, is told at once."""
    await store.client.config_set("requirepass", "secret")
    for user, setting in (("", "set redis.password_file"), (":wrong@", "correct redis.username")):
        url = own_redis.url.replace("redis://", f"redis://{user}")
        refused = RedisConnection.connect(url, deadline_seconds=60)
        with pytest.raises(StoreUnavailable, match=setting):
            await refused.ask_time()
        await refused.close()


async def test_a_certificate_of_another_authority_names_the_setting_to_correct(
    tmp_path: Path,
) -> None:
    """The text of OpenSSL alone names none."""
    certificate, key, other = (tmp_path / name for name in ("c.pem", "k.pem", "other.pem"))
    write_certificate(certificate, key)
    write_certificate(other, tmp_path / "unused.pem", "another authority")
    secured = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secured.load_cert_chain(certificate, key)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", ssl=secured)
    port = server.sockets[0].getsockname()[1]
    url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={other}"
    refused = RedisConnection.connect(url, deadline_seconds=1)
    with pytest.raises(StoreUnavailable, match=r"let redis\.ca_file name the PEM file"):
        await refused.ask_time()
    await refused.close()
    server.close()


@pytest.mark.parametrize("connect_seconds", [0.2, 2.0], ids=["ends", "outlasts the call"])
async def test_tls_to_a_redis_without_it_names_the_setting(
    own_redis: RedisServer, connect_seconds: float
) -> None:
    """It was said that Redis gave no answer: it waits for the end of what it takes for a command.

    Of silence without TLS nothing of the kind is said.
    """
    url = own_redis.url.replace("redis://", "rediss://")
    secured = RedisConnection.connect(url, deadline_seconds=1, connect_seconds=connect_seconds)
    with pytest.raises(StoreUnavailable, match=r"write redis:// ") as raised:
        await secured.ask_time()
    assert "redis.url" in str(raised.value)
    await secured.close()
    plain = RedisConnection.connect(own_redis.url, deadline_seconds=0.3)
    own_redis.pause()
    with pytest.raises(StoreUnavailable) as silent:
        await plain.ask_time()
    own_redis.resume()
    assert "TLS" not in str(silent.value)
    await plain.close()


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


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_redis_that_is_not_there_is_told_in_plain_words(host: str) -> None:
    """People read it in alerts, where the words of two libraries say it three times."""
    port = free_port()
    store = RedisConnection.connect(
        f"redis://{host}:{port}/0", deadline_seconds=0.3, try_seconds=0.1
    )
    with pytest.raises(StoreUnavailable) as raised:
        await RedisTotals(store).load(KEY)
    await store.close()
    assert str(raised.value).endswith(
        f": tried for 0.3 s: no connection to {host}:{port}: connection refused"
    )
