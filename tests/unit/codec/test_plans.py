"""Plans to the core and back: nothing is lost, and the version names the plan."""

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
