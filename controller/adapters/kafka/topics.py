"""Names the topics that must exist, their configuration, and the partition of a key.

Belongs here: what is asked of the cluster at start, and seldom afterwards. Does not belong here:
how we connect (`client.py`), what topics look like later (`topology.py`), records (`event_log.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, for_code
from aiokafka.partitioner import murmur2

from controller.adapters.kafka.client import client_options, reason_of
from controller.errors import ConfigInvalid, EventLogUnavailable, RolloutdError
from controller.settings import KafkaSettings, TopicNames
from controller.text import plural
from schemas.topics import TOPIC_POLICIES, WEEK_MS

log = structlog.get_logger(__name__)

_USUAL_COPIES = 3  # survives one broker in maintenance and one lost
_MINUTE = 60_000  # ms
_HOUR = 60 * _MINUTE

#: State is compacted early and often, because every replica reads it from its beginning when it
#: starts.
_COMPACTION: Mapping[str, str] = {
    "min.cleanable.dirty.ratio": "0.1",
    "segment.ms": str(24 * _HOUR),
    "delete.retention.ms": str(WEEK_MS),
}


def topic_config(logical: str) -> dict[str, str]:
    """Return what a topic that we create is configured with; the rest is the broker's choice."""
    policy = TOPIC_POLICIES[logical]
    config: dict[str, str] = {"cleanup.policy": policy.cleanup}
    if policy.retention_ms is None:
        return {**config, **_COMPACTION}
    config["retention.ms"] = str(policy.retention_ms)
    if policy.has_broker_time:
        config["message.timestamp.type"] = "LogAppendTime"
    return config


#: A record from the future makes correct ones look old. Brokers since Kafka 3.6 can refuse records
#: whose timestamp is further ahead than this. By default Kafka 4 accepts an hour, and older brokers
#: accept any.
_MOST_AHEAD = {"message.timestamp.after.max.ms": str(5 * _MINUTE)}
_MOST_AHEAD_OF_BROKER = "log.message.timestamp.after.max.ms"
_TIMED_BY_PRODUCERS = ("evaluations", "outcomes", "commands")
# `config_source` of what nobody has set; before version 1 of the answer it is True.
_DEFAULT_CONFIG = 5

#: Cleanup that would lose data silently: compaction drops events, deletion drops what we recover
#: from.
_RUINOUS_POLICY = {
    "evaluations": "compact",
    "outcomes": "compact",
    "commands": "compact",
    "state": "delete",
}


def partition_of(flag_key: str, partitions: int) -> int:
    """Return the partition, from 0, of a keyed record, as Java's and aiokafka's partitioners do.

    `partitions` is how many the topic has. Source: Apache Kafka, `Utils.murmur2` and
    `Utils.toPositive`.
    """
    return int(murmur2(flag_key.encode()) & 0x7FFFFFFF) % partitions


async def cluster_id(settings: KafkaSettings) -> str | None:
    """Return the cluster's id, None when it has none. Raises EventLogUnavailable."""
    async with _admin(settings, "reading the cluster's id") as admin:
        described: str | None = (await admin.describe_cluster()).get("cluster_id")
        return described


async def ensure_topics(settings: KafkaSettings) -> dict[str, int]:
    """Create the missing topics, check the others; return partition counts by logical name.

    Raises ConfigInvalid when what exists would count wrongly; the message says how to fix it.
    Raises EventLogUnavailable when topics are missing that we may not create, or when Kafka does
    not answer: then try again.
    """
    names = {logical: settings.topic(logical) for logical in TopicNames.model_fields}
    async with _admin(settings, "preparing topics") as admin:
        # All topics are listed, never requested by name: a broker that creates topics on demand
        # would create them wrongly.
        present = _partition_counts(await admin.describe_topics())
        missing = {logical: name for logical, name in names.items() if name not in present}
        if settings.is_one_topic:
            # Spans are both, and Kafka refuses to create a topic twice at once.
            missing.pop("outcomes", None)
        _refuse_unequal(settings, present)
        if missing and settings.create_topics:
            partitions = next(
                (present[name] for name in settings.event_topics if name in present),
                settings.partitions,
            )
            await _create(admin, settings, missing, partitions)
        if missing:
            present = await _wait_for(admin, names, settings.create_topics)
        await _refuse_ruinous_policies(admin, names)
    _refuse_unequal(settings, present)
    return {logical: present[name] for logical, name in names.items()}


async def check_policies(settings: KafkaSettings) -> None:
    """Raise ConfigInvalid when a topic was given a cleanup policy that loses what we need.

    For use while running. Raises EventLogUnavailable.
    """
    names = {logical: settings.topic(logical) for logical in TopicNames.model_fields}
    async with _admin(settings, "reading cleanup policies") as admin:
        await _refuse_ruinous_policies(admin, names)


@asynccontextmanager
async def _admin(settings: KafkaSettings, doing: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """Provide a connected admin client, all of whose work happens under one deadline."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        async with asyncio.timeout(settings.start_seconds):
            await admin.start()
            yield admin
    except RolloutdError:
        raise
    except TimeoutError as error:
        raise EventLogUnavailable(
            f"{doing}: no answer from {settings.bootstrap_servers} in time"
        ) from error
    # aiokafka raises errors of any type for trouble outside.
    except Exception as error:
        why = reason_of(error)
        raise EventLogUnavailable(f"{doing}: {settings.bootstrap_servers}: {why}") from error
    finally:
        try:
            async with asyncio.timeout(settings.stop_seconds):
                await admin.close()
        except Exception as error:
            log.warning(
                "kafka_close_failed",
                client="admin",
                error_type=type(error).__name__,
                reason=str(error),
            )


async def _create(
    admin: AIOKafkaAdminClient,
    settings: KafkaSettings,
    missing: Mapping[str, str],
    event_partitions: int,
) -> None:
    """Create the missing topics; those that are refused are named in the error.

    A topic that another process creates meanwhile is accepted.
    """
    brokers = (await admin.describe_cluster())["brokers"]
    copies = settings.replication_factor or min(_USUAL_COPIES, len(brokers))
    ahead = await _most_ahead(admin, brokers)
    new_topics = [
        NewTopic(
            name,
            event_partitions if logical in ("evaluations", "outcomes") else settings.partitions,
            copies,
            topic_configs={
                **topic_config(logical),
                **(ahead if logical in _TIMED_BY_PRODUCERS else {}),
            },
        )
        for logical, name in missing.items()
    ]
    try:
        answer = await admin.create_topics(
            new_topics, timeout_ms=round(settings.call_seconds * 1000)
        )
    except AttributeError:  # aiokafka raises it when no controller is known
        log.info(
            "topics_not_created",
            reason="the broker has no controller; topics must appear on first use",
        )
        await admin.describe_topics(list(missing.values()))  # first use
        return
    refused: list[str] = []
    for topic, code, *_message in answer.topic_errors:
        error = for_code(code)
        if code == 0:
            log.info("topic_created", topic=topic)
        elif error is not TopicAlreadyExistsError:
            refused.append(
                f"{topic}: "
                f"{error.__name__}{f' ({_message[0]})' if _message and _message[0] else ''}"
            )
    if refused:
        raise EventLogUnavailable(
            f"topics could not be created: {'; '.join(refused)}. Grant CREATE on them, or "
            f"have them made "
            "with `kafka-topics --create` and set kafka.create_topics to false"
        )


async def _most_ahead(
    admin: AIOKafkaAdminClient, brokers: list[dict[str, Any]]
) -> Mapping[str, str]:
    """Return the setting that bounds timestamps ahead of the broker's clock.

    Nothing when it is set for all topics, or when it is not known.
    """
    broker = str(brokers[0]["node_id"])
    resource = ConfigResource(ConfigResourceType.BROKER, broker, {_MOST_AHEAD_OF_BROKER: ""})
    try:
        code, _message, _type, _name, entries = (await admin.describe_configs([resource]))[
            0
        ].resources[0]
    except Exception as error:  # topics are created all the same
        log.info("broker_limits_unknown", error_type=type(error).__name__, reason=str(error))
        return {}
    if code != 0:
        log.info("broker_limits_unknown", error_type=for_code(code).__name__)
        return {}
    is_default = any(
        entry[0] == _MOST_AHEAD_OF_BROKER and entry[3] in (_DEFAULT_CONFIG, True)
        for entry in entries
    )
    return _MOST_AHEAD if is_default else {}


async def _wait_for(
    admin: AIOKafkaAdminClient, names: Mapping[str, str], were_created: bool
) -> dict[str, int]:
    """Return the partition counts once all topics are listed.

    A new topic is listed after a moment. The caller's deadline bounds the wait.
    """
    missing: list[str] = []
    for _attempt in range(50 if were_created else 1):
        present = _partition_counts(await admin.describe_topics())
        missing = sorted(set(names.values()) - set(present))
        if not missing:
            return present
        await asyncio.sleep(0.1)
    raise EventLogUnavailable(
        f"topics are missing: {', '.join(missing)}. Create them with `kafka-topics --create`, "
        "rollout.state with `--config cleanup.policy=compact`, or set kafka.create_topics to true; "
        "where they are there, grant our user Describe on them, see ops/security.md"
    )


def _partition_counts(described: list[dict[str, Any]]) -> dict[str, int]:
    return {topic["topic"]: len(topic["partitions"]) for topic in described if topic["partitions"]}


def _refuse_unequal(settings: KafkaSettings, present: Mapping[str, int]) -> None:
    """Refuse event topics with different partition counts.

    Both are keyed by context and joined by partition number.
    """
    evaluations, outcomes = settings.event_topics
    if (
        evaluations not in present
        or outcomes not in present
        or present[evaluations] == present[outcomes]
    ):
        return
    fewer, more = sorted((evaluations, outcomes), key=lambda name: present[name])
    raise ConfigInvalid(
        f"{fewer} has {plural(present[fewer], 'partition')} and {more} has {present[more]}: a "
        f"context's evaluations and outcomes "
        "must have the same partition number. Stop the apps that write to it, then run "
        f"`kafka-topics --alter --topic {fewer} --partitions {present[more]}`"
    )


async def _refuse_ruinous_policies(admin: AIOKafkaAdminClient, names: Mapping[str, str]) -> None:
    """Refuse a cleanup policy that loses what we count or recover from.

    Without the right to read the policies this is only logged.
    """
    resources = [
        ConfigResource(ConfigResourceType.TOPIC, names[logical], {"cleanup.policy": ""})
        for logical in _RUINOUS_POLICY
    ]
    try:
        answers = await admin.describe_configs(resources)
    except Exception as error:
        log.info("topic_policies_unknown", error_type=type(error).__name__, reason=str(error))
        return
    logical_of = {name: logical for logical, name in names.items()}
    for code, _message, _type, topic, entries in (
        resource for answer in answers for resource in answer.resources
    ):
        if code != 0:
            log.info("topic_policies_unknown", topic=topic, error_type=for_code(code).__name__)
            continue
        policy = next((entry[1] for entry in entries if entry[0] == "cleanup.policy"), "")
        logical = logical_of[topic]
        if _RUINOUS_POLICY[logical] in str(policy).split(","):
            right = TOPIC_POLICIES[logical].cleanup
            raise ConfigInvalid(
                f"{topic} has cleanup.policy={policy}, which loses "
                f"{'state' if right == 'compact' else 'records'}: run "
                f"`kafka-configs --alter --entity-type topics --entity-name {topic} "
                f"--add-config cleanup.policy={right}`"
            )
