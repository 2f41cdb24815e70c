"""The Unleash plane against an Unleash.

The fake one of the fault tests and, under `make unleash`, a real one on PostgreSQL.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from controller.adapters.unleash.plane import UnleashPlane
from controller.clock import SystemClock
from controller.core.audience import Audience, Condition
from controller.core.plan import Plan
from controller.core.rollout import Aborted, Completed, Paused, RolledBack, Scheduled
from controller.errors import FlagPlaneUnavailable
from controller.ports import Served
from schemas.terms import ControlArm, HoldReason, Operator
from tests.audiences import at_stage
from tests.builders import T0, make_plan, make_stage
from tests.unleash.fake import FakeUnleash
from tests.unleash.given import decided, make_settings, rolled_back
from tests.unleash.server import BACKEND_TOKEN, INSTALLED_VARIABLE, Console


@pytest.fixture(params=["fake", *(["real"] if INSTALLED_VARIABLE in os.environ else [])])
async def url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Address of each Unleash there is."""
    if request.param == "real":
        yield request.getfixturevalue("real_unleash").url
        return
    async with FakeUnleash().running() as fake:
        yield fake.url


@pytest.fixture
async def console(url: str) -> AsyncIterator[Console]:
    """A person in the console."""
    person = Console(url)
    yield person
    await person.close()


@pytest.fixture
def flag_key() -> str:
    """A key that no other test uses."""
    return f"flag-{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def plane(url: str) -> AsyncIterator[UnleashPlane]:
    """The plane under test."""
    made = UnleashPlane(make_settings(url), SystemClock())
    yield made
    await made.close()


async def test_a_flag_begins_at_zero_and_is_switched_on_after_its_strategy(
    plane: UnleashPlane, console: Console, flag_key: str
) -> None:
    """A new flag gets our strategy at 0 %, then the switch, then the percentage.

    Unleash's own 100 % is never there.
    """
    await plane.serve(decided(flag_key, 10))
    strategy = await console.strategy(flag_key)
    assert strategy["parameters"] == {"rollout": "10", "stickiness": "userId", "groupId": flag_key}
    assert strategy["title"].startswith("rolloutd: 10 % by revision 1 ")
    events = (await console.admin_get(f"/search/events?feature=IS:{flag_key}"))["events"]
    told = [
        (event["type"], (event["data"] or {}).get("parameters", {}).get("rollout"))
        for event in reversed(events)
    ]
    assert told == [
        ("feature-created", None),
        ("feature-strategy-add", "0"),
        ("feature-environment-enabled", None),
        ("feature-strategy-update", "10"),
    ]


async def test_serving_again_writes_nothing(
    plane: UnleashPlane, console: Console, flag_key: str
) -> None:
    """What is as decided is left alone.

    Also by a process that has just started and at a later revision.
    """
    await plane.serve(decided(flag_key, 10))
    before = await console.admin_get(f"/search/events?feature=IS:{flag_key}")
    await plane.serve(decided(flag_key, 10))
    await plane.serve(decided(flag_key, 10, 2))
    assert (await plane.look(decided(flag_key, 10, 3))).difference is None
    assert await console.admin_get(f"/search/events?feature=IS:{flag_key}") == before


async def test_a_rollback_lowers_the_strategy_and_switches_off(
    plane: UnleashPlane, console: Console, flag_key: str
) -> None:
    """After a rollback the strategy stands at 0 % and the environment is off.

    A new rollout of the flag begins from there.
    """
    await plane.serve(decided(flag_key, 25))
    await plane.serve(rolled_back(flag_key, 2))
    environment = await console.environment(flag_key)
    assert (environment["enabled"], environment["strategies"][0]["parameters"]["rollout"]) == (
        False,
        "0",
    )
    again = decided(flag_key, 5, 3, rollout_id="start-2")
    assert (await plane.look(again)).edited_by is None
    await plane.serve(again)
    assert (await plane.look(again)).difference is None
    environment = await console.environment(flag_key)
    assert (environment["enabled"], environment["strategies"][0]["parameters"]["rollout"]) == (
        True,
        "5",
    )


@pytest.mark.parametrize(
    "phase", [Scheduled(T0), Paused(T0, HoldReason.OPERATOR, Scheduled(T0)), Aborted(T0, "over")]
)
async def test_before_the_start_nothing_is_written(
    plane: UnleashPlane, console: Console, flag_key: str, phase: Any
) -> None:
    """A flag that is not ours yet stays as it is, before a start and after an abort."""
    await console.create(flag_key)
    await console.add(flag_key, 40, title="for testers")
    await console.here("POST", flag_key, "/on")
    rollout = decided(flag_key, 0, phase=phase)
    assert (await plane.look(rollout)).difference is None
    await plane.serve(rollout)
    environment = await console.environment(flag_key)
    assert environment["enabled"]
    assert [each["title"] for each in environment["strategies"]] == ["for testers"]


# --- audiences and variants
# -------------------------------------------------------------------------------------------------


def ringed(flag_key: str) -> Plan:
    """Return a plan that goes from staff to half of the customers in two variants.

    And then to a quarter of everybody.
    """
    staff = Audience("staff", ((Condition("email", Operator.ENDS_WITH, ("@corp.example",)),),))
    customers = Audience(
        "customers",
        ((Condition("plan", Operator.EQ, ("pro",)),), (Condition("age", Operator.GTE, (18.0,)),)),
    )
    stages = (
        make_stage(percent=100.0, audience="staff"),
        make_stage(percent=20.0, audience="customers", control=ControlArm.EQUAL),
        make_stage(percent=25.0),
    )
    split, values = (
        (("red", 1), ("blue", 2)),
        {"red": {"hue": 0}, "blue": {"hue": 240}, "off": {"hue": None}},
    )
    return make_plan(
        flag_key=flag_key, stages=stages, audiences=(staff, customers), split=split, values=values
    )


async def test_audiences_and_variants_are_strategies_in_order(
    plane: UnleashPlane, console: Console, flag_key: str
) -> None:
    """In every ring each strategy has its place, its constraints and its variants."""
    plan = ringed(flag_key)
    for stage in (0, 1, 2, 1):
        rollout = replace(at_stage(plan, stage), revision=stage + 1 if stage < 3 else 4)
        rollout = replace(rollout, rollout_id=f"start-{stage}-{uuid.uuid4().hex[:4]}")
        await plane.serve(rollout)
        assert (await plane.look(rollout)).difference is None
    strategies = (await console.environment(flag_key))["strategies"]
    told = [
        (
            each["parameters"]["rollout"],
            [constraint["contextName"] for constraint in each["constraints"]],
            {variant["name"]: variant["weight"] for variant in each["variants"]},
        )
        for each in strategies
    ]
    arms = [
        ("20", {"red": 333, "blue": 667}),
        ("80", {"unassigned": 1000}),
        ("100", {"off": 1000}),
    ]
    assert told == [
        ("100", ["email"], {"red-earlier": 333, "blue-earlier": 667}),
        *((rollout, ["plan"], variants) for rollout, variants in arms),
        *((rollout, ["age"], variants) for rollout, variants in arms),
        ("100", [], {"unassigned": 1000}),
    ]
    blue = next(each for each in strategies[1]["variants"] if each["name"] == "blue")
    assert blue["payload"] == {"type": "json", "value": '{"hue": 240}'}
    last = rolled_back(flag_key, 9)
    await plane.serve(last)
    served = await plane.look(last)
    assert (served.percent, served.difference) == (0.0, None)
    await plane.serve(decided(flag_key, 10, 10, rollout_id="start-9"))
    assert (await console.strategy(flag_key))["parameters"][
        "rollout"
    ] == "10"  # the other strategies are gone


async def test_edits_of_one_strategy_among_several(
    plane: UnleashPlane, console: Console, flag_key: str
) -> None:
    """Less treatment counts as lower.

    An arm that is changed, or another order, is an edit to be undone.
    """
    rollout = replace(at_stage(ringed(flag_key), 1), rollout_id="start-1")
    await plane.serve(rollout)
    strategies = (await console.environment(flag_key))["strategies"]

    async def edited(index: int, path: str, value: Any) -> Served:
        patch = [{"op": "replace", "path": path, "value": value}]
        await console.here("PATCH", flag_key, f"/strategies/{strategies[index]['id']}", patch)
        return await plane.look(rollout)

    served = await edited(1, "/parameters/rollout", "5")
    assert (served.percent, served.edited_by) == (0.0, "admin")
    served = await edited(1, "/parameters/rollout", "60")
    assert (served.percent, served.edited_by) == (100.0, "admin")
    await plane.serve(rollout)
    assert (await plane.look(rollout)).difference is None
    served = await edited(3, "/parameters/rollout", "90")
    assert (served.percent, served.edited_by) == (100.0, "admin")
    await plane.serve(rollout)
    order = [{"id": each["id"], "sortOrder": -place} for place, each in enumerate(strategies)]
    await console.here("POST", flag_key, "/strategies/set-sort-order", order)
    served = await plane.look(rollout)
    assert (served.percent, served.difference) == (100.0, "has our strategies in another order")
    await plane.serve(rollout)
    assert (await plane.look(rollout)).difference is None
    assert [each["id"] for each in (await console.environment(flag_key))["strategies"]] == [
        each["id"] for each in strategies
    ]


async def test_a_plan_beyond_unleash_is_refused_and_its_rollback_is_not(
    plane: UnleashPlane, flag_key: str
) -> None:
    """An audience that takes too many strategies is refused by name.

    Rolling back needs no words for it.
    """
    ages = Condition("age", Operator.IN, tuple(float(age) for age in range(40)))
    plan = make_plan(
        flag_key=flag_key,
        stages=(make_stage(percent=10.0, audience="some"),),
        audiences=(Audience("some", ((ages,),)),),
    )
    rollout = at_stage(plan, 0)
    with pytest.raises(
        FlagPlaneUnavailable,
        match=r"cannot serve the plan of .*'some' takes 40 strategies.*room for 30",
    ):
        await plane.look(rollout)
    over = replace(rollout, phase=RolledBack(T0, "x"), percent=0.0, revision=2)
    await plane.serve(over)
    assert (await plane.look(over)).difference is None


# --- what people do
# --------------------------------------------------------------------------------------------------


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

    A narrower one counts as lower; deciding anew fixes it.
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
    """Our strategy deleted by hand is an edit downwards; decided anew, it is there again."""
    await plane.serve(decided(flag_key, 10))
    await console.here(
        "DELETE", flag_key, f"/strategies/{(await console.strategy(flag_key))['id']}"
    )
    served = await plane.look(decided(flag_key, 10))
    assert (served.percent, served.edited_by) == (0.0, "admin")
    await plane.serve(decided(flag_key, 20, 2))
    assert (await plane.look(decided(flag_key, 20, 2))).difference is None
    assert (await console.strategy(flag_key))["parameters"]["rollout"] == "20"


# --- late writers
# --------------------------------------------------------------------------------------------------


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


# --- what cannot be done
# --------------------------------------------------------------------------------------------------


async def test_fractions_are_rounded_down_and_said_to_be(
    plane: UnleashPlane, console: Console, flag_key: str
) -> None:
    """2.9 % is served as 2 %, 0.5 % as nobody.

    And each look says that it is not what was decided.
    """
    for revision, percent, whole in ((1, 0.5, "0"), (2, 2.9, "2")):
        rollout = decided(flag_key, percent, revision)
        await plane.serve(rollout)
        served = await plane.look(rollout)
        assert (served.percent, served.edited_by) == (float(whole), None)
        assert "Unleash takes whole percents only" in (served.difference or "")
        assert (await console.strategy(flag_key))["parameters"]["rollout"] == whole


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"token": SecretStr("*:*.wrong")},
            "does not know our token .HTTP 401.*give planes.unleash.token an admin token",
        ),
        (
            {"token": SecretStr(BACKEND_TOKEN)},
            "forbids it .HTTP 403.*give planes.unleash.token an admin token",
        ),
        (
            {"create_flags": False},
            (
                "does not have the flag .*create or revive it there, or set "
                "planes.unleash.create_flags"
            ),
        ),
        ({"project": "nowhere"}, "refused it .HTTP 404: .*nowhere"),
        (
            {"environment": "moon"},
            (
                "has no environment 'moon', only development, production: see "
                "planes.unleash.environment"
            ),
        ),
    ],
)
async def test_a_wrong_setting_is_told_by_its_name(
    url: str, flag_key: str, overrides: dict[str, Any], message: str
) -> None:
    """What Unleash refuses for good says what, where and how to fix it."""
    plane = UnleashPlane(make_settings(url, **overrides), SystemClock())
    with pytest.raises(FlagPlaneUnavailable, match=message):
        await plane.serve(decided(flag_key, 10))
    await plane.close()


async def test_a_flag_is_archived_at_the_end_of_its_life(
    url: str, console: Console, flag_key: str
) -> None:
    """With the setting, a flag is archived after its rollout ended, unless it is on for users."""
    plane = UnleashPlane(make_settings(url, archive_after_days=30), SystemClock())
    ago = SystemClock().now() - timedelta(days=31)
    completed = decided(flag_key, 100, 1, phase=Completed(ago))
    await plane.serve(completed)
    served = await plane.look(
        completed
    )  # nobody knows whether apps still ask: the SDKs reported nothing
    assert (served.percent, served.difference) == (100.0, None)
    elsewhere = Console(url, environment="production")
    await elsewhere.add(flag_key, 100)
    await elsewhere.here("POST", flag_key, "/on")
    aborted = decided(flag_key, 0, 2, phase=Aborted(ago, "not wanted"))
    await plane.serve(aborted)
    assert (await plane.look(aborted)).difference is None  # on in another environment
    await elsewhere.here("POST", flag_key, "/off")
    await elsewhere.close()
    aborted = replace(aborted, revision=3)
    assert "to be archived" in ((await plane.look(aborted)).difference or "")
    await plane.serve(aborted)
    assert (await plane.look(aborted)).difference is None
    with pytest.raises(AssertionError, match="404"):
        await console.environment(flag_key)
    await plane.close()


async def test_a_flag_that_was_never_ours_is_not_archived(
    url: str, console: Console, flag_key: str
) -> None:
    """An aborted rollout that never reached Unleash is no reason to archive somebody's flag."""
    plane = UnleashPlane(make_settings(url, archive_after_days=30), SystemClock())
    await console.create(flag_key)
    await console.add(flag_key, 40, title="for testers")
    await console.here("POST", flag_key, "/on")
    aborted = decided(
        flag_key, 0, 2, phase=Aborted(SystemClock().now() - timedelta(days=31), "not wanted")
    )
    assert (await plane.look(aborted)).difference is None
    await plane.serve(aborted)
    assert (await console.environment(flag_key))["enabled"]
    await plane.close()
