"""Whose cancellation it is: the present task's own, or that of something it waits for."""

from __future__ import annotations

import asyncio

import pytest

from controller.cancellation import Cancellation, is_cancelled


async def _never() -> None:
    await asyncio.Event().wait()


async def test_what_is_waited_for_was_cancelled_and_we_were_not() -> None:
    """As a worker that is stopped, or a task of a client of its own."""
    other = asyncio.create_task(_never())
    await asyncio.sleep(0)
    cancellation = Cancellation()
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other
    assert (is_cancelled(), cancellation.has_come) == (False, False)


async def test_our_own_cancellation_is_known_also_where_it_was_swallowed() -> None:
    """Its error is gone; that the task is to end is not. One from before is not counted again."""
    seen: list[tuple[bool, bool]] = []

    async def swallowing() -> None:
        for _ in range(2):
            cancellation = Cancellation()
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                seen.append((is_cancelled(), cancellation.has_come))
        later = Cancellation()
        seen.append((is_cancelled(), later.has_come))

    task = asyncio.create_task(swallowing())
    await asyncio.sleep(0)
    task.cancel()
    await task
    assert seen == [(True, True), (True, False)]
