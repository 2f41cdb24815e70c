"""ARCHITECTURE.md is true: its paths exist, and its map has every module of the controller."""

from __future__ import annotations

import ast
import os
import re
import textwrap
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COLUMNS = 98
#: Names at the beginning of a docstring.
KEPT_CAPITALS = frozenset(
    [
        "Alertmanager",
        "Better",
        "Datadog",
        "Discord",
        "Kafka",
        "Ollama",
        "OpenAI",
        "Prometheus",
        "Redis",
        "Sentry",
        "Slack",
        "Unleash",
        "Uptime",
    ]
)
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return one `##` section of the page."""
    (found,) = re.findall(rf"\n## {re.escape(title)}\n(.*?)(?=\n## |\Z)", PAGE, re.DOTALL)
    return str(found)


def packages() -> dict[str, str]:
    """Return folder -> its part of the module map."""
    parts = re.findall(r"### `([\w/]+)/`\n(.*?)(?=\n### |\Z)", section("Module map"), re.DOTALL)
    return dict(parts)


def test_every_path_exists() -> None:
    """Each path of the page, in backticks or linked, is a file or folder of the repository."""
    paths = re.findall(r"`((?:controller|schemas|ops|tests)/[\w./-]*)`", PAGE)
    links = re.findall(r"\]\(([^)#:]+)", PAGE)
    assert len(paths) > 50
    assert [path for path in (*paths, *links) if not (ROOT / path).exists()] == []


def test_a_name_to_change_is_in_its_file() -> None:
    """What stands in parentheses behind a file, or before it, is a name that the file has."""
    changes = " ".join(section("To change X, open Y").split())
    behind = re.findall(r"`([\w/.]+\.(?:py|rs))` \(([^)]*)\)", changes)
    before = re.findall(r"((?:`\w+`(?: or )?)+) in `([\w/.]+\.(?:py|rs))`", changes)
    found = [*behind, *((path, names) for names, path in before)]
    named = [
        (path, name)
        for path, names in found
        if (ROOT / path).exists()  # else it is a file beside another one
        for name in re.findall(r"`(_?[A-Z]\w+|\w*_\w+)`", names)
    ]
    assert len(named) > 40
    missing = [
        (path, name)
        for path, name in named
        if not re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert missing == []


def test_the_map_has_every_package() -> None:
    """A package is in the map exactly if it is in `controller/`."""
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for path in (ROOT / "controller").rglob("*.py")
        if ROOT / "controller/counting/native" not in path.parents  # Rust, a wheel of its own
    }
    assert folders == {name for name in packages() if name.startswith("controller")}


@pytest.mark.parametrize("folder", sorted(name for name in packages() if "controller" in name))
def test_the_map_has_every_module(folder: str) -> None:
    """A module is in its package's part of the map exactly if the file exists."""
    files = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^- `(\w+\.py)`", packages()[folder], re.MULTILINE)) == files


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring as the map has it: no capital, no stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?]) (?=[A-Z`])", paragraph)[0].removesuffix(".")
    is_word = re.match(r"[A-Z][a-z-]*[ ,':]", sentence) is not None
    first_word = re.split(r"\W", sentence)[0]
    return sentence if not is_word or first_word in KEPT_CAPITALS else _with_small_letter(sentence)


def _with_small_letter(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def map_of(folder: str) -> str:
    """Return the lines of a package in the map, from the docstrings of its modules."""
    return "\n".join(
        textwrap.fill(
            f"- `{path.name}`: {first_sentence(path)}",
            COLUMNS,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for path in sorted((ROOT / folder).glob("*.py"))
        if path.name != "__init__.py"
    )


@pytest.mark.parametrize("folder", sorted(name for name in packages() if "controller" in name))
def test_the_map_repeats_the_docstrings(folder: str) -> None:
    """Each line of the map is the first sentence of the module's docstring.

    `ROLLOUTD_REWRITE=1` writes the lines.
    """
    written = packages()[folder]
    lines = re.findall(r"^- `\w+\.py`.*(?:\n  .+)*", written, re.MULTILINE)
    expected = map_of(folder)
    if os.environ.get("ROLLOUTD_REWRITE") and lines:
        page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
        page = page.replace("\n".join(lines) + "\n", expected + "\n")
        (ROOT / "ARCHITECTURE.md").write_text(page, encoding="utf-8")
    else:
        assert [" ".join(line.split()) for line in lines] == [
            " ".join(line.split()) for line in re.findall(r"^- .*(?:\n  .+)*", expected, re.M)
        ]


def layers_of(lines: list[str]) -> list[set[str]]:
    """Return the parts on each layer, the top first."""
    return [
        {part.strip().removeprefix("controller.") for part in line.split("|")} for line in lines
    ]


def test_the_picture_has_every_layer() -> None:
    """The layers of the picture are those that `make check` enforces; each part is on one."""
    (picture,) = re.findall(r"`make check` enforces it:\n\n```text\n(.*?)\n```", PAGE, re.DOTALL)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]
    drawn = layers_of(picture.splitlines())
    assert drawn == layers_of(contract["layers"])
    parts = [
        path.stem
        for path in (ROOT / "controller").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    assert sorted(part for layer in drawn for part in layer) == sorted(
        {*parts, "schemas"} - {"__init__", "__main__"}
    )


@pytest.mark.parametrize("path", ["The path of an event", "The path of a command"])
def test_a_path_is_short(path: str) -> None:
    """Each path has at most twelve steps, and each step names a file."""
    steps = re.split(r"^\d+\. ", section(path), flags=re.MULTILINE)[1:]
    assert 5 <= len(steps) <= 12
    last = steps[-1]  # may refer to the other path
    assert [step for step in steps if step is not last and "`" not in step] == []


def test_the_typical_changes_are_listed() -> None:
    """The page says which files to open for at least ten typical changes."""
    assert len(re.findall(r"^- \*\*A new ", section("To change X, open Y"), re.MULTILINE)) >= 10


def test_the_glossary_has_one_meaning_per_word() -> None:
    """Each word is defined once, and the comparison has a cell for each of six systems."""
    words = re.findall(r"^- \*\*(.+?)\*\*:", section("Glossary"), re.MULTILINE)
    assert len(words) == len(set(words)) > 30
    rows = [line for line in section("Glossary").splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {8}
