"""How a command is carried out: the checks that come first, then its row of the table.

The table itself, `COMMANDS`, is in `__init__.py`; what each row does is in `actions.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from controller.core.machine import announcements
from controller.core.machine.cause import Cause
from controller.core.rollout import (
    CLOCK_TOLERANCE,
    COMMAND_MAX_AGE,
    LOWERING_MAX_AGE,
    CommandReceived,
    Rollout,
    Transition,
)
from schemas.terms import ALWAYS_ACCEPTED, CommandVerb, PhaseName

#: Commands that raise the percentage or open the way to it. All others only ever make the rollout
#: more careful, however late they come.
RAISING = frozenset(
    {
        CommandVerb.START,
        CommandVerb.RESTART,
        CommandVerb.RESUME,
        CommandVerb.APPROVE,
        CommandVerb.PROMOTE,
        CommandVerb.PROMOTE_FULL,
        CommandVerb.UNFREEZE,
    }
)
STARTING = frozenset({CommandVerb.START, CommandVerb.RESTART})

ALREADY_STARTED = "this command has started its rollout already"
OUTDATED = (
    f"issued more than {COMMAND_MAX_AGE.seconds // 60} min ago: a late command must not raise "
    f"the percentage; send it again"
)


@dataclass(frozen=True, slots=True)
class Request:
    """A command, and when it is carried out."""

    command: CommandReceived
    now: datetime  # never before the last transition
    received_at: datetime  # by this replica's clock; another replica's may have run ahead of it

    @property
    def is_outdated(self) -> bool:
        """Whether the command is too old to raise the percentage."""
        return self.received_at - self.command.issued_at > COMMAND_MAX_AGE

    def cause(self, reason: str | None = None) -> Cause:
        """Return the cause of what the command does; its own reason unless another is given."""
        return Cause(self.command.reason if reason is None else reason, command=self.command)


#: Takes the rollout, which is None only for `begin`.
Action = Callable[[Any, Request], Transition]


@dataclass(frozen=True, slots=True)
class Row:
    """What one command does in one phase, and the phases it may lead to; none: the phase stays."""

    action: Action
    leads_to: tuple[PhaseName, ...] = ()


Table = Mapping[tuple[CommandVerb, PhaseName | None], Row]
Phases = tuple[PhaseName | None, ...]  # None: the flag has no rollout


def table_of(
    rows: Iterable[tuple[CommandVerb, Phases, Action, tuple[PhaseName, ...]]],
) -> Table:
    """Return the table of rows that each stand for several phases.

    Raises ValueError when two rows stand for the same verb in the same phase.
    """
    table: dict[tuple[CommandVerb, PhaseName | None], Row] = {}
    for verb, phases, action, leads_to in rows:
        for key in ((verb, phase) for phase in phases):
            if key in table:
                raise ValueError(f"two rows for {key}")
            table[key] = Row(action, leads_to)
    return table


def carry_out(rollout: Rollout | None, request: Request, table: Table) -> Transition:
    """Do what the command asks, or answer why not."""
    verb = request.command.verb
    row = table.get((verb, None if rollout is None else rollout.phase.name))
    if rollout is not None and (why := _why_not(rollout, request)) is not None:
        return rejected(rollout, request, why)
    return (reject_for_phase if row is None else row.action)(rollout, request)


# --- checks before the table ---


def _why_not(rollout: Rollout, request: Request) -> str | None:
    """Return why a command is rejected whatever its row; None when the row decides.

    Lowering works whatever revision the operator saw, if it is meant for this rollout.
    """
    command, verb = request.command, request.command.verb
    if verb in STARTING and rollout.has_ended:
        return None  # `begin` has its own checks
    is_late = verb in RAISING and request.is_outdated  # the shorter limit speaks for itself below
    if not (verb in STARTING or is_late) and (why := _why_not_this_rollout(rollout, request)):
        return why
    if verb in ALWAYS_ACCEPTED:
        return None
    if command.expected_revision not in (None, rollout.revision):
        return stale(command, rollout.revision)
    return OUTDATED if is_late else None


def _why_not_this_rollout(rollout: Rollout, request: Request) -> str | None:
    """Return why a command was not meant for this rollout; None when it may have been.

    Offsets and answers can be lost together, and then commands of last week are read again. None of
    them may lower this week's rollout. A command from a slow clock must work nevertheless: one that
    arrives now is believed for a day, and one that names the present revision is always believed,
    because its issuer has seen the rollout.
    """
    command = request.command
    if command.expected_revision == rollout.revision:
        return None
    issued = command.issued_at.isoformat(timespec="seconds")
    again = f"send it again, with the clock set or with expected_revision {rollout.revision}"
    if request.received_at - command.issued_at > LOWERING_MAX_AGE:
        hours = LOWERING_MAX_AGE // timedelta(hours=1)
        return f"issued at {issued}, more than {hours} h ago: too old to be carried out; {again}"
    if command.is_backlog and command.issued_at < rollout.started_at - CLOCK_TOLERANCE:
        began = rollout.started_at.isoformat(timespec="seconds")
        return (
            f"issued at {issued}, before this rollout began at {began}: meant for an earlier one; "
            f"{again}"
        )
    return None


def stale(command: CommandReceived, revision: int) -> str:
    """Return the reason to reject a command whose issuer saw another revision."""
    return (
        f"stale: revision {command.expected_revision} was expected, it is {revision}; check "
        f"the rollout and send it again"
    )


# --- answers ---


def done(transition: Transition, request: Request) -> Transition:
    """Return the transition with the answer that the command was carried out."""
    assert transition.after is not None
    answer = announcements.accepted(request.command, transition.after)
    return Transition(transition.after, (*transition.effects, answer))


def rejected(rollout: Rollout | None, request: Request, why: str) -> Transition:
    """Return that nothing changes, and the answer why not."""
    return Transition(rollout, (announcements.rejected(request.command, rollout, why),))


def nothing_to_do(rollout: Rollout, request: Request, why: str) -> Transition:
    """Return that nothing changes, because the command asks for what is so already."""
    return Transition(rollout, (announcements.accepted(request.command, rollout, why),))


def reject_for_phase(rollout: Rollout | None, request: Request) -> Transition:
    """Reject a command that has no row in the table: it does not fit the phase.

    One exception: a start that is read again, while the rollout that it started is under way, is
    accepted again.
    """
    verb = request.command.verb
    if rollout is None:
        why = "the flag has no rollout: start one"
    elif rollout.has_ended:
        why = f"the rollout has ended ({rollout.phase.name}): start or restart"
    elif verb in STARTING:
        if request.command.command_id == rollout.rollout_id:
            return nothing_to_do(rollout, request, ALREADY_STARTED)
        why = f"a rollout is under way ({rollout.phase.name}): abort it first"
    elif verb is CommandVerb.STEP_BACK:
        why = "no stage lies below: roll back, or abort"
    else:
        why = f"{verb} does not fit a rollout that is {rollout.phase.name}"
    return rejected(rollout, request, why)
