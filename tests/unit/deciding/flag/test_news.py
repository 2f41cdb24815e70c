"""The newest decisions and alerts of a flag, kept where every replica can show them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from controller.adapters.memory import MemoryReports
from controller.deciding.flag.news import REPORTS, RETRY_SECONDS, WAITING_LIMIT, NewsKeeper
from controller.deciding.registry import RolloutRegistry
from controller.errors import BrokenInvariant
from controller.health import Faults, Scope
from controller.ports import OutboxEntry
from schemas.terms import CommandVerb
from tests.builders import T0, make_rollout
from tests.unit.deciding.worker_world import FLAG, World, order, start
from tests.virtual_time import in_virtual_time, settled


def entry(number: int, topic: str = "decisions") -> OutboxEntry:
    """Return an effect that was published."""
    return OutboxEntry("", f"{FLAG}/{number}/0", topic, FLAG, b"%d" % number)


@pytest.fixture
def faults() -> Faults:
    """No faults yet."""
    return Faults(lambda: T0)


async def test_what_is_published_is_kept_by_topic(faults: Faults) -> None:
    """Documents and results are not shown."""
    reports = MemoryReports()
    keeper = NewsKeeper(reports, faults, RolloutRegistry().is_retired)
    keeper.add([entry(1), entry(2, "alerts"), entry(3, "state"), entry(4, "results"), entry(5)])
    await keeper.keep()
    assert list(await reports.news(FLAG, "decisions")) == [b"5", b"1"]
    assert list(await reports.news(FLAG, "alerts")) == [b"2"]


async def test_what_redis_does_not_take_waits_bounded(faults: Faults) -> None:
    """The fault says what to do, and is over with the first success."""
    reports = MemoryReports()
    reports.outage.is_down = True
    keeper = NewsKeeper(reports, faults, RolloutRegistry().is_retired)
    for number in range(WAITING_LIMIT + 10):
        keeper.add([entry(number), entry(number)])
        await keeper.keep()
    assert faults.of(Scope.DEPENDENCY, REPORTS) is not None
    reports.outage.is_down = False
    await keeper.keep()
    kept = list(await reports.news(FLAG, "decisions"))
    assert (len(kept), kept[0], kept[-1]) == (WAITING_LIMIT, b"%d" % (WAITING_LIMIT + 9), b"10")
    assert faults.of(Scope.DEPENDENCY, REPORTS) is None


async def test_late_news_of_a_retired_flag_are_not_kept(faults: Faults) -> None:
    """An alert that Kafka took after the flag's reports were deleted would stay for a month."""
    reports, registry = MemoryReports(), RolloutRegistry()
    keeper = NewsKeeper(reports, faults, registry.is_retired)
    reports.outage.is_down = True
    keeper.add([entry(1, "alerts")])
    await keeper.keep()
    reports.outage.is_down = False
    registry.retire(FLAG, revision=7)
    keeper.add([entry(2, "alerts")])
    await keeper.keep()
    assert list(await reports.news(FLAG, "alerts")) == []
    registry.update(make_rollout(revision=8))
    keeper.add([entry(3, "alerts")])
    await keeper.keep()
    assert list(await reports.news(FLAG, "alerts")) == [b"3"]


async def test_a_key_that_somebody_else_wrote_holds_up_no_other(faults: Faults) -> None:
    """Its news would never be taken: they are let go, and it is told."""
    reports = MemoryReports()
    append = reports.append_news

    async def refusing(flag_key: str, topic: str, events: Sequence[bytes]) -> None:
        if topic == "decisions":
            raise BrokenInvariant("WRONGTYPE")
        await append(flag_key, topic, events)

    reports.append_news = refusing  # type: ignore[method-assign]
    keeper = NewsKeeper(reports, faults, RolloutRegistry().is_retired)
    keeper.add([entry(1), entry(2, "alerts")])
    await keeper.keep()
    assert list(await reports.news(FLAG, "alerts")) == [b"2"]
    reports.append_news = append  # type: ignore[method-assign]
    await keeper.keep()
    assert list(await reports.news(FLAG, "decisions")) == []


async def test_something_to_publish_goes_before_the_news_of_thousands_of_flags(
    faults: Faults,
) -> None:
    """An outage alerts of each flag; what is left of that is written afterwards."""
    reports, ended = MemoryReports(), asyncio.Event()
    append = reports.append_news

    async def interrupted(flag_key: str, topic: str, events: Sequence[bytes]) -> None:
        await append(flag_key, topic, events)
        if flag_key == "flag-9":
            ended.set()

    reports.append_news = interrupted  # type: ignore[method-assign]
    keeper = NewsKeeper(reports, faults, RolloutRegistry().is_retired, most_waiting=2_000)
    flags = [f"flag-{number}" for number in range(1_000)]
    keeper.add([OutboxEntry("", f"{flag}/1", "alerts", flag, b"1") for flag in flags])
    await keeper.keep_until(ended)
    assert [bool(await reports.news(flag, "alerts")) for flag in flags[8:11]] == [True, True, False]
    ended.clear()
    await keeper.keep_until(ended)
    assert [await reports.news(flag, "alerts") for flag in flags] == [[b"1"]] * len(flags)


@in_virtual_time
async def test_a_flag_that_leaves_takes_the_fault_of_its_news_with_it() -> None:
    """A replica that has lost its flags in an outage publishes nothing that would clear it."""
    world = World()
    world.reports.outage.is_down = True
    async with world.worker() as worker:
        await worker.submit(start())
        await settled()
        assert world.faults.of(Scope.DEPENDENCY, REPORTS) is not None
    worker.abandon()
    assert world.faults.of(Scope.DEPENDENCY, REPORTS) is None


@in_virtual_time
async def test_a_worker_publishes_without_the_reports_and_keeps_its_news() -> None:
    """A Redis user without the right to these keys must not hold up an alert or a decision."""
    world = World()
    world.reports.outage.is_down = True
    async with world.worker() as worker:
        await worker.submit(start())
        await settled()
        assert world.published("decisions")
        assert not await world.unpublished()
        assert world.faults.of(Scope.DEPENDENCY, REPORTS) is not None
        world.reports.outage.is_down = False
        await asyncio.sleep(RETRY_SECONDS + 0.1)
        assert world.faults.of(Scope.DEPENDENCY, REPORTS) is None
        assert len(await world.reports.news(FLAG, "decisions")) == 1
        await worker.submit(order(CommandVerb.ABORT, "command-2"))
        await settled()
        kept = await world.reports.news(FLAG, "decisions")
        assert [entry.value for entry in world.published("decisions")] == list(reversed(kept))
