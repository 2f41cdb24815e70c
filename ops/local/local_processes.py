"""Programs in the background of this machine: started once, found again, and ended without a rest.

Each program has a file with its process id. An id is used again by others after a crash, so the
file also has when the process began. On Linux every process, and whatever it starts in turn, also
carries a mark in its environment: so nothing is missed that a crash left behind.

Belongs here: processes, ports and their files. Does not belong here: which programs there are
(`local_services.py`), and what a person is told (`local_stack.py`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

LOOPBACK: Final = "127.0.0.1"
MARK: Final = "LOCAL_STACK_SERVICE"
_PROC: Final = Path("/proc")
_POLL_SECONDS: Final = 0.05
_KILLED_SECONDS: Final = 10.0  # until the system has taken away what was killed
_LOG_TAIL_LINES: Final = 15
_LISTENING: Final = "0A"  # TCP_LISTEN of Linux, as /proc/net/tcp writes it


class StackError(Exception):
    """The stack could not be started or ended; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Program:
    """One program of the stack, and how to know that it works."""

    name: str
    command: Sequence[str]
    is_ready: Callable[[], bool]
    environ: Mapping[str, str]
    ports: Mapping[int, str]  # what each is for, in words
    build: str = ""  # stands for its code: another one is another build; empty: it is not ours


class Processes:
    """The processes of one stack, which keeps its files in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()

    def log_path(self, name: str) -> Path:
        """Return where a program's output goes."""
        return self.directory / f"{name}.log"

    def find(self, name: str) -> int | None:
        """Return the process id of a program that runs, or None."""
        try:
            noted = self._noted(name)
            pid, began = int(noted["pid"]), str(noted["began"])
        except (ValueError, KeyError, TypeError):
            return None  # never started, or a crash cut the file short: the mark finds it
        return pid if began_at(pid) == began else None

    def ports(self, name: str) -> frozenset[int]:
        """Return the ports with which a program was started; none where its file is not whole."""
        try:
            return frozenset(map(int, self._noted(name)["ports"]))
        except (ValueError, KeyError, TypeError):
            return frozenset()

    def build(self, name: str) -> str:
        """Return the build of a program as it was started; empty where its file does not say."""
        try:
            return str(self._noted(name)["build"])
        except (ValueError, KeyError, TypeError):
            return ""

    def _noted(self, name: str) -> Any:
        try:
            return json.loads(self._pid_path(name).read_text(encoding="ascii"))
        except OSError:
            return None

    def start(self, program: Program) -> None:
        """Start a program, after what a crash has left of it is ended."""
        self._kill_marked(program.name)
        with self.log_path(program.name).open("ab") as log:
            process = subprocess.Popen(
                list(program.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**program.environ, MARK: self._mark(program.name)},
                start_new_session=True,  # Ctrl-C in the terminal is not for it
            )
        began = began_at(process.pid)
        if began is None:
            return  # it ended at once; `wait_until_ready` says so
        noted = {"pid": process.pid, "began": began, "ports": list(program.ports)}
        text = json.dumps({**noted, "build": program.build})
        self._pid_path(program.name).write_text(text, encoding="ascii")

    def wait_until_ready(self, program: Program, seconds: float) -> None:
        """Return once a program works. Raises StackError with the end of its log."""
        deadline = time.monotonic() + seconds
        while not program.is_ready():
            if self.find(program.name) is None:
                raise StackError(f"{program.name} has ended:\n{self._log_tail(program.name)}")
            if time.monotonic() > deadline:
                raise StackError(
                    f"{program.name} is not ready after {seconds:g} s:\n"
                    f"{self._log_tail(program.name)}"
                )
            time.sleep(_POLL_SECONDS)

    def stop(self, name: str, seconds: float) -> bool:
        """End a program and whatever it has started; return whether any of it ran.

        Raises StackError when some of it cannot be ended.
        """
        pid = self.find(name)
        if pid is not None:
            began = began_at(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGCONT)  # one that is frozen hears the other only now
            if not _within(seconds, lambda: began_at(pid) != began):
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                if not _within(_KILLED_SECONDS, lambda: began_at(pid) != began):
                    raise StackError(f"{name} (process {pid}) cannot be ended, not even by force")
        has_left = self._kill_marked(name)
        self._pid_path(name).unlink(missing_ok=True)
        return pid is not None or has_left

    def names(self) -> list[str]:
        """Return the programs that have files here."""
        return sorted(path.stem for path in self.directory.glob("*.pid"))

    def _kill_marked(self, name: str) -> bool:
        """Kill every process with a program's mark; return whether there was one."""
        mark = self._mark(name)
        left = set(_marked(mark))
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        def are_gone() -> bool:
            return not any(map(began_at, left)) and not any(_marked(mark))

        if left and not _within(_KILLED_SECONDS, are_gone):
            raise StackError(f"processes {sorted(left)} of {name} cannot be ended, even by force")
        return bool(left)

    def _mark(self, name: str) -> str:
        return f"{self.directory}:{name}"

    def _pid_path(self, name: str) -> Path:
        return self.directory / f"{name}.pid"

    def _log_tail(self, name: str) -> str:
        try:
            text = self.log_path(name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return "(it has written nothing)"
        return "\n".join(text.splitlines()[-_LOG_TAIL_LINES:])


def began_at(pid: int) -> str | None:
    """Return when a process began, in words of this system; None: there is none that runs."""
    try:
        # the program's name, in brackets, may hold anything; what follows is numbers
        words = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        # A zombie whose other threads still end holds its ports until the last of them has.
        is_over = words[0] in "ZX" and len(list((_PROC / str(pid) / "task").iterdir())) <= 1
        return None if is_over else words[19]
    except (FileNotFoundError, ProcessLookupError):
        if _PROC.joinpath("self/stat").exists():
            return None
    asked = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    return None if not said or said[0].startswith("Z") else " ".join(said[1:])


def _marked(mark: str) -> Iterable[int]:
    """Yield the processes that carry a mark; none where the system does not show it."""
    wanted = f"{MARK}={mark}".encode()
    for entry in _PROC.glob("[0-9]*"):
        try:
            environ = (entry / "environ").read_bytes()
        except OSError:
            continue  # somebody else's, or gone
        if wanted in environ.split(b"\0") and began_at(int(entry.name)) is not None:
            yield int(entry.name)


@dataclass(frozen=True, slots=True)
class Holder:
    """The stack, perhaps another clone's, whose program listens on a port."""

    directory: Path  # of its files; it need not exist any more
    name: str  # of the program


def holder(port: int) -> Holder | None:
    """Return the stack that listens on a port; None: no stack of this user, or it is not shown."""
    listening = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not listening:
        return None
    prefix = f"{MARK}=".encode()
    for entry in _PROC.glob("[0-9]*"):
        try:
            marks = [
                variable.removeprefix(prefix)
                for variable in (entry / "environ").read_bytes().split(b"\0")
                if variable.startswith(prefix)
            ]
            # a descriptor may be closed between its listing and its reading: as if it had ended
            if marks and not listening.isdisjoint(map(os.readlink, (entry / "fd").iterdir())):
                directory, _, name = os.fsdecode(marks[0]).rpartition(":")
                return Holder(Path(directory), name)
        except OSError:
            continue  # somebody else's, or gone
    return None


def _listening_inodes(port: int) -> Iterator[str]:
    """Yield the sockets that listen on a TCP port, by inode; none where the system shows none."""
    for table in ("net/tcp", "net/tcp6"):
        try:
            lines = (_PROC / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for words in map(str.split, lines):  # number, local address, remote address, state, …
            if words[3] == _LISTENING and int(words[1].rpartition(":")[2], 16) == port:
                yield words[9]


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def is_taken(port: int) -> bool:
    """Return whether somebody listens on a port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
    return False
