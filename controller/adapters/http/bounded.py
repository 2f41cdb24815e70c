"""Reading the answer of a server that is not trusted: never more than a given number of bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import httpx

#: Chunks read between two turns of the loop. A server may send chunks of one byte, and parsing that
#: many takes about 20 ms.
CHUNKS_PER_TURN: Final = 64


class AnswerRefused(ValueError):
    """The answer is too long, or is sent in a way that was not requested."""


class AnswerTooLong(AnswerRefused):
    """The answer has more bytes than are read."""


async def read_bounded(
    chunks: AsyncIterable[bytes],
    max_bytes: int,
    *,
    check: Callable[[bytes], None] = lambda _chunk: None,
) -> bytes:
    """Return all chunks together, while the loop gets its turns.

    `check` sees each chunk and may raise. Raises AnswerTooLong beyond `max_bytes`, and whatever
    `chunks` and `check` raise.
    """
    body = bytearray()
    count = 0
    async for chunk in chunks:
        body += chunk
        if len(body) > max_bytes:
            raise AnswerTooLong(f"the answer is longer than {max_bytes} bytes")
        check(chunk)
        count += 1
        if count % CHUNKS_PER_TURN == 0:
            await asyncio.sleep(0)
    return bytes(body)


def check_not_packed(content_encoding: str) -> None:
    """Raise AnswerRefused for a compressed answer: unpacked it could be of any size."""
    if content_encoding.strip().lower() not in ("", "identity"):
        raise AnswerRefused("a compressed answer, which was not requested")


async def read_answer(response: httpx.Response, max_bytes: int) -> bytes:
    """Return the body of a streamed response and close it.

    Raises AnswerRefused for a body that is too long or packed, and httpx's errors.
    """
    try:
        check_not_packed(response.headers.get("content-encoding", ""))
        return await read_bounded(response.aiter_raw(), max_bytes)
    finally:
        await response.aclose()
