"""Evaluations by hour and arm: of every flag with a rollout, whatever counts of it, each once."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from controller.core.rollout import Completed
from controller.counting.folding.evaluation_hours import HOUR_MS, EvaluationHours, FlagArm
from controller.counting.folding.flags_to_count import KEPT_AFTER_END_MS, FlagsToCount
from schemas.terms import Arm, ControlArm
from tests.builders import HOUR, MINUTE, T0, make_plan, make_rollout, make_stages
from tests.records import ARRIVAL_MS, at_ms, make_record
from tests.unit.counting.partition_counting import AT, Counting, evaluation

FLAG = "new-checkout"
ARRIVED = ARRIVAL_MS // HOUR_MS
TREATMENT, CONTROL, NEITHER = (FLAG, Arm.TREATMENT), (FLAG, Arm.CONTROL), (FLAG, None)


def taken(directory: FlagsToCount) -> dict[int, dict[FlagArm, int]]:
    """Return what was counted by hour."""
    return {hour: dict(counts) for hour, counts in directory.evaluations.take().items()}


def test_each_evaluation_is_passed_on_once_with_the_save_that_has_it() -> None:
    """In the hour of the record; a context counts as often as it is evaluated."""
    counting = Counting(evaluations=True)
    counting.batch(evaluation("u1", "on"), evaluation("u1", "on"), evaluation("u2", "off"))
    assert taken(counting.directory) == {ARRIVED: {TREATMENT: 2, CONTROL: 1}}
    counting.batch(evaluation("u1", "on"))
    assert taken(counting.directory) == {ARRIVED: {TREATMENT: 1}}
    counting.batch()
    assert taken(counting.directory) == {}


def test_what_is_stored_was_passed_on_by_whoever_stored_it() -> None:
    """A replica that takes a partition over passes on only what it counts itself."""
    counting = Counting(evaluations=True)
    counting.batch(evaluation("u1", "on"))
    counting.directory.evaluations.take()
    counting.owner = counting.load()
    counting.batch(evaluation("u2", "on"))
    assert taken(counting.directory) == {ARRIVED: {TREATMENT: 1}}


def test_evaluations_outside_every_stage_are_passed_on_too() -> None:
    """The flag is used, although none of them is evidence; unknown variants are in neither arm."""
    counting = Counting(evaluations=True)
    before = T0 - MINUTE
    counting.batch(
        evaluation("u1", "on", before), evaluation("u2", "off", before), evaluation("u3", "odd")
    )
    assert counting.records.counted == 0
    assert taken(counting.directory) == {ARRIVED: {TREATMENT: 1, CONTROL: 1, NEITHER: 1}}
    counting.batch(evaluation("u1", "on", before), evaluation("u1", "on", AT))
    assert taken(counting.directory) == {ARRIVED: {TREATMENT: 2}}


def test_contexts_in_neither_arm_are_told_apart() -> None:
    """A plan that compares equal arms serves control to others, who are in neither."""
    directory = FlagsToCount()
    stages = tuple(replace(one, control=ControlArm.EQUAL) for one in make_stages(10))
    plan = make_plan(stages=stages)
    counted = directory.count_for(make_rollout(plan=plan))
    assert counted is not None
    assert counted.uncounted
    counting = Counting(evaluations=True, directory=directory)
    counting.batch(*(evaluation("u1", variant) for variant in counted.uncounted))
    assert taken(directory) == {ARRIVED: {NEITHER: len(counted.uncounted)}}


def test_a_rollout_that_is_over_still_has_evaluations() -> None:
    """Also when it was over before this replica started; a flag that was retired has none."""
    directory = FlagsToCount()
    rollout = make_rollout(phase=Completed(T0))
    directory.count_for(rollout, at_ms(T0) + KEPT_AFTER_END_MS)
    assert directory.flags == {}
    counting = Counting(evaluations=True, directory=directory)
    counting.batch(evaluation("u1", "on"), evaluation("u2", "off"), evaluation("u3", "odd"))
    assert taken(directory) == {ARRIVED: {TREATMENT: 1, CONTROL: 1, NEITHER: 1}}
    directory.retire(FLAG, 99)
    counting.batch(evaluation("u1", "on"))
    assert taken(directory) == {}


def test_nothing_is_missing_when_a_rollout_is_freed() -> None:
    """What was counted and not saved by then comes with the next save."""
    counting = Counting(evaluations=True)
    counting.batch(evaluation("u1", "on"))
    counting.directory.evaluations.take()
    ended = replace(make_rollout(phase=Completed(T0)), revision=9)
    owner = counting.owner
    owner.fold([make_record(owner.totals.position, evaluation("u2", "on"))])
    counting.directory.count_for(ended)
    for counted in counting.directory.end(at_ms(T0 + 2 * HOUR)):
        owner.totals.flags.drop(counted.flag_key, counted.rollout_id)
    counting.batch(evaluation("u3", "on"))
    assert taken(counting.directory) == {ARRIVED: {TREATMENT: 2}}


def test_hours_are_bounded_while_nobody_can_save_them() -> None:
    """The oldest go first."""
    hours = EvaluationHours(most_entries=3)
    day = timedelta(days=1) // timedelta(hours=1)
    for hour in range(day):
        hours.add(FLAG, Arm.TREATMENT, 1, hour * HOUR_MS)
        hours.add(FLAG, Arm.CONTROL, 2, hour * HOUR_MS)
    assert hours.take() == {22: {TREATMENT: 1, CONTROL: 2}, 23: {TREATMENT: 1, CONTROL: 2}}
    assert hours.take() == {}


def unknown_events(directory: FlagsToCount, **counts: int) -> None:
    """Count events of flags without a rollout."""
    for name, count in counts.items():
        for _ in range(count):
            directory.count_unknown(name)


def test_flags_without_a_rollout_are_taken_with_what_is_new() -> None:
    """Each event once; a name of few events waits until it has enough."""
    directory = FlagsToCount()
    unknown_events(directory, typo=20, rare=19)
    assert directory.take_unknown() == {"typo": 20}
    assert directory.take_unknown() == {}
    unknown_events(directory, typo=3, rare=1)
    assert directory.take_unknown() == {"typo": 3, "rare": 20}


def test_counts_that_were_taken_back_are_no_new_events() -> None:
    """Where many names compete, a count is what is known at least."""
    directory = FlagsToCount(unknown_names_limit=1)
    unknown_events(directory, typo=30)
    assert directory.take_unknown() == {"typo": 30}
    unknown_events(directory, other=5)
    assert directory.unknown_names == {"typo": 25}
    unknown_events(directory, typo=2)
    assert directory.take_unknown() == {}
    unknown_events(directory, typo=10)
    assert directory.take_unknown() == {"typo": 10}
