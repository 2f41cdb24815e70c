"""Start the best Kafka and the best Redis that this machine can have, and describe them.

Belongs here: which one is tried first, and what is said when there is no real one. Does not belong
here: topics, records and assertions; and pytest, which only conftest.py knows. The servers
themselves are in `ops/kafka/local_kafka.py` and `tests/redis_server.py`.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.protocol.metadata import MetadataRequest
from local_kafka import (
    LocalKafka,
    LocalKafkaError,
    OrphanGuard,
    archive_classes,
    free_port,
    kafka_version,
    why_not,
)

from tests.redis_server import RedisServer, describe_local_redis, redis_binary

__all__ = [
    "ALLOW_MOCK_VARIABLE",
    "KafkaInUse",
    "LocalKafka",
    "LocalKafkaError",
    "MockKafka",
    "OrphanGuard",
    "RedisInUse",
    "RedisServer",
    "announce",
    "create_topics_at",
    "describe_local_redis",
    "docker_trouble",
    "free_port",
    "redis_binary",
    "start_kafka",
    "start_redis",
    "why_not",
]

# The same software in Docker. By tag: a digest cannot be looked up without a network.
KAFKA_IMAGE = f"apache/kafka:{kafka_version()}"
REDIS_IMAGE = "redis:8.2"

# With "1", tests that need a real Kafka are skipped where there is only the mock. Else they fail.
ALLOW_MOCK_VARIABLE = "ROLLOUTD_ALLOW_MOCK_KAFKA"

# Within this time every broker must know of a topic that was created.
KNOWN_SECONDS = 30.0


class MockKafka:
    """librdkafka's mock cluster.

    It speaks the Kafka protocol without admin calls, and a group has one member at most.
    """

    def __init__(self) -> None:
        from confluent_kafka.admin import AdminClient

        # the cluster lives as long as this client
        self._client = AdminClient({"bootstrap.servers": "unused", "test.mock.num.brokers": 1})
        brokers = self._client.list_topics(timeout=10).brokers.values()
        self.bootstrap = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def stop(self) -> None:
        """End the cluster; all it held is gone."""
        del self._client


@dataclass(frozen=True, slots=True)
class KafkaInUse:
    """The Kafka of this test run.

    `attempts` says what was tried before and why it was not taken.
    """

    bootstrap: str
    description: str
    is_real: bool
    stop: Callable[[], None]
    attempts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RedisInUse:
    """The Redis of this test run.

    `attempts` says what was tried before and why it was not taken.
    """

    url: str
    description: str
    stop: Callable[[], None]
    attempts: tuple[str, ...] = ()


def start_kafka() -> KafkaInUse:
    """Return the best Kafka of this machine, started.

    Docker, else local Apache Kafka, else librdkafka's mock.
    """
    attempts: list[str] = []
    trouble = docker_trouble()
    if trouble is None:
        try:
            return _docker_kafka()
        except (
            Exception
        ) as error:  # any failure of a foreign engine, registry or image has the same answer: go on
            trouble = (
                f"engine found, but {KAFKA_IMAGE} did not start ({type(error).__name__}: {error})"
            )
    attempts.append(f"Docker: {trouble}")
    local_trouble = why_not()
    if local_trouble is None:
        kafka = LocalKafka()
        try:
            archive_classes()  # for the many brokers that the tests start
            kafka.start()
            return KafkaInUse(kafka.bootstrap, kafka.description, True, kafka.stop, tuple(attempts))
        except LocalKafkaError as error:
            kafka.stop()
            local_trouble = str(error)
    attempts.append(f"local Apache Kafka: {local_trouble}")
    mock = MockKafka()
    return KafkaInUse(
        mock.bootstrap,
        "librdkafka's MOCK cluster (not a real Kafka)",
        False,
        mock.stop,
        tuple(attempts),
    )


def start_redis() -> RedisInUse:
    """Return the best Redis of this machine, started: Docker, else a local server.

    Raises RuntimeError if neither.
    """
    attempts: list[str] = []
    trouble = docker_trouble()
    if trouble is None:
        try:
            return _docker_redis()
        except Exception as error:  # as in start_kafka
            trouble = (
                f"engine found, but {REDIS_IMAGE} did not start ({type(error).__name__}: {error})"
            )
    attempts.append(f"Docker: {trouble}")
    server = RedisServer()
    try:
        server.start()
    except BaseException:
        server.stop()
        raise
    return RedisInUse(server.url, server.description, server.stop, tuple(attempts))


@functools.cache
def docker_trouble() -> str | None:
    """Return why no container can be run, or None when a Docker engine answers."""
    import docker

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # docker-py leaves its socket open when nobody answers
        try:
            client = docker.from_env(timeout=3)
            try:
                client.ping()
            finally:
                client.close()
        except (
            Exception
        ) as error:  # docker-py's, requests' and urllib3's errors all mean the same here
            return f"no engine answers ({type(error).__name__})"
        finally:
            gc.collect()  # here, where it is expected, and not in the middle of a test
    return None


def announce() -> str:
    """Warn on stderr when there is no real Kafka; return the variable that lets tests skip, or "".

    `make test` calls this first. Where a real Kafka is possible, tests that need one must not be
    skipped in silence. Where it is not, the rest of the suite must still run.
    """
    trouble, local_trouble = docker_trouble(), why_not()
    if trouble is None or local_trouble is None:
        return ""
    lines = (
        "NO REAL KAFKA ON THIS MACHINE: THE TESTS RUN ON LIBRDKAFKA'S MOCK CLUSTER.",
        (
            "TESTS MARKED real_kafka ARE NOT RUN: REBALANCING, ADMIN CALLS, RESTARTS, "
            "DURABILITY, CRASHES."
        ),
        f"Docker: {trouble}. Local Apache Kafka: {local_trouble}.",
        "To run everything: install Java 17 and Maven, or start Docker.",
    )
    rule = "*" * max(len(line) for line in lines)
    sys.stderr.write("\n".join((rule, *lines, rule, "")))
    return f"{ALLOW_MOCK_VARIABLE}=1"


async def create_topics_at(
    bootstrap: str,
    *names: str,
    partitions: int = 4,
    copies: int = 1,
    configs: Mapping[str, str] | None = None,
) -> None:
    """Create topics at `bootstrap`, which must be a real Kafka, and wait until they can be used.

    A broker answers before the new topics are in the metadata that it and the others give.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        answer = await admin.create_topics(
            [
                NewTopic(name, partitions, copies, topic_configs=dict(configs or {}))
                for name in names
            ]
        )
        failed = [error for error in answer.topic_errors if error[1] != 0]
        assert not failed, f"topics not created: {failed}"
        async with asyncio.timeout(KNOWN_SECONDS):
            while not await _all_brokers_know(admin, names, partitions):
                await asyncio.sleep(0.02)
    finally:
        await admin.close()


async def _all_brokers_know(
    admin: AIOKafkaAdminClient, names: tuple[str, ...], partitions: int
) -> bool:
    """Return whether each broker tells of every partition of the topics, with its leader."""
    for broker in admin._client.cluster.brokers():
        answer = await admin._send_request(MetadataRequest(list(names)), broker.nodeId)
        for topic in answer.to_object()["topics"]:
            led = [found for found in topic["partitions"] if found["error_code"] == 0]
            if len(led) != partitions:
                return False
    return True


def _docker_kafka() -> KafkaInUse:
    """Return Apache Kafka in a container.

    testcontainers supports Confluent's image; Apache's image starts in another way.
    """
    from testcontainers.community.kafka import KafkaContainer

    class ApacheKafkaContainer(KafkaContainer):
        def configure(self) -> None:
            self._configure_kraft()
            for name, value in (
                ("KAFKA_CONTROLLER_QUORUM_VOTERS", "1@localhost:9094"),
                ("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false"),
                ("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1"),
                ("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1"),
                ("KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS", "500"),
                ("KAFKA_LOG_RETENTION_MS", "-1"),
                ("KAFKA_LOG_MESSAGE_TIMESTAMP_AFTER_MAX_MS", "9223372036854775807"),
            ):
                self.with_env(name, value)

        def tc_start(self) -> None:
            address = f"{self.get_container_host_ip()}:{self.get_exposed_port(self.port)}"
            outside = f"{self.listener_name}://{address}"
            script = (
                "#!/bin/bash\n"
                f"export KAFKA_ADVERTISED_LISTENERS={outside},BROKER://$(hostname -i):9092\n"
                "exec /etc/kafka/docker/run\n"
            )
            self.create_file(script.encode(), KafkaContainer.TC_START_SCRIPT)

    container = ApacheKafkaContainer(KAFKA_IMAGE)
    try:
        container.start(timeout=90)
    except BaseException:
        with suppress(Exception):  # the first error is the one to report
            container.stop()
        raise
    return KafkaInUse(
        container.get_bootstrap_server(), f"{KAFKA_IMAGE} in Docker", True, container.stop
    )


def _docker_redis() -> RedisInUse:
    from testcontainers.community.redis import RedisContainer

    container = RedisContainer(REDIS_IMAGE).with_command(
        "redis-server --appendonly yes --appendfsync everysec"
    )
    try:
        container.start()
    except BaseException:
        with suppress(Exception):  # the first error is the one to report
            container.stop()
        raise
    url = f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"
    return RedisInUse(url, f"{REDIS_IMAGE} in Docker", container.stop)


if __name__ == "__main__":
    sys.stdout.write(announce())
