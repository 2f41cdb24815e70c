from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from controller.adapters.memory import (
    ManualClock,
    MemoryAdvisor,
    MemoryBroker,
    MemoryEventLog,
    MemoryFlagPlane,
    MemoryPublisher,
    MemoryRollouts,
    MemoryStateFeed,
    MemoryTotals,
)
from controller.core.effects import AskAdvice
from controller.errors import (
    AdviceUnavailableError,
    EventLogUnavailable,
    FlagPlaneUnavailable,
    StoreUnavailable,
)
from controller.ports import (
    Advisor,
    Clock,
    EventLog,
    FlagPlane,
    OutboxEntry,
    Publisher,
    Record,
    Rollouts,
    StateFeed,
    TopicPartition,
    Totals,
)
from tests.builders import T0, make_advice, make_judgement, make_rollout


def offsets(found: object) -> dict[TopicPartition, list[int]]:
    """Return the offsets of what was fetched."""
    assert isinstance(found, dict)
    records: dict[TopicPartition, Sequence[Record]] = found
    return {partition: [record.offset for record in batch] for partition, batch in records.items()}


def test_every_port_has_a_twin() -> None:
    """Each twin is what its port asks for (checked by mypy; here the constructors run)."""
    clock = ManualClock()
    broker = MemoryBroker(clock, {})
    ports: tuple[Clock, Totals, Rollouts, EventLog, Publisher, StateFeed, FlagPlane, Advisor] = (
        clock,
        MemoryTotals(),
        MemoryRollouts(),
        MemoryEventLog(broker, "g", []),
        MemoryPublisher(),
        MemoryStateFeed(),
        MemoryFlagPlane(),
        MemoryAdvisor(),
    )
    assert len(ports) == 8


def test_the_clock_stands_until_moved_and_never_goes_back() -> None:
    """Wall and monotonic time move together, forward only."""
    clock = ManualClock(T0)
    assert (clock.now(), clock.monotonic()) == (T0, 0.0)
    clock.advance(timedelta(seconds=90))
    assert (clock.now(), clock.monotonic()) == (T0 + timedelta(seconds=90), 90.0)
    with pytest.raises(ValueError):
        clock.advance(timedelta(seconds=-1))


async def test_an_outage_raises_and_does_nothing() -> None:
    """A store that is down does nothing.

    One that loses a reply has done it, and says so to the same call.
    """
    totals = MemoryTotals()
    totals.outage.is_down = True
    with pytest.raises(StoreUnavailable):
        await totals.save("k", expected=None, next_offset=1, fields={})
    totals.outage.is_down = False
    assert (await totals.load("k")).next_offset is None
    totals.outage.lost_replies = 1
    with pytest.raises(StoreUnavailable):
        await totals.save("k", expected=None, next_offset=1, fields={})
    assert (await totals.load("k")).next_offset == 1
    assert await totals.save("k", expected=None, next_offset=1, fields={}) is None


@pytest.fixture
def broker() -> MemoryBroker:
    """A broker with two topics of four partitions."""
    return MemoryBroker(ManualClock(T0), {"evaluations": 4, "outcomes": 4})


async def test_records_come_in_order_and_bounded(broker: MemoryBroker) -> None:
    """A fetch gives at most what was asked for and goes on where it stopped."""
    member = MemoryEventLog(broker, "g", ["evaluations"])
    await member.start()
    for n in range(5):
        broker.append("evaluations", b"%d" % n, partition=1)
    assert offsets(await member.fetch(3, 0)) == {("evaluations", 1): [0, 1, 2]}
    assert offsets(await member.fetch(3, 0)) == {("evaluations", 1): [3, 4]}
    assert offsets(await member.fetch(3, 0)) == {}
    assert member.end_offset(("evaluations", 1)) == 5


async def test_a_waiting_fetch_wakes_for_a_record(broker: MemoryBroker) -> None:
    """A fetch that waits returns as soon as a record arrives, and empty when none does."""
    member = MemoryEventLog(broker, "g", ["evaluations"])
    await member.start()
    waiting = asyncio.ensure_future(member.fetch(10, 60))
    await asyncio.sleep(0)
    broker.append("evaluations", b"x", key=b"user-1")
    assert sum(map(len, offsets(await waiting).values())) == 1
    assert await member.fetch(10, 0.001) == {}


async def test_seek_pause_holes_and_retention(broker: MemoryBroker) -> None:
    """Reading goes back and forth, stops and resumes.

    Offsets may be missing, and the oldest may be gone.
    """
    where = ("evaluations", 0)
    member = MemoryEventLog(broker, "g", ["evaluations"])
    await member.start()
    broker.append("evaluations", b"a", partition=0)
    broker.skip(where, 2)
    broker.append("evaluations", b"b", partition=0)
    assert offsets(await member.fetch(10, 0)) == {where: [0, 3]}
    member.seek(where, 1)
    member.pause([where])
    assert await member.fetch(10, 0) == {}
    member.resume([where])
    assert offsets(await member.fetch(10, 0)) == {where: [3]}
    broker.truncate(where, 2)
    member.seek(where, 0)
    assert offsets(await member.fetch(10, 0)) == {where: [3]}
    assert await member.bounds(where) == (2, 4)
    member.seek(("evaluations", 99), 5)
    assert ("evaluations", 99) not in member.assignment


async def test_members_share_and_hand_over(broker: MemoryBroker) -> None:
    """Partition i of both topics goes to one member.

    The old owner is asked to save before the new one has it.
    """
    topics = ["evaluations", "outcomes"]
    one, two = MemoryEventLog(broker, "g", topics), MemoryEventLog(broker, "g", topics)
    await one.start()
    seen: list[tuple[frozenset[TopicPartition], frozenset[TopicPartition]]] = []

    async def remember(lost: frozenset[TopicPartition]) -> None:
        seen.append((lost, two.assignment))

    one.on_revoked(remember)
    await two.start()
    for member, partitions in ((one, {0, 1}), (two, {2, 3})):
        assert member.assignment == {
            (topic, partition) for topic in topics for partition in partitions
        }
    assert seen == [(two.assignment, frozenset())]
    await two.stop()
    assert len(one.assignment) == 8


async def test_commits_belong_to_the_group(broker: MemoryBroker) -> None:
    """A committed offset is seen by the whole group, and a broker that is down swallows it."""
    where = ("evaluations", 0)
    one, two = (
        MemoryEventLog(broker, "g", ["evaluations"]),
        MemoryEventLog(broker, "h", ["evaluations"]),
    )
    await one.commit({where: 7})
    assert (await one.committed(where), await two.committed(where)) == (7, None)
    broker.outage.is_down = True
    await one.commit({where: 9})
    with pytest.raises(EventLogUnavailable):
        await one.committed(where)
    broker.outage.is_down = False
    assert await one.committed(where) == 7


async def test_published_effects_are_kept_and_told_apart() -> None:
    """Repeats are kept as they came; by effect id each is seen once.

    They reach the broker's topics too.
    """
    broker = MemoryBroker(ManualClock(), {"rollout.alerts": 1, "decisions": 1})
    publisher = MemoryPublisher(broker, {"alerts": "rollout.alerts"})
    alert = OutboxEntry("outbox:0", "f/1/0", "alerts", "f", b"{}")
    decision = replace(alert, field="outbox:1", effect_id="f/1/1", topic="decisions")
    publisher.outage.lost_replies = 1
    with pytest.raises(EventLogUnavailable):
        await publisher.publish([alert])
    await publisher.publish([alert, decision])
    assert publisher.published == [alert, alert, decision]
    assert publisher.distinct() == [alert, decision]
    assert publisher.distinct("alerts") == [alert]
    assert [record.key for record in broker.records("rollout.alerts")] == [b"f", b"f"]


async def test_the_state_feed_catches_up_then_follows() -> None:
    """Documents there at start come first, then it is caught up, then live ones follow."""
    first, second = make_rollout(), make_rollout(revision=2)
    feed = MemoryStateFeed([first])
    documents = feed.documents()
    assert await anext(documents) == first
    following = asyncio.ensure_future(anext(documents))
    await feed.caught_up()
    feed.append(second)
    assert await following == second


async def test_a_plane_never_serves_an_older_revision() -> None:
    """Serving is idempotent, an older revision changes nothing, and meddling shows."""
    plane = MemoryFlagPlane("unleash")
    rollout = make_rollout(revision=3, percent=10.0)
    assert (await plane.look(rollout)).percent is None
    for each in (rollout, rollout, replace(rollout, revision=2, percent=50.0)):
        await plane.serve(each)
    assert (await plane.look(rollout)).percent == 10.0
    assert plane.history == [(rollout.flag_key, 3, 10.0)]
    plane.meddle(rollout.flag_key, 99.0)
    assert (await plane.look(rollout)).percent == 99.0
    plane.outage.is_down = True
    with pytest.raises(FlagPlaneUnavailable):
        await plane.serve(replace(rollout, revision=4))
    assert plane.name == "unleash"


async def test_advice_comes_as_prepared() -> None:
    """Prepared answers come one a question, the last one for ever; None is no advice."""
    question = AskAdvice(gate_id="g", round=1, until=T0, judgement=make_judgement())
    advisor = MemoryAdvisor(make_advice("hold"), None)
    assert (await advisor.ask(make_rollout(), question)).choice == "hold"
    for _ in range(2):
        with pytest.raises(AdviceUnavailableError):
            await advisor.ask(make_rollout(), question)
    assert advisor.asked == [question] * 3
    with pytest.raises(AdviceUnavailableError):
        await MemoryAdvisor().ask(make_rollout(), question)
