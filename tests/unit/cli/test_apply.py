"""`rolloutctl apply`: what it shows before anything is sent."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from controller.cli import apply
from controller.cli.common import EXIT_REJECTED, EXIT_USAGE
from controller.cli.operator import app
from controller.codec.plans import to_core_plan
from controller.core.events import Ticked
from controller.core.machine import decide
from controller.core.rollout import Rollout
from schemas.plan import PlanDocument
from tests.builders import make_rollout
from tests.live import quick_plan

FLAG = "new-checkout"
PLAN = quick_plan(FLAG).model_dump(mode="json")
LONGER = {**PLAN, "owner": "payments"}
SHORTER = {**PLAN, "stages": [{**stage, "min_sample": 1} for stage in PLAN["stages"]]}
OTHER_VALUES = {**PLAN, "variants": {**PLAN["variants"], "treatment": "another"}}


@pytest.mark.parametrize(
    ("plan", "options", "code", "facts"),
    [
        (PLAN, (), 0, (True, False, 0)),
        (LONGER, ("--dry-run",), 0, (True, False, 1)),
        (SHORTER, (), EXIT_USAGE, (True, True, 1)),
        (OTHER_VALUES, (), EXIT_REJECTED, (False, False, 1)),
    ],
)
def test_machines_get_the_differences_when_nothing_is_sent(
    plan: dict[str, Any],
    options: tuple[str, ...],
    code: int,
    facts: tuple[bool, bool, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One document on standard output, whatever the reason; a result comes in its place."""

    async def running(*_: object) -> Rollout:
        return make_rollout(plan=to_core_plan(PlanDocument.model_validate(PLAN)))

    monkeypatch.setattr(apply, "_running", running)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    result = CliRunner().invoke(app, ["apply", str(path), "--json", *options])
    assert result.exit_code == code, result.output
    shown = json.loads(result.stdout)
    assert (shown["is_applicable"], shown["needs_reason"], min(len(shown["changes"]), 1)) == facts


def windows(day: datetime) -> list[dict[str, Any]]:
    """Return the active window that is the whole of one weekday, UTC."""
    name = day.strftime("%a").lower()
    return [{"days": [name], "from": "00:00", "lasts": "24h", "timezone": "UTC"}]


@pytest.mark.parametrize(
    ("is_closed", "moves"),
    [(False, "10 % -> 0 % served at once"), (True, "0 % -> 10 % served at once")],
)
def test_active_windows_that_move_the_percentage_now_say_so(
    is_closed: bool, moves: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Screen, question and machines get what is served at once."""
    now = datetime.now(UTC)
    began = make_rollout().updated_at  # a day of another week: its weekday is not to be open either
    days = [now + timedelta(days=number) for number in (3, 4)]
    away = windows(next(day for day in days if day.weekday() != began.weekday()))
    narrow = {**PLAN, "active": away}
    before, after = (narrow, PLAN) if is_closed else (PLAN, narrow)
    rollout = make_rollout(plan=to_core_plan(PlanDocument.model_validate(before)))
    if is_closed:
        ticked, _ = decide(rollout, Ticked(), rollout.updated_at + timedelta(minutes=1))
        assert ticked is not None
        rollout = ticked

    async def running(*_: object) -> Rollout:
        return rollout

    asked: list[str] = []
    monkeypatch.setattr(apply, "_running", running)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(after))
    options = ["apply", str(path), "--dry-run", "--reason", "launch"]
    shown = CliRunner().invoke(app, options).output
    assert moves in shown, shown
    assert "needs --reason" not in shown
    document = json.loads(CliRunner().invoke(app, [*options, "--json"]).stdout)
    assert f"{document['percent']:g} % -> {document['percent_after']:g} % served at once" == moves
    monkeypatch.setattr(typer, "confirm", lambda text, **_: asked.append(text))
    apply._ask(rollout, document["percent_after"])
    assert moves in asked[0]


def test_a_plan_that_moves_nobody_names_no_percentage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most changes move nobody."""

    async def running(*_: object) -> Rollout:
        return make_rollout(plan=to_core_plan(PlanDocument.model_validate(PLAN)))

    monkeypatch.setattr(apply, "_running", running)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(SHORTER))
    shown = CliRunner().invoke(app, ["apply", str(path), "--dry-run"]).output
    assert "served at once" not in shown
    assert "needs --reason" in shown
