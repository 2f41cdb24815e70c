"""Finding the records of a time in a broker that does not look times up: that of the demo."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from aiokafka import AIOKafkaProducer

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.demo.environment import until
from controller.demo.processes import ProcessTree
from controller.settings import KafkaSettings


@pytest.fixture
def tree() -> Iterator[ProcessTree]:
    """Processes that end with the test."""
    with ProcessTree() as made:
        yield made


async def test_records_are_found_by_time_though_the_broker_names_none(tree: ProcessTree) -> None:
    """It says that no record is so young; `rolloutctl events` would show nothing at all."""
    broker = tree.start_python("broker", "-m", "controller.demo.broker")
    address = await until(
        broker, lambda: re.search(r"127\.0\.0\.1:\d+", broker.output()), "gave no address"
    )
    settings = KafkaSettings(bootstrap_servers=address[0])
    topic = settings.topic("evaluations")
    producer = AIOKafkaProducer(bootstrap_servers=address[0])
    await producer.start()
    for second in range(20):
        await producer.send_and_wait(topic, b"{}", partition=1, timestamp_ms=1000 * second + 1)
    await producer.send_and_wait(topic, b"{}", partition=2, timestamp_ms=1)
    await producer.stop()
    async with KafkaReader(settings, ["evaluations"]) as reader:
        for second, expected in ((0, 0), (7, 7), (19, 19), (20, 20)):
            at = datetime.fromtimestamp(second, UTC)
            offsets = await reader.offsets_at(at, "evaluations")
            by_number = {one.partition: offset for one, offset in offsets.items()}
            assert by_number == {0: 0, 1: expected, 2: 0 if second == 0 else 1, 3: 0}
