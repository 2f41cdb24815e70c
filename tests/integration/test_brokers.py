"""The brokers that all other tests stand on.

Real ones, that keep what they acknowledged over a crash.
"""

import asyncio
import signal
import sys
from pathlib import Path

import local_kafka
import pytest
import redis.asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from tests.brokers import LocalKafka, RedisServer, create_topics_at
from tests.conftest import CreateTopics, require_local_kafka


async def _produce(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, acks="all")
    try:
        await producer.start()
        for value in values:
            await producer.send(topic, value)
        await producer.flush()
    finally:
        await producer.stop()


async def _consume(bootstrap: str, topic: str, group: str, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    try:
        await consumer.start()
        values: list[bytes] = []
        async with asyncio.timeout(60):
            while len(values) < count:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    values.extend(record.value for record in records)
        return values
    finally:
        await consumer.stop()


async def test_group_consumes_what_was_produced(
    kafka: str, topic_prefix: str, create_topics: CreateTopics
) -> None:
    """A group of one reads every record that a producer was told is stored."""
    topic = f"{topic_prefix}events"
    sent = [str(number).encode() for number in range(500)]
    await create_topics(topic)
    await _produce(kafka, topic, sent)
    assert sorted(await _consume(kafka, topic, f"{topic_prefix}group", 500)) == sorted(sent)


@pytest.mark.real_kafka
async def test_two_members_share_a_group(
    kafka: str, topic_prefix: str, create_topics: CreateTopics
) -> None:
    """Two members of one group each get half of the partitions."""
    topic = f"{topic_prefix}events"
    await create_topics(topic, partitions=4)
    members = [
        AIOKafkaConsumer(
            topic,
            bootstrap_servers=kafka,
            group_id=f"{topic_prefix}group",
            enable_auto_commit=False,
        )
        for _ in range(2)
    ]
    try:
        for member in members:
            await member.start()
        async with asyncio.timeout(60):
            while [len(member.assignment()) for member in members] != [2, 2]:
                await asyncio.gather(*(member.getmany(timeout_ms=100) for member in members))
    finally:
        await asyncio.gather(*(member.stop() for member in members))


async def test_kafka_killed_and_restarted_keeps_records(
    own_kafka: LocalKafka, topic_prefix: str
) -> None:
    """A broker killed with SIGKILL returns on the same port with every acknowledged record."""
    topic = f"{topic_prefix}events"
    await create_topics_at(own_kafka.bootstrap, topic, partitions=1)
    await _produce(own_kafka.bootstrap, topic, [b"before"])
    own_kafka.kill9()
    assert not own_kafka.is_running()
    own_kafka.start()
    await _produce(own_kafka.bootstrap, topic, [b"after"])
    assert await _consume(own_kafka.bootstrap, topic, f"{topic_prefix}group", 2) == [
        b"before",
        b"after",
    ]


async def test_topics_are_not_made_by_accident(own_kafka: LocalKafka) -> None:
    """The local broker creates no topic by being asked for one, as in production."""
    consumer = AIOKafkaConsumer(bootstrap_servers=own_kafka.bootstrap)
    try:
        await consumer.start()
        assert not consumer.partitions_for_topic("nowhere")
        assert "nowhere" not in await consumer.topics()
    finally:
        await consumer.stop()


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [
        (signal.SIGTERM, 0),
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.rare),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.rare),
    ],
)
async def test_the_script_leaves_no_broker_behind(
    number: signal.Signals, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`local-kafka` takes its broker and its files along, whether it is asked to stop or killed."""
    require_local_kafka()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    trouble = tmp_path / "trouble"
    with trouble.open("wb") as stderr:
        script = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(local_kafka.__file__).with_name("local-kafka")),
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    assert script.stdout is not None
    async with asyncio.timeout(120):
        line = (await script.stdout.readline()).decode()
    assert line.startswith("bootstrap="), line + trouble.read_text()
    port = int(line.removeprefix("bootstrap=127.0.0.1:"))
    assert local_kafka.known_brokers(port) == 1
    script.send_signal(number)
    async with asyncio.timeout(60):
        assert await script.wait() == exit_code
        while local_kafka.known_brokers(port, timeout_seconds=0.5):
            await asyncio.sleep(0.05)  # the guard is a moment behind
        while list(tmp_path.glob("rolloutd-*")):
            await asyncio.sleep(0.05)


@pytest.mark.rare
async def test_a_cluster_of_three_survives_the_loss_of_one(topic_prefix: str) -> None:
    """With one of three brokers killed, a topic of three copies still takes and gives records."""
    require_local_kafka()
    with LocalKafka(brokers=3, heap_megabytes=256) as cluster:
        topic = f"{topic_prefix}events"
        await create_topics_at(cluster.bootstrap, topic, partitions=3, copies=3)
        await _produce(cluster.bootstrap, topic, [b"before"])
        cluster.kill9(1)
        await _produce(cluster.bootstrap, topic, [b"after"] * 6)
        assert len(await _consume(cluster.bootstrap, topic, f"{topic_prefix}group", 7)) == 7


async def test_redis_restart_keeps_data(own_redis: RedisServer) -> None:
    """A server killed with SIGKILL returns on the same port and replays its append-only file."""
    async with redis.asyncio.Redis.from_url(own_redis.url) as client:
        await client.hset("totals", mapping={"next": 42})
    own_redis.kill9()
    own_redis.start()
    async with redis.asyncio.Redis.from_url(own_redis.url) as client:
        assert await client.hget("totals", "next") == b"42"


async def test_a_cut_tail_loses_the_last_write_only(own_redis: RedisServer) -> None:
    """Cutting the append-only file undoes the last write, and the server can start."""
    async with redis.asyncio.Redis.from_url(own_redis.url) as client:
        # with `everysec` a busy disk may keep a write waiting that was acknowledged
        await client.config_set("appendfsync", "always")
        await client.set("first", "kept")
        await client.set("second", "lost")
    own_redis.kill9()
    assert own_redis.cut_aof_tail(3) == 3
    own_redis.start()
    async with redis.asyncio.Redis.from_url(own_redis.url) as client:
        assert await client.mget("first", "second") == [b"kept", None]


async def test_shared_redis_starts_empty(redis_client: redis.asyncio.Redis) -> None:
    """The shared server is emptied before each test that uses it, and keeps an append-only file."""
    assert await redis_client.dbsize() == 0
    assert (await redis_client.config_get("appendonly"))["appendonly"] == "yes"
    await redis_client.set("left", "behind")


def test_a_port_is_drawn_by_one_alone_until_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers take seconds until they listen, and tests run side by side."""
    monkeypatch.setattr(local_kafka, "PORTS_TO_DRAW_FROM", range(31_500, 31_700))
    drawn = [local_kafka.free_port() for _ in range(40)]
    assert len(set(drawn)) == 40
