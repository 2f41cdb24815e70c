"""Lets go of retired flags: what is stored of them, and their workers.

The state machine has retired the flag, and its tombstone is in the state topic. What follows may be
repeated at any time: planes, reports, the flag's hash, and last its worker. A crash in between
leaves a stored flag that is retired, and the next replica that runs it goes on from there.

Belongs here also: retiring flags by age, and workers of flags of which nothing is stored. Does not
belong here: whether a flag may be retired (`core/machine/retirement.py`).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog

from controller.core.events import CommandReceived
from controller.core.rollout import CONTROLLER, Retired, Rollout
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.flag.flag_worker import FlagWorker
from controller.deciding.worker_pool import WorkerPool
from controller.errors import EventLogUnavailable, FlagPlaneUnavailable, OperatingTrouble
from controller.health import Scope
from controller.ports import CourseKey, FlagPlane, OutboxEntry, RetiringPlane
from schemas.terms import CommandVerb

BEAT_SECONDS: Final = 0.2
#: Empty workers, and flags that are due by age, are looked for this often.
SWEEP_SECONDS: Final = 20.0
#: Flags looked at between two turns of the loop.
AT_ONCE: Final = 200
#: Flags retired by age in one sweep, so that planes and Kafka get them little by little.
BY_AGE_AT_ONCE: Final = 50
#: A plane may take this long to let go of a flag; then it is asked again.
PLANE_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 5.0
#: A flag is let go this long after it was retired: what was being written to a plane or a report
#: has arrived by then, and is deleted too.
SETTLED: Final = timedelta(seconds=5)
_REPORTER: Final = "retiring"
_FIX: Final = "nothing is served for it any more; the rest is let go once this answers"


@dataclass(frozen=True, slots=True)
class Placing:
    """What runs on this replica, as far as it matters here."""

    owns: Callable[[str], bool]  # whether a flag's command partition is ours
    is_commanded: Callable[[str], bool]  # whether a command of a flag is being handled


@dataclass(frozen=True, slots=True)
class LettingGo:
    """What lets go of retired flags, and when flags are retired by age."""

    planes: Sequence[FlagPlane] = ()
    after: timedelta | None = None  # since a rollout ended with 0 %; None: no flag is


class Retiring:
    """One loop. It is an `OwnRollouts` listener of the registry."""

    def __init__(
        self,
        dependencies: WorkerDependencies,
        pool: WorkerPool,
        placing: Placing,
        letting_go: LettingGo,
    ) -> None:
        self._dependencies = dependencies
        self._pool = pool
        self._planes = [plane for plane in letting_go.planes if isinstance(plane, RetiringPlane)]
        self._placing = placing
        self._after = letting_go.after
        self._retired: dict[str, float] = {}  # flag -> when to try next, in monotonic seconds
        self._late: set[str] = set()  # flags of which the state topic ends with an old document
        self._woken = asyncio.Event()
        self._swept_at = dependencies.clock.monotonic()
        self._logger = structlog.get_logger()

    # --- what others call ---

    def request(self, rollout: Rollout) -> None:
        """Note a flag that was retired."""
        if isinstance(rollout.phase, Retired):
            self._retired.setdefault(rollout.flag_key, 0.0)
            self._woken.set()

    def drop(self, flag_keys: Sequence[str]) -> None:
        """Leave flags to the replica that runs them now."""
        for flag_key in flag_keys:
            self._retired.pop(flag_key, None)
            self._dependencies.faults.clear(Scope.FLAG, flag_key, reporter=_REPORTER)

    def republish(self, flag_key: str) -> None:
        """Retire a flag again in the state topic, which ends with an old document of it."""
        if self._dependencies.registry.retired_revision(flag_key) is not None:
            self._late.add(flag_key)
            self._woken.set()

    # --- the loop ---

    async def run(self) -> None:
        """Let go of retired flags until cancelled."""
        while True:
            try:
                await self.beat()
            except Exception:  # ours: the next round comes
                self._logger.exception("retiring_failed")
            if self._retired or self._late:  # what they wait for comes without an event
                await asyncio.sleep(BEAT_SECONDS)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_SECONDS):
                    await self._woken.wait()
            self._woken.clear()

    async def beat(self) -> None:
        """Let go of each retired flag that everybody knows of; now and then look for others."""
        now = self._dependencies.clock.monotonic()
        for flag_key in [key for key, due in self._retired.items() if due <= now]:
            await self._try(flag_key)
        await self._publish_late()
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            await self.sweep()

    async def _try(self, flag_key: str) -> None:
        worker = self._pool.worker(flag_key)
        if worker is None or worker.rollout is None or not _has_retired(worker.rollout):
            self._retired.pop(flag_key, None)
            return
        age = self._dependencies.clock.now() - worker.rollout.updated_at
        if not worker.is_retired or age < SETTLED:
            return  # the tombstone, the decision or an answer is not published yet
        try:
            await self._let_go(worker, worker.rollout)
        except (OperatingTrouble, FlagPlaneUnavailable, TimeoutError) as trouble:
            self._wait(flag_key, str(trouble) or "no answer in time")
        except Exception as mistake:  # damage, or ours: the other flags go on
            self._logger.exception("retiring_failed", flag_key=flag_key)
            self._wait(flag_key, repr(mistake))

    def _wait(self, flag_key: str, trouble: str) -> None:
        """Report that a flag could not be let go, and try again later."""
        why = f"it is retired and not let go everywhere: {trouble}"
        self._dependencies.faults.report(Scope.FLAG, flag_key, why, _FIX, reporter=_REPORTER)
        self._retired[flag_key] = self._dependencies.clock.monotonic() + RETRY_SECONDS

    async def _let_go(self, worker: FlagWorker, rollout: Rollout) -> None:
        """Delete what planes, reports and the store have of a flag, then stop its worker."""
        flag_key = rollout.flag_key
        for plane in self._planes:
            async with asyncio.timeout(PLANE_SECONDS):
                await plane.retire(flag_key, rollout.revision)
        courses = [CourseKey(rollout.rollout_id, visit) for visit in range(len(rollout.visits))]
        await self._dependencies.reports.discard(flag_key, courses)
        if not await worker.bury():
            return  # a command came in between; what it led to is looked at again
        if worker.is_retired and not self._placing.is_commanded(flag_key):
            await self._stop(flag_key)
            self._logger.info("flag_retired", flag_key=flag_key, revision=rollout.revision)

    async def _stop(self, flag_key: str) -> None:
        self._dependencies.registry.drop_stored(flag_key)
        if flag_key in self._pool:
            await self._pool.stop(flag_key)

    async def _publish_late(self) -> None:
        """Write the tombstone again where an older document was written behind it."""
        registry = self._dependencies.registry
        while self._late:
            flag_key = self._late.pop()
            revision = registry.retired_revision(flag_key)
            if revision is None or not self._placing.owns(flag_key):
                continue
            entry = OutboxEntry("", f"{flag_key}/{revision}/0", "state", flag_key, b"")
            try:
                await self._dependencies.publisher.publish([entry])
            except EventLogUnavailable as trouble:
                self._logger.warning("tombstone_waits", flag_key=flag_key, error=str(trouble))
                self._late.add(flag_key)
                return

    async def sweep(self) -> None:
        """Stop workers that have nothing to run, and retire what is due by age."""
        due: list[Rollout] = []
        for place, flag_key in enumerate(self._pool.flag_keys):
            if place % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            worker = self._pool.worker(flag_key)
            if worker is None:
                continue
            if worker.is_empty and not self._placing.is_commanded(flag_key):
                await self._forget(flag_key)
            elif worker.rollout is not None and self._is_due(worker.rollout):
                due.append(worker.rollout)
        for rollout in sorted(due, key=lambda each: each.updated_at)[:BY_AGE_AT_ONCE]:
            worker = self._pool.worker(rollout.flag_key)
            if worker is not None:
                worker.submit(self._command(rollout))

    async def _forget(self, flag_key: str) -> None:
        """Stop the worker of a flag of which nothing is stored."""
        registry = self._dependencies.registry
        if registry.newest(flag_key) is not None:
            return  # the worker is about to load it
        try:
            await self._dependencies.rollouts.unlist(flag_key)
        except OperatingTrouble as trouble:
            self._logger.warning("flag_not_unlisted", flag_key=flag_key, error=str(trouble))
            return
        worker = self._pool.worker(flag_key)
        if worker is not None and worker.is_empty and not self._placing.is_commanded(flag_key):
            await self._stop(flag_key)

    def _is_due(self, rollout: Rollout) -> bool:
        """Return whether a rollout ended with 0 % long enough ago.

        One that completed serves treatment: only a person retires it.
        """
        if self._after is None or not rollout.has_ended or _has_retired(rollout):
            return False
        age = self._dependencies.clock.now() - rollout.updated_at
        return rollout.phase.serves_nothing and rollout.percent == 0 and age >= self._after

    def _command(self, rollout: Rollout) -> CommandReceived:
        assert self._after is not None
        days = self._after / timedelta(days=1)
        return CommandReceived(
            command_id=f"by-age-{uuid.uuid4().hex}",
            verb=CommandVerb.RETIRE,
            issuer=CONTROLLER,
            reason=f"it ended with 0 % more than {days:g} days ago (flags.retire_after_days)",
            issued_at=self._dependencies.clock.now(),
            expected_revision=rollout.revision,
            for_rollout=rollout.rollout_id,
        )


def _has_retired(rollout: Rollout) -> bool:
    return isinstance(rollout.phase, Retired)
