"""Faults that are over as soon as they happen, such as a refused command. Shown for an hour."""

from __future__ import annotations

from controller.health import Faults, Scope
from controller.ports import Clock

SHOWN_SECONDS = 3600.0
#: The reporter of faults in commands, which alone clears them.
COMMANDS = "commands"
SEND_AGAIN = "send it again in another form; report this with the log if it goes on"


class PassingFaults:
    """Reports faults and clears each after an hour."""

    def __init__(self, faults: Faults, clock: Clock) -> None:
        self._faults = faults
        self._clock = clock
        self._until: dict[tuple[Scope, str], float] = {}  # monotonic seconds; oldest first

    def report(self, scope: Scope, name: str, why: str, fix: str = SEND_AGAIN) -> None:
        """Report what happened, and is over."""
        self._faults.report(scope, name, why, fix, reporter=COMMANDS)
        self._until.pop((scope, name), None)
        self._until[scope, name] = self._clock.monotonic() + SHOWN_SECONDS
        if len(self._until) > 10 * self._faults.MOST_PER_SCOPE:
            self._clear_oldest()

    def clear_expired(self) -> None:
        """Clear what was shown for long enough."""
        now = self._clock.monotonic()
        while self._until and next(iter(self._until.values())) <= now:
            self._clear_oldest()

    def _clear_oldest(self) -> None:
        scope, name = next(iter(self._until))
        del self._until[scope, name]
        self._faults.clear(scope, name, reporter=COMMANDS)
