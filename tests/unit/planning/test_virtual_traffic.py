"""The virtual traffic a plan is tried with: what is drawn has the rates that were given."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from controller.core.analysis.latency import ordered
from controller.core.evidence import bucket_of
from controller.core.metrics.latency import VirtualLatency
from controller.core.metrics.virtual import DrawnArm
from controller.core.plan import Guardrail
from controller.planning.virtual_traffic import Effect, TrafficSource
from schemas.terms import Arm
from tests.builders import HOUR, MINUTE, T0, make_plan, make_traffic, make_visit

quantile_ms = VirtualLatency(50.0, 150.0).quantile_ms


def drawn(*effects: Effect, percent: float = 10.0) -> dict[Arm, DrawnArm]:
    """Return what an hour of a visit draws under these effects."""
    guardrails = (
        Guardrail("error_rate", margin=0.1),
        Guardrail("latency_p99", limit=200.0, margin=0.1),
        Guardrail("conversion:bought", margin=0.05),
    )
    arms = {arm: DrawnArm() for arm in Arm}
    traffic = make_traffic(100.0, error_rate=0.01, conversions={"bought": 0.1}, effects=effects)
    source = TrafficSource(traffic, make_plan(guardrails=guardrails))
    visit = make_visit(percent=percent)
    source.draw(arms, visit, T0, T0 + HOUR + MINUTE, effects, np.random.default_rng(3))
    return arms


def test_arms_get_their_shares_and_control_its_rates() -> None:
    """An hour at 100 contexts a second, a tenth of them in treatment.

    What comes while it settles is left out.
    """
    arms = drawn()
    assert arms[Arm.TREATMENT].contexts == pytest.approx(36_000, rel=0.03)
    assert arms[Arm.CONTROL].contexts == pytest.approx(324_000, rel=0.01)
    assert arms[Arm.CONTROL].failed == pytest.approx(3240, rel=0.1)
    assert arms[Arm.CONTROL].totals().converted["bought"] == pytest.approx(32_400, rel=0.05)
    assert sum(arms[Arm.CONTROL].totals().latency.values()) == arms[Arm.CONTROL].contexts


def test_effects_touch_treatment_alone() -> None:
    """Twice the errors, half the conversions, in treatment and not in control."""
    arms = drawn(Effect("errors", 2.0), Effect("conversion:bought", 0.5))
    assert arms[Arm.TREATMENT].failed == pytest.approx(720, rel=0.15)
    assert arms[Arm.TREATMENT].totals().converted["bought"] == pytest.approx(1800, rel=0.1)
    assert arms[Arm.CONTROL].failed == pytest.approx(3240, rel=0.1)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_latency_has_the_quantiles_it_was_given(q: float) -> None:
    """Log-normal through p50 and p99; a shift moves every quantile by its factor."""
    slow = drawn(Effect("latency", 1.5))
    control = ordered(slow[Arm.CONTROL].totals().latency).quantile(q)
    treatment = ordered(slow[Arm.TREATMENT].totals().latency).quantile(q)
    assert control == pytest.approx(quantile_ms(q), rel=0.13 if q < 0.95 else 0.03)
    assert treatment == pytest.approx(1.5 * quantile_ms(q), rel=0.13)


def test_a_tail_leaves_most_requests_alone() -> None:
    """One request in twenty takes ten times as long.

    The median hardly moves, what is above a limit does.
    """
    slow = drawn(Effect("tail", 10.0))
    treatment, control = (
        ordered(slow[Arm.TREATMENT].totals().latency),
        ordered(slow[Arm.CONTROL].totals().latency),
    )
    assert treatment.quantile(0.5) == pytest.approx(control.quantile(0.5), rel=0.13)
    assert treatment.above(bucket_of(200.0)) / treatment.total == pytest.approx(0.05, abs=0.01)


def test_limits_are_exact_although_buckets_are_coarse() -> None:
    """The share above a limit is the distribution's own, not that of a coarse bucket around it."""
    control = ordered(drawn()[Arm.CONTROL].totals().latency)
    assert control.above(bucket_of(quantile_ms(0.99))) / control.total == pytest.approx(
        0.01, abs=0.0015
    )


def test_at_full_exposure_there_is_no_control() -> None:
    """At 100 % everything is drawn for treatment."""
    arms = drawn(percent=100.0)
    assert arms[Arm.CONTROL].contexts == 0
    assert arms[Arm.TREATMENT].contexts == pytest.approx(360_000, rel=0.01)


@pytest.mark.parametrize(
    ("effect", "stage", "minutes", "is_active"),
    [
        (Effect("errors", 2.0), 0, 0, True),
        (Effect("errors", 2.0, stage=1), 0, 0, False),
        (Effect("errors", 2.0, stage=1), 2, 0, True),
        (Effect("errors", 2.0, after=timedelta(minutes=5)), 0, 4, False),
        (Effect("errors", 2.0, after=timedelta(minutes=5)), 0, 5, True),
    ],
)
def test_effects_begin_when_they_are_told_to(
    effect: Effect, stage: int, minutes: int, is_active: bool
) -> None:
    """At once, from a stage on, or after some time."""
    assert effect.is_active(make_visit(stage=stage), T0 + minutes * MINUTE, T0) is is_active


@pytest.mark.parametrize(
    ("effect", "written"),
    [
        (Effect("errors", 2.0), "errors=x2"),
        (Effect("latency", 1.25, stage=1), "latency=x1.25@stage2"),
        (Effect("tail", 5.0, after=timedelta(hours=25)), "tail=x5@1d 1h"),
    ],
)
def test_effects_read_as_they_are_written(effect: Effect, written: str) -> None:
    """What is told is what could have been typed."""
    assert str(effect) == written


def test_traffic_is_said_in_numbers_that_people_write() -> None:
    """Neither `0.0333 contexts/s` nor `4e+03 ms`."""
    assert VirtualLatency(4_000.0, 120_000.0).words() == ["latency p50 4,000 ms, p99 120,000 ms"]
    rates = {50.0: "50 contexts/s", 2 / 60: "2 contexts/min", 5 / 3_600: "5 contexts/h"}
    assert {rate: make_traffic(rate).rate_words for rate in rates} == rates
