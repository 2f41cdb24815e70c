"""What a handful of virtual rollouts warns of."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from controller.core.plan import Guardrail, Plan, Window
from controller.planning.outlook import HARMED_RUNS, HEALTHY_RUNS, MOST_LOOKS, _stricter, outlook
from controller.planning.simulation import run_once
from controller.planning.virtual_traffic import TrafficSource, example_harms
from tests.builders import HOUR, MINUTE, T0, make_plan, make_stage, make_traffic


def steps(guardrail: Guardrail, **overrides: object) -> Plan:
    """Return a plan of 10 and 100 %, an hour each and three at most, with one guardrail."""
    stages = tuple(
        make_stage(percent=float(percent), bake=HOUR, max_bake=3 * HOUR) for percent in (10, 100)
    )
    return make_plan(**{"stages": stages, "guardrails": (guardrail,), **overrides})


def told(
    plan: Plan, contexts_per_second: float, error_rate: float = 0.005
) -> list[tuple[tuple[str | int, ...], str]]:
    """Return place and words of each warning."""
    seen = outlook(plan, make_traffic(contexts_per_second, error_rate=error_rate), T0)
    return [(finding.path, f"{finding.message}; {finding.fix}") for finding in seen.findings]


def test_a_plan_that_works_is_not_warned_of() -> None:
    """Traffic enough, a comparison that finds twice the errors."""
    assert told(steps(Guardrail("error_rate", limit=0.02, margin=0.1)), 200.0) == []


def test_a_gate_that_cannot_decide_is_named_with_what_it_lacks() -> None:
    """A hundred times less traffic: the first gate does not show the error rate to be safe."""
    [(at, words)] = told(steps(Guardrail("error_rate", limit=0.02, margin=0.1)), 1.0)
    assert at == ("stages", 0)
    assert "unlikely to decide at 1 contexts/s: in 6 of 6 simulated rollouts" in words
    assert "undecided at max_bake (3h): error_rate is not shown to be safe" in words
    assert "raise max_bake, expose more, or ask for less with a wider limit" in words
    [(_, words)] = told(steps(Guardrail("error_rate", limit=0.02, margin=0.1)), 5 / 3600)
    assert "unlikely to decide at 5 contexts/h" in words
    assert "the sample is too small" in words
    assert "raise max_bake, expose more, or lower min_sample" in words
    assert "gate_margin" not in words


def test_a_gate_that_waits_long_is_told() -> None:
    """It decides before max_bake, and long after its bake."""
    [(at, words)] = told(
        steps(
            Guardrail("error_rate", margin=0.1), stages=(make_stage(bake=HOUR, max_bake=50 * HOUR),)
        ),
        5.0,
    )
    assert at == ("stages", 0)
    assert "at 5 contexts/s, where 1h 1m are planned" in words


@pytest.mark.parametrize(("margin", "is_slow"), [(None, False), (0.1, True)])
def test_time_outside_active_windows_is_not_called_waiting(
    margin: float | None, is_slow: bool
) -> None:
    """Two hours a day: a stage that bakes for five takes three days, and exactly as planned.

    A gate that waits in open time is told as before.
    """
    window = Window(frozenset(range(1, 8)), 9 * 60, 120, "UTC")  # T0 is 9:00
    guardrail = Guardrail("error_rate", limit=None if margin else 0.02, margin=margin)
    rate = 5.0 if is_slow else 200.0
    bake = HOUR if is_slow else 5 * HOUR
    stages = (make_stage(bake=bake, max_bake=50 * HOUR),)
    plan = steps(guardrail, stages=stages, active=(window,))
    words = [words for at, words in told(plan, rate) if at == ("stages", 0)]
    assert len(words) == is_slow
    assert all("inside the active windows at 5 contexts/s, where 1h 1m" in one for one in words)
    source = TrafficSource(make_traffic(rate), plan)
    run = run_once(plan, source, T0, np.random.default_rng(1))
    assert run.stage_times[0] > 24 * HOUR
    assert is_slow or run.open_times[0] < 5 * HOUR + 10 * MINUTE


def test_a_limit_far_above_control_lets_a_doubled_error_rate_pass() -> None:
    """Twice control's errors stay below the limit: promoted, and said."""
    [(at, words)] = told(steps(Guardrail("error_rate", limit=0.05)), 200.0)
    assert at == ("guardrails",)
    assert "a release that fails twice as often as control is promoted in 3 of 3" in words
    assert "tighten the limit, or compare with control, as in `error_rate < control + 10%`" in words


@pytest.mark.parametrize(
    ("guardrails", "said"),
    [
        (
            [Guardrail("latency_p99", limit=300.0)],
            "tighten the limit, or compare with control, as in `latency_p99 < control + 10%`",
        ),
        (
            [Guardrail("latency_p99", margin=0.1), Guardrail("error_rate", limit=0.01)],
            "lower the margin of latency_p99, or let more traffic or time come to each stage",
        ),
        (
            [Guardrail("conversion:buy", limit=0.01)],
            "tighten the limit, or compare with control, as in `conversion:buy > control - 10%`",
        ),
    ],
)
def test_what_a_plan_has_already_is_not_recommended(guardrails: list[Guardrail], said: str) -> None:
    """The advice is about the metric of the harm, and about nothing that the plan does."""
    watching = [one for one in guardrails if one.metric == guardrails[0].metric]
    assert _stricter(watching) == said
    plan = make_plan(guardrails=tuple(guardrails))
    harms = {one.metric: own for _, _, own in example_harms(plan) for one in own}
    assert harms == {one.metric: [one] for one in guardrails}


def test_a_limit_below_control_is_a_false_alarm() -> None:
    """Control itself is over the limit: a release as good as it is rolled back."""
    warnings = told(steps(Guardrail("error_rate", limit=0.002)), 200.0)
    assert any(
        "error_rate finds harm in a release as good as control" in words for _, words in warnings
    )


def test_lint_stays_quick() -> None:
    """However long the plan, no run is begun once the looks are used up.

    Each traffic has one in any case.
    """
    stages = tuple(
        make_stage(percent=float(percent), bake=100 * HOUR, max_bake=300 * HOUR)
        for percent in range(1, 100, 4)
    )
    seen = outlook(
        steps(Guardrail("error_rate", limit=0.05), stages=stages),
        make_traffic(200.0),
        T0,
    )
    assert 2 <= seen.rollouts < HEALTHY_RUNS + HARMED_RUNS
    assert MOST_LOOKS > 0


def test_a_blind_plan_has_no_outlook() -> None:
    """Nothing is measured, so nothing can be simulated."""
    seen = outlook(
        steps(Guardrail("error_rate", limit=0.05), guardrails=(), blind=True),
        make_traffic(1.0),
        T0,
    )
    assert (seen.findings, seen.rollouts) == ((), 0)


@pytest.mark.parametrize("per_hour", [1e-6, 1e12])
@pytest.mark.parametrize("percent", [0.01, 99.99, 100.0])
def test_any_traffic_that_a_plan_may_state_can_be_tried(per_hour: float, percent: float) -> None:
    """From one context in a century to more than there are people: warnings, and no exception."""
    longest = timedelta(days=3650)
    stages = (make_stage(percent=percent, bake=longest, settle=longest / 2, max_bake=longest),)
    told(steps(Guardrail("error_rate", limit=0.02), stages=stages), per_hour / 3600)
