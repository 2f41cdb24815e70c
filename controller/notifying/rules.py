"""The rules file of notifications: who hears of what, who is next, and what is muted.

Belongs here: what the file may say, and each fault with its place. Does not belong here: the
channels, which have secrets (`notifications.py`), and what follows from the rules
(`controller/notifying/`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, time, timedelta
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from controller.notifying.news import KINDS, News, urgency
from controller.notifying.templates import fault_of
from controller.settings import NotificationsSettings
from controller.settings.checked_file import FilePart, parse, read_text
from controller.settings.signal_rules import Patterns, as_list, fits
from controller.yaml_places import Path
from schemas.fields import Duration, Moment, Switch, at_most
from schemas.terms import WEEKDAYS, Severity, Weekday

_NUMBERS: Final[Mapping[str, int]] = {day: number for number, day in enumerate(WEEKDAYS)}
_TIME: Final = re.compile(r"([01]\d|2[0-3]):[0-5]\d\Z")

RuleName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
ChannelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


ChannelNames = Annotated[tuple[ChannelName, ...], BeforeValidator(as_list), Field(max_length=20)]


def _days(value: object) -> object:
    """Return the days that `mon-fri` or a list of such words names."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        return value
    found: list[object] = []
    for word in words:
        first, dash, last = (part.strip() for part in str(word).lower().partition("-"))
        if dash and first in _NUMBERS and last in _NUMBERS:
            start, end = _NUMBERS[first], _NUMBERS[last]
            wraps = start > end
            found += WEEKDAYS[start:] + WEEKDAYS[: end + 1] if wraps else WEEKDAYS[start : end + 1]
        else:
            found.append(str(word).lower())
    return found


def _clock_time(value: object) -> object:
    # YAML reads 09:30 as the number 570 where nobody quotes it.
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 24 * 60:
        return f"{value // 60:02}:{value % 60:02}"
    return value


def _is_clock_time(value: str) -> str:
    if not _TIME.match(value):
        raise ValueError("is a time of day, as in 09:30")
    return value


ClockTime = Annotated[str, BeforeValidator(_clock_time), AfterValidator(_is_clock_time)]


class Hours(FilePart):
    """Times of the week."""

    days: Annotated[tuple[Weekday, ...], BeforeValidator(_days)] = WEEKDAYS
    start: ClockTime = "00:00"
    end: ClockTime = "00:00"
    """Before `start`: on the next day. The same: the whole day."""
    zone: str = "UTC"

    @field_validator("zone")
    @classmethod
    def _check_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ValueError, OSError, KeyError):
            raise ValueError("is no time zone: write it as in Europe/Vienna") from None
        return value

    def contain(self, at: datetime) -> bool:
        """Return whether a moment lies in them. What began yesterday belongs to yesterday."""
        local = at.astimezone(ZoneInfo(self.zone))
        start, end = time.fromisoformat(self.start), time.fromisoformat(self.end)
        today = WEEKDAYS[local.weekday()] in self.days
        yesterday = WEEKDAYS[local.weekday() - 1] in self.days
        if start < end:
            return today and start <= local.time() < end
        return (today and local.time() >= start) or (yesterday and local.time() < end)


class NewsFilter(FilePart):
    """Which news is meant: what fits everything that is named."""

    flags: Patterns = ()
    owners: Patterns = ()
    kinds: Patterns = ()
    """Such as `rolled_back` or `advanced`; `ops/notifications.md` lists them."""
    severity: Severity | None = None
    """The least. None: any that the rule is for."""
    hours: Hours | None = None

    @field_validator("kinds")
    @classmethod
    def _check_kinds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if not any(fits(kind, (one,)) for kind in KINDS):
                raise ValueError(f"no kind of news is called {one}: ops/notifications.md has all")
        return value

    def fits(self, news: News, at: datetime, least: Severity = Severity.INFO) -> bool:
        """Return whether it means some news; `least` severity where none is named."""
        least = self.severity or least
        return (
            urgency(news.severity) >= urgency(least)
            and fits(news.flag, self.flags)
            and fits(news.owner, self.owners)
            and fits(news.kind, self.kinds)
            and (self.hours is None or self.hours.contain(at))
        )

    @property
    def words(self) -> str:
        """What is meant, for people."""
        named = [
            f"{name} {', '.join(patterns)}"
            for name, patterns in (
                ("flags", self.flags),
                ("owners", self.owners),
                ("kinds", self.kinds),
            )
            if patterns
        ]
        named += [] if self.severity is None else [f"severity {self.severity.value} and worse"]
        named += [] if self.hours is None else ["at certain hours"]
        return "; ".join(named) or "everything"


class Route(FilePart):
    """Who hears of some news. The first route that fits takes it."""

    name: RuleName
    when: NewsFilter = NewsFilter()
    """A route without `severity` and without `kinds` is for warnings and worse."""
    to: ChannelNames
    """Channels. Empty: nobody hears of it."""
    escalation: RuleName | None = None
    """What happens until somebody takes it. None: it is told once."""
    go_on: Switch = False
    """Whether the routes below are tried as well."""

    def fits(self, news: News, at: datetime) -> bool:
        """Return whether it is for some news."""
        return self.when.fits(news, at, Severity.INFO if self.when.kinds else Severity.WARNING)


class EscalationStep(FilePart):
    """Who is next."""

    after: Annotated[Duration, at_most("7d")]
    """Time since the incident began."""
    to: ChannelNames


class Escalation(FilePart):
    """What happens until somebody takes an incident, or it is over."""

    name: RuleName
    severity: Severity = Severity.CRITICAL
    """Incidents of less are told once."""
    repeat: Annotated[Duration, at_most("7d")] | None = None
    """Everybody who was told hears of it again after so long. None: not again."""
    steps: Annotated[tuple[EscalationStep, ...], Field(max_length=20)] = ()


class MuteRule(FilePart):
    """News that nobody hears of for some time. What is not over by then is told then."""

    name: RuleName
    when: NewsFilter
    start: Moment | None = None
    """None: it has begun."""
    until: Moment
    reason: Annotated[str, Field(max_length=300)] = ""

    def holds(self, news: News, at: datetime) -> bool:
        """Return whether it mutes some news at a moment."""
        has_begun = self.start is None or self.start <= at
        return has_begun and at < self.until and self.when.fits(news, at)


class Template(FilePart):
    """Words of our own for some channels, as Jinja2. What it can use: `ops/notifications.md`."""

    channels: ChannelNames
    title: Annotated[str, Field(min_length=1, max_length=2_000)] | None = None
    text: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None


class NotificationRules(FilePart):
    """Everything that the file says."""

    version: Literal[1] = 1
    routes: Annotated[tuple[Route, ...], Field(max_length=500)] = ()
    escalations: Annotated[tuple[Escalation, ...], Field(max_length=100)] = ()
    mutes: Annotated[tuple[MuteRule, ...], Field(max_length=500)] = ()
    templates: Annotated[tuple[Template, ...], Field(max_length=100)] = ()

    def routes_for(self, news: News, at: datetime) -> list[Route]:
        """Return the routes that take some news, in the file's order."""
        found: list[Route] = []
        for route in self.routes:
            if route.fits(news, at):
                found.append(route)
                if not route.go_on:
                    break
        return found

    def mute_of(self, news: News, at: datetime) -> MuteRule | None:
        """Return the mute that holds longest of those for some news."""
        holding = [one for one in self.mutes if one.holds(news, at)]
        return max(holding, key=lambda one: one.until, default=None)

    def escalation(self, name: str, route: str, news: News, at: datetime) -> Escalation | None:
        """Return an escalation by name, or what takes its place: it may have been renamed.

        That is what its route has now, or where the route was renamed, too, what is for the news.
        """
        by_name = {one.name: one for one in self.escalations}
        if name in by_name:
            return by_name[name]
        routes = [one for one in self.routes if one.name == route] or self.routes_for(news, at)
        present = (one.escalation for one in routes if one.escalation is not None)
        return by_name.get(next(present, ""))


def default_rules(channels: Collection[str]) -> NotificationRules:
    """Return the rules without a file: every channel hears of warnings and worse."""
    return NotificationRules(routes=(Route(name="everything", to=tuple(channels)),))


def rules_of(settings: NotificationsSettings) -> NotificationRules:
    """Return the rules that hold.

    Raises ConfigInvalid with every fault of the file, one per line, each with its place.
    """
    path, channels = settings.rules_file, settings.channels
    if path is None:
        return default_rules(channels)
    text = read_text(path, "notifications.rules_file", "use patterns")
    made = parse_notification_rules(text, str(path), channels)
    if made.routes:
        return made
    # A file of mutes or templates alone must not silence everything.
    return made.model_copy(update={"routes": default_rules(channels).routes})


def parse_notification_rules(
    text: str, name: str, channels: Collection[str] | None
) -> NotificationRules:
    """Return what a file's text says; `name` stands before each fault. Raises ConfigInvalid.

    `channels` are those of the settings; None: not known.
    """
    return parse(text, name, NotificationRules, lambda made: _broken_rules(made, channels))


def _broken_rules(
    rules: NotificationRules, channels: Collection[str] | None
) -> Iterator[tuple[Path, str]]:
    """Yield what the form allows and nobody can mean, each with its place."""
    yield from _repeated_names(rules)
    yield from _unknown_channels(rules, channels)
    known = {one.name for one in rules.escalations}
    for index, route in enumerate(rules.routes):
        if route.escalation is not None and route.escalation not in known:
            yield (
                ("routes", index, "escalation"),
                f"there is no escalation {route.escalation}: name one of `escalations`",
            )
        if route.escalation is not None and not route.to:
            yield ("routes", index, "escalation"), "nobody is told, so nothing escalates"
        is_all = route.when == NewsFilter(severity=Severity.INFO) or route.when.kinds == ("*",)
        below = rules.routes[index + 1 :]
        if is_all and not route.go_on and below:
            yield (
                ("routes", index),
                f"takes all, so that {below[0].name} below gets none: add `go_on: true` or move it",
            )
    for index, escalation in enumerate(rules.escalations):
        if escalation.repeat is None and not escalation.steps:
            yield ("escalations", index), "does nothing: give it `repeat` or `steps`"
        if escalation.repeat is not None and escalation.repeat < timedelta(minutes=1):
            yield ("escalations", index, "repeat"), "is less than a minute"
        times = [step.after for step in escalation.steps]
        if times != sorted(times):
            yield ("escalations", index, "steps"), "are not in the order of their times"
    for index, mute in enumerate(rules.mutes):
        if mute.start is not None and mute.start >= mute.until:
            yield ("mutes", index, "until"), "is not after `start`"
    yield from _unusable_templates(rules)


def _repeated_names(rules: NotificationRules) -> Iterator[tuple[Path, str]]:
    parts: dict[str, tuple[Any, ...]] = {
        "routes": rules.routes,
        "escalations": rules.escalations,
        "mutes": rules.mutes,
    }
    for part, entries in parts.items():
        names: set[str] = set()
        for index, one in enumerate(entries):
            if one.name in names:
                yield (part, index, "name"), f"there are two called {one.name}: rename one"
            names.add(one.name)


def _unknown_channels(
    rules: NotificationRules, channels: Collection[str] | None
) -> Iterator[tuple[Path, str]]:
    if channels is None:
        return
    named = [(("routes", at, "to"), one.to) for at, one in enumerate(rules.routes)]
    named += [
        (("escalations", at, "steps", step, "to"), each.to)  # type: ignore[misc]
        for at, one in enumerate(rules.escalations)
        for step, each in enumerate(one.steps)
    ]
    named += [
        (("templates", at, "channels"), one.channels) for at, one in enumerate(rules.templates)
    ]
    for place, names in named:
        for name in names:
            if name not in channels:
                known = ", ".join(sorted(channels)) or "none"
                yield place, f"there is no channel {name}; notifications.channels has: {known}"


def _unusable_templates(rules: NotificationRules) -> Iterator[tuple[Path, str]]:

    for index, template in enumerate(rules.templates):
        for name, source in (("title", template.title), ("text", template.text)):
            if source is not None and (why := fault_of(source)):
                yield ("templates", index, name), why
