"""A Kafka-protocol broker inside a wheel: librdkafka's mock cluster, run as a process of its own.

Real protocol over TCP, groups with one member each, a few megabytes of each partition, nothing kept
on exit: right for a demo, wrong for production. `python -m controller.demo.broker` prints its
address and serves until it is killed. It is driven through librdkafka's C interface
(rdkafka_mock.h), because the Python client's own way to it leaves a new group waiting for 3 s.
"""

from __future__ import annotations

import ctypes
import signal

from controller.settings import TopicNames

#: As many as the mock would give a topic on first use. Both event topics need the same number.
PARTITIONS = 4
_PRODUCER = 0  # RD_KAFKA_PRODUCER: the cluster lives in a client, whose kind does not matter
_ERROR_CHARS = 512


class MockCluster:
    """One broker with rolloutd's topics, for as long as the process lives."""

    def __init__(self) -> None:
        """Start it. Raises RuntimeError when librdkafka will not.

        And AttributeError for one without a mock cluster.
        """
        from confluent_kafka import cimpl

        library = ctypes.CDLL(
            cimpl.__file__
        )  # symbols are looked up in what it depends on, too: the wheel's librdkafka
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(library, name).restype = ctypes.c_void_p
        library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        error = ctypes.create_string_buffer(_ERROR_CHARS)
        options = ctypes.c_void_p(library.rd_kafka_conf_new())
        library.rd_kafka_conf_set(
            options, b"log_level", b"3", error, _ERROR_CHARS
        )  # it warns that it connects to nobody
        client = library.rd_kafka_new(_PRODUCER, options, error, _ERROR_CHARS)
        cluster = (
            ctypes.c_void_p(library.rd_kafka_mock_cluster_new(ctypes.c_void_p(client), 1))
            if client
            else None
        )
        if not cluster:
            raise RuntimeError(
                f"librdkafka starts no mock cluster: "
                f"{error.value.decode() or 'it does not say why'}"
            )
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, ctypes.c_int32(0))
        for topic in TopicNames().model_dump().values():
            code = library.rd_kafka_mock_topic_create(cluster, str(topic).encode(), PARTITIONS, 1)
            if code != 0:
                raise RuntimeError(f"librdkafka makes no topic {topic}: error {code}")
        self.bootstrap: str = library.rd_kafka_mock_cluster_bootstraps(cluster).decode()


def main() -> None:
    """Print the address on a line of its own, then serve."""
    print(MockCluster().bootstrap, flush=True)  # noqa: T201 - what the parent reads
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
