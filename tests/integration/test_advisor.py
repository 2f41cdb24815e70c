"""The advisor over HTTP: good answers, budget, turns, and what is not repeated."""

from __future__ import annotations

import asyncio
import json
import os
import random

import pytest
from local_kafka import free_port

from controller.adapters.llm.prompts import gate_prompt
from controller.core.effects import RaiseAlert
from controller.core.judging.judgement import Advice
from controller.errors import AdviceUnavailableError
from schemas.advice import ANSWER_SCHEMA
from schemas.terms import AlertKind, Severity
from tests import fault_server as faults
from tests.builders import make_judgement, make_rollout
from tests.fault_server import Exchange
from tests.integration.advisor_helpers import (
    PROTOCOLS,
    SOON_SECONDS,
    ask,
    make_advisor,
    make_question,
)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_good_answer_is_advice(protocol: str) -> None:
    """A completion in the form becomes advice with its question, latency and raw answer."""
    async with faults.fault_server(faults.advising()) as server:
        advice = await ask(server, protocol=protocol)
    assert (advice.choice, advice.confidence, advice.model) == ("proceed", 80, "tiny")
    assert advice.reasons == ("error_rate is alike in both arms",)
    assert len(advice.prompt_sha256) == 64
    assert advice.latency_ms >= 0
    assert json.loads(advice.raw) == faults.GOOD_ANSWER
    assert (advice.server, advice.prompt) == (server.url, "gate-v1")
    assert '"temperature":0' in advice.parameters


async def test_ollama_is_told_how_large_a_context_to_load() -> None:
    """Ollama gets the whole question at once.

    With form, context size and how long to stay loaded, on its own address.
    """
    async with faults.fault_server(faults.advising()) as server:
        advice = await ask(
            server.url + "/api",
            protocol="ollama",
            context_tokens=8192,
            max_tokens=99,
            keep_alive="-1",
        )
    (request,) = server.requests
    body = json.loads(request.body)
    assert request.line == "POST /api/chat HTTP/1.1"
    assert (body["truncate"], body["shift"]) == (False, False)  # cut nothing silently
    assert (body["stream"], body["think"], body["keep_alive"], body["model"]) == (
        False,
        False,
        "-1",
        "tiny",
    )
    assert body["options"] == {"temperature": 0, "seed": 7, "num_ctx": 8192, "num_predict": 99}
    assert body["format"]["properties"].keys() == {"reasons", "verdict", "confidence"}
    assert (advice.prompt_tokens, advice.completion_tokens) == (600, 40)


async def test_ollama_that_streams_is_no_advice() -> None:
    """The first line of a stream is no answer, and lines of JSON are no JSON."""
    async with faults.fault_server(
        faults.answering(faults.chat_response("{", done=False))
    ) as server:
        with pytest.raises(AdviceUnavailableError, match="cut off: finish_reason not done"):
            await ask(server, protocol="ollama")
        server.script = faults.answering(
            f"{faults.chat_response('{', done=False)}\n{faults.chat_response('')}"
        )
        with pytest.raises(AdviceUnavailableError, match="no chat completion"):
            await ask(server, protocol="ollama")
        server.script = faults.answering('{"error": "llama runner process has terminated"}')
        with pytest.raises(AdviceUnavailableError, match="no chat completion"):
            await ask(server, protocol="ollama")


@pytest.mark.parametrize(
    ("protocol", "line", "body"),
    [
        (
            "openai",
            "GET /v1/models HTTP/1.1",
            '{"object": "list", "data": [{"id": "tiny", "object": "model"}]}',
        ),
        ("ollama", "GET /api/tags HTTP/1.1", '{"models": [{"name": "tiny", "size": 1}]}'),
    ],
)
async def test_models_are_listed(protocol: str, line: str, body: str) -> None:
    """A server is asked which models it has where its dialect says so.

    And anything but a list is trouble.
    """
    async with faults.fault_server(faults.answering(body)) as server:
        advisor = make_advisor(server.url, protocol=protocol, api_key="secret-1")
        assert await advisor.server.models(seconds=5.0) == ("tiny",)
        server.script = faults.answering('{"data": {}, "models": 1}')
        with pytest.raises(AdviceUnavailableError, match="no list of models"):
            await advisor.server.models(seconds=5.0)
        await advisor.close()
    assert server.requests[0].line == line
    assert server.requests[0].headers["authorization"] == "Bearer secret-1"


async def test_the_day_has_a_budget() -> None:
    """When the day's questions are used up nobody is asked.

    And questions that no gate waits for end at half of it.
    """
    async with faults.fault_server(faults.advising()) as server:
        advisor = make_advisor(server.url, questions_per_day=4)
        prompt = gate_prompt(make_rollout(), make_question())
        for _ in range(2):
            await advisor.server.complete(prompt, ANSWER_SCHEMA, seconds=5.0, is_optional=True)
        with pytest.raises(AdviceUnavailableError, match="the day's 2 questions are used up"):
            await advisor.server.complete(prompt, ANSWER_SCHEMA, seconds=5.0, is_optional=True)
        for _ in range(2):
            await advisor.ask(make_rollout(), make_question())
        with pytest.raises(AdviceUnavailableError, match="the day's 4 questions are used up"):
            await advisor.ask(make_rollout(), make_question())
        assert advisor.trouble is None
        await advisor.close()
    assert len(server.requests) == 4


async def test_request_says_what_is_wanted() -> None:
    """The request asks for one whole, repeatable answer in the form, with our key.

    And for nothing packed.
    """
    async with faults.fault_server(faults.advising()) as server:
        await ask(server.url + "/v1/", api_key="secret-1", max_tokens=99)
    (request,) = server.requests
    body = json.loads(request.body)
    assert request.line == "POST /v1/chat/completions HTTP/1.1"
    assert request.headers["authorization"] == "Bearer secret-1"
    assert request.headers["accept-encoding"] == "identity"
    assert (body["stream"], body["temperature"], body["max_tokens"], body["model"]) == (
        False,
        0,
        99,
        "tiny",
    )
    assert body["response_format"]["type"] == "json_schema"
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert (
        json.dumps(body["response_format"]["json_schema"]["schema"])
        in body["messages"][0]["content"]
    )


async def test_the_key_is_not_repeated() -> None:
    """A server that repeats our key in its refusal does not bring it into our logs."""
    refusal = json.dumps({"error": {"message": "no such key: secret-1"}})
    async with faults.fault_server(faults.answering(refusal, status="401 No")) as server:
        with pytest.raises(AdviceUnavailableError, match=r"no such key: \*\*\*$"):
            await ask(server, api_key="secret-1")


async def test_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the environment names does not get to see the question."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    async with faults.fault_server(faults.advising()) as server:
        assert (await ask(server)).choice == "proceed"


async def test_cookies_are_not_kept() -> None:
    """Nothing a server says is carried into the next question."""
    async with faults.fault_server(
        faults.answering(faults.completion(), set_cookie="token=abc")
    ) as server:
        advisor = make_advisor(server.url)
        for _ in range(2):
            await advisor.ask(make_rollout(), make_question())
        await advisor.close()
    assert all("cookie" not in request.headers for request in server.requests)


async def test_one_question_at_a_time() -> None:
    """Questions beyond `concurrency` wait for their turn, so that a small server is not overrun."""

    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.02)
        await exchange.answer(faults.completion())

    async with faults.fault_server(slow) as server:
        advisor = make_advisor(server.url)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(advisor.ask(make_rollout(), make_question()))
        await advisor.close()
    assert len(server.requests) == 5
    assert server.most_open == 1


async def test_waiting_for_a_turn_uses_up_the_deadline() -> None:
    """A question behind one that hangs ends at its own deadline, says so.

    And is not held against the server.
    """
    async with faults.fault_server(faults.hang) as server:
        advisor = make_advisor(server.url, deadline_seconds=5.0, breaker_failures=1)
        first = asyncio.create_task(advisor.ask(make_rollout(), make_question()))
        while not server.requests:
            await asyncio.sleep(0.005)
        with pytest.raises(AdviceUnavailableError, match="earlier questions"):
            await advisor.ask(make_rollout(), make_question(seconds=0.2))
        assert advisor.trouble is None
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await advisor.close()
    assert len(server.requests) == 1


async def test_a_gate_goes_before_what_nobody_waits_for() -> None:
    """A gate's question calls off an explanation that has the only turn.

    Which is then no advice and no fault of the server.
    """
    async with faults.fault_server(faults.hang) as server:
        advisor = make_advisor(server.url, breaker_failures=1)
        alert = RaiseAlert(
            AlertKind.ROLLED_BACK, Severity.CRITICAL, "rolled back", "look", "key", make_judgement()
        )
        optional = [asyncio.create_task(advisor.explain(make_rollout(), alert)) for _ in range(3)]
        while not server.requests:
            await asyncio.sleep(0.005)
        server.script = faults.advising()
        async with asyncio.timeout(SOON_SECONDS):
            assert (await advisor.ask(make_rollout(), make_question())).choice == "proceed"
            ended = await asyncio.gather(*optional, return_exceptions=True)
        assert [str(end) for end in ended] == ["gave way to a gate's question"] * 3
        assert advisor.trouble is None
        server.script = faults.advising({"likely_cause": "a cause", "next_steps": ["a step"]})
        explanation = await advisor.explain(make_rollout(), alert)
        assert (explanation.likely_cause, explanation.next_steps, explanation.prompt) == (
            "a cause",
            ("a step",),
            "explain-v1",
        )
        server.script = faults.advising(
            {"unusual": [{"rollout": 1, "what": "odd"}, {"rollout": 2, "what": "nobody's"}]}
        )
        assert await advisor.review({"f": (make_rollout(), make_judgement())}) == [
            ("new-checkout", "odd")
        ]
        await advisor.close()


async def test_cancelling_passes_through_and_frees_the_turn() -> None:
    """A cancelled question ends at once, closes its connection, and the next one is asked."""
    async with faults.fault_server(faults.hang) as server:
        advisor = make_advisor(server.url, breaker_failures=1)
        asking = asyncio.create_task(advisor.ask(make_rollout(), make_question()))
        while not server.requests:
            await asyncio.sleep(0.005)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        server.script = faults.advising()
        assert (await advisor.ask(make_rollout(), make_question())).choice == "proceed"
        await advisor.close()


async def test_close_ends_what_is_out() -> None:
    """Closing does not wait for a hanging model."""
    async with faults.fault_server(faults.hang) as server:
        advisor = make_advisor(server.url, deadline_seconds=0.5)
        asking = asyncio.create_task(advisor.ask(make_rollout(), make_question()))
        while not server.requests:
            await asyncio.sleep(0.005)
        async with asyncio.timeout(SOON_SECONDS):
            await advisor.close()
            with pytest.raises(AdviceUnavailableError):
                await asking


async def test_hanging_model_is_not_asked_for_a_while() -> None:
    """After failures in a row the server is left alone.

    Questions end at once and none reaches it.
    """
    async with faults.fault_server(faults.hang) as server:
        advisor = make_advisor(server.url, deadline_seconds=0.1, breaker_failures=2)
        for _ in range(5):
            with pytest.raises(AdviceUnavailableError):
                await advisor.ask(make_rollout(), make_question())
        assert advisor.trouble is not None
        assert "no request for another 60 s" in advisor.trouble
        await advisor.close()
    assert len(server.requests) == 2


async def test_any_bytes_as_response_are_advice_or_no_advice() -> None:
    """A response that is damaged anywhere, head or body, is read as advice or refused.

    And nothing else happens.
    """
    seed = int(os.environ.get("ROLLOUTD_TEST_SEED", random.randrange(2**32)))
    chance = random.Random(seed)
    body = faults.completion().encode()
    sound = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )

    async def damaged(exchange: Exchange) -> None:
        raw = bytearray(sound)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(raw))
            match chance.randrange(4):
                case 0:
                    raw[at] = chance.randrange(256)
                case 1:
                    del raw[at : at + chance.randrange(1, 40)]
                case 2:
                    raw[at:at] = chance.randbytes(chance.randrange(1, 40))
                case _:
                    raw[at:at] = raw[at : at + chance.randrange(1, 200)]
        await exchange.send(bytes(raw))

    async with faults.fault_server(damaged) as server:
        advisor = make_advisor(server.url)
        counts = {"advice": 0, "none": 0}
        for number in range(200):
            try:
                advice = await advisor.ask(make_rollout(), make_question())
                assert isinstance(advice, Advice), f"seed {seed}, number {number}"
                counts["advice"] += 1
            except AdviceUnavailableError:
                counts["none"] += 1
        await advisor.close()
    assert min(counts.values()) > 0, f"seed {seed}: the damage reached neither or both: {counts}"
