"""`--version` of both programs: what is needed first to compare two machines.

Imports nothing of what it describes, so that it answers at once.
"""

from __future__ import annotations

import platform
from typing import Any

import typer


def version_option(program: str) -> Any:
    """Return the option of the program's root that shows the version and exits."""

    def show(is_asked: bool) -> None:
        if is_asked:
            typer.echo(version_line(program))
            raise typer.Exit

    return typer.Option(
        "--version", callback=show, is_eager=True, help="Show the version and exit."
    )


def version_line(program: str) -> str:
    """Return the program's version, Python's, and which fold counts."""
    # Slow to load, and seldom needed.
    from importlib import metadata

    from controller.counting.native_place import load_native, native_place

    native, _ = load_native(native_place())
    counting = "python" if native is None else "native"
    return (
        f"{program} {metadata.version('rolloutd')} "
        f"(Python {platform.python_version()}, counting {counting})"
    )
