"""A POST to a server that is not trusted: one call, and the bounded answer.

Belongs here: connections, TLS and the call. Does not belong here: deadlines, which are the
caller's, and what an answer means.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from controller.adapters.http.bounded import read_answer
from controller.adapters.http.pool import make_client
from controller.errors import ConfigInvalid

MAX_ANSWER_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What a service answered."""

    status: int
    body: bytes
    headers: Mapping[str, str]  # names in lower case

    def json(self) -> Mapping[str, Any]:
        """Return the body as a JSON object; an empty one where it is none."""
        try:
            found = msgspec.json.decode(self.body)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


class Poster:
    """Posts documents, each time under the deadline of the caller. Made without a running loop."""

    def __init__(
        self, where: str, urls: Iterable[str], ca_file: Path | None, *, connections: int = 2
    ) -> None:
        """`where` names the settings, `urls` will be posted to.

        Raises ConfigInvalid for an unusable `ca_file`.
        """
        try:
            if any(one.startswith("https:") for one in urls) or ca_file is not None:
                context = ssl.create_default_context(cafile=ca_file)
            else:  # it trusts no authority: the default one reads them all from disk
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        except (OSError, ValueError) as error:
            raise ConfigInvalid(f"{where}: ca_file {ca_file} cannot be used: {error}") from error
        self._context = context
        self._connections = connections
        self._http: httpx.AsyncClient | None = None

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            limits = httpx.Limits(max_connections=self._connections, max_keepalive_connections=0)
            self._http = make_client(self._context, limits)
        return self._http

    async def close(self) -> None:
        """Drop the connections."""
        client, self._http = self._http, None
        if client is not None:
            await client.aclose()

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> HttpAnswer:
        """Return the answer to a JSON document, whatever it is.

        Raises AnswerRefused for one that is too long or packed, and httpx's errors.
        """
        client = self._client()
        content = {"Content-Type": "application/json", **headers}
        request = client.build_request("POST", url, content=body, headers=content)
        response = await client.send(request, stream=True)
        answer = await read_answer(response, MAX_ANSWER_BYTES)
        return HttpAnswer(response.status_code, answer, dict(response.headers))
