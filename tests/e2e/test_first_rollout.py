"""The guide for newcomers, line by line: each command as it stands, and what it prints.

Not run: the commands for Docker, which build images and take fixed ports, and the installation of
`.venv`, which the tests already have. Addresses are the guide's, on free ports.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from local_processes import is_taken

from tests.brokers import OrphanGuard, free_port
from tests.conftest import require_local_kafka

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "ops" / "first-rollout.md"
#: What the guide's checkout is made of.
CHECKOUT = ("Makefile", "controller", "ops", "pyproject.toml", "requirements.lock", "schemas")
LONGEST_SECONDS = 240.0
#: Ports of the guide: Kafka, store, page, probes, example app, Prometheus, Alertmanager.
PORTS = ("9092", "6379", "8080", "8081", "8000", "9090", "9093")
RUNS_ON = "n a terminal of its own"
_NOT_RUN = "With Docker"
#: Of whoever runs the tests: settings, and what make hands to a make below it, as `ARGS`.
_NOT_A_NEWCOMERS = re.compile(r"ROLLOUT|MAKE|MFLAGS|ARGS\Z")
_BLOCK = re.compile(r"(?P<before>[^\n]+(?:\n[^\n]+)*)?\n\n```sh\n(?P<sh>.*?)```", re.DOTALL)
_PRINTS = re.compile(r"\s*```text\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Step:
    """Commands of the guide, and the lines that it says they print."""

    commands: str
    prints: tuple[str, ...]
    runs_on: bool  # in a terminal of its own, until it is stopped


def steps() -> Iterator[Step]:
    """Yield the steps of the guide, in order."""
    text = GUIDE.read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        before = block["before"] or ""
        if before.startswith(_NOT_RUN):
            continue
        prints = _PRINTS.match(text, block.end())
        lines = prints[1].splitlines() if prints is not None else []
        yield Step(block["sh"], tuple(line for line in lines if line != "…"), RUNS_ON in before)


def first_missing(prints: tuple[str, ...], output: str) -> str | None:
    """Return the first line that does not follow those before it in the output; None: all do."""
    printed = iter(line.rstrip() for line in output.splitlines())
    for line in prints:
        pattern = re.compile(".*".join(map(re.escape, line.rstrip().split("…"))))
        if not any(pattern.fullmatch(one) for one in printed):
            return line
    return None


class Newcomer:
    """Somebody with an empty home and a checkout, who types what the guide says."""

    def __init__(self, home: Path) -> None:
        checkout = home / "rolloutd"
        (checkout / ".venv").mkdir(parents=True)
        for name in CHECKOUT:
            (checkout / name).symlink_to(ROOT / name)
        for part in Path(sys.prefix).iterdir():
            (checkout / ".venv" / part.name).symlink_to(part)
        for stamp in (".installed", ".native"):  # so that make installs nothing, nor builds it
            (checkout / ".venv" / stamp).unlink(missing_ok=True)
        (checkout / ".venv" / ".installed").touch()
        self._home = home
        self._ports = {port: str(free_port()) for port in PORTS}
        self._state = home / "state.sh"
        self._state.write_text("")
        self._guard = OrphanGuard()
        self._running: list[subprocess.Popen[bytes]] = []

    def _placed(self, text: str) -> str:
        """Return a text of the guide with the ports that are free here."""
        return re.sub(rf"\b({'|'.join(PORTS)})\b", lambda match: self._ports[match[1]], text)

    @property
    def _environ(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not _NOT_A_NEWCOMERS.match(name)
        }
        caches = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        ports = self._ports
        return {
            **kept,
            "HOME": str(self._home),
            "XDG_CACHE_HOME": caches,  # the jars of Kafka, which Maven fetched once
            "COLUMNS": "200",
            "PYTHONUNBUFFERED": "1",  # as in a terminal, where each line is seen at once
            "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{ports['9092']}",
            "ROLLOUTD_REDIS__URL": f"redis://127.0.0.1:{ports['6379']}",
            "ROLLOUTD_HTTP__PORT": ports["8080"],
            "ROLLOUTD_HTTP__OPS_PORT": ports["8081"],
            "SHOP_PORT": ports["8000"],
            "PROMETHEUS_PORT": ports["9090"],
            "ALERTMANAGER_PORT": ports["9093"],
        }

    def type_in(self, step: Step) -> None:
        """Run a step, and compare what it prints with the guide."""
        commands, prints = self._placed(step.commands), tuple(map(self._placed, step.prints))
        if step.runs_on:
            self._let_run(commands, prints)
            return
        # One shell for all steps: what one exports, and where it goes, the next one has.
        script = (
            f"source {self._state}\nset -euo pipefail\n{commands}\n"
            f'{{ export -p; echo cd "$PWD"; }} > {self._state}\n'
        )
        ran = subprocess.run(
            ["bash", "-c", script],
            cwd=self._home,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST_SECONDS,
            check=False,
        )
        assert ran.returncode == 0, f"{commands}\n{ran.stdout}"
        missing = first_missing(prints, ran.stdout)
        assert missing is None, f"{commands}\nprints no {missing!r}, but\n{ran.stdout}"

    def _let_run(self, commands: str, prints: tuple[str, ...]) -> None:
        log = self._home / f"terminal-{len(self._running)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"source {self._state}\nexec {commands}"],
                cwd=self._home,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._guard.watch(-process.pid)  # and what it has started
        self._running.append(process)
        deadline = time.monotonic() + LONGEST_SECONDS
        while first_missing(prints, said := log.read_text(errors="replace")) is not None:
            assert process.poll() is None, f"{commands} ended:\n{said}"
            assert time.monotonic() < deadline, f"{commands} does not print {prints}, but\n{said}"
            time.sleep(0.1)

    def leave(self) -> None:
        """Press Ctrl-C in every terminal, the newest first; what does not end is killed."""
        for process in reversed(self._running):
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self._guard.forget(-process.pid)
        self._guard.close()
        stack = [
            *(sys.executable, "-m", "local_stack", "down"),
            str(self._home / "rolloutd" / ".cache" / "local"),
        ]
        path = f"{ROOT / 'ops' / 'kafka'}{os.pathsep}{ROOT / 'ops' / 'local'}"
        subprocess.run(stack, env={**self._environ, "PYTHONPATH": path}, check=True)

    def what_is_left(self) -> list[str]:
        """Return what the guide's stack has left on this machine."""
        taken = [f"port {port}" for port in self._ports.values() if is_taken(int(port))]
        cache = self._home / "rolloutd" / ".cache"
        return [*taken, *map(str, cache.rglob("*"))]


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    """Somebody who has just cloned the repository."""
    require_local_kafka()
    made = Newcomer(tmp_path)
    yield made
    made.leave()


def test_every_step_of_the_guide_prints_what_the_guide_says(newcomer: Newcomer) -> None:
    """From the installation over the practiced emergency until nothing is left."""
    typed = list(steps())
    assert [step.commands for step in typed if not step.prints] == []
    assert sum(step.runs_on for step in typed) == 1
    for step in typed:
        newcomer.type_in(step)
    assert typed[-1].commands == "make down\n"
    assert newcomer.what_is_left() == []


def test_a_line_that_is_not_printed_is_found() -> None:
    """In its order, and with what may differ left open."""
    said = "accepted  start x (revision 1)\nnow  1 % served at 09:52:10   \n"
    assert first_missing(("accepted  start …", "now  1 % served at …"), said) is None
    assert first_missing(("now  1 % …", "accepted  start …"), said) == "accepted  start …"
    assert first_missing(("now  1 %",), said) == "now  1 %"
