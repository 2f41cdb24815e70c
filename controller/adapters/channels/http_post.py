"""A POST to a service that shows messages, and what its answer means.

Belongs here: one call, and which answers are worth another try. Does not belong here: the body.
"""

from __future__ import annotations

import asyncio
import importlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import msgspec

from controller.adapters.http.bounded import AnswerRefused, read_answer
from controller.adapters.http.cooldown import retry_after_seconds
from controller.errors import ChannelUnavailable, ConfigInvalid, MessageRefused
from controller.settings.notifications import ChannelSettings
from controller.text import excerpt

MAX_ANSWER_BYTES: Final = 65_536
_MAX_WORDS: Final = 200
#: Answers that are about the message. All others that are no success are about the channel: an
#: operator may put it right, and what waits is sent then.
_ABOUT_THE_MESSAGE: Final = frozenset({400, 413, 415, 422})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service answered."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Mapping[str, Any]:
        """Return the body as a JSON object; an empty one where it is none."""
        try:
            found = msgspec.json.decode(self.body)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


class HttpPost:
    """Posts, each time under the deadline of the caller. Made without a running loop."""

    def __init__(self, name: str, settings: ChannelSettings, *urls: str) -> None:
        """`urls` will be posted to. Raises ConfigInvalid for an unusable `ca_file`."""
        try:
            if any(one.startswith("https:") for one in urls) or settings.ca_file is not None:
                context = ssl.create_default_context(cafile=settings.ca_file)
            else:  # it trusts no authority: the default one reads them all from disk
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        except (OSError, ValueError) as error:
            where = f"notifications.channels.{name}"
            raise ConfigInvalid(f"{where}: ca_file cannot be used: {error}") from error
        self._context = context
        self._http: httpx.AsyncClient | None = None

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            # Otherwise loaded by the first call, which would hold up the loop for 0.15 s.
            importlib.import_module("anyio._backends._asyncio")
            self._http = httpx.AsyncClient(
                headers={"Accept-Encoding": "identity", "User-Agent": "rolloutd"},
                timeout=None,  # noqa: S113 - the caller's deadline covers the call
                verify=self._context,
                trust_env=False,
                follow_redirects=False,
                limits=httpx.Limits(max_connections=2, max_keepalive_connections=0),
            )
        return self._http

    async def close(self) -> None:
        """Drop the connections."""
        client, self._http = self._http, None
        if client is not None:
            await client.aclose()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Return the answer, whatever it is.

        Raises ChannelUnavailable when there is none. It names the host only: the rest of an address
        may be a secret, and client libraries quote it in some messages.
        """
        host = urlsplit(url).hostname
        content = {"Content-Type": "application/json", **headers}
        try:
            client = self._client()
            request = client.build_request("POST", url, content=body, headers=content)
            response = await client.send(request, stream=True)
            answer = await read_answer(response, MAX_ANSWER_BYTES)
        except asyncio.CancelledError:
            raise
        except AnswerRefused as refused:
            raise ChannelUnavailable(f"{host}: {refused}") from None
        except Exception as error:
            secret = urlsplit(url).path.strip("/")
            words = excerpt(str(error), _MAX_WORDS)
            is_telling = words and (not secret or secret not in words)
            why = f"{type(error).__name__}: {words}" if is_telling else type(error).__name__
            raise ChannelUnavailable(f"{host}: {why}") from None
        return Answer(response.status_code, answer, dict(response.headers))

    async def deliver(
        self, url: str, document: object, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Post a JSON document; return the answer to one that was taken.

        Raises ChannelUnavailable, MessageRefused.
        """
        answer = await self.post(url, msgspec.json.encode(document), headers or {})
        check(answer, urlsplit(url).hostname or "")
        return answer


def check(answer: Answer, host: str) -> None:
    """Return for an answer that means success. Raises ChannelUnavailable, MessageRefused."""
    if 200 <= answer.status < 300:
        return
    words = excerpt(answer.body.decode(errors="replace"), _MAX_WORDS)
    why = f"{host} answered {answer.status}" + (f": {words}" if words else "")
    if answer.status in _ABOUT_THE_MESSAGE:
        raise MessageRefused(why)
    raise ChannelUnavailable(why, retry_after_seconds(answer.headers, datetime.now(UTC)))
