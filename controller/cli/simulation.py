"""Carries out `rolloutctl simulate`: virtual rollouts of a plan, as text, JSON or a page."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from controller.cli import rendering
from controller.cli.common import EXIT_USAGE, complain, fail, output
from controller.planning.figures import ShareOfRuns, Spread, TriedTraffic
from controller.planning.page import page
from controller.planning.trial import SimulationRequest, simulated
from controller.planning.trial_words import tried_plan
from controller.planning.virtual_traffic import VirtualTraffic
from controller.reporting.tried_plan import TriedPlan, TriedScenario
from controller.text import file_trouble, plural

PROGRESS_EVERY_SECONDS = 10.0


def simulate_plan(request: SimulationRequest, *, is_json: bool, html: Path | None) -> None:
    """Run the plan with a treatment as good as control, and again with the effects; report both."""
    scenarios = simulated(
        request, lambda traffic: _progress(traffic, request.runs, is_json=is_json)
    )
    if html is not None:
        try:
            html.write_text(
                page(request.plan, scenarios, request.assumed, request.seed, request.starts_at),
                encoding="utf-8",
            )
        except OSError as error:
            fail(f"--html: {html}: cannot be written: {file_trouble(error)}", EXIT_USAGE)
    if is_json:
        typer.echo(rendering.to_json(_document(request, scenarios)))
        return
    console = output()
    show_tried(console, tried_plan(request, scenarios))
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
            complain(f"{self._name}: {done} of {plural(self._runs, 'rollout')} simulated")


# --- text


def show_tried(console: Console, tried: TriedPlan) -> None:
    """Show what virtual rollouts came to."""
    console.print(Text(tried.plan, "bold"), f": {tried.rollouts}", sep="")
    control, begin, always = tried.about
    console.print(control)
    console.print(begin)
    if tried.assumed:
        console.print(Text(f"assumed, because not stated: {tried.assumed}", "yellow"))
    console.print(always)
    for scenario in tried.scenarios:
        console.print()
        _show_scenario(console, scenario)


def _show_scenario(console: Console, scenario: TriedScenario) -> None:
    console.print(Text(scenario.title, "bold"))
    rows = Table(box=None, show_header=False, padding=(0, 2, 0, 0), show_edge=False)
    for row in scenario.rows:
        rows.add_row(*row)
    console.print(rows)
    stages = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for name in scenario.columns:
        stages.add_column(name.upper(), justify="right")
    for stage in scenario.stages:
        stages.add_row(*stage)
    console.print(stages)


# --- JSON


def _document(request: SimulationRequest, scenarios: Sequence[TriedTraffic]) -> dict[str, Any]:
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


def _scenario_document(scenario: TriedTraffic) -> dict[str, Any]:
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


def _part(part: ShareOfRuns) -> dict[str, float]:
    low, high = part.interval
    return {"count": part.count, "total": part.of, "share": part.share, "low": low, "high": high}


def _spread(values: Spread | None) -> dict[str, float] | None:
    return None if values is None else {"median": values.median, "p90": values.p90}
