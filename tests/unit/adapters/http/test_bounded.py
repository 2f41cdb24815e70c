"""Answers of servers that are not trusted are read within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from controller.adapters.http.bounded import AnswerRefused, read_answer, read_bounded


async def pieces(count: int, size: int = 1) -> AsyncIterator[bytes]:
    """Send chunks without ever waiting, as a fast server seems to."""
    for _ in range(count):
        yield b"x" * size


async def test_the_longest_allowed_answer_is_read_and_no_longer_one() -> None:
    """The bound is exact, whatever the chunks are."""
    assert await read_bounded(pieces(10), 10) == b"x" * 10
    with pytest.raises(AnswerRefused, match="longer than 10 bytes"):
        await read_bounded(pieces(2, 6), 10)


async def test_the_loop_goes_on_while_an_answer_comes_in_tiny_chunks() -> None:
    """Other tasks get turns before a long answer is read."""
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(count_turns())
    await read_bounded(pieces(6_400), 10_000)
    task.cancel()
    assert turns >= 100


async def test_a_check_may_end_the_reading() -> None:
    """What the caller's check raises ends it at that chunk."""

    def refuse(chunk: bytes) -> None:
        raise AnswerRefused("not this")

    with pytest.raises(AnswerRefused, match="not this"):
        await read_bounded(pieces(3), 10, check=refuse)


@pytest.mark.parametrize("encoding", ["gzip", "br", " Deflate "])
async def test_a_compressed_answer_is_refused_and_closed(encoding: str) -> None:
    """Nothing is unpacked, and the response is closed all the same."""
    response = httpx.Response(200, headers={"content-encoding": encoding}, stream=_Stream())
    with pytest.raises(AnswerRefused, match="compressed"):
        await read_answer(response, 100)
    assert response.is_closed
    plain = httpx.Response(200, stream=_Stream())
    assert await read_answer(plain, 100) == b"body"
    assert plain.is_closed


class _Stream(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"body"
