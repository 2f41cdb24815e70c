"""Reads what is shown of every flag, whichever replica runs it.

Of the flags that run here it is what their workers say at this moment. Of all others it is what
their replica wrote last, read at most once a second however many ask.

Belongs here: where a report comes from. Does not belong here: HTTP (`web/`), and writing
(`report_writer.py`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from controller.codec.reports import report_from_json, stage_history
from controller.core.rollout import Rollout
from controller.errors import BrokenInvariant, StoreUnavailable
from controller.ports import Clock, CourseKey, Reports
from controller.reporting.unwatched import Unwatched
from schemas.report import LiveReport, StageHistory

T = TypeVar("T")

#: What was read is answered again for so long.
FRESH_SECONDS: Final = 1.0
#: Answers kept.
KEPT: Final = 500


class ReportReader:
    """Answers what is known of any flag. Each method raises StoreUnavailable while Redis is away.

    A report of a flag that runs here needs no Redis.
    """

    def __init__(
        self,
        own: Callable[[str], LiveReport | None],
        reports: Reports,
        clock: Clock,
        unwatched: Callable[[Rollout], Unwatched | None] = lambda _: None,
    ) -> None:
        """`own` returns the report on a flag that runs here, None for others.

        `unwatched` tells that nobody sees what a rollout does, None while somebody does.
        """
        self.unwatched = unwatched
        self._own = own
        self._reports = reports
        self._clock = clock
        self._read: OrderedDict[object, tuple[float, asyncio.Future[Any]]] = OrderedDict()

    async def report(self, rollout: Rollout) -> LiveReport | None:
        """Return the newest report on a rollout; None: there is none yet."""
        own = self._own(rollout.flag_key)
        if own is None:
            stored = await self._once(
                ("report", rollout.flag_key), partial(self._reports.read, rollout.flag_key)
            )
            own = None if stored is None else _readable(stored)
        return own if own is not None and own.rollout_id == rollout.rollout_id else None

    async def history(self, rollout: Rollout, visit: int) -> StageHistory:
        """Return the course of one of the rollout's visits."""
        course = CourseKey(rollout.rollout_id, visit)
        stored = await self._once(
            ("course", rollout.flag_key, course),
            partial(self._reports.course, rollout.flag_key, course),
        )
        return stage_history(rollout, visit, stored)

    async def news(self, flag_key: str, topic: str) -> Sequence[dict[str, Any]]:
        """Return the newest events of a topic about a flag, newest first, each once."""
        stored = await self._once(
            ("news", flag_key, topic), partial(self._reports.news, flag_key, topic)
        )
        events: dict[str, dict[str, Any]] = {}
        for value in stored:
            try:
                event = msgspec.json.decode(value)
                events.setdefault(str(event["id"]), event)
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # not ours: the topic has the record
        return list(events.values())

    async def _once(self, what: object, read: Callable[[], Awaitable[T]]) -> T:
        """Return what `read` returns, read once a second for all that ask."""
        now = self._clock.monotonic()
        known = self._read.get(what)
        if known is None or now - known[0] >= FRESH_SECONDS:
            known = (now, asyncio.ensure_future(read()))
            known[1].add_done_callback(_note_outcome)
            self._read[what] = known
            self._read.move_to_end(what)
            while len(self._read) > KEPT:
                self._read.popitem(last=False)
        try:
            answer: T = await asyncio.shield(known[1])
        except BrokenInvariant as damage:  # somebody else wrote to the key
            raise StoreUnavailable(str(damage)) from damage
        return answer


def _note_outcome(read: asyncio.Future[Any]) -> None:
    """Take note of a failure, also when whoever asked has left meanwhile."""
    if not read.cancelled():
        read.exception()


def _readable(stored: bytes) -> LiveReport | None:
    """Return a report; None for one that is damaged or of a newer release."""
    try:
        return report_from_json(stored)
    except (ValueError, RecursionError):
        return None
