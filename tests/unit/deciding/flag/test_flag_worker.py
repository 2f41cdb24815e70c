"""One flag's worker on memory adapters, in virtual time.

What is saved, published and asked when things go wrong around it.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from controller.core.evidence import Evidence
from controller.core.plan import DEFAULT_GAP_POLICIES
from controller.core.rollout import (
    Baking,
    Gating,
    RolledBack,
    Rollout,
)
from controller.deciding.flag.flag_inbox import NewTotals
from controller.deciding.flag.flag_worker import FlagWorker
from controller.errors import StoreUnavailable
from schemas.terms import CommandVerb, GapPolicy, HealthGap, HoldReason
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_guardrail,
    make_plan,
    make_progress,
    make_stages,
)
from tests.unit.deciding.worker_world import FLAG, WATCHED, World, look, order, start
from tests.virtual_time import in_virtual_time, settled

# --- the ordinary way ---


@in_virtual_time
async def test_a_start_is_saved_served_published_and_answered() -> None:
    """One command gives one document, one decision and one result.

    And leaves nothing in the outbox.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        await settled()
        assert (await world.stored()) == worker.rollout == world.transitions[-1]
    assert [entry.effect_id for entry in world.publisher.published] == [
        f"{FLAG}/1/0",
        f"{FLAG}/1/1",
        f"{FLAG}/start-1",
    ]
    assert world.results()[0]["status"] == "accepted"
    assert await world.unpublished() == []


@in_virtual_time
async def test_deadlines_wake_the_worker() -> None:
    """Without any event the bake ends by time alone, at its end and not before."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        await asyncio.sleep(11 * 60 - 1)
        assert isinstance((await world.stored()).phase, Baking)
        await asyncio.sleep(1.2)
        assert isinstance((await world.stored()).phase, Gating)


@in_virtual_time
async def test_a_blind_ramp_goes_up_stage_by_stage() -> None:
    """Looks at the gates carry the rollout to its end.

    Every revision is published once, in order.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        for _ in range(4 * 60):
            await asyncio.sleep(10)
            if worker.rollout is not None and worker.rollout.stage_index is not None:
                await look(world, worker)
        assert (await world.stored()).has_ended
        assert (await world.stored()).percent == 100
    revisions = [json.loads(entry.value)["data"]["revision"] for entry in world.published("state")]
    assert revisions == list(range(1, len(revisions) + 1))


@in_virtual_time
async def test_a_breach_rolls_back_at_the_look_that_shows_it() -> None:
    """Errors far above the limit lead to 0 % in one step, in the bake.

    With a decision and an alert.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(WATCHED))
        await asyncio.sleep(90)
        await look(world, worker, errors=300)
        assert isinstance((await world.stored()).phase, RolledBack)
        assert world.transitions[-1].percent == 0
    assert [json.loads(entry.value)["data"]["kind"] for entry in world.published("alerts")] == [
        "rolled_back"
    ]


@in_virtual_time
async def test_a_command_says_what_was_counted_when_it_came() -> None:
    """An abort's decision has the newest judgement, and its alert the harm so far.

    The next rollout's start has neither: nothing was counted for it.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(WATCHED))
        await asyncio.sleep(90)
        await look(world, worker)
        after = timedelta(seconds=90)
        await worker.submit(order(CommandVerb.ABORT, "abort-1", after=after, reason=""))
        await worker.submit(start(WATCHED, command_id="start-2", issued_at=T0 + after))
    decisions = [json.loads(entry.value)["data"] for entry in world.published("decisions")]
    judged = [decision["judgement"] is not None for decision in decisions]
    assert [decision["kind"] for decision in decisions] == ["start", "abort", "start"]
    assert judged == [False, True, False]
    (alert,) = [json.loads(entry.value)["data"] for entry in world.published("alerts")]
    assert (alert["kind"], alert["harm"]["failed_requests"]) == ("aborted", 10)


async def _stay_silent(world: World, worker: FlagWorker, evidence: Evidence, seconds: int) -> None:
    """Show the worker the same totals each second, as the reader of totals does."""
    assert worker.rollout is not None
    (newest,) = {progress.freshest for progress in evidence.partitions}
    for _ in range(seconds):
        await asyncio.sleep(1)
        now = world.clock.now()
        progress = make_progress(freshest=newest, reported_at=now)
        seen = replace(evidence, at=now, partitions=(progress,))
        worker.inbox.put_totals(NewTotals(worker.rollout.rollout_id, seen))
        await settled()


@in_virtual_time
async def test_a_silent_bake_is_told_and_told_again_when_it_is_over() -> None:
    """Events stop during a bake of a day: a hold and an alert after five minutes, once.

    They say what was counted. When events come again for as long, that is told too, also by a
    worker that took the flag over in between.
    """
    world = World()
    stages = make_stages(10, 50, bake=24 * HOUR, max_bake=72 * HOUR)
    guardrails = (make_guardrail(limit=0.05, margin=None),)
    plan = make_plan(stages=stages, guardrails=guardrails)
    async with world.worker() as worker:
        await worker.submit(start(plan))
        await asyncio.sleep(90)
        await look(world, worker)
        last = world.evidence(await world.stored())
        await _stay_silent(world, worker, last, 60 + 290)
        assert world.published("alerts") == []
        await _stay_silent(world, worker, last, 30)
        assert (await world.stored()).hold is HoldReason.HEALTH
        await _stay_silent(world, worker, last, 300)
    async with world.worker() as worker:
        for _ in range(310):
            await asyncio.sleep(1)
            await look(world, worker)
        assert (await world.stored()).hold is None
    alerts = [json.loads(entry.value)["data"] for entry in world.published("alerts")]
    assert [(alert["kind"], alert["severity"]) for alert in alerts] == [
        ("health_gap", "warning"),
        ("health_gap", "info"),
    ]
    assert len({alert["dedup_key"] for alert in alerts}) == 1
    assert all(alert["harm"]["failed_requests"] > 0 for alert in alerts)
    decisions = [json.loads(entry.value)["data"] for entry in world.published("decisions")]
    assert [decision["kind"] for decision in decisions] == ["start", "hold", "resume"]
    assert "stale for 5 min" in decisions[1]["reason"]


@in_virtual_time
async def test_a_policy_acts_in_the_bake() -> None:
    """A plan that rolls back without outcomes does so in the middle of a bake of a day."""
    world = World()
    stages = make_stages(10, 50, bake=24 * HOUR, max_bake=72 * HOUR)
    policies = {**DEFAULT_GAP_POLICIES, HealthGap.STALE: GapPolicy.ROLL_BACK}
    guardrails = (make_guardrail(limit=0.05, margin=None),)
    plan = make_plan(stages=stages, guardrails=guardrails, gap_policies=policies)
    async with world.worker() as worker:
        await worker.submit(start(plan))
        await asyncio.sleep(90)
        await look(world, worker)
        last = world.evidence(await world.stored())
        await _stay_silent(world, worker, last, 60 + 320)
        assert isinstance((await world.stored()).phase, RolledBack)


@in_virtual_time
async def test_between_two_full_judgements_every_look_asks_for_harm() -> None:
    """While a stage bakes, gaps and words are told once a second.

    A breach in between is found at the look that shows it.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(WATCHED))
        await asyncio.sleep(90)
        await look(world, worker)
        first = worker.judgement
        assert first is not None
        await asyncio.sleep(0.5)
        await look(world, worker, errors=11)
        assert worker.judgement is first
        await asyncio.sleep(0.5)
        await look(world, worker, errors=12)
        assert worker.judgement is not first
        await asyncio.sleep(0.1)
        world.contexts += 500
        await look(world, worker, errors=400)
        assert isinstance((await world.stored()).phase, RolledBack)


@in_virtual_time
async def test_evidence_goes_before_queued_commands() -> None:
    """However many commands wait, the look comes first: no queue stands before a breach."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(WATCHED))
        await asyncio.sleep(90)
        futures = [
            worker.submit(order(CommandVerb.FREEZE, f"freeze-{n}", after=90 * timedelta(seconds=1)))
            for n in range(50)
        ]
        await look(world, worker, errors=300)
        await asyncio.gather(*futures)
    decisions = [json.loads(entry.value)["data"]["kind"] for entry in world.published("decisions")]
    assert decisions == ["start", "roll_back"]


# --- saved before performed ---


@in_virtual_time
async def test_nothing_is_published_or_served_before_it_is_saved() -> None:
    """While Redis is away a command leads to nothing outside.

    When it is back, to everything once.
    """
    world = World()
    async with world.worker() as worker:
        world.rollouts.outage.is_down = True
        done = worker.submit(start())
        await asyncio.sleep(20)
        assert (world.publisher.published, world.transitions, done.done()) == ([], [], False)
        world.rollouts.outage.is_down = False
        await done
        await settled()
        assert world.transitions[-1].percent == 10
    assert len(world.results()) == 1


@in_virtual_time
async def test_a_crash_between_save_and_publish_loses_nothing() -> None:
    """What was saved and not published is published by the next worker, under the same ids."""
    world = World()
    world.publisher.outage.is_down = True
    async with world.worker() as worker:
        await worker.submit(start())
    assert [entry.effect_id for entry in await world.unpublished()] == [
        f"{FLAG}/1/0",
        f"{FLAG}/1/1",
        f"{FLAG}/start-1",
    ]
    world.publisher.outage.is_down = False
    async with world.worker():
        await asyncio.sleep(1)
    assert [entry.effect_id for entry in world.publisher.published] == [
        f"{FLAG}/1/0",
        f"{FLAG}/1/1",
        f"{FLAG}/start-1",
    ]
    assert await world.unpublished() == []


@in_virtual_time
async def test_a_crash_between_publish_and_settle_repeats_the_same_bytes() -> None:
    """An effect published twice is one effect: the same id and the same value."""
    world = World()
    async with world.worker() as worker:
        world.publisher.outage.lost_replies = 1
        await worker.submit(start())
    async with world.worker():
        await asyncio.sleep(5)
    values: dict[str, set[bytes]] = {}
    for entry in world.publisher.published:
        values.setdefault(entry.effect_id, set()).add(entry.value)
    assert len(world.publisher.published) > len(values)
    assert all(len(each) == 1 for each in values.values())


@in_virtual_time
async def test_kafka_away_delays_effects_and_forgets_none() -> None:
    """Transitions go on while Kafka is away; their effects wait in order, and arrive in order."""
    world = World()
    async with world.worker() as worker:
        world.publisher.outage.is_down = True
        await worker.submit(start())
        await worker.submit(order(CommandVerb.PAUSE, "pause-1"))
        await asyncio.sleep(600)
        assert len(worker.outbox) == len(await world.unpublished()) == 6
        world.publisher.outage.is_down = False
        await asyncio.sleep(10)
        assert len(worker.outbox) == len(await world.unpublished()) == 0
    assert [entry.effect_id for entry in world.published("results")] == [
        f"{FLAG}/start-1",
        f"{FLAG}/pause-1",
    ]


@in_virtual_time
async def test_redis_away_after_publishing_delays_the_settling_only() -> None:
    """A settle that fails is tried again.

    The effects go out again under their ids, and the outbox empties.
    """
    world = World()
    async with world.worker() as worker:
        world.publisher.outage.is_down = True
        await worker.submit(start())
        world.publisher.outage.is_down = False
        world.rollouts.outage.is_down = True
        await asyncio.sleep(20)
        world.rollouts.outage.is_down = False
        await asyncio.sleep(10)
        assert len(worker.outbox) == 0
    assert await world.unpublished() == []


# --- outages age nothing ---


@in_virtual_time
async def test_a_command_that_waited_out_an_outage_is_decided_as_of_now() -> None:
    """A promote saved an hour late begins its stage an hour late.

    No bake is over before the percentage was served.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        world.rollouts.outage.is_down = True
        done = worker.submit(order(CommandVerb.PROMOTE, "promote-1"))
        await asyncio.sleep(9 * 60)
        world.rollouts.outage.is_down = False
        await done
        rollout = await world.stored()
    assert rollout.percent == 50
    assert rollout.visits[-1].entered_at >= T0 + 9 * MINUTE
    assert isinstance(rollout.phase, Baking)
    assert rollout.phase.until >= T0 + 20 * MINUTE


@in_virtual_time
async def test_a_raising_command_that_waited_too_long_is_refused() -> None:
    """An order from before an hour's outage is not an order for now.

    It still gets its one answer.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        world.rollouts.outage.is_down = True
        done = worker.submit(order(CommandVerb.PROMOTE, "promote-1"))
        await asyncio.sleep(3600)
        world.rollouts.outage.is_down = False
        await done
        await settled()
        assert (await world.stored()).percent == 10
    assert [result["status"] for result in world.results()] == ["accepted", "rejected"]


@pytest.mark.parametrize(("outage_seconds", "percent"), [(0, 50), (300, 10)])
@in_virtual_time
async def test_evidence_that_waited_out_an_outage_is_stale(
    outage_seconds: int, percent: float
) -> None:
    """A look that passes a gate when it is fresh passes none after it waited for Redis.

    It is judged by the time it is.
    """
    world = World()
    plan = make_plan(
        stages=make_stages(10, 50), guardrails=(make_guardrail(limit=0.2, margin=None),)
    )
    async with world.worker() as worker:
        await worker.submit(start(plan))
        for _ in range(10):
            await asyncio.sleep(60)
            await look(world, worker)
        await asyncio.sleep(61)
        assert isinstance((await world.stored()).phase, Gating)
        world.rollouts.outage.is_down = True
        worker.submit(
            order(CommandVerb.RESUME, "resume-1", after=11 * MINUTE)
        )  # it needs an answer, and the look waits behind it
        await settled()
        assert worker.rollout is not None
        worker.inbox.put_totals(
            NewTotals(worker.rollout.rollout_id, world.evidence(worker.rollout))
        )
        await asyncio.sleep(outage_seconds)
        world.rollouts.outage.is_down = False
        await asyncio.sleep(10)
        assert (await world.stored()).percent == percent


@in_virtual_time
async def test_a_bake_that_ended_in_an_outage_is_followed_by_its_gate() -> None:
    """After an outage longer than bake and gate nothing is skipped.

    The gate opens, and has its full time.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        world.rollouts.outage.is_down = True
        await asyncio.sleep(3 * 3600)
        world.rollouts.outage.is_down = False
        await asyncio.sleep(10)
        rollout = await world.stored()
    assert isinstance(rollout.phase, Gating)
    assert rollout.phase.until - rollout.phase.since == 50 * MINUTE
    assert rollout.phase.since >= T0 + 3 * HOUR


# --- commands before the first evidence ---


class Counted:
    """Evidence as Redis has it, or why it cannot be read."""

    def __init__(self, world: World, trouble: Exception | None = None) -> None:
        self.world, self.trouble = world, trouble

    async def read(self, rollout: Rollout) -> Evidence:
        """Return it."""
        if isinstance(self.trouble, TimeoutError):
            await asyncio.sleep(3600)
        if self.trouble is not None:
            raise self.trouble
        return self.world.evidence(rollout)


async def rolled_back_by(world: World, counted: Counted) -> dict[str, Any]:
    """Return the decision of a worker that has never been given evidence."""
    async with world.worker() as worker:
        await worker.submit(start(WATCHED))
    async with world.worker(evidence=counted) as guest:
        await guest.submit(order(CommandVerb.ROLL_BACK, "back-1"))
        await settled()
    decision: dict[str, Any] = json.loads(world.published("decisions")[-1].value)["data"]
    assert decision["kind"] == "roll_back"
    return decision


@in_virtual_time
async def test_a_command_before_the_first_evidence_is_recorded_with_what_is_counted() -> None:
    """A guest on another replica, and a worker that has just started, have judged nothing yet."""
    world = World()
    decision = await rolled_back_by(world, Counted(world))
    assert decision["judgement"]["metrics"][0]["arms"]["treatment"]["trials"] > 0
    assert decision["evidence_trouble"] is None


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        (StoreUnavailable("no answer"), "what was counted could not be read: no answer"),
        (TimeoutError(), "what was counted could not be read: no answer within 0.5 s"),
    ],
)
def test_a_command_does_not_wait_for_evidence_that_cannot_be_read(
    trouble: Exception, why: str
) -> None:
    """It is carried out within half a second, and its record says why it has no evidence."""

    @in_virtual_time
    async def test() -> None:
        world = World()
        decision = await rolled_back_by(world, Counted(world, trouble))
        assert world.clock.monotonic() < 1
        assert decision["judgement"] is None
        assert decision["evidence_trouble"] == why

    test()
