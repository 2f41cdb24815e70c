"""A stand-in for a replica's HTTP port, for commands that ask one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

#: How soon a server notices that it is to end. The default of half a second is what a test of the
#: command line would mostly spend.
_NOTICED_SECONDS = 0.005


class ReplicaHandler(BaseHTTPRequestHandler, ABC):
    """Answers requests, and logs none."""

    @abstractmethod
    def get(self) -> None:
        """Answer a GET."""

    def do_GET(self) -> None:
        """Answer a GET, by the name that http.server calls."""
        self.get()

    def answer(self, body: bytes, status: int = 200) -> None:
        """Answer the request."""
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served(handler: type[ReplicaHandler]) -> Iterator[str]:
    """Serve on a free port of loopback, and give the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(_NOTICED_SECONDS,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
