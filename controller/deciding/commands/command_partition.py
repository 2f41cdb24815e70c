"""The commands of one owned partition of the command topic, from fetching to committing.

What waits, and what it may cost:

| what                              | where                        | bound                        |
|-----------------------------------|------------------------------|------------------------------|
| commands of flags that exist      | with their worker            | `FLAG_COMMANDS_LIMIT` a flag,|
|                                   |                              | `OPEN_COMMANDS_LIMIT` a      |
|                                   |                              | partition                    |
| all others, and those beyond that | `CommandPartition.unknown`   | `UNKNOWN_LIMIT` and          |
|                                   |                              | `UNKNOWN_BYTES` a partition  |
| refusals that a worker stores     | with their worker            | `STORED_REFUSALS_LIMIT` a    |
|                                   |                              | flag; others are not stored  |
| refusals that Kafka has to take   | `command_refusals.py`        | `REFUSALS_LIMIT` and         |
|                                   |                              | `REFUSALS_BYTES`; beyond it  |
|                                   |                              | the oldest are dropped while |
|                                   |                              | Kafka is away                |
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field

from controller.errors import BadInput, without_history
from controller.ports import Record, TopicPartition
from schemas.terms import ALWAYS_ACCEPTED, FINAL, CommandVerb

#: Commands of flags that exist, being handled, in one partition. Beyond it no more are read.
OPEN_COMMANDS_LIMIT = 1000
#: Commands in one partition that are read and not committed, those that are done included.
UNCOMMITTED_LIMIT = 50_000
#: Commands of one flag being handled. Beyond the first, those that do not lower are refused; beyond
#: the second, all: the two hundred before them already request 0 % or a pause.
FLAG_COMMANDS_LIMIT = 100
FLAG_LOWERING_LIMIT = 200
#: Refusals of one flag that its worker stores one by one, so that a repeat gets the same answer.
#: Those beyond are committed first, and then refused without the store, which takes 10 ms for each.
STORED_REFUSALS_LIMIT = 200
#: Commands of flags that do not exist: all other commands come before them.
UNKNOWN_LIMIT = 30_000
UNKNOWN_BYTES = 16 * 1024 * 1024


@dataclass(slots=True, eq=False)
class PendingCommand:
    """One record of the command topic, until its offset is committed."""

    partition: CommandPartition
    offset: int
    record: Record | None  # None once it is done
    flag_key: str  # "": not known before the record is read
    verb: CommandVerb | None
    hops: int  # how often it was forwarded
    fetched_at: float  # monotonic seconds
    why_not: str = ""  # why it is refused without being handled
    is_queued: bool = False  # later commands of its flag wait behind it
    is_refused: bool = False  # only Kafka has still to take its refusal
    is_done: bool = False
    #: Sent once the offset is committed: the next owner must not carry out what was refused.
    refusal: RefusedCommand | None = None

    def finish(self) -> None:
        """Let the offset be committed."""
        self.record, self.is_done = None, True

    @property
    def lowers(self) -> bool:
        """True for a verb that lowers the percentage or keeps it."""
        return self.verb in ALWAYS_ACCEPTED


@dataclass(frozen=True, slots=True)
class RefusedCommand:
    """A command that is not carried out, until Kafka has the reason."""

    command: PendingCommand
    record: Record
    fault: BadInput

    def __post_init__(self) -> None:
        # Thousands may wait. The frames of a traceback keep everything that was read, and a
        # collection of garbage has to walk through them: 200 MB and half a second for 20,000.
        without_history(self.fault)

    @property
    def size(self) -> int:
        """Bytes of the record's value."""
        return len(self.record.value or b"")


@dataclass(slots=True, eq=False)
class CommandPartition:
    """One owned partition, oldest command first, so that commits never pass an open one."""

    key: TopicPartition
    end: int  # of the log when it was taken over; what lies before may be read a second time
    open: deque[PendingCommand] = field(default_factory=deque)
    handled: int = 0  # commands of flags that exist, being handled
    unknown: deque[PendingCommand] = field(default_factory=deque)  # commands that wait
    queued: Counter[str] = field(default_factory=Counter)  # of them by flag: later ones wait too
    unknown_bytes: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    done_to: int | None = None  # offset to commit
    unsent_refusals: list[RefusedCommand] = field(
        default_factory=list
    )  # of commands before `done_to`
    task: asyncio.Task[None] | None = None  # answers those in `unknown`
    is_gone: bool = False  # another replica owns it; what is not committed is read there

    @property
    def name(self) -> str:
        """The partition as faults and logs name it."""
        topic, number = self.key
        return f"{topic}/{number}"

    @property
    def number(self) -> int:
        """The partition's number."""
        return self.key[1]

    @property
    def has_enough_unknown(self) -> bool:
        """True when no more commands may wait in `unknown`."""
        return len(self.unknown) >= UNKNOWN_LIMIT or self.unknown_bytes >= UNKNOWN_BYTES

    @property
    def is_full(self) -> bool:
        """True when no more commands are to be read for now."""
        is_busy = self.handled >= OPEN_COMMANDS_LIMIT or len(self.open) >= UNCOMMITTED_LIMIT
        return is_busy or self.has_enough_unknown

    def wait_as_unknown(self, command: PendingCommand) -> None:
        """Let a command wait until all that matter more are read."""
        assert command.record is not None
        self.unknown.append(command)
        self.unknown_bytes += len(command.record.value or b"")
        self.arrived.set()

    def take_unknown(self) -> PendingCommand:
        """Remove and return the oldest command that waits."""
        command = self.unknown.popleft()
        assert command.record is not None
        self.unknown_bytes -= len(command.record.value or b"")
        return command

    def hold_followers(self, command: PendingCommand) -> None:
        """Let later commands of this command's flag wait behind it."""
        self.queued[command.flag_key] += 1
        command.is_queued = True

    def free_followers(self, command: PendingCommand, flag_key: str) -> None:
        """Undo `hold_followers`; `flag_key` is the flag as it was then."""
        if command.is_queued:
            self.queued[flag_key] -= 1
            if not self.queued[flag_key]:
                del self.queued[flag_key]


class OpenCommands:
    """How many commands of each flag are being handled here."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    def __getitem__(self, flag_key: str) -> int:
        """Return the number of one flag, 0 for none."""
        return self._counts[flag_key]

    def __len__(self) -> int:
        """Return how many flags have any."""
        return len(self._counts)

    def begin(self, command: PendingCommand) -> None:
        """Count a command; one that is only refused among the refusals."""
        if command.why_not:
            self._refused[command.flag_key] += 1
        else:
            self._counts[command.flag_key] += 1
            command.partition.handled += 1

    def end(self, command: PendingCommand) -> None:
        """Undo `begin`."""
        counts = self._refused if command.why_not else self._counts
        counts[command.flag_key] -= 1
        if not counts[command.flag_key]:
            del counts[command.flag_key]
        if not command.why_not:
            command.partition.handled -= 1

    def clear(self) -> None:
        """Forget all counts."""
        self._counts.clear()
        self._refused.clear()

    def has_enough_refusals(self, flag_key: str) -> bool:
        """Return whether as many refusals of a flag as may be stored wait for its worker."""
        return self._refused[flag_key] >= STORED_REFUSALS_LIMIT

    def refuse_excess(self, command: PendingCommand) -> bool:
        """Return whether too many commands of the flag are being handled, and note the reason.

        A roll back is never too much.
        """
        if command.verb in FINAL:
            return False
        waiting = self._counts[command.flag_key]
        if waiting < (FLAG_LOWERING_LIMIT if command.lowers else FLAG_COMMANDS_LIMIT):
            return False
        command.why_not = (
            f"{waiting} commands of this flag wait to be carried out: send it again when they "
            f"are answered"
        )
        return True
