"""Which routes are muted for some news: by the rules file, and by command.

A mute of flags keeps news of them from every route, a mute of a route all news from that route. One
by command leaves critical news alone unless it says otherwise: who types it in a hurry would hide a
roll-back without meaning to.

Belongs here: whether a mute holds. Does not belong here: what is told when it ends (`planner.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from controller.notifying.book import Book, Mute
from controller.notifying.news import News
from controller.notifying.rules import NotificationRules, Route
from controller.settings.signal_rules import fits
from schemas.terms import Severity


@dataclass(frozen=True, slots=True)
class RoutesOfNews:
    """The routes of some news: those that are told of it, and those that are muted."""

    open: Sequence[Route]
    held: Sequence[Route]
    until: datetime | None  # when the first of the muted ones is told; None: none is muted

    @property
    def held_names(self) -> tuple[str, ...]:
        """The names of the muted ones."""
        return tuple(one.name for one in self.held)


def heard(rules: NotificationRules, book: Book, news: News, at: datetime) -> RoutesOfNews:
    """Return which routes hear of some news at a moment."""
    routes = rules.routes_for(news, at)
    ends = [_muted_until(rules, book, route, news, at) for route in routes]
    held = [route for route, end in zip(routes, ends, strict=True) if end is not None]
    return RoutesOfNews(
        open=[route for route in routes if route not in held],
        held=held,
        until=min((end for end in ends if end is not None), default=None),
    )


def is_held(rules: NotificationRules, book: Book, route: str, news: News, at: datetime) -> bool:
    """Return whether nobody hears of some news by a route at a moment."""
    if rules.mute_of(news, at) is not None:
        return True
    return any(_holds(one, route, news, at) for one in book.mutes.values())


def _muted_until(
    rules: NotificationRules, book: Book, route: Route, news: News, at: datetime
) -> datetime | None:
    """Return until when the longest mute holds; None: there is none."""
    by_file = rules.mute_of(news, at)
    ends = [] if by_file is None else [by_file.until]
    ends += [one.until for one in book.mutes.values() if _holds(one, route.name, news, at)]
    return max(ends, default=None)


def _holds(mute: Mute, route: str, news: News, at: datetime) -> bool:
    if at >= mute.until or (news.severity is Severity.CRITICAL and not mute.is_critical_too):
        return False
    return mute.about == route if mute.is_route else fits(news.flag, (mute.about,))
