"""Child processes that never outlive the demo, however it ends.

All of them share a process group of their own, so that Ctrl-C reaches the demo alone, which stops
them in order. A guard in that group holds a pipe to the demo. When the pipe closes, also by `kill
-9`, the guard removes the directory and kills the group, including itself. No process ids are
stored, so none can be confused.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from controller.errors import OperatingTrouble

#: Runs without our packages, so that it starts within milliseconds and needs little memory.
_GUARD = """
import os, shutil, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
sys.stdin.buffer.read()
shutil.rmtree(sys.argv[1], ignore_errors=True)
os.killpg(0, signal.SIGKILL)
"""
_LOG_TAIL_LINES = 12


class ChildFailed(OperatingTrouble):
    """A child process did not come up, or ended too early.

    The message ends with its last output.
    """


class Child:
    """One process of the group, its standard output in a file."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self.name = name
        self.process = process
        self.log_path = log_path

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def output(self) -> str:
        """Return everything that it has written."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def failed(self, what: str) -> ChildFailed:
        """Return an exception that says `what` happened, with the end of its output."""
        tail = "\n".join(self.output().splitlines()[-_LOG_TAIL_LINES:])
        return ChildFailed(f"{self.name} {what}" + (f":\n{tail}" if tail else ""))

    def check(self) -> None:
        """Raise ChildFailed when it has ended."""
        code = self.process.poll()
        if code is not None:
            raise self.failed(f"ended with code {code}")


class ProcessTree:
    """Starts children and ends them all; a context manager."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="rolloutd-demo-"))
        self.children: list[Child] = []
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _GUARD, str(self.directory)],
                stdin=subprocess.PIPE,
                process_group=0,
            )
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def __enter__(self) -> ProcessTree:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(
        self, name: str, command: Sequence[str], environ: Mapping[str, str] | None = None
    ) -> Child:
        """Start a child whose output goes to a file; `environ` replaces the environment."""
        log_path = self.directory / f"{name}.log"
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if environ is None else dict(environ),
                cwd=self.directory,
                process_group=self._guard.pid,
            )
        child = Child(name, process, log_path)
        self.children.append(child)
        return child

    def start_python(
        self, name: str, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> Child:
        """Start our own interpreter with `arguments`."""
        return self.start(name, (sys.executable, *arguments), environ)

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Stop every child, the last one first, then kill what is left and remove the directory."""
        for child in reversed(self.children):
            if child.is_running:
                child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + timeout_seconds
        for child in self.children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()
        for child in self.children:
            child.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def environ_without_settings() -> dict[str, str]:
    """Return our environment without ROLLOUTD_ variables.

    The demo's daemon is set up by the demo alone.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("ROLLOUTD_")}
