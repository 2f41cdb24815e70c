"""Makes fetched record batches safe before aiokafka unpacks them: bytes in, bytes out.

aiokafka unpacks a whole batch at once, on the event loop and without a limit: one megabyte of
compressed zeros becomes gigabytes. It also believes what a batch says of itself. So each fetched
set of batches is checked here first.

- A batch that may unpack to much is unpacked under a cap, and handed on uncompressed, in pieces;
  for the native fold every compressed batch is (`left_alone`).
- A batch that unpacks to more than the cap, or that cannot be unpacked, becomes one record that
  each of our readers refuses as too large. Reading goes on behind it.
- A batch whose header cannot be true is replaced by one whose checksum is wrong: a broken record,
  at which the partition stops.

Belongs here: sets of batches, and format v2. Does not belong here: codecs (`batch_codecs.py`), how
a batch is laid out (`batch_format.py`), older formats (`legacy_batches.py`), which consumer is
guarded and when (`fetch_guard.py`).

Source: Apache Kafka, `DefaultRecordBatch`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from aiokafka.record.util import calc_crc32c

from controller.adapters.kafka.batch_codecs import (
    LAST_OF_CLIENT,
    MOST_HANDED_ON,
    MOST_UNPACKED,
    PIECE,
    UnpackBudget,
    most_unpacked,
    unpacked,
)
from controller.adapters.kafka.batch_format import (
    CODEC_MASK,
    CONTROL,
    CRC_FROM,
    HEADER,
    LEAST_LEGACY,
    LOG_OVERHEAD,
    MAGIC,
    REFUSED_SIZE,
    START,
    RefusedBatch,
    Unpackable,
    filler,
    new_batch,
    new_record,
    new_record_at,
    unreadable_batch,
    varint,
)
from controller.adapters.kafka.legacy_batches import safe_legacy

__all__ = [
    "LEFT_ALONE",
    "MOST_HANDED_ON",
    "MOST_UNPACKED",
    "REFUSED_SIZE",
    "MadeSafe",
    "RefusedBatch",
    "UnpackBudget",
    "Unpackable",
    "following_offset",
    "is_plain",
    "make_safe",
]

#: A batch that cannot unpack to more is left to aiokafka: a quarter of a millisecond on the loop.
LEFT_ALONE: Final = 256 * 1024
#: A record larger than this is cut to `REFUSED_SIZE`: it is refused either way, and costs less.
_LARGEST_RECORD: Final = 2 * REFUSED_SIZE
_LEAST_RECORD: Final = 7  # bytes: seven fields of at least one byte
#: Base offset, length, format, attributes, last offset delta and count of a header.
_GLANCE: Final = struct.Struct(">qi4xb4xhi30xi")


@dataclass(slots=True)
class MadeSafe:
    """A set of batches that aiokafka may unpack, and the batches that were refused."""

    content: bytes
    refused: list[RefusedBatch] = field(default_factory=list)


def is_plain(content: bytes, offset: int, left_alone: int = LEFT_ALONE) -> bool:
    """Return whether every batch that was fetched from `offset` on may be left as it is.

    Compressed ones may where they cannot unpack to more than `left_alone` bytes. It takes some
    microseconds.
    """
    # One unpacking per batch and no call, because a producer that does not batch sends one batch
    # with every record.
    unpack, position, size, following = _GLANCE.unpack_from, 0, len(content), 0
    while size - position >= HEADER.size:
        base, length, magic, attributes, delta, count = unpack(content, position)
        end = position + LOG_OVERHEAD + length
        if end > size and length > 0:
            return position > 0  # the answer was cut there; aiokafka leaves out the cut batch
        if magic != 2 or length < HEADER.size - LOG_OVERHEAD or base < following or delta < 0:
            return False
        following = base + delta + 1
        if following <= offset or not 0 <= count <= delta + 1:
            return False
        codec = attributes & CODEC_MASK
        if codec and not attributes & CONTROL:
            payload = memoryview(content)[position + HEADER.size : end]
            if codec > LAST_OF_CLIENT or most_unpacked(codec, payload) > left_alone:
                return False
        position = end
    # The rest is the beginning of a batch that was cut off. A batch is not cut off when it says
    # that it ends here, or when it is all there is.
    if (
        size - position >= LOG_OVERHEAD
        and position + LOG_OVERHEAD + START.unpack_from(content, position)[1] <= size
    ):
        return False
    return position > 0


def make_safe(
    content: bytes,
    offset: int,
    budget: UnpackBudget,
    *,
    is_careful: bool = False,
    left_alone: int = LEFT_ALONE,
) -> MadeSafe:
    """Return what aiokafka may unpack of a set of batches that was fetched from `offset` on.

    It may take a second for a decompression bomb: call it in a thread. With `is_careful` every
    record is checked, too, and one that aiokafka cannot read is replaced by one that our readers
    refuse. A compressed batch that cannot unpack to more than `left_alone` bytes is left as it is.
    """
    safe = MadeSafe(b"")
    batches: list[bytes] = []
    position, size, following = 0, len(content), -1
    while size - position > MAGIC:
        base, length = START.unpack_from(content, position)
        end = position + LOG_OVERHEAD + length
        if end > size and length > 0:
            if not batches:
                # The consumer then says that a record is larger than a fetch.
                batches.append(content[position:])
            break
        if batches and budget.is_spent:
            break
        magic = content[position + MAGIC]
        if length < LEAST_LEGACY or magic > 2 or (magic == 2 and end - position < HEADER.size):
            batches.append(unreadable_batch(max(base, following)))
            break
        batch = content[position:end]
        if magic < 2:
            batches.append(safe_legacy(batch, base, magic, budget, safe.refused))
            following = base + 1
        else:
            delta, count = HEADER.unpack_from(batch)[6], HEADER.unpack_from(batch)[12]
            if not _is_plausible(base, delta, count, following) or base + delta < offset:
                batches.append(unreadable_batch(max(base, following, 0)))
                break
            pieces, is_whole = _safe_batch(
                batch, offset, budget, safe.refused, is_careful, left_alone
            )
            batches += pieces
            if not is_whole:
                break
            following = base + delta + 1
        position = end
    safe.content = b"".join(batches) if batches else content
    return safe


def following_offset(content: bytes) -> int | None:
    """Return the offset behind the first batch, None when its surroundings do not show it."""
    if len(content) < HEADER.size:
        return None
    base, length = START.unpack_from(content)
    end = LOG_OVERHEAD + length
    if length >= LEAST_LEGACY and len(content) - end > LOG_OVERHEAD:
        following = int(START.unpack_from(content, end)[0])
        if base < following < base + (1 << 31):
            return following
    if content[MAGIC] != 2:
        return None
    delta = int(HEADER.unpack_from(content)[6])
    return base + delta + 1 if 0 <= delta < 1_000_000 else None


# --- format v2: record batches ---


def _is_plausible(base: int, delta: int, count: int, following: int) -> bool:
    """Return whether a header can be true.

    Compaction leaves fewer records than offsets, and never more.
    """
    return base >= following and base >= 0 and delta >= 0 and 0 <= count <= delta + 1


def _safe_batch(
    batch: bytes,
    offset: int,
    budget: UnpackBudget,
    refused: list[RefusedBatch],
    is_careful: bool,
    left_alone: int,
) -> tuple[list[bytes], bool]:
    """Return the batch in a form that may be unpacked, and whether it is complete.

    What is refused is added to `refused`.
    """
    header = HEADER.unpack_from(batch)
    attributes, delta, count = header[5], header[6], header[12]
    codec = attributes & CODEC_MASK
    if attributes & CONTROL:
        return [batch], True
    payload = memoryview(batch)[HEADER.size :]
    if count == 0 and not payload:
        return [new_batch(header, delta, 0, b"")], True  # compaction left its header alone
    most = len(payload) if codec == 0 else most_unpacked(codec, payload)
    if codec <= LAST_OF_CLIENT and most <= left_alone and not is_careful:
        budget.handed_on -= most
        return [batch], True
    if codec == 0 and not is_careful:
        budget.handed_on -= most
        return [batch], True
    if calc_crc32c(batch[CRC_FROM:]) != header[4]:
        return [batch], True  # the consumer reports it before it unpacks anything
    try:
        content = (
            payload if codec == 0 else unpacked(codec, payload, min(most, MOST_UNPACKED), budget)
        )
        if len(content) <= PIECE and not is_careful:
            budget.handed_on -= len(content)
            return [new_batch(header, delta, count, bytes(content))], True
        return _in_pieces(header, content, offset, budget, is_careful)
    except Unpackable as fault:
        refused.append(RefusedBatch(header[0] + delta, count, str(fault)))
        budget.handed_on -= REFUSED_SIZE
        return [new_batch(header, delta, 1, new_record(0, delta, b"", filler(payload)))], True


def _in_pieces(
    header: tuple[int, ...],
    content: memoryview,
    offset: int,
    budget: UnpackBudget,
    is_careful: bool,
) -> tuple[list[bytes], bool]:
    """Return unpacked records from `offset` on in several batches, and whether these are all."""
    base, delta, count = header[0], header[6], header[12]
    pieces: list[bytes] = []
    piece = bytearray()
    held, last = 0, 0
    for number, (record, record_delta) in enumerate(_records(content, count, delta, is_careful)):
        if base + record_delta < offset:
            continue
        piece += record
        held, last = held + 1, record_delta
        if len(piece) >= PIECE:
            budget.handed_on -= len(piece)
            is_last = number == count - 1
            pieces.append(new_batch(header, delta if is_last else last, held, bytes(piece)))
            piece, held = bytearray(), 0
            if budget.is_spent and not is_last:
                return pieces, False
    if piece or not pieces:
        budget.handed_on -= len(piece)
        pieces.append(new_batch(header, delta, held, bytes(piece)))
    return pieces, True


def _records(
    content: memoryview, count: int, most: int, is_careful: bool
) -> Iterator[tuple[bytes | memoryview, int]]:
    """Yield each record and its offset minus the batch's, which is at most `most`.

    A record that is too large for every reader is cut. With `is_careful`, one that aiokafka cannot
    read is replaced. Raises Unpackable where the records do not add up.
    """
    position, before = 0, -1
    for _ in range(count):
        start = position
        length, position = varint(content, position)
        end = position + length
        if length < _LEAST_RECORD - 1 or end > len(content):
            raise Unpackable(f"a record of {length} bytes in a batch of {len(content)}")
        # The attributes are unused bits, which aiokafka reads as a number of any length.
        has_plain_attributes = content[position] < 0x80
        _, at = varint(content, position + 1)
        timestamp = content[position + 1 : at]
        record_delta, at = varint(content, at)
        if not before < record_delta <= most:
            raise Unpackable(
                f"a record has offset {record_delta} within its batch, after {before} and of {most}"
            )
        before = record_delta
        if (
            length > _LARGEST_RECORD
            or not has_plain_attributes
            or (is_careful and not _is_sound(content[at:end]))
        ):
            yield (
                new_record_at(bytes(timestamp), record_delta, b"", filler(content[at:end])),
                record_delta,
            )
        else:
            yield content[start:end], record_delta
        position = end
    if position != len(content):
        raise Unpackable(f"{len(content) - position} bytes behind its {count} records")


def _is_sound(rest: memoryview) -> bool:
    """Return whether a record's key, value and headers are complete, and header names are text."""
    try:
        position = 0
        for _ in range(2):
            length, position = varint(rest, position)
            position += max(length, 0)
        count, position = varint(rest, position)
        if not 0 <= count <= len(rest):
            return False
        for _ in range(count):
            length, position = varint(rest, position)
            if length < 0 or position + length > len(rest):
                return False
            bytes(rest[position : position + length]).decode()
            length, position = varint(rest, position + length)
            position += max(length, 0)
    except (Unpackable, UnicodeDecodeError):
        return False
    return position == len(rest)
