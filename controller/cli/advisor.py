"""`rolloutctl advisor`: is the model's server there and fit, and what is its advice worth. Needs no Kafka and no daemon."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from controller.adapters.advisor import ModelAdvisor
from controller.adapters.prompts import GATE_VERSION
from controller.cli import rendering
from controller.cli.surroundings import (
    EXIT_CONFIG,
    EXIT_INTERRUPTED,
    EXIT_REJECTED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    ConfigOption,
    JsonOption,
    complain,
    fail,
    output,
)
from controller.clock import SystemClock
from controller.errors import AdviceUnavailableError, BadInput
from controller.scorecard.cases import Case, CaseKind, load_cases
from controller.scorecard.report import Asked, percent, render, seconds, to_document
from controller.scorecard.scoring import Answer, Score, put_cases, score
from controller.settings import AdvisorSettings, load_settings

T = TypeVar("T")

app = typer.Typer(help="See whether the model's server is fit, and what its advice is worth.", no_args_is_help=True)

_MODEL = "Model"
UrlOption = Annotated[str | None, typer.Option("--url", help="The model's server; beats the settings.", rich_help_panel=_MODEL)]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="The model as the server calls it; beats the settings.", rich_help_panel=_MODEL)
]
ProtocolOption = Annotated[
    str | None, typer.Option("--protocol", help="openai or ollama; beats the settings.", rich_help_panel=_MODEL)
]
KeyFileOption = Annotated[
    Path | None, typer.Option("--api-key-file", help="File with the key; beats the settings.", rich_help_panel=_MODEL)
]
DeadlineOption = Annotated[
    float | None,
    typer.Option("--deadline", min=0.1, max=3600, help="Seconds per question; beats the settings.", rich_help_panel=_MODEL),
]

#: One case of each of these is put by `check`: a short question, a long one, and one with text from elsewhere.
_CHECKED_KINDS = (CaseKind.CLEAR_PASS, CaseKind.HIDDEN_HARM, CaseKind.LANGUAGE)


def advisor_settings(
    config: Path | None,
    url: str | None,
    model: str | None,
    protocol: str | None,
    key_file: Path | None,
    deadline_seconds: float | None,
) -> AdvisorSettings:
    """Return how to ask the model: the daemon's settings, with the options over them. Exits 78 when they cannot be used."""
    environ = dict(os.environ)
    options = {
        "URL": url,
        "MODEL": model,
        "PROTOCOL": protocol,
        "API_KEY_FILE": None if key_file is None else str(key_file),
        "DEADLINE_SECONDS": None if deadline_seconds is None else str(deadline_seconds),
    }
    for name, value in options.items():
        if value is not None:
            environ[f"ROLLOUTD_ADVISOR__{name}"] = value
    if key_file is not None:
        environ.pop("ROLLOUTD_ADVISOR__API_KEY", None)
    try:
        return load_settings(config, environ).advisor
    except BadInput as refused:
        fail(f"{refused}", EXIT_CONFIG)


def patient(settings: AdvisorSettings) -> AdvisorSettings:
    """Return settings for a person who waits: every question is put, however the ones before it ended."""
    if settings.url is None:
        fail("no model is configured: give --url, or set advisor.url", EXIT_CONFIG)
    return settings.model_copy(update={"breaker_failures": 1_000_000, "questions_per_day": 1_000_000, "breaker_seconds": 0.001})


def perform(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; Ctrl-C and unusable certificates end the process with their exit codes."""
    try:
        return asyncio.run(work)
    except BadInput as refused:
        fail(f"{refused}", EXIT_CONFIG)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


@app.command()
def check(
    is_json: JsonOption = False,
    url: UrlOption = None,
    model: ModelOption = None,
    protocol: ProtocolOption = None,
    key_file: KeyFileOption = None,
    deadline: DeadlineOption = None,
    config: ConfigOption = None,
) -> None:
    """Say what is reachable, which model, how fast, and whether it answers in the form. Exits 1 if unfit, 4 if not reached."""
    settings = patient(advisor_settings(config, url, model, protocol, key_file, deadline))
    found = perform(_check(settings))
    if is_json:
        typer.echo(rendering.to_json(found))
    else:
        _show_check(found)
    if not found["is_reached"]:
        raise typer.Exit(EXIT_UNREACHABLE)
    if found["in_form"] < found["questions"]:
        raise typer.Exit(EXIT_REJECTED)


async def _check(settings: AdvisorSettings) -> dict[str, Any]:
    clock = SystemClock()
    advisor = ModelAdvisor(settings, clock)
    began = clock.monotonic()
    models: Sequence[str] = ()
    try:
        trouble = None
        try:
            models = await advisor.server.models(seconds=min(settings.deadline_seconds, 10.0))
        except AdviceUnavailableError as why:
            trouble = str(why)  # a server may be fit and list nothing: the questions tell
        listed_ms = round(1000 * (clock.monotonic() - began))
        answers = await put_cases(
            advisor, _checked_cases(), clock, deadline_seconds=settings.deadline_seconds, on_answer=lambda _: None
        )
    finally:
        await advisor.close()
    figures = score(answers)
    return {
        "server": advisor.server.name,
        "protocol": settings.protocol,
        "is_reached": trouble is None or figures.in_form.count > 0,
        "list_trouble": trouble,
        "list_ms": listed_ms,
        "model": settings.model,
        "is_listed": settings.model in models if trouble is None else None,
        "models": list(models),
        "questions": figures.in_form.of,
        "in_form": figures.in_form.count,
        "troubles": sorted({answer.why_none for answer in answers if answer.why_none}),
        "latency_ms": {"p50": figures.latency_p50_ms, "max": figures.latency_max_ms},
        "tokens": {"prompt": figures.prompt_tokens, "completion": figures.completion_tokens},
        "deadline_seconds": settings.deadline_seconds,
    }


def _checked_cases() -> list[Case]:
    return [next(case for case in load_cases() if case.kind is kind) for kind in _CHECKED_KINDS]


def _show_check(found: dict[str, Any]) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    reached = f"reached in {found['list_ms']} ms" if found["list_trouble"] is None else found["list_trouble"]
    table.add_row("server", f"{found['server']}, as {found['protocol']}: {reached}")
    match found["is_listed"]:
        case True:
            words = "listed"
        case False:
            words = f"not in its list: {rendering.shown(found['models']) or 'which is empty'}"
        case _:
            words = "not known whether it is there"
    table.add_row("model", f"{found['model']}: {words}")
    table.add_row("answers", f"{found['in_form']} of {found['questions']} in the form")
    for trouble in found["troubles"]:
        table.add_row("", trouble)
    if found["in_form"]:
        tokens = found["tokens"]
        counted = "" if tokens["prompt"] is None else f"; {tokens['prompt']} tokens in, {tokens['completion']} out"
        times = found["latency_ms"]
        table.add_row("time", f"{seconds(times['p50'])}, {seconds(times['max'])} at most{counted}")
        is_near = times["max"] > 500 * found["deadline_seconds"]
        advice = ": more than half of it is used, give it more or take a smaller model" if is_near else ""
        table.add_row("deadline", f"{found['deadline_seconds']:g} s{advice}")
    output().print(table)


@app.command("eval")
def evaluate(
    is_json: JsonOption = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write the report to this file.")] = None,
    kinds: Annotated[list[CaseKind] | None, typer.Option("--kind", help="Only cases of this kind; may be repeated.")] = None,
    url: UrlOption = None,
    model: ModelOption = None,
    protocol: ProtocolOption = None,
    key_file: KeyFileOption = None,
    deadline: DeadlineOption = None,
    config: ConfigOption = None,
) -> None:
    """Put the packaged gate cases to a model and score its advice. Exits 1 when it gave none, 4 when it was not reached."""
    settings = patient(advisor_settings(config, url, model, protocol, key_file, deadline))
    cases = [case for case in load_cases() if not kinds or case.kind in kinds]
    asked = Asked(settings.model, _name_of(settings), GATE_VERSION, datetime.now(UTC))
    answers = perform(_evaluate(settings, cases))
    figures = score(answers)
    if html is not None:
        try:
            html.write_text(render(asked, answers, figures), encoding="utf-8")
        except OSError as error:
            fail(f"{html}: cannot be written: {error}", EXIT_USAGE)
    if is_json:
        typer.echo(rendering.to_json(to_document(asked, answers, figures)))
    else:
        _show_score(asked, answers, figures)
        if html is not None:
            typer.echo(f"report: {html}")
    if figures.in_form.count == 0:
        raise typer.Exit(EXIT_REJECTED)


def _name_of(settings: AdvisorSettings) -> str:
    return f"{settings.url} ({settings.protocol})"


async def _evaluate(settings: AdvisorSettings, cases: Sequence[Case]) -> list[Answer]:
    clock = SystemClock()
    advisor = ModelAdvisor(settings, clock)
    done = 0

    def tell(answer: Answer) -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            typer.echo(f"\r{done} of {len(cases)}  {answer.case.name:<48}", err=True, nl=done == len(cases))

    try:
        try:
            await advisor.server.models(seconds=min(settings.deadline_seconds, 10.0))
        except AdviceUnavailableError as why:
            first = await put_cases(
                advisor, cases[:1], clock, deadline_seconds=settings.deadline_seconds, on_answer=lambda _: None
            )
            if first and first[0].advice is None:
                complain(f"{why}")
                fail(first[0].why_none, EXIT_UNREACHABLE)
        return await put_cases(advisor, cases, clock, deadline_seconds=settings.deadline_seconds, on_answer=tell)
    finally:
        await advisor.close()


def _show_score(asked: Asked, answers: Sequence[Answer], figures: Score) -> None:
    console = output()
    console.print(f"{asked.model} at {asked.server}, {len(answers)} cases, prompt {asked.prompt}")
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for name, tally, words in (
        ("in the form", figures.in_form, "answers that could be read, of all questions"),
        ("agreement", figures.agreement, "answers that can be defended"),
        ("unsafe proceeds", figures.unsafe_proceeds, "proceed where only caution can be defended"),
        ("needless holds", figures.needless_holds, "caution where only proceed can be defended"),
        ("injections", figures.injections, "instructions in names and texts that were followed"),
    ):
        table.add_row(name, percent(tally), f"{tally.count} of {tally.of}: {words}")
    table.add_row("time", seconds(figures.latency_p50_ms), f"half; 95 % within {seconds(figures.latency_p95_ms)}")
    if figures.prompt_tokens is not None:
        table.add_row("tokens", str(figures.prompt_tokens), f"in, {figures.completion_tokens} out, on average")
    console.print(table)
    reasons = {answer.why_none for answer in answers if answer.why_none}
    for reason in sorted(reasons)[:3]:
        console.print(f"no advice: {rendering.printable(reason)}", soft_wrap=True)
    mode, why = figures.suits
    console.print(f"these figures support advisor.mode: {mode} ({why})", soft_wrap=True)
