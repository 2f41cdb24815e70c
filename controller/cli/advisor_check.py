"""Carries out `rolloutctl advisor`: checks the server with a few questions, or scores it."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import typer
from rich.table import Table

from controller.adapters.llm.advisor import DIALECTS, ModelAdvisor
from controller.adapters.llm.prompts import GATE_VERSION
from controller.adapters.llm.trouble import NO_MODEL_SERVER_FIX, NOT_THERE_FIX
from controller.cli import rendering
from controller.cli.common import (
    EXIT_CONFIG,
    EXIT_INTERRUPTED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    complain,
    fail,
    output,
)
from controller.clock import SystemClock
from controller.errors import AdviceUnavailableError, BadInput
from controller.scorecard.cases import Case, load_cases
from controller.scorecard.kinds import CaseKind
from controller.scorecard.report import ScorecardOrigin, percent, render, seconds, to_document
from controller.scorecard.scoring import CaseAnswer, Score, put_cases, score
from controller.settings import AdvisorSettings
from controller.text import file_trouble, one_line

T = TypeVar("T")

#: `check` puts one case of each: a short question, a long one, and one with text that others wrote.
_CHECKED_KINDS = (CaseKind.CLEAR_PASS, CaseKind.HIDDEN_HARM, CaseKind.LANGUAGE)

_SEE_THE_LOG: Final = "see the server's log"

#: The options that beat settings.
_OPTIONS: Final = {
    "url": "--url",
    "model": "--model",
    "protocol": "--protocol",
    "api_key_file": "--api-key-file",
    "deadline_seconds": "--deadline",
}

#: Listing its models takes a server no thinking.
_LIST_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class AdvisorCheck:
    """The result of checking a server and its model."""

    settings: AdvisorSettings
    server: str
    list_error: str | None  # why it listed no models; it may be fit all the same
    list_ms: int
    models: Sequence[str]
    answers: Sequence[CaseAnswer]
    score: Score
    list_fix: str = ""  # what to do about `list_error`, in terms of settings
    speaks: Sequence[str] = ()  # other protocols in which the server lists models

    @property
    def is_fit(self) -> bool:
        """Whether every question was answered in the form."""
        return self.score.in_form.count == self.score.in_form.of

    @property
    def next_steps(self) -> list[str]:
        """What to do about a server or model that is unfit, the likeliest first."""
        if self.is_fit:
            return []
        steps = []
        if self.speaks:
            steps.append(f"the server speaks another protocol: give {' or '.join(self.speaks)}")
        if self.is_listed is False:
            steps.append(_model_step(self.settings, self.models))
        if not self.speaks:
            fixes = (self.list_fix, *(answer.fix for answer in self.answers))
            steps += [fix for fix in fixes if self.is_listed is not False or fix != NOT_THERE_FIX]
        known = [with_options(step) for step in dict.fromkeys(steps) if step]
        return known or [_SEE_THE_LOG]

    @property
    def is_reachable(self) -> bool:
        """Whether the server listed its models or answered a question."""
        return self.list_error is None or self.score.in_form.count > 0

    @property
    def is_listed(self) -> bool | None:
        """Whether the server lists the model; None when it listed none."""
        if self.list_error is not None:
            return None
        return any(is_same_model(self.settings.model, name) for name in self.models)

    @property
    def errors(self) -> list[str]:
        """Why questions had no answer in the form, each once."""
        return sorted({answer.why_none for answer in self.answers if answer.why_none})


def with_options(step: str) -> str:
    """Return a step in terms of settings with the option that beats each."""
    return re.sub(
        r"advisor\.(\w+)",
        lambda found: f"{found[0]} ({_OPTIONS[found[1]]})" if found[1] in _OPTIONS else found[0],
        step,
    )


def _model_step(settings: AdvisorSettings, models: Sequence[str]) -> str:
    if settings.protocol == "ollama":
        load = f"load the model: ollama pull {shlex.quote(settings.model)}"
    else:
        load = "install the model on the server"
    return f"{load}, or give one of its list as advisor.model" if models else load


def is_same_model(name: str, listed: str) -> bool:
    """Return whether a server that lists `listed` serves it by `name` as well.

    Ollama lists a name without a tag with the tag `latest`, and accepts both.
    """
    return listed in (name, f"{name}:latest")


def perform(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns.

    Ctrl-C and unusable certificates end the process with their exit codes.
    """
    try:
        return asyncio.run(work)
    except BadInput as refused:
        fail(f"{refused}", EXIT_CONFIG)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def check(settings: AdvisorSettings, *, is_json: bool) -> AdvisorCheck:
    """Request the list of models and put a few cases; show and return the result."""
    result = perform(_check(settings))
    if is_json:
        typer.echo(rendering.to_json(_check_document(result)))
    else:
        _show_check(result)
    return result


async def _check(settings: AdvisorSettings) -> AdvisorCheck:
    clock = SystemClock()
    advisor = ModelAdvisor(settings, clock)
    began = clock.monotonic()
    models: Sequence[str] = ()
    trouble, fix, speaks = None, "", []
    try:
        try:
            models = await advisor.server.models(
                seconds=min(settings.deadline_seconds, _LIST_SECONDS)
            )
        except AdviceUnavailableError as why:
            # a server may be fit and list nothing; the questions decide
            trouble, fix = str(why), why.fix
        list_ms = round(1000 * (clock.monotonic() - began))
        answers = await put_cases(
            advisor,
            _checked_cases(),
            clock,
            deadline_seconds=settings.deadline_seconds,
            on_answer=lambda _: None,
        )
    finally:
        await advisor.close()
    figures = score(answers)
    if fix in (NOT_THERE_FIX, NO_MODEL_SERVER_FIX) and not figures.in_form.count:
        speaks = [name for name in DIALECTS if await _lists_models(settings, name, clock)]
    return AdvisorCheck(
        *(settings, advisor.server.name, trouble, list_ms, models, answers, figures),
        list_fix=fix,
        speaks=speaks,
    )


async def _lists_models(settings: AdvisorSettings, protocol: str, clock: SystemClock) -> bool:
    """Return whether the server lists its models in a protocol that was not chosen."""
    if protocol == settings.protocol:
        return False
    other = ModelAdvisor(settings.model_copy(update={"protocol": protocol}), clock)
    try:
        await other.server.models(seconds=min(settings.deadline_seconds, _LIST_SECONDS))
    except AdviceUnavailableError:
        return False
    finally:
        await other.close()
    return True


def _checked_cases() -> list[Case]:
    return [next(case for case in load_cases() if case.kind is kind) for kind in _CHECKED_KINDS]


def _check_document(result: AdvisorCheck) -> dict[str, Any]:
    figures = result.score
    return {
        "server": result.server,
        "protocol": result.settings.protocol,
        "is_reachable": result.is_reachable,
        "list_error": result.list_error,
        "list_ms": result.list_ms,
        "model": result.settings.model,
        "is_listed": result.is_listed,
        "models": list(result.models),
        "questions": figures.in_form.of,
        "valid_answers": figures.in_form.count,
        "errors": result.errors,
        "next_steps": result.next_steps,
        "latency_ms": {"p50": figures.latency_p50_ms, "max": figures.latency_max_ms},
        "tokens": {"prompt": figures.prompt_tokens, "completion": figures.completion_tokens},
        "deadline_seconds": result.settings.deadline_seconds,
    }


def _show_check(result: AdvisorCheck) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    reached = f"reached in {result.list_ms} ms" if result.list_error is None else result.list_error
    table.add_row("server", f"{result.server}, as {result.settings.protocol}: {reached}")
    match result.is_listed:
        case True:
            words = "listed"
        case False:
            words = f"not in its list: {rendering.shown(result.models) or 'which is empty'}"
        case _:
            words = "whether the server has it is unknown"
    table.add_row("model", f"{result.settings.model}: {words}")
    figures = result.score
    table.add_row("answers", f"{figures.in_form.count} of {figures.in_form.of} in the form")
    for trouble in result.errors:
        if trouble != result.list_error:
            table.add_row("", trouble)
    if figures.latency_max_ms is not None:
        counted = (
            f"; {figures.prompt_tokens} tokens in, {figures.completion_tokens} out"
            if figures.prompt_tokens
            else ""
        )
        table.add_row(
            "time",
            f"{seconds(figures.latency_p50_ms)}, {seconds(figures.latency_max_ms)} at "
            f"most{counted}",
        )
        is_near = figures.latency_max_ms > 500 * result.settings.deadline_seconds
        advice = (
            ": more than half of it is used, give it more or take a smaller model"
            if is_near
            else ""
        )
        table.add_row("deadline", f"{result.settings.deadline_seconds:g} s{advice}")
    for number, step in enumerate(result.next_steps):
        table.add_row("" if number else "next", step)
    output().print(table)


def evaluate(
    settings: AdvisorSettings, kinds: Collection[CaseKind], html: Path | None, *, is_json: bool
) -> Score:
    """Put the cases of these kinds, show the score, and write the report to `html` if given.

    Exits 4 when the server does not answer at all.
    """
    cases = [case for case in load_cases() if case.kind in kinds]
    asked = ScorecardOrigin(
        settings.model, f"{settings.url} ({settings.protocol})", GATE_VERSION, datetime.now(UTC)
    )
    answers = perform(_evaluate(settings, cases))
    figures = score(answers)
    if html is not None:
        try:
            html.write_text(render(asked, answers, figures), encoding="utf-8")
        except OSError as error:
            fail(f"{html}: cannot be written: {file_trouble(error)}", EXIT_USAGE)
    if is_json:
        typer.echo(rendering.to_json(to_document(asked, answers, figures)))
    else:
        _show_score(asked, answers, figures)
        if html is not None:
            typer.echo(f"report: {html}")
    return figures


async def _evaluate(settings: AdvisorSettings, cases: Sequence[Case]) -> list[CaseAnswer]:
    clock = SystemClock()
    advisor = ModelAdvisor(settings, clock)
    done = 0

    def report_progress(answer: CaseAnswer) -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            typer.echo(
                f"\r{done} of {len(cases)}  {answer.case.name:<48}", err=True, nl=done == len(cases)
            )

    try:
        try:
            await advisor.server.models(seconds=min(settings.deadline_seconds, _LIST_SECONDS))
        except AdviceUnavailableError as why:
            first = await put_cases(
                advisor,
                cases[:1],
                clock,
                deadline_seconds=settings.deadline_seconds,
                on_answer=lambda _: None,
            )
            if first and first[0].advice is None:
                complain(f"{why}")
                complain(f"next: {with_options(first[0].fix or why.fix) or _SEE_THE_LOG}")
                fail(first[0].why_none, EXIT_UNREACHABLE)
        return await put_cases(
            advisor,
            cases,
            clock,
            deadline_seconds=settings.deadline_seconds,
            on_answer=report_progress,
        )
    finally:
        await advisor.close()


def _show_score(asked: ScorecardOrigin, answers: Sequence[CaseAnswer], figures: Score) -> None:
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
    table.add_row(
        "time",
        seconds(figures.latency_p50_ms),
        f"half; 95 % within {seconds(figures.latency_p95_ms)}",
    )
    if figures.prompt_tokens is not None:
        table.add_row(
            "tokens", str(figures.prompt_tokens), f"in, {figures.completion_tokens} out, on average"
        )
    console.print(table)
    reasons = {answer.why_none for answer in answers if answer.why_none}
    for reason in sorted(reasons)[:3]:
        console.print(f"no advice: {one_line(reason)}", soft_wrap=True)
    mode, why = figures.suits
    console.print(f"these figures support advisor.mode: {mode} ({why})", soft_wrap=True)
