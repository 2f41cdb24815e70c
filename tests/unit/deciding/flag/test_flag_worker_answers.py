"""How a flag's worker answers commands, keeps its outbox bounded and recovers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.adapters.memory import MemoryRollouts
from controller.core.rollout import (
    Baking,
    Gating,
    RolledBack,
)
from controller.deciding.flag import safeguards as safeguards_module
from controller.deciding.flag.flag_inbox import NewTotals
from schemas.terms import CommandVerb
from tests.builders import (
    HOUR,
    T0,
    make_rollout,
)
from tests.unit.deciding.worker_world import _VERBS, FLAG, PLAN, WATCHED, World, look, order, start
from tests.virtual_time import in_virtual_time, settled

# --- compare-and-set ---


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


# --- one answer for each command ---


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


# --- a full outbox ---


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


# --- recovery ---


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
