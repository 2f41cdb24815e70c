"""What is noted of a flag's rollout for the inventory: its last decision and its lift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from controller.adapters.memory import ManualClock, MemoryReports
from controller.codec.decisions import decision_event
from controller.codec.flag_summaries import summary_from_json
from controller.core.effects import PublishDecision
from controller.core.judging.judgement import Judgement
from controller.core.rollout import Completed, Rollout
from controller.errors import BrokenInvariant
from controller.ports import FlagSummary, LastDecision, Use
from controller.running.flag_summaries import MOST_READ, PUBLISHED, FlagSummaries
from schemas.terms import DecisionKind, UseKind
from tests.builders import T0, make_judgement, make_report, make_rollout

FLAG = "new-checkout"
USE = Use(UseKind.SUMMARY, FLAG)
JUDGED = make_judgement(
    metrics=(make_report(metric="conversion:paid", ratio=0.8, ratio_low=0.5, ratio_high=1.25),)
)


def event(rollout: Rollout, kind: DecisionKind = DecisionKind.START) -> bytes:
    """Return a decision that led to a rollout, as it is published."""
    decision = PublishDecision(kind, "because", 0.0, rollout.percent, 1, "ada")
    return decision_event(decision, rollout, "f/1/0", rollout.updated_at)


class World:
    """A replica that runs one flag, and what is noted of it."""

    def __init__(self) -> None:
        self.flags: dict[str, Rollout] = {FLAG: make_rollout(revision=3, updated_at=T0)}
        self.judgement: Judgement | None = None
        self.reports = MemoryReports()
        self.clock = ManualClock(T0)
        self.notes: dict[Use, bytes] = {}
        self.summaries = FlagSummaries(self, self.reports, self.clock)

    @property
    def rollouts(self) -> Mapping[str, Rollout]:
        """The flags that run here."""
        return self.flags

    def judgement_of(self, flag_key: str) -> Judgement | None:
        """Return the newest judgement."""
        return self.judgement

    async def decide(self, kind: DecisionKind) -> None:
        """Keep a decision that led to the present revision, as its publishing does."""
        await self.reports.append_news(FLAG, "decisions", [event(self.flags[FLAG], kind)])

    async def summary(self) -> FlagSummary:
        """Return what is noted after a beat."""
        self.notes |= await self.summaries.new(self.notes)
        summary = summary_from_json(self.notes[USE])
        assert summary is not None
        return summary


@pytest.fixture
def world() -> World:
    """A flag of which nothing is noted."""
    return World()


async def test_the_last_decision_is_noted_once_it_is_published(world: World) -> None:
    """Until then the one before is, and it is looked for again."""
    assert (await world.summary()).decision is None
    await world.decide(DecisionKind.START)
    assert await world.summary() == FlagSummary("start-1", 3, LastDecision(DecisionKind.START, T0))
    assert await world.summaries.new(world.notes) == {}
    later = T0 + timedelta(hours=1)
    world.flags[FLAG] = replace(world.flags[FLAG], revision=4, updated_at=later)
    assert (await world.summary()).decision == LastDecision(DecisionKind.START, T0)
    await world.decide(DecisionKind.ADVANCE)
    assert (await world.summary()).decision == LastDecision(DecisionKind.ADVANCE, later)


async def test_a_decision_outlives_its_event(world: World) -> None:
    """Events are kept for some days, a completed flag stays for months."""
    await world.decide(DecisionKind.COMPLETE)
    await world.summary()
    await world.reports.discard(FLAG, [])
    world.clock.advance(timedelta(days=90))
    assert (await world.summary()).decision == LastDecision(DecisionKind.COMPLETE, T0)


async def test_a_revision_without_a_decision_is_not_looked_for_for_ever(world: World) -> None:
    """Nothing is read of a flag that has not changed for long."""
    world.clock.advance(PUBLISHED)
    assert (await world.summary()).revision == 3
    world.reports.outage.is_down = True
    assert await world.summaries.new(world.notes) == {}


async def test_the_lift_of_the_newest_judgement_is_noted_and_stays(world: World) -> None:
    """Also after the end, when nothing is judged any more; another rollout begins without."""
    world.judgement = JUDGED
    (lift,) = (await world.summary()).lifts
    assert lift.conversion == "paid"
    assert (lift.estimate, lift.low, lift.high) == pytest.approx((0.25, -0.2, 1.0))
    world.judgement = None
    world.flags[FLAG] = replace(world.flags[FLAG], phase=Completed(T0))
    assert (await world.summary()).lifts == (lift,)
    world.flags[FLAG] = replace(world.flags[FLAG], rollout_id="start-2")
    assert (await world.summary()).lifts == ()


async def test_what_somebody_else_wrote_is_replaced(world: World) -> None:
    """A note that is none, an event that is none, a key of another type."""
    world.notes[USE] = b"junk"
    await world.reports.append_news(FLAG, "decisions", [b"junk"])
    assert (await world.summary()).decision is None

    async def refusing(*arguments: object, **named: object) -> None:
        raise BrokenInvariant("WRONGTYPE")

    world.reports.news = refusing  # type: ignore[method-assign,assignment]
    assert (await world.summary()).decision is None


async def test_a_replica_that_takes_many_flags_over_reads_them_by_and_by(world: World) -> None:
    """Counting and deciding use the same Redis."""
    reads = 0
    news = world.reports.news

    async def counted(*arguments: object, **named: object) -> object:
        nonlocal reads
        reads += 1
        return await news(*arguments, **named)  # type: ignore[arg-type]

    world.reports.news = counted  # type: ignore[method-assign,assignment]
    world.clock.advance(PUBLISHED)
    for number in range(MOST_READ + 5):
        world.flags[f"flag-{number}"] = replace(world.flags[FLAG], flag_key=f"flag-{number}")
    world.notes |= await world.summaries.new(world.notes)
    assert reads == MOST_READ
    world.notes |= await world.summaries.new(world.notes)
    assert reads == MOST_READ + 6
    assert await world.summaries.new(world.notes) == {}
