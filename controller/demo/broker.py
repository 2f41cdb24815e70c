"""A Kafka-protocol broker inside a wheel: librdkafka's mock cluster, run as a process of its own.

It has the real protocol over TCP, groups with one member each, and a few megabytes of each
partition, and it keeps nothing on exit: enough for a demo, not for production.
`python -m controller.demo.broker` prints its address and serves until it is killed. It is driven
through librdkafka's C interface (rdkafka_mock.h), because through the Python client a new group
waits for 3 s.
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
        """Start the broker.

        Raises RuntimeError when librdkafka refuses, AttributeError when it has no mock cluster.
        """
        from confluent_kafka import cimpl

        # Symbols are also looked up in what the library depends on: the wheel's librdkafka.
        library = ctypes.CDLL(cimpl.__file__)
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(library, name).restype = ctypes.c_void_p
        library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        error = ctypes.create_string_buffer(_ERROR_CHARS)
        options = ctypes.c_void_p(library.rd_kafka_conf_new())
        # Its warning that it has no broker to connect to is not printed.
        library.rd_kafka_conf_set(options, b"log_level", b"3", error, _ERROR_CHARS)
        client = library.rd_kafka_new(_PRODUCER, options, error, _ERROR_CHARS)
        cluster = (
            ctypes.c_void_p(library.rd_kafka_mock_cluster_new(ctypes.c_void_p(client), 1))
            if client
            else None
        )
        if not cluster:
            raise RuntimeError(
                f"librdkafka starts no mock cluster: {error.value.decode() or 'it gives no reason'}"
            )
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, ctypes.c_int32(0))
        for topic in TopicNames().model_dump().values():
            code = library.rd_kafka_mock_topic_create(cluster, str(topic).encode(), PARTITIONS, 1)
            if code != 0:
                raise RuntimeError(f"librdkafka makes no topic {topic}: error {code}")
        self.bootstrap: str = library.rd_kafka_mock_cluster_bootstraps(cluster).decode()


def main() -> None:
    """Print the address on its own line, then serve."""
    print(MockCluster().bootstrap, flush=True)  # noqa: T201
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
