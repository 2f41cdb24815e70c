"""One flag's worker: ids used twice, effects that Redis lost, what may not be raised.

And rules that no decision may break.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import structlog

from controller.core import machine
from controller.core.effects import AnswerCommand, Effect, RaiseAlert
from controller.core.events import Event
from controller.core.rollout import Baking, Gating, Paused, RolledBack, Rollout
from controller.deciding.flag import flag_decision
from controller.deciding.flag.outbox import UNSAVED_LIMIT
from controller.health import Scope
from schemas.terms import AlertKind, CommandVerb, HoldReason, Severity
from tests.builders import MINUTE, T0, make_plan, make_stages
from tests.unit.deciding.worker_world import (
    FLAG,
    WATCHED,
    Doubts,
    World,
    WorldRegistry,
    look,
    order,
    start,
)
from tests.virtual_time import in_virtual_time, settled


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """Keep what is logged."""
    with structlog.testing.capture_logs() as lines:
        yield lines


def events(world: World, topic: str) -> list[dict[str, Any]]:
    """Return every event of a topic, each once."""
    return [json.loads(entry.value) for entry in world.published(topic)]


def statuses(world: World) -> list[tuple[str, str]]:
    """Return (event id, status) of every result, each once."""
    return [(event["id"], event["data"]["status"]) for event in events(world, "results")]


class OwnRegistry(WorldRegistry):
    """The state topic has what the worker decided."""

    def newest(self, flag_key: str) -> Rollout | None:
        """Return the newest transition."""
        return self._world.transitions[-1] if self._world.transitions else None


# --- D2: an id that is used twice ---


@in_virtual_time
async def test_a_roll_back_under_the_id_of_the_rollout_before_is_carried_out() -> None:
    """A script rolls back under one id in every rollout.

    The second is not told the first one's `accepted`.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        await worker.submit(order(CommandVerb.ROLL_BACK, "ci-rollback", after=MINUTE))
        await worker.submit(start(command_id="start-2"))
        assert (await world.stored()).percent == 10
        second = order(CommandVerb.ROLL_BACK, "ci-rollback", after=2 * MINUTE)
        await worker.submit(second)
        assert (await world.stored()).percent == 0
        await worker.submit(start(command_id="start-3"))
        await worker.submit(second)  # the very same record again: it has its answer
        await settled()
        assert (await world.stored()).percent == 10
    ids = [event_id for event_id, _ in statuses(world)]
    assert len(ids) == 5
    assert ids[3].startswith("ci-rollback/")
    results = [event["data"] for event in events(world, "results")]
    assert [(result["command_id"], result["status"]) for result in results][3] == (
        "ci-rollback",
        "accepted",
    )


@in_virtual_time
@pytest.mark.parametrize("verb", [CommandVerb.ROLL_BACK, CommandVerb.ABORT, CommandVerb.PAUSE])
async def test_a_lowering_repeated_with_a_new_time_gets_its_first_answer(verb: CommandVerb) -> None:
    """Nothing is left to change, so whoever repeats it wants the answer."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        await worker.submit(order(verb, "down", after=MINUTE))
        await settled()
        revision = (await world.stored()).revision
        await worker.submit(order(verb, "down", after=2 * MINUTE))
        await worker.submit(order(verb, "another", after=2 * MINUTE))
        await settled()
        assert (await world.stored()).revision == revision
    values = {entry.value for entry in world.publisher.published if entry.topic == "results"}
    results = [json.loads(value)["data"] for value in values]
    reasons = {one["command_id"]: one["reason"] for one in results}
    assert len(results) == 3
    assert reasons["down"] == "done"
    assert reasons["another"] in ("0 % is served already", "paused already")


@in_virtual_time
async def test_an_id_with_other_content_is_refused_and_said_so() -> None:
    """A promote under the start's id is not answered `start accepted`.

    The first answer stays what it was.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        promote = order(CommandVerb.PROMOTE, "start-1")
        await worker.submit(promote)
        await worker.submit(promote)
        await worker.submit(start())
        await settled()
        assert (await world.stored()).percent == 10
    first, second = statuses(world)
    assert first == ("start-1", "accepted")
    assert second[0].startswith("start-1/")
    assert second[1] == "rejected"
    refused = events(world, "results")[1]["data"]
    assert refused["command_id"] == "start-1"
    assert "this id was used for start at 2026-01-05T09:00:" in refused["reason"]
    values = [entry.value for entry in world.publisher.published if entry.topic == "results"]
    assert len(values) == 4  # each twice, the same bytes
    assert len(set(values)) == 2


@in_virtual_time
async def test_an_abort_under_the_starts_id_is_carried_out() -> None:
    """What lowers is always safe: used under whatever id, it is done and not merely said to be."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        await worker.submit(order(CommandVerb.ABORT, "start-1"))
        await settled()
        assert (await world.stored()).percent == 0
    assert [status for _, status in statuses(world)] == ["accepted", "accepted"]


@in_virtual_time
async def test_a_command_repeated_later_for_want_of_an_answer_gets_it() -> None:
    """The same start, promote or pause asked for again with a newer time is the same order.

    Or harmless.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        await worker.submit(order(CommandVerb.PROMOTE, "p"))
        await worker.submit(order(CommandVerb.PROMOTE, "p", after=MINUTE))
        await settled()
        assert (await world.stored()).percent == 50
        await worker.submit(order(CommandVerb.PAUSE, "q"))
        await worker.submit(order(CommandVerb.RESUME, "r"))
        await worker.submit(
            order(CommandVerb.PAUSE, "q", after=2 * MINUTE)
        )  # meant again: it was resumed
        assert isinstance((await world.stored()).phase, Paused)
    assert {status for _, status in statuses(world)} == {"accepted"}


@in_virtual_time
async def test_answers_kept_by_a_release_without_digests_are_read() -> None:
    """After an upgrade, a repeated command gets its old answer.

    And a roll back given after it is carried out.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        await worker.submit(order(CommandVerb.PAUSE, "p"))
        await settled()
        assert worker.rollout is not None
    flag = world.rollouts._flags[FLAG]
    for key, value in flag.answers.items():
        event = json.loads(value)
        assert event.pop("rolloutddigest")
        flag.answers[key] = json.dumps(event).encode()
    revision = (await world.stored()).revision
    async with world.worker() as worker:
        await worker.submit(start())
        await worker.submit(order(CommandVerb.PAUSE, "p"))
        assert (await world.stored()).revision == revision
        await worker.submit(order(CommandVerb.ROLL_BACK, "p"))
        assert (await world.stored()).percent == 0


# --- D6: Redis falls back while Kafka is away ---


@in_virtual_time
async def test_effects_that_redis_lost_and_kafka_had_not_yet_are_published() -> None:
    """A stale replica is promoted while Kafka takes no writes.

    Decision, alert and state of the roll back all appear.
    """
    world = World()
    async with world.worker(registry=OwnRegistry(world)) as worker:
        await worker.submit(start())
        await settled()
        before = world.rollouts.snapshot()
        world.publisher.outage.is_down = True
        await worker.submit(order(CommandVerb.ROLL_BACK, "rb"))
        await settled()
        world.rollouts.restore(before)
        assert (await world.stored()).percent == 10
        await worker.submit(order(CommandVerb.FREEZE, "f"))  # the next save finds it out
        await settled()
        assert (await world.stored()).percent == 0
        lost = {entry.effect_id for entry in await world.unpublished()}
        assert f"{FLAG}/2/1" in lost  # stored again, so that a crash now loses nothing
        world.publisher.outage.is_down = False
        await asyncio.sleep(30)
        assert len(worker.outbox) == 0
        assert await world.unpublished() == []
    assert [event["data"]["kind"] for event in events(world, "decisions")] == ["start", "roll_back"]
    assert [event["data"]["kind"] for event in events(world, "alerts")] == ["rolled_back"]
    assert [event["data"]["percent"] for event in events(world, "state")] == [10, 0]
    assert ("rb", "accepted") in statuses(world)


@in_virtual_time
async def test_a_crash_after_the_fall_back_was_found_loses_none_of_them() -> None:
    """What was saved again is published by the next worker."""
    world = World()
    async with world.worker(registry=OwnRegistry(world)) as worker:
        await worker.submit(start())
        await settled()
        before = world.rollouts.snapshot()
        world.publisher.outage.is_down = True
        await worker.submit(order(CommandVerb.ROLL_BACK, "rb"))
        world.rollouts.restore(before)
        await worker.submit(order(CommandVerb.FREEZE, "f"))
    world.publisher.outage.is_down = False
    async with world.worker(registry=OwnRegistry(world)):
        await asyncio.sleep(5)
    assert [event["data"]["kind"] for event in events(world, "alerts")] == ["rolled_back"]


# --- what may not be raised ---


@in_virtual_time
async def test_nothing_is_raised_while_this_replica_must_not(logs: list[Any]) -> None:
    """A promote is refused with the reason, a gate stays and says why, a roll back works.

    Later all goes on.
    """
    world, guard = World(), Doubts("its clock is 5 min ahead of the brokers'")
    why = guard.reasons
    async with world.worker(guard=guard) as worker:
        await worker.submit(start())
        assert world.results()[-1]["status"] == "rejected"
        assert why[0] in world.results()[-1]["reason"]
        why.clear()
        await worker.submit(start(command_id="start-2"))
        await asyncio.sleep(11 * 60 + 1)
        assert isinstance((await world.stored()).phase, Gating)
        why.append("the serving lease is lost")
        for _ in range(10):
            await look(world, worker)
            await asyncio.sleep(2)
        rollout = await world.stored()
        assert isinstance(rollout.phase, Gating)
        assert (rollout.percent, rollout.hold) == (10, HoldReason.HEALTH)
        assert sum(line["event"] == "raising_held_back" for line in logs) == 2
        assert [event["data"]["reason"] for event in events(world, "decisions")][-1].endswith(
            why[0]
        )
        why.clear()
        await look(world, worker)
        assert ((await world.stored()).percent, (await world.stored()).hold) == (50, None)
        why.append("the serving lease is lost")
        await worker.submit(order(CommandVerb.ROLL_BACK, "rb", after=12 * MINUTE))
        assert (await world.stored()).percent == 0


@in_virtual_time
async def test_a_scheduled_start_waits_as_well() -> None:
    """Its time has come and nothing may be raised: 0 % stays, with the reason visible.

    Then it starts.
    """
    world, guard = World(), Doubts("the serving lease is lost")
    why = guard.reasons
    plan = make_plan(
        stages=make_stages(10, 50), blind=True, guardrails=(), start_at=T0 + 5 * MINUTE
    )
    async with world.worker(guard=guard) as worker:
        await worker.submit(start(plan))
        await asyncio.sleep(400)
        assert ((await world.stored()).percent, (await world.stored()).hold) == (
            0,
            HoldReason.HEALTH,
        )
        why.clear()
        await asyncio.sleep(1)
        assert isinstance((await world.stored()).phase, Baking)
        assert (await world.stored()).percent == 10


# --- alerts without Redis and without Kafka ---


def an_alert(number: int = 0) -> RaiseAlert:
    """Return an alert that no transition caused."""
    return RaiseAlert(
        AlertKind.NOT_ACTUATED, Severity.CRITICAL, "a plane is away", "see why", f"key-{number}"
    )


@in_virtual_time
async def test_an_alert_needs_no_redis() -> None:
    """With Redis away, also from the start of the worker, an alert goes out, and once."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        await settled()
        world.publisher.outage.is_down = True
        await worker.submit(order(CommandVerb.PAUSE, "p"))
        world.rollouts.outage.is_down = True  # what it has published cannot be settled
        worker.alert(an_alert())
        world.publisher.outage.is_down = False
        await asyncio.sleep(60)
        sent = [entry for entry in world.publisher.published if entry.topic == "alerts"]
        assert len(sent) == 1
    world.newest = world.transitions[-1]
    async with world.worker() as worker:
        worker.alert(an_alert(1))
        await settled()
        assert len(world.published("alerts")) == 2


@in_virtual_time
async def test_alerts_wait_for_kafka_bounded() -> None:
    """With Kafka away the same alert waits once, and of many only the newest."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        await settled()
        world.publisher.outage.is_down = True
        for number in range(1000):
            worker.alert(an_alert(number))
            worker.alert(an_alert(number))
        assert len(worker.outbox) == UNSAVED_LIMIT
        world.publisher.outage.is_down = False
        await asyncio.sleep(10)
        assert len(world.published("alerts")) == UNSAVED_LIMIT


# --- rules that no decision may break ---


def planted(monkeypatch: pytest.MonkeyPatch, bug: Any) -> None:
    """Let the machine decide with a mistake in it."""
    real = machine.decide

    def decide(
        rollout: Rollout | None, event: Event, now: datetime
    ) -> tuple[Rollout | None, tuple[Effect, ...]]:
        return bug(event, *real(rollout, event, now))  # type: ignore[no-any-return]

    monkeypatch.setattr(flag_decision, "decide", decide)


def violations(world: World, rule: str) -> float:
    """Return what the counter says."""
    return (
        world.metrics.registry.get_sample_value(
            "rolloutd_invariant_violations_total", {"invariant": rule}
        )
        or 0.0
    )


@in_virtual_time
async def test_a_raise_that_breaks_a_rule_is_not_saved(
    monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    """A bug makes `pause` raise to 100 %.

    It is refused, counted, logged and reported, and the flag goes on.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())

        def bug(event: Event, after: Rollout | None, effects: tuple[Effect, ...]) -> Any:
            is_pause = getattr(event, "verb", None) is CommandVerb.PAUSE and after is not None
            return (
                (replace(after, percent=100.0), effects) if is_pause and after else (after, effects)
            )

        planted(monkeypatch, bug)
        await worker.submit(order(CommandVerb.PAUSE, "p"))
        await settled()
        assert (await world.stored()).percent == 10
        assert world.results()[-1]["status"] == "rejected"
        assert "I1" in world.results()[-1]["reason"]
        assert violations(world, "I1") == 1
        assert [line["invariant"] for line in logs if line["event"] == "invariant_violated"] == [
            "I1"
        ]
        assert world.faults.of(Scope.FLAG, FLAG) is not None
        await worker.submit(order(CommandVerb.ROLL_BACK, "rb"))
        assert (await world.stored()).percent == 0
        assert world.faults.of(Scope.FLAG, FLAG) is None


@in_virtual_time
async def test_what_lowers_is_saved_although_a_rule_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bug forgets the answer to a roll back: 0 % is saved, and the broken rule counted."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(WATCHED))

        def bug(_: Event, after: Rollout | None, effects: tuple[Effect, ...]) -> Any:
            return after, tuple(
                effect for effect in effects if not isinstance(effect, AnswerCommand)
            )

        planted(monkeypatch, bug)
        await worker.submit(order(CommandVerb.ROLL_BACK, "rb"))
        assert isinstance((await world.stored()).phase, RolledBack)
        assert violations(world, "I5") == 1


@in_virtual_time
async def test_a_bake_ends_by_the_monotonic_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock jumps a day ahead.

    No gate opens before this process has seen the bake go by.
    """
    world, ahead = World(), [timedelta(0)]
    real = world.clock.now

    def now() -> datetime:
        return real() + ahead[0]

    monkeypatch.setattr(world.clock, "now", now)
    async with world.worker() as worker:
        await worker.submit(start())
        ahead[0] = timedelta(days=1)
        await worker.submit(order(CommandVerb.UNFREEZE, "u", after=timedelta(days=1)))
        await asyncio.sleep(60)
        assert isinstance((await world.stored()).phase, Baking)
        assert violations(world, "I19") == 1
        await asyncio.sleep(10 * 60 + 5)
        assert isinstance((await world.stored()).phase, Gating)


@in_virtual_time
async def test_what_happens_again_is_another_alert() -> None:
    """Receivers drop repeats by the id: the second time must not look like a copy of the first."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        for occasion in ("first", "second", "second/over"):
            worker.alert(replace(an_alert(), occasion=occasion))
            await settled()
        alerts = world.published("alerts")
        assert len({alert.effect_id for alert in alerts}) == 3
        assert {json.loads(alert.value)["data"]["dedup_key"] for alert in alerts} == {"key-0"}
