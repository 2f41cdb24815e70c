"""Which ring decides about a context, what it serves, and who counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.audience import Audience, Condition
from controller.core.plan import Plan
from controller.core.rollout import Aborted, Completed, Paused, RolledBack, Scheduled
from controller.core.serving import (
    WEIGHT_TOTAL,
    Part,
    assign,
    beyond_share_of,
    chooser,
    decided_share,
    percent_to_serve,
    serving,
    uncounted_variants,
    variant_values,
)
from schemas.terms import ControlArm, HoldReason, Operator
from tests.audiences import at_stage, contexts, ringed_plans
from tests.builders import T0, make_plan, make_rollout, make_stage, make_stages, make_visit

STAFF = Audience("staff", ((Condition("email", Operator.ENDS_WITH, ("@corp.example",)),),))
BETA = Audience("beta", ((Condition("beta", Operator.EQ, (True,)),),))
ANN, BOB, CID = {"email": "ann@corp.example"}, {"beta": True}, {"email": "cid@home.example"}
buckets = st.integers(0, WEIGHT_TOTAL - 1)
lots = st.integers(0, 2**32 - 1)


def rings(**overrides: Any) -> Plan:
    """Return the journey staff, then 10 % of beta users, then 5 and 100 % of everybody."""
    stages = (
        make_stage(percent=100.0, audience="staff"),
        make_stage(percent=10.0, audience="beta"),
        make_stage(percent=5.0),
        make_stage(percent=100.0),
    )
    return make_plan(**{"stages": stages, "audiences": (STAFF, BETA), **overrides})


def served(plan: Plan, stage: int, context: dict[str, Any], bucket: int = 0) -> str:
    """Return the variant that a context of this bucket is served."""
    return assign(serving(at_stage(plan, stage)), bucket, context)


def test_a_ring_reaches_its_audience_alone() -> None:
    """In a stage for staff nobody else is in an arm, and everybody else keeps control's value."""
    assert served(rings(), 0, ANN, 9_999) == "on"
    assert served(rings(), 0, CID) == "unassigned"
    assert variant_values(rings()) == {
        "off": False,
        "on": True,
        "unassigned": False,
        "on-earlier": True,
    }


def test_earlier_rings_keep_what_they_have_and_do_not_count() -> None:
    """When beta users follow, staff stay in under a name that is not counted."""
    assert served(rings(), 1, ANN, 9_999) == "on-earlier"
    assert served(rings(), 1, {**ANN, **BOB}, 5) == "on-earlier"
    assert (served(rings(), 1, BOB, 999), served(rings(), 1, BOB, 1_000)) == ("on", "off")
    assert served(rings(), 1, CID) == "unassigned"


def test_a_narrower_earlier_ring_takes_nobody_out_of_a_later_one() -> None:
    """At 5 % of everybody, beta users below 10 % stay in and are not counted.

    The others are not in by beta, and wait.
    """
    assert [served(rings(), 2, BOB, bucket) for bucket in (0, 600, 999, 1_000)] == [
        *["on-earlier"] * 3,
        "unassigned",
    ]
    assert [served(rings(), 2, CID, bucket) for bucket in (0, 499, 500)] == ["on", "on", "off"]


def test_at_the_end_everybody_is_served_alike() -> None:
    """The last stage of 100 % has one variant left."""
    assert {
        served(rings(), 3, context, bucket) for context in (ANN, BOB, CID) for bucket in (0, 9_999)
    } == {"on"}


def test_arms_of_equal_size_grow_towards_each_other() -> None:
    """Treatment has the lowest buckets, control the highest.

    And who is between them is in neither.
    """
    plan = make_plan(stages=make_stages(1, 30, control=ControlArm.EQUAL))
    first, second = (
        Counter(served(plan, stage, {}, bucket) for bucket in range(WEIGHT_TOTAL))
        for stage in (0, 1)
    )
    assert first == {"on": 100, "unassigned": 9_800, "off": 100}
    assert second == {"on": 3_000, "unassigned": 4_000, "off": 3_000}
    assert (served(plan, 0, {}, 9_900), served(plan, 1, {}, 9_900)) == ("off", "off")


def test_split_divides_treatment_by_weight() -> None:
    """The variants of treatment get their weights' share of it, whatever the bucket."""
    plan = make_plan(
        split=(("red", 1), ("blue", 3)), values={"off": "grey", "red": "r", "blue": "b"}
    )
    flag = serving(at_stage(plan, 0))
    drawn = Counter(assign(flag, 0, {}, lot) for lot in range(0, 2**32, 2**22))
    assert drawn == {"red": 256, "blue": 768}
    assert assign(flag, 1_000, {}) == "off"


@pytest.mark.parametrize(
    "phase",
    [
        Scheduled(T0),
        Paused(T0, HoldReason.OPERATOR, Scheduled(T0)),
        RolledBack(T0, "why"),
        Aborted(T0, "why"),
    ],
)
def test_before_the_start_and_after_a_rollback_everybody_gets_control(phase: Any) -> None:
    """Whatever the document says besides, no audience keeps treatment then."""
    rollout = replace(at_stage(rings(), 2), phase=phase)
    assert serving(rollout).is_off
    assert percent_to_serve(rollout) == 0
    assert {assign(serving(rollout), 0, context) for context in (ANN, BOB, CID)} == {"off"}


def test_completion_keeps_the_last_stage() -> None:
    """A rollout that ends with an audience goes on serving it."""
    plan = rings(stages=rings().stages[:2])
    rollout = replace(at_stage(plan, 1), phase=Completed(T0))
    assert assign(serving(rollout), 0, BOB) == "on"
    assert assign(serving(rollout), 9_999, ANN) == "on-earlier"


def test_a_plane_of_percentages_alone_serves_no_audience_to_everybody() -> None:
    """100 % of staff is 0 % of all: what a plane cannot restrict it does not serve."""
    assert [percent_to_serve(at_stage(rings(), stage)) for stage in range(4)] == [0, 0, 5, 100]


def test_plan_without_audiences_serves_two_variants() -> None:
    """Nothing is new for who asks for nothing new."""
    flag = serving(make_rollout())
    assert flag.is_plain
    assert flag.values == {"on": True, "off": False}
    assert uncounted_variants(make_plan()) == ()


@pytest.mark.parametrize(
    ("percent", "control", "share"),
    [
        (1.0, ControlArm.REST, 0.01),
        (1.0, ControlArm.EQUAL, 0.5),
        (50.0, ControlArm.EQUAL, 0.5),
        (100.0, ControlArm.REST, None),
    ],
)
def test_share_of_treatment_among_who_counts(
    percent: float, control: ControlArm, share: float | None
) -> None:
    """It is what the sample ratio is tested against; without control there is none."""
    plan = make_plan(stages=(make_stage(percent=percent, control=control),))
    assert decided_share(plan, make_visit(percent=percent)) == share


# --- properties ---


def is_treated(variant: str, plan: Plan) -> bool:
    """Tell whether a variant has treatment's value."""
    return variant not in (plan.control, plan.unassigned)


@given(ringed_plans(), contexts, buckets, lots)
def test_widening_takes_nobody_out_and_changes_nobodys_variant(
    plan: Plan, context: dict[str, Any], bucket: int, lot: int
) -> None:
    """From stage to stage whoever has treatment keeps it.

    And of a divided treatment the same part.
    """
    before: str | None = None
    for stage in range(len(plan.stages)):
        variant = assign(serving(at_stage(plan, stage)), bucket, context, lot)
        if before is not None:
            assert variant.removesuffix("-earlier") == before
        before = variant.removesuffix("-earlier") if is_treated(variant, plan) else None


@given(ringed_plans(), st.data())
def test_of_who_counts_exactly_the_decided_share_has_treatment(
    plan: Plan, data: st.DataObject
) -> None:
    """For any one context.

    The buckets in which it would count are divided as the sample ratio is tested.
    """
    stage = data.draw(st.integers(0, len(plan.stages) - 1))
    rollout = at_stage(plan, stage)
    flag, context = serving(rollout), data.draw(contexts)
    choose = chooser(flag)
    ends = {end for ring in flag.rings for end in accumulate(weight for _, weight in ring.slices)}
    parts: Counter[Part] = Counter()
    for begin, end in pairwise(sorted({0, *ends})):  # within these nothing changes
        parts[choose(begin, context)] += end - begin
    treatment, control = parts[Part.TREATMENT], parts[Part.CONTROL]
    share = decided_share(plan, rollout.visits[-1])
    if treatment + control and share is not None:
        assert treatment / (treatment + control) == pytest.approx(share, abs=1e-12)


@given(ringed_plans(), contexts, buckets, lots)
def test_every_variant_served_has_a_value(
    plan: Plan, context: dict[str, Any], bucket: int, lot: int
) -> None:
    """Nobody is served a name that stands for nothing."""
    for stage in range(len(plan.stages)):
        flag = serving(at_stage(plan, stage))
        assert assign(flag, bucket, context, lot) in flag.values


def test_what_planes_of_percentages_cannot_serve_is_named() -> None:
    """Stage by stage, and for a plan as a whole.

    Where nobody gets treatment, or all do, a percentage is enough.
    """
    by_stage = [serving(at_stage(rings(), stage)).beyond_share for stage in range(4)]
    assert by_stage == ["an audience", "an audience", "an audience", None]
    assert beyond_share_of(rings()) == "audiences"
    equal = make_plan(
        stages=make_stages(1, 60, control=ControlArm.EQUAL), split=(("red", 1), ("blue", 3))
    )
    assert (
        serving(at_stage(equal, 0)).beyond_share
        == "a control arm of equal size, treatment divided among variants"
    )
    assert serving(at_stage(equal, 1)).beyond_share == "treatment divided among variants"
    assert serving(replace(at_stage(equal, 0), phase=RolledBack(T0, "why"))).beyond_share is None
    assert beyond_share_of(equal) == "control arms of equal size, treatment divided among variants"
    assert (beyond_share_of(make_plan()), serving(make_rollout()).beyond_share) == (None, None)
