"""The event log in memory says what the real one says.

Who answered when, and where partitions end.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from controller.adapters.kafka.shared_topic import SharedTopic
from controller.adapters.memory import ManualClock, MemoryBroker, MemoryEventLog
from controller.errors import EventLogUnavailable

PARTITION = ("events", 0)


async def test_the_brokers_answers_are_noted_by_partition() -> None:
    """A fetch, a look at the bounds and a look at the ends count.

    A paused partition is heard of by the latter alone.
    """
    clock = ManualClock()
    broker = MemoryBroker(clock, {"events": 1})
    member = MemoryEventLog(broker, "g", ["events"])
    assert member.heard_at(PARTITION) is None
    await member.start()
    assert member.heard_at(PARTITION) is None
    broker.append("events", b"x")
    clock.advance(timedelta(seconds=1))
    await member.fetch(10, 0)
    assert member.heard_at(PARTITION) == 1
    member.pause([PARTITION])
    clock.advance(timedelta(seconds=1))
    await member.fetch(10, 0)
    assert member.heard_at(PARTITION) == 1
    assert await member.ends([PARTITION]) == {PARTITION: 1}
    assert member.heard_at(PARTITION) == 2
    broker.outage.is_down = True
    clock.advance(timedelta(seconds=1))
    with pytest.raises(EventLogUnavailable):
        await member.ends([PARTITION])
    assert member.heard_at(PARTITION) == 2


async def test_a_shared_topic_answers_for_both_of_its_streams() -> None:
    """Ends and times are those of the one partition behind the two."""
    clock = ManualClock()
    broker = MemoryBroker(clock, {"events": 1})
    member = MemoryEventLog(broker, "g", ["events"])
    await member.start()
    broker.append("events", b"x")
    shared = SharedTopic(member)
    both = [PARTITION, ("events#outcomes", 0)]
    assert await shared.ends(both) == dict.fromkeys(both, 1)
    assert [shared.heard_at(one) for one in both] == [0.0, 0.0]


async def test_a_topic_grows_and_is_made_anew_under_its_readers() -> None:
    """New partitions are assigned.

    Those of a topic created again are revoked first, and begin at nothing.
    """
    broker = MemoryBroker(ManualClock(), {"events": 1})
    member = MemoryEventLog(broker, "g", ["events"])
    revoked: list[frozenset[tuple[str, int]]] = []

    async def note(partitions: frozenset[tuple[str, int]]) -> None:
        revoked.append(partitions)

    member.on_revoked(note)
    await member.start()
    await broker.grow("events", 2)
    assert member.assignment == {("events", 0), ("events", 1)}
    assert revoked == []
    broker.append("events", b"x", partition=0)
    await broker.remake("events")
    assert revoked == [frozenset({("events", 0), ("events", 1)})]
    assert await member.bounds(("events", 0)) == (0, 0)
