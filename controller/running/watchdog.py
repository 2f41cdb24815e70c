"""Detects a consumer that stands still although records wait, and an event loop that is late.

Belongs here: the judgement, pure and with time as an argument, and the loops that act on it. Does
not belong here: how a consumer is rebuilt or a process ended; both are passed in.

aiokafka can stay alive and never rejoin its group after a broker's restart, without an error
(aio-libs/aiokafka#1154). Only progress proves that a consumer works. It is rebuilt when it makes
none, and in the end the process exits, so that its supervisor starts a new one. Nothing is lost by
either: reading continues from the fence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum

import structlog

from controller.ports import Clock, TopicPartition
from controller.settings import WatchdogSettings

log = structlog.get_logger(__name__)

#: The exit status after the last rebuild did not help: EX_TEMPFAIL, so that a supervisor starts the
#: process again.
EXIT_CONSUMER_STUCK = 75
#: Between two measurements of stalls: a longer one is always measured, a shorter one by chance. 20
#: measurements a second cost a thousandth of a core.
STALL_PERIOD_SECONDS = 0.05

Progress = Mapping[TopicPartition, tuple[int, int]]
"""Partition to (next offset to read, offset after the last record)."""

Sleep = Callable[[float], Awaitable[None]]


class Remedy(Enum):
    """What a stuck consumer needs."""

    NONE = "none"
    REBUILD = "rebuild"
    EXIT = "exit"


class ProgressJudge:
    """Decides whether a consumer is stuck, from its progress and the time. No clock, no I/O.

    Stuck is a partition with records waiting whose position has not moved for
    `stuck_after_seconds`, or brokers (or a rebalance) that gave it no answer for as long. After
    `max_rebuilds` that did not help, the fix is to exit; they are forgotten once nothing was
    stuck for twice that time.
    """

    def __init__(self, stuck_after_seconds: float, max_rebuilds: int) -> None:
        self._stuck_after = stuck_after_seconds
        self._max_rebuilds = max_rebuilds
        self._moved_at: dict[TopicPartition, tuple[int, float]] = {}  # position, since when
        self._answered_at: float | None = None
        self._rebuilt_at: float | None = None
        self.rebuilds = 0
        """Rebuilds in a row that did not help yet."""
        self.stuck: tuple[TopicPartition, ...] = ()
        """Partitions that were stuck at the latest check."""

    def judge(self, now: float, progress: Progress | None, *, is_reading: bool) -> Remedy:
        """Return the fix at `now`, in seconds of a monotonic clock.

        `progress`: None when there was no answer. `is_reading`: whether records are requested from
        the consumer, and brokers are there; if not, standing still is not its fault.
        """
        if self._answered_at is None or not is_reading or progress is not None:
            self._answered_at = now
        if not is_reading:
            self._moved_at.clear()
            self.stuck = ()
            return Remedy.NONE
        if progress is None:
            self.stuck = ()
            return self._remedy() if now - self._answered_at >= self._stuck_after else Remedy.NONE
        for gone in self._moved_at.keys() - progress.keys():
            del self._moved_at[gone]
        for partition, (position, end) in progress.items():
            before = self._moved_at.get(partition)
            if before is None or before[0] != position or position >= end:
                self._moved_at[partition] = (position, now)
        self.stuck = tuple(
            sorted(
                one
                for one, (_, since) in self._moved_at.items()
                if now - since >= self._stuck_after
            )
        )
        if self.stuck:
            return self._remedy()
        if self._rebuilt_at is not None and now - self._rebuilt_at >= 2 * self._stuck_after:
            self.rebuilds = 0
        return Remedy.NONE

    def rebuilt(self, now: float, *, succeeded: bool) -> None:
        """Note a rebuild, and start to measure again.

        One that failed, because no broker answered, is not counted.
        """
        self._moved_at.clear()
        self._answered_at = now
        if succeeded:
            self._rebuilt_at = now
            self.rebuilds += 1

    def _remedy(self) -> Remedy:
        return Remedy.REBUILD if self.rebuilds < self._max_rebuilds else Remedy.EXIT


class ConsumerWatchdog:
    """Watches one consumer, for as long as `run` runs."""

    def __init__(
        self,
        name: str,
        settings: WatchdogSettings,
        clock: Clock,
        *,
        progress: Callable[[], Awaitable[Progress]],
        seconds_since_fetch: Callable[[], float | None],
        rebuild: Callable[[], Awaitable[None]],
        give_up: Callable[[str], None],
        are_brokers_away: Callable[[], bool] = lambda: False,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """Watch the consumer called `name`.

        `progress` and `rebuild` may raise anything. `seconds_since_fetch`: None before the
        first read. `give_up` is called once, with the reason, and should end the process with
        EXIT_CONSUMER_STUCK. `are_brokers_away`: whether they answer nobody else either, as far as
        another client of this process knows.
        """
        self._settings = settings
        self._clock = clock
        self._progress = progress
        self._seconds_since_fetch = seconds_since_fetch
        self._rebuild = rebuild
        self._give_up = give_up
        self._are_brokers_away = are_brokers_away
        self._sleep = sleep
        self._log = log.bind(consumer=name)
        self._judge = ProgressJudge(settings.stuck_after_seconds, settings.max_rebuilds)

    @property
    def stuck(self) -> tuple[TopicPartition, ...]:
        """Partitions that were stuck at the latest check; not empty means not ready."""
        return self._judge.stuck

    async def run(self) -> None:
        """Check, act, and sleep, until cancelled or until the consumer is given up."""
        while await self.look():
            await self._sleep(self._settings.check_interval_seconds)

    async def look(self) -> bool:
        """Check once and act; return False when the consumer was given up."""
        since = self._seconds_since_fetch()
        is_reading = since is not None and since < self._settings.stuck_after_seconds / 2
        progress: Progress | None = None
        if is_reading:
            try:
                progress = await self._progress()
            except Exception as error:  # no answer, of whatever kind: the judge counts how long
                self._log.warning("progress_unknown", reason=str(error) or type(error).__name__)
        # A new consumer would meet the same silence, and lose what the old one has: its place in
        # the group. When the brokers are back, the group would first wait for the old one.
        is_outage = progress is None and self._are_brokers_away()
        fix = self._judge.judge(
            self._clock.monotonic(), progress, is_reading=is_reading and not is_outage
        )
        if fix is Remedy.NONE:
            return True
        stuck = [f"{topic}/{number}" for topic, number in self._judge.stuck]
        if fix is Remedy.EXIT:
            self._log.error("consumer_given_up", stuck=stuck, rebuilds=self._judge.rebuilds)
            self._give_up(
                f"no progress after {self._judge.rebuilds} rebuilds of the consumer: "
                f"{stuck or 'no answer'}"
            )
            return False
        self._log.warning("consumer_stuck", stuck=stuck, rebuilds=self._judge.rebuilds)
        try:
            await self._rebuild()
        except Exception as error:  # a client that is broken in whatever way is tried again
            self._log.warning("rebuild_failed", reason=str(error) or type(error).__name__)
            self._judge.rebuilt(self._clock.monotonic(), succeeded=False)
        else:
            self._judge.rebuilt(self._clock.monotonic(), succeeded=True)
        return True


class StallMeter:
    """Measures by how much the event loop wakes a timer late.

    Everything else on the loop, heartbeats and rollbacks too, waits as long.
    """

    def __init__(
        self,
        clock: Clock,
        observe: Callable[[float], None],
        *,
        warning_seconds: float,
        collecting_seconds: Callable[[], float] = lambda: 0.0,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """Give each delay, in seconds, to `observe`, and log those above `warning_seconds`.

        `collecting_seconds` tells for how long the garbage collector has visited all objects so
        far. It does so seldom: a delay by it is no reason to warn.
        """
        self._clock = clock
        self._observe = observe
        self._warning_seconds = warning_seconds
        self._collecting_seconds = collecting_seconds
        self._sleep = sleep

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            await self.look()

    async def look(self) -> float:
        """Sleep one period and return how many seconds too long that took."""
        start, collecting = self._clock.monotonic(), self._collecting_seconds()
        await self._sleep(STALL_PERIOD_SECONDS)
        delay = max(0.0, self._clock.monotonic() - start - STALL_PERIOD_SECONDS)
        self._observe(delay)
        collecting = self._collecting_seconds() - collecting
        if delay - collecting > self._warning_seconds:
            log.warning(
                "loop_stalled",
                duration_ms=round(delay * 1000),
                limit_ms=round(self._warning_seconds * 1000),
                fix="the process gets too little CPU, or the machine swaps: give it a whole core, "
                "or add replicas",
            )
        return delay
