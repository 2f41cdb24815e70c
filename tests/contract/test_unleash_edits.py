"""What others change in Unleash, and writers that come late."""

from __future__ import annotations

from typing import Any

import pytest

from controller.adapters.unleash.plane import UnleashPlane
from controller.clock import SystemClock
from controller.errors import FlagPlaneUnavailable
from tests.unleash.given import decided, make_settings, rolled_back
from tests.unleash.server import Console


@pytest.mark.parametrize(
    ("fields", "percent", "difference"),
    [
        ({"rollout": "60"}, 60.0, "serves 60 %, decided is 25 %"),
        ({"rollout": "5"}, 5.0, "serves 5 %, decided is 25 %"),
        ({"disabled": True}, 0.0, "has our strategy disabled and is switched off in development"),
        (
            {"constraints": [{"contextName": "country", "operator": "IN", "values": ["DE"]}]},
            0.0,
            "has other constraints",
        ),
        ({"rollout": "abc"}, 100.0, "serves abc %, decided is 25 %"),
        ({"rollout": "150"}, 100.0, "serves 150 %, decided is 25 %"),
    ],
)
async def test_an_edit_of_our_strategy_is_found_with_its_author(
    plane: UnleashPlane,
    console: Console,
    flag_key: str,
    fields: dict[str, Any],
    percent: float,
    difference: str,
) -> None:
    """Whatever is changed in our strategy is named with who did it.

    A narrower one counts as lower; deciding again fixes it.
    """
    await plane.serve(decided(flag_key, 25))
    await console.edit(flag_key, **fields)
    served = await plane.look(decided(flag_key, 25))
    assert (served.percent, served.edited_by) == (percent, "admin")
    assert difference in (served.difference or "")
    for rollout in (decided(flag_key, 25), decided(flag_key, 50, 2)):
        await plane.serve(rollout)
        served = await plane.look(rollout)
        assert (served.percent, served.difference) == (rollout.percent, None)


async def test_a_crash_between_decision_and_write_is_no_edit(
    url: str, plane: UnleashPlane, console: Console, flag_key: str
) -> None:
    """A process that starts after a crash sees what is missing at every step, and blames nobody."""
    await console.create(flag_key)
    await plane.serve(decided(flag_key, 25))
    for undo in ("off", "lower"):
        # As if it had ended between adding and switching on: the switch is older than the
        # strategy's mark.
        if undo == "off":
            await plane.serve(rolled_back(flag_key, 2))
        successor = UnleashPlane(make_settings(url), SystemClock())
        rollout = decided(flag_key, 50, 3 if undo == "off" else 4, rollout_id="start-2")
        served = await successor.look(rollout)
        assert served.difference is not None or undo == "lower"
        assert served.edited_by is None
        await successor.serve(rollout)
        assert (await successor.look(rollout)).difference is None
        await successor.close()


async def test_switching_off_by_hand_is_an_edit_downwards(
    plane: UnleashPlane, console: Console, flag_key: str
) -> None:
    """Who switches the flag off in the console is named, and what is served counts as 0 %."""
    await plane.serve(decided(flag_key, 25))
    await console.here("POST", flag_key, "/off")
    served = await plane.look(decided(flag_key, 25))
    assert (served.percent, served.difference, served.edited_by) == (
        0.0,
        "is switched off in development",
        "admin",
    )
    await plane.serve(decided(flag_key, 50, 2))
    assert (await plane.look(decided(flag_key, 50, 2))).difference is None


async def test_archiving_by_hand_is_an_edit_downwards(
    plane: UnleashPlane, console: Console, flag_key: str
) -> None:
    """An archived flag serves 0 % and names who archived it.

    It is not revived behind their back, and the way out is told.
    """
    await plane.serve(decided(flag_key, 25))
    await console.call("DELETE", f"/{flag_key}")
    served = await plane.look(decided(flag_key, 25))
    assert (served.percent, served.edited_by) == (0.0, "admin")
    with pytest.raises(FlagPlaneUnavailable, match=r"archived.*revive it in Unleash"):
        await plane.serve(decided(flag_key, 50, 2))
    assert (await plane.look(rolled_back(flag_key, 3))).difference is None
    await plane.serve(rolled_back(flag_key, 3))
    await console.admin_post(f"/archive/revive/{flag_key}", None)
    fresh = decided(flag_key, 5, 4, rollout_id="start-2")
    await plane.serve(fresh)
    assert (await plane.look(fresh)).difference is None


async def test_nothing_is_raised_beside_a_strategy_that_was_there_before(
    plane: UnleashPlane, console: Console, flag_key: str
) -> None:
    """A flag that lets testers in already is refused with the name of that strategy.

    And left exactly as it was.
    """
    await console.create(flag_key)
    await console.add(flag_key, 100, title="beta testers")
    await console.here("POST", flag_key, "/on")
    before = await console.environment(flag_key)
    served = await plane.look(decided(flag_key, 10))
    assert served.edited_by is None
    assert "'beta testers'" in (served.difference or "")
    with pytest.raises(
        FlagPlaneUnavailable,
        match=r"another enabled strategy in development, 'beta testers'.*disable or delete",
    ):
        await plane.serve(decided(flag_key, 10))
    assert await console.environment(flag_key) == before


async def test_a_strategy_added_later_is_disabled_and_its_author_named(
    plane: UnleashPlane, console: Console, flag_key: str
) -> None:
    """Who adds a strategy of 100 % beside ours is named, it counts as an edit upwards.

    And serving disables it, not more.
    """
    await plane.serve(decided(flag_key, 10))
    await console.add(flag_key, 100, title="everybody")
    served = await plane.look(decided(flag_key, 10))
    assert (served.percent, served.edited_by) == (100.0, "admin")
    assert served.difference == "has another enabled strategy, 'everybody'"
    await plane.serve(decided(flag_key, 10))
    served = await plane.look(decided(flag_key, 10))
    assert (served.percent, served.difference) == (10.0, None)
    theirs = [
        each
        for each in (await console.environment(flag_key))["strategies"]
        if each["title"] == "everybody"
    ]
    assert [(each["disabled"], each["parameters"]["rollout"]) for each in theirs] == [(True, "100")]


async def test_a_rollback_takes_the_flag_from_others_too(
    plane: UnleashPlane, console: Console, flag_key: str
) -> None:
    """After a rollback nobody is let in.

    Not by a strategy that somebody added, deleted ours or not.
    """
    await plane.serve(decided(flag_key, 10))
    await console.add(flag_key, 100, title="everybody")
    ours = (await console.environment(flag_key))["strategies"][0]
    await console.here("DELETE", flag_key, f"/strategies/{ours['id']}")
    served = await plane.look(rolled_back(flag_key, 2))
    assert (served.percent, served.edited_by) == (100.0, "admin")
    await plane.serve(rolled_back(flag_key, 2))
    assert (await plane.look(rolled_back(flag_key, 2))).percent == 0
    assert not (await console.environment(flag_key))["enabled"]


async def test_deleting_our_strategy_is_an_edit(
    plane: UnleashPlane, console: Console, flag_key: str
) -> None:
    """Our strategy deleted by hand is an edit downwards; decided again, it is back."""
    await plane.serve(decided(flag_key, 10))
    await console.here(
        "DELETE", flag_key, f"/strategies/{(await console.strategy(flag_key))['id']}"
    )
    served = await plane.look(decided(flag_key, 10))
    assert (served.percent, served.edited_by) == (0.0, "admin")
    await plane.serve(decided(flag_key, 20, 2))
    assert (await plane.look(decided(flag_key, 20, 2))).difference is None
    assert (await console.strategy(flag_key))["parameters"]["rollout"] == "20"


async def test_a_zombie_that_read_before_a_rollback_cannot_raise_after_it(
    url: str, plane: UnleashPlane, console: Console, flag_key: str
) -> None:
    """A replica frozen between reading and writing finds its strategy changed.

    The server itself refuses the patch.
    """
    await plane.serve(decided(flag_key, 10))
    zombie = UnleashPlane(make_settings(url), SystemClock())
    await zombie.look(decided(flag_key, 25, 2))
    await plane.serve(rolled_back(flag_key, 3))
    with pytest.raises(FlagPlaneUnavailable, match="somebody changed the strategy while we wrote"):
        await zombie.serve(decided(flag_key, 25, 2))
    assert (await console.strategy(flag_key))["parameters"]["rollout"] == "0"
    await zombie.serve(decided(flag_key, 25, 2))  # it reads again now, and finds itself late
    served = await zombie.look(decided(flag_key, 25, 2))
    assert served.difference == "was written by revision 3, which is newer than our 2"
    assert (await console.strategy(flag_key))["parameters"]["rollout"] == "0"
    assert (
        await plane.look(rolled_back(flag_key, 3))
    ).percent == 0  # it may have switched the environment on: at 0 %
    await zombie.close()


async def test_counting_anew_may_lower_and_not_raise(
    plane: UnleashPlane, console: Console, flag_key: str
) -> None:
    """Under a higher revision of another rollout.

    As after losing all state, lowering goes through and raising is refused.
    """
    await plane.serve(decided(flag_key, 50, 40))
    await plane.serve(decided(flag_key, 60, 41))
    with pytest.raises(
        FlagPlaneUnavailable,
        match=r"written by revision 41 of another rollout, ours is 1.*delete the strategy",
    ):
        await plane.serve(decided(flag_key, 70, 1, rollout_id="start-2"))
    await plane.serve(decided(flag_key, 5, 1, rollout_id="start-2"))
    assert (await console.strategy(flag_key))["parameters"]["rollout"] == "5"


async def test_twins_are_removed(plane: UnleashPlane, console: Console, flag_key: str) -> None:
    """A copy of our strategy is removed, and the older one stays."""
    await plane.serve(decided(flag_key, 10))
    ours = await console.strategy(flag_key)
    await console.add(flag_key, 10, title=ours["title"])
    assert "more strategies of ours" in ((await plane.look(decided(flag_key, 10))).difference or "")
    await plane.serve(decided(flag_key, 10))
    assert (await console.strategy(flag_key))["id"] == ours["id"]
