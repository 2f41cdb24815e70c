"""Microsoft Teams, by a workflow that posts what it receives into a channel.

Source: the form is that of Alertmanager's msteamsv2 receiver (`notify/msteamsv2`); Adaptive Cards
1.4. A workflow answers 202 whether or not its card is ever shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from controller.adapters.channels.http_post import HttpPost
from controller.notifying.book import Thread
from controller.notifying.sending import Limits
from controller.notifying.words import Message, grouped_title
from controller.settings.notifications import ChannelSettings
from schemas.terms import Severity

#: Bytes of a message; with more it answers "Request Entity too large".
MAX_BYTES: Final = 27_000
_COLORS: Final = {
    Severity.CRITICAL: "Attention",
    Severity.WARNING: "Warning",
    Severity.INFO: "Default",
}


def _plain(text: str) -> str:
    """Return text of which nothing is taken for Markdown, such as a link that hides its address."""
    for char in "\\`*_[]#":
        text = text.replace(char, f"\\{char}")
    return text


def _text(text: str, **style: Any) -> Mapping[str, Any]:
    return {"type": "TextBlock", "text": _plain(text), "wrap": True, **style}


def card_of(
    title: str, color: str, body: Sequence[Mapping[str, Any]], link: str = ""
) -> Mapping[str, Any]:
    """Return a message with one card."""
    content: dict[str, Any] = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [_text(title, weight="Bolder", size="Medium", style="heading", color=color), *body],
        "msteams": {"width": "full"},
    }
    if link:
        content["actions"] = [{"type": "Action.OpenUrl", "title": "Open in rolloutd", "url": link}]
    attachment = {
        "contentType": "application/vnd.microsoft.card.adaptive",
        "contentUrl": None,
        "content": content,
    }
    return {"type": "message", "attachments": [attachment]}


def _card(message: Message) -> Mapping[str, Any]:
    facts = [{"title": name, "value": _plain(value)} for name, value in message.facts]
    body: list[Mapping[str, Any]] = [_text(message.text)] if message.text else []
    body.append({"type": "FactSet", "facts": facts})
    color = "Good" if message.is_over else _COLORS[message.news.severity]
    return card_of(message.title, color, body, message.link)


class Teams:
    """Implements `notifying.sending.Channel`."""

    tracks = False
    forgets = False

    def __init__(self, name: str, settings: ChannelSettings) -> None:
        """Raises ConfigInvalid."""
        assert settings.url is not None
        self.name = name
        self.limits = Limits(settings.per_minute or 60, 4, 50, settings.timeout_seconds)
        self._url = settings.url.get_secret_value()
        self._post = HttpPost(name, settings, self._url)

    async def send(
        self, message: Message, thread: Thread | None, keep: Callable[[Thread], None]
    ) -> None:
        """Show one message."""
        await self._post.deliver(self._url, _card(message))

    async def send_group(self, messages: Sequence[Message]) -> None:
        """Show several messages as one."""
        lines = [one.line for one in messages]
        card = card_of(grouped_title(messages), "Attention", [_text(line) for line in lines])
        while len(msgspec.json.encode(card)) > MAX_BYTES:
            lines = [line[: max(40, len(line) * 3 // 4)] for line in lines]
            card = card_of(grouped_title(messages), "Attention", [_text(line) for line in lines])
        await self._post.deliver(self._url, card)

    async def close(self) -> None:
        """Drop its connections."""
        await self._post.close()
