"""Faults of one plan that stand beside each other: each is told, and none makes another."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controller.plans import lint_text


@pytest.mark.parametrize(
    ("guardrail", "places"),
    [
        (
            {"metric": "latency_p98", "role": "gard", "limit": -3, "from_percent": 200},
            ["metric", "role", "limit", "from_percent"],
        ),
        (
            {"metric": "error_rate", "compare": {"margin": -1, "gate_margin": 20}},
            ["compare.margin", "compare.gate_margin"],
        ),
        ({"metric": "error_rate", "limit": "much", "from_percent": 1}, [""]),
        ({"metric": "error_rate", "limit": [1], "to_percent": 101}, ["limit", "to_percent"]),
        ({"metric": "error_rate", "compare": 5, "within": "5m"}, ["compare", "within"]),
    ],
)
def test_every_fault_of_one_guardrail_is_told(guardrail: dict[str, Any], places: list[str]) -> None:
    """A fault of form in one field hides no fault of another one, and makes none."""
    stages = [{"percent": 10, "bake": "1h"}, {"percent": 100, "bake": "1h"}]
    plan = {"name": "x", "flag": "f", "owner": "a", "stages": stages}
    _, findings = lint_text(json.dumps({**plan, "guardrails": ["error_rate < 1%", guardrail]}))
    wanted = {f"guardrails[1].{place}".rstrip(".") for place in places}
    assert {str(one).partition(": ")[0] for one in findings} == wanted


@pytest.mark.parametrize("percent", [101, -5])
def test_an_impossible_percentage_makes_no_other_stage_guilty(percent: int) -> None:
    """The stage after it rises above nothing that could be served."""
    stages = [{"percent": each, "bake": "1h"} for each in (percent, 50, 100)]
    plan = {"name": "x", "flag": "f", "owner": "a", "guardrails": ["error_rate < 1%"]}
    _, findings = lint_text(json.dumps({**plan, "stages": stages}))
    assert {one.path[:2] for one in findings} == {("stages", 0)}


@pytest.mark.parametrize("percent", [150, 0])
def test_an_impossible_percentage_is_one_fault(percent: int) -> None:
    """No guardrail is blamed for not watching a stage that cannot be."""
    external = {"name": "p95", "prometheus": {"query": "x"}, "at_most": 1, "role": "signal"}
    plan: dict[str, Any] = {"name": "x", "flag": "f", "owner": "a", "external": [external]}
    plan |= {"stages": [{"percent": percent, "bake": "1h"}], "guardrails": ["error_rate < 1%"]}
    _, findings = lint_text(json.dumps(plan))
    assert {one.path for one in findings if one.is_error} == {("stages", 0, "percent")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nstages:\n\t- {percent: 1}\n", "a tab stands where YAML takes spaces alone"),
        ("name: a\n---\nname: b\n", "a second document begins here: keep each in a file of its"),
    ],
)
def test_a_frequent_mistake_in_yaml_is_told_in_plain_words(text: str, said: str) -> None:
    """What the parser says of it helps nobody who does not know how YAML is parsed."""
    _, (finding,) = lint_text(text)
    assert said in str(finding)
    assert finding.line in (2, 3)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"health": {"stael": "wait"}}, "did you mean stale?"),
        ({"health": {"stale": "rollback"}}, "did you mean roll_back?"),
        ({"guardrails": [{"conversion": "buy > 2%"}]}, "write `- conversion:buy > 2%`"),
    ],
)
def test_a_mistyped_word_is_corrected(section: dict[str, Any], said: str) -> None:
    """A list of all the words there are makes people search."""
    plan = {"name": "x", "flag": "f", "stages": [{"percent": 100, "bake": "1h"}]}
    _, findings = lint_text(json.dumps({**plan, **section}))
    assert any(said in str(one) for one in findings), findings
