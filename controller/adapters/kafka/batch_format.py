"""The wire format of record batches: where their numbers are, and how a batch is written.

Belongs here: the layout of format v2, and the little of it that older formats share. Does not
belong here: what is unpacked and what is refused (`record_batches.py`).

Source: Apache Kafka, `DefaultRecordBatch` and `AbstractLegacyRecordBatch`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from aiokafka.record.util import calc_crc32c

#: Larger than any of our readers takes, so that a record of this size is refused as too large. A
#: test compares it with `schemas.otlp.MAX_BYTES`, the largest of them, whose module is slow to
#: import.
REFUSED_SIZE: Final = 1024 * 1024 + 1

LOG_OVERHEAD: Final = 12  # offset and length, which precede every batch of every format
MAGIC: Final = 16  # where the format's number is
#: Base offset, length, leader epoch, format, checksum, attributes, last offset delta, first and
#: largest timestamp, producer id and epoch, first sequence number, count of records.
HEADER: Final = struct.Struct(">qiibIhiqqqhii")
START: Final = struct.Struct(">qi")  # base offset and length
LENGTH: Final = struct.Struct(">i")
CRC_FROM: Final = 21  # the checksum covers everything from here
LEAST_LEGACY: Final = 14  # bytes behind the length in the shortest message of an older format
CODEC_MASK: Final = 0x07  # of the attributes
CONTROL: Final = 0x20  # of the attributes: the end of a transaction


class Unpackable(Exception):
    """A batch that cannot be unpacked, or unpacks to more than the cap; the message says which."""


@dataclass(frozen=True, slots=True)
class RefusedBatch:
    """A batch that was replaced by one record, which our readers refuse."""

    offset: int  # of that record: the batch's last
    records: int  # how many the batch said it has
    why: str


def new_batch(header: tuple[int, ...], delta: int, count: int, records: bytes) -> bytes:
    """Return an uncompressed batch with these encoded records, all else as in `header`.

    `delta` is the last record's offset minus the batch's, `count` how many records there are.
    """
    (
        base,
        _,
        epoch,
        magic,
        _,
        attributes,
        _,
        first_at,
        most_at,
        producer,
        producer_epoch,
        sequence,
        _,
    ) = header
    attributes &= ~CODEC_MASK
    whole = bytearray(
        HEADER.pack(
            base,
            HEADER.size - LOG_OVERHEAD + len(records),
            epoch,
            magic,
            0,
            attributes,
            delta,
            first_at,
            most_at,
            producer,
            producer_epoch,
            sequence,
            count,
        )
    )
    whole += records
    whole[CRC_FROM - 4 : CRC_FROM] = calc_crc32c(bytes(memoryview(whole)[CRC_FROM:])).to_bytes(
        4, "big"
    )
    return bytes(whole)


def unreadable_batch(base: int) -> bytes:
    """Return a batch with a wrong checksum, which the consumer reports as broken."""
    batch = bytearray(
        new_batch((max(base, 0), 0, -1, 2, 0, 0, 0, -1, -1, -1, -1, -1, 0), 0, 0, b"")
    )
    batch[CRC_FROM - 1] ^= 0xFF
    return bytes(batch)


def new_record(timestamp_delta: int, offset_delta: int, key: bytes, value: bytes) -> bytes:
    """Return an encoded record without headers; an empty key means none."""
    return new_record_at(zigzag(timestamp_delta), offset_delta, key, value)


def new_record_at(timestamp: bytes, offset_delta: int, key: bytes, value: bytes) -> bytes:
    """Return the same as `new_record`, for a timestamp that is encoded already."""
    keyed = zigzag(len(key)) + key if key else zigzag(-1)
    body = b"\0" + timestamp + zigzag(offset_delta) + keyed + zigzag(len(value)) + value + zigzag(0)
    return zigzag(len(body)) + body


def filler(content: memoryview) -> bytes:
    """Return a value that readers refuse as too large: the beginning of `content`, padded."""
    return bytes(content[:REFUSED_SIZE]).ljust(REFUSED_SIZE, b"\0")


def varint(content: memoryview, position: int) -> tuple[int, int]:
    """Return a zigzag varint and the position behind it.

    Raises Unpackable when it ends behind `content`, or has more than ten bytes.
    """
    value = shift = 0
    while True:
        if position >= len(content) or shift > 63:
            raise Unpackable("it ends within a number")
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), position
        shift += 7


def zigzag(number: int) -> bytes:
    """Return a number as a zigzag varint."""
    value = (number << 1) ^ (number >> 63)
    encoded = bytearray()
    while value > 0x7F:
        encoded.append((value & 0x7F) | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
