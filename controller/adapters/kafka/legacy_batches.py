"""Message formats v0 and v1, which wrap compressed messages in another message.

They are rare, so a message is checked and not taken apart: aiokafka unpacks it on the event loop.

Source: Apache Kafka, `AbstractLegacyRecordBatch`.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from controller.adapters.kafka.batch_codecs import (
    LZ4,
    NO_CODEC,
    UnpackBudget,
    most_unpacked,
    unpacked,
)
from controller.adapters.kafka.batch_format import (
    CODEC_MASK,
    LENGTH,
    LOG_OVERHEAD,
    MAGIC,
    REFUSED_SIZE,
    START,
    RefusedBatch,
    Unpackable,
    filler,
    new_batch,
    new_record,
)

_MOST_UNPACKED: Final = 16 * 1024 * 1024  # bytes that one message may unpack to


def safe_legacy(
    batch: bytes, base: int, magic: int, budget: UnpackBudget, refused: list[RefusedBatch]
) -> bytes:
    """Return a message as it is, or in its place one record that readers refuse.

    What is refused is added to `refused`.
    """
    codec = batch[MAGIC + 1] & CODEC_MASK
    if not codec or zlib.crc32(memoryview(batch)[MAGIC:]) != int.from_bytes(batch[12:16], "big"):
        budget.handed_on -= len(batch)
        return batch
    payload = memoryview(b"")
    try:
        payload = _wrapped(batch, magic)
        supported = codec if codec < LZ4 or (codec == LZ4 and magic == 1) else NO_CODEC
        content = unpacked(
            supported, payload, min(most_unpacked(codec, payload), _MOST_UNPACKED), budget
        )
        _check_wrapped(content, magic)
    except Unpackable as fault:
        refused.append(RefusedBatch(base, 1, str(fault)))
        budget.handed_on -= REFUSED_SIZE
        header = (base, 0, -1, 2, 0, 0, 0, -1, -1, -1, -1, -1, 1)
        return new_batch(header, 0, 1, new_record(0, 0, b"", filler(payload)))
    budget.handed_on -= len(content)
    return batch


def _body_at(magic: int) -> int:
    """Return where the key begins: behind the attributes, and in v1 a timestamp."""
    return MAGIC + 2 + (8 if magic == 1 else 0)


def _wrapped(batch: bytes, magic: int) -> memoryview:
    """Return the value of a message: the messages that it wraps, compressed."""
    view = memoryview(batch)
    position = _body_at(magic)
    try:
        key_size = LENGTH.unpack_from(view, position)[0]
        position += 4 + max(key_size, 0)
        size = LENGTH.unpack_from(view, position)[0]
    except struct.error:
        raise Unpackable("it ends within its key") from None
    if size < 0 or position + 4 + size > len(view):
        raise Unpackable(f"a value of {size} bytes in a message of {len(view)}")
    return view[position + 4 : position + 4 + size]


def _check_wrapped(content: memoryview, magic: int) -> None:
    """Raise Unpackable unless `content` is whole, uncompressed messages of the same format."""
    position = 0
    least = _body_at(magic) + 8
    while position < len(content):
        if len(content) - position < least:
            raise Unpackable("a message within it is cut")
        length = START.unpack_from(content, position)[1]
        end = position + LOG_OVERHEAD + length
        if end - position < least or end > len(content):
            raise Unpackable(f"a message of {length} bytes within it")
        if content[position + MAGIC] != magic or content[position + MAGIC + 1] & CODEC_MASK:
            raise Unpackable("a message within it is compressed once more, or of another format")
        _check_message(content[position:end], magic)
        position = end
    if position == 0:
        raise Unpackable("it holds no message")


def _check_message(message: memoryview, magic: int) -> None:
    """Raise Unpackable unless a message is as long as its key and value say."""
    position = _body_at(magic)
    for _ in range(2):
        if position + 4 > len(message):
            raise Unpackable("a message within it ends early")
        size = LENGTH.unpack_from(message, position)[0]
        position += 4 + max(size, 0)
    if position != len(message):
        raise Unpackable("a message within it does not add up")
