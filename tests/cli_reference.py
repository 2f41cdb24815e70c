"""Writes the reference page of both command lines from the commands themselves.

Belongs here: the text of `ops/cli.md` as a pure function of the commands. The page is compared with
it, and written again, by `tests/unit/test_reference_pages.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import typer
from typer.main import get_command

from controller.cli import daemon, operator
from tests.reference_pages import wrapped

#: An option that this many commands of `rolloutctl` share, in the same words, is listed once.
_COMMON_FROM = 4
_COMMON_TITLE = "Common options"
_TYPES = {"<str>": "TEXT", "<int>": "N", "<float>": "NUMBER", "<path>": "FILE"}


def cli_sections() -> Iterator[str]:
    """Yield the reference of every command of `rolloutctl`, then of `rolloutd`."""
    commands = [
        (f"{program} {name}", command)
        for program, app in (("rolloutctl", operator.app), ("rolloutd", daemon.app))
        for name, command in sorted(_commands_of(get_command(app)))
    ]
    uses = Counter(text for _, command in commands for text in _options(command))
    # Of two meanings of one name the more frequent is common, and the other stays with its command.
    common = {
        _long_name(text): text
        for text, count in reversed(uses.most_common())
        if count >= _COMMON_FROM and text.startswith("- `-")
    }
    yield f"## {_COMMON_TITLE}\n\n" + "\n".join(common[name] for name in sorted(common))
    for title, command in commands:
        yield _section(title, command, set(common.values()))


def _commands_of(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, listed in group.commands.items():
        if listed.hidden:
            continue  # another name of a command that is listed
        command = group.load(name) if hasattr(group, "load") else listed
        if hasattr(command, "commands"):
            yield from _commands_of(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def _long_name(entry: str) -> str:
    found = re.search(r"--[a-z-]+", entry)
    return found.group() if found else entry


def _options(command: Any) -> list[str]:
    """Return the list entry of each argument and option."""
    ctx = typer.Context(command)
    entries = []
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None or "--help" in record[0]:  # None: hidden
            continue
        form, words = record
        for kind, word in _TYPES.items():
            form = re.sub(kind.replace(">", "(?: range)?>"), word, form)
        if not form.startswith("-"):  # an argument
            form = form.split()[0].upper()
        # A list of values is too long for a line of its own.
        choices = re.search(r" <(?:list\[)?([\w|-]+)\]?>$", form)
        if choices:
            form = f"{form[: choices.start()]} VALUE"
        # The help ends with what the parser knows, as in `[default: 15.0; 0.1<=x<=3600]`.
        facts = re.search(r"  \[(.*)\]$", words)
        meaning = words[: facts.start()] if facts else words
        noted = f" ({facts[1].replace('<=', ' <= ').replace('>=', ' >= ')})" if facts else ""
        of = f" One of `{'`, `'.join(choices[1].split('|'))}`." if choices else ""
        entries.append(wrapped(f"`{form}`{noted}: {meaning}{of}", "- ", "  "))
    return entries


def _section(title: str, command: Any, common: set[str]) -> str:
    parts = [f"## {title}"]
    parts += [wrapped(one) for one in command.help.split("\n\n")]
    texts = _options(command)
    own = [one for one in texts if one not in common]
    if names := [f"`{_long_name(one)}`" for one in texts if one in common]:
        anchor = _COMMON_TITLE.lower().replace(" ", "-")
        link = f"[{_COMMON_TITLE.lower()}](#{anchor})"
        own.append(wrapped(f"{', '.join(names)}: see {link}.", "- ", "  "))
    if own:
        parts.append("\n".join(own))
    examples = [
        line.removeprefix("Example: ")
        for line in (command.epilog or "").split("\n\n")
        if line.startswith("Example: ")
    ]
    if examples:
        parts.append("\n".join(["```sh", *examples, "```"]))
    return "\n\n".join(parts)
