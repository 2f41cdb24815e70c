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
    begin_words,
    begins_at,
    effects_of,
    virtual_traffic_of,
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
    from controller.cli.simulation import SimulationRequest, simulate_plan
    from controller.codec.plans import to_core_plan

    document = plan_files.load_to_try(plan)
    core = to_core_plan(document)
    virtual = virtual_traffic_of(core, document.traffic, traffic, error_rate, latency, conversions)
    if virtual is None:
        fail(
            "say how much traffic there is, as in --traffic 50/s, or `traffic:` in the "
            "plan (contexts per hour)",
            EXIT_USAGE,
        )
    try:
        starts_at = begins_at(core, datetime.now(UTC))
        request = SimulationRequest(
            core,
            *virtual,
            effects_of(effects or (), core),
            runs,
            seed,
            starts_at,
            begin_words(core, starts_at),
        )
        simulate_plan(request, is_json=is_json, html=html)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
