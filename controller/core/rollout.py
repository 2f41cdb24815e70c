"""One run of a plan for one flag: its phases, and the document of where it stands.

Each phase is a type of its own, with only the fields that exist while it lasts. What happens to a
rollout is in `events.py`, what follows in `effects.py`; `machine/` decides it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self, get_args

from controller.core.judging.judgement import Advice
from controller.core.plan import Plan, Stage
from controller.core.visits import Visit
from schemas.terms import (
    AdvisorMode,
    HealthGap,
    HoldReason,
    PhaseName,
)

#: The issuer of what no operator decided.
CONTROLLER = "rolloutd"
#: A hold whose reason changes is announced at most this often, so that evidence on the edge cannot
#: flood the audit log. That a gap or a breach is over is announced so long after a transition.
HOLD_ANNOUNCED_EVERY = timedelta(minutes=1)


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
