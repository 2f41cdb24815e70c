"""`rolloutctl simulate`: virtual rollouts of a plan.

The engine is imported on use, because its numpy takes 0.2 s, for which `roll-back` need not wait.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from controller.cli import plan_files
from controller.cli.common import (
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    JsonOption,
    PlanArgument,
    fail,
)
from controller.cli.typed_traffic import (
    ConversionOption,
    ErrorRateOption,
    LatencyOption,
    TrafficOption,
    exit_on_bad_input,
)


def simulate(
    plan: PlanArgument,
    traffic: TrafficOption = None,
    error_rate: ErrorRateOption = None,
    latency: LatencyOption = None,
    conversions: ConversionOption = None,
    effects: Annotated[
        list[str] | None,
        typer.Option(
            "--effect",
            metavar="METRIC=xFACTOR[@WHEN]",
            help="What treatment does worse: errors=x2, latency=x1.3@stage2, tail=x5@25h (the "
            "slowest 5 %), conversion:bought=x0.8. May be repeated.",
            rich_help_panel="Traffic",
        ),
    ] = None,
    runs: Annotated[
        int, typer.Option("--runs", min=1, max=100_000, help="Virtual rollouts per scenario.")
    ] = 200,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="The same seed gives the same figures.")
    ] = 1,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with plots, too.")
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """Try a plan on virtual rollouts: how long it takes, how often it errs, what harm costs.

    Needs no Kafka.

    The daemon's own state machine and tests run in virtual time on drawn events, with a treatment
    as good as control and, given --effect, with one that is not. ops/simulate.md says what is left
    out, and how that changes the figures.
    """
    if html is not None and not html.parent.is_dir():
        fail(f"--html: {html}: there is no directory {html.parent}", EXIT_USAGE)
    from controller.cli.simulation import simulate_plan
    from controller.planning.trial import request_of
    from controller.planning.typed_traffic import TypedTraffic

    document = plan_files.load_to_try(plan)
    typed = TypedTraffic(traffic, error_rate, latency, tuple(conversions or ()))
    with exit_on_bad_input():
        request = request_of(document, typed, effects or (), runs, seed, datetime.now(UTC))
    try:
        simulate_plan(request, is_json=is_json, html=html)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
