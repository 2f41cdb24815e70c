from __future__ import annotations

import base64
import hashlib
import json
import tracemalloc

import pytest

from schemas import quarantine
from schemas.envelope import HEADERS, format_time, read, time_of
from schemas.quarantine import MAX_JSON, MAX_REFUSALS, Quarantined, Refusal, WrittenRefusals
from schemas.record_refused import RecordRefused
from schemas.terms import QuarantineReason
from tests.records import refusals_in

ARRIVAL = 1_795_230_000_000
REFUSED = RecordRefused(QuarantineReason.NOT_JSON, "JSON is malformed", "send JSON")


def refusals(count: int, value: bytes | None) -> list[Refusal]:
    """Return refusals of one value at offsets 100, 101, ..."""
    return [quarantine.refusal(100 + number, ARRIVAL, value, REFUSED) for number in range(count)]


def written(count: int, value: bytes | None) -> WrittenRefusals:
    """Return them as they are written, in one record."""
    [some] = quarantine.written(refusals(count, value))
    return some


def reread(value: bytes) -> Quarantined:
    """Read a quarantine record back by its contract."""
    return Quarantined.model_validate_json(json.dumps(json.loads(value)["data"]))


def test_what_was_refused_can_be_found_again() -> None:
    """Topic, partition, offset, reason, hash, size and the beginning of the value are kept."""
    value = b"\xff" * 5000
    told = reread(quarantine.encode("flag.evaluations", 3, written(1, value)))
    one = told.refusals[0]
    assert (told.topic, told.partition, one.offset, one.timestamp_ms) == (
        "flag.evaluations",
        3,
        100,
        ARRIVAL,
    )
    assert (one.reason, one.detail) == (QuarantineReason.NOT_JSON, "JSON is malformed; send JSON")
    assert (one.sha256, one.size, one.is_trimmed) == (hashlib.sha256(value).hexdigest(), 5000, True)
    assert base64.b64decode(one.body) == value[:1024]


def test_a_quarantine_record_is_an_event() -> None:
    """It opens as every other event of ours."""
    event = read(
        quarantine.encode("flag.evaluations", 3, written(2, b"{")),
        ARRIVAL,
        HEADERS,
        [quarantine.TYPE],
    )
    assert (event.id, event.time_ms, event.data["partition"]) == (
        "flag.evaluations/3/100-101",
        ARRIVAL,
        3,
    )


def test_a_record_without_a_value_is_kept_too() -> None:
    """Tombstones have an empty body and the hash of nothing."""
    one = reread(quarantine.encode("t", 0, written(1, None))).refusals[0]
    assert (one.body, one.size, one.is_trimmed) == ("", 0, False)


def test_a_full_record_stays_below_the_broker_s_limit() -> None:
    """Five hundred large refusals take two, each of at most `MAX_JSON` and its envelope."""
    refused = RecordRefused(QuarantineReason.INVALID, '💥\\"' * 500, "fix it" * 20)
    many = [
        quarantine.refusal(2**62 + number, ARRIVAL, b"x" * 200_000, refused)
        for number in range(MAX_REFUSALS)
    ]
    values = [quarantine.encode("t" * 249, 99_999, some) for some in quarantine.written(many)]
    assert max(map(len, values)) < 524_288 - 16_384  # the least `kafka.max_record_bytes`
    offsets = [one.offset for value in values for one in reread(value).refusals]
    assert offsets == [one.offset for one in many]
    assert len(values) == 2


def test_ordinary_poison_is_kept_whole() -> None:
    """Five hundred refused records of ordinary size lose nothing.

    And one quarantine record has room for them.
    """
    value = quarantine.encode("t", 0, written(MAX_REFUSALS, b"x" * 280))
    assert len(value) < 500_000
    assert not any(one.is_trimmed for one in reread(value).refusals)


def test_the_same_refusals_give_the_same_record() -> None:
    """After a crash the repeat is recognised by its id and its bytes."""
    first, again = (quarantine.encode("t", 0, written(2, b"{")) for _ in range(2))
    assert first == again
    assert json.loads(first)["id"] == "t/0/100-101"


@pytest.mark.parametrize("timestamp_ms", [-1, -(2**63), 2**63 - 1])
def test_a_record_with_an_impossible_timestamp_can_be_quarantined(timestamp_ms: int) -> None:
    """The refused record's clock cannot stop the quarantine."""
    one = quarantine.refusal(1, timestamp_ms, b"x", REFUSED)
    assert (
        json.loads(quarantine.encode("t", 0, *quarantine.written([one])))["data"]["refusals"][0][
            "timestamp_ms"
        ]
        == timestamp_ms
    )


@pytest.mark.parametrize(
    ("count", "value", "expected"),
    [
        (0, b"x", []),
        (1, b"x", [1]),
        (MAX_REFUSALS, b"x", [MAX_REFUSALS]),
        (2 * MAX_REFUSALS + 1, b"x", [MAX_REFUSALS, MAX_REFUSALS, 1]),
        (400, b"x" * 1024, [309, 91]),
    ],
)
def test_a_record_is_as_full_as_it_may_be(count: int, value: bytes, expected: list[int]) -> None:
    """By its number of refusals or by its bytes, whichever is reached first."""
    one_by_one = [quarantine.written([one])[0] for one in refusals(count, value)]
    at_once = quarantine.written(refusals(count, value))
    assert [some.count for some in at_once] == expected
    assert quarantine.joined(one_by_one) == at_once
    assert all(len(some.json) <= MAX_JSON for some in at_once)


def test_refusals_of_many_kinds_are_joined_in_their_order() -> None:
    """Counts by reason are those of all, and the latest timestamp is the record's time."""
    late = RecordRefused(QuarantineReason.BAD_TIME, "late", "set the clock")
    first = refusals(2, b"x")
    more = [
        quarantine.refusal(200, ARRIVAL + 5, b"y", late),
        quarantine.refusal(201, -1, None, REFUSED),
    ]
    [some] = quarantine.joined(
        [one for part in (first, more[:1], more[1:]) for one in quarantine.written(part)]
    )
    assert refusals_in([some]) == [*first, *more]
    assert some == quarantine.written([*first, *more])[0]
    assert json.loads(quarantine.encode("t", 0, some))["time"] == format_time(time_of(ARRIVAL + 5))


@pytest.mark.parametrize(("spare", "expected"), [(0, 1), (-1, 2)])
def test_a_record_is_filled_to_its_last_byte(
    monkeypatch: pytest.MonkeyPatch, spare: int, expected: int
) -> None:
    """The comma between two counts, one behind the last does not: there is none."""
    whole = written(3, b"x")
    monkeypatch.setattr(quarantine, "MAX_JSON", len(whole.json) + spare)
    assert len(quarantine.written(refusals(3, b"x"))) == expected


def test_what_waits_is_as_large_as_it_says() -> None:
    """The bound of what waits is in bytes of memory: the values beside the text count, too."""
    some = [quarantine.refusal(2**40 + n, ARRIVAL + n, b"x", REFUSED) for n in range(200)]
    quarantine.written(some)
    tracemalloc.start()
    try:
        kept = [quarantine.written([one])[0] for one in some]
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(one.size for one in kept) == pytest.approx(size, rel=0.2)
