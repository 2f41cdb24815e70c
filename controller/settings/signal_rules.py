"""The rules file: which signals concern which flags, and what they do to them.

Belongs here: what the file may say, and each fault with its place. Does not belong here: which
flags a signal meets (`controller/responding/matching.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from controller.settings.access_file import FlagPattern
from controller.settings.checked_file import FilePart, parse, read_text
from controller.yaml_places import Path as KeyPath
from schemas.fields import Duration, Switch, at_most
from schemas.signal import Signal
from schemas.terms import SignalAction

RECENT: Final = "recent"

_Written = Annotated[str, Field(min_length=1, max_length=200)]


def as_list(value: object) -> object:
    """Return one text as a list of it. Raises ValueError for what YAML does not read as text."""
    if isinstance(value, str):
        return [value]
    if why := _why_no_text(value):
        raise ValueError(why)
    return value


def _why_no_text(value: object) -> str:
    if value is None:
        return "is empty: write text, or leave the line out"
    if not isinstance(value, bool | int | float | date):
        return ""  # a list, or what is said to be none
    read = str(value).lower() if isinstance(value, bool) else str(value)
    return f"is no text, because YAML reads it as {read}: put it in quotes"


#: One pattern or several, `*` for any characters; letter case does not matter.
Patterns = Annotated[tuple[_Written, ...], BeforeValidator(as_list), Field(max_length=100)]


def fits(text: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a text is like one of these; without a pattern every text is."""
    folded = text.casefold()
    return not patterns or any(fnmatchcase(folded, _literal(one.casefold())) for one in patterns)


def _literal(pattern: str) -> str:
    """Return a pattern in which `*` alone is special: titles often begin with `[prod]`."""
    return pattern.replace("[", "[[]").replace("?", "[?]")


class SignalFilter(FilePart):
    """Which signals a rule is about: those that fit everything it names."""

    hooks: Patterns = ()
    """Endpoints, as in `alertmanager/prod` or `alertmanager/*`."""
    title: Patterns = ()
    service: Patterns = ()
    severity: Patterns = ()
    labels: dict[_Written, Patterns] = Field(default={}, max_length=50)

    def fits(self, signal: Signal) -> bool:
        """Return whether a signal is one of them."""
        return (
            fits(signal.hook, self.hooks)
            and fits(signal.title, self.title)
            and fits(signal.service, self.service)
            and fits(signal.severity, self.severity)
            and all(
                name in signal.labels and fits(signal.labels[name], patterns)
                for name, patterns in self.labels.items()
            )
        )


def _some(patterns: tuple[str, ...]) -> tuple[str, ...]:
    # Not by min_length: it would call a list of one wrong pattern empty.
    if not patterns:
        raise ValueError("is empty: name a flag or a pattern, or write `recent`")
    return patterns


Flags = Annotated[tuple[FlagPattern, ...], BeforeValidator(as_list), AfterValidator(_some)]


class SignalRule(FilePart):
    """What some signals do to some flags."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    when: SignalFilter = SignalFilter()
    flags: Flags
    """Flags by key or pattern. `recent`: those whose percentage rose within `within` before."""
    within: Annotated[Duration, at_most("7d")] = timedelta(minutes=30)
    completed: Switch = False
    """Whether named flags whose rollout has completed are meant, too. The recent ones always are:
    they rose lately."""
    most: Annotated[int, Field(strict=True, ge=1, le=1_000)] | None = None
    """At most so many flags of one signal, the most suspect first. None: 3 of the recent ones, and
    all that are named."""
    order: Literal["suspicion", "newest"] = "suspicion"
    """Which flags come first where `most` leaves some out. `newest`: whose percentage rose last."""
    do: SignalAction
    quiet: Annotated[Duration, at_most("7d")] = timedelta(minutes=10)
    """A flag on which the rule has acted is left alone for so long, whatever fires."""
    dry_run: Switch = False
    """Whether people are only told what would be done."""

    @property
    def is_recent(self) -> bool:
        """Whether it is about flags that rose lately, whichever they are."""
        return self.flags == (RECENT,)

    @property
    def most_flags(self) -> int | None:
        """The most flags of one signal; None: all."""
        return 3 if self.most is None and self.is_recent else self.most

    def names(self, flag_key: str) -> bool:
        """Return whether it names a flag."""
        return any(fnmatchcase(flag_key, pattern) for pattern in self.flags)


class RulesFile(FilePart):
    """Everything that the file says."""

    version: Literal[1] = 1
    rules: Annotated[tuple[SignalRule, ...], Field(max_length=500)] = ()


def read_rules(path: Path) -> RulesFile:
    """Return the file. Raises ConfigInvalid with every fault, one per line, each with its place."""
    return parse_rules(read_text(path, "hooks.rules_file", "use patterns"), str(path))


def parse_rules(text: str, name: str) -> RulesFile:
    """Return what a file's text says; `name` stands before each fault. Raises ConfigInvalid."""
    return parse(text, name, RulesFile, _broken_rules)


def _broken_rules(rules: RulesFile) -> Iterator[tuple[KeyPath, str]]:
    """Yield what the form allows and nobody can mean, each with its place."""
    names: set[str] = set()
    for index, rule in enumerate(rules.rules):
        if rule.name in names:
            yield ("rules", index, "name"), f"there are two rules {rule.name}: rename one"
        names.add(rule.name)
        if RECENT in rule.flags and not rule.is_recent:
            yield (
                ("rules", index, "flags"),
                "`recent` stands alone: make a second rule for the flags that are named",
            )
        if rule.within <= timedelta(0):
            yield ("rules", index, "within"), "nothing rises within no time: write it as in 30m"
        if not rule.is_recent and "within" in rule.model_fields_set:
            yield ("rules", index, "within"), "`within` goes with `flags: recent` alone"
        is_all = rule.flags == ("*",) and rule.when == SignalFilter()
        if is_all and rule.do is not SignalAction.NOTE and not rule.dry_run:
            yield (
                ("rules", index),
                f"every signal would {rule.do} every flag: name signals under `when`, or flags",
            )
