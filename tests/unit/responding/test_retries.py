"""What was refused is given again while its condition fires: bounded, and told once."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from controller.core.rollout import Baking, RolledBack
from controller.responding.retries import DELAYS
from tests.builders import HOUR, MINUTE
from tests.unit.responding.test_matching import BEGAN, rollout, rule
from tests.unit.responding.test_responder import Died, World

LONG = sum(DELAYS) + 60
BUSY = "100 commands of this flag wait already"


def refusing(*rules: object, **fields: object) -> World:
    """Return a world whose flag takes no command for the time being."""
    world = World(*rules, **fields)  # type: ignore[arg-type]
    world.refusal = BUSY
    return world


async def test_what_was_refused_is_done_in_the_same_firing() -> None:
    """Under another id, because a refusal is the answer to its own; people are told twice."""
    world = refusing()
    assert await world.tell(id="s") == ["roll_back checkout-a"]
    assert f"refused: {BUSY}; it is tried again while this fires" in world.alerts[0].summary
    assert "rolloutctl rollback checkout-a" in world.alerts[0].action
    assert await world.wait(DELAYS[0] + DELAYS[1] + 1) == ["roll_back checkout-a"] * 2
    world.refusal = ""
    assert await world.wait(LONG) == ["roll_back checkout-a"]
    assert len({one.id for one in world.commands}) == 4
    assert len(world.alerts) == 2
    assert "rolled back to 0 % (try 4), because" in world.alerts[1].summary
    assert world.memory.recent[0].done[-1] == "checkout-a: rolled back to 0 % (try 4)"
    assert await world.tell(id="s2") == [], "it has acted"


async def test_the_tries_are_bounded_and_the_next_firing_acts_at_once() -> None:
    """Nothing was done, so there is nothing to be quiet after."""
    world = refusing(rule(quiet="2h"))
    await world.tell(id="s")
    assert len(await world.wait(LONG)) == len(DELAYS)
    assert len(world.alerts) == 2
    assert "is not tried again" in world.alerts[1].summary
    assert await world.wait(HOUR.total_seconds()) == []
    await world.tell("resolved")
    world.refusal = ""
    assert await world.tell(id="s2", started_at=world.clock.at) == ["roll_back checkout-a"]


async def test_a_storm_on_a_flag_that_refuses_is_told_once() -> None:
    """Each condition tries, none begins again with the tries, and one outcome is told."""
    world = refusing()
    for number in range(30):
        assert await world.tell(condition=f"c-{number}") == ["roll_back checkout-a"]
    assert len(world.alerts) == 1
    await world.tell("resolved", condition="c-0")
    assert len(world.alerts) == 1, "it lowered nothing that could stay low"
    world.refusal = ""
    assert await world.wait(LONG) == ["roll_back checkout-a"]
    assert await world.wait(LONG) == []
    assert len(world.alerts) == 2
    assert await world.tell(condition="one more") == []

    world = refusing()
    for number in range(30):
        await world.tell(condition=f"c-{number}")
    assert len(await world.wait(LONG)) <= len(DELAYS)
    assert len(world.alerts) == 2
    assert "is not tried again" in world.alerts[1].summary


async def test_a_refusal_that_cannot_change_is_final() -> None:
    """Somebody was quicker: there is nothing left that the rule means."""
    world = refusing()
    gone = replace(world.rollouts["checkout-a"], percent=0.0, phase=RolledBack(BEGAN, "bad"))
    send = world.send

    async def quicker(command: object) -> object:
        world.rollouts["checkout-a"] = gone
        return await send(command)  # type: ignore[arg-type]

    world.send = quicker  # type: ignore[method-assign, assignment]
    await world.tell()
    assert "tried again" not in world.alerts[0].summary
    assert "rolloutctl get checkout-a" in world.alerts[0].action
    assert await world.wait(LONG) == []
    assert len(world.alerts) == 1


@pytest.mark.parametrize("end", ["over", "removed", "dry", "restarted", "off", "narrower"])
async def test_it_ends_with_what_it_was_about(end: str) -> None:
    """Its condition, its rule, its rollout: no later one is lowered for it."""
    world = refusing()
    await world.tell(id="s")
    known = world.rollouts["checkout-a"]
    match end:
        case "over":
            await world.tell("resolved")
        case "removed":
            world.rules[:] = [rule(name="another")]
        case "dry":
            world.rules[:] = [rule(dry_run=True)]
        case "narrower":
            world.rules[:] = [rule(flags="search")]
        case "restarted":
            world.rollouts["checkout-a"] = replace(known, rollout_id="start-2")
        case _:
            world.rollouts["checkout-a"] = replace(
                known, percent=0.0, phase=RolledBack(BEGAN, "bad")
            )
    assert await world.wait(LONG) == []
    assert world.memory.retries == []


async def test_what_is_meant_now_is_commanded() -> None:
    """It was stepped back to the first stage meanwhile: there it is paused."""
    one = replace(rollout("checkout-a"), phase=Baking(1, BEGAN))
    world = refusing(rule(do="step_back"), rollouts=(one,))
    await world.tell(id="s")
    world.rollouts["checkout-a"] = replace(one, phase=Baking(0, BEGAN))
    world.refusal = ""
    assert await world.wait(LONG) == ["pause checkout-a"]
    assert "paused: there is no stage below" in world.alerts[1].summary


async def test_of_two_replicas_one_tries_and_after_a_crash_the_other() -> None:
    """Within a minute after the first one is gone."""
    one, other = refusing(), refusing()
    other.store, other.rollouts, other.clock = one.store, one.rollouts, one.clock
    other.crash()
    await one.tell(id="s")
    for _ in range(40):
        one.clock.at += timedelta(seconds=1)
        await one.retries.try_due()
        await other.retries.try_due()
    assert len(one.commands) + len(other.commands) == 4, "at 0, 5, 15 and 35 s"
    assert await other.wait(LONG + 60)
    assert len(other.alerts) == 1


async def test_a_result_that_is_not_known_is_asked_for_under_the_same_id() -> None:
    """So that nothing is carried out twice."""
    world = World()
    world.unknown = "Kafka has the command, and it has no result yet"
    await world.tell(id="s")
    await world.wait(20)
    world.unknown = ""
    assert await world.wait(LONG) == ["roll_back checkout-a"]
    assert len(world.commands) == 4
    assert len({one.id for one in world.commands}) == 1
    assert "rolled back to 0 %" in world.alerts[-1].summary
    assert len(world.alerts) == 2


async def test_a_result_that_comes_by_another_way_is_shown() -> None:
    """Redis was away: what waited was carried out when it came back."""
    world = World()
    world.unknown = "Redis has not saved it. It is saved once Redis takes it."
    await world.tell(id="s")
    assert "once Redis takes it, because" in world.alerts[0].summary
    known = world.rollouts["checkout-a"]
    world.rollouts["checkout-a"] = replace(known, percent=0.0, phase=RolledBack(BEGAN, "bad"))
    assert await world.wait(LONG) == []
    assert world.memory.recent[0].done[-1] == "checkout-a: serves 0 % now"
    assert len(world.alerts) == 1


async def test_what_could_not_be_sent_is_no_refusal() -> None:
    """Kafka is away for an hour: then it is tried as often as before."""
    world = refusing()
    await world.tell(id="s")
    world.trouble = {"checkout-a"}
    assert await world.wait(HOUR.total_seconds()) == []
    world.trouble = set()
    world.refusal = ""
    assert await world.wait(LONG) == ["roll_back checkout-a"]


async def test_a_crash_before_the_signal_is_remembered_ends_no_retry() -> None:
    """Of two flags one could not be sent: the signal is handled again until it can."""
    world = refusing(rollouts=(rollout("checkout-a"), rollout("checkout-b")))
    world.trouble = {"checkout-b"}
    with pytest.raises(Exception, match="Kafka is away"):
        await world.tell(id="s")
    await world.wait(LONG)
    assert len(world.memory.retries) == 1
    world.trouble = set()
    await world.tell(id="s")
    world.refusal = ""
    assert sorted(await world.wait(LONG)) == ["roll_back checkout-a", "roll_back checkout-b"]


async def test_a_crash_before_people_hear_of_a_try_repeats_it() -> None:
    """Under the same id: it is carried out once, and told."""
    world = refusing()
    await world.tell()
    world.refusal, world.dies_before_alerts = "", True
    before = len(world.commands)
    with pytest.raises(Died):
        await world.wait(LONG)
    world.dies_before_alerts = False
    one = world.rollouts["checkout-a"]
    world.rollouts["checkout-a"] = replace(one, phase=RolledBack(BEGAN, "harm"), percent=0.0)
    world.crash()
    await world.memory.refresh()
    await world.wait(LONG)
    tried = world.commands[before:]
    assert len(tried) == 2
    assert len({one.id for one in tried}) == 1
    assert "rolled back to 0 % (try 2)" in world.alerts[-1].summary
    assert world.memory.retries == []


async def test_a_late_end_lets_go_all_the_same() -> None:
    """What lets a flag go may be read after an outage: it counts from when it is commanded."""
    world = World(rule(do="hold"))
    await world.tell()
    received_at = world.clock.at
    world.clock.at += HOUR
    await world.tell("resolved", received_at=received_at)
    assert world.commands[-1].issued_at == world.clock.at


async def test_a_flag_that_could_not_be_let_go_is_let_go_later() -> None:
    """Nothing else would: its condition is over already."""
    world = World(rule(do="hold"))
    await world.tell()
    world.refusal = BUSY
    await world.tell("resolved")
    assert f"unfreeze was refused: {BUSY}" in world.memory.recent[0].done[0]
    world.refusal = ""
    assert await world.wait(LONG) == ["unfreeze checkout-a"]
    assert world.rollouts["checkout-a"].freeze is None
    assert world.memory.retries == []


async def test_a_flag_that_is_held_again_is_not_let_go() -> None:
    """By another firing, or another condition, meanwhile."""
    for condition in ("c", "another"):
        world = World(rule(do="hold", quiet="0s"))
        await world.tell(condition="c", started_at=BEGAN)
        world.refusal = BUSY
        await world.tell("resolved", condition="c", started_at=BEGAN)
        world.refusal = ""
        await world.tell(condition=condition, started_at=BEGAN + MINUTE)
        await world.wait(LONG)
        assert world.rollouts["checkout-a"].freeze is not None
        assert world.memory.retries == []
