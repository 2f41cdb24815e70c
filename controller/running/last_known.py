"""Keeps what was decided last, and has it served while Kafka cannot say what is the newest.

A decision is saved in Redis before anything acts on it, so Redis has every decision. What Redis and
the state topic say is also kept in a file of this replica, with the time at which they said it.

- At the start the board serves what Redis has. If Redis gives no answer within two seconds, it
  serves the file, unless that is too old. Both only until the state topic has been read.
- While the brokers are silent, Redis is compared now and then: it has the decisions of other
  replicas, also those that the relay (`decision_relay.py`) does not carry. Whichever of the two
  reads of a decision first: the registry tells the flag's worker here, and so the flag planes.

Belongs here: which source is asked when, and how often the file is written. Does not belong here:
what is served meanwhile (`web/flags.py`), and the file (`adapters/last_known_file.py`). Reasons:
`ops/decisions/0016-fail-static.md`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final, Protocol

import structlog

from controller.adapters.last_known_file import LastKnownFile
from controller.adapters.private_file import ReplicaDirectory
from controller.adapters.redis.identity import StoredIdentity
from controller.cancellation import task_group
from controller.codec.last_known import LastKnownState, Origin
from controller.core.rollout import Rollout
from controller.errors import DocumentUnreadable, LastKnownUnavailable, RolloutdError
from controller.health import Faults, Scope
from controller.ports import Clock, Rollouts
from controller.running.reporter import SILENT_AFTER_SECONDS
from controller.settings import Settings
from controller.web.decision_order import exposure
from controller.web.flags import FlagBoard

#: The pause after a reading in relation to what that took: of 10,000 flags it takes seconds. The
#: same of a write and its CPU time.
PAUSE_PER_WORK: Final = 20
#: How long a slow disk rests at most between two writes.
REST_SECONDS: Final = 2.0
#: A file from further in the future was written by another clock, and its age is not known.
AHEAD_AT_MOST: Final = timedelta(minutes=1)

#: The name of the fault.
FILE: Final = "last known file"
_FIX: Final = (
    "free the disk, or set last_known.directory to a directory that rolloutd may write to: until "
    "then a restart in an outage of Kafka and Redis serves what is older, or nothing"
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AskingPace:
    """When which source is asked. All in seconds."""

    read: float = 15.0  # for reading the file: 10,000 flags take 5 s, a disk that hangs for ever
    store_first: float = 2.0  # for so long the file waits for Redis, which may know of a roll back
    retry: float = 1.0  # between two readings of Redis until the state topic was read
    follow: float = 5.0  # between two readings of Redis in an outage of Kafka
    refresh: float = 10.0  # between two writes without a change: the file says how new it is
    write: float = 0.5  # at least between two writes


PACE: Final = AskingPace()


def pause_after_write(worked: float, took: float, pace: AskingPace = PACE) -> float:
    """Return the seconds until the next write may begin.

    `worked` is the CPU time of the last one in seconds, `took` how long it lasted. What is decided
    meanwhile is not kept. So a wait for a busy disk or CPU counts once, which gives a slow disk as
    much rest as work, and only so far; and no pause is longer than one without a change.
    """
    pause = max(pace.write, PAUSE_PER_WORK * worked, min(took, REST_SECONDS))
    return min(pause, pace.refresh)


class BrokerFeed(Protocol):
    """The state topic, as far as it matters here."""

    @property
    def silent_seconds(self) -> float | None:
        """Seconds since the brokers said that nothing is newer; None: they never did."""


class DecisionStore(Protocol):
    """What is stored of every decision."""

    @property
    def rollouts(self) -> Rollouts: ...

    async def is_ours(self) -> bool:
        """Return whether it is this environment's. Raises StoreUnavailable."""


@dataclass(frozen=True, slots=True)
class StoredDecisions:
    """What Redis has, read without Kafka: only names tell that it is ours."""

    identity: StoredIdentity
    rollouts: Rollouts
    origin: Origin
    former_environments: Collection[str] = ()

    async def is_ours(self) -> bool:
        """Return whether the keys are of this environment. Raises StoreUnavailable."""
        names = (self.origin.environment, *self.former_environments)
        return await self.identity.is_of(self.origin.topic_prefix, names)


class LastKnown:
    """Has the last known state kept and served. One loop, which runs from the start."""

    def __init__(
        self,
        board: FlagBoard,
        stored: DecisionStore,
        file: LastKnownFile | None,
        feed: BrokerFeed,
        clock: Clock,
        *,
        max_age: timedelta,
        update: Callable[[Rollout], object],
        faults: Faults,
        lowered: Callable[[Rollout], Rollout] = lambda rollout: rollout,
        waiting_read: Callable[[], Awaitable[None]] | None = None,
        pace: AskingPace = PACE,
    ) -> None:
        """`update` takes what another replica decided while Kafka was away.

        `lowered` returns a remembered rollout as the commands that wait for Redis leave it, once
        `waiting_read` has returned.
        """
        self._board = board
        self._stored = stored
        self._file = file
        self._feed = feed
        self._clock = clock
        self._max_age = max_age
        self._update = update
        self._faults = faults
        self._lowered = lowered
        self._waiting_read = waiting_read
        self._pace = pace
        self._stored_at: datetime | None = None  # Redis said then that nothing is newer
        self._confirmed_before: datetime | None = None  # by Kafka, to the process before
        self._written: tuple[datetime, Sequence[Rollout], datetime | None] | None = None
        self._write_trouble = ""
        self._cpu_seconds = 0.0  # of all writes
        self._in_file: Mapping[str, Rollout] = {}  # by flag, what a restart would find
        self._has_kept = False  # a directory that never took a file is a choice, and no fault

    async def run(self) -> None:
        """Serve what is remembered; then keep it, and follow Redis where need be."""
        if not self._board.is_trusted:  # else this loop was restarted
            await self._recall()
        async with task_group() as tasks:
            tasks.create_task(self._follow_store(), name="last_known:store")
            if self._file is not None:
                tasks.create_task(self._keep(self._file), name="last_known:file")

    # --- at the start ---

    async def _recall(self) -> None:
        state = await self._read_file()
        if state is not None and self._why_not_served(state) is None:
            self._confirmed_before = state.confirmed_at
        if self._waiting_read is not None:  # else what they lowered would be served again
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace.read + self._pace.store_first):
                    await self._waiting_read()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pace.store_first):
                if await self._serve_stored(state):
                    return
        if state is not None:
            self._serve_file(state)
        while not self._board.is_trusted:
            if await self._serve_stored(state):
                return
            await asyncio.sleep(self._pace.retry)

    async def _read_file(self) -> LastKnownState | None:
        file = self._file
        if file is None:
            return None
        try:
            async with asyncio.timeout(self._pace.read):
                await asyncio.to_thread(file.clear_temporaries)
                state = await asyncio.to_thread(file.read)
        except (DocumentUnreadable, LastKnownUnavailable, TimeoutError) as refused:
            _log.error(
                "last_known_refused",
                path=str(file.path),
                reason=str(refused) or f"the disk gave no answer within {self._pace.read:g} s",
                action="none: it is replaced once Kafka has been read",
            )
            return None
        if state is not None:
            self._note_in_file(state.rollouts)
        return state

    async def _serve_stored(self, state: LastKnownState | None) -> bool:
        """Have the board serve what Redis has; return whether Redis has anything of ours."""
        began = self._clock.now()
        in_file = () if state is None else state.rollouts
        try:
            if not await self._stored.is_ours():
                return False
            flag_keys = frozenset(await self._stored.rollouts.flag_keys())
            newer = await self._stored.rollouts.newer_than(_revisions(in_file))
        except RolloutdError as trouble:
            _log.debug("last_known_store_unread", error=str(trouble))
            return False
        if not flag_keys or self._board.is_trusted:
            return False
        self._stored_at = began
        is_young = state is not None and self._why_not_served(state) is None
        kept = [one for one in in_file if is_young or one.flag_key in flag_keys]
        self._remember([*kept, *newer], began)
        _log.info("last_known_served", source="redis", flags=len(flag_keys), known_at=began)
        return True

    def _serve_file(self, state: LastKnownState) -> None:
        """Have the board serve the file, unless it is too old."""
        if self._board.is_trusted:
            return
        why_not = self._why_not_served(state)
        if why_not is not None:
            self._board.doubt(f"Kafka and Redis have not been read yet, and {why_not}")
            _log.warning("last_known_not_served", reason=why_not)
            return
        self._remember(state.rollouts, state.known_at)
        _log.info(
            "last_known_served", source="file", flags=len(state.rollouts), known_at=state.known_at
        )

    def _remember(self, rollouts: Iterable[Rollout], known_at: datetime) -> None:
        """Have the board serve what was decided last, as waiting commands leave it."""
        self._board.remember(map(self._lowered, rollouts), known_at, self._confirmed_before)

    def _why_not_served(self, state: LastKnownState) -> str | None:
        """Return why the age of a file forbids to serve it, None where it may be served."""
        age = self._clock.now() - state.known_at
        if age < -AHEAD_AT_MOST:
            return f"the last known state is from the future by {-age}: compare the clocks"
        if age > self._max_age:
            return (
                f"the last known state is {age.total_seconds():.0f} s old, which is more than "
                f"last_known.max_age_seconds ({self._max_age.total_seconds():g})"
            )
        return None

    # --- later ---

    async def _follow_store(self) -> None:
        """Read from Redis what others decided, while the brokers are silent."""
        loop = asyncio.get_running_loop()
        pause = self._pace.follow
        while True:
            await asyncio.sleep(pause)
            silent = self._feed.silent_seconds
            if silent is not None and silent <= SILENT_AFTER_SECONDS:
                continue
            began, started = self._clock.now(), loop.time()
            try:
                if not await self._stored.is_ours():
                    continue
                known = _revisions(self._board.rollouts)
                newer = await self._stored.rollouts.newer_than(known)
                self._take(newer, began)
            except RolloutdError as trouble:
                _log.debug("last_known_store_unread", error=str(trouble))
            else:
                self._stored_at = began
            pause = max(self._pace.follow, PAUSE_PER_WORK * (loop.time() - started))

    def _take(self, newer: Sequence[Rollout], read_at: datetime) -> None:
        """Have what others decided served: by everything here, or before the start by the board."""
        for rollout in newer:
            _log.info("decided_elsewhere", flag_key=rollout.flag_key, revision=rollout.revision)
        if not self._board.is_trusted:
            self._remember(newer, read_at)
            return
        for rollout in newer:
            self._update(rollout)

    async def _keep(self, file: LastKnownFile) -> None:
        """Write the file at each change, and now and then without one."""
        loop = asyncio.get_running_loop()
        with self._board.changes() as changed:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pace.refresh):
                        await changed.wait()
                changed.clear()
                started, worked = loop.time(), self._cpu_seconds
                await self._write(file)
                took, worked = loop.time() - started, self._cpu_seconds - worked
                await asyncio.sleep(pause_after_write(worked, took, self._pace))

    async def _write(self, file: LastKnownFile) -> None:
        known_at, rollouts = self._known_at(), self._board.rollouts
        if not self._board.is_trusted or known_at is None:
            return
        content = (known_at, rollouts, self._board.stale_since or self._confirmed_at())
        if content == self._written:
            return
        try:
            await self._replace(file, *content)
        except LastKnownUnavailable as trouble:
            self._note_not_kept(str(trouble))
            return
        self._write_trouble = ""
        self._written = content
        self._faults.clear(Scope.DEPENDENCY, FILE)

    async def _replace(
        self,
        file: LastKnownFile,
        known_at: datetime,
        rollouts: Sequence[Rollout],
        confirmed_at: datetime | None,
    ) -> None:
        write = partial(file.write, known_at, rollouts, confirmed_at)
        try:
            await self._in_thread(write)
        except LastKnownUnavailable:
            if not self._gives_more(rollouts):
                raise
            # A restart in an outage would bring back what was lowered since: rather nothing is
            # found. On a full disk, the room of the old file is often enough for the new one.
            await self._in_thread(file.remove)
            self._in_file = {}
            await self._in_thread(write)
        self._note_in_file(rollouts)

    async def _in_thread(self, work: Callable[[], object]) -> None:
        """Have a thread do it, and count the CPU time that it takes."""

        def counted() -> None:
            began = time.thread_time()
            try:
                work()
            finally:
                self._cpu_seconds += time.thread_time() - began

        await asyncio.to_thread(counted)

    def _note_in_file(self, rollouts: Iterable[Rollout]) -> None:
        self._in_file = {rollout.flag_key: rollout for rollout in rollouts}
        self._has_kept = True

    def _gives_more(self, rollouts: Iterable[Rollout]) -> bool:
        """Return whether the file gives treatment to more contexts than what is decided now."""
        newest = {rollout.flag_key: rollout for rollout in rollouts}
        return any(
            exposure(old) > (exposure(newest[key]) if key in newest else (0.0, 0.0))
            for key, old in self._in_file.items()
            if newest.get(key) is not old
        )

    def _note_not_kept(self, why: str) -> None:
        if self._write_trouble != why:
            _log.warning(
                "last_known_not_kept",
                error=why,
                action="set last_known.directory to a directory that rolloutd may write to; "
                "without one, a restart in an outage of Kafka and Redis serves nothing",
            )
        self._write_trouble = why
        if self._has_kept:
            self._faults.report(Scope.DEPENDENCY, FILE, why, _FIX)

    def _known_at(self) -> datetime | None:
        """Return when Kafka or Redis last said that nothing newer was decided."""
        times = [at for at in (self._confirmed_at(), self._stored_at) if at is not None]
        return max(times, default=None)

    def _confirmed_at(self) -> datetime | None:
        """Return when Kafka last said so."""
        silent = self._feed.silent_seconds
        return None if silent is None else self._clock.now() - timedelta(seconds=silent)


def replica_directory(settings: Settings) -> ReplicaDirectory | None:
    """Return where this replica keeps its files; None: it keeps none."""
    path = settings.last_known.directory
    if path is None:
        return None
    origin = _own_origin(settings)
    return ReplicaDirectory(path, origin, settings.http.port, settings.former_environments)


def _own_origin(settings: Settings) -> Origin:
    return Origin(settings.environment, settings.kafka.topic_prefix)


def make_last_known(
    settings: Settings,
    board: FlagBoard,
    identity: StoredIdentity,
    rollouts: Rollouts,
    feed: BrokerFeed,
    clock: Clock,
    update: Callable[[Rollout], object],
    lowered: Callable[[Rollout], Rollout],
    waiting_read: Callable[[], Awaitable[None]],
    faults: Faults,
) -> LastKnown:
    """Return the last known state of a replica as its settings describe it."""
    directory = replica_directory(settings)
    return LastKnown(
        board,
        StoredDecisions(identity, rollouts, _own_origin(settings), settings.former_environments),
        None if directory is None else LastKnownFile(directory),
        feed,
        clock,
        max_age=timedelta(seconds=settings.last_known.max_age_seconds),
        update=update,
        faults=faults,
        lowered=lowered,
        waiting_read=waiting_read,
    )


def _revisions(rollouts: Collection[Rollout]) -> Mapping[str, int]:
    """Return the revision of each flag's rollout."""
    return {rollout.flag_key: rollout.revision for rollout in rollouts}
