"""Batches made safe hold the records they held.

What cannot be unpacked becomes one record that readers refuse.
"""

from __future__ import annotations

import gzip
import random
import resource
import struct
from collections.abc import Callable, Sequence
from typing import Any

import cramjam
import pytest
from aiokafka import codec as codecs
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from hypothesis import given
from hypothesis import strategies as st

from controller.adapters.kafka.record_batches import (
    LEFT_ALONE,
    MOST_HANDED_ON,
    MOST_UNPACKED,
    REFUSED_SIZE,
    UnpackBudget,
    following_offset,
    is_plain,
    make_safe,
)
from schemas import envelope, otlp

NAMES = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
BOMBS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "gzip": (1, lambda value: gzip.compress(value, 6)),
    "snappy": (2, lambda value: bytes(cramjam.snappy.compress_raw(value))),
    "xerial": (2, codecs.snappy_encode),
    "lz4": (3, codecs.lz4_encode),
    "zstd": (4, lambda value: bytes(cramjam.zstd.compress(value))),
}
Headers = Sequence[tuple[str, bytes | None]]


def batch(
    values: Sequence[bytes | None], codec: int = 0, *, base: int = 0, headers: Headers = ()
) -> bytes:
    """Return a record batch of these values as a broker stores it, from offset `base`."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 30)
    for number, value in enumerate(values):
        builder.append(
            number, timestamp=1_000 + number, key=b"k", value=value, headers=list(headers)
        )
    return at(base, bytes(builder.build()))


def at(base: int, content: bytes) -> bytes:
    """Return a batch moved to another offset, which its checksum does not cover."""
    return base.to_bytes(8, "big") + content[8:]


def sealed(content: bytes) -> bytes:
    """Return a batch with the length and the checksum that its bytes have."""
    whole = bytearray(content)
    whole[8:12] = (len(whole) - 12).to_bytes(4, "big")
    whole[17:21] = calc_crc32c(bytes(whole[21:])).to_bytes(4, "big")
    return bytes(whole)


def raw_batch(
    payload: bytes, codec: int, *, count: int = 1, delta: int = 0, base: int = 0
) -> bytes:
    """Return a batch whose records are these bytes, whatever they are."""
    head = struct.pack(">qiibIhiqqqhii", base, 0, 0, 2, 0, codec, delta, 5, 5, -1, -1, -1, count)
    return sealed(head + payload)


def records_of(content: bytes) -> list[Any]:
    """Return every record of a set of batches as aiokafka reads it."""
    found = []
    batches = MemoryRecords(content)
    while batches.has_next():
        one = batches.next_batch()
        assert one is not None
        if not one.validate_crc():
            raise CorruptRecordException("checksum")
        if not one.is_control_batch:
            found += list(one)
    return found


def shown(records: Sequence[Any], offset: int = 0) -> list[tuple[Any, ...]]:
    """Return what is to be compared of records from `offset` on."""
    return [
        (each.offset, each.timestamp, each.key, each.value, tuple(each.headers))
        for each in records
        if each.offset >= offset
    ]


def test_refused_records_are_too_large_for_every_reader() -> None:
    """The value that stands for a bomb is larger than any reader of ours takes."""
    assert max(envelope.MAX_BYTES, otlp.MAX_BYTES) < REFUSED_SIZE


@pytest.mark.parametrize("codec", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 2_000, 40_000])
def test_honest_batches_hold_the_records_they_held(codec: int, size: int) -> None:
    """Of every codec, small or large, from the first record on or from the middle.

    What aiokafka reads is the same.
    """
    draw = random.Random(size)
    values = [draw.randbytes(size // 4) * 4 for _ in range(120)]
    content = batch(values, codec) + batch(
        [b"next", None], base=120, headers=[("h", b"x"), ("n", None)]
    )
    expected = records_of(content)
    for offset in (0, 77, 119):
        safe = make_safe(content, offset, UnpackBudget())
        assert safe.refused == []
        assert shown(records_of(safe.content), offset) == shown(expected, offset)
        careful = make_safe(content, offset, UnpackBudget(), is_careful=True)
        assert shown(records_of(careful.content), offset) == shown(expected, offset)


@pytest.mark.parametrize("kind", list(BOMBS))
def test_a_bomb_becomes_one_record_to_refuse(kind: str) -> None:
    """More than the cap is not unpacked.

    One record of the batch's last offset, and reading goes on behind it.
    """
    codec, pack = BOMBS[kind]
    bomb = raw_batch(pack(bytes(MOST_UNPACKED + 1)), codec, base=3, delta=4, count=1)
    content = batch([b"a", b"b", b"c"]) + bomb + batch([b"after"], base=8)
    assert not is_plain(content, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    safe = make_safe(content, 0, UnpackBudget())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert [(one.offset, one.records) for one in safe.refused] == [(7, 1)]
    records = records_of(safe.content)
    rest = safe.content
    # Unpacking it took all there is for one answer; the rest is fetched again.
    if records[-1].offset == 7:
        rest = make_safe(
            content[len(batch([b"a", b"b", b"c"])) + len(bomb) :], 8, UnpackBudget()
        ).content
        records += records_of(rest)
    assert [one.offset for one in records] == [0, 1, 2, 7, 8]
    assert len(records[3].value) == REFUSED_SIZE
    assert records[4].value == b"after"


@pytest.mark.parametrize("kind", list(BOMBS))
def test_one_huge_record_within_the_cap_is_cut(kind: str) -> None:
    """A record that no reader takes is handed on as one that is refused, not as 60 MB."""
    codec, pack = BOMBS[kind]
    values = [b"before", bytes(60 << 20), b"after"]
    plain = batch(values)
    content = sealed(plain[:21] + struct.pack(">h", codec) + plain[23:61] + pack(plain[61:]))
    records = records_of(make_safe(content, 0, UnpackBudget()).content)
    assert [len(one.value) for one in records] == [6, REFUSED_SIZE, 5]
    assert [one.offset for one in records] == [0, 1, 2]


def test_no_more_is_handed_on_than_may_wait() -> None:
    """Of a large batch a part is handed on, and the rest when it is fetched from there."""
    values = [bytes(200_000)] * 250
    content = batch(values, 4)
    seen: list[int] = []
    rounds = 0
    while len(seen) < len(values):
        offset = seen[-1] + 1 if seen else 0
        safe = make_safe(content, offset, UnpackBudget())
        assert len(safe.content) < MOST_HANDED_ON + (3 << 20)
        seen += [one.offset for one in records_of(safe.content)]
        rounds += 1
    assert seen == list(range(250))
    assert 2 < rounds < 5


def test_many_small_bombs_are_handed_on_a_few_at_a_time() -> None:
    """A thousand batches of a quarter of a megabyte each do not wait in memory together."""
    one = batch([bytes(LEFT_ALONE - 200)], 4)
    content = b"".join(at(base, one) for base in range(1000))
    assert is_plain(at(0, one), 0)
    safe = make_safe(content + batch([bytes(300_000)], 4, base=1000), 0, UnpackBudget())
    assert 0 < len(records_of(safe.content)) <= MOST_HANDED_ON // LEFT_ALONE + 1


@pytest.mark.parametrize(
    "header",
    [
        {"count": -1},
        {"count": 5, "delta": 3},
        {"delta": -1, "count": 0},
        {"base": -5},
        {"delta": -(2**31), "count": 1},
    ],
)
def test_a_header_that_cannot_be_true_is_a_broken_record(header: dict[str, int]) -> None:
    """The records before it are read; at it the consumer finds a wrong checksum."""
    lying = raw_batch(b"\x0e\0\0\0\1\1\0\0", 0, **{"base": 2, **header})
    content = batch([b"a", b"b"]) + lying
    assert not is_plain(content, 0)
    safe = make_safe(content, 0, UnpackBudget())
    assert records_of(safe.content[: len(batch([b"a", b"b"]))])
    with pytest.raises(CorruptRecordException):
        records_of(safe.content)


@pytest.mark.parametrize("codec", [0, 1, 2, 3, 4])
def test_what_compaction_left_of_a_batch_is_no_record(codec: int) -> None:
    """A batch without records, whatever codec it had, is passed by."""
    content = raw_batch(b"", codec, count=0, delta=4) + batch([b"after"], base=5)
    for is_careful in (False, True):
        safe = make_safe(content, 0, UnpackBudget(), is_careful=is_careful)
        assert safe.refused == []
        assert [one.offset for one in records_of(safe.content)] == [5]


def test_a_batch_too_short_for_its_header_is_broken() -> None:
    """The client would read its header beyond it."""
    short = batch([b"a"])[:40]
    short = short[:8] + (len(short) - 12).to_bytes(4, "big") + short[12:]
    for content in (short, batch([b"a"]) + short):
        assert not is_plain(content, 0)
        with pytest.raises(CorruptRecordException):
            records_of(make_safe(content, 0, UnpackBudget()).content)


def test_a_batch_before_what_was_asked_for_is_broken() -> None:
    """Aiokafka would go back to it for ever."""
    with pytest.raises(CorruptRecordException):
        records_of(make_safe(batch([b"a"]), 5, UnpackBudget()).content)


def test_records_that_aiokafka_stumbles_over_are_refused_one_by_one() -> None:
    """A header's name that is no text, or a length of two gigabytes.

    That record is refused, its neighbors are read.
    """
    good = batch([b"a", b"b", b"c"], headers=[("name", b"x")])
    bad = good.replace(b"name", b"n\xffme", 2).replace(b"n\xffme", b"name", 1)
    assert bad != good
    with pytest.raises((CorruptRecordException, UnicodeDecodeError)):
        records_of(sealed(bad))
    records = records_of(make_safe(sealed(bad), 0, UnpackBudget(), is_careful=True).content)
    assert [len(one.value) for one in records] == [1, REFUSED_SIZE, 1]
    two_gigabytes = bytes([0xFE, 0xFF, 0xFF, 0xFF, 0x0F])
    claim = raw_batch(bytes([22, 0, 0, 0, 1]) + two_gigabytes + b"x\0", 0)
    records = records_of(make_safe(claim, 0, UnpackBudget(), is_careful=True).content)
    assert [len(one.value) for one in records] == [REFUSED_SIZE]


@pytest.mark.parametrize("codec", [1, 2, 3])
@pytest.mark.parametrize("magic", [0, 1])
def test_old_messages_are_left_or_refused(codec: int, magic: int) -> None:
    """A wrapper of honest messages stays.

    A bomb, and one that wraps another wrapper, become one record to refuse.
    """
    if (magic, codec) == (0, 3):
        pytest.skip("format v0 has no LZ4")

    def wrapped(value: bytes, offset: int = 0) -> bytes:
        builder = LegacyRecordBatchBuilder(magic, codec, 1 << 30)
        builder.append(offset, timestamp=5, key=None, value=value)
        return bytes(builder.build())

    honest = wrapped(b"honest" * 100_000)
    assert make_safe(honest, 0, UnpackBudget()).content == honest
    bomb = at(4, wrapped(bytes(40 << 20)))
    safe = make_safe(bomb, 0, UnpackBudget())
    assert [(one.offset, len(one.value)) for one in records_of(safe.content)] == [(4, REFUSED_SIZE)]


@pytest.mark.parametrize("kind", list(BOMBS))
@given(data=st.data())
def test_whatever_was_damaged_reading_goes_on(kind: str, data: st.DataObject) -> None:
    """Bytes changed under a right checksum: a careful reading gives records, or names a broken one.

    It never fails.
    """
    codec, pack = BOMBS[kind]
    plain = batch([b"one", b"two" * 50, None], headers=[("name", b"x")])
    is_inside = data.draw(st.booleans())
    records = bytearray(plain[61:])
    if is_inside:
        for _ in range(data.draw(st.integers(1, 4))):
            records[data.draw(st.integers(0, len(records) - 1))] = data.draw(st.integers(0, 255))
    content = bytearray(plain[:21] + struct.pack(">h", codec) + plain[23:61] + pack(bytes(records)))
    if not is_inside:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(21, len(content) - 1))] = data.draw(st.integers(0, 255))
    whole = sealed(bytes(content)) + batch([b"after"], base=1_000)
    is_plain(whole, 0)
    make_safe(whole, 0, UnpackBudget())
    safe = make_safe(whole, 0, UnpackBudget(), is_careful=True)
    try:
        found = records_of(safe.content)
    except CorruptRecordException:
        return
    offsets = [one.offset for one in found]
    assert offsets == sorted(set(offsets))


@given(st.binary(max_size=300))
def test_any_bytes_are_taken(content: bytes) -> None:
    """Nothing that comes in place of batches makes us fail."""
    is_plain(content, 0)
    following_offset(content)
    make_safe(content, 0, UnpackBudget())
    make_safe(content, 0, UnpackBudget(), is_careful=True)


def test_the_offset_behind_a_batch_is_known_from_the_next() -> None:
    """A broken batch is led past as a whole."""
    assert following_offset(batch([b"a"] * 3) + batch([b"b"], base=7)) == 7
    assert following_offset(batch([b"a"] * 3, base=4)) == 7
    assert following_offset(b"") is None
