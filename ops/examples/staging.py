"""Runs an example: broker, store, daemon and apps on this machine, and its rollouts, as lines.

What an app of yours would copy stands in the examples' own files. This file only saves a newcomer
from starting five programs.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from rich.console import Console
from rich.text import Text

from controller.demo.ending import is_at_rest
from controller.demo.environment import DemoEnvironment
from controller.demo.observer import Observer
from controller.demo.processes import Child, ProcessTree
from controller.demo.screen import alert_line, decision_line
from controller.errors import BadInput, OperatingTrouble
from controller.plans import load_plan
from schemas.command import Command
from schemas.plan import PlanDocument
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
    plans: Sequence[Path]  # a rollout for each, all at once; with is_bad the first one's is harmful
    is_bad: bool
    apps: Apps
    longest_seconds: float
    settings: Mapping[str, str] = field(default_factory=dict)  # the daemon's, without ROLLOUTD_


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
    plans = [load_plan(path.read_text(encoding="utf-8"), path.name) for path in example.plans]
    which = (
        f"a [bold red]bad[/] new version (BAD={os.environ['BAD']})"
        if example.is_bad
        else "a [bold green]good[/] new version"
    )
    console.print(f"[bold reverse] {example.title} [/] with {which}")
    for plan in plans:
        stages = " → ".join(f"{stage.percent:g} %" for stage in plan.stages)
        console.print(f" plan {plan.name}: {stages}", style="dim")
    console.print(
        " starting Kafka-protocol broker, Valkey, rolloutd and the example's apps …", style="dim"
    )
    began = time.monotonic()
    with ProcessTree() as tree:
        environment = DemoEnvironment(tree, example.settings)
        await environment.start_without_apps()
        await example.apps.start(tree, environment)
        async with AsyncExitStack() as stack:
            observers = [
                await stack.enter_async_context(Observer(environment.bootstrap, plan.flag))
                for plan in plans
            ]
            rollouts = "the rollout is" if len(plans) == 1 else f"{len(plans)} rollouts are"
            console.print(
                f" traffic flows after {time.monotonic() - began:.0f} s; {rollouts} started\n",
                style="dim",
            )
            for plan, observer in zip(plans, observers, strict=True):
                await observer.send(_start_of(plan))
            await _watch(console, observers, environment, example.longest_seconds)
            console.print()
            for sentence in await example.apps.summary():
                console.print(f" {sentence}")
            ends = [
                _print_end(console, observer, example.is_bad and number == 0)
                for number, observer in enumerate(observers)
            ]
            return 0 if all(ends) else 1


def _start_of(plan: PlanDocument) -> Command:
    return Command(
        id=f"example-{uuid4().hex[:12]}",
        flag=plan.flag,
        verb=CommandVerb.START,
        issuer="example",
        issued_at=datetime.now(UTC),
        plan=plan,
    )


async def _watch(
    console: Console, observers: Sequence[Observer], environment: DemoEnvironment, seconds: float
) -> None:
    """Print what happens until all rollouts are at rest, or for so long, and a moment more."""
    deadline = time.monotonic() + seconds
    settled_by = None
    while time.monotonic() < (deadline if settled_by is None else settled_by):
        await asyncio.gather(
            *(
                _print_events(console, observer, environment, names_flag=len(observers) > 1)
                for observer in observers
            )
        )
        if settled_by is None and all(is_at_rest(one.course.rollout) for one in observers):
            settled_by = time.monotonic() + _AFTERWARDS_SECONDS


async def _print_events(
    console: Console, observer: Observer, environment: DemoEnvironment, *, names_flag: bool
) -> None:
    environment.check()
    for topic, event in await observer.read():
        if observer.is_decision(topic):
            line = decision_line(event, datetime.fromisoformat(observer.course.decisions[0]["at"]))
        else:
            line = alert_line(event)
        if names_flag:
            line = Text.assemble((f" {event['flag']:<18}", "bold"), line)
        console.print(line)


def _print_end(console: Console, observer: Observer, is_harmful: bool) -> bool:
    """Print how a rollout ended, and return whether that is as it must be."""
    rollout = observer.course.rollout
    ended = None if rollout is None else rollout.phase.name
    expected = PhaseName.ROLLED_BACK if is_harmful else PhaseName.COMPLETED
    if rollout is not None and ended is expected:
        console.print(
            f" [bold green]✓[/] {observer.flag}: {_words(ended)} at {rollout.percent:g} %, "
            f"as it must."
        )
        return True
    outcome = "never began" if ended is None else f"is {_words(ended)}"
    console.print(
        f" [bold red]✗[/] {observer.flag}: the rollout {outcome}, and should be {_words(expected)}."
    )
    return False


def _words(phase: PhaseName) -> str:
    return phase.value.replace("_", " ")
