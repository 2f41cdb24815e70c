"""What a LocalAI-shaped server gives the advisor, and a real LocalAI where somebody has one.

`ROLLOUTD_TEST_LOCALAI=BINARY` runs the same tests on that program. Its model is then one of random
numbers in llama.cpp, and `ROLLOUTD_TEST_LLAMA_PYTHON` names an interpreter that has it (`make
llama` makes one).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack

import pytest
from typer.testing import CliRunner

from controller.adapters.llm.advisor import ModelAdvisor
from controller.adapters.llm.openai import OpenAIDialect
from controller.cli.operator import app
from controller.core.effects import RaiseAlert
from controller.errors import AdviceUnavailableError
from schemas.advice import ANSWER_SCHEMA
from schemas.terms import AlertKind, Severity
from tests.builders import make_judgement, make_rollout
from tests.fault_server import fault_server
from tests.integration.advisor_helpers import make_question
from tests.integration.many_questions import ask_many, patient_advisor
from tests.localai_server import localai
from tests.localai_stand import VARIABLE, real_localai

QUESTIONS = 200
PROTOCOL = "localai"


@pytest.fixture(
    params=[
        "stand-in",
        pytest.param(
            "real",
            marks=pytest.mark.skipif(
                VARIABLE not in os.environ, reason=f"{VARIABLE} names no LocalAI program"
            ),
        ),
    ]
)
async def url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """Address of a server as LocalAI is, or of a real one."""
    async with AsyncExitStack() as stack:
        if request.param == "stand-in":
            yield (await stack.enter_async_context(fault_server(localai()))).url
        else:
            real = stack.enter_context(ExitStack())
            directory = tmp_path_factory.mktemp("localai")
            yield await asyncio.to_thread(real.enter_context, real_localai(directory))


async def test_two_hundred_questions(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every answer is in the form, at temperature 0, however much the model likes to write on."""
    outcomes = await ask_many(patient_advisor(url, protocol=PROTOCOL), QUESTIONS)
    if VARIABLE in os.environ:
        with capsys.disabled():
            sys.stdout.write(f"\nas {PROTOCOL}: {outcomes}\n")
    assert outcomes.in_form == QUESTIONS, outcomes


async def test_check_finds_it_fit(url: str) -> None:
    """`advisor check` gets three answers of three in the form."""
    words = ["advisor", "check", "--url", url, "--model", "tiny", "--protocol", PROTOCOL]
    environ = {"ROLLOUTD_CONFIG": None, "ROLLOUTD_ADVISOR__DEADLINE_SECONDS": "120"}
    checked = await asyncio.to_thread(CliRunner().invoke, app, words, env=environ)
    assert checked.exit_code == 0, checked.output
    assert "tiny: listed" in checked.output
    assert "3 of 3 in the form" in checked.output


async def test_a_missing_model_is_said(url: str) -> None:
    """A model that it does not have is no advice, in its words, and lasting."""
    advisor = patient_advisor(url, protocol=PROTOCOL, model="nope")
    try:
        with pytest.raises(AdviceUnavailableError, match=r"HTTP 404.*nope.*not found"):
            await advisor.ask(make_rollout(), make_question())
        assert advisor.trouble is not None
    finally:
        await advisor.close()


async def test_every_other_form_is_kept_as_well(url: str) -> None:
    """Explanations, reviews and drafts have grammars, too: no answer is cut off or out of form."""
    advisor = patient_advisor(url, protocol=PROTOCOL)
    alert = RaiseAlert(
        AlertKind.ROLLED_BACK, Severity.CRITICAL, "rolled back", "look", "key", make_judgement()
    )
    try:
        assert (await advisor.explain(make_rollout(), alert)).likely_cause
        await advisor.review({"f": (make_rollout(), make_judgement())})
    finally:
        await advisor.close()
    words = ["suggest", "plan", "--flag", "f", "--risk", "low", "--describe", "a new form"]
    words += ["--json", "--url", url, "--model", "tiny", "--protocol", PROTOCOL]
    made = await asyncio.to_thread(CliRunner().invoke, app, words, env={"ROLLOUTD_CONFIG": None})
    assert made.exit_code == 0, made.output
    origin = json.loads(made.stdout)["origin"]
    assert not any(fault in origin for fault in ("HTTP", "cut off", "not in the form")), origin


async def ask_as_openai(advisor: ModelAdvisor) -> None:
    """Put one question, as any server with OpenAI's dialect is asked."""
    try:
        await advisor.ask(make_rollout(), make_question())
    finally:
        await advisor.close()


async def test_a_schema_gets_no_advice_from_it() -> None:
    """Why the protocol exists: LocalAI's own grammar lets numbers and texts go on for ever."""
    async with fault_server(localai()) as server:
        with pytest.raises(AdviceUnavailableError, match="cut off: finish_reason length"):
            await ask_as_openai(patient_advisor(server.url, protocol="openai"))


async def test_a_reference_would_be_answered_without_a_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A schema with `$ref` gets any text with status 200, which is refused; ours has none."""
    assert "$ref" not in json.dumps(ANSWER_SCHEMA)
    request = OpenAIDialect.request

    def with_reference(*arguments: object) -> dict[str, object]:
        body = request(*arguments)  # type: ignore[arg-type]
        body["response_format"]["json_schema"]["schema"] = {"$ref": "#/$defs/answer"}
        return body

    monkeypatch.setattr(OpenAIDialect, "request", with_reference)
    async with fault_server(localai()) as server:
        with pytest.raises(AdviceUnavailableError, match="not one JSON object"):
            await ask_as_openai(patient_advisor(server.url, protocol="openai"))
