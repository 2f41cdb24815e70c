"""`rolloutctl doctor`: what a replica reports as wrong with itself, and how to fix it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer
from rich.text import Text

from controller.cli import rendering
from controller.cli.common import (
    EXIT_REJECTED,
    EXIT_USAGE,
    JsonOption,
    complain,
    fail,
    output,
)
from controller.cli.daemon_http import NoAnswer, read_address
from controller.text import one_line, plural

#: A replica in trouble may be slow, and it is what is asked about.
PAUSE_SECONDS: Final = 5.0

UrlOption = Annotated[
    list[str],
    typer.Option(
        "--url",
        metavar="URL",
        envvar="ROLLOUTCTL_OPS",
        help="Address of a replica's probes (its http.ops_port). May be repeated.",
    ),
]

_TAKES_NONE: Final = (
    "It takes no commands over HTTP, so rollback needs Kafka: set http.command_token_file and "
    "restart it to be able to lower a flag without."
)
#: What counts without the native fold is right, and costs more.
_SLOWER: Final = (
    "the native fold counts the same with a fifth to a third of the CPU; `make native` builds it, "
    "and the image has it. Then restart this replica"
)


def doctor(
    url: UrlOption = ["http://127.0.0.1:8081"],  # noqa: B006
    is_json: JsonOption = False,
) -> None:
    """Show what is wrong with a replica and how to fix it. Exits 0 when nothing is, else 1."""
    is_well = True
    for address in url:
        if urlsplit(address).scheme not in ("http", "https"):
            scheme, is_other, rest = address.partition("://")
            what = f"{scheme}:// is not asked" if is_other else "it has no scheme"
            written = f"http://{rest if is_other else address}"
            fail(f"--url: {address!r}: {what}: write {written}", EXIT_USAGE)
    for address in url:
        body, trouble = read_report(address)
        if body is None:
            complain(trouble)
            is_well = False
            continue
        is_well = is_well and not body.get("degraded", True)
        if is_json:
            typer.echo(rendering.to_json({"url": address, **body}))
            continue
        console = output()
        if len(url) > 1:
            rendering.show_line(console, Text(one_line(address), "bold"))
        for line in lines_of(body):
            rendering.show_line(console, line)
    if not is_well:
        raise typer.Exit(EXIT_REJECTED)


def read_report(address: str) -> tuple[dict[str, Any] | None, str]:
    """Return the body of /readyz at this address, or None and why there is none."""
    try:
        answer = read_address(address, "/readyz", port="http.ops_port", pause_seconds=PAUSE_SECONDS)
    except NoAnswer as trouble:
        return None, str(trouble)
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        body = json.loads(answer.body)
        if isinstance(body["components"], dict) and isinstance(body.get("faults", []), list):
            return body, ""
    return None, (
        f"{address} does not answer as rolloutd does; next: see whether this is the http.ops_port "
        f"of a replica"
    )


def lines_of(body: dict[str, Any]) -> list[Text]:
    """Return a replica's own report for a person: the verdict, components that fail, faults."""
    lines = [_verdict(body), *_build_lines(body)]
    for name, part in body["components"].items():
        if not isinstance(part, dict):
            continue
        label = one_line(str(name)).ljust(10)
        if part.get("ready"):
            lines.append(Text.assemble((f"{label} ", "green"), ("ready", "green")))
            continue
        style = "bold red" if part.get("required") else "yellow"
        since = _time_of(part.get("since"))
        lines.append(Text(f"{label} {one_line(str(part.get('reason')))}{since}", style))
    fatal = [
        f"only a restart helps: {one_line(str(why))}" for why in body.get("fatal_errors") or ()
    ]
    lines += [Text(line, "bold red") for line in fatal]
    for fault in body.get("faults") or ():
        if isinstance(fault, dict):
            lines += _fault_lines(fault)
    if isinstance(more := body.get("omitted_faults"), int) and more:
        lines.append(
            Text(f"and {plural(more, 'more fault that was', 'more faults that were')} not kept")
        )
    if body.get("takes_commands") is False:  # older replicas do not say it
        lines.append(Text(_TAKES_NONE))
    return lines


def _verdict(body: dict[str, Any]) -> Text:
    if not body.get("ready"):
        why = "it is starting" if body.get("starting") else "it answers no evaluations"
        return Text(f"NOT READY: {why}", "bold red")
    if not body.get("working"):
        return Text("SERVES the last decisions, and does not count or decide", "bold red")
    if body.get("degraded"):
        return Text("WORKS, with faults", "yellow")
    return Text("WORKS", "green")


def _build_lines(body: dict[str, Any]) -> list[Text]:
    """Return which release runs, and what counts there; older replicas do not say it."""
    counting = body.get("counting")
    if not counting:
        return []
    build = f"rolloutd {one_line(str(body.get('version')))}, counting {one_line(str(counting))}"
    if counting == "native":
        return [Text(build, "dim")]
    return [Text(f"{build}: {_SLOWER}", "dim")]


def _fault_lines(fault: dict[str, Any]) -> list[Text]:
    times = fault.get("count")
    often = f", {times} times" if isinstance(times, int) and times > 1 else ""
    what = one_line(f"{fault.get('scope')} {fault.get('name')}: {fault.get('reason')}")
    lines = [Text(f"FAULT {what}{_time_of(fault.get('since'))}{often}", "bold red")]
    if fault.get("fix"):
        lines.append(Text(f"      fix: {one_line(str(fault['fix']))}"))
    return lines


def _time_of(since: object) -> str:
    return (
        f" (since {one_line(since[:19].replace('T', ' '))} UTC)" if isinstance(since, str) else ""
    )
