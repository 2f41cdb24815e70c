"""The sample-ratio test: reference vector, ramps, and what it leaves alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controller.core.analysis.change_point import log_sum_exp
from controller.core.analysis.sample_ratio import (
    ALPHA_SRM,
    LOG_FACTORS,
    add_exposures,
    is_mismatch,
    log_e_value,
    no_evidence,
    threshold,
)


def test_reference_vector() -> None:
    """800 of 10,000 contexts at a decided 10 % have log e-value 19.971296 (factor sd 0.1)."""
    weights = np.exp(-0.5 * (LOG_FACTORS / 0.1) ** 2)
    evidence = add_exposures(no_evidence(), 0.1, 800, 9200)
    assert log_sum_exp(np.log(weights / weights.sum()) + evidence) == pytest.approx(
        19.971296, abs=1e-6
    )


def test_no_evidence_is_one() -> None:
    """Before the first exposure the e-value is 1."""
    assert log_e_value(no_evidence()) == pytest.approx(0.0)


def test_right_shares_are_no_mismatch() -> None:
    """A stage's exposures are held against that stage's share."""
    for share in (0.01, 0.1, 0.5):
        state = add_exposures(
            no_evidence(), share, round(100_000 * share), round(100_000 * (1 - share))
        )
        assert log_e_value(state) < 0


def test_all_visits_share_one_alpha() -> None:
    """A thousand visits together alarm falsely with the promised probability at most."""
    assert sum(1 / threshold(visit) for visit in range(1, 1001)) <= ALPHA_SRM


def test_users_who_stay_where_they_are_seldom_alarm_in_a_ramp() -> None:
    """Nine stages with the same users, whose split is right, alarm no more often than alpha allows.

    Whoever is in treatment stays there, so that an imbalance by chance is there in every stage.
    Evidence that is multiplied over the stages alarms in 7 % of such rollouts.
    """
    rng = np.random.default_rng(20262)
    alarms = 0
    for _ in range(200):
        places = rng.random(2000)
        for visit, share in enumerate(np.arange(0.1, 1.0, 0.1), start=1):
            state, is_found = no_evidence(), False
            for arrived in np.array_split(rng.permutation(places), 10):
                treatment = int((arrived < share).sum())
                state = add_exposures(state, float(share), treatment, len(arrived) - treatment)
                is_found = is_found or is_mismatch(state, visit)
            if is_found:
                alarms += 1
                break
    assert alarms <= 2  # expected 0.2 at most; 3 or more have probability 0.001


def test_a_billion_contexts_may_be_off_by_one_percent_of_the_share() -> None:
    """The slight unevenness of a hash is not found, however many contexts there are."""
    assert log_e_value(add_exposures(no_evidence(), 0.1, 101_000_000, 899_000_000)) < math.log(
        1 / ALPHA_SRM
    )


def test_right_split_seldom_alarms_however_often_one_looks() -> None:
    """200 runs of 200 looks at right splits give at most the false alarms that alpha allows."""
    rng = np.random.default_rng(20261)
    alarms = 0
    for _ in range(200):
        state = no_evidence()
        for _ in range(200):
            treatment = int(rng.binomial(100, 0.1))
            state = add_exposures(state, 0.1, treatment, 100 - treatment)
            if log_e_value(state) >= math.log(1 / ALPHA_SRM):
                alarms += 1
                break
    assert alarms <= 2  # expected 0.2 at most; 3 or more have probability 0.001
