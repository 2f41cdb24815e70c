"""Makes every flag plane serve what was decided, and says when one does not.

Level-triggered: it compares and repairs, so that a lost call, a restart or a foreign edit needs no case of its own. Lowering
goes first, always. Which percentage is right is decided elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from controller.core.rollout import RaiseAlert, Rollout
from controller.errors import FlagPlaneUnavailable
from controller.ports import Clock, FlagPlane
from schemas.terms import AlertKind, Severity


@dataclass(slots=True)
class _Gap:
    """A plane that does not serve what was decided."""

    since: datetime
    revision: int
    why: str
    is_alerted: bool = False


class Actuation:
    """The reconcile loop over flags and planes."""

    def __init__(
        self,
        planes: Sequence[FlagPlane],
        clock: Clock,
        *,
        raise_alert: Callable[[str, RaiseAlert], None],
        note_gap: Callable[[str, float], None],
        period_seconds: float = 5.0,
        alarm_after: timedelta = timedelta(seconds=10),
        call_seconds: float = 3.0,
    ) -> None:
        """`period_seconds` bounds how long a foreign edit lasts; a gap older than `alarm_after` is an alarm.

        `note_gap` takes a plane's name and the age of its oldest gap in seconds, 0 for none.
        """
        self._planes = tuple(planes)
        self._clock = clock
        self._raise_alert = raise_alert
        self._note_gap = note_gap
        self._period_seconds = period_seconds
        self._alarm_after = alarm_after
        self._call_seconds = call_seconds
        self._wanted: dict[str, Rollout] = {}
        self._gaps: dict[tuple[str, str], _Gap] = {}
        self._wake = asyncio.Event()
        self._log = structlog.get_logger()

    def want(self, rollout: Rollout) -> None:
        """Take a newer document; an older one changes nothing."""
        known = self._wanted.get(rollout.flag_key)
        if known is None or rollout.revision > known.revision:
            self._wanted[rollout.flag_key] = rollout
            self._wake.set()

    def drop(self, flag_keys: Sequence[str]) -> None:
        """Leave flags to the replica that runs them now."""
        for flag_key in flag_keys:
            self._wanted.pop(flag_key, None)
            for gap in [gap for gap in self._gaps if gap[0] == flag_key]:
                del self._gaps[gap]

    def drift(self, rollout: Rollout) -> str | None:
        """Return in words which plane does not serve the decided percentage, None when all do."""
        found = [
            f"{plane}: {gap.why}, since {gap.since:%H:%M:%S}"
            for (key, plane), gap in self._gaps.items()
            if key == rollout.flag_key
        ]
        return "; ".join(found) or None

    @property
    def gaps(self) -> Mapping[tuple[str, str], str]:
        """(flag key, plane) of everything decided and not actuated."""
        return {key: gap.why for key, gap in self._gaps.items()}

    async def run(self) -> None:
        """Reconcile at every change and every period, until cancelled."""
        while True:
            self._wake.clear()
            # Lowering goes first: a plane's slow calls must not keep a rolled-back flag up.
            flags = sorted(self._wanted.values(), key=lambda rollout: rollout.percent)
            await asyncio.gather(*(self._reconcile_plane(plane, flags) for plane in self._planes))
            self._report()
            try:
                async with asyncio.timeout(self._period_seconds):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _reconcile_plane(self, plane: FlagPlane, flags: Sequence[Rollout]) -> None:
        for rollout in flags:
            if self._wanted.get(rollout.flag_key) is not rollout:
                continue  # dropped, or newer: the next round has it
            key = (rollout.flag_key, plane.name)
            try:
                async with asyncio.timeout(self._call_seconds):
                    served = await plane.served_percent(rollout.flag_key)
                    if served != rollout.percent:
                        await plane.serve(rollout)
                        served = await plane.served_percent(rollout.flag_key)
                why = None if served == rollout.percent else f"serves {served} %, decided is {rollout.percent:g} %"
            except (FlagPlaneUnavailable, TimeoutError) as trouble:
                why = str(trouble) or f"no answer within {self._call_seconds:g} s"
            if why is None:
                if self._gaps.pop(key, None) is not None:
                    self._log.info("actuated", flag_key=rollout.flag_key, plane=plane.name, percent=rollout.percent)
            else:
                gap = self._gaps.setdefault(key, _Gap(self._clock.now(), rollout.revision, why))
                gap.why = why

    def _report(self) -> None:
        """Alarm what was decided and is not served."""
        now = self._clock.now()
        for served_by in self._planes:
            ages = [(now - gap.since).total_seconds() for (_, plane), gap in self._gaps.items() if plane == served_by.name]
            self._note_gap(served_by.name, max(ages, default=0.0))
        for (flag_key, plane), gap in self._gaps.items():
            if gap.is_alerted or now - gap.since < self._alarm_after:
                continue
            gap.is_alerted = True
            rollout = self._wanted[flag_key]
            summary = f"{flag_key}: decided {rollout.percent:g} %, but {plane} {gap.why}"
            self._log.error("not_actuated", flag_key=flag_key, plane=plane, error=gap.why)
            self._raise_alert(
                flag_key,
                RaiseAlert(
                    AlertKind.NOT_ACTUATED,
                    Severity.CRITICAL,
                    summary,
                    f"see whether {plane} is reachable and who else edits the flag",
                    f"{flag_key}/{rollout.rollout_id}/{plane}/{AlertKind.NOT_ACTUATED}",
                ),
            )
