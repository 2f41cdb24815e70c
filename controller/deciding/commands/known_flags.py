"""Lists the flags that may have a rollout, without asking the store for each."""

from __future__ import annotations

from controller.deciding.commands.command_partition import OpenCommands
from controller.deciding.registry import RolloutRegistry
from controller.deciding.worker_pool import WorkerPool
from controller.ports import Clock, Rollouts


class KnownFlags:
    """Decides which commands are of flags that exist: those are handled first."""

    def __init__(
        self,
        pool: WorkerPool,
        commands: OpenCommands,
        registry: RolloutRegistry,
        rollouts: Rollouts,
        clock: Clock,
    ) -> None:
        self._pool = pool
        self._commands = commands
        self._registry = registry
        self._rollouts = rollouts
        self._clock = clock
        self._registered: frozenset[str] = frozenset()
        self._stored: frozenset[str] = frozenset()  # as of `_stored_at`
        self._stored_at = float("-inf")  # monotonic seconds

    @property
    def version(self) -> int:
        """A number that grows whenever `refresh` would give other flags."""
        return self._registry.flags_version

    def has(self, flag_key: str) -> bool:
        """Return whether a flag may have a rollout, or was retired: its answers are kept."""
        return (
            flag_key in self._pool
            or flag_key in self._registered
            or flag_key in self._stored
            or self._registry.retired_revision(flag_key) is not None
            or self._commands[flag_key] > 0
        )

    def refresh(self) -> list[str]:
        """Read the registry again; return every flag in it, in order."""
        flag_keys = list(self._registry.flag_keys)
        self._registered = frozenset(flag_keys)
        return flag_keys

    async def refresh_stored(self, since: float) -> None:
        """Read which flags Redis has, unless that was done after `since`, monotonic seconds.

        Raises StoreUnavailable.
        """
        if self._stored_at <= since:
            began = self._clock.monotonic()
            self._stored = frozenset(await self._rollouts.flag_keys())
            self._stored_at = began

    def clear(self) -> None:
        """Forget what Redis has."""
        self._stored, self._stored_at = frozenset(), float("-inf")
