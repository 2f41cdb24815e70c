"""Plans to the core and back: nothing is lost, and the version names the plan."""

from typing import Any

import pytest

from controller.codec.plans import from_core_plan, to_core_plan
from controller.plans import template, templates
from schemas.plan import PlanDocument

PLAN = {
    "name": "p",
    "flag": "f",
    "stages": [{"percent": 1, "bake": "24h"}],
    "guardrails": ["error_rate < 1%"],
}


@pytest.mark.parametrize("name", sorted(templates()))
def test_template_survives_the_core(name: str) -> None:
    """A plan becomes the core's.

    And the core's becomes a document that gives the same plan and version again.
    """
    plan = to_core_plan(template(name, "f"))
    assert to_core_plan(from_core_plan(plan)) == plan


def test_version_names_the_plan_and_not_its_spelling() -> None:
    """Two spellings of one plan have one version; another limit has another."""
    short = PlanDocument.model_validate(PLAN)
    long = PlanDocument.model_validate(
        {
            **PLAN,
            "stages": [{"percent": 1.0, "bake": "1d", "max_bake": "72h"}],
            "guardrails": [{"metric": "error_rate", "limit": 0.01}],
        }
    )
    other = PlanDocument.model_validate({**PLAN, "guardrails": ["error_rate < 2%"]})
    version = to_core_plan(short).version
    assert version == to_core_plan(long).version
    assert version != to_core_plan(other).version
    assert len(version) == 16


def test_guardrail_that_only_compares_ends_with_control() -> None:
    """A guardrail without a limit is watched while there is a control.

    Unless the plan says where it ends.
    """
    document = PlanDocument.model_validate(
        {
            **PLAN,
            "stages": [{"percent": percent, "bake": "1h"} for percent in (1, 50, 100)],
            "guardrails": ["error_rate < control + 10%", "latency_p99 < 200ms and < control + 10%"],
        }
    )
    plan = to_core_plan(document)
    assert [guardrail.metric for guardrail in plan.guardrails if guardrail.is_watched_at(50)] == [
        "error_rate",
        "latency_p99",
    ]
    assert [guardrail.metric for guardrail in plan.guardrails if guardrail.is_watched_at(100)] == [
        "latency_p99"
    ]


@pytest.mark.parametrize(
    ("window", "start", "minutes"),
    [
        ({"from": "17:00", "to": "18:30"}, 1020, 90),
        ({"from": "22:00", "to": "06:00"}, 1320, 480),
        ({"from": "22:00", "to": "24:00"}, 1320, 120),
        ({"from": "09:00", "to": "09:00"}, 540, 1440),
        ({"from": "17:00", "lasts": "64h"}, 1020, 3840),
    ],
)
def test_freeze_window_in_minutes(window: dict[str, str], start: int, minutes: int) -> None:
    """An end that is not after the start lies on the next day.

    Longer windows say how long they last.
    """
    document = PlanDocument.model_validate(
        {**PLAN, "freeze_windows": [{"days": ["fri", "sun"], **window}]}
    )
    core = to_core_plan(document).freeze_windows[0]
    assert (core.weekdays, core.start_minute, core.minutes) == (frozenset({5, 7}), start, minutes)


EXTERNAL: dict[str, Any] = {
    "name": "p95",
    "prometheus": 'x{v=~"{variant}"}',
    "at_least": 0.9,
    "margin": "10%",
    "every": "10s",
    "on_breach": "pause",
    "to_percent": 50,
}


COUNTERS: dict[str, Any] = {
    "name": "errors",
    "prometheus": {
        "bad": 'sum by (instance) (bad{v="{variant}"})',
        "total": 'sum by (instance) (all{v="{variant}"})',
    },
    "at_most": "1%",
    "repeats": 5,
}


def test_counters_are_asked_for_both_arms_at_once() -> None:
    """So that they are of one moment; a share may be written as such."""
    document = PlanDocument.model_validate({**PLAN, "external": [COUNTERS]})
    (metric,) = to_core_plan(document).external
    assert metric.limit == 0.01
    assert metric.queries == (
        (
            ("treatment", "bad", 'sum by (instance) (bad{v="on"})'),
            ("treatment", "total", 'sum by (instance) (all{v="on"})'),
            ("control", "bad", 'sum by (instance) (bad{v="off"})'),
            ("control", "total", 'sum by (instance) (all{v="off"})'),
        ),
    )
    (guardrail,) = to_core_plan(document).tested[-1:]
    assert (guardrail.metric, guardrail.limit) == ("counters:errors", 0.01)


def test_a_number_is_written_as_before_there_were_counters() -> None:
    """Releases before counters read it, and give it the same version."""
    plan = to_core_plan(PlanDocument.model_validate({**PLAN, "external": [EXTERNAL]}))
    assert plan.version == "85a1f4eeeca782f0"


def test_a_plan_without_external_metrics_is_written_as_before() -> None:
    """Releases before external metrics read it, and give it the same version."""
    plan = to_core_plan(PlanDocument.model_validate(PLAN))
    written = from_core_plan(plan).model_dump(mode="json")
    assert "external" not in written
    assert not [gap for gap in written["health"] if gap.startswith("metric_")]
    assert plan.version == "bf722bf0668a9a8e"


@pytest.mark.parametrize(
    "fields",
    [
        {"external": [EXTERNAL]},
        {"external": [{**EXTERNAL, "at_least": None, "higher_is_better": True}]},
        {"external": [{"name": "a", "prometheus": {"treatment": "t"}, "at_most": -1}]},
        {"external": [EXTERNAL], "health": {"metric_no_data": "pause"}},
        {"external": [COUNTERS]},
        {"external": [{**COUNTERS, "prometheus": {"treatment": {"good": "g", "bad": "b"}}}]},
        {"health": {"metric_late": "roll_back"}},
    ],
)
def test_external_metrics_survive_the_core(fields: dict[str, Any]) -> None:
    """The core has a query for each arm, and so has the document that it becomes."""
    plan = to_core_plan(PlanDocument.model_validate({**PLAN, **fields}))
    document = from_core_plan(plan)
    assert to_core_plan(document) == plan
    assert PlanDocument.model_validate_json(document.model_dump_json()) == document


@pytest.mark.parametrize(
    ("variants", "treatment"),
    [({}, "on"), ({"split": [{"name": "a"}, {"name": "b"}]}, "a|b")],
)
def test_a_query_with_variant_is_asked_for_each_arm(
    variants: dict[str, Any], treatment: str
) -> None:
    """A split treatment is all of its variants; without `{variant}` there is one question."""
    document = {**PLAN, "variants": variants, "external": [EXTERNAL]}
    (metric,) = to_core_plan(PlanDocument.model_validate(document)).external
    assert metric.queries == (f'x{{v=~"{treatment}"}}', 'x{v=~"off"}')
    (alone,) = to_core_plan(
        PlanDocument.model_validate({**PLAN, "external": [{**EXTERNAL, "prometheus": "up"}]})
    ).external
    assert alone.queries == ("up",)


def test_a_metric_that_only_compares_ends_with_control() -> None:
    """As a guardrail without a limit does."""
    stages = [{"percent": percent, "bake": "1h"} for percent in (1, 50, 100)]
    metric = {"name": "a", "prometheus": 'x{v="{variant}"}', "margin": 0.1}
    document = {**PLAN, "stages": stages, "external": [metric, {**EXTERNAL, "to_percent": None}]}
    plan = to_core_plan(PlanDocument.model_validate(document))
    assert [one.name for one in plan.external_at(50)] == ["a", "p95"]
    assert [one.name for one in plan.external_at(100)] == ["p95"]
