"""Reading a flag from Unleash: its state, who changed it, and what the last reading was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import structlog

from controller.adapters.unleash.api import Feature, Overtaken, Refused, UnleashApi
from controller.adapters.unleash.audit_trail import SOMEBODY, Trail, follow
from controller.adapters.unleash.flag_state import UnleashFlagState
from controller.adapters.unleash.target import Target
from controller.errors import FlagPlaneUnavailable
from controller.ports import Clock
from controller.settings.planes import UnleashSettings

#: A `serve` right after a `look` uses its reading for this long. Later, somebody may have changed
#: the flag.
READING_SECONDS: Final = 1.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FlagReading:
    """What was read of a flag, and when."""

    at: float  # monotonic
    feature: Feature | None
    state: UnleashFlagState | None  # None: Unleash does not have the flag, or has it archived
    trail: Trail | None = None  # None: the audit trail was not needed


class FlagReader:
    """Reads flags of one project and environment, and remembers each flag's last reading."""

    def __init__(self, api: UnleashApi, settings: UnleashSettings, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._environment = settings.environment
        #: Names the server and project in messages.
        self.where = f"{api.name}, project {settings.project}"
        self._readings: dict[str, FlagReading] = {}
        self._percents: dict[str, float] = {}  # by flag: the most that may be served there

    def forget(self, flag_key: str) -> None:
        """Forget a flag that was retired."""
        self._readings.pop(flag_key, None)
        self._percents.pop(flag_key, None)

    async def read(self, target: Target) -> FlagReading:
        """Return the flag as it is now. Raises FlagPlaneUnavailable."""
        reading = await self._read(target, is_urgent=self.is_lowering(target))
        self._readings[target.flag_key] = reading
        return reading

    async def take_recent(self, target: Target, *, is_urgent: bool) -> FlagReading:
        """Return the last reading and forget it; an old one is replaced by a new one.

        Raises FlagPlaneUnavailable.
        """
        reading = self._readings.pop(target.flag_key, None)
        if reading is not None and self._clock.monotonic() - reading.at <= READING_SECONDS:
            return reading
        return await self._read(target, is_urgent=is_urgent)

    async def read_between_writes(self, target: Target) -> UnleashFlagState:
        """Return the flag's state in the middle of writing.

        Raises Overtaken when somebody else has written meanwhile, and FlagPlaneUnavailable.
        """
        feature = await self._api.feature(target.flag_key, is_urgent=False)
        state = None if feature is None else self._state(feature, target)
        if state is None or (state.newest is not None and target.is_late_for(state.newest)):
            raise Overtaken(
                f"{self.where}: {target.flag_key} was changed by others while we "
                f"wrote; the next look reads it again"
            )
        return state

    async def read_trail(self, target: Target, state: UnleashFlagState | None) -> Trail:
        """Return what the audit trail says. Raises FlagPlaneUnavailable.

        Where it cannot be read, a strategy that is not as we wrote it was changed by somebody.
        """
        try:
            changes = await self._api.changes(target.flag_key, is_urgent=self.is_lowering(target))
            trail = follow(changes, environment=self._environment)
        except Refused as refusal:
            _log.warning(
                "editor_unknown", flag_key=target.flag_key, plane="unleash", error=str(refusal)
            )
            trail = Trail(None, has_been_ours=state is not None and bool(state.ours))
        if state is not None and state.ours and trail.editor is None:
            is_touched = any(each.is_edited for each in state.ours) or bool(state.others)
            if is_touched or not trail.has_been_ours:
                trail = Trail(SOMEBODY, has_been_ours=True)
        reading = self._readings.get(target.flag_key)
        if reading is not None:
            self._readings[target.flag_key] = replace(reading, trail=trail)
        return trail

    def is_lowering(self, target: Target) -> bool:
        """Return whether serving the target lowers the share, and so must not wait."""
        percent = self._percents.get(target.flag_key)
        return target.is_off if percent is None else target.served_percent < percent

    def expect_served(self, target: Target) -> None:
        """Count the target as served until the next reading, so that lowering it is urgent.

        A write whose answer is lost may have been done.
        """
        percent = self._percents.get(target.flag_key, 0.0)
        self._percents[target.flag_key] = max(target.served_percent, percent)

    async def _read(self, target: Target, *, is_urgent: bool) -> FlagReading:
        feature = await self._api.feature(target.flag_key, is_urgent=is_urgent)
        state = None if feature is None else self._state(feature, target)
        self._percents[target.flag_key] = 0.0 if state is None else state.percent
        return FlagReading(self._clock.monotonic(), feature, state)

    def _state(self, feature: Feature, target: Target) -> UnleashFlagState:
        for environment in feature.environments:
            if environment.name == self._environment:
                return UnleashFlagState.of(environment, passive=target.passive)
        names = ", ".join(each.name for each in feature.environments) or "none"
        raise FlagPlaneUnavailable(
            f"{self.where} has no environment {self._environment!r}, only "
            f"{names}: see planes.unleash.environment"
        )
