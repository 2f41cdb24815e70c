"""`rolloutctl plan`: check a plan, show the templates; and reading the plan of other commands.

Needs no Kafka.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Final

import typer

from controller.cli import rendering
from controller.cli.common import (
    EXIT_REJECTED,
    EXIT_USAGE,
    ConfigOption,
    JsonOption,
    check_flag,
    complain,
    fail,
    output,
    settings_at_hand,
    warn_by_settings,
)
from controller.cli.typed_traffic import (
    ConversionOption,
    ErrorRateOption,
    LatencyOption,
    TrafficOption,
)
from controller.errors import ConfigInvalid
from controller.plans import MAX_BYTES, Finding, lint_text, template, template_text, templates
from controller.plans.finding import nearest_word
from schemas.plan import PlanDocument

app = typer.Typer(
    help="Check a plan before it is started, and show templates.", no_args_is_help=True
)

#: Files of a directory that are compared with a mistyped name.
_MOST_FILES: Final = 1000
_MOST_SHOWN: Final = 5
_PLAN_SUFFIXES: Final = (".yaml", ".yml", ".json")

FileArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="The plan, YAML or JSON; - for standard input.")
]


@app.command()
def lint(
    file: FileArgument,
    traffic: TrafficOption = None,
    error_rate: ErrorRateOption = None,
    latency: LatencyOption = None,
    conversions: ConversionOption = None,
    is_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Report everything wrong or doubtful about a plan, with its line and how to fix it.

    Exits 1 on an error. Where traffic is stated, by --traffic or in the plan, a few virtual
    rollouts show whether it is enough for every gate, and how long each stage takes. With --config,
    the rules of that daemon for a start hold too, but for the limits on the number of flags.
    """
    from controller.cli.lint_report import Tryout, alpha_budget, alpha_lines
    from controller.planning.typed_traffic import TypedTraffic
    from controller.reporting.start_rules import start_findings

    settings = settings_at_hand(config)

    def by_settings(document: PlanDocument) -> Iterable[Finding]:
        return () if settings is None else start_findings(document, (), settings.flags)

    source, text = _read(file, takes_templates=False)
    typed = TypedTraffic(traffic, error_rate, latency, tuple(conversions or ()))
    tried = Tryout(typed, datetime.now(UTC))
    document, findings = lint_text(text, datetime.now(UTC), tried, by_settings)
    is_usable = document is not None and not any(finding.is_error for finding in findings)
    if is_json:
        listed = [rendering.finding_document(finding, source) for finding in findings]
        answer = {"file": source, "is_usable": is_usable, "findings": listed}
        if is_usable and document is not None:
            answer |= {"alpha": alpha_budget(document), "simulation": tried.document()}
        typer.echo(rendering.to_json(answer))
    else:
        console = output()
        for finding in findings:
            rendering.show_line(console, rendering.finding_line(finding, source))
        typer.echo(
            f"{source}: {'the plan can be started' if is_usable else 'the plan would be refused'}"
        )
        if is_usable and document is not None:
            for line in (*alpha_lines(document), *tried.lines()):
                typer.echo(line)
    if not is_usable or document is None:
        raise typer.Exit(EXIT_REJECTED)
    warn_by_settings(document, config)


@app.command("templates")
def show_templates(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The template to print as YAML.")
    ] = None,
    flag: Annotated[str, typer.Option("--flag", help="The flag to write into it.")] = "my-flag",
    conversion: Annotated[
        str | None,
        typer.Option("--conversion", help="The business metric, as your apps report it."),
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """List the plan templates, or print one: `rolloutctl plan templates canary > plan.yaml`."""
    if name is None:
        descriptions = templates()
        if is_json:
            listed = [
                {"name": key, "description": description}
                for key, description in descriptions.items()
            ]
            typer.echo(rendering.to_json({"templates": listed}))
        else:
            output().print(rendering.templates_table(descriptions))
        return
    check_flag(flag)
    try:
        if is_json:
            typer.echo(rendering.to_json(template(name, flag, conversion).model_dump(mode="json")))
        else:
            typer.echo(template_text(name, flag, conversion), nl=False)
    except ConfigInvalid as refused:
        fail(f"{refused}", EXIT_USAGE)


def load(source: str, flag: str | None, *, is_running: bool = False) -> PlanDocument:
    """Return the plan of `start`: from a file, `-`, or a template by name.

    `is_running`: it is for a running rollout, so its dates are not compared with now.
    Findings go to standard error. Exits 1 when the plan has errors, 2 when there is no such plan.
    """
    if flag is not None:
        check_flag(flag)
    if source != "-" and not Path(source).exists() and source in templates():
        if flag is None:
            fail(f"{source} is a template: say which flag with --flag", EXIT_USAGE)
        return _checked(f"template {source}", template_text(source, flag))
    document = _checked(*_read(source), is_running=is_running)
    return document if flag is None else document.model_copy(update={"flag": flag})


def load_for(flag: str, source: str) -> PlanDocument:
    """Return the plan with which the rollout of this flag begins again.

    A file names its own flag: that of another flag has other variants and guardrails. Exits as
    `load` does, and 2 for the plan of another flag.
    """
    check_flag(flag)
    is_template = source != "-" and not Path(source).exists() and source in templates()
    document = load(source, flag if is_template else None)
    if document.flag != flag:
        fail(
            f"{source} is a plan of the flag {document.flag}, and this is for {flag}; nothing was "
            "sent",
            EXIT_USAGE,
        )
    return document


def load_to_try(source: str) -> PlanDocument:
    """Return a plan to try out: from a file, `-`, or a template by name, which needs no flag here.

    Exits 1 when the plan has errors, 2 when there is no such plan.
    """
    if source != "-" and not Path(source).exists() and source in templates():
        return template(source, "my-flag")
    return _checked(*_read(source), refusal="the plan would be refused: fix it first")


def _checked(
    source: str,
    text: str,
    refusal: str = "the plan would be refused: nothing was sent",
    *,
    is_running: bool = False,
) -> PlanDocument:
    document, findings = lint_text(text, None if is_running else datetime.now(UTC))
    for finding in findings:
        complain(finding.located(source))
    if document is None or any(finding.is_error for finding in findings):
        fail(refusal, EXIT_REJECTED)
    return document


def _plans_beside(path: Path) -> list[str]:
    """Return the paths of the files beside this one that may be plans, as they would be typed."""
    try:
        names = [one.name for one in islice(path.parent.iterdir(), _MOST_FILES)]
    except OSError:
        return []
    return [str(path.with_name(name)) for name in names if Path(name).suffix in _PLAN_SUFFIXES]


def _read(source: str, *, takes_templates: bool = True) -> tuple[str, str]:
    """Return a plan's name for messages, and its text. Exits 2 when it cannot be read.

    `takes_templates`: whether the caller would have taken a template's name, too.
    """
    try:
        if source == "-":
            return "standard input", sys.stdin.read(MAX_BYTES + 1)
        with Path(source).open(encoding="utf-8") as file:
            return source, file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        if not takes_templates and source in templates():
            fail(
                f"{source} is a template, and what is checked is a file: "
                f"`rolloutctl plan templates {source} > plan.yaml` makes one",
                EXIT_USAGE,
            )
        names = templates() if takes_templates else ()
        near = nearest_word(source, [*names, *_plans_beside(Path(source))])
        hint = "" if near is None else f"; did you mean {near}?"
        nor_template = ", and no template of that name" if names else ""
        listed = f"\ntemplates: {', '.join(names)}" if names else ""
        fail(f"{source}: there is no such file{nor_template}{hint}{listed}", EXIT_USAGE)
    except IsADirectoryError:
        plans = ", ".join(sorted(_plans_beside(Path(source, "plan")))[:_MOST_SHOWN])
        fail(f"{source}: is a directory; name a plan{plans and f': {plans}'}", EXIT_USAGE)
    except UnicodeDecodeError as error:
        fail(f"{source}: is no text in UTF-8 (byte {error.start + 1}), so no plan", EXIT_USAGE)
    except OSError as error:
        fail(f"{source}: cannot be read: {error.strerror}", EXIT_USAGE)
