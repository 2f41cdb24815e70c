"""Remembers whether the store serves one flag: since when it does not, and why.

While Redis takes or gives nothing for a flag, nothing is decided about it: it stays where it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from controller.deciding.dependencies import WorkerDependencies
from controller.errors import StoreUnavailable
from controller.health import Scope
from controller.retrying import until_done

#: A store that fails for longer than this is a fault of the flag.
UNSAVED_SECONDS = 3.0
#: The reporter of the fault, which alone clears it.
_SAVING = "saving"

T = TypeVar("T")


class StoreTrouble:
    """Follows how the store serves one flag, and repeats reads until they succeed."""

    def __init__(
        self,
        flag_key: str,
        dependencies: WorkerDependencies,
        on_trouble: Callable[[], object],
    ) -> None:
        """`on_trouble` is called when the store begins to fail."""
        self._flag_key = flag_key
        self._dependencies = dependencies
        self._on_trouble = on_trouble
        self._since: float | None = None  # monotonic seconds; None while the store works
        self._error = ""
        self._is_of_save = False  # only a save then shows that it is over
        self._logger = structlog.get_logger().bind(flag_key=flag_key)

    @property
    def lasts(self) -> bool:
        """True while the store fails."""
        return self._since is not None

    @property
    def is_of_save(self) -> bool:
        """True while a save is not known to have been made."""
        return self._is_of_save

    @property
    def reason(self) -> str | None:
        """Why nothing is decided, once the store has failed for too long; None while it works."""
        if self._since is None:
            return None
        seconds = self._dependencies.clock.monotonic() - self._since
        if seconds <= UNSAVED_SECONDS:
            return None
        word = "saved" if self._is_of_save else "read"
        return f"its state has not been {word} for {seconds:.0f} s: {self._error}"

    def begin(self, error: StoreUnavailable, *, is_save: bool = False) -> None:
        """Note a failed call. It becomes a fault of the flag once the failures last."""
        if self._since is None:
            self._since = self._dependencies.clock.monotonic()
            self._on_trouble()
        self._error, self._is_of_save = str(error), self._is_of_save or is_save
        if (why := self.reason) is not None:
            fix = "see whether Redis takes writes of this flag's key: `rolloutctl doctor`"
            self._dependencies.faults.report(Scope.FLAG, self._flag_key, why, fix, reporter=_SAVING)

    def end(self) -> None:
        """Note that the store took what was to be saved, or that nothing is to be saved."""
        if self._since is not None:
            self._since, self._error, self._is_of_save = None, "", False
            self._dependencies.faults.clear(Scope.FLAG, self._flag_key, reporter=_SAVING)

    async def until_done(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what an idempotent call to Redis returns, repeated until Redis answers."""
        result = await until_done(
            call,
            trouble=StoreUnavailable,
            backoff=self._dependencies.backoff,
            report=self._report,
        )
        if not self._is_of_save:
            self.end()
        return result

    def _report(self, error: StoreUnavailable, pause: float) -> None:
        self._logger.warning("store_unavailable", error=str(error), retry_seconds=round(pause, 3))
        self.begin(error)
