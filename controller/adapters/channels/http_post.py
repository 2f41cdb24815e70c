"""A POST to a service that shows messages, and what its answer means.

Belongs here: one call, and which answers are worth another try. Does not belong here: the body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

import msgspec

from controller.adapters.channels.hiding import hiding_of
from controller.adapters.http.bounded import AnswerRefused
from controller.adapters.http.cooldown import retry_after_seconds
from controller.adapters.http.posting import HttpAnswer, Poster
from controller.errors import ChannelUnavailable, MessageRefused
from controller.settings.notifications import ChannelSettings

#: Answers that are about the message. All others that are no success are about the channel: an
#: operator may put it right, and what waits is sent then.
_ABOUT_THE_MESSAGE: Final = frozenset({400, 413, 415, 422})
#: What to see to after an answer that is about the channel.
_TO_SEE_TO: Final[Mapping[int, str]] = {
    **dict.fromkeys((401, 403), "is its token or password right, and may it write there?"),
    **dict.fromkeys((404, 410), "is its address right, and is it still there?"),
    **dict.fromkeys((301, 302, 307, 308), "write the address that it redirects to"),
}


class HttpPost:
    """Posts, each time under the deadline of the caller. Made without a running loop."""

    def __init__(
        self, name: str, settings: ChannelSettings, *urls: str, connections: int = 2
    ) -> None:
        """`urls` will be posted to. Raises ConfigInvalid for an unusable `ca_file`."""
        where = f"notifications.channels.{name}"
        self._hiding = hiding_of(settings)
        self._poster = Poster(where, urls, settings.ca_file, connections=connections)

    async def close(self) -> None:
        """Drop the connections."""
        await self._poster.close()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> HttpAnswer:
        """Return the answer, whatever it is.

        Raises ChannelUnavailable when there is none. It names the host only: the rest of an address
        may be a secret.
        """
        host = urlsplit(url).hostname
        try:
            return await self._poster.send(url, body, headers)
        except asyncio.CancelledError:
            raise
        except AnswerRefused as refused:
            raise ChannelUnavailable(f"{host}: {refused}") from None
        except Exception as error:
            words = self._hiding.excerpt(str(error))
            why = f"{type(error).__name__}: {words}" if words else type(error).__name__
            raise ChannelUnavailable(f"{host}: {why}") from None

    async def deliver(
        self, url: str, document: object, headers: Mapping[str, str] | None = None
    ) -> HttpAnswer:
        """Post a JSON document; return the answer to one that was taken.

        Raises ChannelUnavailable, MessageRefused.
        """
        answer = await self.post(url, msgspec.json.encode(document), headers or {})
        self.check(answer, url)
        return answer

    def words_of(self, text: str) -> str:
        """Return the first words of what a server or library says, without our secrets."""
        return self._hiding.excerpt(text)

    def check(self, answer: HttpAnswer, url: str) -> None:
        """Return for an answer that means success. Raises ChannelUnavailable, MessageRefused."""
        if 200 <= answer.status < 300:
            return
        words = self._hiding.excerpt(answer.body.decode(errors="replace"))
        why = f"{urlsplit(url).hostname} answered {answer.status}" + (f": {words}" if words else "")
        if answer.status in _ABOUT_THE_MESSAGE:
            raise MessageRefused(why)
        if answer.status in _TO_SEE_TO:
            why += f"; {_TO_SEE_TO[answer.status]}"
        raise ChannelUnavailable(why, retry_after_seconds(answer.headers, datetime.now(UTC)))
