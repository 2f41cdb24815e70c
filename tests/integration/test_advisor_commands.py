"""`rolloutctl advisor` as an operator types it, against a server on a real socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from controller.cli.common import EXIT_CONFIG, EXIT_REJECTED, EXIT_UNREACHABLE, EXIT_USAGE
from controller.cli.operator import app
from tests import fault_server as faults
from tests.fault_server import Exchange, Script
from tests.localai_server import localai

MODELS = {
    "GET /v1/models": '{"object": "list", "data": [{"id": "tiny"}]}',
    "GET /api/tags": '{"models": [{"name": "tiny"}]}',
}


def serving(script: Script) -> Script:
    """Answer questions by `script`, and say which models there are."""

    async def serve(exchange: Exchange) -> None:
        listed = next(
            (body for line, body in MODELS.items() if exchange.request.line.startswith(line)), None
        )
        if listed is None:
            await script(exchange)
        else:
            await exchange.answer(listed)

    return serve


def without_ollama(script: Script) -> Script:
    """Answer as `serving`, but know nothing of Ollama's own addresses."""

    async def serve(exchange: Exchange) -> None:
        if " /api/" in exchange.request.line:
            await exchange.answer("{}", status="404 Not Found")
        else:
            await serving(script)(exchange)

    return serve


async def run(
    script: Script | None, *arguments: str, options: tuple[str, ...] = ("--model", "tiny")
) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of a call against a server.

    None: nobody is there.
    """
    return await call(script, "advisor", *arguments, options=options)


async def call(
    script: Script | None, *arguments: str, options: tuple[str, ...] = ()
) -> tuple[int, str, str]:
    """Return how any command with a model went."""
    async with faults.fault_server(serving(script or faults.hang)) as server:
        url = server.url if script is not None else "http://127.0.0.1:9"
        environ = {"ROLLOUTD_CONFIG": None, "ROLLOUTD_ADVISOR__URL": None}
        words = [*arguments, "--url", url, *options]
        result = await asyncio.to_thread(CliRunner().invoke, app, words, env=environ)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("protocol", ["openai", "ollama"])
async def test_check_of_a_fit_server(protocol: str) -> None:
    """A server that answers in the form is fit: exit 0, with model, time and what came."""
    code, said, _ = await run(faults.advising(), "check", "--protocol", protocol)
    assert code == 0
    assert "tiny: listed" in said
    assert "3 of 3 in the form" in said


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("llama3.2", "llama3.2: listed"),  # Ollama lists it with the tag that it adds
        ("llama3.2:latest", "llama3.2:latest: listed"),
        ("llama3.2:1b", "llama3.2:1b: not in its list: llama3.2:latest"),
        ("llama3", "llama3: not in its list"),
    ],
)
async def test_check_knows_the_tag_that_ollama_adds(
    monkeypatch: pytest.MonkeyPatch, model: str, words: str
) -> None:
    """A model without a tag is the one with the tag `latest`, and no other."""
    monkeypatch.setitem(MODELS, "GET /api/tags", '{"models": [{"name": "llama3.2:latest"}]}')
    options = ("--model", model, "--protocol", "ollama")
    code, said, _ = await run(faults.advising(), "check", options=options)
    assert code == 0
    assert words in said


async def test_check_of_a_server_that_ignores_the_form() -> None:
    """A server that answers, but not in the form, is unfit: exit 1, with the reason."""
    code, said, _ = await run(faults.advising({"promote": True}), "check", "--json")
    found = json.loads(said)
    assert code == EXIT_REJECTED
    assert (found["is_reachable"], found["valid_answers"], found["questions"]) == (True, 0, 3)
    assert "not in the form" in found["errors"][0]


async def test_check_of_a_model_that_is_not_there() -> None:
    """A model that the server does not list is said so, with those it does."""
    code, said, _ = await run(
        faults.answering("{}", status="404 Not Found"), "check", options=("--model", "other")
    )
    assert code == EXIT_REJECTED
    assert "other: not in its list: tiny" in said


@pytest.mark.parametrize("command", ["check", "eval"])
async def test_nobody_there(command: str) -> None:
    """A server that is not reached is exit 4, with what the network says."""
    code, said, complained = await run(None, command)
    assert code == EXIT_UNREACHABLE
    assert "cannot be reached" in said + complained


@pytest.mark.parametrize("command", ["check", "eval"])
async def test_nothing_configured(command: str) -> None:
    """Without an address anywhere there is nobody to ask: exit 78."""
    environ = {"ROLLOUTD_CONFIG": None, "ROLLOUTD_ADVISOR__URL": None}
    result = await asyncio.to_thread(CliRunner().invoke, app, ["advisor", command], env=environ)
    assert result.exit_code == EXIT_CONFIG
    assert "no model is configured" in result.stderr
    result = await asyncio.to_thread(
        CliRunner().invoke, app, ["advisor", command, "--url", "nowhere"], env=environ
    )
    assert result.exit_code == EXIT_CONFIG


async def test_eval_scores_and_writes_a_report(tmp_path: Path) -> None:
    """Every case is put once; figures, report and document agree."""
    page = tmp_path / "report.html"
    code, said, _ = await run(faults.advising(), "eval", "--html", str(page))
    assert code == 0
    assert " ".join(said.split()).count("unsafe proceeds 100 %") == 1
    assert "advisor.mode: observe" in said
    assert page.read_text().startswith("<!doctype html>")
    code, said, _ = await run(
        faults.advising(), "eval", "--json", "--kind", "drift", "--kind", "mixed"
    )
    document: dict[str, Any] = json.loads(said)
    assert code == 0
    assert {case["kind"] for case in document["cases"]} == {"drift", "mixed"}
    assert document["unsafe_proceeds"]["share"] == 1.0


async def test_eval_without_any_advice() -> None:
    """A server that only ever fails scores nothing: exit 1, with its reason."""
    code, said, _ = await run(
        faults.answering('{"error": "oom"}', status="500 E"), "eval", "--kind", "drift"
    )
    assert code == EXIT_REJECTED
    assert "0 of 6" in said
    assert "oom" in said


async def test_eval_report_that_cannot_be_written() -> None:
    """A report that cannot be written is a mistake of usage, said after the questions were put."""
    code, _, complained = await run(
        faults.advising(), "eval", "--kind", "drift", "--html", "no/such/place.html"
    )
    assert code == EXIT_USAGE
    assert "cannot be written" in complained


PLAN = {
    "stages": [
        {"percent": percent, "bake_hours": 24, "approval": False} for percent in (5, 30, 100)
    ],
    "error_rate_limit_percent": 2,
    "error_rate_margin_percent": 10,
    "latency_margin_percent": 10,
    "latency_limit_ms": 800,
}
SUGGEST_PLAN = (
    "suggest",
    "plan",
    "--flag",
    "new-checkout",
    "--risk",
    "medium",
    "--describe",
    "a new form",
)


async def test_suggested_plan_can_be_started(tmp_path: Path) -> None:
    """What `suggest plan` prints passes `plan lint` as it is, and says who drafted it."""
    code, said, complained = await call(
        faults.advising(PLAN), *SUGGEST_PLAN, options=("--model", "tiny")
    )
    assert code == 0
    assert "percent: 30" in said
    assert "drafted by the model tiny" in complained
    plan = tmp_path / "plan.yaml"
    plan.write_text(said)
    linted = await asyncio.to_thread(CliRunner().invoke, app, ["plan", "lint", str(plan)])
    assert linted.exit_code == 0, linted.output


@pytest.mark.parametrize(
    "script", [None, faults.reset, faults.advising("no"), faults.advising({**PLAN, "stages": []})]
)
async def test_suggested_plan_without_a_useful_model(script: Script | None) -> None:
    """However the model fails, the template stands in, and the reason is said."""
    code, said, complained = await call(script, *SUGGEST_PLAN)
    assert code == 0
    assert "percent: 25" in said
    assert "from the built-in template, no model:" in complained


async def test_suggested_targeting_is_tried_on_samples(tmp_path: Path) -> None:
    """An audience for plans and both flag planes, and a table of who belongs to it."""
    segments = tmp_path / "segments.yaml"
    segments.write_text(
        "{attributes: {tier: {values: [free, pro]}}, samples: [{targetingKey: u-1, tier: "
        "pro}, {tier: free}]}"
    )
    words = (
        "suggest",
        "targeting",
        "--describe",
        "who pays",
        "--segments",
        str(segments),
        "--name",
        "payers",
    )
    drafted = {"conditions": [{"attribute": "tier", "operator": "eq", "values": ["pro"]}]}
    code, said, _ = await call(faults.advising(drafted), *words)
    assert code == 0
    assert '"contextName": "tier"' in said
    assert "1 of 2 sample users match" in said
    plan = tmp_path / "plan.yaml"
    stages = (
        "stages: [{percent: 100, bake: 1d, audience: payers}, {percent: 100, bake: "
        "1d}]\nguardrails: [error_rate < 1%]\n"
    )
    plan.write_text(f"name: paid\nflag: new-checkout\n{said[: said.index('flagd:')]}{stages}")
    linted = await asyncio.to_thread(CliRunner().invoke, app, ["plan", "lint", str(plan)])
    assert linted.exit_code == 0, linted.output
    code, said, _ = await call(faults.advising(drafted), *words, options=("--json",))
    document = json.loads(said)
    assert [sample["matches"] for sample in document["samples"]] == [True, False]
    assert document["audiences"] == {"payers": [{"attribute": "tier", "eq": "pro"}]}
    assert document["flagd"]["if"][1:] == ["on", "off"]
    assert document["unleash"] == [
        {"constraints": [{"contextName": "tier", "operator": "IN", "values": ["pro"]}]}
    ]
    code, said, complained = await call(None, *words, options=("--no-model",))
    assert code == 0
    assert "everybody would match" in complained
    assert "2 of 2 sample users match" in said
    assert (await call(None, *words, options=("--name", "who pays")))[0] == EXIT_USAGE
    segments.write_text("attributes: 1")
    assert (await call(None, *words))[0] == EXIT_USAGE


async def test_suggestions_that_cannot_be_meant() -> None:
    """A risk that does not exist and a changelog of nothing are mistakes of usage."""
    assert (await call(None, *SUGGEST_PLAN, options=("--risk", "none")))[0] == EXIT_USAGE
    assert (await call(None, "changelog"))[0] == EXIT_USAGE
    assert (await call(None, "changelog", "--since", "yesterday"))[0] == EXIT_USAGE


CUT_OFF = faults.completion("{", finish_reason="length")


@pytest.mark.parametrize(
    ("script", "protocol", "step"),
    [
        (serving(faults.answering(CUT_OFF)), "openai", "raise advisor.max_tokens (512 now)"),
        (localai("tiny"), "openai", "advisor.protocol (--protocol) to localai for LocalAI"),
        (serving(faults.advising({"promote": True})), "localai", "another advisor.model (--model)"),
        (without_ollama(faults.hang), "ollama", "another protocol: give openai or localai"),
        (localai("other"), "localai", "install the model on the server, or give one of its list"),
        (
            serving(faults.answering("{}", status="503 Service Unavailable")),
            "openai",
            "ask again when the server has loaded the model",
        ),
        (
            faults.answering("{}", status="401 Unauthorized"),
            "openai",
            "let advisor.api_key_file (--api-key-file) name a file",
        ),
        (serving(faults.hang), "openai", "raise advisor.deadline_seconds (--deadline)"),
        (faults.answering("<html>"), "openai", "(--protocol) be those of a model server"),
        (serving(faults.answering("{}", status="500 No")), "openai", "see the server's log"),
    ],
)
async def test_every_failed_check_ends_with_the_next_step(
    script: Script, protocol: str, step: str
) -> None:
    """And a request that was never sent, as the one before failed, is no failure of its own."""
    async with faults.fault_server(script) as server:
        words = ["advisor", "check", "--url", server.url, "--model", "tiny", "--deadline", "0.4"]
        words += ["--protocol", protocol]
        result = await asyncio.to_thread(CliRunner().invoke, app, words)
        as_json = await asyncio.to_thread(CliRunner().invoke, app, [*words, "--json"])
    assert result.exit_code in (EXIT_REJECTED, EXIT_UNREACHABLE)
    assert step in result.stdout
    assert "no request for another" not in result.stdout
    assert step in " ".join(json.loads(as_json.stdout)["next_steps"])


async def test_a_server_that_is_not_reached_has_a_next_step() -> None:
    """For both commands, with the option that gives its address."""
    _, said, _ = await run(None, "check")
    assert "start the server, or correct advisor.url (--url)" in said
    _, _, complained = await run(None, "eval")
    assert "next: start the server, or correct advisor.url (--url)" in complained


@pytest.mark.parametrize(
    ("option", "value"),
    [("--url", "foo"), ("--protocol", "smoke"), ("--api-key-file", "/nowhere"), ("--model", "")],
)
async def test_a_wrong_option_is_named_and_no_setting(option: str, value: str) -> None:
    """A person who has typed an option has set no variable."""
    words = ["advisor", "check", "--url", "http://127.0.0.1:9", option, value]
    result = await asyncio.to_thread(CliRunner().invoke, app, words)
    assert result.exit_code == EXIT_CONFIG
    assert result.stderr.startswith(f"rolloutctl: {option}: "), result.stderr
