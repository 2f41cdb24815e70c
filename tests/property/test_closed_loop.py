"""Apps that serve what was decided, events that are counted, a gate that judges.

Rings from the first to the last stage.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from controller.core.audience import Audience, Condition
from controller.core.plan import Guardrail, Plan
from controller.core.rollout import Rollout
from controller.core.serving import assign, serving
from controller.planning.backtest import Backtest, Source
from controller.ports import Record
from controller.web.bucketing import Generation, bucketer
from schemas.terms import ControlArm, DecisionKind, HealthGap, Operator, PhaseName
from tests.builders import MINUTE, T0, make_plan, make_stage
from tests.records import at_ms, evaluation_value, make_record, outcome_value

pytestmark = pytest.mark.property

EVALUATIONS, OUTCOMES = Source("evaluations", 0), Source("outcomes", 0)
SECOND = timedelta(seconds=1)
STAFF = Audience("staff", ((Condition("staff", Operator.EQ, (True,)),),))
BETA = Audience("beta", ((Condition("plan", Operator.IN, ("pro", "team")),),))
TIMES: dict[str, Any] = {
    "settle": 10 * SECOND,
    "bake": MINUTE,
    "max_bake": 5 * MINUTE,
    "min_sample": 50,
}
BUCKET = bucketer("new-checkout", Generation.V3)

#: What an app reports of the variant it was served.
Report = Callable[[str], str]


def rings() -> Plan:
    """Return a plan for staff, half of beta, 20 % with an equal control arm, and everybody."""
    stages = (
        make_stage(percent=100.0, audience="staff", **TIMES),
        make_stage(percent=50.0, audience="beta", **TIMES),
        make_stage(percent=20.0, control=ControlArm.EQUAL, **TIMES),
        make_stage(percent=100.0, **TIMES),
    )
    guardrails = (Guardrail("error_rate", limit=0.4, margin=1.0, gate_margin=9.0),)
    return make_plan(stages=stages, audiences=(STAFF, BETA), guardrails=guardrails)


def traffic(second: int, followed: Rollout, report: Report) -> Iterator[tuple[str, str, bool]]:
    """Yield (user, reported variant, failed) of 40 new users.

    Staff and beta users try harder things, and fail more often.
    """
    lot = random.Random(second)
    for number in range(40):
        user = f"u{second}-{number}"
        context = {
            "staff": lot.random() < 0.15,
            "plan": lot.choice(["free", "free", "pro"]),
            "targetingKey": user,
        }
        variant = assign(serving(followed), BUCKET(user), context)
        rate = 0.15 if context["staff"] else 0.05 if context["plan"] == "pro" else 0.01
        yield user, report(variant), lot.random() < rate


def gone_through(
    report: Report = str, follows: Callable[[Rollout], bool] = lambda _: True
) -> Backtest:
    """Return a rollout that apps follow, second by second.

    `follows` tells which documents reach them.
    """
    test = Backtest(
        rings(),
        T0,
        [EVALUATIONS, OUTCOMES],
        exact_limit=5000,
        window_ms=1_800_000,
        counts_split=True,
    )
    offset = 0
    followed = test.rollout
    for second in range(600):
        assert test.rollout is not None
        followed = test.rollout if follows(test.rollout) or followed is None else followed
        batch: dict[Source, list[Record]] = {EVALUATIONS: [], OUTCOMES: []}
        at = at_ms(T0) + 1000 * second
        for user, variant, failed in traffic(second, followed, report):
            told = (
                evaluation_value(user, variant, time_ms=at),
                outcome_value(user, time_ms=at + 20, error=failed),
            )
            for source, value in zip(batch, told, strict=True):
                batch[source].append(make_record(offset, value, timestamp_ms=at))
            offset += 1
        test.advance(T0 + (second + 1) * SECOND, batch)
        if test.is_over:
            break
    return test


def test_rings_are_judged_by_their_own_people_and_go_through() -> None:
    """Audiences that differ by far are promoted ring by ring.

    Nobody is compared with somebody else's ring.
    """
    test = gone_through()
    assert test.rollout is not None
    assert (test.rollout.phase.name, test.rollout.percent) == (PhaseName.COMPLETED, 100)
    kinds = [
        one.decision.kind for one in test.decisions if one.decision.kind is not DecisionKind.HOLD
    ]
    assert kinds == [DecisionKind.START, *[DecisionKind.ADVANCE] * 3, DecisionKind.COMPLETE]


def test_without_names_of_their_own_uncounted_contexts_break_the_split() -> None:
    """Apps that report the arm in place of the variant are found out.

    The gate does not judge what no lot has dealt.
    """
    arms = {"unassigned": "off", "on-earlier": "on"}
    test = gone_through(report=lambda variant: arms.get(variant, variant))
    assert test.judgement is not None
    assert {gap.kind for gap in test.judgement.gaps} & {HealthGap.SRM, HealthGap.ACTUATION_DRIFT}
    assert not any(one.decision.kind is DecisionKind.ADVANCE for one in test.decisions)


def test_apps_that_do_not_follow_hold_the_rollout_where_it_is() -> None:
    """Everybody was decided, apps go on with 20 % beside an equal arm.

    Told in the bake, and never completed.
    """
    test = gone_through(follows=lambda rollout: rollout.stage_index != 3)
    assert test.rollout is not None
    assert test.rollout.phase.name is PhaseName.PAUSED
    told = [one for one in test.decisions if one.decision.kind is DecisionKind.HOLD]
    entered = test.rollout.visits[-1].entered_at
    assert told[-1].at - entered < 15 * SECOND
    assert told[-1].decision.reason.startswith("actuation_drift: ")
