"""Words of an operator for a channel: Jinja2 in its sandbox.

A template that fails must not cost an alert: our own words are sent instead, and the fault is told.

Belongs here: filling templates in, and what they may use. Does not belong here: our own words
(`words.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, Protocol

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from controller.notifying.book import Delivery
from controller.notifying.words import LONGEST_TEXT, LONGEST_TITLE, Message
from controller.text import one_line

#: What a template can use, with an example: a template is tried with these.
EXAMPLE: Final[Mapping[str, Any]] = {
    "title": "new-checkout is at 0 %: error rate 4.1 % against 1.0 %",
    "text": "What to do: look at the errors, then start again",
    "summary": "new-checkout is at 0 %: error rate 4.1 % against 1.0 %",
    "action": "look at the errors, then start again",
    "cause": "",
    "flag": "new-checkout",
    "owner": "payments",
    "kind": "rolled_back",
    "severity": "critical",
    "phase": "rolled_back",
    "percent": 0.0,
    "stage": "10%",
    "rollout_id": "1",
    "environment": "production",
    "purpose": "news",
    "at": "2026-11-24T03:00:00+00:00",
    "link": "https://rollouts.example.com/ui/rollouts/new-checkout",
    "exposed": 1200,
    "failed": 49,
}

#: A loop over a million numbers is nobody's message.
_LARGEST_RANGE: Final = 1_000


def _small_range(*numbers: int) -> range:
    made = range(*numbers)
    if len(made) > _LARGEST_RANGE:
        raise SecurityError(f"a range of more than {_LARGEST_RANGE}")
    return made


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, without what makes a text of gigabytes of a few characters."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply numbers, and nothing else. Raises SecurityError."""
        are_numbers = all(isinstance(one, int | float) for one in (left, right))
        if operator == "**" or not are_numbers:
            raise SecurityError(f"{operator} of this is not possible here")
        return super().call_binop(context, operator, left, right)


_environment = _Sandbox(undefined=StrictUndefined, autoescape=False)
_environment.globals.clear()
_environment.globals["range"] = _small_range


@lru_cache(maxsize=500)
def _compiled(source: str) -> Template:
    return _environment.from_string(source)


def _filled(source: str, values: Mapping[str, Any]) -> str:
    """Return a template filled in. Raises ValueError with what is wrong."""
    try:
        return str(_compiled(source).render(values))
    except (TemplateError, ArithmeticError, TypeError, ValueError, LookupError) as error:
        line = getattr(error, "lineno", None)
        where = "" if line is None else f"line {line}: "
        raise ValueError(f"{where}{error}") from error


def fault_of(source: str) -> str | None:
    """Return what is wrong with a template, tried with an example; None: nothing."""
    try:
        _filled(source, EXAMPLE)
    except ValueError as fault:
        known = ", ".join(sorted(EXAMPLE))
        return f"cannot be filled in: {one_line(str(fault))}; it may use {known}"
    return None


class OwnWords(Protocol):
    """A template of the rules file: `rules.Template`."""

    @property
    def channels(self) -> Sequence[str]:
        """The channels that it is for."""

    @property
    def title(self) -> str | None:
        """Template of the title; None: ours."""

    @property
    def text(self) -> str | None:
        """Template of the text; None: ours."""


def in_own_words(
    message: Message,
    delivery: Delivery,
    templates: Sequence[OwnWords],
    report: Callable[[str], None],
) -> Message:
    """Return a message in an operator's words, where there are any for its channel.

    `report` is told of a template that cannot be filled in; then ours stay.
    """
    own = next((one for one in templates if delivery.channel in one.channels), None)
    if own is None:
        return message
    news = message.news
    values = {
        name: getattr(news, name)
        for name in ("summary", "action", "cause", "flag", "owner", "kind", "phase", "percent")
    }
    values |= {"stage": news.stage, "rollout_id": news.rollout_id, "severity": news.severity.value}
    values |= {"exposed": news.exposed or 0, "failed": news.failed or 0, "link": message.link}
    values |= {"title": message.title, "text": message.text, "at": news.at.isoformat()}
    values |= {"environment": message.environment, "purpose": message.purpose.value}
    try:
        title = message.title if own.title is None else one_line(_filled(own.title, values))
        text = message.text if own.text is None else _filled(own.text, values).strip()
    except ValueError as fault:
        report(f"the template of channel {delivery.channel} cannot be filled in: {fault}")
        return message
    return replace(message, title=title[:LONGEST_TITLE] or message.title, text=text[:LONGEST_TEXT])
