"""Whose cancellation it is: the present task's own, or that of something it waits for."""

from __future__ import annotations

import ast
import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

import controller
from controller.cancellation import Cancellation, is_cancelled, task_group


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


async def _failing_at_its_end() -> None:
    try:
        await _never()
    finally:
        raise ValueError("what it wrote last was refused")


async def test_a_group_ends_though_one_of_it_fails_as_it_is_cancelled() -> None:
    """`asyncio.TaskGroup` raises the failure alone: who handles that and goes on never ended."""

    async def again_and_again() -> None:
        while True:
            with suppress(ExceptionGroup):
                async with task_group() as tasks:
                    tasks.create_task(_failing_at_its_end())

    running = asyncio.create_task(again_and_again())
    await asyncio.sleep(0.01)
    running.cancel()
    _, unfinished = await asyncio.wait({running}, timeout=1)
    running.cancel()  # else the loop of a failed test would not end
    assert not unfinished
    assert running.cancelled()


async def test_a_group_that_is_not_cancelled_raises_what_failed() -> None:
    """And a deadline around it is told as one."""

    async def failing() -> None:
        async with task_group() as tasks:
            tasks.create_task(_never())
            raise ValueError("of the block")

    with pytest.raises(ExceptionGroup) as raised:
        await failing()
    assert [str(one) for one in raised.value.exceptions] == ["of the block"]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), task_group() as tasks:
            tasks.create_task(_failing_at_its_end())


@pytest.mark.parametrize("others", [0, 2])
async def test_a_failure_after_the_block_is_no_cancellation(others: int) -> None:
    """Parts do nothing in a block but start tasks: one that failed ended its part for good."""

    async def failing() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("it failed")

    async def part() -> None:
        async with task_group() as tasks:
            tasks.create_task(failing())
            tasks.create_task(_never())
            for _ in range(others):
                tasks.create_task(_failing_at_its_end())

    for _ in range(2):
        with pytest.raises(ExceptionGroup) as raised:
            await part()
        assert len(raised.value.exceptions) == 1 + others
        assert not is_cancelled()


async def test_a_group_waits_for_tasks_that_its_tasks_start() -> None:
    """Also where they are started after its block."""
    ended: list[str] = []

    async def second() -> None:
        await asyncio.sleep(0.01)
        ended.append("second")

    async def first(tasks: asyncio.TaskGroup) -> None:
        await asyncio.sleep(0.01)
        tasks.create_task(second())

    async with task_group() as tasks:
        tasks.create_task(first(tasks))
    assert ended == ["second"]


def test_every_group_is_one_that_ends() -> None:
    """A bare TaskGroup loses cancellations."""
    (root,) = controller.__path__
    bare = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in sorted(Path(root).rglob("*.py"))
        if path.name != "cancellation.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and "TaskGroup" in (getattr(node.func, "attr", ""), getattr(node.func, "id", ""))
    ]
    assert bare == []
