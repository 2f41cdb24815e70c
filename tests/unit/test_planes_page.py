"""What ops/planes.md shows works when it is copied."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from controller.adapters.http_plane.template import DECIDED
from controller.adapters.http_plane.template_file import SHIPPED, load_template, parse_template
from controller.settings import load_settings

PAGE = (Path(__file__).parents[2] / "ops" / "planes.md").read_text("utf-8")
BLOCKS: list[dict[str, Any]] = [
    yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
]


def test_the_settings_are_settings(tmp_path: Path) -> None:
    """Each block of settings is accepted."""
    for block in BLOCKS:
        if "write" in block:
            continue
        text = yaml.safe_dump(block).replace("/run/secrets/ld", str(tmp_path / "secret"))
        (tmp_path / "secret").write_text("token")
        path = tmp_path / "rolloutd.yaml"
        path.write_text(text)
        settings = load_settings(path, {})
        for plane in settings.planes.http.values():
            assert load_template(plane.template, plane.values).uses_secret


def test_the_template_is_a_template() -> None:
    """The template that explains the form is accepted as it stands."""
    block = next(block for block in BLOCKS if "write" in block)
    assert parse_template(yaml.safe_dump(block), {"base": "https://flags.example.org"}).uses_secret


def test_every_placeholder_and_template_is_named() -> None:
    """Nothing that can be used is left out."""
    for name in DECIDED | set(SHIPPED):
        assert re.search(rf"\b{name}\b", PAGE), name
