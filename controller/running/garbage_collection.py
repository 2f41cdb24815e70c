"""When Python's garbage collector looks for cycles: young objects often, all of them seldom.

By itself CPython goes through all objects once a quarter more have outlived two other passes. With
10,000 rollouts each look at all of them makes a million objects that live until the next. So it
would come about every three minutes, find next to nothing, and hold up the event loop for 0.8 s:
longer than it takes to see a breach and to lower the flag. Passes over young objects took 0.2 s,
and while such a replica started, six passes over all took 0.6 s together.

Hence: young objects by CPython's own rule, in steps that a loop can bear; all objects by a loop of
ours, which takes a thousandth of the time: with 10,000 rollouts 0.8 s each quarter of an hour.
Counting adds that it folds without a pass, and what it keeps out of all of them
(`counting/ingest.py`, `counting/pair_order.py`).
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Final

import structlog

from controller.ports import Clock

#: New objects from which on a pass comes. Records come by the hundred and are freed without one. At
#: the usual 700 it would come with every fetch, and cost 4 % of the whole.
YOUNG_OBJECTS: Final = 20_000
#: With more passes over young objects than this, the next one also visits those that they left:
#: 100,000 in all, which takes 50 to 80 ms. At the usual 10 it takes 200.
YOUNG_PASSES: Final = 3
_NEVER: Final = 2**31 - 1
#: Of the time that passes over all objects may take.
TIME_SHARE: Final = 0.001
SOONEST_SECONDS: Final = 60.0
LATEST_SECONDS: Final = 3_600.0

log = structlog.get_logger(__name__)


def limit_collections() -> None:
    """Have CPython visit only young objects by itself.

    In 3.14.0 to 3.14.4 each pass also goes through some of the old ones, and the last of these
    thresholds means nothing.
    """
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_PASSES, _NEVER)


class FullCollections:
    """Visits all objects now and then."""

    def __init__(self, clock: Clock, visit_all: Callable[[], int] = gc.collect) -> None:
        """`visit_all` visits them, and returns how many it found in cycles that nobody uses."""
        self._clock = clock
        self._visit_all = visit_all
        self.seconds = 0.0  # that the event loop stood still for it so far

    async def run(self) -> None:
        """Visit them again and again, so seldom that it takes a thousandth of the time."""
        pause = SOONEST_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = self.visit()

    def visit(self) -> float:
        """Visit all objects; return the seconds until the next time."""
        began = self._clock.monotonic()
        found = self._visit_all()
        seconds = self._clock.monotonic() - began
        self.seconds += seconds
        log.debug("garbage_collected", objects=found, seconds=round(seconds, 3))
        return min(max(seconds / TIME_SHARE, SOONEST_SECONDS), LATEST_SECONDS)
