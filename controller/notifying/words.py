"""A message: what a channel shows of some news, before the channel gives it its own form.

Belongs here: title, text, facts and link. Does not belong here: markup and limits of one channel
(`adapters/channels/`), words that an operator wrote (`templates.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from controller.notifying.book import Delivery, Purpose
from controller.notifying.news import TEST, News, urgency
from controller.text import one_line, plural
from schemas.terms import Severity

LONGEST_TITLE: Final = 200
LONGEST_TEXT: Final = 2_500

_LONGEST_NAME: Final = 60

_PREFIXES: Final = {
    Purpose.REPEAT: "Still open: ",
    Purpose.ESCALATED: "Nobody has taken this: ",
    Purpose.OVER: "Over: ",
    Purpose.TEST: "Test: ",
}


@dataclass(frozen=True, slots=True)
class Message:
    """What one channel is to show."""

    id: str  # the same when it is sent again
    title: str  # one line
    text: str
    facts: Sequence[tuple[str, str]]  # name and value, one line each
    link: str  # empty: there is no page
    environment: str
    news: News
    purpose: Purpose
    taken_by: str = ""  # where it says that somebody has
    only: tuple[str, ...] = ()  # recipients; empty: all of the channel

    @property
    def is_over(self) -> bool:
        """Whether it says that something has ended."""
        return self.purpose is Purpose.OVER

    @property
    def is_urgent(self) -> bool:
        """Whether somebody should look at once."""
        is_settled = self.is_over or self.is_taken
        return self.news.severity is Severity.CRITICAL and not is_settled

    @property
    def is_taken(self) -> bool:
        """Whether it says that somebody looks after it."""
        return self.purpose is Purpose.TAKEN

    @property
    def is_passing(self) -> bool:
        """Whether it is no incident: nobody will hear that it is over."""
        return self.purpose in (Purpose.NOTE, Purpose.TEST)

    @property
    def line(self) -> str:
        """The whole on one line, for a list."""
        return cut(one_line(self.title))


def plain_message(delivery: Delivery, environment: str, page_url: str | None) -> Message:
    """Return the message in our own words."""
    news, purpose = delivery.news, delivery.purpose
    what = news.summary.strip() or f"{news.flag}: {news.kind.replace('_', ' ')}"
    prefix = _PREFIXES.get(purpose, "")
    if purpose is Purpose.TAKEN:
        prefix = f"Taken by {one_line(delivery.by)[:_LONGEST_NAME] or 'somebody'}: "
    title = f"{prefix}{what}"
    is_settled = purpose in (Purpose.OVER, Purpose.TAKEN)
    parts = [f"What to do: {news.action}"] if news.action and not is_settled else []
    if news.cause:
        parts.append(news.cause)
    return Message(
        id=f"{news.id}/{purpose.value}/{delivery.number}",
        title=cut(one_line(title)),
        text=_whole(news.summary, title, parts)[:LONGEST_TEXT],
        facts=_facts(news, environment),
        link=link_of(page_url, news),
        environment=environment,
        news=news,
        purpose=purpose,
        taken_by=delivery.by,
        only=delivery.only,
    )


def cut(title: str) -> str:
    """Return a title of at most `LONGEST_TITLE` characters; one that is cut off shows it."""
    return title if len(title) <= LONGEST_TITLE else f"{title[: LONGEST_TITLE - 2]} …"


def _whole(summary: str, title: str, parts: Sequence[str]) -> str:
    """Return the text; the summary is in it where the title could not hold it."""
    is_cut = len(one_line(title)) > LONGEST_TITLE
    return "\n".join([summary, *parts] if is_cut else parts)


def _facts(news: News, environment: str) -> list[tuple[str, str]]:
    """Return name and value of what people ask first."""
    at = ("At", f"{news.at:%Y-%m-%d %H:%M:%S} UTC")
    if news.kind == TEST:
        return [("Environment", environment)]
    if not news.is_of_one_flag:
        return [("Environment", environment), at]
    stage = f", stage {news.stage}" if news.stage else ""
    facts = [
        ("Flag", news.flag),
        ("Served", f"{news.percent:g} %, {news.phase.replace('_', ' ')}{stage}"),
        ("Environment", environment),
    ]
    if news.owner:
        facts.append(("Owner", news.owner))
    if news.exposed:
        failed = "" if news.failed is None else f", {plural(news.failed, 'failed request')}"
        facts.append(("Affected so far", f"{plural(news.exposed, 'user')}{failed}"))
    facts.append(at)
    return [(name, one_line(value)) for name, value in facts]


def link_of(page_url: str | None, news: News) -> str:
    """Return the address on the operator's page, empty where it is not known."""
    if page_url is None or news.kind == TEST:
        return ""
    page = f"rollouts/{quote(news.flag, safe='')}" if news.is_of_one_flag else "flags"
    return f"{page_url.rstrip('/')}/ui/{page}"


def headline(message: Message) -> str:
    """Return one line that says how a rollout stands, for the first message of a conversation."""
    news = message.news
    if not news.is_of_one_flag:
        return message.line
    return f"{news.flag}: {news.percent:g} %, {news.phase.replace('_', ' ')}"


def grouped_title(messages: Sequence[Message]) -> str:
    """Return the title of several messages that are sent as one."""
    worst = max((one.news.severity for one in messages), key=urgency)
    flags = len({one.news.flag for one in messages})
    what = f"{plural(len(messages), 'message')} about {plural(flags, 'flag')}"
    return f"{what}, the worst is {worst.value}"


Words = Callable[[Delivery], Message]
"""Makes the message of a delivery: `templates.py` where an operator wrote templates."""
