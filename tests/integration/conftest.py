"""What several integration tests need."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from controller.adapters.kafka.event_log import KafkaEventLog
from controller.adapters.redis.connection import RedisConnection
from controller.counting.folding.native import batch_reader
from controller.settings import KafkaSettings
from tests.brokers import RedisServer
from tests.integration.event_logs import MakeLog


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for loopback, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    subject = ["-subj", "/CN=advisor", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    made = ["-newkey", "rsa:2048", "-noenc", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *subject, *made], check=True, capture_output=True)
    return certificate, key


@pytest.fixture
async def producer(kafka: str) -> AsyncIterator[AIOKafkaProducer]:
    """A plain producer."""
    made = AIOKafkaProducer(bootstrap_servers=kafka)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def make_log() -> AsyncIterator[MakeLog]:
    """`make_log(settings)` gives a member that is stopped after the test."""
    made: list[KafkaEventLog] = []

    def make(settings: KafkaSettings, topics: Sequence[str] | None = None) -> KafkaEventLog:
        member = KafkaEventLog(
            settings,
            topics or [settings.topic("evaluations")],
            settings.events_group,
            bare_records=True,
            read_batches=batch_reader(),
        )
        made.append(member)
        return member

    yield make
    await asyncio.gather(*(member.stop() for member in made))


@pytest.fixture
async def store(own_redis: RedisServer) -> AsyncIterator[RedisConnection]:
    """A store on a server of the test's own, impatient: a try takes 150 ms, a call 600 ms."""
    store = RedisConnection.connect(own_redis.url, try_seconds=0.15, deadline_seconds=0.6)
    yield store
    await store.close()
