"""The daemon's command: `rolloutd run`, `rolloutd demo`, `rolloutd config check|show`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from controller.cli.demo import demo
from controller.errors import BadInput
from controller.settings import Settings, load_settings, open_doors, show

app = typer.Typer(
    help="Watches every flag event and moves the flag only when the evidence says no harm.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config = typer.Typer(help="What the daemon would run with.", no_args_is_help=True)
app.add_typer(config, name="config")
app.command()(demo)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file with settings; ROLLOUTD_ variables beat it.", show_default=False),
]

#: As in sysexits.h: the configuration cannot be used. A supervisor should not restart on it.
EXIT_CONFIG = 78


@app.command()
def run(config: ConfigOption = None) -> None:
    """Run one replica until SIGTERM. Exits 0 after it, 78 on a bad configuration, 70 when something is broken."""
    from controller.bootstrap import Daemon
    from controller.logs import configure_logs

    settings = _settings(config)
    stream = configure_logs(settings.log)
    try:
        code = asyncio.run(Daemon(settings).run())
    except* BadInput as refused:
        _refuse(refused.exceptions[0])
    finally:
        stream.close()
    raise typer.Exit(code)


@config.command()
def check(config: ConfigOption = None) -> None:
    """Check the settings without connecting to anything: every fault with its place. Exits 78 on one."""
    from controller.bootstrap import check_parts

    settings = _settings(config)
    try:
        check_parts(settings)
    except BadInput as refused:
        _refuse(refused)
    for warning in open_doors(settings):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo("the configuration is valid")


@config.command("show")
def show_settings(config: ConfigOption = None) -> None:
    """Print every setting in force, secrets masked."""
    typer.echo(show(_settings(config)), nl=False)


def _settings(path: Path | None) -> Settings:
    try:
        return load_settings(path, os.environ)
    except BadInput as refused:
        _refuse(refused)


def _refuse(refused: BaseException) -> NoReturn:
    typer.echo(str(refused), err=True)
    raise typer.Exit(EXIT_CONFIG)


def main() -> None:
    """Run the command line."""
    sys.exit(app())


if __name__ == "__main__":
    main()
