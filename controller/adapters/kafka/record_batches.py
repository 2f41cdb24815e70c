"""What brokers hand us, made safe before aiokafka unpacks it: bytes in, bytes out.

aiokafka unpacks a whole batch at once, on the event loop and without a limit: one megabyte of
compressed zeros becomes gigabytes. It also trusts what a batch says of itself. So each fetched set
of batches is walked here first.

- A batch that may unpack to much is unpacked under a cap, and handed on uncompressed, in pieces.
- A batch that unpacks to more than the cap, or that cannot be unpacked, becomes one record that
  every reader of ours refuses as too large. Reading goes on behind it.
- A batch whose header cannot be true is replaced by one whose checksum is wrong: a broken record,
  at which the partition stops.

Belongs here: the wire formats of record batches. Does not belong here: which consumer is watched,
and when (`kafka_records.py`).

Source: Apache Kafka, `DefaultRecordBatch` and `AbstractLegacyRecordBatch`; RFC 8878 (Zstandard);
the LZ4 frame format 1.6.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import cramjam
from aiokafka.record.util import calc_crc32c

#: Bytes that one batch may unpack to. Producers make batches of at most some megabytes: the
#: broker's limit of 1 MB holds for what is compressed, and events compress to a tenth or a
#: twentieth. This is three times as much.
MOST_UNPACKED: Final = 64 * 1024 * 1024
#: A batch that cannot unpack to more is left to aiokafka: a quarter of a millisecond on the loop.
LEFT_ALONE: Final = 256 * 1024
#: Unpacked bytes handed on of one answer; what is left is fetched again. Bounds what waits in
#: memory to be counted.
MOST_HANDED_ON: Final = 16 * 1024 * 1024
#: An unpacked batch is handed on in pieces of about this size, because aiokafka copies a whole
#: batch to read one record.
_PIECE: Final = 1024 * 1024
#: Larger than any reader of ours takes, so that a record of this size is refused as too large. A
#: test compares it with `schemas.otlp.MAX_BYTES`, the largest of them, whose module is slow to
#: import.
REFUSED_SIZE: Final = 1024 * 1024 + 1
#: A record larger than this is cut to `REFUSED_SIZE`: it is refused either way, and costs less.
_LARGEST_RECORD: Final = 2 * REFUSED_SIZE
#: Old message formats are rare, and are checked but not taken apart: aiokafka unpacks up to this
#: much on the loop.
_MOST_OF_LEGACY: Final = 16 * 1024 * 1024

_LOG_OVERHEAD: Final = 12  # offset and length, which precede every batch of every format
_MAGIC: Final = 16  # where the format's number is
_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_GLANCE: Final = struct.Struct(
    ">qi4xb4xhi30xi"
)  # base, length, format, attributes, last delta, count
_START: Final = struct.Struct(">qi")
_CRC_FROM: Final = 21
_LENGTH: Final = struct.Struct(">i")
_LEAST_LEGACY: Final = 14
_CODEC_MASK, _LOG_APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_GZIP, _SNAPPY, _LZ4, _ZSTD, _NO_CODEC = 1, 2, 3, 4, 7
_XERIAL: Final = bytes((0x82,)) + b"SNAPPY\0"
_GZIP_RATIO: Final = 1032  # DEFLATE cannot do better
_LEAST_RECORD: Final = 7  # bytes: seven fields of at least one byte


class Unpackable(Exception):
    """A batch that cannot be unpacked, or to more than the cap; the message says which."""


@dataclass(slots=True)
class Budget:
    """What may still be unpacked and handed on of one answer of a broker."""

    unpacked: int = MOST_UNPACKED
    handed_on: int = MOST_HANDED_ON

    @property
    def is_spent(self) -> bool:
        return self.unpacked <= 0 or self.handed_on <= 0


@dataclass(frozen=True, slots=True)
class RefusedBatch:
    """A batch that was replaced by one record to be refused."""

    offset: int  # of that record: the batch's last
    records: int  # that it said it has
    why: str


@dataclass(slots=True)
class MadeSafe:
    """A set of batches that aiokafka may unpack."""

    content: bytes
    refused: list[RefusedBatch] = field(default_factory=list)


def is_plain(content: bytes, offset: int) -> bool:
    """Whether every batch of what was fetched from `offset` on may be left as it is.

    Some microseconds' work.
    """
    # One unpacking per batch and no call: producers that do not batch send a batch with every
    # record.
    unpack, position, size, following = _GLANCE.unpack_from, 0, len(content), 0
    while size - position >= _HEADER.size:
        base, length, magic, attributes, delta, count = unpack(content, position)
        end = position + _LOG_OVERHEAD + length
        if end > size and length > 0:
            return position > 0  # the answer was cut there; aiokafka leaves out such a rest
        if magic != 2 or length < _HEADER.size - _LOG_OVERHEAD or base < following or delta < 0:
            return False
        following = base + delta + 1
        if following <= offset or not 0 <= count <= delta + 1:
            return False
        codec = attributes & _CODEC_MASK
        if codec and not attributes & _CONTROL:
            payload = memoryview(content)[position + _HEADER.size : end]
            if codec > _ZSTD or _most(codec, payload) > LEFT_ALONE:
                return False
        position = end
    # What is left is the beginning of a batch, cut off. One that says it ends here, or that is all
    # there is, is not.
    if (
        size - position >= _LOG_OVERHEAD
        and position + _LOG_OVERHEAD + _START.unpack_from(content, position)[1] <= size
    ):
        return False
    return position > 0


def make_safe(content: bytes, offset: int, budget: Budget, *, is_careful: bool = False) -> MadeSafe:
    """Return what aiokafka may unpack of a set of batches that was fetched from `offset` on.

    May take a second for bombs: call it in a thread. With `is_careful` every record is read as
    well, and one that aiokafka would stumble over is handed on as one to refuse.
    """
    safe = MadeSafe(b"")
    made: list[bytes] = []
    position, size, following = 0, len(content), -1
    while size - position > _MAGIC:
        base, length = _START.unpack_from(content, position)
        end = position + _LOG_OVERHEAD + length
        if end > size and length > 0:
            if not made:
                # The consumer then says that a record is larger than a fetch.
                made.append(content[position:])
            break
        if made and budget.is_spent:
            break
        magic = content[position + _MAGIC]
        if length < _LEAST_LEGACY or magic > 2 or (magic == 2 and end - position < _HEADER.size):
            made.append(_unreadable(max(base, following)))
            break
        batch = content[position:end]
        if magic < 2:
            made.append(_safe_legacy(batch, base, magic, budget, safe))
            following = base + 1
        else:
            delta, count = _HEADER.unpack_from(batch)[6], _HEADER.unpack_from(batch)[12]
            if not _is_plausible(base, delta, count, following) or base + delta < offset:
                made.append(_unreadable(max(base, following, 0)))
                break
            pieces, is_whole = _safe_batch(batch, offset, budget, safe, is_careful)
            made += pieces
            if not is_whole:
                break
            following = base + delta + 1
        position = end
    safe.content = b"".join(made) if made else content
    return safe


def following_offset(content: bytes) -> int | None:
    """Return the offset behind the first batch, as far as can be told from what surrounds it.

    None when it cannot.
    """
    if len(content) < _HEADER.size:
        return None
    base, length = _START.unpack_from(content)
    end = _LOG_OVERHEAD + length
    if length >= _LEAST_LEGACY and len(content) - end > _LOG_OVERHEAD:
        following = int(_START.unpack_from(content, end)[0])
        if base < following < base + (1 << 31):
            return following
    if content[_MAGIC] != 2:
        return None
    delta = int(_HEADER.unpack_from(content)[6])
    return base + delta + 1 if 0 <= delta < 1_000_000 else None


# --- format v2: record batches
# ------------------------------------------------------------------------------------------


def _is_plausible(base: int, delta: int, count: int, following: int) -> bool:
    """Whether a header can be true.

    Compaction leaves fewer records than offsets, and never more.
    """
    return base >= following and base >= 0 and delta >= 0 and 0 <= count <= delta + 1


def _safe_batch(
    batch: bytes, offset: int, budget: Budget, safe: MadeSafe, is_careful: bool
) -> tuple[list[bytes], bool]:
    """Return the batch in a form that may be unpacked, and whether all of it is there."""
    header = _HEADER.unpack_from(batch)
    attributes, delta, count = header[5], header[6], header[12]
    codec = attributes & _CODEC_MASK
    if attributes & _CONTROL:
        return [batch], True
    payload = memoryview(batch)[_HEADER.size :]
    if count == 0 and not payload:
        return [_batch_of(header, delta, 0, b"")], True  # compaction left its header alone
    most = len(payload) if codec == 0 else _most(codec, payload)
    if codec <= _ZSTD and most <= LEFT_ALONE and not is_careful:
        budget.handed_on -= most
        return [batch], True
    if codec == 0 and not is_careful:
        budget.handed_on -= most
        return [batch], True
    if calc_crc32c(batch[_CRC_FROM:]) != header[4]:
        return [batch], True  # the consumer finds it, before it unpacks anything
    try:
        unpacked = (
            payload if codec == 0 else _unpacked(codec, payload, min(most, MOST_UNPACKED), budget)
        )
        if len(unpacked) <= _PIECE and not is_careful:
            budget.handed_on -= len(unpacked)
            return [_batch_of(header, delta, count, bytes(unpacked))], True
        return _in_pieces(header, unpacked, offset, budget, is_careful)
    except Unpackable as fault:
        safe.refused.append(RefusedBatch(header[0] + delta, count, str(fault)))
        budget.handed_on -= REFUSED_SIZE
        return [_batch_of(header, delta, 1, _record(0, delta, b"", _filler(payload)))], True


def _in_pieces(
    header: tuple[int, ...], unpacked: memoryview, offset: int, budget: Budget, is_careful: bool
) -> tuple[list[bytes], bool]:
    """Return unpacked records from `offset` on in batches, and whether these are all."""
    base, delta, count = header[0], header[6], header[12]
    pieces: list[bytes] = []
    piece = bytearray()
    held, last = 0, 0
    for number, (record, record_delta) in enumerate(_records(unpacked, count, delta, is_careful)):
        if base + record_delta < offset:
            continue
        piece += record
        held, last = held + 1, record_delta
        if len(piece) >= _PIECE:
            budget.handed_on -= len(piece)
            is_last = number == count - 1
            pieces.append(_batch_of(header, delta if is_last else last, held, bytes(piece)))
            piece, held = bytearray(), 0
            if budget.is_spent and not is_last:
                return pieces, False
    if piece or not pieces:
        budget.handed_on -= len(piece)
        pieces.append(_batch_of(header, delta, held, bytes(piece)))
    return pieces, True


def _records(
    content: memoryview, count: int, most: int, is_careful: bool
) -> Iterator[tuple[bytes | memoryview, int]]:
    """Yield each record and its offset's distance from the batch's.

    Raises Unpackable where the records do not add up.

    One that is too large for any reader is cut; a careful reading replaces what aiokafka would
    stumble over.
    """
    position, before = 0, -1
    for _ in range(count):
        start = position
        length, position = _varint(content, position)
        end = position + length
        if length < _LEAST_RECORD - 1 or end > len(content):
            raise Unpackable(f"a record of {length} bytes in a batch of {len(content)}")
        # Unused bits: aiokafka reads them as a number of any length.
        is_known = content[position] < 0x80
        _, at = _varint(content, position + 1)
        timestamp = content[position + 1 : at]
        record_delta, at = _varint(content, at)
        if not before < record_delta <= most:
            raise Unpackable(
                f"a record has offset {record_delta} within its batch, after {before} and of {most}"
            )
        before = record_delta
        if (
            length > _LARGEST_RECORD
            or not is_known
            or (is_careful and not _is_sound(content[at:end]))
        ):
            yield (
                _record_of(bytes(timestamp), record_delta, b"", _filler(content[at:end])),
                record_delta,
            )
        else:
            yield content[start:end], record_delta
        position = end
    if position != len(content):
        raise Unpackable(f"{len(content) - position} bytes behind its {count} records")


def _is_sound(rest: memoryview) -> bool:
    """Whether a record's key, value and headers are what they say.

    All in there, and header names are text.
    """
    try:
        position = 0
        for _ in range(2):
            length, position = _varint(rest, position)
            position += max(length, 0)
        count, position = _varint(rest, position)
        if not 0 <= count <= len(rest):
            return False
        for _ in range(count):
            length, position = _varint(rest, position)
            if length < 0 or position + length > len(rest):
                return False
            bytes(rest[position : position + length]).decode()
            length, position = _varint(rest, position + length)
            position += max(length, 0)
    except (Unpackable, UnicodeDecodeError):
        return False
    return position == len(rest)


def _batch_of(header: tuple[int, ...], delta: int, count: int, records: bytes) -> bytes:
    """Return an uncompressed batch with these records, all else as in `header`."""
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
    attributes &= ~_CODEC_MASK
    whole = bytearray(
        _HEADER.pack(
            base,
            _HEADER.size - _LOG_OVERHEAD + len(records),
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
    whole[_CRC_FROM - 4 : _CRC_FROM] = calc_crc32c(bytes(memoryview(whole)[_CRC_FROM:])).to_bytes(
        4, "big"
    )
    return bytes(whole)


def _unreadable(base: int) -> bytes:
    """Return a batch that the consumer finds broken: its checksum is wrong."""
    batch = bytearray(
        _batch_of((max(base, 0), 0, -1, 2, 0, 0, 0, -1, -1, -1, -1, -1, 0), 0, 0, b"")
    )
    batch[_CRC_FROM - 1] ^= 0xFF
    return bytes(batch)


def _record(timestamp_delta: int, offset_delta: int, key: bytes, value: bytes) -> bytes:
    return _record_of(_zigzag(timestamp_delta), offset_delta, key, value)


def _record_of(timestamp: bytes, offset_delta: int, key: bytes, value: bytes) -> bytes:
    """Return a record without headers; an empty key is none."""
    keyed = _zigzag(len(key)) + key if key else _zigzag(-1)
    body = (
        b"\0" + timestamp + _zigzag(offset_delta) + keyed + _zigzag(len(value)) + value + _zigzag(0)
    )
    return _zigzag(len(body)) + body


def _filler(content: memoryview) -> bytes:
    """Return a value that readers refuse as too large: the beginning of what it stands for."""
    return bytes(content[:REFUSED_SIZE]).ljust(REFUSED_SIZE, b"\0")


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    """Return a zigzag varint and the position behind it.

    Raises Unpackable beyond the end or ten bytes.
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


def _zigzag(number: int) -> bytes:
    value = (number << 1) ^ (number >> 63)
    encoded = bytearray()
    while value > 0x7F:
        encoded.append((value & 0x7F) | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


# --- formats v0 and v1: messages that may wrap others
# -----------------------------------------------------------------------


def _safe_legacy(batch: bytes, base: int, magic: int, budget: Budget, safe: MadeSafe) -> bytes:
    """Return a message as it is, or one record to refuse in place of what it wraps."""
    codec = batch[_MAGIC + 1] & _CODEC_MASK
    if not codec or zlib.crc32(memoryview(batch)[_MAGIC:]) != int.from_bytes(batch[12:16], "big"):
        budget.handed_on -= len(batch)
        return batch
    payload = memoryview(b"")
    try:
        payload = _wrapped(batch, magic)
        known = codec if codec < _LZ4 or (codec == _LZ4 and magic == 1) else _NO_CODEC
        unpacked = _unpacked(known, payload, min(_most(codec, payload), _MOST_OF_LEGACY), budget)
        _check_wrapped(unpacked, magic)
    except Unpackable as fault:
        safe.refused.append(RefusedBatch(base, 1, str(fault)))
        budget.handed_on -= REFUSED_SIZE
        header = (base, 0, -1, 2, 0, 0, 0, -1, -1, -1, -1, -1, 1)
        return _batch_of(header, 0, 1, _record(0, 0, b"", _filler(payload)))
    budget.handed_on -= len(unpacked)
    return batch


def _wrapped(batch: bytes, magic: int) -> memoryview:
    """Return the value of a message, which holds what it wraps."""
    view = memoryview(batch)
    position = _MAGIC + 2 + (8 if magic == 1 else 0)
    try:
        key_size = _LENGTH.unpack_from(view, position)[0]
        position += 4 + max(key_size, 0)
        size = _LENGTH.unpack_from(view, position)[0]
    except struct.error:
        raise Unpackable("it ends within its key") from None
    if size < 0 or position + 4 + size > len(view):
        raise Unpackable(f"a value of {size} bytes in a message of {len(view)}")
    return view[position + 4 : position + 4 + size]


def _check_wrapped(content: memoryview, magic: int) -> None:
    """Raise Unpackable unless `content` is whole, uncompressed messages of the same format."""
    position = 0
    least = _MAGIC + 2 + (8 if magic == 1 else 0) + 8
    while position < len(content):
        if len(content) - position < least:
            raise Unpackable("a message within it is cut")
        length = _START.unpack_from(content, position)[1]
        end = position + _LOG_OVERHEAD + length
        if end - position < least or end > len(content):
            raise Unpackable(f"a message of {length} bytes within it")
        if content[position + _MAGIC] != magic or content[position + _MAGIC + 1] & _CODEC_MASK:
            raise Unpackable("a message within it is compressed once more, or of another format")
        _wrapped_value(content[position:end], magic)
        position = end
    if position == 0:
        raise Unpackable("nothing is in it")


def _wrapped_value(message: memoryview, magic: int) -> None:
    position = _MAGIC + 2 + (8 if magic == 1 else 0)
    for _ in range(2):
        if position + 4 > len(message):
            raise Unpackable("a message within it ends early")
        size = _LENGTH.unpack_from(message, position)[0]
        position += 4 + max(size, 0)
    if position != len(message):
        raise Unpackable("a message within it does not add up")


# --- how much a codec's bytes unpack to, and unpacking under a cap
# -----------------------------------------------------------


def _most(codec: int, payload: memoryview) -> int:
    """Return how many bytes this cannot unpack to more than.

    For what is not of the codec's form, any number.
    """
    try:
        if codec == _GZIP:
            return _GZIP_RATIO * len(payload)
        if codec == _SNAPPY:
            return sum(size for size, _ in _snappy_blocks(payload))
        if codec == _LZ4:
            return _most_of_lz4(payload)
        if codec == _ZSTD:
            return _most_of_zstd(payload)
    except (Unpackable, IndexError, struct.error):
        pass
    return MOST_UNPACKED + 1


def _snappy_blocks(payload: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield (bytes unpacked, block) of raw snappy, or of Java's stream of such blocks."""
    if bytes(payload[:8]) != _XERIAL:
        yield _snappy_size(payload), payload
        return
    position = 16
    while position < len(payload):
        length = _LENGTH.unpack_from(payload, position)[0]
        position += 4
        if length <= 0 or position + length > len(payload):
            raise Unpackable(f"a snappy block of {length} bytes")
        block = payload[position : position + length]
        yield _snappy_size(block), block
        position += length


def _snappy_size(block: memoryview) -> int:
    size = shift = 0
    for byte in block[:5]:
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            return size
        shift += 7
    raise Unpackable("no size in a snappy block")


#: First words of frames that hold none of the content: the same in LZ4 and Zstandard.
_SKIPPED_FRAMES: Final = range(0x184D2A50, 0x184D2A60)


def _most_of_lz4(payload: memoryview) -> int:
    """Walk the blocks of LZ4 frames.

    Each unpacks to at most the size that its frame names, and to 255 times its own.
    """
    position, most = 0, 0
    while position < len(payload):
        magic = int.from_bytes(payload[position : position + 4], "little")
        if magic in _SKIPPED_FRAMES:
            position += 8 + int.from_bytes(payload[position + 4 : position + 8], "little")
            continue
        if magic != 0x184D2204:
            raise Unpackable("no LZ4 frame")
        flags, descriptor = payload[position + 4], payload[position + 5]
        largest = {4: 64 << 10, 5: 256 << 10, 6: 1 << 20, 7: 4 << 20}.get(descriptor >> 4 & 7)
        if largest is None:
            raise Unpackable("no block size in an LZ4 frame")
        position += 7 + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0)
        while True:
            size = int.from_bytes(payload[position : position + 4], "little")
            position += 4
            if size == 0:
                break
            if position > len(payload):
                raise Unpackable("an LZ4 frame is cut")
            size &= 0x7FFFFFFF
            most += min(largest, 255 * size)
            position += size + (4 if flags & 0x10 else 0)
        position += 4 if flags & 0x04 else 0
    return most


def _most_of_zstd(payload: memoryview) -> int:
    """Walk the blocks of Zstandard frames.

    Each unpacks to at most 128 KB, also one of four bytes that repeats a byte.
    """
    position, most = 0, 0
    while position < len(payload):
        magic = int.from_bytes(payload[position : position + 4], "little")
        if magic in _SKIPPED_FRAMES:
            position += 8 + int.from_bytes(payload[position + 4 : position + 8], "little")
            continue
        if magic != 0xFD2FB528:
            raise Unpackable("no Zstandard frame")
        descriptor = payload[position + 4]
        is_single = bool(descriptor & 0x20)
        content_field = (1 if is_single else 0, 2, 4, 8)[descriptor >> 6]
        position += 5 + (0 if is_single else 1) + (0, 1, 2, 4)[descriptor & 3] + content_field
        while True:
            block = int.from_bytes(payload[position : position + 3], "little")
            if position + 3 > len(payload):
                raise Unpackable("a Zstandard frame is cut")
            kind, size = block >> 1 & 3, block >> 3
            position += 3 + (1 if kind == 1 else size)
            most += size if kind < 2 else 128 << 10
            if block & 1:
                break
        position += 4 if descriptor & 0x04 else 0
    return most


def _unpacked(codec: int, payload: memoryview, most: int, budget: Budget) -> memoryview:
    """Return what was compressed, at most `most` bytes.

    Raises Unpackable when it is more, or is not of the codec's form.
    """
    try:
        unpacked = _unpack(codec, payload, most)
    except Unpackable:
        budget.unpacked -= most
        raise
    except (cramjam.DecompressionError, zlib.error, ValueError, OSError) as error:
        budget.unpacked -= most
        why = (
            f"it unpacks to more than {most} bytes"
            if "whole buffer" in str(error)
            else f"it cannot be unpacked: {error}"
        )
        raise Unpackable(why) from None
    budget.unpacked -= len(unpacked)
    return unpacked


def _unpack(codec: int, payload: memoryview, most: int) -> memoryview:
    if codec == _GZIP:
        return _gunzip(payload, most)
    if codec == _SNAPPY:
        return _unsnap(payload, most)
    if codec not in (_LZ4, _ZSTD):
        raise Unpackable(f"codec {codec}, which its format does not have")
    into = _room(most)
    unpack = cramjam.lz4.decompress_into if codec == _LZ4 else cramjam.zstd.decompress_into
    return into[: unpack(bytes(payload), into)]


def _room(size: int) -> memoryview:
    """Return as many bytes to write to, of which those that are not written take no memory.

    A bytearray would be filled with zeros, and the event loop would wait for that: Python does it
    under its lock.
    """
    return memoryview(bytearray(size) if size <= _PIECE else mmap.mmap(-1, size))


def _gunzip(payload: memoryview, most: int) -> memoryview:
    """Return what gzip members hold, one behind the other."""
    into = _room(most)
    size = 0
    left = bytes(payload)
    while left:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            piece = member.decompress(left, min(_PIECE, most + 1 - size))
            if size + len(piece) > most:
                raise Unpackable(f"it unpacks to more than {most} bytes")
            into[size : size + len(piece)] = piece
            size += len(piece)
            left = member.unconsumed_tail
            if not left:
                break
        if not member.eof:
            raise Unpackable("a gzip member is cut")
        left = member.unused_data.lstrip(b"\0")  # padding is allowed
    return into[:size]


def _unsnap(payload: memoryview, most: int) -> memoryview:
    blocks = list(_snappy_blocks(payload))
    if sum(size for size, _ in blocks) > most:
        raise Unpackable(f"it unpacks to more than {most} bytes")
    into = _room(sum(size for size, _ in blocks))
    position = 0
    for size, block in blocks:
        if size:
            position += cramjam.snappy.decompress_raw_into(
                bytes(block), into[position : position + size]
            )
    return into[:position]
