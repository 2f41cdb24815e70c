"""Real shells in a terminal of their own: something is typed, with TAB keys, and what ran is read.

A script named `rolloutctl` stands first on PATH. It hands the shell's questions to the real program
and writes down what the shell would have run.
"""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

NOT_COMPLETED = "THE SHELL'S COMPLETION IS NOT TRIED"
HOW_SHELLS = "Debian: apt-get install --no-install-recommends bash zsh fish"

_READY: Final = b"SET-UP-42"
#: How each starts without files of the machine, and how it takes the script.
_SHELLS: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "bash": (
        ("bash", "--norc", "--noprofile", "-i"),
        'eval "$(rolloutctl completion bash)"; echo SET-UP-$((6*7))',
    ),
    "zsh": (
        ("zsh", "-f", "-i"),
        'eval "$(rolloutctl completion zsh)"; echo SET-UP-$((6*7))',
    ),
    "fish": (
        ("fish", "--no-config", "-i"),
        "rolloutctl completion fish | source; echo SET-UP-(math 6 x 7)",
    ),
}
_QUIET_SECONDS = 0.5
_LONGEST_SECONDS = 120.0  # a completion takes half a second; a busy machine needs many times that


def write_stand_in(directory: Path, real: str, record: str) -> None:
    """Write the script. `real` is the real program, `record` where commands are written down."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "rolloutctl"
    path.write_text(
        "#!/bin/sh\n"
        'if [ -n "$_ROLLOUTCTL_COMPLETE" ] || [ "$1" = completion ]; then\n'
        f'  exec {real} "$@"\n'
        "fi\n"
        f'printf "%s\\n" "$*" >> {record}\n'
    )
    path.chmod(0o755)


class _Terminal:
    """A program in a terminal; a context manager that ends it."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.screen = b""
        self._fd, its_end = pty.openpty()
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *command],  # a shell wants a terminal that is its own
            stdin=its_end,
            stdout=its_end,
            stderr=its_end,
            env=dict(environ),
        )
        os.close(its_end)

    def __enter__(self) -> _Terminal:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)
        self._process.kill()
        self._process.wait()

    def type(self, text: str) -> None:
        """Type when nothing has been printed for a while."""
        while self._read(_QUIET_SECONDS):
            pass
        os.write(self._fd, text.encode())

    def read_until(self, text: bytes) -> None:
        """Read until a text is on the screen. Raises AssertionError with all that is there."""
        self.wait(lambda: text in self.screen)

    def wait(self, is_over: Callable[[], bool]) -> None:
        """Read until something is so. Raises AssertionError with all that is on the screen."""
        deadline = time.monotonic() + _LONGEST_SECONDS
        while not is_over():
            assert time.monotonic() < deadline, self.screen[-3000:].decode(errors="replace")
            self._read(0.2)

    def _read(self, seconds: float) -> bool:
        """Return whether something came in this time."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return False
        try:
            printed = os.read(self._fd, 65536)
        except OSError:  # Linux says so when the program has ended
            printed = b""
        self.screen += printed
        return bool(printed)


def commands_typed(
    shell: str,
    lines: Sequence[str],
    record: Path,
    environ: Mapping[str, str],
    within: Sequence[str] = (),
) -> list[str]:
    """Type lines into a shell, each followed by Enter, and return what it ran for each.

    `within` are the words of a command that runs the shell, such as chroot.
    """
    start, set_up = _SHELLS[shell]
    with _Terminal([*within, *start], {"TERM": "dumb", "PS1": "> ", **environ}) as terminal:
        terminal.type(set_up + "\r")
        terminal.read_until(_READY)

        def ran() -> list[str]:
            return record.read_text().splitlines() if record.exists() else []

        for number, line in enumerate(lines):
            terminal.type(line + "\r")
            terminal.wait(lambda done=number: len(ran()) > done)  # type: ignore[misc]
        return ran()
