"""When totals are read: often, at little cost, and at once after an outage of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from controller.core.evidence import PartitionProgress, VisitTotals
from controller.core.rollout import Rollout
from controller.deciding.totals_reader import READ_EVERY_SECONDS, TotalsReader
from controller.errors import StoreUnavailable
from controller.health import Faults
from tests.builders import T0, make_rollout
from tests.gate_webhooks import Webhooks
from tests.monitoring import Monitoring
from tests.virtual_time import LoopClock, in_virtual_time


class Store:
    """Totals that take some seconds to read, or are not to be had after that."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.is_away = False
        self.read_at: list[float] = []

    async def read(
        self, partition_keys: Sequence[str], wanted: Mapping[str, Any]
    ) -> tuple[Mapping[str, Mapping[int, VisitTotals]], Sequence[PartitionProgress]]:
        """Return nothing, as slowly as it was said."""
        self.read_at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.seconds)
        if self.is_away:
            raise StoreUnavailable("away")
        return {}, ()


class Pool:
    """One flag that is in a stage."""

    def __init__(self) -> None:
        self.rollouts: Mapping[str, Rollout] = {"f": make_rollout(flag_key="f")}
        self.broken: Mapping[str, str] = {}

    def on_stop(self, listener: object) -> None:
        """Take a listener."""

    def worker(self, flag_key: str) -> None:
        """Return none: nobody takes the evidence."""

    def clear_recovered(self) -> None:
        """Do nothing."""


async def reads(store: Store, *, for_seconds: float, then: Any = None) -> list[float]:
    """Return when the store was read, while new totals arrive all the time."""
    pool: Any = Pool()
    partitions: Any = SimpleNamespace(keys=["e/0/1"], counts={"e": 1})
    reader = TotalsReader(
        pool,
        store,  # type: ignore[arg-type]
        partitions,
        SimpleNamespace(drift=lambda _: None),
        Monitoring(),
        Webhooks(),
        clock=LoopClock(),
        faults=Faults(lambda: T0),
    )

    async def save() -> None:
        while True:
            reader.totals_saved(frozenset({"f"}))
            await asyncio.sleep(0.05)

    with suppress(TimeoutError):
        async with asyncio.timeout(for_seconds), asyncio.TaskGroup() as tasks:
            tasks.create_task(save())
            tasks.create_task(reader.run())
            if then is not None:
                tasks.create_task(then())
    return store.read_at


@in_virtual_time
async def test_after_an_outage_totals_are_read_at_once() -> None:
    """Harm that begins as the store is back must not wait for nine times the outage."""
    store = Store()
    store.is_away, store.seconds = True, 2.0

    async def come_back() -> None:
        await asyncio.sleep(9)
        store.is_away, store.seconds = False, 0.001

    read_at = await reads(store, for_seconds=20, then=come_back)
    first = min(at for at in read_at if at > 9)
    assert first < 9 + 2 * READ_EVERY_SECONDS


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.001, 90, 110), (0.05, 18, 22)])
def test_reading_takes_a_small_part_of_the_time(seconds: float, least: int, most: int) -> None:
    """Ten times a second, and less often where a read takes long; never less than every other."""

    @in_virtual_time
    async def run() -> None:
        store = Store()
        store.seconds = seconds
        assert least <= len(await reads(store, for_seconds=10)) <= most

    run()
