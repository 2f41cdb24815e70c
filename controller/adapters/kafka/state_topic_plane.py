"""The compacted state topic as a flag plane: apps that follow it are served by its last documents.

The outbox publishes each document, normally before this plane is asked. The plane confirms it by
reading the topic, and publishes again what did not arrive, or what another replica wrote over late.
"""

from __future__ import annotations

import asyncio

from controller.codec.cloud_events import SOURCE
from controller.codec.outbox import outbox_entry
from controller.core.rollout import Rollout
from controller.errors import EventLogUnavailable, FlagPlaneUnavailable
from controller.ports import Clock, OutboxEntry, Publisher, Served

#: The outbox and the reading of the topic take some tens of milliseconds. Only after this does the
#: plane publish itself.
ECHO_SECONDS = 1.0


class StateTopicPlane:
    """Implements `controller.ports.FlagPlane`; fed by whoever follows the topic."""

    name = "state_topic"

    def __init__(self, publisher: Publisher, clock: Clock, source: str = SOURCE) -> None:
        self._publisher = publisher
        self._clock = clock
        self._source = source
        self._standing: dict[str, Rollout] = {}
        self._heard = asyncio.Condition()

    async def note(self, document: Rollout) -> None:
        """Take what the topic says now."""
        async with self._heard:
            self._standing[document.flag_key] = document
            self._heard.notify_all()

    def forget(self, flag_key: str) -> None:
        """The topic ends with something older than what was decided: it has to be said again."""
        self._standing.pop(flag_key, None)

    def drop(self, flag_key: str, revision: int) -> None:
        """Forget a flag that was retired as this revision: the topic has no document of it."""
        standing = self._standing.get(flag_key)
        if standing is not None and standing.revision <= revision:
            del self._standing[flag_key]

    async def serve(self, rollout: Rollout) -> None:
        try:
            async with asyncio.timeout(ECHO_SECONDS), self._heard:
                await self._heard.wait_for(lambda: self._stands(rollout))
        except TimeoutError:
            try:
                await self._publisher.publish([self._entry(rollout)])
            except EventLogUnavailable as trouble:
                raise FlagPlaneUnavailable(
                    f"the state topic cannot be written: {trouble}"
                ) from trouble

    async def look(self, rollout: Rollout) -> Served:
        return self.look_at_once(rollout)

    def look_at_once(self, rollout: Rollout) -> Served:
        """Return what the topic ends with, compared with what `rollout` says."""
        standing = self._standing.get(rollout.flag_key)
        return Served.compared(None if standing is None else standing.percent, rollout.percent)

    def _entry(self, rollout: Rollout) -> OutboxEntry:
        """Return the record that the topic should end with."""
        flag_key, effect_id = rollout.flag_key, f"{rollout.flag_key}/{rollout.revision}/0"
        now = self._clock.now()
        return outbox_entry(rollout, flag_key, rollout, effect_id, now, source=self._source)

    def _stands(self, rollout: Rollout) -> bool:
        standing = self._standing.get(rollout.flag_key)
        return standing is not None and standing.revision >= rollout.revision
