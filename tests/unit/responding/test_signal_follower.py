"""Signals are read in order, and none is lost by trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from controller.codec.signals import signal_event, signal_key
from controller.errors import EventLogUnavailable, OperatingTrouble
from controller.health import Faults, Scope
from controller.ports import Record, TopicPartition
from controller.responding.signal_follower import PART, SignalFollower
from schemas.signal import Signal
from tests.builders import T0
from tests.unit.settings.test_signal_rules import make_signal
from tests.virtual_time import in_virtual_time

PARTITION = ("rollout.signals", 0)


class Log:
    """One partition, as the group has it."""

    def __init__(self, *values: bytes | None) -> None:
        self.records = [
            Record("rollout.signals", 0, offset, 1_763_780_000_000, b"key", value, ())
            for offset, value in enumerate(values)
        ]
        self.at = 0
        self.committed = 0
        self.starts_refused = 0

    async def start(self) -> None:
        """Join, sooner or later."""
        if self.starts_refused:
            self.starts_refused -= 1
            raise EventLogUnavailable("no broker answers")

    async def fetch(
        self, max_records: int, timeout_seconds: float
    ) -> Mapping[TopicPartition, Sequence[Record]]:
        """Return what comes next."""
        new = self.records[self.at : self.at + max_records]
        if not new:
            await asyncio.sleep(timeout_seconds)
            return {}
        self.at += len(new)
        return {PARTITION: new}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from there."""
        assert partition == PARTITION
        self.at = offset

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Note it."""
        self.committed = offsets[PARTITION]


class Handler:
    """Notes signals; fails where it is told to."""

    def __init__(self) -> None:
        self.handled: list[str] = []
        self.troubles: dict[str, int] = {}
        self.mistake = ""

    async def handle(self, signal: Signal) -> None:
        """Note it, or fail."""
        if self.troubles.get(signal.id):
            self.troubles[signal.id] -= 1
            raise OperatingTrouble("Kafka is away")
        if signal.id == self.mistake:
            raise ZeroDivisionError
        self.handled.append(signal.id)


def value(number: str) -> bytes:
    """Return a signal as it is published."""
    one = make_signal(id=number)
    assert signal_key(one) == "alertmanager/prod|c"
    return signal_event(one, "/rolloutd/test")


async def follow(log: Log, handler: Handler, seconds: float = 30.0) -> Faults:
    """Follow for some time."""
    faults = Faults(lambda: T0)
    task = asyncio.create_task(SignalFollower(log, handler, faults).run())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return faults


@in_virtual_time
async def test_signals_are_handled_in_order_and_committed() -> None:
    """Also after the group could not be joined at once."""
    log, handler = Log(value("a"), value("b")), Handler()
    log.starts_refused = 3
    faults = await follow(log, handler)
    assert handler.handled == ["a", "b"]
    assert log.committed == 2
    assert faults.of(Scope.DEPENDENCY, PART) is None


@in_virtual_time
async def test_one_that_could_not_be_acted_on_comes_again_before_the_next() -> None:
    """What is behind it in its partition waits."""
    log, handler = Log(value("a"), value("b"), value("c")), Handler()
    handler.troubles = {"b": 4}
    assert (await follow(log, handler, 2.5)).of(Scope.DEPENDENCY, PART) is not None
    assert (handler.handled, log.committed) == (["a"], 1)
    log.at = log.committed
    await follow(log, handler)
    assert (handler.handled, log.committed) == (["a", "b", "c"], 3)


@in_virtual_time
async def test_what_cannot_be_read_and_mistakes_of_ours_hold_nothing_up() -> None:
    """Each is told; the signals behind are acted on."""
    log, handler = Log(b"{", None, value("bad"), value("good")), Handler()
    handler.mistake = "bad"
    faults = await follow(log, handler)
    assert handler.handled == ["good"]
    assert log.committed == 4
    assert faults.of(Scope.PART, PART) is not None
