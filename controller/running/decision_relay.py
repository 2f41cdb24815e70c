"""Passes decisions between replicas through Redis while the state topic does not carry them.

Every replica serves every flag, and learns from the state topic what the others decided. While
Kafka is away, or does not take what is decided, nothing arrives there. A replica that decides then
writes flag and revision into one small hash, which every replica reads once a second; the rollout
itself is in Redis anyway.

Belongs here: what is written and when it is read. Does not belong here: deciding, and the state
topic (`state_follower.py`). See `ops/decisions/0017-emergency.md`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from itertools import takewhile
from typing import Final, Protocol

import structlog

from controller.core.rollout import Rollout
from controller.deciding.registry import RolloutRegistry
from controller.errors import DocumentUnreadable, OperatingTrouble
from controller.health import Faults, Scope, redis_fix
from controller.ports import Clock, Rollouts

BEAT_SECONDS: Final = 1.0
#: Decisions that are made together are written together.
GATHER_SECONDS: Final = 0.05
#: Brokers are asked about the state topic every second. After so long a decision may not reach it.
SILENT_SECONDS: Final = 2.0
#: A decision is remembered for so long, in case Kafka was gone already when it was made.
RECENT: Final = timedelta(seconds=30)
#: With Kafka back, each replica has read an entry after a second. One may be cut off for longer.
KEPT_SECONDS: Final = 300.0
#: Troubles that last for longer are a fault.
READ_WITHIN_SECONDS: Final = 5.0
RELAY: Final = "relay"
_REMEDY: Final = redis_fix(
    "the key of the relay",
    "the other replicas do not learn what one of them decides while Kafka is away",
)

log = structlog.get_logger(__name__)


class RelayStore(Protocol):
    """Where the relay is kept; `adapters/redis/relay.py`. Each call raises StoreUnavailable."""

    async def write(self, revisions: Mapping[str, int]) -> None:
        """Write the revisions of flags."""

    async def read(self) -> Mapping[str, int]:
        """Return the revision of every flag in the relay.

        The same object as before says that nothing has changed.
        """

    async def drop(self, flag_keys: Sequence[str]) -> None:
        """Delete flags."""


class DecisionRelay:
    """Writes what is decided here, reads what is decided elsewhere. An `OwnRollouts` listener."""

    def __init__(
        self,
        clock: Clock,
        store: RelayStore,
        rollouts: Rollouts,
        registry: RolloutRegistry,
        faults: Faults,
        *,
        silent_seconds: Callable[[], float | None],
        stuck_seconds: Callable[[], float],
        why_not_ours: Callable[[], Awaitable[str | None]],
    ) -> None:
        """Both times tell whether the state topic carries what is decided here.

        `silent_seconds`: since a broker said that nothing newer was decided; None: never.
        `stuck_seconds`: for how long Kafka has not taken something that was decided here.
        `why_not_ours` returns why Redis may not be this environment's, None when it is: this runs
        before Kafka was read.
        """
        self._clock = clock
        self._store = store
        self._rollouts = rollouts
        self._registry = registry
        self._faults = faults
        self._silent_seconds = silent_seconds
        self._stuck_seconds = stuck_seconds
        self._why_not_ours = why_not_ours
        self._decided: dict[str, Rollout] = {}  # here and lately, not written yet, oldest first
        self._seen: Mapping[str, int] = {}  # by flag, the revision in the relay
        self._seen_at: dict[str, float] = {}  # since when (monotonic seconds), oldest first
        self._unknown: dict[str, int] = {}  # of them, what is not known to be known here
        self._silent_at = float("-inf")  # when the state topic was silent last
        self._trouble_since: float | None = None
        self._woken = asyncio.Event()

    def request(self, rollout: Rollout) -> None:
        """Note what a worker here has saved or loaded."""
        if self._clock.now() - rollout.updated_at <= RECENT:
            self._decided.pop(rollout.flag_key, None)  # the newest is the last
            self._decided[rollout.flag_key] = rollout
            self._woken.set()

    def drop(self, flag_keys: Sequence[str]) -> None:
        """Do nothing: what was decided stays decided, whoever runs the flag."""

    async def run(self) -> None:
        """Write and read once a second, and write at once what is decided, until cancelled."""
        while True:
            self._woken.clear()
            await self.beat()
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._woken.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(GATHER_SECONDS)

    async def beat(self) -> None:
        """Write and read once. While Redis is away nothing is passed on; that raises nothing."""
        try:
            if await self._why_not_ours() is not None:
                return
            await self._write()
            revisions = await self._store.read()
            if revisions is not self._seen:
                self._note(revisions)
            for flag_key, revision in list(self._unknown.items()):
                if await self._take(flag_key, revision):
                    del self._unknown[flag_key]
            await self._clean()
        except OperatingTrouble as trouble:
            self._note_trouble(str(trouble))
        else:
            self._trouble_since = None
            self._faults.clear(Scope.DEPENDENCY, RELAY)

    @property
    def _is_silent(self) -> bool:
        silent = self._silent_seconds()
        return silent is None or max(silent, self._stuck_seconds()) > SILENT_SECONDS

    async def _write(self) -> None:
        """Write what was decided lately, if the state topic cannot carry it."""
        self._forget_old()
        if not self._decided or not self._is_silent:
            return
        written = dict(self._decided)
        await self._store.write({key: one.revision for key, one in written.items()})
        for flag_key, rollout in written.items():
            log.info("decision_relayed", flag_key=flag_key, revision=rollout.revision)
            if self._decided.get(flag_key) is rollout:
                del self._decided[flag_key]

    def _forget_old(self) -> None:
        """Forget what was decided long ago, about in the order in which it was noted.

        Thousands of flags may be decided in a second, and this is called for each beat.
        """
        oldest = self._clock.now() - RECENT
        while self._decided:
            flag_key, first = next(iter(self._decided.items()))
            if first.updated_at >= oldest:
                return
            del self._decided[flag_key]

    async def _take(self, flag_key: str, revision: int) -> bool:
        """Pass on what another replica has decided; the registry reaches the flag's worker too.

        Return whether it is known here now.
        """
        newest = self._registry.newest(flag_key)
        if newest is not None and newest.revision >= revision:
            return True
        try:
            stored = await self._rollouts.load(flag_key)
        except DocumentUnreadable as damage:
            log.warning("relayed_unreadable", flag_key=flag_key, error=str(damage))
            return False
        rollout = stored.rollout
        if rollout is None or stored.trouble:
            return False
        if newest is None or rollout.revision > newest.revision:
            log.info("decision_taken_over", flag_key=flag_key, revision=rollout.revision)
            self._registry.update(rollout)
        return rollout.revision >= revision

    def _note(self, revisions: Mapping[str, int]) -> None:
        """Note what has changed: after an outage there may be one of each of thousands of flags."""
        now, before = self._clock.monotonic(), self._seen
        for flag_key in before.keys() - revisions.keys():
            self._unknown.pop(flag_key, None)
            del self._seen_at[flag_key]
        for flag_key, revision in revisions.items():
            if before.get(flag_key) != revision:
                self._unknown[flag_key] = revision
                self._seen_at.pop(flag_key, None)
                self._seen_at[flag_key] = now
        self._seen = revisions

    async def _clean(self) -> None:
        """Delete what every replica has read by now, once the state topic speaks again."""
        now = self._clock.monotonic()
        if self._is_silent:
            self._silent_at = now
        if now - self._silent_at <= KEPT_SECONDS:
            return
        aged = takewhile(lambda item: now - item[1] > KEPT_SECONDS, self._seen_at.items())
        if old := [flag_key for flag_key, _ in aged]:
            await self._store.drop(old)

    def _note_trouble(self, why: str) -> None:
        now = self._clock.monotonic()
        if self._trouble_since is None:
            self._trouble_since = now
            log.warning("relay_unavailable", error=why)
        if now - self._trouble_since > READ_WITHIN_SECONDS:
            self._faults.report(Scope.DEPENDENCY, RELAY, why, _REMEDY)
