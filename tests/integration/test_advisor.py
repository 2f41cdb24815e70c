"""Asking a model whose server does its worst, on a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import ssl
import time
import tracemalloc
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from controller.adapters.llm.advisor import ModelAdvisor
from controller.adapters.llm.prompts import gate_prompt
from controller.clock import SystemClock
from controller.core.judging.judgement import Advice
from controller.core.rollout import AskAdvice, RaiseAlert
from controller.errors import AdviceUnavailableError, ConfigInvalid
from controller.settings import AdvisorSettings
from schemas.advice import ANSWER_SCHEMA
from schemas.terms import AlertKind, Severity
from tests import fault_server as faults
from tests.builders import make_judgement, make_rollout
from tests.fault_server import Exchange, FaultServer, Script

CLOCK = SystemClock()
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
CHUNKED_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)

#: Both dialects share all but the words of request and completion; every fault is put before both.
PROTOCOLS = ("openai", "ollama")

# : Far above any deadline used here, far below what a hang would take: a busy machine must not fail
# a test.
SOON_SECONDS = 120.0


def make_advisor(url: str, **overrides: Any) -> ModelAdvisor:
    """Return an advisor that gives up after 10 s and never stops asking, unless told otherwise."""
    fields: dict[str, Any] = {
        "url": url,
        "model": "tiny",
        "deadline_seconds": 10.0,
        "breaker_failures": 1000,
    }
    return ModelAdvisor(AdvisorSettings(**{**fields, **overrides}), CLOCK)


def make_question(seconds: float = 600.0) -> AskAdvice:
    """Return a question that may take as long as this."""
    until = CLOCK.now() + timedelta(seconds=seconds)
    return AskAdvice(gate_id="gate-1", round=1, until=until, judgement=make_judgement())


async def ask(server: FaultServer | str, **overrides: Any) -> Advice:
    """Put one question by an advisor of its own."""
    url = server if isinstance(server, str) else server.url
    advisor = make_advisor(url, **overrides)
    try:
        return await advisor.ask(make_rollout(), make_question())
    finally:
        await advisor.close()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
    assert (body["stream"], body["think"], body["keep_alive"], body["model"]) == (
        False,
        False,
        "-1",
        "tiny",
    )
    assert body["options"] == {"temperature": 0, "seed": 7, "num_ctx": 8192, "num_predict": 99}
    assert body["format"]["properties"].keys() == {"reasons", "verdict", "confidence"}
    assert (advice.prompt_tokens, advice.completion_tokens) == (600, 40)


async def test_ollama_that_cut_the_question_is_no_advice() -> None:
    """An answer to a prompt that filled the context may be one to half a question."""
    async with faults.fault_server(
        faults.answering(faults.chat_response(prompt_eval_count=4090))
    ) as server:
        with pytest.raises(AdviceUnavailableError, match="context of 4096 tokens is full"):
            await ask(server, protocol="ollama")


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


SLOW: dict[str, tuple[Script, str]] = {
    "hangs before its headers": (faults.hang, "no complete answer within"),
    "hangs in its body": (faults.hang_in_body, "no complete answer within"),
    "drips its headers": (
        faults.repeating(b"X-A: b\r\n", head=b"HTTP/1.1 200 OK\r\n", pause_seconds=0.02),
        "no complete",
    ),
    "drips its body": (
        faults.repeating(b"{", head=JSON_HEAD, pause_seconds=0.02),
        "no complete answer within",
    ),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fault", SLOW)
async def test_slow_server_costs_no_more_than_the_deadline(fault: str, protocol: str) -> None:
    """However a server stalls, the question ends at its deadline and the loop goes on meanwhile."""
    script, reason = SLOW[fault]
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    counting = asyncio.create_task(count_turns())
    async with faults.fault_server(script) as server:
        started = time.monotonic()
        with pytest.raises(AdviceUnavailableError, match=reason):
            await ask(server, protocol=protocol, deadline_seconds=0.4)
        took = time.monotonic() - started
    counting.cancel()
    assert 0.35 < took < SOON_SECONDS
    assert turns > 5


HUGE = b"x" * 65_536
FAILING: dict[str, tuple[Script, str]] = {
    "500": (
        faults.answering('{"error": {"message": "could not load model"}}', status="500 E"),
        "HTTP 500.*load model",
    ),
    "500 without words": (faults.answering("", status="500 E"), r"failed \(HTTP 500\)$"),
    "503": (
        faults.answering(
            '{"error": "loading"}', status="503 Service Unavailable", retry_after="10"
        ),
        "not ready.*loading",
    ),
    "429": (
        faults.answering("slow down", status="429 Too Many"),
        r"too many questions \(HTTP 429\)$",
    ),
    "400": (
        faults.answering('{"error": {"code": 400}}', status="400 Bad"),
        r"refused the question \(HTTP 400\)$",
    ),
    "401": (
        faults.answering('{"detail": "Invalid API key"}', status="401 No"),
        "refused the key .HTTP 401.: Invalid API",
    ),
    "404": (faults.answering("{}", status="404 Not Found"), "no such model or address .HTTP 404"),
    "204": (faults.answering("", status="204 No Content"), "HTTP 204"),
    "refusal of 50 MB": (
        faults.repeating(
            HUGE, head=b"HTTP/1.1 500 E\r\nContent-Length: 50000000\r\n\r\n", times=763
        ),
        r"failed \(HTTP 500\)$",
    ),
    "refusal that hangs": (
        faults.repeating(
            b"", head=b"HTTP/1.1 500 E\r\nContent-Length: 10\r\n\r\n", pause_seconds=0.05
        ),
        r"failed \(HTTP 500\)$",
    ),
    "refusal with control characters": (
        faults.answering('{"error": "\\u001b[2J\\u202eoh\\nno"}', status="500 E"),
        r"HTTP 500\): \[2J oh no$",
    ),
    "redirect": (
        faults.answering("", status="302 Found", location="http://127.0.0.1:9/v1"),
        "redirected us.*HTTP 302",
    ),
    "HTML": (
        faults.answering("<html>login</html>", content_type="text/html"),
        "text/html, not JSON",
    ),
    "wrong content type": (
        faults.answering(faults.completion(), content_type="text/plain"),
        "text/plain, not JSON",
    ),
    "event stream": (
        faults.answering("data: {}\n\n", content_type="text/event-stream"),
        "event-stream, not JSON",
    ),
    "no content type": (
        faults.repeating(b"{}", head=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", times=1),
        "no content type",
    ),
    "packed": (faults.answering(faults.completion(), content_encoding="gzip"), "packed answer"),
    "50 MB": (faults.repeating(HUGE, head=JSON_HEAD, times=763), "longer than 65536 bytes"),
    "50 MB in tiny chunks": (
        faults.repeating(b"1\r\nx\r\n" * 10_000, head=CHUNKED_HEAD, times=800),
        "longer than 65536",
    ),
    "endless white space": (faults.repeating(b" \n\t" * 100, head=JSON_HEAD), "white space"),
    "endless white space in tiny chunks": (
        faults.repeating(b"1\r\n \r\n", head=CHUNKED_HEAD),
        "white space",
    ),
    "always about to answer": (
        faults.repeating(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000),
        "interim response",
    ),
    "endless headers": (
        faults.repeating(b"X-A: " + b"b" * 1000 + b"\r\n", head=b"HTTP/1.1 200 OK\r\n"),
        "8192 bytes of headers",
    ),
    "endless status line": (faults.repeating(b"A" * 1000), "8192 bytes of headers"),
    "truncated JSON": (faults.answering(faults.completion()[:-20]), "no chat completion"),
    "no JSON": (faults.answering("proceed"), "no chat completion"),
    "empty": (faults.answering(""), "no chat completion"),
    "not UTF-8": (
        faults.answering(b'{"choices": [{"message": {"content": "\xff"}}]}'),
        "no chat completion",
    ),
    "nested for ever": (faults.answering('{"id": ' + "[" * 30_000), "no chat completion"),
    "no choices": (faults.answering('{"choices": []}'), "no chat completion"),
    "two choices": (
        faults.answering('{"choices": [{"message": {}}, {"message": {}}]}'),
        "no chat completion",
    ),
    "error under status 200": (
        faults.answering('{"error": {"message": "oom"}}'),
        "no chat completion",
    ),
    "less than promised": (
        faults.repeating(
            b"{", head=JSON_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n"), times=1
        ),
        "broke off",
    ),
    "no HTTP": (faults.repeating(b"SSH-2.0-OpenSSH_9.9\r\n", times=1), "broke off"),
    "a reset": (faults.reset, "broke off"),
    "a reset in the body": (faults.reset_in_body, "broke off"),
    "nothing": (faults.close_at_once, "broke off"),
    "no content": (
        faults.answering(
            '{"choices": [{"finish_reason": "stop", "message": {"content": null}}],'
            ' "message": {"content": null}, "done": true, "done_reason": "stop"}'
        ),
        "wrote nothing",
    ),
    "cut off by max_tokens": (
        faults.advising(finish_reason="length"),
        "cut off: finish_reason length",
    ),
    "no finish reason": (faults.advising(finish_reason=None), "cut off"),
    "wrong schema": (faults.advising({"promote": True}), "not in the form"),
    "NaN confidence": (
        faults.advising('{"verdict": "proceed", "confidence": NaN, "reasons": []}'),
        "NaN",
    ),
    "doubled first token": (
        faults.advising("{" + json.dumps(faults.GOOD_ANSWER)),
        "not one JSON object",
    ),
    "half an answer": (faults.advising(json.dumps(faults.GOOD_ANSWER)[:-9]), "not one JSON object"),
    "white space in the answer": (
        faults.advising('{"verdict":' + "\n" * 600),
        "white space in a row",
    ),
    "a refusal in words": (
        faults.advising("I am sorry, but I cannot help with that."),
        "not one JSON object",
    ),
    "another language": (faults.advising("Weiter so, alles gut."), "not one JSON object"),
    "thinking aloud": (
        faults.advising("<think>hm</think>" + json.dumps(faults.GOOD_ANSWER)),
        "not one JSON object",
    ),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fault", FAILING)
async def test_failing_server_is_no_advice(fault: str, protocol: str) -> None:
    """Whatever a server sends in place of a whole answer in the form is no advice.

    With a reason fit for a log line.
    """
    script, reason = FAILING[fault]
    async with faults.fault_server(script) as server:
        async with asyncio.timeout(SOON_SECONDS):
            with pytest.raises(AdviceUnavailableError, match=reason) as refusal:
                await ask(server, protocol=protocol, deadline_seconds=240.0)
        assert len(server.requests) == 1  # never a second try, never another address
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 500
    assert server.sent_bytes < 16_000_000  # what the network's own buffers take, not the 50 MB


@pytest.mark.parametrize("fault", ["50 MB", "endless white space", "refusal of 50 MB"])
async def test_memory_stays_bounded(fault: str) -> None:
    """Of an answer without end no more is held than may be read."""
    async with faults.fault_server(FAILING[fault][0]) as server:
        tracemalloc.start()
        try:
            with pytest.raises(AdviceUnavailableError):
                await ask(server, deadline_seconds=240.0)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 4_000_000


async def test_tiny_chunks_do_not_hold_up_the_loop() -> None:
    """An answer in thousands of chunks that arrive at once is taken in slices.

    Others get their turns in between.
    """
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def prepared(exchange: Exchange) -> None:
        await exchange.send(CHUNKED_HEAD + b"1\r\nx\r\n" * 8_000)
        await asyncio.get_running_loop().create_future()

    async with faults.fault_server(prepared) as server:
        counting = asyncio.create_task(count_turns())
        with pytest.raises(AdviceUnavailableError, match="longer than 4096"):
            await ask(server, deadline_seconds=240.0, max_answer_bytes=4_096)
        counting.cancel()
    assert turns > 4_096 / 64


async def test_nobody_there_is_no_advice() -> None:
    """A port that nobody listens on is named as such at once."""
    with pytest.raises(AdviceUnavailableError, match=r"cannot be reached: .*Connect call failed"):
        await ask(f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize("host", ["advisor.invalid", "a..b", "x" * 70 + ".invalid", "127.0.0.1.5"])
async def test_host_that_does_not_resolve_is_no_advice(host: str) -> None:
    """A host name that is unknown, or none, is no advice within the time for a connection."""
    async with asyncio.timeout(SOON_SECONDS):
        with pytest.raises(
            AdviceUnavailableError,
            match=r"cannot be reached|cannot be asked|accepted no connection",
        ):
            await ask(f"http://{host}:8080", connect_timeout_seconds=1.0)


async def test_plain_server_behind_https_is_no_advice() -> None:
    """A server that does not speak TLS is no advice, also when it only listens."""
    async with faults.fault_server(faults.advising()) as server:
        with pytest.raises(
            AdviceUnavailableError, match=r"cannot be reached|accepted no connection"
        ):
            await ask(server.url.replace("http:", "https:"), connect_timeout_seconds=1.0)


async def test_private_authority_is_trusted_when_named(certificate: tuple[Path, Path]) -> None:
    """A server of a private authority is trusted once the settings name it, refused before."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    async with faults.fault_server(faults.advising(), tls=tls) as server:
        assert (await ask(server, ca_file=certificate[0])).choice == "proceed"
        with pytest.raises(AdviceUnavailableError, match="certificate verify failed"):
            await ask(server)
        tls.verify_mode = ssl.CERT_REQUIRED
        tls.load_verify_locations(certificate[0])
        mutual = {
            "ca_file": certificate[0],
            "certificate_file": certificate[0],
            "key_file": certificate[1],
        }
        assert (await ask(server, **mutual)).choice == "proceed"
        with pytest.raises(AdviceUnavailableError):
            await ask(server, ca_file=certificate[0])


def test_certificates_that_cannot_be_used_are_refused_at_start(tmp_path: Path) -> None:
    """A missing file of certificates is the operator's to fix, before anything is asked."""
    with pytest.raises(ConfigInvalid, match="ca_file"):
        make_advisor("https://advisor.invalid", ca_file=tmp_path / "none.pem")


async def test_full_backlog_is_no_advice() -> None:
    """A machine that takes no connection is given up after the connection timeout."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        crowd = []
        for _ in range(8):  # nobody accepts: the backlog fills, the rest hang in their handshake
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(address)
            crowd.append(waiting)
        async with asyncio.timeout(SOON_SECONDS):
            with pytest.raises(
                AdviceUnavailableError, match=r"accepted no connection within 0\.3 s"
            ):
                await ask(f"http://127.0.0.1:{address[1]}", connect_timeout_seconds=0.3)
        for waiting in crowd:
            waiting.close()


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
        assert await advisor.look_over({"f": (make_rollout(), make_judgement())}) == [
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
        assert "not asked for another 60 s" in advisor.trouble
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
