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
        ({"repeats": 2}, "external[0].repeats: a number has no events that could repeat"),
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


def counters(**fields: Any) -> dict[str, Any]:
    """Return counters that lint finds nothing about; `bad` and so on are the queries."""
    asked: dict[str, Any] = {
        "bad": 'sum by (instance) (bad{variant="{variant}"})',
        "total": 'sum by (instance) (all{variant="{variant}"})',
    }
    asked |= {name: fields.pop(name) for name in ("bad", "good", "total") if name in fields}
    asked = {name: query for name, query in asked.items() if query is not None}
    return {"name": "errors", "prometheus": asked, "at_most": "1%", "margin": "10%", **fields}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"at_most": None},
        {"margin": None},
        {"bad": 'bad{variant="{variant}"}', "total": 'all{variant="{variant}"}'},
        {"bad": 'sum(bad{variant="{variant}"}) by (instance)'},
        {"bad": 'sum without (code) (bad{variant="{variant}"})'},
        {"total": None, "good": 'sum by (instance) (good{variant="{variant}"})'},
        {"prometheus": {"query": {"bad": "sum by (i) (b)", "total": "t"}}, "margin": None},
        {
            "prometheus": {
                "treatment": {"bad": "b", "total": "t"},
                "control": {"bad": "bc", "total": "tc"},
            }
        },
    ],
)
def test_counters_that_can_work_are_fine(fields: dict[str, Any]) -> None:
    """Two of the three, by process, with a share or a margin."""
    assert faults(counters(**fields)) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"bad": 'sum by (i) (rate(bad{variant="{variant}"}[1m]))'},
            "external[0].prometheus.query.bad: rate() gives no counter: rolloutd takes the",
        ),
        (
            {"total": 'sum(all{variant="{variant}"})'},
            "external[0].prometheus.query.total: it adds up the counters of all processes",
        ),
        ({"total": "t"}, "external[0].prometheus.query.total: it counts the events of all vari"),
        ({"bad": 'b{v="{variant}"} or vector(0)'}, "external[0].prometheus.query.bad: `or vector"),
        ({"at_most": 5}, "external[0].at_most: a limit of 5 means 500 % of the events"),
        ({"at_most": 0}, "external[0].at_most: a limit of 0 means 0 % of the events"),
        (
            {"at_most": None, "at_least": "99%"},
            "external[0].at_least: counters are judged by their share of bad events",
        ),
        ({"misses": 2}, "external[0].misses: counters are tested on all their events"),
        ({"bad": "b", "total": "t"}, "external[0].margin: there is no number of control"),
        ({"every": "20h"}, "stages[0]: its gate can never pass: errors needs 2 looks, which take"),
    ],
)
def test_counters_that_cannot_work_are_named(fields: dict[str, Any], expected: str) -> None:
    """Each fault stands at its query."""
    if "at_least" in fields:
        fields = {**fields, "at_least": 0.99}
    assert faults(counters(**fields))[0].startswith(expected)


@pytest.mark.parametrize(
    ("prometheus", "expected"),
    [
        ("{bad: b}", "external[0].prometheus.query: needs two of `bad`, `good` and `total`"),
        ("{bad: b, good: g, total: t}", "external[0].prometheus.query: needs two of `bad`, `good"),
        ("{bad: b, totl: t}", "external[0].prometheus.query.totl: unknown key; did you mean total"),
        ("{query: {bad: b, total: t}, newest: n}", "external[0].prometheus: `newest` is not for"),
        ("{treatment: {bad: b, total: t}, control: c}", "external[0].prometheus: `treatment` and"),
        ("{bad: 7, total: t}", "external[0].prometheus.query.bad: 7 is read as a number"),
    ],
)
def test_faults_of_form_of_counters_stand_at_their_place(prometheus: str, expected: str) -> None:
    """Without words of the parser between the steps."""
    text = f"""\
name: p
flag: f
owner: ada
stages: [{{percent: 10, bake: 10m}}, {{percent: 100, bake: 10m}}]
external:
  - {{name: one, prometheus: {prometheus}, at_most: 1%}}
"""
    _, findings = lint_text(text)
    said = [one.located("p.yaml") for one in findings]
    assert any(expected in one for one in said), said


def test_a_fault_of_one_counter_has_the_line_of_that_counter() -> None:
    """Whether the text has `query` or leaves it out."""
    text = """\
name: p
flag: f
owner: ada
stages: [{percent: 10, bake: 10m}, {percent: 100, bake: 10m}]
external:
  - name: short
    at_most: 1%
    prometheus:
      bad: b
      total: sum(t)
  - name: long
    at_most: 1%
    prometheus:
      query:
        bad: rate(b[1m])
        totl: t
"""
    _, findings = lint_text(text)
    assert {one.line for one in findings} == {10, 16}
    _, findings = lint_text(text.replace("totl", "total"))
    assert [one.line for one in findings if one.is_error] == [10, 15]


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
