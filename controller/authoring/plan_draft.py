"""A rollout plan from a description, within bounds that the risk sets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from controller.adapters.llm.prompts import (
    DESCRIPTION_MAX_CHARS,
    NAME_MAX_CHARS,
    Prompt,
    fill,
    quoted,
)
from controller.authoring.drafting import Draft, Model, draft
from controller.plans import lint_text
from schemas.advice import parse_form
from schemas.fields import format_duration

VERSION = "plan-v2"
MAX_STAGES = 8
MAX_BAKE_HOURS = 14 * 24


class Risk(StrEnum):
    """How bad a faulty change would be."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class RiskBounds:
    """The bounds of a plan for a risk; the template of the risk stays within them.

    Those of a risk are at least as strict as the template of the lower one, so that whoever names a
    higher risk never gets a looser plan. Those of the highest are no looser than `canary`.
    """

    first_percent: int  # the first stage's, at most
    stages: int  # at least
    bake_hours: int  # each stage's, at least
    error_margin_percent: int  # tolerated beyond control's error rate, at most
    latency_margin_percent: int  # the same of the p99
    # absolute limits, at most; only they judge 100 %, where there is no control
    error_limit_percent: int
    latency_limit_ms: int
    needs_approval: bool  # before the second stage is left, at the latest


BOUNDS = {
    Risk.LOW: RiskBounds(25, 2, 1, 50, 50, 10, 10_000, needs_approval=False),
    Risk.MEDIUM: RiskBounds(10, 3, 4, 20, 25, 5, 2_000, needs_approval=False),
    Risk.HIGH: RiskBounds(1, 4, 12, 10, 20, 1, 1_000, needs_approval=True),
}


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StageAnswer(_Form):
    """One stage as a model drafts it, in whole numbers, because no grammar bounds others."""

    percent: Annotated[int, Field(ge=1, le=100)]
    bake_hours: Annotated[int, Field(ge=1, le=MAX_BAKE_HOURS)]
    approval: bool


class PlanAnswer(_Form):
    """A plan as a model drafts it."""

    stages: list[StageAnswer] = Field(min_length=1, max_length=MAX_STAGES)
    error_rate_limit_percent: Annotated[int, Field(ge=1, le=50)]
    error_rate_margin_percent: Annotated[int, Field(ge=1, le=100)]
    latency_margin_percent: Annotated[int, Field(ge=1, le=100)]
    latency_limit_ms: Annotated[int, Field(ge=1, le=60_000)]


FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "stages": {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_STAGES,
            "items": {
                "type": "object",
                "properties": {
                    "percent": {"type": "integer", "minimum": 1, "maximum": 100},
                    "bake_hours": {"type": "integer", "minimum": 1, "maximum": MAX_BAKE_HOURS},
                    "approval": {"type": "boolean"},
                },
                "required": ["percent", "bake_hours", "approval"],
                "additionalProperties": False,
            },
        },
        "error_rate_limit_percent": {"type": "integer", "minimum": 1, "maximum": 50},
        "error_rate_margin_percent": {"type": "integer", "minimum": 1, "maximum": 100},
        "latency_margin_percent": {"type": "integer", "minimum": 1, "maximum": 100},
        "latency_limit_ms": {"type": "integer", "minimum": 1, "maximum": 60_000},
    },
    "required": [
        "stages",
        "error_rate_limit_percent",
        "error_rate_margin_percent",
        "latency_margin_percent",
        "latency_limit_ms",
    ],
    "additionalProperties": False,
}


def _stages(*stages: tuple[int, int, bool]) -> list[StageAnswer]:
    return [
        StageAnswer(percent=percent, bake_hours=hours, approval=approval)
        for percent, hours, approval in stages
    ]


TEMPLATES = {
    Risk.LOW: PlanAnswer(
        stages=_stages((10, 4, False), (50, 12, False), (100, 24, False)),
        error_rate_limit_percent=5,
        error_rate_margin_percent=20,
        latency_margin_percent=25,
        latency_limit_ms=2_000,
    ),
    Risk.MEDIUM: PlanAnswer(
        stages=_stages((5, 12, False), (25, 24, False), (50, 24, False), (100, 24, False)),
        error_rate_limit_percent=2,
        error_rate_margin_percent=10,
        latency_margin_percent=20,
        latency_limit_ms=1_000,
    ),
    Risk.HIGH: PlanAnswer(
        stages=_stages(
            (1, 24, True), (5, 24, True), (25, 48, True), (50, 48, False), (100, 48, False)
        ),
        error_rate_limit_percent=1,
        error_rate_margin_percent=10,
        latency_margin_percent=10,
        latency_limit_ms=1_000,
    ),
}


async def draft_plan(
    model: Model | None, *, flag: str, risk: Risk, description: str, owner: str, now: datetime
) -> Draft[str]:
    """Return a plan as YAML that `plan lint` passes without an error."""

    def read(content: str) -> str:
        answer = parse_form(content, PlanAnswer)
        _check(answer, BOUNDS[risk])
        return written(answer)

    def written(answer: PlanAnswer) -> str:
        text = to_yaml(answer, flag=flag, risk=risk, description=description, owner=owner)
        errors = [str(finding) for finding in lint_text(text, now)[1] if finding.is_error]
        if errors:
            raise ValueError("the drafted plan would be refused: " + "; ".join(errors))
        return text

    prompt = _prompt(flag, risk, description)
    return await draft(model, prompt, FORM, read=read, template=lambda: written(TEMPLATES[risk]))


def _prompt(flag: str, risk: Risk, description: str) -> Prompt:
    bounds = BOUNDS[risk]
    return fill(
        VERSION,
        FORM,
        flag=quoted(flag, NAME_MAX_CHARS),
        description=quoted(description, DESCRIPTION_MAX_CHARS),
        risk=risk,
        first=bounds.first_percent,
        stages=bounds.stages,
        bake=bounds.bake_hours,
        error_limit=bounds.error_limit_percent,
        error_margin=bounds.error_margin_percent,
        latency_margin=bounds.latency_margin_percent,
        latency_limit=bounds.latency_limit_ms,
    )


def _check(answer: PlanAnswer, bounds: RiskBounds) -> None:
    """Raise ValueError for a plan that is bolder than the risk allows.

    It is not corrected: the template is better than a corrected draft.
    """
    percents = [stage.percent for stage in answer.stages]
    faults = [
        words
        for words, is_met in (
            (
                f"its first stage exceeds {bounds.first_percent} %",
                percents[0] <= bounds.first_percent,
            ),
            (f"it has fewer than {bounds.stages} stages", len(percents) >= bounds.stages),
            (
                "its percentages do not rise to 100",
                percents == sorted(set(percents)) and percents[-1] == 100,
            ),
            (
                f"a stage bakes less than {bounds.bake_hours} h",
                all(s.bake_hours >= bounds.bake_hours for s in answer.stages),
            ),
            (
                f"its margin of the error rate exceeds {bounds.error_margin_percent} %",
                answer.error_rate_margin_percent <= bounds.error_margin_percent,
            ),
            (
                f"its margin of the latency exceeds {bounds.latency_margin_percent} %",
                answer.latency_margin_percent <= bounds.latency_margin_percent,
            ),
            (
                f"its limit of the error rate exceeds {bounds.error_limit_percent} %",
                answer.error_rate_limit_percent <= bounds.error_limit_percent,
            ),
            (
                f"its limit of the latency exceeds {bounds.latency_limit_ms} ms",
                answer.latency_limit_ms <= bounds.latency_limit_ms,
            ),
            (
                "nobody approves its first stages",
                not bounds.needs_approval or any(s.approval for s in answer.stages[:2]),
            ),
        )
        if not is_met
    ]
    if faults:
        raise ValueError("the drafted plan is too bold for the risk: " + "; ".join(faults))


def to_yaml(answer: PlanAnswer, *, flag: str, risk: Risk, description: str, owner: str) -> str:
    """Return the plan as a file to begin with."""
    stages = []
    for stage in answer.stages:
        line: dict[str, Any] = {
            "percent": stage.percent,
            "bake": format_duration(timedelta(hours=stage.bake_hours)),
        }
        if stage.approval:
            line["approval"] = "required"
        stages.append(line)
    plan = {
        "name": f"{risk}-risk",
        "flag": flag,
        "description": " ".join(description.split())[:500],
        "owner": owner,
        "stages": stages,
        "guardrails": [
            (
                f"error_rate < {answer.error_rate_limit_percent}% and < control + "
                f"{answer.error_rate_margin_percent}%"
            ),
            (
                f"latency_p99 < {answer.latency_limit_ms}ms and < control + "
                f"{answer.latency_margin_percent}%"
            ),
        ],
        "advisor": {"mode": "can_hold"},
    }
    text: str = yaml.safe_dump(plan, sort_keys=False, allow_unicode=True, width=120)
    return text
