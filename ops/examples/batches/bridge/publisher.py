"""Publishes records to Kafka, and what was published with them, in one transaction.

rolloutd reads what was committed. So a crash at any moment loses nothing and repeats nothing: the
memory in the bridge's own topic says exactly what became of every event. A second bridge of the
same name takes over, and the first one can publish nothing more.

Belongs here: Kafka. Does not belong here: what is remembered (`ledger.py`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from batches.bridge.ledger import Record

_HEADERS: list[tuple[str, str | bytes | None]] = [
    ("content-type", b"application/cloudevents+json; charset=UTF-8")
]
_SECONDS = 20.0
_LOOK_BACK = 50  # records and the marks of transactions between them


class TopicMissing(Exception):
    """The topic for the bridge's memory is not there. The message says how to create it."""


class Publisher:
    """One bridge's way to Kafka, and its memory."""

    def __init__(
        self,
        bootstrap: str,
        name: str,
        topic: str,
        prefix: str = "",
        *,
        has_transactions: bool = True,
    ) -> None:
        """`name` is the bridge's: the key of its memory in `topic`, and its transactional id.

        `prefix` goes before the names of rolloutd's topics.

        Without transactions, for a broker that has none, the memory is stored after the records: a
        crash between repeats the records, with the same ids. Raises KafkaException when Kafka is
        away, TopicMissing when there is no `topic`.
        """
        self._name = name
        self._topic = topic
        self._prefix = prefix
        self._bootstrap = bootstrap
        self._has_transactions = has_transactions
        self._failed: list[KafkaError] = []
        identity = (
            {"transactional.id": f"{prefix}prefect-bridge-{name}"} if has_transactions else {}
        )
        self._producer = Producer(
            {
                **identity,
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "linger.ms": 5,
                # Java's, aiokafka's and rolloutd's own: the events of a context must meet.
                "partitioner": "murmur2_random",
                "log_level": 2,
            }
        )
        _check_topic(self._producer, topic)
        if has_transactions:
            self._producer.init_transactions(_SECONDS)  # ends what one of this name has begun

    def stored(self) -> bytes | None:
        """Return the memory that was committed last, None for none."""
        consumer = Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": f"prefect-bridge-{self._name}",  # needed, and not used
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "log_level": 2,
            }
        )
        try:
            whole = TopicPartition(self._topic, 0)
            low, high = consumer.get_watermark_offsets(whole, timeout=_SECONDS)
            back = _LOOK_BACK
            while high > low:
                first = max(low, high - back)
                found = self._last_since(consumer, first)
                if found is not None or first == low:
                    return found
                back *= 10
            return None
        finally:
            consumer.close()

    def publish(self, records: Sequence[Record], memory: bytes) -> None:
        """Publish all of it or nothing.

        Raises KafkaException: nothing is known then but what `stored` of a new Publisher says.
        """
        if self._has_transactions:
            self._producer.begin_transaction()
        for record in records:
            self._produce(self._prefix + record.topic, record.key, record.value, headers=_HEADERS)
        if not self._has_transactions:
            self._until_delivered()
        self._produce(self._topic, self._name, memory, partition=0)
        if self._has_transactions:
            self._producer.commit_transaction(_SECONDS)
        else:
            self._until_delivered()

    def _produce(self, topic: str, key: str, value: bytes, **options: Any) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key, on_delivery=self._delivered, **options)
            except BufferError:
                self._producer.poll(0.1)  # its queue is full
            else:
                return

    def _delivered(self, error: KafkaError | None, _: object) -> None:
        if error is not None:
            self._failed.append(error)

    def _until_delivered(self) -> None:
        waiting = self._producer.flush(_SECONDS)
        if self._failed:
            raise KafkaException(self._failed[0])
        if waiting:
            raise KafkaException(f"{waiting} records were not taken within {_SECONDS:g} s")

    def _last_since(self, consumer: Consumer, first: int) -> bytes | None:
        found: bytes | None = None
        consumer.assign([TopicPartition(self._topic, 0, first)])
        while True:
            message = consumer.poll(_SECONDS)
            if message is None:
                raise KafkaException(f"{self._topic} was not read to its end within {_SECONDS} s")
            if (error := message.error()) is not None:
                if error.name() == "_PARTITION_EOF":
                    return found
                raise KafkaException(error)
            if message.key() == self._name.encode():
                found = message.value()


def _check_topic(producer: Producer, topic: str) -> None:
    """Make Kafka create the topic where it does so by itself.

    Raises TopicMissing where it does not.
    """
    deadline = time.monotonic() + _SECONDS
    while not producer.list_topics(topic, _SECONDS).topics[topic].partitions:
        if time.monotonic() > deadline:
            raise TopicMissing(
                f"no topic {topic}: create it with one partition and cleanup.policy=compact"
            )
        time.sleep(0.2)
