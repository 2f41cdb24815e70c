"""Lint names policies of health gaps that a plan can never act on."""

from __future__ import annotations

from typing import Any

import pytest

from controller.plans.health_rules import health_faults
from schemas.plan import PlanDocument


def faults(**fields: Any) -> list[str]:
    """Return what lint finds about the health of a plan whose stage lasts at most an hour."""
    document = PlanDocument.model_validate(
        {
            "name": "p",
            "flag": "f",
            "stages": [{"percent": 10, "bake": "10m", "max_bake": "1h"}],
            **fields,
        }
    )
    return [str(finding) for finding in health_faults(document, None)]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"health": {"stale": "wait"}, "health_grace": "12h"},
        {"health": {"stale": "pause"}, "health_grace": "1h"},
        {"health": {"srm": "roll_back", "below_min_sample": "pause"}, "health_grace": "12h"},
        {"blind": True, "health": {"actuation_drift": "pause"}},
    ],
)
def test_policies_that_can_act_are_fine(fields: dict[str, Any]) -> None:
    """A policy to wait, one within the stage's time, and those that need no grace time."""
    assert faults(**fields) == []


def test_a_grace_time_beyond_every_stage_is_named() -> None:
    """The policy would never act, because the gate pauses before."""
    (fault,) = faults(health={"stale": "pause", "no_outcomes": "roll_back"}, health_grace="2h")
    assert fault == (
        "health_grace: it is 2h, and no stage lasts longer than 1h: stale, no_outcomes would never "
        "act; shorten it, as in 5m"
    )


def test_a_blind_plan_has_no_gaps_of_evidence() -> None:
    """Who asks a blind plan to roll back without outcomes believes to be guarded, and is not."""
    (fault,) = faults(blind=True, health={"no_outcomes": "roll_back"})
    assert fault.startswith("health.no_outcomes: a blind plan judges no events")
