"""`rolloutctl verdict`: the tests applied to totals of other systems, without Kafka.

The engine is imported on use, because its numpy takes 0.2 s, for which `roll-back` need not wait.
"""

from __future__ import annotations

from typing import Annotated

import typer

from controller.cli.common import (
    EXIT_INTERRUPTED,
    EXIT_REJECTED,
    EXIT_USAGE,
    fail,
)

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
    '{"stream": "s1", "stage": 1, "share": 0.1,\n'
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
    from controller.cli.verdict_lines import judge_lines

    if not is_stdin:
        fail("verdict reads lines from standard input: say --stdin", EXIT_USAGE)
    try:
        refused = judge_lines()
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if refused:
        raise typer.Exit(EXIT_REJECTED)


verdict.__doc__ = _VERDICT_HELP
