from __future__ import annotations

from datetime import UTC, datetime

import pytest

from controller.core.evidence import ArmTotals, Loss, PartitionProgress, VisitTotals
from controller.ports import NO_FENCE, Totals
from schemas.terms import Arm
from schemas.totals import (
    MAX_FIELDS_PER_SAVE,
    ArmCounts,
    LatelyChanged,
    PartitionCounts,
    arm_field,
    bundle_entry,
    bundle_field,
    changed_field,
    decode_arm,
    encode_arm,
    encode_bundle,
    encode_progress,
)

KEY = "flag.evaluations/3/1"
OTHER_KEY = "flag.evaluations/4/1"
TREATMENT = arm_field("new-checkout", "start-1", 0, Arm.TREATMENT)
CONTROL = arm_field("new-checkout", "start-1", 0, Arm.CONTROL)


def progress(counted: int, reported_at_ms: int = 1_000) -> dict[str, bytes]:
    """Return the progress of a partition counted from 0 to its end."""
    return encode_progress(
        PartitionCounts(end=counted, counted=counted, reported_at_ms=reported_at_ms)
    )


def counts(exposures: int) -> bytes:
    """Return the totals of an arm that was only looked at."""
    return encode_arm(ArmCounts(evaluations=exposures, exposures=exposures))


async def test_a_partition_never_counted_has_no_fence_and_no_fields(totals: Totals) -> None:
    """A partition never counted has no fence and no fields."""
    stored = await totals.load(KEY)
    assert (stored.next_offset, dict(stored.fields)) == (None, {})


async def test_what_was_saved_is_loaded_byte_for_byte(totals: Totals) -> None:
    """A load gives the fence and exactly the fields that were saved, whatever their bytes."""
    fields = {
        **progress(5),
        TREATMENT: counts(5),
        "new-checkout|start-1|0|exposed.0": bytes(range(256)),
        "seen": b"",
    }
    assert await totals.save(KEY, expected=None, next_offset=5, fields=fields) is None
    stored = await totals.load(KEY)
    assert (stored.next_offset, dict(stored.fields)) == (5, fields)


async def test_a_save_leaves_other_fields_as_they_are(totals: Totals) -> None:
    """A save replaces the fields it names and leaves the others."""
    await totals.save(
        KEY, expected=None, next_offset=5, fields={TREATMENT: counts(5), CONTROL: counts(7)}
    )
    await totals.save(KEY, expected=5, next_offset=9, fields={TREATMENT: counts(9)})
    assert dict((await totals.load(KEY)).fields) == {TREATMENT: counts(9), CONTROL: counts(7)}


async def test_a_repeat_of_the_same_save_is_told_it_was_done(totals: Totals) -> None:
    """The same save twice writes once and is told twice that it is written."""
    for _ in range(3):
        assert (
            await totals.save(KEY, expected=None, next_offset=5, fields={TREATMENT: counts(5)})
            is None
        )
    assert (await totals.load(KEY)).next_offset == 5


async def test_a_save_behind_a_moved_fence_is_refused(totals: Totals) -> None:
    """A zombie's save finds the fence moved, writes nothing and learns where to read on."""
    await totals.save(KEY, expected=None, next_offset=5, fields={TREATMENT: counts(5)})
    await totals.save(KEY, expected=5, next_offset=9, fields={TREATMENT: counts(9)})
    assert await totals.save(KEY, expected=5, next_offset=7, fields={TREATMENT: counts(7)}) == 9
    assert (
        await totals.save(KEY, expected=None, next_offset=20, fields={TREATMENT: counts(20)}) == 9
    )
    stored = await totals.load(KEY)
    assert (stored.next_offset, dict(stored.fields)) == (9, {TREATMENT: counts(9)})


async def test_two_writers_to_the_same_fence_do_not_take_each_others_work_for_their_own(
    totals: Totals,
) -> None:
    """Of two writers with the same target fence only one wins."""
    await totals.save(KEY, expected=None, next_offset=5, fields={TREATMENT: counts(5)})
    assert await totals.save(KEY, expected=5, next_offset=9, fields={TREATMENT: counts(8)}) is None
    assert await totals.save(KEY, expected=5, next_offset=9, fields={TREATMENT: counts(9)}) == 9
    assert (await totals.load(KEY)).fields[TREATMENT] == counts(8)


async def test_a_heartbeat_writes_progress_and_keeps_the_fence(totals: Totals) -> None:
    """A save that does not move the fence writes its fields, as often as it comes."""
    await totals.save(KEY, expected=None, next_offset=5, fields=progress(5))
    for at in (2_000, 3_000, 3_000):
        assert (
            await totals.save(KEY, expected=5, next_offset=5, fields=progress(5, reported_at_ms=at))
            is None
        )
    stored = await totals.load(KEY)
    assert (stored.next_offset, stored.fields["reported_at"]) == (5, b"3000")


async def test_a_first_heartbeat_sets_the_fence_at_zero(totals: Totals) -> None:
    """A fence of 0 is a fence: the hash exists, and `None` is no longer what to expect."""
    assert await totals.save(KEY, expected=None, next_offset=0, fields=progress(0)) is None
    assert (await totals.load(KEY)).next_offset == 0
    assert await totals.save(KEY, expected=None, next_offset=3, fields=progress(3)) == 0
    assert await totals.save(KEY, expected=0, next_offset=3, fields=progress(3)) is None


async def test_a_lost_hash_is_told_from_a_moved_fence(totals: Totals) -> None:
    """A save that expects a fence where none is stored learns that the store was emptied."""
    assert await totals.save(KEY, expected=5, next_offset=9, fields=progress(9)) == NO_FENCE
    assert (await totals.load(KEY)).next_offset is None


async def test_offsets_beyond_doubles_are_told_apart(totals: Totals) -> None:
    """Offsets above 2^53, where Lua's numbers run together, are compared exactly."""
    big = 2**53 + 1
    await totals.save(KEY, expected=None, next_offset=big, fields=progress(0))
    assert await totals.save(KEY, expected=big - 1, next_offset=big + 1, fields=progress(0)) == big
    assert await totals.save(KEY, expected=big, next_offset=2**63 - 1, fields=progress(0)) is None
    assert (await totals.load(KEY)).next_offset == 2**63 - 1


async def test_a_fence_never_moves_back(totals: Totals) -> None:
    """A save whose new fence lies before the expected one is refused before anything is asked."""
    with pytest.raises(ValueError, match="forward"):
        await totals.save(KEY, expected=9, next_offset=5, fields={})


async def test_the_largest_save_is_written_whole_and_a_larger_one_refused(totals: Totals) -> None:
    """A save carries up to the stated number of fields in one step.

    One more is refused before anything is written.
    """
    fields = {f"flag-{n}|start-1|0|treatment": b"{}" for n in range(MAX_FIELDS_PER_SAVE)}
    assert await totals.save(KEY, expected=None, next_offset=1, fields=fields) is None
    assert len((await totals.load(KEY)).fields) == MAX_FIELDS_PER_SAVE
    with pytest.raises(ValueError, match="save earlier"):
        await totals.save(KEY, expected=1, next_offset=2, fields={**fields, "one-more": b""})
    assert (await totals.load(KEY)).next_offset == 1


@pytest.mark.parametrize("name", ["next", "digest", "format"])
async def test_the_stores_own_fields_cannot_be_saved(totals: Totals, name: str) -> None:
    """Nobody writes the fence but by moving it."""
    with pytest.raises(ValueError, match="store itself"):
        await totals.save(KEY, expected=None, next_offset=1, fields={name: b"7"})


async def test_dropped_fields_are_gone_and_the_rest_stays(totals: Totals) -> None:
    """A drop deletes the named fields, also twice, also of a partition that has none.

    And touches no fence.
    """
    await totals.save(
        KEY, expected=None, next_offset=5, fields={TREATMENT: counts(5), CONTROL: counts(7)}
    )
    for _ in range(2):
        await totals.drop(KEY, [TREATMENT, "never|there|0|control"])
    await totals.drop(OTHER_KEY, [TREATMENT])
    await totals.drop(KEY, [])
    stored = await totals.load(KEY)
    assert (stored.next_offset, dict(stored.fields)) == (5, {CONTROL: counts(7)})


async def test_reading_adds_up_the_partitions(totals: Totals) -> None:
    """A read gives each wanted visit summed over the partitions, zeros for what is missing.

    And each partition's progress.
    """
    one = ArmCounts(exposures=3, converted={"signup": 1}, latency={10: 2, 11: 1})
    two = ArmCounts(exposures=4, errors=1, converted={"signup": 2, "pay": 1}, latency={11: 5})
    fields = {
        **encode_progress(
            PartitionCounts(
                start=2,
                end=9,
                freshest_ms=60_000,
                reported_at_ms=61_000,
                counted=4,
                losses=[(0, 1_000), (5_000, None)],
            )
        ),
        TREATMENT: encode_arm(one),
        arm_field("new-checkout", "an-older-one", 0, Arm.TREATMENT): counts(99),
    }
    await totals.save(KEY, expected=None, next_offset=6, fields=fields)
    fields = {**progress(5), TREATMENT: encode_arm(two), CONTROL: encode_arm(one)}
    await totals.save(OTHER_KEY, expected=None, next_offset=5, fields=fields)

    found, partitions = await totals.read(
        [KEY, OTHER_KEY, "never/0/1"],
        {"new-checkout": ("start-1", [0, 1]), "unheard-of": ("x", [0])},
    )

    merged = ArmTotals(
        exposures=7,
        errors=1,
        converted={"signup": 3, "pay": 1},
        latency={10: 2, 11: 6},
    )
    control = ArmTotals(exposures=3, converted={"signup": 1}, latency={10: 2, 11: 1})
    assert found == {
        "new-checkout": {0: VisitTotals(merged, control), 1: VisitTotals()},
        "unheard-of": {0: VisitTotals()},
    }
    assert list(partitions) == [
        PartitionProgress(
            topic_partition="flag.evaluations/3",
            next_offset=6,
            end_offset=9,
            freshest=datetime(1970, 1, 1, 0, 1, tzinfo=UTC),
            reported_at=datetime(1970, 1, 1, 0, 1, 1, tzinfo=UTC),
            losses=(
                Loss(None, datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)),
                Loss(datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC), None),
            ),
        ),
        PartitionProgress(
            "flag.evaluations/4", 5, 5, None, datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
        ),
    ]


async def test_arms_are_found_in_their_bundles(totals: Totals) -> None:
    """A read finds an arm in its flag's bundle as in a field of its own, in any partition."""
    name = bundle_field("new-checkout")
    stranger = arm_field("another", "start-1", 0, Arm.CONTROL)
    bundle = encode_bundle(
        bundle_entry(arm, counts(exposures)) for arm, exposures in ((TREATMENT, 5), (stranger, 99))
    )
    await totals.save(
        KEY, expected=None, next_offset=5, fields={**progress(5), name: bundle, CONTROL: counts(2)}
    )
    await totals.save(
        OTHER_KEY, expected=None, next_offset=5, fields={**progress(5), TREATMENT: counts(7)}
    )
    found, _ = await totals.read([KEY, OTHER_KEY], {"new-checkout": ("start-1", [0])})
    assert (
        found["new-checkout"][0].treatment.exposures,
        found["new-checkout"][0].control.exposures,
    ) == (12, 2)

    moved = {name: encode_bundle([bundle_entry(stranger, counts(99))]), TREATMENT: counts(6)}
    await totals.save(KEY, expected=5, next_offset=6, fields={**progress(6), **moved})
    found, _ = await totals.read([KEY, OTHER_KEY], {"new-checkout": ("start-1", [0])})
    assert (
        found["new-checkout"][0].treatment.exposures,
        found["new-checkout"][0].control.exposures,
    ) == (13, 2)


@pytest.mark.parametrize("damage", [b"{", b'{"a":' + b"[" * 100_000], ids=["cut", "deep"])
async def test_a_damaged_bundle_costs_its_flags_in_its_partition(
    totals: Totals, damage: bytes
) -> None:
    """A bundle that cannot be read is left out and named; other partitions and flags are read."""
    name = bundle_field("new-checkout")
    other = next(f"f{n}" for n in range(99) if bundle_field(f"f{n}") != name)
    arm = arm_field(other, "start-1", 0, Arm.TREATMENT)
    damaged = {**progress(5), name: damage, arm: counts(2)}
    await totals.save(KEY, expected=None, next_offset=5, fields=damaged)
    await totals.save(
        OTHER_KEY, expected=None, next_offset=5, fields={**progress(5), TREATMENT: counts(7)}
    )
    found, partitions = await totals.read(
        [KEY, OTHER_KEY], {"new-checkout": ("start-1", [0]), other: ("start-1", [0])}
    )
    assert found["new-checkout"][0].treatment.exposures == 7
    assert found["new-checkout"][0].unreadable == ("flag.evaluations/3",)
    assert found[other] == {0: VisitTotals(ArmTotals(evaluations=2, exposures=2))}
    assert len(partitions) == 2


@pytest.mark.parametrize("damage", [{"end": b"?"}, {"losses": b"["}, {"freshest": b"9" * 99}])
async def test_a_damaged_partition_costs_itself(totals: Totals, damage: dict[str, bytes]) -> None:
    """A head that cannot be read takes its partition out of the answer and nothing else."""
    fields = {**progress(5), TREATMENT: counts(5)}
    await totals.save(KEY, expected=None, next_offset=5, fields=fields | damage)
    await totals.save(OTHER_KEY, expected=None, next_offset=5, fields=fields)
    found, partitions = await totals.read([KEY, OTHER_KEY], {"new-checkout": ("start-1", [0])})
    assert [each.topic_partition for each in partitions] == ["flag.evaluations/4"]
    assert found["new-checkout"][0].treatment.exposures == 5
    heads = await totals.heads([KEY, OTHER_KEY])
    assert [head.progress for head in heads] == partitions


async def test_heads_say_whose_totals_have_changed(totals: Totals) -> None:
    """As the last save wrote it; nothing where an older release has saved since."""
    changed = LatelyChanged("w", 3, 1, 5, {"new-checkout": 3})
    fields = {**progress(5), **changed_field(changed)}
    await totals.save(KEY, expected=None, next_offset=5, fields=fields)
    await totals.save(OTHER_KEY, expected=None, next_offset=5, fields=progress(5))
    first, second = await totals.heads([KEY, OTHER_KEY])
    assert (first.progress.next_offset, first.changed) == (5, changed)
    assert second.changed is None
    await totals.save(KEY, expected=5, next_offset=6, fields=progress(6))
    assert [head.changed for head in await totals.heads([KEY])] == [None]


async def test_a_log_made_again_has_a_fence_of_its_own(totals: Totals) -> None:
    """A rebase moves the fence back; who still counts the log before cannot save, at any offset."""
    await totals.save(KEY, expected=None, next_offset=9, fields=progress(9))
    rebase = {**progress(2), "rebased": b"1"}
    for _ in range(2):  # also when its answer was lost
        assert await totals.save(KEY, expected=9, next_offset=2, fields=rebase) is None
    later = {**progress(9), "rebased": b"1"}
    assert await totals.save(KEY, expected=2, next_offset=9, fields=later, rebased=1) is None
    assert await totals.save(KEY, expected=9, next_offset=12, fields=progress(12)) == 9
    assert (await totals.load(KEY)).next_offset == 9
    with pytest.raises(ValueError, match="only moves forward"):
        await totals.save(KEY, expected=9, next_offset=5, fields=later, rebased=1)


async def test_a_discarded_partition_is_as_if_never_counted(totals: Totals) -> None:
    """A discard deletes everything of one partition, and says whether there was something."""
    await totals.save(KEY, expected=None, next_offset=5, fields=progress(5))
    await totals.save(OTHER_KEY, expected=None, next_offset=5, fields=progress(5))
    assert await totals.discard(KEY)
    assert not await totals.discard(KEY)
    assert (await totals.load(KEY)).next_offset is None
    assert (await totals.load(OTHER_KEY)).next_offset == 5
    assert await totals.save(KEY, expected=5, next_offset=6, fields=progress(6)) == NO_FENCE


async def test_reading_again_sees_what_changed_in_between(totals: Totals) -> None:
    """A second read gives new totals where they changed, without decoding anything twice."""
    wanted = {"new-checkout": ("start-1", [0])}
    for key in (KEY, OTHER_KEY):
        await totals.save(
            key, expected=None, next_offset=5, fields={**progress(5), TREATMENT: counts(5)}
        )
    before, _ = await totals.read([KEY, OTHER_KEY], wanted)
    same, _ = await totals.read([KEY, OTHER_KEY], wanted)
    await totals.save(KEY, expected=5, next_offset=9, fields={**progress(9), TREATMENT: counts(9)})
    after, _ = await totals.read([KEY, OTHER_KEY], wanted)
    alone, _ = await totals.read([OTHER_KEY], wanted)
    assert before == same
    assert [each["new-checkout"][0].treatment.exposures for each in (before, after, alone)] == [
        10,
        14,
        5,
    ]


async def test_thousands_of_flags_are_read_at_once(totals: Totals) -> None:
    """A read of more visits than one command carries answers every one."""
    flags = 2_500
    bundles: dict[str, list[bytes]] = {}
    for n in range(2_000, flags):
        bundles.setdefault(bundle_field(f"flag-{n}"), []).append(
            bundle_entry(arm_field(f"flag-{n}", "r", 0, Arm.CONTROL), counts(n + 1))
        )
    for at in range(0, 2_000, 1_000):
        fields = {
            arm_field(f"flag-{n}", "r", 0, Arm.CONTROL): counts(n + 1)
            for n in range(at, at + 1_000)
        }
        expected = at or None
        assert (
            await totals.save(
                KEY, expected=expected, next_offset=at + 1_000, fields={**progress(0), **fields}
            )
            is None
        )
    fields = {name: encode_bundle(entries) for name, entries in bundles.items()}
    assert (
        await totals.save(KEY, expected=2_000, next_offset=3_000, fields={**progress(0), **fields})
        is None
    )
    found, partitions = await totals.read([KEY], {f"flag-{n}": ("r", [0]) for n in range(flags)})
    assert [found[f"flag-{n}"][0].control.exposures for n in range(flags)] == [
        n + 1 for n in range(flags)
    ]
    assert [each.next_offset for each in partitions] == [3_000]


async def test_reading_nothing_still_gives_progress(totals: Totals) -> None:
    """A read without flags gives the partitions' progress.

    And one without partitions gives zeros.
    """
    await totals.save(KEY, expected=None, next_offset=5, fields=progress(5))
    assert [each.next_offset for each in (await totals.read([KEY], {}))[1]] == [5]
    assert await totals.read([], {"f": ("r", [0])}) == ({"f": {0: VisitTotals()}}, [])


async def test_an_arm_survives_the_way_through_the_store(totals: Totals) -> None:
    """What ingest folds into comes back equal from the store, ready to be folded into further."""
    arm = ArmCounts(1, 2, 3, 4, 5, 6, 7, {"signup": 8}, {-349: 9, 930: 10}, 12, 13)
    await totals.save(KEY, expected=None, next_offset=1, fields={TREATMENT: encode_arm(arm)})
    assert decode_arm((await totals.load(KEY)).fields[TREATMENT]) == arm
