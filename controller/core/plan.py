"""The plan of one flag's rollout, as the core uses it: validated, and in units.

The wire form (YAML, JSON) is in `schemas/plan.py`. Checks with messages for people are in
`controller/plans/`. A running rollout keeps the plan it started with, so these values are frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Any

from controller.core.audience import Audience
from controller.core.metrics import counters_name, kind_of
from controller.core.metrics.kind import MetricKind
from schemas.terms import (
    AdvisorMode,
    Approval,
    Arm,
    ControlArm,
    FlagType,
    GapPolicy,
    HealthGap,
    MetricRole,
    OnBreach,
)


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the plan."""

    percent: float  # of the audience's contexts in treatment, 0 < percent <= 100, in steps of 0.01
    bake: timedelta  # the least time the stage gathers evidence, counted from the end of `settle`
    settle: timedelta  # time for apps to pick the new percentage up; events inside it do not count
    min_sample: int  # distinct exposed contexts per arm before anything is concluded, at least 1
    max_bake: timedelta  # counted like `bake`; past it an undecided gate pauses the rollout
    approval: Approval = Approval.NOT_REQUIRED
    #: Name in Plan.audiences of the contexts that `percent` is a share of; None: all contexts.
    audience: str | None = None
    control: ControlArm = ControlArm.REST
    given_name: str = ""  # by the plan's author; empty: none

    @property
    def name(self) -> str:
        """The stage's name: the given one, else its share, as in `10%` or `10%-beta`."""
        of = "" if self.audience is None else f"-{self.audience}"
        return self.given_name or f"{self.percent:.10g}%{of}"

    @property
    def has_control(self) -> bool:
        """Whether contexts are left to compare with. At 100 % only limits can be judged."""
        return self.percent < 100


def stage_called(plan: Plan, name: str) -> int | None:
    """Return the index of the stage with this name, also a share as in `10%`; None: there is none.

    A stage that has a name is found by its share too, where no other is called so.
    """
    names = [stage.name for stage in plan.stages]
    if name not in names:
        names = [replace(stage, given_name="").name for stage in plan.stages]
    return names.index(name) if name in names else None


#: The time that a context has to convert, where a floor does not say.
DEFAULT_WITHIN = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Guardrail:
    """One metric to watch, and what to do about a regression of it.

    `limit` is the absolute bound in the metric's unit, a share in [0, 1] or milliseconds; None: no
    bound. `margin` is the relative harm against control that is tolerated: 0.1 tolerates that
    treatment is up to 10 % worse; None: no comparison. At least one of the two is set.
    """

    metric: str  # see schemas/metric_names.py
    role: MetricRole = MetricRole.GUARDRAIL
    limit: float | None = None
    margin: float | None = None
    #: Margin of the non-inferiority test at a gate; None: the default for the stage's percentage.
    gate_margin: float | None = None
    #: Both margins are differences of shares: 0.005 tolerates 1.5 % where control has 1 %.
    in_points: bool = False
    on_breach: OnBreach = OnBreach.ROLL_BACK
    from_percent: float = 0.0  # watched only in stages of at least this percentage,
    to_percent: float = 100.0  # and at most this one: a limit that tightens is two guardrails
    #: A floor only: the time that a context has to convert before it counts as not converted.
    within: timedelta = DEFAULT_WITHIN
    #: The kind that the metric's name belongs to.
    kind: MetricKind = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Resolve the metric's kind. Raises ValueError for a metric of no kind."""
        object.__setattr__(self, "kind", kind_of(self.metric))

    @property
    def has_floor(self) -> bool:
        """Whether the limit is one that treatment must stay above."""
        return self.limit is not None and self.kind.is_better_when_higher

    def is_watched_at(self, percent: float) -> bool:
        """Return whether a stage of `percent` is judged by this guardrail."""
        return self.from_percent <= percent <= self.to_percent


@dataclass(frozen=True, slots=True)
class CounterQueries:
    """The queries of one arm's counters, one series for each process; two of the three are set."""

    bad: str | None = None
    good: str | None = None
    total: str | None = None


#: The parts of a question about counters, each with its query: `(arm, part, query)`.
CounterQuestion = tuple[tuple[Arm, str, str], ...]


@dataclass(frozen=True, slots=True)
class ExternalMetric:
    """A number that a monitoring system is asked for, and the threshold that it has to keep.

    It is breached when `misses` of its last `of` looks in a stage missed; one of counters is tested
    as a guardrail is, see `as_guardrail`. At least one of `limit` and `margin` is set; with a
    `margin` there is a query for control.
    """

    name: str
    treatment: str | CounterQueries  # the query of treatment's number, or of the whole service's
    control: str | CounterQueries | None  # the query of control's number; None: it is not asked for
    newest: str | None  # the query of when the newest sample was taken; None: not asked
    limit: float | None  # the absolute threshold, in the unit of the query
    margin: float | None  # how much worse than control treatment may be, relative
    is_better_when_higher: bool = False
    every: timedelta = timedelta(seconds=30)  # between two looks
    misses: int = 3
    of: int = 5
    repeats: int = 1  # of counters: how many events count as one, as they fail together
    #: A number whose newest sample, or whose answer, is older is no number.
    newest_within: timedelta = timedelta(minutes=2)
    role: MetricRole = MetricRole.GUARDRAIL
    on_breach: OnBreach = OnBreach.ROLL_BACK
    from_percent: float = 0.0
    to_percent: float = 100.0

    @property
    def is_counted(self) -> bool:
        """Whether it asks for counters, whose increments are tested."""
        return isinstance(self.treatment, CounterQueries)

    @property
    def queries(self) -> tuple[str | CounterQuestion, ...]:
        """Everything that is asked; of counters all at once, so that they are of one moment."""
        if self.is_counted:
            arms = ((Arm.TREATMENT, self.treatment), (Arm.CONTROL, self.control))
            return (
                tuple(
                    (arm, part, query)
                    for arm, one in arms
                    for part in ("bad", "good", "total")
                    if (query := getattr(one, part, None)) is not None
                ),
            )
        asked = (self.treatment, self.control, self.newest)
        return tuple(one for one in asked if isinstance(one, str))

    @property
    def as_guardrail(self) -> Guardrail:
        """The guardrail that tests the increments of its counters."""
        # There is nothing to compare with at 100 %.
        last = 99.99 if self.limit is None else 100.0
        return Guardrail(
            counters_name(self.name),
            self.role,
            limit=self.limit,
            margin=self.margin,
            on_breach=self.on_breach,
            from_percent=self.from_percent,
            to_percent=min(self.to_percent, last),
        )

    @property
    def words(self) -> str:
        """What is asked of the number, as in `<= 0.3, 3 of 5 looks, every 30s`."""
        sign, worse = (">=", "-") if self.is_better_when_higher else ("<=", "+")
        parts = [] if self.limit is None else [f"{sign} {self.limit:g}"]
        if self.margin is not None:
            parts.append(f"{sign} control {worse} {100 * self.margin:g}%")
        if self.is_counted:
            each = f", {self.repeats} events as one" if self.repeats > 1 else ""
            parts.append(f"tested on the increments of counters{each}")
        else:
            parts.append(f"breached by {self.misses} of {self.of} looks")
        parts.append(f"one every {self.every.total_seconds():g}s")
        return ", ".join(parts)

    def is_watched_at(self, percent: float) -> bool:
        """Return whether a stage of `percent` is judged by this metric."""
        return self.from_percent <= percent <= self.to_percent and (
            self.limit is not None or percent < 100
        )

    def misses_threshold(self, treatment: float, control: float | None) -> bool:
        """Return whether these numbers miss the limit or the margin."""
        sign = -1.0 if self.is_better_when_higher else 1.0
        if self.limit is not None and sign * (treatment - self.limit) > 0:
            return True
        if self.margin is None or control is None:
            return False
        return sign * (treatment - control) > self.margin * abs(control)


@dataclass(frozen=True, slots=True)
class GateWebhook:
    """A system that is asked at each gate, once everything measured has passed."""

    endpoint: str  # its name in the settings, which have its address and secret
    every: timedelta = timedelta(seconds=30)  # between two questions about one gate
    on_fail: OnBreach = OnBreach.PAUSE

    @property
    def words(self) -> str:
        """What is asked how often, as in `asked every 30s, fail pauses`."""
        does = {
            OnBreach.PAUSE: "pauses",
            OnBreach.STEP_BACK: "steps back",
            OnBreach.ROLL_BACK: "rolls back",
        }
        return f"asked every {self.every.total_seconds():g}s, fail {does[self.on_fail]}"


@dataclass(frozen=True, slots=True)
class Window:
    """A recurring time by a local clock: a freeze window, or an active window."""

    weekdays: frozenset[int]  # ISO, Monday is 1; the day on which the window starts
    start_minute: int  # of the local day, 0..1439
    minutes: int  # length, at least 1; may run past midnight
    timezone: str  # IANA name
    first_day: date | None = None  # the window starts on no day before it; None: no limit
    last_day: date | None = None  # the window starts on no day after it; None: no limit


@dataclass(frozen=True, slots=True)
class AdvisorPolicy:
    """What the language model may do at this plan's gates."""

    mode: AdvisorMode = AdvisorMode.CAN_HOLD
    deadline: timedelta = timedelta(seconds=30)  # for one question and its parsed answer
    hold_rounds: int = 3  # holds by advice before a person decides
    hold_for: timedelta = timedelta(minutes=10)  # between two rounds

    @property
    def all_rounds(self) -> timedelta:
        """How long it takes to ask the model in every round."""
        return (self.deadline + self.hold_for) * self.hold_rounds


#: What a health gap does where the plan does not say: the rollout waits and people are told, but a
#: broken split is a fault and pauses the rollout.
DEFAULT_GAP_POLICIES: dict[HealthGap, GapPolicy] = {
    gap: GapPolicy.PAUSE if gap is HealthGap.SRM else GapPolicy.WAIT for gap in HealthGap
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages, guardrails and policies of one rollout."""

    name: str
    #: Identifies the plan of a decision: a hash of its canonical wire form, or, where `apply` has
    #: joined two plans, of their versions.
    version: str
    flag_key: str
    treatment: str  # variant name; with `split` the name of the arm
    control: str  # variant name
    stages: tuple[Stage, ...]  # percent strictly rising within each audience
    guardrails: tuple[Guardrail, ...]
    external: tuple[ExternalMetric, ...] = ()  # each by a name of its own
    gate_webhooks: tuple[GateWebhook, ...] = ()  # each with an endpoint of its own
    advisor: AdvisorPolicy = AdvisorPolicy()
    freeze_windows: tuple[Window, ...] = ()  # nothing advances in them; they delay no rollback
    #: Outside of them everybody has control and the rollout waits; empty: it is always active.
    active: tuple[Window, ...] = ()
    gap_policies: dict[HealthGap, GapPolicy] = field(
        default_factory=lambda: dict(DEFAULT_GAP_POLICIES)
    )
    #: A gap acts, and people are told of it, when it has lasted for so long.
    health_grace: timedelta = timedelta(minutes=5)
    alpha: float = 0.01  # probability of a false roll back over the whole rollout
    beta: float = 0.05  # probability that a gate passes a release as bad as the margin
    #: The newest event of a stage that is judged is at most this old.
    fresh_within: timedelta = timedelta(seconds=60)
    owner: str = ""
    description: str = ""
    expires_at: datetime | None = None  # past it a running rollout pauses and asks for its owner
    ends_at: datetime | None = None  # then 0 % is served, in every phase
    start_at: datetime | None = None
    flag_type: FlagType = FlagType.RELEASE
    audiences: tuple[Audience, ...] = ()
    #: Variant name of contexts that are in neither arm and get control's value.
    unassigned: str = "unassigned"
    #: (variant, weight): what treatment is divided among; empty: not divided.
    split: tuple[tuple[str, int], ...] = ()
    #: JSON value by variant name; empty: true and false.
    values: Mapping[str, Any] = field(default_factory=dict)
    #: A timed ramp without evidence: stages end by bake alone. Every view of the plan warns of it.
    blind: bool = False
    #: Whether its authors may neither approve nor promote: see `machine/four_eyes.py`.
    four_eyes: bool = False
    #: Everything that is tested: the guardrails, and then the external metrics of counters.
    tested: tuple[Guardrail, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make of the external metrics what is tested."""
        counted = (one.as_guardrail for one in self.external if one.is_counted and not self.blind)
        object.__setattr__(self, "tested", (*self.guardrails, *counted))

    def audience(self, name: str | None) -> Audience | None:
        """Return an audience by its name, None for all contexts.

        Raises KeyError for an unknown name.
        """
        if name is None:
            return None
        return {audience.name: audience for audience in self.audiences}[name]

    def external_at(self, percent: float) -> tuple[ExternalMetric, ...]:
        """Return the external metrics that judge a stage of `percent`; a blind plan has none."""
        if self.blind:
            return ()
        return tuple(one for one in self.external if one.is_watched_at(percent))
