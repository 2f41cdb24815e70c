"""Commands that write drafts: `suggest plan`, `suggest targeting`, `explain`, `changelog`.

None of them changes anything. Each also works without a model, from a template, and names the
author. The drafting itself is in `controller/authoring`, which is imported on use.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.table import Table
from rich.text import Text

from controller.cli import event_view, rendering
from controller.cli.advisor import (
    KeyFileOption,
    ModelOption,
    ProtocolOption,
    UrlOption,
    advisor_settings,
    patient,
)
from controller.cli.common import (
    EXIT_REJECTED,
    EXIT_USAGE,
    AnyFlagArgument,
    ConfigOption,
    DaemonOption,
    FlagArgument,
    JsonOption,
    KafkaOptions,
    check_flag,
    complain,
    fail,
    output,
    perform,
)
from controller.cli.operator_client import as_decision
from controller.cli.status import find_known, find_rollout, newest_of
from controller.core.rollout import Rollout
from controller.errors import ConfigInvalid, EventLogUnavailable
from controller.settings import AdvisorSettings, KafkaSettings
from controller.text import file_trouble, one_line, plural
from schemas.decision import Decision
from schemas.fields import parse_duration
from schemas.terms import NAME

if TYPE_CHECKING:
    from rich.console import Console

    from controller.authoring.drafting import Draft, Model
    from controller.authoring.story import EarlierRollout
    from controller.authoring.targeting import Segments, Suggestion

T = TypeVar("T")

app = typer.Typer(
    help="Draft a plan or targeting rules; a person decides what becomes of them.",
    no_args_is_help=True,
)

NoModelOption = Annotated[
    bool,
    typer.Option(
        "--no-model",
        help="Use the built-in template, whatever is configured.",
        rich_help_panel="Model",
    ),
]
DescribeOption = Annotated[
    str,
    typer.Option(
        "--describe", "-d", help="What the change is, in your own words.", show_default=False
    ),
]

#: Decisions of one flag, or of all, that an explanation or a changelog is made from.
_MOST_DECISIONS = 5_000
_MOST_SHOWN_SAMPLES = 50
_MOST_EARLIER_SHOWN = 5
RISKS = ("low", "medium", "high")
_CHECK_NEGATION = (
    "the description rules something out, and the template reads single words only: check that "
    "nobody matches who must not"
)


def _settings(
    config: Path | None,
    url: str | None,
    model: str | None,
    protocol: str | None,
    key_file: Path | None,
    *,
    no_model: bool,
) -> AdvisorSettings | None:
    """Return the model that drafts, None for the template."""
    if no_model:
        return None
    settings = advisor_settings(config, url, model, protocol, key_file, None)
    return None if settings.url is None else patient(settings)


async def _with_model(
    settings: AdvisorSettings | None, work: Callable[[Model | None], Awaitable[T]]
) -> T:
    """Return what `work` makes with a model, or without one."""
    if settings is None:
        return await work(None)
    from controller.adapters.llm.advisor import ModelAdvisor
    from controller.authoring.drafting import Model
    from controller.clock import SystemClock

    advisor = ModelAdvisor(settings, SystemClock())
    try:
        return await work(Model(advisor.server, settings.model, settings.deadline_seconds))
    finally:
        await advisor.close()


@app.command("plan")
def suggest_plan(
    flag: Annotated[str, typer.Option("--flag", help="The flag's key.", show_default=False)],
    description: DescribeOption,
    risk: Annotated[
        str,
        typer.Option("--risk", help="low, medium or high: how bad a faulty change would be."),
    ] = "medium",
    owner: Annotated[
        str, typer.Option("--owner", help="Who decides when the rollout needs a person.")
    ] = "",
    is_json: JsonOption = False,
    no_model: NoModelOption = False,
    url: UrlOption = None,
    model: ModelOption = None,
    protocol: ProtocolOption = None,
    key_file: KeyFileOption = None,
    config: ConfigOption = None,
) -> None:
    """Draft a plan that passes `plan lint`, within bounds that the risk sets.

    `suggest plan ... > plan.yaml`.
    """
    from controller.authoring.plan_draft import Risk, draft_plan

    check_flag(flag)
    if risk not in RISKS:
        fail(f"--risk is one of {', '.join(RISKS)}", EXIT_USAGE)
    settings = _settings(config, url, model, protocol, key_file, no_model=no_model)
    now = datetime.now(UTC)
    try:
        made = perform(
            _with_model(
                settings,
                lambda model: draft_plan(
                    model, flag=flag, risk=Risk(risk), description=description, owner=owner, now=now
                ),
            )
        )
    except ValueError as refused:
        fail(f"{refused}", EXIT_USAGE)
    if is_json:
        typer.echo(
            rendering.to_json({"author": made.author, "origin": made.origin, "plan": made.content})
        )
        return
    complain(made.origin)
    typer.echo(f"# Draft, {one_line(made.origin)}")
    typer.echo(made.content, nl=False)


@app.command("targeting")
def suggest_targeting(
    description: DescribeOption,
    segments: Annotated[
        Path,
        typer.Option(
            "--segments", help="File with attributes and sample users.", show_default=False
        ),
    ],
    treatment: Annotated[
        str, typer.Option("--treatment", help="The variant of users that match.")
    ] = "on",
    control: Annotated[str, typer.Option("--control", help="The variant of all others.")] = "off",
    name: Annotated[
        str, typer.Option("--name", help="What the audience is called in a plan.")
    ] = "suggested",
    is_json: JsonOption = False,
    no_model: NoModelOption = False,
    url: UrlOption = None,
    model: ModelOption = None,
    protocol: ProtocolOption = None,
    key_file: KeyFileOption = None,
    config: ConfigOption = None,
) -> None:
    """Draft an audience for plans, flagd and Unleash, and show which sample users belong to it."""
    from controller.authoring.targeting import draft_audience

    if NAME.match(name) is None:
        fail(
            f"--name {name!r} is not a name: up to 128 of A-Z a-z 0-9 . _ : -, beginning with "
            f"a letter or digit",
            EXIT_USAGE,
        )
    users = _read_segments(segments)
    settings = _settings(config, url, model, protocol, key_file, no_model=no_model)
    made = perform(
        _with_model(settings, lambda model: draft_audience(model, description, users, name))
    )
    drafted = made.content
    met = [drafted.includes(sample) for sample in users.samples]
    written = {"flagd": drafted.to_flagd(treatment, control), "unleash": drafted.unleash}
    if is_json:
        document = {
            "author": made.author,
            "origin": made.origin,
            "audiences": drafted.block,
            **written,
            "samples": [
                {"user": sample, "matches": hit}
                for sample, hit in zip(users.samples, met, strict=True)
            ],
        }
        typer.echo(rendering.to_json(document))
        return
    complain(made.origin)
    _warn_of_conditions(made, description)
    typer.echo(drafted.to_yaml(), nl=False)
    for plane, rules in written.items():
        typer.echo(f"{plane}: {json.dumps(rules, ensure_ascii=True)}")
    output().print(_sample_table(users, drafted, met))
    typer.echo(f"{sum(met)} of {plural(len(met), 'sample user')} match")


def _warn_of_conditions(made: Draft[Suggestion], description: str) -> None:
    """Warn of an audience of everybody, and of a template that may have missed a negation."""
    from controller.authoring.targeting import has_negation

    if made.content.audience is None:
        complain("no condition was drawn from the description: everybody would match")
    if made.author == "template" and has_negation(description):
        complain(_CHECK_NEGATION)


def _read_segments(path: Path) -> Segments:
    """Return the attributes and sample users of a file. Exits 2 when they cannot be used."""
    from controller.authoring.targeting import read_segments

    try:
        return read_segments(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path}: cannot be read: {file_trouble(error)}", EXIT_USAGE)
    except ConfigInvalid as refused:
        fail(f"{refused}", EXIT_USAGE)


def _sample_table(users: Segments, drafted: Suggestion, met: Sequence[bool]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    table.add_column("MATCHES", no_wrap=True)
    clauses = () if drafted.audience is None else drafted.audience.any_of
    used = {condition.attribute for clause in clauses for condition in clause}
    names = list(dict.fromkeys(key for sample in users.samples for key in sample))
    for name in names:
        table.add_column(f"{one_line(name)}{' *' if name in used else ''}", overflow="fold")
    for sample, hit in list(zip(users.samples, met, strict=True))[:_MOST_SHOWN_SAMPLES]:
        values = [one_line(str(sample[name])) if name in sample else "–" for name in names]
        table.add_row("yes" if hit else "no", *values, style="" if hit else "dim")
    return table


def explain(
    flag: FlagArgument,
    is_json: JsonOption = False,
    no_model: NoModelOption = False,
    url: UrlOption = None,
    model: ModelOption = None,
    protocol: ProtocolOption = None,
    key_file: KeyFileOption = None,
    daemon: DaemonOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """Explain what happened to a rollout, on what evidence, the likely cause and next steps.

    While Kafka is away, --daemon is asked.
    """
    from controller.authoring.story import explain_rollout

    kafka = connection.settings()
    settings = _settings(connection.config, url, model, protocol, key_file, no_model=no_model)

    rollout, decisions = perform(_story_of(kafka, check_flag(flag), daemon))
    explanation = perform(
        _with_model(settings, lambda model: explain_rollout(model, rollout, decisions))
    )
    guess = explanation.guess
    if is_json:
        document = {
            "flag": flag,
            "rollout_id": rollout.rollout_id,
            "author": guess.author,
            "origin": guess.origin,
            "subject": None
            if explanation.subject is None
            else explanation.subject.model_dump(mode="json"),
            "likely_cause": guess.content.likely_cause,
            "next_steps": guess.content.next_steps,
            "decisions": [
                one.model_dump(mode="json", exclude={"judgement", "advice"})
                for one in explanation.decisions
            ],
            "earlier_rollouts": [one.document() for one in explanation.earlier],
        }
        typer.echo(rendering.to_json(document))
        return
    console, now = output(), datetime.now(UTC)
    console.print(f"{flag}: what happened", style="bold")
    for one in explanation.decisions:
        if one is not explanation.subject:
            rendering.show_line(console, event_view.decision_line(one, now, with_flag=False))
        else:
            event_view.show_decision(console, one, now)
    if not explanation.decisions:
        console.print("nothing was decided about this rollout yet")
    _show_earlier(console, flag, explanation.earlier, now)
    # Without a model it is no guess: what the records show, and that they show no more.
    title = "Cause, as far as the records show it" if guess.author == "template" else "Likely cause"
    console.print(f"\n{title}", style="bold")
    rendering.show_line(console, rendering.plain(guess.content.likely_cause))
    console.print("\nNext steps", style="bold")
    for step in guess.content.next_steps:
        rendering.show_line(console, rendering.plain(f"- {step}"))
    console.print()
    rendering.show_line(console, rendering.plain(f"Cause and steps: {guess.origin}"))


def _show_earlier(
    console: Console, flag: str, earlier: Sequence[EarlierRollout], now: datetime
) -> None:
    """Show the flag's rollouts before this one: what became of each."""
    if not earlier:
        return
    console.print("\nEarlier rollouts of this flag", style="bold")
    shown = earlier[-_MOST_EARLIER_SHOWN:]
    if len(shown) < len(earlier):
        console.print(f"{len(earlier) - len(shown)} before these")
    for one in shown:
        line = event_view.decision_line(one.last, now, with_flag=False)
        rendering.show_line(console, line, hang=14)
    words = f"all their decisions: rolloutctl changelog {flag}, or rolloutctl decisions {flag}"
    rendering.show_line(console, Text(f"{words} --last 100", "dim"))


def changelog(
    flag: AnyFlagArgument = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            help="A date, a time (2026-11-21T03:00:00Z) or an age (7d).",
            show_default=False,
        ),
    ] = None,
    is_json: JsonOption = False,
    no_model: NoModelOption = False,
    url: UrlOption = None,
    model: ModelOption = None,
    protocol: ProtocolOption = None,
    key_file: KeyFileOption = None,
    *,
    connection: KafkaOptions,
) -> None:
    """Write Markdown from the audit log: what was started, advanced, completed and rolled back."""
    from controller.authoring.story import changelog as write_changelog
    from controller.authoring.story import since as decisions_since

    if flag is None and since is None:
        fail("changelog: name a flag, or say --since", EXIT_USAGE)
    begin = datetime.min.replace(tzinfo=UTC) if since is None else _moment(since, datetime.now(UTC))
    kafka = connection.settings()
    settings = _settings(connection.config, url, model, protocol, key_file, no_model=no_model)
    flag_key = None if flag is None else check_flag(flag)
    title = "Rollouts" if flag_key is None else f"Rollouts of {flag_key}"
    title += "" if since is None else f" since {begin:%Y-%m-%d %H:%M} UTC"

    decisions = decisions_since(perform(_decisions(kafka, flag_key)), begin)
    made = perform(_with_model(settings, lambda model: write_changelog(model, decisions, title)))
    if is_json:
        typer.echo(
            rendering.to_json(
                {"author": made.author, "origin": made.origin, "markdown": made.content}
            )
        )
        return
    complain(made.origin)
    typer.echo(made.content.rstrip())
    if not decisions:
        raise typer.Exit(EXIT_REJECTED)


def _moment(text: str, now: datetime) -> datetime:
    """Return when a changelog begins. Exits 2 for a text that is not a time."""
    try:
        return now - parse_duration(text)
    except ValueError:
        pass  # not an age; a date is tried next
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        fail(
            f"--since {text!r} is not a date, time or age: write 2026-11-21, "
            f"2026-11-21T03:00:00Z or 7d",
            EXIT_USAGE,
        )
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


async def _story_of(
    kafka: KafkaSettings, flag: str, daemon: str | None
) -> tuple[Rollout, Sequence[Decision]]:
    try:
        situation, _ = await find_rollout(kafka, flag)
        return situation.rollout, await _decisions(kafka, flag)
    except EventLogUnavailable as trouble:
        situation, _ = await find_known(daemon, trouble, flag)
        return situation.rollout, situation.decisions


async def _decisions(kafka: KafkaSettings, flag: str | None) -> list[Decision]:
    """Return the newest decisions of a flag, or of all, oldest first.

    Exits 1 for a flag that never had a rollout.
    """
    events = await newest_of(kafka, "decisions", _MOST_DECISIONS, flag)
    return [one for one in map(as_decision, events) if one is not None]
