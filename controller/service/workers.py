"""Which flags run on this replica, and what reaches their workers: commands, totals, the state topic.

The replica that Kafka gave a flag's partition of `rollout.commands` runs the flag. That is only about who works; two workers of
one flag cannot both win, because every save is a compare-and-set.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from controller.core.evidence import Evidence, PartitionProgress, VisitTotals
from controller.core.judgement import Judgement
from controller.core.rollout import CommandReceived, CommandUnusable, Rollout
from controller.errors import BadInput, CommandRefused, OperatingTrouble
from controller.ports import EventLog, OutboxEntry, Record, TopicPartition, Totals
from controller.service.worker import FlagWorker, Tools

#: A worker that stopped by a mistake of ours is started anew after this: its flag must not stay without guardrails.
WORKER_RESTART_SECONDS = 5.0
#: Totals are read this often at most, at least every `LOOK_EVERY_SECONDS`, and never for more than a tenth of the time.
LOOK_AT_MOST_EVERY_SECONDS = 0.1
LOOK_EVERY_SECONDS = 1.0
LOOK_TIME_SHARE = 0.1
COMMANDS_PER_FETCH = 100
#: Commands under way in one partition; beyond it no more of it are read.
OPEN_COMMANDS_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class ReadCommand:
    """What became of a record of the command topic."""

    flag_key: str
    event: CommandReceived
    entry: OutboxEntry  # the same command as we would write it, for a producer that keyed it another way


@dataclass(slots=True)
class _Lane:
    """One owned partition of the command topic: commands under way, oldest first, so that commits never pass an open one."""

    open: deque[tuple[int, asyncio.Task[None]]] = field(default_factory=deque)
    done_to: int | None = None


@dataclass(frozen=True, slots=True)
class WatchView:
    """Whether a live rollout of this replica is watched."""

    flag_key: str
    rollout: Rollout
    evidence: Evidence | None  # the newest that its worker was shown; None: none yet
    looked_at: float | None  # monotonic seconds of it


class Workers:
    """Starts, feeds and stops the flag workers of this replica."""

    def __init__(
        self,
        *,
        tools: Tools,
        commands: EventLog,
        totals: Totals,
        read_command: Callable[[Record], ReadCommand],
        refuse: Callable[[Record, BadInput], Awaitable[None]],
        forward: Callable[[OutboxEntry], Awaitable[None]],
        partition_of: Callable[[str], int],
        known_flags: Callable[[], Sequence[str]],
        event_partitions: Callable[[], Sequence[str]],
        released: Callable[[str], None],
        actuation_drift: Callable[[Rollout], str | None],
    ) -> None:
        """`event_partitions` are the totals' keys; `refuse` quarantines a command record and answers it where it can.

        `forward` publishes a command again, onto its flag's own partition.
        """
        self._tools = tools
        self._commands = commands
        self._totals = totals
        self._read_command = read_command
        self._refuse = refuse
        self._forward = forward
        self._partition_of = partition_of
        self._known_flags = known_flags
        self._event_partitions = event_partitions
        self._released = released
        self._actuation_drift = actuation_drift
        self._workers: dict[str, FlagWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._group: asyncio.TaskGroup | None = None
        self._counted = asyncio.Event()
        self._last_seen: dict[str, tuple[object, float]] = {}
        self._watched: dict[str, tuple[Evidence, float]] = {}
        self._broken: dict[str, str] = {}
        self._log = structlog.get_logger()

    # --- what others see ------------------------------------------------------------------------------------------------

    @property
    def broken(self) -> Mapping[str, str]:
        """Flags whose worker stopped by a mistake of ours, and which; empty when all is well."""
        return dict(self._broken)

    @property
    def owned(self) -> frozenset[TopicPartition]:
        """The command partitions whose flags run here."""
        return frozenset(self._lanes)

    @property
    def rollouts(self) -> Mapping[str, Rollout]:
        """The rollouts that run here."""
        return {key: worker.rollout for key, worker in self._workers.items() if worker.rollout is not None}

    @property
    def evidence(self) -> Mapping[str, tuple[Rollout, Judgement]]:
        """The newest look at the present stay of each rollout that is in a stage here."""
        seen = {}
        for key, worker in self._workers.items():
            rollout, judgement = worker.rollout, worker.judgement
            if rollout is None or judgement is None or rollout.stage_index is None or judgement.at < rollout.started_at:
                continue
            if judgement.visit == len(rollout.visits) - 1:
                seen[key] = (rollout, judgement)
        return seen

    @property
    def pending_effects(self) -> int:
        """Effects saved and not yet published, over all flags."""
        return sum(worker.pending_effects for worker in self._workers.values())

    @property
    def outbox_seconds(self) -> float:
        """For how long the oldest of them has been tried."""
        return max((worker.outbox_seconds for worker in self._workers.values()), default=0.0)

    def worker(self, flag_key: str) -> FlagWorker | None:
        """Return the worker of a flag that runs here."""
        return self._workers.get(flag_key)

    def watch_views(self) -> Sequence[WatchView]:
        """Return how well each rollout that runs here and has not ended is watched."""
        views = []
        for flag_key, rollout in self.rollouts.items():
            if not rollout.has_ended:
                evidence, looked_at = self._watched.get(flag_key, (None, None))
                views.append(WatchView(flag_key, rollout, evidence, looked_at))
        return views

    def counted(self) -> None:
        """Note that new totals were saved: somebody should look."""
        self._counted.set()

    # --- the loops ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the command topic and the totals until cancelled.

        May be run again after it failed: flags are taken up from what is stored, commands from what
        is committed.
        """
        for flag_key, worker in list(self._workers.items()):
            worker.abandon()
            self._released(flag_key)
        self._workers.clear()
        self._tasks.clear()
        self._lanes.clear()
        self._last_seen.clear()
        self._watched.clear()
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._follow_commands(), name="commands")
            group.create_task(self._look_at_totals(), name="totals")

    async def _follow_commands(self) -> None:
        """Hand each command to its flag's worker, and commit what is done."""
        while True:
            await self._take_assignment()
            self._hold_back()
            try:
                batches = await self._commands.fetch(COMMANDS_PER_FETCH, LOOK_EVERY_SECONDS)
            except OperatingTrouble as trouble:
                self._log.warning("commands_unavailable", error=str(trouble))
                await asyncio.sleep(LOOK_EVERY_SECONDS)
                continue
            for partition, records in batches.items():
                lane = self._lanes.get(partition)
                if lane is not None:
                    for record in records:
                        lane.open.append((record.offset, self._spawn(self._obey(record), f"command:{record.offset}")))
            await self._commit_done()

    async def _take_assignment(self) -> None:
        """Start the workers of partitions that came, stop those of partitions that went."""
        assigned = self._commands.assignment
        for partition in set(self._lanes) - assigned:
            del self._lanes[partition]
            for flag_key in [key for key in self._workers if self._partition_of(key) == partition[1]]:
                await self._stop(flag_key)
        for partition in assigned - set(self._lanes):
            try:
                first, _ = await self._commands.bounds(partition)
                committed = await self._commands.committed(partition)
                known = [key for key in self._known_flags() if self._partition_of(key) == partition[1]]
            except OperatingTrouble as trouble:
                self._log.warning("commands_not_ready", partition=partition[1], error=str(trouble))
                continue
            self._commands.seek(partition, first if committed is None else max(committed, first))
            self._lanes[partition] = _Lane()
            for flag_key in known:
                self._start(flag_key)
            self._log.info("flags_taken_over", partition=partition[1], flags=len(known))

    def _hold_back(self) -> None:
        """Read no more commands than are obeyed: while Redis is away they wait in the topic, not here."""
        full = [partition for partition, lane in self._lanes.items() if len(lane.open) >= OPEN_COMMANDS_LIMIT]
        self._commands.pause(full)
        self._commands.resume([partition for partition in self._lanes if partition not in full])

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        assert self._group is not None
        return self._group.create_task(work, name=name)

    async def _obey(self, record: Record) -> None:
        """See one command through: answered, or refused with a reason. A mistake of ours is tried twice, then refused."""
        try:
            command = self._read_command(record)
        except CommandRefused as fault:
            if self._partition_of(fault.flag_key) != record.partition:
                await self._refuse(record, fault)  # its flag runs elsewhere, and there is no order to forward
                return
            order: CommandReceived | CommandUnusable = self._as_refused(fault)
            flag_key = fault.flag_key
        except BadInput as fault:
            await self._refuse(record, fault)
            return
        else:
            order, flag_key = command.event, command.flag_key
            if self._partition_of(flag_key) != record.partition:
                # kcat and others partition keys in their own way: the replica that runs the flag reads another partition.
                await self._forward(command.entry)
                return
        failure = ""
        for attempt in (1, 2):
            if (record.topic, record.partition) not in self._lanes:
                return  # handed over before it was begun: whoever runs the flag now reads it, for we have not committed it
            try:
                await self._start(flag_key).submit(order)
                return
            except Exception as mistake:  # a worker's own failure, which it reported and restarts from
                failure = repr(mistake)
                self._log.exception("command_failed", flag_key=flag_key, attempt=attempt)
        why = f"the controller failed on this command: {failure}"
        await self._refuse(record, CommandRefused(command_id=order.command_id, flag_key=flag_key, verb=order.verb, reason=why))

    def _as_refused(self, fault: CommandRefused) -> CommandUnusable:
        """Return the event by which the flag's worker answers it: saved like any answer, so that a repeat gets the same one."""
        return CommandUnusable(self._tools.clock.now(), fault.command_id, fault.verb, fault.reason)

    async def _commit_done(self) -> None:
        """Commit up to the oldest command that is still under way."""
        offsets: dict[TopicPartition, int] = {}
        for partition, lane in self._lanes.items():
            while lane.open and lane.open[0][1].done():
                lane.done_to = lane.open.popleft()[0] + 1
            if lane.done_to is not None:
                offsets[partition], lane.done_to = lane.done_to, None
        if offsets:
            await self._commands.commit(offsets)

    async def _look_at_totals(self) -> None:
        """Read the totals of all live rollouts together, and give each worker what is new, or what is a second old."""
        clock = self._tools.clock
        pause = LOOK_AT_MOST_EVERY_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                async with asyncio.timeout(max(LOOK_EVERY_SECONDS - pause, 0)):
                    await self._counted.wait()
            except TimeoutError:
                pass
            self._counted.clear()
            began = clock.monotonic()
            try:
                await self._look()
            except OperatingTrouble as trouble:
                self._log.warning("totals_unavailable", error=str(trouble))
            pause = max(LOOK_AT_MOST_EVERY_SECONDS, (clock.monotonic() - began) * (1 / LOOK_TIME_SHARE - 1))

    async def _look(self) -> None:
        live = {key: worker.rollout for key, worker in self._workers.items() if worker.rollout is not None}
        wanted = {
            key: (rollout.rollout_id, range(max(len(rollout.visits) - 2, 0), len(rollout.visits)))
            for key, rollout in live.items()
            if rollout.stage_index is not None
        }
        if not wanted:
            return
        totals, progress = await self._totals.read(self._event_partitions(), wanted)
        now = self._tools.clock.monotonic()
        for flag_key in wanted:
            seen, seen_at = self._last_seen.get(flag_key, (None, 0.0))
            visits = totals.get(flag_key, {})
            if visits == seen and now - seen_at < LOOK_EVERY_SECONDS:
                continue
            self._last_seen[flag_key] = (visits, now)
            self._show(flag_key, live[flag_key], visits, progress)

    def _show(
        self, flag_key: str, rollout: Rollout, visits: Mapping[int, VisitTotals], progress: Sequence[PartitionProgress]
    ) -> None:
        worker = self._workers.get(flag_key)
        if worker is not None:
            drift = self._actuation_drift(rollout)
            now, expected = self._tools.clock.now(), len(self._event_partitions())
            evidence = Evidence(now, visits, tuple(progress), expected, drift)
            self._watched[flag_key] = (evidence, self._tools.clock.monotonic())
            worker.see(rollout.rollout_id, evidence)

    # --- starting and stopping ------------------------------------------------------------------------------------------

    def _start(self, flag_key: str) -> FlagWorker:
        if flag_key not in self._workers:
            self._workers[flag_key] = FlagWorker(flag_key, self._tools)
            self._tasks[flag_key] = self._spawn(self._keep_running(flag_key, self._workers[flag_key]), f"worker:{flag_key}")
        return self._workers[flag_key]

    async def _stop(self, flag_key: str) -> None:
        task = self._tasks.pop(flag_key)
        worker = self._workers.pop(flag_key)
        self._broken.pop(flag_key, None)
        self._last_seen.pop(flag_key, None)
        self._watched.pop(flag_key, None)
        task.cancel()
        await asyncio.wait([task])
        worker.abandon()
        self._released(flag_key)

    async def _keep_running(self, flag_key: str, worker: FlagWorker) -> None:
        """Run a worker; a mistake of ours turns health red, and the flag is taken up again from what is stored."""
        while True:
            try:
                await worker.run()
            except Exception as mistake:  # the worker's edge: stopped, said, and begun anew
                self._broken[flag_key] = repr(mistake)
                self._log.exception("worker_stopped", flag_key=flag_key, restart_seconds=WORKER_RESTART_SECONDS)
            await asyncio.sleep(WORKER_RESTART_SECONDS)
            self._broken.pop(flag_key, None)
