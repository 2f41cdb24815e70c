"""What is done with a long book at each beat, in time that grows with its length and no faster.

The loop that does it decides about flags, too: a storm fills a book with thousands of incidents and
messages, and no decision may wait while they are gone through.

Belongs here: room for what waits, and channels that forget. Does not belong here: who hears of what
(`planner.py`), and entries that are old (`book.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime, timedelta
from typing import Final

from controller.notifying.book import MOST_WAITING, Book, Delivery, Purpose
from controller.notifying.news import urgency

#: How often a channel that forgets (Alertmanager) hears of an open incident.
REFRESH_EVERY: Final = timedelta(minutes=2)


class Refresher:
    """Tells channels that forget of what is still open."""

    def __init__(self, book: Book, forgetful: Collection[str]) -> None:
        """`forgetful`: the channels that forget what they do not hear again."""
        self._book = book
        self._forgetful = forgetful
        self._told_at: dict[tuple[str, str], datetime] = {}  # by key and channel

    def refresh(self, now: datetime) -> None:
        """Let each hear of what it was told long ago, unless it waits to hear of it anyway."""
        open_ = self._book.incidents
        for name in [one for one in self._told_at if one[0] not in open_]:
            del self._told_at[name]
        if not self._forgetful:
            return
        waits: dict[str, set[str]] = {}  # keys by channel, gone through once and not by incident
        for key, incident in open_.items():
            if incident.muted_until is not None:
                continue
            for channel in incident.told:
                if channel not in self._forgetful:
                    continue
                last = self._told_at.setdefault((key, channel), incident.told_at)
                if now - last < REFRESH_EVERY:
                    continue
                self._told_at[key, channel] = now
                if channel not in waits:
                    waits[channel] = {one.news.key for one in self._book.waiting(channel)}
                if key not in waits[channel]:
                    self._book.add(channel, incident.news, Purpose.REFRESH, now, incident.route)


def make_room(book: Book, now: datetime) -> None:
    """Give up the oldest of the least urgent messages of the channel with most of them."""
    candidates: dict[str, Iterator[Delivery]] = {}
    while book.waits > MOST_WAITING:
        longest = max(book.queues, key=lambda name: len(book.queues[name]))
        if longest not in candidates:
            by_need = sorted(book.waiting(longest), key=lambda one: urgency(one.news.severity))
            candidates[longest] = iter(by_need)  # stable: the oldest first among equals
        least = next(candidates[longest])
        book.bury(least, f"more than {MOST_WAITING:,} messages wait", now)
