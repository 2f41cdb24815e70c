"""The changelog can be read in a minute, and has a place for new lines."""

from __future__ import annotations

import re
import tomllib
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
#: What is read in a minute and a half, at 200 words a minute.
MOST_WORDS = 300

_SECTION = re.compile(r"^## (.+)\n", re.MULTILINE)
_RELEASE = re.compile(r"(\d+)\.(\d+)\.(\d+) \((\d{4}-\d{2}-\d{2})\)")


def releases() -> list[tuple[tuple[int, ...], date]]:
    """Return version and date of each release, in the order of the file."""
    titles = _SECTION.findall(CHANGELOG)
    assert titles[0] == "Unreleased", "new lines have no place"
    matches = [_RELEASE.fullmatch(title) for title in titles[1:]]
    assert all(matches), titles
    return [
        (tuple(map(int, match.groups()[:3])), date.fromisoformat(match[4]))
        for match in matches
        if match
    ]


def test_the_newest_release_comes_first() -> None:
    """Versions and dates fall, and below the new lines is the version that a build has."""
    found = releases()
    assert found == sorted(found, reverse=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert ".".join(map(str, found[0][0])) == project["version"]


def test_a_release_is_read_in_a_minute() -> None:
    """A section is short; what is long stands in a page of its own."""
    _, *sections = _SECTION.split(CHANGELOG)
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        if title != "Unreleased":
            assert 0 < len(body.split()) <= MOST_WORDS, title


def test_its_links_lead_somewhere() -> None:
    """Each page that it names is there."""
    links = re.findall(r"\]\(([\w./-]+)", CHANGELOG)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
