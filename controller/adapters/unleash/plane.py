"""Unleash as a flag plane: makes a flag there let in the share of users that was decided.

Belongs here: in which order to write, and what to leave alone. What a flag should look like is
`unleash_strategy.py`, how Unleash is asked `unleash_api.py`. For operators: `ops/unleash.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog

from controller.adapters.unleash.api import Away, Feature, Overtaken, Refused, UnleashApi
from controller.adapters.unleash.rules import Unservable
from controller.adapters.unleash.strategies import (
    Content,
    Ours,
    State,
    Trail,
    Wanted,
    compare,
    follow,
    wanted,
)
from controller.core.rollout import Ended, Rollout
from controller.errors import FlagPlaneUnavailable
from controller.ports import Clock, Served
from controller.settings import UnleashSettings
from schemas.terms import FlagType

#: What `look` read is used by a `serve` right after it; later, somebody may have changed the flag.
READ_SECONDS = 1.0
#: A write that was refused is not tried again for so long, unless it lowers.
REFUSED_SECONDS = 30.0
# : After the server's own trouble: one round is left out, so that a flag it cannot write does not
# keep all others waiting.
AWAY_SECONDS = 6.0
#: A flag whose rollout ended this long ago, and that was as decided, is looked at less often.
SETTLED_AFTER = timedelta(days=1)
SETTLED_SECONDS = 60.0


#: Unleash's names for what a flag is for.
FLAG_TYPES = {
    FlagType.RELEASE: "release",
    FlagType.EXPERIMENT: "experiment",
    FlagType.OPS: "operational",
    FlagType.PERMISSION: "permission",
}


@dataclass(frozen=True, slots=True)
class _Read:
    """What we read of a flag, and when."""

    at: float  # monotonic
    state: State | None  # None: Unleash does not have the flag, or has it archived
    trail: Trail | None  # None: nobody had to ask


@dataclass(slots=True)
class _Refusal:
    """A write that was refused, for a reason that does not pass by itself."""

    asked: Wanted
    until: float  # monotonic
    why: str


class UnleashPlane:
    """Implements `controller.ports.FlagPlane`.

    Lowering is one unconditional request. Raising goes through with the strategy only as it was
    read, so that a writer who comes late changes nothing; the rest is the next look's to find.
    """

    name = "unleash"

    def __init__(self, settings: UnleashSettings, clock: Clock) -> None:
        """Connect to nothing yet. Raises ConfigInvalid."""
        self._settings = settings
        self._clock = clock
        self._api = UnleashApi(settings, clock)
        self._where = f"{self._api.name}, project {settings.project}"
        self._read: dict[str, _Read] = {}
        self._percents: dict[str, float] = {}  # as last seen, by flag
        self._refused: dict[str, _Refusal] = {}
        self._settled: dict[str, tuple[Rollout, float]] = {}  # ended, as decided, when
        self._due: set[str] = set()  # found to be due for archiving by the last look
        self._archived: set[tuple[str, str]] = (
            set()
        )  # (flag key, rollout id) that archiving was tried for
        self._log = structlog.get_logger(__name__)

    async def close(self) -> None:
        """Close what is open."""
        await self._api.close()

    # --- looking
    # ----------------------------------------------------------------------------------------------

    async def look(self, rollout: Rollout) -> Served:
        asked = self._wanted(rollout)
        if self._is_settled(rollout):
            return Served(asked.served_percent, None)
        feature = await self._api.feature(rollout.flag_key, is_urgent=self._is_lowering(asked))
        state = None if feature is None else self._state(feature, asked)
        self._read[rollout.flag_key] = _Read(self._clock.monotonic(), state, None)
        self._percents[rollout.flag_key] = 0.0 if state is None else state.percent
        self._due.discard(rollout.flag_key)
        if self._is_due_for_archive(rollout, feature, state):
            if state is None:
                return Served(0.0, None)
            self._due.add(rollout.flag_key)
            return Served(state.percent, "is to be archived: its rollout ended long ago")
        served = await self._compared(asked, state)
        if served.difference is None and self._has_long_ended(rollout):
            self._settled[rollout.flag_key] = (rollout, self._clock.monotonic())
        return served

    def _wanted(self, rollout: Rollout) -> Wanted:
        try:
            return wanted(rollout, stickiness=self._settings.stickiness)
        except Unservable as refusal:
            raise FlagPlaneUnavailable(
                f"{self._where} cannot serve the plan of {rollout.flag_key}: {refusal}"
            ) from None

    async def _compared(self, asked: Wanted, state: State | None) -> Served:
        if state is None:
            if asked.percent == 0:
                return Served(0.0, None)
            trail = await self._trail(asked, None)
            if trail.has_been_ours:
                return Served(
                    0.0,
                    f"has the flag archived or deleted, decided is {asked.percent:g} %",
                    trail.editor,
                )
            return Served(None, f"does not know the flag, decided is {asked.percent:g} %")
        found = compare(asked, state, environment=self._settings.environment)
        if not found.faults:
            return Served(state.percent, None)
        editor: str | None = None
        if found.needs_editor:
            trail = await self._trail(asked, state)
            if asked.percent == 0 and not state.ours and not trail.has_been_ours:
                return Served(state.percent, None)  # never ours: what others let in there is theirs
            editor = trail.editor if asked.percent > 0 or state.percent > 0 else None
        # Of several strategies nobody can say a share of all: certainly fewer counts as none,
        # anything else as everybody.
        percent = 0.0 if found.is_lower else state.percent if len(asked.parts) == 1 else 100.0
        return Served(percent, " and ".join(found.faults), editor)

    async def _trail(self, asked: Wanted, state: State | None) -> Trail:
        """Ask the audit trail.

        Where it cannot be read, a strategy that is not as we wrote it was changed by somebody.
        """
        try:
            changes = await self._api.changes(asked.flag_key, is_urgent=self._is_lowering(asked))
            trail = follow(changes, environment=self._settings.environment)
        except Refused as refusal:
            self._log.warning(
                "editor_unknown", flag_key=asked.flag_key, plane=self.name, error=str(refusal)
            )
            trail = Trail(None, has_been_ours=state is not None and bool(state.ours))
        if state is not None and state.ours and trail.editor is None:
            is_touched = any(each.is_edited for each in state.ours) or bool(state.others)
            if is_touched or not trail.has_been_ours:
                trail = Trail("somebody", has_been_ours=True)
        read = self._read[asked.flag_key]
        self._read[asked.flag_key] = _Read(read.at, read.state, trail)
        return trail

    def _state(self, feature: Feature, asked: Wanted) -> State:
        for environment in feature.environments:
            if environment.name == self._settings.environment:
                return State.of(environment, passive=asked.passive)
        there = ", ".join(each.name for each in feature.environments) or "none"
        raise FlagPlaneUnavailable(
            f"{self._where} has no environment {self._settings.environment!r}, only "
            f"{there}: see planes.unleash.environment"
        )

    def _is_lowering(self, asked: Wanted) -> bool:
        """True when it must not wait behind anything."""
        seen = self._percents.get(asked.flag_key)
        return asked.is_off if seen is None else asked.served_percent < seen

    # --- writing
    # ----------------------------------------------------------------------------------------------

    async def serve(self, rollout: Rollout) -> None:
        asked = self._wanted(rollout)
        self._settled.pop(rollout.flag_key, None)
        is_lowering = self._is_lowering(asked)
        refusal = self._refused.get(rollout.flag_key)
        is_known = (
            refusal is not None
            and refusal.asked == asked
            and self._clock.monotonic() < refusal.until
        )
        if refusal is not None and is_known and not is_lowering:
            raise FlagPlaneUnavailable(refusal.why)
        # A write whose answer is lost may have been done: until the next look it counts as served,
        # so that lowering is urgent.
        self._percents[rollout.flag_key] = max(
            asked.served_percent, self._percents.get(rollout.flag_key, 0.0)
        )
        try:
            await self._serve(rollout, asked, is_lowering=is_lowering)
        except Overtaken:
            raise
        except FlagPlaneUnavailable as trouble:
            wait = AWAY_SECONDS if isinstance(trouble, Away) else REFUSED_SECONDS
            self._refused[rollout.flag_key] = _Refusal(
                asked, self._clock.monotonic() + wait, str(trouble)
            )
            raise
        self._refused.pop(rollout.flag_key, None)

    async def _serve(self, rollout: Rollout, asked: Wanted, *, is_lowering: bool) -> None:
        read = await self._fresh(asked, is_urgent=is_lowering)
        if rollout.flag_key in self._due:
            await self._archive(rollout)
            return
        state = read.state
        if state is None:
            if asked.percent == 0:
                return
            state = await self._create(rollout, asked)
        if asked.percent == 0 and not state.ours:
            trail = read.trail or await self._trail_now(asked, state)
            if not trail.has_been_ours:
                return  # never ours: what others let in there is theirs
        newest = state.newest
        if newest is not None and asked.is_late_for(newest):
            return
        if asked.is_off:
            await self._switch_off(asked, state)
            return
        if (
            newest is not None
            and asked.is_unordered_with(newest)
            and asked.served_percent > state.percent
        ):
            raise FlagPlaneUnavailable(
                f"{self._where}: {asked.flag_key} was written by revision "
                f"{newest.revision} of another rollout, ours is "
                f"{asked.revision}: if rolloutd's state was lost, delete the strategy "
                f"{str(newest)!r} in Unleash"
            )
        if await self._lower(asked, state):
            state = await self._again(asked)
        state = await self._make_room(asked, state, read.trail)
        await self._raise(asked, state)

    async def _fresh(self, asked: Wanted, *, is_urgent: bool) -> _Read:
        """Return what was read just now, or read again."""
        read = self._read.pop(asked.flag_key, None)
        if read is None or self._clock.monotonic() - read.at > READ_SECONDS:
            feature = await self._api.feature(asked.flag_key, is_urgent=is_urgent)
            read = _Read(
                self._clock.monotonic(),
                None if feature is None else self._state(feature, asked),
                None,
            )
            self._percents[asked.flag_key] = 0.0 if read.state is None else read.state.percent
        return read

    async def _create(self, rollout: Rollout, asked: Wanted) -> State:
        if not self._settings.create_flags:
            raise FlagPlaneUnavailable(
                f"{self._where} does not have the flag {asked.flag_key}, or has it "
                f"archived: create or revive it there, or set "
                "planes.unleash.create_flags"
            )
        await self._api.create(
            asked.flag_key, FLAG_TYPES[rollout.plan.flag_type], "Rolled out by rolloutd"
        )
        self._log.info("flag_created", flag_key=asked.flag_key, plane=self.name)
        return await self._again(asked)

    async def _switch_off(self, asked: Wanted, state: State) -> None:
        """Let nobody in: first by the strategies.

        Which are acknowledged soonest, then by the environment's switch.

        What cannot be written to a strategy does not keep us from the switch.
        """
        trouble: FlagPlaneUnavailable | None = None
        for each in state.ours:
            if each.content.rollout != "0" or each.mark.says != "off":
                try:
                    await self._patch(asked, each, each.content.at_zero, is_urgent=True)
                except FlagPlaneUnavailable as failure:
                    trouble = failure
        if state.is_on:
            await self._api.switch(asked.flag_key, on=False)
        if trouble is not None:
            raise trouble

    async def _lower(self, asked: Wanted, state: State) -> bool:
        """Bring down what of ours lets in more than wanted; return whether anything did.

        Nothing stands before it.
        """
        wanted_of = dict(enumerate(asked.parts, 1))
        has_written = False
        for each in state.ours:
            content = wanted_of.get(each.mark.part) or each.content.at_zero
            if content.percent < each.content.percent:
                await self._patch(asked, each, content, is_urgent=True)
                has_written = True
        return has_written

    async def _make_room(self, asked: Wanted, state: State, trail: Trail | None) -> State:
        """Deal with strategies that are not ours; return the flag as it then is.

        Raises FlagPlaneUnavailable.

        Those that were there before us are left alone, and nothing is raised beside them. Those
        that came later let in whom nobody decided to let in: they are disabled, and the alert about
        the foreign edit names them.
        """
        if not state.others:
            return state
        if trail is None:
            trail = await self._trail_now(asked, state)
        names = ", ".join(repr(each.title or each.name) for each in state.others)
        if not state.is_on or not (state.ours or trail.has_been_ours):
            raise FlagPlaneUnavailable(
                f"{self._where}: {asked.flag_key} has another enabled strategy in "
                f"{self._settings.environment}, {names}, that "
                "would let users in beside the rollout: disable or delete it there"
            )
        if not state.ours:
            await self._raise(
                asked, state
            )  # first: Unleash switches an environment off with its last enabled strategy
        for each in state.others:
            self._log.warning(
                "foreign_strategy_disabled",
                flag_key=asked.flag_key,
                plane=self.name,
                strategy=each.title or each.id,
            )
            await self._api.patch_strategy(
                asked.flag_key, each.id, replace={"/disabled": True}, expect={}, is_urgent=True
            )
        return await self._again(asked)

    async def _trail_now(self, asked: Wanted, state: State) -> Trail:
        self._read[asked.flag_key] = _Read(self._clock.monotonic(), state, None)
        return await self._trail(asked, state)

    async def _raise(self, asked: Wanted, state: State) -> None:
        """Bring up what is below what is wanted.

        Strategy first, then the switch, then the percentage.
        """
        there = state.parts()
        for number, content in enumerate(asked.parts, 1):
            if number not in there:
                await self._add(asked, number, content if state.is_on else content.at_zero)
            elif there[number].content.is_disabled:
                await self._patch(asked, there[number], content.at_zero)
        if len(there) < len(asked.parts) or any(
            each.content.is_disabled for each in there.values()
        ):
            state = await self._again(asked)
            there = state.parts()
        for each in state.surplus(asked):
            await self._api.delete_strategy(asked.flag_key, each.strategy.id)
        if not state.is_in_order:
            await self._api.sort_strategies(
                asked.flag_key, [each.strategy.id for each in state.ours]
            )
        if not there.keys() >= set(range(1, len(asked.parts) + 1)):
            raise Overtaken(
                f"{self._where}: a strategy of {asked.flag_key} is gone again; it is "
                f"looked at again"
            )
        if not state.is_on and asked.served_percent > 0:
            await self._api.switch(asked.flag_key, on=True)
        for number, content in enumerate(asked.parts, 1):
            if there[number].content != content:
                await self._patch(asked, there[number], content)

    async def _add(self, asked: Wanted, part: int, content: Content) -> None:
        body = {
            "name": content.name,
            "title": asked.mark(part, content),
            "sortOrder": part,
            **content.fields(),
        }
        added = await self._api.add_strategy(asked.flag_key, body)
        self._log.info(
            "strategy_added", flag_key=asked.flag_key, plane=self.name, strategy=added.id
        )

    async def _again(self, asked: Wanted) -> State:
        """Read the flag anew in the middle of writing.

        Raises Overtaken when somebody else has gone on meanwhile.
        """
        feature = await self._api.feature(asked.flag_key, is_urgent=False)
        state = None if feature is None else self._state(feature, asked)
        if state is None or (state.newest is not None and asked.is_late_for(state.newest)):
            raise Overtaken(
                f"{self._where}: {asked.flag_key} was changed by others while we wrote; it "
                f"is looked at again"
            )
        return state

    async def _patch(
        self, asked: Wanted, each: Ours, content: Content, *, is_urgent: bool = False
    ) -> None:
        """Make a strategy of ours what is wanted.

        To 0 % in any case, to anything else only if it is as it was read.
        """
        changes: dict[str, Any] = {f"/{name}": value for name, value in content.fields().items()}
        changes["/title"] = asked.mark(each.mark.part, content)
        expect: Mapping[str, Any] = {}
        if content.rollout != "0":
            strategy = each.strategy
            expect = {
                "/title": strategy.title,
                "/disabled": bool(strategy.disabled),
                "/parameters": strategy.parameters,
                "/constraints": strategy.constraints,
                "/segments": list(strategy.segments or ()),
            }
        await self._api.patch_strategy(
            asked.flag_key, each.strategy.id, replace=changes, expect=expect, is_urgent=is_urgent
        )

    # --- the end of a flag's life
    # -----------------------------------------------------------------------------------------

    def _has_long_ended(self, rollout: Rollout) -> bool:
        return (
            isinstance(rollout.phase, Ended)
            and self._clock.now() - rollout.phase.at >= SETTLED_AFTER
        )

    def _is_settled(self, rollout: Rollout) -> bool:
        """True when a look can be spared.

        Thousands of flags were rolled out once, a few are being rolled out.
        """
        known = self._settled.get(rollout.flag_key)
        return (
            known is not None
            and known[0] == rollout
            and self._clock.monotonic() - known[1] < SETTLED_SECONDS
        )

    def _is_due_for_archive(
        self, rollout: Rollout, feature: Feature | None, state: State | None
    ) -> bool:
        """True when its time is up, the flag is ours alone.

        And nobody asks for it where it is on, in any environment.
        """
        days = self._settings.archive_after_days
        if days is None or not isinstance(rollout.phase, Ended):
            return False
        at = self._clock.now() - timedelta(days=days)
        if rollout.phase.at > at:
            return False
        if feature is None or state is None:
            return True  # it is gone, by us or before us
        if (rollout.flag_key, rollout.rollout_id) in self._archived:
            return False  # tried: it was refused, or it is here again because somebody revived it
        # Never seen: its SDKs report nothing, so nobody can tell.
        is_used = any(
            each.enabled and (each.last_seen_at is None or each.last_seen_at > at)
            for each in feature.environments
        )
        return bool(state.ours) and not state.others and not is_used

    async def _archive(self, rollout: Rollout) -> None:
        """Archive once; a refusal is told in the log and no more.

        Since the flag serves what was decided.
        """
        self._archived.add((rollout.flag_key, rollout.rollout_id))
        try:
            await self._api.archive(rollout.flag_key)
        except Refused as refusal:
            self._log.warning(
                "not_archived", flag_key=rollout.flag_key, plane=self.name, error=str(refusal)
            )
        else:
            self._log.info("flag_archived", flag_key=rollout.flag_key, plane=self.name)
