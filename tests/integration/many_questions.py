"""Puts many different gate questions to a model's server, and counts what comes of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

from controller.adapters.llm.advisor import ModelAdvisor
from controller.clock import SystemClock
from controller.core.judging.judgement import Advice
from controller.errors import AdviceUnavailableError
from controller.scorecard.cases import load_cases
from controller.scorecard.report import seconds
from controller.settings import AdvisorSettings
from tests.builders import make_advice

CLOCK = SystemClock()


def patient_advisor(url: str, **overrides: object) -> ModelAdvisor:
    """Return an advisor that asks every question, one at a time, however the others ended."""
    fields = {
        "url": url,
        "model": "tiny",
        "deadline_seconds": 120.0,
        "breaker_failures": 1_000_000,
        "questions_per_day": 1_000_000,
        **overrides,
    }
    return ModelAdvisor(AdvisorSettings.model_validate(fields), CLOCK)


@dataclass
class Outcomes:
    """What came of so many questions.

    `longest_hold` is the longest that we held the loop, in seconds of this thread's CPU between two
    turns: how long the machine gave it to the server is not ours.
    """

    counts: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)  # seconds, sorted
    longest_hold: float = 0.0

    @property
    def in_form(self) -> int:
        """How many were advice."""
        return sum(
            count for outcome, count in self.counts.items() if not outcome.startswith("no advice")
        )

    def __str__(self) -> str:
        middle, late = (
            seconds(round(1000 * self.times[int(q * (len(self.times) - 1))])) for q in (0.5, 0.95)
        )
        return (
            f"{self.in_form} of {sum(self.counts.values())} in the form: {dict(self.counts)}; half "
            f"within {middle}, 95 % within {late}; longest stall {1000 * self.longest_hold:.0f} ms"
        )


async def ask_many(
    advisor: ModelAdvisor, count: int, check: Callable[[Advice], None] = lambda _: None
) -> Outcomes:
    """Put so many different questions, `check` each advice, and close the advisor."""
    outcomes = Outcomes()

    async def watch() -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            outcomes.longest_hold = max(outcomes.longest_hold, time.thread_time() - began)
            await asyncio.sleep(0.002)

    watching = asyncio.create_task(watch())
    cases = load_cases()
    for number in range(count):
        case = cases[
            number * len(cases) // count
        ]  # alike ones in a row, different at the end: the server need not begin from nothing
        earlier = make_advice("hold", reasons=(f"question {number}",))
        question = replace(case.question, until=CLOCK.now() + timedelta(minutes=5), earlier=earlier)
        began = time.perf_counter()
        try:
            advice = await advisor.ask(case.rollout, question)
            outcomes.counts[advice.choice] += 1
            check(advice)
        except AdviceUnavailableError as trouble:
            outcomes.counts[f"no advice: {trouble}"] += 1
        outcomes.times.append(time.perf_counter() - began)
    watching.cancel()
    await advisor.close()
    outcomes.times.sort()
    return outcomes
