"""What signals hold, and when they let go of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from controller.core.rollout import Baking, Freeze
from controller.responding import memory
from tests.builders import HOUR, MINUTE, T0
from tests.unit.responding.test_matching import BEGAN, rollout, rule
from tests.unit.responding.test_responder import World


async def test_a_gate_is_held_while_any_condition_fires() -> None:
    """The last one that is over lets go; a freeze by a person stays."""
    world = World(rule(do="hold"))
    assert await world.tell(condition="one") == ["freeze checkout-a"]
    assert await world.tell(condition="two") == []
    world.crash()
    assert await world.tell("resolved", condition="one") == []
    assert world.memory.recent[0].done == ("checkout-a: held by another condition still",)
    assert await world.tell("resolved", condition="two") == ["unfreeze checkout-a"]

    frozen = replace(rollout("checkout-a"), freeze=Freeze(T0, "ada", "sale week"))
    world = World(rule(do="hold"), rollouts=(frozen,))
    assert await world.tell() == []
    assert await world.tell("resolved") == []
    assert "frozen by ada" in world.memory.recent[0].done[0]


async def test_what_is_held_is_let_go_of_after_redis_was_emptied() -> None:
    """A replica that knows what is held writes it again, also for the others."""
    world = World(rule(do="hold"))
    assert await world.tell(id="s") == ["freeze checkout-a"]
    world.store.fields.clear()
    await world.memory.refresh(0.0)
    world.crash()
    assert await world.tell("resolved") == ["unfreeze checkout-a"]


async def test_a_rule_acts_once_although_redis_was_emptied() -> None:
    """Who restarted the rollout while the condition fires has decided that."""
    world = World()
    assert await world.tell(id="s") == ["roll_back checkout-a"]
    world.store.fields.clear()
    world.rollouts["checkout-a"] = rollout("checkout-a")
    assert await world.tell(id="again") == []


async def test_a_rollout_that_is_started_while_it_fires_is_held_too() -> None:
    """With the next repeat of the same delivery; nothing else of it is done again."""
    world = World(rule(name="hold", do="hold"), rule(flags="search"))
    assert await world.tell(id="s") == ["freeze checkout-a"]
    for flag_key in ("checkout-b", "search"):
        one = rollout(flag_key, -2 * MINUTE)
        world.rollouts[flag_key] = replace(one, rollout_id="start-2", started_at=world.clock.at)
    assert await world.tell(id="s") == ["freeze checkout-b"]
    assert await world.tell(id="s") == []
    assert sorted(await world.tell("resolved")) == ["unfreeze checkout-a", "unfreeze checkout-b"]
    assert await world.tell(id="s") == [], "a late copy"


async def test_the_late_end_of_an_earlier_firing_lets_nothing_go() -> None:
    """The later one goes on: it holds until its own end, or one without a begin, is told."""
    first, second = BEGAN - 15 * MINUTE, BEGAN
    for end in (second, None):
        world = World(rule(do="hold"))
        assert await world.tell(id="f1", started_at=first) == ["freeze checkout-a"]
        await world.tell(id="f2", started_at=second)
        assert await world.tell("resolved", id="r1", started_at=first) == []
        assert "a later one goes on" in world.memory.recent[0].done[0]
        assert await world.tell(id="f2", started_at=second) == []
        assert await world.tell("resolved", id="r2", started_at=end) == ["unfreeze checkout-a"]


async def test_replicas_that_differ_in_the_begin_tell_the_end_of_one_firing() -> None:
    """As do those of Prometheus and Grafana, by seconds. Our checks come in order anyway."""
    told = (
        ("alertmanager/prod", BEGAN - timedelta(seconds=15), BEGAN),
        ("alertmanager/prod", BEGAN, BEGAN - timedelta(seconds=15)),
        ("checks/rolloutd", BEGAN - HOUR, BEGAN),
    )
    for hook, one, other in told:
        world = World(rule(do="hold"))
        await world.tell(hook=hook, started_at=one)
        await world.tell(hook=hook, started_at=other)
        assert await world.tell("resolved", hook=hook, started_at=one) == ["unfreeze checkout-a"]
    world = World(rule(do="hold", quiet="0s"))
    await world.tell(started_at=BEGAN - HOUR)
    await world.tell("resolved", started_at=BEGAN - HOUR)
    await world.tell(started_at=BEGAN)
    early = BEGAN - 2 * MINUTE
    assert await world.tell("resolved", started_at=early) == ["unfreeze checkout-a"]


async def test_a_flag_that_is_lowered_is_held_too() -> None:
    """By another rule; also while the stronger one is quiet, and until it is over."""
    later = replace(rollout("checkout-a"), phase=Baking(1, BEGAN))
    world = World(rule(do="step_back", quiet="1h"), rule(name="hold", do="hold"), rollouts=(later,))
    assert await world.tell() == ["step_back checkout-a", "freeze checkout-a"]
    assert len(world.alerts) == 2
    assert world.alerts[0].summary.count("checkout-a (rose") == 1
    assert await world.tell("resolved") == ["unfreeze checkout-a"]
    world.clock.at += 11 * MINUTE
    assert await world.tell(started_at=BEGAN + 2 * MINUTE) == ["freeze checkout-a"]


async def test_a_rule_that_is_gone_holds_nothing_for_ever() -> None:
    """It was renamed or removed while it held: what it froze goes on when it is over."""
    world = World(rule(do="hold"))
    await world.tell()
    world.rules[:] = [rule(name="renamed", do="hold")]
    assert await world.tell("resolved") == ["unfreeze checkout-a"]


async def test_what_another_replica_holds_just_now_is_not_let_go() -> None:
    """What this one knows is younger than a second, and yet too old."""
    one, other = World(rule(do="hold")), World(rule(do="hold"))
    other.store, other.rollouts = one.store, one.rollouts
    other.crash()
    await one.tell(condition="a")
    await other.tell(condition="b")
    one.clock.at += timedelta(seconds=2)
    await one.memory.refresh()
    await other.tell(condition="c")
    await other.tell("resolved", condition="b")
    one.clock.at -= timedelta(seconds=1.9)
    assert await one.tell("resolved", condition="a") == []
    assert one.rollouts["checkout-a"].freeze is not None
    assert await other.tell("resolved", condition="c") == ["unfreeze checkout-a"]


@pytest.mark.parametrize("crossing", ["begins", "ends"])
async def test_what_begins_or_ends_at_the_same_time_on_another_replica(crossing: str) -> None:
    """A hold that begins during the release is kept, and of two that end the last one lets go."""
    one, other = World(rule(do="hold")), World(rule(do="hold"))
    other.store, other.rollouts = one.store, one.rollouts
    other.crash()
    await one.tell(condition="a")
    if crossing == "ends":
        await other.tell(condition="b")
    drop, commanded = one.memory.drop_hold, []

    async def cross(hook: str, condition: str, flag_key: str) -> None:
        told = "firing" if crossing == "begins" else "resolved"
        one.memory.drop_hold = drop  # type: ignore[method-assign]
        one.rollouts["checkout-a"] = replace(
            one.rollouts["checkout-a"], freeze=Freeze(T0, "signal:x/y", "not known yet to be over")
        )
        commanded.extend(await other.tell(told, condition="b"))
        await drop(hook, condition, flag_key)

    one.memory.drop_hold = cross  # type: ignore[method-assign]
    await one.tell("resolved", condition="a")
    assert commanded == []
    verbs = [each.verb.value for each in one.commands]
    if crossing == "begins":
        assert verbs == ["freeze", "unfreeze", "freeze"]
        assert one.memory.recent[0].done == ("checkout-a: held by another condition still",)
    else:
        assert verbs == ["freeze", "unfreeze"]


async def test_what_fires_for_long_lets_go_of_what_it_held() -> None:
    """Its system does not repeat that it fires. Another condition does not wait for its end."""
    world = World(rule(do="hold"), rollouts=(rollout("checkout-a"), rollout("checkout-b")))
    await world.tell(condition="old")
    world.clock.at += 8 * 24 * HOUR
    await world.memory.refresh()
    assert len(await world.tell("resolved", condition="old")) == 2

    await world.tell(condition="old")
    world.clock.at += 8 * 24 * HOUR
    await world.tell(condition="new")
    assert len(await world.tell("resolved", condition="new")) == 2
    world.clock.at += 91 * 24 * HOUR
    await world.memory.refresh()
    assert world.store.fields == {}


@pytest.mark.parametrize("most", [None, 1])
async def test_what_fires_again_in_the_quiet_time_holds_again(most: int | None) -> None:
    """The flag must not advance while it fires; people are told once in the quiet time."""
    more = {} if most is None else {"most": most}
    world = World(rule(do="hold", quiet="1h", **more))
    assert await world.tell(id="f1", started_at=BEGAN) == ["freeze checkout-a"]
    assert await world.tell("resolved", id="r1", started_at=BEGAN) == ["unfreeze checkout-a"]
    again = BEGAN + MINUTE
    world.clock.at = again
    assert await world.tell(id="f2", started_at=again) == ["freeze checkout-a"]
    assert await world.tell(id="f2", started_at=again) == []
    assert await world.tell("resolved", id="r2", started_at=again) == ["unfreeze checkout-a"]
    assert await world.tell(condition="two", id="f3") == ["freeze checkout-a"]
    assert len(world.alerts) == 1


async def test_people_hear_again_of_what_flaps_once_in_each_quiet_time() -> None:
    """Else a hold that comes and goes for days would be told once."""
    world = World(rule(do="hold", quiet="1h"))
    for number in range(7):  # every 20 minutes, so at 0:00, 1:00 and 2:00
        at = world.clock.at
        assert await world.tell(id=f"f{number}", started_at=at) == ["freeze checkout-a"]
        assert await world.tell("resolved", id=f"r{number}", started_at=at)
        world.clock.at = at + 20 * MINUTE
    assert len(world.alerts) == 3


async def test_a_storm_holds_each_flag_until_its_last_condition_is_over() -> None:
    """80 conditions of 30 flags."""
    fleet = tuple(rollout(f"checkout-{number}") for number in range(30))
    world = World(rule(do="hold"), rollouts=fleet)
    for number in range(80):
        await world.tell(condition=f"c-{number}", id=f"f-{number}")
    for number in range(79, 0, -1):
        assert await world.tell("resolved", condition=f"c-{number}", id=f"r-{number}") == []
    assert len(await world.tell("resolved", condition="c-0", id="r-0")) == 30


async def test_holds_that_are_forgotten_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is held gets lost in silence."""
    monkeypatch.setitem(memory._LIMITS, memory.Hold, 1)
    world = World(rule(do="hold"))
    with capture_logs() as lines:
        for number in range(3):
            await world.tell(condition=f"c-{number}", id=f"f-{number}")
    assert "signal_holds_forgotten" in {line["event"] for line in lines}
