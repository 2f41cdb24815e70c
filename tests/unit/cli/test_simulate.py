"""`rolloutctl simulate`: what can be asked, and what is told."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.cli.common import EXIT_REJECTED, EXIT_USAGE
from controller.cli.operator import app
from controller.planning.typed_traffic import begins_at
from tests.builders import make_plan

PLAN = """name: small
flag: new-checkout
owner: payments
stages:
  - {percent: 10, bake: 1h}
  - {percent: 100, bake: 1h}
guardrails: [error_rate < 2% and < control + 10%, latency_p99 < 400ms]
"""


@pytest.fixture
def plan_file(tmp_path: Path) -> str:
    """A plan of two stages."""
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return str(path)


def run(*arguments: str) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, ["simulate", *arguments], env={"COLUMNS": "100"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_both_worlds_are_told_in_words(plan_file: str) -> None:
    """Healthy and harmed, with what was assumed about control."""
    code, out, _ = run(
        plan_file,
        "--traffic",
        "50/s",
        "--error-rate",
        "0.5%",
        "--effect",
        "errors=x5@stage2",
        "--runs",
        "5",
    )
    assert code == 0
    assert "treatment as good as control" in out
    assert "with errors=x5@stage2" in out
    assert re.search(r"harm found +5 of 5", out)
    assert "assumed, because not stated: latency p50" in out


def test_json_has_the_same_figures(plan_file: str) -> None:
    """One document; probabilities with their counts and intervals."""
    code, out, _ = run(plan_file, "--traffic", "50/s", "--runs", "3", "--json")
    told = json.loads(out)
    assert (code, told["flag"], told["control"]["contexts_per_second"]) == (0, "new-checkout", 50.0)
    assert told["assumed"][0] == "errors 1 %"
    healthy = told["scenarios"][0]
    assert healthy["promoted"]["total"] == 3
    assert [stage["percent"] for stage in healthy["stages"]] == [10, 100]


def test_the_assumed_begin_and_the_windows_are_named(plan_file: str) -> None:
    """Whoever reads durations of days learns from when on, and what closes; open time is beside."""
    with Path(plan_file).open("a") as plan:
        plan.write("active: [{days: [mon, tue], from: 09:00, lasts: 45m}]\n")
    arguments = (plan_file, "--traffic", "50/s", "--runs", "2")
    words = " ".join(run(*arguments)[1].split())
    assert re.search(r"begin Mon [0-9-]+ 09:00 UTC \(assumed: the plan has no start_at\)", words)
    assert "; active mon tue from 09:00 for 45m UTC" in words
    assert "PLANNED OPEN MEDIAN" in words
    first = json.loads(run(*arguments, "--json")[1])["scenarios"][0]["stages"][0]
    assert first["open_seconds"]["median"] < 2 * first["planned_seconds"] < first["seconds"]["p90"]
    linted = CliRunner().invoke(app, ["plan", "lint", *arguments[:3]]).stdout
    assert "active mon tue from 09:00 for 45m UTC" in " ".join(linted.split())


def test_the_page_needs_nothing_from_elsewhere(plan_file: str, tmp_path: Path) -> None:
    """Plots are inline, and no address stands in the page."""
    page = tmp_path / "page.html"
    code, out, _ = run(
        plan_file, "--traffic", "50/s", "--effect", "errors=x5", "--runs", "3", "--html", str(page)
    )
    html = page.read_text()
    assert code == 0
    assert str(page) in out.replace("\n", "")
    assert html.count("<svg") == 5
    assert not re.search(r"https?:|src=|@import|url\(", html)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say how much traffic there is"),
        (["--traffic", "many"], "is not a rate"),
        (["--traffic", "0/s"], "without traffic nothing"),
        (["--traffic", "5/s", "--error-rate", "2"], "is not a share"),
        (["--traffic", "5/s", "--latency", "40ms"], "not two latencies"),
        (["--traffic", "5/s", "--latency", "90ms,40ms"], "p50 lies above 0 and below p99"),
        (["--traffic", "5/s", "--effect", "errors"], "is not an effect"),
        (["--traffic", "5/s", "--effect", "mood=x2"], "is not known"),
        (["--traffic", "5/s", "--effect", "errors=x0.5"], "does no harm"),
        (["--traffic", "5/s", "--effect", "conversion:bought=x2"], "does no harm"),
        (["--traffic", "5/s", "--effect", "errors=x2@stage3"], "has stages 1 to 2"),
        (["--traffic", "5/s", "--effect", "errors=x2@5furlongs"], "is not a duration"),
        (["--traffic", "5/s", "--effect", "latency_p99=x2"], "is not known, did you mean latency?"),
        (["--traffic", "5/s", "--effect", "errors=x2@2"], "write @stage2 from that stage on, @2h"),
        (["--traffic", "5/s", "--conversion", "bought"], "write name and share, as in bought=3%"),
        (["--traffic", "5/s", "--conversion", "x=3%"], "no guardrail of the plan is about"),
        (["--traffic", "5/s", "--latency", "40,150"], "write both with a unit, as in 40ms,150ms"),
        (["--error-rate", "2"], "is not a share"),
        (
            ["--traffic", "5/s", "--html", "/no/such/directory/page.html"],
            "there is no directory /no/such/directory",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(plan_file: str, arguments: list[str], words: str) -> None:
    """Exit code 2, with how to write it."""
    code, out, err = run(plan_file, *arguments)
    assert (code, out) == (EXIT_USAGE, "")
    assert words in err.replace("\nrolloutctl: ", " ")


def test_a_plan_that_would_be_refused_is_not_simulated(plan_file: str) -> None:
    """Its faults are told as `plan lint` tells them."""
    Path(plan_file).write_text(PLAN.replace("percent: 100", "percent: 5"))
    code, _, err = run(plan_file, "--traffic", "5/s")
    assert code == EXIT_REJECTED
    assert "does not rise" in err


def test_templates_can_be_tried_by_name() -> None:
    """A template needs no flag to be tried."""
    code, out, _ = run("canary", "--traffic", "50/s", "--runs", "1")
    assert (code, "canary of my-flag" in out) == (0, True)


@pytest.mark.parametrize(
    ("now", "day"),
    [(datetime(2026, 1, 5, 8, tzinfo=UTC), 5), (datetime(2026, 1, 5, 10, tzinfo=UTC), 12)],
)
def test_virtual_rollouts_begin_on_a_monday_morning(now: datetime, day: int) -> None:
    """The next one, so that freeze windows are met as in a working week; or when the plan says."""
    assert begins_at(make_plan(), now) == datetime(2026, 1, day, 9, tzinfo=UTC)
    assert begins_at(make_plan(start_at=now), now + timedelta(1)) == now


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--from"),
        (["--from", "yesterday"], "is not a time"),
        (["--from", "1h", "--to", "2h"], "nothing lies between --from ("),
        (["--from", "2h", "--every", "1d"], "write a duration from 100ms to 1m"),
        (["--from", "2h", "--flag", "a/b"], "is not a flag key"),
    ],
)
def test_a_backtest_that_cannot_be_meant_is_refused(
    plan_file: str, arguments: list[str], words: str
) -> None:
    """Before Kafka is asked, with how to write it."""
    result = CliRunner().invoke(app, ["backtest", plan_file, *arguments], env={"COLUMNS": "100"})
    assert result.exit_code == EXIT_USAGE
    assert words in result.stderr


def test_a_long_simulation_tells_how_far_it_is_in_a_pipe(
    plan_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal there is a line now and then, on standard error; none with --json."""
    monkeypatch.setattr("controller.cli.simulation.PROGRESS_EVERY_SECONDS", 0.0)
    arguments = ("simulate", plan_file, "--traffic", "20/s", "--runs", "5")
    result = CliRunner().invoke(app, list(arguments))
    assert "healthy: 1 of 5 rollouts simulated" in result.stderr
    assert "simulated" not in CliRunner().invoke(app, [*arguments, "--json"]).stderr
