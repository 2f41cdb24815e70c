"""The advisor against a real inference server.

Llama.cpp's own, with a tiny random model. `make llama` runs it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from typer.testing import CliRunner

from controller.adapters.llm.advisor import ModelAdvisor
from controller.cli.operator import app
from controller.clock import SystemClock
from controller.core.rollout import RaiseAlert
from controller.errors import AdviceUnavailableError
from controller.scorecard.cases import load_cases
from controller.scorecard.report import seconds
from controller.settings import AdvisorSettings, KafkaSettings
from schemas.terms import AlertKind, Severity
from tests.builders import make_advice, make_judgement, make_rollout
from tests.conftest import CreateTopics

ROOT = Path(__file__).parents[2]
CLOCK = SystemClock()
PYTHON_VARIABLE = "ROLLOUTD_TEST_LLAMA_PYTHON"
QUESTIONS = 1_000


def llama_python() -> str:
    """Return an interpreter that has the server. Skips without one."""
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        return str(Path(named).absolute())
    if importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf"):
        return sys.executable
    pytest.skip(
        f"no llama.cpp here: `make llama` installs it, or {PYTHON_VARIABLE} names a Python "
        f"that has it"
    )


@pytest.fixture(scope="module")
def llama_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running llama.cpp server.

    It ends with its standard input, however the tests end.
    """
    directory = tmp_path_factory.mktemp("llama")
    with (
        (directory / "log").open("w") as log,
        subprocess.Popen(
            [llama_python(), "-m", "tests.tiny_model", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            text=True,
        ) as server,
    ):
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            said = (line.strip() for line in server.stdout)
            url = next(
                (line.removeprefix("url=") for line in said if line.startswith("url=")), None
            )
            assert url is not None, (directory / "log").read_text()[-2000:]
            yield url
        finally:
            server.stdin.close()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


def make_advisor(url: str) -> ModelAdvisor:
    """Return an advisor that asks it all, one question at a time."""
    settings = AdvisorSettings(
        url=url,
        model="tiny",
        deadline_seconds=60.0,
        breaker_failures=1_000,
        questions_per_day=10_000,
    )
    return ModelAdvisor(settings, CLOCK)


async def ask_many(url: str, count: int) -> tuple[Counter[str], list[float], float]:
    """Return what came of so many different questions, how long each took.

    And the longest that we held the loop, in seconds.

    Held is CPU time of this thread between two turns: how long the machine gave it to the server is
    not ours.
    """
    advisor, outcomes, times = make_advisor(url), Counter[str](), []
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)
            await asyncio.sleep(0.002)

    watching = asyncio.create_task(watch())
    cases = load_cases()
    for number in range(count):
        case = cases[
            number * len(cases) // count
        ]  # alike ones in a row, different at the end: the server need not begin anew
        earlier = make_advice("hold", reasons=(f"question {number}",))
        question = replace(case.question, until=CLOCK.now() + timedelta(minutes=5), earlier=earlier)
        began = time.perf_counter()
        try:
            advice = await advisor.ask(case.rollout, question)
            outcomes[advice.choice] += 1
            assert advice.prompt_tokens
            assert advice.prompt_tokens > 1_000  # a byte is a token: the whole question has arrived
            assert json.loads(advice.parameters) == {"temperature": 0, "seed": 7, "max_tokens": 512}
        except AdviceUnavailableError as trouble:
            outcomes[f"no advice: {trouble}"] += 1
        times.append(time.perf_counter() - began)
    watching.cancel()
    await advisor.close()
    return outcomes, sorted(times), longest


async def test_a_real_server_answers_in_the_form(llama_url: str) -> None:
    """llama.cpp's server keeps the schema we ask for.

    So that even random numbers give advice that can be read.
    """
    outcomes, _, _ = await ask_many(llama_url, 12)
    assert sum(outcomes.values()) == 12
    assert (
        sum(count for outcome, count in outcomes.items() if not outcome.startswith("no advice"))
        >= 10
    ), outcomes


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
    advisor = make_advisor(llama_url)
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
    outcomes, times, longest = await ask_many(llama_url, QUESTIONS)
    with capsys.disabled():
        middle, late = (
            seconds(round(1000 * times[int(q * (len(times) - 1))])) for q in (0.5, 0.95)
        )
        sys.stdout.write(
            f"\n{dict(outcomes)}; half within {middle}, 95 % within {late}; longest stall "
            f"{1000 * longest:.0f} ms\n"
        )
    assert sum(outcomes.values()) == QUESTIONS
    assert longest < 0.05
