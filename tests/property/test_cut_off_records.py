"""A record that ends too early is refused natively, in the words in which Python refuses it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest

from controller.counting.folding.native import NATIVE, native_fold
from controller.counting.folding.partition_fold import PartitionFold
from schemas.quarantine import Refusal
from schemas.wire import CUT_OFF
from tests.both_folds import NOW_MS, Side
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


@pytest.mark.parametrize(("whole", "of_evaluations"), [(EVALUATION, True), (OUTCOME, False)])
def test_a_text_that_ends_anywhere_is_refused_alike(whole: bytes, of_evaluations: bool) -> None:
    """Each text cut behind each of its bytes."""
    structured = [(), (("content-type", b"application/cloudevents+json"),)]
    binary = [(("ce_id", b"1"), ("ce_specversion", b"1.0")), (("content-type", b"text/plain"),)]
    for text in texts(whole):
        what = [Sent(text[:cut], b"k", NOW_MS, structured[cut % 2]) for cut in range(len(text))]
        refused_by_both(of_evaluations, what)
        refused_by_both(of_evaluations, [Sent(text[:90], b"k", NOW_MS, one) for one in binary])


@pytest.mark.parametrize(("whole", "of_evaluations"), [(EVALUATION, True), (OUTCOME, False)])
def test_a_cut_off_record_says_so(whole: bytes, of_evaluations: bool) -> None:
    """With the hash of all that it holds, and its first bytes."""
    text = odd(whole, [(b'"specversion"', b'"x": "' + b"y" * 2_000 + b'", "specversion"')])
    sizes = (40, 1_024, 1_025, len(text) - 10)
    refused = refused_by_both(
        of_evaluations, [Sent(text[:size], b"k", NOW_MS, ()) for size in sizes]
    )
    assert [(one.reason, one.detail, one.size, one.body) for one in refused] == [
        (CUT_OFF.reason, CUT_OFF.detail, size, text[: min(size, 1_024)]) for size in sizes
    ]
    assert [one.is_trimmed for one in refused] == [False, False, True, True]


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
