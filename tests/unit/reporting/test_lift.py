"""The lift of conversions: as people ask for it, with its interval."""

from __future__ import annotations

import pytest

from controller.ports import Lift
from controller.reporting.lift import lift_words, lifts_of, lifts_words
from schemas.terms import Arm
from tests.builders import T0, make_arm_summary, make_judgement, make_report


def test_a_fall_by_a_fifth_is_a_lift_of_minus_a_fifth() -> None:
    """What is judged is control's rate over treatment's; the ends change places."""
    metric = make_report(metric="conversion:paid", ratio=1.25, ratio_low=1.0, ratio_high=2.0)
    (lift,) = lifts_of(make_judgement(at=T0, metrics=(make_report(), metric)))
    assert lift.conversion == "paid"
    assert (lift.estimate, lift.low, lift.high) == pytest.approx((-0.2, -0.5, 0.0))
    assert lift.at == T0


def test_an_unbounded_end_stays_unbounded() -> None:
    """Early, little is known."""
    metric = make_report(metric="conversion:paid", ratio=0.5, ratio_low=None, ratio_high=4.0)
    (lift,) = lifts_of(make_judgement(metrics=(metric,)))
    assert (lift.low, lift.high) == (-0.75, None)
    assert lift_words(lift) == "paid +100 % (at least -75 %)"


def test_a_limit_alone_has_the_lift_of_both_arms_own_intervals() -> None:
    """Which is wider than that of a comparison; without conversions there is none."""
    arms = {
        Arm.TREATMENT: make_arm_summary(estimate=0.12, low=0.1, high=0.15),
        Arm.CONTROL: make_arm_summary(estimate=0.1, low=0.08, high=0.125),
    }
    metric = make_report(metric="conversion:paid", ratio=None, arms=arms)
    (lift,) = lifts_of(make_judgement(metrics=(metric,)))
    assert (lift.estimate, lift.low, lift.high) == pytest.approx((0.2, -0.2, 0.875))
    none = {**arms, Arm.CONTROL: make_arm_summary(estimate=0.0, low=0.0, high=0.01)}
    metric = make_report(metric="conversion:paid", ratio=None, arms=none)
    assert lifts_of(make_judgement(metrics=(metric,))) == ()
    metric = make_report(metric="conversion:paid", ratio=None, arms={})
    assert lifts_of(make_judgement(metrics=(metric,))) == ()


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.01, 0.0984, "paid +4.2 % (-1 % to +9.84 %)"),
        (None, 0.1, "paid +4.2 % (at most +10 %)"),
        (None, None, "paid +4.2 %"),
    ],
)
def test_a_lift_is_said_with_its_interval(
    low: float | None, high: float | None, words: str
) -> None:
    """In percent of control's rate."""
    lift = Lift("paid", 0.042, low, high, T0)
    assert lift_words(lift) == words
    assert lifts_words([lift, lift]) == f"{words}; {words}"
    assert lifts_words([]) == "–"
