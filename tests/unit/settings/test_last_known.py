from __future__ import annotations

from pathlib import Path

import pytest

from controller.settings import load_settings


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"HOME": "/people/ann"}, "/people/ann/.local/state/rolloutd"),
        ({"HOME": "/people/ann", "XDG_STATE_HOME": "/state"}, "/state/rolloutd"),
        ({"HOME": "/people/ann", "STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, "/var/lib/a"),
        ({"HOME": "/people/ann", "ROLLOUTD_LAST_KNOWN__DIRECTORY": "/srv"}, "/srv"),
        ({"HOME": "/people/ann", "ROLLOUTD_LAST_KNOWN__DIRECTORY": "null"}, None),
        ({"HOME": "relative"}, None),
        ({}, None),
    ],
)
def test_the_last_known_state_is_kept_where_programs_of_this_user_keep_theirs(
    environ: dict[str, str], directory: str | None
) -> None:
    """A setting decides; then systemd, the desktop's rule, the home directory; else no file."""
    expected = None if directory is None else Path(directory)
    assert load_settings(None, environ).last_known.directory == expected


def test_a_file_that_names_a_directory_is_obeyed(tmp_path: Path) -> None:
    """Also one that wants none."""
    path = tmp_path / "rolloutd.yaml"
    for text, directory in (("/srv", Path("/srv")), ("null", None)):
        path.write_text(f"last_known: {{directory: {text}}}\n")
        settings = load_settings(path, {"HOME": "/people/ann"})
        assert settings.last_known.directory == directory
    path.write_text("last_known:\n")
    assert load_settings(path, {"HOME": "/people/ann"}).last_known.directory is not None
