"""A replica, or what stands in its place, that answers a byte now and then, for ever."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from typer.testing import CliRunner

from controller.cli import daemon_answers, daemon_http, emergency
from controller.cli.operator import app
from controller.cli.within import within
from schemas.terms import CommandVerb
from tests.unit.cli.served_replica import ReplicaHandler, served
from tests.unit.cli.test_doctor import HEALTHY
from tests.unit.cli.test_sending import sent


class Dripping:
    """Sends a piece every 50 ms: of its head, or of a body after a whole head."""

    def __init__(self, first: bytes, piece: bytes) -> None:
        self._first, self._piece = first, piece
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        self._serving: list[threading.Thread] = []

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._serving.append(threading.Thread(target=self._serve, args=(connection,)))
            self._serving[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.sendall(self._first)
                while not self._ended.wait(0.05):
                    connection.sendall(self._piece)
            except OSError:
                return

    def stop(self) -> None:
        """End all of it."""
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._thread, *self._serving):
            thread.join()


@pytest.fixture(params=["head", "body"])
def dripping(request: pytest.FixtureRequest) -> Iterator[Dripping]:
    """A server that never comes to the end of what `param` names."""
    first = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    if request.param == "body":
        server = Dripping(first + b"content-length: 90000\r\n\r\n", b" ")
    else:
        server = Dripping(first, b"x: y\r\n")
    yield server
    server.stop()


@pytest.fixture
def well() -> Iterator[str]:
    """The address of a replica that is well."""

    class Handler(ReplicaHandler):
        def get(self) -> None:
            self.answer(json.dumps(HEALTHY).encode())

    with served(Handler) as address:
        yield address


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (daemon_http, emergency):
        monkeypatch.setattr(module, "TOTAL_SECONDS", 3)  # enough for one that answers


def test_doctor_goes_on_to_the_next_replica(dripping: Dripping, well: str) -> None:
    """It waited for ever at the first one, and said nothing of the others."""
    began = time.monotonic()
    result = CliRunner().invoke(app, ["doctor", "--url", dripping.url, "--url", well])
    assert time.monotonic() - began < 20
    assert result.exit_code == 1
    assert "no complete answer within 3 s" in result.output
    assert "WORKS" in result.output


def test_what_a_daemon_knows_is_not_waited_for(dripping: Dripping) -> None:
    """`status` and `get` go on with what Kafka has."""
    document, why = daemon_answers.ask_daemon(dripping.url, "/api/v1/signals")
    assert document is None
    assert "no complete answer within 3 s; next: ask another replica" in why


async def test_an_emergency_has_an_end(dripping: Dripping) -> None:
    """Whoever rolls back hears that it is not known, and goes on to the flag's plane."""
    command = sent(CommandVerb.ROLL_BACK)
    daemon = emergency.DaemonAddress(dripping.url, "t" * 40, verify=True)
    async with httpx.AsyncClient(timeout=8) as client, asyncio.timeout(20):
        result, is_pending, note = await emergency._ask_one(client, daemon, command)
    assert (result, is_pending) == (None, False)
    assert "it may have done it all the same" in note


def test_a_call_within_a_deadline_gives_what_it_gives() -> None:
    """Its result, and what it raises."""
    assert within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
