from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.counters import COUNTERS, Shape
from schemas.terms import Arm
from schemas.totals import (
    BUNDLES,
    MOST_LOSSES,
    ArmCounts,
    PartitionCounts,
    arm_field,
    bundle_entry,
    bundle_field,
    bundle_number,
    decode_arm,
    decode_bundle,
    decode_progress,
    encode_arm,
    encode_bundle,
    encode_progress,
    is_bundle_field,
    parse_field,
    part_field,
)

counts = st.integers(0, 2**53)
histograms = st.dictionaries(st.integers(-400, 1000), st.integers(0, 2**48 - 1), max_size=8)
conversions = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,8}", fullmatch=True), counts, max_size=3
)
by_shape = {Shape.NUMBER: counts, Shape.BY_NAME: conversions, Shape.BY_BUCKET: histograms}
arms = st.builds(ArmCounts, *(by_shape[counter.shape] for counter in COUNTERS))


@given(arms)
def test_an_arm_is_read_as_it_was_written(arm: ArmCounts) -> None:
    """Every arm comes back equal from its bytes."""
    assert decode_arm(encode_arm(arm)) == arm


def test_an_arm_reads_without_a_manual() -> None:
    """An arm is JSON with full names, and zeros take no room."""
    arm = ArmCounts(evaluations=9, first_errors=1, latency={231: 17})
    assert encode_arm(arm) == b'{"evaluations":9,"first_errors":1,"latency":{"231":17}}'
    assert encode_arm(ArmCounts()) == b"{}"


def test_an_arm_of_an_older_format_is_read() -> None:
    """All its latencies, which nobody read, are left out when it is written again."""
    stored = b'{"outcomes":3,"latency":{"231":2},"latency_all":{"231":2,"240":1}}'
    assert decode_arm(stored) == ArmCounts(outcomes=3, latency={231: 2})


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b'{"latency_al":{}}',
        b"[]",
        b"null",
        b'{"evaluations":-1}',
        b'{"evaluations":1.5}',
        b'{"evaluations":"1"}',
        b'{"evaluations":4611686018427387904}',
        b'{"evaluations":9223372036854775808}',
        b'{"converted":{"paid":18446744073709551615}}',
        b'{"latency":{"x":1}}',
        b'{"latency":{"1":-1}}',
        b'{"latency":{"32768":1}}',
        b'{"latency":{"1":281474976710656}}',
        b'{"something_newer":1}',
        b'{"evaluations":1}x',
        b'{"latency_all":' + b"[" * 100_000,
    ],
)
def test_an_arm_that_we_cannot_have_written_is_refused(value: bytes) -> None:
    """Anything else than an arm of this version is refused, a field of a newer release too.

    Never guessed at.
    """
    with pytest.raises(ValueError):
        decode_arm(value)


@given(st.binary(max_size=40))
def test_any_bytes_are_an_arm_or_a_value_error(value: bytes) -> None:
    """No bytes make reading fail in another way."""
    try:
        arm = decode_arm(value)
    except ValueError:
        return
    assert decode_arm(encode_arm(arm)) == arm


optional = st.none() | st.integers(0, 2**63 - 1)
progresses = st.builds(
    PartitionCounts,
    counts,
    counts,
    optional,
    counts,
    counts,
    counts,
    counts,
    counts,
    counts,
    optional,
)


@given(progresses)
def test_progress_is_read_as_it_was_written(progress: PartitionCounts) -> None:
    """Every partition's progress comes back equal, also out of a hash with other fields."""
    assert (
        decode_progress({**encode_progress(progress), "next": b"7", "f|r|0|control": b"{}"})
        == progress
    )


@pytest.mark.parametrize("value", [b"", b"x", b"-1", b"1.0", None])
def test_progress_that_is_no_number_is_named(value: bytes | None) -> None:
    """A missing or unreadable number is refused by name."""
    fields = encode_progress(PartitionCounts())
    if value is None:
        del fields["counted"]
    else:
        fields["counted"] = value
    with pytest.raises(ValueError, match="'counted'"):
        decode_progress(fields)


def test_every_offset_is_in_exactly_one_class() -> None:
    """Progress adds up when the classes and holes make up all offsets since the start."""
    progress = PartitionCounts(start=10, counted=5, quarantined=4, late=3, ignored=2, holes=1)
    assert progress.adds_up(25)
    assert not progress.adds_up(24)
    assert not progress.adds_up(26)


def test_field_names_say_whose_they_are() -> None:
    """A field's name gives flag, rollout, visit and arm back."""
    field = parse_field(arm_field("new-checkout", "start-1", 12, Arm.CONTROL))
    assert field is not None
    assert (field.flag_key, field.rollout_id, field.visit, field.arm) == (
        "new-checkout",
        "start-1",
        12,
        Arm.CONTROL,
    )
    other = parse_field(part_field("f", "r", 0, "exposed.3"))
    assert other is not None
    assert (other.part, other.arm) == ("exposed.3", None)


@given(
    st.dictionaries(
        st.sampled_from([arm_field(f"f{n}", "r", 0, arm) for n in range(3) for arm in Arm]), arms
    )
)
def test_a_bundle_is_read_as_it_was_written(bundled: dict[str, ArmCounts]) -> None:
    """Every arm of a bundle comes back under its name.

    And a bundle is JSON for whoever else looks.
    """
    value = encode_bundle(bundle_entry(name, encode_arm(arm)) for name, arm in bundled.items())
    assert {name: decode_arm(each) for name, each in decode_bundle(value).items()} == bundled
    assert json.loads(value).keys() == bundled.keys()


@pytest.mark.parametrize(
    "value", [b"", b"[]", b"null", b'{"a":}', b"{1:2}", b"{}x", b'{"a":' + b"[" * 100_000]
)
def test_a_bundle_that_we_cannot_have_written_is_refused(value: bytes) -> None:
    """What is no JSON object is refused."""
    with pytest.raises(ValueError):
        decode_bundle(value)


def test_a_flag_keeps_its_bundle() -> None:
    """A flag's bundle depends on its name alone, in every release: it is stored."""
    assert bundle_field("new-checkout") == "arms/561"
    assert bundle_number("arms/561") == 561
    for name in ("arms/0561", "arms/ 561", "arms/-1", "arms/1024", "arms/", "561"):
        with pytest.raises(ValueError):
            bundle_number(name)
    names = {bundle_field(f"flag-{n}") for n in range(20_000)}
    assert len(names) == BUNDLES
    assert all(is_bundle_field(name) and parse_field(name) is None for name in names)


@pytest.mark.parametrize(
    "name", ["next", "seen", "a|b|c", "a|b|c|d", "a|b|-1|treatment", "a|b|0|c|d", "a|b|²|treatment"]
)
def test_other_fields_are_nobodys(name: str) -> None:
    """A partition's own fields, and names that we never give, belong to no rollout."""
    assert parse_field(name) is None


moments = st.integers(0, 10**6)
losses = st.lists(st.tuples(moments, st.none() | moments), max_size=60)


@given(losses)
def test_losses_cover_all_that_was_lost_in_bounded_room(lost: list[tuple[int, int | None]]) -> None:
    """However many losses there are, few intervals stand for them.

    And no moment of one is left out.
    """
    counts = PartitionCounts()
    ended: list[tuple[int, int]] = []
    open_since: int | None = None
    for from_ms, to_ms in lost:
        counts.note_loss(from_ms, to_ms)
        if to_ms is None:
            open_since = from_ms if open_since is None else min(open_since, from_ms)
        else:
            ended.append((from_ms, max(from_ms, to_ms)))
            if open_since is not None:  # whoever notes an end has read up to there
                ended.append((open_since, max(open_since, to_ms)))
                open_since = None
    assert len(counts.losses) <= MOST_LOSSES
    for from_ms, to_ms in ended:
        assert any(
            since <= from_ms and (until is None or to_ms <= until) for since, until in counts.losses
        )
    if open_since is not None:
        assert any(since <= open_since and until is None for since, until in counts.losses)
    assert decode_progress(encode_progress(counts)).losses == counts.losses


def test_an_open_loss_ends_with_the_next_record() -> None:
    """It ends once, and never before it began."""
    counts = PartitionCounts()
    counts.end_loss(7)
    counts.note_loss(5, None)
    assert counts.losses == [(5, None)]
    counts.end_loss(3)
    counts.end_loss(9)
    assert counts.losses == [(5, 5)]


def test_earlier_releases_find_the_end_of_the_last_loss() -> None:
    """To them a stage is tainted that was entered before it."""
    counts = PartitionCounts(reported_at_ms=9, losses=[(1, 4), (5, 7)])
    assert encode_progress(counts)["tainted_from"] == b"7"
    counts.note_loss(8, None)
    assert encode_progress(counts)["tainted_from"] == b"9"
