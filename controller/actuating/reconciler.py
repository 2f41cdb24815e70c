"""Makes every flag plane serve what was decided, and reports when one does not.

Level-triggered: it compares and corrects, so that a lost call or a restart needs no case of its
own. Flags to lower go first. Which percentage is right is decided elsewhere, with one exception:
a person who lowers a flag in the plane's own console probably has a reason. So a foreign edit
downwards stays until a decision changes the percentage or a person sets it back. A foreign edit
upwards is undone at once.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Protocol

import structlog

from controller.actuating.plane_alerts import edited, not_served, served_again
from controller.actuating.plane_failures import in_words, where
from controller.cancellation import is_cancelled, task_group
from controller.core.effects import RaiseAlert
from controller.core.rollout import Retired, Rollout
from controller.core.serving import percent_to_serve, serving
from controller.errors import FlagPlaneUnavailable
from controller.health import Faults, Scope
from controller.ports import Clock, FlagPlane, LocalPlane, PlaneStanding, Served
from controller.telemetry import Metrics

MOST_DOUBLINGS = 4
"""Of the period, while a plane fails unexpectedly at a flag: 5 s become at most 80 s. A new
decision, and 0 %, are still tried at once."""

FEW = 100
"""Flags that are not served: with so many or fewer, each decision reports how its planes do."""

FLAGS_PER_TURN = 50
"""Flags that are made to be served before others have their turn; one takes some 20 µs where a
plane is in memory."""

LOOKS_PER_TURN = 500
"""The same of flags that such a plane serves as decided; one takes some 5 µs."""

LOOKS_PER_ROUND = 2_000
"""Of these, so many are looked at in one round: nobody but us changes what is in memory."""

_REMEDY = (
    "other planes go on and it is tried again; the log line plane_failed says where it happened"
)


@dataclass(slots=True)
class _Mismatch:
    """A flag that a plane does not serve as decided."""

    since: datetime
    why: str
    is_alerted: bool = False
    is_trouble: bool = (
        False  # it did not answer as a plane does; else it answered, and serves something else
    )


@dataclass(slots=True)
class _Edit:
    """A foreign edit of a flag, and what was decided when it was first noticed."""

    decided_percent: float
    difference: str


@dataclass(slots=True)
class _Failure:
    """A plane that failed at a flag by an exception that the port does not allow."""

    rollout: Rollout
    why: str
    times: int  # in a row
    until: float  # monotonic seconds; not tried again before


class FlagAlerts(Protocol):
    """Publishes alerts about flags of this replica: `deciding/worker_pool.py`."""

    def alert(self, flag_key: str, alert: RaiseAlert) -> None:
        """Publish an alert. Returns at once."""


class FlagReconciler:
    """The reconcile loop over flags and planes."""

    def __init__(
        self,
        planes: Sequence[FlagPlane],
        clock: Clock,
        alerts: FlagAlerts,
        metrics: Metrics,
        faults: Faults,
        *,
        period_seconds: float = 5.0,
        alarm_after: timedelta = timedelta(seconds=10),
        call_seconds: float = 10.0,
    ) -> None:
        """`period_seconds` bounds how long a foreign edit upwards lasts.

        A mismatch older than `alarm_after` is alerted. `call_seconds` bounds a read, a write of
        several requests and a second read; each request is bounded by its plane.

        A plane in trouble is one of `faults`, until it answers again.
        """
        self._planes = tuple(planes)
        self._alerts = alerts
        self._metrics = metrics
        self._faults = faults
        self._failures: dict[tuple[str, str], _Failure] = {}
        self._clock = clock
        self._period_seconds = period_seconds
        self._alarm_after = alarm_after
        self._call_seconds = call_seconds
        self._decided: dict[str, Rollout] = {}
        self._mismatches: dict[tuple[str, str], _Mismatch] = {}
        self._edits: dict[tuple[str, str], _Edit] = {}
        #: Percentage read, and when.
        self._readings: dict[tuple[str, str], tuple[float | None, datetime]] = {}
        self._change_listeners: list[Callable[[str], None]] = []
        #: By plane, what was decided since its flags were compared last.
        self._requested: dict[str, dict[str, Rollout]] = {plane.name: {} for plane in self._planes}
        self._wakes = {plane.name: asyncio.Event() for plane in self._planes}
        #: By plane in memory, the flags that rounds are still to look at.
        self._unlooked: dict[str, Iterator[Rollout]] = {}
        self._logger = structlog.get_logger()

    def request(self, rollout: Rollout) -> None:
        """Let the planes serve a newer document; an older one changes nothing.

        Of a flag that was retired nothing is compared any more.
        """
        if isinstance(rollout.phase, Retired):
            self.drop([rollout.flag_key])
            return
        known = self._decided.get(rollout.flag_key)
        if known is None or rollout.revision > known.revision:
            self._decided[rollout.flag_key] = rollout
            self._tell_change(rollout.flag_key)
            for name, wake in self._wakes.items():
                self._requested[name][rollout.flag_key] = rollout
                wake.set()

    def drop(self, flag_keys: Sequence[str]) -> None:
        """Leave flags to the replica that runs them now."""
        for flag_key in flag_keys:
            self._decided.pop(flag_key, None)
            for plane in self._planes:
                self._mismatches.pop((flag_key, plane.name), None)
                self._edits.pop((flag_key, plane.name), None)
                self._readings.pop((flag_key, plane.name), None)
                self._failures.pop((flag_key, plane.name), None)

    def drift(self, rollout: Rollout) -> str | None:
        """Return in words which plane does not serve the decided percentage, None when all do."""
        mismatches = [
            f"{plane.name}: {mismatch.why}, since {mismatch.since:%H:%M:%S}"
            for plane in self._planes
            if (mismatch := self._mismatches.get((rollout.flag_key, plane.name))) is not None
        ]
        return "; ".join(mismatches) or None

    @property
    def mismatches(self) -> Mapping[tuple[str, str], str]:
        """(flag key, plane) of everything decided and not actuated."""
        return {key: mismatch.why for key, mismatch in self._mismatches.items()}

    def standings(self, flag_key: str) -> Sequence[PlaneStanding] | None:
        """Return whether each plane serves what was decided, None when it runs elsewhere."""
        wanted = self._decided.get(flag_key)
        if wanted is None:
            return None
        return [self._standing(wanted, plane.name) for plane in self._planes]

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with each flag whose standings say something else than before.

        When planes were looked at says nothing else.
        """
        self._change_listeners.append(listener)

    def _tell_change(self, flag_key: str) -> None:
        for listener in self._change_listeners:
            listener(flag_key)

    def converged(self) -> Mapping[tuple[str, str], bool]:
        """Return for each (flag key, plane) whether it serves what was decided.

        Safe to call from another thread.
        """
        return {
            (wanted.flag_key, plane.name): self._standing(wanted, plane.name).is_converged
            for wanted in list(self._decided.values())
            for plane in self._planes
        }

    def _standing(self, wanted: Rollout, plane: str) -> PlaneStanding:
        key = (wanted.flag_key, plane)
        mismatch = self._mismatches.get(key)
        percent, looked_at = self._readings.get(key, (None, None))
        why = (
            "not looked at yet"
            if mismatch is None and looked_at is None
            else None
            if mismatch is None
            else mismatch.why
        )
        return PlaneStanding(
            plane=plane,
            is_converged=why is None,
            decided_percent=percent_to_serve(wanted),
            percent=percent,
            why=why,
            since=None if mismatch is None else mismatch.since,
            looked_at=looked_at,
        )

    async def run(self) -> None:
        """Reconcile every plane at every change and every period; a slow plane delays no other."""
        async with task_group() as tasks:
            for plane in self._planes:
                tasks.create_task(self._keep(plane), name=f"actuate:{plane.name}")

    async def _keep(self, plane: FlagPlane) -> None:
        """Reconcile one plane for ever. Whatever goes wrong in it concerns no other plane."""
        wake = self._wakes[plane.name]
        next_round = self._clock.monotonic()
        while True:
            now = self._clock.monotonic()
            is_round = now >= next_round
            try:
                await self._reconcile(plane, is_round=is_round)
                # They go through all that is not served, so not for each of thousands of decisions.
                if is_round or len(self._mismatches) + len(self._failures) <= FEW:
                    self._report(plane)
                    self._note_faults(plane)
            except Exception as error:
                self._logger.error(  # noqa: TRY400 - `where` is its stack
                    "plane_failed", plane=plane.name, error=in_words(error), where=where(error)
                )
                self._faults.report(Scope.PLANE, plane.name, in_words(error), _REMEDY)
            if is_round:
                next_round = self._clock.monotonic() + self._period_seconds
            with suppress(TimeoutError):
                async with asyncio.timeout(max(next_round - self._clock.monotonic(), 0)):
                    await wake.wait()

    def _note_faults(self, plane: FlagPlane) -> None:
        """Report or clear the plane's fault after a round."""
        now = self._clock.now()
        failure = next(
            (each for (_, name), each in self._failures.items() if name == plane.name), None
        )
        trouble = next(
            (
                mismatch.why
                for (_, name), mismatch in self._mismatches.items()
                if name == plane.name
                and mismatch.is_trouble
                and now - mismatch.since >= self._alarm_after
            ),
            None,
        )
        if failure is not None:
            self._faults.report(Scope.PLANE, plane.name, failure.why, _REMEDY)
        elif trouble is not None:
            fix = (
                f"see whether {plane.name} is reachable; rolloutctl status shows which flags "
                f"wait for it"
            )
            self._faults.report(Scope.PLANE, plane.name, trouble, fix)
        else:
            self._faults.clear(Scope.PLANE, plane.name)

    async def _reconcile(self, plane: FlagPlane, *, is_round: bool) -> None:
        """Reconcile every flag in a round, else those about which something was decided.

        Of a plane in memory a round looks at what it does not serve, and at a part of the others.
        Lowering goes first, also what is decided meanwhile: a plane's slow calls must not keep a
        flag above what was decided.
        """
        wake, requested = self._wakes[plane.name], self._requested[plane.name]
        waiting: list[tuple[tuple[bool, float], int, Rollout]] = []
        count = compared = 0
        local = plane if isinstance(plane, LocalPlane) else None
        unlooked: Iterator[Rollout] = iter(())
        if is_round and local is None:
            requested |= self._decided
        elif is_round:
            unlooked = self._part_of(plane)
        while True:
            wake.clear()
            for rollout in requested.values():
                count += 1
                heapq.heappush(waiting, (self._turn(plane, rollout), count, rollout))
            requested.clear()
            if waiting:
                _, _, rollout = heapq.heappop(waiting)
                # Else a newer one waits, or none.
                if self._decided.get(rollout.flag_key) is rollout:
                    await self._reconcile_flag(plane, rollout)
                    compared += 1
                    if compared % FLAGS_PER_TURN == 0:
                        await asyncio.sleep(0)  # a plane in memory answers without a pause
            elif local is not None and (some := [*islice(unlooked, LOOKS_PER_TURN)]):
                requested |= {one.flag_key: one for one in some if not self._is_served(local, one)}
                await asyncio.sleep(0)
            else:
                return

    def _part_of(self, plane: FlagPlane) -> Iterator[Rollout]:
        """Yield the flags that a round over a plane in memory looks at."""
        noted = {*self._mismatches, *self._failures, *self._edits}
        keys = [flag_key for flag_key, name in noted if name == plane.name]
        yield from [self._decided[key] for key in keys if key in self._decided]
        rest = self._unlooked.pop(plane.name, None) or iter([*self._decided.values()])
        some = [*islice(rest, LOOKS_PER_ROUND)]
        yield from some
        if len(some) == LOOKS_PER_ROUND:
            self._unlooked[plane.name] = rest  # the next round goes on

    def _is_served(self, plane: LocalPlane, rollout: Rollout) -> bool:
        """Return whether nothing is to be done about a flag, by one look and without waiting."""
        key = (rollout.flag_key, plane.name)
        if self._decided.get(rollout.flag_key) is not rollout:
            return True  # it has left, or what is newer was requested
        if key in self._mismatches or key in self._failures or key in self._edits:
            return False
        try:
            served = plane.look_at_once(rollout)
        except Exception:  # it fails again where failures are noted
            return False
        if served.difference is None:
            self._note_reading(plane, rollout, served.percent)
        return served.difference is None

    async def _reconcile_flag(self, plane: FlagPlane, rollout: Rollout) -> None:
        """Let a plane serve one flag as decided, and note whether it does."""
        why, is_trouble = await self._make_serve(plane, rollout)
        if rollout.flag_key not in self._decided:
            return  # another replica's now, and so are its mismatches
        key = (rollout.flag_key, plane.name)
        known = self._mismatches.get(key)
        if why != (None if known is None else known.why):
            self._tell_change(rollout.flag_key)
        if why is not None:
            mismatch = self._mismatches.setdefault(key, _Mismatch(self._clock.now(), why))
            mismatch.why, mismatch.is_trouble = why, is_trouble
        elif (over := self._mismatches.pop(key, None)) is not None:
            self._logger.info(
                "actuated", flag_key=rollout.flag_key, plane=plane.name, percent=rollout.percent
            )
            if over.is_alerted:
                alert = served_again(rollout, plane.name, over.since)
                self._alerts.alert(rollout.flag_key, alert)

    def _turn(self, plane: FlagPlane, wanted: Rollout) -> tuple[bool, float]:
        """Return the sort key of a flag: what is to be lowered, then the lowest percentage.

        A flag is to be lowered if the plane served more when it was last read. A plane whose
        percentage is not known may serve anything: there, 0 % counts as lowering.
        """
        decided = percent_to_serve(wanted)
        percent, _ = self._readings.get((wanted.flag_key, plane.name), (None, None))
        is_lowered = decided == 0 if percent is None else decided < percent
        return not is_lowered, decided

    async def _make_serve(self, plane: FlagPlane, rollout: Rollout) -> tuple[str | None, bool]:
        """Return why the plane does not serve what was decided, and whether it is in trouble.

        The reason is None once it does.
        """
        failure = self._failures.get((rollout.flag_key, plane.name))
        is_known = failure is not None and failure.rollout is rollout and rollout.percent > 0
        if failure is not None and is_known and self._clock.monotonic() < failure.until:
            return failure.why, True
        is_written = False
        try:
            async with asyncio.timeout(self._call_seconds):
                served = await self._read(plane, rollout)
                if served.edited_by is not None and self._stays(plane, rollout, served):
                    return f"{served.difference}: changed there by {served.edited_by}", False
                if served.difference is not None:
                    is_written = True
                    await plane.serve(rollout)
                    served = await self._read(plane, rollout)
        except (FlagPlaneUnavailable, TimeoutError) as trouble:
            self._count_attempt(plane, is_served=False)
            return str(trouble) or f"no answer within {self._call_seconds:g} s", True
        except (Exception, asyncio.CancelledError) as error:
            # Ours, or an unforeseen answer: it concerns this plane and this flag alone.
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            self._count_attempt(plane, is_served=False)
            return self._note_failure(plane, rollout, error), True
        self._failures.pop((rollout.flag_key, plane.name), None)
        if is_written:
            self._count_attempt(plane, is_served=served.difference is None)
        if served.difference is None:
            self._edits.pop((rollout.flag_key, plane.name), None)
        return served.difference, False

    def _count_attempt(self, plane: FlagPlane, *, is_served: bool) -> None:
        self._metrics.actuations.of(plane.name, "served" if is_served else "failed").inc()
        if not is_served:
            self._metrics.dependency_errors.of("flag_plane").inc()

    def _note_failure(self, plane: FlagPlane, rollout: Rollout, error: BaseException) -> str:
        """Try a flag less and less often while its plane fails at it."""
        key, why = (rollout.flag_key, plane.name), in_words(error)
        known = self._failures.get(key)
        times = 1 if known is None or known.rollout is not rollout else known.times + 1
        if known is None or known.why != why:  # once: the same line every minute adds nothing
            self._logger.error(
                "plane_failed",
                plane=plane.name,
                flag_key=rollout.flag_key,
                error=why,
                where=where(error),
            )
        wait = self._period_seconds * (2 ** min(times - 1, MOST_DOUBLINGS) - 0.5)
        if rollout.flag_key in self._decided:  # nobody would take it back of one that has left
            self._failures[key] = _Failure(rollout, why, times, self._clock.monotonic() + wait)
        return why

    async def _read(self, plane: FlagPlane, rollout: Rollout) -> Served:
        served = await plane.look(rollout)
        if rollout.flag_key in self._decided:
            self._note_reading(plane, rollout, served.percent)
        return served

    def _note_reading(self, plane: FlagPlane, rollout: Rollout, percent: float | None) -> None:
        key = (rollout.flag_key, plane.name)
        before = self._readings.get(key)
        self._readings[key] = percent, self._clock.now()
        if before is None or before[0] != percent:
            self._tell_change(rollout.flag_key)

    def _stays(self, plane: FlagPlane, rollout: Rollout, served: Served) -> bool:
        """Alert about a foreign edit; return whether it is left as it is."""
        if served.difference is None or rollout.flag_key not in self._decided:
            return False
        key = (rollout.flag_key, plane.name)
        is_switched_off = (
            served.percent == 0 and not serving(rollout).is_off
        )  # an audience is no percentage of everybody
        is_lower = is_switched_off or (
            served.percent is not None and served.percent < percent_to_serve(rollout)
        )
        known = self._edits.get(key)
        if known is not None and is_lower and known.decided_percent != percent_to_serve(rollout):
            return False  # another percentage was decided since
        if known is None or known.difference != served.difference:
            self._edits[key] = _Edit(percent_to_serve(rollout), served.difference)
            self._logger.warning(
                "foreign_edit",
                flag_key=key[0],
                plane=plane.name,
                editor=served.edited_by,
                found=served.difference,
            )
            alert = edited(rollout, plane.name, served, self._clock.now(), is_lower=is_lower)
            self._alerts.alert(rollout.flag_key, alert)
        return is_lower

    def _report(self, plane: FlagPlane) -> None:
        """Alert about decisions that this plane does not serve for too long."""
        now = self._clock.now()
        mismatches = {
            flag_key: mismatch
            for (flag_key, name), mismatch in self._mismatches.items()
            if name == plane.name
        }
        ages = ((now - mismatch.since).total_seconds() for mismatch in mismatches.values())
        self._metrics.actuation_gap_seconds.of(plane.name).set(max(ages, default=0.0))
        for flag_key, mismatch in mismatches.items():
            if mismatch.is_alerted or now - mismatch.since < self._alarm_after:
                continue
            rollout = self._decided.get(flag_key)
            if rollout is None:
                continue  # another replica's since
            mismatch.is_alerted = True
            self._logger.error(
                "not_actuated", flag_key=flag_key, plane=plane.name, error=mismatch.why
            )
            alert = not_served(rollout, plane.name, mismatch.why, mismatch.since)
            self._alerts.alert(flag_key, alert)
