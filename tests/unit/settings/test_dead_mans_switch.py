"""The address of the dead man's switch: what is refused, what is warned of, and its secrecy."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.errors import ConfigInvalid
from controller.settings import insecure_connections, load_settings, show

ADDRESS = "https://hc.example/ping/f4d7c0de"
VARIABLE = "ROLLOUTD_DEAD_MANS_SWITCH__URL"


def test_it_comes_from_a_file_and_is_not_shown(tmp_path: Path) -> None:
    """Whoever knows it can keep the service quiet."""
    path = tmp_path / "heartbeat"
    path.write_text(f"{ADDRESS}\n")
    settings = load_settings(None, {f"{VARIABLE}_FILE": str(path)})
    assert settings.dead_mans_switch.address == ADDRESS
    assert "f4d7c0de" not in str(show(settings)) + repr(settings)


@pytest.mark.parametrize(
    "wrong",
    [
        "f4d7c0de",
        "ftp://hc.example/f4d7c0de",
        "https:///f4d7c0de",
        "https://hc.example:0/f4d7c0de",
        "https://hc.example:99999/f4d7c0de",
        "https://[hc.example/f4d7c0de",
        "https://hc.example/f4d7c0de#part",
        "https://hc.example/f4d7 c0de",
        "https://hc.example/f4d7c0de\nX: y",
        "https://hc.example/f4d7c0de/é",
        f"https://hc.example/f4d7c0de/{'x' * 2_000}",
    ],
)
def test_what_cannot_be_called_is_refused_without_repeating_it(wrong: str) -> None:
    """The message says how an address looks, and holds nothing of this one."""
    with pytest.raises(ConfigInvalid, match="not an HTTP address: write it as") as refused:
        load_settings(None, {VARIABLE: wrong})
    assert "f4d7" not in str(refused.value)
    assert "dead_mans_switch.url" in str(refused.value)


def test_plain_text_over_a_network_is_warned_of() -> None:
    """On this machine it is nobody's business."""
    told = insecure_connections(load_settings(None, {VARIABLE: "http://hc.example/f4d7c0de"}))
    assert [line for line in told if "dead_mans_switch.url begins with http://" in line]
    for quiet in ("http://127.0.0.1:9/f4d7c0de", ADDRESS):
        told = insecure_connections(load_settings(None, {VARIABLE: quiet}))
        assert not [line for line in told if "dead_mans_switch" in line]
