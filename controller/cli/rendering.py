"""Prints for every command of `rolloutctl`: lines that fit the terminal, and JSON.

Everything that others wrote (reasons, issuers, the model's words) passes `one_line`, so that
nothing in it can move a terminal's cursor or forge a line.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO, cast

import typer

from controller.text import one_line
from schemas.terms import CommandVerb

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from controller.plans import Finding

#: A narrower terminal gets whole lines, which it breaks by itself.
_NARROWEST = 40
#: Columns of a pipe: longer than any line that is written.
_PIPE_WIDTH = 100_000
_PADDING = re.compile(r" +$", re.MULTILINE)


class _Unpadded(io.TextIOBase):
    """A pipe that gets no spaces at the end of a line: a table fills its last column with them.

    Whoever reads it in a pager would see each row again in empty lines below it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def write(self, text: str) -> int:
        return self._stream.write(_PADDING.sub("", text))

    def flush(self) -> None:
        self._stream.flush()


def make_console(stream: TextIO, *, is_colored: bool) -> Console:
    """Return a console on a stream; colors only if `is_colored` and the stream is a terminal.

    A pipe gets whole lines, however long: it has no width.
    """
    from rich.console import Console

    class Raising(Console):
        """Says that nobody reads any more as every writer does: rich ends the process itself.

        That is no error which a group of tasks can pass on.
        """

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    return Raising(
        file=stream if stream.isatty() else cast("TextIO", _Unpadded(stream)),
        width=None if stream.isatty() else _PIPE_WIDTH,
        color_system="auto" if is_colored else None,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )


def dashed(verb: CommandVerb) -> str:
    """Return a verb as it is typed."""
    return "rollback" if verb is CommandVerb.ROLL_BACK else verb.value.replace("_", "-")


def to_json(document: Any) -> str:
    """Return one line of ASCII JSON, keys in the given order."""
    return json.dumps(document, separators=(",", ":"))


def plain(text: str) -> Text:
    """Return text that others wrote as one unstyled line."""
    from rich.text import Text

    return Text(one_line(text))


def print_json(document: Any) -> None:
    """Print one line of JSON on standard output."""
    typer.echo(to_json(document))


def show_line(console: Console, text: Text, hang: int = 0) -> None:
    """Print one line: wrapped for a reader, whole for a pipe.

    A reader gets all but the first of the wrapped lines indented by `hang` columns.
    """
    if not console.is_terminal or console.width < _NARROWEST + hang:
        console.print(text, soft_wrap=True)
        return
    if not hang or text.cell_len <= console.width:
        console.print(text)
        return
    from rich.text import Text

    head, body = text.divide([hang])
    for number, line in enumerate(body.wrap(console, console.width - hang)):
        line.rstrip()
        console.print(Text.assemble(head if number == 0 else " " * hang, line))


def finding_line(finding: Finding, source: str) -> Text:
    """Return a finding as compilers write it."""
    from rich.text import Text

    return Text(one_line(finding.located(source)), "red" if finding.is_error else "yellow")


def finding_document(finding: Finding, source: str) -> Mapping[str, Any]:
    """Return a finding as JSON."""
    return {
        "file": source,
        "line": finding.line,
        "column": finding.column,
        "severity": "error" if finding.is_error else "warning",
        "path": list(finding.path),
        "message": finding.message,
        "fix": finding.fix,
    }


def templates_table(descriptions: Mapping[str, str]) -> Table:
    """Return a table of the plan templates."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    table.add_column("TEMPLATE", no_wrap=True)
    table.add_column("WHAT IT DOES", overflow="fold")
    for name, description in descriptions.items():
        table.add_row(name, description)
    return table


def shown(names: Sequence[str], most: int = 8) -> str:
    """Return at most `most` names for a sentence, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
