"""What `rolloutctl doctor` makes of a replica's own report, and of what is none."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from controller.cli.doctor import lines_of
from controller.cli.operator import app
from tests.unit.cli.served_replica import ReplicaHandler, served

HEALTHY: dict[str, Any] = {
    "ready": True,
    "working": True,
    "degraded": False,
    "starting": False,
    "fatal_errors": [],
    "components": {
        "kafka": {"ready": True, "required": True, "reason": None, "since": "2026-01-05T09:00:00Z"}
    },
    "faults": [],
    "omitted_faults": 0,
}
AWAY = {
    "ready": False,
    "required": True,
    "reason": "Redis has not answered for 7 s",
    "since": "2026-01-05T09:00:00Z",
}
FAULT = {
    "scope": "flag",
    "name": "checkout",
    "reason": "its document cannot be read",
    "fix": "rolloutd repair flag checkout",
    "since": "2026-01-05T09:00:00Z",
    "count": 3,
}


@pytest.fixture
def replica() -> Iterator[Callable[[bytes], str]]:
    """Serve one body, whatever is asked, and return the address."""
    with ExitStack() as servers:

        def serve(body: bytes) -> str:
            class Handler(ReplicaHandler):
                def get(self) -> None:
                    self.answer(body)

            return servers.enter_context(served(Handler))

        yield serve


def test_a_replica_that_is_well_is_zero(replica: Callable[[bytes], str]) -> None:
    """One line with the verdict, one per component, exit code 0; as JSON the whole report."""
    address = replica(json.dumps(HEALTHY).encode())
    result = CliRunner().invoke(app, ["doctor", "--url", address])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "WORKS"
    result = CliRunner().invoke(app, ["doctor", "--url", address, "--json"])
    assert json.loads(result.stdout)["components"]["kafka"]["ready"] is True


def test_what_is_wrong_is_said_with_its_remedy(replica: Callable[[bytes], str]) -> None:
    """Components with why and since when, faults with what to do, exit code 1.

    Several replicas, the worst counts.
    """
    components = {**HEALTHY["components"], "redis": AWAY}
    sick = {
        **HEALTHY,
        "working": False,
        "degraded": True,
        "components": components,
        "faults": [FAULT],
    }
    addresses = [replica(json.dumps(body).encode()) for body in (HEALTHY, sick)]
    result = CliRunner().invoke(app, ["doctor", "--url", addresses[0], "--url", addresses[1]])
    assert result.exit_code == 1
    said = " ".join(result.stdout.split())
    assert "SERVES the last decisions, and does not count or decide" in said
    assert "redis Redis has not answered for 7 s (since 2026-01-05 09:00:00 UTC)" in said
    assert (
        "FAULT flag checkout: its document cannot be read (since 2026-01-05 09:00:00 UTC), 3 times"
        in said
    )
    assert "fix: rolloutd repair flag checkout" in said


def test_a_replica_that_takes_no_commands_says_so_before_the_emergency() -> None:
    """With the setting that it needs; nothing of replicas that do, and of older ones."""

    def said(**more: Any) -> str:
        return " ".join(line.plain for line in lines_of({**HEALTHY, **more}))

    assert "http.command_token_file" in said(takes_commands=False)
    assert "http.command_token_file" not in said(takes_commands=True)
    assert "http.command_token_file" not in said()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b"<html>", b"[" * 100_000, b'{"components": 1}', b"x" * 2_000_000]
)
def test_what_is_no_replica_is_said(replica: Callable[[bytes], str], body: bytes) -> None:
    """Another server on that port.

    Or nonsense, is one sentence and exit code 1, never a traceback.
    """
    result = CliRunner().invoke(app, ["doctor", "--url", replica(body)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)


def test_an_address_without_a_scheme_is_told_apart() -> None:
    """It is a typing error, and no replica that is away."""
    answer = CliRunner().invoke(app, ["doctor", "--url", "127.0.0.1:8081"])
    assert answer.exit_code == 2
    assert "has no scheme: write http://127.0.0.1:8081" in answer.output
    answer = CliRunner().invoke(app, ["doctor", "--url", "ftp://127.0.0.1:8081"])
    assert answer.exit_code == 2
    assert "ftp:// is not asked: write http://127.0.0.1:8081" in answer.output


def test_nobody_there_is_said() -> None:
    """A refused connection names the setting, in words without the system's number."""
    result = CliRunner().invoke(app, ["doctor", "--url", "http://127.0.0.1:1"])
    assert result.exit_code == 1
    assert "http.ops_port" in result.stderr
    assert "cannot be reached: Connection refused; next:" in " ".join(result.stderr.split())


def test_a_port_that_speaks_no_http_may_be_the_wrong_one() -> None:
    """As that of Kafka or Redis, which end the connection without a word."""

    def hang_up() -> None:
        with server.accept()[0] as connection:
            connection.recv(65_536)  # what is unread would reset it

    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=hang_up, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        result = CliRunner().invoke(app, ["doctor", "--url", address])
    assert result.exit_code == 1
    words = " ".join(result.stderr.split())
    assert "see whether this is its http.ops_port; write https:// if it has" in words


def test_a_replica_without_tls_is_not_asked_over_it(replica: Callable[[bytes], str]) -> None:
    """The mistake is named, not only the library's words for it."""
    address = replica(b"").replace("http://", "https://")
    result = CliRunner().invoke(app, ["doctor", "--url", address])
    assert result.exit_code == 1
    assert "next: write http://, as it speaks no TLS there" in " ".join(result.stderr.split())


def test_text_of_a_replica_cannot_control_the_terminal() -> None:
    """Reasons and names may come from records: control codes are shown, not sent."""
    hostile = {**FAULT, "name": "a\x1b[31mb", "reason": "x\x07y"}
    sick = {
        **HEALTHY,
        "faults": [hostile],
        "components": {"\x1b[2J": {**AWAY, "reason": "\x1b]0;t"}},
    }
    assert not any("\x1b" in line.plain or "\x07" in line.plain for line in lines_of(sick))


def test_the_release_and_what_counts_are_told_where_the_replica_says_it() -> None:
    """Whoever built the native fold sees whether a replica that runs uses it."""
    assert "counting" not in " ".join(line.plain for line in lines_of(HEALTHY))
    native = [line.plain for line in lines_of({**HEALTHY, "version": "1.2", "counting": "native"})]
    assert native[1] == "rolloutd 1.2, counting native"
    python = [line.plain for line in lines_of({**HEALTHY, "version": "1.2", "counting": "python"})]
    assert python[1].startswith("rolloutd 1.2, counting python: the native fold counts the same")
    assert "`make native`" in python[1]
