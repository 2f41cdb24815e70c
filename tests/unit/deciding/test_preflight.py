"""What a start needs and is not there: named in the answer, the decision and an alert."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from controller.core.plan import AdvisorPolicy
from controller.core.rollout import Rollout
from controller.deciding.preflight import Preflight
from controller.health import Faults, Scope
from controller.settings.flags import FlagsSettings
from schemas.terms import AdvisorMode, CommandVerb
from tests.builders import T0, make_plan, make_rollout
from tests.unit.deciding.worker_world import WATCHED, World, order, start
from tests.virtual_time import in_virtual_time


class Model:
    """A model's server that answers, or not."""

    def __init__(self, why_not: str | None = None) -> None:
        self._why_not = why_not
        self.asked = 0

    async def why_unreachable(self, seconds: float) -> str | None:
        """Return what the test says."""
        assert 0 < seconds <= 1
        self.asked += 1
        return self._why_not


def no_faults() -> Faults:
    """Return that nothing is wrong."""
    return Faults(lambda: T0)


@pytest.mark.parametrize(
    ("mode", "model", "expected"),
    [
        (AdvisorMode.REQUIRED, Model("refused"), "(refused): no gate can pass"),
        (AdvisorMode.CAN_HOLD, Model("refused"), "(refused): gates pass without its advice"),
        (AdvisorMode.REQUIRED, Model(), ""),
        (AdvisorMode.CAN_HOLD, None, ""),
        (AdvisorMode.OBSERVE, Model("refused"), ""),
        (AdvisorMode.OFF, Model("refused"), ""),
    ],
)
async def test_the_model_is_missed_where_the_plan_counts_on_it(
    mode: AdvisorMode, model: Model | None, expected: str
) -> None:
    """A model that may hold, or must agree, is asked whether it is there; others are not."""
    plan = make_plan(advisor=AdvisorPolicy(mode=mode))
    missing = await Preflight(no_faults(), model).missing(plan)
    assert [expected in one for one in missing] == ([True] if expected else [])


async def test_planes_and_partitions_in_trouble_are_named() -> None:
    """Each by name up to three of a kind; a blind plan needs no events."""
    faults = no_faults()
    faults.report(Scope.PLANE, "unleash", "connection refused")
    for number in range(5):
        faults.report(Scope.PARTITION, f"request.outcomes/{number}", "it cannot be read")
    preflight = Preflight(faults, None)
    plan = make_plan(advisor=AdvisorPolicy(mode=AdvisorMode.OFF))
    plane, *partitions = await preflight.missing(plan)
    assert plane == "flag plane unleash: connection refused"
    assert len(partitions) == 4
    assert partitions[-1] == "2 more: event partitions"
    assert await preflight.missing(replace(plan, blind=True)) == (plane,)


RULES = {"name_pattern": "[a-z]+", "needs_owner": True, "most_active": 1}


@in_virtual_time
async def test_a_start_against_a_rule_is_told_and_happens() -> None:
    """By default; its result says what is against the rules, and what to change."""
    world = World()
    preflight = Preflight(no_faults(), None, FlagsSettings.model_validate(RULES))
    async with world.worker(preflight=preflight) as worker:
        await worker.submit(start(WATCHED))
        assert (await world.stored()).percent == 10
    reason = world.results()[0]["reason"]
    assert reason.startswith("done; against the rules: the flag key new-checkout does not fit")
    assert "add `owner: TEAM`" in reason
    assert world.published("alerts") == []


@in_virtual_time
async def test_a_start_against_a_rule_that_refuses_does_not_happen() -> None:
    """The same command again gets the same answer; a restart of a running plan is not judged."""
    world = World()
    others: dict[str, Rollout] = {}
    rules = FlagsSettings.model_validate({"most_active": 1, "at_start": {"too_many": "refuse"}})
    preflight = Preflight(no_faults(), None, rules, lambda: others)
    others["other"] = make_rollout(flag_key="other")
    async with world.worker(preflight=preflight) as worker:
        await worker.submit(start(WATCHED))
        others.clear()
        await worker.submit(start(WATCHED))
        first, again = (each["reason"] for each in world.results())
        assert first == again
        assert first.startswith("against the rules: there would be 2 active flags, 1 is allowed")
        await worker.submit(start(WATCHED, command_id="start-2"))
        await worker.submit(order(CommandVerb.ABORT, "abort-1"))
        others["other"] = make_rollout(flag_key="other")
        await worker.submit(order(CommandVerb.RESTART, "restart-1"))
        assert [each["status"] for each in world.results()[2:]] == ["accepted"] * 3


@in_virtual_time
async def test_a_start_says_what_is_not_there_and_happens() -> None:
    """Answer, decision and alert name it; a repeat of the start says nothing new."""
    world = World()
    faults = no_faults()
    faults.report(Scope.PLANE, "unleash", "connection refused")
    model = Model()
    plan = replace(WATCHED, advisor=AdvisorPolicy(mode=AdvisorMode.REQUIRED))
    async with world.worker(preflight=Preflight(faults, model)) as worker:
        await worker.submit(start(plan))
        await worker.submit(start(plan))
        await worker.submit(order(CommandVerb.PAUSE, "pause-1"))
        assert (await world.stored()).percent == 10
    assert model.asked == 1
    missing = "not there yet: flag plane unleash: connection refused"
    assert world.results()[0]["reason"] == f"done; {missing}"
    decision = json.loads(world.published("decisions")[0].value)["data"]
    assert decision["reason"] == f"started: because; {missing}"
    (alert,) = [json.loads(entry.value)["data"] for entry in world.published("alerts")]
    assert (alert["kind"], alert["severity"]) == ("preflight", "warning")
    assert "unleash: connection refused" in alert["summary"]
