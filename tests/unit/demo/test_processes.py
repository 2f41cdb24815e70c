"""Children that never outlive their parent, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from controller.demo.processes import ChildFailed, ProcessTree, environ_without_settings

_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', "
    "flush=True); time.sleep(60)"
)
_PARENT = f"""
import time
from controller.demo.processes import ProcessTree
tree = ProcessTree()
child = tree.start_python("child", "-c", {_STUBBORN!r})
while "up" not in child.output():
    time.sleep(0.01)
print(child.process.pid, tree.directory, flush=True)
time.sleep(60)
"""


def exists(pid: int) -> bool:
    """Return whether the process runs; one that only waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int, directory: Path) -> None:
    """Wait until process and directory are gone; fail after a minute."""
    deadline = time.monotonic() + 60
    while exists(pid) or directory.exists():
        assert time.monotonic() < deadline, f"{pid} or {directory} is still there"
        time.sleep(0.02)


def test_nothing_is_left_after_stop() -> None:
    """A child that will not hear SIGTERM is gone after `stop`, and so is the directory."""
    with ProcessTree() as tree:
        child = tree.start_python("stubborn", "-c", _STUBBORN)
        while "up" not in child.output():
            child.check()
            time.sleep(0.01)
        tree.stop(timeout_seconds=0.2)
    assert not exists(child.process.pid)
    assert not tree.directory.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_outlives_a_killed_parent(number: signal.Signals) -> None:
    """A killed parent takes its children and their directory with it."""
    command = [sys.executable, "-c", _PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            pid, directory = parent.stdout.readline().split()
        finally:
            parent.send_signal(number)
    wait_until_gone(int(pid), Path(directory))


def test_a_child_that_ends_too_early_says_what_it_said() -> None:
    """The error of a child that failed ends with the end of its output."""
    with ProcessTree() as tree:
        child = tree.start_python("loser", "-c", "print('out of luck'); raise SystemExit(3)")
        child.process.wait(10)
        with pytest.raises(ChildFailed, match=r"loser ended with code 3:\nout of luck"):
            child.check()


def test_children_see_no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ROLLOUTD_ variable of the person's shell does not reach the demo's daemon."""
    monkeypatch.setenv("ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS", "production:9092")
    assert not [name for name in environ_without_settings() if name.startswith("ROLLOUTD_")]
