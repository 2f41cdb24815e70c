"""Options that belong together are one parameter of a function, and several when they are typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from controller.cli.option_groups import OptionGroup, ungrouped


@dataclass(frozen=True, slots=True)
class Place(OptionGroup):
    """Where something is."""

    host: Annotated[str, typer.Option("--host", help="The machine.")] = "here"
    port: Annotated[int, typer.Option("--port", min=1)] = 80


@dataclass(frozen=True, slots=True)
class NamedPlace(Place):
    """A place with a name."""

    name: Annotated[str, typer.Option("--name")] = ""


def run(arguments: list[str]) -> tuple[int, list[tuple[str, Place]]]:
    """Return the exit code of a command with a group, and what its function was given."""
    given: list[tuple[str, Place]] = []

    def visit(what: str, *, place: NamedPlace) -> None:
        given.append((what, place))

    app = typer.Typer()
    app.command()(ungrouped(visit))
    return CliRunner().invoke(app, arguments).exit_code, given


def test_the_function_gets_its_options_as_one() -> None:
    """Also those that the group has from another, and defaults for those that were not typed."""
    typed = ["tea", "--port", "443", "--name", "bar"]
    assert run(typed) == (0, [("tea", NamedPlace("here", 443, "bar"))])


def test_each_option_keeps_its_limits() -> None:
    """Typer checks each as if it were a parameter of the function."""
    assert run(["tea", "--port", "0"]) == (2, [])


def test_a_function_without_a_group_stays_as_it_is() -> None:
    """There is nothing to take apart."""

    def plain(what: str) -> None:
        raise AssertionError(what)

    assert ungrouped(plain) is plain
