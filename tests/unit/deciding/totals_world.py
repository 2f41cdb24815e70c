"""A reader of totals with a store that is as slow as it was told, and workers that take time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from controller.core.evidence import PartitionProgress, VisitTotals
from controller.core.rollout import Rollout
from controller.deciding.totals_reader import TotalsReader
from controller.errors import StoreUnavailable
from controller.health import Faults
from controller.ports import Clock, PartitionHead
from schemas.totals import LatelyChanged
from tests.builders import T0, make_rollout
from tests.gate_webhooks import Webhooks
from tests.monitoring import Monitoring
from tests.streams import make_arm
from tests.virtual_time import LoopClock


class Store:
    """Totals that take some seconds to read, or are not to be had after that."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.is_away = False
        self.read_at: list[float] = []
        self.fence = 7

    async def read(
        self, partition_keys: Sequence[str], wanted: Mapping[str, Any]
    ) -> tuple[Mapping[str, Mapping[int, VisitTotals]], Sequence[PartitionProgress]]:
        """Return nothing, as slowly as it was said."""
        self.read_at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.seconds)
        if self.is_away:
            raise StoreUnavailable("away")
        return {}, ()

    async def heads(self, partition_keys: Sequence[str]) -> Sequence[PartitionHead]:
        """Return what the progress says, and not which flags have changed."""
        if self.is_away:
            await self.read(partition_keys, {})
        self.fence += 1
        return [PartitionHead(one, None) for one in self.progress()]

    def progress(self) -> Sequence[PartitionProgress]:
        """Return where the fence stands: it moves all the time."""
        return [PartitionProgress("e/0", self.fence, self.fence, T0, T0)]


class Pool:
    """One flag that is in a stage."""

    def __init__(self) -> None:
        self.rollouts: Mapping[str, Rollout] = {"f": make_rollout(flag_key="f")}
        self.broken: Mapping[str, str] = {}
        self.unsaved: Mapping[str, str] = {}

    def __contains__(self, flag_key: str) -> bool:
        """Return whether a flag runs here."""
        return flag_key in self.rollouts

    def on_stop(self, listener: object) -> None:
        """Take a listener."""

    def on_news(self, listener: Callable[[str], None]) -> None:
        """Take the one that hears of new rollouts."""
        self.tell = listener

    def worker(self, flag_key: str) -> None:
        """Return none: nobody takes the evidence."""

    def clear_recovered(self) -> None:
        """Do nothing."""


LATE = T0 + timedelta(days=365)


def reader_of(
    pool: Any, store: Any, *, clock: Clock | None = None, faults: Faults | None = None
) -> TotalsReader:
    """Return a reader of one event partition, with planes that serve and nobody to ask."""
    partitions: Any = SimpleNamespace(keys=["e/0/1"], counts={"e": 1})
    return TotalsReader(
        pool,
        store,
        partitions,
        SimpleNamespace(drift=lambda _: None, on_change=lambda _: None),
        Monitoring(),
        Webhooks(),
        clock=clock or LoopClock(),
        faults=faults or Faults(lambda: T0),
    )


LOOK_SECONDS = 0.005  # of a worker


class BusyClock(LoopClock):
    """The loop's time, and the time for which synchronous work held the loop."""

    def __init__(self) -> None:
        self.worked = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.worked


class ManyFlags(Pool):
    """Flags of which each look takes a tenth of a second."""

    def __init__(self, number: int, clock: BusyClock) -> None:
        super().__init__()
        self.rollouts = {f"f{n}": make_rollout(flag_key=f"f{n}") for n in range(number)}
        self.clock = clock
        self.looks: list[float] = []

    def worker(self, flag_key: str) -> Any:
        """Return a worker that looks at once."""
        return SimpleNamespace(inbox=self, handled_at=None, quiet_until=lambda _: None)

    def put_totals(self, _totals: object) -> None:
        """Take the time of a look."""
        self.clock.worked += LOOK_SECONDS
        self.looks.append(self.clock.monotonic())


class Lagging(Store):
    """Totals of a partition that has so many records to count."""

    def __init__(self, lag: int) -> None:
        super().__init__()
        self.lag = lag

    async def read(
        self, partition_keys: Sequence[str], wanted: Mapping[str, Any]
    ) -> tuple[Mapping[str, Mapping[int, VisitTotals]], Sequence[PartitionProgress]]:
        """Return no totals."""
        return {}, self.progress()

    def progress(self) -> Sequence[PartitionProgress]:
        """Return the one partition."""
        return [PartitionProgress("e/0", 7, 7 + self.lag, T0, T0)]


class Quiet(Store):
    """Totals that change when the fence moves, and were read so often."""

    def __init__(self) -> None:
        super().__init__()
        self.totals_read: list[int] = []  # of so many flags
        #: Of a release that tells whose totals have changed.
        self.changed: LatelyChanged | None = None

    async def read(
        self, partition_keys: Sequence[str], wanted: Mapping[str, Any]
    ) -> tuple[Mapping[str, Mapping[int, VisitTotals]], Sequence[PartitionProgress]]:
        """Return one context for each record."""
        self.totals_read.append(len(wanted))
        totals = VisitTotals(make_arm(self.fence))
        return {key: {0: totals} for key in wanted}, self.progress()

    def progress(self) -> Sequence[PartitionProgress]:
        """Return where the fence stands."""
        now = LoopClock().now()
        return [PartitionProgress("e/0", self.fence, self.fence, now, now)]

    async def heads(self, partition_keys: Sequence[str]) -> Sequence[PartitionHead]:
        """Return what the progress says."""
        return [PartitionHead(one, self.changed) for one in self.progress()]
