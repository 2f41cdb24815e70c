"""The outbox of one flag: effects that are saved and not yet known to be published.

Effects are saved together with the decision, published in order, and then deleted
from the store. A crash in between publishes some of them again, with the same ids. The encoder
writes them as records and makes the ids.

An entry without a field is in memory alone: alerts that no transition caused, and answers that are
given again. A crash forgets those.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from controller.codec.outbox import Message, outbox_entry
from controller.core.rollout import Rollout
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.flag.news import NewsKeeper
from controller.errors import EventLogUnavailable, StoreUnavailable
from controller.ports import Clock, OutboxEntry
from controller.retrying import until_done

#: Effects that may wait for Kafka. Beyond it nothing that raises a percentage is saved; lowering
#: always is.
OUTBOX_LIMIT = 200
#: Entries that are in memory alone. Of more than this the oldest are dropped.
UNSAVED_LIMIT = 200


class EffectEncoder:
    """Encodes the messages of one flag, and names its effects."""

    def __init__(self, flag_key: str, clock: Clock, source: str) -> None:
        self._flag_key = flag_key
        self._clock = clock
        self._source = source

    def encode(self, message: Message, rollout: Rollout | None, effect_id: str) -> OutboxEntry:
        """Return a message as an outbox entry; `rollout` is the flag's after it."""
        now = self._clock.now()
        return outbox_entry(message, self._flag_key, rollout, effect_id, now, source=self._source)

    def effect_id(self, rollout: Rollout | None, number: int) -> str:
        """Return the id of one effect of a revision, by which receivers drop repeats."""
        return f"{self._flag_key}/{0 if rollout is None else rollout.revision}/{number}"

    def state_entry(self, rollout: Rollout) -> OutboxEntry:
        """Return the record that the state topic should end with."""
        return self.encode(rollout, rollout, self.effect_id(rollout, 0))


class Outbox:
    """Publishes one flag's effects in order, and removes them where they are saved."""

    def __init__(
        self,
        flag_key: str,
        dependencies: WorkerDependencies,
        encoder: EffectEncoder,
        on_waiting: Callable[[], object],
    ) -> None:
        """`on_waiting` is called when entries are added."""
        self._flag_key = flag_key
        self._dependencies = dependencies
        self._encoder = encoder
        self._on_waiting = on_waiting
        self._entries: deque[OutboxEntry] = deque()
        self._filled = asyncio.Event()
        self._trying_since: float | None = None  # monotonic seconds
        self._published: set[OutboxEntry] = set()  # and not yet known to be removed
        is_retired = dependencies.registry.is_retired
        self._news = NewsKeeper(dependencies.reports, dependencies.faults, is_retired)
        self._logger = structlog.get_logger().bind(flag_key=flag_key)

    def __len__(self) -> int:
        """Return how many effects are not yet known to be published."""
        return len(self._entries)

    @property
    def seconds(self) -> float:
        """For how long publishing has been tried without success; 0 when nothing waits."""
        since = self._trying_since
        return 0.0 if since is None else self._dependencies.clock.monotonic() - since

    def has(self, effect_id: str) -> bool:
        """Return whether an effect waits here."""
        return any(entry.effect_id == effect_id for entry in self._entries)

    def add(self, entries: Sequence[OutboxEntry]) -> None:
        """Publish entries after those that wait. Returns at once."""
        self._entries.extend(entries)
        unsaved = [entry for entry in self._entries if not entry.field]
        if len(unsaved) > UNSAVED_LIMIT:
            dropped = {id(entry) for entry in unsaved[:-UNSAVED_LIMIT]}
            self._forget(dropped)
            self._logger.error("unsaved_effects_dropped", entries=len(dropped))
        self._filled.set()
        self._on_waiting()

    def abandon(self) -> None:
        """Show nothing more of the flag: it runs elsewhere now."""
        self._news.abandon()

    def lost_entries(
        self, stored: Sequence[OutboxEntry], newest: Rollout | None
    ) -> list[OutboxEntry]:
        """Return the entries that were saved and are in the store no longer.

        Redis fell back, or another replica has published them: receivers drop repeats by the id.
        A document for the state topic is returned only when it is that of `newest`, the newest
        rollout of the flag, because that topic ends with what is written last.
        """
        kept = {entry.effect_id for entry in stored}
        lost = [entry for entry in self._entries if entry.field and entry.effect_id not in kept]
        current = self._encoder.effect_id(newest, 0)
        return [entry for entry in lost if entry.topic != "state" or entry.effect_id == current]

    def reload(self, stored: Sequence[OutboxEntry], lost: Sequence[OutboxEntry]) -> None:
        """Continue with what is stored, after what is in memory alone and what the store lost."""
        waiting = [entry for entry in self._entries if not entry.field]
        waiting += [replace(entry, field="") for entry in lost]
        self._entries = deque(waiting)
        self.add(stored)

    async def run(self) -> None:
        """Publish and remove until canceled. While Kafka is away, effects wait."""
        self._published.clear()
        while True:
            if not self._entries:
                self._trying_since = None
                self._filled.clear()
                await self._news.keep_until(self._filled)
                await self._filled.wait()
            if self._trying_since is None:
                self._trying_since = self._dependencies.clock.monotonic()
            await until_done(
                self._publish_and_remove,
                trouble=(EventLogUnavailable, StoreUnavailable),
                backoff=self._dependencies.backoff,
                report=self._report_trouble,
            )
            self._trying_since = None

    async def _publish_and_remove(self) -> None:
        """Publish what waits, then remove it.

        While Redis is away entries are published all the same and removed when it is back; those
        that are published are not published a second time.
        """
        batch = list(self._entries)
        self._published.intersection_update(batch)  # by the whole entry: a field is used again
        new = [entry for entry in batch if entry not in self._published]
        if new:
            await self._dependencies.publisher.publish(new)
            self._news.add(new)
            self._published.update(entry for entry in new if entry.field)
            self._forget({id(entry) for entry in new if not entry.field})
        await self._news.keep()
        fields = [entry.field for entry in batch if entry.field]
        if fields:
            await self._dependencies.rollouts.remove_effects(self._flag_key, fields)
        self._forget({id(entry) for entry in batch})

    def _forget(self, entries: set[int]) -> None:
        """Remove entries, given by `id`."""
        self._entries = deque(entry for entry in self._entries if id(entry) not in entries)

    def _report_trouble(self, trouble: Exception, pause: float) -> None:
        self._logger.warning(
            "outbox_waits",
            error=str(trouble),
            entries=len(self._entries),
            retry_seconds=round(pause, 3),
        )
