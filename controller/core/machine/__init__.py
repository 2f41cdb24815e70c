"""The state machine: what can happen to a flag, and when it wants to be woken.

Two tables are the whole of it. `decide` says what evidence, time and advice do; `COMMANDS` says
what operators' commands do. Rows of `decide` are tried from the top, and the first that fits wins.

- `gate_flow.py`, `actions.py`: what the rows do
- `transitions.py`: the only file here that changes a rollout (`core/future_times.py` corrects the
  times that a wrong clock wrote)
- `announcements.py`: decisions, alerts and answers, with their texts
- `obstacles.py`, `times.py`: questions that the rows ask
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from controller.core.machine import actions, announcements, gate_flow, obstacles, transitions
from controller.core.machine.cause import Cause
from controller.core.machine.commands import Request, Table, carry_out, table_of
from controller.core.machine.gate_flow import hold_back
from controller.core.machine.times import first_unfrozen, is_expired, is_frozen
from controller.core.rollout import (
    AdviceReceived,
    AdviceRound,
    AdviceUnavailable,
    AwaitingApproval,
    Baking,
    CommandReceived,
    CommandUnusable,
    Event,
    EvidenceJudged,
    Gating,
    Restarted,
    Rollout,
    Scheduled,
    Ticked,
    Transition,
    Waiting,
)
from schemas.terms import CommandVerb, DecisionKind, HoldReason, PhaseName

__all__ = ["COMMANDS", "decide", "hold_back", "is_frozen", "next_deadline"]


def decide(rollout: Rollout | None, event: Event, now: datetime) -> Transition:
    """Return what follows from an event. Pure; None stands for a flag never started."""
    if isinstance(event, CommandUnusable):
        return Transition(rollout, (announcements.rejected(event, rollout, event.why),))
    # A clock set back neither shortens a bake nor lengthens it: time never falls.
    received_at, now = now, now if rollout is None else max(now, rollout.updated_at)
    if isinstance(event, CommandReceived):
        return carry_out(rollout, Request(event, now, received_at), COMMANDS)
    if rollout is None:
        return Transition(None)
    match (rollout.phase, event):
        # A regression is final: no advice, approval, freeze, pause or lag stands before it.
        case (phase, EvidenceJudged(new)) if phase.is_guarded and new.breach is not None:
            return gate_flow.act_on_breach(rollout, new.breach, new, now)
        case (_, EvidenceJudged(new)) if (gap := obstacles.urgent_gap(rollout, new)) is not None:
            return gate_flow.act_on_gap(rollout, gap, new, now)
        # Time. Evidence that comes before the tick of a deadline does not slip past it.
        case (phase, Ticked() | EvidenceJudged()) if isinstance(phase, Waiting) and is_expired(
            rollout, now
        ):
            cause = Cause("the plan has expired; its owner decides")
            return transitions.pause(rollout, HoldReason.EXPIRED, cause, now)
        case (Scheduled(start_at=due), Ticked()) if now >= due and not is_frozen(rollout, now):
            cause = Cause("the start time has come")
            return transitions.enter(rollout, 0, DecisionKind.START, cause, now)
        case (Baking(stage=stage, until=until), Ticked()) if now >= until:
            return Transition(transitions.open_gate(rollout, stage, now, rollout.hold))
        case (Gating(until=until) as gate, Ticked() | EvidenceJudged()) if (
            now >= until and not is_frozen(rollout, now)
        ):
            return gate_flow.close_undecided(rollout, gate, event, now)
        # Advice: late, absent and unreadable are one thing, `no advice`.
        case (
            Gating(advice=AdviceRound(is_closed=False, until=until)) as gate,
            Ticked() | EvidenceJudged() | AdviceReceived() | AdviceUnavailable(),
        ) if now >= until:
            return decide(gate_flow.close_round(rollout, gate, None, now), event, received_at)
        case (
            Gating() as gate,
            AdviceReceived() | AdviceUnavailable() as answer,
        ) if gate_flow.is_answer(answer, gate):
            return Transition(gate_flow.close_round(rollout, gate, answer, now))
        case (Gating(advice=AdviceRound(is_closed=False)) as gate, Restarted()):
            return Transition(gate_flow.reopen_round(rollout, gate, now))
        # Problems that an operator must fix are reported before the bake ends.
        case (Baking(), EvidenceJudged(new)) if obstacles.is_reported_in_bake(rollout, new):
            return gate_flow.report_in_bake(rollout, new, now)
        case (Baking(), EvidenceJudged(new)) if obstacles.is_resolved_in_bake(rollout, new, now):
            return Transition(transitions.release(rollout, now))
        # The gate itself.
        case (Gating() as gate, EvidenceJudged(new)) if obstacles.is_current(rollout, new):
            return gate_flow.judge_gate(rollout, gate, new, now)
        case (AwaitingApproval() as waiting, EvidenceJudged(new)) if obstacles.no_longer_passes(
            rollout, new, now
        ):
            return gate_flow.withdraw_request(rollout, waiting, new, now)
        case _:
            return Transition(rollout)  # late or repeated: nothing to do


# The columns are aligned for the reader: the formatter leaves the table alone.
# fmt: off
V = CommandVerb
SCHEDULED, BAKING, GATING, AWAITING, PAUSED, COMPLETED, ROLLED_BACK, ABORTED = PhaseName
NO_ROLLOUT: Final = None
STAYS: Final = ()
STAGE = (BAKING, GATING, AWAITING)
WAITING = (SCHEDULED, *STAGE)
LIVE = (*WAITING, PAUSED)
OFF = (ROLLED_BACK, ABORTED)
ENDED = (COMPLETED, *OFF)

#: What each command does in each phase; one without a row is rejected.
COMMANDS: Final[Table] = table_of((
    # command          in phases              does                  leads to
    (V.START,          (NO_ROLLOUT, *ENDED),  actions.begin,        (SCHEDULED, BAKING)),
    (V.RESTART,        ENDED,                 actions.begin,        (SCHEDULED, BAKING)),
    (V.PAUSE,          WAITING,               actions.pause,        (PAUSED,)),
    (V.PAUSE,          (PAUSED,),             actions.accept_pause, STAYS),
    (V.PAUSE,          ENDED,                 actions.accept_ended, STAYS),
    (V.RESUME,         (PAUSED,),             actions.resume,       (SCHEDULED, BAKING)),
    (V.APPROVE,        (AWAITING,),           actions.approve,      (BAKING, COMPLETED)),
    (V.REJECT,         (AWAITING,),           actions.reject,       (PAUSED,)),
    (V.PROMOTE,        (SCHEDULED,),          actions.promote,      (BAKING,)),
    (V.PROMOTE,        (*STAGE, PAUSED),      actions.promote,      (BAKING, COMPLETED)),
    (V.PROMOTE_FULL,   (SCHEDULED,),          actions.promote_full, (BAKING,)),
    (V.PROMOTE_FULL,   (*STAGE, PAUSED),      actions.promote_full, (BAKING, COMPLETED)),
    (V.STEP_BACK,      STAGE,                 actions.step_back,    (BAKING,)),
    (V.STEP_BACK,      (PAUSED,),             actions.step_back,    STAYS),
    (V.ROLL_BACK,      (*LIVE, COMPLETED),    actions.roll_back,    (ROLLED_BACK,)),
    (V.ABORT,          (*LIVE, COMPLETED),    actions.abort,        (ABORTED,)),
    (V.ROLL_BACK,      OFF,                   actions.accept_off,   STAYS),
    (V.ABORT,          OFF,                   actions.accept_off,   STAYS),
    (V.FREEZE,         LIVE,                  actions.freeze,       STAYS),
    (V.UNFREEZE,       LIVE,                  actions.unfreeze,     STAYS),
))
# fmt: on


def next_deadline(rollout: Rollout) -> datetime | None:
    """Return when `decide` wants a `Ticked` at the latest, None when time alone moves nothing."""
    now = rollout.updated_at
    match rollout.phase:
        case Scheduled(start_at=start_at):
            soonest = [first_unfrozen(rollout, max(start_at, now))]
        case Baking(until=until):
            soonest = [until]
        case Gating(until=until, advice=advice):
            soonest = [first_unfrozen(rollout, max(until, now))]
            if advice is not None and not advice.is_closed:
                soonest.append(advice.until)
        case AwaitingApproval():
            soonest = []
        case _:
            return None
    return min((at for at in (*soonest, rollout.plan.expires_at) if at is not None), default=None)
