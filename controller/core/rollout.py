"""One run of a plan for one flag: its phases, the events that reach it and the effects that follow.

Each phase is a type of its own, with only the fields that exist while it lasts. What may happen is
decided in `machine/`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, NamedTuple, Self, get_args

from controller.core.judging.judgement import Advice, Explanation, Judgement
from controller.core.plan import Plan, Stage
from controller.core.visits import Visit
from schemas.terms import (
    AdvisorMode,
    AlertKind,
    CommandStatus,
    CommandVerb,
    DecisionKind,
    HealthGap,
    HoldReason,
    PhaseName,
    Severity,
)

# --- phases ---


@dataclass(frozen=True, slots=True)
class _Timed:
    """A value with times in its fields."""

    def moved_back(self, by: timedelta) -> Self:
        """Return the value with every time in it earlier by `by`."""
        changes: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, datetime):
                changes[field.name] = value - by
            elif isinstance(value, _Timed):
                changes[field.name] = value.moved_back(by)
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class _Phase(_Timed):
    """What every phase says of itself, so that no other file has to list phases."""

    name: ClassVar[PhaseName]
    serves_nothing: ClassVar[bool] = False  # 0 % is served, whatever the stages say
    is_guarded: ClassVar[bool] = False  # guardrails are armed: a regression acts at once
    is_at_gate: ClassVar[bool] = False  # the bake is over, the stage is not


@dataclass(frozen=True, slots=True)
class Scheduled(_Phase):
    """Accepted; 0 % is served until the start."""

    name: ClassVar = PhaseName.SCHEDULED
    serves_nothing: ClassVar = True
    start_at: datetime

    def moved_back(self, by: timedelta) -> Self:
        """Return the phase as it is: the plan names its start, which may well lie ahead."""
        return self


@dataclass(frozen=True, slots=True)
class Baking(_Phase):
    """The stage gathers evidence. Guardrails are armed; nothing advances before `until`."""

    name: ClassVar = PhaseName.BAKING
    is_guarded: ClassVar = True
    stage: int  # 0-based index into Plan.stages
    until: datetime


@dataclass(frozen=True, slots=True)
class AdviceRound(_Timed):
    """The state of one question to the model."""

    number: int  # 1 for the first
    until: datetime  # past it the round has no advice
    answer: Advice | None = None
    is_closed: bool = False  # answered, unavailable or late
    held_until: datetime | None = None  # set when this round's advice held: ask again after it


@dataclass(frozen=True, slots=True)
class Gating(_Phase):
    """The bake is over; the stage stays live while the gate waits for a verdict."""

    name: ClassVar = PhaseName.GATING
    is_guarded: ClassVar = True
    is_at_gate: ClassVar = True
    stage: int
    gate_id: str
    since: datetime
    until: datetime  # past it the undecided gate pauses the rollout
    advice: AdviceRound | None = None  # None until health and statistics have passed


@dataclass(frozen=True, slots=True)
class AwaitingApproval(_Phase):
    """Everything else has passed; a person decides, bound to the revision they saw."""

    name: ClassVar = PhaseName.AWAITING_APPROVAL
    is_guarded: ClassVar = True
    is_at_gate: ClassVar = True
    stage: int
    gate_id: str
    since: datetime
    reason: HoldReason  # APPROVAL: the plan asks for it. ADVISOR: advice held as often as it may


@dataclass(frozen=True, slots=True)
class Paused(_Phase):
    """Stopped where it is: the percentage stays, guardrails stay armed, nothing advances."""

    name: ClassVar = PhaseName.PAUSED
    is_guarded: ClassVar = True
    since: datetime
    reason: HoldReason
    held: Waiting  # what was interrupted


@dataclass(frozen=True, slots=True)
class _End(_Phase):
    """The rollout is over, since `at`."""

    at: datetime

    @property
    def since(self) -> datetime:
        """When the phase began."""
        return self.at


@dataclass(frozen=True, slots=True)
class Completed(_End):
    """The last gate passed; the last stage's percentage stays."""

    name: ClassVar = PhaseName.COMPLETED


@dataclass(frozen=True, slots=True)
class RolledBack(_End):
    """0 %, because of a fault that a guardrail found or an operator reported. Final."""

    name: ClassVar = PhaseName.ROLLED_BACK
    serves_nothing: ClassVar = True
    reason: str


@dataclass(frozen=True, slots=True)
class Aborted(_End):
    """0 %, because an operator decided so, without a fault. Final."""

    name: ClassVar = PhaseName.ABORTED
    serves_nothing: ClassVar = True
    reason: str


@dataclass(frozen=True, slots=True)
class Retired(_End):
    """rolloutd has let go of the flag: it serves nothing, and apps use their own default. Final.

    A flag that is retired has no document any more as soon as everybody knows.
    """

    name: ClassVar = PhaseName.RETIRED
    serves_nothing: ClassVar = True
    reason: str


InStage = Baking | Gating | AwaitingApproval
Ended = Completed | RolledBack | Aborted | Retired
#: What may still go on by itself, and what a pause interrupts.
Waiting = Scheduled | InStage
Phase = Waiting | Paused | Ended
#: In the order of `PhaseName`.
PHASE_TYPES: tuple[type[Phase], ...] = get_args(Phase)


@dataclass(frozen=True, slots=True)
class Freeze:
    """An operator's stop to all advancing; lifted by `unfreeze`."""

    since: datetime
    issuer: str
    reason: str


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Rollout:
    """The document of one rollout: where it stands and how it got there.

    `revision` grows by one per transition and never falls, over all rollouts of the flag. Only
    `transitions.py`, `holding.py`, `retirement.py`, `plan_transitions.py` and
    `window_transitions.py` in `machine/` make a new one.
    """

    flag_key: str
    rollout_id: str  # the id of the command that started it
    revision: int
    plan: Plan
    phase: Phase
    percent: float  # decided, in [0, 100]; what every flag plane must serve
    visits: tuple[Visit, ...]  # oldest first; the timeline that gives each event its stage
    started_at: datetime
    updated_at: datetime  # of the last transition; time never runs backwards past it
    hold: HoldReason | None = None  # why it does not move, None while nothing is in the way
    freeze: Freeze | None = None
    #: Health gaps of the present stage that people were told of, and not yet that they are over.
    told_gaps: frozenset[HealthGap] = frozenset()
    #: Metrics whose breach people were told of in the present pause, and not yet that it is over.
    told_breaches: frozenset[str] = frozenset()
    #: Whether a model is configured where the rollout runs.
    has_advisor: bool = True
    #: Issuers of its start and of each plan that was applied since, each once.
    authors: tuple[str, ...] = ()

    @property
    def advisor_mode(self) -> AdvisorMode:
        """What advice may do: without a model nothing, unless the plan requires advice."""
        mode = self.plan.advisor.mode
        return mode if self.has_advisor or mode is AdvisorMode.REQUIRED else AdvisorMode.OFF

    @property
    def unpaused_phase(self) -> Waiting | Ended:
        """The phase, or the one that a pause interrupted."""
        return self.phase.held if isinstance(self.phase, Paused) else self.phase

    @property
    def phase_since(self) -> datetime:
        """When the present phase began; of a bake, when its stage was entered."""
        match self.phase:
            case Scheduled():
                return self.started_at
            case Baking():
                return self.visits[-1].entered_at
            case phase:
                return phase.since

    @property
    def stage_index(self) -> int | None:
        """Index of the present stage; None before the start and after the end."""
        phase = self.unpaused_phase
        return phase.stage if isinstance(phase, InStage) else None

    @property
    def stage(self) -> Stage | None:
        """The present stage; None before the start and after the end."""
        return None if self.stage_index is None else self.plan.stages[self.stage_index]

    @property
    def stage_name(self) -> str | None:
        """The name of the present stage; None before the start and after the end."""
        return None if self.stage is None else self.stage.name

    @property
    def visit_index(self) -> int:
        """Index of the present visit in `visits`, after the end of the last one; -1 without any."""
        return len(self.visits) - 1

    @property
    def present_visit(self) -> Visit | None:
        """The present visit, after the end the last one; None before the start."""
        return self.visits[-1] if self.visits else None

    @property
    def closed_since(self) -> datetime | None:
        """When it closed, outside its plan's active windows; None while it is open."""
        visit = self.present_visit
        if visit is None or not visit.closings or self.unpaused_phase.serves_nothing:
            return None
        last = visit.closings[-1]
        return last.since if last.counts_from is None else None

    @property
    def decided_percent(self) -> float:
        """What is served while it is open; `percent` unless it is closed."""
        return self.percent if self.closed_since is None else self.visits[-1].percent

    @property
    def served_words(self) -> str:
        """`10 %`, and in a stage with an audience `10 % of beta`."""
        return self.words_of(self.percent)

    def words_of(self, percent: float) -> str:
        """Return a percentage of the present stage in the words of `served_words`."""
        visit = self.present_visit
        audience = self.plan.stages[visit.stage].audience if visit and percent else None
        return f"{percent:g} %" + ("" if audience is None else f" of {audience}")

    @property
    def serves_nothing(self) -> bool:
        """Whether 0 % is served: before the start, after a roll back, while it is closed."""
        return self.unpaused_phase.serves_nothing or self.closed_since is not None

    @property
    def has_ended(self) -> bool:
        """Whether nothing but a new start, or a roll back after completion, can change it.

        Active windows go on to close and open a completed one.
        """
        return isinstance(self.phase, Ended)

    @property
    def may_open_again(self) -> bool:
        """Whether it has completed, and active windows open it, or the end of them does."""
        return isinstance(self.phase, Completed) and bool(self.plan.active or self.closed_since)


# --- events: past tense; `decide` is given the time beside them ---


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went by."""


@dataclass(frozen=True, slots=True)
class EvidenceJudged:
    """New totals were judged."""

    judgement: Judgement


@dataclass(frozen=True, slots=True)
class AdviceReceived:
    """The model answered in time and in the schema."""

    gate_id: str
    round: int
    advice: Advice


@dataclass(frozen=True, slots=True)
class AdviceUnavailable:
    """No advice for this round: late, absent, unparsable, or the circuit is open."""

    gate_id: str
    round: int
    why: str


@dataclass(frozen=True, slots=True)
class CommandReceived:
    """An operator sent a command."""

    command_id: str
    verb: CommandVerb
    issuer: str
    reason: str
    issued_at: datetime
    expected_revision: int | None = None
    #: For `start` and `apply`; for `restart` it may replace the pinned one.
    plan: Plan | None = None
    #: True: the command was in the log before this replica began to read there, so it may have been
    #: read before. False: it was sent just now, whatever its issuer's clock says.
    is_backlog: bool = False
    #: For a start: what the rollout will need and is not there, one phrase each.
    missing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # what is against the rules for flags
    refusals: tuple[str, ...] = ()  # what is against those that refuse a start
    #: Why the evidence of the stage cannot be judged at this moment, one phrase for each gap. An
    #: approval is refused for it, the answers to other commands tell it.
    gaps: tuple[str, ...] = ()
    has_advisor: bool = True  # whether a model is configured on this replica
    to_stage: str | None = None  # for `promote` and `step_back`: the name of the stage to enter
    for_rollout: str = ""  # the id of the one rollout that it is meant for; empty: not known
    last_revision: int = 0  # for the start of a new flag: the highest that it may have had before


@dataclass(frozen=True, slots=True)
class CommandUnusable:
    """A command that cannot be carried out as it is written: it is answered and nothing else."""

    command_id: str
    verb: CommandVerb | None  # None: not a verb we know
    why: str
    digest: str = ""  # of a usable command that is refused; empty: the digest follows from `why`
    issuer: str = ""  # empty: it does not say


@dataclass(frozen=True, slots=True)
class Restarted:
    """A process took the flag over, perhaps this one again; advice went to the one before."""


Event = (
    Ticked
    | Restarted
    | EvidenceJudged
    | AdviceReceived
    | AdviceUnavailable
    | CommandReceived
    | CommandUnusable
)

# --- effects: imperative ---


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


#: The issuer of what no operator decided.
CONTROLLER = "rolloutd"
