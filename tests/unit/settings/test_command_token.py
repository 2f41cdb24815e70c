"""The token for commands over HTTP: long, from a file, never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.errors import ConfigInvalid
from controller.settings import Settings, insecure_connections, load_settings
from controller.settings.showing import show

TOKEN = "0123456789abcdef" * 2


def load(**variables: str) -> Settings:
    """Return the settings of these variables of `http`."""
    return load_settings(
        None, {f"ROLLOUTD_HTTP__{name}": value for name, value in variables.items()}
    )


def test_there_is_none_by_default() -> None:
    """Without the setting there are no commands over HTTP."""
    assert load().http.command_token is None


@pytest.mark.parametrize("text", [TOKEN, f"{TOKEN}\n", f"{TOKEN}\n{TOKEN}x\n"])
def test_it_comes_from_a_file_and_is_not_shown(tmp_path: Path, text: str) -> None:
    """One token a line; what shows the settings has the file alone."""
    path = tmp_path / "token"
    path.write_text(text)
    settings = load(COMMAND_TOKEN_FILE=str(path))
    assert settings.http.command_token is not None
    assert settings.http.command_token.get_secret_value().splitlines() == text.splitlines()
    assert TOKEN not in show(settings)


@pytest.mark.parametrize(
    "text",
    ["", "short", "a" * 31, "a" * 201, "é" * 40, "a b" * 20, f"{TOKEN}\nshort", f"{TOKEN}\n\nx"],
)
def test_what_could_be_guessed_is_refused(tmp_path: Path, text: str) -> None:
    """Each line needs 32 characters; the fault says how to make one, and not what was given."""
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match="openssl rand") as refused:
        load(COMMAND_TOKEN_FILE=str(path))
    assert "short" not in str(refused.value)


def test_a_token_on_an_open_address_is_warned_about() -> None:
    """It travels as it is."""
    assert not [one for one in insecure_connections(load(COMMAND_TOKEN=TOKEN)) if "token" in one]
    open_door = insecure_connections(load(COMMAND_TOKEN=TOKEN, HOST="0.0.0.0"))
    assert any("http.command_token" in one and "TLS" in one for one in open_door)
