"""`make up` and `make down` with the real programs: again, after crashes, and with ports taken."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from local_processes import MARK, is_taken
from local_stack import ENDED

from tests.brokers import free_port
from tests.conftest import require_local_kafka

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 300.0
PLAN = ROOT / "ops" / "examples" / "checkout" / "plan.yaml"

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="looks for processes in /proc, as Linux has it"
)


class Stack:
    """A stack of the test's own, on free ports."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        names = ("kafka", "store", "http", "ops", "shop", "prometheus", "alertmanager")
        self.ports = {name: free_port() for name in names}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ROLLOUT")}
        path = [ROOT, ROOT / "ops" / "kafka", ROOT / "ops" / "local"]
        self.environ = {
            **kept,
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{self.ports['kafka']}",
            "ROLLOUTD_REDIS__URL": f"redis://127.0.0.1:{self.ports['store']}/0",
            "ROLLOUTD_HTTP__PORT": str(self.ports["http"]),
            "ROLLOUTD_HTTP__OPS_PORT": str(self.ports["ops"]),
            "SHOP_PORT": str(self.ports["shop"]),
            "PROMETHEUS_PORT": str(self.ports["prometheus"]),
            "ALERTMANAGER_PORT": str(self.ports["alertmanager"]),
        }

    def run(self, verb: str, code: int = 0) -> str:
        """Return what `up` or `down` prints."""
        return self.command(sys.executable, "-m", "local_stack", verb, self.directory, code=code)

    def forget_addresses(self) -> None:
        """Unset the variables that chose the addresses."""
        for name in list(self.environ):
            if name.startswith("ROLLOUTD_") or name.endswith("_PORT"):
                del self.environ[name]

    def command(self, *words: str | Path, code: int = 0) -> str:
        """Return what a command prints, after its code is checked."""
        done = subprocess.run(
            [str(word) for word in words],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def processes(self) -> dict[int, str]:
        """Return the processes of this stack with their services, whoever started them."""
        found = {}
        mark = f"{MARK}={self.directory}:"
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environ = (entry / "environ").read_text(errors="replace").split("\0")
            except OSError:
                continue
            for line in environ:
                if line.startswith(mark):
                    found[int(entry.name)] = line.removeprefix(mark)
        return found

    def kill(self, *services: str, but: str = "") -> None:
        """Kill all processes of services as a crash does, but those of a program.

        The newest first: the guard of the brokers before the one whose end it would notice.
        """
        for pid, service in sorted(self.processes().items(), reverse=True):
            program = Path(f"/proc/{pid}/comm").read_text().strip()
            if service in services and program != but:
                os.kill(pid, signal.SIGKILL)

    def pid(self, service: str) -> int:
        """Return the process id in a service's file."""
        return int(json.loads((self.directory / f"{service}.pid").read_text())["pid"])

    def taken(self) -> list[str]:
        """Return the services whose ports somebody listens on."""
        return [name for name, port in self.ports.items() if is_taken(port)]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack that does not run; whatever a test leaves of it is ended."""
    require_local_kafka()
    made = Stack(tmp_path / "cache" / "local")
    yield made
    made.run("down")


def check_that_another_clone_is_refused(stack: Stack) -> None:
    """With the same addresses, another clone starts nothing and says who holds them."""
    clone = stack.directory.parent.parent
    (clone / "Makefile").touch()
    other = Stack(clone / "another" / ".cache" / "local")
    other.environ = stack.environ | {"SHOP_PORT": str(stack.ports["shop"])}
    said = other.run("up", code=1)
    assert f"another `make up`, with its files in {stack.directory}, listens on ports " in said
    for name in ("kafka", "store", "http", "ops", "shop"):
        assert f" {stack.ports[name]} (" in said, said
    assert f"  end that one, with its data: make -C {clone} down\n" in said
    assert "is taken by another program" not in said
    assert other.processes() == {}


def check_that_another_build_is_restarted(stack: Stack) -> None:
    """Of a checkout that has changed since only what runs its code starts again."""
    noted = stack.directory / "rolloutd.pid"
    daemon, shop = stack.pid("rolloutd"), stack.pid("shop")
    noted.write_text(json.dumps({**json.loads(noted.read_text()), "build": "another"}))
    said = stack.run("up")
    assert said.startswith("rolloutd: its code has changed since it was started; restarting it")
    assert "(rolloutd counts " in said
    assert (stack.pid("rolloutd") != daemon, stack.pid("shop")) == (True, shop)


def test_the_stack_comes_up_once_survives_crashes_and_leaves_nothing(stack: Stack) -> None:
    """A second `up` changes nothing, one after crashes starts what ended, `down` ends all."""
    said = stack.run("up")
    assert f"http://127.0.0.1:{stack.ports['http']}" in said
    ready = httpx.get(f"http://127.0.0.1:{stack.ports['ops']}/readyz", timeout=10)
    assert ready.status_code == httpx.codes.OK
    before = stack.processes()
    assert {"kafka", "store", "rolloutd", "shop", "visitors"} <= set(before.values())
    assert set(before.values()) <= ENDED.keys()  # else `down` would not find it without its file

    # Another terminal, and then with what it was told to paste.
    stack.forget_addresses()
    said = stack.run("up")
    stack.environ |= re.findall(r"^  export (ROLLOUT\w+)=(\S+)$", said, re.MULTILINE)
    assert said.startswith("runs already:\n"), said
    unread = f"{sys.executable} -u -m local_stack up {stack.directory} | true"
    assert stack.command("sh", "-c", unread) == ""
    assert stack.processes() == before

    check_that_another_clone_is_refused(stack)
    assert stack.processes() == before

    # The broker outlives whoever started and guarded it, the store's file is cut short, the daemon
    # is gone: a started rollout is there all the same.
    control = (sys.executable, "-m", "controller.cli.operator")
    stack.command(*control, "start", PLAN)
    stack.kill("kafka", but="java")
    stack.kill("rolloutd")
    (stack.directory / "store.pid").write_text("")
    shop = stack.pid("shop")
    assert "kafka" in stack.processes().values()
    said = stack.run("up")
    assert "runs already: shop, " in said
    assert "starting kafka, store, rolloutd" in said
    assert stack.pid("shop") == shop
    assert sorted(set(stack.processes().values())) == sorted(set(before.values()))
    assert "checkout-v2" in stack.command(*control, "status")

    # Another choice: all starts again there, with its data.
    stack.ports["http"] = free_port()
    stack.environ["ROLLOUTD_HTTP__PORT"] = str(stack.ports["http"])
    said = stack.run("up")
    assert f"ROLLOUTD_HTTP__PORT={stack.ports['http']}: ending what runs" in said
    assert sorted(set(stack.processes().values())) == sorted(set(before.values()))
    assert "checkout-v2" in stack.command(*control, "status")

    check_that_another_build_is_restarted(stack)

    stack.kill("kafka", but="java")
    stack.kill("rolloutd", "visitors")
    said = stack.run("down")
    assert "shop" in said
    assert "kafka" in said
    assert stack.processes() == {}
    assert stack.taken() == []
    assert not stack.directory.parent.exists()
    assert "nothing runs" in stack.run("down")


def test_a_half_start_says_what_failed_and_is_taken_down(stack: Stack) -> None:
    """A daemon that ends at once is named with its log; what was started before it is ended."""
    # a setting that only the daemon's start finds wrong
    stack.environ["ROLLOUTD_HTTP__COMMAND_TOKEN_FILE"] = str(stack.directory / "nowhere")
    said = stack.run("up", code=1)
    assert "rolloutd has ended" in said or "the daemon's settings" in said, said
    assert "nowhere" in said
    del stack.environ["ROLLOUTD_HTTP__COMMAND_TOKEN_FILE"]
    stack.run("down")
    assert (stack.processes(), stack.taken()) == ({}, [])


def test_ports_that_are_taken_are_named_and_nothing_starts(stack: Stack) -> None:
    """All of them at once, with how to choose others."""
    with socket.create_server(("127.0.0.1", stack.ports["http"])), socket.socket() as other:
        other.bind(("127.0.0.1", stack.ports["shop"]))
        other.listen()
        said = stack.run("up", code=1)
        assert f"port {stack.ports['http']} (rolloutd's page and API) is taken" in said
        chosen = re.search(r"choose others: (.*) make up", said)
        assert chosen is not None, said
        others = dict(re.findall(r"(\w+)=(\d+)", chosen[1]))
        assert others.keys() == {"ROLLOUTD_HTTP__PORT", "SHOP_PORT"}
        assert not any(is_taken(int(port)) for port in others.values())
        assert f"port {stack.ports['shop']} (the example app) is taken" in said
        assert stack.processes() == {}


def test_the_stack_of_a_clone_that_was_removed_is_named_and_ended(stack: Stack) -> None:
    """Its programs run on without their files; this clone's `down` ends them by their mark."""
    gone = Stack(stack.directory.parent / "a gone clone" / ".cache" / "local")
    listen = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); "
    listen += "print('listens', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", listen, str(stack.ports["store"])],
        env={**os.environ, MARK: f"{gone.directory}:store"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as left:
        try:
            assert left.stdout is not None
            assert left.stdout.readline() == "listens\n"
            said = stack.run("up", code=1)
            assert f"listens on port {stack.ports['store']} (the store (Redis))\n" in said
            assert f"  end that one, with its data: make down STACK='{gone.directory}'\n" in said
            assert "ended: store" in gone.run("down")
            assert stack.taken() == []
        finally:
            left.kill()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS", "kafka.internal:9092", "kafka.bootstrap_servers is"),
        ("ROLLOUTD_REDIS__URL", "rediss://redis.internal:6379", "redis.url is on redis.internal"),
        ("ROLLOUTD_HTTP__OPS_PORT", "0", "name a port"),
        ("SHOP_PORT", "eighty", "SHOP_PORT is 'eighty'"),
        ("SHOP_PORT", "{http}", "is given to two programs, http and shop: set SHOP_PORT"),
        ("ROLLOUTD_HTTP__PROT", "80", "ROLLOUTD_HTTP__PROT"),
    ],
)
def test_addresses_elsewhere_are_refused(
    stack: Stack, variable: str, value: str, words: str
) -> None:
    """Nothing is started for a daemon that would not find it."""
    stack.environ[variable] = value.format(**stack.ports)
    assert words in stack.run("up", code=1)
    assert stack.processes() == {}


def test_a_process_that_has_an_old_id_is_left_alone(stack: Stack) -> None:
    """After a crash of the machine somebody else may have the id of a file."""
    with subprocess.Popen(["sleep", "600"]) as innocent:
        try:
            stack.directory.mkdir(parents=True)
            note = json.dumps({"pid": innocent.pid, "began": "1"})
            (stack.directory / "kafka.pid").write_text(note)
            assert "nothing runs" in stack.run("down")
            time.sleep(0.2)
            assert innocent.poll() is None
        finally:
            innocent.kill()
