"""The native fold counts what the reference counts, and stores the same bytes.

Random histories of records, written as Kafka's record batches, go through both: cut anywhere, saved
anywhere, and loaded again by the other one. What is not plain is in them, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.counting.folding.flags_to_count import FlagsToCount
from controller.counting.folding.native import NATIVE, native_fold
from controller.counting.folding.partition_fold import PartitionFold
from controller.ports import Record
from schemas.terms import Arm
from schemas.totals import (
    ArmCounts,
    PartitionCounts,
    arm_field,
    decode_arm,
    encode_arm,
    encode_progress,
)
from tests.both_folds import FLAGS, NOW_MS, Side, batches_of, swap
from tests.builders import HOUR, MINUTE, T0
from tests.records import at_ms, distinct_counts, evaluation_value, outcome_value

pytestmark = pytest.mark.skipif(
    NATIVE is None, reason="NO NATIVE FOLD: `make native` builds it, with Rust 1.85"
)

CONTEXTS = ["u0", "u1", "u125", "ü", "a b", 'q"', "x" * 257]

# --- records ---

times = st.sampled_from(
    [at_ms(T0 + edge) + by for edge in (0 * HOUR, MINUTE, HOUR, 2 * HOUR) for by in (-1, 0, 999)]
)
flags = st.sampled_from(FLAGS[:1] * 4 + FLAGS[1:])
variants = st.sampled_from(["on", "on", "off", "off", "blue"])
contexts = st.sampled_from(CONTEXTS[:3] * 3 + CONTEXTS)
latencies = st.none() | st.sampled_from([0.0, 0.001, 1.0, 12.5, 1e9]) | st.floats(0, 9e7)
evaluations = st.builds(
    lambda context, variant, at, flag: evaluation_value(context, variant, time_ms=at, flag=flag),
    contexts,
    variants,
    times,
    flags,
)
outcomes = st.builds(
    lambda context, at, named, error, latency, names: outcome_value(
        context, time_ms=at, flags=named, error=error, latency_ms=latency, conversions=names
    ),
    contexts,
    times,
    st.lists(st.tuples(flags, variants), max_size=3),
    st.booleans(),
    latencies,
    st.lists(st.sampled_from(["paid", "other", "paid", "!"]), max_size=3),
)

#: Replacements in an event's text that make it odd, or only unusual.
ODDITIES = [
    (b"T", b"t"),
    (b"+00:00", b"Z"),
    (b"+00:00", b".5Z"),
    (b"+00:00", b".1234567Z"),
    (b"+00:00", b"+02:00"),
    (b'"id": "1"', b'"id": "\\u0031"'),
    (b'"id": "1"', b'"id": ""'),
    (b'"id": "1"', b'"id": "1", "id": "2"'),
    (b'"id": "1"', b'"id": "1", "unknown": {"a": [1, -2.5e3, true, null, "x"]}'),
    (b'"id": "1"', b'"id": "1", "unknown": [01]'),
    (b'"data"', b'"more": "data", "data"'),
    (b'"feature_flag.context.id"', b'"other"'),
    (b'"feature_flag.result.variant"', b'"feature_flag.variant"'),
    (b"request.duration", b"request.duration\\u0020"),
    (b'"1.0"', b'"1.1"'),
    (b"{", b"{ \n\t"),
    (b"}", b"} "),
    (b", ", b","),
    (b"}}", b"}"),
    (b"1", b""),
    (b'"', b""),
]


@dataclass(frozen=True)
class Sent:
    """A record before it has an offset."""

    value: bytes | None
    key: bytes | None
    timestamp_ms: int
    headers: Sequence[tuple[str, bytes | None]]


def odd(value: bytes, oddities: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return an event with some replacements."""
    for old, new in oddities:
        value = value.replace(old, new)
    return value


def sent_of(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[Sent]:
    """Return records of some events: most plain, some odd, some torn."""
    return st.builds(
        Sent,
        st.one_of(
            values,
            values,
            values,
            st.builds(odd, values, st.lists(st.sampled_from(ODDITIES), min_size=1, max_size=2)),
            st.builds(lambda value, cut: value[:cut], values, st.integers(0, 400)),
            st.none(),
        ),
        st.sampled_from([None, b"", b"u1", "ü".encode(), b"\xff"]),
        st.sampled_from([NOW_MS, NOW_MS, NOW_MS, at_ms(T0 + MINUTE), NOW_MS + 10**9]),
        st.sampled_from(
            [
                (),
                (),
                (("traceparent", b"00"),),
                (("content-type", b"application/cloudevents+json"),),
                (("Content-Type", b"application/json"),),
                (("ce_id", b"1"), ("ce_source", b"/a"), ("content-type", None)),
            ]
        ),
    )


steps = st.lists(
    st.one_of(
        st.tuples(st.just("evaluations"), st.lists(sent_of(evaluations), min_size=1, max_size=12)),
        st.tuples(st.just("outcomes"), st.lists(sent_of(outcomes), min_size=1, max_size=12)),
        st.tuples(st.just("busy"), st.lists(sent_of(outcomes), min_size=1, max_size=3)),
        st.tuples(st.just("save"), st.booleans()),
        st.tuples(st.just("end"), st.tuples(st.booleans(), flags)),
        st.tuples(st.just("swap"), st.just(None)),
        st.tuples(st.just("drop"), flags),
        st.tuples(st.just("budget"), st.integers(0, 3)),
    ),
    max_size=12,
)


@given(
    steps,
    st.sampled_from([1, 2, 1000]),
    st.sampled_from([1, 1000]),
    st.integers(1, 5),
    st.sampled_from([1, 3, 1000]),
)
def test_both_folds_count_and_store_the_same(
    steps: Sequence[tuple[str, Any]],
    exact_limit: int,
    flags_with_own_fields: int,
    per_batch: int,
    room: int,
) -> None:
    """Whatever comes, in whatever order, cut, saved and loaded again by the other one.

    In fields of their own or in bundles.
    """
    assert NATIVE is not None
    reference = Side(PartitionFold, exact_limit, flags_with_own_fields)
    native = Side(native_fold(NATIVE), exact_limit, flags_with_own_fields)
    for kind, what in steps:
        if kind in ("evaluations", "outcomes"):
            fold_both(reference, native, kind == "evaluations", what, per_batch, room)
        elif kind == "busy":
            fold_busy(reference, native, what, per_batch)
        elif kind == "save":
            assert native.save(what) == reference.save(what)
        elif kind == "end":
            assert native.save(*what) == reference.save(*what)
        elif kind == "swap":
            swap(reference, native)
        elif kind == "drop":
            for side in (reference, native):
                for totals in side.totals.values():
                    totals.flags.drop(what, f"start-{what}")
        else:
            for side in (reference, native):
                for totals in side.totals.values():
                    totals.flags.keep_budget(what)
        for of_evaluations in (True, False):
            both = reference.totals[of_evaluations], native.totals[of_evaluations]
            assert both[0].progress == both[1].progress
        assert native.noticed() == reference.noticed()
    for of_evaluations in (True, False):
        assert native.save(of_evaluations) == reference.save(of_evaluations)


BUSY_BATCHES = 25


def fold_busy(reference: Side, native: Side, what: Sequence[Sent], per_batch: int) -> None:
    """Fold many batches with the same context, which soon is far more active than the others.

    It fails at last, and others come now and then.
    """
    for number in range(BUSY_BATCHES):
        busy = outcome_value(
            "u0",
            time_ms=at_ms(T0 + HOUR - MINUTE),
            flags=[(FLAGS[0], "on")],
            error=number == BUSY_BATCHES - 1,
            latency_ms=None if number % 5 == 4 else 12.5,
        )
        others = what[number % 4 : number % 4 + 1]
        sent = [Sent(busy, None, NOW_MS, ())] * (1 + number % 2)
        fold_both(reference, native, False, [*sent, *others], per_batch, 1000)
        for side in (reference, native):
            side.begin_batch()


def fold_both(
    reference: Side,
    native: Side,
    of_evaluations: bool,
    what: Sequence[Sent],
    per_batch: int,
    room: int,
) -> None:
    """Fold the same records on both sides: as objects, and where they lie in their batches."""
    assert NATIVE is not None
    position = reference.totals[of_evaluations].position
    records = [
        Record("t", 0, position + number, one.timestamp_ms, one.key, one.value, one.headers)
        for number, one in enumerate(what)
    ]
    content = batches_of(records, per_batch)
    fetched, behind, following = NATIVE.read_batches(content, 0, position)
    assert (len(fetched), behind) == (len(records), len(content))
    assert following == position + len(records)
    assert [(each.offset, each.timestamp, each.key, each.value) for each in fetched] == [
        (each.offset, each.timestamp, each.key, each.value) for each in records
    ]
    folded = reference.fold(of_evaluations, records, room)
    assert native.fold(of_evaluations, fetched, room) == folded


def test_every_counter_goes_on_where_it_stood() -> None:
    """What one fold has stored of an arm, the other one stores again, with one outcome more."""
    assert NATIVE is not None
    counts = ArmCounts(**distinct_counts())
    name = arm_field("new-checkout", "start-new-checkout", 0, Arm.TREATMENT)
    begun = {"next": b"0", **encode_progress(PartitionCounts()), name: encode_arm(counts)}
    reference, native = Side(PartitionFold, 300), Side(native_fold(NATIVE), 300)
    for side in (reference, native):
        side.stored[False] = dict(begun)
        side.totals[False] = side.load(False)
    value = outcome_value("u1", time_ms=at_ms(T0 + HOUR / 2), flags=[("new-checkout", "on")])
    fold_both(reference, native, False, [Sent(value, None, NOW_MS, ())], 1, 1000)
    more = {"outcomes": counts.outcomes + 1, "at_risk": counts.at_risk + 1}
    expected = ArmCounts(**{**distinct_counts(), **more})
    assert decode_arm(reference.save(False)[name]) == expected
    assert native.save(False) == reference.save(False)


buckets = st.integers(-450, 1050) | st.integers(-(2**15), 2**15 - 1)
in_buckets = st.integers(1, 12) | st.integers(1, 2**48 - 1)


@given(st.dictionaries(buckets, in_buckets, max_size=80), st.integers(1, 2**63 - 1))
def test_any_totals_are_written_alike(latency: dict[int, int], outcomes: int) -> None:
    """Buckets beyond those of a duration, and numbers of every size, to the byte."""
    arm = ArmCounts(outcomes=outcomes, latency=dict(sorted(latency.items())))
    assert NATIVE is not None
    fold = native_fold(NATIVE)(
        FlagsToCount(),
        counts_exposures=False,
        exact_limit=10,
        window_ms=None,
        bundle_of=lambda flag_key, name: None,
        indexed_per_turn=1,
    )
    name = arm_field(FLAGS[0], "start-1", 0, Arm.TREATMENT)
    fold.restore_arm(name, arm, 7)
    assert fold.give_own_field(7, name) == encode_arm(arm)


def test_large_sets_are_sealed_and_cleaned_alike() -> None:
    """Over many saves with many contexts: filters, journals and budgets are equal."""
    assert NATIVE is not None
    chance = Random(3)
    reference, native = Side(PartitionFold, 300), Side(native_fold(NATIVE), 300)
    for turn in range(60):
        what = [
            Sent(
                evaluation_value(
                    f"u{chance.randrange(40_000)}", "on", time_ms=at_ms(T0 + HOUR / 2)
                ),
                None,
                NOW_MS,
                (),
            )
            for _ in range(400)
        ]
        fold_both(reference, native, True, what, 200, 1000)
        assert native.save(True) == reference.save(True)
        if turn % 20 == 19:
            closed = [one.totals[True].flags.keep_budget(2_000) for one in (native, reference)]
            assert closed[0] == closed[1]
            swap(reference, native)
    assert any(name.startswith("filter/") for name in reference.stored[True])


def test_a_repetition_with_other_attributes_is_another_record() -> None:
    """Also where the value is a whole event, and its headers say it again."""
    reference, native = Side(PartitionFold, 300), Side(native_fold(NATIVE), 300)
    structured = ("content-type", b"application/cloudevents+json")
    for numbers in ([], [0, 1, 2]):
        what = [
            Sent(
                outcome_value(
                    f"u{user}", time_ms=at_ms(T0 + HOUR / 2), flags=[("new-checkout", "on")]
                ),
                None,
                NOW_MS,
                (structured, *(("ce_id", b"%d" % number) for number in numbers[repetition:])),
            )
            for user in range(300)
            for repetition in range(3)
        ]
        fold_both(reference, native, False, what, 200, 5000)
        assert native.save(False) == reference.save(False)


def test_broken_batches_are_left_to_the_consumer() -> None:
    """A batch with a wrong checksum, a codec, or records that do not add up is not read."""
    assert NATIVE is not None
    record = Record("t", 0, 7, NOW_MS, b"k", json.dumps({"a": 1}).encode(), ())
    whole = batches_of([record], 1)
    assert NATIVE.read_batches(whole, 0, 0)[1] == len(whole)
    chance = Random(1)
    for _ in range(500):
        broken = bytearray(whole)
        place = chance.randrange(16, len(whole))
        broken[place] ^= 1 << chance.randrange(8)
        records, behind, _ = NATIVE.read_batches(bytes(broken), 0, 0)
        assert (len(records), behind) == (0, 0)
    for cut in range(len(whole)):
        assert NATIVE.read_batches(whole[:cut], 0, 0)[1] == 0
