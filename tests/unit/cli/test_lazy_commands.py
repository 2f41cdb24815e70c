"""The commands of `rolloutctl` are listed from a table, and imported when they are called."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from controller.cli import daemon
from controller.cli.command_table import COMMANDS, DAEMON_COMMANDS, ListedCommand
from controller.cli.operator import app
from controller.counting.folding.native import ENGINE

#: None of these may load before a light command shows its answer. Each takes 20 to 200 ms. Typer
#: itself loads pydantic, to read arguments.
HEAVY = (
    "aiokafka",
    "asyncio",
    "controller.settings",
    "httpx",
    "hypothesis",
    "jinja2",
    "numpy",
    "redis",
    "schemas.plan",
    "scipy",
    "starlette",
    "structlog",
    "uvicorn",
    "yaml",
)

#: Nor these before a rollout is read.
UNUSED_BY_STATUS = ("hypothesis", "jinja2", "numpy", "redis", "scipy", "starlette", "uvicorn")

_GROUP: Any = get_command(app)


def modules_after(
    program: str, arguments: list[str], program_name: str = "program", **environ: str
) -> list[str]:
    """Return the modules of a process that ran one command."""
    code = (
        "import sys, atexit, os\n"
        f"sys.argv = {[program_name, *arguments]!r}\n"
        f"from {program} import main\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "main()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=environ,
        check=False,
    )
    assert "sys" in ran.stderr.split(), ran.stderr
    return ran.stderr.split()


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_the_table_says_what_the_command_says(row: ListedCommand) -> None:
    """The list of commands is that of the functions: the same first paragraph, panel, options."""
    command = _GROUP.load(row.name)
    first = " ".join((command.help or "").split("\n\n")[0].split())
    assert row.help == first
    assert (command.name, command.hidden) == (row.name, row.is_hidden)
    assert command.rich_help_panel == row.panel
    assert command.callback is not None or row.place.endswith(":app")
    assert tuple(getattr(command, "commands", ())) == row.inner


@pytest.mark.parametrize("row", [row for row in COMMANDS if row.aliases], ids=lambda row: row.name)
def test_an_alias_has_every_option_of_its_command(row: ListedCommand) -> None:
    """An alias is the same function under another name, which the help does not list."""
    own = _GROUP.load(row.name)
    for alias in row.aliases:
        command = _GROUP.load(alias)
        assert command.hidden
        assert [one.opts for one in command.params] == [one.opts for one in own.params]
        assert command.help == f"The same as `{row.name}`."


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["pause", "--help"], ["rollback", "--help"], ["--version"], ["pausee"]],
)
def test_a_light_command_loads_nothing_heavy(arguments: list[str]) -> None:
    """Nobody waits for Kafka's client, numpy or the settings to read a page of help."""
    loaded = modules_after("controller.cli.operator", arguments)
    assert sorted(set(loaded).intersection(HEAVY)) == []
    assert "controller.cli.operator" in loaded


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_a_light_command_of_the_daemon_loads_nothing_heavy(arguments: list[str]) -> None:
    """The daemon's parts are loaded by `run`, and its settings by whoever reads them."""
    loaded = modules_after("controller.cli.daemon", arguments)
    assert sorted(set(loaded).intersection(HEAVY)) == []


@pytest.mark.parametrize(("program", "app"), [("rolloutctl", app), ("rolloutd", daemon.app)])
def test_the_version_names_what_two_machines_may_differ_in(program: str, app: typer.Typer) -> None:
    """A report of a fault says which Python ran, and which fold counts."""
    told = CliRunner().invoke(app, ["--version"]).output
    python = f"Python {platform.python_version()}"
    assert told == f"{program} {metadata.version('rolloutd')} ({python}, counting {ENGINE})\n"


def test_a_rollout_is_read_without_numpy() -> None:
    """`status` shows what was computed before: its numbers come with the rollout's document."""
    loaded = modules_after(
        "controller.cli.operator",
        ["status", "new-checkout", "--bootstrap-servers", "127.0.0.1:1"],
        ROLLOUTD_KAFKA__START_SECONDS="0.1",
    )
    assert "aiokafka" in loaded
    assert sorted(set(loaded).intersection(UNUSED_BY_STATUS)) == []


@pytest.mark.parametrize(
    ("program", "words", "hint"),
    [
        (daemon.app, ["start", "plan.yaml"], "Did you mean rolloutctl start?"),
        (daemon.app, ["undo"], "Did you mean rolloutctl rollback?"),
        (daemon.app, ["check"], "Did you mean config check?"),
        (daemon.app, ["rnu"], "Did you mean run?"),
        (daemon.app, ["serve"], "There are: demo, run, "),
        (app, ["run"], "Did you mean rolloutd run?"),
        (app, ["config", "show"], "Did you mean rolloutd config?"),
    ],
)
def test_a_command_of_the_other_program_is_named(
    program: typer.Typer, words: list[str], hint: str
) -> None:
    """Two programs share the work, and newcomers do not know yet which has what."""
    done = CliRunner().invoke(program, words)
    assert done.exit_code == 2
    assert hint in " ".join(done.output.replace("│", " ").split())


def test_the_commands_of_the_daemon_are_those_that_it_has() -> None:
    """`rolloutctl` names them without importing them."""
    assert set(get_command(daemon.app).commands) == set(DAEMON_COMMANDS)  # type: ignore[attr-defined]
