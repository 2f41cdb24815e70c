"""A real Ollama of the tests' own, with models of random numbers: `make ollama` builds it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import IO

import httpx
import pytest

from tests.brokers import free_port
from tests.llama_stand import ROOT, llama_python

VARIABLE = "ROLLOUTD_TEST_OLLAMA"
#: Far more than a start or the loading of a model takes on a quiet machine.
START_SECONDS = 120.0


def ollama_program() -> Path:
    """Return the program. Skips, saying why, where nobody has named one."""
    named = os.environ.get(VARIABLE)
    if not named:
        pytest.skip(f"no Ollama here: `make ollama` builds it, or {VARIABLE} names its directory")
    return Path(named).absolute() / "bin" / "ollama"


class Ollama:
    """One `ollama serve` with a home and models of its own; as a context manager it runs."""

    def __init__(self, directory: Path, **environ: str) -> None:
        """Start nothing yet. `environ` is added to its environment and to its model servers'."""
        self._program = ollama_program()
        self._directory = directory
        self._port = free_port()
        self._environ = os.environ | {
            "HOME": str(directory),  # it writes a key there
            "OLLAMA_HOST": f"127.0.0.1:{self._port}",
            "OLLAMA_MODELS": str(directory / "models"),
            **environ,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Ollama:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._log = (self._directory / "log").open("ab")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._log is not None:
            self._log.close()

    def start(self) -> None:
        """Return when it answers."""
        self._process = subprocess.Popen(
            [self._program, "serve"], env=self._environ, stdout=self._log, stderr=self._log
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return (
                httpx.get(f"{self.url}/api/version", trust_env=False).status_code == httpx.codes.OK
            )
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Kill it and its model servers with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.signal_model_servers(signal.SIGKILL)

    def signal_model_servers(self, number: signal.Signals) -> int:
        """Send a signal to every llama.cpp server that it started, and return to how many."""
        mark, count = f"OLLAMA_MODELS={self._directory / 'models'}".encode(), 0
        for entry in Path("/proc").iterdir():
            try:
                is_ours = entry.name.isdigit() and (
                    mark in (entry / "environ").read_bytes().split(b"\0")
                    and b"llama_server.py" in (entry / "cmdline").read_bytes()
                )
                if is_ours:
                    os.kill(int(entry.name), number)
                    count += 1
            except OSError:
                continue  # it has ended, or it is another user's
        return count

    def create(self, name: str, *, favored: str = "", **parameters: int) -> None:
        """Make a model of random numbers and give it this name in the server."""
        directory = self._directory / name
        directory.mkdir()
        words = [llama_python(), "-m", "tests.tiny_model", "--write", str(directory / "tiny.gguf")]
        subprocess.run([*words, *([favored] if favored else [])], cwd=ROOT, check=True)
        lines = [f"FROM {directory / 'tiny.gguf'}"]
        lines += [f"PARAMETER {key} {value}" for key, value in parameters.items()]
        (directory / "Modelfile").write_text("\n".join(lines) + "\n")
        made = subprocess.run(
            [self._program, "create", name, "-f", directory / "Modelfile"],
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        assert made.returncode == 0, made.stderr + self.log()

    def log(self) -> str:
        """Return the end of its log."""
        return (self._directory / "log").read_text(errors="replace")[-3_000:]
