"""The daemon's command: `rolloutd run`, `demo`, `config check|show`, `repair flag|partition`."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from controller.cli.demo import demo
from controller.errors import BadInput, RolloutdError
from controller.settings import Settings, insecure_connections, load_settings, show

app = typer.Typer(
    help="Watches every flag event and moves the flag only when the evidence says no harm.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config = typer.Typer(help="What the daemon would run with.", no_args_is_help=True)
app.add_typer(config, name="config")
repair = typer.Typer(help="Delete stored data that cannot be read.", no_args_is_help=True)
app.add_typer(repair, name="repair")
app.command()(demo)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="YAML file with settings; ROLLOUTD_ variables beat it.",
        show_default=False,
    ),
]

#: As in sysexits.h: the configuration cannot be used. A supervisor should not restart on it.
EXIT_CONFIG = 78
#: As in sysexits.h: something outside does not answer; the same command may work later.
EXIT_TROUBLE = 75
_LONGEST_NUMBER = 9  # digits
_DESCRIPTORS = 65_536


@app.command()
def run(config: ConfigOption = None) -> None:
    """Run one replica until SIGTERM.

    Exits 0 after it, 78 on a bad configuration, 70 when something is broken.
    """
    from controller.bootstrap import Daemon
    from controller.logs import configure_logs

    settings = _settings(config)
    stream = configure_logs(settings.log)
    raise_descriptor_limit()
    try:
        code = asyncio.run(Daemon(settings).run())
    except* BadInput as refused:
        stream.close()  # the reason comes after everything that was logged
        _refuse(refused.exceptions[0])
    finally:
        stream.close()
    raise typer.Exit(code)


def raise_descriptor_limit() -> None:
    """Take up to 65,536 file descriptors where we may.

    The soft limit is 1,024 on most machines, for old programs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@repair.command("flag")
def repair_one_flag(
    flag: Annotated[str, typer.Argument(help="The flag's key", show_default=False)],
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
) -> None:
    """Discard what Redis holds of one flag.

    So that it goes on from the state topic's newest document.

    For a flag that `/readyz` shows as unreadable. Nothing has to be stopped or restarted. Exits 78
    when the name or the configuration cannot be used, 75 when Redis does not answer.
    """
    from controller.cli.repair import repair_flag

    repair_flag(flag, _settings(config), is_asked=not yes)


@config.command()
def check(config: ConfigOption = None) -> None:
    """Check the settings without connecting to anything: every fault with its place.

    Exits 78 on one.
    """
    from controller.running.part_checks import check_parts

    settings = _settings(config)
    try:
        check_parts(settings)
    except BadInput as refused:
        _refuse(refused)
    for warning in insecure_connections(settings):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo("the configuration is valid")


@config.command("show")
def show_settings(config: ConfigOption = None) -> None:
    """Print every setting in force, secrets masked."""
    typer.echo(show(_settings(config)), nl=False)


@repair.command("partition")
def repair_partition(
    partition: Annotated[
        str, typer.Argument(help="Topic and number: flag.evaluations/3", show_default=False)
    ],
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
) -> None:
    """Discard what is stored of one event partition, so that it is counted again from the log.

    For a partition that `/readyz` shows as stopped because what is stored cannot be read. Nothing
    has to be stopped or restarted. Exits 78 when the partition or the configuration cannot be used,
    75 when Redis does not answer.
    """
    from controller.cli.repair import discard_partition

    settings = _settings(config)
    topic, _, number = partition.rpartition("/")
    if not topic or not (number.isascii() and number.isdigit()) or len(number) > _LONGEST_NUMBER:
        _refuse(
            BadInput(
                f"{partition!r} names no partition: write TOPIC/NUMBER, as in flag.evaluations/3"
            )
        )
    typer.echo(
        f"This deletes the totals of {topic}/{int(number)}: everything counted in it, for "
        f"every flag.\n"
        "Its owner then counts again what Kafka still has. Stages whose first records "
        "Kafka no longer\n"
        "has become tainted, and a person decides how they go on. Other partitions are not touched."
    )
    if not yes and not typer.confirm("Discard it?"):
        raise typer.Abort
    try:
        was_there = asyncio.run(discard_partition(settings, topic, int(number)))
    except BadInput as refused:
        _refuse(refused)
    except RolloutdError as trouble:
        typer.echo(f"not known to be done, try again: {trouble}", err=True)
        raise typer.Exit(EXIT_TROUBLE) from trouble
    typer.echo(
        f"{topic}/{int(number)} is discarded: its owner takes it up again within seconds"
        if was_there
        else f"nothing is stored of {topic}/{int(number)}"
    )


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
