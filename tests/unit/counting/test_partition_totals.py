"""What one partition's records add up to, case by case.

Whole histories are in tests/property/test_counting.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from controller.core.audience import Audience, Condition
from controller.core.evidence import bucket_of
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.errors import BrokenInvariant
from schemas.terms import Operator, QuarantineReason
from schemas.totals import (
    ArmCounts,
)
from schemas.wire import read_outcomes
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_plan,
    make_rollout,
    make_stage,
    make_visit,
)
from tests.records import Owner, at_ms, make_record, refusals_in
from tests.unit.counting.partition_counting import (
    AT,
    CONTROL,
    OFF,
    ON,
    TREATMENT,
    Counting,
    evaluation,
    make_directory,
    outcome,
)


def test_a_context_errs_for_the_first_time_once_whatever_its_arm() -> None:
    """One first-error set per flag and visit.

    Who erred in control is no fresh context in the treatment.
    """
    counting = Counting()
    counting.batch(outcome("a", OFF, error=True))
    counting.batch(outcome("a", ON, error=True))
    assert (counting.arms[CONTROL].at_risk, counting.arms[CONTROL].first_errors) == (1, 1)
    assert (counting.arms[TREATMENT].at_risk, counting.arms[TREATMENT].first_errors) == (0, 0)
    assert (counting.arms[TREATMENT].outcomes, counting.arms[TREATMENT].errors) == (1, 1)


def test_each_visit_has_its_own_first_errors() -> None:
    """At a stage change everybody is at risk again."""
    visits = (
        make_visit(left_at=T0 + HOUR),
        make_visit(stage=1, entered_at=T0 + HOUR, counts_from=T0 + HOUR),
    )
    counting = Counting()
    counting.directory.flags.clear()
    counting.directory.count_for(make_rollout(visits=visits))
    counting.batch(outcome("a", ON, error=True), outcome("a", ON, error=True, at=T0 + HOUR))
    assert [counting.arms["new-checkout", visit, "treatment"].first_errors for visit in (0, 1)] == [
        1,
        1,
    ]


def test_a_context_is_at_risk_once_per_batch_until_it_errs() -> None:
    """Many outcomes of a context in a batch are one trial; after the first error there is none."""
    counting = Counting()
    counting.batch(outcome("a", ON), outcome("a", ON), outcome("b", ON))
    assert counting.arms[TREATMENT].at_risk == 2
    counting.batch(outcome("a", ON), outcome("a", ON, error=True), outcome("a", ON, error=True))
    assert (counting.arms[TREATMENT].at_risk, counting.arms[TREATMENT].first_errors) == (3, 1)
    counting.batch(outcome("a", ON, error=True))
    assert (counting.arms[TREATMENT].at_risk, counting.arms[TREATMENT].first_errors) == (3, 1)
    assert (counting.arms[TREATMENT].outcomes, counting.arms[TREATMENT].errors) == (7, 3)


def test_one_latency_per_context_and_batch_is_for_the_test() -> None:
    """A context's first latency in a batch is tested."""
    counting = Counting()
    counting.batch(
        outcome("a", ON), outcome("a", ON, latency_ms=10.0), outcome("a", ON, latency_ms=99.0)
    )
    counting.batch(outcome("a", ON, latency_ms=10.0))
    arm = counting.arms[TREATMENT]
    assert arm.latency == {bucket_of(10.0): 2}


@pytest.mark.parametrize("latency_ms", [0.0, 0.001, 0.0010001, 1.0, 1.02, 86_400_000.0])
def test_latencies_fall_into_the_cores_buckets(latency_ms: float) -> None:
    """The bucket computed in the hot path is `bucket_of`'s, at the edges too."""
    counting = Counting()
    counting.batch(outcome("a", ON, latency_ms=latency_ms))
    assert counting.arms[TREATMENT].latency == {bucket_of(latency_ms / 1000 * 1000.0): 1}


def test_exposures_are_contexts_and_switches_are_seen() -> None:
    """An arm's exposures are its distinct contexts.

    One that saw the other arm before counts as switched.
    """
    counting = Counting(evaluations=True)
    counting.batch(
        evaluation("a", "off"), evaluation("a", "off"), evaluation("a", "on"), evaluation("b", "on")
    )
    counting.batch(evaluation("a", "off"))
    assert counting.arms[CONTROL] == ArmCounts(evaluations=3, exposures=1)
    assert counting.arms[TREATMENT] == ArmCounts(evaluations=2, exposures=2, switched=1)


def test_settle_and_what_lies_outside_every_visit_is_late() -> None:
    """Events of a known flag before the start, while settling and after the end touch no arm."""
    counting = Counting(evaluations=True)
    counting.directory.flags.clear()
    counting.directory.count_for(make_rollout(visits=(make_visit(left_at=T0 + HOUR),)))
    for at in (T0 - MINUTE, T0, T0 + 0.98 * MINUTE, T0 + HOUR):
        counting.batch(evaluation("a", "on", at))
    assert (counting.records.late, counting.records.counted, counting.arms) == (4, 0, {})
    counting.batch(evaluation("a", "on", T0 + MINUTE))
    assert (counting.records.late, counting.records.counted) == (4, 1)


def test_other_variants_are_ignored_and_seen() -> None:
    """A variant that is neither arm touches none and is counted for operators."""
    counting = Counting(evaluations=True)
    counting.batch(evaluation("a", "blue"))
    assert (counting.records.ignored, counting.directory.other_variants, counting.arms) == (
        1,
        1,
        {},
    )


def make_ringed_directory() -> FlagsToCount:
    """Return a directory of one flag in a stage with an audience.

    Whose treatment is divided in two.
    """
    audience = Audience("staff", ((Condition("staff", Operator.EQ, (True,)),),))
    plan = make_plan(
        stages=(make_stage(audience="staff"),),
        audiences=(audience,),
        split=(("red", 1), ("blue", 1)),
    )
    directory = FlagsToCount()
    directory.count_for(make_rollout(plan=plan))
    return directory


def test_the_variants_of_a_divided_treatment_are_one_arm() -> None:
    """Whichever of them a context was served, it is in treatment; in time and late."""
    counting = Counting(evaluations=True, directory=make_ringed_directory())
    counting.batch(
        evaluation("a", "red"),
        evaluation("b", "blue"),
        evaluation("c", "blue", T0),
        evaluation("d", "off"),
    )
    assert (
        counting.arms[TREATMENT].exposures,
        counting.arms[CONTROL].exposures,
        counting.records.late,
    ) == (2, 1, 1)
    outcomes = Counting(directory=counting.directory)
    outcomes.batch(outcome("a", ("new-checkout", "red")), outcome("b", ("new-checkout", "blue")))
    assert outcomes.arms[TREATMENT].outcomes == 2


def test_who_is_in_neither_arm_is_not_counted() -> None:
    """Contexts outside the audience, and those of earlier rings, are known variants.

    And touch no arm.
    """
    counting = Counting(evaluations=True, directory=make_ringed_directory())
    counting.batch(
        evaluation("a", "unassigned"), evaluation("b", "red-earlier"), evaluation("c", "on")
    )
    assert (
        counting.records.ignored,
        counting.records.late,
        counting.directory.other_variants,
        counting.arms,
    ) == (3, 0, 1, {})
    outcomes = Counting(directory=counting.directory)
    outcomes.batch(
        outcome("a", ("new-checkout", "unassigned")), outcome("b", ("new-checkout", "blue-earlier"))
    )
    assert (outcomes.records.ignored, outcomes.arms) == (2, {})
    assert counting.directory.other_variants == 1


@pytest.mark.parametrize("is_reloaded", [False, True])
def test_an_outcome_is_not_joined_to_an_arm_its_context_has_left(is_reloaded: bool) -> None:
    """Staff who were compared in their own ring are in no arm of the next.

    Their outcomes belong to none either.
    """
    directory = make_ringed_directory()
    exposures = Counting(evaluations=True, directory=directory)
    exposures.batch(evaluation("a", "red"), evaluation("a", "red-earlier", AT + MINUTE))
    exposures.batch(
        evaluation("b", "red"), evaluation("b", "red-earlier"), evaluation("b", "blue", AT + MINUTE)
    )
    counting = Counting(directory=directory)
    partner = exposures.load() if is_reloaded else exposures.owner
    counting.batch(
        outcome("a", at=AT + 2 * MINUTE), outcome("b", at=AT + 2 * MINUTE), partner=partner
    )
    assert (counting.arms[TREATMENT].outcomes, directory.unjoined) == (1, 1)


def test_only_conversions_a_guardrail_names_are_counted() -> None:
    """A conversion counts once per context and visit, over both arms.

    Unnamed ones leave nothing.
    """
    counting = Counting()
    counting.batch(
        outcome("a", OFF, conversions=["paid", "clicked"]), outcome("a", ON, conversions=["paid"])
    )
    counting.batch(outcome("b", ON, conversions=["paid"]))
    assert counting.arms[CONTROL].converted == {"paid": 1}
    assert counting.arms[TREATMENT].converted == {"paid": 1}
    assert not any(
        "clicked" in name or b"clicked" in value for name, value in counting.stored.items()
    )


def test_poison_is_refused_and_the_rest_counts() -> None:
    """A record that cannot be read is kept with its reason; its neighbours count."""
    counting = Counting()
    position = counting.owner.totals.position
    values: Sequence[bytes | None] = [outcome("a", ON), b"{", None, outcome("b", ON)]
    counting.owner.fold(
        [make_record(position + number, value) for number, value in enumerate(values)]
    )
    refused = refusals_in(counting.owner.totals.refused)
    assert [(one.offset, one.reason) for one in refused] == [
        (1, QuarantineReason.NOT_JSON),
        (2, QuarantineReason.EMPTY),
    ]
    assert (counting.records.quarantined, counting.records.counted) == (2, 2)


def test_a_record_is_one_of_four_and_best_of_its_flags() -> None:
    """An outcome of several flags is counted if one counts, else late, else ignored."""
    counting = Counting()
    unknown = ("nobody", "on")
    counting.batch(
        outcome("a", unknown, ON),
        outcome("a", unknown, ON, at=T0),
        outcome("a", unknown),
        outcome("a", ("new-checkout", "x")),
    )
    assert (counting.records.counted, counting.records.late, counting.records.ignored) == (1, 1, 2)


def test_joins_find_the_exposure_of_the_outcomes_past() -> None:
    """An outcome without flags takes its context's last arm, also one of settling."""
    directory = make_directory()
    exposures = Counting(evaluations=True, directory=directory)
    exposures.batch(evaluation("a", "off", T0 - MINUTE), evaluation("a", "on", T0))
    counting = Counting(directory=directory)
    counting.batch(outcome("a"), outcome("stranger"), partner=exposures.owner)
    assert counting.arms.keys() == {TREATMENT}
    assert (counting.records.counted, counting.records.ignored, directory.unjoined) == (1, 1, 1)


def test_joins_find_what_came_last_within_a_slice_of_time() -> None:
    """Back and forth between the arms, in and out of a visit.

    Each change is known, the last one to arrive counts.
    """
    directory = make_directory()
    exposures = Counting(evaluations=True, directory=directory)
    exposures.batch(
        evaluation("a", "off", T0), evaluation("a", "on", T0 + MINUTE), evaluation("a", "off", T0)
    )
    exposures.batch(
        evaluation("b", "on"), evaluation("b", "on"), evaluation("b", "off"), evaluation("b", "on")
    )
    counting = Counting(directory=directory)
    for partner in (exposures.owner, exposures.load()):
        counting.batch(outcome("a"), outcome("b"), partner=partner)
    assert (counting.arms[CONTROL].outcomes, counting.arms[TREATMENT].outcomes) == (2, 2)


def test_joins_wait_until_all_exposures_are_indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first outcome without flags may come after millions of exposures.

    Some are indexed with each call, none is missed.
    """
    monkeypatch.setattr("controller.counting.counted_flags._INDEXED_PER_TURN", 240)
    directory = make_directory()
    exposures = Counting(evaluations=True, directory=directory)
    for begin in range(0, 1_000, 300):
        exposures.batch(*(evaluation(f"u{number}", "on") for number in range(begin, begin + 300)))
    counting = Counting(directory=directory)
    batch = [
        make_record(number, outcome(f"u{number}", *flags))
        for number, flags in enumerate([(ON,), (), ()])
    ]
    taken: list[int] = []
    while counting.owner.totals.position < len(batch):
        taken.append(
            counting.owner.totals.fold_outcomes(
                batch[sum(taken) :], read_outcomes, partner=exposures.owner.totals
            )
        )
    assert taken == [1, 0, 0, 0, 0, 2]
    assert (counting.owner.totals.progress.counted, directory.unjoined) == (3, 0)


def test_joins_skip_the_exposures_of_an_earlier_rollout() -> None:
    """Who was exposed in a flag's last rollout has not been exposed in this one."""
    directory = make_directory()
    exposures = Counting(evaluations=True, directory=directory)
    exposures.batch(evaluation("a", "on"))
    directory.count_for(make_rollout(rollout_id="start-2", revision=9))
    counting = Counting(directory=directory)
    counting.batch(outcome("a"), partner=exposures.load())
    assert (counting.arms, directory.unjoined) == ({}, 1)


def test_outcomes_too_young_to_be_joined_are_left() -> None:
    """PairOrder stops at the first outcome to be joined whose evaluations are not all there.

    Not before it.
    """
    directory = make_directory()
    counting = Counting(directory=directory)
    partner = Owner(directory, counts_exposures=True).totals
    values = [
        (outcome("a", ON), 50),
        (outcome("a"), 40),
        (outcome("a"), 41),
        (outcome("a", ON), 30),
    ]
    batch = [
        make_record(number, value, timestamp_ms=at_ms(AT) + ms)
        for number, (value, ms) in enumerate(values)
    ]
    assert (
        counting.owner.totals.fold_outcomes(
            batch, read_outcomes, partner=partner, joinable_until_ms=at_ms(AT) + 40
        )
        == 2
    )
    assert counting.owner.totals.position == 2


def test_counting_stops_when_a_save_is_full() -> None:
    """No more fields change than one save may carry."""
    directory = FlagsToCount()
    for number in range(50):
        directory.count_for(make_rollout(plan=make_plan(flag_key=f"flag-{number}")))
    counting = Counting(directory=directory)
    batch = [make_record(number, outcome("a", (f"flag-{number}", "on"))) for number in range(50)]
    taken = counting.owner.totals.fold_outcomes(batch, read_outcomes, room=30)
    assert 0 < taken < 30
    assert counting.owner.totals.position == taken


def test_a_record_twice_in_one_batch_is_our_own_mistake() -> None:
    """A batch whose offsets do not rise stops the counting.

    It is never taken for so many more records.
    """
    counting = Counting()
    twice = [make_record(0, outcome("a", ON)), make_record(0, outcome("a", ON))]
    with pytest.raises(BrokenInvariant, match="came twice"):
        counting.owner.totals.fold_outcomes(twice, read_outcomes)


def test_an_older_document_changes_nothing() -> None:
    """News that arrive late do not turn the timeline back."""
    directory = FlagsToCount()
    assert directory.count_for(make_rollout(revision=2)) is not None
    assert directory.count_for(make_rollout(revision=2, rollout_id="other")) is None
    assert directory.flags["new-checkout"].rollout_id == "start-1"


def test_a_newer_document_moves_the_timeline() -> None:
    """When a visit ends, events after its end no longer count for it."""
    counting = Counting(evaluations=True)
    counting.batch(evaluation("a", "on", T0 + 2 * HOUR))
    watched = counting.directory.count_for(
        make_rollout(revision=2, visits=(make_visit(left_at=T0 + HOUR),))
    )
    assert watched is not None
    counting.owner.totals.flags.apply(watched)
    counting.batch(evaluation("b", "on", T0 + 2 * HOUR))
    assert counting.arms[TREATMENT].exposures == 1
    assert counting.records.late == 1


def test_bytes_of_refusals_are_those_since_they_were_taken() -> None:
    """A save begins anew with what the refusals take that wait for it."""
    totals = Counting().owner.totals
    for position in (totals.position, totals.position + 2):
        for number in range(2):
            totals.set_aside(make_record(position + number, b"{"), "it cannot be counted")
        expected = sum(some.size for some in totals.refused)
        assert totals.refused_bytes == expected > 0
        assert sum(some.count for some in totals.take_refused()) == 2
        assert (totals.refused, totals.refused_bytes) == ([], 0)
