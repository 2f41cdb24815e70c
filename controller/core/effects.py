"""What the world must be told after a decision: effects, in the imperative.

Belongs here: the contract that whoever performs them keeps (`Transition`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from controller.core.judging.judgement import Advice, Explanation, Judgement
from controller.core.plan import Plan
from controller.core.rollout import Rollout
from schemas.terms import AlertKind, CommandStatus, CommandVerb, DecisionKind, Severity


@dataclass(frozen=True, slots=True)
class AppliedPlan:
    """A change of a running plan: both plans, and every difference in words."""

    before: Plan
    after: Plan
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PublishDecision:
    """Write to the audit log what was decided, with all the evidence."""

    kind: DecisionKind
    reason: str
    from_percent: float
    to_percent: float
    stage: int | None
    issuer: str  # `CONTROLLER`, or the command's issuer
    judgement: Judgement | None = None
    advice: Advice | None = None
    gate_id: str | None = None
    command_id: str | None = None
    applied: AppliedPlan | None = None  # set where the plan was changed
    evidence_trouble: str | None = None  # why there is no judgement; None: none was to be expected


@dataclass(frozen=True, slots=True)
class RaiseAlert:
    """Alert people. Alerts with the same dedup key are one page."""

    kind: AlertKind
    severity: Severity
    summary: str
    action: str  # what to do now, one sentence
    dedup_key: str
    judgement: Judgement | None = None  # carries the harm accounting
    explanation: Explanation | None = None  # sent later, on another alert with the same dedup key
    occasion: str = ""  # when it began: tells alerts of one key and revision apart


@dataclass(frozen=True, slots=True)
class AnswerCommand:
    """The one result of a command id."""

    command_id: str
    verb: CommandVerb | None
    status: CommandStatus
    reason: str
    revision: int  # after the command
    digest: str = ""  # of the command's content; empty until the worker has computed it
    event: str = ""  # id of the result's event for the second use of a command id, else empty
    issuer: str = ""  # of the command; empty: it does not say


@dataclass(frozen=True, slots=True)
class AskAdvice:
    """Ask the model; its answer comes back as an event. Not saved in the outbox: `Transition`."""

    gate_id: str
    round: int
    until: datetime
    judgement: Judgement
    earlier: Advice | None = None  # the answer of the round before this one


Effect = PublishDecision | RaiseAlert | AnswerCommand | AskAdvice


class Transition(NamedTuple):
    """The result of one decision: the rollout after it, and the effects to perform.

    Whoever carries it out (`controller/deciding/`) keeps this contract, in this order:

    1. Save `after` and its effects in one atomic write, before any effect is performed, and only
       if nobody else has saved since `before` was read. When the outcome of a save is unknown, load
       the flag again and decide the event again; do not send the old write a second time.
    2. Perform the effects. Each has got the id `<flag>/<revision>/<n>` with the save.
    3. Settle an effect, which removes it from the outbox, once its receiver has it.

    So a crash at any point forgets no effect and may repeat some: receivers drop a repeat by its
    id, which makes repeats harmless. `AskAdvice` is the exception: it is no effect of the outbox.
    It has no id and is lost in a crash; after `Restarted` the next judgement at the gate asks
    again, as the same round.

    `after is before` means that nothing changed: there is nothing to save but the effects.
    """

    after: Rollout | None
    effects: tuple[Effect, ...] = ()
