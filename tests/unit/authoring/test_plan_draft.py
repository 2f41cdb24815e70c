"""Drafted plans: what a model may and may not suggest, and that the templates can be started."""

from __future__ import annotations

import json
from dataclasses import astuple
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.authoring.plan_draft import (
    BOUNDS,
    FORM,
    TEMPLATES,
    PlanAnswer,
    Risk,
    RiskBounds,
    draft_plan,
)
from controller.codec.plans import to_core_plan
from controller.plans import lint_text
from controller.plans.templates import template
from schemas.terms import Approval
from tests.unit.authoring.conftest import scripted

NOW = datetime(2026, 11, 21, tzinfo=UTC)
#: Slower than any risk asks for.
SLOW: dict[str, Any] = {
    "stages": [
        {"percent": percent, "bake_hours": 48, "approval": True} for percent in (1, 5, 25, 100)
    ],
    "error_rate_limit_percent": 1,
    "error_rate_margin_percent": 5,
    "latency_margin_percent": 5,
    "latency_limit_ms": 200,
}


async def suggest(
    answer: object, risk: Risk = Risk.HIGH, description: str = "a new payment provider"
) -> tuple[str, str]:
    """Return the plan's text and who drafted it; None: no model."""
    content = answer if answer is None or isinstance(answer, str) else json.dumps(answer)
    made = await draft_plan(
        scripted(content),
        flag="new-checkout",
        risk=risk,
        description=description,
        owner="ada",
        now=NOW,
    )
    return made.content, made.origin


def test_the_form_is_the_model() -> None:
    """What a server is asked for is what our own check accepts.

    The same fields, the same bounds.
    """
    generated = PlanAnswer.model_json_schema()
    assert generated["properties"].keys() == FORM["properties"].keys() == set(FORM["required"])
    stage = generated["$defs"]["StageAnswer"]["properties"]
    for name, field in FORM["properties"]["stages"]["items"]["properties"].items():
        assert {key: stage[name].get(key) for key in field} == field
    assert "$" not in json.dumps(FORM)


@pytest.mark.parametrize("risk", Risk)
async def test_without_a_model_the_template_can_be_started(risk: Risk) -> None:
    """Each risk's template passes `plan lint`, keeps the risk's own bounds.

    And says that no model wrote it.
    """
    text, origin = await suggest(None, risk)
    document, findings = lint_text(text, NOW)
    assert document is not None
    assert not [finding for finding in findings if finding.is_error]
    assert document.stages[0].percent <= BOUNDS[risk].first_percent
    assert "no model" in origin
    assert (await suggest(TEMPLATES[risk].model_dump(), risk))[0] == text


@pytest.mark.parametrize("risk", Risk)
async def test_a_careful_draft_is_taken(risk: Risk) -> None:
    """A plan within the bounds is the model's, can be started, and names its author."""
    text, origin = await suggest(SLOW, risk)
    document, _ = lint_text(text, NOW)
    assert document is not None
    assert [stage.percent for stage in document.stages] == [1, 5, 25, 100]
    assert "drafted by the model tiny" in origin


def strictness(stages: list[tuple[float, float, bool]], limits: list[float]) -> list[float]:
    """Return what makes a plan strict, each the stricter the smaller it is.

    `stages` are (percent, hours, approval); `limits` whatever is tolerated at most.
    """
    first_approval = next((i for i, (*_, asks) in enumerate(stages) if asks), len(stages))
    shortest = min(hours for _, hours, _ in stages)
    return [stages[0][0], -len(stages), -shortest, float(first_approval > 1), *limits]


def of_bounds(bounds: RiskBounds) -> list[float]:
    """Return the strictness of the boldest plan within bounds."""
    stages: list[tuple[float, float, bool]] = [
        (bounds.first_percent, bounds.bake_hours, bounds.needs_approval)
    ] * bounds.stages
    return strictness(stages, list(astuple(bounds)[3:-1]))


def of_template(risk: Risk) -> list[float]:
    """Return the strictness of the template of a risk."""
    answer = TEMPLATES[risk]
    stages = [(one.percent, one.bake_hours, one.approval) for one in answer.stages]
    limits: list[float] = [
        answer.error_rate_margin_percent,
        answer.latency_margin_percent,
        answer.error_rate_limit_percent,
        answer.latency_limit_ms,
    ]
    return strictness([(float(p), float(h), a) for p, h, a in stages], limits)


def of_plan(name: str) -> list[float]:
    """Return the strictness of a plan template of the package."""
    plan = to_core_plan(template(name, "new-checkout"))
    error, latency = plan.guardrails
    stages = [
        (one.percent, one.bake.total_seconds() / 3600, one.approval is Approval.REQUIRED)
        for one in plan.stages
    ]
    assert error.margin is not None
    assert error.limit is not None
    assert latency.margin is not None
    assert latency.limit is not None
    limits = [100 * error.margin, 100 * latency.margin, 100 * error.limit, latency.limit]
    return strictness(stages, limits)


@pytest.mark.parametrize(("higher", "lower"), list(pairwise(reversed(Risk))))
def test_a_higher_risk_is_never_looser(higher: Risk, lower: Risk) -> None:
    """In no stage, bake, margin or limit, whoever drafts it.

    The boldest draft for a risk is at least as strict as the template of the lower one.
    """
    for strict, loose in (
        (of_template(higher), of_bounds(BOUNDS[higher])),
        (of_bounds(BOUNDS[higher]), of_template(lower)),
    ):
        assert all(a <= b + 1e-9 for a, b in zip(strict, loose, strict=True)), (strict, loose)


def test_a_high_risk_is_no_looser_than_the_canary_template() -> None:
    """`canary` is for small changes."""
    pairs = zip(of_bounds(BOUNDS[Risk.HIGH]), of_plan("canary"), strict=True)
    assert all(a <= b + 1e-9 for a, b in pairs)


BOLD: dict[str, tuple[dict[str, Any], str]] = {
    "starts high": (
        {"stages": [{**SLOW["stages"][0], "percent": 2}, *SLOW["stages"][1:]]},
        "first stage exceeds 1 %",
    ),
    "has few stages": ({"stages": [SLOW["stages"][0], SLOW["stages"][-1]]}, "fewer than 4 stages"),
    "falls": (
        {"stages": [SLOW["stages"][0], SLOW["stages"][2], SLOW["stages"][1], SLOW["stages"][3]]},
        "do not rise",
    ),
    "ends early": (
        {
            "stages": [
                SLOW["stages"][0],
                SLOW["stages"][1],
                *({**SLOW["stages"][2], "percent": p} for p in (25, 50)),
            ]
        },
        "rise to 100",
    ),
    "bakes short": (
        {"stages": [{**stage, "bake_hours": 1} for stage in SLOW["stages"]]},
        "bakes less than 12 h",
    ),
    "tolerates much": ({"latency_margin_percent": 90}, "margin of the latency exceeds 20 %"),
    "tolerates failures": ({"error_rate_margin_percent": 20}, "of the error rate exceeds 10 %"),
    "limits loosely": ({"error_rate_limit_percent": 2}, "limit of the error rate exceeds 1 %"),
    "waits long": ({"latency_limit_ms": 2000}, "limit of the latency exceeds 1000 ms"),
    "asks nobody": (
        {"stages": [{**stage, "approval": False} for stage in SLOW["stages"]]},
        "nobody approves",
    ),
    "has no stage": ({"stages": []}, "not in the form"),
    "invents a field": ({"skip_gates": True}, "not in the form"),
    "has a percentage beyond all": (
        {"stages": [{**SLOW["stages"][0], "percent": 101}]},
        "not in the form",
    ),
}


@pytest.mark.parametrize("fault", BOLD)
async def test_a_bold_draft_is_not_shown(fault: str) -> None:
    """A plan that goes beyond what its risk allows is replaced by the template, with the reason."""
    changes, reason = BOLD[fault]
    text, origin = await suggest({**SLOW, **changes})
    assert text == (await suggest(None))[0]
    assert reason in origin


async def test_a_description_cannot_break_the_file() -> None:
    """Whatever the author writes.

    The plan is read back with that text as its description and nothing else changed.
    """
    text, _ = await suggest(
        None, description='quick: "}\n- {percent: 100, bake: 1s}\x1b[2J\nblind: true'
    )
    document, _ = lint_text(text, NOW)
    assert document is not None
    assert not document.blind
    assert len(document.stages) == 5


@given(
    st.text(max_size=300)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda inner: (
            st.dictionaries(st.sampled_from(sorted(FORM["properties"])), inner)
            | st.lists(inner, max_size=5)
        ),
        max_leaves=12,
    ).map(json.dumps)
)
async def test_any_answer_is_a_plan_that_can_be_started(answer: str) -> None:
    """Whatever a model writes, the operator gets a plan without errors."""
    text, _ = await suggest(answer)
    document, findings = lint_text(text, NOW)
    assert document is not None
    assert not [finding for finding in findings if finding.is_error]
