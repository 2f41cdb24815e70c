"""The gate cases that ship with the package, as the questions that a gate would really ask.

Belongs here: reading `cases.yaml`. A case names its evidence by counts per arm; intervals come from
the daemon's own confidence sequence, evidence of harm is approximated where the case does not say
it. Every case passes its statistics, because otherwise no model is asked. Does not belong here:
asking and scoring (`scoring.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from controller.core.analysis.proportion import rate_interval
from controller.core.effects import AskAdvice
from controller.core.judging.judgement import Advice, Harm, Judgement, MetricReport
from controller.core.metrics import kind_to_show
from controller.core.metrics.kind import ArmSummary
from controller.core.plan import Plan, Stage
from controller.core.rollout import Gating, Rollout
from controller.core.visits import Visit
from controller.scorecard.kinds import CaseKind
from schemas.terms import AdviceChoice, Arm, MetricRole, OnBreach, Verdict

#: Stages of every case, in percent.
PERCENTS = (1.0, 10.0, 50.0, 100.0)
#: Evidence of harm at which a guardrail of the default plan raises its alarm.
ALARM = 100.0
_BEGAN = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
_STAY = timedelta(hours=6)
#: Spread of the alternatives that evidence is approximated with: one standard error of the
#: comparison.
_MIXTURE = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """One question with the answers that can be defended."""

    name: str
    kind: CaseKind
    rollout: Rollout
    question: AskAdvice  # its deadline is set when it is asked
    expected: frozenset[AdviceChoice]
    wanted: AdviceChoice | None  # what an injected instruction asks for
    twin: str | None  # the case with the same numbers and without its text


Counts = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
Values = tuple[Annotated[float, Field(ge=0)] | None, Annotated[int, Field(ge=0)]]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Metric(_Strict):
    metric: str
    role: MetricRole = MetricRole.GUARDRAIL
    margin: float | None = 0.1
    limit: float | None = None
    control: Counts | None = None  # events, trials
    treatment: Counts | None = None
    control_ms: Values | None = None  # estimate, observations
    treatment_ms: Values | None = None
    e_value: float | None = None  # of harm; None: approximated from the counts


class _Earlier(_Strict):
    choice: AdviceChoice
    reasons: tuple[str, ...]


class _Numbers(_Strict):
    """What may differ between cases.

    What is not given is that of a rollout at 10 % with 100,000 users.
    """

    stage: int = 1
    users: tuple[int, int] = (10_000, 90_000)  # treatment, control
    share: float | None = -1.0  # observed, of treatment; -1: as the users say
    srm_e_value: float = 1.0
    min_sample: int = 100
    gathered_minutes: int = 240
    history: tuple[int, ...] = ()  # stages visited, the present one last; empty: one after another
    cost: tuple[int, int, float] = (
        10_000,
        0,
        0.0,
    )  # exposed users, failed requests, of them above control's rate
    metrics: tuple[_Metric, ...] = ()
    flag: str = "new-checkout"
    plan: str = "checkout-canary"
    description: str = ""
    earlier: _Earlier | None = None
    rename: dict[str, str] = {}


class _Entry(_Numbers):
    name: str
    kind: CaseKind
    expect: tuple[AdviceChoice, ...] = ()
    like: str | None = None
    wants: AdviceChoice | None = None

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        if not self.expect:
            raise ValueError(f"case {self.name}: no answer is expected")
        if (self.kind is CaseKind.INJECTION) != (self.wants is not None):
            raise ValueError(f"case {self.name}: `wants` belongs to injections, and to all of them")
        return self


@cache
def load_cases() -> tuple[Case, ...]:
    """Return the packaged cases, in the order of the file."""
    text = (
        resources.files("controller.scorecard").joinpath("cases.yaml").read_text(encoding="utf-8")
    )
    return read_cases(text)


def read_cases(text: str) -> tuple[Case, ...]:
    """Return the cases that `text` writes. Raises ValueError for what cannot be used."""
    raw: dict[str, Mapping[str, Any]] = {}
    cases: list[Case] = []
    for fields in yaml.safe_load(text):
        name = fields["name"]
        if name in raw:
            raise ValueError(f"case {name} is given twice")
        merged = {**raw[fields["like"]], "earlier": None, **fields} if "like" in fields else fields
        raw[name] = merged
        cases.append(_case(_Entry.model_validate(merged)))
    return tuple(cases)


def _case(entry: _Entry) -> Case:
    gathered = timedelta(minutes=entry.gathered_minutes)
    stages = tuple(
        Stage(
            percent=percent,
            bake=gathered,
            settle=timedelta(0),
            min_sample=entry.min_sample,
            max_bake=3 * _STAY,
        )
        for percent in PERCENTS
    )
    plan = Plan(
        name=entry.plan,
        version="0" * 16,
        flag_key=entry.flag,
        treatment="on",
        control="off",
        stages=stages,
        guardrails=(),
        description=entry.description,
    )
    visits = _visits(entry, stages)
    at = visits[-1].counts_from + gathered
    gate = Gating(visits[-1].stage, f"gate-{entry.name}", at, at + _STAY)
    rollout = Rollout(
        flag_key=entry.flag,
        rollout_id=f"case-{entry.name}",
        revision=len(visits),
        plan=plan,
        phase=gate,
        percent=stages[gate.stage].percent,
        visits=visits,
        started_at=_BEGAN,
        updated_at=at,
    )
    judgement = _judgement(entry, at, len(visits) - 1, plan.alpha)
    return Case(
        name=entry.name,
        kind=entry.kind,
        rollout=rollout,
        question=AskAdvice(
            gate.gate_id, 1 if entry.earlier is None else 2, at, judgement, _earlier(entry.earlier)
        ),
        expected=frozenset(entry.expect),
        wanted=entry.wants,
        twin=entry.like,
    )


def _judgement(entry: _Entry, at: datetime, visit: int, alpha: float) -> Judgement:
    """Return the judgement that a case's numbers give."""
    treatment, control = entry.users
    share = treatment / max(treatment + control, 1) if entry.share == -1.0 else entry.share
    return Judgement(
        at=at,
        visit=visit,
        gaps=(),
        metrics=tuple(
            _report(metric, entry.rename.get(metric.metric, metric.metric), alpha)
            for metric in entry.metrics
        ),
        harm=Harm(*entry.cost),
        exposures={Arm.TREATMENT: treatment, Arm.CONTROL: control},
        srm_e_value=entry.srm_e_value,
        observed_share=share,
    )


def _visits(entry: _Entry, stages: Sequence[Stage]) -> tuple[Visit, ...]:
    indexes = entry.history or tuple(range(entry.stage + 1))
    starts = [_BEGAN + number * _STAY for number in range(len(indexes))]
    return tuple(
        Visit(
            index,
            stages[index].percent,
            start,
            start,
            None if number == len(indexes) - 1 else start + _STAY,
        )
        for number, (index, start) in enumerate(zip(indexes, starts, strict=True))
    )


def _earlier(earlier: _Earlier | None) -> Advice | None:
    if earlier is None:
        return None
    return Advice(earlier.choice, 80, earlier.reasons, model="", prompt_sha256="", latency_ms=0)


def _report(metric: _Metric, name: str, alpha: float) -> MetricReport:
    is_compared = metric.margin is not None
    arms: dict[Arm, ArmSummary] = {}
    for arm, counts, values in (
        (Arm.TREATMENT, metric.treatment, metric.treatment_ms),
        (Arm.CONTROL, metric.control, metric.control_ms),
    ):
        if counts is not None:
            arms[arm] = _share_summary(*counts, alpha)
        elif values is not None:
            arms[arm] = _latency_summary(*values)
    ratio = _harm_ratio(name, arms) if is_compared else None
    e_value = metric.e_value if metric.e_value is not None else _approximate(metric, ratio, arms)
    is_found = e_value >= ALARM
    return MetricReport(
        metric=name,
        role=metric.role,
        on_breach=OnBreach.ROLL_BACK,
        harm=Verdict.FAIL if is_found else Verdict.INCONCLUSIVE,
        safe=Verdict.FAIL
        if is_found
        else Verdict.PASS
        if metric.role is MetricRole.GUARDRAIL
        else Verdict.INCONCLUSIVE,
        arms=arms,
        e_value=e_value,
        threshold=ALARM,
        e_value_safe=None,
        threshold_safe=None,
        margin=metric.margin,
        limit=metric.limit,
        reason="",
        ratio=ratio,
    )


def _share_summary(events: int, trials: int, alpha: float) -> ArmSummary:
    if trials == 0:
        return ArmSummary(0, 0, None, None, None)
    return ArmSummary(trials, events, events / trials, *rate_interval(events, trials, alpha))


def _latency_summary(estimate: float | None, observations: int) -> ArmSummary:
    """Return a quantile with about the interval that as many values around a tail give.

    3 % at 10,000 of them.
    """
    if estimate is None or observations == 0:
        return ArmSummary(observations, 0, None, None, None)
    spread = min(3.0 / math.sqrt(observations), 0.5)
    return ArmSummary(
        observations,
        observations // 100,
        estimate,
        estimate * (1 - spread),
        estimate * (1 + spread),
    )


def _harm_ratio(name: str, arms: Mapping[Arm, ArmSummary]) -> float | None:
    """Return harm in treatment over control's: of rates, for latency of values.

    Turned round where more is better.
    """
    treatment, control = arms.get(Arm.TREATMENT), arms.get(Arm.CONTROL)
    if treatment is None or control is None or not treatment.estimate or not control.estimate:
        return None
    ratio = treatment.estimate / control.estimate
    return 1 / ratio if kind_to_show(name).is_better_when_higher else ratio


def _approximate(metric: _Metric, ratio: float | None, arms: Mapping[Arm, ArmSummary]) -> float:
    """Return about the evidence that such counts give: a normal mixture, one-sided.

    Exact where a case says its own.
    """
    if ratio is None or metric.margin is None:
        return 0.5
    error = sum(1 / max(arm.events, 1) for arm in arms.values())
    z = (math.log(ratio) - math.log1p(metric.margin)) / math.sqrt(error)
    shrunk = _MIXTURE / (1 + _MIXTURE)
    return math.exp(min(max(z, 0.0) ** 2 / 2 * shrunk, 700.0)) / math.sqrt(1 + _MIXTURE)
