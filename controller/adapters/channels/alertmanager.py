"""Alertmanager as the pager: alerts in its own form, to every member of its cluster.

It forgets an alert at its end, which is set a while ahead, so that what is still open is sent again
and again. It keeps alerts in memory: a restart of it costs nothing but the time to the next one.

Source: prometheus/alertmanager api/v2 and docs/alerts_api.md. Labels are an alert's identity.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from controller.adapters.channels.http_post import HttpPost
from controller.errors import ChannelUnavailable, MessageRefused
from controller.notifying.book import Thread
from controller.notifying.sending import Limits
from controller.notifying.words import Message
from controller.ports import Clock
from controller.settings.notifications import ChannelSettings

#: An alert of which nothing more is heard ends after so long: longer than a restart of ours.
OPEN_FOR: Final = timedelta(minutes=30)
#: What is no incident, such as that a rollout has begun.
SHOWN_FOR: Final = timedelta(minutes=5)
#: Of the deadline of a message, for each member.
_SHARE: Final = 0.9


class Alertmanager:
    """Implements `notifying.sending.Channel`."""

    tracks = True
    forgets = True

    def __init__(self, name: str, settings: ChannelSettings, clock: Clock) -> None:
        """Raises ConfigInvalid."""
        self.name = name
        # In a group each alert is still its own, so whatever waits goes together.
        self.limits = Limits(settings.per_minute or 60, 20, 100, settings.timeout_seconds, 1)
        self._clock = clock
        self._urls = [f"{one}/api/v2/alerts" for one in settings.addresses]
        self._headers: dict[str, str] = {}
        if settings.token is not None:
            self._headers["Authorization"] = f"Bearer {settings.token.get_secret_value()}"
        elif settings.password is not None:
            pair = f"{settings.username}:{settings.password.get_secret_value()}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        self._post = HttpPost(name, settings, *self._urls, connections=max(2, len(self._urls)))

    async def send(
        self, message: Message, thread: Thread | None, keep: Callable[[Thread], None]
    ) -> None:
        """Post one alert."""
        await self.send_group([message])

    async def send_group(self, messages: Sequence[Message]) -> None:
        """Post several alerts. A member that is away has missed nothing that is not sent again.

        Raises ChannelUnavailable or MessageRefused where no member takes them.
        """
        alerts = [_alert(one, self._clock.now()) for one in messages]
        # Side by side, and each with time left: one that hangs must not keep them from the others.
        seconds = self.limits.seconds * _SHARE
        results = await asyncio.gather(*(self._post_to(url, alerts, seconds) for url in self._urls))
        troubles = [one for one in results if one is not None]
        if len(troubles) == len(results):
            raise next((one for one in troubles if isinstance(one, MessageRefused)), troubles[0])

    async def _post_to(
        self, url: str, alerts: Sequence[Mapping[str, Any]], seconds: float
    ) -> ChannelUnavailable | MessageRefused | None:
        """Post to one member; return why it did not take them."""
        try:
            async with asyncio.timeout(seconds):
                await self._post.deliver(url, alerts, self._headers)
        except TimeoutError:
            host = urlsplit(url).hostname
            return ChannelUnavailable(f"{host}: no answer within {seconds:g} s")
        except (ChannelUnavailable, MessageRefused) as trouble:
            return trouble
        return None

    async def close(self) -> None:
        """Drop its connections."""
        await self._post.close()


def _alert(message: Message, now: datetime) -> Mapping[str, Any]:
    """Return a message as an alert."""
    news = message.news
    if message.is_over:
        end = now
    elif message.is_passing:
        end = now + SHOWN_FOR
    else:
        end = now + OPEN_FOR
    labels = {
        "alertname": f"Rollout{''.join(part.title() for part in news.kind.split('_'))}",
        "severity": news.severity.value,
        "flag": news.flag,
        "owner": news.owner,
        "environment": message.environment,
        "incident": news.key,
        "source": "rolloutd",
    }
    facts = {name.lower().replace(" ", "_"): value for name, value in message.facts}
    made: dict[str, Any] = {
        "labels": {name: value for name, value in labels.items() if value},
        "annotations": {"summary": message.title, "description": message.text, **facts},
        "startsAt": min(news.at, now).isoformat(),
        "endsAt": end.isoformat(),
    }
    if message.link:
        made["generatorURL"] = message.link
    return made
