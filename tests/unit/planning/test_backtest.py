"""Recorded events through a plan: counted, judged and decided as then."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from controller.core.plan import Guardrail, Plan
from controller.planning.backtest import Backtest, Replay, Source
from controller.ports import Record
from schemas.terms import Approval, DecisionKind, GapPolicy, HealthGap, PhaseName
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

    Judged by what was there, and on request refused as a broken split, which in the end rolls back.
    """
    assert DecisionKind.ADVANCE in kinds(gone_through(short_plan(), 600, share=0.2))
    paused = gone_through(short_plan(), 600, share=0.2, counts_split=True)
    assert kinds(paused) == [DecisionKind.START, DecisionKind.PAUSE, DecisionKind.ROLL_BACK]


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


def test_a_breach_is_found_while_the_rollout_is_paused() -> None:
    """Guardrails stay armed in a pause, so the backtest goes on after one."""
    policies = dict.fromkeys(HealthGap, GapPolicy.PAUSE)
    plan = short_plan(health_grace=20 * SECOND, fresh_within=20 * SECOND, gap_policies=policies)
    test = Backtest(plan, T0, [EVALUATIONS, OUTCOMES], exact_limit=1000, window_ms=1_800_000)
    replay = Replay(test, T0, SECOND)
    healthy, harmed = list(slices(180)), list(slices(180, worse=20))
    # Nothing comes for a minute, which pauses; when events come again, treatment fails.
    for batch in (*healthy[:60], *harmed[120:]):
        for source, records in batch.items():
            for record in records:
                replay.take(datetime.fromtimestamp(record.timestamp / 1000, UTC), [source], record)
    replay.end(T0 + 180 * SECOND)
    assert kinds(test) == [DecisionKind.START, DecisionKind.PAUSE, DecisionKind.ROLL_BACK]
    assert test.decisions[-1].at > T0 + 2 * MINUTE


def test_a_context_is_at_risk_once_in_a_batch_as_long_as_the_daemons() -> None:
    """Ten requests of one user in a second are ten user actions, not one."""
    test = Backtest(short_plan(), T0, [EVALUATIONS, OUTCOMES], exact_limit=1000, window_ms=60_000)
    at = at_ms(T0) + 20_000
    flags = (("new-checkout", "on"),)
    outcomes = [
        make_record(
            n, outcome_value("u", time_ms=at + 100 * n, flags=flags), timestamp_ms=at + 100 * n
        )
        for n in range(10)
    ]
    test.advance(T0 + 21 * SECOND, {OUTCOMES: outcomes})
    assert test.totals().treatment.at_risk == 10


def test_a_time_in_the_future_is_refused_and_costs_no_exposure() -> None:
    """One producer with a wrong clock must not expire what outcomes are joined to."""
    test = Backtest(short_plan(), T0, [EVALUATIONS, OUTCOMES], exact_limit=1000, window_ms=60_000)
    at = at_ms(T0) + 20_000
    seen = [
        make_record(0, evaluation_value("u", "on", time_ms=at), timestamp_ms=at),
        make_record(1, evaluation_value("v", "on", time_ms=at + 10**8), timestamp_ms=at + 10**8),
    ]
    happened = [make_record(0, outcome_value("u", time_ms=at + 5), timestamp_ms=at + 5)]
    test.advance(T0 + 21 * SECOND, {EVALUATIONS: seen, OUTCOMES: happened})
    assert test.records.refused == 1
    assert test.totals().treatment.outcomes == 1


def test_outcomes_are_joined_however_many_exposures_a_slice_has() -> None:
    """Exposures are indexed by the ten thousand; the outcomes wait for all of them."""
    test = Backtest(short_plan(), T0, [EVALUATIONS, OUTCOMES], exact_limit=1000, window_ms=60_000)
    at = at_ms(T0) + 20_000
    seen = [
        make_record(n, evaluation_value(f"u{n}", "on", time_ms=at), timestamp_ms=at)
        for n in range(20_001)
    ]
    happened = [make_record(0, outcome_value("u20000", time_ms=at + 5), timestamp_ms=at + 5)]
    test.advance(T0 + 21 * SECOND, {EVALUATIONS: seen, OUTCOMES: happened})
    assert test.totals().treatment.outcomes == 1
