"""Follows the command topic: takes partitions over, reads commands, commits what is done.

Within a flag the order of commands is kept: `roll_back, start` means the opposite of
`start, roll_back`. Between flags, commands that lower go first, and commands of flags that do not
exist go last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import structlog

from controller.deciding.commands.command_handler import CommandHandler
from controller.deciding.commands.command_inbox import CommandInbox
from controller.deciding.commands.command_partition import (
    UNCOMMITTED_LIMIT,
    CommandPartition,
    OpenCommands,
    PendingCommand,
)
from controller.deciding.commands.command_refusals import CommandRefusals
from controller.deciding.commands.command_topic import CommandTopic
from controller.deciding.commands.known_flags import KnownFlags
from controller.deciding.commands.passing_faults import COMMANDS, PassingFaults
from controller.deciding.commands.unknown_flags import UnknownFlags
from controller.deciding.worker_pool import WorkerPool
from controller.errors import BrokenInvariant, OperatingTrouble
from controller.health import Faults, Scope
from controller.ports import Clock, Record, TopicPartition

COMMANDS_PER_FETCH = 200
FETCH_SECONDS = 1.0
RETRY_SECONDS = 1.0
#: Flags that other replicas started become known this soon. Sorting ten thousand names takes some
#: milliseconds.
PLACE_EVERY_SECONDS = 0.5
#: A commit asks the brokers: not after each of a hundred fetches a second.
COMMIT_EVERY_SECONDS = 0.1
#: Flags placed before the event loop gets its turn, and workers started.
PLACED_AT_ONCE = 500
STARTED_AT_ONCE = 20


class CommandFollower:
    """Reads and commits the command partitions of this replica."""

    def __init__(
        self,
        inbox: CommandInbox,
        topic: CommandTopic,
        pool: WorkerPool,
        handler: CommandHandler,
        unknown: UnknownFlags,
        refusals: CommandRefusals,
        known: KnownFlags,
        commands: OpenCommands,
        *,
        clock: Clock,
        faults: Faults,
        passing_faults: PassingFaults,
    ) -> None:
        self._inbox = inbox
        self._log_member = inbox.commands
        self._topic = topic
        self._pool = pool
        self._handler = handler
        self._unknown = unknown
        self._refusals = refusals
        self._known = known
        self._commands = commands
        self._clock = clock
        self._faults = faults
        self._passing_faults = passing_faults
        self._partitions: dict[TopicPartition, CommandPartition] = {}
        #: Partitions of the topic, those of this replica, and the versions of the known flags and
        #: of the pool when flags were last placed.
        self._placed: tuple[int, frozenset[TopicPartition], int, int] | None = None
        self._has_guests = False  # a flag of another replica runs here until its commands are done
        self._placed_at = self._committed_at = float("-inf")  # monotonic seconds
        #: When the loop last began a round, in monotonic seconds; None: never.
        self.followed_at: float | None = None
        self._logger = structlog.get_logger()

    @property
    def owned(self) -> frozenset[TopicPartition]:
        """The command partitions whose flags run here."""
        return frozenset(self._partitions)

    @property
    def partitions(self) -> tuple[CommandPartition, ...]:
        """The commands of each owned partition."""
        return tuple(self._partitions.values())

    @property
    def lag(self) -> int:
        """Records in the owned partitions that are not read and done yet."""
        lag = 0
        for partition in self._partitions.values():
            end = self._log_member.end_offset(partition.key)
            position = self._log_member.position(partition.key)
            unread = 0 if end is None or position is None else max(end - position, 0)
            lag += unread + sum(not command.is_done for command in partition.open)
        return lag

    def reset(self) -> None:
        """Forget everything of a run before: its tasks are gone."""
        for partition in self._partitions.values():
            partition.is_gone = True
            self._faults.clear(Scope.PARTITION, partition.name, reporter=COMMANDS)
        self._partitions.clear()
        self._commands.clear()
        self._refusals.clear()
        self._known.clear()
        self._placed = None
        self._placed_at = self._committed_at = float("-inf")
        self._unknown.all_read.clear()

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Give each command to its flag's worker, and commit what is done, until cancelled."""
        while True:
            try:
                await self._follow_assignment(group)
                self.followed_at = self._clock.monotonic()
                await self._place_flags()
                self._pause_full_partitions()
                await self._fetch(group)
                await self._commit_done()
                self._passing_faults.clear_expired()
                self._faults.clear(Scope.PART, "commands")
            except OperatingTrouble as trouble:
                self._logger.warning("commands_unavailable", error=str(trouble))
                await asyncio.sleep(RETRY_SECONDS)
            except BrokenInvariant:
                raise  # of the log as a whole: another process is in the group under our name
            except Exception as mistake:  # ours: commands must go on being read
                self._logger.exception("commands_failed")
                why = f"reading commands failed: {mistake!r}"
                self._faults.report(Scope.PART, "commands", why)
                await asyncio.sleep(RETRY_SECONDS)

    # --- partitions ---

    async def _follow_assignment(self, group: asyncio.TaskGroup) -> None:
        """Take over partitions that arrived, and stop the workers of those that left."""
        assigned = self._log_member.assignment
        for key in set(self._partitions) - assigned:
            partition = self._partitions.pop(key)
            partition.is_gone = True
            if partition.task is not None:
                partition.task.cancel()
            self._faults.clear(Scope.PARTITION, partition.name, reporter=COMMANDS)
            for flag_key in self._pool.flag_keys:
                if self._topic.home_of(flag_key) == partition.number:
                    await self._pool.stop(flag_key)
        for key in assigned - set(self._partitions):
            try:
                await self._take_over(key, group)
            except Exception as trouble:
                if not isinstance(trouble, OperatingTrouble):
                    self._logger.exception("commands_not_taken_over", partition=key[1])
                    why = f"its commands cannot be taken over: {trouble!r}"
                    name = f"{key[0]}/{key[1]}"
                    self._faults.report(Scope.PARTITION, name, why, reporter=COMMANDS)
                self._logger.warning("commands_not_ready", partition=key[1], error=str(trouble))

    async def _take_over(self, key: TopicPartition, group: asyncio.TaskGroup) -> None:
        """Read a partition from its committed offset on.

        An offset beyond the end of the log says nothing: everything is read again. That is
        harmless: answers are kept, and a command for an earlier rollout is refused.
        """
        first, end = await self._log_member.bounds(key)
        committed = await self._log_member.committed(key)
        start = first if committed is None else max(committed, first)
        is_beyond = committed is not None and committed > end
        if is_beyond:
            start = first
            self._logger.error(
                "commands_committed_beyond_end",
                partition=key[1],
                committed=committed,
                end=end,
                first=first,
            )
            await self._log_member.commit({key: first})
        self._log_member.seek(key, start)
        partition = self._partitions[key] = CommandPartition(key, end)
        partition.task = group.create_task(
            self._unknown.run(partition, group), name=f"unknown-flags:{partition.number}"
        )
        if is_beyond:
            why = (
                f"offset {committed} was committed and the log ends at {end}: it was truncated or "
                f"created again; all its commands are read again from offset {first}"
            )
            fix = "nothing, unless commands given lately have no answer: then send them again"
            self._passing_faults.report(Scope.PARTITION, partition.name, why, fix)
        else:
            self._faults.clear(Scope.PARTITION, partition.name, reporter=COMMANDS)
        self._logger.info("commands_taken_over", partition=partition.number, offset=start)

    async def _place_flags(self) -> None:
        """Run the flags of our partitions, and only those: others start flags, and topics grow."""
        now = self._clock.monotonic()
        count, keys = self._topic.partitions, frozenset(self._partitions)
        is_same_topic = self._placed is not None and self._placed[:2] == (count, keys)
        if is_same_topic and now - self._placed_at < PLACE_EVERY_SECONDS:
            return
        known, version = self._known.version, self._pool.version
        if self._placed == (count, keys, known, version) and not self._has_guests:
            self._placed_at = now
            return  # to go through ten thousand flags for nothing takes some milliseconds
        if self._placed is not None and self._placed[0] != count:
            self._logger.warning("command_partitions_changed", before=self._placed[0], after=count)
        flag_keys = self._known.refresh()
        self._placed_at = now
        numbers = {number for _, number in keys}
        started = await self._start_own(flag_keys, numbers)
        stopped = await self._stop_foreign(numbers)
        # Not the version as it is now: others may have started or stopped workers meanwhile.
        self._placed = count, keys, known, version + started + stopped
        if started:
            self._logger.info("flags_taken_over", partitions=sorted(numbers), flags=started)

    async def _start_own(self, flag_keys: Sequence[str], numbers: Collection[int]) -> int:
        """Start the flags of these partitions that do not run yet; return how many."""
        started = 0
        for place, flag_key in enumerate(flag_keys, start=1):
            if self._topic.home_of(flag_key) in numbers and flag_key not in self._pool:
                self._pool.start(flag_key)
                started += 1
                if started % STARTED_AT_ONCE == 0:
                    await asyncio.sleep(0)
            if place % PLACED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return started

    async def _stop_foreign(self, numbers: Collection[int]) -> int:
        """Stop the flags of other partitions; return how many. Note whether some go on as guests.

        A command that was forwarded to us is handled first.
        """
        stopped = 0
        self._has_guests = False
        for place, flag_key in enumerate(self._pool.flag_keys, start=1):
            if place % PLACED_AT_ONCE == 0:
                await asyncio.sleep(0)
            if self._topic.home_of(flag_key) in numbers or flag_key not in self._pool:
                continue
            if self._commands[flag_key]:
                self._has_guests = True
                continue
            await self._pool.stop(flag_key)
            stopped += 1
        return stopped

    def _pause_full_partitions(self) -> None:
        """Read no more commands than are handled: while Redis is away they wait in the topic."""
        full = [key for key, partition in self._partitions.items() if partition.is_full]
        if full:
            self._unknown.all_read.set()  # nothing more can arrive
        self._log_member.pause(full)
        self._log_member.resume([key for key in self._partitions if key not in full])

    # --- commands ---

    async def _fetch(self, group: asyncio.TaskGroup) -> None:
        """Read what has arrived, and begin with the flags that are to be lowered."""
        batches = await self._log_member.fetch(COMMANDS_PER_FETCH, FETCH_SECONDS)
        if sum(map(len, batches.values())) >= COMMANDS_PER_FETCH:
            self._unknown.all_read.clear()
        else:
            self._unknown.all_read.set()
        now = self._clock.monotonic()
        fetched: list[PendingCommand] = []
        for key, records in batches.items():
            partition = self._partitions.get(key)
            if partition is not None:
                commands = [self._pending(partition, record, now) for record in records]
                partition.open.extend(commands)
                fetched += commands
        urgent = {command.flag_key for command in fetched if command.lowers}
        for command in sorted(fetched, key=lambda each: each.flag_key not in urgent):
            self._begin(command, group)

    def _pending(self, partition: CommandPartition, record: Record, now: float) -> PendingCommand:
        peeked = self._inbox.peek(record)
        if peeked is None:
            return PendingCommand(partition, record.offset, record, "", None, 0, now)
        return PendingCommand(
            partition, record.offset, record, peeked.flag_key, peeked.verb, peeked.hops, now
        )

    def _begin(self, command: PendingCommand, group: asyncio.TaskGroup) -> None:
        """Begin with a command, or let it wait until all that matter more are read."""
        partition = command.partition
        if not self._known.has(command.flag_key) or partition.queued[command.flag_key]:
            partition.hold_followers(command)
            partition.wait_as_unknown(command)
        elif self._commands.refuse_excess(command):
            partition.wait_as_unknown(command)
        else:
            self._handler.begin(command, group)

    async def _commit_done(self) -> None:
        """Commit up to the oldest command that is still being handled."""
        now = self._clock.monotonic()
        if now - self._committed_at < COMMIT_EVERY_SECONDS:
            return
        offsets: dict[TopicPartition, int] = {}
        for key, partition in self._partitions.items():
            while partition.open and self._is_over(partition):
                command = partition.open.popleft()
                partition.done_to = command.offset + 1
                if command.refusal is not None:
                    partition.unsent_refusals.append(command.refusal)
            if partition.done_to is not None:
                offsets[key] = partition.done_to
        if offsets:
            self._committed_at = now
            await self._log_member.commit(offsets)
            for key in offsets:
                partition = self._partitions[key]
                partition.done_to, unsent, partition.unsent_refusals = (
                    None,
                    partition.unsent_refusals,
                    [],
                )
                for refusal in unsent:
                    refusal.command.finish()
                    self._refusals.add(refusal)

    def _is_over(self, partition: CommandPartition) -> bool:
        """Return whether the oldest command may be committed."""
        oldest = partition.open[0]
        if oldest.is_done or oldest.refusal is not None:
            return True
        # It waits for its refusal alone, and would delay all others.
        is_held_up = oldest.is_refused and self._refusals.is_away
        return is_held_up and len(partition.open) >= UNCOMMITTED_LIMIT
