"""Totals from elsewhere.

How contexts and latencies are assigned, and that the verdicts stay at their level.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy

from controller.core.evidence import bucket_of
from controller.planning.external_totals import ArmSums, Stream, Watched, add_totals, begin
from schemas.terms import Arm

Sums = dict[Arm, ArmSums]


def make_sums(treatment: dict[str, Any], control: dict[str, Any]) -> Sums:
    """Return both arms' totals."""
    return {Arm.TREATMENT: ArmSums(**treatment), Arm.CONTROL: ArmSums(**control)}


def make_stream(
    sums: Sums, share: float = 0.1, alpha: float = 0.01, looks_planned: int = 200
) -> Stream:
    """Return a stream that watches what is in `sums`, before its first look."""
    return begin("s1", Watched.among(sums), 0, share, alpha, looks_planned)


def looked(
    *totals: Sums, stages: tuple[int, ...] | None = None, shares: tuple[float, ...] | None = None
) -> Stream:
    """Return a stream after these looks."""
    stream = make_stream(totals[0], share=shares[0] if shares else 0.1)
    for index, sums in enumerate(totals):
        stream, _, _ = add_totals(
            stream, stages[index] if stages else 0, shares[index] if shares else 0.1, sums
        )
    return stream


def arm(contexts: int, failed: int = 0, outcomes: int | None = None, **more: Any) -> dict[str, Any]:
    """Return an arm's totals by contexts."""
    return {"contexts": contexts, "contexts_with_error": failed, "outcomes": outcomes, **more}


def test_where_nobody_comes_back_new_contexts_are_at_risk() -> None:
    """With one outcome per context, the contexts of a look are those that are new."""
    stream = looked(
        make_sums(arm(10, 1, 10), arm(90, 2, 90)),
        make_sums(arm(22, 1, 22), arm(170, 5, 170)),
    )
    treatment, control = stream.assigned[Arm.TREATMENT], stream.assigned[Arm.CONTROL]
    assert (treatment.at_risk, treatment.first_errors) == (22, 1)
    assert (control.at_risk, control.first_errors) == (170, 5)


def test_returning_contexts_are_dealt_in_proportion_to_those_that_have_not_failed() -> None:
    """50 outcomes of nobody new came from 100 contexts that have not failed: half of each arm's."""
    stream = looked(
        make_sums(arm(25, 5, 25), arm(90, 10, 90)),
        make_sums(arm(25, 5, 40), arm(90, 10, 125)),
    )
    assert stream.assigned[Arm.TREATMENT].at_risk == 25 + 10
    assert stream.assigned[Arm.CONTROL].at_risk == 90 + 40


def test_without_outcomes_everybody_may_have_come_back() -> None:
    """Totals of contexts alone leave open who was there: all that have not failed."""
    first = {"contexts": 10, "contexts_with_error": 1}, {"contexts": 90, "contexts_with_error": 4}
    stream = looked(make_sums(*first), make_sums(*first))
    assert stream.assigned[Arm.TREATMENT].at_risk == 10 + 9
    assert stream.assigned[Arm.CONTROL].at_risk == 90 + 86


def test_more_failures_than_returns_means_that_all_were_there() -> None:
    """Failures that outcomes do not explain count against all contexts without one."""
    stream = looked(
        make_sums(arm(10, 0, 10), arm(90, 0, 90)), make_sums(arm(10, 3, 11), arm(90, 0, 90))
    )
    assert stream.assigned[Arm.TREATMENT].at_risk == 10 + 10
    assert stream.assigned[Arm.CONTROL].at_risk == 90 + 90


def test_fractions_of_returning_contexts_are_not_lost() -> None:
    """A tenth of a context per look is one context after ten looks and a bit."""
    totals = [make_sums(arm(1, 0, 1), arm(99, 0, 99 + 10 * step)) for step in range(13)]
    stream = looked(*totals)
    assert stream.assigned[Arm.TREATMENT].at_risk == 1 + 1
    assert stream.assigned[Arm.CONTROL].at_risk == 99 + 118


def test_without_contexts_outcomes_are_the_units() -> None:
    """Streams that know requests only are judged by requests."""
    stream = looked(make_sums({"outcomes": 10, "errors": 1}, {"outcomes": 90, "errors": 4}))
    assert stream.watched.units == "outcomes"
    assert (stream.assigned[Arm.CONTROL].at_risk, stream.assigned[Arm.CONTROL].first_errors) == (
        90,
        4,
    )


def test_alpha_goes_whole_to_the_only_metric() -> None:
    """A stream without latency spends nothing on it."""
    sums = make_sums(arm(10), arm(90))
    _, seen, judgement = add_totals(make_stream(sums, alpha=0.05), 0, 0.1, sums)
    assert [harm.threshold for harm in seen] == pytest.approx([20])
    assert judgement is None


def test_no_more_latencies_than_contexts_and_from_everywhere_in_the_distribution() -> None:
    """Ten values per context: one in ten is taken, of slow and fast ones alike."""
    fast, slow = bucket_of(50), bucket_of(900)
    totals = [
        make_sums(
            arm(10 * step, 0, 100 * step, latency={fast: 99 * step, slow: step}),
            arm(100 * step, 0, 1000 * step, latency={fast: 990 * step, slow: 10 * step}),
        )
        for step in range(1, 101)
    ]
    stream = looked(*totals)
    treatment, control = (
        stream.assigned[Arm.TREATMENT].latency,
        stream.assigned[Arm.CONTROL].latency,
    )
    assert sum(treatment.values()) == pytest.approx(1000, abs=1)
    assert sum(control.values()) == pytest.approx(10_000, abs=1)
    assert treatment[slow] == pytest.approx(10, abs=3)
    assert control[slow] == pytest.approx(100, abs=10)


def test_latencies_are_taken_whole_where_each_context_has_at_most_one() -> None:
    """What one context cannot have more than one of needs no thinning."""
    latency = {3: 7, 9: 3}
    stream = looked(make_sums(arm(10, 0, 10, latency=latency), arm(90, 0, 90, latency=latency)))
    assert stream.assigned[Arm.TREATMENT].latency == latency


def test_another_stage_is_another_visit_with_totals_from_zero() -> None:
    """Totals that begin at zero with a new stage are no fall."""
    stream = looked(
        make_sums(arm(10, 1, 10), arm(990, 2, 990)),
        make_sums(arm(30, 0, 30), arm(270, 1, 270)),
        stages=(0, 1),
        shares=(0.01, 0.1),
    )
    assert [visit.percent for visit in stream.rollout.visits] == [1.0, 10.0]
    assert stream.assigned[Arm.TREATMENT].at_risk == 30


def test_another_share_in_the_same_stage_is_another_visit_too() -> None:
    """A batch spans no change of share.

    Totals go on where they stand, and who comes back is assigned by the new share.
    """
    stream = looked(
        make_sums(arm(100, 0, 100), arm(900, 0, 900)),
        make_sums(arm(100, 0, 600), arm(900, 0, 1400)),
        shares=(0.1, 0.5),
    )
    assert [visit.percent for visit in stream.rollout.visits] == [10.0, 50.0]
    assert [stream.assigned[arm].at_risk for arm in Arm] == [500, 500]


def test_what_is_missing_from_a_look_stands_still() -> None:
    """A look without some metric brings no news of it, and no fall."""
    known = make_sums(arm(10, 1, 10, latency={5: 10}), arm(90, 2, 90, latency={5: 90}))
    stream = looked(known, make_sums({}, {}), known)
    assert stream.assigned[Arm.CONTROL].at_risk == 90
    assert stream.assigned[Arm.CONTROL].latency == {5: 90}


def test_a_stream_without_anything_to_watch_cannot_begin() -> None:
    """Nothing to watch is not a pass."""
    with pytest.raises(ValueError, match="neither errors nor latency"):
        begin("s1", Watched.among(make_sums({}, {})), 0, 0.1, 0.01, 200)


# --- whole streams ---


def coming_back(
    rng: np.random.Generator,
    shares: tuple[float, ...],
    *,
    worse: float = 1.0,
    contexts: int = 2000,
    looks: int = 40,
) -> Iterator[tuple[int, float, Sums]]:
    """Yield looks at returning users, some more frequent or unlucky, in drifting bursts."""
    activity = np.exp(rng.normal(0, 1.5, contexts))
    luck = np.exp(rng.normal(0, 1.5, contexts))
    lot = rng.random(contexts)
    for stage, share in enumerate(shares):
        treated = lot < share
        seen, failed = np.zeros(contexts, bool), np.zeros(contexts, bool)
        outcomes = {Arm.TREATMENT: 0, Arm.CONTROL: 0}
        for step in range(looks):
            who = rng.choice(contexts, rng.poisson(400), p=activity / activity.sum())
            rate = 0.01 * (1 + 0.8 * np.sin(step / 10)) * (10 if rng.random() < 0.05 else 1)
            chance = np.minimum(rate * luck[who] * np.where(treated[who], worse, 1), 1)
            seen[who] = True
            failed[who[rng.random(len(who)) < chance]] = True
            sums = {}
            for arm_, mine in ((Arm.TREATMENT, treated), (Arm.CONTROL, ~treated)):
                outcomes[arm_] += int(mine[who].sum())
                sums[arm_] = ArmSums(
                    int((seen & mine).sum()), int((failed & mine).sum()), outcomes[arm_], None
                )
            yield stage, share, sums


def is_rolled_back(looks: Iterator[tuple[int, float, Sums]], alpha: float) -> bool:
    """Whether any look of a stream finds harm."""
    stream: Stream | None = None
    for stage, share, sums in looks:
        stream = stream or begin("s", Watched.among(sums), stage, share, alpha, 120)
        stream, _, judgement = add_totals(stream, stage, share, sums)
        if judgement is not None and judgement.breach is not None:
            return True
    return False


@pytest.mark.parametrize(
    "shares", [(0.1,), (0.5,), (0.01, 0.1, 0.5)], ids=["tenth", "half", "ramp"]
)
def test_users_who_come_back_make_no_more_false_alarms_than_alpha(
    shares: tuple[float, ...],
) -> None:
    """Heavy users, unlucky users, bursts, drift and ramps.

    False roll backs stay within alpha, beyond chance.
    """
    runs, alpha = 20, 0.05
    false = sum(
        is_rolled_back(coming_back(np.random.default_rng([7, run]), shares), alpha)
        for run in range(runs)
    )
    assert false <= scipy.stats.binom.ppf(0.999, runs, alpha)


def test_harm_is_found_among_users_who_come_back() -> None:
    """Five times the errors are found in most streams."""
    found = sum(
        is_rolled_back(
            coming_back(np.random.default_rng([8, run]), (0.1, 0.5), worse=5), alpha=0.01
        )
        for run in range(10)
    )
    assert found >= 9
