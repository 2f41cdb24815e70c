"""The codecs of record batches: how much a batch may unpack to, and unpacking it under a cap.

Belongs here: gzip, snappy, LZ4 and Zstandard. Does not belong here: what a batch holds
(`record_batches.py`, `legacy_batches.py`).

Source: RFC 8878 (Zstandard); the LZ4 frame format 1.6; RFC 1951 (DEFLATE).
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import cramjam

from controller.adapters.kafka.batch_format import LENGTH, Unpackable

#: Bytes that one batch may unpack to. Producers make batches of at most some megabytes: the
#: broker's limit of 1 MB holds for what is compressed, and events compress to a tenth or a
#: twentieth. This is three times as much.
MOST_UNPACKED: Final = 64 * 1024 * 1024
#: Unpacked bytes handed on of one answer; what is left is fetched again. Bounds what waits in
#: memory to be counted.
MOST_HANDED_ON: Final = 16 * 1024 * 1024
#: An unpacked batch is handed on in pieces of about this size, because aiokafka copies a whole
#: batch to read one record.
PIECE: Final = 1024 * 1024

GZIP, SNAPPY, LZ4, ZSTD, NO_CODEC = 1, 2, 3, 4, 7
#: The last one that aiokafka unpacks. What has a later one is unpacked here, or refused.
LAST_OF_CLIENT: Final = ZSTD
_XERIAL: Final = bytes((0x82,)) + b"SNAPPY\0"
_GZIP_RATIO: Final = 1032  # DEFLATE cannot do better


@dataclass(slots=True)
class UnpackBudget:
    """How much of one answer of a broker may still be unpacked and handed on, in bytes."""

    unpacked: int = MOST_UNPACKED
    handed_on: int = MOST_HANDED_ON

    @property
    def is_spent(self) -> bool:
        return self.unpacked <= 0 or self.handed_on <= 0


def most_unpacked(codec: int, payload: memoryview) -> int:
    """Return an upper bound for the bytes that a payload unpacks to.

    For a payload that is not in the codec's form it is more than `MOST_UNPACKED`.
    """
    try:
        if codec == GZIP:
            return _GZIP_RATIO * len(payload)
        if codec == SNAPPY:
            return sum(size for size, _ in _snappy_blocks(payload))
        if codec == LZ4:
            return _most_of_lz4(payload)
        if codec == ZSTD:
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
        length = LENGTH.unpack_from(payload, position)[0]
        position += 4
        if length <= 0 or position + length > len(payload):
            raise Unpackable(f"a snappy block of {length} bytes")
        block = payload[position : position + length]
        yield _snappy_size(block), block
        position += length


def _snappy_size(block: memoryview) -> int:
    """Return how many bytes a raw snappy block unpacks to, as it says itself."""
    size = shift = 0
    for byte in block[:5]:
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            return size
        shift += 7
    raise Unpackable("no size in a snappy block")


#: First words of frames without content: the same in LZ4 and Zstandard.
_SKIPPED_FRAMES: Final = range(0x184D2A50, 0x184D2A60)


def _most_of_lz4(payload: memoryview) -> int:
    """Return the sum of the largest sizes of all blocks of LZ4 frames.

    A block unpacks to at most the size that its frame names, and to at most 255 times its own.
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
    """Return the sum of the largest sizes of all blocks of Zstandard frames.

    A block unpacks to at most 128 KB, even one of four bytes that repeats a byte.
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


def unpacked(codec: int, payload: memoryview, most: int, budget: UnpackBudget) -> memoryview:
    """Return what a payload unpacks to, at most `most` bytes.

    Raises Unpackable when it is more, or when the payload is not in the codec's form.
    """
    try:
        content = _unpack(codec, payload, most)
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
    budget.unpacked -= len(content)
    return content


def _unpack(codec: int, payload: memoryview, most: int) -> memoryview:
    if codec == GZIP:
        return _gunzip(payload, most)
    if codec == SNAPPY:
        return _unsnap(payload, most)
    if codec not in (LZ4, ZSTD):
        raise Unpackable(f"codec {codec}, which its format does not have")
    into = _room(most)
    unpack = cramjam.lz4.decompress_into if codec == LZ4 else cramjam.zstd.decompress_into
    return into[: unpack(bytes(payload), into)]


def _room(size: int) -> memoryview:
    """Return a buffer of `size` bytes; bytes of a large one that are never written take no memory.

    A bytearray would be filled with zeros. Python does that under its lock, and the event loop
    would wait for it.
    """
    return memoryview(bytearray(size) if size <= PIECE else mmap.mmap(-1, size))


def _gunzip(payload: memoryview, most: int) -> memoryview:
    """Return the content of gzip members, joined."""
    into = _room(most)
    size = 0
    rest = bytes(payload)
    while rest:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            piece = member.decompress(rest, min(PIECE, most + 1 - size))
            if size + len(piece) > most:
                raise Unpackable(f"it unpacks to more than {most} bytes")
            into[size : size + len(piece)] = piece
            size += len(piece)
            rest = member.unconsumed_tail
            if not rest:
                break
        if not member.eof:
            raise Unpackable("a gzip member is cut")
        rest = member.unused_data.lstrip(b"\0")  # padding is allowed
    return into[:size]


def _unsnap(payload: memoryview, most: int) -> memoryview:
    """Return the content of snappy blocks, joined."""
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
