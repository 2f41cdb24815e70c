"""The tasks that counting runs beside its round: loads, saves, refusals, requests for log ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class BackgroundTasks:
    """Tasks of one task group, which ends when the last of them does."""

    def __init__(self) -> None:
        """Start without a group."""
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def have_begun(self) -> bool:
        """Whether there is, or was, a group."""
        return self._group is not None

    def begin(self, group: asyncio.TaskGroup) -> None:
        """Start tasks in `group` from now on; those of an earlier group have ended."""
        self._group = group
        self._tasks.clear()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work` as a task called `name`."""
        assert self._group is not None
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in self._tasks:
            task.cancel()
