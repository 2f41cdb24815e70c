"""What one replica at a time does: whose turn it is, and what it stores.

The turn belongs to whoever wrote the store last, as long as that changes. Every write says which
version it follows, so that a replica which was held up writes nothing over another's work. No clock
of another machine is trusted: a store that does not change for a while, by one's own clock, is
free. A store that was emptied or set back to an old copy under a turn gets from its owner what the
owner knows.

Belongs here: turns, and writes within one. Does not belong here: what is done in a turn
(`notifying/notifier.py`, `checking/checker.py`), and Redis (`adapters/redis/turns.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from controller.errors import OperatingTrouble, StoreUnavailable
from controller.ports import Clock

#: Fields of one write.
_MOST_FIELDS: Final = 1_500
#: Emptied fields that are tried again.
_MOST_EMPTIED: Final = 20_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Turn:
    """Who wrote last."""

    version: int | None  # None: nobody has ever
    owner: str  # empty: who has given the turn back


@dataclass(frozen=True, slots=True)
class Pulse:
    """How fast turns change, in seconds."""

    #: How often the one whose turn it is says so.
    beat: float = 2.0
    #: A store that nobody has written for so long is free.
    free_after: float = 8.0


USUAL: Final = Pulse()


class TurnLost(OperatingTrouble):
    """Another replica goes on."""


class TurnStore(Protocol):
    """Fields that belong to a turn: `adapters/redis/turns.py`. Each call raises StoreUnavailable.

    An emptied field is gone.
    """

    async def turn(self) -> Turn:
        """Return who wrote last."""

    async def load(self) -> Mapping[bytes, bytes]:
        """Return every field."""

    async def save(
        self, owner: str, expected: int | None, fields: Mapping[str, bytes]
    ) -> int | None:
        """Write fields after version `expected`; return the new version.

        None: somebody else has written since.
        """

    async def forget(self, fields: Sequence[str]) -> None:
        """Delete fields, each if it is empty then."""


def _ignore() -> None:
    """Do nothing."""


def _nothing() -> Mapping[str, bytes]:
    """Return no fields."""
    return {}


class Turns:
    """The turns of this replica."""

    def __init__(
        self, store: TurnStore, what: str, replica: str, clock: Clock, pulse: Pulse
    ) -> None:
        """`what` is done in a turn, for the log."""
        self.pulse = pulse
        self._store = store
        self._what = what
        self._replica = replica
        self._clock = clock
        self._version: int | None = None
        self._of_others = 0  # version of the newest turn of another replica; 0: none since ours
        self._saving = asyncio.Lock()
        # A write may rely on those before it: after one that failed there is none in this turn.
        self._is_incomplete = False
        self._emptied: list[str] = []  # fields that are not deleted yet

    async def wait(
        self,
        elsewhere: Callable[[], object] = _ignore,
        known: Callable[[], Mapping[str, bytes]] = _nothing,
    ) -> Mapping[bytes, bytes]:
        """Return what is stored once it is this replica's turn.

        `elsewhere` is called when another replica is seen to go on. `known` returns all fields as
        they were in this replica's last turn: they are written again, and returned, where the store
        is older than that turn, as after FLUSHDB or from a backup. Raises TurnLost where another
        one was faster, StoreUnavailable.
        """
        turn = await self._until_free(elsewhere)
        newest, is_set_back = self._version, (turn.version or 0) < (self._version or 0)
        version = await self._store.save(self._replica, turn.version, {})
        if version is None:
            self._of_others = (turn.version or 0) + 1
            raise TurnLost("another replica was faster")
        self._of_others = 0
        log.info("turn_taken", what=self._what)
        stored = await self._store.load()
        self._version, self._is_incomplete = version, False
        self._emptied = [
            name.decode(errors="replace") for name, value in stored.items() if not value
        ]
        if not is_set_back or not (fields := known()):
            return stored
        log.warning("turn_store_set_back", what=self._what, stored=turn.version, known=newest)
        names = [name.decode(errors="replace") for name in stored]
        try:
            await self.save({**fields, **{name: b"" for name in names if name not in fields}})
        except OperatingTrouble:
            self._version = newest  # what is stored is a part: the next try begins again
            raise
        return {name.encode(): value for name, value in fields.items()}

    async def _until_free(self, elsewhere: Callable[[], object]) -> Turn:
        """Return the newest turn once it is over, or this replica's own."""
        seen: Turn | None = None
        changed_at = self._clock.monotonic()
        while True:
            turn = await self._store.turn()
            now = self._clock.monotonic()
            # Where it was set back, its owner comes first: that one knows what is lost.
            if turn.owner in ("", self._replica) and (turn.version or 0) >= self._of_others:
                return turn
            if turn != seen:
                if seen is not None and turn.owner:
                    self._version = None  # what this replica knows is older
                    elsewhere()
                seen, changed_at = turn, now
                if turn.owner:
                    self._of_others = turn.version or 0
            elif now - changed_at >= self.pulse.free_after:
                return turn
            await asyncio.sleep(self.pulse.beat)

    async def save(self, fields: Mapping[str, bytes]) -> None:
        """Write fields in their order; an empty value means that the field is gone.

        Many are written in several parts, so that a crash leaves out those at the end. Without any
        fields it says that it is still this replica's turn. Raises TurnLost, StoreUnavailable.
        """
        async with self._saving:
            if self._is_incomplete:
                raise StoreUnavailable("a write before this one failed")
            self._is_incomplete = True
            names = list(fields)
            for start in range(0, max(len(names), 1), _MOST_FIELDS):
                part = {name: fields[name] for name in names[start : start + _MOST_FIELDS]}
                version = await self._store.save(self._replica, self._version, part)
                if version is None:
                    raise TurnLost("another replica has written")
                self._version = version
            self._is_incomplete = False
            self._emptied += [name for name, value in fields.items() if not value]
            await self._forget()

    async def _forget(self) -> None:
        """Delete what was emptied. It is gone for every reader already: no turn ends for that."""
        if not self._emptied:
            return
        try:
            await self._store.forget(self._emptied)
        except OperatingTrouble as trouble:
            log.info("emptied_fields_wait", what=self._what, error=str(trouble))
            del self._emptied[:-_MOST_EMPTIED]  # the next turn finds the others
        else:
            self._emptied = []

    async def give_back(self, fields: Mapping[str, bytes]) -> None:
        """Write what is left, and let another replica go on at once; within a second."""
        try:
            async with asyncio.timeout(1.0):
                left = {} if self._is_incomplete else fields
                await self._store.save("", self._version, left)
        except (TimeoutError, OperatingTrouble) as trouble:
            log.info("turn_not_given_back", what=self._what, error=str(trouble))


def first_of(troubles: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first of the exceptions in a group, which may be groups again."""
    found: BaseException = troubles
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
