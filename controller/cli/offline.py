"""Commands that run the engine without a daemon: `simulate`, `backtest`, `verdict`.

The engine is imported on use, because its numpy takes 0.2 s, for which `roll-back` need not wait.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from controller.cli import plan_files
from controller.cli.common import (
    EXIT_INTERRUPTED,
    EXIT_REJECTED,
    EXIT_USAGE,
    BootstrapOption,
    ConfigOption,
    JsonOption,
    PrefixOption,
    check_flag,
    fail,
    perform,
    reading_settings,
)
from controller.cli.effects import (
    ConversionOption,
    ErrorRateOption,
    LatencyOption,
    TrafficOption,
    begins_at,
    effects_of,
    virtual_traffic_of,
)
from schemas.fields import parse_duration

#: The help of `verdict`; the backspace keeps a paragraph's lines as they are.
_VERDICT_HELP = (
    "Judge streams of totals with the daemon's own tests: JSON lines in, one verdict a "
    "line out. Needs no Kafka.\n\n"
    "Each line is one check: what each arm has counted since its stage began. It is "
    "answered at once, before the next is read, "
    "by `continue` or by `roll_back`, which is final for its stream. A line that cannot be "
    "used is answered by one with "
    "`error` and changes nothing; then the exit code is 1. An example, which is one line:\n\n"
    "\b\n"
    '{"stream": "s1", "stage": 0, "share": 0.1,\n'
    ' "alpha": 0.01, "looks_planned": 200,\n'
    ' "control":   {"contexts": 900, "contexts_with_error": 4,\n'
    '               "outcomes": 950, "errors": 5,\n'
    '               "latency": {"gamma": 1.02, "buckets": {"231": 17}}},\n'
    ' "treatment": {"contexts": 100, "contexts_with_error": 0,\n'
    '               "outcomes": 104, "errors": 0,\n'
    '               "latency": {"gamma": 1.02, "buckets": {"231": 2}}}}\n\n'
    "Any metric may be left out. Bucket i holds the values in (gamma^(i-1), gamma^i] ms. "
    "Another stage begins a new visit of "
    "the same rollout, its totals at zero. How totals become what the engine counts: "
    "ops/verdict.md."
)


def verdict(
    is_stdin: Annotated[
        bool, typer.Option("--stdin", help="Read JSON lines from standard input, until it ends.")
    ] = False,
) -> None:
    """Judge streams of totals with the daemon's own tests; the help is `_VERDICT_HELP`."""
    from controller.cli.verdict import judge_lines

    if not is_stdin:
        fail("verdict reads lines from standard input: say --stdin", EXIT_USAGE)
    try:
        refused = judge_lines()
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if refused:
        raise typer.Exit(EXIT_REJECTED)


def simulate(
    plan: Annotated[
        str,
        typer.Argument(metavar="PLAN", help="A file, - for standard input, or a template's name."),
    ],
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
    from controller.cli.simulate import SimulationRequest, simulate_plan
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
        request = SimulationRequest(
            core,
            *virtual,
            effects_of(effects or (), core),
            runs,
            seed,
            begins_at(core, datetime.now(UTC)),
        )
        simulate_plan(request, is_json=is_json, html=html)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def backtest(
    plan: Annotated[
        str,
        typer.Argument(
            metavar="PLAN", help="A file, - for standard input, or a template's name with --flag."
        ),
    ],
    begins: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="TIME",
            help="When the plan would have started: ISO 8601, or an age as in 36h.",
        ),
    ],
    ends: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Where to stop. Default: now.")
    ] = None,
    flag: Annotated[
        str | None, typer.Option("--flag", help="The recorded flag, in place of the plan's.")
    ] = None,
    every: Annotated[
        str,
        typer.Option(
            "--every", metavar="DURATION", help="Time between two checks of the evidence."
        ),
    ] = "1s",
    counts_split: Annotated[
        bool,
        typer.Option(
            "--srm",
            help="Compare the recorded split with the plan's; for records of this very plan.",
        ),
    ] = False,
    is_json: JsonOption = False,
    config: ConfigOption = None,
    bootstrap_servers: BootstrapOption = None,
    topic_prefix: PrefixOption = None,
) -> None:
    """Run a plan over the recorded events of its flag, and show what it would have decided.

    Each decision comes with its time and reason. Nothing in Kafka changes. The daemon's own
    counting, state machine and tests go through the two event topics as fast as they can be read.
    Advice is always to proceed, and people approve at once. The split of the records is what was
    served then: ops/simulate.md.
    """
    from controller.cli.backtest import BacktestRequest, run_backtest, time_of
    from controller.codec.plans import to_core_plan

    document = plan_files.load_to_try(plan)
    if flag is not None:
        document = document.model_copy(update={"flag": check_flag(flag)})
    now = datetime.now(UTC)
    begins_at_ = time_of(begins, "--from", now)
    ends_at = now if ends is None else min(time_of(ends, "--to", now), now)
    if begins_at_ >= ends_at:
        fail("--from lies before --to, and not in the future", EXIT_USAGE)
    step = _check_interval(every)
    kafka, counting = reading_settings(config, bootstrap_servers, topic_prefix)
    core = replace(to_core_plan(document), start_at=None, expires_at=None)
    perform(
        run_backtest(
            BacktestRequest(core, kafka, counting, begins_at_, ends_at, step, counts_split),
            is_json=is_json,
        )
    )


def _check_interval(text: str) -> timedelta:
    """Return the time between two checks. Exits 2 unless it is from 100 ms to 10 minutes."""
    try:
        interval = parse_duration(text)
    except ValueError:
        interval = timedelta(0)
    if not timedelta(milliseconds=100) <= interval <= timedelta(minutes=10):
        fail(f"--every: {text!r}: write a duration from 100ms to 10m, as in 1s", EXIT_USAGE)
    return interval


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add these commands to an application, under a heading of its help."""
    app.command(rich_help_panel=panel)(simulate)
    app.command(rich_help_panel=panel)(backtest)
    app.command(help=_VERDICT_HELP, rich_help_panel=panel)(verdict)
