"""What `rolloutctl status` says of flag planes, whatever the daemon's address turns out to be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from controller.cli.plane_status import ask_planes, plane_line


@pytest.fixture
def answers() -> Iterator[tuple[str, list[tuple[int, bytes]]]]:
    """An HTTP server's address, and what it will answer next."""
    queue: list[tuple[int, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = queue.pop()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", queue
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (
            404,
            b'{"error":"another replica runs this flag"}',
            "answered 404: another replica runs this flag",
        ),
        (200, b"<html>", "does not answer as rolloutd does"),
        (200, b"[]", "does not answer as rolloutd does"),
        (200, b'{"planes":7}', "does not answer as rolloutd does"),
        (200, b" " * 2_000_000, "longer than"),
    ],
)
def test_what_is_no_answer_is_said_in_words(
    answers: tuple[str, list[tuple[int, bytes]]], status: int, body: bytes, why: str
) -> None:
    """An address that is another service's.

    Or another replica's, costs a line of complaint and nothing else.
    """
    address, queue = answers
    queue.append((status, body))
    planes, said = ask_planes(address, "new-checkout")
    assert planes is None
    assert why in said


def test_a_daemon_that_is_away_is_said_in_words() -> None:
    """No connection and no address are told alike."""
    for address in ("http://127.0.0.1:1", "nonsense"):
        planes, said = ask_planes(address, "new-checkout")
        assert (planes, "cannot be reached" in said) == (None, True)


def test_a_line_per_plane() -> None:
    """A plane that serves what was decided is short.

    One that does not says since when and why, without control characters.
    """
    good = {"plane": "redis", "is_converged": True, "percent": 10.0}
    bad = {
        "plane": "http:x",
        "is_converged": False,
        "reason": "gone\x1b[2J",
        "since": "2026-11-21T03:00:00Z",
    }
    assert plane_line(good).plain == "redis: serves 10.0 %"
    assert plane_line(bad).plain == "http:x: NOT CONVERGED since 03:00:00 UTC: gone?[2J"
