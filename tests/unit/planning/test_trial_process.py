"""The process that tries one plan for the page: it says what the terminal says."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import pytest
from typer.testing import CliRunner

from controller.cli.operator import app
from controller.planning.trial_process import answer
from controller.reporting.tried_plan import RUNS, TrialAnswer, TrialOrder
from controller.web.page.trials import COMMAND

NOW = datetime(2026, 11, 23, 9, 0, 7, tzinfo=UTC)
PLAN = """name: small
flag: new-checkout
owner: payments
stages:
  - {percent: 10, bake: 10m}
  - {percent: 100, bake: 10m}
guardrails: [error_rate < 2%]
"""
ORDER = TrialOrder(PLAN, traffic="50/s", effect="errors=x5@stage2")


def answered(order: TrialOrder) -> TrialAnswer:
    """Return what the process says, without a rest between two rollouts."""
    return answer(order, NOW, lambda: lambda _: None)


def test_the_page_says_what_the_terminal_says() -> None:
    """Word for word, for the same number of rollouts: one code draws and tells both."""
    tried = answered(ORDER).tried
    assert tried is not None
    options = ["--traffic", "50/s", "--effect", "errors=x5@stage2", "--runs", str(RUNS)]
    ran = CliRunner().invoke(app, ["simulate", "-", *options], input=PLAN, env={"COLUMNS": "200"})
    told = [" ".join(line.split()) for line in ran.stdout.splitlines()]
    assert f"{tried.plan}: {tried.rollouts}" in told
    assert len(tried.scenarios) == 2
    for scenario in tried.scenarios:
        assert scenario.title in told
        assert scenario.rows
        for row in (*scenario.rows, *scenario.stages):
            assert " ".join(" ".join(row).split()) in told


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"traffic": ""}, "say how much traffic there is"),
        ({"traffic": "many"}, "--traffic: 'many' is not a rate"),
        ({"traffic": "1e9/s"}, "more than can be drawn: 10,000,000/s at most"),
        ({"traffic": "9e999/s"}, "more than can be drawn"),
        ({"latency": "1ms,nan"}, "write both with a unit"),
        ({"error_rate": "nan"}, "not a share"),
        ({"conversion": "bought=-1"}, "not a share"),
        ({"effect": "errors=x" + "9" * 90}, "does no harm"),
        ({"plan": "stages: many"}, "the plan would be refused"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(typed: dict[str, str], words: str) -> None:
    """Whatever is typed has an answer."""
    said = answered(replace(ORDER, **typed))
    assert said.tried is None
    assert words in said.refused


def test_a_rate_is_read_as_it_is_advised() -> None:
    """The refusal says `1e5/h`, so that is a rate."""
    assert answered(replace(ORDER, traffic="1e5/h", effect="")).tried is not None


def test_the_process_answers_an_order() -> None:
    """As the page starts it: from any directory, with no variable."""
    ran = subprocess.run(
        COMMAND,
        input=msgspec.json.encode(replace(ORDER, traffic="soon")),
        capture_output=True,
        env={},
        cwd="/",
        timeout=60,
        check=True,
    )
    said = msgspec.json.decode(ran.stdout, type=TrialAnswer)
    assert said.refused.startswith("--traffic: 'soon' is not a rate")
