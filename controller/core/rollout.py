"""One run of a plan for one flag: its phases, the events that reach it and the effects it asks for.

One type each, with only the fields that exist while it lasts. What may happen is in `machine.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from controller.core.judging.judgement import Advice, Explanation, Judgement
from controller.core.plan import Plan, Stage
from schemas.terms import (
    AlertKind,
    CommandStatus,
    CommandVerb,
    DecisionKind,
    HoldReason,
    PhaseName,
    Severity,
)

# --- phases
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Accepted; 0 % is served until the start."""

    start_at: datetime
    name = PhaseName.SCHEDULED


@dataclass(frozen=True, slots=True)
class Baking:
    """The stage gathers evidence. Guardrails are armed; nothing advances before `until`."""

    stage: int  # 0-based index into Plan.stages
    until: datetime
    name = PhaseName.BAKING


@dataclass(frozen=True, slots=True)
class AdviceRound:
    """Where the question to the model stands."""

    number: int  # 1 for the first
    until: datetime  # past it the round has no advice
    answer: Advice | None = None
    is_closed: bool = False  # answered, unavailable or late
    held_until: datetime | None = None  # set when this round's advice held: ask again after it


@dataclass(frozen=True, slots=True)
class Gating:
    """The bake is over; the stage stays live while the gate waits for a verdict."""

    stage: int
    gate_id: str
    since: datetime
    until: datetime  # past it the undecided gate pauses the rollout
    advice: AdviceRound | None = None  # None until health and statistics have passed
    name = PhaseName.GATING


@dataclass(frozen=True, slots=True)
class AwaitingApproval:
    """Everything else has passed; a person decides, bound to the revision they saw."""

    stage: int
    gate_id: str
    since: datetime
    reason: HoldReason  # APPROVAL: the plan asks for it. ADVISOR: advice held as often as it may
    name = PhaseName.AWAITING_APPROVAL


@dataclass(frozen=True, slots=True)
class Paused:
    """Stopped where it is: the percentage stays, guardrails stay armed, nothing advances."""

    since: datetime
    reason: HoldReason
    held: Scheduled | Baking | Gating | AwaitingApproval  # what was interrupted
    name = PhaseName.PAUSED


@dataclass(frozen=True, slots=True)
class Completed:
    """The last gate passed; the last stage's percentage stays."""

    at: datetime
    name = PhaseName.COMPLETED


@dataclass(frozen=True, slots=True)
class RolledBack:
    """0 %, because of a fault: found by a guardrail or told by an operator. Final."""

    at: datetime
    reason: str
    name = PhaseName.ROLLED_BACK


@dataclass(frozen=True, slots=True)
class Aborted:
    """0 %, because an operator wanted it so, without a fault. Final."""

    at: datetime
    reason: str
    name = PhaseName.ABORTED


InStage = Baking | Gating | AwaitingApproval
Ended = Completed | RolledBack | Aborted
Phase = Scheduled | InStage | Paused | Ended


@dataclass(frozen=True, slots=True)
class Visit:
    """One stay in a stage.

    A stage stepped back to is visited again, and its evidence counts anew.
    """

    stage: int
    percent: float
    entered_at: datetime
    counts_from: datetime  # entered_at + settle
    left_at: datetime | None = None  # None: still there


@dataclass(frozen=True, slots=True)
class Freeze:
    """An operator's stop to all advancing; lifted by `unfreeze`."""

    since: datetime
    issuer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """The document of one rollout.

    `revision` grows by one per transition and never falls, over all rollouts of the flag.
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

    @property
    def stage_index(self) -> int | None:
        """Index of the present stage; None before the start and after the end."""
        phase = self.phase.held if isinstance(self.phase, Paused) else self.phase
        return phase.stage if isinstance(phase, InStage) else None

    @property
    def stage(self) -> Stage | None:
        """The present stage; None before the start and after the end."""
        return None if self.stage_index is None else self.plan.stages[self.stage_index]

    @property
    def visit_index(self) -> int:
        """Index of the present visit in `visits`, of the last one after the end; -1 before it."""
        return len(self.visits) - 1

    @property
    def served_words(self) -> str:
        """`10 %`, and in a stage with an audience `10 % of beta`."""
        audience = (
            self.plan.stages[self.visits[-1].stage].audience
            if self.visits and self.percent
            else None
        )
        return f"{self.percent:g} %" + ("" if audience is None else f" of {audience}")

    @property
    def has_ended(self) -> bool:
        """True once nothing but a new start, or a roll back after completion, can change it."""
        return isinstance(self.phase, Ended)


# --- events: past tense; when they are decided is an argument of `decide`
# --------------------------------------------------------------------------------------------------


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
    """An operator asked for something."""

    command_id: str
    verb: CommandVerb
    issuer: str
    reason: str
    issued_at: datetime
    expected_revision: int | None = None
    plan: Plan | None = None  # for `start`; for `restart` it may replace the pinned one
    #: It was in the log before this replica read there, so it may be read a second time. False: it
    #: was sent just now, whatever its issuer's clock says.
    is_backlog: bool = False


@dataclass(frozen=True, slots=True)
class CommandUnusable:
    """A command that cannot be meant as it stands: it is answered and not obeyed."""

    command_id: str
    verb: CommandVerb | None  # None: none that is known
    why: str
    digest: str = ""  # of a command that could be meant and is refused; empty: it follows from this


@dataclass(frozen=True, slots=True)
class Restarted:
    """Another process, or this one anew, took the flag over.

    An answer on its way went to its predecessor.
    """


Event = (
    Ticked
    | Restarted
    | EvidenceJudged
    | AdviceReceived
    | AdviceUnavailable
    | CommandReceived
    | CommandUnusable
)

# --- effects: imperative; each gets the id `flag/revision/n` when it is saved
# -----------------------------------------------


@dataclass(frozen=True, slots=True)
class PublishDecision:
    """Tell the audit log what was decided, with all the evidence."""

    kind: DecisionKind
    reason: str
    from_percent: float
    to_percent: float
    stage: int | None
    issuer: str  # who: "rolloutd", or the command's issuer
    judgement: Judgement | None = None
    advice: Advice | None = None
    gate_id: str | None = None
    command_id: str | None = None


@dataclass(frozen=True, slots=True)
class RaiseAlert:
    """Tell people. The dedup key groups what one page is enough for."""

    kind: AlertKind
    severity: Severity
    summary: str
    action: str  # what to do now, one sentence
    dedup_key: str
    judgement: Judgement | None = None  # carries the harm accounting
    explanation: Explanation | None = (
        None  # comes later, on an alert of its own with the same dedup key
    )


@dataclass(frozen=True, slots=True)
class AnswerCommand:
    """The one result of a command id."""

    command_id: str
    verb: CommandVerb | None
    status: CommandStatus
    reason: str
    revision: int  # after the command
    digest: str = ""  # of what the command asked for; empty until it is known
    event: str = ""  # id of the result's event where it is not the command's: a second use of an id


@dataclass(frozen=True, slots=True)
class AskAdvice:
    """Put the gate's evidence to the model; the answer comes back as an event."""

    gate_id: str
    round: int
    until: datetime
    judgement: Judgement
    earlier: Advice | None = None  # what the round before this one was answered


Effect = PublishDecision | RaiseAlert | AnswerCommand | AskAdvice


#: Who decided, where no operator did.
CONTROLLER = "rolloutd"

#: Verbs that raise exposure or open the way to it are refused when older than this: an order from
#: before an outage is not an order for now.
COMMAND_MAX_AGE = timedelta(minutes=10)

#: All other verbs only ever make it more careful, so an outage of hours does not make them void.
#: After a day nobody remembers them: what is that old was read again, from a log whose offsets were
#: lost or mirrored.
LOWERING_MAX_AGE = timedelta(hours=24)

#: What was issued before the present rollout began is for an earlier one. Clocks of laptops differ
#: by seconds to minutes; one that is slower than this is believed for what arrives now, see
#: `is_backlog`.
CLOCK_TOLERANCE = timedelta(minutes=5)
