"""A counting process with a log, a store and a clock in memory, for the tests of ingest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime

from controller.adapters.memory import ManualClock, MemoryBroker, MemoryEventLog, MemoryTotals
from controller.counting.counted_flags import new_fold
from controller.counting.folding.engine import Fold
from controller.counting.ingest import Ingest
from controller.counting.pacing import Pacing
from controller.counting.partition_totals import ReadEvaluations, ReadOutcomes
from controller.counting.refusals import RefusalBatch
from controller.errors import EventLogUnavailable
from controller.health import Faults
from controller.settings import CountingSettings
from controller.telemetry import Metrics
from schemas.quarantine import Refusal
from schemas.totals import PartitionCounts, decode_progress
from schemas.wire import read_evaluations, read_outcomes
from tests.builders import MINUTE, T0, make_rollout
from tests.records import at_ms, evaluation_value, outcome_value, refusals_in

EVALUATIONS, OUTCOMES = TOPICS = ("flag.evaluations", "request.outcomes")


NOW = T0 + 10 * MINUTE


ON, OFF = ("new-checkout", "on"), ("new-checkout", "off")


class TickingClock(ManualClock):
    """A clock on which each look takes 2 ms, so that what is due comes due without waiting."""

    def __init__(self) -> None:
        super().__init__(NOW)
        self._monotonic = 0.0

    def monotonic(self) -> float:
        self._monotonic += 0.002
        return self._monotonic + super().monotonic()


def make_pacing(**overrides: float) -> Pacing:
    """Return a pacing that waits little, for a clock that ticks at each look."""
    quick = Pacing(
        retry_seconds=0,
        ends_seconds=0,
        failed_seconds=0.02,
        stopped_seconds=0.1,
        join_grace_seconds=0.05,
        heartbeat_seconds=0.1,
    )
    return replace(quick, **overrides)  # type: ignore[arg-type]


def make_settings(**overrides: float) -> CountingSettings:
    """Return settings that save every few looks at the clock."""
    return CountingSettings(**{"flush_interval_seconds": 0.005, **overrides})


@dataclass
class KnownTopics:
    """A topology that a test sets."""

    count: int
    ids: dict[str, str] = field(default_factory=dict)

    def partitions(self, logical: str) -> int:
        return self.count

    def topic_id(self, logical: str) -> str | None:
        return self.ids.get(logical)


@dataclass
class Bench:
    """An ingest on memory adapters, with what it did."""

    partitions: int = 1
    settings: CountingSettings = field(default_factory=make_settings)
    pacing: Pacing = field(default_factory=make_pacing)
    readers: tuple[ReadEvaluations, ReadOutcomes] = (read_evaluations, read_outcomes)
    new_fold: Callable[..., Fold] = new_fold

    def __post_init__(self) -> None:
        self.clock = TickingClock()
        self.faults = Faults(self.clock.now)
        self.broker = MemoryBroker(self.clock, dict.fromkeys(TOPICS, self.partitions))
        self.totals = MemoryTotals()
        self.quarantined: list[tuple[str, int, Sequence[Refusal]]] = []
        self.is_quarantine_down = False
        self.topology = KnownTopics(self.partitions)
        self.times_told = 0
        self.members: list[tuple[Ingest, MemoryEventLog]] = []
        self.metrics = Metrics(version="test")

    def _note_told(self) -> None:
        self.times_told += 1

    async def quarantine(self, batches: Sequence[RefusalBatch]) -> None:
        if self.is_quarantine_down:
            raise EventLogUnavailable("down")
        self.quarantined += [
            (one.topic, one.partition, refusals_in([one.refusals])) for one in batches
        ]

    def make(self) -> tuple[Ingest, MemoryEventLog]:
        """Return one more member, watching the flag, not yet started."""
        log = MemoryEventLog(self.broker, "counting", TOPICS)
        ingest = Ingest(
            log,
            self.totals,
            clock=self.clock,
            metrics=self.metrics,
            settings=self.settings,
            topics=TOPICS,
            epoch=1,
            quarantine=self.quarantine,
            on_saved=self._note_told,
            read_evaluations=self.readers[0],
            read_outcomes=self.readers[1],
            pacing=self.pacing,
            faults=self.faults,
            topology=self.topology,
            new_fold=self.new_fold,
        )
        ingest.count_for(make_rollout())
        return ingest, log

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Ingest]:
        """Run one more member until the end of the block, then stop it in order."""
        ingest, log = self.make()
        self.members.append((ingest, log))
        task = asyncio.create_task(ingest.run())
        await log.start()
        try:
            yield ingest
        finally:
            if not task.done():
                await ingest.stop()
            await task
            await log.stop()

    def evaluate(
        self, context: str, variant: str = "on", *, at: datetime = NOW, flag: str = "new-checkout"
    ) -> None:
        """Append an evaluation."""
        value = evaluation_value(context, variant, time_ms=at_ms(at), flag=flag)
        self.broker.append(EVALUATIONS, value, key=context.encode(), timestamp_ms=at_ms(at))

    def happen(
        self,
        context: str,
        *flags: tuple[str, str],
        at: datetime = NOW,
        error: bool = False,
        latency_ms: float | None = 5.0,
    ) -> None:
        """Append an outcome."""
        value = outcome_value(
            context, time_ms=at_ms(at), flags=flags, error=error, latency_ms=latency_ms
        )
        self.broker.append(OUTCOMES, value, key=context.encode(), timestamp_ms=at_ms(at))

    def stored(self, topic: str, partition: int = 0) -> dict[str, bytes]:
        """Return a partition's hash."""
        return self.totals.hashes.get(f"{topic}/{partition}/1", {})

    def fence(self, topic: str, partition: int = 0) -> int:
        """Return a partition's fence, -1 for none."""
        return int(self.stored(topic, partition).get("next", b"-1"))

    def progress(self, topic: str, partition: int = 0) -> PartitionCounts:
        """Return what became of a partition's records."""
        return decode_progress(self.stored(topic, partition))

    def is_all_saved(self) -> bool:
        """Whether every fence is at its log's end."""
        return all(
            self.fence(topic, partition) == self.broker.bounds((topic, partition))[1]
            for topic in TOPICS
            for partition in range(self.partitions)
        )


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Let the loop turn until `condition` holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0)
