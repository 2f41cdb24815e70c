"""Active windows in a plan: how they are written, and what lint says of them."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from controller.codec.plans import from_core_plan, to_core_plan
from controller.core.plan import Window
from controller.plans import lint
from schemas.plan import PlanDocument

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
OFFICE = {"days": ["mon", "tue", "wed", "thu", "fri"], "from": "09:00", "to": "17:00"}


def plan(
    *active: dict[str, Any], bake: str = "1h", settle: str = "1m", **more: Any
) -> PlanDocument:
    """Return a plan with these active windows."""
    return PlanDocument.model_validate(
        {
            "name": "p",
            "flag": "f",
            "owner": "ada",
            "stages": [{"percent": 100, "bake": bake, "settle": settle}],
            "guardrails": ["error_rate < 1%"],
            "active": list(active),
            **more,
        }
    )


def findings(document: PlanDocument, now: datetime | None = NOW) -> list[str]:
    """Return what lint says of the windows, and of settle and bake."""
    words = ("active", "settle", "bake", "window")
    return [
        f"{'error' if one.is_error else 'warning'} {one}"
        for one in lint(document, now)
        if any(word in str(one) for word in words)
    ]


def test_the_windows_of_the_documents_are_sound() -> None:
    """Business hours, a promotion's dates, and a maintenance window raise no objection."""
    promotion = {"dates": "2026-11-27..2026-11-30", "timezone": "Europe/Berlin"}
    night = {"days": ["sun"], "from": "02:00", "lasts": "2h"}
    for window in (OFFICE, promotion, night):
        assert findings(plan(window)) == []


def test_windows_have_defaults_and_are_read_back() -> None:
    """Every day, from 00:00 to 24:00, UTC; the document of the core's plan means the same."""
    made = to_core_plan(plan({"dates": "2026-11-27"}, OFFICE))
    day = date(2026, 11, 27)
    assert made.active == (
        Window(frozenset(range(1, 8)), 0, 1440, "UTC", day, day),
        Window(frozenset(range(1, 6)), 540, 480, "UTC"),
    )
    assert to_core_plan(from_core_plan(made)).active == made.active


@pytest.mark.parametrize(
    "window",
    [
        {"dates": "2026-02-30"},
        {"dates": "2026-11-30..2026-11-27"},
        {"dates": "1026-11-30"},
        {"dates": "27.11.2026"},
        {"from": "24:00"},
        {"from": "09:00", "to": "10:00", "lasts": "1h"},
        {"lasts": "90s"},
        {"lasts": "8d"},
    ],
)
def test_a_window_that_means_nothing_is_refused(window: dict[str, Any]) -> None:
    """Dates that do not exist, two ends, lengths that are no whole minutes."""
    with pytest.raises(ValidationError):
        plan(window)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (plan({"timezone": "Mars/Olympus"}), "error active[0].timezone: unknown time zone"),
        (plan({"dates": "2026-11-21"}), "error active: no active window comes any more"),
        (
            plan({"dates": "2026-11-21"}, OFFICE),
            "warning active[0].dates: its dates are past: 2026-11-21",
        ),
        (
            plan({"dates": "2026-11-27", "days": ["mon"]}, OFFICE),
            "error active[0].dates: it never opens: no day of 2026-11-27 is one of its days",
        ),
        (plan({}), "warning active: the windows cover every moment: it never closes"),
        (
            plan(OFFICE, freeze_windows=[{**OFFICE, "from": "08:00"}]),
            "error active: every active window lies in a freeze window",
        ),
        (
            plan(OFFICE, bake="41h"),
            "warning stages[0].bake: the active windows of a week (1d 16h together) are shorter",
        ),
        (
            plan({"from": "09:00", "to": "09:30"}, settle="30m"),
            "error stages[0].settle: settle (30m) is not shorter than an active window (30m)",
        ),
        (
            plan({"dates": "2026-11-27"}, bake="30h"),
            "warning active: the windows are over before the plan can be through",
        ),
    ],
)
def test_lint_finds_windows_that_do_not_do_what_was_meant(
    document: PlanDocument, expected: str
) -> None:
    """Windows that never open, never close, are always frozen, or too short for the stages."""
    found = findings(document)
    assert any(one.startswith(expected) or expected in one for one in found), found


def test_a_freeze_that_leaves_one_window_is_sound() -> None:
    """Business hours that are frozen from Friday to Sunday still leave four days."""
    frozen = [{"days": ["fri", "sat", "sun"], "from": "00:00", "to": "24:00"}]
    assert findings(plan(OFFICE, freeze_windows=frozen)) == []
