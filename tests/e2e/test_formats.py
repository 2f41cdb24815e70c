"""The installed daemon on what an instrumented fleet writes.

Spans alone, through a Collector, in OTLP protobuf.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from controller.adapters.kafka.topics import partition_of
from schemas.terms import CommandVerb, EventFormat
from tests.live import Client, DaemonProcess, Traffic, quick_plan
from tests.telemetry import Request, export_of_spans

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"
PARTITIONS = 4
REQUESTS_PER_EXPORT = 20


class Instrumented(Traffic):
    """Apps that emit server spans, which a Collector puts into one topic, keyed by context."""

    def __init__(self, client: Client, daemon: DaemonProcess) -> None:
        super().__init__(client, daemon, FLAG, error_rates={"on": 0.5, "off": 0.05})
        self._waiting: dict[int, list[Request]] = {}  # by partition

    async def request(self, user: str) -> None:
        variant = "on" if self._bucket(user) < self._weight else "off"
        is_error = self._random.random() < self.error_rates[variant]
        waiting = self._waiting.setdefault(partition_of(user, PARTITIONS), [])
        waiting.append(Request(user, [(FLAG, variant)], round(time.time() * 1000), error=is_error))
        if len(waiting) == REQUESTS_PER_EXPORT:
            export = export_of_spans(waiting, EventFormat.OTLP_PROTO)
            topic = f"{self._client.prefix}otlp_spans"
            await self._client.producer.send(
                topic, export, partition=partition_of(user, PARTITIONS)
            )
            waiting.clear()


async def test_failing_spans_roll_a_release_back(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """With one topic of spans for both, spans that fail in treatment bring the flag to 0 %.

    Poison among them stops nothing.
    """
    settings = {
        "ROLLOUTD_KAFKA__TOPICS__EVALUATIONS": "otlp_spans",
        "ROLLOUTD_KAFKA__TOPICS__OUTCOMES": "otlp_spans",
        "ROLLOUTD_KAFKA__FORMATS__EVALUATIONS": "otlp_proto",
        "ROLLOUTD_KAFKA__FORMATS__OUTCOMES": "otlp_proto",
    }
    async with (
        DaemonProcess(kafka, redis_url, tmp_path, prefix=topic_prefix, **settings) as daemon,
        Client(kafka, topic_prefix) as client,
    ):
        await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG))
        for partition in range(PARTITIONS):
            await client.producer.send(f"{topic_prefix}otlp_spans", b"poison", partition=partition)
        async with Instrumented(client, daemon):
            document = await daemon.until(
                FLAG, lambda doc: doc["phase"]["name"] == "rolled_back", 30
            )
        assert document["percent"] == 0
        assert {one["reason"] for one in await client.refusals(PARTITIONS)} == {"not_otlp"}
        quarantined = [event["data"] for event in await client.read("rollout.quarantine")]
        assert {one["topic"] for one in quarantined} == {f"{topic_prefix}otlp_spans"}
        assert await daemon.stop() == 0
