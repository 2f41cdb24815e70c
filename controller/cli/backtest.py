"""`rolloutctl backtest`: a plan tried on the recorded events of its flag.

The engine is imported on use, because its numpy takes 0.2 s, for which `roll-back` need not wait.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from controller.cli import plan_files
from controller.cli.common import (
    EXIT_USAGE,
    JsonOption,
    KafkaOptions,
    check_flag,
    fail,
    perform,
)
from schemas.fields import parse_duration


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
            help="Where to begin: ISO 8601, or an age as in 36h. The rollout begins with the "
            "flag's first event after it.",
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
    *,
    connection: KafkaOptions,
) -> None:
    """Run a plan over the recorded events of its flag, and show what it would have decided.

    Each decision comes with its time and reason. Nothing in Kafka changes. The daemon's own
    counting, state machine and tests go through the two event topics as fast as they can be read.
    Advice is always to proceed, and people approve at once. The split of the records is what was
    served then: ops/simulate.md.
    """
    from controller.cli.backtest_run import BacktestRequest, run_backtest, time_of
    from controller.codec.plans import to_core_plan

    document = plan_files.load_to_try(plan)
    if flag is not None:
        document = document.model_copy(update={"flag": check_flag(flag)})
    now = datetime.now(UTC)
    begins_at_ = time_of(begins, "--from", now)
    ends_at = now if ends is None else min(time_of(ends, "--to", now), now)
    if begins_at_ >= ends_at:
        begin, end = (f"{at:%Y-%m-%d %H:%M:%S} UTC" for at in (begins_at_, ends_at))
        until = "now" if ends_at == now else "--to"
        fail(
            f"nothing lies between --from ({begin}) and {until} ({end}): begin earlier", EXIT_USAGE
        )
    step = _check_interval(every)
    kafka, counting = connection.reading_settings()
    core = replace(to_core_plan(document), start_at=None, ends_at=None, expires_at=None)
    times = (begins_at_, begins_at_, ends_at, step)
    request = BacktestRequest(core, kafka, counting, *times, counts_split, ends is not None)
    perform(run_backtest(request, is_json=is_json))


def _check_interval(text: str) -> timedelta:
    """Return the time between two checks. Exits 2 unless it is from 100 ms to a minute.

    After a longer time without a check, nobody knows whether a health gap lasted through it.
    """
    try:
        interval = parse_duration(text)
    except ValueError:
        interval = timedelta(0)
    if not timedelta(milliseconds=100) <= interval <= timedelta(minutes=1):
        fail(f"--every: {text!r}: write a duration from 100ms to 1m, as in 1s", EXIT_USAGE)
    return interval
