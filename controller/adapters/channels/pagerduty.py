"""PagerDuty: incidents by Events API v2, and what is no incident as change events.

Source: PagerDuty/developer-docs, Events API v2 and change events: 512 KB, about 120 events a minute
of one integration key, dedup keys of 255 characters.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from controller.adapters.channels.http_post import HttpPost
from controller.errors import ChannelUnavailable, MessageRefused
from controller.notifying.book import Thread
from controller.notifying.sending import Limits
from controller.notifying.words import Message
from controller.settings.notifications import ChannelSettings

_EVENTS: Final = "https://events.pagerduty.com"
LONGEST_KEY: Final = 255
LONGEST_SUMMARY: Final = 1_024
#: "Invalid routing key", "Length of 'routing_key' is incorrect (should be 32 characters)".
_WRONG_KEY: Final = re.compile(r"routing[ _]key", re.IGNORECASE)


def dedup_key(key: str) -> str:
    """Return the key under which PagerDuty knows an incident: ours where it is short enough."""
    if len(key) <= LONGEST_KEY:
        return key
    return f"{key[:180]}/{hashlib.sha256(key.encode()).hexdigest()[:32]}"


class PagerDuty:
    """Implements `notifying.sending.Channel`."""

    tracks = True
    forgets = False

    def __init__(self, name: str, settings: ChannelSettings) -> None:
        """Raises ConfigInvalid."""
        assert settings.token is not None
        self.name = name
        self.limits = Limits(settings.per_minute or 100, 10, 1, settings.timeout_seconds)
        self._key = settings.token.get_secret_value()
        self._base = settings.base_url or _EVENTS
        self._post = HttpPost(name, settings, self._base)

    async def send(
        self, message: Message, thread: Thread | None, keep: Callable[[Thread], None]
    ) -> None:
        """Trigger, acknowledge or resolve an incident, or note a change."""
        news = message.news
        if message.is_over or message.is_taken:
            action = "resolve" if message.is_over else "acknowledge"
            await self._event({"event_action": action, "dedup_key": dedup_key(news.key)})
        elif message.is_passing:
            await self._deliver("/v2/change/enqueue", self._change(message))
        else:
            await self._event(self._trigger(message))

    async def _event(self, event: Mapping[str, Any]) -> None:
        await self._deliver("/v2/enqueue", {"routing_key": self._key, **event})

    async def _deliver(self, path: str, document: Mapping[str, Any]) -> None:
        """Post; a wrong integration key is about the channel, though PagerDuty answers 400."""
        try:
            await self._post.deliver(self._base + path, document)
        except MessageRefused as refused:
            if _WRONG_KEY.search(str(refused)):
                raise ChannelUnavailable(f"{refused}; token is no integration key") from None
            raise

    def _trigger(self, message: Message) -> Mapping[str, Any]:
        news = message.news
        made: dict[str, Any] = {
            "event_action": "trigger",
            "dedup_key": dedup_key(news.key),
            "client": "rolloutd",
            "payload": {
                "summary": message.title[:LONGEST_SUMMARY],
                "source": f"rolloutd/{message.environment}",
                "severity": news.severity.value,
                "timestamp": news.at.isoformat(),
                "component": news.flag,
                "group": news.owner or message.environment,
                "class": news.kind,
                "custom_details": {**dict(message.facts), "Details": message.text},
            },
        }
        if message.link:
            made["client_url"] = message.link
            made["links"] = [{"href": message.link, "text": "Open in rolloutd"}]
        return made

    def _change(self, message: Message) -> Mapping[str, Any]:
        links = [{"href": message.link, "text": "Open in rolloutd"}] if message.link else []
        return {
            "routing_key": self._key,
            "payload": {
                "summary": message.title[:LONGEST_SUMMARY],
                "timestamp": message.news.at.isoformat(),
                "source": f"rolloutd/{message.environment}",
                "custom_details": {**dict(message.facts), "Details": message.text},
            },
            "links": links,
        }

    async def send_group(self, messages: Sequence[Message]) -> None:
        """Send each: an incident must be resolved by its own key. Never called: groups are of 1."""
        for one in messages:
            await self.send(one, None, lambda _thread: None)

    async def close(self) -> None:
        """Drop its connections."""
        await self._post.close()
