"""What `rolloutctl simulate` does: virtual rollouts of a plan, as text, JSON or a page."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from controller.cli import rendering
from controller.cli.common import EXIT_USAGE, fail, output
from controller.cli.situation import about
from controller.core.plan import Plan
from controller.planning.figures import Part, Scenario, Spread, simulate
from controller.planning.page import page
from controller.planning.virtual_traffic import Effect, VirtualTraffic


@dataclass(frozen=True, slots=True)
class SimulationRequest:
    """What to simulate."""

    plan: Plan
    traffic: VirtualTraffic  # without effects
    assumed: tuple[str, ...]
    effects: tuple[Effect, ...]
    runs: int
    seed: int
    starts_at: datetime


def simulate_plan(request: SimulationRequest, *, is_json: bool, html: Path | None) -> None:
    """Run the plan with a treatment as good as control, and again with the effects; report both."""
    traffics = [request.traffic]
    if request.effects:
        traffics.append(replace(request.traffic, effects=request.effects))
    scenarios = [
        simulate(
            request.plan,
            traffic,
            request.runs,
            request.seed,
            request.starts_at,
            _progress(traffic, request.runs, is_json=is_json),
        )
        for traffic in traffics
    ]
    if html is not None:
        try:
            html.write_text(
                page(request.plan, scenarios, request.assumed, request.seed, request.starts_at),
                encoding="utf-8",
            )
        except OSError as error:
            fail(f"--html: {html}: cannot be written: {error}", EXIT_USAGE)
    if is_json:
        typer.echo(rendering.to_json(_document(request, scenarios)))
        return
    console = output()
    _show_traffic(console, request)
    for scenario in scenarios:
        console.print()
        show_scenario(console, scenario)
    if html is not None:
        console.print(f"\nwritten: {html}")


def _progress(traffic: VirtualTraffic, runs: int, *, is_json: bool) -> Any:
    """Return what shows the progress, on a terminal only."""
    if is_json or not sys.stderr.isatty():
        return lambda _: None
    name = "with effects" if traffic.effects else "healthy"

    def show(done: int) -> None:
        end = "\r" if done < runs else "\r" + 40 * " " + "\r"
        typer.echo(f"{name}: {done} of {runs}{end}", err=True, nl=False)

    return show


# --- text


def _show_traffic(console: Console, request: SimulationRequest) -> None:
    plan, traffic = request.plan, request.traffic
    console.print(
        Text(f"{plan.name} of {plan.flag_key}", "bold"),
        f": {request.runs} virtual rollouts each, seed {request.seed}",
        sep="",
    )
    console.print(f"control: {traffic.words(plan)}")
    if request.assumed:
        console.print(Text(f"assumed, since nobody said: {', '.join(request.assumed)}", "yellow"))
    console.print(
        "advice says proceed and people approve at once; every request is a context of its own"
    )


def show_scenario(console: Console, scenario: Scenario) -> None:
    """Show what the runs with one virtual traffic came to."""
    effects = ", ".join(str(effect) for effect in scenario.traffic.effects)
    console.print(Text(f"with {effects}" if effects else "treatment as good as control", "bold"))
    rows = Table(box=None, show_header=False, padding=(0, 2, 0, 0), show_edge=False)
    for name, value in _rows(scenario):
        rows.add_row(name, value)
    console.print(rows)
    console.print(_stage_table(scenario))


def _rows(scenario: Scenario) -> list[tuple[str, str]]:
    rows = [("promoted", part_words(scenario.promoted))]
    if scenario.traffic.effects:
        rows.append(("harm found", part_words(scenario.found)))
        rows.append(("harm missed", f"{part_words(scenario.missed)}: promoted with it"))
        if (seconds := scenario.seconds_to_find) is not None:
            rows.append(("found after", duration_words(seconds)))
        if (contexts := scenario.harmed_contexts) is not None:
            rows.append(
                (
                    "contexts harmed",
                    f"{number_words(contexts)}: exposed from its begin to the roll back",
                )
            )
        if (failures := scenario.extra_failures) is not None:
            rows.append(("failures more", f"{number_words(failures)}: beyond control's rate"))
        if scenario.finders:
            rows.append(
                (
                    "found by",
                    ", ".join(
                        f"{metric} {count}" for metric, count in scenario.finders.most_common()
                    ),
                )
            )
    rows.append(("false alarm", part_words(scenario.false_alarm)))
    lacking = sum((stage.lacking for stage in scenario.stages), Counter[str]())
    waited = (
        f", waiting for {', '.join(name for name, _ in lacking.most_common(3))}" if lacking else ""
    )
    rows.append(("undecided", f"{part_words(scenario.undecided)}: paused at max_bake{waited}"))
    if scenario.otherwise.count:
        reasons = sorted(
            {run.reason for run in scenario.runs if run.ended in ("paused", "given_up")}
        )
        rows.append(("otherwise", f"{part_words(scenario.otherwise)}: {', '.join(reasons)}"))
    if (seconds := scenario.seconds_to_complete) is not None:
        rows.append(("through after", duration_words(seconds)))
    return rows


def part_words(part: Part) -> str:
    """Return `3 of 200, 1.5 % (0.5 to 4.3 %)`."""
    low, high = part.interval
    return (
        f"{part.count} of {part.of}, {100 * part.share:.3g} % ({100 * low:.2g} to "
        f"{100 * high:.3g} %)"
    )


def duration_words(seconds: Spread) -> str:
    """Return a median and 90 % quantile of seconds."""
    return (
        f"{about(timedelta(seconds=seconds.median))} median, "
        f"{about(timedelta(seconds=seconds.p90))} p90"
    )


def number_words(numbers: Spread) -> str:
    """Return a median and 90 % quantile of counts."""
    return f"{numbers.median:,.0f} median, {numbers.p90:,.0f} p90"


def _stage_table(scenario: Scenario) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for name in ("STAGE", "SERVED", "PLANNED", "MEDIAN", "P90", "PASSED", "UNDECIDED", "CONTEXTS"):
        table.add_column(name, justify="right")
    for index, stage in enumerate(scenario.stages):
        seconds = stage.seconds
        table.add_row(
            f"{index + 1}/{len(scenario.stages)}",
            f"{stage.percent:g} %",
            about(stage.planned),
            "–" if seconds is None else about(timedelta(seconds=seconds.median)),
            "–" if seconds is None else about(timedelta(seconds=seconds.p90)),
            str(stage.passed),
            str(stage.undecided),
            "–" if stage.contexts is None else f"{stage.contexts.median:,.0f}",
        )
    return table


# --- JSON


def _document(request: SimulationRequest, scenarios: Sequence[Scenario]) -> dict[str, Any]:
    return {
        "plan": request.plan.name,
        "version": request.plan.version,
        "flag": request.plan.flag_key,
        "runs": request.runs,
        "seed": request.seed,
        "starts_at": request.starts_at.isoformat(),
        "control": request.traffic.document(),
        "assumed": list(request.assumed),
        "scenarios": [_scenario_document(scenario) for scenario in scenarios],
    }


def _scenario_document(scenario: Scenario) -> dict[str, Any]:
    return {
        "effects": [str(effect) for effect in scenario.traffic.effects],
        "promoted": _part(scenario.promoted),
        "false_alarm": _part(scenario.false_alarm),
        "harm_found": _part(scenario.found),
        "harm_missed": _part(scenario.missed),
        "undecided": _part(scenario.undecided),
        "otherwise": _part(scenario.otherwise),
        "seconds_to_complete": _spread(scenario.seconds_to_complete),
        "seconds_to_find": _spread(scenario.seconds_to_find),
        "harmed_contexts": _spread(scenario.harmed_contexts),
        "extra_failures": _spread(scenario.extra_failures),
        "found_by": dict(scenario.finders),
        "stages": [
            {
                "percent": stage.percent,
                "planned_seconds": stage.planned.total_seconds(),
                "seconds": _spread(stage.seconds),
                "passed": stage.passed,
                "undecided": stage.undecided,
                "undecided_for": dict(stage.lacking),
                "treatment_contexts": _spread(stage.contexts),
            }
            for stage in scenario.stages
        ],
    }


def _part(part: Part) -> dict[str, float]:
    low, high = part.interval
    return {"count": part.count, "total": part.of, "share": part.share, "low": low, "high": high}


def _spread(values: Spread | None) -> dict[str, float] | None:
    return None if values is None else {"median": values.median, "p90": values.p90}
