"""Ctrl-C ends the installed commands without a traceback, also while they are still imported."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

#: Presses Ctrl-C in the middle of the import of the command line that is named.
_INTERRUPTED = """
import os, signal, sys
from controller.cli import entry
class Ctrl_C:
    def find_spec(self, name, *others):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Ctrl_C())
getattr(entry, sys.argv[2])()
"""


@pytest.mark.parametrize(
    ("module", "command", "code"),
    [
        ("controller.cli.operator", "rolloutctl", -signal.SIGINT),
        ("controller.cli.daemon", "rolloutd", -signal.SIGINT),
        ("controller.cli.completion", "rolloutctl", 130),
    ],
)
def test_ctrl_c_during_an_import_is_quiet(module: str, command: str, code: int) -> None:
    """It printed thirty lines of where the import was, in the first 0.3 s."""
    ended = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, module, command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")
