"""Changing a running plan, for any two plans and any place in them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from controller.core.effects import AnswerCommand, PublishDecision
from controller.core.machine import decide
from controller.core.plan import DEFAULT_GAP_POLICIES, Guardrail, Plan, Stage, Window
from controller.core.plan_changes import change_of
from controller.core.plan_changes.stages import disorder
from controller.core.rollout import (
    AwaitingApproval,
    Baking,
    Gating,
    Paused,
    Phase,
    Rollout,
    Scheduled,
)
from schemas.terms import (
    Approval,
    ChangeEffect,
    CommandStatus,
    CommandVerb,
    ControlArm,
    GapPolicy,
    HealthGap,
    HoldReason,
    MetricRole,
    OnBreach,
)
from tests.builders import HOUR, MINUTE, T0, make_command, make_plan, make_rollout, make_stage

pytestmark = pytest.mark.property

PERCENTS = (1.0, 5.0, 10.0, 20.0, 50.0, 100.0)
WINDOWS = tuple(Window(frozenset({6, 7}), start, 600, "UTC") for start in (0, 60))


@st.composite
def stages(draw: st.DrawFn) -> tuple[Stage, ...]:
    """Draw rising stages; some have a name."""
    percents = sorted(draw(st.sets(st.sampled_from(PERCENTS), min_size=1, max_size=5)))
    names = draw(st.permutations(["", "", "canary", "half", "late"]))
    return tuple(
        make_stage(
            percent=percent,
            bake=draw(st.sampled_from((10 * MINUTE, 20 * MINUTE))),
            min_sample=draw(st.sampled_from((100, 200))),
            approval=draw(st.sampled_from(Approval)),
            control=ControlArm.REST,
            given_name=name,
        )
        for percent, name in zip(percents, names, strict=False)
    )


@st.composite
def guardrails(draw: st.DrawFn) -> tuple[Guardrail, ...]:
    """Draw at most one guardrail per metric."""
    return tuple(
        Guardrail(
            metric,
            role=draw(st.sampled_from(MetricRole)),
            limit=draw(st.sampled_from((0.01, 0.02))),
            margin=draw(st.sampled_from((None, 0.1, 0.2))),
            on_breach=draw(st.sampled_from(OnBreach)),
        )
        for metric in sorted(draw(st.sets(st.sampled_from(("error_rate", "conversion:buy")))))
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw a plan of the same flag."""
    return make_plan(
        version=draw(st.text("0123456789abcdef", min_size=16, max_size=16)),
        stages=draw(stages()),
        guardrails=draw(guardrails()),
        freeze_windows=tuple(sorted(draw(st.sets(st.sampled_from(WINDOWS))), key=repr)),
        gap_policies={**DEFAULT_GAP_POLICIES, HealthGap.SRM: draw(st.sampled_from(GapPolicy))},
        beta=draw(st.sampled_from((0.05, 0.1))),
        owner=draw(st.sampled_from(("", "payments"))),
        expires_at=draw(st.sampled_from((None, T0 + 48 * HOUR, T0 + 96 * HOUR))),
    )


@st.composite
def places(draw: st.DrawFn) -> tuple[Plan, Plan, int]:
    """Draw a running plan, a new one, and the present stage."""
    old = draw(plans())
    return old, draw(plans()), draw(st.integers(0, len(old.stages) - 1))


@given(places())
def test_the_present_stage_keeps_its_place_and_never_grows(place: tuple[Plan, Plan, int]) -> None:
    """Stages before it stay as they are."""
    old, new, present = place
    change = change_of(old, new, present)
    if change.refusals:
        return
    assert change.plan.stages[:present] == old.stages[:present]
    assert change.plan.stages[present].percent <= old.stages[present].percent
    assert disorder(change.plan.stages) is None


@given(places())
def test_applied_twice_is_applied_once(place: tuple[Plan, Plan, int]) -> None:
    """So a plan in a repository can be applied again and again."""
    old, new, present = place
    change = change_of(old, new, present)
    assume(not change.refusals)
    assert change_of(change.plan, new, present).changes == ()


@given(places())
def test_back_and_forth_cannot_both_be_free(place: tuple[Plan, Plan, int]) -> None:
    """What is more careful in one direction is less careful in the other.

    A stage that is only in one plan is judged with the others: where another stage takes its
    place, what the way up loses or gains shows in that one's percentage.
    """
    old, new, present = place
    change = change_of(old, new, present)
    assume(not change.refusals)
    back = change_of(change.plan, old, present)
    assume(back.plan.stages == old.stages)
    harmless = ("owner", "name", "max_bake")
    renames = {
        each.before: each.after
        for each in change.changes
        if each.path == f"stages[{each.before}].name"
    }
    for one in change.changes:
        is_free = one.effect is ChangeEffect.AT_ONCE
        if not is_free or any(one.path.endswith(word) for word in harmless):
            continue
        if one.path.startswith("stages[") and one.path.endswith("]"):
            assert change.needs_reason or back.needs_reason, one
            continue
        path_back = one.path
        for name, renamed in renames.items():
            path_back = path_back.replace(f"stages[{name}].", f"stages[{renamed}].")
            if path_back != one.path:
                break  # two stages may have swapped their names
        if path_back not in {each.path for each in back.changes}:
            continue  # told by another path: a metric at another stage
        strongest = [
            max(
                (each.effect for each in changes.changes if each.path == path),
                key=list(ChangeEffect).index,
            )
            for changes, path in ((change, one.path), (back, path_back))
        ]
        assert strongest != [ChangeEffect.AT_ONCE] * 2, one


def phases(stage: int) -> list[Phase]:
    """Return every phase that a plan can be applied in."""
    waiting: list[Any] = [
        Scheduled(T0 + HOUR),
        Baking(stage, T0 + HOUR),
        Gating(stage, "gate", T0, T0 + HOUR),
        AwaitingApproval(stage, "gate", T0, HoldReason.APPROVAL),
    ]
    return [*waiting, *(Paused(T0, HoldReason.OPERATOR, held) for held in waiting)]


@st.composite
def applied(draw: st.DrawFn) -> tuple[Rollout, Plan, bool]:
    """Draw a rollout, a plan for it, and whether the command has a reason and the revision."""
    old, new, present = draw(places())
    rollout = make_rollout(plan=old, phase=draw(st.sampled_from(phases(present))), updated_at=T0)
    return rollout, new, draw(st.booleans())


@given(applied())
def test_applying_never_raises_and_loses_evidence_only_where_it_says(
    drawn: tuple[Rollout, Plan, bool],
) -> None:
    """The percentage does not rise; the visit goes on unless the change restarts the stage.

    What is less careful is refused without a reason and the revision.
    """
    before, plan, is_reasoned = drawn
    now = T0 + timedelta(minutes=5)
    command = make_command(
        CommandVerb.APPLY,
        plan=plan,
        issued_at=now,
        reason="because" if is_reasoned else "",
        expected_revision=before.revision if is_reasoned else None,
    )
    change = change_of(before.plan, plan, before.stage_index)
    after, effects = decide(before, command, now)
    assert after is not None
    answer = next(effect for effect in effects if isinstance(effect, AnswerCommand))
    is_due = not change.refusals and (is_reasoned or not change.needs_reason)
    assert (answer.status is CommandStatus.ACCEPTED) == is_due
    assert after.percent <= before.percent
    if not is_due or not change.changes:
        assert after is before
        return
    assert after.revision == before.revision + 1
    assert after.stage_index == before.stage_index
    assert isinstance(after.phase, Paused) == isinstance(before.phase, Paused)
    is_restarted = change.restarts and before.stage_index is not None
    assert len(after.visits) == len(before.visits) + is_restarted
    if not is_restarted:
        assert after.visits == before.visits
    decision = next(effect for effect in effects if isinstance(effect, PublishDecision))
    assert decision.applied is not None
    assert (decision.applied.before, decision.applied.after) == (before.plan, after.plan)


@given(applied())
def test_a_bake_never_ends_sooner_by_a_change(drawn: tuple[Rollout, Plan, bool]) -> None:
    """A longer bake ends later by the difference; nothing makes the present one shorter."""
    before, plan, _ = drawn
    now = T0 + timedelta(minutes=5)
    command = make_command(
        CommandVerb.APPLY, plan=plan, issued_at=now, expected_revision=before.revision
    )
    after = decide(before, command, now)[0]
    assert after is not None
    if isinstance(before.phase, Baking) and len(after.visits) == len(before.visits):
        assert isinstance(after.phase, Baking)
        index = before.phase.stage
        longer = after.plan.stages[index].bake - before.plan.stages[index].bake
        assert after.phase.until == before.phase.until + longer
        assert longer >= timedelta(0)


@given(plans())
def test_every_field_of_a_plan_is_compared(plan: Plan) -> None:
    """Whatever differs shows: no field is forgotten."""
    assert change_of(plan, replace(plan, owner="somebody else"), 0).changes
    assert change_of(plan, replace(plan, fresh_within=timedelta(hours=3)), 0).changes
    assert change_of(plan, plan, 0).changes == ()
