"""The demo from its first process to its summary, in order."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from controller.demo.advisors import MODEL, StandIn
from controller.demo.ending import conclude, is_at_rest, summary
from controller.demo.environment import AdvisorAddress, DemoEnvironment
from controller.demo.observer import Observer
from controller.demo.processes import ProcessTree
from controller.demo.scenarios import AdvisorPart, Scenario, plan_of
from controller.demo.screen import (
    Lines,
    Screen,
    Silent,
    Terminal,
    advice_line,
    alert_line,
    decision_line,
)
from schemas.command import Command
from schemas.terms import CommandVerb

#: A rollout is over in half a minute; on a machine that is busy with other things it takes longer.
#: A real model may take longer at four gates.
LONGEST_SECONDS = 150.0
LONGEST_WITH_MODEL_SECONDS = 240.0
#: After the end, for the apps to follow the last percentage, which they poll, and for the last
#: records to be read.
SETTLE_SECONDS = 3.0
REFRESH_SECONDS = 0.5
#: For the daemon to show its last decision, which its topic has first.
SHOWN_SECONDS = 1.5
#: What to do after the demo.
_NEXT = (
    "Next: `rolloutd demo --scenario list` shows the other scenarios;",
    "      `rolloutctl plan templates canary` begins a plan of your own;",
    "      `rolloutd config show --explain` has the settings for your own Kafka;",
    "      README.md and ops/ in the source have everything else.",
)


#: Returns the rollout of a flag as a daemon at this address shows it, or None and the reason. It
#: blocks.
View = Callable[[str, str], tuple[RenderableType | None, str]]


@dataclass(frozen=True, slots=True)
class Options:
    """What the user of the demo chose, and how a rollout is shown."""

    scenario: Scenario
    seed: int
    is_json: bool
    advisor: AdvisorAddress | None  # a real server
    view: View


async def play(options: Options) -> bool:
    """Run the scenario and show it; return whether it ended as it must.

    Raises OperatingTrouble and ConfigInvalid.
    """
    async with AsyncExitStack() as stack:
        advisor, words = await _advisor(options, stack)
        screen = _screen(options, words)
        stack.callback(screen.close)
        tree = stack.enter_context(ProcessTree())
        run = _Run(options, DemoEnvironment(tree), screen)
        await run.start(advisor)
        async with Observer(run.bootstrap) as observer:
            return await run.run(observer)


async def _advisor(options: Options, stack: AsyncExitStack) -> tuple[AdvisorAddress | None, str]:
    """Return the server that gives advice, and a line about it for the screen."""
    if options.advisor is not None:
        return options.advisor, f"advisor: {options.advisor.model} at {options.advisor.url}"
    part = options.scenario.advisor
    if part is AdvisorPart.NOBODY:
        return None, "No language model is asked (--advisor-url adds one)."
    server = await stack.enter_async_context(StandIn(answers=part is AdvisorPart.OBJECTS))
    words = {
        AdvisorPart.HANGS: "advisor: a stand-in that accepts every question and never answers",
        AdvisorPart.OBJECTS: "advisor: a scripted stand-in, no model; it always answers hold",
    }
    return AdvisorAddress(server.url, MODEL), words[part]


def _screen(options: Options, advisor_words: str) -> Screen:
    if options.is_json:
        return Silent()
    console = Console()
    if console.is_terminal:
        return Terminal(console, options.scenario, advisor_words)
    return Lines(console, options.scenario, advisor_words)


class _Run:
    """One scenario, played."""

    def __init__(self, options: Options, environment: DemoEnvironment, screen: Screen) -> None:
        self._options, self._environment, self._screen = options, environment, screen
        self._plan = plan_of(options.scenario, has_real_advisor=options.advisor is not None)
        self.flag_key = self._plan.flag
        self._began = time.monotonic()
        self._is_stand_in = options.advisor is None
        self._refreshed_at = 0.0

    @property
    def bootstrap(self) -> str:
        return self._environment.bootstrap

    async def start(self, advisor: AdvisorAddress | None) -> None:
        """Start everything."""
        starting = Text("starting broker, store, daemon and apps …", "dim")
        self._screen.show(self._environment.report, starting)
        await self._environment.start(self._options.scenario, self._options.seed, advisor)
        self._screen.served_at(f"{self._environment.http_url}/ui/rollouts/{self.flag_key}")

    async def run(self, observer: Observer) -> bool:
        """Start the rollout, follow it to its end, and show how it went."""
        await observer.send(
            Command(
                id=f"demo-{uuid4().hex[:12]}",
                flag=self.flag_key,
                verb=CommandVerb.START,
                issuer="rolloutd demo",
                issued_at=datetime.now(UTC),
                plan=self._plan,
            )
        )
        longest = LONGEST_SECONDS if self._options.advisor is None else LONGEST_WITH_MODEL_SECONDS
        deadline = time.monotonic() + longest
        while not is_at_rest(observer.course.rollout):
            if time.monotonic() > deadline:
                break
            await self._step(observer)
        settled_by = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < settled_by and not self._has_settled(observer):
            await self._step(observer)
        if self._screen.is_live:
            await asyncio.sleep(SHOWN_SECONDS)
        await self._refresh(observer)
        self._screen.close()
        return self._conclude(observer, longest)

    async def _step(self, observer: Observer) -> None:
        self._environment.check()
        for topic, data in await observer.read():
            if observer.is_decision(topic):
                self._show_decision(observer, data)
            else:
                self._screen.add_line(alert_line(data))
        await self._refresh(observer, at_most_every=REFRESH_SECONDS)

    async def _refresh(self, observer: Observer, at_most_every: float = 0.0) -> None:
        """Bring the picture up to date, where there is one."""
        report = self._environment.read_report()
        if not self._screen.is_live or time.monotonic() - self._refreshed_at < at_most_every:
            return
        self._refreshed_at = time.monotonic()
        rollout: RenderableType = Text("the start command is published …", "dim")
        if observer.course.rollout is not None:
            url = self._environment.http_url
            tree, why = await asyncio.to_thread(self._options.view, url, self.flag_key)
            rollout = Text(why, "yellow") if tree is None else tree
        self._screen.show(report, rollout)

    def _show_decision(self, observer: Observer, decision: dict[str, Any]) -> None:
        if self._options.is_json:
            print(json.dumps(decision, separators=(",", ":")), flush=True)  # noqa: T201
            return
        started_at = datetime.fromisoformat(observer.course.decisions[0]["at"])
        advice = advice_line(decision, self._is_stand_in)
        if advice is not None:
            self._screen.add_line(advice)
        if not self._screen.is_live:  # a picture has the decisions in it
            self._screen.add_line(decision_line(decision, started_at))

    def _has_settled(self, observer: Observer) -> bool:
        """Return whether the last decision has been read, and every app follows it."""
        rollout, decisions = observer.course.rollout, observer.course.decisions
        report = self._environment.report
        if rollout is None or not decisions or decisions[-1]["revision"] < rollout.revision:
            return False
        return all(percent == rollout.percent for percent in report.percents)

    def _conclude(self, observer: Observer, longest: float) -> bool:
        course, scenario = observer.course, self._options.scenario
        conclusion = conclude(
            scenario.ending,
            course.rollout,
            course.decisions,
            longest_seconds=longest,
            has_real_advisor=self._options.advisor is not None,
        )
        fault = conclusion.fault
        if self._options.is_json:
            if course.document is not None:
                print(json.dumps(course.document, separators=(",", ":")), flush=True)  # noqa: T201
            if fault is not None:
                print(f"rolloutd demo: {scenario.name}: {fault}", file=sys.stderr)  # noqa: T201
            return fault is None
        console = Console()
        console.print()
        for line in summary(course, self._environment.report):
            console.print(Padding(line, (0, 1)), highlight=False)
        total = time.monotonic() - self._began
        mark = "[bold green]✓[/]" if fault is None else "[bold red]✗[/]"
        verdict = f"{mark} {conclusion.words} ({total:.0f} s including startup)."
        console.print(Padding(verdict, (0, 1)), highlight=False)
        console.print()
        for line in _NEXT:
            console.print(Padding(line, (0, 1)), highlight=False)
        return fault is None
