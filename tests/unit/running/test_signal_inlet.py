"""A signal is stored before its delivery is answered, within the time that senders wait."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest

from controller.adapters.memory import MemoryPublisher
from controller.errors import EventLogUnavailable
from controller.ports import OutboxEntry
from controller.running.signal_inlet import MOST_OPEN, STORE_SECONDS, SignalInlet
from tests.unit.settings.test_signal_rules import make_signal
from tests.virtual_time import in_virtual_time


class Slow(MemoryPublisher):
    """Takes longer than anybody waits."""

    async def publish(self, entries: Sequence[OutboxEntry]) -> None:
        """Take a while."""
        await asyncio.sleep(10)
        await super().publish(entries)


@in_virtual_time
async def test_signals_are_published_by_condition() -> None:
    """So that what is told of one condition stays in order."""
    publisher = MemoryPublisher()
    inlet = SignalInlet(publisher, "/rolloutd/test")
    await inlet.store([])
    await inlet.store([make_signal(), make_signal(id="2", condition="d")])
    one, other = publisher.published
    assert (one.topic, one.key, other.key) == (
        "signals",
        "alertmanager/prod|c",
        "alertmanager/prod|d",
    )
    event = json.loads(one.value)
    assert (event["id"], event["source"], event["subject"]) == ("1", "/rolloutd/test", one.key)
    assert event["partitionkey"] == one.key


@in_virtual_time
async def test_trouble_is_told_and_a_slow_kafka_is_not_cut_off() -> None:
    """The publishing goes on: it is acted on once, however often the sender repeats it."""
    publisher = MemoryPublisher()
    publisher.outage.is_down = True
    with pytest.raises(EventLogUnavailable):
        await SignalInlet(publisher, "/x").store([make_signal()])
    slow = Slow()
    inlet, loop = SignalInlet(slow, "/x"), asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(EventLogUnavailable, match="no acknowledgement"):
        await inlet.store([make_signal()])
    assert loop.time() - began == pytest.approx(STORE_SECONDS)
    await asyncio.sleep(11)
    assert len(slow.published) == 1


@in_virtual_time
async def test_what_waits_is_bounded() -> None:
    """More than that is refused at once, and comes again."""
    slow = Slow()
    inlet = SignalInlet(slow, "/x")
    tasks = [asyncio.create_task(inlet.store([make_signal(id=str(n))])) for n in range(MOST_OPEN)]
    await asyncio.sleep(0.1)
    with pytest.raises(EventLogUnavailable, match="wait for Kafka already"):
        await inlet.store([make_signal()])
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(11)
    await asyncio.gather(inlet.store([make_signal()]), return_exceptions=True)
