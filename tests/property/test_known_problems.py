"""What is refused natively: the same records as by Python, in its words.

Those that end too early, that hold no event at all, and whose envelope or flag is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from controller.counting.folding.native import NATIVE, native_fold
from controller.counting.folding.partition_fold import PartitionFold
from controller.ports import Record
from schemas.quarantine import MAX_JSON, Refusal, WrittenRefusals, refusal, written
from schemas.wire import (
    RecordRefused,
    decode_evaluation,
    decode_outcome,
    read_evaluations,
    read_outcomes,
)
from tests.both_folds import NOW_MS, Side, batches_of
from tests.builders import HOUR, T0
from tests.property.test_native_fold import ODDITIES, Sent, fold_both, odd
from tests.records import at_ms, evaluation_value, outcome_value, refusals_in

pytestmark = pytest.mark.skipif(
    NATIVE is None, reason="NO NATIVE FOLD: `make native` builds it, with Rust 1.85"
)

AT_MS = at_ms(T0 + HOUR / 2)
EVALUATION = evaluation_value("u1", "on", time_ms=AT_MS, flag="new-checkout")
OUTCOME = outcome_value(
    "u1",
    time_ms=AT_MS,
    flags=[("new-checkout", "on"), ("other", "off")],
    error=True,
    latency_ms=12.5,
    conversions=["paid", "other"],
)
#: Replacements after which it matters where the text ends.
MORE_ODDITIES = [
    (b'"data"', b'"data": {}, "more"'),  # an object that lacks what it needs, before the end
    (b'"data"', b'"data": {"feature_flag.key": "f"}, "data"'),
    (b'"data"', b'"data": [], "more"'),
    (b'"data"', b'"data": null, "more"'),
    (b"}}", b'}, "data": {}}'),  # of two the last counts
    (b"}}", b"}} 1"),
    (b'"specversion"', b'"source": 5, "specversion"'),
    (b'"specversion"', b'"time": "soon", "specversion"'),
    (b'"specversion"', b'"x": [1, {"y": [true, false, null, -0.5e-3]}], "specversion"'),
    (b'"specversion"', b'"x": 1e400, "y": 12345678901234567890123456789012345, "specversion"'),
    (b'"specversion"', b'"x": "\xc3\xa9", "specversion"'),
    (b'"specversion"', b'"x": "\x01", "specversion"'),
    (b'"specversion"', b'"x": "' + b"y" * 2_000 + b'", "specversion"'),
    (b'"specversion"', b'"x": ' + b"[" * 12 + b"]" * 12 + b', "specversion"'),
    (b'"specversion"', b'"x": "' + b"[" * 1_100 + b'", "specversion"'),
    (b"0.0125", b"86401"),
    (b"0.0125", b"-1"),
    (b"0.0125", b'"0.0125"'),
    (b'"feature_flag.key"', b'"feature_flag.key": "f", "feature_flag.key"'),
    (b'"feature_flag.key"', b'"feature_flag.kex"'),
    (b'"io.rolloutd.', b'"com.example.'),
    (b'"io.rolloutd.', b'"com.\xc3\xa9.'),
    (b'"io.rolloutd.', b'"' + b"y" * 300),
    (b'"specversion"', b'"type": 5, "specversion"'),
    (b'"specversion"', b'"type": "a", "specversion"'),
    (b'"1.0"', b'"0.3"'),
    (b'"1.0"', b"1.0"),
    *((b'"%b"' % name, b'"other"') for name in (b"specversion", b"type", b"id", b"source")),
    (b'"data"', b'"data_base64"'),
    (b'"feature_flag.key"', b'"flag"'),
    (b'"feature_flag.result.variant"', b'"variant"'),
    (b'"feature_flag.key": "other"', b'"flag": "other"'),  # the second flag of an outcome
    (b'"feature_flag.key":"other"', b'"flag":"other"'),
    (b'"feature_flag.result.variant": "off"', b'"variant": "off"'),
    (b'"feature_flag.result.variant":"off"', b'"variant":"off"'),
    (b'"feature_flag.result.variant": "off"', b'"feature_flag.result.variant": null'),
]
#: Values that are no event, from their first bytes on.
NO_EVENTS = [
    b"",
    b" ",
    b"{}",
    b" { } ",
    b"{} {}",
    b'{"level": "info", "message": "started"}',
    b"2026-11-27 INFO started",
    b"plain text",
    b"[]",
    b"[" * 600,
    b" \n\t\r[1, 2]",
    b'"text"',
    b"null",
    b"-",
    b"\x00\x00\x00\x01\x08value",
    b" " * 199 + b"?",
    b" " * 200 + b"?",
    b" " * 201 + b"?",
    b"<xml/>",
    b"\xef\xbb\xbf{}",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"a\xe2\x82",
    b"\xf4\x90\x80\x80",
    b"x" * 199 + b"\xff",
    b"x" * 201 + b"\xff",
    b"x" * 2_000 + b"\xff",
    b"\xff" + b"x" * 300_000,
    b"\xff" + b"[" * 600,
    *(bytes([byte]) for byte in range(256)),
    *(bytes([byte]) + b"abc" for byte in range(256)),
]


def texts(whole: bytes) -> Iterator[bytes]:
    """Yield an event as it is, and with each oddity that changes it."""
    compact = json.dumps(json.loads(whole), separators=(",", ":")).encode()
    yield from (whole, compact)
    for oddity in (*ODDITIES, *MORE_ODDITIES):
        for text in (whole, compact):
            changed = odd(text, [oddity])
            if changed != text:
                yield changed


def refused_by_both(of_evaluations: bool, what: Sequence[Sent]) -> Sequence[Refusal]:
    """Fold the same records by both, and return what both refuse."""
    assert NATIVE is not None
    reference, native = Side(PartitionFold, 300), Side(native_fold(NATIVE), 300)
    fold_both(reference, native, of_evaluations, what, 100, 10**9)
    assert native.refused == reference.refused
    assert native.totals[of_evaluations].progress == reference.totals[of_evaluations].progress
    return refusals_in(native.refused)


def refused_by_python(of_evaluations: bool, value: bytes) -> RecordRefused:
    """Return why the reader of Python refuses a value."""
    decode = decode_evaluation if of_evaluations else decode_outcome
    with pytest.raises(RecordRefused) as refused:
        decode(value, b"k", NOW_MS, ())
    return refused.value


@pytest.mark.parametrize(("whole", "of_evaluations"), [(EVALUATION, True), (OUTCOME, False)])
def test_a_text_that_ends_anywhere_is_refused_alike(whole: bytes, of_evaluations: bool) -> None:
    """Each text cut behind each of its bytes."""
    structured = [(), (("content-type", b"application/cloudevents+json"),)]
    binary = [(("ce_id", b"1"), ("ce_specversion", b"1.0")), (("content-type", b"text/plain"),)]
    for text in texts(whole):
        what = [Sent(text[:cut], b"k", NOW_MS, structured[cut % 2]) for cut in range(len(text) + 1)]
        refused_by_both(of_evaluations, what)
        refused_by_both(of_evaluations, [Sent(text[:90], b"k", NOW_MS, one) for one in binary])


@pytest.mark.parametrize("of_evaluations", [True, False])
def test_what_is_no_event_is_refused_alike(of_evaluations: bool) -> None:
    """Among good events, which keep their places, and with headers of all kinds."""
    good = Sent(EVALUATION if of_evaluations else OUTCOME, b"k", NOW_MS, ())
    headers = [
        (),
        (("content-type", b"application/cloudevents+json"),),
        (("content-type", b"text/plain"),),
        (("ce_id", b"1"), ("ce_specversion", b"1.0")),
    ]
    for some in headers:
        bad = [Sent(value, b"k", NOW_MS, some) for value in (None, *NO_EVENTS)]
        refused = refused_by_both(of_evaluations, [one for pair in bad for one in (pair, good)])
        assert [one.offset for one in refused] == list(range(0, 2 * len(bad), 2))


@pytest.mark.parametrize(("whole", "of_evaluations"), [(EVALUATION, True), (OUTCOME, False)])
def test_a_cut_off_record_says_so(whole: bytes, of_evaluations: bool) -> None:
    """With the hash of all that it holds, and its first bytes."""
    text = odd(whole, [(b'"specversion"', b'"x": "' + b"y" * 2_000 + b'", "specversion"')])
    sizes = (40, 1_024, 1_025, len(text) - 10)
    refused = refused_by_both(
        of_evaluations, [Sent(text[:size], b"k", NOW_MS, ()) for size in sizes]
    )
    why = refused_by_python(of_evaluations, b"{")
    assert [(one.reason, one.detail, one.size, one.body) for one in refused] == [
        (why.reason, why.detail, size, text[: min(size, 1_024)]) for size in sizes
    ]
    assert [one.is_trimmed for one in refused] == [False, False, True, True]


def test_what_is_known_is_not_read_by_python() -> None:
    """Only an example of each problem is, also where a partition has many runs."""
    given = 0

    def read(records: Iterable[Any], *args: Any, **named: Any) -> Iterator[Any]:
        nonlocal given
        records = list(records)
        given += len(records)
        return read_evaluations(records, *args, **named)

    assert NATIVE is not None
    fold = partial(native_fold(NATIVE), readers={"evaluations": read, "outcomes": read_outcomes})
    known = [
        EVALUATION[:100],
        None,
        b"\xff",
        b"<xml/>",
        b'{"level": "info"}',
        EVALUATION.replace(b"io.rolloutd.", b"com.example."),
        EVALUATION.replace(b"feature_flag.key", b"flag"),
    ]
    side = Side(fold, 300)
    records = [Record("t", 0, n, NOW_MS, b"k", known[n % len(known)], ()) for n in range(7_000)]
    fetched, _, _ = NATIVE.read_batches(batches_of(records, 1000), 0, 0)
    totals = side.totals[True]
    for begin in range(0, len(records), 500):
        totals.fold_evaluations(fetched[begin : begin + 500], read)
    assert totals.progress.quarantined == len(records)
    assert given == len(known)


def test_more_kinds_of_problems_than_are_kept_are_refused_alike() -> None:
    """Each sender of another type: a flood that quotes what its sender chose."""
    types = [b"com.example.%d" % (number % 700) for number in range(2_000)]
    what = [
        Sent(EVALUATION.replace(b"io.rolloutd.evaluation.v1", one), b"k", NOW_MS, ())
        for one in types
    ]
    refused = refused_by_both(True, what)
    assert [one.detail.split("'")[1].encode() for one in refused] == types


def test_refusals_share_records_alike() -> None:
    """Floods of small and of large values, of one reason and of several in turn."""
    kinds = [
        (b'{"specversion":"1.0"', NOW_MS),
        (b"\xff", 5),
        (b"", NOW_MS + 1),
        (b'{"a":"' + b"y" * 2_000, 7),
        (EVALUATION.replace(b'"on"', b'"\\u0022\\\\on"'), NOW_MS),
    ]
    floods = [[one] for one in kinds] + [kinds, [(kinds[0][0], -1)]]
    for flood in floods:
        what = [
            Sent(value, b"k", timestamp_ms, ())
            for _ in range(1_300)
            for value, timestamp_ms in flood
        ]
        refused = refused_by_both(True, what)
        assert [one.offset for one in refused] == list(range(len(what)))


@pytest.mark.parametrize(("spare", "expected"), [(1, 1), (0, 1), (-1, 2)])
def test_a_record_is_filled_to_its_last_byte_alike(spare: int, expected: int) -> None:
    """Refusals that have as many bytes as one record may have, one less, or one more."""
    value = b"\xff" * 1_024
    why = refused_by_python(True, value)
    times = [1] * 300
    while (missing := MAX_JSON - spare - _size(value, why, times)) > 0:
        times.append(1)
    times.pop()
    missing = MAX_JSON - spare - _size(value, why, times)
    for place in range(len(times)):  # each digit of a timestamp is a byte
        digits = min(missing, 17)
        times[place], missing = 10**digits, missing - digits
    assert _size(value, why, times) == MAX_JSON - spare
    what = [Sent(value, b"k", timestamp_ms, ()) for timestamp_ms in times]
    assert NATIVE is not None
    reference, native = Side(PartitionFold, 300), Side(native_fold(NATIVE), 300)
    fold_both(reference, native, True, what, 1000, 10**9)
    assert native.refused == reference.refused
    assert len(native.refused) == expected


def _size(value: bytes, why: RecordRefused, times: Sequence[int]) -> int:
    """Return the bytes of refusals as they are written, with a comma between two."""
    some = [refusal(offset, time_ms, value, why) for offset, time_ms in enumerate(times)]
    return sum(len(one.json) for one in map(_alone, some)) + len(some) - 1


def _alone(one: Refusal) -> WrittenRefusals:
    [some] = written([one])
    return some
