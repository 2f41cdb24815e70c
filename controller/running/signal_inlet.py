"""Stores signals in their topic, before their delivery is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from controller.codec.signals import signal_event, signal_key
from controller.errors import EventLogUnavailable
from controller.ports import OutboxEntry, Publisher
from schemas.signal import Signal

#: The most that a delivery waits: Sentry gives up after a second. A healthy Kafka takes
#: milliseconds.
STORE_SECONDS: Final = 0.8
#: Deliveries on their way at once.
MOST_OPEN: Final = 50


class SignalInlet:
    """Implements `controller.ports.Inlet`."""

    def __init__(self, publisher: Publisher, source: str) -> None:
        """`source` is the CloudEvents source of this environment."""
        self._publisher = publisher
        self._source = source
        self._storing: set[asyncio.Task[None]] = set()

    async def store(self, signals: Sequence[Signal]) -> None:
        """Return once Kafka has them. Raises EventLogUnavailable when it is not known to.

        The publishing itself goes on: cutting it off would cost the decisions their connection.
        """
        if not signals:
            return
        if len(self._storing) >= MOST_OPEN:
            raise EventLogUnavailable(f"{MOST_OPEN} deliveries wait for Kafka already")
        entries = [self._entry(signal) for signal in signals]
        task = asyncio.create_task(self._publisher.publish(entries), name="store signals")
        self._storing.add(task)
        task.add_done_callback(self._stored)
        await asyncio.wait({task}, timeout=STORE_SECONDS)
        if not task.done():
            raise EventLogUnavailable(f"no acknowledgement within {STORE_SECONDS:g} s")
        if task.cancelled():
            raise EventLogUnavailable("this replica is stopping")
        if (failure := task.exception()) is not None:
            raise failure

    def _entry(self, signal: Signal) -> OutboxEntry:
        # Of one signal that is delivered twice both are stored: it is acted on once.
        effect_id = f"signal/{signal.id}/{signal.received_at.timestamp():.6f}"
        value = signal_event(signal, self._source)
        return OutboxEntry("", effect_id, "signals", signal_key(signal), value)

    def _stored(self, task: asyncio.Task[None]) -> None:
        self._storing.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it has it; nobody may
