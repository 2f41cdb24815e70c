"""The root of `rolloutctl`: it lists every command, and imports the one that is called.

A command that is listed is a name with a line of help; `resolve_command` turns the one that was
typed into the command itself, with its options.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand
from typer.main import get_group

from controller.cli.command_table import COMMANDS, DAEMON_COMMANDS, ListedCommand
from controller.cli.examples import CommandGroup, with_examples
from controller.cli.option_groups import ungrouped


class LazyGroup(CommandGroup):
    """All commands of the table, each imported when it is called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._rows: dict[str, ListedCommand] = {}
        for row in COMMANDS:
            self._list(row, row.name, row.help, is_hidden=row.is_hidden)
            for alias in row.aliases:
                self._list(row, alias, f"The same as `{row.name}`.", is_hidden=True)

    def _list(self, row: ListedCommand, name: str, text: str, *, is_hidden: bool) -> None:
        self._rows[name] = row
        self.commands[name] = TyperCommand(
            name, help=text, hidden=is_hidden, rich_help_panel=row.panel
        )

    def load(self, name: str) -> Any:
        """Return the command of that name with its options and function, by importing it."""
        row = self._rows[name]
        listed = self.commands[name]
        module, _, attribute = row.place.partition(":")
        target = getattr(import_module(f"controller.cli.{module}"), attribute)
        app = typer.Typer(pretty_exceptions_enable=False)
        app.callback()(_nothing)
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=name, rich_help_panel=row.panel)
        else:
            has_own_help = name == row.name and target.__doc__ is not None
            app.command(
                name,
                help=None if has_own_help else listed.help,
                hidden=listed.hidden,
                rich_help_panel=row.panel,
                context_settings={"ignore_unknown_options": True} if name == "stop" else None,
            )(ungrouped(target))
        with_examples(app)
        return get_group(app).commands[name]

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        """Return the name, the command itself and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, self.load(name) if name is not None else command, rest

    def place_of(self, word: str) -> str | None:
        """Return the group and name of a command that was typed without its group."""
        if word in DAEMON_COMMANDS:
            return f"rolloutd {word}"
        return next((f"{row.name} {word}" for row in COMMANDS if word in row.inner), None)

    def own_name(self, name: str) -> str:
        """Return the name that the help lists for a command, which may be known by others too."""
        return self._rows[name].name


def _nothing() -> None:
    """Stand for the function of the group that holds one command while it is built."""
