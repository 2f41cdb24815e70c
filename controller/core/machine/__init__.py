"""The state machine: what can happen to a flag, and when it wants to be woken.

Two tables are the whole of it. `decide` says what evidence, time and advice do; `COMMANDS` says
what operators' commands do. Rows of `decide` are tried from the top, and the first that fits wins.

- `evidence_flow.py`, `gate_flow.py`, `window_flow.py`, `actions.py`, `plan_actions.py`: what the
  rows do
- `transitions.py`, `holding.py`, `retirement.py`, `plan_transitions.py`, `window_transitions.py`:
  the only files here that change a rollout (`core/future_times.py` corrects the times that a wrong
  clock wrote), by `revisions.py`
- `announcements.py`, `lowering_alerts.py`: decisions, alerts and answers, with their texts
- `obstacles.py`, `breaches.py`, `health.py`, `times.py`: questions that the rows ask
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from controller.core.effects import Transition
from controller.core.events import (
    AdviceReceived,
    AdviceUnavailable,
    CommandReceived,
    CommandUnusable,
    Event,
    EvidenceJudged,
    Restarted,
    Ticked,
)
from controller.core.machine import (
    actions,
    announcements,
    breaches,
    evidence_flow,
    gate_flow,
    health,
    holding,
    obstacles,
    plan_actions,
    retirement,
    transitions,
    window_flow,
)
from controller.core.machine.announcements import with_evidence
from controller.core.machine.cause import Cause
from controller.core.machine.commands import Request, Table, carry_out, table_of
from controller.core.machine.gate_flow import hold_back
from controller.core.machine.times import (
    due_at,
    first_free,
    first_unfrozen,
    has_just_expired,
    is_frozen,
    is_over,
    may_start,
    window_boundary,
)
from controller.core.rollout import (
    Aborted,
    AdviceRound,
    AwaitingApproval,
    Baking,
    Completed,
    Gating,
    Paused,
    Retired,
    RolledBack,
    Rollout,
    Scheduled,
)
from schemas.terms import CommandVerb, PhaseName

__all__ = ["COMMANDS", "decide", "hold_back", "is_frozen", "next_deadline", "with_evidence"]


def decide(rollout: Rollout | None, event: Event, now: datetime) -> Transition:
    """Return what follows from an event. Pure; None stands for a flag never started."""
    if isinstance(event, CommandUnusable):
        return Transition(rollout, (announcements.rejected(event, rollout, event.why),))
    # A clock set back neither shortens a bake nor lengthens it: time never falls.
    received_at, now = now, now if rollout is None else max(now, rollout.updated_at)
    if isinstance(event, CommandReceived):
        return carry_out(rollout, Request(event, now, received_at), COMMANDS)
    if rollout is None or isinstance(rollout.phase, Retired):
        return Transition(rollout)
    match (rollout.phase, event):
        # A regression is final: no advice, approval, freeze, pause or lag stands before it. During
        # the pause that one has caused, people are told of each other one that would pause.
        case (_, EvidenceJudged(new)) if (breach := breaches.due(rollout, new)) is not None:
            return evidence_flow.act_on_breach(rollout, breach, new, now)
        case (_, EvidenceJudged(new)) if (gap := health.urgent_gap(rollout, new)) is not None:
            return evidence_flow.act_on_gap(rollout, gap, new, now)
        # Time. Evidence that comes before the tick of a deadline does not slip past it.
        case (_, Ticked() | EvidenceJudged()) if is_over(rollout, now):
            return transitions.end(rollout, Cause("the plan's end (ends_at) has come"), now)
        case (_, Ticked() | EvidenceJudged()) if has_just_expired(rollout, now):
            return transitions.expire(rollout, now)
        case _ if (closed := window_flow.close_or_open(rollout, event, now)) is not None:
            return closed
        case (Scheduled(start_at=due), Ticked()) if now >= due and may_start(rollout, now):
            return transitions.start_as_scheduled(rollout, now)
        case (Baking(stage=stage, until=until), Ticked()) if now >= until:
            return Transition(holding.open_gate(rollout, stage, now, rollout.hold))
        case (Gating(), EvidenceJudged(new)) if failed := obstacles.failed_webhook(rollout, new):
            return gate_flow.act_on_webhook(rollout, *failed, new, now)
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
        case (Gating() as gate, AdviceReceived() | AdviceUnavailable() as answer) if (
            gate_flow.is_answer(answer, gate)
        ):
            return Transition(gate_flow.close_round(rollout, gate, answer, now))
        case (Gating(advice=AdviceRound(is_closed=False)) as gate, Restarted()):
            return Transition(gate_flow.reopen_round(rollout, gate, now))
        # Evidence that cannot be judged is told wherever it lasts, and told again when it is over.
        case (_, EvidenceJudged(new)) if gaps := health.news(rollout, new):
            return evidence_flow.tell_gaps(rollout, gaps, new, now)
        case (Baking() | Paused(), EvidenceJudged(new)) if health.is_over(rollout, new):
            return evidence_flow.tell_gaps_over(rollout, new, now)
        case (Paused(), EvidenceJudged(new)) if over := breaches.over(rollout, new):
            return evidence_flow.tell_breaches_over(rollout, over, new, now)
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
SCHEDULED, BAKING, GATING, AWAITING, PAUSED, COMPLETED, ROLLED_BACK, ABORTED, RETIRED = PhaseName
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
    (V.START, (NO_ROLLOUT, *ENDED, RETIRED),  plan_actions.begin,   (SCHEDULED, BAKING)),
    (V.RESTART,        ENDED,                 plan_actions.begin,   (SCHEDULED, BAKING)),
    (V.PAUSE,          WAITING,               actions.pause,        (PAUSED,)),
    (V.PAUSE,          (PAUSED,),             actions.accept_pause, STAYS),
    (V.PAUSE,          ENDED,                 actions.pause_ended,  STAYS),
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
    (V.FREEZE,         (*LIVE, COMPLETED),    actions.freeze,       STAYS),
    (V.UNFREEZE,       (*LIVE, COMPLETED),    actions.unfreeze,     STAYS),
    (V.APPLY,          (SCHEDULED, BAKING),   plan_actions.apply,   STAYS),
    (V.APPLY,          (GATING,),             plan_actions.apply,   (GATING, BAKING)),
    (V.APPLY,          (AWAITING,),           plan_actions.apply,   (AWAITING, BAKING)),
    (V.APPLY,          (PAUSED, COMPLETED),   plan_actions.apply,   STAYS),
    (V.RETRY,          (*STAGE, PAUSED),      actions.retry,        (BAKING,)),
    (V.RETIRE,         ENDED,                 retirement.retire,    (RETIRED,)),
    (V.RETIRE,         (RETIRED,),    retirement.accept_retired,    STAYS),
))
# fmt: on


def next_deadline(rollout: Rollout, at: datetime | None = None) -> datetime | None:
    """Return when `decide` wants a `Ticked` at the latest, None when time alone moves nothing.

    `at` is the present time; None: that of the last transition. A window that began and ended since
    then is no deadline any more.
    """
    now = max(at or rollout.updated_at, rollout.updated_at)
    if isinstance(rollout.phase, RolledBack | Aborted | Retired):
        return None
    ends = (rollout.plan.ends_at, window_boundary(rollout, now))
    soonest = (*_phase_deadlines(rollout, now), *ends)
    return min((at for at in soonest if at is not None), default=None)


def _phase_deadlines(rollout: Rollout, now: datetime) -> Sequence[datetime | None]:
    """Return when time alone ends the phase: what it waits for is over, or the plan expires."""
    begun, expires_at = rollout.updated_at, rollout.plan.expires_at
    match rollout.phase:
        case Paused() | Completed() | RolledBack() | Aborted() | Retired():
            return ()
        case _ if rollout.closed_since is not None:
            return (expires_at,)
        case Scheduled(start_at=start_at):
            return due_at(first_free, rollout, max(start_at, begun), now), expires_at
        case Baking(until=until):
            return until, expires_at
        case Gating(until=until, advice=advice):
            asked_until = None if advice is None or advice.is_closed else advice.until
            undecided = due_at(first_unfrozen, rollout, max(until, begun), now)
            return undecided, asked_until, expires_at
        case AwaitingApproval():
            return (expires_at,)
