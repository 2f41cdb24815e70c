"""Gives the weekly digest of flags to tidy up, once a week by one replica.

That is the one which runs the first flag that the digest names. It notes the week before it gives
the digest, so that neither a restart nor another replica gives it again; a crash in between costs
one digest.

Does not belong here: its words (`reporting/flag_digest.py`), publishing (`visibility_alerts.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

import structlog

from controller.core.rollout import Rollout
from controller.errors import BrokenInvariant, OperatingTrouble
from controller.ports import AlertQueue, Clock, FlagUses, FlagUseStore, Use
from controller.reporting.flag_digest import digest_of, due_since
from controller.reporting.inventory import Census, ListedFlag, listing
from controller.settings.flags import FlagsSettings
from schemas.terms import UseKind

BEAT_SECONDS: Final = 300.0
#: Flags gone through between two turns of the loop.
_PER_TURN: Final = 500
NOTE: Final = Use(UseKind.DIGEST, "")

log = structlog.get_logger(__name__)


class DigestWatch:
    """Gives the digest when it is due."""

    def __init__(
        self,
        rules: FlagsSettings,
        rollouts: Callable[[], Mapping[str, Rollout]],
        uses: Callable[[], FlagUses],
        runs_here: Callable[[str], bool],
        store: FlagUseStore,
        alerts: AlertQueue,
        clock: Clock,
    ) -> None:
        """`rollouts` are those of all flags; `runs_here`: whether this replica runs a flag."""
        self._rules = rules
        self._rollouts = rollouts
        self._uses = uses
        self._runs_here = runs_here
        self._store = store
        self._alerts = alerts
        self._clock = clock
        self._given: datetime | None = None  # the newest that is known to be given

    async def run(self) -> None:
        """Look every few minutes whether the digest is due, until cancelled."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                await self.beat()
            except (OperatingTrouble, BrokenInvariant) as trouble:
                log.warning("digest_waits", error=str(trouble))

    async def beat(self) -> None:
        """Give the digest if it is due, and if this is the replica to do it."""
        day, uses = self._rules.weekly_digest, self._uses()
        if day is None or not uses.version:
            return  # how flags are used is not known yet
        due = due_since(self._clock.now(), day)
        if self._given == due:
            return
        week = due.date().isoformat().encode()
        if (await self._store.notes()).get(NOTE) == week:
            self._given = due
            return
        flags = await self._to_tidy(uses)
        if not flags or not self._runs_here(flags[0].rollout.flag_key):
            return
        await self._store.write_notes({NOTE: week})
        self._given = due
        self._alerts.add(flags[0].rollout, digest_of(flags, due))
        log.info("digest_given", flags=len(flags))

    async def _to_tidy(self, uses: FlagUses) -> list[ListedFlag]:
        """Return the flags with findings, in the order of the inventory."""
        rollouts, now = self._rollouts().values(), self._clock.now()
        census = Census.of(rollouts)
        found = []
        for count, rollout in enumerate(rollouts, start=1):
            listed = listing(rollout, now, self._rules, census, uses)
            if listed.findings:
                found.append(listed)
            if count % _PER_TURN == 0:
                await asyncio.sleep(0)
        return sorted(found, key=lambda one: one.place)
