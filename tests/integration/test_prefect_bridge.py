"""The Prefect bridge as a process, on a real Kafka, killed at any moment.

Prefect is a server of the test's own that answers as its events API does, in pages, and fails now
and then. The real one is met by `make test-prefect`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from batches.bridge.ledger import Record
from batches.bridge.publisher import Publisher
from confluent_kafka import KafkaException

from tests.conftest import CreateTopics

pytestmark = pytest.mark.real_kafka

ROOT = Path(__file__).parents[2]
PAGE = 50
PARTITIONS = 4
KILLS = 12
LONGEST_SECONDS = 120.0


class Prefect:
    """Events as Prefect stores them, and every fifth answer a failure."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._answers = 0

    def run(self, number: int) -> None:
        """Let a task run ask for a flag and end; the two are stored in any order."""
        run, now = f"prefect.task-run.{number:08}", datetime.now(UTC)
        asked = {
            "id": f"asked-{number}",
            "event": "rolloutd.evaluation",
            "occurred": (now - timedelta(milliseconds=400)).isoformat(),
            "resource": {"prefect.resource.id": "rolloutd.flag.f"},
            "related": [{"prefect.resource.id": run, "prefect.resource.role": "task-run"}],
            "payload": {"flag": "f", "variant": "on", "context_id": f"batch-{number}"},
        }
        ended = {
            "id": f"ended-{number}",
            "event": "prefect.task-run.Completed",
            "occurred": now.isoformat(),
            "resource": {
                "prefect.resource.id": run,
                "prefect.run-count": "1",
                "prefect.state-type": "COMPLETED",
                "prefect.state-name": "Completed",
            },
            "related": [],
            "payload": {"task_run": {"total_run_time": 0.4}},
        }
        with self._lock:
            self.events += random.sample([asked, ended], 2)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Return status and body."""
        self._answers += 1
        if self._answers % 5 == 0:
            return 503, {}
        if path.endswith("runs/filter"):
            return 200, []
        query = parse_qs(urlsplit(path).query)
        token = {**body.get("filter", {}), "first": 0}
        if query:
            token = json.loads(base64.urlsafe_b64decode(query["page-token"][0]))
        since, until = (datetime.fromisoformat(token["occurred"][end]) for end in _ENDS)
        wants_asked = "name" in token["event"]
        with self._lock:
            found = sorted(
                (
                    event
                    for event in self.events
                    if (event["event"] == "rolloutd.evaluation") is wants_asked
                    and since <= datetime.fromisoformat(event["occurred"]) <= until
                ),
                key=lambda event: str(event["occurred"]),
            )
        first = token["first"]
        token["first"] = first + PAGE
        encoded = base64.urlsafe_b64encode(json.dumps(token).encode()).decode()
        after = f"http://elsewhere/api/events/filter/next?page-token={encoded}"
        rest = found[first : first + PAGE]
        return 200, {"events": rest, "next_page": after if len(found) > first + PAGE else None}


_ENDS = ("since", "until")


@pytest.fixture
def prefect() -> Iterator[tuple[Prefect, str]]:
    """The server and its address."""
    prefect = Prefect()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            status, answer = prefect.answer(self.path, body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield prefect, f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    thread.join()
    server.server_close()


class Bridge:
    """The bridge as a process."""

    def __init__(self, api_url: str, kafka: str, prefix: str, log: Path) -> None:
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "batches.bridge"],
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT / "ops" / "examples"),
                    "PREFECT_API_URL": api_url,
                    "KAFKA": kafka,
                    "TOPIC_PREFIX": prefix,
                },
                stdout=output,
                stderr=output,
            )

    def kill(self) -> None:
        """End it in any case: a test that failed must leave nothing behind."""
        self.process.kill()
        self.process.wait(30)

    def end(self, number: int) -> int:
        """End it by a signal and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


async def ids_in(kafka: str, topic: str) -> Counter[str]:
    """Return the ids of what was committed to a topic, with how often each is there."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka, isolation_level="read_committed")
    try:
        await consumer.start()
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        seen: Counter[str] = Counter()
        while any([await consumer.position(one) < ends[one] for one in partitions]):
            for batch in (await consumer.getmany(timeout_ms=500)).values():
                seen.update(json.loads(record.value)["id"] for record in batch)
        return seen
    finally:
        await consumer.stop()


@pytest.fixture
def started() -> Iterator[list[Bridge]]:
    """Bridges that are killed after the test."""
    bridges: list[Bridge] = []
    yield bridges
    for bridge in bridges:
        bridge.kill()


async def test_killed_at_any_moment_it_loses_nothing_and_repeats_nothing(
    prefect: tuple[Prefect, str],
    kafka: str,
    topic_prefix: str,
    create_topics: CreateTopics,
    tmp_path: Path,
    started: list[Bridge],
) -> None:
    """After a dozen kills each run has one evaluation and one outcome."""
    server, api_url = prefect
    names = [f"{topic_prefix}flag.evaluations", f"{topic_prefix}request.outcomes"]
    await create_topics(*names, partitions=PARTITIONS)
    memory = f"{topic_prefix}prefect.bridge"
    await create_topics(memory, partitions=1, configs={"cleanup.policy": "compact"})
    log = tmp_path / "bridge.log"
    number = 0
    for _ in range(KILLS):
        started.append(bridge := Bridge(api_url, kafka, topic_prefix, log))
        until = time.monotonic() + random.uniform(0.3, 3.0)
        while time.monotonic() < until:
            server.run(number := number + 1)
            await asyncio.sleep(random.uniform(0.0, 0.1))
        assert bridge.process.poll() is None, log.read_text()
        bridge.end(signal.SIGKILL)
    expected_asked = {f"asked-{one}" for one in range(1, number + 1)}
    expected_ended = {f"task-run.{one:08}/1/f/COMPLETED" for one in range(1, number + 1)}
    started.append(bridge := Bridge(api_url, kafka, topic_prefix, log))
    deadline = time.monotonic() + LONGEST_SECONDS
    asked: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    while set(asked) != expected_asked or set(ended) != expected_ended:
        assert time.monotonic() < deadline, log.read_text()[-2_000:]
        asked, ended = await ids_in(kafka, names[0]), await ids_in(kafka, names[1])
    assert bridge.end(signal.SIGTERM) == 0, log.read_text()
    assert set(asked.values()) == set(ended.values()) == {1}


async def test_a_second_bridge_of_the_same_name_ends_the_first(
    prefect: tuple[Prefect, str],
    kafka: str,
    topic_prefix: str,
    create_topics: CreateTopics,
    tmp_path: Path,
    started: list[Bridge],
) -> None:
    """The first says why, and publishes nothing more."""
    server, api_url = prefect
    names = [f"{topic_prefix}flag.evaluations", f"{topic_prefix}request.outcomes"]
    await create_topics(*names, partitions=PARTITIONS)
    await create_topics(f"{topic_prefix}prefect.bridge", partitions=1)
    first_log, second_log = tmp_path / "first.log", tmp_path / "second.log"
    bridges = started
    bridges.append(Bridge(api_url, kafka, topic_prefix, first_log))
    deadline = time.monotonic() + LONGEST_SECONDS
    while "published" not in first_log.read_text():
        assert time.monotonic() < deadline, first_log.read_text()
        await asyncio.sleep(0.1)
    bridges.append(Bridge(api_url, kafka, topic_prefix, second_log))
    number = 0
    while bridges[0].process.poll() is None:
        assert time.monotonic() < deadline, first_log.read_text()
        server.run(number := number + 1)
        await asyncio.sleep(0.2)
    assert bridges[0].process.returncode == 1
    assert "has taken over" in first_log.read_text()
    while set(ended := await ids_in(kafka, names[1])) != {
        f"task-run.{one:08}/1/f/COMPLETED" for one in range(1, number + 1)
    }:
        assert time.monotonic() < deadline, second_log.read_text()
    assert bridges[1].end(signal.SIGTERM) == 0, second_log.read_text()
    assert set(ended.values()) == {1}


async def test_records_without_the_memory_of_them_never_happened(
    kafka: str, topic_prefix: str, create_topics: CreateTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bridge that ends between the two publishes neither, and the next one publishes both."""
    names = [f"{topic_prefix}flag.evaluations", f"{topic_prefix}request.outcomes"]
    await create_topics(*names, partitions=PARTITIONS)
    memory = f"{topic_prefix}prefect.bridge"
    await create_topics(memory, partitions=1)
    record = Record("flag.evaluations", "batch-1", b'{"id": "asked-1"}')
    produce = Publisher._produce

    def dies_at_the_memory(
        publisher: Publisher, topic: str, key: str, value: bytes, **options: Any
    ) -> None:
        if topic == memory:
            publisher._producer.flush(30)  # the records are in Kafka
            raise KafkaException("killed")
        produce(publisher, topic, key, value, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "_produce", dies_at_the_memory)
        first = Publisher(kafka, "test", memory, topic_prefix)
        with pytest.raises(KafkaException, match="killed"):
            first.publish([record], b"{}")
    second = Publisher(kafka, "test", memory, topic_prefix)
    assert second.stored() is None
    assert await ids_in(kafka, names[0]) == {}
    second.publish([record], b"what is known")
    assert second.stored() == b"what is known"
    assert await ids_in(kafka, names[0]) == {"asked-1": 1}
