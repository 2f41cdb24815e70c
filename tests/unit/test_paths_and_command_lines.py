"""Every path, module and command line that a document or a comment names exists.

The changelog and the list of changes before it speak of what was, and are left out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from controller.cli import daemon, operator

ROOT = Path(__file__).parents[2]
ROOMS = ("controller", "schemas", "tests", "ops", ".ci")

#: What a path in a text looks like: from the root of the repository, or a file's name alone.
_PATH = re.compile(
    r"(?<![\w./~{}$:-])(?:\./)?((?:controller|schemas|tests|ops|\.ci)/[\w./{},*-]*[\w/}*])"
)
_FILE = re.compile(r"`([\w./-]+\.(?:py|md|lua|toml|lock))`")
_COMMENT = re.compile(r"(?:^|\s)#.*")
#: Also texts that begin in the middle of a line: else their ends would look like beginnings.
_TEXT = re.compile(r'(?P<indent>^[ \t]*)?r?"""(?P<words>.*?)"""', re.DOTALL | re.MULTILINE)
_MODULE = re.compile(r"(?<![\w./])((?:controller|schemas|tests)(?:\.\w+)+)(?![\w/(])")

#: What was changed, in the words of its day.
_WHAT_WAS = ("CHANGELOG.md", "ops/changes-before-0.1.0.md")
#: Compiled beside their sources, or told as what was before.
_NOT_TRACKED = frozenset({"controller/counting/_native.abi3.so", "controller/service"})


@cache
def tracked() -> frozenset[str]:
    """Return every file of the repository, and every directory with files."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    files = [name for name in listing.split("\0") if name and (ROOT / name).exists()]
    directories = {str(parent) for name in files for parent in Path(name).parents}
    return frozenset(files) | directories


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """Return what people read of each file: documents whole, of code docstrings and comments."""
    return tuple(_texts())


def _texts() -> Iterator[tuple[str, str]]:
    for name in sorted(tracked()):
        path = ROOT / name
        if path.is_dir() or name in _WHAT_WAS or name.startswith("schemas/json/"):
            continue
        if name.endswith(".py"):
            yield name, "\n".join(words_of(path.read_text(encoding="utf-8")))
        elif path.suffix in {".md", ".yml", ".yaml"} or path.name in {"Makefile", "pyproject.toml"}:
            yield name, path.read_text(encoding="utf-8")


def words_of(source: str) -> Iterator[str]:
    """Yield the comments and docstrings of a source, those of attributes too.

    What follows a # in a string counts as a comment, and a text that begins its line as a
    docstring: to tell them apart the sources must be parsed, which takes nine seconds.
    """
    yield from _COMMENT.findall(source)
    for text in _TEXT.finditer(source):
        if text["indent"] is not None:
            yield text["words"]


def expanded(path: str) -> list[str]:
    """Return the paths that `a/{b,c}.py` stands for."""
    match = re.search(r"\{([^{}]*)\}", path)
    if match is None:
        return [path]
    inner = match[1].split(",")
    return [each for one in inner for each in expanded(path.replace(match[0], one, 1))]


def exists(path: str, named_in: str) -> bool:
    """Return whether a path is there, from the root, from beside its file, or as a name alone."""
    plain = path.rstrip("/.")
    if plain in tracked() or plain in _NOT_TRACKED:
        return True
    if "*" in plain:
        return any(Path(name).match(plain) for name in tracked())
    beside = (ROOT / named_in).parent / plain
    if beside.exists():
        return True
    return any(name.endswith(f"/{plain}") for name in tracked())


def test_every_path_exists() -> None:
    """A path in a docstring, comment or document leads to a file or directory."""
    missing = []
    for name, text in texts():
        paths = [*_PATH.findall(text), *_FILE.findall(text)]
        missing += [
            f"{name}: {each}"
            for path in dict.fromkeys(paths)
            for each in expanded(path)
            if not exists(each, name)
        ]
    assert missing == []


def test_every_link_of_a_document_exists() -> None:
    """A relative link of a Markdown page leads to a file or directory."""
    missing = []
    for name, text in texts():
        if name.endswith(".md"):
            targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
            missing += [
                f"{name}: {target}"
                for target in targets
                if not ((ROOT / name).parent / target).exists()
            ]
    assert missing == []


def headings(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#{1,4} (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_linked_heading_exists() -> None:
    """A link to a part of a Markdown page leads to one of its headings."""
    pages = {name: text for name, text in texts() if name.endswith(".md")}
    anchors = {name: headings(text) for name, text in pages.items()}
    missing = []
    links = re.compile(r"(?:\]\(|^\[[^]]+\]: )([\w./-]*\.md)?#([\w-]+)", re.MULTILINE)
    for name, text in pages.items():
        for page, anchor in links.findall(text):
            target = os.path.normpath((Path(name).parent / page).as_posix()) if page else name
            if anchor not in anchors.get(target, set()):
                missing.append(f"{name}: {target}#{anchor}")
    assert missing == []


def test_every_module_exists() -> None:
    """A dotted name of ours in a docstring, comment or document is a module or stands in one."""
    missing = [
        f"{name}: {dotted}"
        for name, text in texts()
        for dotted in dict.fromkeys(_MODULE.findall(text))
        if not is_module_or_member(dotted)
    ]
    assert missing == []


def test_every_private_name_exists() -> None:
    """A name that begins with `_`, in backticks in a docstring or comment, is one of our code."""
    private = re.compile(r"(?<![`\w])_\w+\b(?!`)")
    used: set[str] = set()
    for name in tracked():
        if name.endswith((".py", ".rs", ".js", ".html")):
            used.update(private.findall((ROOT / name).read_text(encoding="utf-8")))
    missing = [
        f"{name}: {word}"
        for name, text in texts()
        if name.endswith(".py")
        for word in re.findall(r"`(_\w+)`", text)
        if word not in used
    ]
    assert missing == []


def is_module_or_member(dotted: str) -> bool:
    """Return whether a dotted name is a module, a file's name, or a word in a module's source."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        stem = ROOT.joinpath(*parts[:length])
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                rest = parts[length : length + 1]
                return not rest or re.search(rf"\b{rest[0]}\b", path.read_text()) is not None
    return find_spec(parts[0]) is None


# --- command lines

#: Typer brings a click of its own.
_UsageError: Any = typer.BadParameter.__base__
_APPS = {
    "rolloutd": typer.main.get_command(daemon.app),
    "rolloutctl": typer.main.get_command(operator.app),
}
_COMMAND = re.compile(
    r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?((?:rolloutd|rolloutctl|make)(?: .*)?)$"
)
_SPAN = re.compile(r"`((?:rolloutd|rolloutctl|make) [^`]+)`")


def fenced_lines(text: str) -> Iterator[str]:
    """Yield the command lines of the code blocks of a Markdown page, joined where they continue."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if match := _COMMAND.match(line):
                yield match[1]


def arguments(line: str) -> list[str]:
    """Return the words of a command line up to a pipe, a redirection or a comment."""
    words = shlex.split(line.replace("…", "0"), comments=True)
    stops = [words.index(word) for word in words if word in ("|", "<", ">", "&&", ";")]
    return words[: min(stops, default=len(words))]


def refusal(words: list[str], *, is_whole: bool) -> str | None:
    """Return why a command line does not parse, None when it does.

    A span in running text may name a command without its arguments.
    """
    command: Any = _APPS[words[0]]
    rest = [word for word in words[1:] if word != "..."]
    context: Any = None
    try:
        while hasattr(command, "resolve_command"):  # a group
            if not rest:
                return None
            context = command.make_context(command.name, list(rest), parent=context)
            _, command, rest = command.resolve_command(
                context, [*context._protected_args, *context.args]
            )
        command.make_context(command.name, list(rest), parent=context)
    except _UsageError as error:
        is_missing = type(error).__name__ == "MissingParameter"
        return None if is_missing and not is_whole else error.format_message()
    except typer.Exit:
        return None  # --help
    return None


def command_lines() -> Iterator[tuple[str, list[str], bool]]:
    """Yield the words of each command line, with its file and whether it must be whole."""
    for name, text in texts():
        if name.endswith(".md"):
            for line in fenced_lines(text):
                yield name, arguments(line), True
        for span in _SPAN.findall(text):
            if "{" not in span and "|" not in span:
                yield name, arguments(" ".join(span.split())), False


def test_every_command_line_parses() -> None:
    """What a page tells people to type is accepted by the command's own parser."""
    refused = []
    count = 0
    for name, words, is_whole in command_lines():
        if words[0] == "make":
            continue
        count += 1
        if (why := refusal(words, is_whole=is_whole)) is not None:
            refused.append(f"{name}: {shlex.join(words)}: {why}")
    assert refused == []
    assert count > 50


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("rolloutctl approve", None),
        ("rolloutctl stats", "No such command"),
        ("rolloutctl status --deamon x", "No such option"),
        ("rolloutd repair flag a b", "takes FLAG alone: drop what is too much of 'a', 'b'"),
        ("rolloutctl simulate p.yaml --runs many", "whole number"),
    ],
)
def test_a_command_line_that_does_not_parse_is_found(line: str, why: str | None) -> None:
    """A command, an option or a value that does not exist is reported."""
    found = refusal(line.split(), is_whole=False)
    assert (found is None) is (why is None)
    assert why is None or why in (found or "")


def test_every_make_target_exists() -> None:
    """What a page tells people to make is a target: `make -n` plans all of them."""
    targets = {words[1] for _, words, _ in command_lines() if words[0] == "make" and len(words) > 1}
    assert len(targets) > 10
    planned = subprocess.run(
        ["make", "-n", *sorted(targets)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert planned.returncode == 0, planned.stderr
