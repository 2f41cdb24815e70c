"""What every command of `rolloutctl` shares: options, settings, output and exit codes."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import structlog
import typer
from rich.console import Console

from controller.cli.rendering import make_console
from controller.codec.plans import to_core_plan
from controller.core.serving import beyond_share_of
from controller.errors import BadInput, EventLogUnavailable
from controller.settings import CountingSettings, KafkaSettings, load_settings
from controller.text import printable
from schemas.plan import PlanDocument
from schemas.terms import NAME

T = TypeVar("T")

#: The command was rejected, the plan has errors, or there is no such rollout.
EXIT_REJECTED = 1
EXIT_USAGE = 2
#: No result in time: the command may still be carried out.
EXIT_NO_RESULT = 3
EXIT_UNREACHABLE = 4
#: As in sysexits.h.
EXIT_CONFIG = 78
EXIT_INTERRUPTED = 130

#: A person waits; the daemon, which joins a group, has longer.
CONNECT_SECONDS = 10.0

_CONNECTION = "Connection"

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="The daemon's settings file; ROLLOUTD_ variables beat it.",
        rich_help_panel=_CONNECTION,
    ),
]
BootstrapOption = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        metavar="HOST:PORT",
        help="Kafka; beats the settings.",
        rich_help_panel=_CONNECTION,
    ),
]
PrefixOption = Annotated[
    str | None,
    typer.Option(
        "--topic-prefix",
        help="Put before every topic's name; beats the settings.",
        rich_help_panel=_CONNECTION,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="For machines: one JSON document per line.")
]
FlagArgument = Annotated[
    str, typer.Argument(metavar="FLAG", help="The flag's key.", show_default=False)
]
AnyFlagArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[FLAG]", help="The flag's key. Default: all flags.", show_default=False
    ),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.1, max=3600, help="Seconds to wait for the result.")
]
IssuerOption = Annotated[
    str | None,
    typer.Option("--as", help="Who sends the command, for the audit log. Default: user@host."),
]
IdOption = Annotated[
    str | None,
    typer.Option(
        "--id",
        help="The command's id. Repeating one is safe: it is carried out once. Default: a new id.",
    ),
]
ReasonOption = Annotated[str, typer.Option("--reason", "-r", help="Why, for the audit log.")]
RevisionOption = Annotated[
    int | None,
    typer.Option(
        "--expected-revision",
        min=0,
        help="Reject the command if the rollout has another revision.",
    ),
]


class _LastWarning(logging.Handler):
    """Keeps the client library's last warning.

    Its exceptions often lack the cause, such as a refused password.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.message = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.message = record.getMessage().strip().rstrip(":")

    def __str__(self) -> str:
        return f"\nthe client library reported: {self.message}" if self.message else ""


_last_warning = _LastWarning()


def prepare_process() -> None:
    """Keep log lines off the output, and write `?` for what a terminal cannot show."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    library = logging.getLogger("aiokafka")
    library.addHandler(_last_warning)
    library.propagate = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def kafka_settings(
    config: Path | None, bootstrap_servers: str | None, topic_prefix: str | None
) -> KafkaSettings:
    """Return how to reach Kafka: the daemon's settings, overlaid by the two options.

    Exits 78 when they cannot be used.
    """
    return reading_settings(config, bootstrap_servers, topic_prefix)[0]


def reading_settings(
    config: Path | None, bootstrap_servers: str | None, topic_prefix: str | None
) -> tuple[KafkaSettings, CountingSettings]:
    """Return how to reach Kafka, as `kafka_settings` does, and how the daemon counts events."""
    environ = dict(os.environ)
    if bootstrap_servers is not None:
        environ["ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS"] = bootstrap_servers
    if topic_prefix is not None:
        environ["ROLLOUTD_KAFKA__TOPIC_PREFIX"] = topic_prefix
    try:
        loaded = load_settings(config, environ)
    except BadInput as refused:
        fail(f"{refused}", EXIT_CONFIG)
    settings = loaded.kafka
    changes: dict[str, Any] = {"start_seconds": min(settings.start_seconds, CONNECT_SECONDS)}
    if settings.client_id == KafkaSettings().client_id:
        changes["client_id"] = "rolloutctl"  # so that brokers' logs name the tool
    return settings.model_copy(update=changes), loaded.counting


def say_beyond_planes(document: PlanDocument, config: Path | None) -> None:
    """Warn where the settings name flag planes that cannot serve all of the plan.

    Settings that cannot be read here cause no warning.
    """
    from controller.planes import planes_without_audiences  # slow to load, and seldom needed

    try:
        planes = planes_without_audiences(load_settings(config, os.environ).planes)
    except BadInput:
        return  # a command that needs the settings refuses them
    beyond = beyond_share_of(to_core_plan(document))
    if beyond is not None and planes:
        complain(
            f"warning: {', '.join(planes)} cannot serve {beyond}: a stage that has any "
            f"holds with actuation_drift; "
            "let apps ask over OFREP or flagd, or leave it out"
        )


def perform(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns.

    Ctrl-C, and Kafka out of reach, end the process with their exit codes.
    """
    try:
        return asyncio.run(work)
    except EventLogUnavailable as trouble:
        fail(f"{trouble}{_last_warning}", EXIT_UNREACHABLE)
    except BadInput as refused:  # unusable certificates are noticed only on connecting
        fail(f"{refused}", EXIT_CONFIG)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def check_flag(flag: str) -> str:
    """Return a flag's key. Exits 2 for a text that is no key."""
    if NAME.match(flag) is None:
        fail(
            f"{flag!r} is no flag key: up to 128 of A-Z a-z 0-9 . _ : -, beginning with a "
            f"letter or digit",
            EXIT_USAGE,
        )
    return flag


def output() -> Console:
    """Return standard output for people."""
    return make_console(sys.stdout, is_colored=not os.environ.get("NO_COLOR"))


def complain(message: str) -> None:
    """Write a message to standard error."""
    for line in message.splitlines():
        typer.echo(f"rolloutctl: {printable(line, '?')}", err=True)


def fail(message: str, code: int) -> NoReturn:
    """Write a message to standard error and exit."""
    complain(message)
    raise typer.Exit(code)
