"""The advisor against a real Ollama with tiny random models. `make ollama` runs it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.adapters.llm.advisor import ModelAdvisor
from controller.cli.operator import app
from controller.core.effects import RaiseAlert
from controller.core.judging.judgement import Advice
from controller.errors import AdviceUnavailableError
from schemas.terms import AlertKind, Severity
from tests.builders import make_judgement, make_rollout
from tests.integration.advisor_helpers import PROTOCOLS, make_question
from tests.integration.many_questions import ask_many, patient_advisor
from tests.ollama_stand import Ollama

#: A byte is a token of the tiny model: a gate question takes 4,000.
CONTEXT_TOKENS = 8_192
#: Too small for any gate question.
SMALL_CONTEXT_TOKENS = 512
QUESTIONS = 200
#: Less than the context takes, which is 4 MB for keys and values and more for the computation.
MEMORY_BYTES = 4_000_000

pytestmark = pytest.mark.one_worker


@pytest.fixture(scope="module")
def ollama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ollama]:
    """A running Ollama with the model `tiny`, and `small` with little context."""
    with Ollama(tmp_path_factory.mktemp("ollama")) as server:
        server.create("tiny", num_ctx=CONTEXT_TOKENS)
        server.create("small", num_ctx=SMALL_CONTEXT_TOKENS)
        yield server


def advisor_of(server: Ollama, protocol: str, **overrides: object) -> ModelAdvisor:
    """Return an advisor that asks it."""
    fields = {"protocol": protocol, "context_tokens": CONTEXT_TOKENS, **overrides}
    return patient_advisor(server.url, **fields)


async def ask(advisor: ModelAdvisor) -> Advice:
    """Put one question."""
    return await advisor.ask(make_rollout(), make_question())


async def until_advice(advisor: ModelAdvisor, seconds: float = 120.0) -> Advice:
    """Return the first advice, which may take it a few questions after a failure."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await ask(advisor)
        except AdviceUnavailableError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_two_hundred_questions(
    ollama: Ollama, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every answer of random numbers is in the form, over each address, at temperature 0."""

    def check_whole(advice: Advice) -> None:
        assert advice.prompt_tokens
        assert advice.prompt_tokens > 1_000  # a byte is a token: the whole question has arrived

    outcomes = await ask_many(advisor_of(ollama, protocol), QUESTIONS, check_whole)
    with capsys.disabled():
        sys.stdout.write(f"\nOllama, as {protocol}: {outcomes}\n")
    assert outcomes.in_form == QUESTIONS, outcomes


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("model", ["tiny", "tiny:latest"])
async def test_check_finds_it_fit(ollama: Ollama, protocol: str, model: str) -> None:
    """`advisor check` lists the model by the name that was given to it, and with its tag."""
    words = ["advisor", "check", "--url", ollama.url, "--model", model, "--protocol", protocol]
    environ = {
        "ROLLOUTD_CONFIG": None,
        "ROLLOUTD_ADVISOR__DEADLINE_SECONDS": "120",
        "ROLLOUTD_ADVISOR__CONTEXT_TOKENS": str(CONTEXT_TOKENS),
    }
    checked = await asyncio.to_thread(CliRunner().invoke, app, words, env=environ)
    assert checked.exit_code == 0, checked.output
    assert f"{model}: listed" in checked.output
    assert "3 of 3 in the form" in checked.output


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_missing_model_is_said(ollama: Ollama, protocol: str) -> None:
    """A model that it does not have is no advice, and lasting: nobody asks again for a while."""
    advisor = advisor_of(ollama, protocol, model="nope")
    try:
        with pytest.raises(AdviceUnavailableError, match=r"HTTP 404.*nope.*not found"):
            await ask(advisor)
        assert advisor.trouble is not None
    finally:
        await advisor.close()


@pytest.mark.parametrize(
    ("protocol", "reason"),
    [
        ("openai", "the server cut the question"),
        ("ollama", r"HTTP 400.*longer than the model's context"),
    ],
)
async def test_a_question_that_does_not_fit_is_no_advice(
    ollama: Ollama, protocol: str, reason: str
) -> None:
    """Ollama cuts a long prompt and answers 200; what is left of a question is not one.

    It is the fault of that question: the model is asked about other flags as before.
    """
    advisor = advisor_of(
        ollama,
        protocol,
        model="small",
        context_tokens=SMALL_CONTEXT_TOKENS,
        breaker_failures=1,
    )
    try:
        for _ in range(2):
            with pytest.raises(AdviceUnavailableError, match=reason):
                await ask(advisor)
        assert advisor.trouble is None
    finally:
        await advisor.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_slow_model_costs_the_deadline(ollama: Ollama, protocol: str) -> None:
    """A frozen model server ends the question at its deadline; thawed it advises again."""
    patient = advisor_of(ollama, protocol)
    hasty = advisor_of(ollama, protocol, deadline_seconds=0.5)
    try:
        await until_advice(patient)
        assert ollama.signal_model_servers(signal.SIGSTOP) >= 1
        try:
            with pytest.raises(AdviceUnavailableError, match=r"within 0\.5 s"):
                await ask(hasty)
        finally:
            ollama.signal_model_servers(signal.SIGCONT)
        await until_advice(patient)
    finally:
        await hasty.close()
        await patient.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_killed_model_server_is_started_again(ollama: Ollama, protocol: str) -> None:
    """Ollama loads the model again, for the question under way or for a later one.

    For the one under way where it had not begun to answer; otherwise that one is no advice.
    """
    advisor = advisor_of(ollama, protocol)
    try:
        await until_advice(advisor)
        asking = await ask_frozen(ollama, advisor)
        ollama.signal_model_servers(signal.SIGKILL)
        (end,) = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(end, Advice | AdviceUnavailableError), end
        await until_advice(advisor)
    finally:
        await advisor.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_killed_ollama_is_no_advice(ollama: Ollama, protocol: str) -> None:
    """Killed in the middle of a question, and away after it; started again it advises."""
    advisor = advisor_of(ollama, protocol)
    try:
        await until_advice(advisor)
        asking = await ask_frozen(ollama, advisor)
        ollama.kill()
        with pytest.raises(AdviceUnavailableError, match="broke off"):
            await asking
        with pytest.raises(AdviceUnavailableError, match="cannot be reached"):
            await ask(advisor)
        await asyncio.to_thread(ollama.start)
        await until_advice(advisor)
    finally:
        await advisor.close()


async def ask_frozen(ollama: Ollama, advisor: ModelAdvisor) -> asyncio.Task[Advice]:
    """Return a question that is surely out, because its model server is frozen."""
    assert ollama.signal_model_servers(signal.SIGSTOP) >= 1
    asking = asyncio.create_task(ask(advisor))
    await asyncio.sleep(0.5)
    assert not asking.done()
    return asking


async def test_a_machine_without_memory_is_no_advice(tmp_path: Path) -> None:
    """A model that does not fit into memory is no advice, with what Ollama says about it."""
    with Ollama(tmp_path / "ollama", TINY_MEMORY_BYTES=str(MEMORY_BYTES)) as server:
        await asyncio.to_thread(server.create, "tiny")
        advisor = advisor_of(server, "ollama", breaker_failures=1)
        try:
            with pytest.raises(AdviceUnavailableError, match="HTTP 500") as refusal:
                await ask(advisor)
            assert str(refusal.value).isprintable()
            assert advisor.trouble is not None, "asking again soon would be in vain"
        finally:
            await advisor.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_explanations_and_reviews_are_accepted(ollama: Ollama, protocol: str) -> None:
    """The other forms are ones that Ollama takes: what fails is an answer, never the request."""
    advisor = advisor_of(ollama, protocol)
    alert = RaiseAlert(
        AlertKind.ROLLED_BACK, Severity.CRITICAL, "rolled back", "look", "key", make_judgement()
    )
    try:
        ends = await asyncio.gather(
            advisor.explain(make_rollout(), alert),
            advisor.review({"f": (make_rollout(), make_judgement())}),
            return_exceptions=True,
        )
    finally:
        await advisor.close()
    assert [str(end) for end in ends if isinstance(end, Exception) and "HTTP" in str(end)] == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_drafts_are_accepted(ollama: Ollama, protocol: str) -> None:
    """A plan's form is one that Ollama takes, too."""
    words = ["suggest", "plan", "--flag", "f", "--risk", "low", "--describe", "a new form"]
    words += ["--json", "--url", ollama.url, "--model", "tiny", "--protocol", protocol]
    environ = {"ROLLOUTD_CONFIG": None, "ROLLOUTD_ADVISOR__CONTEXT_TOKENS": str(CONTEXT_TOKENS)}
    made = await asyncio.to_thread(CliRunner().invoke, app, words, env=environ)
    assert made.exit_code == 0, made.output
    origin = json.loads(made.stdout)["origin"]
    assert "HTTP" not in origin, origin
    assert "cannot be reached" not in origin, origin
