"""`rolloutctl advisor`: is the model's server fit, and what is its advice worth.

Needs no Kafka and no daemon. What the commands do is in `advisor_check.py`, which is imported on
use, so that `roll-back` need not wait for an HTTP client and numpy.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from controller.cli.common import (
    EXIT_CONFIG,
    EXIT_REJECTED,
    EXIT_UNREACHABLE,
    ConfigOption,
    JsonOption,
    fail,
)
from controller.errors import BadInput
from controller.scorecard.kinds import CaseKind
from controller.settings import AdvisorSettings, load_settings

app = typer.Typer(
    help="Check whether the model's server is fit, and what its advice is worth.",
    no_args_is_help=True,
)

_MODEL = "Model"
UrlOption = Annotated[
    str | None,
    typer.Option("--url", help="The model's server; beats the settings.", rich_help_panel=_MODEL),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The model as the server calls it; beats the settings.",
        rich_help_panel=_MODEL,
    ),
]
ProtocolOption = Annotated[
    str | None,
    typer.Option(
        "--protocol", help="openai, localai or ollama; beats the settings.", rich_help_panel=_MODEL
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file", help="File with the key; beats the settings.", rich_help_panel=_MODEL
    ),
]
DeadlineOption = Annotated[
    float | None,
    typer.Option(
        "--deadline",
        min=0.1,
        max=3600,
        help="Seconds per question; beats the settings.",
        rich_help_panel=_MODEL,
    ),
]


def advisor_settings(
    config: Path | None,
    url: str | None,
    model: str | None,
    protocol: str | None,
    key_file: Path | None,
    deadline_seconds: float | None,
) -> AdvisorSettings:
    """Return how to reach the model: the daemon's settings, overlaid by the options.

    Exits 78 when they cannot be used.
    """
    environ, given = dict(os.environ), {}
    for name, option, value in (
        ("URL", "--url", url),
        ("MODEL", "--model", model),
        ("PROTOCOL", "--protocol", protocol),
        ("API_KEY_FILE", "--api-key-file", key_file),
        ("DEADLINE_SECONDS", "--deadline", deadline_seconds),
    ):
        if value is not None:
            environ[f"ROLLOUTD_ADVISOR__{name}"] = str(value)
            given[f"ROLLOUTD_ADVISOR__{name}"] = option
    if key_file is not None:
        environ.pop("ROLLOUTD_ADVISOR__API_KEY", None)
    try:
        return load_settings(config, environ, given).advisor
    except BadInput as refused:
        fail(f"{refused}", EXIT_CONFIG)


def patient(settings: AdvisorSettings) -> AdvisorSettings:
    """Return settings without a breaker and a daily limit.

    Every question is put, however the ones before it ended. Exits 78 without a model.
    """
    if settings.url is None:
        fail("no model is configured: give --url, or set advisor.url", EXIT_CONFIG)
    return settings.model_copy(
        update={
            "breaker_failures": 1_000_000,
            "questions_per_day": 1_000_000,
            "breaker_seconds": 0.0,
        }
    )


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
    """Check whether the server is reachable, has the model, and how fast and correct it answers.

    Exits 1 if the model is unfit, 4 if the server is not reached.
    """
    from controller.cli import advisor_check

    settings = patient(advisor_settings(config, url, model, protocol, key_file, deadline))
    result = advisor_check.check(settings, is_json=is_json)
    if not result.is_reachable:
        raise typer.Exit(EXIT_UNREACHABLE)
    if not result.is_fit:
        raise typer.Exit(EXIT_REJECTED)


@app.command("eval")
def evaluate(
    is_json: JsonOption = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the report to this file.")
    ] = None,
    kinds: Annotated[
        list[CaseKind] | None,
        typer.Option("--kind", help="Only cases of this kind; may be repeated."),
    ] = None,
    url: UrlOption = None,
    model: ModelOption = None,
    protocol: ProtocolOption = None,
    key_file: KeyFileOption = None,
    deadline: DeadlineOption = None,
    config: ConfigOption = None,
) -> None:
    """Put the packaged gate cases to a model and score its advice.

    Exits 1 when it gave none, 4 when it was not reached.
    """
    from controller.cli import advisor_check

    settings = patient(advisor_settings(config, url, model, protocol, key_file, deadline))
    if (
        advisor_check.evaluate(
            settings, kinds or tuple(CaseKind), html, is_json=is_json
        ).in_form.count
        == 0
    ):
        raise typer.Exit(EXIT_REJECTED)
