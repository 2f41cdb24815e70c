"""Counting on a real Kafka and Redis.

Members come, go and crash, and an independent recount finds each event once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from controller.adapters.kafka.event_log import KafkaEventLog
from controller.adapters.kafka.topics import ensure_topics
from controller.adapters.kafka.topology import KafkaTopology
from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.totals import RedisTotals
from controller.clock import SystemClock
from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.evidence import Evidence
from controller.core.judging.gate import judge
from controller.counting.folding.context_sets import digest_of
from controller.counting.folding.duplicates import NOT_SAMPLED
from controller.counting.ingest import Ingest
from controller.counting.refusals import RefusalBatch
from controller.health import Faults, Scope
from controller.settings import CountingSettings, KafkaSettings
from controller.telemetry import Metrics
from schemas.terms import HealthGap
from schemas.wire import read_evaluations, read_outcomes
from tests.brokers import RedisServer, create_topics_at
from tests.builders import MINUTE, T0, make_rollout
from tests.conftest import CreateTopics
from tests.records import at_ms, evaluation_value, outcome_value, refusals_in

pytestmark = pytest.mark.real_kafka

PARTITIONS = 4
AT_MS = at_ms(T0 + 5 * MINUTE)


class Group:
    """Members of one counting group, and what they refused."""

    def __init__(self, bootstrap: str, prefix: str, store: RedisConnection) -> None:
        self.settings = KafkaSettings.model_validate(
            {
                "bootstrap_servers": bootstrap,
                "topic_prefix": prefix,
                "session_timeout_seconds": 6.0,
                "heartbeat_interval_seconds": 0.5,
                "request_timeout_seconds": 8.0,
            }
        )
        self.totals = RedisTotals(store)
        self.refused: set[tuple[str, int, int]] = set()
        self.tasks: list[asyncio.Task[None]] = []
        self.members: list[tuple[Ingest, KafkaEventLog]] = []
        self.faults = Faults(SystemClock().now)
        self.topology = KafkaTopology(
            self.settings, self.faults, remade=self._remade, refresh_seconds=0.2
        )

    def _remade(self, logical: str) -> None:
        for _, log in self.members:
            log.topic_remade(self.settings.topic(logical))

    @property
    def keys(self) -> list[str]:
        """The partitions' keys."""
        return [
            f"{topic}/{number}/1"
            for topic in self.settings.event_topics
            for number in range(PARTITIONS)
        ]

    async def quarantine(self, batches: Sequence[RefusalBatch]) -> None:
        self.refused.update(
            (batch.topic, batch.partition, refusal.offset)
            for batch in batches
            for refusal in refusals_in([batch.refusals])
        )

    async def add(self) -> int:
        """Start one more member and return its number."""
        log = KafkaEventLog(self.settings, self.settings.event_topics, self.settings.events_group)
        ingest = Ingest(
            log,
            self.totals,
            clock=SystemClock(),
            metrics=Metrics(version="test"),
            settings=CountingSettings(),
            topics=self.settings.event_topics,
            epoch=1,
            quarantine=self.quarantine,
            on_saved=lambda: None,
            read_evaluations=read_evaluations,
            read_outcomes=read_outcomes,
            faults=self.faults,
            topology=self.topology,
        )
        ingest.count_for(make_rollout())
        await log.start()
        self.tasks.append(asyncio.create_task(ingest.run()))
        self.members.append((ingest, log))
        return len(self.members) - 1

    async def crash(self, member: int) -> None:
        """End a member in the middle of whatever it does.

        Nothing is saved, nothing is handed over by it.
        """
        _, log = self.members[member]
        log.on_revoked(_do_nothing)
        self.tasks[member].cancel()
        await asyncio.gather(self.tasks[member], return_exceptions=True)
        await log.stop()

    async def stop(self, member: int) -> None:
        """End a member in order."""
        ingest, log = self.members[member]
        await ingest.stop()
        await self.tasks[member]
        await log.stop()

    async def close(self) -> None:
        """End everybody who is left."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.gather(*(log.stop() for _, log in self.members))
        await self.topology.stop()

    async def counted(self) -> int:
        """Return how many records the fences have passed."""
        _, progress = await self.totals.read(self.keys, {})
        return sum(each.next_offset for each in progress)


async def _do_nothing(partitions: object) -> None:
    """Save nothing, as a process that was killed."""


async def until_counted(group: Group, count: int, seconds: float = 60.0) -> None:
    """Wait until the fences have passed `count` records."""
    async with asyncio.timeout(seconds):
        while await group.counted() < count:
            for task in group.tasks:
                if task.done() and not task.cancelled():
                    task.result()
            await asyncio.sleep(0.05)


async def produce(bootstrap: str, events: Sequence[tuple[str, str, bytes]]) -> None:
    """Write (topic, context, value), keyed by context."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=5)
    try:
        await producer.start()
        sent = [
            await producer.send(topic, value, key=context.encode(), timestamp_ms=AT_MS)
            for topic, context, value in events
        ]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


@pytest.fixture
async def group(
    kafka: str, own_redis: RedisServer, topic_prefix: str, create_topics: CreateTopics
) -> AsyncIterator[Group]:
    """A group without members, its topics there."""
    store = RedisConnection.connect(own_redis.url)
    group = Group(kafka, topic_prefix, store)
    await create_topics(*group.settings.event_topics, partitions=PARTITIONS)
    yield group
    await store.close()


async def test_members_come_go_and_crash_and_each_event_counts_once(group: Group) -> None:
    """Through rebalances, crashes and an orderly stop, totals equal a recount of the records."""
    evaluations, outcomes = group.settings.event_topics
    chance = random.Random(11)
    events: list[tuple[str, str, bytes]] = []
    arms: dict[str, str] = {}
    failed: dict[str, set[str]] = {"on": set(), "off": set()}
    outcome_count = {"on": 0, "off": 0}
    poison = 0
    for number in range(4_000):
        context = f"u{chance.randrange(700)}"
        arm = arms.setdefault(context, chance.choice(["on", "off"]))
        events.append((evaluations, context, evaluation_value(context, arm, time_ms=AT_MS)))
        error = chance.random() < 0.05
        if error:
            failed[arm].add(context)
        outcome_count[arm] += 1
        flags = [("new-checkout", arm)]
        events.append(
            (
                outcomes,
                context,
                outcome_value(context, time_ms=AT_MS, flags=flags, error=error, latency_ms=7.0),
            )
        )
        if number % 50 == 0:
            poison += 1
            events.append((outcomes, context, b"{"))
    steps = [
        events[begin : begin + len(events) // 5 + 1]
        for begin in range(0, len(events), len(events) // 5 + 1)
    ]
    try:
        await produce(group.settings.bootstrap_servers, steps[0])
        first = await group.add()
        await until_counted(group, len(steps[0]))
        producing = asyncio.create_task(produce(group.settings.bootstrap_servers, steps[1]))
        second = await group.add()
        await producing
        await until_counted(group, len(steps[0]) + 1)
        await group.crash(first)
        await produce(group.settings.bootstrap_servers, steps[2])
        third = await group.add()
        await produce(group.settings.bootstrap_servers, steps[3])
        await group.stop(second)
        await produce(group.settings.bootstrap_servers, steps[4])
        await until_counted(group, len(events))
        await group.stop(third)
    finally:
        await group.close()
    totals, progress = await group.totals.read(group.keys, {"new-checkout": ("start-1", [0])})
    treatment, control = totals["new-checkout"][0].treatment, totals["new-checkout"][0].control
    for arm, found in (("on", treatment), ("off", control)):
        assert found.exposures == sum(variant == arm for variant in arms.values())
        assert found.evaluations == found.outcomes == outcome_count[arm]
        assert found.first_errors == len(failed[arm])
        assert 0 < sum(found.latency.values()) <= outcome_count[arm]
        assert found.switched == 0
    assert len(group.refused) == poison
    assert sum(each.next_offset for each in progress) == len(events)
    assert len(progress) == 2 * PARTITIONS


async def test_a_replay_of_a_part_of_the_outcomes_is_told(group: Group) -> None:
    """A third of treatment's outcomes sent again come back as that share.

    And the gate names arm and share.
    """
    evaluations, outcomes = group.settings.event_topics
    sample = [
        f"u{number}"
        for number in range(20_000)
        if not digest_of(f"u{number}".encode()) & NOT_SAMPLED
    ]
    events: list[tuple[str, str, bytes]] = []
    again: list[tuple[str, str, bytes]] = []
    for number, context in enumerate(sample):
        arm = ("on", "off")[number % 2]
        events.append((evaluations, context, evaluation_value(context, arm, time_ms=AT_MS)))
        happened = (
            outcomes,
            context,
            outcome_value(context, time_ms=AT_MS, flags=[("new-checkout", arm)], latency_ms=7.0),
        )
        events.append(happened)
        if number % 6 == 0:
            again.append(happened)
    try:
        member = await group.add()
        await produce(group.settings.bootstrap_servers, events)
        await until_counted(group, len(events))
        await produce(group.settings.bootstrap_servers, again)
        await until_counted(group, len(events) + len(again))
        await group.stop(member)
    finally:
        await group.close()
    visits, progress = await group.totals.read(group.keys, {"new-checkout": ("start-1", [0])})
    treatment, control = visits["new-checkout"][0].treatment, visits["new-checkout"][0].control
    assert (treatment.checked, treatment.repeated) == (treatment.outcomes, len(again))
    assert (control.checked, control.repeated) == (control.outcomes, 0)
    evidence = Evidence(T0 + 5 * MINUTE, visits["new-checkout"], tuple(progress), len(progress))
    judgement, _ = judge(make_rollout(), evidence, SequentialTests(), T0 + 5 * MINUTE)
    (gap,) = [gap for gap in judgement.gaps if gap.kind is HealthGap.REPEATED_OUTCOMES]
    assert gap.detail.startswith(
        f"{100 * len(again) / treatment.checked:.3g} % of treatment's outcomes had come before"
    )


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "stopped"])
async def test_a_topic_made_again_is_counted_on(group: Group, kafka: str, is_running: bool) -> None:
    """Deleted and made again, past the old fences before anybody looks.

    Every new record counts, the loss is noted.
    """
    await group.topology.begin(await ensure_topics(group.settings))
    refreshing = asyncio.create_task(group.topology.run())
    member = await group.add()
    topic = group.settings.topic("outcomes")
    flags = [("new-checkout", "on")]
    old = [outcome_value(f"u{n}", time_ms=AT_MS, flags=flags) for n in range(100)]
    await produce(kafka, [(topic, f"u{n}", value) for n, value in enumerate(old)])
    await until_counted(group, 100)
    if not is_running:
        await group.stop(member)
    before = group.topology.topic_id("outcomes")
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.delete_topics([topic])
    await admin.close()
    await create_topics_at(kafka, topic, partitions=PARTITIONS)
    async with asyncio.timeout(60):
        while group.topology.topic_id("outcomes") in (None, before):
            await asyncio.sleep(0.1)
    new = [outcome_value(f"v{n}", time_ms=AT_MS, flags=flags, error=True) for n in range(500)]
    await produce(kafka, [(topic, f"v{n}", value) for n, value in enumerate(new)])
    if not is_running:
        await group.add()
    await until_counted(group, 500)
    totals, progress = await group.totals.read(group.keys, {"new-checkout": ("start-1", [0])})
    treatment = totals["new-checkout"][0].treatment
    assert (treatment.outcomes, treatment.first_errors) == (600, 500)
    made_again = [each for each in progress if each.topic_partition.startswith(topic)]
    assert all(len(each.losses) == 1 for each in made_again)
    assert all(group.faults.of(Scope.PARTITION, each.topic_partition) for each in made_again)
    assert not any(each.losses for each in progress if each not in made_again)
    refreshing.cancel()
