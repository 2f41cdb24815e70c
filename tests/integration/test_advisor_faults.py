"""A failing, slow or hostile model server gives no advice, and holds up nothing."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
import tracemalloc
from pathlib import Path

import pytest
from local_kafka import free_port

from controller.errors import AdviceUnavailableError, ConfigInvalid
from tests import fault_server as faults
from tests.fault_server import Exchange, Script
from tests.integration.advisor_helpers import (
    CHUNKED_HEAD,
    JSON_HEAD,
    PROTOCOLS,
    SOON_SECONDS,
    ask,
    make_advisor,
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
    "packed": (faults.answering(faults.completion(), content_encoding="gzip"), "compressed answer"),
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
            match=r"cannot be reached|gave no usable answer|accepted no connection",
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
