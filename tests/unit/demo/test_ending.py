"""What the demo says about its end: never that something happened which did not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller.core.rollout import AwaitingApproval, Rollout
from controller.demo.apps import Report
from controller.demo.ending import conclude, summary
from controller.demo.observer import Course
from controller.demo.scenarios import SCENARIOS
from schemas.terms import HoldReason
from tests.builders import T0, make_rollout

HEALTHY = SCENARIOS["healthy"]
DECISION: dict[str, Any] = {"reason": "all passed", "judgement": None, "advice": None, "kind": "x"}


def held_rollout() -> Rollout:
    """Return a rollout that waits for a person because advice held."""
    phase = AwaitingApproval(stage=0, gate_id="g", since=T0, reason=HoldReason.ADVISOR)
    return replace(make_rollout(percent=1.0), phase=phase)


def verdict(rollout: Rollout | None, *, has_real_advisor: bool) -> tuple[bool, str]:
    """Return whether a healthy scenario that ended so is fine, and in which words."""
    end = conclude(
        HEALTHY.ending, rollout, [DECISION], longest_seconds=240, has_real_advisor=has_real_advisor
    )
    return end.fault is None, end.words


def test_a_hold_of_a_real_model_is_said_as_such() -> None:
    """A demo that a model holds is fine; nobody claims that the rollout completed."""
    is_fine, words = verdict(held_rollout(), has_real_advisor=True)
    assert is_fine
    assert words.startswith("OK, held by the model: a person decides.")
    assert "as expected" not in words


def test_a_hold_without_a_real_model_is_a_fault() -> None:
    """Only a real model may end a scenario otherwise than named."""
    is_fine, words = verdict(held_rollout(), has_real_advisor=False)
    assert not is_fine
    assert words == "Expected: completed. But it ended awaiting approval, not completed"


def test_a_rollout_that_never_ends_is_a_fault() -> None:
    """Neither one that did not begin nor one that still moves is fine, with a model or without."""
    assert "did not begin within 240 s" in verdict(None, has_real_advisor=True)[1]
    is_fine, words = verdict(make_rollout(), has_real_advisor=True)
    assert not is_fine
    assert "still baking after 240 s" in words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (1, "1 gate was decided without advice: no usable answer came in time."),
        (3, "3 gates were decided without advice: no usable answer came in time."),
    ],
)
def test_gates_without_advice_are_counted_in_english(count: int, words: str) -> None:
    """One gate was, three gates were."""
    unadvised = {**DECISION, "reason": "all passed; no advice: too slow"}
    course = Course(rollout=make_rollout(), decisions=[DECISION, *[unadvised] * count])
    assert words in summary(course, Report())


def test_advice_is_counted_by_its_verdict() -> None:
    """The summary says what the model answered at the gates."""
    advised = [{**DECISION, "advice": {"choice": choice}} for choice in ("proceed", "hold", "hold")]
    course = Course(rollout=make_rollout(), decisions=advised)
    assert "Advice in the decisions: hold (2), proceed (1)." in summary(course, Report())
    course = Course(rollout=make_rollout(updated_at=T0), decisions=[DECISION])
    assert "Advice" not in " ".join(summary(course, Report()))
