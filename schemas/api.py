"""Documents of the HTTP API, version 1, beside those that the topics carry.

`python -m schemas.generate` writes `openapi.yaml` from `ENDPOINTS`. A later release may add fields
and endpoints; it removes or renames none without a new version in the path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from schemas.alert import Alert
from schemas.command import StageName
from schemas.decision import Decision, JudgementRecord, PlanReference, WholeNumber
from schemas.fields import Line, Moment, Name, OpenModel, StrictModel
from schemas.inventory import FlagList
from schemas.notifications import Acknowledgement, NotificationsView, Taken, TakePending
from schemas.plan import PlanDocument
from schemas.report import PlaneRecord, StageHistory
from schemas.result import Result
from schemas.terms import (
    CommandVerb,
    FlagFinding,
    FlagType,
    HoldReason,
    PhaseName,
    Safe,
    SignalStatus,
)

BASE: Final = "/api/v1"
#: Rollouts of one answer, unless fewer or more are asked for.
PAGE: Final = 100
MOST_OF_A_PAGE: Final = 500
#: Events of one answer, unless fewer or more are asked for.
EVENTS: Final = 20
MOST_EVENTS: Final = 100


class SafeToAdvance(OpenModel):
    """Whether the next stage may be entered now, and why or why not."""

    answer: Safe
    why: str


class UnwatchedRecord(OpenModel):
    """Nobody sees what a live rollout does: its guardrails have no evidence."""

    why: str = Field(description="What is served, and why nobody sees what it does.")
    action: str = Field(description="What helps, one sentence.")
    since: Moment


class RolloutSummary(OpenModel):
    """Where a rollout stands."""

    flag: Name = Field(description="The flag's key.")
    rollout_id: str = Field(description="The id of the command that started it.")
    revision: WholeNumber = Field(description="Grows with each transition.")
    phase: PhaseName
    since: Moment = Field(description="Since when it is in this phase.")
    stage: WholeNumber | None = Field(description="1 for the first; null: in no stage.")
    stages: list[float] = Field(description="The percentage of each stage of the plan.")
    reached: WholeNumber = Field(
        description="Number of the last stage that was entered; 0 for none."
    )
    percent: float = Field(description="Of contexts, as decided.")
    audience: str | None = Field(description="That `percent` is a share of; null: everybody.")
    needs_person: bool = Field(description="Nothing goes on by itself.")
    has_ended: bool
    waits_for: str = Field(description="What has to happen next, in words.")
    hold: HoldReason | None = Field(
        description="Why it does not move, as in `rollout.state`; null: nothing holds it."
    )
    hold_words: str | None = Field(description="The same in words, with the numbers.")
    next_deadline: Moment | None = Field(description="When something happens by time alone.")
    safe_to_advance: SafeToAdvance
    plan: PlanReference
    owner: str = Field(description="Empty: the plan names none.")
    flag_type: FlagType
    started_at: Moment
    updated_at: Moment
    unwatched: UnwatchedRecord | None = Field(
        default=None, description="null: its guardrails see, or it serves nothing."
    )


class RolloutList(OpenModel):
    """Rollouts in order: what needs a person, what moves, what has ended."""

    rollouts: list[RolloutSummary]
    total: WholeNumber = Field(description="How many there are that fit the question.")
    offset: WholeNumber = Field(description="How many come before these.")
    at: Moment = Field(description="When this was answered.")
    stale_since: Moment | None = Field(
        default=None, description="Since when this replica may lack decisions; null: it is current."
    )


class FittingCommand(OpenModel):
    """What a command would do to a rollout now. Nothing is sent."""

    verb: CommandVerb
    fits: bool
    why_not: str | None = Field(description="null: it fits.")
    percent: float = Field(description="Decided after the command.")
    phase: PhaseName = Field(description="Of the rollout after the command.")
    raises: bool = Field(description="It may raise the percentage, at once or later.")


class StageView(OpenModel):
    """One stage of the plan, and what became of it."""

    number: WholeNumber = Field(description="1 for the first.")
    name: str
    percent: float
    audience: str | None
    needs_approval: bool
    state: str = Field(description="`done`, `present`, `ahead`, or `skipped`.")
    entered_at: Moment | None
    left_at: Moment | None


class RolloutView(OpenModel):
    """Everything that is known of one rollout."""

    summary: RolloutSummary
    ladder: list[StageView]
    evidence: JudgementRecord | None = Field(description="The newest; null: nothing was judged.")
    evidence_at: Moment | None = Field(description="When the replica that runs it wrote it.")
    evidence_trouble: str | None = Field(description="Why newer evidence cannot be had.")
    planes: list[PlaneRecord]
    commands: list[FittingCommand]
    at: Moment


class DecisionEvent(OpenModel):
    """A decision as on `rollout.decisions`."""

    id: str
    time: Moment
    type: str
    source: str
    subject: str
    data: Decision


class AlertEvent(OpenModel):
    """An alert as on `rollout.alerts`."""

    id: str
    time: Moment
    type: str
    source: str
    subject: str
    data: Alert


class DecisionList(OpenModel):
    """The newest decisions, newest first."""

    decisions: list[DecisionEvent]


class AlertList(OpenModel):
    """The newest alerts, newest first."""

    alerts: list[AlertEvent]


class ResultEvent(OpenModel):
    """The result of a command as on `rollout.results`."""

    id: str
    time: Moment
    type: str
    source: str
    subject: str
    data: Result


class ResultList(OpenModel):
    """The newest results of commands, newest first."""

    results: list[ResultEvent]


class PlanesView(OpenModel):
    """Whether the flag planes serve what was decided."""

    flag: Name
    is_converged: bool
    planes: list[PlaneRecord]


class SignalEntry(OpenModel):
    """A signal of a monitoring system, and what was done about it."""

    at: Moment = Field(description="When it was handled.")
    hook: str = Field(description="The endpoint: source and name.")
    status: SignalStatus
    title: str
    service: str = Field(description="What it is about; empty where not told.")
    condition: str = Field(description="What fires: the same while it fires and when it is over.")
    link: str
    done: list[str] = Field(description="What was done, a sentence each; empty: nothing.")


class SignalList(OpenModel):
    """The newest signals of all replicas, newest first."""

    signals: list[SignalEntry]


class CommandRequest(StrictModel):
    """A command. Its issuer is who is signed in."""

    verb: CommandVerb
    reason: Line = Field(default="", description="Required as on `rollout.commands`.")
    expected_revision: WholeNumber | None = Field(
        default=None,
        description="The revision that was seen. Required for every verb that may raise the "
        "percentage, but for start.",
    )
    id: Name | None = Field(
        default=None,
        description="Chosen by the caller, so that a repeat gets the same answer; null: made here.",
    )
    plan: dict[str, Any] | None = Field(
        default=None,
        description="For start, restart and apply: a plan as in `schemas/json/plan.schema.json`.",
    )
    to_stage: StageName | None = Field(default=None, description="For promote and step_back.")


class CommandPending(OpenModel):
    """A command that has no result yet."""

    command_id: Name
    flag: Name
    verb: CommandVerb
    status: Literal["pending"] = "pending"
    reason: str = Field(description="What is known of it, and what to do.")


class Problem(OpenModel):
    """Why there is no answer."""

    error: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a query."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path, as `openapi.yaml` describes it."""

    path: str  # behind `BASE`
    summary: str
    answer: type[BaseModel]
    parameters: tuple[Parameter, ...] = ()
    statuses: Mapping[int, str] = field(default_factory=dict)
    #: The body of a POST; None: the path is read with GET.
    body: type[BaseModel] | None = None
    #: Further answers that are documents of their own, by status.
    answers: Mapping[int, tuple[str, type[BaseModel]]] = field(default_factory=dict)


_NO_FLAG = {404: "No rollout has this flag key.", 503: "It cannot be known now; `error` says why."}
_LIMIT = Parameter(
    "limit", "How many events.", {"type": "integer", "minimum": 1, "maximum": MOST_EVENTS}
)

ENDPOINTS: Final = (
    Endpoint(
        "/rollouts",
        "All rollouts, as the page lists them: those that need a person, those that move, ended.",
        RolloutList,
        (
            Parameter("q", "Part of the flag's key, the plan's name or the owner."),
            Parameter("owner", "The plan's owner, exactly."),
            Parameter(
                "state",
                "Only some rollouts. `attention`: paused, waiting for approval, or rolled back "
                "within a day.",
                {"type": "string", "enum": ["attention", "active", "ended"]},
            ),
            Parameter(
                "limit",
                "How many rollouts.",
                {"type": "integer", "minimum": 1, "maximum": MOST_OF_A_PAGE},
            ),
            Parameter("offset", "How many to leave out.", {"type": "integer", "minimum": 0}),
        ),
        {400: "A parameter is wrong.", 503: "It is not known yet which rollouts there are."},
    ),
    Endpoint(
        "/flags",
        "The inventory: every flag with a rollout; those with findings come first.",
        FlagList,
        (
            Parameter("q", "Part of the flag's key or the owner."),
            Parameter(
                "finding",
                "Only flags with this finding; `any`: with one at least.",
                {"type": "string", "enum": ["any", *(one.value for one in FlagFinding)]},
            ),
            Parameter(
                "limit",
                "How many flags.",
                {"type": "integer", "minimum": 1, "maximum": MOST_OF_A_PAGE},
            ),
            Parameter(
                "format",
                "`csv`: a table of all flags that fit, without pages.",
                {"type": "string", "enum": ["csv"]},
            ),
            Parameter("offset", "How many to leave out.", {"type": "integer", "minimum": 0}),
        ),
        {400: "A parameter is wrong.", 503: "It is not known yet which rollouts there are."},
    ),
    Endpoint(
        "/signals",
        "What monitoring systems told lately, and what was done; only with `hooks` set.",
        SignalList,
    ),
    Endpoint(
        "/notifications",
        "Who was told of what, and which channels work; only with `notifications` set.",
        NotificationsView,
        (),
        {503: "Redis does not answer."},
    ),
    Endpoint(
        "/notifications/acknowledge",
        "Takes incidents in the name of who is signed in, so that nobody else is told of them; "
        "only with `notifications` and `sign_in.access_file` set.",
        Taken,
        (),
        {
            400: "The request is no such document.",
            401: "Nobody is signed in, or the token is unknown.",
            403: "The role is missing, or another site sent it.",
            404: "There is no such open incident.",
            409: "Somebody has taken it already; `error` says who.",
            429: "Too many requests.",
            503: "It is not known to be taken; `error` says what to do.",
        },
        Acknowledgement,
        {202: ("It was sent and is not seen to be taken yet.", TakePending)},
    ),
    Endpoint("/rollouts/{flag}", "Everything about one rollout.", RolloutView, (), _NO_FLAG),
    Endpoint("/rollouts/{flag}/evidence", "The newest judgement.", JudgementRecord, (), _NO_FLAG),
    Endpoint(
        "/rollouts/{flag}/history",
        "The evidence over time, at most 300 points a stage.",
        StageHistory,
        (
            Parameter(
                "visit",
                "Which visit of a stage, 0 for the first; without it the newest.",
                {"type": "integer", "minimum": 0},
            ),
        ),
        {**_NO_FLAG, 400: "There is no such visit."},
    ),
    Endpoint("/rollouts/{flag}/decisions", "The newest.", DecisionList, (_LIMIT,), _NO_FLAG),
    Endpoint("/rollouts/{flag}/alerts", "The newest.", AlertList, (_LIMIT,), _NO_FLAG),
    Endpoint(
        "/rollouts/{flag}/results",
        "The newest of its commands, accepted or rejected.",
        ResultList,
        (_LIMIT,),
        _NO_FLAG,
    ),
    Endpoint(
        "/rollouts/{flag}/planes",
        "Whether each flag plane serves what was decided, and why not.",
        PlanesView,
        (),
        _NO_FLAG,
    ),
    Endpoint("/rollouts/{flag}/plan", "The plan that it runs.", PlanDocument, (), _NO_FLAG),
    Endpoint(
        "/rollouts/{flag}/commands",
        "Gives a command in the name of who is signed in; only with `sign_in.access_file`.",
        Result,
        (),
        {
            400: "The request is no such command.",
            401: "Nobody is signed in, or the token is unknown.",
            403: "The role is missing, or another site sent it.",
            404: "No rollout has this flag key.",
            429: "Too many commands.",
            503: "It is not known to be sent; `error` says what to do.",
        },
        CommandRequest,
        {
            202: ("It was sent and has no result yet.", CommandPending),
            409: ("It was rejected; `reason` says why.", Result),
        },
    ),
)
