"""`rolloutctl apply`, `retry` and stages by name, against a real daemon, Kafka and Redis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from controller.cli.common import EXIT_REJECTED, EXIT_USAGE
from tests.e2e.test_operator import FLAG, PATIENCE, Operator, daemon, rolloutctl
from tests.live import DaemonProcess, quick_plan

__all__ = ["daemon", "rolloutctl"]  # fixtures

pytestmark = pytest.mark.real_kafka


def write(directory: Path, *, limit: float = 0.2, bake: str = "1h", **plan: Any) -> str:
    """Write a plan of three stages, the first of them called canary; return the file's name."""
    document = quick_plan(FLAG, **plan).model_dump(mode="json")
    for stage, name in zip(document["stages"], ("canary", "half", None), strict=True):
        stage.update(name=name, bake=bake, max_bake="9h")
    document["guardrails"][0]["limit"] = limit
    path = directory / "plan.json"
    path.write_text(json.dumps(document))
    return str(path)


async def test_a_running_plan_is_changed_from_the_shell(
    daemon: DaemonProcess, rolloutctl: Operator, tmp_path: Path
) -> None:
    """Each difference is shown; what is less careful is refused without a reason.

    The audit log has both plans.
    """
    send = ("--as", "ada", "--timeout", PATIENCE)
    early = await rolloutctl("apply", write(tmp_path))
    assert (early.code, "rolloutctl start" in early.err) == (EXIT_REJECTED, True)
    started = await rolloutctl("start", write(tmp_path), *send)
    assert started.code == 0, started.err

    stricter = write(tmp_path, limit=0.1, bake="2h")
    shown = await rolloutctl("apply", stricter, "--dry-run", "--json")
    assert not shown.document["needs_reason"]
    assert {one["effect"] for one in shown.document["changes"]} == {"at_once"}
    applied = await rolloutctl("apply", stricter, *send)
    assert applied.code == 0, applied.err
    assert "stages[canary].bake: 1h -> 2h  (at once)" in applied.out
    assert "guardrails[error_rate]" in applied.out
    again = await rolloutctl("apply", stricter, *send)
    assert (again.code, "nothing to change" in again.out) == (0, True)
    again = await rolloutctl("apply", stricter, "--json", *send)
    assert (again.code, again.document["changes"]) == (0, [])

    looser = write(tmp_path, limit=0.3, bake="2h")
    refused = await rolloutctl("apply", looser, *send)
    assert (refused.code, "needs --reason" in refused.err) == (EXIT_USAGE, True)
    restarted = await rolloutctl("apply", looser, "--reason", "too strict", *send)
    assert restarted.code == 0, restarted.err
    state = (await rolloutctl("status", FLAG, "--json")).document["state"]
    assert [visit["percent"] for visit in state["visits"]] == [10, 10]
    assert state["plan"]["guardrails"][0]["limit"] == 0.3

    last = await rolloutctl("decisions", FLAG, "--last", "1", "--json")
    decision = last.document["data"]
    assert (decision["kind"], decision["stage_name"], decision["issuer"]) == (
        "apply",
        "canary",
        "ada",
    )
    limits = [decision["applied"][plan]["guardrails"][0]["limit"] for plan in ("before", "after")]
    assert limits == [0.1, 0.3]
    assert "too strict" in decision["reason"]


@pytest.mark.rare
async def test_stages_are_reached_by_their_names(
    daemon: DaemonProcess, rolloutctl: Operator, tmp_path: Path
) -> None:
    """Up with a reason, down again, and once more from the beginning."""
    send = ("--reason", "to try it", "--timeout", PATIENCE)
    await rolloutctl("start", write(tmp_path), *send)
    up = await rolloutctl("promote", FLAG, "--to", "half", *send)
    assert up.code == 0, up.err
    assert "50 % served, stage 2 of 3 (half)" in " ".join(up.out.split())
    retried = await rolloutctl("retry", FLAG, *send)
    assert (retried.code, "50 % served" in retried.out) == (0, True)
    nowhere = await rolloutctl("step-back", FLAG, "--to", "100%", *send)
    assert (nowhere.code, "there are: canary" in " ".join(nowhere.out.split())) == (
        EXIT_REJECTED,
        True,
    )
    down = await rolloutctl("step-back", FLAG, "--to", "10%", *send)
    assert (down.code, "10 % served" in down.out) == (0, True)


@pytest.mark.rare
async def test_a_completed_rollout_gets_an_end(
    daemon: DaemonProcess, rolloutctl: Operator, tmp_path: Path
) -> None:
    """An end is applied at once, a later one with a reason; no other plan is applied any more."""
    send = ("--reason", "to try it", "--timeout", PATIENCE)
    await rolloutctl("start", write(tmp_path), *send)
    for _ in range(2):
        up = await rolloutctl("promote-full", FLAG, *send)
        assert up.code == 0, up.err
    ending = await rolloutctl("apply", write(tmp_path, ends_at="2099-01-01T00:00:00Z"), *send)
    assert ending.code == 0, ending.err
    kept = await rolloutctl("apply", write(tmp_path), "--timeout", PATIENCE)
    assert (kept.code, "needs --reason" in kept.err) == (EXIT_USAGE, True)
    state = (await rolloutctl("status", FLAG, "--json")).document["state"]
    assert (state["phase"]["name"], state["plan"]["ends_at"][:4]) == ("completed", "2099")
    other = await rolloutctl("apply", write(tmp_path, bake="2h", ends_at="2099-01-01T00:00:00Z"))
    assert (other.code, "only its end and active windows" in other.out) == (EXIT_REJECTED, True)
