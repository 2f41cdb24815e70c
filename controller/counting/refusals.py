"""Refused records on their way to the quarantine: counting does not wait for it.

A refusal is counted with its offset, in the partition's hash. Its details wait here, in memory,
until the quarantine topic has them. What a crash costs is the details of those that wait; what a
flood costs while the topic is away is the details of the oldest, which are counted and logged.
Belongs here: the backlog. Does not belong here: what was refused and why (`counting.py`), how it is
written (`schemas/quarantine.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from controller.errors import EventLogUnavailable
from controller.health import Faults, Scope
from schemas.quarantine import MAX_REFUSALS, Refusal

#: Publishes refusals of one topic partition, at most `MAX_REFUSALS`, and returns once they are
#: acknowledged. Raises EventLogUnavailable; a repeat is harmless.
Quarantine = Callable[[str, int, Sequence[Refusal]], Awaitable[None]]

MOST_REFUSALS = 20_000
MOST_BYTES = 16 * 1024 * 1024
"""What waits at most, of all partitions together: a minute of a flood that is a tenth poison."""
_BYTES_BESIDES = 400  # of a refusal, beside its body and detail
_NAME = "quarantine"
_REMEDY = (
    "check that the quarantine topic exists, takes writes, and has min.insync.replicas in sync"
)
_MISTAKES = 3  # of ours with one batch; then its details are given up


@dataclass(slots=True)
class _Lot:
    """Refusals of one save of one partition, in the order of their offsets."""

    topic: str
    partition: int
    refusals: list[Refusal]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(_BYTES_BESIDES + len(one.body) + len(one.detail) for one in self.refusals)


class RefusalBacklog:
    """What waits for the quarantine, bounded, and what publishes it."""

    def __init__(self, quarantine: Quarantine, faults: Faults, *, retry_seconds: float) -> None:
        self._quarantine = quarantine
        self._faults = faults
        self._retry_seconds = retry_seconds
        self._lots: deque[_Lot] = deque()
        self._arrived = asyncio.Event()
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()  # by what they wait for
        self._added = 0
        self._settled = 0  # published or dropped, in the order they came
        self._log = structlog.get_logger()
        self.waiting = 0
        self.waiting_bytes = 0
        self.dropped = 0  # refusals whose details were given up
        self.troubles = 0  # tries that failed
        self.is_away = False  # the last try failed

    def add(self, topic: str, partition: int, refusals: Sequence[Refusal]) -> None:
        """Let refusals be published; the oldest that wait are given up when there are too many."""
        lot = _Lot(topic, partition, list(refusals))
        self._added += len(lot.refusals)
        self._lots.append(lot)
        self.waiting += len(lot.refusals)
        self.waiting_bytes += lot.size
        while len(self._lots) > 1 and self._is_too_much():
            self._drop(self._lots.popleft())
        self._arrived.set()

    async def flushed(self, seconds: float) -> None:
        """Return once all that was added by now is there, at the latest after `seconds`.

        At once while nothing gets through: that is known from the last try.
        """
        if self.is_away or self._settled >= self._added:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append((self._added, waiter))
        await asyncio.wait({waiter}, timeout=seconds)

    def _settle(self, count: int) -> None:
        """Note that refusals wait no longer, and let go on who waited for them."""
        self._settled += count
        while self._waiters and (self.is_away or self._waiters[0][0] <= self._settled):
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    async def run(self) -> None:
        """Publish what comes, for ever."""
        mistakes = 0
        while True:
            if not self._lots:
                self._arrived.clear()
                await self._arrived.wait()
            lot = self._lots[0]
            batch = lot.refusals[:MAX_REFUSALS]
            try:
                await self._quarantine(lot.topic, lot.partition, batch)
            except EventLogUnavailable as trouble:
                await self._wait(trouble)
                continue
            except Exception as mistake:  # of ours: it must not keep what comes behind it
                mistakes += 1
                if mistakes < _MISTAKES:
                    await self._wait(mistake)
                    continue
                self._log.exception("refusals_unwritable")
                if self._take_out(lot, batch):
                    self._note_dropped(lot.topic, lot.partition, batch)
            else:
                self._take_out(lot, batch)
            mistakes = 0
            if self.is_away:
                self.is_away = False
                self._faults.clear(Scope.DEPENDENCY, _NAME)

    async def _wait(self, trouble: Exception) -> None:
        self.is_away = True
        self._settle(0)  # nobody waits for what does not get through
        self.troubles += 1
        self._log.warning("quarantine_failed", waiting=self.waiting, error=str(trouble))
        why = (
            f"{self.waiting:,} refusals wait for the quarantine topic, details of {self.dropped:,} "
            f"were dropped; counting goes on: {trouble}"
        )
        self._faults.report(Scope.DEPENDENCY, _NAME, why, _REMEDY)
        await asyncio.sleep(self._retry_seconds)

    def _take_out(self, lot: _Lot, batch: Sequence[Refusal]) -> bool:
        """Take the batch from its lot's head; return False when the lot was dropped meanwhile."""
        if not self._lots or self._lots[0] is not lot:
            return False
        self.waiting -= len(lot.refusals)
        self.waiting_bytes -= lot.size
        self._lots.popleft()
        self._settle(len(batch))
        rest = lot.refusals[len(batch) :]
        if rest:
            left = _Lot(lot.topic, lot.partition, rest)
            self._lots.appendleft(left)
            self.waiting += len(rest)
            self.waiting_bytes += left.size
        return True

    def _is_too_much(self) -> bool:
        return self.waiting > MOST_REFUSALS or self.waiting_bytes > MOST_BYTES

    def _drop(self, lot: _Lot) -> None:
        self.waiting -= len(lot.refusals)
        self.waiting_bytes -= lot.size
        self._settle(len(lot.refusals))
        self._note_dropped(lot.topic, lot.partition, lot.refusals)

    def _note_dropped(self, topic: str, partition: int, refusals: Sequence[Refusal]) -> None:
        self.dropped += len(refusals)
        self._log.error(
            "refusals_dropped",
            topic=topic,
            partition=partition,
            from_offset=refusals[0].offset,
            to_offset=refusals[-1].offset,
            refusals=len(refusals),
        )
