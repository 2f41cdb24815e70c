"""`rolloutctl notify check`: what it says of a file that can be used."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from typer.testing import CliRunner

from controller.cli.notify import app


def checked(tmp_path: Path, text: str) -> str:
    """Return what is said of a good file, without its path."""
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    result = CliRunner().invoke(app, ["check", str(file)])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split()).replace(f"{file}: ", "")


def test_a_mute_that_is_over_is_named(tmp_path: Path) -> None:
    """It was passed over in silence. It is no fault: time alone must not make a file unusable."""
    now = datetime.now(UTC)
    mutes = "".join(
        f"  - {{name: {name}, when: {{flags: x}}, until: '{until.isoformat()}'}}\n"
        for name, until in (
            ("old", now - timedelta(minutes=1)),
            ("new", now + timedelta(hours=1)),
        )
    )
    said = checked(tmp_path, f"routes:\n  - {{name: a, to: chat}}\nmutes:\n{mutes}")
    assert "nothing wrong" not in said
    assert "the mute old is over since" in said
    assert "take it out, or write a later `until`" in said
    assert "new" not in said


def test_a_file_without_a_mute_that_is_over_has_nothing_wrong(tmp_path: Path) -> None:
    """One line, also of several routes."""
    one, two = "{name: a, to: chat}", "{name: b, to: chat}"
    assert checked(tmp_path, f"routes: [{one}]") == "1 route, and nothing wrong with it"
    assert checked(tmp_path, f"routes: [{one}, {two}]") == "2 routes, and nothing wrong with them"
