"""Which flags run on this replica, and what reaches their workers.

Commands, totals, the state topic.

The replica that Kafka gave a flag's partition of `rollout.commands` runs the flag. That is only
about who works; two workers of one flag cannot both win, because every save is a compare-and-set.

Nothing that one record, flag or partition does ends a loop here: it is refused or set aside,
reported in `Faults`, and everything else goes on. What waits, and what it may cost:

| what | where | bound |
|---|---|---|
| commands of flags that exist | with their worker | `FLAG_COMMANDS_LIMIT` a flag, `OPEN_COMMANDS_LIMIT` a partition |
| all others, and those beyond it | `_Lane.strangers` | `STRANGERS_LIMIT`, `STRANGERS_BYTES` a partition |
| refusals that Kafka has to take | `_refusals` | `REFUSALS_LIMIT`, `REFUSALS_BYTES`; beyond it the oldest go while Kafka is away |

Commands of flags that exist go first: whoever floods the topic with others delays only them.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from controller.core.evidence import Evidence, PartitionProgress, VisitTotals
from controller.core.judging.judgement import Judgement
from controller.core.machine import decide
from controller.core.rollout import (
    AnswerCommand,
    CommandReceived,
    CommandUnusable,
    RaiseAlert,
    Rollout,
)
from controller.deciding.flag_worker import FlagWorker, WorkerDependencies
from controller.errors import (
    BadInput,
    BrokenInvariant,
    CommandRefused,
    CommandUnreadable,
    DocumentUnreadable,
    OperatingTrouble,
    without_history,
)
from controller.health import Scope
from controller.metrics import UNKNOWN_VERB
from controller.ports import EventLog, OutboxEntry, Record, TopicPartition, Totals
from schemas.terms import (
    ALWAYS_ACCEPTED,
    FINAL,
    AlertKind,
    CommandStatus,
    CommandVerb,
    QuarantineReason,
    Severity,
)

#: A worker that stopped by a mistake of ours is restarted after this: its flag must not stay
#: without guardrails. Each failure in a row doubles it. An order that lowers does not wait for it.
WORKER_RESTART_SECONDS = 5.0
LONGEST_RESTART_SECONDS = 300.0
#: A worker that ran for this long works: its fault is over. Longer than most mistakes need to show.
STEADY_SECONDS = 10.0
#: A failure this long after the one before begins a new row.
NEW_ROW_SECONDS = 600.0
#: Kafka may take this long for the alert that a worker stopped; the next failure tries again.
ALERT_SECONDS = 5.0
#: Totals are read this often at most, at least every `LOOK_EVERY_SECONDS`, and never for more than
#: a tenth of the time.
LOOK_AT_MOST_EVERY_SECONDS = 0.1
LOOK_EVERY_SECONDS = 1.0
LOOK_TIME_SHARE = 0.1
COMMANDS_PER_FETCH = 200
#: Flags that others started become known this soon; sorting ten thousand names takes some ms.
PLACE_EVERY_SECONDS = 0.5
#: A commit asks the brokers: not after each of a hundred fetches a second.
COMMIT_EVERY_SECONDS = 0.1
#: Commands of flags that exist under way in one partition; beyond it no more of it are read.
OPEN_COMMANDS_LIMIT = 1000
#: Commands in one partition that are read and not committed, those that are done included.
UNCOMMITTED_LIMIT = 50_000
#: Commands of one flag under way. Beyond the first, those that do not lower are refused; beyond the
#: second, all: what the two hundred before them ask for is 0 % or a pause already.
FLAG_COMMANDS_LIMIT = 100
FLAG_LOWERING_LIMIT = 200
#: Commands of flags that do not exist wait here, because whatever comes for others goes first.
STRANGERS_LIMIT = 30_000
STRANGERS_BYTES = 16 * 1024 * 1024
STRANGERS_AT_ONCE = 50
#: Refusals that wait for Kafka. While it takes none for so long, the oldest beyond it are given up:
#: what is refused must not keep an order that lowers from being read.
REFUSALS_LIMIT = 20_000
REFUSALS_BYTES = 16 * 1024 * 1024
REFUSALS_AWAY_SECONDS = 5.0
#: Reading a command takes about 0.1 ms: between so many the loop gets its turn.
READ_AT_ONCE = 20
#: A fault that is over by itself, such as a refused command, is shown for this long.
SHOWN_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class ReadCommand:
    """What became of a record of the command topic."""

    flag_key: str
    event: CommandReceived
    copy: Callable[
        [], OutboxEntry
    ]  # the same command for its flag's own partition, marked as forwarded


@dataclass(frozen=True, slots=True)
class Peeked:
    """What is told of a command before it is read: enough to say who goes first."""

    flag_key: str
    verb: CommandVerb | None
    hops: int  # how often it was forwarded


@dataclass(slots=True)
class _Order:
    """One record of the command topic, until it is committed."""

    offset: int
    record: Record | None  # None once it is done
    flag_key: str  # "": cannot be told without reading it
    verb: CommandVerb | None
    hops: int
    fetched_at: float
    why_not: str = ""  # why it is refused unseen
    is_queued: bool = False  # what comes later for its flag waits behind it
    is_refused: bool = False  # only Kafka has still to take its refusal
    is_done: bool = False
    refusal: _Refusal | None = (
        None  # told once it is committed: no next owner may obey it after a "no"
    )

    def finish(self) -> None:
        """Let the offset be committed."""
        self.record, self.is_done = None, True


@dataclass(slots=True)
class _Lane:
    """One owned partition of the command topic, oldest first.

    So that commits never pass an open one.
    """

    end: int  # of the log when it was taken over: what lies before may be read a second time
    open: deque[_Order] = field(default_factory=deque)
    busy: int = 0  # of flags that exist, and under way
    strangers: deque[_Order] = field(default_factory=deque)
    queued: Counter[str] = field(
        default_factory=Counter
    )  # of them by flag: later ones must not pass
    stranger_bytes: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    done_to: int | None = None
    untold: list[_Refusal] = field(default_factory=list)  # of orders up to `done_to`
    task: asyncio.Task[None] | None = None  # answers the strangers

    @property
    def has_enough_strangers(self) -> bool:
        """True when no more may wait."""
        return len(self.strangers) >= STRANGERS_LIMIT or self.stranger_bytes >= STRANGERS_BYTES

    @property
    def is_full(self) -> bool:
        """True when no more commands are to be read for now."""
        is_busy = self.busy >= OPEN_COMMANDS_LIMIT or len(self.open) >= UNCOMMITTED_LIMIT
        return is_busy or self.has_enough_strangers


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A command that is not carried out, until Kafka has why."""

    partition: TopicPartition
    lane: _Lane
    order: _Order
    record: Record
    fault: BadInput

    def __post_init__(self) -> None:
        # Thousands wait. The frames of a traceback keep all that was read, and are what a
        # collection of garbage has to walk through: 200 MB and half a second for 20,000.
        without_history(self.fault)

    @property
    def size(self) -> int:
        """Bytes of the record's value."""
        return len(self.record.value or b"")


@dataclass(slots=True)
class _Run:
    """How a flag's worker does."""

    worker: FlagWorker
    task: asyncio.Task[None] | None = None
    failures: int = 0  # in a row
    failed_at: float | None = None  # monotonic seconds
    restarted_at: float | None = (
        None  # since when it runs again after a failure, until that is forgotten
    )
    is_alerted: bool = False
    standing_still: str = ""  # why it can do nothing at all, not even refuse


@dataclass(frozen=True, slots=True)
class WatchView:
    """Whether a live rollout of this replica is watched."""

    flag_key: str
    rollout: Rollout
    evidence: Evidence | None  # the newest that its worker was shown; None: none yet
    looked_at: float | None  # monotonic seconds of it
    handled_at: float | None = None  # when its worker last saw a look through, saved
    trouble: str = ""  # why its worker sees nothing: stopped by a mistake, or nothing is saved


class Workers:
    """Starts, feeds and stops the flag workers of this replica."""

    def __init__(
        self,
        *,
        tools: WorkerDependencies,
        commands: EventLog,
        totals: Totals,
        peek: Callable[[Record], Peeked | None],
        read_command: Callable[[Record], ReadCommand],
        refuse: Callable[[Sequence[tuple[Record, BadInput]]], Awaitable[None]],
        forward: Callable[[OutboxEntry], Awaitable[None]],
        partition_of: Callable[[str], int],
        command_partitions: Callable[[], int],
        known_flags: Callable[[], Sequence[str]],
        event_partitions: Callable[[], Sequence[str]],
        released: Callable[[str], None],
        actuation_drift: Callable[[Rollout], str | None],
    ) -> None:
        """`event_partitions` are the totals' keys.

        `partition_of` and `command_partitions` are live.

        `refuse` quarantines command records and answers them where it can, and returns when Kafka
        has it. `forward` publishes a command again, onto its flag's own partition.
        """
        self._tools = tools
        self._commands = commands
        self._totals = totals
        self._peek = peek
        self._read_command = read_command
        self._refuse = refuse
        self._forward = forward
        self._partition_of = partition_of
        self._command_partitions = command_partitions
        self._known_flags = known_flags
        self._event_partitions = event_partitions
        self._released = released
        self._actuation_drift = actuation_drift
        self._runs: dict[str, _Run] = {}
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._waiting: Counter[str] = Counter()  # commands under way, by flag
        self._refusals: deque[_Refusal] = deque()
        self._refusal_bytes = 0
        self._refused = asyncio.Event()
        self._refusing_since: float | None = None  # monotonic seconds of what is tried now
        self._given_up = 0  # refusals, in all
        self._group: asyncio.TaskGroup | None = None
        self._counted = asyncio.Event()
        self._idle = asyncio.Event()  # everything that has come is read
        self._indexed: frozenset[str] = frozenset()  # flags in the store, as of `_indexed_at`
        self._indexed_at = float("-inf")
        self._homes: dict[str, int] = {}  # partition by flag, as of `_placed`
        self._placed: tuple[int, frozenset[TopicPartition]] | None = None
        self._placed_at = float("-inf")
        self._known: frozenset[str] = frozenset()  # flags, as of `_placed_at`
        self._committed_at = float("-inf")
        self._last_seen: dict[str, tuple[object, float]] = {}
        self._watched: dict[str, tuple[Evidence, float]] = {}
        self._unseen: set[str] = set()  # flags that could not be shown their totals
        self._shown: dict[
            tuple[Scope, str], float
        ] = {}  # faults that are over, and until when they are shown
        self._broken: dict[str, str] = {}
        self._followed_at: float | None = None
        self._log = structlog.get_logger()

    # --- what others see --------------------------------------------------------------------------

    @property
    def broken(self) -> Mapping[str, str]:
        """Flags whose worker stopped by a mistake of ours, and which; empty when all is well."""
        return dict(self._broken)

    @property
    def unsaved(self) -> Mapping[str, str]:
        """Flags of which nothing is decided because the store fails, and why."""
        whys = ((key, run.worker.unsaved) for key, run in self._runs.items())
        return {key: why for key, why in whys if why is not None}

    @property
    def owned(self) -> frozenset[TopicPartition]:
        """The command partitions whose flags run here."""
        return frozenset(self._lanes)

    @property
    def followed_at(self) -> float | None:
        """When the loop that follows commands came round last, in monotonic seconds."""
        return self._followed_at

    @property
    def rollouts(self) -> Mapping[str, Rollout]:
        """The rollouts that run here."""
        rollouts = ((key, run.worker.rollout) for key, run in self._runs.items())
        return {key: rollout for key, rollout in rollouts if rollout is not None}

    @property
    def evidence(self) -> Mapping[str, tuple[Rollout, Judgement]]:
        """The newest look at the present stay of each rollout that is in a stage here."""
        seen = {}
        for key, run in self._runs.items():
            rollout, judgement = run.worker.rollout, run.worker.judgement
            if rollout is None or judgement is None or rollout.stage_index is None:
                continue
            if judgement.at >= rollout.started_at and judgement.visit == len(rollout.visits) - 1:
                seen[key] = (rollout, judgement)
        return seen

    @property
    def pending_effects(self) -> int:
        """Effects saved and not yet published, over all flags."""
        return sum(run.worker.pending_effects for run in self._runs.values())

    @property
    def outbox_seconds(self) -> float:
        """For how long the oldest of them has been tried."""
        return max((run.worker.outbox_seconds for run in self._runs.values()), default=0.0)

    def worker(self, flag_key: str) -> FlagWorker | None:
        """Return the worker of a flag that runs here."""
        run = self._runs.get(flag_key)
        return None if run is None else run.worker

    def watch_views(self) -> Sequence[WatchView]:
        """Return how well each rollout that runs here and has not ended is watched."""
        views = []
        for flag_key, rollout in self.rollouts.items():
            if not rollout.has_ended:
                evidence, looked_at = self._watched.get(flag_key, (None, None))
                worker = self._runs[flag_key].worker
                trouble = worker.unsaved or ""
                if (mistake := self._broken.get(flag_key)) is not None:
                    trouble = f"its worker stopped: {mistake}"
                view = WatchView(flag_key, rollout, evidence, looked_at, worker.seen_at, trouble)
                views.append(view)
        return views

    def counted(self) -> None:
        """Note that new totals were saved: they are to be read."""
        self._counted.set()

    # --- the loops --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the command topic and the totals until cancelled."""
        # Of a run before this one nothing is left: its tasks are gone, and so is what waited for
        # them.
        for flag_key, run in self._runs.items():
            run.worker.abandon()
            self._clear_faults(flag_key)
            self._released(flag_key)
        for partition in self._lanes:
            self._tools.faults.clear(Scope.PARTITION, _named(partition), reporter=_COMMANDS)
        self._runs.clear()
        self._lanes.clear()
        self._waiting.clear()
        self._refusals.clear()
        self._refusal_bytes = 0
        self._last_seen.clear()
        self._watched.clear()
        self._unseen.clear()
        self._broken.clear()
        self._homes.clear()
        self._indexed, self._indexed_at = frozenset(), float("-inf")
        self._placed, self._refusing_since = None, None
        self._placed_at = self._committed_at = float("-inf")
        self._idle.clear()
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._follow_commands(), name="commands")
            group.create_task(self._look_at_totals(), name="totals")
            group.create_task(self._send_refusals(), name="refusals")

    async def _follow_commands(self) -> None:
        """Hand each command to its flag's worker, and commit what is done."""
        while True:
            try:
                await self._take_assignment()
                self._followed_at = self._tools.clock.monotonic()
                await self._place_flags()
                self._hold_back()
                await self._fetch_commands()
                await self._commit_done()
                self._forget_shown()
                self._tools.faults.clear(Scope.PART, "commands")
            except OperatingTrouble as trouble:
                self._log.warning("commands_unavailable", error=str(trouble))
                await asyncio.sleep(LOOK_EVERY_SECONDS)
            except BrokenInvariant:
                raise  # of the log as a whole: another process is in the group under our name
            except Exception as mistake:  # ours: commands must go on being read
                self._log.exception("commands_failed")
                why = f"reading commands failed: {mistake!r}"
                self._tools.faults.report(Scope.PART, "commands", why)
                await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def _fetch_commands(self) -> None:
        """Read what has come, and begin with the flags that are to be lowered."""
        batches = await self._commands.fetch(COMMANDS_PER_FETCH, LOOK_EVERY_SECONDS)
        if sum(map(len, batches.values())) >= COMMANDS_PER_FETCH:
            self._idle.clear()
        else:
            self._idle.set()
        now = self._tools.clock.monotonic()
        taken: list[tuple[TopicPartition, _Lane, _Order]] = []
        for partition, records in batches.items():
            lane = self._lanes.get(partition)
            if lane is not None:
                for record in records:
                    order = self._order(record, now)
                    lane.open.append(order)
                    taken.append((partition, lane, order))
        # Within a flag the order stays: `roll_back, start` means the opposite of `start,
        # roll_back`.
        urgent = {order.flag_key for _, _, order in taken if order.verb in ALWAYS_ACCEPTED}
        for partition, lane, order in sorted(
            taken, key=lambda each: each[2].flag_key not in urgent
        ):
            self._take(partition, lane, order)

    def _order(self, record: Record, now: float) -> _Order:
        try:
            peeked = self._peek(record)
        except Exception as mistake:  # ours; reading it in full says more
            self._log.warning("command_not_peeked", offset=record.offset, error=repr(mistake))
            peeked = None
        if peeked is None:
            return _Order(record.offset, record, "", None, 0, now)
        return _Order(record.offset, record, peeked.flag_key, peeked.verb, peeked.hops, now)

    def _take(self, partition: TopicPartition, lane: _Lane, order: _Order) -> None:
        """Begin with a command, or let it wait until all that matter more are read."""
        if not self._is_known(order.flag_key) or lane.queued[order.flag_key]:
            lane.queued[order.flag_key] += 1
            order.is_queued = True
            self._let_wait(lane, order)
        elif self._is_too_much(order):
            self._let_wait(lane, order)
        else:
            self._begin(partition, lane, order)

    def _is_too_much(self, order: _Order) -> bool:
        """Tell whether enough commands of the flag are under way, and note it.

        A roll back is never too much.
        """
        if order.verb in FINAL:
            return False
        waiting = self._waiting[order.flag_key]
        if waiting < (
            FLAG_LOWERING_LIMIT if order.verb in ALWAYS_ACCEPTED else FLAG_COMMANDS_LIMIT
        ):
            return False
        order.why_not = (
            f"{waiting} commands of this flag wait to be carried out: send it again when they "
            f"are answered"
        )
        return True

    def _is_known(self, flag_key: str) -> bool:
        """True for a flag that may have a rollout, as far as is known without asking."""
        return (
            flag_key in self._runs
            or flag_key in self._known
            or flag_key in self._indexed
            or self._waiting[flag_key] > 0
        )

    # --- partitions -------------------------------------------------------------------------------

    async def _take_assignment(self) -> None:
        """Take over partitions that came, and stop the workers of those that went."""
        assigned = self._commands.assignment
        for partition in set(self._lanes) - assigned:
            lane = self._lanes.pop(partition)
            if lane.task is not None:
                lane.task.cancel()
            self._tools.faults.clear(Scope.PARTITION, _named(partition), reporter=_COMMANDS)
            for flag_key in [key for key in self._runs if self._home(key) == partition[1]]:
                await self._stop(flag_key)
        for partition in assigned - set(self._lanes):
            try:
                await self._take_over(partition)
            except Exception as trouble:
                if not isinstance(trouble, OperatingTrouble):
                    self._log.exception("commands_not_taken_over", partition=partition[1])
                    why = f"its commands cannot be taken over: {trouble!r}"
                    self._tools.faults.report(
                        Scope.PARTITION, _named(partition), why, reporter=_COMMANDS
                    )
                self._log.warning("commands_not_ready", partition=partition[1], error=str(trouble))

    async def _take_over(self, partition: TopicPartition) -> None:
        """Read a partition on from what is committed.

        Beyond its end that says nothing: read it all.

        Reading a command a second time is harmless: its answer is kept, and an order for an earlier
        rollout is refused.
        """
        first, end = await self._commands.bounds(partition)
        committed = await self._commands.committed(partition)
        start = first if committed is None else max(committed, first)
        is_beyond = committed is not None and committed > end
        if is_beyond:
            start = first
            self._log.error(
                "commands_committed_beyond_end",
                partition=partition[1],
                committed=committed,
                end=end,
                first=first,
            )
            await self._commands.commit({partition: first})
        self._commands.seek(partition, start)
        lane = self._lanes[partition] = _Lane(end)
        lane.task = self._spawn(
            self._answer_strangers(partition, lane), f"strangers:{partition[1]}"
        )
        if is_beyond:
            why = (
                f"offset {committed} was committed and the log ends at {end}: it was "
                f"truncated or made "
                f"anew; all its commands are read again from offset {first}"
            )
            fix = "nothing, unless commands given lately have no answer: then send them again"
            self._report_for_a_while(Scope.PARTITION, _named(partition), why, fix)
        else:
            self._tools.faults.clear(Scope.PARTITION, _named(partition), reporter=_COMMANDS)
        self._log.info("commands_taken_over", partition=partition[1], offset=start)

    async def _place_flags(self) -> None:
        """Run the flags of our partitions, and only those: others start flags, and topics grow."""
        now = self._tools.clock.monotonic()
        count = self._command_partitions()
        placed = (count, frozenset(self._lanes))
        if placed == self._placed and now - self._placed_at < PLACE_EVERY_SECONDS:
            return
        if self._placed is not None and self._placed[0] != count:
            self._log.warning("command_partitions_changed", before=self._placed[0], after=count)
            self._homes.clear()
        known = self._known_flags()
        self._known, self._placed, self._placed_at = frozenset(known), placed, now
        numbers = {number for _, number in self._lanes}
        started = 0
        for place, flag_key in enumerate(known):
            if place % 500 == 499:
                await asyncio.sleep(0)
            if self._home(flag_key) in numbers and flag_key not in self._runs:
                self._start(flag_key)
                started += 1
        for flag_key in list(self._runs):
            # A command for it that was forwarded to us is seen through first.
            if self._home(flag_key) not in numbers and not self._waiting[flag_key]:
                await self._stop(flag_key)
        if started:
            self._log.info("flags_taken_over", partitions=sorted(numbers), flags=started)

    def _home(self, flag_key: str) -> int:
        """Return a flag's partition.

        Remembered: the hash of ten thousand keys takes a tenth of a second.
        """
        home = self._homes.get(flag_key)
        if home is None:
            home = self._homes[flag_key] = self._partition_of(flag_key)
        return home

    def _hold_back(self) -> None:
        """Read no more commands than are obeyed.

        While Redis is away they wait in the topic, not here.
        """
        full = [partition for partition, lane in self._lanes.items() if lane.is_full]
        if full:
            self._idle.set()  # nothing more can come: the strangers' turn
        self._commands.pause(full)
        self._commands.resume([partition for partition in self._lanes if partition not in full])

    async def _commit_done(self) -> None:
        """Commit up to the oldest command that is still under way."""
        now = self._tools.clock.monotonic()
        if now - self._committed_at < COMMIT_EVERY_SECONDS:
            return
        offsets: dict[TopicPartition, int] = {}
        for partition, lane in self._lanes.items():
            while lane.open and self._is_over(lane):
                order = lane.open.popleft()
                lane.done_to = order.offset + 1
                if order.refusal is not None:
                    lane.untold.append(order.refusal)
            if lane.done_to is not None:
                offsets[partition] = lane.done_to
        if offsets:
            self._committed_at = now
            await self._commands.commit(offsets)
            for partition in offsets:
                lane = self._lanes[partition]
                lane.done_to, untold, lane.untold = None, lane.untold, []
                for refusal in untold:
                    refusal.order.finish()
                    self._let_refuse(refusal)

    def _is_over(self, lane: _Lane) -> bool:
        """Tell whether the oldest command may be committed."""
        oldest = lane.open[0]
        if oldest.is_done or oldest.refusal is not None:
            return True
        # It waits for its refusal alone, and would hold up all others.
        is_held_up = oldest.is_refused and self._is_refusing_in_vain
        return is_held_up and len(lane.open) >= UNCOMMITTED_LIMIT

    # --- one command ------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        assert self._group is not None
        return self._group.create_task(work, name=name)

    def _begin(self, partition: TopicPartition, lane: _Lane, order: _Order) -> None:
        """See a command through beside all others."""
        if not order.why_not:  # else it is only refused
            self._waiting[order.flag_key] += 1
            lane.busy += 1
        self._spawn(self._see_through(partition, lane, order), f"command:{order.offset}")

    async def _see_through(self, partition: TopicPartition, lane: _Lane, order: _Order) -> None:
        """Obey one command. Whatever goes wrong with it is answered, reported.

        And stops nothing else.
        """
        record = order.record
        assert record is not None
        try:
            if await self._obey(partition, lane, order, record):
                order.finish()
        except asyncio.CancelledError:
            raise
        except Exception as mistake:  # ours, in refusing: nothing is left to try, and others wait
            self._log.exception("command_given_up", partition=partition[1], offset=order.offset)
            where = f"{_named(partition)}/{order.offset}"
            why = f"it could be neither carried out nor refused: {mistake!r}"
            self._report_for_a_while(
                Scope.COMMAND, where, why, "see whether it is still wanted; send it again"
            )
            order.finish()
        finally:
            if not order.why_not:
                lane.busy -= 1
                self._waiting[order.flag_key] -= 1
                if not self._waiting[order.flag_key]:
                    del self._waiting[order.flag_key]

    async def _obey(
        self, partition: TopicPartition, lane: _Lane, order: _Order, record: Record
    ) -> bool:
        """Carry a command out, forward it, or refuse it.

        False: its refusal waits for Kafka, or its partition went and another replica reads it. A
        mistake of ours is tried twice, then refused.
        """
        event: CommandReceived | CommandUnusable
        try:
            command = self._read(record)
        except CommandRefused as fault:
            flag_key = fault.flag_key
            if order.hops == 0 and self._partition_of(flag_key) != record.partition:
                # Its flag runs elsewhere; there is no order to forward.
                self._let_refuse(_Refusal(partition, lane, order, record, fault))
                return False
            event = self._as_refused(fault)
        except BadInput as fault:
            self._let_refuse(_Refusal(partition, lane, order, record, fault))
            return False
        else:
            flag_key = command.flag_key
            if order.hops == 0 and self._partition_of(flag_key) != record.partition:
                # kcat and others partition keys in their own way, and topics grow: another
                # partition's replica runs the flag. A copy that is forwarded is not forwarded
                # again: whoever has it carries it out, because two workers of one flag are safe and
                # a command that goes round in circles is not.
                await self._forward(command.copy())
                return True
            is_backlog = record.offset < lane.end or order.hops > 0
            event = replace(command.event, is_backlog=is_backlog)
        lowers = (
            isinstance(event, CommandReceived)
            and event.verb in ALWAYS_ACCEPTED
            and not order.why_not
        )
        failure, attempts = "", 0
        while attempts < 2:
            if self._lanes.get(partition) is not lane:
                # handed over: whoever runs the flag now reads it, for it is not committed
                return False
            run = self._start(flag_key)
            if run.standing_still and (
                attempts or not lowers
            ):  # what lowers has it loaded once more
                failure = run.standing_still
                break
            try:
                if order.why_not and isinstance(event, CommandReceived):
                    await run.worker.refuse(event, order.why_not)
                else:
                    await run.worker.submit(event)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                continue  # its worker was stopped: look who has the flag now
            except (
                Exception
            ) as mistake:  # a worker's own failure, which it reported and restarts from
                attempts += 1
                failure = f"the controller failed on this command: {mistake!r}"
                self._log.exception("command_failed", flag_key=flag_key, attempt=attempts)
            else:
                return True
        # We cannot carry it out, though it says nothing wrong.
        self._report_for_a_while(
            Scope.COMMAND, event.command_id, f"{flag_key}: {failure}", _SEND_AGAIN
        )
        refused = CommandRefused(
            command_id=event.command_id, flag_key=flag_key, verb=event.verb, reason=failure
        )
        refusal = _Refusal(partition, lane, order, record, refused)
        if lowers:
            self._let_refuse(refusal)
        else:
            order.record, order.refusal = None, refusal
        return False

    def _read(self, record: Record) -> ReadCommand:
        """Return the command in a record. Raises BadInput, also for one that we fail on."""
        try:
            return self._read_command(record)
        except BadInput:
            raise
        except Exception as mistake:  # ours: this record alone is refused by it
            self._log.exception(
                "command_not_read", partition=record.partition, offset=record.offset
            )
            why = f"the controller failed on this command: {mistake!r}"
            name = f"{record.topic}/{record.partition}/{record.offset}"
            self._report_for_a_while(Scope.COMMAND, name, why, _SEND_AGAIN)
            raise CommandUnreadable(QuarantineReason.INVALID, why[:500]) from mistake

    def _as_refused(self, fault: CommandRefused) -> CommandUnusable:
        """Return the event by which the flag's worker answers it.

        Saved, so that a repeat gets the same.
        """
        return CommandUnusable(fault.command_id, fault.verb, fault.reason)

    def _count_refused(self, verb: CommandVerb | None) -> None:
        self._tools.metrics.commands.of(verb or UNKNOWN_VERB, CommandStatus.REJECTED).inc()

    # --- commands of flags that do not exist ------------------------------------------------------

    def _let_wait(self, lane: _Lane, order: _Order) -> None:
        assert order.record is not None
        lane.strangers.append(order)
        lane.stranger_bytes += len(order.record.value or b"")
        lane.arrived.set()

    async def _answer_strangers(self, partition: TopicPartition, lane: _Lane) -> None:
        """Answer commands of flags that do not exist, once all others are read.

        A start makes one exist.

        They leave nothing behind: no worker, nothing in the store. Their answer follows from the
        record alone, so that one that is read again after a crash gets the same.
        """
        while True:
            if not lane.strangers:
                lane.arrived.clear()
                await lane.arrived.wait()
            if not lane.has_enough_strangers:
                await self._idle.wait()
            if self._has_enough_refusals and not self._is_refusing_in_vain:
                await asyncio.sleep(LOOK_AT_MOST_EVERY_SECONDS)  # Kafka takes its time
                continue
            try:
                newest = lane.strangers[min(len(lane.strangers), STRANGERS_AT_ONCE) - 1].fetched_at
                if self._indexed_at <= newest:
                    asked_at = self._tools.clock.monotonic()
                    self._indexed = frozenset(await self._tools.rollouts.flag_keys())
                    self._indexed_at = asked_at
                await self._answer_some(partition, lane)
            except OperatingTrouble as trouble:
                self._log.warning("commands_wait", partition=partition[1], error=str(trouble))
                await asyncio.sleep(LOOK_EVERY_SECONDS)
            except Exception as mistake:  # ours; those it met are given up, see `_answer_some`
                self._log.exception("strangers_failed", partition=partition[1])
                why = f"commands of flags that do not exist could not be refused: {mistake!r}"
                self._report_for_a_while(Scope.PARTITION, _named(partition), why, _SEND_AGAIN)
                await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def _answer_some(self, partition: TopicPartition, lane: _Lane) -> None:
        """Answer the oldest strangers together."""
        for number in range(min(len(lane.strangers), STRANGERS_AT_ONCE)):
            if number % READ_AT_ONCE == READ_AT_ONCE - 1:
                await asyncio.sleep(0)
            order = lane.strangers[0]
            assert order.record is not None
            flag_key = order.flag_key
            fault = self._why_not(order, order.record)
            if fault is None and not order.why_not:
                self._is_too_much(order)
            lane.strangers.popleft()
            lane.stranger_bytes -= len(order.record.value or b"")
            if order.is_queued:
                lane.queued[flag_key] -= 1
                if not lane.queued[flag_key]:
                    del lane.queued[flag_key]
            if fault is None:
                self._begin(partition, lane, order)
            else:
                self._let_refuse(_Refusal(partition, lane, order, order.record, fault))

    def _why_not(self, order: _Order, record: Record) -> BadInput | None:
        """Return why a command is refused here and now; None when a worker has to see it.

        The worker also answers what is too much, and keeps that answer: read again by the next
        owner, the command must not be carried out after all.
        """
        if not order.why_not and self._is_known(order.flag_key):
            return None
        try:
            command = self._read(record)
        except CommandRefused as fault:
            if order.why_not or not self._is_known(fault.flag_key):
                return fault
            order.flag_key = fault.flag_key
            return None
        except BadInput as fault:
            return fault
        event = command.event
        order.flag_key = command.flag_key
        if order.why_not or self._is_known(command.flag_key):
            return None
        after, effects = decide(None, event, self._tools.clock.now())
        if after is not None:
            return None
        reason = next(effect.reason for effect in effects if isinstance(effect, AnswerCommand))
        return CommandRefused(
            command_id=event.command_id, flag_key=command.flag_key, verb=event.verb, reason=reason
        )

    # --- refusals ---------------------------------------------------------------------------------

    @property
    def _is_refusing_in_vain(self) -> bool:
        """True once Kafka has taken no refusal for some time."""
        since = self._refusing_since
        return since is not None and self._tools.clock.monotonic() - since >= REFUSALS_AWAY_SECONDS

    def _let_refuse(self, refusal: _Refusal) -> None:
        """Let a command be refused once Kafka takes it.

        It is committed then, and holds up nothing until then.
        """
        refusal.order.record, refusal.order.is_refused = None, True
        self._refusals.append(refusal)
        self._refusal_bytes += refusal.size
        while self._has_enough_refusals and self._is_refusing_in_vain:
            self._give_up(self._next_refusal())
        self._refused.set()

    @property
    def _has_enough_refusals(self) -> bool:
        """True when no more may wait while Kafka takes its time."""
        return len(self._refusals) >= REFUSALS_LIMIT or self._refusal_bytes >= REFUSALS_BYTES

    def _next_refusal(self) -> _Refusal:
        refusal = self._refusals.popleft()
        self._refusal_bytes -= refusal.size
        return refusal

    def _give_up(self, refusal: _Refusal) -> None:
        refusal.order.finish()
        self._given_up += 1
        if self._given_up % 1000 == 1:
            where = _named(refusal.partition)
            self._log.error(
                "command_refusals_dropped",
                partition=where,
                offset=refusal.order.offset,
                in_all=self._given_up,
            )
            why = (
                f"{self._given_up:,} refused commands got no answer in all: Kafka took none "
                f"for too long"
            )
            self._report_for_a_while(Scope.PARTITION, where, why, _SEND_AGAIN)

    async def _send_refusals(self) -> None:
        """Tell Kafka what is refused, for ever.

        What a crash leaves is not committed, and read again.
        """
        while True:
            if not self._refusals:
                self._refused.clear()
                await self._refused.wait()
            batch = [
                self._next_refusal() for _ in range(min(len(self._refusals), STRANGERS_AT_ONCE))
            ]
            # Of a partition that went, another replica answers what is not committed.
            batch = [
                one
                for one in batch
                if one.order.is_done or self._lanes.get(one.partition) is one.lane
            ]
            if self._refusing_since is None:
                self._refusing_since = self._tools.clock.monotonic()
            try:
                await self._refuse_all([(one.record, one.fault) for one in batch])
            except OperatingTrouble as trouble:
                self._log.warning("refusals_wait", error=str(trouble))
                self._refusals.extendleft(reversed(batch))
                self._refusal_bytes += sum(one.size for one in batch)
                await asyncio.sleep(LOOK_EVERY_SECONDS)
                continue
            self._refusing_since = None
            for one in batch:
                one.order.finish()
                self._count_refused(
                    one.fault.verb if isinstance(one.fault, CommandRefused) else None
                )

    async def _refuse_all(self, refused: Sequence[tuple[Record, BadInput]]) -> None:
        """Refuse many together; one that we fail on costs no other its answer."""
        if not refused:
            return
        try:
            await self._refuse(refused)
        except OperatingTrouble:
            raise
        except Exception as mistake:  # ours
            if len(refused) > 1:
                for one in refused:
                    await self._refuse_all([one])
                return
            record = refused[0][0]
            self._log.exception(
                "command_given_up", partition=record.partition, offset=record.offset
            )
            name = f"{record.topic}/{record.partition}/{record.offset}"
            why = f"it could not even be refused: {mistake!r}"
            self._report_for_a_while(Scope.COMMAND, name, why, _SEND_AGAIN)

    # --- totals -----------------------------------------------------------------------------------

    async def _look_at_totals(self) -> None:
        """Read the totals of all live rollouts, and give each worker what is new.

        Or a second old.
        """
        clock = self._tools.clock
        pause = LOOK_AT_MOST_EVERY_SECONDS
        while True:
            await asyncio.sleep(pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(LOOK_EVERY_SECONDS - pause, 0)):
                    await self._counted.wait()
            self._counted.clear()
            began = clock.monotonic()
            try:
                await self._look()
                self._tools.faults.clear(Scope.PART, "totals")
            except OperatingTrouble as trouble:
                self._log.warning("totals_unavailable", error=str(trouble))
            except Exception as mistake:  # ours: the next look must come
                self._log.exception("look_failed")
                why = f"totals could not be looked at: {mistake!r}"
                self._tools.faults.report(Scope.PART, "totals", why)
            self._forgive()
            took = clock.monotonic() - began
            pause = max(LOOK_AT_MOST_EVERY_SECONDS, took * (1 / LOOK_TIME_SHARE - 1))

    async def _look(self) -> None:
        live = self.rollouts
        wanted = {
            key: (rollout.rollout_id, range(max(len(rollout.visits) - 2, 0), len(rollout.visits)))
            for key, rollout in live.items()
            if rollout.stage_index is not None
        }
        for flag_key in self._watched.keys() - live.keys():
            del self._watched[flag_key]
        for flag_key in self._unseen - wanted.keys():
            self._unseen.discard(flag_key)
            self._tools.faults.clear(Scope.FLAG, flag_key, reporter=_LOOKING)
        if not wanted:
            return
        keys = self._event_partitions()
        try:
            totals, progress = await self._totals.read(keys, wanted)
        except OperatingTrouble:
            raise
        except (
            Exception
        ) as mistake:  # one flag's totals, perhaps: the others must not be blinded by it
            self._log.warning("totals_unreadable", error=repr(mistake))
            for flag_key, visits in wanted.items():
                await self._look_at_one(flag_key, live[flag_key], keys, visits)
            return
        for flag_key in wanted:
            self._look_at(flag_key, live[flag_key], totals.get(flag_key, {}), progress)

    async def _look_at_one(
        self,
        flag_key: str,
        rollout: Rollout,
        keys: Sequence[str],
        visits: tuple[str, Sequence[int]],
    ) -> None:
        """Read one flag's totals alone, because those of all could not be read."""
        try:
            totals, progress = await self._totals.read(keys, {flag_key: visits})
        except OperatingTrouble:
            raise
        except Exception as mistake:  # this flag's alone
            self._report_unseen(flag_key, mistake)
        else:
            self._look_at(flag_key, rollout, totals.get(flag_key, {}), progress)

    def _look_at(
        self,
        flag_key: str,
        rollout: Rollout,
        visits: Mapping[int, VisitTotals],
        progress: Sequence[PartitionProgress],
    ) -> None:
        """Show a flag's worker its totals, unless it has seen them within the last second."""
        now = self._tools.clock.monotonic()
        seen, seen_at = self._last_seen.get(flag_key, (None, 0.0))
        if visits == seen and now - seen_at < LOOK_EVERY_SECONDS:
            return
        try:
            self._show(flag_key, rollout, visits, progress)
        except Exception as mistake:  # of what is shown with it; other flags are looked at
            self._report_unseen(flag_key, mistake)
            return
        self._last_seen[flag_key] = (visits, now)
        if flag_key in self._unseen:
            self._unseen.discard(flag_key)
            self._tools.faults.clear(Scope.FLAG, flag_key, reporter=_LOOKING)

    def _report_unseen(self, flag_key: str, mistake: Exception) -> None:
        if flag_key not in self._runs:
            return  # handed over while its totals were read
        if flag_key not in self._unseen:
            self._log.error("evidence_not_shown", flag_key=flag_key, error=repr(mistake))
        self._unseen.add(flag_key)
        why = f"its totals cannot be read, so its guardrails are blind: {mistake!r}"
        fix = f"rolloutctl pause {flag_key}, or roll it back, until they can"
        self._tools.faults.report(Scope.FLAG, flag_key, why, fix, reporter=_LOOKING)

    def _show(
        self,
        flag_key: str,
        rollout: Rollout,
        visits: Mapping[int, VisitTotals],
        progress: Sequence[PartitionProgress],
    ) -> None:
        run = self._runs.get(flag_key)
        if run is not None:
            drift = self._actuation_drift(rollout)
            now, expected = self._tools.clock.now(), len(self._event_partitions())
            evidence = Evidence(now, visits, tuple(progress), expected, drift)
            run.worker.see(rollout.rollout_id, evidence)
            self._watched[flag_key] = (evidence, self._tools.clock.monotonic())

    # --- starting and stopping --------------------------------------------------------------------

    def _start(self, flag_key: str) -> _Run:
        run = self._runs.get(flag_key)
        if run is None:
            run = self._runs[flag_key] = _Run(FlagWorker(flag_key, self._tools))
            run.task = self._spawn(self._keep_running(flag_key, run), f"worker:{flag_key}")
        return run

    async def _stop(self, flag_key: str) -> None:
        run = self._runs.pop(flag_key)
        self._last_seen.pop(flag_key, None)
        self._watched.pop(flag_key, None)
        if run.task is not None:
            run.task.cancel()
            await asyncio.wait([run.task])
        run.worker.abandon()
        self._clear_faults(flag_key)
        self._released(flag_key)

    def _clear_faults(self, flag_key: str) -> None:
        """Clear what was reported of a flag that runs here no more.

        Its next owner sees for itself.
        """
        self._unseen.discard(flag_key)
        self._broken.pop(flag_key, None)
        for reporter in (_LOOKING, _WORKER):
            self._tools.faults.clear(Scope.FLAG, flag_key, reporter=reporter)

    async def _keep_running(self, flag_key: str, run: _Run) -> None:
        """Run a worker. When it fails, its flag is reported and taken up again from what is stored."""
        clock = self._tools.clock
        while True:
            mistake: BaseException | None = None
            run.worker.urgent.clear()
            try:
                await run.worker.run()
            except Exception as failure:  # the worker's edge: stopped, reported, and restarted
                mistake = _cause(failure)
            now = clock.monotonic()
            is_new_row = run.failed_at is None or now - run.failed_at > NEW_ROW_SECONDS
            run.failures = 1 if is_new_row else run.failures + 1
            run.is_alerted = run.is_alerted and not is_new_row
            run.failed_at, run.restarted_at = now, None
            wait = min(
                WORKER_RESTART_SECONDS * 2.0 ** min(run.failures - 1, 10), LONGEST_RESTART_SECONDS
            )
            why = "its worker ended" if mistake is None else repr(mistake)
            self._broken[flag_key] = why
            fix = "report it with the log; roll the flag back if it cannot wait"
            if isinstance(mistake, DocumentUnreadable):
                why = str(mistake)
                fix = f"rolloutd repair flag {flag_key}, or run the release that wrote it"
                run.standing_still = f"{why}; fix: {fix}"
                run.worker.let_go(CommandsNotHeard(run.standing_still))
            stopped = f"its worker stopped: {why}"
            self._tools.faults.report(Scope.FLAG, flag_key, stopped, fix, reporter=_WORKER)
            self._log.error(
                "worker_stopped",
                flag_key=flag_key,
                error=why,
                failures=run.failures,
                restart_seconds=wait,
                exc_info=mistake,
            )
            await self._alert_once(flag_key, run, why, fix)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await run.worker.urgent.wait()
            run.worker.has_failed = True
            self._broken.pop(flag_key, None)
            run.standing_still, run.restarted_at = "", clock.monotonic()

    async def _alert_once(self, flag_key: str, run: _Run, why: str, fix: str) -> None:
        """Alert that a flag has nobody to watch it.

        Once in a row of failures, past its own outbox.
        """
        rollout = run.worker.rollout or self._tools.newest_known(flag_key)
        if run.is_alerted or rollout is None:
            return
        key = f"{flag_key}/{rollout.rollout_id}/{len(rollout.visits)}/{AlertKind.FLAG_BROKEN}"
        alert = RaiseAlert(
            AlertKind.FLAG_BROKEN,
            Severity.CRITICAL,
            f"{flag_key} stands at {rollout.served_words} and nobody watches it: {why}",
            fix,
            key,
        )
        now = self._tools.clock.now()
        try:
            entry = self._tools.encode(alert, flag_key, rollout, f"{key}/{now.isoformat()}", now)
            async with asyncio.timeout(ALERT_SECONDS):
                await self._tools.publisher.publish([entry])
        except Exception as trouble:  # Kafka's or ours: the next failure tries again
            self._log.warning("alert_not_published", flag_key=flag_key, error=repr(trouble))
        else:
            run.is_alerted = True

    # --- faults -----------------------------------------------------------------------------------

    def _forgive(self) -> None:
        """Clear the fault of each worker that runs again."""
        now = self._tools.clock.monotonic()
        for flag_key, run in self._runs.items():
            if run.restarted_at is not None and now - run.restarted_at >= STEADY_SECONDS:
                run.restarted_at = None
                run.worker.has_failed = False
                self._tools.faults.clear(Scope.FLAG, flag_key, reporter=_WORKER)

    def _report_for_a_while(self, scope: Scope, name: str, why: str, fix: str) -> None:
        """Report what is over already: shown for an hour."""
        self._tools.faults.report(scope, name, why, fix, reporter=_COMMANDS)
        self._shown.pop((scope, name), None)
        self._shown[scope, name] = self._tools.clock.monotonic() + SHOWN_SECONDS
        if len(self._shown) > 10 * self._tools.faults.MOST_PER_SCOPE:
            self._tools.faults.clear(*self._forget_oldest(), reporter=_COMMANDS)

    def _forget_oldest(self) -> tuple[Scope, str]:
        oldest = next(iter(self._shown))
        del self._shown[oldest]
        return oldest

    def _forget_shown(self) -> None:
        now = self._tools.clock.monotonic()
        while self._shown and next(iter(self._shown.values())) <= now:
            self._tools.faults.clear(*self._forget_oldest(), reporter=_COMMANDS)


class CommandsNotHeard(Exception):
    """A flag stands still: what waits for its worker waits in vain."""


#: Who reports a fault, and alone clears it.
_COMMANDS = "commands"
_LOOKING = "looking"
_WORKER = "worker"
_SEND_AGAIN = "send it again in another form; report this with the log if it goes on"


def _named(partition: TopicPartition) -> str:
    return f"{partition[0]}/{partition[1]}"


def _cause(failure: BaseException) -> BaseException:
    """Return the one exception in a task group's, or the group where there are more."""
    while isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
        failure = failure.exceptions[0]
    return failure
