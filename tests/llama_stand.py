"""llama.cpp's real server with a tiny random model, for as long as a block runs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON_VARIABLE = "ROLLOUTD_TEST_LLAMA_PYTHON"


def llama_python() -> str:
    """Return an interpreter that has the server. Skips without one."""
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        return str(Path(named).absolute())
    if importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf"):
        return sys.executable
    pytest.skip(
        f"no llama.cpp here: `make llama` installs it, or {PYTHON_VARIABLE} names a Python "
        f"that has it"
    )


@contextmanager
def llama_server(directory: Path) -> Iterator[str]:
    """Give the address of a running server.

    It ends with its standard input, however the tests end.
    """
    with (
        (directory / "llama.log").open("w") as log,
        subprocess.Popen(
            [llama_python(), "-m", "tests.tiny_model", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            text=True,
        ) as server,
    ):
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            said = (line.strip() for line in server.stdout)
            url = next(
                (line.removeprefix("url=") for line in said if line.startswith("url=")), None
            )
            assert url is not None, (directory / "llama.log").read_text()[-2000:]
            yield url
        finally:
            server.stdin.close()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
