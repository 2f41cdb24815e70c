"""Refused records on their way to the quarantine topic: counting does not wait for it.

A refusal is counted with its offset, in the partition's hash. Its details wait here, in memory,
until the quarantine topic has them. A crash costs the details of those that wait. A flood while the
topic is away costs the details of the oldest; those are counted and logged. Belongs here: the
backlog. Does not belong here: what was refused and why (`partition_totals.py`), how it is written
(`schemas/quarantine.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import structlog

from controller.errors import EventLogUnavailable
from controller.health import Faults, Scope
from schemas.quarantine import WrittenRefusals, joined


@dataclass(frozen=True, slots=True, eq=False)
class RefusalBatch:
    """Refusals of one save of one partition: what one record of the quarantine topic holds."""

    topic: str
    partition: int
    refusals: WrittenRefusals


#: Publishes batches and returns once all are acknowledged. Raises EventLogUnavailable when one is
#: not; a repeat is harmless.
Quarantine = Callable[[Sequence[RefusalBatch]], Awaitable[None]]

# What waits at most, of all partitions together: a minute of 3,300 events a second of which a tenth
# is refused, if they have a kilobyte.
MOST_BYTES = 16 * 1024 * 1024
MOST_REFUSALS = 60_000  # of small ones
_NAME = "quarantine"
_REMEDY = (
    "check that the quarantine topic exists, takes writes, and has min.insync.replicas in sync"
)
# Batches that wait are published together: a request costs CPU, whatever it holds.
_BATCHES_AT_ONCE = 8
_MISTAKES = 3  # of ours with one batch; then its details are given up


class RefusalBacklog:
    """The refusals that wait for the quarantine, bounded, and their publishing."""

    def __init__(self, quarantine: Quarantine, faults: Faults, *, retry_seconds: float) -> None:
        self._quarantine = quarantine
        self._faults = faults
        self._retry_seconds = retry_seconds
        self._batches: deque[RefusalBatch] = deque()
        self._arrived = asyncio.Event()
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = (
            deque()
        )  # by the number of refusals they wait for
        self._at_once = _BATCHES_AT_ONCE
        self._added = 0
        self._settled = 0  # published or dropped, in the order they came
        self._logger = structlog.get_logger()
        self.waiting = 0
        self.waiting_bytes = 0
        self.dropped = 0  # refusals whose details were given up
        self.troubles = 0  # tries that failed
        self.is_away = False  # the last try failed

    def add(self, topic: str, partition: int, refusals: Sequence[WrittenRefusals]) -> None:
        """Have refusals published; when too many wait, the details of the oldest are dropped."""
        self._add(_batches_of(topic, partition, refusals))

    async def add_with_room(
        self, topic: str, partition: int, refusals: Sequence[WrittenRefusals], seconds: float
    ) -> None:
        """Do the same once nothing is dropped for it, at the latest after `seconds`.

        Many partitions may save at once, and together they have more than may wait. Nothing waits
        while the last try has failed.
        """
        batches = _batches_of(topic, partition, refusals)
        count = sum(batch.refusals.count for batch in batches)
        loop, size = asyncio.get_running_loop(), sum(batch.refusals.size for batch in batches)
        until = loop.time() + seconds
        while self.waiting and not self.is_away and loop.time() < until:
            if not _is_too_much(self.waiting + count, self.waiting_bytes + size):
                break
            await self.flushed(until - loop.time())
        self._add(batches)

    def _add(self, batches: Iterable[RefusalBatch]) -> None:
        for batch in batches:
            self._added += batch.refusals.count
            self._batches.append(batch)
            self.waiting += batch.refusals.count
            self.waiting_bytes += batch.refusals.size
        while len(self._batches) > 1 and _is_too_much(self.waiting, self.waiting_bytes):
            self._drop(self._batches.popleft())
        self._arrived.set()

    async def flushed(self, seconds: float) -> None:
        """Return once all that was added by now is published, at the latest after `seconds`.

        Returns at once while the last try has failed.
        """
        if self.is_away or self._settled >= self._added:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append((self._added, waiter))
        await asyncio.wait({waiter}, timeout=seconds)

    def _settle(self, count: int) -> None:
        """Record that refusals wait no longer, and wake the callers that waited for them."""
        self._settled += count
        while self._waiters and (self.is_away or self._waiters[0][0] <= self._settled):
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    async def run(self) -> None:
        """Publish refusals forever."""
        mistakes = 0
        while True:
            if not self._batches:
                self._at_once = _BATCHES_AT_ONCE
                self._arrived.clear()
                await self._arrived.wait()
            batches = list(islice(self._batches, self._at_once))
            try:
                await self._quarantine(batches)
            except EventLogUnavailable as trouble:
                await self._wait(trouble)
                continue
            except Exception as mistake:  # of ours: it must not hold up what follows
                mistakes += 1
                if mistakes < _MISTAKES:
                    await self._wait(mistake)
                    continue
                self._logger.exception("refusals_unwritable")
                if self._remove(batches[0]):
                    self._record_dropped(batches[0])
            else:
                for batch in batches:
                    self._remove(batch)
            mistakes = 0
            if self.is_away:
                self.is_away = False
                self._faults.clear(Scope.DEPENDENCY, _NAME)

    async def _wait(self, trouble: Exception) -> None:
        self.is_away = True
        # One alone, until none waits: several may be too much for a slow quarantine, and those
        # beside one in trouble would be sent with each of its tries.
        self._at_once = 1
        self._settle(0)  # no caller waits while nothing gets through
        self.troubles += 1
        self._logger.warning("quarantine_failed", waiting=self.waiting, error=str(trouble))
        why = (
            f"{self.waiting:,} refusals wait for the quarantine topic, details of {self.dropped:,} "
            f"were dropped; counting goes on: {trouble}"
        )
        self._faults.report(Scope.DEPENDENCY, _NAME, why, _REMEDY)
        await asyncio.sleep(self._retry_seconds)

    def _remove(self, batch: RefusalBatch) -> bool:
        """Remove the batch at the head; return False when it was dropped meanwhile."""
        if not self._batches or self._batches[0] is not batch:
            return False
        self._batches.popleft()
        self._forget(batch)
        return True

    def _drop(self, batch: RefusalBatch) -> None:
        self._forget(batch)
        self._record_dropped(batch)

    def _forget(self, batch: RefusalBatch) -> None:
        """Count a batch as waiting no longer."""
        self.waiting -= batch.refusals.count
        self.waiting_bytes -= batch.refusals.size
        self._settle(batch.refusals.count)

    def _record_dropped(self, batch: RefusalBatch) -> None:
        self.dropped += batch.refusals.count
        self._logger.error(
            "refusals_dropped",
            topic=batch.topic,
            partition=batch.partition,
            from_offset=batch.refusals.first_offset,
            to_offset=batch.refusals.last_offset,
            refusals=batch.refusals.count,
        )


def _batches_of(
    topic: str, partition: int, refusals: Sequence[WrittenRefusals]
) -> Sequence[RefusalBatch]:
    """Return refusals as they share records."""
    return [RefusalBatch(topic, partition, some) for some in joined(refusals)]


def _is_too_much(refusals: int, size: int) -> bool:
    """Return whether so many refusals, of so many bytes, are more than may wait."""
    return refusals > MOST_REFUSALS or size > MOST_BYTES
