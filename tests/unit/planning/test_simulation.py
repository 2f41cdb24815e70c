"""Virtual rollouts: the real machine and engine, with traffic whose outcome is known."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from controller.core.plan import AdvisorPolicy, Guardrail, Plan, Window
from controller.planning.figures import ShareOfRuns, simulate, spread
from controller.planning.simulation import VirtualRollout, run_once
from controller.planning.virtual_traffic import Effect, TrafficSource, VirtualTraffic
from schemas.terms import AdvisorMode, Approval, ControlArm, OnBreach
from tests.builders import HOUR, MINUTE, T0, make_plan, make_stage, make_traffic

HEALTHY = make_traffic(50.0)


def ran(
    plan: Plan, *effects: Effect, traffic: VirtualTraffic = HEALTHY, seed: int = 1
) -> VirtualRollout:
    """Return one virtual rollout."""
    source = TrafficSource(replace(traffic, effects=effects), plan)
    return run_once(plan, source, T0, np.random.default_rng(seed))


def three_steps(**overrides: object) -> Plan:
    """Return a plan of 10, 50 and 100 %, an hour each, that limits and compares errors."""
    stages = tuple(
        make_stage(percent=float(percent), bake=HOUR, max_bake=3 * HOUR)
        for percent in (10, 50, 100)
    )
    return make_plan(
        **{
            "stages": stages,
            "guardrails": (Guardrail("error_rate", limit=0.02, margin=0.1),),
            **overrides,
        }
    )


def test_a_healthy_release_is_promoted_in_the_planned_time() -> None:
    """With traffic enough each stage takes its settle and bake, and the last one completes."""
    run = ran(three_steps(), traffic=make_traffic(200.0))
    assert (run.ended, run.found_at) == ("completed", None)
    assert run.stage_times == {0: HOUR + MINUTE, 1: HOUR + MINUTE, 2: HOUR + MINUTE}
    assert run.path == [(timedelta(0), 10.0), (HOUR + MINUTE, 50.0), (2 * HOUR + 2 * MINUTE, 100.0)]


def test_a_plan_that_ends_by_itself_is_tried_to_its_last_stage() -> None:
    """What a stage shows does not depend on a date in the calendar."""
    run = ran(three_steps(ends_at=T0 + HOUR), traffic=make_traffic(200.0))
    assert run.ended == "completed"


def test_harm_from_a_stage_on_is_found_there_and_counted() -> None:
    """Five times the errors from the second stage on.

    Rolled back there, with what it has cost until then.
    """
    run = ran(three_steps(), Effect("errors", 5.0, stage=1))
    assert (run.ended, run.stage, run.metric, run.is_found) == (
        "rolled_back",
        1,
        "error_rate",
        True,
    )
    assert run.harm_began_at == T0 + HOUR + MINUTE
    assert run.found_at is not None
    seconds = (run.found_at - run.harm_began_at).total_seconds()
    assert (
        60 < seconds < 600
    )  # a minute of settling does not count as evidence, and does count as harm
    assert run.harmed_contexts == pytest.approx(25 * seconds, rel=0.1)
    assert run.extra_failures == pytest.approx(0.02 * 25 * (seconds - 60), rel=0.6)


def test_harm_after_some_time_is_dated_from_then() -> None:
    """Trouble that begins half-way through a stage is found soon after.

    Not counted from the stage's begin.
    """
    run = ran(three_steps(), Effect("errors", 5.0, after=timedelta(minutes=90)))
    assert run.harm_began_at == T0 + timedelta(minutes=90)
    assert run.is_found
    assert run.found_at is not None
    assert run.found_at - run.harm_began_at < 10 * MINUTE


def test_too_little_traffic_ends_undecided_at_max_bake() -> None:
    """A gate that cannot be shown anything pauses at max_bake, in the stage where it did."""
    run = ran(three_steps(), traffic=make_traffic(0.5))
    assert (run.ended, run.stage, run.stage_times) == ("undecided", 0, {})
    assert run.at == T0 + MINUTE + 3 * HOUR


def test_the_model_agrees_and_people_approve_at_once() -> None:
    """Neither advice nor approval makes a virtual rollout wait."""
    stages = (
        make_stage(percent=50.0, bake=HOUR, approval=Approval.REQUIRED),
        make_stage(percent=100.0, bake=HOUR),
    )
    run = ran(three_steps(stages=stages, advisor=AdvisorPolicy(mode=AdvisorMode.REQUIRED)))
    assert (run.ended, run.at) == ("completed", T0 + 2 * (HOUR + MINUTE))


def test_freeze_windows_hold_in_virtual_time() -> None:
    """What is frozen when its gate would pass goes on when the window ends."""
    window = Window(frozenset({1}), 9 * 60 + 30, 5 * 60, "UTC")  # T0 is a Monday, 9:00
    run = ran(three_steps(freeze_windows=(window,)))
    assert run.ended == "completed"
    assert run.stage_times[0] == pytest.approx(timedelta(hours=5, minutes=30), abs=30 * MINUTE)


def test_active_windows_hold_in_virtual_time() -> None:
    """Three bakes of an hour, each of which takes more than one window of 45 minutes a day."""
    window = Window(frozenset(range(1, 8)), 9 * 60, 45, "UTC")  # T0 is 9:00
    run = ran(three_steps(active=(window,)))
    assert run.ended == "completed"
    assert timedelta(days=3) < run.at - T0 < timedelta(days=7)
    assert {percent for _, percent in run.path} >= {0.0, 100.0}
    found = ran(three_steps(active=(window,)), Effect("errors", 5.0))
    assert (found.ended, found.is_found) == ("rolled_back", True)


def test_a_breach_that_only_pauses_is_a_find_too() -> None:
    """What a guardrail does about harm does not change that it was found."""
    guardrail = Guardrail("error_rate", margin=0.1, on_breach=OnBreach.PAUSE)
    run = ran(three_steps(guardrails=(guardrail,)), Effect("errors", 5.0))
    assert (run.ended, run.is_found) == ("paused", True)


def test_the_same_seed_gives_the_same_figures() -> None:
    """Figures can be repeated, and another seed gives others."""
    traffic = make_traffic(5.0)
    one, again, other = (simulate(three_steps(), traffic, 3, seed, T0) for seed in (1, 1, 2))
    assert one == again
    assert [run.stage_contexts for run in one.runs] != [run.stage_contexts for run in other.runs]


def test_figures_part_the_runs() -> None:
    """Found and missed are parts of the runs that came to harm; a false alarm is none of them."""
    scenario = simulate(
        three_steps(),
        make_traffic(50.0, effects=(Effect("errors", 5.0, stage=2),)),
        4,
        1,
        T0,
    )
    assert (scenario.found.count, scenario.found.of) == (4, 4)
    assert (scenario.missed.count, scenario.false_alarm.count, scenario.promoted.count) == (0, 0, 0)
    assert [stage.passed for stage in scenario.stages] == [4, 4, 0]
    assert scenario.seconds_to_find is not None
    assert scenario.finders == {"error_rate": 4}


def test_intervals_and_quantiles_of_few_runs() -> None:
    """None of ten may still be a quarter of all; the median of an even number is the lower one."""
    assert list(ShareOfRuns(0, 10).interval) == pytest.approx([0.0, 0.278], abs=0.001)
    assert list(ShareOfRuns(10, 10).interval) == pytest.approx([0.722, 1.0], abs=0.001)
    assert ShareOfRuns(0, 0).interval == (0.0, 1.0)
    values = spread([4.0, 1.0, 3.0, 2.0])
    assert values is not None
    assert (values.median, values.p90) == (2.0, 4.0)
    assert spread([]) is None


def test_an_arm_of_equal_size_is_drawn_as_it_is_served() -> None:
    """Control is as small as treatment, and the split that is observed is the decided one."""
    equal = {"bake": HOUR, "max_bake": 3 * HOUR, "control": ControlArm.EQUAL}
    stages = tuple(make_stage(percent=float(percent), **equal) for percent in (10, 50))
    run = ran(three_steps(stages=stages), traffic=make_traffic(400.0))
    assert (run.ended, run.lacking) == ("completed", ())
