from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from controller.adapters.memory import ManualClock
from controller.counting.refusals import MOST_REFUSALS, RefusalBacklog, RefusalBatch
from controller.errors import EventLogUnavailable
from controller.health import Faults, Scope
from schemas.quarantine import MAX_REFUSALS, WrittenRefusals, refusal, written
from schemas.record_refused import RecordRefused
from schemas.terms import QuarantineReason
from tests.records import refusals_in

WHY = RecordRefused(QuarantineReason.NOT_JSON, "no", "send JSON")


def make_refusals(begin: int, count: int, value: bytes = b"{") -> Sequence[WrittenRefusals]:
    """Return refusals of one partition, from offset `begin` on."""
    return written([refusal(offset, 1, value, WHY) for offset in range(begin, begin + count)])


@dataclass
class Bench:
    """A backlog and the quarantine behind it."""

    trouble: Exception | None = None
    first_offset: int | None = None  # of the batch that is in trouble; None: all are
    published: list[tuple[str, int, list[int]]] = field(default_factory=list)
    tries: list[int] = field(default_factory=list)  # how many batches each had

    def __post_init__(self) -> None:
        self.faults = Faults(ManualClock().now)
        self.backlog = RefusalBacklog(self.publish, self.faults, retry_seconds=0)

    async def publish(self, batches: Sequence[RefusalBatch]) -> None:
        await asyncio.sleep(0)
        self.tries.append(len(batches))
        offsets = [
            [refusal.offset for refusal in refusals_in([batch.refusals])] for batch in batches
        ]
        if self.trouble is not None and (
            self.first_offset is None or self.first_offset in [some[0] for some in offsets]
        ):
            raise self.trouble
        self.published += [
            (batch.topic, batch.partition, some)
            for batch, some in zip(batches, offsets, strict=True)
        ]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RefusalBacklog]:
        """Publish until the end of the block."""
        task = asyncio.create_task(self.backlog.run())
        try:
            yield self.backlog
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_refusals_are_published_once_in_order_and_in_batches() -> None:
    """What came first is published first, no more in a record than it holds."""
    bench = Bench()
    async with bench.running() as backlog:
        backlog.add("e", 0, make_refusals(0, MAX_REFUSALS + 3))
        backlog.add("o", 1, make_refusals(7, 1))
        await backlog.flushed(5)
    everything = list(range(MAX_REFUSALS + 3))
    assert bench.published == [
        ("e", 0, everything[:MAX_REFUSALS]),
        ("e", 0, everything[MAX_REFUSALS:]),
        ("o", 1, [7]),
    ]
    assert (backlog.waiting, backlog.waiting_bytes, backlog.dropped) == (0, 0, 0)


async def test_the_refusals_of_one_save_share_records() -> None:
    """Each run of a fold has a few of its own: a record for each would make a flood of records."""
    bench = Bench()
    few = [one for begin in range(MAX_REFUSALS + 1) for one in make_refusals(begin, 1)]
    async with bench.running() as backlog:
        backlog.add("e", 0, few)
        await backlog.add_with_room("o", 0, few[:3], 5)
        await backlog.flushed(5)
    everything = list(range(MAX_REFUSALS + 1))
    assert bench.published == [
        ("e", 0, everything[:MAX_REFUSALS]),
        ("e", 0, everything[MAX_REFUSALS:]),
        ("o", 0, [0, 1, 2]),
    ]


async def test_batches_that_wait_are_published_together() -> None:
    """A request costs more than the refusals in it, so what waits shares one, up to a bound."""
    bench = Bench()
    for partition in range(10):
        bench.backlog.add("e", partition, make_refusals(0, 1))
    async with bench.running() as backlog:
        await backlog.flushed(5)
    assert bench.tries == [8, 2]
    assert bench.published == [("e", partition, [0]) for partition in range(10)]


async def test_after_trouble_batches_are_published_one_by_one_until_none_waits() -> None:
    """What is too much for a quarantine in trouble is not sent to it again and again."""
    bench = Bench(trouble=EventLogUnavailable("slow"))
    for partition in range(4):
        bench.backlog.add("e", partition, make_refusals(0, 1))
    async with bench.running() as backlog:
        while len(bench.tries) < 3:
            await asyncio.sleep(0)
        bench.trouble = None
        while backlog.waiting:
            await asyncio.sleep(0)
        for partition in range(4, 6):
            backlog.add("e", partition, make_refusals(0, 1))
        await backlog.flushed(5)
    assert bench.tries == [4, 1, 1, 1, 1, 1, 1, 2]
    assert bench.published == [("e", partition, [0]) for partition in range(6)]


async def test_batches_beside_one_in_trouble_are_sent_again_once() -> None:
    """Each gets through alone, before the one in trouble or behind it."""
    bench = Bench(trouble=EventLogUnavailable("slow"), first_offset=5)
    for partition in range(8):
        bench.backlog.add("e", partition, make_refusals(partition, 1))
    async with bench.running() as backlog:
        while backlog.waiting > 3:
            await asyncio.sleep(0)
        bench.trouble = None
        while backlog.waiting:
            await asyncio.sleep(0)
    assert bench.tries[:6] == [8, 1, 1, 1, 1, 1]
    assert bench.published == [("e", partition, [partition]) for partition in range(8)]


@pytest.mark.parametrize(("body", "count"), [(b"{", 2_000), (b"{" * 1_000, 1_000)])
async def test_nothing_is_dropped_when_many_saves_have_refusals_at_once(
    body: bytes, count: int
) -> None:
    """Of a flood in each partition every detail is kept, as long as the quarantine takes them."""
    bench = Bench()
    refusals = make_refusals(0, count, body)

    async def save(partition: int) -> None:
        for topic in ("e", "o"):
            await backlog.add_with_room(topic, partition, refusals, 60)
        await backlog.flushed(60)

    async with bench.running() as backlog:
        await asyncio.gather(*map(save, range(24)))
    assert backlog.dropped == 0
    assert sum(len(offsets) for _, _, offsets in bench.published) == 48 * count


async def test_who_waits_for_room_is_not_held_up_by_a_quarantine_in_trouble() -> None:
    """Counting goes on: then the oldest details are dropped, as before."""
    bench = Bench(trouble=EventLogUnavailable("gone"))
    bench.backlog.add("e", 0, make_refusals(0, MOST_REFUSALS))
    async with bench.running() as backlog, asyncio.timeout(5):
        await backlog.add_with_room("e", 1, make_refusals(0, 1), 60)
    slow = Bench()
    slow.backlog.add("e", 0, make_refusals(0, MOST_REFUSALS))
    async with asyncio.timeout(5):
        await slow.backlog.add_with_room("e", 1, make_refusals(0, 1), 0.01)


async def test_a_save_waits_for_its_own_refusals_alone() -> None:
    """While others keep adding, who waits is done as soon as what was there before is published."""
    bench = Bench()
    async with bench.running() as backlog:
        backlog.add("e", 0, make_refusals(0, 1))
        waiting = asyncio.create_task(backlog.flushed(60))
        offset = 1
        while not waiting.done():
            assert offset < 100
            backlog.add("o", 1, make_refusals(offset, 1))
            offset += 1
            await asyncio.sleep(0)
        assert backlog.waiting > 0
    assert bench.published[0] == ("e", 0, [0])


async def test_nobody_waits_for_a_quarantine_that_is_known_to_be_away() -> None:
    """After a failed try waiting ends at once; once it is back all is published."""
    bench = Bench(trouble=EventLogUnavailable("down"))
    async with bench.running() as backlog:
        backlog.add("e", 0, make_refusals(0, 2))
        await backlog.flushed(0.05)
        async with asyncio.timeout(60):
            await backlog.flushed(60)
        assert bench.faults.of(Scope.DEPENDENCY, "quarantine") is not None
        bench.trouble = None
        while backlog.waiting:
            await asyncio.sleep(0)
    assert bench.published == [("e", 0, [0, 1])]
    assert bench.faults.current == ()


async def test_a_backlog_is_bounded_and_says_what_it_dropped() -> None:
    """Beyond the bound the oldest are given up, with partition and offsets in the log."""
    bench = Bench(trouble=EventLogUnavailable("down"))
    with capture_logs() as logs:
        async with bench.running() as backlog:
            for lot in range(70):
                backlog.add("e", 0, make_refusals(1000 * lot, 1000))
            waiting = backlog.waiting
            bench.trouble = None
            while backlog.waiting:
                await asyncio.sleep(0)
    assert waiting == MOST_REFUSALS
    assert backlog.dropped == 70_000 - MOST_REFUSALS
    dropped = [log for log in logs if log["event"] == "refusals_dropped"]
    assert [(log["from_offset"], log["to_offset"]) for log in dropped] == [
        (MAX_REFUSALS * lot, MAX_REFUSALS * lot + MAX_REFUSALS - 1) for lot in range(20)
    ]
    offsets = [offset for _, _, some in bench.published for offset in some]
    assert offsets == list(range(10_000, 70_000))


@pytest.mark.parametrize("mistake", [ValueError("a bug"), KeyError("a bug")])
async def test_a_batch_that_cannot_be_written_does_not_keep_those_behind_it(
    mistake: Exception,
) -> None:
    """A mistake of ours with one batch costs that batch, after some tries."""
    bench = Bench(trouble=mistake)
    async with bench.running() as backlog:
        backlog.add("e", 0, make_refusals(0, 2))
        while not backlog.dropped:
            await asyncio.sleep(0)
        bench.trouble = None
        backlog.add("e", 0, make_refusals(2, 1))
        while backlog.waiting:
            await asyncio.sleep(0)
    assert bench.published == [("e", 0, [2])]
    assert backlog.dropped == 2
    assert bench.faults.current == ()


async def test_a_batch_that_cannot_be_written_costs_none_of_those_published_with_it() -> None:
    """Those before and behind it are published once; its own refusals alone are given up."""
    bench = Bench(trouble=ValueError("a bug"), first_offset=1)
    for offset in range(3):
        bench.backlog.add("e", 0, make_refusals(offset, 1))
    async with bench.running() as backlog:
        while backlog.waiting:
            await asyncio.sleep(0)
    assert bench.published == [("e", 0, [0]), ("e", 0, [2])]
    assert backlog.dropped == 1
