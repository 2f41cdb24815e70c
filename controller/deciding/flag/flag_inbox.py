"""The inbox of one flag: what its worker is to handle, and in which order.

New totals come before commands, so that no queue delays a breach. `roll_back` and `abort` overtake
all commands but each other, `start` and `restart`. Refusals come last.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from controller.core.events import CommandReceived, Event, Ticked
from controller.core.evidence import Evidence
from schemas.terms import ALWAYS_ACCEPTED, FINAL, CommandVerb

_NOT_OVERTAKEN = FINAL | {CommandVerb.START, CommandVerb.RESTART}


@dataclass(frozen=True, slots=True)
class NewTotals:
    """Totals as counted, and of which rollout: it may have ended while they were read."""

    rollout_id: str
    evidence: Evidence
    same_until: datetime | None = None  # until then those before were the same; None: unknown


@dataclass(frozen=True, slots=True)
class Queued:
    """One entry of an inbox."""

    event: Event | NewTotals
    arrived_at: float  # monotonic seconds
    done: asyncio.Future[None] | None = None  # done once the outcome is saved

    def succeed(self) -> None:
        """Report that the outcome is saved."""
        if self.done is not None and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """Report why there is no outcome."""
        if self.done is not None and not self.done.done():
            self.done.set_exception(error)


class FlagInbox:
    """What waits for one flag's worker. Every method but `wait` returns at once."""

    def __init__(self) -> None:
        self._events: deque[Queued] = deque()
        self._refusals: deque[Queued] = deque()
        self._totals: Queued | None = None
        self._filled = asyncio.Event()
        #: Set when a command that lowers arrives: a failed worker then restarts without a pause.
        self.urgent = asyncio.Event()

    def __len__(self) -> int:
        """Return how many events wait, without totals and refusals."""
        return len(self._events)

    def put_totals(self, totals: NewTotals) -> None:
        """Replace the totals that wait: only the newest matter."""
        self._totals = Queued(totals, _now())
        self._filled.set()

    def forget_totals(self) -> None:
        """Drop the totals that wait."""
        self._totals = None

    def put(self, event: Event) -> asyncio.Future[None]:
        """Queue an event. The future is done once its outcome is saved."""
        queued = _queued(event)
        self._events.insert(self._place_of(event), queued)
        self._filled.set()
        if _lowers(event):
            self.urgent.set()
        assert queued.done is not None
        return queued.done

    def poke(self) -> None:
        """Wake the worker, so that it looks for newer documents of its flag. Returns at once."""
        self._events.append(Queued(Ticked(), _now()))
        self._filled.set()

    def put_refusal(self, event: Event) -> asyncio.Future[None]:
        """Queue an event behind everything else. The future is done once its outcome is saved."""
        queued = _queued(event)
        self._refusals.append(queued)
        self._filled.set()
        assert queued.done is not None
        return queued.done

    def put_back(self, queued: Queued) -> None:
        """Return an event that was taken and not handled, to its place in front."""
        if queued.done is not None:
            self._events.appendleft(queued)

    def take(self, *, lowering_first: bool) -> Queued | None:
        """Return what comes next, None when nothing waits but refusals.

        `lowering_first`: a command that lowers comes even before new totals.
        """
        self._filled.clear()
        if lowering_first and self._events and _lowers(self._events[0].event):
            return self._events.popleft()
        if self._totals is not None:
            totals, self._totals = self._totals, None
            return totals
        return self._events.popleft() if self._events else None

    def take_refusal(self) -> Queued | None:
        """Return the oldest refusal, None when there is none."""
        return self._refusals.popleft() if self._refusals else None

    async def wait(self, seconds: float | None) -> None:
        """Return when something arrives, after `seconds` at the latest. None: without limit."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._filled.wait()

    def cancel_all(self) -> None:
        """Cancel the future of everything that waits, and forget it."""
        for queued in self._drain():
            if queued.done is not None:
                queued.done.cancel()

    def fail_all(self, error: Exception) -> None:
        """Give everything that waits this error, and forget it."""
        for queued in self._drain():
            queued.fail(error)

    def _drain(self) -> list[Queued]:
        waiting = [*self._events, *self._refusals]
        self._events.clear()
        self._refusals.clear()
        return waiting

    def _place_of(self, event: Event) -> int:
        """Return the place of a new event in the queue.

        A roll back does not overtake a start: it may be the rollout that is to be rolled back.
        """
        if not (isinstance(event, CommandReceived) and event.verb in FINAL):
            return len(self._events)
        for place in range(len(self._events), 0, -1):
            waiting = self._events[place - 1].event
            if isinstance(waiting, CommandReceived) and waiting.verb in _NOT_OVERTAKEN:
                return place
        return 0


def _queued(event: Event) -> Queued:
    return Queued(event, _now(), asyncio.get_running_loop().create_future())


def _now() -> float:
    return asyncio.get_running_loop().time()


def _lowers(event: Event | NewTotals) -> bool:
    """Return whether an event is a command that lowers the percentage, or keeps it where it is."""
    return isinstance(event, CommandReceived) and event.verb in ALWAYS_ACCEPTED
