"""Everything that a daemon has stored, as lines of JSON in files, and back onto other servers.

Belongs here: Redis keys, records and group positions, whatever is in them. Does not belong here:
what is stored, and by which scene (`tests/golden/scene.py`).

Three things of the servers stand in what is stored: the cluster's id, the ids of the topics, and
the prefix of names. `load` writes those of the servers at hand in their place. Nothing else is
changed, so that the daemon finds what an upgrade finds.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis.asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from controller.adapters.kafka.metadata_request import look_up
from tests.brokers import create_topics_at

#: Stands in names and values for the prefix of topics, groups and keys. No word of ours is like it.
PREFIX: Final = "golden-prefix."
PARTITIONS: Final = 4
TOPICS: Final = (
    "flag.evaluations",
    "request.outcomes",
    "rollout.commands",
    "rollout.signals",
    "rollout.results",
    "rollout.decisions",
    "rollout.alerts",
    "rollout.state",
    "rollout.quarantine",
)
GROUPS: Final = ("rolloutd", "rolloutd.commands", "rolloutd.signals")
COMPACTED: Final = "rollout.state"
REDIS_FILE, TOPICS_FILE, SERVERS_FILE = "redis.jsonl.gz", "topics.jsonl.gz", "servers.json"
#: What the daemon answered in the end; written and read by whoever plays the scene.
ANSWERS_FILE: Final = "answers.json"


@dataclass(frozen=True, slots=True)
class Servers:
    """Where a daemon stores."""

    bootstrap: str
    redis_url: str
    prefix: str


# --- bytes as text ---


def _text(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _bytes(shown: Any) -> bytes:
    return shown.encode() if isinstance(shown, str) else base64.b64decode(shown["base64"])


def _write_lines(path: Path, items: Iterable[Mapping[str, Any]]) -> None:
    lines = (json.dumps(item, ensure_ascii=False, sort_keys=True) + "\n" for item in items)
    path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def _read_lines(path: Path, replaced: Mapping[str, str]) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()).decode()
    for recorded, present in replaced.items():
        text = text.replace(recorded, present)
    return [json.loads(line) for line in text.splitlines()]


# --- Redis ---


async def _stored_key(store: Any, key: bytes) -> dict[str, Any]:
    kind = (await store.type(key)).decode()
    value: Any
    if kind == "hash":
        fields = await store.hgetall(key)
        value = [[_text(name), _text(fields[name])] for name in sorted(fields)]
    elif kind == "set":
        value = sorted(_text(item) for item in await store.smembers(key))
    elif kind == "list":
        value = [_text(item) for item in await store.lrange(key, 0, -1)]
    else:
        raise AssertionError(f"{key!r} is a {kind}: teach tests/golden/stored.py to keep it")
    return {"key": _text(key), "type": kind, "ttl_ms": await store.pttl(key), "value": value}


async def _load_key(store: redis.asyncio.Redis, kept: Mapping[str, Any]) -> None:
    key, value = _bytes(kept["key"]), kept["value"]
    if kept["type"] == "hash":
        await store.hset(key, mapping={_bytes(name): _bytes(content) for name, content in value})
    elif kept["type"] == "set":
        await store.sadd(key, *map(_bytes, value))
    else:
        await store.rpush(key, *map(_bytes, value))
    if kept["ttl_ms"] >= 0:
        await store.pexpire(key, kept["ttl_ms"])


# --- Kafka ---


async def _server_ids(servers: Servers) -> dict[str, str]:
    """Return the ids that stand in what is stored: of the cluster, and of each topic."""
    async with _admin(servers) as admin:
        cluster = (await admin.describe_cluster())["cluster_id"]
        names = [servers.prefix + topic for topic in TOPICS]
        topics = await look_up(admin._client, names)
        ids = {topic: topics[servers.prefix + topic].topic_id for topic in TOPICS}
    assert all(ids.values()), ids
    return {"cluster": cluster, **{topic: str(one) for topic, one in ids.items()}}


@asynccontextmanager
async def _admin(servers: Servers) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers.bootstrap)
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


async def _records(servers: Servers, topic: str) -> list[dict[str, Any]]:
    """Return every record of a topic; their offsets must begin at 0 and have no holes."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers.bootstrap, auto_offset_reset="earliest", group_id=None
    )
    found = []
    try:
        await consumer.start()
        parts = [TopicPartition(servers.prefix + topic, number) for number in range(PARTITIONS)]
        consumer.assign(parts)
        ends = await consumer.end_offsets(parts)
        for part in parts:
            while (position := await consumer.position(part)) < ends[part]:
                for number, record in enumerate(await _batch(consumer, part), position):
                    assert record.offset == number, f"a hole before {part} {record.offset}"
                    found.append(_kept_record(topic, record))
    finally:
        await consumer.stop()
    return found


async def _batch(consumer: AIOKafkaConsumer, part: TopicPartition) -> list[Any]:
    answer: dict[TopicPartition, list[Any]] = await consumer.getmany(part, timeout_ms=500)
    return answer.get(part, [])


def _kept_record(topic: str, record: Any) -> dict[str, Any]:
    return {
        "topic": topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "key": None if record.key is None else _text(record.key),
        "headers": [[name, _text(value)] for name, value in record.headers],
        "value": None if record.value is None else _text(record.value),
    }


async def _send(servers: Servers, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records to their partitions; each must get the offset that it had."""
    producer = AIOKafkaProducer(bootstrap_servers=servers.bootstrap, enable_idempotence=True)
    try:
        await producer.start()
        sent = []
        for one in records:
            sending = await producer.send(
                servers.prefix + one["topic"],
                None if one["value"] is None else _bytes(one["value"]),
                None if one["key"] is None else _bytes(one["key"]),
                partition=one["partition"],
                timestamp_ms=one["timestamp"],
                headers=[(name, _bytes(value)) for name, value in one["headers"]],
            )
            sent.append((sending, one["offset"]))
        for sending, offset in sent:
            assert (await sending).offset == offset
    finally:
        await producer.stop()


async def _positions(servers: Servers) -> dict[str, dict[str, int]]:
    """Return group -> `topic/partition` -> the position that it has committed."""
    found: dict[str, dict[str, int]] = {}
    async with _admin(servers) as admin:
        for group in GROUPS:
            kept = await admin.list_consumer_group_offsets(servers.prefix + group)
            found[group] = {
                f"{part.topic.removeprefix(servers.prefix)}/{part.partition}": one.offset
                for part, one in sorted(kept.items())
                if one.offset >= 0
            }
    return found


async def _commit(servers: Servers, group: str, positions: Mapping[str, int]) -> None:
    if not positions:
        return
    offsets = {
        TopicPartition(servers.prefix + topic, int(number)): offset
        for (topic, _, number), offset in (
            (name.rpartition("/"), offset) for name, offset in positions.items()
        )
    }
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers.bootstrap,
        group_id=servers.prefix + group,
        enable_auto_commit=False,
    )
    try:
        await consumer.start()
        consumer.assign(list(offsets))
        await consumer.commit(offsets)
    finally:
        await consumer.stop()


# --- both ---


async def keep(servers: Servers, directory: Path) -> None:
    """Write everything that was stored under the prefix `PREFIX` into a directory."""
    assert servers.prefix == PREFIX
    directory.mkdir(parents=True, exist_ok=True)
    async with redis.asyncio.Redis.from_url(servers.redis_url) as store:
        names = sorted([key async for key in store.scan_iter(f"{PREFIX}*", count=1000)])
        assert names
        _write_lines(directory / REDIS_FILE, [await _stored_key(store, name) for name in names])
    records = [record for topic in TOPICS for record in await _records(servers, topic)]
    _write_lines(directory / TOPICS_FILE, records)
    known = {"ids": await _server_ids(servers), "groups": await _positions(servers)}
    text = json.dumps(known, indent=2, sort_keys=True)
    (directory / SERVERS_FILE).write_text(text + "\n", encoding="utf-8")


async def load(servers: Servers, directory: Path) -> None:
    """Store what a directory has, under the servers' own prefix, which nothing may have yet."""
    names = [servers.prefix + topic for topic in TOPICS]
    # Its records are of the day on which they were kept: no retention may take them from a test.
    forever = {"retention.ms": "-1"}
    await create_topics_at(
        servers.bootstrap,
        *(name for name in names if not name.endswith(COMPACTED)),
        partitions=PARTITIONS,
        configs=forever,
    )
    await create_topics_at(
        servers.bootstrap,
        servers.prefix + COMPACTED,
        partitions=PARTITIONS,
        configs={"cleanup.policy": "compact"},
    )
    kept = json.loads((directory / SERVERS_FILE).read_text(encoding="utf-8"))
    ids = await _server_ids(servers)
    replaced = {kept["ids"][name]: one for name, one in ids.items()} | {PREFIX: servers.prefix}
    await _send(servers, _read_lines(directory / TOPICS_FILE, replaced))
    for group, positions in kept["groups"].items():
        await _commit(servers, group, positions)
    async with redis.asyncio.Redis.from_url(servers.redis_url) as store:
        for one in _read_lines(directory / REDIS_FILE, replaced):
            await _load_key(store, one)
