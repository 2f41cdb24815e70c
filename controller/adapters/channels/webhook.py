"""A signed webhook: every message as a document, for systems of one's own.

Source: Standard Webhooks 1.0.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from controller.adapters.channels.http_post import HttpPost
from controller.adapters.http.signing import RequestSigner
from controller.notifying.book import Thread
from controller.notifying.sending import Limits
from controller.notifying.words import Message
from controller.settings.notifications import ChannelSettings

TYPE: Final = "rolloutd.notification.v1"


class Webhook:
    """Implements `notifying.sending.Channel`."""

    tracks = True
    forgets = False

    def __init__(self, name: str, settings: ChannelSettings) -> None:
        """Raises ConfigInvalid for an unusable secret."""
        assert settings.url is not None
        assert settings.secret is not None
        self.name = name
        self.limits = Limits(settings.per_minute or 1_200, 20, 1, settings.timeout_seconds)
        self._url = settings.url.get_secret_value()
        self._signer = RequestSigner(settings.secret.get_secret_value())
        self._post = HttpPost(name, settings, self._url)

    async def send(
        self, message: Message, thread: Thread | None, keep: Callable[[Thread], None]
    ) -> None:
        """Deliver one message."""
        body = msgspec.json.encode(_document(message))
        # The receiver's key against repeats: it stays when the message is sent again.
        message_id = f"msg_{hashlib.sha256(message.id.encode()).hexdigest()[:32]}"
        headers = self._signer.headers(message_id, int(time.time()), body)
        self._post.check(await self._post.post(self._url, body, headers), self._url)

    async def send_group(self, messages: Sequence[Message]) -> None:
        """Deliver each: programs want them one by one. Never called: groups are of 1."""
        for one in messages:
            await self.send(one, None, lambda _thread: None)

    async def close(self) -> None:
        """Drop its connections."""
        await self._post.close()


def _document(message: Message) -> Mapping[str, Any]:
    """Return a message as a document."""
    news = message.news
    return {
        "type": TYPE,
        "timestamp": news.at.isoformat(),
        "data": {
            "purpose": message.purpose.value,
            "title": message.title,
            "text": message.text,
            "environment": message.environment,
            "link": message.link,
            "taken_by": message.taken_by,
            **msgspec.to_builtins(news),
        },
    }
