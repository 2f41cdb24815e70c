"""The gate from stage to stage: limits that tighten, and stepping back."""

from __future__ import annotations

from datetime import timedelta

from controller.core.plan import Guardrail
from controller.core.rollout import Baking
from tests.builders import T0, make_plan, make_rollout, make_stages, make_visit
from tests.streams import Watched


def watch(*guardrails: Guardrail) -> Watched:
    """Return a rollout under watch at 10 %."""
    plan = make_plan(guardrails=guardrails, stages=make_stages(10, 50, 100))
    phase = Baking(stage=0, until=T0 + timedelta(minutes=11))
    return Watched(
        make_rollout(plan=plan, phase=phase, visits=(make_visit(percent=10.0),), percent=10.0)
    )


def feed(
    watched: Watched, looks: int, treatment: tuple[int, int], control: tuple[int, int]
) -> None:
    """Add the same (contexts, first errors) to each arm before every look."""
    for _ in range(looks):
        watched.treatment.add(*treatment)
        watched.control.add(*control)
        watched.look()


def test_only_the_limit_of_the_present_percentage_is_judged() -> None:
    """Of a limit that tightens.

    The part for other percentages is neither shown nor fed with this stage's evidence.
    """
    early = Guardrail("error_rate", limit=0.05, to_percent=10)
    late = Guardrail("error_rate", limit=0.005, from_percent=50)
    watched = watch(early, late)
    feed(watched, 50, (100, 2), (900, 18))  # 2 %: allowed now, four times what will be allowed
    assert [metric.limit for metric in watched.last().metrics] == [0.05]
    assert watched.last().breach is None
    watched.go_on(50.0, 1)
    feed(watched, 2, (100, 0), (100, 0))
    assert [metric.limit for metric in watched.last().metrics] == [0.005]
    assert watched.last().breach is None, "what was allowed at 10 % is not held against 50 %"


def test_stepping_back_begins_the_tests_anew() -> None:
    """What made a rollout step back is not found a second time in the stage below.

    Also not when it is still reported late.
    """
    watched = watch(Guardrail("error_rate", margin=0.1))
    feed(watched, 10, (100, 1), (900, 9))
    watched.go_on(50.0, 1)
    feed(watched, 20, (500, 50), (500, 5))
    assert watched.last().breach is not None
    harmed = watched.last().harm.failed_requests
    watched.go_on(10.0, 0)
    watched.arms[1][0].add(500, 50)  # late
    feed(watched, 20, (100, 1), (900, 9))
    assert watched.last().breach is None
    assert watched.last().harm.failed_requests > harmed, "what it has cost is not forgotten"


def test_harm_in_the_stage_below_is_found_after_stepping_back() -> None:
    """The tests that began again are armed."""
    watched = watch(Guardrail("error_rate", margin=0.1))
    watched.go_on(50.0, 1)
    feed(watched, 20, (500, 50), (500, 5))
    watched.go_on(10.0, 0)
    feed(watched, 60, (100, 10), (900, 9))
    assert watched.last().breach is not None
