"""Keeps what was published about flags, where every replica can show it.

The topics are the record; this is a copy of its newest part. So it never holds up publishing for
long: what cannot be kept while Redis answers is not kept, and is reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from controller.errors import BrokenInvariant, OperatingTrouble
from controller.health import Faults, Scope, redis_fix
from controller.ports import NEWS_TOPICS, OutboxEntry, Reports

#: Entries that wait for a Redis that is away. The oldest go first.
WAITING_LIMIT: Final = 100
#: Between two tries to write what waits, while nothing else is published.
RETRY_SECONDS: Final = 2.0
REPORTS: Final = "reports"
#: The reporter of all flags: one Redis keeps the news of all of them.
_NEWS: Final = "news"
FIX: Final = redis_fix(
    "the keys of the reports",
    "`status`, the page and the HTTP API lack the newest evidence and events",
)


class NewsKeeper:
    """Keeps the newest decisions, alerts and results; each entry's key is its flag's."""

    def __init__(
        self,
        reports: Reports,
        faults: Faults,
        is_retired: Callable[[str], bool],
        *,
        most_waiting: int = WAITING_LIMIT,
    ) -> None:
        """`is_retired` tells of a flag whose news are deleted, so that late ones stay behind.

        `most_waiting` entries wait for a Redis that is away: more, where they are of all flags.
        """
        self._reports = reports
        self._faults = faults
        self._is_retired = is_retired
        self._most_waiting = most_waiting
        self._waiting: list[OutboxEntry] = []

    def add(self, entries: Sequence[OutboxEntry]) -> None:
        """Take entries that were published. Returns at once."""
        new = {one.effect_id: one for one in entries if one.topic in NEWS_TOPICS}
        for entry in self._waiting:
            new.pop(entry.effect_id, None)
        self._waiting = [*self._waiting, *new.values()][-self._most_waiting :]

    async def keep_until(self, ended: asyncio.Event) -> None:
        """Write what waits, again and again, until `ended` is set or nothing waits."""
        while self._waiting and not ended.is_set():
            await self.keep(ended)
            if self._waiting:
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_SECONDS):
                        await ended.wait()

    async def keep(self, ended: asyncio.Event | None = None) -> None:
        """Write what waits; what Redis does not take now waits for the next time.

        So does what is left when `ended` is set: there is something to publish.
        """
        self._waiting = [entry for entry in self._waiting if not self._is_retired(entry.key)]
        by_place: dict[tuple[str, str], list[OutboxEntry]] = {}
        for entry in self._waiting:
            by_place.setdefault((entry.key, entry.topic), []).append(entry)
        done: set[str] = set()
        try:
            for place, entries in by_place.items():
                if ended is not None and ended.is_set():
                    return
                try:
                    await self._reports.append_news(*place, [entry.value for entry in entries])
                except (OperatingTrouble, BrokenInvariant) as trouble:
                    self._faults.report(
                        Scope.DEPENDENCY, REPORTS, str(trouble), FIX, reporter=_NEWS
                    )
                    if isinstance(trouble, OperatingTrouble):
                        return
                    # Somebody else wrote to this key; it would never be taken.
                else:
                    self._faults.clear(Scope.DEPENDENCY, REPORTS, reporter=_NEWS)
                done.update(entry.effect_id for entry in entries)
        finally:
            self._waiting = [one for one in self._waiting if one.effect_id not in done]

    def abandon(self) -> None:
        """Let go of what waits: the flag has left, and nobody would clear the fault.

        If Redis is still away, the next keeper that has something to write reports it again.
        """
        if self._waiting:
            self._waiting = []
            self._faults.clear(Scope.DEPENDENCY, REPORTS, reporter=_NEWS)
