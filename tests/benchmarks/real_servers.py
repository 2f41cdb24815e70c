"""Runs a benchmark on a real Kafka and a Redis of its own."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from tests.brokers import RedisServer, start_kafka


def run_on_real_servers(measure: Callable[[str, str, Path], Coroutine[Any, Any, bool]]) -> int:
    """Return the exit code: 0 if `measure` was content, 1 if not, 2 without a real Kafka.

    `measure` gets the Kafka's address, the Redis' URL and an empty directory.
    """
    kafka = start_kafka()
    try:
        print(f"Kafka: {kafka.description}", flush=True)
        if not kafka.is_real:
            print("this benchmark needs a real Kafka: install Java 17 and Maven, or start Docker")
            return 2
        with RedisServer() as server, tempfile.TemporaryDirectory() as directory:
            made = measure(kafka.bootstrap, server.url, Path(directory))
            return 0 if asyncio.run(made) else 1
    finally:
        kafka.stop()
