"""Deliveries of every source over real sockets: too long, too slow, at once, and by certificate."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from starlette.applications import Starlette
from starlette.routing import Route

from controller.errors import ConfigInvalid
from controller.settings import HooksSettings
from controller.web.hooks.endpoint import PATH, Hooks
from controller.web.server import HttpServer
from controller.web.tls import Certificate
from schemas.signal import Signal
from tests.certificates import write_certificate, write_signed
from tests.hostile.hooks import KINDS, PROOFS, SECRET, SOURCES, honest_body, proof
from tests.patience import SLACK

KIND_OF = {kind.source: kind for kind in KINDS}


class Inlet:
    """Takes signals."""

    def __init__(self) -> None:
        self.stored: list[Signal] = []

    async def store(self, signals: Sequence[Signal]) -> None:
        """Keep them, as late as Kafka does."""
        await asyncio.sleep(0.01)
        self.stored += signals


class Stand:
    """A server with an endpoint for each source, and what they stored."""

    def __init__(self, server: HttpServer, inlet: Inlet) -> None:
        self.server = server
        self.inlet = inlet

    async def deliver(
        self, source: str, body: bytes, headers: Mapping[str, str], **client: Any
    ) -> httpx.Response:
        """Deliver on a connection of its own."""
        scheme = "https" if client else "http"
        url = f"{scheme}://127.0.0.1:{self.server.port}/hooks/{source}/prod"
        async with httpx.AsyncClient(timeout=20 * SLACK, **client) as sender:
            return await sender.post(url, content=body, headers=headers)


@asynccontextmanager
async def standing(
    endpoints: Mapping[str, Any], certificate: Certificate | None = None, **hooks: Any
) -> AsyncIterator[Stand]:
    """Listen on a free port."""
    inlet = Inlet()
    settings = HooksSettings.model_validate({"endpoints": endpoints, **hooks})
    taking = Hooks(settings, inlet, lambda: datetime.now(UTC))
    app = Starlette(routes=[Route(PATH, taking, methods=["POST", "OPTIONS"])])
    server = HttpServer(app, port=0, certificate=certificate, head_seconds=1.0)
    await server.start()
    try:
        yield Stand(server, inlet)
    finally:
        await server.stop(2)


def endpoint(source: str) -> dict[str, Any]:
    """Return the settings of one endpoint, which has the name prod."""
    return {"prod": {"source": source, **PROOFS[source]}}


@pytest.mark.parametrize("source", SOURCES)
async def test_each_source_is_bounded_and_the_next_delivery_is_taken(source: str) -> None:
    """10 MB, a wrong proof, a slow head, a slow body, and five at once; then a good one."""
    body = honest_body(KIND_OF[source])
    async with standing(endpoint(source)) as stand:
        long = b"x" * 10_000_000
        for expect in ({}, {"Expect": "100-continue"}):
            answer = await stand.deliver(source, long, {**proof(source, long), **expect})
            assert answer.status_code == 413
            assert "longer than" in answer.json()["error"]
        assert await _long_body(stand.server.port, source) == b"413"
        wrong = proof(source, body, secret="another secret of this length")
        assert (await stand.deliver(source, body, wrong)).status_code == 401
        slow = [_slow_head(stand.server.port, source), _slow_body(stand.server.port, source)]
        statuses = await asyncio.gather(*slow)
        assert statuses == [b"408", b"408"]
        assert stand.inlet.stored == []
        answers = await asyncio.gather(
            *(stand.deliver(source, body, proof(source, body)) for _ in range(5))
        )
        assert [one.status_code for one in answers] == [202] * 5
        told = [one for answer in answers for one in answer.json()["signals"]]
        assert sorted(one.id for one in stand.inlet.stored) == sorted(told)


@pytest.mark.parametrize("way", [[], ["-H", "Expect:"], ["-H", "Transfer-Encoding: chunked"]])
@pytest.mark.parametrize("status", [413, 401, 404])
async def test_a_sender_of_much_reads_why_it_is_refused(
    way: list[str], status: int, tmp_path: Path
) -> None:
    """As `curl` sends it: at once, after it has asked, and in pieces of no known length."""
    file = tmp_path / "body"
    file.write_bytes(b"x" * 10_000_000)
    async with standing(endpoint("alertmanager")) as stand:
        name = "none" if status == 404 else "prod"
        url = f"http://127.0.0.1:{stand.server.port}/hooks/alertmanager/{name}"
        shown = [] if status == 401 else ["-H", f"Authorization: Bearer {SECRET}"]
        command = ["curl", "-sS", "-w", "%{http_code}", "--data-binary", f"@{file}", *way, *shown]
        curl = await asyncio.create_subprocess_exec(
            *command, url, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        answer, trouble = await curl.communicate()
    assert (curl.returncode, trouble) == (0, b"")
    assert answer.startswith(b'{"error":')
    assert answer.endswith(str(status).encode())


async def test_what_is_sent_for_ever_is_let_go() -> None:
    """A bound in bytes, and one in time for whoever sends nothing more."""
    async with standing(endpoint("alertmanager")) as stand:
        for pieces in (1, 100):
            reader, writer = await asyncio.open_connection("127.0.0.1", stand.server.port)
            writer.write(_head("alertmanager", 10_000_000_000))
            assert (await reader.readline()).split()[1] == b"413"
            with suppress(ConnectionError):
                for _ in range(pieces):
                    writer.write(b"x" * 1_000_000)
                    await writer.drain()
            async with asyncio.timeout(20 * SLACK):
                with suppress(ConnectionError):
                    while await reader.read(65_536):
                        pass
            writer.close()
        assert stand.server.connections == 0


async def test_a_packed_delivery_is_told_how_to_send() -> None:
    """No source packs by default; a proxy in between may."""
    async with standing(endpoint("alertmanager")) as stand:
        body = gzip.compress(honest_body(KIND_OF["alertmanager"]))
        headers = {**proof("alertmanager", body), "Content-Encoding": "gzip"}
        answer = await stand.deliver("alertmanager", body, headers)
    assert answer.status_code == 415
    assert "'gzip': turn compression off" in answer.json()["error"]
    assert answer.headers["accept-encoding"] == "identity"


async def _slow_head(port: int, source: str) -> bytes:
    """Send a byte of a head now and then; return the status that ends it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /hooks/{source}/prod HTTP/1.1\r\nhost: 127.0.0.1\r\nx: {'y' * 200}"
    return await _trickle(reader, writer, head.encode())


def _head(source: str, length: int) -> bytes:
    """Return a head with a good proof, or for signing sources with one of another body."""
    proven = "".join(f"{name}: {value}\r\n" for name, value in proof(source, b"").items())
    head = f"POST /hooks/{source}/prod HTTP/1.1\r\nhost: 127.0.0.1\r\n{proven}"
    return f"{head}content-length: {length}\r\n\r\n".encode()


async def _long_body(port: int, source: str) -> bytes:
    """Send a little more than is taken, of 10 MB; return the status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_head(source, 10_000_000) + b"x" * 1_000_001)
    try:
        return (await asyncio.wait_for(reader.readline(), 20 * SLACK)).split()[1]
    finally:
        writer.close()


async def _slow_body(port: int, source: str) -> bytes:
    """Send a body byte by byte, to an endpoint that has seen a good proof or waits for one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_head(source, 900))
    return await _trickle(reader, writer, b"x" * 800)


async def _trickle(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes
) -> bytes:
    answer = asyncio.create_task(reader.readline())
    try:
        for at in range(len(content)):
            if answer.done():
                break
            writer.write(content[at : at + 1])
            await asyncio.wait({answer}, timeout=0.05)
        return (await asyncio.wait_for(answer, 20 * SLACK)).split()[1]
    finally:
        writer.close()


async def test_a_crowd_of_slow_senders_keeps_no_delivery_waiting() -> None:
    """A hundred of them, without a proof: a good delivery is answered in its time."""
    body = honest_body(KIND_OF["pagerduty"])
    async with standing(endpoint("pagerduty"), max_body_bytes=20_000) as stand:
        writers = []
        for _ in range(100):
            _, writer = await asyncio.open_connection("127.0.0.1", stand.server.port)
            head = "POST /hooks/pagerduty/prod HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            writer.write(f"{head}content-length: 19000\r\n\r\n".encode() + b"x" * 15_000)
            writers.append(writer)
        await asyncio.sleep(0.2)
        began = time.monotonic()
        answer = await stand.deliver("pagerduty", body, proof("pagerduty", body))
        assert answer.status_code == 202
        assert time.monotonic() - began < 1.0 * SLACK
        for writer in writers:
            writer.close()


# --- by certificate ---


class Authority:
    """An authority of clients, and the server's own certificate."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pair = directory / "ca.crt", directory / "ca.key"
        write_certificate(*self.pair, "clients of the tests")
        self.server = directory / "server.crt", directory / "server.key"
        write_certificate(*self.server)

    def listener(self) -> Certificate:
        """Return the certificate as the listener has it."""
        return Certificate(*self.server, "http", self.pair[0])

    def client(self, name: str, **fields: Any) -> tuple[str, dict[str, Any]]:
        """Return a new client's fingerprint, and what httpx needs to be it."""
        files = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        fingerprint = write_signed(*files, fields.pop("signer", self.pair), name, **fields)
        return fingerprint, self.context(files)

    def context(self, files: tuple[Path, Path] | None = None) -> dict[str, Any]:
        """Return what httpx needs to trust the server, and to show these files."""
        context = ssl.create_default_context(cafile=self.server[0])
        if files is not None:
            context.load_cert_chain(*files)
        return {"verify": context}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A new authority."""
    return Authority(tmp_path)


async def test_a_certificate_is_a_proof_by_fingerprint_or_name(authority: Authority) -> None:
    """Of whom the endpoint names; others, also of the same authority, are refused."""
    names = [
        x509.DNSName("Monitor.example"),
        x509.UniformResourceIdentifier("spiffe://example/monitor"),
    ]
    fingerprint, good = authority.client("monitor", other_names=names)
    _, colleague = authority.client("colleague")
    body = honest_body(KIND_OF["alertmanager"])
    colons = ":".join(fingerprint[at : at + 2] for at in range(0, 64, 2)).upper()
    for name, is_let_in in (
        (f"sha256:{colons}", True),
        ("cn:monitor", True),
        ("dns:monitor.example", True),
        ("uri:spiffe://example/monitor", True),
        ("cn:monit", False),
        ("dns:example", False),
        (f"sha256:{'0' * 64}", False),
    ):
        hook = {"prod": {"source": "alertmanager", "certificates": [name]}}
        async with standing(hook, authority.listener()) as stand:
            answer = await stand.deliver("alertmanager", body, {}, **good)
            assert answer.status_code == (202 if is_let_in else 401), name
            assert (await stand.deliver("alertmanager", body, {}, **colleague)).status_code == 401
            plain = authority.context()
            assert (await stand.deliver("alertmanager", body, {}, **plain)).status_code == 401
            told = {"client-cert": fingerprint, "authorization": f"Bearer {SECRET}"}
            answer = await stand.deliver("alertmanager", body, told, **plain)
            assert answer.status_code == 401, "nobody but a proxy of the settings may say so"
            assert bool(stand.inlet.stored) is is_let_in


async def test_a_certificate_that_does_not_hold_gets_no_answer(
    authority: Authority, tmp_path: Path
) -> None:
    """One that has expired, and one of another authority; clients without one go on."""
    _, expired = authority.client("expired", days=-1)
    stranger = tmp_path / "other.crt", tmp_path / "other.key"
    write_certificate(*stranger, "clients of the tests")
    _, forged = authority.client("monitor", signer=stranger)
    body = honest_body(KIND_OF["grafana"])
    hooks = {
        "prod": {"source": "alertmanager", "certificates": ["cn:monitor", "cn:expired"]},
        "signed": {"source": "grafana", "secret": SECRET},
    }
    async with standing(hooks, authority.listener()) as stand:
        for client in (expired, forged):
            with pytest.raises(httpx.TransportError):
                await stand.deliver("alertmanager", body, {}, **client)
        url = f"https://127.0.0.1:{stand.server.port}/hooks/grafana/signed"
        async with httpx.AsyncClient(**authority.context()) as sender:
            answer = await sender.post(url, content=body, headers=proof("grafana", body))
        assert answer.status_code == 202
        assert {one.hook for one in stand.inlet.stored} == {"grafana/signed"}


async def test_a_proxy_in_front_says_which_certificate_it_saw(authority: Authority) -> None:
    """From its address alone, and by fingerprint alone."""
    fingerprint, _ = authority.client("monitor")
    body = honest_body(KIND_OF["alertmanager"])
    hook = {"prod": {"source": "alertmanager", "certificates": [f"sha256:{fingerprint}"]}}
    told = {"x-client-cert": fingerprint}
    for address, status in (("127.0.0.0/8", 202), ("10.0.0.5", 401)):
        proxy = {"addresses": [address], "certificate_header": "x-client-cert"}
        async with standing(hook, proxy=proxy) as stand:
            assert (await stand.deliver("alertmanager", body, told)).status_code == status
            wrong = {"x-client-cert": "0" * 64}
            assert (await stand.deliver("alertmanager", body, wrong)).status_code == 401
            assert (await stand.deliver("alertmanager", body, {})).status_code == 401


async def test_authorities_are_read_again_and_a_wrong_file_is_named(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients of the next authority are let in without a restart."""
    monkeypatch.setattr("controller.web.tls.RENEW_SECONDS", 0.0)
    later = tmp_path / "next.crt", tmp_path / "next.key"
    write_certificate(*later, "the next authority")
    _, client = authority.client("monitor", signer=later)
    body = honest_body(KIND_OF["alertmanager"])
    hook = {"prod": {"source": "alertmanager", "certificates": ["cn:monitor"]}}
    async with standing(hook, authority.listener()) as stand:
        with pytest.raises(httpx.TransportError):
            await stand.deliver("alertmanager", body, {}, **client)
        authority.pair[0].write_bytes(later[0].read_bytes())
        assert (await stand.deliver("alertmanager", body, {}, **client)).status_code == 202
    for content, words in (("no certificate", "no certificate in PEM"), (None, "No such file")):
        wrong = tmp_path / "wrong.crt"
        wrong.unlink(missing_ok=True)
        if content is not None:
            wrong.write_text(content)
        with pytest.raises(ConfigInvalid, match=words):
            Certificate(*authority.server, "http", wrong)
