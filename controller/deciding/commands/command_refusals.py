"""Refused commands, until Kafka has their answers. They delay no other command meanwhile.

Nobody may read the answer: a script that publishes with kcat does not. So each refusal is also
logged, and kept where every replica shows it, both bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import msgspec
import structlog

from controller.deciding.commands.command_inbox import CommandInbox
from controller.deciding.commands.command_partition import RefusedCommand
from controller.deciding.commands.passing_faults import PassingFaults
from controller.deciding.flag.news import NewsKeeper
from controller.errors import BadInput, CommandRefused, OperatingTrouble
from controller.health import Scope
from controller.ports import OF_NO_FLAG, Clock, OutboxEntry, Record
from controller.telemetry import UNKNOWN_VERB, Metrics
from controller.text import plural
from schemas.envelope import format_time, time_of
from schemas.terms import CommandStatus

#: Refusals that wait for Kafka. While it takes none for so many seconds, the oldest beyond the
#: limit are dropped: they must not keep a command that lowers from being read.
REFUSALS_LIMIT = 20_000
REFUSALS_BYTES = 16 * 1024 * 1024
REFUSALS_AWAY_SECONDS = 5.0
REFUSED_AT_ONCE = 50
RETRY_SECONDS = 1.0
#: Refusals that are logged one by one in a minute; of more only the number is.
LOGGED_IN_A_MINUTE = 20
#: Characters of a reason that is logged or shown.
MOST_REASON = 500


class CommandRefusals:
    """Sends refusals to Kafka in order, for ever."""

    def __init__(
        self,
        inbox: CommandInbox,
        clock: Clock,
        metrics: Metrics,
        faults: PassingFaults,
        news: NewsKeeper,
    ) -> None:
        self._inbox = inbox
        self._news = news
        self._minute = 0  # of the lines in the log
        self._logged = 0  # in this minute
        self._unlogged = 0
        self._clock = clock
        self._metrics = metrics
        self._faults = faults
        self._waiting: deque[RefusedCommand] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._trying_since: float | None = None  # monotonic seconds
        self._dropped = 0  # in all
        self._logger = structlog.get_logger()

    @property
    def is_full(self) -> bool:
        """True while no more should be added, because Kafka is slow and not away."""
        return self._has_enough and not self.is_away

    @property
    def _has_enough(self) -> bool:
        """True when no more may wait."""
        return len(self._waiting) >= REFUSALS_LIMIT or self._waiting_bytes >= REFUSALS_BYTES

    @property
    def is_away(self) -> bool:
        """True once Kafka has taken no refusal for some time."""
        since = self._trying_since
        return since is not None and self._clock.monotonic() - since >= REFUSALS_AWAY_SECONDS

    def clear(self) -> None:
        """Forget what waits: it is not committed, and read again."""
        self._waiting.clear()
        self._waiting_bytes = 0
        self._trying_since = None

    def add(self, refusal: RefusedCommand) -> None:
        """Let a command be refused once Kafka takes it. Only then is it committed."""
        refusal.command.record, refusal.command.is_refused = None, True
        self._waiting.append(refusal)
        self._waiting_bytes += refusal.size
        while self._has_enough and self.is_away:
            self._drop(self._take())
        self._arrived.set()

    async def run(self) -> None:
        """Send refusals until cancelled. A crash leaves commands that are not committed."""
        while True:
            if not self._waiting:
                self._arrived.clear()
                await self._news.keep_until(self._arrived)
                await self._arrived.wait()
            count = min(len(self._waiting), REFUSED_AT_ONCE)
            batch = [self._take() for _ in range(count)]
            # In a partition that is gone, the next owner answers what is not committed.
            batch = [
                refusal
                for refusal in batch
                if refusal.command.is_done or not refusal.command.partition.is_gone
            ]
            if self._trying_since is None:
                self._trying_since = self._clock.monotonic()
            try:
                await self._refuse([(refusal.record, refusal.fault) for refusal in batch])
            except OperatingTrouble as trouble:
                self._logger.warning("refusals_wait", error=str(trouble))
                self._waiting.extendleft(reversed(batch))
                self._waiting_bytes += sum(refusal.size for refusal in batch)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._trying_since = None
            for refusal in batch:
                refusal.command.finish()
                self._count(refusal.fault)
                self._tell(refusal)
            self._news.add([_news_of(refusal) for refusal in batch])

    def _take(self) -> RefusedCommand:
        refusal = self._waiting.popleft()
        self._waiting_bytes -= refusal.size
        return refusal

    async def _refuse(self, refused: Sequence[tuple[Record, BadInput]]) -> None:
        """Refuse many at once. One on which we fail costs no other its answer."""
        if not refused:
            return
        try:
            await self._inbox.refuse(refused)
        except OperatingTrouble:
            raise
        except Exception as mistake:  # ours
            if len(refused) > 1:
                for one in refused:
                    await self._refuse([one])
                return
            record = refused[0][0]
            self._logger.exception(
                "command_given_up", partition=record.partition, offset=record.offset
            )
            name = f"{record.topic}/{record.partition}/{record.offset}"
            self._faults.report(Scope.COMMAND, name, f"it could not even be refused: {mistake!r}")

    def _drop(self, refusal: RefusedCommand) -> None:
        refusal.command.finish()
        self._dropped += 1
        if self._dropped % 1000 == 1:
            partition = refusal.command.partition.name
            self._logger.error(
                "command_refusals_dropped",
                partition=partition,
                offset=refusal.command.offset,
                in_all=self._dropped,
            )
            why = (
                f"{plural(self._dropped, 'refused command')} got no answer in all: Kafka took none "
                f"for too long"
            )
            self._faults.report(Scope.PARTITION, partition, why)

    def _tell(self, refusal: RefusedCommand) -> None:
        """Log a refusal, or count it where there are too many to read."""
        minute = int(self._clock.monotonic() // 60)
        if minute != self._minute:
            if self._unlogged:
                self._logger.warning("commands_refused", more=self._unlogged)
            self._minute, self._logged, self._unlogged = minute, 0, 0
        if self._logged >= LOGGED_IN_A_MINUTE:
            self._unlogged += 1
            return
        self._logged += 1
        fault, record = refusal.fault, refusal.record
        named = fault if isinstance(fault, CommandRefused) else None
        self._logger.warning(
            "command_refused",
            flag_key=None if named is None else named.flag_key,
            verb=None if named is None else named.verb,
            command_id=None if named is None else named.command_id,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            reason=str(fault)[:MOST_REASON],
        )

    def _count(self, fault: BadInput) -> None:
        verb = fault.verb if isinstance(fault, CommandRefused) else None
        self._metrics.commands.of(verb or UNKNOWN_VERB, CommandStatus.REJECTED).inc()


def _news_of(refusal: RefusedCommand) -> OutboxEntry:
    """Return a refusal as every replica shows it; of a record without a flag, with its place."""
    fault, record = refusal.fault, refusal.record
    place = f"{record.topic}/{record.partition}/{record.offset}"
    named = fault if isinstance(fault, CommandRefused) else None
    document = {
        "id": place,
        "data": {
            "command_id": place if named is None else named.command_id,
            "flag": None if named is None else named.flag_key,
            "verb": None if named is None else named.verb,
            "status": CommandStatus.REJECTED,
            "reason": str(fault)[:MOST_REASON],
            "revision": 0,
            "at": format_time(time_of(record.timestamp)),
            "issuer": None if named is None else named.issuer or None,
        },
    }
    value = msgspec.json.encode(document)
    return OutboxEntry("", place, "results", OF_NO_FLAG, value)
