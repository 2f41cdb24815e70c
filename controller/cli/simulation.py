"""Carries out `rolloutctl simulate`: virtual rollouts of a plan, as text, JSON or a page."""

from __future__ import annotations

import sys
import time
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
from controller.cli.common import EXIT_USAGE, complain, fail, output
from controller.core.plan import Plan
from controller.planning.figures import Part, Scenario, Spread, lacking_words, simulate
from controller.planning.page import page
from controller.planning.virtual_traffic import Effect, VirtualTraffic
from controller.reporting.situation import about

PROGRESS_EVERY_SECONDS = 10.0


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
    begin: str  # the same in words, with the windows that hold


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
    """Return what shows the progress: in place on a terminal, every ten seconds elsewhere."""
    if is_json:
        return lambda _: None
    name = "with effects" if traffic.effects else "healthy"
    if not sys.stderr.isatty():
        return _SlowProgress(name, runs)

    def show(done: int) -> None:
        end = "\r" if done < runs else "\r" + 40 * " " + "\r"
        typer.echo(f"{name}: {done} of {runs}{end}", err=True, nl=False)

    return show


class _SlowProgress:
    """Tells every ten seconds how far it is, so that nobody takes a long simulation for stuck."""

    def __init__(self, name: str, runs: int) -> None:
        self._name, self._runs = name, runs
        self._told_at = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._told_at >= PROGRESS_EVERY_SECONDS and done < self._runs:
            self._told_at = now
            complain(f"{self._name}: {done} of {self._runs} rollouts simulated")


# --- text


def _show_traffic(console: Console, request: SimulationRequest) -> None:
    plan, traffic = request.plan, request.traffic
    console.print(
        Text(f"{plan.name} of {plan.flag_key}", "bold"),
        f": {request.runs} virtual rollouts each, seed {request.seed}",
        sep="",
    )
    console.print(f"control: {traffic.words(plan)}")
    console.print(f"rollouts {request.begin}")
    if request.assumed:
        console.print(Text(f"assumed, because not stated: {', '.join(request.assumed)}", "yellow"))
    console.print(
        "also assumed: a model, if asked, advises to proceed; people approve at once; each request "
        "has a context of its own"
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
    rows = [("completed", part_words(scenario.promoted))]
    if scenario.traffic.effects:
        rows.append(("harm found", part_words(scenario.found)))
        rows.append(("harm missed", f"{part_words(scenario.missed)}: completed in spite of it"))
        if (seconds := scenario.seconds_to_find) is not None:
            rows.append(("found after", duration_words(seconds)))
        if (contexts := scenario.harmed_contexts) is not None:
            words = (
                f"{number_words(contexts)}: in treatment from the start of the harm to the rollback"
            )
            rows.append(("contexts exposed", words))
        if (failures := scenario.extra_failures) is not None:
            words = f"{number_words(failures)}: more than at control's rate"
            rows.append(("excess failures", words))
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
    waited = f", because {lacking_words(lacking)}" if lacking else ""
    rows.append(("undecided", f"{part_words(scenario.undecided)}: paused at max_bake{waited}"))
    if scenario.otherwise.count:
        reasons = sorted(
            {run.reason for run in scenario.runs if run.ended in ("paused", "given_up")}
        )
        rows.append(("other endings", f"{part_words(scenario.otherwise)}: {', '.join(reasons)}"))
    if (seconds := scenario.seconds_to_complete) is not None:
        rows.append(("completed after", duration_words(seconds)))
    return rows


def part_words(part: Part) -> str:
    """Return `3 of 200, 1.5 % (0.5 to 4.3 %)`."""
    low, high = part.interval
    return (
        f"{part.count} of {part.of}, {100 * part.share:.3g} % ({100 * low:.3g} to "
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
    # What is planned is open time. With active windows, its median is beside that of all time.
    has_windows = any(stage.open_seconds != stage.seconds for stage in scenario.stages)
    open_ = ("OPEN",) if has_windows else ()
    names = ("STAGE", "SERVED", "PLANNED", *open_, "MEDIAN", "P90", "PASSED", "UNDECIDED")
    for name in (*names, "CONTEXTS"):
        table.add_column(name, justify="right")
    for index, stage in enumerate(scenario.stages):
        seconds, in_windows = stage.seconds, stage.open_seconds
        median = "–" if in_windows is None else about(timedelta(seconds=in_windows.median))
        table.add_row(
            f"{index + 1}/{len(scenario.stages)}",
            f"{stage.percent:g} %",
            about(stage.planned),
            *((median,) if has_windows else ()),
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
                "open_seconds": _spread(stage.open_seconds),
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
