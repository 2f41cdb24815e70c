"""The same traffic in every event format, through the real ingest on Kafka and Redis."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pytest
from aiokafka import AIOKafkaProducer

from controller.adapters.kafka.event_log import KafkaEventLog
from controller.adapters.kafka.shared_topic import SharedTopic, streams
from controller.adapters.kafka.topics import partition_of
from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.totals import RedisTotals
from controller.clock import SystemClock
from controller.core.evidence import ArmTotals
from controller.counting.ingest import Ingest
from controller.counting.refusals import RefusalBatch
from controller.settings import CountingSettings, KafkaSettings
from controller.telemetry import Metrics
from schemas.formats import evaluation_reader, outcome_reader
from schemas.terms import Arm, EventFormat
from tests.brokers import RedisServer, create_topics_at
from tests.builders import MINUTE, T0, make_guardrail, make_plan, make_rollout
from tests.records import at_ms, evaluation_value, outcome_value, refusals_in
from tests.telemetry import Request, export_of_logs, export_of_spans

PARTITIONS = 4
AT_MS = at_ms(T0 + 5 * MINUTE)
FLAG = "new-checkout"
REQUESTS_PER_EXPORT = 40

Written = tuple[str, int, bytes]
"""Logical topic, partition, value."""


def make_traffic() -> list[Request]:
    """Return 900 requests of 250 users, some of whom fail, pay.

    Or evaluate a flag nobody rolls out.
    """
    chance = random.Random(5)
    arms = {f"u{number}": chance.choice(["on", "off"]) for number in range(250)}
    latencies = {context: chance.randrange(1, 900) for context in arms}
    requests = []
    for number in range(900):
        context = f"u{chance.randrange(250)}"
        flags = [(FLAG, arms[context])]
        if chance.random() < 0.2:
            flags.append(("unrelated", "on"))
        requests.append(
            Request(
                context,
                flags,
                AT_MS + number,
                latency_ms=latencies[context],
                error=chance.random() < 0.05,
                conversions=["paid"] if chance.random() < 0.3 else [],
            )
        )
    return requests


def in_our_format(requests: Iterable[Request]) -> list[Written]:
    """Return an evaluation record per flag and an outcome record per request."""
    written: list[Written] = []
    for one in requests:
        partition = partition_of(one.context, PARTITIONS)
        written += [
            (
                "evaluations",
                partition,
                evaluation_value(one.context, variant, time_ms=one.at_ms, flag=flag),
            )
            for flag, variant in one.flags
        ]
        value = outcome_value(
            one.context,
            time_ms=one.at_ms,
            flags=one.flags,
            error=one.error,
            latency_ms=one.latency_ms,
            conversions=one.conversions,
        )
        written.append(("outcomes", partition, value))
    return written


def by_go_feature_flag(requests: Iterable[Request]) -> list[Written]:
    """Return evaluations as GO Feature Flag exports them, in milliseconds, and our outcomes."""
    written = [one for one in in_our_format(requests) if one[0] == "outcomes"]
    for one in requests:
        for flag, variant in one.flags:
            event = {
                "kind": "feature",
                "userKey": one.context,
                "creationDate": one.at_ms,
                "key": flag,
                "variation": variant,
            }
            written.append(
                ("evaluations", partition_of(one.context, PARTITIONS), json.dumps(event).encode())
            )
    return written


def exports(
    requests: Iterable[Request], encoding: EventFormat, *, with_logs: bool
) -> list[Written]:
    """Return exports as a Collector keyed by context writes them.

    Logs and spans, or spans alone.
    """
    written: list[Written] = []
    by_partition: dict[int, list[Request]] = {}
    for one in requests:
        by_partition.setdefault(partition_of(one.context, PARTITIONS), []).append(one)
    for partition, ours in by_partition.items():
        for begin in range(0, len(ours), REQUESTS_PER_EXPORT):
            batch = ours[begin : begin + REQUESTS_PER_EXPORT]
            if with_logs:
                written.append(("evaluations", partition, export_of_logs(batch, encoding)))
            written.append(("outcomes", partition, export_of_spans(batch, encoding)))
    return written


@dataclass(frozen=True, eq=False)
class Way:
    """One way to write the traffic."""

    name: str
    evaluations: EventFormat
    outcomes: EventFormat
    written: Sequence[Written]
    is_one_topic: bool = False


def ways(requests: list[Request]) -> list[Way]:
    """Return every way there is."""
    ours, go = EventFormat.ROLLOUTD, EventFormat.GO_FEATURE_FLAG
    found = [
        Way("ours", ours, ours, in_our_format(requests)),
        Way("go", go, ours, by_go_feature_flag(requests)),
    ]
    for each in (EventFormat.OTLP_JSON, EventFormat.OTLP_PROTO):
        found.append(Way(f"{each}.logs", each, each, exports(requests, each, with_logs=True)))
        found.append(
            Way(
                f"{each}.spans",
                each,
                each,
                exports(requests, each, with_logs=False),
                is_one_topic=True,
            )
        )
    return found


class Member:
    """A single member that counts one way's topics."""

    def __init__(self, bootstrap: str, prefix: str, way: Way, store: RedisConnection) -> None:
        topics = {"evaluations": "otlp_spans", "outcomes": "otlp_spans"} if way.is_one_topic else {}
        formats = {"evaluations": way.evaluations, "outcomes": way.outcomes}
        self.settings = KafkaSettings.model_validate(
            {
                "bootstrap_servers": bootstrap,
                "topic_prefix": f"{prefix}{way.name}.",
                "topics": topics,
                "formats": formats,
                "partitions": PARTITIONS,
            }
        )
        self.streams = streams(self.settings.event_topics)
        self.totals = RedisTotals(store)
        self.refused: set[tuple[str, int, int]] = set()
        self.log = KafkaEventLog(
            self.settings,
            sorted(set(self.settings.event_topics)),
            self.settings.events_group,
            bare_records=True,
        )
        self.ingest = Ingest(
            SharedTopic(self.log) if way.is_one_topic else self.log,
            self.totals,
            clock=SystemClock(),
            metrics=Metrics(version="test"),
            settings=CountingSettings(),
            topics=self.streams,
            epoch=1,
            quarantine=self.quarantine,
            on_saved=lambda: None,
            read_evaluations=evaluation_reader(way.evaluations, of_spans=way.is_one_topic),
            read_outcomes=outcome_reader(way.outcomes),
        )
        plan = make_plan(guardrails=(make_guardrail(), make_guardrail(metric="conversion:paid")))
        self.ingest.count_for(make_rollout(plan=plan))

    @property
    def keys(self) -> list[str]:
        """The keys of everything counted."""
        return [f"{stream}/{number}/1" for stream in self.streams for number in range(PARTITIONS)]

    async def quarantine(self, batches: Sequence[RefusalBatch]) -> None:
        self.refused.update(
            (batch.topic, batch.partition, refusal.offset)
            for batch in batches
            for refusal in refusals_in([batch.refusals])
        )

    async def count(self, records: int) -> dict[Arm, ArmTotals]:
        """Count until every fence has passed all records, and return the arms."""
        await self.log.start()
        running = asyncio.create_task(self.ingest.run())
        try:
            async with asyncio.timeout(60):
                while (
                    sum(each.next_offset for each in (await self.totals.read(self.keys, {}))[1])
                    < records
                ):
                    if running.done():
                        running.result()
                    await asyncio.sleep(0.05)
            await self.ingest.stop()
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await self.log.stop()
        totals, _ = await self.totals.read(self.keys, {FLAG: ("start-1", [0])})
        return {arm: totals[FLAG][0].arm(arm) for arm in Arm}


def told(arm: ArmTotals) -> tuple[object, ...]:
    """Return the totals that do not depend on where batches were cut."""
    return (
        *(arm.evaluations, arm.exposures, arm.switched, arm.outcomes, arm.errors, arm.first_errors),
        *(dict(arm.converted), arm.latency.keys()),
    )


@pytest.mark.real_kafka
async def test_every_format_gives_the_same_totals(
    kafka: str, own_redis: RedisServer, topic_prefix: str
) -> None:
    """Every event format gives identical totals for the same traffic."""
    requests = make_traffic()
    store = RedisConnection.connect(own_redis.url)
    members = {way: Member(kafka, topic_prefix, way, store) for way in ways(requests)}
    try:
        counted = await asyncio.gather(
            *(written_and_counted(kafka, way, member) for way, member in members.items())
        )
    finally:
        await store.close()
    found = {
        way.name: {arm: told(totals) for arm, totals in arms.items()}
        for way, arms in zip(members, counted, strict=True)
    }
    assert len(found) == 6
    assert sum(one.flags[0] == (FLAG, "on") for one in requests) == found["ours"][Arm.TREATMENT][0]
    for name, arms_found in found.items():
        assert arms_found == found["ours"], name


async def written_and_counted(kafka: str, way: Way, member: Member) -> dict[Arm, ArmTotals]:
    """Write one way's records, with poison before and after, and return the arms.

    The poison alone is refused.
    """
    # The traffic is months old: a topic as we create it would soon be emptied by its retention.
    await create_topics_at(
        kafka,
        *sorted(set(member.settings.event_topics)),
        partitions=PARTITIONS,
        configs={"retention.ms": "-1"},
    )
    poison: list[Written] = [("outcomes", number, b"{") for number in range(PARTITIONS)]
    records = [*poison, *way.written, *poison]
    producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all", linger_ms=5)
    try:
        await producer.start()
        sent = [
            await producer.send(
                member.settings.topic(topic),
                value,
                partition=partition,
                timestamp_ms=AT_MS + 10_000,
            )
            for topic, partition, value in records
        ]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()
    arms = await member.count(len(records) * (1 + way.is_one_topic))
    poisoned = member.streams if way.is_one_topic else member.streams[1:]
    assert {(topic, partition) for topic, partition, _ in member.refused} == {
        (stream, number) for stream in poisoned for number in range(PARTITIONS)
    }
    assert len(member.refused) == 2 * len(poison) * len(poisoned)
    return arms
