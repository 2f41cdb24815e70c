"""The daemon's command: `run`, `demo`, `config check|show`, `repair ...`, `token new`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from controller.cli.command_table import COMMANDS
from controller.cli.demo import demo
from controller.cli.examples import CONTEXT, CommandGroup, with_examples
from controller.cli.version import version_option
from controller.errors import BadInput, RolloutdError

if TYPE_CHECKING:
    from controller.settings import Settings


class _DaemonGroup(CommandGroup):
    """The root of `rolloutd`; it knows the commands of `rolloutctl` by name."""

    def place_of(self, word: str) -> str | None:
        """Return the group of ours, or the command of `rolloutctl`, that was meant."""
        if (place := super().place_of(word)) is not None:
            return place
        named = (row for row in COMMANDS if word in (row.name, *row.aliases) and not row.is_hidden)
        return next((f"rolloutctl {row.name}" for row in named), None)


app = typer.Typer(
    help="Watches every flag event and moves the flag only when the evidence says no harm.",
    no_args_is_help=True,
    add_completion=False,
    context_settings=CONTEXT,
    pretty_exceptions_enable=False,
)
config = typer.Typer(help="What the daemon would run with.", no_args_is_help=True)
app.add_typer(config, name="config")
repair = typer.Typer(help="Delete stored data that cannot be read.", no_args_is_help=True)
app.add_typer(repair, name="repair")
token = typer.Typer(help="Tokens of machines that give commands over HTTP.", no_args_is_help=True)
app.add_typer(token, name="token")
app.command()(demo)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="YAML file with settings; ROLLOUTD_ variables override it.",
        show_default=False,
    ),
]

#: As in sysexits.h: the configuration cannot be used. A supervisor should not restart on it.
EXIT_CONFIG = 78
#: As in sysexits.h: something outside does not answer; the same command may work later.
EXIT_TROUBLE = 75
_LONGEST_NUMBER = 9  # digits


@app.callback()
def _main_options(version: Annotated[bool, version_option("rolloutd")] = False) -> None:
    pass


@app.command()
def run(config: ConfigOption = None) -> None:
    """Run one replica until SIGTERM. SIGHUP reads the settings again and applies `log.level`.

    Exits 0 after SIGTERM, 78 on a bad configuration, 70 when something is broken, 75 when a
    consumer of Kafka stays stuck.
    """
    import asyncio

    from controller.cli.optional_packages import without_unused_packages

    with without_unused_packages():
        import redis.asyncio  # noqa: F401
        import structlog  # noqa: F401

    from controller.bootstrap import Daemon
    from controller.cli.process_limits import keep_freed_memory, raise_descriptor_limit
    from controller.logs import configure_logs, set_level
    from controller.running.garbage_collection import limit_collections
    from controller.running.name_lookups import LookupLoop
    from controller.running.reloading import SettingsReload
    from controller.settings import load_settings
    from schemas.fields import build_models

    settings = _settings(config)
    build_models()
    stream = configure_logs(settings.log)
    raise_descriptor_limit()
    keep_freed_memory()
    limit_collections()
    reload = SettingsReload(settings, lambda: load_settings(config, os.environ), set_level)
    try:
        with asyncio.Runner(loop_factory=LookupLoop) as runner:
            code = runner.run(Daemon(settings, reload.begin).run())
    except* BadInput as refused:
        stream.close()  # the reason comes after everything that was logged
        _refuse(refused.exceptions[0])
    finally:
        stream.close()
    raise typer.Exit(code)


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
    from controller.settings import insecure_connections
    from controller.settings.reading import CONFIG_VARIABLE

    settings = _settings(config)
    try:
        check_parts(settings)
    except BadInput as refused:
        _refuse(refused)
    for warning in insecure_connections(settings):
        typer.echo(f"warning: {warning}", err=True)
    named = config or os.environ.get(CONFIG_VARIABLE)
    of = f"of {named}" if named else "of no file: ROLLOUTD_ variables over the defaults"
    typer.echo(f"the configuration is valid ({of})")


@config.command("show")
def show_settings(
    config: ConfigOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Put the meaning above each setting, as a comment.")
    ] = False,
) -> None:
    """Print every setting in force, secrets masked."""
    from controller.settings import show, show_explained

    settings = _settings(config)
    typer.echo(show_explained(settings) if explain else show(settings), nl=False)


@token.command("new")
def new_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The machine, as in deploy-bot.")],
    role: Annotated[str, typer.Option(help="viewer, operator, approver or admin.")] = "operator",
    flags: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="A pattern of flag keys; * stands for any characters. Repeatable. Default: all.",
            show_default=False,
        ),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Until it expires.")] = 365,
) -> None:
    """Make a token: it is printed once, with the lines for `sign_in.access_file`.

    The token goes to standard output, everything else to standard error. Only its digest belongs
    into the file. Exits 78 when the name, the role or the flags cannot be used.
    """
    from controller.cli.tokens import make_token

    try:
        made = make_token(name, role, flags or ["*"], days)
    except BadInput as refused:
        _refuse(refused)
    typer.echo(made.lines, err=True)
    typer.echo(made.token)


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
    import asyncio

    from controller.cli.repair import check_counted, discard_partition

    settings = _settings(config)
    topic, _, number = partition.rpartition("/")
    if not topic or not (number.isascii() and number.isdigit()) or len(number) > _LONGEST_NUMBER:
        _refuse(
            BadInput(
                f"{partition!r} names no partition: write TOPIC/NUMBER, as in flag.evaluations/3"
            )
        )
    try:
        check_counted(settings, topic)
    except BadInput as refused:
        _refuse(refused)
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
    except RolloutdError as trouble:
        typer.echo(f"not known to be done, try again: {trouble}", err=True)
        raise typer.Exit(EXIT_TROUBLE) from trouble
    typer.echo(
        f"{topic}/{int(number)} is discarded: its owner takes it up again within seconds"
        if was_there
        else f"nothing is stored of {topic}/{int(number)}"
    )


def _settings(path: Path | None) -> Settings:
    from controller.settings import load_settings

    try:
        return load_settings(path, os.environ)
    except BadInput as refused:
        _refuse(refused)


def _refuse(refused: BaseException) -> NoReturn:
    typer.echo(str(refused), err=True)
    raise typer.Exit(EXIT_CONFIG)


with_examples(app)
app.info.cls = _DaemonGroup


def main() -> None:
    """Run the command line."""
    sys.exit(app())


if __name__ == "__main__":
    main()
