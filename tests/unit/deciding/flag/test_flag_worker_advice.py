"""What a flag's worker does with a model's advice, with timers and with wrong clocks."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from controller.adapters.memory import MemoryAdvisor
from controller.core.effects import RaiseAlert
from controller.core.judging.judgement import Explanation
from controller.core.plan import Window
from controller.core.rollout import (
    AwaitingApproval,
    Baking,
    Gating,
    Paused,
    RolledBack,
    Rollout,
    Scheduled,
)
from controller.deciding.commentary.explanations import ExplanationQueue
from controller.deciding.flag.flag_inbox import NewTotals
from controller.deciding.flag.flag_worker import FlagWorker
from schemas.terms import AdvisorMode, Approval, CommandVerb
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_advice,
    make_command,
    make_guardrail,
    make_plan,
    make_rollout,
    make_stages,
    make_visit,
)
from tests.unit.deciding.worker_world import (
    CAN_HOLD,
    FLAG,
    PLAN,
    WATCHED,
    Doubts,
    HangingAdvisor,
    World,
    look,
    order,
    start,
)
from tests.virtual_time import in_virtual_time, settled


@in_virtual_time
async def test_a_hanging_model_delays_its_gate_to_the_deadline_and_nothing_else() -> None:
    """While the model hangs, commands and breaches work at once.

    At the deadline the gate goes on without it.
    """
    advisor = HangingAdvisor()
    world = World(advisor=advisor)
    async with world.worker() as worker:
        await worker.submit(start(replace(PLAN, advisor=CAN_HOLD)))
        await asyncio.sleep(11 * 60 + 1)
        await look(world, worker)
        assert len(advisor.asked) == 1
        await asyncio.sleep(10)
        await worker.submit(order(CommandVerb.FREEZE, "freeze-1", after=12 * MINUTE))
        await worker.submit(order(CommandVerb.UNFREEZE, "unfreeze-1", after=12 * MINUTE))
        await asyncio.sleep(19)
        await look(world, worker)
        assert (await world.stored()).percent == 10
        await asyncio.sleep(2)
        await look(world, worker)
        assert (await world.stored()).percent == 50


@in_virtual_time
async def test_a_breach_does_not_wait_for_a_hanging_model() -> None:
    """The question is open, the evidence turns: 0 % in the same step."""
    world = World(advisor=HangingAdvisor())
    plan = make_plan(
        stages=make_stages(10, 50),
        guardrails=(make_guardrail(limit=0.2, margin=None),),
        advisor=CAN_HOLD,
    )
    async with world.worker() as worker:
        await worker.submit(start(plan))
        for _ in range(11):
            await asyncio.sleep(60)
            await look(world, worker)
        await asyncio.sleep(1)
        await look(world, worker)
        rollout = await world.stored()
        assert isinstance(rollout.phase, Gating)
        assert rollout.phase.advice is not None
        world.contexts += 2000
        await asyncio.sleep(1)
        await look(world, worker, errors=900)
        assert (await world.stored()).percent == 0


@in_virtual_time
async def test_an_answer_is_heeded() -> None:
    """Proceed lets the gate close; hold keeps it, and the answer stands in the document."""
    world = World(advisor=MemoryAdvisor(make_advice("hold"), make_advice("proceed")))
    async with world.worker() as worker:
        await worker.submit(start(replace(PLAN, advisor=CAN_HOLD)))
        await asyncio.sleep(11 * 60 + 1)
        await look(world, worker)
        await look(world, worker)
        assert (await world.stored()).percent == 10
        await asyncio.sleep(301)
        await look(world, worker)
        await look(world, worker)
        assert (await world.stored()).percent == 50
        assert [question.round for question in world.advisor.asked] == [1, 2]


@in_virtual_time
async def test_advice_is_held_against_the_outcome() -> None:
    """When the evidence ends a rollout.

    The last advice of each of its gates is counted as right or wrong.
    """
    world = World(
        advisor=MemoryAdvisor(make_advice("hold"), make_advice("proceed"), make_advice("hold"))
    )
    async with world.worker() as worker:
        await worker.submit(start(replace(WATCHED, advisor=CAN_HOLD)))
        await asyncio.sleep(11 * 60 + 1)
        for _ in range(2):
            await look(world, worker)
            await asyncio.sleep(301)
        for _ in range(3):
            await look(world, worker)
        assert (await world.stored()).percent == 50
        world.contexts += 2000
        await asyncio.sleep(120)  # past settle
        await look(world, worker, errors=900)
        assert (await world.stored()).percent == 0
    counted = world.metrics.registry.get_sample_value
    labels = {"choice": "proceed", "agrees": "no"}
    assert counted("rolloutd_advice_agreement_total", labels) == 1
    assert counted("rolloutd_advice_agreement_total", {"choice": "hold", "agrees": "yes"}) == 0


@in_virtual_time
async def test_an_alert_is_told_to_who_may_explain_it() -> None:
    """Whoever explains hears of an alert once it is saved, with the rollout as it is then.

    What they add has its own id.
    """
    heard: list[tuple[Rollout, RaiseAlert]] = []
    world = World()
    queue = ExplanationQueue(world.metrics)
    queue.request = lambda rollout, alert: heard.append((rollout, alert))  # type: ignore[method-assign]
    async with world.worker(explanations=queue) as worker:
        await worker.submit(start(WATCHED))
        await asyncio.sleep(11 * 60 + 1)
        await look(world, worker, errors=900)
        (rollout, alert) = heard[-1]
        assert isinstance(rollout.phase, RolledBack)
        assert alert.judgement is not None
        guess = Explanation("a cause", ("a step",), "tiny", "http://m", "explain-v1", "0" * 64, 5)
        worker.alert(replace(alert, explanation=guess))
        await settled()
    first, later = world.published("alerts")
    said = json.loads(later.value)["data"]
    assert first.effect_id != later.effect_id
    assert json.loads(first.value)["data"]["explanation"] is None
    assert said["dedup_key"] == json.loads(first.value)["data"]["dedup_key"]
    assert said["explanation"]["likely_cause"] == "a cause"


@in_virtual_time
async def test_a_question_whose_asker_died_is_asked_again() -> None:
    """The next worker knows that nobody waits for the answer any more."""
    advisor = HangingAdvisor()
    world = World(advisor=advisor)
    async with world.worker() as worker:
        await worker.submit(start(replace(PLAN, advisor=CAN_HOLD)))
        await asyncio.sleep(11 * 60 + 1)
        await look(world, worker)
    async with world.worker() as worker:
        await look(world, worker)
        assert [(question.gate_id, question.round) for question in advisor.asked] == [
            ("start-1.2", 1)
        ] * 2


@in_virtual_time
async def test_a_question_saved_with_a_lost_reply_is_asked() -> None:
    """A question that may be saved and that nobody has put is put by the next look."""
    advisor = HangingAdvisor()
    world = World(advisor=advisor)
    async with world.worker() as worker:
        await worker.submit(start(replace(PLAN, advisor=CAN_HOLD)))
        await asyncio.sleep(11 * 60 + 1)
        world.rollouts.outage.lost_replies = 1
        await look(world, worker)
        await asyncio.sleep(2)
        await look(world, worker)
        assert len(advisor.asked) == 1


@in_virtual_time
async def test_without_a_model_nobody_is_asked_or_waited_for() -> None:
    """The replica's settings say whether there is a model, also for a rollout under way."""
    world = World(advisor=HangingAdvisor())
    async with world.worker(has_advisor=False) as worker:
        await worker.submit(start(replace(PLAN, advisor=CAN_HOLD)))
        assert worker.rollout is not None
        assert not worker.rollout.has_advisor
    async with world.worker(has_advisor=True) as worker:
        assert worker.rollout is not None
        assert worker.rollout.has_advisor
    async with world.worker(has_advisor=False) as worker:
        refused = start(
            replace(PLAN, advisor=replace(CAN_HOLD, mode=AdvisorMode.REQUIRED)),
            command_id="start-2",
        )
        await worker.submit(order(CommandVerb.ABORT, "abort-1"))
        await worker.submit(refused)
        await settled()
    assert "rolloutd has no model" in world.results()[-1]["reason"]


@in_virtual_time
async def test_approval_is_asked_after_advice() -> None:
    """When advice says proceed and the plan wants a person, the person is asked.

    An approval of that revision advances.
    """
    stages = make_stages(10, 50, approval=Approval.REQUIRED)
    world = World(advisor=MemoryAdvisor(make_advice()))
    async with world.worker() as worker:
        await worker.submit(start(replace(PLAN, stages=stages, advisor=CAN_HOLD)))
        await asyncio.sleep(11 * 60 + 1)
        await look(world, worker)
        await look(world, worker)
        rollout = await world.stored()
        assert isinstance(rollout.phase, AwaitingApproval)
        now = world.clock.now()
        await worker.submit(
            make_command(
                CommandVerb.APPROVE,
                issued_at=now,
                command_id="approve-1",
                expected_revision=rollout.revision,
            )
        )
        assert (await world.stored()).percent == 50


@in_virtual_time
async def test_an_approval_meets_the_gaps_of_the_newest_evidence() -> None:
    """What the worker saw last counts: during a gap nobody raises by an approval."""
    stages = make_stages(10, 50, approval=Approval.REQUIRED)
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(replace(PLAN, stages=stages)))
        await asyncio.sleep(11 * 60 + 1)
        await look(world, worker)
        rollout = await world.stored()
        assert isinstance(rollout.phase, AwaitingApproval)
        await asyncio.sleep(120)
        drift = replace(world.evidence(rollout), actuation_drift="a plane serves 5 %")
        worker.inbox.put_totals(NewTotals(rollout.rollout_id, drift))
        await settled()
        assert (await world.stored()).revision == rollout.revision
        for command_id in ("approve-1", "approve-2"):
            await worker.submit(
                make_command(
                    CommandVerb.APPROVE,
                    issued_at=world.clock.now(),
                    command_id=command_id,
                    expected_revision=rollout.revision,
                )
            )
            if command_id == "approve-1":
                assert (await world.stored()).percent == 10
                await asyncio.sleep(2)
                await look(world, worker)
        assert (await world.stored()).percent == 50
    assert "a plane serves 5 %" in world.results()[-2]["reason"]


@pytest.mark.parametrize(
    "verb", [CommandVerb.PROMOTE, CommandVerb.RETRY, CommandVerb.ROLL_BACK, CommandVerb.PAUSE]
)
@in_virtual_time
async def test_who_goes_past_a_gap_is_told_which_one_is_open(verb: CommandVerb) -> None:
    """The command is carried out; its answer names the gap, unless it moves nothing."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        await asyncio.sleep(5 * 60)
        rollout = await world.stored()
        drift = replace(world.evidence(rollout), actuation_drift="a plane serves 5 %")
        worker.inbox.put_totals(NewTotals(rollout.rollout_id, drift))
        await settled()
        await worker.submit(make_command(verb, issued_at=world.clock.now(), command_id="c-1"))
    answer = world.results()[-1]
    assert answer["status"] == "accepted"
    told = "at this moment the evidence cannot be judged: actuation_drift: a plane serves 5 %"
    assert (told in answer["reason"]) == (verb is not CommandVerb.PAUSE)
    assert "below_min_sample" not in answer["reason"]


@pytest.mark.parametrize("verb", [CommandVerb.PROMOTE, CommandVerb.ROLL_BACK])
@in_virtual_time
async def test_a_rollback_is_answered_without_what_does_not_matter_to_it(
    verb: CommandVerb,
) -> None:
    """That nobody could judge the evidence is told to who promotes, not to who rolls back."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(make_plan(guardrails=(make_guardrail(margin=None, limit=0.5),))))
        await asyncio.sleep(5 * 60)
        rollout = await world.stored()
        incomplete = replace(world.evidence(rollout), expected_partitions=2)
        worker.inbox.put_totals(NewTotals(rollout.rollout_id, incomplete))
        await settled()
        await worker.submit(make_command(verb, issued_at=world.clock.now(), command_id="c-1"))
    reason = world.results()[-1]["reason"]
    assert ("at this moment the evidence cannot be judged: " in reason) == (
        verb is CommandVerb.PROMOTE
    )
    assert verb is CommandVerb.PROMOTE or reason == "done"


@in_virtual_time
async def test_a_rollback_while_closed_names_no_gap() -> None:
    """What was a gap before the closing is none now: nothing is counted."""
    world = World()
    half = Window(frozenset(range(1, 8)), 540, 30, "UTC")
    async with world.worker() as worker:
        await worker.submit(start(replace(PLAN, active=(half,))))
        await asyncio.sleep(5 * 60)
        rollout = await world.stored()
        drift = replace(world.evidence(rollout), actuation_drift="a plane serves 5 %")
        worker.inbox.put_totals(NewTotals(rollout.rollout_id, drift))
        await asyncio.sleep(30 * 60)
        assert (await world.stored()).closed_since is not None
        lowering = make_command(
            CommandVerb.ROLL_BACK, issued_at=world.clock.now(), command_id="c-1"
        )
        await worker.submit(lowering)
    assert world.results()[-1]["reason"] == "done"


# --- the rest ---


@in_virtual_time
async def test_a_scheduled_start_comes_by_time() -> None:
    """A plan with a later start waits at 0 % and begins then, once."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(replace(PLAN, start_at=T0 + HOUR)))
        assert isinstance((await world.stored()).phase, Scheduled)
        await asyncio.sleep(3600.5)
        assert (await world.stored()).percent == 10


@in_virtual_time
async def test_an_undecided_gate_pauses_by_time() -> None:
    """Without any evidence at all the gate pauses at max_bake, with an alert."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(WATCHED))
        await asyncio.sleep(3600 + 61)
        assert isinstance((await world.stored()).phase, Paused)
        await settled()
    assert [json.loads(entry.value)["data"]["kind"] for entry in world.published("alerts")] == [
        "paused"
    ]


@in_virtual_time
async def test_abandoned_commands_are_let_go() -> None:
    """When a flag moves to another replica, a waiting command is told so."""
    world = World()
    worker = FlagWorker(FLAG, world.dependencies())
    done = worker.submit(start())
    worker.abandon()
    assert done.cancelled()


@in_virtual_time
async def test_the_state_can_be_said_again() -> None:
    """The newest document is published again with its own id.

    And so is an alert that no transition caused.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        await settled()
        worker.republish_state()
        await settled()
    states = [entry for entry in world.publisher.published if entry.topic == "state"]
    assert [entry.effect_id for entry in states] == [f"{FLAG}/1/0"] * 2


@in_virtual_time
async def test_a_stage_that_a_wrong_clock_entered_tomorrow_does_not_stand_still() -> None:
    """Taken over by a replica with a right clock, it bakes its whole time and goes on."""
    world = World()
    day = timedelta(days=1)
    visit = make_visit(entered_at=T0 + day, counts_from=T0 + day + MINUTE)
    phase = Baking(0, T0 + day + 11 * MINUTE)
    ahead = make_rollout(plan=PLAN, phase=phase, visits=(visit,), updated_at=T0 + day)
    await world.rollouts.save(FLAG, expected_token=0, rollout=ahead)
    async with world.worker(guard=Doubts("the clocks disagree")) as worker:
        assert worker.rollout == ahead
    async with world.worker(guard=Doubts()):
        stored = await world.stored()
        assert stored.revision == ahead.revision + 1
        assert stored.visits[-1].entered_at == stored.updated_at == world.clock.now()
        await asyncio.sleep(11 * 60 - 1)
        assert isinstance((await world.stored()).phase, Baking)
        await asyncio.sleep(5)
        assert isinstance((await world.stored()).phase, Gating)
    assert world.publisher.published[0].topic == "state"


@in_virtual_time
async def test_a_few_seconds_between_two_clocks_change_nothing() -> None:
    """Within the tolerance a rollout is taken over as it is."""
    world = World()
    ahead = make_rollout(plan=PLAN, updated_at=T0 + timedelta(seconds=8))
    await world.rollouts.save(FLAG, expected_token=0, rollout=ahead)
    async with world.worker():
        assert await world.stored() == ahead
