"""Carries out a command: the checks that come first, then its row of the table.

The table itself, `COMMANDS`, is in `__init__.py`; what each row does is in `actions.py`
and `plan_actions.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from controller.core.command_ages import CLOCK_TOLERANCE, COMMAND_MAX_AGE, LOWERING_MAX_AGE
from controller.core.effects import Transition
from controller.core.events import CommandReceived
from controller.core.machine import announcements, four_eyes
from controller.core.machine.cause import Cause
from controller.core.machine.obstacles import MOST_VISITS
from controller.core.machine.times import is_over
from controller.core.rollout import Retired, Rollout
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
        CommandVerb.APPLY,
        CommandVerb.RETRY,
    }
)
STARTING = frozenset({CommandVerb.START, CommandVerb.RESTART})

#: Where the verbs fit that most phases reject.
_FITS = {
    CommandVerb.APPROVE: "it asks for approval once its gate has passed",
    CommandVerb.REJECT: "it asks for approval once its gate has passed",
    CommandVerb.RESUME: "nothing is paused",
    CommandVerb.RETIRE: "let it complete, abort it or roll it back first",
}
ALREADY_STARTED = "this command has started its rollout already"
#: Without a plan the name of the control variant is not known: there is nothing to serve.
NOTHING_TO_LOWER = (
    "the flag has no rollout: rolloutd serves nothing for it, and apps use their own default; "
    "switch it off there, or start a rollout with a start_at in the future, which serves 0 %"
)
TOO_MANY_VISITS = (
    f"the rollout has entered its stages {MOST_VISITS} times, the most that it may: roll back or "
    f"abort, and start a new rollout"
)
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

    def cause(self, what: str = "") -> Cause:
        """Return the cause of what the command does: `what`, then the issuer's reason."""
        return Cause.of_command(self.command, what)


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
    done_so = (reject_for_phase if row is None else row.action)(rollout, request)
    if rollout is not None and _is_one_visit_too_many(rollout, done_so.after, verb):
        return rejected(rollout, request, TOO_MANY_VISITS)
    return done_so


def _is_one_visit_too_many(before: Rollout, after: Rollout | None, verb: CommandVerb) -> bool:
    """Return whether a command adds a visit past the bound. Lowering is never refused for that."""
    if after is None or verb is CommandVerb.STEP_BACK:
        return False
    return len(after.visits) > max(MOST_VISITS, len(before.visits))


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
    if verb in RAISING and is_over(rollout, request.now):
        return "the plan's end (ends_at) has come: start another rollout"
    return OUTDATED if is_late else four_eyes.why_not(rollout, command)


def _why_not_this_rollout(rollout: Rollout, request: Request) -> str | None:
    """Return why a command was not meant for this rollout; None when it may have been.

    Offsets and answers can be lost together, and then commands of last week are read again. None of
    them may lower this week's rollout. A command from a slow clock must work nevertheless: one that
    arrives now is believed for a day, and one that names the present revision is always believed,
    because its issuer has seen the rollout.
    """
    command = request.command
    if command.for_rollout not in ("", rollout.rollout_id):
        return "meant for an earlier rollout: another one has begun; send it again for this one"
    if command.expected_revision == rollout.revision:
        return None
    issued = command.issued_at.isoformat(timespec="seconds")
    again = f"send it again, with the clock set or with expected_revision {rollout.revision}"
    if request.received_at - command.issued_at > LOWERING_MAX_AGE:
        hours = LOWERING_MAX_AGE // timedelta(hours=1)
        return f"issued at {issued}, more than {hours} h ago: too old to be carried out; {again}"
    is_earlier = command.issued_at < rollout.started_at - CLOCK_TOLERANCE
    if command.is_backlog and is_earlier and not command.for_rollout:
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
    command = request.command
    missing, gaps = "; ".join(command.missing), "; ".join(command.gaps)
    reason = f"done; not there yet: {missing}" if missing else "done"
    reason += f"; against the rules: {'; '.join(command.warnings)}" if command.warnings else ""
    reason += f"; at this moment the evidence cannot be judged: {gaps}" if gaps else ""
    answer = announcements.accepted(command, transition.after, reason)
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
    phase = "" if rollout is None else rollout.phase.name.replace("_", " ")
    if rollout is None and verb in ALWAYS_ACCEPTED:
        why = NOTHING_TO_LOWER
    elif rollout is None:
        left = "nothing is left to retire" if verb is CommandVerb.RETIRE else "start one"
        why = f"the flag has no rollout: {left}"
    elif isinstance(rollout.phase, Retired):
        why = "the flag is retired: rolloutd serves nothing for it; start a new rollout"
    elif rollout.has_ended:
        why = f"the rollout has ended ({phase}): start or restart"
    elif verb in STARTING:
        if request.command.command_id == rollout.rollout_id:
            return nothing_to_do(rollout, request, ALREADY_STARTED)
        why = (
            f"a rollout is under way ({phase}): `apply` changes its plan; to start again, abort "
            f"it first"
        )
    elif verb is CommandVerb.STEP_BACK:
        why = "no stage lies below: roll back, or abort"
    else:
        fits = _FITS.get(verb, "see `status`")
        if phase == "paused" and verb is not CommandVerb.RETIRE:
            fits = "try `resume`"
        why = f"can't {verb.replace('_', ' ')}: the rollout is {phase} ({fits})"
    return rejected(rollout, request, why)
