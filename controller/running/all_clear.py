"""Sends the all-clear of alerts whose teller was killed, and of workers that had stopped.

Who told of a trouble also tells that it is over: `visibility.py` of rollouts that nobody sees,
`event_watch.py` of their events, `actuating/reconciler.py` of planes. They keep in memory what
they told. After a `kill -9` the replica that runs the flag finds the alert open on the topic. It
ends the alert once it sees for itself that the trouble is over, and that nobody else has said so
meanwhile. Events it may not see: their alert is repeated while the fault lasts, and over with its
rollout. That a flag's worker had stopped, or that its document could not be read, is always ended
here.

So the all-clear comes at least once, perhaps twice where two replicas run at the same time. It
never comes while the trouble stands, or while it is not known: then the alert stays open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Final, Protocol

import structlog

from controller.actuating.plane_alerts import plane_of
from controller.cancellation import task_group
from controller.core.effects import RaiseAlert
from controller.core.rollout import Rollout
from controller.errors import EventLogUnavailable
from controller.health import Faults, Scope
from controller.notifying.notifier import NewsLog
from controller.ports import AlertQueue, Clock, PlaneStanding
from controller.running.open_alerts import EVENT_FAULTS_REPEATED_SECONDS, OpenAlerts
from controller.running.visibility import needs_watching, pause_after, why_unneeded
from schemas.alert import Alert
from schemas.terms import AlertKind, Severity

#: For so long a trouble has to be over, and its alert open: whoever told of it says so in a few
#: seconds where it lives.
OVER_SECONDS: Final = 20.0
RETRY_SECONDS: Final = 2.0
#: Alerts that are looked at before the event loop's others have their turn: 2 ms.
LOOKS_PER_TURN: Final = 200
#: Without a word from Kafka for so long it is a fault. Kafka's own is reported before.
SILENT_SECONDS: Final = 60.0
ALERTS: Final = "alerts"
_FIX: Final = (
    "grant the Kafka user Read on the topic of alerts, see ops/security.md, or start Kafka: until "
    "then nobody ends the alerts of a replica that was killed, and other replicas do not show them"
)

log = structlog.get_logger(__name__)


class Sight(Protocol):
    """What this replica sees: `visibility.py`."""

    @property
    def seen(self) -> Collection[str]:
        """Flags whose guardrails saw at the last check, here."""

    @property
    def episodes(self) -> Collection[str]:
        """Flags of which this replica itself notes that they are unwatched."""


class AllClears:
    """Follows the topic of alerts, and ends what nobody ended."""

    def __init__(
        self,
        clock: Clock,
        topic: NewsLog,
        open_alerts: OpenAlerts,
        sight: Sight,
        *,
        runs_here: Callable[[str], bool],
        newest: Callable[[str], Rollout | None],
        standings: Callable[[str], Sequence[PlaneStanding] | None],
        alerts: AlertQueue,
        faults: Faults,
    ) -> None:
        """`runs_here` tells of a flag whether its commands come to this replica.

        `newest` is the newest rollout of a flag; `standings`, whether each plane serves what was
        decided, None where that is not known here.
        """
        self._clock = clock
        self._topic = topic
        self._open = open_alerts
        self._sight = sight
        self._runs_here = runs_here
        self._newest = newest
        self._standings = standings
        self._alerts = alerts
        self._faults = faults
        self._over_since: dict[str, tuple[str, float]] = {}  # by key: why, since when
        self._cursor: dict[str, int] = {}
        self._silent_since: float | None = clock.monotonic()  # None: Kafka answers

    async def run(self) -> None:
        """Follow and check until cancelled."""
        async with task_group() as tasks:
            tasks.create_task(self._follow(), name="all_clear:follow")
            while True:
                await self.check()
                await asyncio.sleep(pause_after(len(self._open)))

    async def _follow(self) -> None:
        while True:
            try:
                async with aclosing(self._topic.follow(self._cursor)) as batches:
                    async for batch in batches:
                        self._heard()
                        for one in batch:
                            self._cursor[one.place] = one.offset + 1
                            self._open.take(one.value)
            except EventLogUnavailable as trouble:
                self._note_trouble(str(trouble))
                await asyncio.sleep(RETRY_SECONDS)

    def _heard(self) -> None:
        if self._silent_since is not None:
            self._silent_since = None
            self._faults.clear(Scope.DEPENDENCY, ALERTS)

    def _note_trouble(self, why: str) -> None:
        now = self._clock.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        if now - self._silent_since > SILENT_SECONDS:
            self._faults.report(Scope.DEPENDENCY, ALERTS, why, _FIX)

    async def check(self) -> None:
        """Look at every open alert once, and end those that are over."""
        if self._silent_since is not None:
            self._over_since.clear()  # an all-clear may be there, and not be known here
            return
        now, before = self._clock.monotonic(), self._over_since
        self._over_since = {}
        for number, told in enumerate(self._open.newest, start=1):
            if number % LOOKS_PER_TURN == 0:
                await asyncio.sleep(0)
            rollout = self._newest(told.flag)
            why = None if rollout is None else self._why_over(told, rollout)
            if rollout is None or why is None or not self._runs_here(told.flag):
                continue  # asked last: while trouble lasts, that would cost most
            _, since = before.get(told.dedup_key, (why, now))
            if now - since < OVER_SECONDS:
                self._over_since[told.dedup_key] = why, since
                continue
            self._end(told, rollout, why)

    def _why_over(self, told: Alert, rollout: Rollout) -> str | None:
        """Return why the trouble is over, None while it is not, or not known to be."""
        if rollout.rollout_id != told.rollout_id:
            return "another rollout has begun"
        match told.kind:
            case AlertKind.UNWATCHED:
                return self._why_watched(rollout)
            case AlertKind.NOT_ACTUATED:
                return self._why_served(told, rollout)
            case AlertKind.FLAG_BROKEN:
                return self._why_running(rollout)
            case AlertKind.EVENT_FAULTS:
                return self._why_sound(told, rollout)
        return None  # nothing here says that it is over: it stays open

    def _why_served(self, told: Alert, rollout: Rollout) -> str | None:
        plane = plane_of(told)
        standings = self._standings(told.flag)
        if standings is None:
            return None
        by_name: Mapping[str, PlaneStanding] = {one.plane: one for one in standings}
        if plane not in by_name:
            return f"{plane} is no plane of rolloutd any more"
        is_served = by_name[plane].is_converged and by_name[plane].looked_at is not None
        return (
            f"{plane} serves what was decided again, {rollout.percent:g} %" if is_served else None
        )

    def _why_watched(self, rollout: Rollout) -> str | None:
        if rollout.flag_key in self._sight.episodes:
            return None
        if not needs_watching(rollout):
            return why_unneeded(rollout)
        return "guardrails see again" if rollout.flag_key in self._sight.seen else None

    def _why_running(self, rollout: Rollout) -> str | None:
        """Return why a flag is no longer broken: what its worker judges is seen here."""
        if rollout.has_ended:
            return why_unneeded(rollout)
        return "its worker runs again" if rollout.flag_key in self._sight.seen else None

    def _why_sound(self, told: Alert, rollout: Rollout) -> str | None:
        """Return why a fault of a rollout's events is over: it is repeated while it lasts."""
        if rollout.has_ended:
            return why_unneeded(rollout)
        is_old = (self._clock.now() - told.at).total_seconds() > 1.5 * EVENT_FAULTS_REPEATED_SECONDS
        return "the fault of its events was not told again" if is_old else None

    def _end(self, told: Alert, rollout: Rollout, why: str) -> None:
        self._open.forget(told)
        log.info("alert_ended_for_another", flag_key=told.flag, key=told.dedup_key, reason=why)
        was = "no longer unwatched: " if told.kind is AlertKind.UNWATCHED else ""
        summary = f"{told.flag}: {was}{why}"
        if told.kind in (AlertKind.UNWATCHED, AlertKind.NOT_ACTUATED):
            summary += "; the replica that told of the trouble has stopped"
        self._alerts.add(
            rollout, RaiseAlert(told.kind, Severity.INFO, summary, "nothing", told.dedup_key)
        )
