"""Reads the settings again on SIGHUP, and applies what can change while the daemon runs.

Belongs here: which settings can change without a restart. That is `log.level` alone: every other
setting is in force in connections, groups or totals, where a change in one replica at a time would
be worse than a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import structlog
from pydantic import BaseModel

from controller.errors import BadInput
from controller.settings import Settings

APPLIED = "log.level"


class SettingsReload:
    """Compares the settings in force with those that are read now."""

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        set_level: Callable[[str], None],
    ) -> None:
        """`read` reads the settings as at the start; it may raise BadInput."""
        self._settings = settings  # as at the start, except for what was applied
        self._read = read
        self._set_level = set_level
        self._task: asyncio.Task[None] | None = None
        self._is_requested = False
        self._logger = structlog.get_logger()

    def begin(self) -> None:
        """Start to reload; once more after the one under way, which may have read older settings.

        Must be called on the event loop.
        """
        self._is_requested = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._reload_as_requested(), name="settings_reload")

    async def _reload_as_requested(self) -> None:
        while self._is_requested:
            self._is_requested = False
            await self.reload()

    async def reload(self) -> None:
        """Read the settings, in a thread because a disk may be slow, and apply `log.level`."""
        try:
            found = await asyncio.to_thread(self._read)
        except BadInput as refused:
            self._logger.warning("settings_not_reloaded", error=str(refused))
            return
        changed = list(changed_settings(self._settings, found))
        if APPLIED in changed:
            self._set_level(found.log.level)
            log = self._settings.log.model_copy(update={"level": found.log.level})
            self._settings = self._settings.model_copy(update={"log": log})
        self._logger.warning(
            "settings_reloaded",
            applied=[name for name in changed if name == APPLIED],
            needs_restart=[name for name in changed if name != APPLIED],
        )


def changed_settings(before: BaseModel, after: BaseModel, within: str = "") -> Iterator[str]:
    """Yield the names of settings that differ, such as `http.port`; no values, which may be secret.

    `within` is the section's place in the settings.
    """
    for name in type(before).model_fields:
        old, new = getattr(before, name), getattr(after, name)
        place = f"{within}.{name}" if within else name
        if isinstance(old, BaseModel) and isinstance(new, BaseModel):
            yield from changed_settings(old, new, place)
        elif old != new:
            yield place
