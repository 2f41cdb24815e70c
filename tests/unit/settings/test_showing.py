"""Settings as an operator sees them, with the meaning of each."""

from pathlib import Path

import yaml

from controller.settings import load_settings, show, show_explained


def test_every_setting_can_be_shown_with_its_meaning(tmp_path: Path) -> None:
    """The comments are the documentation; without them the text is the same settings."""
    environ = {
        "ROLLOUTD_REDIS__PASSWORD": "canary",
        "ROLLOUTD_PLANES__FILES__EDGE__PATH": "/var/lib/flags.json",
    }
    settings = load_settings(None, environ)
    explained = show_explained(settings)
    assert "canary" not in explained
    assert yaml.safe_load(explained) == yaml.safe_load(show(settings))
    assert max(map(len, explained.splitlines())) <= 100
    lines = explained.splitlines()
    place = lines.index("  stall_warning_seconds: 0.25")
    assert lines[place - 1].startswith("  # ")
    config = tmp_path / "rolloutd.yaml"
    config.write_text(show_explained(load_settings(None, {})))
    assert load_settings(config, {}) == load_settings(None, {})
