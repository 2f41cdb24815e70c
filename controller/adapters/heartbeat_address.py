"""The address of a monitoring service that pages when it is not called.

Belongs here: one call, and what of its answer counts as heard. Does not belong here: when to call
(`running/dead_mans_switch.py`).
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, Self
from urllib.parse import urlsplit

import httpx

from controller.adapters.http.bounded import AnswerRefused, read_answer
from controller.adapters.http.pool import make_client
from controller.errors import ConfigInvalid, HeartbeatUnheard
from controller.settings.dead_mans_switch import DeadMansSwitchSettings
from controller.text import excerpt

#: Services answer with a word; healthchecks.io with `OK`.
MAX_ANSWER_BYTES: Final = 65_536
_MAX_WORDS: Final = 200


class HeartbeatAddress:
    """Calls the address, once entered. No connection is kept open between two calls."""

    def __init__(self, address: str, settings: DeadMansSwitchSettings) -> None:
        """`address` is that of the settings. Raises ConfigInvalid for an unusable `ca_file`."""
        self._address = address
        self._host = urlsplit(address).hostname
        self._timeout_seconds = settings.timeout_seconds
        try:
            self._context = ssl.create_default_context(cafile=settings.ca_file)
        except (OSError, ValueError) as error:
            raise ConfigInvalid(f"dead_mans_switch: ca_file cannot be used: {error}") from error

    async def __aenter__(self) -> Self:
        # The next call is half a minute away: the server may have closed the connection by it.
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=0)
        self._http = make_client(self._context, limits)
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._http.aclose()

    async def call(self) -> None:
        """Return once the service has heard. Raises HeartbeatUnheard, which names the host only.

        The rest of the address is a secret, and client libraries quote it in some messages.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                request = self._http.build_request("GET", self._address)
                response = await self._http.send(request, stream=True)
                await read_answer(response, MAX_ANSWER_BYTES)
        except TimeoutError:
            why = f"no answer within {self._timeout_seconds:g} s"
            raise HeartbeatUnheard(f"{self._host}: {why}") from None
        except AnswerRefused as refused:
            raise HeartbeatUnheard(f"{self._host}: {refused}") from None
        except Exception as error:
            words = excerpt(str(error), _MAX_WORDS)
            secret = urlsplit(self._address).path.strip("/")
            is_telling = words and (not secret or secret not in words)
            why = f"{type(error).__name__}: {words}" if is_telling else type(error).__name__
            raise HeartbeatUnheard(f"{self._host}: {why}") from None
        if not response.is_success:
            raise HeartbeatUnheard(f"{self._host} answered {response.status_code}")
