"""What each difference between two plans does to a running rollout."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from controller.core.audience import Audience, Condition
from controller.core.plan import (
    DEFAULT_GAP_POLICIES,
    AdvisorPolicy,
    CounterQueries,
    Guardrail,
    Plan,
    Stage,
    Window,
)
from controller.core.plan_changes import PlanChange, change_of
from controller.core.plan_changes.windows import window_words
from schemas.terms import (
    AdvisorMode,
    Approval,
    ChangeEffect,
    ControlArm,
    GapPolicy,
    HealthGap,
    MetricRole,
    OnBreach,
    Operator,
)
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_external,
    make_guardrail,
    make_plan,
    make_stage,
    make_stages,
)

AT_ONCE, LOWERS = ChangeEffect.AT_ONCE, ChangeEffect.LOWERS
NEEDS_REASON, RESTARTS = ChangeEffect.NEEDS_REASON, ChangeEffect.RESTARTS
REFUSED = ChangeEffect.REFUSED

NIGHT = Window(frozenset(range(1, 8)), 22 * 60, 600, "Europe/Berlin")
BETA = Audience("beta", ((Condition("tier", Operator.EQ, ("beta",)),),))
STAFF = Audience("beta", ((Condition("tier", Operator.EQ, ("staff",)),),))
PLAN = make_plan(stages=make_stages(1, 10, 50, 100), freeze_windows=(NIGHT,))
HERE = 1


def with_stage(plan: Plan, index: int, **changes: Any) -> Plan:
    """Return the plan with one stage changed."""
    stages = list(plan.stages)
    stages[index] = replace(stages[index], **changes)
    return replace(plan, stages=tuple(stages))


def effects(new: Plan, old: Plan = PLAN, present: int | None = HERE) -> dict[str, ChangeEffect]:
    """Return the effect of each change by its path."""
    return {one.path: one.effect for one in change_of(old, new, present).changes}


def percents(change: PlanChange) -> list[float]:
    """Return the percentages of the stages that result."""
    return [stage.percent for stage in change.plan.stages]


def test_the_same_plan_changes_nothing() -> None:
    """Applied again, also under another version, a plan is as it is running."""
    change = change_of(PLAN, replace(PLAN, version="another"), HERE)
    assert (change.changes, change.plan) == ((), PLAN)


POLICIES = DEFAULT_GAP_POLICIES
PLAN_CHANGES: list[tuple[dict[str, Any], ChangeEffect]] = [
    ({"owner": "payments"}, AT_ONCE),
    ({"description": "new"}, AT_ONCE),
    ({"flag_key": "other"}, REFUSED),
    ({"treatment": "new"}, REFUSED),
    ({"values": {"on": 1, "off": 0}}, REFUSED),
    ({"alpha": 0.02}, RESTARTS),
    ({"beta": 0.01}, AT_ONCE),
    ({"beta": 0.1}, RESTARTS),
    ({"fresh_within": timedelta(seconds=30)}, AT_ONCE),
    ({"fresh_within": timedelta(minutes=5)}, RESTARTS),
    ({"health_grace": timedelta(minutes=1)}, AT_ONCE),
    ({"health_grace": timedelta(minutes=30)}, RESTARTS),
    ({"expires_at": T0 + HOUR}, AT_ONCE),
    ({"blind": True}, RESTARTS),
    ({"advisor": AdvisorPolicy(mode=AdvisorMode.REQUIRED)}, AT_ONCE),
    ({"freeze_windows": ()}, NEEDS_REASON),
    ({"freeze_windows": (replace(NIGHT, minutes=700),)}, AT_ONCE),
    ({"freeze_windows": (replace(NIGHT, minutes=500),)}, NEEDS_REASON),
    ({"gap_policies": {**POLICIES, HealthGap.STALE: GapPolicy.ROLL_BACK}}, AT_ONCE),
    ({"gap_policies": {**POLICIES, HealthGap.SRM: GapPolicy.WAIT}}, RESTARTS),
]


NOON = Window(frozenset({6, 7}), 12 * 60, 60, "UTC")


def test_a_changed_window_is_one_change() -> None:
    """With what it was and what it becomes; the one beside it that is new is added."""
    longer = replace(NIGHT, minutes=700)
    change = change_of(PLAN, replace(PLAN, freeze_windows=(longer, NOON)), 1)
    assert [(one.before, one.after) for one in change.changes] == [
        (window_words(NIGHT), window_words(longer)),
        ("", window_words(NOON)),
    ]


def test_the_only_window_for_the_only_other_is_a_change() -> None:
    """However unlike they are; what it loosens still needs a reason."""
    change = change_of(PLAN, replace(PLAN, freeze_windows=(NOON,)), 1)
    (only,) = change.changes
    assert (only.before, only.after) == (window_words(NIGHT), window_words(NOON))
    assert only.effect is NEEDS_REASON


@pytest.mark.parametrize(
    ("before", "after", "effects_of"),
    [
        ((NIGHT, NOON), (replace(NIGHT, minutes=500), NOON), [AT_ONCE]),
        ((NIGHT, NOON), (replace(NIGHT, minutes=700), NOON), [NEEDS_REASON]),
        ((NIGHT, NOON), (NOON,), [AT_ONCE]),
        ((NIGHT,), (), [NEEDS_REASON]),
        ((), (NIGHT,), [AT_ONCE]),
        ((NIGHT,), (NIGHT, NOON), [NEEDS_REASON]),
    ],
)
def test_active_windows_widen_with_a_reason_only(
    before: tuple[Window, ...], after: tuple[Window, ...], effects_of: list[ChangeEffect]
) -> None:
    """What lies within the old windows is taken at once."""
    old = replace(PLAN, freeze_windows=(), active=before)
    change = change_of(old, replace(old, active=after), 1)
    assert [one.effect for one in change.changes] == effects_of


@pytest.mark.parametrize(("changes", "effect"), PLAN_CHANGES)
def test_changes_of_the_plan_as_a_whole(changes: dict[str, Any], effect: ChangeEffect) -> None:
    """Each has its effect; the strongest counts where one change shows as two."""
    found = effects(replace(PLAN, **changes))
    assert max(found.values(), key=list(ChangeEffect).index) is effect


def test_a_deadline_that_comes_later_needs_a_reason() -> None:
    """An end that comes later, or never, lets the rollout go on for longer."""
    old = replace(PLAN, expires_at=T0 + HOUR)
    assert effects(replace(PLAN, expires_at=T0 + 2 * HOUR), old) == {"expires_at": NEEDS_REASON}
    assert effects(PLAN, old) == {"expires_at": NEEDS_REASON}


def test_a_careful_stage_may_not_be_moved_out_of_the_way() -> None:
    """Moved down, it no longer stands before the percentage that it was careful about."""
    careful = replace(PLAN.stages[2], bake=7 * 24 * HOUR, given_name="half")
    old = replace(PLAN, stages=(*PLAN.stages[:2], careful, PLAN.stages[3]))
    moved = replace(careful, percent=11.0)
    quick = replace(PLAN.stages[2], bake=timedelta(seconds=2))
    new = replace(PLAN, stages=(*PLAN.stages[:2], moved, quick, PLAN.stages[3]))
    assert effects(new, old)["stages[half].percent"] is NEEDS_REASON


def test_the_last_stage_of_an_audience_may_not_be_dropped_in_silence() -> None:
    """What came after it for everybody would be reached sooner."""
    staff = replace(PLAN.stages[3], audience="staff", given_name="staff")
    old = replace(PLAN, stages=(*PLAN.stages[:2], staff, *PLAN.stages[2:]))
    assert effects(PLAN, old) == {"stages[staff]": NEEDS_REASON}


STAGE_CHANGES: list[tuple[dict[str, Any], ChangeEffect, ChangeEffect]] = [
    # change, its effect on the present stage, and on a later one
    ({"bake": HOUR}, AT_ONCE, AT_ONCE),
    ({"bake": MINUTE}, RESTARTS, NEEDS_REASON),
    ({"settle": 2 * MINUTE}, NEEDS_REASON, NEEDS_REASON),
    ({"settle": timedelta(0)}, NEEDS_REASON, NEEDS_REASON),
    ({"max_bake": 2 * HOUR}, AT_ONCE, AT_ONCE),
    ({"min_sample": 1000}, AT_ONCE, AT_ONCE),
    ({"min_sample": 10}, RESTARTS, NEEDS_REASON),
    ({"approval": Approval.REQUIRED}, AT_ONCE, AT_ONCE),
    ({"control": ControlArm.EQUAL}, RESTARTS, AT_ONCE),
    ({"given_name": "canary"}, AT_ONCE, AT_ONCE),
]


@pytest.mark.parametrize(("changes", "present", "later"), STAGE_CHANGES)
def test_changes_of_a_stage(
    changes: dict[str, Any], present: ChangeEffect, later: ChangeEffect
) -> None:
    """What is less careful restarts the present stage, and needs a reason for a later one."""
    assert list(effects(with_stage(PLAN, 1, **changes)).values()) == [present]
    assert list(effects(with_stage(PLAN, 2, **changes)).values()) == [later]
    assert effects(with_stage(PLAN, 0, **changes)) == {}, "a stage that is over stays"


def test_a_removed_approval() -> None:
    """Is the reverse of an added one."""
    old = with_stage(PLAN, 1, approval=Approval.REQUIRED)
    assert list(effects(PLAN, old).values()) == [RESTARTS]


GUARDRAIL_CHANGES: list[tuple[dict[str, Any], ChangeEffect]] = [
    ({"limit": 0.01}, AT_ONCE),
    ({"limit": 0.1}, RESTARTS),
    ({"limit": None}, RESTARTS),
    ({"margin": 0.05}, AT_ONCE),
    ({"margin": 0.2}, RESTARTS),
    ({"margin": None}, RESTARTS),
    ({"gate_margin": 0.15}, AT_ONCE),
    ({"gate_margin": 2.0}, RESTARTS),
    ({"in_points": True, "margin": 0.001}, RESTARTS),
    ({"role": MetricRole.SIGNAL}, RESTARTS),
    ({"role": MetricRole.OBSERVE}, RESTARTS),
    ({"on_breach": OnBreach.PAUSE}, RESTARTS),
    ({"from_percent": 50.0}, RESTARTS),
    ({"to_percent": 10.0}, NEEDS_REASON),
]


@pytest.mark.parametrize(("changes", "effect"), GUARDRAIL_CHANGES)
def test_changes_of_a_guardrail(changes: dict[str, Any], effect: ChangeEffect) -> None:
    """A bound that is closer, or one more, is taken at once; all else restarts the stage."""
    new = replace(PLAN, guardrails=(make_guardrail(**changes),))
    assert list(effects(new).values()) == [effect]


def test_a_floor_is_closer_when_it_is_higher() -> None:
    """A conversion is better when higher, so its limit is a floor."""
    low, high = (
        replace(PLAN, guardrails=(make_guardrail(metric="conversion:buy", limit=limit),))
        for limit in (0.02, 0.03)
    )
    assert list(effects(high, low).values()) == [AT_ONCE]
    assert list(effects(low, high).values()) == [RESTARTS]


def test_an_added_guardrail() -> None:
    """Is taken at once, but a conversion that nobody has counted needs a new visit."""
    latency = replace(PLAN, guardrails=(*PLAN.guardrails, make_guardrail(metric="latency_p99")))
    assert effects(latency) == {"guardrails[latency_p99]": AT_ONCE}
    assert effects(PLAN, latency) == {"guardrails[latency_p99]": RESTARTS}
    buy = make_guardrail(metric="conversion:buy", limit=None)
    assert effects(replace(PLAN, guardrails=(*PLAN.guardrails, buy))) == {
        "guardrails[conversion:buy]": RESTARTS
    }
    later = replace(PLAN, guardrails=(*PLAN.guardrails, replace(buy, from_percent=50.0)))
    assert list(effects(later).values()) == [AT_ONCE]


def test_a_guardrail_divided_by_percentage_is_none_removed() -> None:
    """One for early stages and a stricter one for later stages are compared stage by stage."""
    first, second = make_guardrail(to_percent=10.0), make_guardrail(limit=0.01, from_percent=10.01)
    found = effects(replace(PLAN, guardrails=(first, second)))
    assert list(found.values()) == [AT_ONCE]


# --- the position among the stages


def test_an_inserted_stage_is_taken_at_once_and_a_removed_one_needs_a_reason() -> None:
    """A step in between is more careful."""
    more = replace(PLAN, stages=make_stages(1, 10, 25, 50, 100))
    assert effects(more) == {"stages[25%]": AT_ONCE}
    assert effects(PLAN, more) == {"stages[25%]": NEEDS_REASON}
    assert effects(replace(PLAN, stages=make_stages(1, 10, 50))) == {"stages[100%]": AT_ONCE}
    shorter = replace(PLAN, stages=make_stages(1, 10, 50))
    assert effects(PLAN, shorter) == {"stages[100%]": NEEDS_REASON}


def test_a_stage_that_was_entered_stays() -> None:
    """The present stage is kept until its gate, and one that is over for good."""
    change = change_of(PLAN, replace(PLAN, stages=make_stages(50, 100)), HERE)
    assert (percents(change), change.changes) == ([1, 10, 50, 100], ())


def test_a_present_stage_never_grows() -> None:
    """The grown stage follows the present one, whether it has a name or not."""
    change = change_of(PLAN, replace(PLAN, stages=make_stages(1, 20, 50, 100)), HERE)
    assert percents(change) == [1, 10, 20, 50, 100]
    named = with_stage(PLAN, 1, given_name="canary")
    grown = with_stage(named, 1, percent=20.0)
    change = change_of(named, grown, HERE)
    assert [stage.name for stage in change.plan.stages] == ["1%", "10%", "canary", "50%", "100%"]
    assert change_of(change.plan, grown, HERE).changes == ()


def test_a_lowered_present_stage_lowers_at_once() -> None:
    """By its name, and as the highest stage that the new plan has below the present one.

    The stage begins again, so it needs a reason like a retry.
    """
    named = with_stage(PLAN, 1, given_name="canary")
    change = change_of(named, with_stage(named, 1, percent=5.0), HERE)
    assert percents(change) == [1, 5, 50, 100]
    assert [one.effect for one in change.changes] == [LOWERS]
    assert change.restarts
    assert change.needs_reason
    change = change_of(PLAN, replace(PLAN, stages=make_stages(1, 2, 5, 50, 100)), HERE)
    assert percents(change) == [1, 5, 50, 100]


def test_before_the_start_every_stage_may_change() -> None:
    """Nobody is in treatment yet."""
    new = replace(PLAN, stages=make_stages(20, 100))
    change = change_of(PLAN, new, None)
    assert percents(change) == [20, 100]
    assert change.needs_reason
    assert not change.restarts


def test_an_audience_in_use_is_fixed() -> None:
    """Other conditions would move people; of an audience to come they need a reason."""
    stages: tuple[Stage, ...] = (
        make_stage(percent=50.0, audience="beta"),
        make_stage(percent=10.0),
    )
    old = make_plan(stages=stages, audiences=(BETA,))
    new = replace(old, audiences=(STAFF,))
    assert effects(new, old, 0) == {"audiences[beta]": REFUSED}
    assert effects(new, old, None) == {"audiences[beta]": NEEDS_REASON}
    to_all = replace(old, stages=(replace(stages[0], audience=None, given_name="a"), stages[1]))
    named = replace(old, stages=(replace(stages[0], given_name="a"), stages[1]))
    assert REFUSED in effects(to_all, named, 0).values()


def test_stages_that_do_not_rise_are_refused() -> None:
    """A later stage may not repeat one that was entered, under its name or below its share."""
    named = with_stage(PLAN, 0, given_name="first")
    twice = replace(PLAN, stages=(*PLAN.stages[1:3], make_stage(percent=100, given_name="first")))
    assert REFUSED in effects(twice, named).values()


def test_bounds_are_shown_in_the_units_in_which_plans_write_them() -> None:
    """`< 0.2` and `< 900` say neither percent nor milliseconds."""
    old = make_plan(guardrails=(Guardrail("error_rate", limit=0.2),))
    new = replace(
        old,
        guardrails=(
            Guardrail("error_rate", limit=0.1),
            Guardrail("latency_p99", limit=900.0, margin=0.5, gate_margin=0.7),
        ),
    )
    words = {str(one) for one in change_of(old, new, None).changes}
    assert "guardrails[error_rate]: < 20% -> < 10%" in words
    assert "guardrails[latency_p99]: added (< 900ms, < control + 50%, gate margin 70%)" in words


P95 = make_external(limit=0.3, margin=0.1, control="c", misses=3, of=5)


@pytest.mark.parametrize(
    ("changes", "effect"),
    [
        ({"limit": 0.2}, AT_ONCE),
        ({"limit": 0.4}, RESTARTS),
        ({"limit": None}, RESTARTS),
        ({"margin": 0.05}, AT_ONCE),
        ({"margin": 0.2}, RESTARTS),
        ({"margin": None}, RESTARTS),
        ({"misses": 2}, AT_ONCE),
        ({"misses": 4}, RESTARTS),
        ({"of": 6}, AT_ONCE),
        ({"of": 4}, RESTARTS),
        ({"every": MINUTE / 6}, AT_ONCE),
        ({"every": MINUTE}, RESTARTS),
        ({"newest_within": MINUTE}, AT_ONCE),
        ({"newest_within": HOUR}, RESTARTS),
        ({"role": MetricRole.SIGNAL}, RESTARTS),
        ({"on_breach": OnBreach.PAUSE}, RESTARTS),
        ({"from_percent": 10.0}, RESTARTS),
        ({"treatment": "another query"}, RESTARTS),
        ({"newest": "another query"}, RESTARTS),
    ],
)
def test_a_changed_external_metric_is_as_careful_as_it_asks(
    changes: dict[str, Any], effect: ChangeEffect
) -> None:
    """Another query may ask anything, so that it is not known to be as careful."""
    old = replace(PLAN, external=(P95,))
    new = replace(PLAN, external=(replace(P95, **changes),))
    assert effects(new, old) == {"external[p95]": effect}


def test_a_floor_rises_to_be_more_careful() -> None:
    """The direction is the metric's own."""
    floor = make_external(limit=0.9, is_better_when_higher=True)
    old = replace(PLAN, external=(floor,))
    for limit, effect in ((0.95, AT_ONCE), (0.8, RESTARTS)):
        new = replace(PLAN, external=(replace(floor, limit=limit),))
        assert effects(new, old) == {"external[p95]": effect}


def test_changed_counters_begin_again_and_a_stricter_share_does_not() -> None:
    """Other queries count other events."""
    counted = make_external(treatment=CounterQueries(bad="b", total="t"), limit=0.05)
    old = replace(PLAN, external=(counted,))
    for changes, effect in (
        ({"limit": 0.02}, AT_ONCE),
        ({"limit": 0.08}, RESTARTS),
        ({"treatment": CounterQueries(bad="x", total="t")}, RESTARTS),
    ):
        new = replace(PLAN, external=(replace(counted, **changes),))
        assert effects(new, old) == {"external[p95]": effect}


def test_an_external_metric_comes_at_once_and_goes_with_a_reason() -> None:
    """Before it is watched, or before the start, its removal restarts nothing."""
    later = replace(P95, from_percent=50.0)
    assert effects(replace(PLAN, external=(P95,))) == {"external[p95]": AT_ONCE}
    assert effects(PLAN, replace(PLAN, external=(P95,))) == {"external[p95]": RESTARTS}
    assert effects(PLAN, replace(PLAN, external=(later,))) == {"external[p95]": NEEDS_REASON}
    old = replace(PLAN, external=(P95,))
    assert effects(PLAN, old, present=None) == {"external[p95]": NEEDS_REASON}


def test_another_query_is_told_although_its_words_are_the_same() -> None:
    """`X -> X` would say nothing."""
    old = replace(PLAN, external=(P95,))
    (change,) = change_of(old, replace(PLAN, external=(replace(P95, treatment="q"),)), HERE).changes
    assert str(change).endswith("one every 30s, asked otherwise")
