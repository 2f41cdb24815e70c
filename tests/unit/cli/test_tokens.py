"""`rolloutd token new`, and `config check` about the access file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.cli.daemon import EXIT_CONFIG, app


def test_a_token_is_printed_apart_from_the_lines_of_the_file() -> None:
    """So that a script can store the one and show the other."""
    done = CliRunner().invoke(app, ["token", "new", "bot", "--role", "approver", "--flags", "a-*"])
    assert done.exit_code == 0
    token = done.stdout.strip()
    assert len(token) > 40
    assert token not in done.stderr
    assert hashlib.sha256(token.encode()).hexdigest() in done.stderr
    assert "role: approver" in done.stderr


def test_a_role_that_there_is_not_is_refused() -> None:
    """With those that there are."""
    done = CliRunner().invoke(app, ["token", "new", "bot", "--role", "boss"])
    assert done.exit_code == EXIT_CONFIG
    assert "--role: 'boss' is no role; there are: viewer, operator, approver, admin" in done.stderr


def test_a_name_that_no_token_may_have_is_refused_in_words() -> None:
    """Not with a pattern, and a place in a file that there is not."""
    done = CliRunner().invoke(app, ["token", "new", "my bot", "--role", "operator"])
    assert done.exit_code == EXIT_CONFIG
    assert done.stderr.startswith("'my bot' is not a token's name: up to 100 of A-Z a-z 0-9 . _ -")


def test_a_list_of_patterns_is_refused_with_the_way_to_write_it() -> None:
    """Not with a place in a file that there is not."""
    done = CliRunner().invoke(app, ["token", "new", "deploy-bot", "--flags", "new-*,pay*"])
    assert done.exit_code == EXIT_CONFIG
    assert done.stderr.startswith("'new-*,pay*' is not a pattern of flag keys: up to 128 of ")
    assert done.stderr.endswith("one pattern each: repeat --flags for more\n")
    twice = ["token", "new", "deploy-bot", "--flags", "new-*", "--flags", "pay*"]
    assert "  - new-*\n  - pay*\n" in CliRunner().invoke(app, twice).stderr


@pytest.mark.parametrize(
    ("access", "fault"),
    [
        ("grants: [{role: boss, people: [a]}]", "a role is one of"),
        ("grants: [{role: admin, people: [a]}]", ""),
    ],
)
def test_the_access_file_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, access: str, fault: str
) -> None:
    """Before a daemon starts with it, each fault with its place."""
    path, config = tmp_path / "access.yaml", tmp_path / "rolloutd.yaml"
    path.write_text(access)
    config.write_text(f"sign_in: {{access_file: {path}}}\n")
    done = CliRunner().invoke(app, ["config", "check", "--config", str(config)])
    assert done.exit_code == (EXIT_CONFIG if fault else 0), done.output
    assert fault in done.stderr
    assert not fault or f"{path}:1:" in done.stderr
