"""The Unleash plane on our imitation and, where installed, on the real server."""

from __future__ import annotations

import uuid
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
from tests.unleash.given import decided, make_settings, rolled_back
from tests.unleash.server import BACKEND_TOKEN, Console


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
