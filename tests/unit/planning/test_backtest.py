"""Recorded events through a plan: counted, judged and decided as then."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta

from controller.core.plan import Guardrail, Plan
from controller.planning.backtest import Backtest, Source
from controller.ports import Record
from schemas.terms import Approval, DecisionKind, PhaseName
from tests.builders import HOUR, MINUTE, T0, make_plan, make_stage
from tests.records import at_ms, evaluation_value, make_record, outcome_value

EVALUATIONS, OUTCOMES = Source("evaluations", 0), Source("outcomes", 0)
SECOND = timedelta(seconds=1)


def short_plan(**overrides: object) -> Plan:
    """Return a plan of 50 and 100 %, two minutes each, that limits errors."""
    stages = tuple(
        make_stage(
            percent=percent,
            settle=10 * SECOND,
            bake=2 * MINUTE,
            max_bake=10 * MINUTE,
            min_sample=50,
        )
        for percent in (50.0, 100.0)
    )
    return make_plan(
        **{"stages": stages, "guardrails": (Guardrail("error_rate", limit=0.1),), **overrides}
    )


def slices(
    seconds: int, *, worse: float = 1.0, joined: bool = False, share: float = 0.5
) -> Iterator[dict[Source, list[Record]]]:
    """Yield what ten users a second leave in both topics.

    Treatment fails `worse` times as often as the 2 % of control.
    """
    lot = random.Random(5)
    offset = 0
    for second in range(seconds):
        batch: dict[Source, list[Record]] = {EVALUATIONS: [], OUTCOMES: []}
        for number in range(10):
            time_ms = at_ms(T0) + 1000 * second + 100 * number
            user = f"u{second}-{number}"
            variant = "on" if lot.random() < share else "off"
            is_error = lot.random() < 0.02 * (worse if variant == "on" else 1)
            flags = () if joined else (("new-checkout", variant),)
            batch[EVALUATIONS].append(
                make_record(
                    offset, evaluation_value(user, variant, time_ms=time_ms), timestamp_ms=time_ms
                )
            )
            batch[OUTCOMES].append(
                make_record(
                    offset,
                    outcome_value(user, time_ms=time_ms + 20, flags=flags, error=is_error),
                    timestamp_ms=time_ms + 20,
                )
            )
            offset += 1
        yield batch


def gone_through(
    plan: Plan, seconds: int, *, counts_split: bool = False, **traffic: float
) -> Backtest:
    """Return a backtest after so many seconds of traffic, looked at every second."""
    test = Backtest(
        plan,
        T0,
        [EVALUATIONS, OUTCOMES],
        exact_limit=1000,
        window_ms=1_800_000,
        counts_split=counts_split,
    )
    for second, batch in enumerate(slices(seconds, **traffic), start=1):  # type: ignore[arg-type]
        test.advance(T0 + second * SECOND, batch)
        if test.is_over:
            break
    return test


def kinds(test: Backtest) -> list[DecisionKind]:
    """Return what was decided, without holds."""
    return [
        one.decision.kind for one in test.decisions if one.decision.kind is not DecisionKind.HOLD
    ]


def test_a_healthy_recording_is_promoted_stage_by_stage() -> None:
    """Each stage takes its settle and bake, and decisions are dated in the records' time."""
    test = gone_through(short_plan(), 600)
    assert kinds(test) == [DecisionKind.START, DecisionKind.ADVANCE, DecisionKind.COMPLETE]
    assert test.decisions[0].at == T0
    assert test.decisions[-1].at >= T0 + 4 * MINUTE + 20 * SECOND
    assert test.records.counted > 0
    assert test.records.late > 0  # what came while a stage settled


def test_harm_in_the_recording_rolls_back_when_it_shows() -> None:
    """Twenty times the errors.

    Rolled back within the first minute, by the guardrail, with its reason.
    """
    test = gone_through(short_plan(), 600, worse=20)
    last = test.decisions[-1]
    assert last.decision.kind is DecisionKind.ROLL_BACK
    assert last.at < T0 + MINUTE
    assert last.decision.reason.startswith("guardrail error_rate")


def test_outcomes_without_flags_are_joined_to_their_exposures() -> None:
    """The recording says who saw what in the other topic.

    The same verdict as with flags in the outcomes.
    """
    assert kinds(gone_through(short_plan(), 600, worse=20, joined=True)) == [
        DecisionKind.START,
        DecisionKind.ROLL_BACK,
    ]


def test_another_split_than_the_plans_is_not_held_against_the_records() -> None:
    """Served were 20 %, the stage has 50.

    Judged by what was there, and on request refused as a broken split.
    """
    assert DecisionKind.ADVANCE in kinds(gone_through(short_plan(), 600, share=0.2))
    paused = gone_through(short_plan(), 600, share=0.2, counts_split=True)
    assert kinds(paused) == [DecisionKind.START, DecisionKind.PAUSE]


def test_silence_waits_for_its_deadline_only() -> None:
    """Without another record the gate opens and closes at its own times.

    Not when somebody looks again.
    """
    test = gone_through(short_plan(), 60)
    test.advance(T0 + HOUR, {})
    assert kinds(test) == [DecisionKind.START, DecisionKind.PAUSE]
    assert test.decisions[-1].at == T0 + 10 * SECOND + 10 * MINUTE


def test_approvals_are_given_at_once() -> None:
    """A stage that asks a person goes on as if the answer had been there."""
    stages = (
        make_stage(
            percent=50.0,
            settle=10 * SECOND,
            bake=2 * MINUTE,
            max_bake=10 * MINUTE,
            approval=Approval.REQUIRED,
        ),
    )
    test = gone_through(short_plan(stages=stages), 300)
    assert test.rollout is not None
    assert test.rollout.phase.name is PhaseName.COMPLETED
