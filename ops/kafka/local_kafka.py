"""A real Apache Kafka on this machine, without Docker.

Resolved by Maven, run as plain Java processes.

Belongs here: getting the jars, one or more brokers (KRaft, each broker is also a controller), and
what tests do to brokers: kill, freeze, restart. Standard library only, so that it runs before
anything is installed. Does not belong here: topics and clients. For tests and for trying things
out; not a way to run production.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import functools
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import xml.etree.ElementTree as ElementTree
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType

HERE = Path(__file__).resolve().parent
OWN_CACHE = HERE.parents[1] / ".cache"  # where the user has none that can be written
OLDEST_JAVA = 17  # the Kafka 4 broker is compiled for it
LOOPBACK = "127.0.0.1"

# Outside the range from which Linux takes ports for outgoing connections (32768 up). A client that
# keeps dialling a broker that is down could otherwise be given the broker's own port and connect to
# itself; the restart would fail.
PORTS_TO_DRAW_FROM = range(15_000, 32_000)
#: Locks on the ports that this process drew last.
_reserved: deque[int] = deque()
_MOST_RESERVED = 50

# One reader of a pipe: the pipe closes when the process that started the brokers is gone, however
# it went.
_GUARD_SOURCE = """
import os, shutil, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
watched, directories = set(), []
for line in sys.stdin:
    verb, value = line.rstrip(chr(10)).split(" ", 1)
    if verb == "watch":
        watched.add(int(value))
    elif verb == "forget":
        watched.discard(int(value))
    else:
        directories.append(value)
for pid in watched:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        continue
for directory in directories:
    for attempt in range(50):
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.exists(directory):
            break
        time.sleep(0.1)
"""


class LocalKafkaError(Exception):
    """The broker could not be had or did not come up; the message says what to do.

    Never worth a blind retry.
    """


class OrphanGuard:
    """A child process that clears up when this one dies, even by `kill -9`.

    Kills processes, removes directories.

    A parent-death signal would be simpler but follows the *thread* that forked, and tests start
    brokers from short-lived threads.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD_SOURCE],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        """Kill `pid` should this process die."""
        self._tell("watch", pid)

    def forget(self, pid: int) -> None:
        """Stop watching `pid`.

        Call it once the process has been waited for, since ids are used again.
        """
        self._tell("forget", pid)

    def remove(self, directory: Path) -> None:
        """Remove `directory` at the end, also when this process dies."""
        self._tell("remove", directory)

    def close(self) -> None:
        """End the guard: processes still watched are killed, directories named to it removed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _tell(self, verb: str, value: int | Path) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {value}\n")
        self._process.stdin.flush()


def kafka_version() -> str:
    """Return the Apache Kafka version that pom.xml names."""
    root = ElementTree.parse(
        HERE / "pom.xml"
    ).getroot()  # our own file, hence no defence against hostile XML
    version = root.findtext("{*}properties/{*}kafka.version")
    if version is None:
        raise LocalKafkaError(f"{HERE / 'pom.xml'} has no kafka.version property")
    return version.strip()


def cache_directory() -> Path:
    """Return where the jars of this Kafka version are kept.

    Below `$XDG_CACHE_HOME`, or `~/.cache`; below the checkout's `.cache` where that has none and
    cannot be written, as where the home directory is missing or read-only.
    """
    name = Path("rolloutd") / f"kafka-{kafka_version()}"
    usual = _user_cache()
    if usual is not None and ((usual / name).is_dir() or _can_write(usual / name)):
        return usual / name
    return OWN_CACHE / name


def _user_cache() -> Path | None:
    """Return the user's directory for caches; None where the user has no home directory."""
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None


def _can_write(path: Path) -> bool:
    """Return whether a directory can be made at `path`, with all that it is in."""
    nearest = next((parent for parent in path.parents if os.path.lexists(parent)), Path("/"))
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


@functools.cache
def _java_banner() -> str:
    """Return what the `java` on PATH says of itself; empty when there is none that runs."""
    java = shutil.which("java")
    if java is None:
        return ""
    return subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr


def java_version() -> int | None:
    """Return the major version of the `java` on PATH, or None when there is none that runs."""
    found = re.search(r'version "(\d+)', _java_banner())
    return int(found.group(1)) if found else None


def class_archive() -> Path:
    """Return where the classes that a broker loads are kept as this Java machine maps them.

    With it a broker starts in half the time and half the CPU. `archive_classes` makes it.
    """
    java = hashlib.sha256(_java_banner().encode()).hexdigest()[:12]
    jars = cache_directory()
    return jars.with_name(f"{jars.name}-java-{java}.jsa")


def archive_classes() -> None:
    """Make the class archive, unless it is there: one start and stop of a broker, 8 s of CPU.

    Two processes may do this at once, as in `resolve`. Raises LocalKafkaError as a start does.
    A Java machine that cannot make one leaves none, and brokers start without.
    """
    resolve(verbose=True)
    target = class_archive()
    if target.exists() or not os.access(target.parent, os.W_OK):
        return
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        made = Path(scratch) / "classes.jsa"
        # The formatting of the storage writes one, too; the broker's, at its end, takes its place.
        kafka = LocalKafka(java_options=[f"-XX:ArchiveClassesAtExit={made}"])
        try:
            kafka.start()
        finally:
            kafka.stop(timeout_seconds=60.0)
        if made.exists():
            made.rename(target)


def why_not() -> str | None:
    """Return why no local Kafka can be had on this machine.

    Or None when it can (network permitting).
    """
    version = java_version()
    if version is None:
        return "no java on PATH"
    if version < OLDEST_JAVA:
        return f"java {version} on PATH, Kafka {kafka_version()} needs {OLDEST_JAVA} or newer"
    if not cache_directory().is_dir() and shutil.which("mvn") is None:
        return f"no mvn on PATH to fetch Kafka with, and nothing in {cache_directory()}"
    return None


def resolve(*, verbose: bool = False) -> Path:
    """Return the directory with Kafka's jars, fetched by Maven the first time (about 45 MB).

    Two processes may do this at once: each fetches into its own directory and the first rename
    wins. Raises LocalKafkaError with Maven's last lines when it fails.
    """
    target = cache_directory()
    if target.is_dir():
        return target
    reason = why_not()
    if reason is not None:
        raise LocalKafkaError(reason)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            _fetch(Path(scratch), is_own=target.is_relative_to(OWN_CACHE), verbose=verbose)
            with suppress(OSError):  # someone else was first, with the same content
                (Path(scratch) / "jars").rename(target)
    except OSError as error:
        raise LocalKafkaError(
            f"Apache Kafka cannot be kept in {target}: {error}. Set XDG_CACHE_HOME to a directory "
            "that you may write, with 60 MB free"
        ) from error
    return target


def _fetch(scratch: Path, *, is_own: bool, verbose: bool) -> None:
    """Let Maven put the jars into `scratch`/jars. Raises LocalKafkaError."""
    command = [
        "mvn",
        "--batch-mode",
        "--quiet",
        f"--file={HERE / 'pom.xml'}",
        "dependency:copy-dependencies",
        "-DincludeScope=runtime",
        f"-DoutputDirectory={scratch / 'jars'}",
        # what it keeps of its own is below the home directory, too
        *([f"-Dmaven.repo.local={scratch / 'repository'}"] if is_own else []),
    ]
    if verbose:
        print(
            f"fetching Apache Kafka {kafka_version()} with Maven (once, about 45 MB)",
            file=sys.stderr,
        )
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if answer.returncode != 0:
        tail = "\n".join((answer.stdout + answer.stderr).strip().splitlines()[-8:])
        raise LocalKafkaError(f"Maven could not fetch Apache Kafka {kafka_version()}:\n{tail}")


def free_port() -> int:
    """Return a TCP port of the loopback address that nobody listens on.

    It is outside the range of outgoing connections. The draw ignores `random.seed`: test processes
    that run side by side are seeded alike and would all draw the same port. Until a server listens,
    which may take seconds, a lock keeps the port from other draws on this machine.
    """
    for port in random.SystemRandom().sample(PORTS_TO_DRAW_FROM, 200):
        if not _reserve(port):
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise LocalKafkaError("200 random ports were all taken")


def _reserve(port: int) -> bool:
    """Keep a port from others who draw, until this process has drawn many more or has ended."""
    # One place for all of a machine, so not where TMPDIR says.
    directory = Path("/tmp") / f"local-kafka-ports-{os.getuid()}"  # noqa: S108
    directory.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(directory / str(port), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return False
    _reserved.append(lock)
    if len(_reserved) > _MOST_RESERVED:
        os.close(_reserved.popleft())
    return True


class LocalKafka:
    """One or more Apache Kafka brokers as child processes; a context manager.

    `ports`: one per broker; None draws free ones. The ports and data directories stay the same over
    restarts. `directory`: where data and logs go, kept afterwards; None is a temporary one, removed
    by `stop`. `heap_megabytes`: the Java heap of each broker. `settings`: broker properties on top
    of ours; an empty one is left to the broker. `java_options`: extra options of the Java machine.
    We start with its quick compiler only, a third off the start-up; over 300,000 records that cost
    no throughput. Give `-XX:TieredStopAtLevel=4` for sustained load.
    """

    def __init__(
        self,
        *,
        brokers: int = 1,
        ports: Sequence[int] | None = None,
        directory: Path | None = None,
        heap_megabytes: int = 512,
        auto_create_topics: bool = False,
        settings: Mapping[str, str] | None = None,
        java_options: Sequence[str] = (),
    ) -> None:
        if brokers < 1:
            raise ValueError("a cluster has at least one broker")
        if ports is not None and len(ports) != brokers:
            raise ValueError(f"{brokers} brokers need {brokers} ports, got {len(ports)}")
        self.brokers = brokers
        self.ports = (
            tuple(ports) if ports is not None else tuple(free_port() for _ in range(brokers))
        )
        self._controller_ports = tuple(free_port() for _ in range(brokers))
        self._keep = directory is not None
        self.directory = (
            directory if directory is not None else Path(tempfile.mkdtemp(prefix="rolloutd-kafka-"))
        )
        self._heap_megabytes = heap_megabytes
        self._auto_create_topics = auto_create_topics
        self._settings = dict(settings or {})
        self._java_options = tuple(java_options)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._guard: OrphanGuard | None = None
        self._jars: Path | None = None

    @property
    def bootstrap(self) -> str:
        """The `bootstrap.servers` value: host:port of every broker, comma-separated."""
        return ",".join(f"{LOOPBACK}:{port}" for port in self.ports)

    @property
    def description(self) -> str:
        """What this is, for a test report."""
        return f"Apache Kafka {kafka_version()}, {self.brokers} local broker(s), jars from Maven"

    def __enter__(self) -> LocalKafka:
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

    def start(self, timeout_seconds: float = 90.0) -> str:
        """Start every broker that is not running, wait until all answer, and return `bootstrap`.

        Raises LocalKafkaError with the end of the broker's log when one ends or is not ready in
        time.
        """
        self._jars = resolve(verbose=True)
        if self._guard is None:
            self._guard = OrphanGuard()
            if not self._keep:
                self._guard.remove(self.directory)
        self._format_storage()
        for broker in range(self.brokers):
            if not self.is_running(broker):
                self._spawn(broker)
        self.wait_until_ready(timeout_seconds)
        return self.bootstrap

    def stop(self, timeout_seconds: float = 20.0) -> None:
        """Stop all brokers in order, killing those that take too long.

        A temporary directory is removed.
        """
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
                process.send_signal(
                    signal.SIGCONT
                )  # one that is frozen hears SIGTERM only when it goes on
        deadline = time.monotonic() + timeout_seconds
        for broker in list(self._processes):
            self._reap(broker, max(0.1, deadline - time.monotonic()))
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if not self._keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def kill9(self, broker: int = 0) -> None:
        """Kill one broker as `kill -9` does and wait until it is gone; its data stay.

        `start` brings it back.
        """
        self._processes[broker].kill()
        self._reap(broker, 10.0)

    def terminate(self, broker: int = 0, timeout_seconds: float = 20.0) -> None:
        """Stop one broker in order; its data stay. `start` brings it back on the same port."""
        self._processes[broker].terminate()
        self._reap(broker, timeout_seconds)

    def restart(self, broker: int = 0, timeout_seconds: float = 90.0) -> None:
        """Stop one broker in order and start it again on the same port and data."""
        self.terminate(broker)
        self.start(timeout_seconds)

    def pause(self, broker: int = 0) -> None:
        """Freeze one broker (SIGSTOP): connections stay open and nothing answers."""
        freeze(self._processes[broker])

    def resume(self, broker: int = 0) -> None:
        """Let a frozen broker go on (SIGCONT)."""
        self._processes[broker].send_signal(signal.SIGCONT)

    def is_running(self, broker: int = 0) -> bool:
        """Whether the broker's process exists (a frozen one does)."""
        process = self._processes.get(broker)
        return process is not None and process.poll() is None

    def log_path(self, broker: int = 0) -> Path:
        """Where the broker's output is appended."""
        return self.directory / f"broker-{broker}.log"

    def wait_until_ready(self, timeout_seconds: float = 90.0) -> None:
        """Return once every broker names all brokers in its metadata.

        Raises LocalKafkaError as `start` does.
        """
        deadline = time.monotonic() + timeout_seconds
        for broker, port in enumerate(self.ports):
            while known_brokers(port) != self.brokers:
                if not self.is_running(broker):
                    raise LocalKafkaError(
                        f"broker {broker} ended at once:\n{self._log_tail(broker)}"
                    )
                if time.monotonic() > deadline:
                    raise LocalKafkaError(
                        f"broker {broker} not ready after {timeout_seconds:g} "
                        f"s:\n{self._log_tail(broker)}"
                    )
                time.sleep(0.05)

    def _reap(self, broker: int, timeout_seconds: float) -> None:
        process = self._processes.pop(broker)
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10.0)
        if self._guard is not None:
            self._guard.forget(process.pid)

    def _spawn(self, broker: int) -> None:
        assert self._guard is not None
        with self.log_path(broker).open("ab") as log:
            process = subprocess.Popen(
                self._java("kafka.Kafka", str(self._properties_path(broker))),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is ours to handle
            )
        self._processes[broker] = process
        self._guard.watch(process.pid)

    def _java(self, main_class: str, *arguments: str) -> list[str]:
        archive = class_archive()
        return [
            "java",
            f"-Xmx{self._heap_megabytes}m",
            f"-Xms{min(128, self._heap_megabytes)}m",
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-XX:-UsePerfData",
            "-Xshare:auto",
            *([f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []),
            f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}",
            *self._java_options,
            "-cp",
            f"{self._jars}/*",
            main_class,
            *arguments,
        ]

    def _properties_path(self, broker: int) -> Path:
        return self.directory / f"broker-{broker}.properties"

    def _format_storage(self) -> None:
        """Write each broker's properties.

        And format the data directories that are new (all in parallel).
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        fresh: list[tuple[int, subprocess.Popen[bytes]]] = []
        cluster_id = self._cluster_id()
        for broker in range(self.brokers):
            self._properties_path(broker).write_text(self._properties(broker), encoding="utf-8")
            if (self._data_path(broker) / "meta.properties").exists():
                continue
            command = self._java(
                "kafka.tools.StorageTool",
                *(
                    "format",
                    "--cluster-id",
                    cluster_id,
                    "--config",
                    str(self._properties_path(broker)),
                ),
            )
            with self.log_path(broker).open("ab") as log:
                fresh.append(
                    (broker, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
                )
        for broker, process in fresh:
            if process.wait(60.0) != 0:
                raise LocalKafkaError(
                    f"storage of broker {broker} not formatted:\n{self._log_tail(broker)}"
                )

    def _cluster_id(self) -> str:
        """Return the cluster id of this directory, made on first use; all brokers must share it."""
        path = self.directory / "cluster-id"
        if not path.exists():
            # "0" in front: an id that begins with "-" is taken for an option by Kafka's own tools
            path.write_text(
                "0" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22], encoding="ascii"
            )
        return path.read_text(encoding="ascii")

    def _data_path(self, broker: int) -> Path:
        return self.directory / f"broker-{broker}"

    def _properties(self, broker: int) -> str:
        copies = str(min(3, self.brokers))
        in_sync = str(max(1, min(3, self.brokers) - 1))
        properties = {
            "process.roles": "broker,controller",
            "node.id": str(broker + 1),
            "controller.quorum.voters": ",".join(
                f"{index + 1}@{LOOPBACK}:{port}"
                for index, port in enumerate(self._controller_ports)
            ),
            "controller.listener.names": "CONTROLLER",
            "listeners": (
                f"PLAINTEXT://{LOOPBACK}:{self.ports[broker]},"
                f"CONTROLLER://{LOOPBACK}:{self._controller_ports[broker]}"
            ),
            "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{self.ports[broker]}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self._data_path(broker)),
            "auto.create.topics.enable": str(self._auto_create_topics).lower(),
            "default.replication.factor": copies,
            "min.insync.replicas": in_sync,
            "offsets.topic.num.partitions": "4",
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.num.partitions": "2",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": in_sync,
            "group.initial.rebalance.delay.ms": "0",
            # tests of dead and frozen members ask for sessions far shorter than the 6 s Kafka
            # allows by default
            "group.min.session.timeout.ms": "500",
            # a killed broker's registration blocks its successor until the session is over: 9 s by
            # default
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            # tests write events with invented times; by default records of last year would be
            # deleted
            "log.retention.ms": "-1",
            "log.message.timestamp.after.max.ms": "9223372036854775807",
            "log.cleaner.dedupe.buffer.size": "4194304",
            "group.coordinator.threads": "1",
            "num.network.threads": "2",
            "num.io.threads": "4",
            "background.threads": "2",
            "num.recovery.threads.per.data.dir": "1",
            **self._settings,
        }
        return "".join(f"{key}={value}\n" for key, value in properties.items() if value)

    def _log_tail(self, broker: int) -> str:
        try:
            return "\n".join(self.log_path(broker).read_text(errors="replace").splitlines()[-20:])
        except FileNotFoundError:
            return "(no log)"


def freeze(process: subprocess.Popen[bytes]) -> None:
    """Stop a child process (SIGSTOP), and return when none of its threads runs any more.

    On a busy machine a thread may otherwise still answer what is asked right after the signal.
    """
    process.send_signal(signal.SIGSTOP)
    if hasattr(os, "waitid"):  # macOS has it since Python 3.13
        # WNOWAIT: an exit is left for whoever waits for the process
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def known_brokers(port: int, timeout_seconds: float = 2.0) -> int:
    """Return how many brokers the one on `port` names in its metadata; 0 when it does not answer.

    Speaks one Metadata request, version 1, of the Kafka protocol: an open port alone proves
    nothing, since a broker listens before it has joined its controllers.
    """
    client = b"local-kafka"
    # key 3, version 1, correlation id 0, client id, and an empty (not null) list: no topics wanted
    request = struct.pack(f">hhih{len(client)}si", 3, 1, 0, len(client), client, 0)
    try:
        with socket.create_connection((LOOPBACK, port), timeout_seconds) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            head = _read_exactly(connection, 12)  # size, correlation id, number of brokers
    except OSError:
        return 0
    return int(struct.unpack(">iii", head)[2])


def _read_exactly(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        chunk = connection.recv(size - len(received))
        if not chunk:
            raise ConnectionError("closed in mid-answer")
        received += chunk
    return received


@contextmanager
def _until_signalled() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set.

    In place of their default of ending the process at once.
    """
    signalled = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        signalled.set()

    former = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signalled
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="local-kafka",
        description=(
            "Run a real Apache Kafka on this machine without Docker. The jars come from "
            "Maven Central the first "
            f"time (needs java {OLDEST_JAVA}+ and mvn) and are kept in the user's cache "
            f"directory. Prints "
            "'bootstrap=HOST:PORT' when the brokers answer, and stops them on Ctrl-C or SIGTERM."
        ),
        epilog="Exit codes: 0 stopped as asked, 1 could not start or a broker ended by itself, 2 "
        "wrong arguments.",
    )
    parser.add_argument(
        "--brokers", type=int, default=1, metavar="N", help="brokers in the cluster (default 1)"
    )
    parser.add_argument(
        "--port",
        type=int,
        metavar="PORT",
        help="port of the first broker, the others follow it (default: free ports)",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="keep data and logs here (default: temporary, removed at the end)",
    )
    parser.add_argument(
        "--heap-megabytes", type=int, default=512, metavar="MB", help="Java heap (default 512)"
    )
    parser.add_argument(
        "--auto-create-topics", action="store_true", help="create topics on first use (default: no)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a broker property on top of ours; repeatable",
    )
    parser.add_argument(
        "--resolve-only", action="store_true", help="fetch the jars, print their directory and end"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `local-kafka` command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    settings: dict[str, str] = {}
    for item in options.set:
        key, separator, value = item.partition("=")
        if not separator:
            parser.error(f"--set wants KEY=VALUE, got {item!r}")
        settings[key] = value
    if options.brokers < 1:
        parser.error("--brokers must be at least 1")
    try:
        if options.resolve_only:
            print(resolve(verbose=True))
            return 0
        with _until_signalled() as signalled:
            return _serve(options, settings, signalled)
    except LocalKafkaError as error:
        print(f"local-kafka: {error}", file=sys.stderr)
        return 1


def _serve(
    options: argparse.Namespace, settings: Mapping[str, str], signalled: threading.Event
) -> int:
    ports = [options.port + index for index in range(options.brokers)] if options.port else None
    with LocalKafka(
        brokers=options.brokers,
        ports=ports,
        directory=options.directory.resolve() if options.directory else None,
        heap_megabytes=options.heap_megabytes,
        auto_create_topics=options.auto_create_topics,
        settings=settings,
    ) as kafka:
        print(f"bootstrap={kafka.bootstrap}", flush=True)
        while not signalled.wait(0.5):
            ended = [broker for broker in range(kafka.brokers) if not kafka.is_running(broker)]
            if ended:
                print(f"local-kafka: broker {ended[0]} ended by itself, log:", file=sys.stderr)
                print(kafka.log_path(ended[0]).read_text(errors="replace")[-4000:], file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
