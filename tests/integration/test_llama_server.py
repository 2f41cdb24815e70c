"""The advisor against a real inference server.

Llama.cpp's own, with a tiny random model. `make llama` runs it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from typer.testing import CliRunner

from controller.cli.operator import app
from controller.core.effects import RaiseAlert
from controller.core.judging.judgement import Advice
from controller.settings import KafkaSettings
from schemas.terms import AlertKind, Severity
from tests.builders import make_judgement, make_rollout
from tests.conftest import CreateTopics
from tests.integration.many_questions import ask_many, patient_advisor
from tests.llama_stand import llama_server

ROOT = Path(__file__).parents[2]
QUESTIONS = 1_000
GRAMMAR_QUESTIONS = 200


@pytest.fixture(scope="module")
def llama_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running llama.cpp server."""
    with llama_server(tmp_path_factory.mktemp("llama")) as url:
        yield url


def check_whole(advice: Advice) -> None:
    """Check that the whole question has arrived, with its parameters."""
    assert advice.prompt_tokens
    assert advice.prompt_tokens > 1_000  # a byte is a token
    assert json.loads(advice.parameters) == {"temperature": 0, "seed": 7, "max_tokens": 512}


async def test_a_real_server_answers_in_the_form(llama_url: str) -> None:
    """llama.cpp's server keeps the schema we ask for.

    So that even random numbers give advice that can be read.
    """
    outcomes = await ask_many(patient_advisor(llama_url), 12, check_whole)
    assert sum(outcomes.counts.values()) == 12
    assert outcomes.in_form >= 10, outcomes


async def test_our_own_grammar_is_kept(llama_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What LocalAI passes on to llama.cpp bounds every answer: all are in the form."""
    outcomes = await ask_many(patient_advisor(llama_url, protocol="localai"), GRAMMAR_QUESTIONS)
    with capsys.disabled():
        sys.stdout.write(f"\nby our grammar: {outcomes}\n")
    assert outcomes.in_form == GRAMMAR_QUESTIONS, outcomes


async def test_commands_work_against_a_real_server(llama_url: str, tmp_path: Path) -> None:
    """`advisor check` finds it fit, `advisor eval` scores it and writes its report."""
    call = ["--url", llama_url, "--model", "tiny"]
    environ = {
        "ROLLOUTD_CONFIG": None,
        "ROLLOUTD_ADVISOR__DEADLINE_SECONDS": "120",
    }  # the machine may be busy: it takes 2 s
    checked = await asyncio.to_thread(
        CliRunner().invoke, app, ["advisor", "check", "--json", *call], env=environ
    )
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["valid_answers"] == 3
    page = tmp_path / "report.html"
    words = ["advisor", "eval", "--kind", "drift", "--html", str(page), "--json", *call]
    scored = await asyncio.to_thread(CliRunner().invoke, app, words, env=environ)
    assert scored.exit_code == 0, scored.output
    assert json.loads(scored.stdout)["valid_answers"]["total"] == 6
    assert "tiny" in page.read_text()


async def test_drafts_come_from_a_real_server(llama_url: str, tmp_path: Path) -> None:
    """The forms of drafts are ones that llama.cpp takes.

    What fails is a random answer's content, never the request.
    """
    segments = tmp_path / "segments.yaml"
    segments.write_text(
        "{attributes: {tier: {values: [free, pro]}, orders: {type: number}}, samples: "
        "[{tier: pro, orders: 3}]}"
    )
    for words in (
        ["suggest", "plan", "--flag", "new-checkout", "--risk", "low", "--describe", "a new form"],
        ["suggest", "targeting", "--describe", "pro users", "--segments", str(segments)],
    ):
        call = [*words, "--json", "--url", llama_url, "--model", "tiny"]
        made = await asyncio.to_thread(CliRunner().invoke, app, call, env={"ROLLOUTD_CONFIG": None})
        assert made.exit_code == 0, made.output
        origin = json.loads(made.stdout)["origin"]
        assert "HTTP" not in origin, origin
        assert "cannot be reached" not in origin, origin


async def test_explanations_and_looks_come_from_a_real_server(llama_url: str) -> None:
    """The forms that nobody waits for are ones that llama.cpp takes, too."""
    advisor = patient_advisor(llama_url)
    try:
        alert = RaiseAlert(
            AlertKind.ROLLED_BACK, Severity.CRITICAL, "rolled back", "look", "key", make_judgement()
        )
        asked = (
            advisor.explain(make_rollout(), alert),
            advisor.review({"f": (make_rollout(), make_judgement())}),
        )
        troubles = [
            str(end)
            for end in await asyncio.gather(*asked, return_exceptions=True)
            if isinstance(end, Exception)
        ]
    finally:
        await advisor.close()
    assert [trouble for trouble in troubles if "HTTP" in trouble] == []


async def test_the_story_of_a_rollout_is_told_by_a_real_server(
    llama_url: str, kafka: str, topic_prefix: str, create_topics: CreateTopics
) -> None:
    """`explain` and `changelog` read Kafka and ask.

    What fails is a random answer's content, never the request.
    """
    settings = KafkaSettings(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    await create_topics(settings.topic("state"), settings.topic("decisions"))
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        for topic, example in (("state", "state.json"), ("decisions", "decision.json")):
            event = (ROOT / "schemas" / "examples" / example).read_bytes()
            await producer.send_and_wait(settings.topic(topic), event, b"new-checkout")
    for words in (["explain", "new-checkout"], ["changelog", "new-checkout"]):
        call = [*words, "--json", "--url", llama_url, "--model", "tiny"]
        call += ["--bootstrap-servers", kafka, "--topic-prefix", topic_prefix]
        environ = {"ROLLOUTD_CONFIG": None, "ROLLOUTD_ADVISOR__DEADLINE_SECONDS": "120"}
        told = await asyncio.to_thread(CliRunner().invoke, app, call, env=environ)
        assert told.exit_code == 0, told.output
        story = json.loads(told.stdout)
        assert "HTTP" not in story["origin"], story["origin"]
        assert "cannot be reached" not in story["origin"], story["origin"]
        assert "no model is configured" not in story["origin"], story["origin"]


@pytest.mark.long
async def test_a_thousand_questions(llama_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 1,000 questions each is advice or counted as none.

    And none holds the event loop for 50 ms.
    """
    outcomes = await ask_many(patient_advisor(llama_url), QUESTIONS, check_whole)
    with capsys.disabled():
        sys.stdout.write(f"\n{outcomes}\n")
    assert sum(outcomes.counts.values()) == QUESTIONS
    assert outcomes.longest_hold < 0.05
