"""Shells complete commands, options and flags of `rolloutctl`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from controller.cli import known_flags, operator
from controller.cli.common import EXIT_INTERRUPTED, KafkaOptions
from controller.cli.completion import Shell
from controller.cli.operator import app
from controller.settings import KafkaSettings
from tests.unit.cli.test_lazy_commands import HEAVY, modules_after

#: Nothing listens there.
AWAY = "127.0.0.1:1"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the flags of a Kafka that is away."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS", AWAY)
    path = known_flags.cache_file(KafkaSettings(bootstrap_servers=AWAY))
    path.parent.mkdir()
    return path


def offered(
    typed: str = "",
    config: Path | None = None,
    bootstrap_servers: str | None = None,
    topic_prefix: str | None = None,
) -> list[str]:
    """Return the flags that are offered for the options typed so far."""
    environ = KafkaOptions(None, bootstrap_servers, topic_prefix).environ
    return known_flags.flags_beginning(typed, config, environ)


def in_bash(*words: str) -> list[str]:
    """Return what a real bash offers for the last word, by the script that we print."""
    script = CliRunner().invoke(app, ["completion", "bash"]).output
    typed = shlex.join(["rolloutctl", *words])
    asking = (
        f"{script}\nCOMP_WORDS=({typed})\nCOMP_CWORD={len(words)}\n"
        "_rolloutctl_completion rolloutctl\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    bash = shutil.which("bash")
    assert bash is not None
    ran = subprocess.run(
        [bash, "--norc", "-c", asking],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert ran.stderr == ""
    return ran.stdout.split()


def test_commands_are_completed_and_aliases_are_not_offered() -> None:
    """The names come from the table, as in the help."""
    assert in_bash("p") == ["pause", "promote", "promote-full", "plan"]
    assert in_bash("plan", "l") == ["lint"]
    assert in_bash("pausee", "x") == []


def test_options_are_completed() -> None:
    """They are those of the command that is typed."""
    assert in_bash("pause", "--exp") == ["--expected-revision"]


def test_names_of_commands_are_completed_without_importing_them() -> None:
    """Somebody waits at a prompt."""
    environ = {
        "_ROLLOUTCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": "rolloutctl st",
        "COMP_CWORD": "1",
    }
    loaded = modules_after("controller.cli.operator", [], program_name="rolloutctl", **environ)
    assert "controller.cli.status" not in loaded
    assert sorted(set(loaded).intersection(HEAVY)) == []


def test_flags_are_completed_from_the_file(cache: Path) -> None:
    """Kafka is not asked while the file is fresh."""
    cache.write_text(json.dumps(["checkout", "new-checkout", "new-search"]))
    assert in_bash("pause", "new-") == ["new-checkout", "new-search"]
    assert in_bash("status", "ch") == ["checkout"]


def test_old_flags_are_offered_while_kafka_is_away(cache: Path) -> None:
    """An outage is when somebody types a flag in a hurry."""
    cache.write_text(json.dumps(["new-checkout"]))
    os.utime(cache, (0, 0))
    assert offered("new") == ["new-checkout"]


def test_without_kafka_and_file_nothing_is_offered_and_nothing_said(cache: Path) -> None:
    """A message would be printed into the middle of what is typed."""
    assert in_bash("pause", "new-") == []
    assert not cache.exists()
    assert offered(config=Path("no-such-file.yaml")) == []


def test_another_kafka_has_other_flags(cache: Path) -> None:
    """Nobody is offered the flags of production for a command on staging."""
    cache.write_text(json.dumps(["new-checkout"]))
    assert offered(topic_prefix="staging.") == []
    assert offered(bootstrap_servers="127.0.0.1:2") == []
    assert offered() == ["new-checkout"]


@pytest.mark.parametrize("text", ["", "{}", "\x00", "[" * 100_000, '["$(reboot)", "a b", 1, "ok"]'])
def test_a_spoiled_file_offers_no_more_than_keys_of_flags(cache: Path, text: str) -> None:
    """What is printed is read by a shell."""
    cache.write_text(text)
    assert set(offered()) <= {"ok"}


@pytest.mark.parametrize("shell", get_args(Shell))
def test_there_is_a_script_for_each_shell(shell: str) -> None:
    """It names the program and the variable that the program looks for."""
    ran = CliRunner().invoke(app, ["completion", shell])
    assert ran.exit_code == 0
    assert f"_ROLLOUTCTL_COMPLETE=complete_{shell}" in ran.output
    assert "rolloutctl" in ran.output


def test_ctrl_c_at_a_tab_key_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer answers a shell outside of what handles Ctrl-C for commands."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(operator, "app", interrupted)
    with pytest.raises(SystemExit) as raised:
        operator.main()
    assert raised.value.code == EXIT_INTERRUPTED
