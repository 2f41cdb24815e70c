"""Gate webhooks in a plan: their form, what lint finds, and what a change of them does."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from controller.codec.plans import from_core_plan, to_core_plan
from controller.core.plan import GateWebhook
from controller.core.plan_changes.webhooks import webhook_changes
from controller.plans import lint, lint_text
from schemas.plan import PlanDocument
from schemas.terms import ChangeEffect, HealthGap, OnBreach
from tests.builders import make_plan


def document(*webhooks: Any, **fields: Any) -> PlanDocument:
    """Return a plan with these gate webhooks."""
    return PlanDocument.model_validate(
        {
            "name": "p",
            "flag": "f",
            "owner": "ada",
            "stages": [{"percent": 10, "bake": "10m"}, {"percent": 100, "bake": "10m"}],
            "guardrails": ["error_rate < 1%"],
            "gate_webhooks": list(webhooks),
            **fields,
        }
    )


def test_a_bare_name_is_an_endpoint() -> None:
    """With the defaults: every 30 s, and `fail` pauses for a person."""
    plan = to_core_plan(document("load-test"))
    assert plan.gate_webhooks == (GateWebhook("load-test", timedelta(seconds=30), OnBreach.PAUSE),)
    assert lint(document("load-test")) == []


def test_a_plan_comes_back_from_its_document_as_it_was() -> None:
    """With every field, and the same version."""
    written = {"endpoint": "audit", "every": "5s", "on_fail": "roll_back"}
    plan = to_core_plan(document("load-test", written))
    assert plan.gate_webhooks[1] == GateWebhook("audit", timedelta(seconds=5), OnBreach.ROLL_BACK)
    assert to_core_plan(from_core_plan(plan)) == plan


def test_a_plan_without_webhooks_is_written_as_earlier_releases_read_it() -> None:
    """They refuse keys and gaps that they do not know."""
    plain = from_core_plan(to_core_plan(document())).model_dump(mode="json")
    assert "gate_webhooks" not in plain
    assert not [gap for gap in plain["health"] if gap.startswith("webhook_")]
    health = {HealthGap.WEBHOOK_NO_ANSWER: "pause"}
    with_policy = from_core_plan(to_core_plan(document(health=health))).model_dump(mode="json")
    assert with_policy["health"]["webhook_no_answer"] == "pause"
    asked = from_core_plan(to_core_plan(document("a"))).model_dump(mode="json")
    assert asked["health"]["webhook_no_answer"] == "wait"


@pytest.mark.parametrize(
    ("webhooks", "fields", "expected"),
    [
        (["a", "a"], {}, "gate_webhooks[0] asks a, too"),
        ([{"endpoint": "a", "every": "0.5s"}], {}, "write at least 1s"),
        (
            [{"endpoint": "a", "on_fail": "step_back"}],
            {"stages": [{"percent": 10, "bake": "10m"}]},
            "no stage lies below",
        ),
        ([{"endpoint": "a", "every": "1h"}], {}, "after one `hold` or error it pauses"),
    ],
)
def test_lint_finds_what_cannot_work(webhooks: Any, fields: Any, expected: str) -> None:
    """With the place and how to fix it."""
    assert any(expected in str(finding) for finding in lint(document(*webhooks, **fields)))


@pytest.mark.parametrize(
    "webhook",
    [
        "http://169.254.169.254/",
        "../other",
        "",
        {"url": "http://127.0.0.1:6379"},
        {"endpoint": "a", "url": "http://127.0.0.1:6379"},
        {"endpoint": "a", "secret": "whsec_x"},
    ],
)
def test_a_plan_cannot_name_an_address_or_a_secret(webhook: Any) -> None:
    """Only the settings can: a plan is written by more people."""
    text = PlanDocument.model_validate(document().model_dump(mode="json")).model_dump_json()
    changed = text.replace('"flag":"f"', f'"flag":"f","gate_webhooks":[{json.dumps(webhook)}]')
    assert "gate_webhooks" in changed
    _, findings = lint_text(changed)
    assert any("gate_webhooks" in str(one.path) for one in findings)


@pytest.mark.parametrize(
    ("old", "new", "effect"),
    [
        ((), (GateWebhook("a"),), ChangeEffect.AT_ONCE),
        ((GateWebhook("a"),), (), ChangeEffect.NEEDS_REASON),
        ((GateWebhook("a"),), (GateWebhook("b"),), ChangeEffect.NEEDS_REASON),
        (
            (GateWebhook("a"),),
            (GateWebhook("a", on_fail=OnBreach.ROLL_BACK),),
            ChangeEffect.AT_ONCE,
        ),
        (
            (GateWebhook("a", on_fail=OnBreach.ROLL_BACK),),
            (GateWebhook("a"),),
            ChangeEffect.NEEDS_REASON,
        ),
        (
            (GateWebhook("a"),),
            (GateWebhook("a", every=timedelta(minutes=5)),),
            ChangeEffect.AT_ONCE,
        ),
    ],
)
def test_what_asks_less_of_a_gate_needs_a_reason(old: Any, new: Any, effect: ChangeEffect) -> None:
    """A webhook can only hold, stop or lower, so that none of it voids evidence."""
    plan = make_plan(gate_webhooks=old)
    changes = list(webhook_changes(plan, replace(plan, gate_webhooks=new)))
    assert effect in {one[3] for one in changes}
    assert (effect is ChangeEffect.NEEDS_REASON) == any(
        one[3] is ChangeEffect.NEEDS_REASON for one in changes
    )
