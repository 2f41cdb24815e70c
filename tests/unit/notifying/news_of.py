"""News for tests."""

from __future__ import annotations

from typing import Any

from controller.notifying.news import DecisionStep, News
from schemas.terms import Severity
from tests.builders import T0


def news(number: int = 1, **overrides: Any) -> News:
    """Return that a flag was rolled back; `number` makes its id and revision."""
    fields: dict[str, Any] = {
        "id": f"checkout/{number}/0",
        "kind": "rolled_back",
        "severity": Severity.CRITICAL,
        "flag": "checkout",
        "rollout_id": "r1",
        "revision": number,
        "at": T0,
        "key": "checkout/r1/rolled_back",
        "summary": "checkout is at 0 %: too many errors",
        "action": "look at the errors",
        "phase": "rolled_back",
        "percent": 0.0,
        "owner": "payments",
        "stage": "10%",
    }
    return News(**{**fields, **overrides})


def step(revision: int, *, is_new_chapter: bool = False, rollout_id: str = "r1") -> DecisionStep:
    """Return that a rollout of the flag went on."""
    return DecisionStep("checkout", rollout_id, revision, is_new_chapter)
