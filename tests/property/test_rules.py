"""The same context is served the same variant everywhere.

The reference, flagd's own evaluator on our document, and OFREP.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext

from controller.core.audience import Audience, Condition, Scalar, matcher
from controller.core.plan import Plan
from controller.core.rollout import Rollout
from controller.core.serving import assign, serving
from controller.web.bucketing import Generation, bucketer, lot_drawer
from controller.web.flags import FlagBoard
from controller.web.ofrep import answer_one
from schemas.terms import Operator
from tests.audiences import at_stage, conditions, contexts, ringed_plans, values
from tests.builders import make_plan, make_stage
from tests.examples import examples

pytestmark = pytest.mark.property

logging.getLogger("openfeature.contrib").setLevel(
    logging.CRITICAL
)  # it logs each text that is no version

targeting_keys = st.sampled_from(["user-1", "user-2", "u", "DE", "1.2.3", "2026-03-01"]) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20
)


def board_of(rollout: Rollout) -> FlagBoard:
    """Return a board that serves this rollout.

    With the buckets of the installed flagd evaluator.
    """
    board = FlagBoard(generation=Generation.V3)
    board.update(rollout)
    board.trust()
    return board


def by_flagd(board: FlagBoard, key: str, context: dict[str, Any]) -> tuple[str | None, object]:
    """Return variant and value as flagd's evaluator finds them in our document."""
    core = FlagdCore()
    core.set_flags(board.flagd_document()[0].decode())
    found = core.resolve_boolean_value("new-checkout", False, EvaluationContext(key, context))
    return found.variant, found.value


def by_ofrep(board: FlagBoard, key: str, context: dict[str, Any]) -> tuple[str | None, object]:
    """Return variant and value as OFREP answers."""
    flag = board.get("new-checkout")
    assert flag is not None
    answer = json.loads(
        answer_one(flag, msgspec.json.encode({"context": {**context, "targetingKey": key}}))
    )
    return answer["variant"], answer["value"]


def by_reference(rollout: Rollout, key: str, context: dict[str, Any]) -> tuple[str, object]:
    """Return variant and value as `core.serving` says it."""
    flag = serving(rollout)
    bucket, lot = (make(rollout.flag_key, Generation.V3)(key) for make in (bucketer, lot_drawer))
    variant = assign(flag, bucket, {**context, "targetingKey": key}, lot)
    return variant, flag.values[variant]


@given(ringed_plans(), contexts, targeting_keys, st.data())
def test_every_plane_serves_what_the_reference_says(
    plan: Plan, context: dict[str, Any], key: str, data: st.DataObject
) -> None:
    """For any rings and any context, flagd and OFREP give the reference's variant."""
    rollout = at_stage(plan, data.draw(st.integers(0, len(plan.stages) - 1)))
    board = board_of(rollout)
    expected = by_reference(rollout, key, context)
    assert by_flagd(board, key, context) == expected
    assert by_ofrep(board, key, context) == expected


def only(condition: Condition) -> Rollout:
    """Return a rollout at 100 % of whom one condition matches."""
    audience = Audience("a", ((condition,),))
    return at_stage(
        make_plan(stages=(make_stage(percent=100.0, audience="a"),), audiences=(audience,)), 0
    )


@examples(500)
@given(conditions, values)
def test_one_condition_means_the_same_in_flagd(condition: Condition, value: Any) -> None:
    """No conversion of JsonLogic's lets anybody in or out that the reference does not."""
    if condition.attribute == "targetingKey":
        condition = Condition("plan", condition.operator, condition.values)
    variant, _ = by_flagd(board_of(only(condition)), "user-1", {condition.attribute: value})
    assert (variant == "on") == matcher(Audience("a", ((condition,),)))(
        {condition.attribute: value}
    )


@pytest.mark.parametrize("operator", Operator)
def test_a_context_without_the_attribute_is_outside(operator: Operator) -> None:
    """What is not known of a context matches nothing, on any plane."""
    edges: dict[Operator, Scalar] = {
        Operator.GTE: -1e9,
        Operator.LTE: 1e9,
        Operator.SEM_VER: "!= 1.0.0",
    }
    value: Scalar
    for value in {edges.get(operator, "2000-01-01"), edges.get(operator, "3000-01-01")}:
        board = board_of(only(Condition("it", operator, (value,))))
        assert by_flagd(board, "user-1", {})[0] == by_ofrep(board, "user-1", {})[0] == "unassigned"
        assert (
            by_flagd(board, "user-1", {"it": None})[0]
            == by_ofrep(board, "user-1", {"it": None})[0]
            == "unassigned"
        )


def test_a_context_without_key_is_served_control_and_not_counted() -> None:
    """Such a context gets flagd's default variant; in a plan with audiences that is in no arm."""
    core = FlagdCore()
    core.set_flags(board_of(only(Condition("it", Operator.EQ, (1,)))).flagd_document()[0].decode())
    found = core.resolve_boolean_value("new-checkout", True, EvaluationContext(None, {"it": 1}))
    assert (found.variant, found.value) == ("unassigned", False)


@pytest.mark.parametrize(
    ("kind", "control", "treatment"),
    [
        ("boolean", True, False),
        ("string", "ä", ""),
        ("integer", 3, 0),
        ("float", 1.0, 2.5),
        ("object", {"a": [1]}, {}),
    ],
)
def test_values_arrive_as_they_are_of_one_type(
    kind: str, control: object, treatment: object
) -> None:
    """A payload of each type reaches a typed client of flagd and OFREP unchanged."""
    plan = make_plan(stages=(make_stage(percent=50.0),), values={"on": treatment, "off": control})
    board = board_of(at_stage(plan, 0))
    core = FlagdCore()
    core.set_flags(board.flagd_document()[0].decode())
    for key in ("user-1", "user-2", "user-3", "user-42"):
        found = getattr(core, f"resolve_{kind}_value")(
            "new-checkout", control, EvaluationContext(key)
        )
        expected = {"on": treatment, "off": control}[found.variant]
        assert (found.value, by_ofrep(board, key, {})) == (expected, (found.variant, expected))
