"""Rollouts in the order in which people look at them, searched and paged, also when many.

The page and the API list them by this. What orders a rollout is worked out once per revision, the
order once per change of the fleet, and 10,000 are gone through in turns, so that evaluations are
answered in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Final, NamedTuple

from controller.core.rollout import RolledBack, Rollout
from controller.reporting.headline import is_to_review
from controller.reporting.views import Urgency, urgency
from controller.web.flags import FlagBoard

#: Rollouts gone through before other requests get a turn.
_PER_TURN: Final = 500
#: A rollback counts as new for a day; whether it does is looked at so often, and also whether a
#: rollout is unwatched.
_AGES_EVERY_SECONDS: Final = 10
#: Questions whose answers are kept until the fleet changes.
_MOST_ANSWERS: Final = 64


class _Known(NamedTuple):
    rollout: Rollout
    urgency: Urgency
    place: tuple[bool, float, str]  # within its kind
    text: str  # that is searched, without case


_PLACE: Final = attrgetter("place")


@dataclass(frozen=True, slots=True)
class Question:
    """Which rollouts are asked for; empty and None: all."""

    part: str = ""  # of flag, plan or owner
    state: Urgency | None = None
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class FleetSlice:
    """The rollouts that fit, in order, and how many there are of each kind without the state."""

    rollouts: Sequence[Rollout]
    counts: dict[Urgency, int]


class FleetOrder:
    """Lists the rollouts of a board."""

    def __init__(
        self,
        board: FlagBoard,
        now: Callable[[], datetime],
        is_unwatched: Callable[[Rollout], object] = lambda _: None,
    ) -> None:
        """`is_unwatched` tells of a rollout that nobody sees what it does."""
        self._is_unwatched = is_unwatched
        self._board = board
        self._now = now
        self._known: dict[str, _Known] = {}
        self._lock = asyncio.Lock()  # whoever asks while the order is worked out waits for it
        self._version: tuple[int, int] | None = None  # of `_kinds` and `_answers`
        self._kinds: dict[Urgency, list[_Known]] = {}
        self._answers: dict[Question, FleetSlice] = {}

    def let_go(self, flag_key: str) -> None:
        """Keep nothing of a flag that was retired, whether or not somebody asks again.

        An order that is being worked out stays until the next question.
        """
        self._known.pop(flag_key, None)
        if not self._lock.locked():
            self._version, self._kinds, self._answers = None, {}, {}

    async def listed(self, question: Question) -> FleetSlice:
        """Return the rollouts that fit: what needs a person, what moves, what has ended.

        Rolled back within a day counts as needing a person: somebody should look at it. So does a
        rollout that nobody watches, within ten seconds.
        """
        async with self._lock:
            now = self._now()
            version = (self._board.version, int(now.timestamp()) // _AGES_EVERY_SECONDS)
            if version != self._version:
                self._kinds = await self._in_order(now)
                self._version = version
                self._answers.clear()
            answer = self._answers.get(question)
            if answer is None:
                if len(self._answers) >= _MOST_ANSWERS:
                    self._answers.clear()
                answer = self._answers[question] = await self._fitting(question)
        return answer

    async def _in_order(self, now: datetime) -> dict[Urgency, list[_Known]]:
        """Return all rollouts by kind, each kind in order."""
        rollouts = self._board.rollouts
        kinds: dict[Urgency, list[_Known]] = {one: [] for one in Urgency}
        for count, rollout in enumerate(rollouts, start=1):
            if count % _PER_TURN == 0:
                await asyncio.sleep(0)
            known = self._known.get(rollout.flag_key)
            if known is None or known.rollout is not rollout:
                known = self._known[rollout.flag_key] = _known(rollout)
            kind = known.urgency
            is_new_rollback = kind is Urgency.ENDED and is_to_review(rollout, now)
            if is_new_rollback or (kind is Urgency.ACTIVE and self._is_unwatched(rollout)):
                kind = Urgency.ATTENTION
            kinds[kind].append(known)
        self._forget(rollouts)
        for ones in kinds.values():
            ones.sort(key=_PLACE)
            await asyncio.sleep(0)
        return kinds

    async def _fitting(self, question: Question) -> FleetSlice:
        """Return what fits of all, in order."""
        counts: dict[Urgency, int] = {}
        shown: list[Rollout] = []
        for kind, ones in self._kinds.items():
            fitting = []
            for begin in range(0, len(ones), _PER_TURN):
                some = ones[begin : begin + _PER_TURN]
                fitting += [one.rollout for one in some if _fits(one, question)]
                await asyncio.sleep(0)
            counts[kind] = len(fitting)
            if question.state in (None, kind):
                shown += fitting
        return FleetSlice(shown, counts)

    def _forget(self, rollouts: Sequence[Rollout]) -> None:
        """Keep nothing of flags that are gone."""
        if len(self._known) > len(rollouts):
            here = {rollout.flag_key for rollout in rollouts}
            self._known = {key: known for key, known in self._known.items() if key in here}


def _fits(known: _Known, question: Question) -> bool:
    is_owned = question.owner is None or known.rollout.plan.owner == question.owner
    return is_owned and question.part.casefold() in known.text


def _known(rollout: Rollout) -> _Known:
    """Return its place: of its kind rolled back first, then the newest, then by flag."""
    ended = -rollout.updated_at.timestamp() if rollout.has_ended else 0.0
    texts = (rollout.flag_key, rollout.plan.name, rollout.plan.owner)
    is_back = isinstance(rollout.phase, RolledBack)
    place = (not is_back, ended, rollout.flag_key)
    return _Known(rollout, urgency(rollout), place, "\n".join(texts).casefold())
