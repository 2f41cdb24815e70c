"""Decides who hears of what, and when next. Pure: the book, the rules and the time are arguments.

    news (info)      closes the incident of its key, if there is one
    news (warning+)  opens an incident, or tells what has changed about it
    a step           a decision by which a rollout went on: what it waited for is over
    acknowledged     everybody who was told hears it, and nothing is repeated or escalated any more
    time             escalates, repeats, ends mutes

An incident is open from the first warning under a key to what ends it. While it is open, everybody
who was told of it is also told that it is over.

Belongs here: these rules. Does not belong here: reading, sending and saving (`notifier.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import msgspec

from controller.notifying.book import (
    MOST_INCIDENTS,
    MOST_RECENT,
    Book,
    FlagNews,
    Incident,
    Purpose,
)
from controller.notifying.mutes import RoutesOfNews, heard, is_held
from controller.notifying.news import DecisionStep, News, urgency
from controller.notifying.rules import Escalation, NotificationRules, Route
from controller.notifying.upkeep import Refresher, make_room
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
        AlertKind.WEBHOOK_HOLDS,
        AlertKind.HEALTH_GAP,
        AlertKind.SIGNAL_REGRESSION,
        AlertKind.SRM,
        AlertKind.PLAN_EXPIRED,
        AlertKind.PREFLIGHT,
        AlertKind.BREACH,
        AlertKind.FOREIGN_EDIT,
    }
)
#: Alerts of which nothing will be said later: they are told, and open nothing. All others last
#: until their all-clear, or until another rollout of the flag begins.
_TOLD_ONCE: Final = frozenset(
    {
        AlertKind.FORCED,
        AlertKind.FLAG_DIGEST,
        AlertKind.ANOMALY,
        AlertKind.RETIRED,
        AlertKind.COMPLETED,
    }
)
#: An incident of which nothing was heard for so long is forgotten.
FORGOTTEN: Final = timedelta(days=14)


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
        self._refresher = Refresher(book, channels.forgetful)

    # --- what was read ---

    def take(self, news: News | None, step: DecisionStep | None, now: datetime) -> None:
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
        routes = heard(self.rules, self.book, news, now)
        routed = _channels(routes.open)
        if news.severity is Severity.INFO:
            if incident is not None:
                return self._close(incident, news, routed, now)
            return self._send(routed, news, Purpose.NOTE, now, routes.open)
        if incident is not None:
            return self._update(incident, news, routes, now)
        if not routed and not _channels(routes.held):
            return ()
        is_lasting = self._is_lasting(news) and len(self.book.incidents) < MOST_INCIDENTS
        purpose = Purpose.NEWS if is_lasting else Purpose.NOTE
        self._send(routed, news, purpose, now, routes.open)
        if is_lasting:
            told = tuple(routed)
            opened = Incident(news, now, told, now, muted_until=None if told else routes.until)
            self.book.open(news.key, _along(opened, routes.open, held=routes.held_names))
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
        self, incident: Incident, news: News, routes: RoutesOfNews, now: datetime
    ) -> Collection[str]:
        """Tell what has changed about an incident; the same again is not told."""
        was = incident.news
        said = (was.severity, was.summary, was.action, was.cause)
        if said == (news.severity, news.summary, news.action, news.cause):
            return incident.told
        changed = msgspec.structs.replace(
            incident, news=news, held=_union(incident.held, routes.held_names)
        )
        if (was.severity, was.kind, was.owner) != (news.severity, news.kind, news.owner):
            # Alertmanager knows an alert by these: what it has ends, and another one begins.
            forgetful = [one for one in incident.told if one in self._channels.forgetful]
            self._send(forgetful, was, Purpose.OVER, now)
        if urgency(news.severity) > urgency(was.severity):
            # Whoever took the lesser one has not taken this one.
            changed = msgspec.structs.replace(
                changed, opened_at=now, steps_done=0, taken_by="", taken_at=None
            )
        self.book.open(news.key, changed)
        if incident.muted_until is not None:
            return self._release(news.key, changed, now)
        routed = _channels(routes.open)
        muted = [one for one in _channels(routes.held) if one not in routed]
        channels = [one for one in _union(incident.told, routed) if one not in muted]
        if channels:
            self._send(channels, news, Purpose.NEWS, now)
            told = msgspec.structs.replace(
                changed, told=_union(incident.told, channels), told_at=now
            )
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
        self.book.close(news.key, now, news.summary)
        return channels

    def _end(self, step: DecisionStep, heard: Collection[str], now: datetime) -> None:
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
            why = "a new rollout began" if step.is_new_chapter else "the rollout went on"
            self.book.close(key, now, why)

    # --- people and time ---

    def acknowledge(
        self,
        word: str,
        who: str,
        now: datetime,
        *,
        is_person: bool = True,
        opened_at: datetime | None = None,
    ) -> list[str]:
        """Note that somebody takes an incident by its key, or all of a flag; return their keys.

        `is_person`: False for another system, whose own keys may be like our flags. `opened_at`:
        only the incident that began then, which is the one that was seen; None: any.
        """
        taken = []
        for key, incident in list(self.book.incidents.items()):
            is_meant = word == key or (is_person and word == incident.news.flag)
            is_seen = opened_at is None or opened_at == incident.opened_at
            if is_meant and is_seen and incident.taken_at is None:
                taken.append(key)
                self.book.open(key, msgspec.structs.replace(incident, taken_by=who, taken_at=now))
                told = [one for one in incident.told if one not in self._channels.forgetful]
                self._send(told, incident.news, Purpose.TAKEN, now, by=who)
        return taken

    def do_due(self, now: datetime) -> None:
        """Do what is due by now."""
        for key, known in list(self.book.incidents.items()):
            if now - max(known.told_at, known.opened_at) > FORGOTTEN:
                self.book.close(key, now, f"nothing was heard of it for {FORGOTTEN.days} days")
                continue
            if known.held:
                self._release(key, known, now)
            incident = self.book.incidents[key]
            if incident.muted_until is None and incident.taken_at is None:
                self._escalate(key, incident, now)
        self._refresher.refresh(now)
        make_room(self.book, now)
        self.book.tidy(now)

    def _release(self, key: str, incident: Incident, now: datetime) -> Sequence[str]:
        """Tell those routes of an incident whose mute is over; return the channels."""
        routes = heard(self.rules, self.book, incident.news, now)
        held = tuple(one for one in routes.held_names if one in incident.held)
        free = [one for one in routes.open if one.name in incident.held]
        if incident.muted_until is not None:
            held, free = routes.held_names, list(routes.open)
        if incident.taken_at is not None:
            free = []  # somebody knows already
        until = routes.until if incident.muted_until is not None and held and not free else None
        changed = msgspec.structs.replace(incident, held=held, muted_until=until)
        told = _channels(free)
        if told:
            self._send(told, incident.news, Purpose.NEWS, now, free)
            changed = msgspec.structs.replace(
                changed, told=_union(incident.told, told), told_at=now
            )
            if not changed.escalation:
                changed = msgspec.structs.replace(_along(changed, free, held), opened_at=now)
        if changed != incident:
            self.book.open(key, changed)
        return told

    def _escalate(self, key: str, incident: Incident, now: datetime) -> None:
        """Tell the next ones, or everybody again, when it is time."""
        escalation = self._escalation_of(incident)
        if escalation is None:
            return
        if is_held(self.rules, self.book, incident.route, incident.news, now):
            return  # what is due by then follows when the mute ends
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
        # Most incidents have none, and all of them are looked at every second.
        if not incident.escalation:
            return None
        news, opened_at = incident.news, incident.opened_at
        found = self.rules.escalation(incident.escalation, incident.route, news, opened_at)
        if found is None or urgency(news.severity) < urgency(found.severity):
            return None
        return found

    def next_step(self, incident: Incident) -> tuple[datetime, Sequence[str]] | None:
        """Return when others are told of an incident, and which channels; None: never."""
        escalation = self._escalation_of(incident)
        if incident.muted_until is not None:
            return incident.muted_until, ()
        if escalation is None or incident.taken_at is not None:
            return None
        steps = [
            (incident.opened_at + one.after, one.to)
            for one in escalation.steps[incident.steps_done :]
        ]
        if escalation.repeat is not None:
            steps.append((incident.told_at + escalation.repeat, incident.told))
        return min(steps, key=lambda one: one[0], default=None)

    # --- sending ---

    def _send(
        self,
        channels: Iterable[str],
        news: News,
        purpose: Purpose,
        now: datetime,
        routes: Iterable[Route] = (),
        by: str = "",
    ) -> list[str]:
        """Let channels get a message; return them."""
        told = [one for one in channels if one in self._channels.known]
        names = {channel: one.name for one in routes for channel in one.to}
        for channel in told:
            self.book.add(channel, news, purpose, now, names.get(channel, ""), by)
        return told

    def drop_unknown_channels(self, now: datetime) -> None:
        """Give up what waits for channels that the settings have no more."""
        for name, queue in list(self.book.queues.items()):
            if name not in self._channels.known:
                for one in list(queue.values()):
                    self.book.bury(one, "the settings have no such channel any more", now)


def _along(incident: Incident, routes: Sequence[Route], held: tuple[str, ...]) -> Incident:
    """Return an incident with the route that says what happens until somebody takes it."""
    escalating = next((one for one in routes if one.escalation is not None), None)
    first = escalating or (routes[0] if routes else None)
    return msgspec.structs.replace(
        incident,
        held=held,
        route="" if first is None else first.name,
        escalation="" if escalating is None else escalating.escalation or "",
    )


def _channels(routes: Iterable[Route]) -> list[str]:
    """Return the channels of some routes, each once."""
    return list(_union(*(one.to for one in routes)))


def _union(*lists: Iterable[str]) -> tuple[str, ...]:
    """Return all names, each once, in order."""
    return tuple(dict.fromkeys(name for names in lists for name in names))
