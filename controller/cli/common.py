"""Options, settings, output and exit codes that all commands of `rolloutctl` share."""

from __future__ import annotations

import difflib
import errno
import io
import logging
import os
import sys
from collections.abc import Container, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import typer

from controller.cli.option_groups import OptionGroup
from controller.cli.rendering import make_console, shown
from controller.errors import BadInput, EventLogUnavailable
from controller.text import printable
from schemas.terms import NAME

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from rich.console import Console

    from controller.settings import CountingSettings, KafkaSettings, Settings
    from schemas.plan import PlanDocument

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

#: A person waits; the daemon, which joins a group, has longer. Brokers answer within milliseconds.
CONNECT_SECONDS = 3.0
#: The end of the process closes what does not close in time.
CLOSE_SECONDS = 0.5
_WITHOUT_KAFKA = "`rolloutctl doctor` asks a replica without Kafka"
_KAFKA_ADVICE = (
    "next: see whether Kafka runs at that address (--bootstrap-servers, --config, or "
    f"ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS); {_WITHOUT_KAFKA}"
)

_CONNECTION = "Connection"

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="The daemon's settings file; ROLLOUTD_ variables override it.",
        rich_help_panel=_CONNECTION,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="For machines: one JSON document per line.")
]


@dataclass(frozen=True, slots=True)
class KafkaOptions(OptionGroup):
    """The options that say where Kafka is."""

    config: ConfigOption = None
    bootstrap_servers: Annotated[
        str | None,
        typer.Option(
            "--bootstrap-servers",
            metavar="HOST:PORT",
            help="Kafka; overrides the settings.",
            rich_help_panel=_CONNECTION,
        ),
    ] = None
    topic_prefix: Annotated[
        str | None,
        typer.Option(
            "--topic-prefix",
            help="Put before every topic's name; overrides the settings.",
            rich_help_panel=_CONNECTION,
        ),
    ] = None

    @property
    def environ(self) -> dict[str, str]:
        """The process's variables, overlaid by the options that say which Kafka is meant."""
        return {**os.environ, **{name: value for name, (_, value) in self._given().items()}}

    def _given(self) -> dict[str, tuple[str, str]]:
        """Return option and value by the variable that each option beats."""
        every = {
            "ROLLOUTD_KAFKA__BOOTSTRAP_SERVERS": ("--bootstrap-servers", self.bootstrap_servers),
            "ROLLOUTD_KAFKA__TOPIC_PREFIX": ("--topic-prefix", self.topic_prefix),
        }
        return {
            name: (option, value) for name, (option, value) in every.items() if value is not None
        }

    def settings(self) -> KafkaSettings:
        """Return how to reach Kafka: the daemon's settings, overlaid by the two options.

        Exits 78 when they cannot be used.
        """
        return self.reading_settings()[0]

    def reading_settings(self) -> tuple[KafkaSettings, CountingSettings]:
        """Return how to reach Kafka, as `settings` does, and how the daemon counts events."""
        from controller.settings import KafkaSettings, load_settings

        try:
            options = {name: option for name, (option, _) in self._given().items()}
            loaded = load_settings(self.config, self.environ, options)
        except BadInput as refused:
            fail(f"{refused}", EXIT_CONFIG)
        settings = loaded.kafka
        changes: dict[str, Any] = {
            "start_seconds": min(settings.start_seconds, CONNECT_SECONDS),
            "stop_seconds": min(settings.stop_seconds, CLOSE_SECONDS),
        }
        if settings.client_id == KafkaSettings.model_fields["client_id"].default:
            changes["client_id"] = "rolloutctl"  # so that brokers' logs name the tool
        return settings.model_copy(update=changes), loaded.counting


def check_daemon(url: str | None) -> str | None:
    """Return a daemon's address. Exits 2 for a text that is no HTTP address."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_address = is_address and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        fail(
            f"--daemon (or ROLLOUTCTL_DAEMON): {url!r} is not an HTTP address: write it as in "
            f"http://127.0.0.1:8080",
            EXIT_USAGE,
        )
    return url


DaemonOption = Annotated[
    str | None,
    typer.Option(
        "--daemon",
        metavar="URL",
        envvar="ROLLOUTCTL_DAEMON",
        callback=check_daemon,
        help="HTTP address of any replica, as in http://127.0.0.1:8080. It has the newest evidence "
        "and the standing of the flag planes.",
    ),
]


def _complete_flag(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the flags that a shell offers for what is typed so far."""
    from controller.cli.known_flags import flags_beginning  # slow to load, and seldom needed

    typed = {one.name: ctx.params.get(one.name) for one in fields(KafkaOptions)}
    config = typed["config"]
    environ = KafkaOptions(**typed).environ
    return flags_beginning(incomplete, None if config is None else Path(config), environ)


FlagArgument = Annotated[
    str,
    typer.Argument(
        metavar="FLAG",
        help="The flag's key.",
        show_default=False,
        autocompletion=_complete_flag,
    ),
]
PlanArgument = Annotated[
    str,
    typer.Argument(metavar="PLAN", help="A file, - for standard input, or a template's name."),
]
PlanFlagOption = Annotated[
    str | None, typer.Option("--flag", help="The flag; needed by a template, replaces a file's.")
]
AnyFlagArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="FLAG",
        help="The flag's key. Default: all flags.",
        show_default=False,
        autocompletion=_complete_flag,
    ),
]
ReasonOption = Annotated[
    str, typer.Option("--reason", "-r", help="Why; recorded in the audit log.")
]
SureOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Do not ask for confirmation on a terminal.")
]
#: For commands that never ask: whoever is in a hurry adds `--yes` out of habit.
NeverAskedOption = Annotated[bool, typer.Option("--yes", "-y", hidden=True)]
RevisionOption = Annotated[
    int | None,
    typer.Option(
        "--expected-revision",
        min=0,
        help="Reject the command if the rollout has another revision. pause, rollback and abort "
        "work at any: they only warn.",
    ),
]


@dataclass(frozen=True, slots=True)
class SendingOptions(KafkaOptions):
    """The options that all verbs share: who sends a command, and how its result is shown."""

    issuer: Annotated[
        str | None,
        typer.Option("--as", help="Author recorded in the audit log. Default: user@host."),
    ] = None
    command_id: Annotated[
        str | None,
        typer.Option(
            "--id",
            help="The command's id. Repeating it is safe: an id is carried out once. Default: "
            "random.",
        ),
    ] = None
    seconds: Annotated[
        float, typer.Option("--timeout", min=0.1, max=3600, help="Seconds to wait for the result.")
    ] = 15.0
    is_json: JsonOption = False


class _LastWarning(logging.Handler):
    """Keeps the client library's last warning.

    Its exceptions often lack the cause, such as a refused password.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.message = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "aiokafka":  # the others warn of no cause, as of a password in the clear
            self.message = record.getMessage().strip().rstrip(":")

    def __str__(self) -> str:
        return f"\nthe client library reported: {self.message}" if self.message else ""


_last_warning = _LastWarning()


def prepare_process() -> None:
    """Keep log lines off the output, and write `?` for what a terminal cannot show."""
    library = logging.getLogger("aiokafka")
    library.addHandler(_last_warning)
    library.propagate = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def settings_at_hand(config: Path | None) -> Settings | None:
    """Return the settings, None where none that can be read were named.

    Exits 78 for a file that was named and cannot be used.
    """
    from controller.settings import load_settings

    try:
        return load_settings(config, os.environ)
    except BadInput as refused:
        if config is not None:
            fail(f"{refused}", EXIT_CONFIG)
        return None  # a command that needs the settings refuses them


def warn_by_settings(document: PlanDocument, config: Path | None) -> None:
    """Warn of what the settings at hand make of a plan: flag planes, and a model.

    Settings that cannot be read here cause no warning, but of a file that was named. Exits 78 then.
    """
    # slow to load, and seldom needed
    from controller.codec.plans import to_core_plan
    from controller.core.serving import beyond_share_of
    from controller.planes import planes_without_audiences
    from controller.plans import advice_beyond_max_bake

    settings = settings_at_hand(config)
    if settings is None:
        return
    planes = planes_without_audiences(settings.planes)
    beyond = beyond_share_of(to_core_plan(document))
    if beyond is not None and planes:
        complain(
            f"warning: {', '.join(planes)} cannot serve {beyond}: a stage that has any "
            f"holds with actuation_drift; "
            "let apps ask over OFREP or flagd, or leave it out"
        )
    if settings.advisor.url is not None and "advisor" not in document.model_fields_set:
        for finding in advice_beyond_max_bake(document):
            complain(f"warning: {finding}")


def kafka_advice(trouble: EventLogUnavailable) -> str:
    """Return what to do when Kafka is not reached, without what the trouble says itself."""
    return _WITHOUT_KAFKA if is_advised(str(trouble)) else _KAFKA_ADVICE


def is_advised(trouble: str) -> bool:
    """Return whether a trouble with Kafka says itself what to do next."""
    return "next: " in trouble or "start rolloutd" in trouble


def perform(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns.

    Ctrl-C, and Kafka out of reach, end the process with their exit codes. Raises BrokenPipeError,
    on which it ends silently, where whoever read the output has gone, as `head` does.
    """
    import asyncio

    import structlog  # slow to load, and nothing logs before it

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        return asyncio.run(work)
    except EventLogUnavailable as trouble:
        advice = "" if is_advised(str(trouble)) else f"\n{_KAFKA_ADVICE}"
        fail(f"{trouble}{_last_warning}{advice}", EXIT_UNREACHABLE)
    except BadInput as refused:  # unusable certificates are noticed only on connecting
        fail(f"{refused}", EXIT_CONFIG)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BaseExceptionGroup as group:
        closed, others = group.split(BrokenPipeError)
        if closed is None or others is not None:
            raise
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None


def check_flag(flag: str) -> str:
    """Return a flag's key. Exits 2 for a text that is no key."""
    if NAME.match(flag) is None:
        fail(
            f"{flag!r} is not a flag key: up to 128 of A-Z a-z 0-9 . _ : -, beginning with a "
            f"letter or digit",
            EXIT_USAGE,
        )
    return flag


def without_rollout(flag: str, known: Iterable[str], retired: Container[str] = ()) -> str:
    """Return that a flag has no rollout, and which flag is meant, or which of them have one.

    One of the `retired` was not mistyped: no other flag is meant.
    """
    if flag in retired:
        return f"{flag} is retired; `rolloutctl history {flag}` shows its rollouts"
    flags = sorted(known)
    if not flags:
        return f"{flag} has no rollout, and no other flag has one; `rolloutctl start` starts one"
    lowered = {one.lower(): one for one in flags}
    near = difflib.get_close_matches(flag.lower(), lowered, n=1)
    hint = f"did you mean {lowered[near[0]]}?" if near else f"there are: {shown(flags)}"
    return f"{flag} has no rollout; {hint}"


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
