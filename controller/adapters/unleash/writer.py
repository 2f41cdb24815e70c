"""Writing a flag to Unleash: in which order, and what is left alone.

Lowering is one unconditional request. Raising goes through only with the strategy as it was read,
so that a late writer changes nothing; the next look finds the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import structlog

from controller.adapters.unleash.api import Overtaken, UnleashApi
from controller.adapters.unleash.audit_trail import Trail
from controller.adapters.unleash.flag_state import OwnStrategy, UnleashFlagState
from controller.adapters.unleash.reader import FlagReader, FlagReading
from controller.adapters.unleash.strategies import OFF, Content
from controller.adapters.unleash.target import Target
from controller.core.rollout import Rollout
from controller.errors import FlagPlaneUnavailable
from controller.settings.planes import UnleashSettings
from schemas.terms import FlagType

#: Unleash's names for the types of flags.
FLAG_TYPES: Final = {
    FlagType.RELEASE: "release",
    FlagType.EXPERIMENT: "experiment",
    FlagType.OPS: "operational",
    FlagType.PERMISSION: "permission",
}

_log = structlog.get_logger(__name__)


class FlagWriter:
    """Brings flags to their targets. Every method raises FlagPlaneUnavailable."""

    def __init__(self, api: UnleashApi, reader: FlagReader, settings: UnleashSettings) -> None:
        self._api = api
        self._reader = reader
        self._settings = settings

    async def write(self, rollout: Rollout, target: Target, reading: FlagReading) -> None:
        """Bring the flag from what was read to the target."""
        state = reading.state
        if state is None:
            if target.percent == 0:
                return
            state = await self._create(rollout, target)
        if target.percent == 0 and not state.ours:
            trail = reading.trail or await self._reader.read_trail(target, state)
            if not trail.has_been_ours:
                return  # never ours: whom others let in there is their decision
        newest = state.newest
        if newest is not None and target.is_late_for(newest):
            return
        if target.is_off:
            await self._switch_off(target, state)
            return
        self._check_order(target, state)
        if await self._lower(target, state):
            state = await self._reader.read_between_writes(target)
        state = await self._disable_others(target, state, reading.trail)
        await self._raise(target, state)

    def _check_order(self, target: Target, state: UnleashFlagState) -> None:
        """Raise FlagPlaneUnavailable for raising what another rollout's higher revision wrote."""
        newest = state.newest
        if (
            newest is not None
            and target.is_unordered_with(newest)
            and target.served_percent > state.percent
        ):
            raise FlagPlaneUnavailable(
                f"{self._reader.where}: {target.flag_key} was written by revision "
                f"{newest.revision} of another rollout, ours is "
                f"{target.revision}: if rolloutd's state was lost, delete the strategy "
                f"{str(newest)!r} in Unleash"
            )

    async def _create(self, rollout: Rollout, target: Target) -> UnleashFlagState:
        if not self._settings.create_flags:
            raise FlagPlaneUnavailable(
                f"{self._reader.where} does not have the flag {target.flag_key}, or has it "
                f"archived: create or revive it there, or set "
                "planes.unleash.create_flags"
            )
        flag_type = FLAG_TYPES[rollout.plan.flag_type]
        await self._api.create(target.flag_key, flag_type, "Rolled out by rolloutd")
        _log.info("flag_created", flag_key=target.flag_key, plane="unleash")
        return await self._reader.read_between_writes(target)

    async def _switch_off(self, target: Target, state: UnleashFlagState) -> None:
        """Let nobody in: by our strategies first, then by the environment's switch.

        Strategies are acknowledged soonest. One that cannot be written does not prevent the switch.
        """
        trouble: FlagPlaneUnavailable | None = None
        for own in state.ours:
            if own.content.rollout != "0" or own.mark.share != OFF:
                try:
                    await self._patch(target, own, own.content.at_zero, is_urgent=True)
                except FlagPlaneUnavailable as failure:
                    trouble = failure
        if state.is_on:
            await self._api.switch(target.flag_key, on=False)
        if trouble is not None:
            raise trouble

    async def _lower(self, target: Target, state: UnleashFlagState) -> bool:
        """Lower our strategies that let in more than decided; return whether any did.

        Nothing else is written before.
        """
        decided = dict(enumerate(target.parts, 1))
        has_written = False
        for own in state.ours:
            content = decided.get(own.mark.part) or own.content.at_zero
            if content.percent < own.content.percent:
                await self._patch(target, own, content, is_urgent=True)
                has_written = True
        return has_written

    async def _disable_others(
        self, target: Target, state: UnleashFlagState, trail: Trail | None
    ) -> UnleashFlagState:
        """Disable strategies that others added beside ours; return the state after that.

        Those that were there before us are left alone, and nothing is raised beside them. Those
        that came later let in users without a decision: they are disabled, and the alert about the
        foreign edit names them.
        """
        if not state.others:
            return state
        if trail is None:
            trail = await self._reader.read_trail(target, state)
        if not state.is_on or not (state.ours or trail.has_been_ours):
            raise FlagPlaneUnavailable(
                f"{self._reader.where}: {target.flag_key} has another enabled strategy in "
                f"{self._settings.environment}, {state.names_of_others}, that "
                "would let users in beside the rollout: disable or delete it there"
            )
        if not state.ours:
            # First: with its last enabled strategy Unleash switches an environment off.
            await self._raise(target, state)
        for other in state.others:
            _log.warning(
                "foreign_strategy_disabled",
                flag_key=target.flag_key,
                plane="unleash",
                strategy=other.title or other.id,
            )
            await self._api.patch_strategy(
                target.flag_key, other.id, replace={"/disabled": True}, expect={}, is_urgent=True
            )
        return await self._reader.read_between_writes(target)

    async def _raise(self, target: Target, state: UnleashFlagState) -> None:
        """Raise what is below the target: strategies, then the switch, then the percentage."""
        present = state.parts()
        for number, content in enumerate(target.parts, 1):
            if number not in present:
                await self._add(target, number, content if state.is_on else content.at_zero)
            elif present[number].content.is_disabled:
                await self._patch(target, present[number], content.at_zero)
        if len(present) < len(target.parts) or any(
            own.content.is_disabled for own in present.values()
        ):
            state = await self._reader.read_between_writes(target)
            present = state.parts()
        for own in state.surplus(target):
            await self._api.delete_strategy(target.flag_key, own.strategy.id)
        if not state.is_in_order:
            await self._api.sort_strategies(
                target.flag_key, [own.strategy.id for own in state.ours]
            )
        if not present.keys() >= set(range(1, len(target.parts) + 1)):
            raise Overtaken(
                f"{self._reader.where}: a strategy of {target.flag_key} is gone again; the "
                f"next look reads it again"
            )
        if not state.is_on and target.served_percent > 0:
            await self._api.switch(target.flag_key, on=True)
        for number, content in enumerate(target.parts, 1):
            if present[number].content != content:
                await self._patch(target, present[number], content)

    async def _add(self, target: Target, part: int, content: Content) -> None:
        body = {
            "name": content.name,
            "title": target.mark(part, content),
            "sortOrder": part,
            **content.fields(),
        }
        strategy = await self._api.add_strategy(target.flag_key, body)
        _log.info("strategy_added", flag_key=target.flag_key, plane="unleash", strategy=strategy.id)

    async def _patch(
        self, target: Target, own: OwnStrategy, content: Content, *, is_urgent: bool = False
    ) -> None:
        """Give a strategy of ours this content.

        0 % is written in any case, anything else only if the strategy is as it was read.
        """
        changes: dict[str, Any] = {f"/{name}": value for name, value in content.fields().items()}
        changes["/title"] = target.mark(own.mark.part, content)
        expect: Mapping[str, Any] = {}
        if content.rollout != "0":
            strategy = own.strategy
            expect = {
                "/title": strategy.title,
                "/disabled": bool(strategy.disabled),
                "/parameters": strategy.parameters,
                "/constraints": strategy.constraints,
                "/segments": list(strategy.segments or ()),
            }
        await self._api.patch_strategy(
            target.flag_key, own.strategy.id, replace=changes, expect=expect, is_urgent=is_urgent
        )
