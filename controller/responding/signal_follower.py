"""Reads signals from their topic, in order, and commits what was acted on.

Belongs here: reading, so that a crash loses none. Does not belong here: what is done about one
(`responder.py`), and how it came to the topic (`signal_inlet.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import structlog
from pydantic import ValidationError

from controller.errors import OperatingTrouble
from controller.health import Faults, Scope
from controller.ports import Record, TopicPartition
from schemas.envelope import MAX_TIME_MS
from schemas.envelope import read as read_envelope
from schemas.record_refused import RecordRefused
from schemas.signal import TYPE, Signal

RECORDS_PER_FETCH: Final = 100
FETCH_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
PART: Final = "signals"
_FIX: Final = (
    "see that Kafka answers, and that its user may read the topic and the group of the signals, "
    "see ops/security.md: until then signals wait, and none is lost"
)


class SignalLog(Protocol):
    """A member of the group that acts on signals: `adapters/kafka/event_log.py`."""

    async def start(self) -> None:
        """Join the group. Raises EventLogUnavailable."""

    async def fetch(
        self, max_records: int, timeout_seconds: float
    ) -> Mapping[TopicPartition, Sequence[Record]]:
        """Return the next records. Raises EventLogUnavailable."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from an offset."""

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Note the next offset of each partition. Raises EventLogUnavailable."""


class SignalHandler(Protocol):
    """Acts on a signal: `responder.py`."""

    async def handle(self, signal: Signal) -> None:
        """Do what the rules say. Raises OperatingTrouble when it is to be handled again."""


class SignalFollower:
    """Hands signals to the responder one after the other."""

    def __init__(self, log: SignalLog, handler: SignalHandler, faults: Faults) -> None:
        self._log = log
        self._handler = handler
        self._faults = faults
        self._has_joined = False
        self._logger = structlog.get_logger()

    async def run(self) -> None:
        """Act on signals until cancelled."""
        while True:
            try:
                if not self._has_joined:
                    await self._log.start()
                    self._has_joined = True
                await self._follow()
                self._faults.clear(Scope.DEPENDENCY, PART, reporter=PART)
            except OperatingTrouble as trouble:
                why = f"signals wait: {trouble}"
                self._faults.report(Scope.DEPENDENCY, PART, why, _FIX, reporter=PART)
                self._logger.warning("signals_wait", error=str(trouble))
                await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self) -> None:
        """Act on what has come, and commit it; what failed is read again."""
        fetched = await self._log.fetch(RECORDS_PER_FETCH, FETCH_SECONDS)
        done: dict[TopicPartition, int] = {}
        troubles: list[OperatingTrouble] = []
        for partition, records in fetched.items():
            for record in records:
                try:
                    await self._take(record)
                except OperatingTrouble as trouble:
                    self._log.seek(partition, record.offset)
                    troubles.append(trouble)
                    break
                done[partition] = record.offset + 1
        if done:
            await self._log.commit(done)
        if troubles:
            raise troubles[0]

    async def _take(self, record: Record) -> None:
        """Act on one record. One that cannot be read is logged, and not read again."""
        try:
            # Whatever its time is: a replica whose clock is wrong must not lose a signal.
            envelope = read_envelope(record.value, MAX_TIME_MS, record.headers, (TYPE,))
            signal = Signal.model_validate(envelope.data)
        except (RecordRefused, ValidationError) as refused:
            self._logger.warning(
                "signal_unreadable",
                partition=record.partition,
                offset=record.offset,
                error=str(refused)[:500],
            )
            return
        try:
            await self._handler.handle(signal)
        except OperatingTrouble:
            raise
        except Exception:  # ours: the signals behind it must be acted on
            self._logger.exception("signal_failed", hook=signal.hook, signal_id=signal.id)
            why = f"a mistake of rolloutd on signal {signal.id} of {signal.hook}; its log says more"
            self._faults.report(Scope.PART, PART, why, "please report it")
