from __future__ import annotations

import base64
import hashlib
import json

import pytest

from schemas import quarantine
from schemas.envelope import HEADERS, RecordRefused, read
from schemas.quarantine import MAX_REFUSALS, Quarantined, Refusal
from schemas.terms import QuarantineReason

ARRIVAL = 1_795_230_000_000
REFUSED = RecordRefused(QuarantineReason.NOT_JSON, "JSON is malformed", "send JSON")


def refusals(count: int, value: bytes | None) -> list[Refusal]:
    """Return refusals of one value at offsets 100, 101, ..."""
    return [quarantine.refusal(100 + number, ARRIVAL, value, REFUSED) for number in range(count)]


def reread(value: bytes) -> Quarantined:
    """Read a quarantine record back by its contract."""
    return Quarantined.model_validate_json(json.dumps(json.loads(value)["data"]))


def test_what_was_refused_can_be_found_again() -> None:
    """Topic, partition, offset, reason, hash, size and the beginning of the value are kept."""
    value = b"\xff" * 5000
    told = reread(quarantine.encode("flag.evaluations", 3, refusals(1, value)))
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
        quarantine.encode("flag.evaluations", 3, refusals(2, b"{")),
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
    one = reread(quarantine.encode("t", 0, refusals(1, None))).refusals[0]
    assert (one.body, one.size, one.is_trimmed) == ("", 0, False)


def test_a_full_record_stays_below_the_broker_s_limit() -> None:
    """Five hundred large refusals fit into Kafka's default of one megabyte."""
    refused = RecordRefused(QuarantineReason.INVALID, '💥\\"' * 500, "fix it" * 20)
    many = [
        quarantine.refusal(2**62 + number, ARRIVAL, b"x" * 200_000, refused)
        for number in range(MAX_REFUSALS)
    ]
    value = quarantine.encode("t" * 249, 99_999, many)
    assert len(value) < 1_000_000
    assert len(reread(value).refusals) == MAX_REFUSALS


def test_ordinary_poison_is_kept_whole() -> None:
    """Five hundred refused records of ordinary size lose nothing.

    And their quarantine record is below half a megabyte.
    """
    value = quarantine.encode("t", 0, refusals(MAX_REFUSALS, b"x" * 280))
    assert len(value) < 500_000
    assert not any(one.is_trimmed for one in reread(value).refusals)


def test_a_large_value_among_small_ones_is_kept_whole() -> None:
    """Values are cut where they are too large together, not where one is larger than its share."""
    small, large = refusals(MAX_REFUSALS - 1, b"x"), refusals(1, b"x" * 1024)
    assert not any(
        one.is_trimmed for one in reread(quarantine.encode("t", 0, [*small, *large])).refusals
    )


def test_the_same_refusals_give_the_same_record() -> None:
    """After a crash the repeat is recognised by its id and its bytes."""
    assert quarantine.encode("t", 0, refusals(2, b"{")) == quarantine.encode(
        "t", 0, refusals(2, b"{")
    )
    assert json.loads(quarantine.encode("t", 0, refusals(2, b"{")))["id"] == "t/0/100-101"


@pytest.mark.parametrize("timestamp_ms", [-1, -(2**63), 2**63 - 1])
def test_a_record_with_an_impossible_timestamp_can_be_quarantined(timestamp_ms: int) -> None:
    """The refused record's clock cannot stop the quarantine."""
    one = quarantine.refusal(1, timestamp_ms, b"x", REFUSED)
    assert (
        json.loads(quarantine.encode("t", 0, [one]))["data"]["refusals"][0]["timestamp_ms"]
        == timestamp_ms
    )


@pytest.mark.parametrize("count", [0, MAX_REFUSALS + 1])
def test_a_record_holds_one_to_five_hundred(count: int) -> None:
    """An empty or overfull record is our own mistake."""
    with pytest.raises(ValueError, match="1 to 500"):
        quarantine.encode("t", 0, refusals(count, b"x"))
