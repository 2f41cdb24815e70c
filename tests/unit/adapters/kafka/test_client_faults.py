"""Whatever the Kafka client raises, of whatever type, is trouble that passes.

Only cancelling us passes through.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import IllegalStateError, KafkaError

from controller.adapters.kafka.event_log import KafkaEventLog
from controller.adapters.kafka.publisher import KafkaPublisher
from controller.adapters.kafka.state_feed import KafkaStateFeed
from controller.core.rollout import Rollout
from controller.errors import EventLogUnavailable
from controller.ports import OutboxEntry
from controller.running.health_watch import _silence
from controller.settings import KafkaSettings

PARTITION = ("events", 0)
SETTINGS = KafkaSettings(call_seconds=0.5, stop_seconds=0.2)
FAULTS = [
    AttributeError("'NoneType' object has no attribute 'check_errors'"),
    AssertionError(),
    KeyError("tp"),
    struct.error("unpack requires a buffer of 4 bytes"),
    IndexError(),
    RuntimeError("generator raised StopIteration"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    MemoryError(),
    RecursionError(),
    OSError(9, "Bad file descriptor"),
    IllegalStateError("no"),
    asyncio.CancelledError(),  # of a task of aiokafka's own
    asyncio.InvalidStateError(),
]


class Broken:
    """Stands where a started client would: whatever is asked of it raises."""

    def __init__(self, fault: BaseException) -> None:
        self._subscription = SimpleNamespace(reassignment_in_progress=False)
        self._client = self.client = SimpleNamespace(close=self._closed)
        self._fault = fault

    async def _closed(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        fault = self._fault

        class Raises:
            """Raises when it is called, or when what it gives is awaited: both happen."""

            def __call__(self, *_: object, **__: object) -> Awaitable[Any]:
                async def later() -> Any:
                    raise fault

                if name in (
                    "seek",
                    "pause",
                    "resume",
                    "assignment",
                    "last_stable_offset",
                    "highwater",
                ):
                    raise fault if isinstance(fault, Exception) else AssertionError
                return later()

        return Raises()


def make_log(fault: BaseException) -> KafkaEventLog:
    """Return a log whose consumer has gone wrong."""
    log = KafkaEventLog(SETTINGS, ["events"], "g")
    log._member.consumer = Broken(fault)
    log._partitions.owned = frozenset({PARTITION})
    log._member.should_run = True
    return log


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_every_call_of_the_event_log_says_that_it_is_unavailable(
    fault: BaseException,
) -> None:
    """Reading, asking, committing, pausing, stopping: nothing but EventLogUnavailable comes out."""
    log = make_log(fault)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: log.fetch(10, 0.05),
        lambda: log.bounds(PARTITION),
        lambda: log.ends([PARTITION]),
        lambda: log.committed(PARTITION),
        log.progress,
    ]
    log.seek(PARTITION, 5)
    log.pause([PARTITION])
    log.resume([PARTITION])
    assert log.end_offset(PARTITION) is None
    assert log.heard_at(PARTITION) is None
    await log.commit({PARTITION: 5})
    for call in calls[1:]:
        with pytest.raises(EventLogUnavailable):
            await call()
    with pytest.raises(EventLogUnavailable):
        await calls[0]()
    await log.stop()


async def test_silence_outlasts_a_consumer_that_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A consumer that cannot join has heard nothing since the one before it did."""
    log = make_log(OSError(9, "Bad file descriptor"))
    log._partitions.answered_at[PARTITION] = 1.0

    async def fail() -> None:
        raise EventLogUnavailable("no broker answers")

    monkeypatch.setattr(log._member, "_open", fail)
    assert _silence(log, 5.0) == 4.0
    for _ in range(2):
        with pytest.raises(EventLogUnavailable):
            await log.rebuild()
        assert log.assignment == frozenset()
        assert log.heard_before == 1.0
    log._member.assign(frozenset())  # others have all partitions: the brokers have said so
    assert log.heard_before is None
    assert _silence(log, 10.0) is None


async def test_cancelling_us_passes_through() -> None:
    """A task that is cancelled while it asks ends as cancelled."""
    log = make_log(KafkaError())
    log._member.consumer.end_offsets = lambda partitions: asyncio.sleep(60)  # type: ignore[union-attr]
    asking = asyncio.create_task(log.ends([PARTITION]))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_publishing_says_that_it_failed(fault: BaseException) -> None:
    """A producer that raises is given up, and the effects are kept by whoever published them."""
    publisher = KafkaPublisher(SETTINGS)
    publisher._producer = Broken(fault)
    with pytest.raises(EventLogUnavailable):
        await publisher.publish([OutboxEntry("outbox:1", "f/1/0", "decisions", "f", b"{}")])
    await publisher.stop()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_the_state_feed_connects_again(
    fault: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a connection, the feed goes on: its task is the daemon's."""
    connections = 0

    def decode(value: bytes) -> Rollout:
        raise AssertionError("nothing is read")

    feed = KafkaStateFeed(SETTINGS, decode, retry_seconds=0.01)

    async def fail() -> Any:
        nonlocal connections
        connections += 1
        raise fault
        yield

    monkeypatch.setattr(feed, "_follow", fail)

    async def follow() -> None:
        async for _ in feed.documents():
            pass

    following = asyncio.create_task(follow())
    async with asyncio.timeout(60):
        while connections < 3:
            assert not following.done()
            await asyncio.sleep(0.01)
    following.cancel()
    await asyncio.wait([following])
    assert following.cancelled()
