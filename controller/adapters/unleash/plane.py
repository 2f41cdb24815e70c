"""Unleash as a flag plane: a flag there lets in the share of users that was decided.

Belongs here: the port, and how often a refused write is tried. What a flag should look like is
`target.py`, how it is read `reader.py`, in which order it is written `writer.py`. For operators:
`ops/unleash.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from controller.adapters.unleash.api import Away, Overtaken, UnleashApi
from controller.adapters.unleash.comparison import compare
from controller.adapters.unleash.ended_flags import EndedFlags
from controller.adapters.unleash.flag_state import UnleashFlagState
from controller.adapters.unleash.reader import FlagReader
from controller.adapters.unleash.rules import Unservable
from controller.adapters.unleash.target import Target, target_of
from controller.adapters.unleash.writer import FlagWriter
from controller.core.rollout import Rollout
from controller.errors import FlagPlaneUnavailable
from controller.ports import Clock, Served
from controller.settings.planes import UnleashSettings

#: A refused write is not tried again for this long, unless it lowers.
REFUSED_SECONDS: Final = 30.0
#: The same after trouble of the server itself. One round is left out, so that a flag that the
#: server cannot write does not keep all others waiting.
AWAY_SECONDS: Final = 6.0


@dataclass(slots=True)
class _Refusal:
    """A write that was refused, for a reason that does not pass by itself."""

    target: Target
    until: float  # monotonic
    why: str


class UnleashPlane:
    """Implements `controller.ports.FlagPlane`."""

    name = "unleash"

    def __init__(self, settings: UnleashSettings, clock: Clock) -> None:
        """Connect to nothing yet. Raises ConfigInvalid."""
        self._settings = settings
        self._clock = clock
        self._api = UnleashApi(settings, clock)
        self._reader = FlagReader(self._api, settings, clock)
        self._writer = FlagWriter(self._api, self._reader, settings)
        self._ended = EndedFlags(self._api, settings, clock)
        self._refusals: dict[str, _Refusal] = {}  # by flag

    @classmethod
    def from_settings(cls, name: str, settings: UnleashSettings, clock: Clock) -> Self:
        return cls(settings, clock)

    @staticmethod
    def can_serve_audiences(settings: UnleashSettings) -> bool:
        """Return True: audiences are constraints, and arms are variants."""
        return True

    async def close(self) -> None:
        """Close every connection."""
        await self._api.close()

    async def look(self, rollout: Rollout) -> Served:
        target = self._target(rollout)
        if self._ended.is_settled(rollout):
            return Served(target.served_percent, None)
        reading = await self._reader.read(target)
        if self._ended.check_due(rollout, reading):
            if reading.state is None:
                return Served(0.0, None)
            return Served(reading.state.percent, "is to be archived: its rollout ended long ago")
        served = await self._compare(target, reading.state)
        if served.difference is None:
            self._ended.note_as_decided(rollout)
        return served

    async def serve(self, rollout: Rollout) -> None:
        target = self._target(rollout)
        self._ended.forget_settled(rollout)
        is_lowering = self._reader.is_lowering(target)
        refusal = self._refusals.get(rollout.flag_key)
        if (
            refusal is not None
            and refusal.target == target
            and self._clock.monotonic() < refusal.until
            and not is_lowering
        ):
            raise FlagPlaneUnavailable(refusal.why)
        self._reader.expect_served(target)
        try:
            reading = await self._reader.take_recent(target, is_urgent=is_lowering)
            if self._ended.is_to_be_archived(rollout.flag_key):
                await self._ended.archive(rollout)
            else:
                await self._writer.write(rollout, target, reading)
        except Overtaken:
            raise
        except FlagPlaneUnavailable as trouble:
            wait = AWAY_SECONDS if isinstance(trouble, Away) else REFUSED_SECONDS
            self._refusals[rollout.flag_key] = _Refusal(
                target, self._clock.monotonic() + wait, str(trouble)
            )
            raise
        self._refusals.pop(rollout.flag_key, None)

    async def retire(self, flag_key: str, revision: int) -> None:
        """Leave the flag in Unleash as it is, and forget what is remembered of it here."""
        self._refusals.pop(flag_key, None)
        self._reader.forget(flag_key)
        self._ended.forget(flag_key)

    def _target(self, rollout: Rollout) -> Target:
        try:
            return target_of(rollout, stickiness=self._settings.stickiness)
        except Unservable as refusal:
            raise FlagPlaneUnavailable(
                f"{self._reader.where} cannot serve the plan of {rollout.flag_key}: {refusal}"
            ) from None

    async def _compare(self, target: Target, state: UnleashFlagState | None) -> Served:
        """Return what Unleash serves, compared with the target. Raises FlagPlaneUnavailable."""
        if state is None:
            return await self._compare_missing(target)
        deviation = compare(target, state, environment=self._settings.environment)
        if not deviation.faults:
            return Served(state.percent, None)
        editor: str | None = None
        if deviation.needs_editor:
            trail = await self._reader.read_trail(target, state)
            if target.percent == 0 and not state.ours and not trail.has_been_ours:
                return Served(state.percent, None)  # never ours: others decide whom they let in
            editor = trail.editor if target.percent > 0 or state.percent > 0 else None
        # The share of all users that several strategies let in is not known: what is certainly
        # lower counts as nobody, anything else as everybody.
        highest = state.percent if len(target.parts) == 1 else 100.0
        percent = 0.0 if deviation.is_lower else highest
        return Served(percent, " and ".join(deviation.faults), editor)

    async def _compare_missing(self, target: Target) -> Served:
        if target.percent == 0:
            return Served(0.0, None)
        trail = await self._reader.read_trail(target, None)
        if trail.has_been_ours:
            return Served(
                0.0,
                f"has the flag archived or deleted, decided is {target.percent:g} %",
                trail.editor,
            )
        return Served(None, f"does not know the flag, decided is {target.percent:g} %")
