"""One member of a consumer group: its consumer's life, and which partitions the group assigns.

Belongs here: joining, leaving, replacing a consumer that is of no more use, and handing partitions
over in time. Does not belong here: records and positions (`event_log.py`).

What aiokafka does not do, and this module therefore does:
- Nothing in it is bounded in time: `start` and `stop` may wait forever.
- A rebalance opens partitions before the listener has run, and a listener's exception is swallowed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from controller.adapters.kafka.assigned_partitions import AssignedPartitions
from controller.adapters.kafka.client import (
    background_tasks,
    client_options,
    must_propagate,
    names_of,
    reason_of,
    stop_in_time,
)
from controller.adapters.kafka.connection_pace import pace_connections
from controller.adapters.kafka.consumer_records import leave_bare, name_faults
from controller.adapters.kafka.fetch_guard import FetchGuard
from controller.adapters.kafka.record_runs import ReadBatches
from controller.errors import BrokenInvariant, EventLogUnavailable
from controller.ports import TopicPartition
from controller.settings import KafkaSettings

# A member that cannot work (Redis is away) must still rejoin when it can again. The watchdog finds
# a member that never does.
_MAX_POLL_INTERVAL_MS = 86_400_000
#: One answer to a fetch, about. All of it is read in one turn of the event loop, 8 ms on a busy
#: core; aiokafka's own 50 MB took a tenth of a second. aiokafka shuffles the partitions it asks
#: for, so none waits behind others for ever.
FETCH_MAX_BYTES = 8 * 1024 * 1024
# So many assignments within so many heartbeats mean that two processes share a static member id.
# No honest rebalancing needs as many.
_DUEL_ASSIGNMENTS = 6
_DUEL_HEARTBEATS = 10

Revoked = Callable[[frozenset[TopicPartition]], Awaitable[None]]


class GroupMember:
    """A consumer in a group, with what the group has assigned to it."""

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Sequence[str],
        group_id: str,
        partitions: AssignedPartitions,
        *,
        bare_records: bool,
        reads_committed: bool,
        read_batches: ReadBatches | None,
    ) -> None:
        """Belong to `group_id` once started. `topics` are full names."""
        self._settings = settings
        self._topics = tuple(topics)
        self._group_id = group_id
        self._partitions = partitions
        self._bare_records = bare_records
        self._reads_committed = reads_committed
        self._read_batches = read_batches
        self._logger = structlog.get_logger(__name__).bind(group=group_id)
        self._on_revoked: Revoked | None = None
        #: A consumer that has started, never one that is about to.
        self.consumer: AIOKafkaConsumer | None = None
        self.guard: FetchGuard | None = None  # of that consumer
        self._joining: AIOKafkaConsumer | None = None
        self._joining_partitions: frozenset[TopicPartition] = frozenset()  # assigned so far
        self._starting: asyncio.Future[None] | None = None  # the start of the joining one
        # One start, stop or rebuild at a time. Never held while records are read.
        self._switching = asyncio.Lock()
        self.should_run = False
        self.is_broken = False  # the consumer is of no more use
        self._assigned_at: deque[float] = deque(maxlen=_DUEL_ASSIGNMENTS)
        self.assignments = 0  # times that the group has assigned partitions
        self.rebuilds = 0

    # --- life ---

    async def start(self) -> None:
        """Join the group.

        Raises EventLogUnavailable when that takes longer than `start_seconds`; call it again then.
        """
        async with self._switching:
            self.should_run = True
            if self.consumer is None:
                await self._open()

    async def stop(self) -> None:
        """Leave the group after a last save, within `stop_seconds`, whatever the brokers do."""
        self.should_run = False
        if self._starting is not None:
            # To wait for brokers that do not answer takes longer than `stop_seconds`.
            self._starting.cancel()
        async with self._switching:
            await self._close()

    async def rebuild(self) -> None:
        """Replace the consumer by a new one.

        Raises EventLogUnavailable; `revive` then tries again.
        """
        async with self._switching:
            await self._close()
            self.rebuilds += 1
            if self.should_run:
                await self._open()

    async def revive(self, wait_seconds: float) -> None:
        """Bring back a consumer that is gone or broken, in one attempt.

        Waits `wait_seconds` when another task already does it. Raises EventLogUnavailable.
        """
        if not self.should_run:
            raise EventLogUnavailable(f"{self._group_id}: not started")
        if self._switching.locked():
            await asyncio.sleep(wait_seconds)
        elif self.is_broken:
            await self.rebuild()
        else:
            await self.start()

    async def _open(self) -> None:
        consumer = self._new_consumer()
        consumer.subscribe(list(self._topics), listener=_Listener(self, consumer))
        guard = FetchGuard(
            consumer,
            answered=partial(self._record_answer, consumer),
            unpacks_all=self._read_batches is not None,
        )
        self._joining, self._joining_partitions = consumer, frozenset()
        self.is_broken = False
        try:
            # A task of its own, so that `stop` can end it.
            self._starting = asyncio.ensure_future(consumer.start())
            async with asyncio.timeout(self._settings.start_seconds):
                await self._starting
            if self._bare_records:
                leave_bare(consumer, guard, self._read_batches)
            else:
                name_faults(consumer)
        except BaseException as error:
            self._joining = None
            await self._end(consumer, self._settings.stop_seconds)
            if not must_propagate(error):
                raise self.unavailable("joining the group", error) from error
            raise
        # No await from here: nobody meets a consumer without its partitions, or partitions without
        # their consumer.
        self._joining = None
        self.consumer, self.guard = consumer, guard
        self.assign(self._joining_partitions)
        self._logger.info("consumer_started", partitions=names_of(self._partitions.owned))

    def _new_consumer(self) -> AIOKafkaConsumer:
        settings = self._settings
        consumer = AIOKafkaConsumer(
            **client_options(settings),
            group_id=self._group_id,
            group_instance_id=settings.static_member_id,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed" if self._reads_committed else "read_uncommitted",
            partition_assignment_strategy=(RangePartitionAssignor,),
            session_timeout_ms=round(settings.session_timeout_seconds * 1000),
            heartbeat_interval_ms=round(settings.heartbeat_interval_seconds * 1000),
            rebalance_timeout_ms=round(settings.session_timeout_seconds * 1000),
            max_poll_interval_ms=_MAX_POLL_INTERVAL_MS,
            fetch_max_wait_ms=round(settings.fetch_max_wait_seconds * 1000),
            fetch_max_bytes=FETCH_MAX_BYTES,
        )
        pace_connections(consumer._client)
        return consumer

    async def _close(self) -> None:
        """Give everything back and stop the consumer.

        A static member keeps its partitions until its session ends.
        """
        consumer, self.consumer, self.guard = self.consumer, None, None
        if consumer is None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.stop_seconds
        await self.give_back(self._partitions.owned, self._settings.stop_seconds / 2)
        self._partitions.forget_reading()
        self._partitions.answered_at.clear()
        await self._end(consumer, deadline - loop.time())

    async def _end(self, consumer: AIOKafkaConsumer, seconds: float) -> None:
        await stop_in_time(
            "consumer",
            consumer.stop(),
            consumer._client,
            lambda: background_tasks(consumer),
            seconds,
        )

    # --- assignment ---

    def on_revoked(self, callback: Revoked) -> None:
        """Set what is awaited before partitions are handed over: the owner's last save."""
        self._on_revoked = callback

    async def give_back(
        self, partitions: frozenset[TopicPartition], seconds: float | None = None
    ) -> None:
        """Let the owner save within `seconds`, then own the partitions no longer.

        `seconds` is `revoke_seconds` by default.
        """
        try:
            if partitions and self._on_revoked is not None:
                limit = self._settings.revoke_seconds if seconds is None else seconds
                async with asyncio.timeout(limit):
                    await self._on_revoked(partitions)
        except Exception as error:
            # The next owner starts from the fence, so a save that failed costs repeated work and
            # nothing else. An exception would go to aiokafka, which drops it.
            self._logger.warning(
                "revoke_failed", error_type=type(error).__name__, reason=str(error)
            )
        finally:
            self._partitions.remove(partitions)

    def assign(self, partitions: frozenset[TopicPartition]) -> None:
        """Own exactly these partitions: the group has just said so."""
        self._partitions.assign(partitions)
        self.assignments += 1
        self._assigned_at.append(asyncio.get_running_loop().time())
        self._logger.info("partitions_assigned", partitions=names_of(partitions))

    def _assigned(self, consumer: AIOKafkaConsumer, partitions: Iterable[KafkaPartition]) -> None:
        assigned = frozenset((one.topic, one.partition) for one in partitions)
        if consumer is self._joining:
            self._joining_partitions = assigned
        elif consumer is self.consumer:
            self.assign(assigned)

    async def _revoked(self, consumer: AIOKafkaConsumer) -> None:
        """Hand over what a consumer had, because the group assigns all partitions again."""
        if consumer is self._joining:
            self._joining_partitions = frozenset()
        elif consumer is self.consumer:
            await self.give_back(self._partitions.owned)

    def shares_its_id(self) -> bool:
        """Return whether another process uses our static member id.

        aiokafka's heartbeats do not carry the id, so the older process does not learn that it was
        fenced. It joins again and fences the younger one, and so on with every heartbeat.
        """
        return (
            self._settings.static_member_id is not None
            and len(self._assigned_at) == _DUEL_ASSIGNMENTS
            and self._assigned_at[-1] - self._assigned_at[0]
            < _DUEL_HEARTBEATS * self._settings.heartbeat_interval_seconds
        )

    def _record_answer(self, consumer: AIOKafkaConsumer, partition: TopicPartition) -> None:
        if consumer is self.consumer:
            self._partitions.record_answers((partition,))

    # --- errors ---

    def running_consumer(self) -> AIOKafkaConsumer:
        """Return the consumer. Raises EventLogUnavailable without one."""
        if self.consumer is None:
            raise EventLogUnavailable(f"{self._group_id}: not connected")
        return self.consumer

    def fenced(self) -> BrokenInvariant:
        """Return the error of two processes that share one static member id."""
        return BrokenInvariant(
            f"another process is in {self._group_id} as {self._settings.static_member_id}: "
            "kafka.static_member_id must differ from replica to replica"
        )

    def unavailable(self, doing: str, error: BaseException) -> EventLogUnavailable:
        """Return the error of a call that failed while `doing` something."""
        return EventLogUnavailable(
            f"{self._group_id}: {doing}: {reason_of(error)} ({self._settings.bootstrap_servers})"
        )


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """Passes on what the group assigns to one consumer; a replaced consumer is ignored."""

    def __init__(self, member: GroupMember, consumer: AIOKafkaConsumer) -> None:
        self._member = member
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Iterable[KafkaPartition]) -> None:
        await self._member._revoked(self._consumer)

    async def on_partitions_assigned(self, assigned: Iterable[KafkaPartition]) -> None:
        self._member._assigned(self._consumer, assigned)
