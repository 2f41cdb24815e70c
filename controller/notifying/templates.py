"""Words of an operator for a channel: Jinja2 in its sandbox.

A template that fails must not cost an alert: our own words are sent instead, and the fault is told.

Belongs here: filling templates in, and what they may use. Does not belong here: what they may do
(`sandbox.py`), our own words (`words.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

from controller.notifying.book import Delivery, Purpose
from controller.notifying.news import KINDS
from controller.notifying.words import LONGEST_TEXT, LONGEST_TITLE, Message
from controller.text import one_line
from schemas.terms import Severity

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

#: What decides most templates: each is tried with all of these, so that no branch waits for the
#: night in which it is needed.
_VARIANTS: Final[Sequence[Mapping[str, Any]]] = [
    {"purpose": purpose.value, "severity": severity.value, **others}
    for purpose in Purpose
    for severity in Severity
    for others in ({}, {"owner": "", "cause": "ada: as planned", "link": "", "stage": ""})
] + [{"kind": kind} for kind in sorted(KINDS)]


def fault_of(source: str) -> str | None:
    """Return what is wrong with a template, tried with examples; None: nothing."""
    # With Jinja2, which only a replica with templates needs; it tries them before its loop runs.
    from controller.notifying.sandbox import filled

    try:
        for variant in _VARIANTS:
            filled(source, {**EXAMPLE, **variant})
    except ValueError as fault:
        known = f"; it may use {', '.join(sorted(EXAMPLE))}" if "undefined" in str(fault) else ""
        return f"cannot be filled in: {one_line(str(fault))}{known}"
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
    from controller.notifying.sandbox import filled

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
        title = message.title if own.title is None else one_line(filled(own.title, values))
        text = message.text if own.text is None else filled(own.text, values).strip()
    except ValueError as fault:
        report(f"the template of channel {delivery.channel} cannot be filled in: {fault}")
        return message
    return replace(message, title=title[:LONGEST_TITLE] or message.title, text=text[:LONGEST_TEXT])
