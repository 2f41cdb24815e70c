"""Decides who hears of what, and when next. Pure: the book, the rules and the time are arguments.

    news (info)      closes the incident of its key, if there is one
    news (warning+)  opens an incident, or tells what has changed about it
    a step           a decision by which a rollout went on: what it waited for is over
    acknowledged     nothing is repeated or escalated any more
    time             escalates, repeats, ends mutes

An incident is open from the first warning under a key to what ends it. While it is open, everybody
who was told of it is also told that it is over.

Belongs here: these rules. Does not belong here: reading, sending and saving (`notifier.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec

from controller.notifying.book import (
    MOST_INCIDENTS,
    MOST_RECENT,
    MOST_WAITING,
    Book,
    Delivery,
    FlagNews,
    Incident,
    Purpose,
)
from controller.notifying.news import News, Step, urgency
from controller.notifying.rules import Escalation, NotificationRules, Route
from schemas.terms import AlertKind, Severity

#: Alerts about what a rollout waits for, or what became of it: its next step ends them.
_UNTIL_NEXT_STEP: Final = frozenset(
    {
        AlertKind.ROLLED_BACK,
        AlertKind.ENDED,
        AlertKind.ABORTED,
        AlertKind.STEPPED_BACK,
        AlertKind.PAUSED,
        AlertKind.APPROVAL_NEEDED,
        AlertKind.ADVISOR_HOLDS,
        AlertKind.HEALTH_GAP,
        AlertKind.SIGNAL_REGRESSION,
        AlertKind.SRM,
        AlertKind.PLAN_EXPIRED,
        AlertKind.PREFLIGHT,
        AlertKind.BREACH,
    }
)
#: Alerts of which nothing will be said later: they are told, and open nothing.
_TOLD_ONCE: Final = frozenset(
    {AlertKind.FORCED, AlertKind.FLAG_DIGEST, AlertKind.ANOMALY, AlertKind.RETIRED}
)
#: An incident of which nothing was heard for so long is forgotten.
FORGOTTEN: Final = timedelta(days=14)
#: How often a channel that forgets (Alertmanager) hears of an open incident.
REFRESH_EVERY: Final = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Told:
    """The channels that there are, and those that differ from a chat."""

    known: frozenset[str]
    tracking: frozenset[str] = frozenset()  # keep an incident open until they hear that it is over
    forgetful: frozenset[str] = frozenset()  # of these, what they do not hear again


class Planner:
    """Changes the book."""

    def __init__(self, book: Book, rules: NotificationRules, channels: Told) -> None:
        self.book = book
        self.rules = rules
        self._channels = channels
        self._refreshed: dict[tuple[str, str], datetime] = {}  # by key and channel

    # --- what was read ---

    def take(self, news: News | None, step: Step | None, now: datetime) -> None:
        """Take one record: what it tells, and what it ends."""
        if news is not None and not self._is_new(news, now):
            return
        heard = () if news is None else self._tell(news, now)
        if step is not None:
            self._end(step, heard, now)

    def _is_new(self, news: News, now: datetime) -> bool:
        known = self.book.flags.get(news.flag, FlagNews(now))
        if news.id in known.recent:
            return False
        recent = (*known.recent, news.id)[-MOST_RECENT:]
        self.book.of_flag(news.flag, msgspec.structs.replace(known, at=now, recent=recent))
        return True

    def _tell(self, news: News, now: datetime) -> Collection[str]:
        """Tell some news; return the channels that hear of it."""
        incident = self.book.incidents.get(news.key)
        routes = self.rules.routes_for(news, now)
        routed = _channels(routes)
        mute = self.rules.mute_of(news, now)
        if news.severity is Severity.INFO:
            if incident is not None:
                return self._close(incident, news, routed if mute is None else (), now)
            return self._send(routed if mute is None else (), news, Purpose.NOTE, now, routes)
        if incident is not None:
            return self._update(incident, news, routed, now, is_muted=mute is not None)
        if not routed:
            return ()
        is_lasting = self._is_lasting(news) and len(self.book.incidents) < MOST_INCIDENTS
        if mute is None:
            self._send(routed, news, Purpose.NEWS if is_lasting else Purpose.NOTE, now, routes)
        if not is_lasting:
            return routed
        escalating = next((one for one in routes if one.escalation is not None), None)
        self.book.open(
            news.key,
            Incident(
                news=news,
                opened_at=now,
                told=() if mute is not None else tuple(routed),
                told_at=now,
                route=routes[0].name if routes else "",
                escalation="" if escalating is None else escalating.escalation or "",
                muted_until=None if mute is None else mute.until,
            ),
        )
        return routed

    def _is_lasting(self, news: News) -> bool:
        """Return whether some news opens an incident."""
        if news.kind in _TOLD_ONCE:
            return False
        seen = self.book.flags[news.flag]
        # The topics of alerts and decisions are read side by side: its end may be known already.
        is_past = seen.rollout == news.rollout_id and seen.moved > news.revision
        return not (is_past and news.kind in _UNTIL_NEXT_STEP)

    def _update(
        self,
        incident: Incident,
        news: News,
        routed: Collection[str],
        now: datetime,
        *,
        is_muted: bool,
    ) -> Collection[str]:
        """Tell what has changed about an incident; the same again is not told."""
        was = incident.news
        is_worse = urgency(news.severity) > urgency(was.severity)
        said = (was.severity, was.summary, was.action, was.cause)
        if said == (news.severity, news.summary, news.action, news.cause):
            return incident.told
        changed = msgspec.structs.replace(incident, news=news)
        if is_worse:  # whoever took the lesser one has not taken this one
            changed = msgspec.structs.replace(
                changed, opened_at=now, steps_done=0, taken_by="", taken_at=None
            )
        if is_muted or incident.muted_until is not None:
            self.book.open(news.key, changed)
            return ()
        channels = _union(incident.told, routed)
        self._send(channels, news, Purpose.NEWS, now)
        told = msgspec.structs.replace(changed, told=channels, told_at=now)
        self.book.open(news.key, told)
        return channels

    def _close(
        self, incident: Incident, news: News, routed: Iterable[str], now: datetime
    ) -> Collection[str]:
        """Tell everybody who was told of an incident that it is over."""
        channels = _union(incident.told, routed)
        for channel in incident.told:
            # A chat hears what became of it; who keeps it open knows it by what opened it.
            told = incident.news if channel in self._channels.tracking else news
            self._send([channel], told, Purpose.OVER, now)
        self._send([one for one in routed if one not in incident.told], news, Purpose.NOTE, now)
        self.book.close(news.key)
        return channels

    def _end(self, step: Step, heard: Collection[str], now: datetime) -> None:
        """End what a rollout waited for; `heard` are the channels that were told of the step."""
        seen = self.book.flags.get(step.flag, FlagNews(now))
        if seen.rollout != step.rollout_id or step.revision > seen.moved:
            moved = msgspec.structs.replace(
                seen, at=now, rollout=step.rollout_id, moved=step.revision
            )
            self.book.of_flag(step.flag, moved)
        for key, incident in list(self.book.incidents.items()):
            was = incident.news
            if was.flag != step.flag or was.revision >= step.revision:
                continue
            if not (step.is_new_chapter or was.kind in _UNTIL_NEXT_STEP):
                continue
            # A chat shows what the rollout did. Who keeps an incident open must hear of its end,
            # and so must who was asked for because nobody came.
            owed = [
                one
                for one in incident.told
                if one in self._channels.tracking
                or (one in incident.escalated_to and one not in heard)
            ]
            self._send(owed, was, Purpose.OVER, now)
            self.book.close(key)

    # --- people and time ---

    def acknowledge(
        self, word: str, who: str, now: datetime, *, is_person: bool = True
    ) -> list[str]:
        """Note that somebody takes an incident by its key, or all of a flag; return their keys.

        `is_person`: False for another system, whose own keys may be like our flags.
        """
        taken = []
        for key, incident in list(self.book.incidents.items()):
            is_meant = word == key or (is_person and word == incident.news.flag)
            if is_meant and incident.taken_at is None:
                taken.append(key)
                self.book.open(key, msgspec.structs.replace(incident, taken_by=who, taken_at=now))
        return taken

    def look(self, now: datetime) -> None:
        """Do what is due by now."""
        for key, incident in list(self.book.incidents.items()):
            if now - max(incident.told_at, incident.opened_at) > FORGOTTEN:
                self.book.close(key)
            elif incident.muted_until is not None:
                if now >= incident.muted_until:
                    self._unmute(key, incident, now)
            else:
                if incident.taken_at is None:
                    self._escalate(key, incident, now)
                self._refresh(key, incident, now)
        for name in [one for one in self._refreshed if one[0] not in self.book.incidents]:
            del self._refreshed[name]
        if self.book.waits > MOST_WAITING:
            self._make_room(now)
        self.book.tidy(now)

    def _unmute(self, key: str, incident: Incident, now: datetime) -> None:
        """Tell of what began while it was muted and is not over, or mute it further."""
        if (mute := self.rules.mute_of(incident.news, now)) is not None:
            self.book.open(key, msgspec.structs.replace(incident, muted_until=mute.until))
            return
        routes = self.rules.routes_for(incident.news, now)
        routed = _channels(routes)
        self._send(routed, incident.news, Purpose.NEWS, now, routes)
        told = msgspec.structs.replace(
            incident, muted_until=None, opened_at=now, told=tuple(routed), told_at=now
        )
        self.book.open(key, told)

    def _escalate(self, key: str, incident: Incident, now: datetime) -> None:
        """Tell the next ones, or everybody again, when it is time."""
        escalation = self._escalation_of(incident)
        if escalation is None:
            return
        due = [
            step
            for step in escalation.steps[incident.steps_done :]
            if incident.opened_at + step.after <= now
        ]
        after = incident
        if due:
            new = [one for step in due for one in step.to]
            self._send(_union(new), incident.news, Purpose.ESCALATED, now)
            after = msgspec.structs.replace(
                after,
                told=_union(incident.told, new),
                steps_done=incident.steps_done + len(due),
                escalated_to=_union(
                    incident.escalated_to, [one for one in new if one not in incident.told]
                ),
            )
        if escalation.repeat is not None and incident.told_at + escalation.repeat <= now:
            again = [one for one in incident.told if not any(one in step.to for step in due)]
            self._send(again, incident.news, Purpose.REPEAT, now)
            after = msgspec.structs.replace(after, told_at=now)
        if after is not incident:
            self.book.open(key, after)

    def _escalation_of(self, incident: Incident) -> Escalation | None:
        found = self.rules.escalation(incident.escalation)
        if found is None or urgency(incident.news.severity) < urgency(found.severity):
            return None
        return found

    def next_look(self, incident: Incident) -> datetime | None:
        """Return when an incident escalates or is repeated next; None: never."""
        escalation = self._escalation_of(incident)
        if incident.muted_until is not None:
            return incident.muted_until
        if escalation is None or incident.taken_at is not None:
            return None
        times = [incident.opened_at + one.after for one in escalation.steps[incident.steps_done :]]
        if escalation.repeat is not None:
            times.append(incident.told_at + escalation.repeat)
        return min(times, default=None)

    def _refresh(self, key: str, incident: Incident, now: datetime) -> None:
        """Tell channels that forget of an incident that is still open."""
        for channel in incident.told:
            if channel not in self._channels.forgetful:
                continue
            last = self._refreshed.setdefault((key, channel), incident.told_at)
            if now - last < REFRESH_EVERY:
                continue
            self._refreshed[key, channel] = now
            if not any(one.news.key == key for one in self.book.waiting(channel)):
                self.book.add(channel, incident.news, Purpose.REFRESH, now, incident.route)

    # --- sending ---

    def _send(
        self,
        channels: Iterable[str],
        news: News,
        purpose: Purpose,
        now: datetime,
        routes: Iterable[Route] = (),
    ) -> list[str]:
        """Let channels get a message; return them."""
        told = [one for one in channels if one in self._channels.known]
        names = {channel: one.name for one in routes for channel in one.to}
        for channel in told:
            self.book.add(channel, news, purpose, now, names.get(channel, ""))
        return told

    def drop_unknown_channels(self, now: datetime) -> None:
        """Give up what waits for channels that the settings have no more."""
        for name, queue in list(self.book.queues.items()):
            if name not in self._channels.known:
                for one in list(queue.values()):
                    self.book.bury(one, "the settings have no such channel any more", now)

    def _make_room(self, now: datetime) -> None:
        """Give up the oldest of the least urgent messages of the channel with most of them."""
        while self.book.waits > MOST_WAITING:
            queue = max(self.book.queues.values(), key=len)
            least: Delivery = min(
                queue.values(), key=lambda one: (urgency(one.news.severity), one.number)
            )
            self.book.bury(least, f"more than {MOST_WAITING:,} messages wait", now)


def _channels(routes: Iterable[Route]) -> list[str]:
    """Return the channels of some routes, each once."""
    return list(_union(*(one.to for one in routes)))


def _union(*lists: Iterable[str]) -> tuple[str, ...]:
    """Return all names, each once, in order."""
    return tuple(dict.fromkeys(name for names in lists for name in names))
