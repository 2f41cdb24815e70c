"""Lint names external metrics that cannot work, and gates that they never let pass."""

from __future__ import annotations

from typing import Any

import pytest

from controller.plans import lint, lint_text
from controller.plans.external_rules import longest_range
from schemas.plan import PlanDocument

QUERY = 'sum(rate(errors{variant="{variant}"}[1m]))'


def document(*metrics: dict[str, Any], **fields: Any) -> PlanDocument:
    """Return a plan with these external metrics, and a guardrail on events."""
    return PlanDocument.model_validate(
        {
            "name": "p",
            "flag": "f",
            "owner": "ada",
            "stages": [{"percent": 10, "bake": "10m"}, {"percent": 100, "bake": "10m"}],
            "guardrails": ["error_rate < 1%"],
            "external": list(metrics),
            **fields,
        }
    )


def metric(**fields: Any) -> dict[str, Any]:
    """Return an external metric that lint finds nothing about."""
    return {"name": "p95", "prometheus": QUERY, "at_most": 0.3, **fields}


def faults(*metrics: dict[str, Any], **fields: Any) -> list[str]:
    """Return what lint finds."""
    return [str(finding) for finding in lint(document(*metrics, **fields))]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prometheus": "up", "at_most": None, "at_least": 1},
        {"at_most": None, "margin": "10%"},
        {"prometheus": {"treatment": "a", "control": "b"}, "margin": 0.1},
        {"prometheus": {"query": "up", "newest": "max(timestamp(up))"}},
        {"role": "observe", "misses": 1, "of": 1, "every": "1s"},
        {"from_percent": 50},
    ],
)
def test_what_can_work_is_fine(fields: dict[str, Any]) -> None:
    """One query or one for each arm, a limit, a floor or a margin."""
    assert faults(metric(**fields)) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"at_most": None}, "external[0]: p95 has no threshold; add one"),
        ({"at_least": 1}, "external[0].at_least: a metric is better when lower or when higher"),
        ({"higher_is_better": True}, "external[0].at_most: a metric that is better when higher"),
        ({"misses": 6}, "external[0].misses: 6 of 5 looks can never miss"),
        ({"every": "0s"}, "external[0].every: it is 0s; write at least 1s"),
        ({"prometheus": "up", "margin": "10%"}, "external[0].margin: there is no number of con"),
        ({"prometheus": "up or vector(0)"}, "external[0].prometheus.query: `or vector(0)` makes"),
        (
            {"prometheus": {"query": "up", "newest": 'timestamp(up{v="{variant}"})'}},
            "external[0].prometheus.newest: {variant} is only replaced in `query`",
        ),
        ({"from_percent": 50, "to_percent": 20}, "external[0].to_percent: watches 50 % to 20 %"),
        ({"from_percent": 20, "to_percent": 50}, "external[0]: watches no stage at all"),
        ({"every": "10m"}, "stages[0]: its gate can never pass: p95 needs 5 looks, which take 50m"),
        (
            {"prometheus": "rate(x[5m])"},
            "stages[0].settle: the query of p95 looks back 5m, further than the settle of 10 %",
        ),
    ],
)
def test_what_cannot_work_is_named(fields: dict[str, Any], expected: str) -> None:
    """Each fault stands at its place, with what to write instead."""
    assert faults(metric(**fields))[0].startswith(expected)


def test_two_metrics_of_one_name_are_named() -> None:
    """Reports and commands name a metric by its name alone."""
    assert faults(metric(), metric()) == [
        "external[1].name: external[0] has the name p95, too; give it another"
    ]


def test_a_blind_plan_has_none() -> None:
    """It says that it looks at nothing."""
    found = faults(metric(), blind=True, guardrails=[])
    assert found == [
        "blind: a blind plan looks at no metric; remove `blind`, or the external metrics"
    ]


def test_a_split_treatment_is_matched_by_all_its_variants() -> None:
    """`=` would match a variant that is called `a|b`, which nobody has."""
    values = {"off": False, "a": True, "b": True}
    variants = {"split": [{"name": "a"}, {"name": "b"}], "values": values}
    (fault,) = faults(metric(), variants=variants)
    assert fault.startswith("external[0].prometheus.query: treatment is split")
    matching = 'sum(rate(errors{variant=~"{variant}"}[1m]))'
    assert faults(metric(prometheus=matching), variants=variants) == []


def test_external_metrics_alone_watch_a_stage() -> None:
    """They can roll back, so that a plan with them is not unwatched; one that observes cannot."""
    assert faults(metric(), guardrails=[]) == []
    assert "nothing would roll the flag back" in faults(metric(role="observe"), guardrails=[])[0]


def test_faults_of_form_have_their_place_and_the_rest_is_judged() -> None:
    """A typing error in one metric does not hide what is wrong with another."""
    text = """\
name: p
flag: f
owner: ada
stages: [{percent: 10, bake: 10m}, {percent: 100, bake: 10m}]
guardrails: [error_rate < 1%]
external:
  - {name: one, promethus: up, at_most: 1}
  - {name: two, prometheus: up}
"""
    _, findings = lint_text(text)
    said = [one.located("p.yaml") for one in findings]
    assert any("external[0].promethus" in one and "prometheus" in one for one in said), said
    assert any("external[1]: two has no threshold" in one for one in said), said


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ("up", 0),
        ("rate(x[5m])", 300),
        ("max_over_time(rate(x[1h30m])[2d:1m])", 172_800),
        ("rate(x[500ms])", 0.5),
        ("x[y]", 0),
    ],
)
def test_the_longest_range_of_a_query_is_found(query: str, seconds: float) -> None:
    """Subqueries have one, too."""
    assert longest_range(query) == seconds
