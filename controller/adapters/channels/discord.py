"""Discord, by a webhook of a channel.

Source: discord/discord-api-docs, resources/webhook and resources/message (limits of embeds).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode, urlsplit, urlunsplit

from controller.adapters.channels.http_post import HttpPost
from controller.notifying.book import Thread
from controller.notifying.sending import Limits
from controller.notifying.words import Message, grouped_title
from controller.settings.notifications import ChannelSettings
from schemas.terms import Severity

TITLE: Final = 256
DESCRIPTION: Final = 4_096
FIELD: Final = 1_024
#: Lines of a group: each of 200 characters, and they are one description.
_MOST_GROUPED: Final = 18
_MARKUP: Final = re.compile(r"[\\`*_~|\[\]<>#]")
_COLORS: Final = {Severity.CRITICAL: 0xC62828, Severity.WARNING: 0xF9A825, Severity.INFO: 0x1565C0}
_OVER: Final = 0x2E7D32


def _plain(text: str, most: int) -> str:
    """Return at most so many characters of which nothing is taken for Markdown or a mention."""
    cut = _MARKUP.sub(r"\\\g<0>", text)[:most]
    backslashes = len(cut) - len(cut.rstrip("\\"))
    return cut[:-1] if backslashes % 2 else cut


def _embed(message: Message) -> Mapping[str, Any]:
    made: dict[str, Any] = {
        "title": _plain(message.title, TITLE),
        "description": _plain(message.text, DESCRIPTION),
        "color": _OVER if message.is_over else _COLORS[message.news.severity],
        "fields": [
            {"name": name, "value": _plain(value, FIELD), "inline": True}
            for name, value in message.facts
        ],
        "timestamp": message.news.at.isoformat(),
    }
    if message.link:
        made["url"] = message.link
    return made


class Discord:
    """Implements `notifying.sending.Channel`."""

    tracks = False
    forgets = False

    def __init__(self, name: str, settings: ChannelSettings) -> None:
        """Raises ConfigInvalid."""
        assert settings.url is not None
        self.name = name
        #: Discord allows about 30 a minute for a webhook, and says when it is too much.
        self.limits = Limits(settings.per_minute or 30, 5, _MOST_GROUPED, settings.timeout_seconds)
        parts = urlsplit(settings.url.get_secret_value())
        # Without `wait` it answers 204 to what it will not show.
        query = "&".join(filter(None, (parts.query, urlencode({"wait": "true"}))))
        self._url = urlunsplit(parts._replace(query=query))
        self._post = HttpPost(name, settings, self._url)

    async def send(
        self, message: Message, thread: Thread | None, keep: Callable[[Thread], None]
    ) -> None:
        """Show one message."""
        await self._deliver(_embed(message))

    async def send_group(self, messages: Sequence[Message]) -> None:
        """Show several messages as one."""
        most = DESCRIPTION // len(messages) - 3
        lines = "\n".join(f"• {_plain(one.line, most)}" for one in messages)
        await self._deliver({"title": grouped_title(messages)[:TITLE], "description": lines})

    async def _deliver(self, embed: Mapping[str, Any]) -> None:
        document = {"embeds": [embed], "allowed_mentions": {"parse": []}}
        await self._post.deliver(self._url, document)

    async def close(self) -> None:
        """Drop its connections."""
        await self._post.close()
