"""Where the totals of a partition are stored, and what bounds them."""

from __future__ import annotations

import pytest

from controller.counting.counted_flags import Changes
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.counting.partition_totals import MAX_FIELDS_PER_RECORD
from controller.errors import BrokenInvariant
from schemas.terms import QuarantineReason
from schemas.totals import (
    BUNDLES,
    ArmCounts,
    PartitionCounts,
    bundle_field,
    decode_bundle,
    encode_progress,
)
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_plan,
    make_rollout,
    make_visit,
)
from tests.records import LINES, Owner, arms_in, at_ms, evaluation_value, make_record, refusals_in
from tests.unit.counting.partition_counting import (
    AT,
    CONTROL,
    ON,
    TREATMENT,
    Counting,
    evaluation,
    make_directory,
    outcome,
)


def test_a_hash_that_does_not_add_up_is_refused() -> None:
    """Totals that disagree with their fence are not counted on with."""
    counting = Counting()
    stored = {**encode_progress(PartitionCounts(counted=3)), "next": b"4"}
    with pytest.raises(BrokenInvariant, match="add up"):
        Owner(counting.directory, counts_exposures=False, stored=stored)


def test_a_hash_of_nonsense_is_refused() -> None:
    """What cannot be read is not taken for nothing."""
    good = encode_progress(PartitionCounts())
    for name, value in (
        ("new-checkout|start-1|0|treatment", b"{"),
        ("journal/0", b"123"),
        ("arms/0", b"{"),
        ("arms/0", b'{"new-checkout|start-1|0|treatment":[]}'),
        ("sets/0", b'{"x":"a|b|0|c"}'),
        ("sets/0", b'{"0":"a"}'),
    ):
        with pytest.raises(BrokenInvariant):
            Owner(
                make_directory(), counts_exposures=True, stored={**good, name: value, "next": b"0"}
            )


def test_superseded_rollouts_are_swept() -> None:
    """What an unwatched rollout left is dropped once the directory is surely newer."""
    counting = Counting(evaluations=True)
    counting.batch(evaluation("a", "on"))
    directory = FlagsToCount()
    directory.count_for(make_rollout(rollout_id="start-2", revision=9))
    counting.directory = directory
    counting.owner = counting.load()
    counting.owner.totals.flags.drop_superseded()
    counting.batch(evaluation("a", "on"))
    assert not any(
        "start-1" in name or b"start-1" in value for name, value in counting.stored.items()
    )
    assert counting.arms[TREATMENT].exposures == 1


def test_what_is_stored_of_a_retired_flag_is_swept_and_its_events_are_unknown() -> None:
    """Whoever counts the partition next drops it; an older document does not bring it back."""
    counting = Counting(evaluations=True)
    counting.batch(evaluation("a", "on"))
    assert any("start-1" in name for name in counting.stored)
    directory = FlagsToCount(unknown_names_limit=5)
    directory.count_for(make_rollout(revision=3))
    assert directory.retire("new-checkout", 4) is not None
    assert directory.count_for(make_rollout(revision=3)) is None
    counting.directory = directory
    counting.owner = counting.load()
    counting.owner.totals.flags.drop_superseded()
    counting.batch(evaluation("a", "on"))
    assert not any(
        "start-1" in name or b"start-1" in value for name, value in counting.stored.items()
    )
    assert directory.most_unknown() == {"new-checkout": 1}
    assert directory.retire("new-checkout", 3) is None
    assert directory.count_for(make_rollout(revision=5)) is not None


# --- where arms are stored ---


def directory_of(flags: int) -> FlagsToCount:
    """Return a directory of that many flags."""
    directory = FlagsToCount()
    for number in range(flags):
        directory.count_for(
            make_rollout(plan=make_plan(flag_key=f"flag-{number}"), rollout_id="start-1")
        )
    return directory


def test_few_flags_have_a_field_per_arm() -> None:
    """While there are few flags each arm stands under its own name, for people with a redis-cli."""
    counting = Counting(directory=directory_of(2), flags_with_own_fields=2)
    counting.batch(outcome("a", ("flag-0", "on"), ("flag-1", "off")))
    assert {"flag-0|start-1|0|treatment", "flag-1|start-1|0|control"} < counting.stored.keys()
    assert not any(name.startswith("arms/") for name in counting.stored)


def test_many_flags_share_fields() -> None:
    """Arms of more flags go into bundles.

    A save never has more fields than there are bundles and journals.
    """
    counting = Counting(directory=directory_of(4_000))
    values = [
        outcome("a", *((f"flag-{number}", "on") for number in range(at, at + 50)))
        for at in range(0, 4_000, 50)
    ]
    records = [make_record(number, value) for number, value in enumerate(values)]
    counting.owner.fold(records)
    expected = counting.owner.totals.flags.changed_fields
    assert counting.owner.save(counting.stored)
    assert len(counting.arms) == 4_000
    assert 500 < len(counting.stored) < expected < BUNDLES + 200


def test_an_arm_stays_where_it_was_first_stored() -> None:
    """More flags, or fewer, move no arm that has been stored: it would stand in two places."""
    flags = directory_of(1)
    counting = Counting(directory=flags, flags_with_own_fields=1)
    counting.batch(outcome("a", ("flag-0", "on")))
    flags.count_for(make_rollout(plan=make_plan(flag_key="flag-1"), rollout_id="start-1"))
    counting.owner = counting.load()
    counting.batch(outcome("a", ("flag-0", "on"), ("flag-1", "on")))
    del flags.flags["flag-0"]
    counting.owner = counting.load()
    counting.batch(outcome("b", ("flag-1", "on")))
    assert "flag-0|start-1|0|treatment" in counting.stored
    assert "flag-1|start-1|0|treatment" not in counting.stored
    assert counting.arms["flag-0", 0, "treatment"].outcomes == 2
    assert counting.arms["flag-1", 0, "treatment"].outcomes == 2


@pytest.mark.parametrize("is_reloaded", [False, True])
def test_visits_that_are_over_leave_their_bundle(is_reloaded: bool) -> None:
    """Ten minutes after a visit its arms get fields of their own.

    What still comes late is counted on there.
    """
    visits = (
        make_visit(left_at=T0 + HOUR),
        make_visit(stage=1, entered_at=T0 + HOUR, counts_from=T0 + HOUR),
    )
    counting = Counting(flags_with_own_fields=0)
    counting.directory.flags.clear()
    counting.directory.count_for(make_rollout(visits=visits))
    counting.batch(outcome("a", ON), outcome("a", ON, at=T0 + HOUR))
    assert "new-checkout|start-1|0|treatment" not in counting.stored
    if is_reloaded:
        counting.owner = counting.load()
    counting.batch(outcome("a", ON, at=T0 + HOUR + 11 * MINUTE))
    bundle = decode_bundle(counting.stored[bundle_field("new-checkout")])
    assert "new-checkout|start-1|0|treatment" in counting.stored
    assert "new-checkout|start-1|0|treatment" not in bundle
    assert "new-checkout|start-1|1|treatment" in bundle
    for _ in range(2):
        counting.batch(outcome("b", ON))
        counting.owner = counting.load()
    assert [counting.arms["new-checkout", visit, "treatment"].outcomes for visit in (0, 1)] == [
        3,
        2,
    ]
    assert "new-checkout|start-1|0|treatment" not in decode_bundle(
        counting.stored[bundle_field("new-checkout")]
    )


def test_a_rollout_that_is_over_is_written_out_of_its_bundle() -> None:
    """The save after a drop has the bundle without it.

    Nothing is deleted behind the fence's back.
    """
    counting = Counting(flags_with_own_fields=0)
    counting.batch(outcome("a", ON))
    counting.owner.totals.flags.drop("new-checkout", "start-1")
    changes = Changes()
    assert list(counting.owner.totals.drain_changes(changes)) != []
    assert changes.fields[bundle_field("new-checkout")] == b"{}"
    assert changes.garbage == []


def test_a_rollout_that_ends_while_a_save_is_encoded_does_not_come_back() -> None:
    """Between two slices of encoding a drop takes effect for what is still to be encoded.

    And for the next save.
    """
    counting = Counting(flags_with_own_fields=0)
    counting.owner.fold([make_record(0, outcome("a", ON))])
    changes = Changes()
    encoding = counting.owner.totals.drain_changes(changes)
    next(encoding)
    counting.owner.totals.flags.drop("new-checkout", "start-1")
    for _ in encoding:
        pass
    assert arms_in(changes.fields) == {}
    counting.batch()
    assert counting.arms == {}


def test_names_of_sets_share_fields() -> None:
    """Thousands of flags met at once name their sets in some fields.

    And give the names back after a load.
    """
    counting = Counting(evaluations=True, directory=directory_of(300))
    values = [
        evaluation_value("a", "on", time_ms=at_ms(AT), flag=f"flag-{number}")
        for number in range(300)
    ]
    counting.batch(*values)
    assert (
        len([name for name in counting.stored if name.startswith("sets/")]) == 10
    )  # two sets per flag
    counting.owner = counting.load()
    counting.batch(*values)
    assert {arm.exposures for arm in counting.arms.values()} == {1}
    counting.owner.totals.flags.drop("flag-7", "start-1")
    counting.batch()
    assert not any(b"flag-7|" in value for value in counting.stored.values())


# --- records of many events ---


def make_packing(
    *, evaluations: bool, directory: FlagsToCount | None = None, number: int = 0
) -> Owner:
    """Return the owner of a partition whose records hold an event a line."""
    return Owner(
        directory or make_directory(), counts_exposures=evaluations, readers=LINES, number=number
    )


def packed(*values: bytes) -> bytes:
    """Return the value of a record that holds these events."""
    return b"\n".join(values)


def test_a_record_with_a_bad_event_is_quarantined_and_its_good_ones_count() -> None:
    """One refusal tells of the record, which is in no other class.

    What could be used in it was used.
    """
    owner = make_packing(evaluations=True)
    late = evaluation_value("a", "on", time_ms=at_ms(T0 - HOUR))
    good = evaluation_value("a", "on", time_ms=at_ms(AT))
    unknown = evaluation_value("a", "on", time_ms=at_ms(AT), flag="other")
    owner.fold(
        [
            make_record(0, packed(good, b"{", good, b"[")),
            make_record(1, packed(late, unknown, good)),
            make_record(2, packed(unknown, late)),
            make_record(3, packed(unknown)),
            make_record(4, b""),
        ]
    )
    records = owner.totals.progress
    assert (records.quarantined, records.counted, records.late, records.ignored) == (1, 1, 1, 2)
    assert records.adds_up(owner.totals.position)
    assert [refusal.offset for refusal in refusals_in(owner.totals.refused)] == [0]
    stored: dict[str, bytes] = {}
    assert owner.save(stored)
    assert arms_in(stored)[TREATMENT] == ArmCounts(evaluations=3, exposures=1)


@pytest.mark.parametrize("evaluations", [True, False])
def test_a_record_is_folded_whole_or_not_at_all(evaluations: bool) -> None:
    """A record that changes more fields than there is room for waits for the next save.

    With all its events.
    """
    directory = FlagsToCount()
    for number in range(60):
        directory.count_for(make_rollout(plan=make_plan(flag_key=f"flag-{number}")))
    owner = make_packing(evaluations=evaluations, directory=directory)

    def event(number: int) -> bytes:
        if evaluations:
            return evaluation_value("a", "on", time_ms=at_ms(AT), flag=f"flag-{number}")
        return outcome("a", (f"flag-{number}", "on"))

    batch = [
        make_record(index, packed(*(event(20 * index + at) for at in range(20))))
        for index in range(3)
    ]
    if evaluations:
        taken = owner.totals.fold_evaluations(batch, LINES[0], room=60)
    else:
        taken = owner.totals.fold_outcomes(batch, LINES[1], room=60)
    assert 0 < taken < 3
    assert owner.totals.position == taken
    assert sum(owner.totals.flags.fold.changed_arms) == 20 * taken


def test_a_record_that_no_save_could_carry_is_refused() -> None:
    """A record with more flags under rollout than one save has fields for stops nobody.

    It is set aside with its reason.
    """
    directory = FlagsToCount()
    count = MAX_FIELDS_PER_RECORD + 1
    for number in range(count):
        directory.count_for(make_rollout(plan=make_plan(flag_key=f"flag-{number}")))
    owner = make_packing(evaluations=False, directory=directory)
    values = [outcome("a", (f"flag-{number}", "on")) for number in range(count)]
    owner.fold([make_record(0, packed(*values)), make_record(1, packed(*values[:100]))])
    assert [refusal.reason for refusal in refusals_in(owner.totals.refused)] == [
        QuarantineReason.TOO_LARGE
    ]
    assert (owner.totals.progress.quarantined, owner.totals.progress.counted) == (1, 1)


def test_packed_outcomes_without_flags_are_joined() -> None:
    """An outcome in a record of many is joined to its context's exposures.

    And waits for evaluations as a whole record.
    """
    directory = make_directory()
    exposures = make_packing(evaluations=True, directory=directory)
    exposures.fold([make_record(0, evaluation_value("a", "on", time_ms=at_ms(AT)))])
    owner = make_packing(evaluations=False, directory=directory)
    record = make_record(
        0, packed(outcome("a", ON), outcome("a"), outcome("b")), timestamp_ms=at_ms(AT)
    )
    early = at_ms(AT) - 1
    assert (
        owner.totals.fold_outcomes(
            [record], LINES[1], partner=exposures.totals, joinable_until_ms=early
        )
        == 0
    )
    owner.fold([record], partner=exposures.totals)
    stored: dict[str, bytes] = {}
    assert owner.save(stored)
    assert arms_in(stored)[TREATMENT].outcomes == 2
    assert stored["joins"] == b"1"
    assert directory.unjoined == 1


def test_contexts_in_several_partitions_are_noticed() -> None:
    """For packed formats a sample of contexts is checked for a second partition."""
    directory = make_directory()
    owners = [
        make_packing(evaluations=True, directory=directory, number=number) for number in range(2)
    ]
    values = [evaluation_value(f"u{number}", "on", time_ms=at_ms(AT)) for number in range(600)]
    owners[0].fold([make_record(0, packed(*values[:300])), make_record(1, packed(*values[:300]))])
    owners[1].fold([make_record(0, packed(*values[300:]))])
    assert directory.scattered == 0
    owners[1].fold([make_record(1, packed(*values[:300]))])
    assert 0 < directory.scattered < 30


def churn(counting: Counting, begin: int, count: int, *, flag: str = "new-checkout") -> None:
    """Expose `count` new contexts, a save per 500."""
    for first in range(begin, begin + count, 500):
        counting.batch(
            *(
                evaluation_value(f"u{n}", "on" if n % 2 else "off", time_ms=at_ms(AT), flag=flag)
                for n in range(first, min(first + 500, begin + count))
            )
        )
        counting.owner.totals.flags.keep_budget(4_000)


def test_contexts_of_a_partition_are_bounded() -> None:
    """Beyond the budget a partition gives up exactness, then new contexts, never memory."""
    directory = make_directory()
    directory.count_for(make_rollout(flag_key="small"))
    counting = Counting(evaluations=True, directory=directory)
    churn(counting, 0, 100, flag="small")
    churn(counting, 0, 100_000)
    totals = counting.owner.totals
    assert list(totals.flags.full_flags) == ["new-checkout"]
    held = counting.arms[TREATMENT].exposures + counting.arms[CONTROL].exposures
    assert 4_000 < held < 100_000
    assert totals.flags.load < 2 * 4_000
    before = totals.flags.load
    churn(counting, 100_000, 20_000)
    assert counting.arms[TREATMENT].exposures + counting.arms[CONTROL].exposures == held
    assert totals.flags.load <= before
    churn(counting, 1_000_000, 100, flag="small")  # others count on
    assert counting.arms["small", 0, "treatment"].exposures == 100


def test_a_flag_without_room_for_contexts_still_shows_its_errors() -> None:
    """The budget takes no error from a flag: what fails is counted, whatever else stands still."""
    counting = Counting()
    failing = [
        outcome(f"u{number}", ON, error=True, conversions=["paid"]) for number in range(3_000)
    ]
    for first in range(0, 3_000, 500):
        counting.batch(*failing[first : first + 500])
        counting.owner.totals.flags.keep_budget(1_000)
    assert list(counting.owner.totals.flags.full_flags) == ["new-checkout"]
    arm = counting.arms[TREATMENT]
    assert (arm.errors, arm.first_errors, arm.at_risk) == (3_000, 3_000, 3_000)
    assert arm.converted["paid"] < 3_000


def test_the_attribution_window_is_given_up_first() -> None:
    """Over budget the older exposures go before any membership does."""
    counting = Counting(evaluations=True)
    counting.batch(*(evaluation(f"u{number}", "on", AT - 5 * MINUTE) for number in range(1_000)))
    counting.batch(*(evaluation(f"v{number}", "on", AT) for number in range(1_000)))
    totals = counting.owner.totals
    assert totals.flags.fold.recent_entries >= 2_000
    assert totals.flags.keep_budget(600) == []
    assert totals.flags.fold.recent_entries < 2_000
    assert totals.flags.full_flags == {}
    counting.batch(evaluation("w", "on"))
    assert counting.arms[TREATMENT].exposures == 2_001


def test_a_hash_of_an_earlier_release_is_read() -> None:
    """Without the fields that were added since, with the taint that became losses."""
    counting = Counting(evaluations=True)
    counting.batch(evaluation("a", "on"))
    stored = counting.stored
    for name in ("last", "losses", "topic_id", "rebased"):
        del stored[name]
    stored["tainted_from"], stored["reported_at"] = b"1000", b"5000"
    records = counting.load().totals.progress
    assert records.losses == [(1000, 5000)]
    assert (records.last_ms, records.topic_id, records.rebased) == (at_ms(AT), "", 0)
    stored["tainted_from"] = b""
    assert counting.load().totals.progress.losses == []


@pytest.mark.parametrize(
    "damage",
    [
        {"journal/0": b"123"},
        {"journal/x": b""},
        {"recent/0/0": b"1"},
        {"recent/0": b""},
        {"sets/0": b"{"},
        {"sets/0": b'{"0": "no name"}'},
        {"sets/0": b'{"0": "a|b|0|\xff"}'},
        {"filter/0/0": b"999999999999999999 1"},
        {"filter/0/0": b"3 1"},
        {"filter/0/0": b""},
        {"arms/1": b"[]"},
        {"arms/1": b'{"new-checkout|start-1|0|treatment":' + b"[" * 100_000},
        {"new-checkout|start-1|0|treatment": b"{"},
        {"losses": b"x"},
    ],
    ids=lambda damage: str(damage)[:60],
)
def test_any_damage_of_what_is_stored_is_a_broken_invariant(damage: dict[str, bytes]) -> None:
    """Whatever stands in a hash, loading it raises one exception.

    Which stops that partition alone.
    """
    counting = Counting(evaluations=True)
    counting.batch(evaluation("a", "on"))
    counting.stored |= damage
    with pytest.raises(BrokenInvariant, match="cannot be read"):
        counting.load()


def test_an_empty_chunk_holds_nothing() -> None:
    """A field without bytes is no entry and no damage."""
    counting = Counting(evaluations=True)
    counting.batch(evaluation("a", "on"))
    counting.stored |= {"journal/7": b"", "recent/0/7": b""}
    counting.owner = counting.load()
    counting.batch(evaluation("a", "on"))
    assert counting.arms[TREATMENT].exposures == 1
