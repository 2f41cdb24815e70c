"""The HTTP listener over TLS, on real sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from cryptography import x509
from prometheus_client import generate_latest

from controller.cli.daemon_answers import ask_daemon
from controller.errors import ConfigInvalid
from controller.telemetry import Metrics
from controller.web import tls
from controller.web.server import HttpServer
from controller.web.tls import Certificate
from tests.certificates import write_certificate

REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer the scheme of the request, and 100 kB behind it."""
    body = scope["scheme"].encode() + b"." * 100_000
    head = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


class Pair:
    """A certificate and its key on disk, and what trusts them."""

    def __init__(self, directory: Path) -> None:
        self.certificate, self.key = directory / "tls.crt", directory / "tls.key"
        self.serial = write_certificate(self.certificate, self.key)

    def read(self) -> Certificate:
        """Return it as the listener has it."""
        return Certificate(self.certificate, self.key, "http")

    def trusting(self) -> ssl.SSLContext:
        """Return a client's context that trusts this certificate alone."""
        return ssl.create_default_context(cafile=self.certificate)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """A new certificate."""
    return Pair(tmp_path)


@asynccontextmanager
async def serving(certificate: Certificate, **limits: Any) -> AsyncIterator[int]:
    """Listen on a free port."""
    server = HttpServer(app, port=0, certificate=certificate, **limits)
    await server.start()
    try:
        yield server.port
    finally:
        await server.stop(2)


async def fetch(port: int, context: ssl.SSLContext, source: str = "127.0.0.1") -> bytes:
    """Send one request right behind the handshake, and return the whole answer."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, local_addr=(source, 0)
    )
    try:
        writer.write(REQUEST)
        return await reader.read()
    finally:
        writer.close()


async def test_requests_are_answered_over_tls_alone(pair: Pair) -> None:
    """Kept connections, many at once, and the newest version of TLS."""
    async with serving(pair.read()) as port:
        async with httpx.AsyncClient(verify=pair.trusting()) as client:
            url = f"https://localhost:{port}/"
            answers = await asyncio.gather(*(client.get(url) for _ in range(20)))
            assert {one.text[:6] for one in answers} == {"https."}
            assert all(len(one.content) == 100_005 for one in answers)
        for _ in range(20):
            assert (await fetch(port, pair.trusting())).endswith(b"https" + b"." * 100_000)
        with pytest.raises(httpx.ConnectError):
            async with httpx.AsyncClient() as stranger:
                await stranger.get(f"https://localhost:{port}/")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_old_versions_are_refused(pair: Pair) -> None:
    """TLS 1.1 is not spoken any more."""
    context = pair.trusting()
    context.minimum_version = ssl.TLSVersion.TLSv1_1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serving(pair.read()) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await fetch(port, context)
        assert await fetch(port, pair.trusting())


async def read_to_the_end(reader: asyncio.StreamReader) -> bytes:
    """Return what the other side sends until it closes, in whichever way."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""


@pytest.mark.parametrize("sent", [REQUEST, b"\x00" * 4_000, b"\x16\x03\x01\x00\x05hello"])
async def test_a_request_without_tls_gets_no_answer_and_does_not_hang(
    pair: Pair, sent: bytes
) -> None:
    """The connection ends at once, and the listener goes on."""
    async with serving(pair.read()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(5):
            assert b"HTTP" not in await read_to_the_end(reader)
        writer.close()
        assert await fetch(port, pair.trusting())


async def test_a_handshake_that_never_comes_ends(pair: Pair) -> None:
    """Also one that stops in the middle."""
    async with serving(pair.read(), head_seconds=2.0) as port:
        began = time.monotonic()
        silent, silent_writer = await asyncio.open_connection("127.0.0.1", port)
        half, half_writer = await asyncio.open_connection("127.0.0.1", port)
        half_writer.write(b"\x16\x03\x01\x02\x00\x01")
        async with asyncio.timeout(30):
            assert not await read_to_the_end(silent)
            assert not await read_to_the_end(half)
        assert time.monotonic() - began >= 0.9
        silent_writer.close()
        half_writer.close()
        assert await fetch(port, pair.trusting())


async def test_connections_without_a_handshake_keep_nobody_out(pair: Pair) -> None:
    """They take places as others do: one client has so many, and no more."""
    async with serving(
        pair.read(), max_connections=30, max_per_client=10, head_seconds=30.0
    ) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        async with asyncio.timeout(30):
            for _ in range(5):
                answer = await fetch(port, pair.trusting(), source="127.0.0.2")
                assert answer.startswith(b"HTTP/1.1 200")
        open_still = [reader for reader, _ in held if not reader.at_eof()]
        assert len(open_still) <= 10
        for _, writer in held:
            writer.close()


async def test_an_answer_that_nobody_takes_holds_no_place(pair: Pair) -> None:
    """A client that sends a request and vanishes in the handshake's last step leaves nothing."""
    async with serving(pair.read(), max_connections=5, max_per_client=5) as port:
        for _ in range(50):
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=pair.trusting())
            writer.write(REQUEST)
            writer.transport.abort()
        async with asyncio.timeout(30):
            assert (await fetch(port, pair.trusting())).startswith(b"HTTP/1.1 200")


async def serial_at(port: int) -> int:
    """Return the serial number of the certificate that is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(shown).serial_number


async def test_a_new_certificate_is_used_without_a_restart(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a pair, or what is none, changes nothing, and the log says so."""
    monkeypatch.setattr(tls, "RENEW_SECONDS", 0.0)
    async with serving(pair.read()) as port:
        assert await serial_at(port) == pair.serial
        key = pair.key.read_bytes()
        second = write_certificate(pair.certificate, pair.key)
        new_key = pair.key.read_bytes()
        pair.key.write_bytes(key)
        with structlog.testing.capture_logs() as logs:
            assert await serial_at(port) == pair.serial
        assert [one["event"] for one in logs] == ["certificate_not_renewed"]
        assert "another certificate's" in logs[0]["error"]
        pair.key.write_bytes(new_key)
        with structlog.testing.capture_logs() as logs:
            assert await serial_at(port) == second
        assert [one["event"] for one in logs] == ["certificate_renewed"]
        pair.certificate.unlink()
        assert await serial_at(port) == second


def test_files_that_cannot_be_used_are_named(pair: Pair, tmp_path: Path) -> None:
    """What is wrong, in which file, and what to do."""
    other = tmp_path / "other"
    other.mkdir()
    stranger = Pair(other)
    text = tmp_path / "text.pem"
    text.write_text("hello")
    cases = {
        (tmp_path / "nowhere.crt", pair.key): "nowhere.crt: No such file",
        (pair.certificate, stranger.key): "another certificate's; give both of one pair",
        (text, pair.key): "they are not PEM, or the key is missing",
        (pair.certificate, None): "they are not PEM, or the key is missing",
        (tmp_path, pair.key): "Is a directory",
    }
    for (certificate, key), words in cases.items():
        with pytest.raises(ConfigInvalid) as refused:
            Certificate(certificate, key, "http")
        assert words in str(refused.value)
        assert str(refused.value).startswith("http.certificate_file: ")


async def json_app(scope: Any, receive: Any, send: Any) -> None:
    """Answer an object, as the API does."""
    head = [(b"content-length", b"16")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": b'{"scheme":"tls"}'})


async def test_rolloutctl_trusts_an_authority_of_ones_own(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ROLLOUTCTL_CA_FILE names it, and not otherwise; a file of no use is named."""
    server = HttpServer(json_app, port=0, certificate=pair.read())
    await server.start()
    url = f"https://localhost:{server.port}"
    try:
        for path, words in (
            (None, "next: let ROLLOUTCTL_CA_FILE name the PEM file of the authority"),
            (pair.certificate, ""),
            (pair.key.with_name("none.pem"), "let ROLLOUTCTL_CA_FILE name a PEM file"),
            (pair.key, "let ROLLOUTCTL_CA_FILE name a PEM file"),
        ):
            if path is not None:
                monkeypatch.setenv("ROLLOUTCTL_CA_FILE", str(path))
            document, why = await asyncio.to_thread(ask_daemon, url, "/api/v1/rollouts")
            assert (document is not None) == (not words)
            assert words in why
        monkeypatch.delenv("ROLLOUTCTL_CA_FILE")
        plain = url.replace("https", "http")
        _, why = await asyncio.to_thread(ask_daemon, plain, "/api/v1/rollouts")
        assert "write https:// if it has http.certificate_file" in why
    finally:
        await server.stop(2)


async def test_a_connection_lost_in_its_handshake_leaves_its_place(pair: Pair) -> None:
    """Whether the client resets it, or we end it: nothing is counted, nor waited for at the end."""
    reasons: list[str] = []
    server = HttpServer(
        app,
        port=0,
        certificate=pair.read(),
        max_per_client=5,
        head_seconds=2.0,
        handshake_failed=reasons.append,
    )
    await server.start()
    try:
        for _ in range(5):
            await reset_in_handshake(server.port)
        silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(5)]
        for reader, writer in silent:
            assert not await read_to_the_end(reader)
            writer.close()
        await asyncio.sleep(0.1)
        assert server.connections == 0
        assert reasons == ["lost"] * 5 + ["timeout"] * 5
        under_way = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.sleep(0.1)
        assert server.connections == 1
    finally:
        began = time.monotonic()
        await server.stop(4)
    assert time.monotonic() - began < 1.5
    under_way[1].close()


async def reset_in_handshake(port: int) -> None:
    """Send half a greeting, and reset the connection, as a scanner of ports does."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"\x16\x03\x01\x02\x00\x01")
    await asyncio.sleep(0.05)
    # With a linger of zero seconds, closing resets.
    writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    writer.transport.abort()
    await asyncio.sleep(0.05)


def refuse_the_certificate(port: int) -> None:
    """Say why the handshake ends, as clients do; asyncio's does not."""
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")


async def test_failed_handshakes_are_counted_and_logged_once_a_minute(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their reason, so that a certificate which nobody trusts is told from strangers."""
    metrics = Metrics(version="test")
    server = HttpServer(
        app,
        port=0,
        certificate=pair.read(),
        handshake_failed=lambda reason: metrics.handshakes_failed.of(reason).inc(),
    )
    await server.start()
    with structlog.testing.capture_logs() as logs:
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(REQUEST)
            await read_to_the_end(reader)
            writer.close()
        await asyncio.to_thread(refuse_the_certificate, server.port)
        async with asyncio.timeout(10):
            while server.connections:
                await asyncio.sleep(0.05)
        monkeypatch.setattr(tls, "FAILED_LINE_SECONDS", 0.0)
        await reset_in_handshake(server.port)
    await server.stop(2)
    lines = [one for one in logs if one["event"] == "tls_handshakes_failed"]
    assert [one["no_tls"] for one in lines] == [1, 19]
    assert (lines[1]["refused_by_client"], lines[1]["lost"]) == (1, 1)
    page = generate_latest(metrics.registry).decode()
    assert 'rolloutd_tls_handshakes_failed_total{reason="no_tls"} 20.0' in page
    assert 'rolloutd_tls_handshakes_failed_total{reason="refused_by_client"} 1.0' in page


@pytest.mark.parametrize(
    ("begins_in_days", "words"), [(0, None), (-3, "has expired: renew it"), (3, "not valid yet")]
)
def test_a_certificate_that_clients_refuse_is_warned_of(
    tmp_path: Path, begins_in_days: float, words: str | None
) -> None:
    """It is used all the same: a controller that does not start protects nobody."""
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    write_certificate(certificate, key, begins_in_days=begins_in_days)
    with structlog.testing.capture_logs() as logs:
        Certificate(certificate, key, "http").warn()
    assert [one["event"] for one in logs] == ([] if words is None else ["certificate_doubtful"])
    assert words is None or words in logs[0]["warning"]
