"""Runs an example: broker, store, daemon and apps on this machine, and one rollout, as lines.

What an app of yours would copy stands in the examples' own files. This file only saves a newcomer
from starting five programs.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from rich.console import Console

from controller.demo.ending import is_at_rest
from controller.demo.environment import DemoEnvironment
from controller.demo.observer import Observer
from controller.demo.processes import Child, ProcessTree
from controller.demo.screen import alert_line, decision_line
from controller.errors import BadInput, OperatingTrouble
from controller.plans import load_plan
from schemas.command import Command
from schemas.terms import CommandVerb, PhaseName

EXAMPLES = Path(__file__).parent
_AFTERWARDS_SECONDS = (
    2.0  # for the apps to go by the last percentage, and for a reader to see that they do
)


class Apps(Protocol):
    """The example's own programs."""

    async def start(self, tree: ProcessTree, environment: DemoEnvironment) -> None:
        """Start them and return when there is traffic. Raises ChildFailed."""

    async def summary(self) -> list[str]:
        """Return what they know themselves, a sentence each."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example, with the version of the app that was chosen."""

    title: str
    plan: Path
    is_bad: bool
    apps: Apps
    longest_seconds: float


def wants_bad_version() -> bool:
    """Return whether BAD=1 is set."""
    return os.environ.get("BAD", "") not in ("", "0")


def environ_of(**settings: str) -> dict[str, str]:
    """Return our environment with settings of an app, and the examples on its import path."""
    path = os.pathsep.join(filter(None, (str(EXAMPLES), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **settings}


def last_json(child: Child) -> dict[str, Any]:
    """Return the last JSON line a child has printed, {} before the first."""
    whole = [
        line
        for line in child.output().splitlines(keepends=True)
        if line.endswith("\n") and line.startswith("{")
    ]
    return dict(json.loads(whole[-1])) if whole else {}


def main(example: Example) -> None:
    """Run an example to its end and exit.

    0 when it ended as the chosen version must, 1 otherwise.
    """
    try:
        code = asyncio.run(_play(example))
    except (BadInput, OperatingTrouble) as trouble:
        print(f"{example.title}: {trouble}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(f"{example.title}: interrupted; every process it started has ended", file=sys.stderr)
        code = 130
    sys.exit(code)


async def _play(example: Example) -> int:
    console = Console(highlight=False, soft_wrap=True)
    plan = load_plan(example.plan.read_text(encoding="utf-8"), str(example.plan.name))
    which = (
        "a [bold red]bad[/] new version (BAD=1)"
        if example.is_bad
        else "a [bold green]good[/] new version"
    )
    console.print(f"[bold reverse] {example.title} [/] with {which}")
    console.print(
        f" plan {plan.name}: {' → '.join(f'{stage.percent:g} %' for stage in plan.stages)}",
        style="dim",
    )
    console.print(
        " starting Kafka-protocol broker, Valkey, rolloutd and the example's apps …", style="dim"
    )
    began = time.monotonic()
    with ProcessTree() as tree:
        environment = DemoEnvironment(tree)
        await environment.start_without_apps()
        await example.apps.start(tree, environment)
        async with Observer(environment.bootstrap) as observer:
            console.print(
                f" traffic flows after {time.monotonic() - began:.0f} s; the rollout is started\n",
                style="dim",
            )
            await observer.send(
                Command(
                    id=f"example-{uuid4().hex[:12]}",
                    flag=plan.flag,
                    verb=CommandVerb.START,
                    issuer="example",
                    issued_at=datetime.now(UTC),
                    plan=plan,
                )
            )
            deadline = time.monotonic() + example.longest_seconds
            while not is_at_rest(observer.course.rollout) and time.monotonic() < deadline:
                await _print_events(console, observer, environment)
            settled_by = time.monotonic() + _AFTERWARDS_SECONDS
            while time.monotonic() < settled_by:
                await _print_events(console, observer, environment)
            console.print()
            for sentence in await example.apps.summary():
                console.print(f" {sentence}")
            rollout = observer.course.rollout
            ended = None if rollout is None else rollout.phase.name
            expected = PhaseName.ROLLED_BACK if example.is_bad else PhaseName.COMPLETED
            if rollout is not None and ended is expected:
                console.print(
                    f" [bold green]✓[/] {_words(ended)} at {rollout.percent:g} %, as it must."
                )
                return 0
            outcome = "never began" if ended is None else f"is {_words(ended)}"
            console.print(
                f" [bold red]✗[/] the rollout {outcome}, and should be {_words(expected)}."
            )
            return 1


async def _print_events(console: Console, observer: Observer, environment: DemoEnvironment) -> None:
    environment.check()
    for topic, event in await observer.read():
        if observer.is_decision(topic):
            console.print(
                decision_line(event, datetime.fromisoformat(observer.course.decisions[0]["at"]))
            )
        else:
            console.print(alert_line(event))


def _words(phase: PhaseName) -> str:
    return phase.value.replace("_", " ")
