"""Partition counts and topic ids of a real Kafka, while topics grow, go and come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from controller.adapters.kafka.topics import ensure_topics
from controller.adapters.kafka.topology import KafkaTopology
from controller.errors import EventLogUnavailable
from controller.health import Faults, Scope
from controller.settings import KafkaSettings
from tests.brokers import LocalKafka, create_topics_at

pytestmark = pytest.mark.real_kafka


class Watched:
    """A topology and what it told."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self.settings = KafkaSettings.model_validate(
            {
                "bootstrap_servers": bootstrap,
                "topic_prefix": prefix,
                "partitions": 2,
                "call_seconds": 2.0,
            }
        )
        self.faults = Faults(lambda: datetime.now(UTC))
        self.remade: list[str] = []
        self.topology = KafkaTopology(
            self.settings, self.faults, remade=self.remade.append, refresh_seconds=0.2
        )

    async def until(self, holds: Callable[[], bool], seconds: float = 90.0) -> None:
        """Return once it holds, while `run` runs."""
        running = asyncio.create_task(self.topology.run())
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    assert not running.done()
                    await asyncio.sleep(0.05)
        finally:
            running.cancel()


@pytest.fixture
async def admin(kafka: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client of the shared Kafka."""
    client = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await client.start()
    yield client
    await client.close()


async def test_counts_follow_topics_that_grow(
    kafka: str, topic_prefix: str, admin: AIOKafkaAdminClient
) -> None:
    """Added partitions are seen.

    While the two event topics differ that is reported, with the command that repairs it.
    """
    watched = Watched(kafka, topic_prefix)
    topology, settings = watched.topology, watched.settings
    with pytest.raises(KeyError):
        topology.partitions("commands")
    await topology.begin(await ensure_topics(settings))
    assert topology.partitions("commands") == 2
    await admin.create_partitions(
        {
            settings.topic("commands"): NewPartitions(6),
            settings.topic("evaluations"): NewPartitions(4),
        }
    )
    await watched.until(
        lambda: topology.partitions("commands") == 6 and topology.partitions("evaluations") == 4
    )
    assert topology.partitions("outcomes") == 2
    fault = watched.faults.of(Scope.DEPENDENCY, "kafka topics")
    assert fault is not None
    assert f"--alter --topic {settings.topic('outcomes')} --partitions 4" in fault.fix
    await admin.create_partitions({settings.topic("outcomes"): NewPartitions(4)})
    await watched.until(lambda: not watched.faults.current)
    assert topology.partitions("outcomes") == 4
    assert watched.remade == []
    await topology.stop()


async def test_a_topic_of_the_same_name_is_another_one(
    kafka: str, topic_prefix: str, admin: AIOKafkaAdminClient
) -> None:
    """A topic that is gone keeps its count and is reported.

    Created again, it has another id, and whoever reads it is told.
    """
    watched = Watched(kafka, topic_prefix)
    topology, name = watched.topology, watched.settings.topic("evaluations")
    await topology.begin(await ensure_topics(watched.settings))
    before = topology.topic_id("evaluations")
    assert before is not None
    assert before != topology.topic_id("outcomes")
    await admin.delete_topics([name])
    await watched.until(lambda: bool(watched.faults.current))
    assert topology.partitions("evaluations") == 2
    await create_topics_at(kafka, name, partitions=2)
    await watched.until(lambda: bool(watched.remade))
    assert watched.remade == ["evaluations"]
    assert topology.topic_id("evaluations") not in (None, before)
    assert watched.faults.current == ()
    await topology.stop()


async def test_brokers_that_are_silent_or_away_end_nothing(
    own_kafka: LocalKafka, topic_prefix: str
) -> None:
    """What was known stays while no broker answers, and is refreshed by itself when one does."""
    watched = Watched(own_kafka.bootstrap, topic_prefix)
    await watched.topology.begin(await ensure_topics(watched.settings))
    own_kafka.pause()

    async def refresh_until_it_fails() -> None:
        while True:  # the signal takes a moment to stop all of the broker's threads
            await watched.topology.refresh()

    with pytest.raises(EventLogUnavailable, match="no answer in time"):
        await refresh_until_it_fails()
    own_kafka.resume()
    own_kafka.kill9()
    with pytest.raises(EventLogUnavailable):
        await watched.topology.refresh()
    assert watched.topology.partitions("state") == 2
    await asyncio.to_thread(own_kafka.start)
    admin = AIOKafkaAdminClient(bootstrap_servers=own_kafka.bootstrap)
    await admin.start()
    await admin.create_partitions({watched.settings.topic("state"): NewPartitions(3)})
    await admin.close()
    await watched.until(lambda: watched.topology.partitions("state") == 3, seconds=30)
    await watched.topology.stop()
