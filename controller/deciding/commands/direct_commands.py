"""Carries out commands that lower and that did not come through Kafka, on whichever replica.

The replica that is asked may not run the flag. It then starts a worker of its own for it, a guest:
every save is a compare-and-set, so two workers of one flag are safe, and a decision that is saved
is published by whichever worker finds it in the outbox. A guest ends once nothing waits for it.

Belongs here: which worker carries a command out, and what happens while Redis is away. Does not
belong here: who may give such commands (`controller/web/steering.py`), and how other replicas learn
what was decided (`controller/running/decision_relay.py`). See `ops/decisions/0017-emergency.md`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

import structlog

from controller.cancellation import is_cancelled, task_group
from controller.codec.commands import result_in, to_command_received
from controller.codec.waiting_commands import WaitingCommand
from controller.core.effects import AnswerCommand
from controller.core.events import CommandReceived
from controller.core.machine import decide
from controller.core.rollout import Rollout
from controller.core.serving import serving
from controller.deciding.commands.waiting_commands import (
    KeptCommands,
    WaitingCommands,
    command_key,
)
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.flag.command_answers import answer_keys
from controller.deciding.flag.flag_worker import FlagWorker
from controller.deciding.worker_pool import WorkerPool
from controller.errors import DocumentUnreadable, OperatingTrouble, StoreUnavailable
from controller.health import Scope
from controller.retrying import until_done
from schemas.command import Command
from schemas.result import Result
from schemas.terms import FINAL, CommandStatus

#: A save takes milliseconds. After so long Redis does not answer, and the issuer is told so.
ANSWER_SECONDS: Final = 3.0
#: Commands that may wait at once, and workers for flags of other replicas.
MOST_OPEN: Final = 100
MOST_GUESTS: Final = 100
#: How often a worker that fails on a command gets it, before the command is refused.
ATTEMPTS: Final = 2
CHECK_EVERY_SECONDS: Final = 0.5
#: The reporter of flags that are lowered on this replica alone, which alone clears them.
UNSAVED: Final = "unsaved"
_UNSAVED_FIX: Final = (
    "restore Redis or free its memory, and keep this process alive until then; ask each other "
    "replica, and lower the flag in its flag planes"
)
#: What an issuer is told while Redis is away.
SERVED_HERE: Final = "this replica serves 0 % already, and no other replica knows it"
NOTHING_CHANGED: Final = "nothing has changed yet"
KEPT: Final = "also after a restart of this replica"
NOT_KEPT: Final = "unless this process ends before that"
WAITING_ADVICE: Final = (
    "Ask each other replica too, lower the flag in its flag planes, and repeat this with the same "
    "id when Redis is back."
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TakenCommand:
    """A command that was taken, and the rollout that it is for."""

    meant: WaitingCommand
    task: asyncio.Task[Result]


@dataclass(slots=True, eq=False)
class Guest:
    """A worker of a flag that another replica runs, or nobody."""

    worker: FlagWorker
    task: asyncio.Task[None] | None = None


class Unsaved(Protocol):
    """Serves what is not saved yet; `web/flags.py`. Both return at once."""

    def lower_unsaved(self, rollout: Rollout) -> None:
        """Serve a lower percentage on this replica until `end_unsaved`."""

    def end_unsaved(self, flag_key: str, decided: Rollout | None) -> None:
        """Serve what was decided: no command waits for Redis any longer."""


class DirectCommands:
    """Implements `controller.web.steering.Steering`. Usable while `run` runs."""

    def __init__(
        self,
        pool: WorkerPool,
        dependencies: WorkerDependencies,
        *,
        why_not_ours: Callable[[], Awaitable[str | None]],
        unsaved: Unsaved,
        served: Callable[[str], Rollout | None] = lambda _: None,
        kept: KeptCommands | None = None,
    ) -> None:
        """`why_not_ours` returns why Redis may not be this environment's, None when it is.

        `unsaved` serves a lower percentage on this replica, and nowhere else. `served` returns the
        rollout that is served here of a flag, also one that is only remembered from before a
        restart. `kept` is where commands that wait outlive the process.
        """
        self._pool = pool
        self._dependencies = dependencies
        self._why_not_ours = why_not_ours
        self._unsaved = unsaved
        self._guests: dict[str, Guest] = {}
        self._open: dict[tuple[str, str, str], TakenCommand] = {}  # flag, verb, id
        self._group: asyncio.TaskGroup | None = None
        self._served = served
        self._waiting = WaitingCommands(kept, dependencies.faults)

    async def run(self) -> None:
        """Carry out what `carry_out` takes, until cancelled."""
        try:
            async with task_group() as group:
                self._group = group
                for waiting in await self._waiting.restore():
                    if command_key(waiting.command) not in self._open:
                        self._begin(waiting, _read_again(waiting))
                while True:
                    await asyncio.sleep(CHECK_EVERY_SECONDS)
                    self._lower_again()
                    for flag_key, guest in list(self._guests.items()):
                        if self._is_idle(flag_key, guest):
                            await self._dismiss(flag_key, guest)
        finally:
            self._group = None
            for flag_key, guest in list(self._guests.items()):
                self._leave(flag_key, guest)

    def follow(self, newest: Rollout) -> None:
        """Let the flag's worker here go on from a newer document, whichever way it came.

        Otherwise it would go on from its own, and set the flag planes back to it. A listener of
        the registry.
        """
        worker = self._worker(newest.flag_key)
        if worker is None:
            return
        if worker.rollout is None or worker.rollout.revision < newest.revision:
            worker.poke()

    # --- a command ---

    async def carry_out(self, command: Command) -> Result | str:
        """Carry a command out that lowers or pauses, within `ANSWER_SECONDS`.

        Returns its result; while Redis is away, what that means for a command that waits.
        Raises OperatingTrouble when it was not taken, and nothing was done.
        """
        if self._group is None:
            raise OperatingTrouble("this replica is starting or stopping: ask another, or again")
        deadline = asyncio.get_running_loop().time() + ANSWER_SECONDS
        taken = self._open.get(command_key(command))
        if taken is None:
            if len(self._open) >= MOST_OPEN:
                raise OperatingTrouble(f"{len(self._open)} commands wait for Redis already")
            rollout_id = await self._rollout_id(command.flag)
            if rollout_id is None:
                return self._rejected_unknown(command)
            meant = WaitingCommand(command, rollout_id)
            taken = self._open.get(command_key(command)) or self._begin(meant, meant.event)
        task, meant = taken.task, taken.meant
        left = deadline - asyncio.get_running_loop().time()
        await asyncio.wait({task}, timeout=max(left, 0.0))
        if task.done():
            return task.result()
        is_served = self._lower_here(meant)  # a repeat may come after another rollout began
        is_kept = await self._waiting.add(meant)
        if task.done():  # Redis came back meanwhile
            await self._waiting.remove(command)
            return task.result()
        here = SERVED_HERE if is_served else NOTHING_CHANGED
        return (
            f"Redis has not saved it, because it is away or refuses writes: {here}. It is saved "
            f"once Redis takes it, {KEPT if is_kept else NOT_KEPT}. {WAITING_ADVICE}"
        )

    async def restored(self) -> None:
        """Return once it is known which commands waited when the process before this one ended."""
        await self._waiting.restored.wait()

    @property
    def waiting(self) -> Sequence[WaitingCommand]:
        """The commands that wait for Redis."""
        return self._waiting.commands

    def lowered(self, remembered: Rollout) -> Rollout:
        """Return what is to be served of a rollout that was remembered over a restart.

        A command that waits lowers it, so that a restart does not bring back what it took away.
        """
        now = self._dependencies.clock.now()
        for waiting in self.waiting:
            if waiting.is_for(remembered) and waiting.command.verb in FINAL:
                after, _ = decide(remembered, _read_again(waiting), now)
                if after is not None and serving(after).is_off:
                    return after
        return remembered

    def _lower_again(self) -> None:
        """Serve 0 % for commands that wait, where more is served: their flag was known later."""
        for waiting in self.waiting:
            served = self._served(waiting.command.flag)
            is_on = served is not None and not serving(served).is_off
            if is_on:
                self._lower_here(waiting)

    def _begin(self, meant: WaitingCommand, event: CommandReceived) -> TakenCommand:
        """Begin with a command; whoever repeats it meanwhile waits for the same answer."""
        if self._group is None:
            raise OperatingTrouble("this replica is stopping: ask another")
        command, key = meant.command, command_key(meant.command)
        work = self._carry_out(command, event)
        task = self._group.create_task(work, name=f"direct:{command.flag}")
        taken = self._open[key] = TakenCommand(meant, task)
        task.add_done_callback(lambda _: self._open.pop(key, None))
        log.warning(
            "direct_command_taken",
            flag_key=command.flag,
            command_id=command.id,
            verb=command.verb,
            issuer=command.issuer,
        )
        return taken

    async def _rollout_id(self, flag_key: str) -> str | None:
        """Return the id of a flag's present rollout, empty where it is not known; None: no rollout.

        What Redis has counts: another replica may have begun a rollout that is not known here.
        Raises OperatingTrouble where nobody can say. A worker of a flag that does not exist would
        store its refusals.
        """
        known = self._newest(flag_key)
        try:
            async with asyncio.timeout(ANSWER_SECONDS / 2):
                if (why := await self._why_not_ours()) is not None:
                    raise OperatingTrouble(why)
                stored = await self._dependencies.rollouts.load(flag_key)
        except (TimeoutError, StoreUnavailable) as trouble:
            if known is not None:
                return known.rollout_id  # lowered here; saved once Redis is known to be ours
            if isinstance(trouble, StoreUnavailable):
                raise
            raise StoreUnavailable(
                f"Redis gave no answer within {ANSWER_SECONDS / 2:g} s"
            ) from None
        except DocumentUnreadable:
            return "" if known is None else known.rollout_id
        if (newest := stored.rollout or known) is not None:
            return newest.rollout_id
        return "" if stored.trouble or flag_key in self._pool else None

    def _rejected_unknown(self, command: Command) -> Result:
        """Return the refusal of a command for a flag without a rollout; nothing is stored."""
        event = to_command_received(command)
        _, effects = decide(None, event, self._dependencies.clock.now())
        reason = next(effect.reason for effect in effects if isinstance(effect, AnswerCommand))
        return self._rejected(command, reason)

    async def _carry_out(self, command: Command, event: CommandReceived) -> Result:
        """Return the answer to a command, however long Redis is away."""
        try:
            result = await self._saved(command, event)
        except Exception as mistake:  # ours: it must not end the others
            log.exception("direct_command_failed", flag_key=command.flag)
            result = self._rejected(command, f"the controller failed on this command: {mistake!r}")
        finally:
            flag_key = command.flag
            self._dependencies.faults.clear(Scope.FLAG, flag_key, reporter=UNSAVED)
        await self._waiting.remove(command)
        others = [
            key for key in self._open if key[0] == command.flag and key != command_key(command)
        ]
        if not others:
            newest = self._dependencies.registry.newest(command.flag)
            self._unsaved.end_unsaved(command.flag, newest)
        return result

    async def _saved(self, command: Command, event: CommandReceived) -> Result:
        """Return the answer of a worker to a command, once Redis is ours and has it."""
        why_not = await until_done(
            self._why_not_ours,
            trouble=StoreUnavailable,
            backoff=self._dependencies.backoff,
            report=lambda trouble, _: log.warning("direct_command_waits", error=str(trouble)),
        )
        if why_not is not None:
            return self._rejected(command, why_not)
        failure = await self._submit(command, event)
        if failure:
            return self._rejected(command, failure)
        return await self._answer(command, event)

    async def _submit(self, command: Command, event: CommandReceived) -> str:
        """Give a command to a worker of its flag; return why it failed, empty once it is saved."""
        failure, attempts, flag_key = "", 0, command.flag
        while attempts < ATTEMPTS:
            if (waiting := self._waiting.of(command)) is not None:
                event = _read_again(waiting)
            worker = self._worker(flag_key) or self._invite(flag_key)
            try:
                await worker.submit(event)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                await asyncio.sleep(0)  # its worker was stopped: see who has the flag now
            except Exception as mistake:  # the worker reports it, and restarts
                attempts += 1
                failure = f"the controller failed on this command: {mistake!r}"
                log.exception("direct_command_failed", flag_key=flag_key, attempt=attempts)
            else:
                return ""
        return failure

    async def _answer(self, command: Command, event: CommandReceived) -> Result:
        """Return the stored answer to a command that was carried out or rejected."""
        dependencies = self._dependencies
        stored: bytes | None = None
        for key in answer_keys(event):
            if stored is None:
                stored = await until_done(
                    partial(dependencies.rollouts.answer_to, command.flag, key),
                    trouble=StoreUnavailable,
                    backoff=dependencies.backoff,
                    report=lambda trouble, _: log.warning(
                        "direct_answer_waits", error=str(trouble)
                    ),
                )
        result = None if stored is None else result_in(stored)
        if result is None:
            return self._rejected(command, "its answer was lost; see `rolloutctl status`")
        return result

    def _rejected(self, command: Command, why: str) -> Result:
        """Return a refusal that no worker has stored; nobody else may hear of it."""
        log.error(
            "direct_command_rejected",
            flag_key=command.flag,
            command_id=command.id,
            verb=command.verb,
            reason=why,
        )
        newest = self._newest(command.flag)
        return Result(
            command_id=command.id,
            flag=command.flag,
            verb=command.verb,
            status=CommandStatus.REJECTED,
            reason=why,
            revision=0 if newest is None else newest.revision,
            at=self._dependencies.clock.now(),
            issuer=command.issuer,
        )

    # --- while Redis is away ---

    def _lower_here(self, meant: WaitingCommand) -> bool:
        """Serve 0 % on this replica before it is saved; return whether that is served now.

        Only ever lower: it breaks the rule that a decision is saved first. If the process ends
        before Redis is back, only a command that is kept in a file is carried out after a restart;
        the answer says whether it is.
        """
        command, event = meant.command, meant.event
        newest = self._newest(command.flag)
        if newest is None or event.verb not in FINAL or not meant.is_for(newest):
            return False
        after, _ = decide(newest, event, self._dependencies.clock.now())
        if after is None or not serving(after).is_off:
            return False
        if after is not newest:
            self._unsaved.lower_unsaved(after)
        why = (
            f"{event.verb.replace('_', '-')} by {event.issuer} is not saved, because Redis is "
            f"away or refuses writes: only this replica serves 0 %"
        )
        faults = self._dependencies.faults
        faults.report(Scope.FLAG, command.flag, why, _UNSAVED_FIX, reporter=UNSAVED)
        return True

    # --- workers ---

    def _newest(self, flag_key: str) -> Rollout | None:
        """Return the newest rollout that is known here: decided, or remembered from before."""
        return self._dependencies.registry.newest(flag_key) or self._served(flag_key)

    def _worker(self, flag_key: str) -> FlagWorker | None:
        """Return the worker of a flag on this replica, None for none."""
        worker = self._pool.worker(flag_key)
        if worker is None and (guest := self._guests.get(flag_key)) is not None:
            worker = guest.worker
        return worker

    def _invite(self, flag_key: str) -> FlagWorker:
        """Start a worker for a flag that does not run here."""
        if self._group is None or len(self._guests) >= MOST_GUESTS:
            raise OperatingTrouble("too many flags of other replicas are handled here already")
        guest = self._guests[flag_key] = Guest(FlagWorker(flag_key, self._dependencies))
        guest.task = self._group.create_task(self._host(flag_key, guest), name=f"guest:{flag_key}")
        log.info("guest_worker_started", flag_key=flag_key)
        return guest.worker

    async def _host(self, flag_key: str, guest: Guest) -> None:
        try:
            await guest.worker.run()
        except Exception as mistake:  # the worker's edge: who waits is told
            log.exception("guest_worker_failed", flag_key=flag_key)
            guest.worker.inbox.fail_all(mistake)
            self._leave(flag_key, guest)

    def _is_idle(self, flag_key: str, guest: Guest) -> bool:
        """Return whether a guest may go: nothing waits for it, and it has nothing to publish.

        Where the flag runs here by now, its worker has the outbox, or is about to read it.
        """
        is_waited_for = any(key[0] == flag_key for key in self._open) or len(guest.worker.inbox) > 0
        return not is_waited_for and (flag_key in self._pool or not len(guest.worker.outbox))

    async def _dismiss(self, flag_key: str, guest: Guest) -> None:
        if guest.task is not None:
            guest.task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([guest.task])
        self._leave(flag_key, guest)
        log.info("guest_worker_ended", flag_key=flag_key)

    def _leave(self, flag_key: str, guest: Guest) -> None:
        if self._guests.get(flag_key) is not guest:
            return
        del self._guests[flag_key]
        guest.worker.abandon()
        if (worker := self._pool.worker(flag_key)) is not None:
            worker.poke()
        else:
            self._dependencies.registry.release(flag_key)


def _read_again(waiting: WaitingCommand) -> CommandReceived:
    """Return a command that waited: it may be of an earlier rollout."""
    return replace(waiting.event, is_backlog=True)
