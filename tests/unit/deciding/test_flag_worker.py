"""One flag's worker on memory adapters, in virtual time.

What is saved, published and asked when things go wrong around it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.adapters.memory import MemoryAdvisor, MemoryPublisher, MemoryRollouts
from controller.core.evidence import ArmTotals, Evidence, VisitTotals
from controller.core.judging.judgement import Advice, Explanation
from controller.core.plan import AdvisorPolicy, Plan
from controller.core.rollout import (
    AskAdvice,
    AwaitingApproval,
    Baking,
    Gating,
    Paused,
    RaiseAlert,
    RolledBack,
    Rollout,
    Scheduled,
)
from controller.deciding import safeguards as safeguards_module
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.explanations import ExplanationQueue
from controller.deciding.flag_inbox import NewTotals
from controller.deciding.flag_worker import FlagWorker
from controller.deciding.raise_guard import RaiseGuard
from controller.deciding.registry import RolloutRegistry
from controller.health import Faults
from controller.metrics import Metrics
from controller.ports import OutboxEntry
from schemas.terms import AdvisorMode, Approval, CommandVerb
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_advice,
    make_command,
    make_evidence,
    make_guardrail,
    make_plan,
    make_progress,
    make_rollout,
    make_stages,
    make_totals,
    make_visit,
)
from tests.virtual_time import LoopClock, in_virtual_time, settled

FLAG = "new-checkout"
PLAN = make_plan(stages=make_stages(10, 50, 100), blind=True, guardrails=())
#: Real statistics on few contexts: a limit that ten times the errors breach.
WATCHED = make_plan(
    stages=make_stages(10, 50, 100), guardrails=(make_guardrail(limit=0.05, margin=None),)
)
CAN_HOLD = AdvisorPolicy(
    mode=AdvisorMode.CAN_HOLD, deadline=timedelta(seconds=30), hold_rounds=2, hold_for=5 * MINUTE
)


class Doubts(RaiseGuard):
    """Why nothing may be raised, as a test says; nothing by default."""

    def __init__(self, *reasons: str) -> None:
        self.reasons = list(reasons)

    def why_not(self) -> str | None:
        """Return the first reason."""
        return self.reasons[0] if self.reasons else None


class WorldRegistry(RolloutRegistry):
    """The documents that others decided, and a note of what the worker decides."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def newest(self, flag_key: str) -> Rollout | None:
        """Return the state topic's document."""
        return self._world.newest

    def update_own(self, rollout: Rollout) -> None:
        """Note a transition."""
        self._world.transitions.append(rollout)


class World:
    """What surrounds one worker, and survives it."""

    def __init__(self, *, advisor: Any = None, newest: Rollout | None = None) -> None:
        self.clock = LoopClock()
        self.rollouts = MemoryRollouts()
        self.publisher = MemoryPublisher()
        self.advisor = advisor or MemoryAdvisor()
        self.transitions: list[Rollout] = []
        self.newest = newest
        self.contexts = 1000
        self.metrics = Metrics(version="test")
        self.faults = Faults(self.clock.now)

    def dependencies(self, **overrides: Any) -> WorkerDependencies:
        """Return what the worker is given."""
        fields: dict[str, Any] = {
            "rollouts": self.rollouts,
            "publisher": self.publisher,
            "advisor": self.advisor,
            "clock": self.clock,
            "metrics": self.metrics,
            "faults": self.faults,
            "registry": WorldRegistry(self),
            "guard": Doubts(),
        }
        return WorkerDependencies(**{**fields, **overrides})

    @asynccontextmanager
    async def worker(self, **overrides: Any) -> AsyncIterator[FlagWorker]:
        """Run a worker; leaving is a crash: nothing is drained."""
        worker = FlagWorker(FLAG, self.dependencies(**overrides))
        task = asyncio.create_task(worker.run())
        await settled()
        try:
            yield worker
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def evidence(self, rollout: Rollout, *, errors: int = 10) -> Evidence:
        """Return fresh evidence of the present visit: `errors` of a thousand contexts failed.

        Some more at every look.
        """
        now = self.clock.now()
        self.contexts += 10
        others = round(self.contexts * (100 - rollout.percent) / rollout.percent)
        totals = VisitTotals(
            treatment=arm(self.contexts, errors), control=arm(others, others // 100)
        )
        progress = make_progress(freshest=now, reported_at=now)
        return make_evidence(at=now, visits={rollout.visit_index: totals}, partitions=(progress,))

    def results(self) -> list[dict[str, Any]]:
        """Return the data of every result published, repeats included."""
        return [
            json.loads(entry.value)["data"]
            for entry in self.publisher.published
            if entry.topic == "results"
        ]

    def published(self, topic: str) -> list[OutboxEntry]:
        """Return each record of a topic once."""
        return self.publisher.distinct(topic)

    async def stored(self) -> Rollout:
        """Return the stored document."""
        stored = await self.rollouts.load(FLAG)
        assert stored.rollout is not None
        return stored.rollout

    async def unpublished(self) -> Sequence[OutboxEntry]:
        """Return what is saved and not settled."""
        return (await self.rollouts.load(FLAG)).outbox


def arm(contexts: int, errors: int) -> ArmTotals:
    """Return an arm of so many contexts, one request each."""
    return make_totals(
        evaluations=contexts,
        exposures=contexts,
        outcomes=contexts,
        errors=errors,
        at_risk=contexts,
        first_errors=errors,
        latency={198: contexts},
        latency_all={198: contexts},
    )


def start(plan: Plan = PLAN, **overrides: Any) -> Any:
    """Return a start command."""
    return make_command(CommandVerb.START, **{"command_id": "start-1", "plan": plan, **overrides})


def order(
    verb: CommandVerb, command_id: str, *, after: timedelta = timedelta(0), **overrides: Any
) -> Any:
    """Return a command issued so long after `T0`."""
    at = T0 + after
    return make_command(verb, command_id=command_id, **{"issued_at": at, **overrides})


async def look(world: World, worker: FlagWorker, *, errors: int = 10) -> None:
    """Show the worker fresh evidence, and let it decide."""
    assert worker.rollout is not None
    totals = NewTotals(worker.rollout.rollout_id, world.evidence(worker.rollout, errors=errors))
    worker.inbox.put_totals(totals)
    await settled()


# --- the ordinary way
# --------------------------------------------------------------------------------------------------


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


# --- saved before performed
# --------------------------------------------------------------------------------------------------


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


# --- outages age nothing
# --------------------------------------------------------------------------------------------------


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


# --- compare-and-set
# --------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_an_overtaken_save_is_decided_again_on_what_was_saved() -> None:
    """Two replicas run one flag.

    The second to save looks again, and the roll back of the first stands.
    """
    world = World()
    async with world.worker() as first:
        await first.submit(start())
        async with world.worker() as second:
            await first.submit(order(CommandVerb.ROLL_BACK, "roll-back-1"))
            await second.submit(order(CommandVerb.PROMOTE, "promote-1"))
            await settled()
            assert second.rollout == await world.stored()
        assert isinstance((await world.stored()).phase, RolledBack)
    assert [result["status"] for result in world.results()] == ["accepted", "accepted", "rejected"]


@in_virtual_time
async def test_two_replicas_with_the_same_command_obey_it_once() -> None:
    """Whoever loses the race finds the answer of the other, and gives that."""
    world = World()

    class Racing(MemoryRollouts):
        """Lets the other replica save between our question for an answer and our save."""

        hurry: Any = None

        async def answer_to(self, flag_key: str, command_id: str) -> bytes | None:
            answer = await super().answer_to(flag_key, command_id)
            if self.hurry is not None:
                hurry, self.hurry = self.hurry, None
                await hurry()
            return answer

    world.rollouts = rollouts = Racing()
    async with world.worker() as first:
        await first.submit(start())
        async with world.worker() as second:

            async def other_replica() -> None:
                await second.submit(order(CommandVerb.PROMOTE, "promote-1"))

            rollouts.hurry = other_replica
            await first.submit(order(CommandVerb.PROMOTE, "promote-1"))
            await settled()
        assert (await world.stored()).percent == 50
    values = {
        entry.value for entry in world.publisher.published if entry.effect_id == f"{FLAG}/promote-1"
    }
    assert len(values) == 1


@in_virtual_time
async def test_a_save_whose_reply_was_lost_happens_once() -> None:
    """The outcome is looked up, not guessed: one transition, one result."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        world.rollouts.outage.lost_replies = 0

        real_save = world.rollouts.save
        failures = [1]

        async def save(*args: Any, **kwargs: Any) -> bool:
            if failures:
                failures.pop()
                world.rollouts.outage.lost_replies = 1
            return await real_save(*args, **kwargs)

        world.rollouts.save = save  # type: ignore[method-assign]
        await worker.submit(order(CommandVerb.PROMOTE, "promote-1"))
        await settled()
        assert (await world.stored()).percent == 50
        assert (await world.stored()).revision == 2
        assert worker.rollout == await world.stored()
    assert (
        len(
            {
                entry.value
                for entry in world.publisher.published
                if entry.effect_id == f"{FLAG}/promote-1"
            }
        )
        == 1
    )


@in_virtual_time
async def test_totals_of_a_rollout_that_ended_are_not_judged_as_the_next_one_s() -> None:
    """Evidence that was read for the rollout before is dropped, however bad it looks."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start(WATCHED))
        await asyncio.sleep(90)
        assert worker.rollout is not None
        earlier = worker.rollout
        await worker.submit(order(CommandVerb.ABORT, "abort-1"))
        await worker.submit(start(WATCHED, command_id="start-2"))
        worker.inbox.put_totals(NewTotals(earlier.rollout_id, world.evidence(earlier, errors=500)))
        await settled()
        rollout = await world.stored()
    assert rollout.rollout_id == "start-2"
    assert isinstance(rollout.phase, Baking)


# --- one answer for each command
# ------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_repeated_command_gets_the_answer_it_got_and_does_nothing() -> None:
    """The same id again, at once or after a restart, gives the same bytes and no second effect."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        await worker.submit(order(CommandVerb.PROMOTE, "promote-1"))
        await worker.submit(order(CommandVerb.PROMOTE, "promote-1"))
    async with world.worker() as worker:
        await worker.submit(order(CommandVerb.PROMOTE, "promote-1"))
        await worker.submit(start())
        await settled()
        assert (await world.stored()).percent == 50
        assert (await world.stored()).revision == 2
    for command_id in ("start-1", "promote-1"):
        values = [
            entry.value
            for entry in world.publisher.published
            if entry.effect_id == f"{FLAG}/{command_id}"
        ]
        assert len(values) >= 2
        assert len(set(values)) == 1


_VERBS = st.sampled_from(
    [
        CommandVerb.START,
        CommandVerb.PROMOTE,
        CommandVerb.PAUSE,
        CommandVerb.RESUME,
        CommandVerb.ROLL_BACK,
        CommandVerb.RESTART,
    ]
)


@settings(max_examples=max(settings.default.max_examples // 2, 20))  # type: ignore[union-attr]
@given(
    st.lists(
        st.tuples(
            st.integers(0, 9),
            _VERBS,
            st.sampled_from(["", "", "", "crash", "lose a reply", "kafka"]),
        ),
        max_size=14,
    )
)
def test_any_order_of_commands_repeats_and_crashes_gives_each_id_one_answer(
    script: list[tuple[int, CommandVerb, str]],
) -> None:
    """Replayed ids give identical bytes and no second effect, whatever fails in between.

    I5, I7, I8.
    """
    first_verb: dict[int, CommandVerb] = {}

    @in_virtual_time
    async def play() -> None:
        world = World()
        steps = list(script)
        while True:
            world.publisher.outage.is_down = False
            async with world.worker() as worker:
                while steps:
                    number, verb, trouble = steps.pop(0)
                    verb = first_verb.setdefault(number, verb)
                    if trouble == "lose a reply":
                        world.rollouts.outage.lost_replies = 1
                    world.publisher.outage.is_down = trouble == "kafka"
                    command = order(
                        verb, f"c{number}", plan=PLAN if verb is CommandVerb.START else None
                    )
                    done = worker.submit(command)
                    if trouble == "crash":
                        steps.insert(0, (number, verb, ""))  # not committed: read again
                        break
                    await done
                else:
                    world.publisher.outage.is_down = False
                    await asyncio.sleep(30)
                    break
        ids = {f"c{number}" for number, _, _ in script}
        values: dict[str, set[bytes]] = {}
        for entry in world.publisher.published:
            values.setdefault(entry.effect_id, set()).add(entry.value)
        assert all(len(each) == 1 for each in values.values())
        assert {entry.effect_id for entry in world.published("results")} == {
            f"{FLAG}/{one}" for one in ids
        }
        assert await world.unpublished() == []
        stored = await world.rollouts.load(FLAG)
        revisions = [
            json.loads(entry.value)["data"]["revision"] for entry in world.published("state")
        ]
        assert revisions == list(range(1, len(revisions) + 1))
        assert len(revisions) == (0 if stored.rollout is None else stored.rollout.revision)

    play()


# --- a full outbox
# --------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_full_outbox_blocks_raising_and_never_lowering(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With Kafka away for long, a promote is refused with an answer, a gate stays shut.

    And a roll back works.
    """
    monkeypatch.setattr(safeguards_module, "OUTBOX_LIMIT", 3)
    world = World()
    async with world.worker() as worker:
        world.publisher.outage.is_down = True
        await worker.submit(start())
        await worker.submit(order(CommandVerb.PROMOTE, "promote-1"))
        assert (await world.stored()).percent == 10
        await asyncio.sleep(11 * 60 + 1)
        await look(world, worker)
        assert (await world.stored()).percent == 10
        await worker.submit(order(CommandVerb.ROLL_BACK, "roll-back-1"))
        assert (await world.stored()).percent == 0
        world.publisher.outage.is_down = False
        await asyncio.sleep(10)
    assert [(entry.effect_id) for entry in world.published("results")] == [
        f"{FLAG}/{one}" for one in ("start-1", "promote-1", "roll-back-1")
    ]
    assert [result["status"] for result in world.results()] == ["accepted", "rejected", "accepted"]


# --- recovery
# --------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_newer_document_in_the_state_topic_is_adopted() -> None:
    """Redis lost its last second.

    What was last decided and published goes on, and is stored again.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
    newest = replace(await world.stored(), revision=5, percent=0.0, phase=RolledBack(T0, "because"))
    world.newest = newest
    async with world.worker() as worker:
        assert worker.rollout == newest == await world.stored()
        assert world.transitions[-1] == newest


@in_virtual_time
async def test_an_emptied_redis_is_filled_from_the_state_topic() -> None:
    """Redis lost everything.

    The newest document known is taken up where it stands, and its bake goes on.
    """
    world = World(newest=make_rollout(revision=7, plan=PLAN))
    async with world.worker() as worker:
        assert worker.rollout == world.newest
        await asyncio.sleep(11 * 60 + 1)
        assert isinstance((await world.stored()).phase, Gating)
        assert (await world.stored()).revision == 8


@in_virtual_time
async def test_an_older_document_in_the_state_topic_changes_nothing() -> None:
    """What is stored is newer: the topic has yet to hear of it."""
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        await worker.submit(order(CommandVerb.ROLL_BACK, "roll-back-1"))
    stored = await world.stored()
    world.newest = make_rollout(revision=1, plan=PLAN)
    async with world.worker() as worker:
        assert worker.rollout == stored
        assert worker.rollout.percent == 0


@in_virtual_time
async def test_recovery_raises_nothing() -> None:
    """Whatever Redis and the topic hold.

    The percentage after recovery is one that was decided last by one of them.
    """
    for stored_revision in (None, 3, 6):
        for known in (None, make_rollout(revision=5, plan=PLAN, phase=Baking(1, T0 + 4 * HOUR))):
            world = World(newest=known)
            if stored_revision is not None:
                rollout = make_rollout(revision=stored_revision, plan=PLAN)
                await world.rollouts.save(FLAG, expected_token=0, rollout=rollout, tests=b"")
            decided = {None: 0.0, 3: 10.0, 6: 10.0}[stored_revision]
            is_topic_newer = known is not None and (stored_revision or 0) < known.revision
            async with world.worker() as worker:
                after = 0.0 if worker.rollout is None else worker.rollout.percent
            assert after == (known.percent if is_topic_newer and known is not None else decided)


@in_virtual_time
async def test_redis_falling_back_under_a_live_worker_is_noticed_at_the_next_save() -> None:
    """A fail-over that lost the last save refuses the next.

    The topic's document is adopted, and the event decided on it.
    """
    world = World()
    async with world.worker() as worker:
        await worker.submit(start())
        await worker.submit(order(CommandVerb.ROLL_BACK, "roll-back-1"))
        world.newest = await world.stored()
        lost = make_rollout(plan=PLAN)
        world.rollouts = fallen_back = MemoryRollouts()
        await fallen_back.save(FLAG, expected_token=0, rollout=lost, tests=b"")
        object.__setattr__(worker._dependencies, "rollouts", fallen_back)
        await worker.submit(order(CommandVerb.PAUSE, "pause-1"))
        assert worker.rollout is not None
        assert worker.rollout.percent == 0
        assert (await world.stored()).revision == world.newest.revision


# --- the model
# --------------------------------------------------------------------------------------------------


class HangingAdvisor:
    """Never answers."""

    def __init__(self) -> None:
        self.asked: list[AskAdvice] = []

    async def ask(self, rollout: Rollout, question: AskAdvice) -> Advice:
        self.asked.append(question)
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


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


# --- the rest
# --------------------------------------------------------------------------------------------------


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
