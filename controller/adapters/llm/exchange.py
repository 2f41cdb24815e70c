"""One HTTP exchange with a model server that is not trusted: bounded in time, size and form.

httpcore, the transport below httpx, knows no redirects, cookies, proxies of the environment or
compression: what is not there cannot be turned against us. Every failure is a ServerTrouble with a
printable reason, which never contains our key.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import ssl
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, cast
from urllib.parse import urlsplit

import httpcore
import msgspec

from controller.adapters.http.bounded import AnswerRefused, read_bounded
from controller.adapters.http.network import NETWORK_ERRORS, BoundedNetwork, root_cause
from controller.adapters.http.tls import client_context
from controller.adapters.llm.trouble import (
    BROKEN_OFF_FIX,
    CERTIFICATE_FIX,
    NO_MODEL_SERVER_FIX,
    NOT_REACHED_FIX,
    TOO_SLOW_FIX,
    ServerTrouble,
    server_words,
    status_fix,
)
from controller.errors import AdviceUnavailableError
from controller.ports import Clock
from controller.settings import AdvisorSettings

#: The longest run of white space in an answer. One in the requested form has none longer than an
#: indentation, and some JSON grammars let a model emit white space forever.
MAX_WHITE_RUN: Final = 512
_WHITE_RUN = re.compile(rf"\s{{{MAX_WHITE_RUN + 1}}}")
_WHITE_BYTES = b" \t\r\n"

#: Bounds on what a server says about its refusal. The status alone is already the news.
REFUSAL_MAX_BYTES: Final = 4_096
REFUSAL_SECONDS: Final = 0.5

#: Statuses that only an operator can fix: a wrong key or address, a model that is not there.
LASTING_STATUSES: Final = frozenset({401, 403, 404})

#: How servers refuse a prompt that is longer than the context: llama.cpp and Ollama ("the request
#: exceeds the available context size"), vLLM ("maximum context length"), and LocalAI, which answers
#: 500 with its backend's words.
_TOO_LONG_STATUSES: Final = frozenset({400, 413, 500})
_TOO_LONG: Final = re.compile(r"\bcontext (?:size|length|window)\b", re.IGNORECASE)

_STATUS_WORDS: Final = {
    400: "refused the question",
    401: "refused the key",
    403: "refused the key",
    404: "has no such model or address",
    408: "gave up waiting",
    429: "has too many questions",
    503: "is not ready",
}


def has_long_white_run(text: str) -> bool:
    """Return whether `text` has more than `MAX_WHITE_RUN` characters of white space in a row."""
    return _WHITE_RUN.search(text) is not None


class Exchange:
    """Makes requests to one model server, each within a deadline."""

    def __init__(
        self,
        settings: AdvisorSettings,
        clock: Clock,
        url: str,
        network: httpcore.AsyncNetworkBackend | None,
    ) -> None:
        """Connect to nothing yet; `network` replaces the machine's network.

        Raises ConfigInvalid for certificates that cannot be used.
        """
        parts = urlsplit(url)
        self.name = f"{parts.scheme}://{parts.netloc}"
        self._settings = settings
        self._clock = clock
        self._connections = httpcore.AsyncConnectionPool(
            ssl_context=client_context(settings, "advisor", is_used=parts.scheme == "https"),
            max_connections=None,  # the model server limits its questions
            # Gates are minutes apart: a kept connection would be dead when it is needed.
            max_keepalive_connections=0,
            network_backend=BoundedNetwork(network or httpcore.AnyIOBackend()),
        )
        # Otherwise loaded by the first question, which would hold up the loop for 0.15 s.
        importlib.import_module("anyio._backends._asyncio")

    async def close(self) -> None:
        """Close every connection; a request under way ends in ServerTrouble."""
        await self._connections.aclose()

    async def send(
        self, method: bytes, address: str, content: bytes | None, deadline: float
    ) -> tuple[bytes, int]:
        """Return the body of one exchange and how many milliseconds it took.

        `deadline` is in seconds of the loop's clock. Raises ServerTrouble.
        """
        started = self._clock.monotonic()
        try:
            async with asyncio.timeout_at(deadline):
                body = await self._exchange(method, address, content)
        except TimeoutError:
            took = self._clock.monotonic() - started
            raise ServerTrouble(
                f"{self.name} gave no complete answer within {took:.1f} s", fix=TOO_SLOW_FIX
            ) from None
        except AnswerRefused as refusal:
            raise ServerTrouble(str(refusal), fix=NO_MODEL_SERVER_FIX) from None
        except NETWORK_ERRORS as error:
            raise ServerTrouble(
                f"{self.name} {self._describe(error)}", fix=_network_fix(error)
            ) from error
        return body, max(0, round(1000 * (self._clock.monotonic() - started)))

    async def _exchange(self, method: bytes, address: str, content: bytes | None) -> bytes:
        """Return the body of a 200 that says it is JSON.

        Raises ServerTrouble, AnswerRefused and `NETWORK_ERRORS`.
        """
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # nothing to unpack, so nothing that grows
            "Connection": "close",
            "User-Agent": "rolloutd",
        }
        if content is not None:
            headers["Content-Type"] = "application/json"
        if self._settings.api_key is not None:
            headers["Authorization"] = f"Bearer {self._settings.api_key.get_secret_value()}"
        # The deadline bounds everything after the connection.
        timeouts = {"connect": self._settings.connect_timeout_seconds}
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        async with self._connections.stream(
            method, address, headers=encoded, content=content, extensions={"timeout": timeouts}
        ) as response:
            if response.status != 200:
                refusal = await self._refusal(response)
                if response.status in _TOO_LONG_STATUSES and _TOO_LONG.search(refusal):
                    # the fault of one question: it must not stop those of other flags
                    raise AdviceUnavailableError(
                        f"{refusal}; the question is longer than the model's context: enlarge it"
                    )
                raise ServerTrouble(
                    refusal,
                    fix=status_fix(response.status),
                    is_lasting=response.status in LASTING_STATUSES,
                )
            media_type = _header(response, b"content-type").partition(";")[0].strip().lower()
            if media_type != "application/json":
                form = server_words(media_type) or "no content type"
                raise ServerTrouble(
                    f"{self.name} answered with {form}, not JSON",
                    fix=NO_MODEL_SERVER_FIX,
                )
            if _header(response, b"content-encoding").strip().lower() not in ("", "identity"):
                raise ServerTrouble(
                    f"{self.name} sent a compressed answer, which was not requested"
                )
            return await _read_body(response, self._settings.max_answer_bytes)

    async def _refusal(self, response: httpcore.Response) -> str:
        """Return status and, when it comes soon, what the server says about it; never our key."""
        status = response.status
        meaning = _STATUS_WORDS.get(
            status, "redirected us, which is not followed" if 300 <= status < 400 else "failed"
        )
        text = f"{self.name} {meaning} (HTTP {status})"
        try:
            async with asyncio.timeout(REFUSAL_SECONDS):
                body = await _read_body(response, REFUSAL_MAX_BYTES)
            message = msgspec.json.decode(body, type=_Refusal).message
        except (*NETWORK_ERRORS, TimeoutError, msgspec.MsgspecError, RecursionError):
            return text  # nothing readable: the status stands alone
        if self._settings.api_key is not None:
            message = message.replace(self._settings.api_key.get_secret_value(), "***")
        return f"{text}: {server_words(message)}" if message else text

    def _describe(self, error: Exception) -> str:
        match error:
            case httpcore.ConnectTimeout():
                return (
                    f"accepted no connection within {self._settings.connect_timeout_seconds:.1f} s"
                )
            case httpcore.ConnectError():
                return f"cannot be reached: {server_words(str(root_cause(error)))}"
            case httpcore.ReadError() | httpcore.WriteError() | httpcore.RemoteProtocolError():
                return f"broke off: {server_words(str(error)) or type(error).__name__}"
            case _:
                return f"gave no usable answer: {server_words(str(error)) or type(error).__name__}"


def _network_fix(error: Exception) -> str:
    """Return what to do about a failure of the network or of TLS."""
    if isinstance(root_cause(error), ssl.SSLError):
        return CERTIFICATE_FIX
    is_unreached = isinstance(error, httpcore.ConnectError | httpcore.ConnectTimeout)
    return NOT_REACHED_FIX if is_unreached else BROKEN_OFF_FIX


class _RefusalDetail(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _RefusalDetail | str = ""
    detail: str = ""

    @property
    def message(self) -> str:
        """The server's text, in whichever field it is."""
        return (self.error if isinstance(self.error, str) else self.error.message) or self.detail


def _header(response: httpcore.Response, name: bytes) -> str:
    """Return a header's value, of several the first; empty when it is missing."""
    return next(
        (value.decode("latin-1") for key, value in response.headers if key.lower() == name), ""
    )


async def _read_body(response: httpcore.Response, max_bytes: int) -> bytes:
    """Return the whole body.

    Raises AnswerRefused beyond `max_bytes` or in endless white space, and `NETWORK_ERRORS`.
    """
    stream = cast("AsyncGenerator[bytes, None]", response.aiter_stream())
    async with aclosing(stream) as chunks:
        return await read_bounded(chunks, max_bytes, check=_WhiteRun().check)


class _WhiteRun:
    """Length of the white space that the chunks so far end in."""

    def __init__(self) -> None:
        self._length = 0

    def check(self, chunk: bytes) -> None:
        """Add a chunk. Raises AnswerRefused when the white space does not end."""
        solid = len(chunk.rstrip(_WHITE_BYTES))
        self._length = len(chunk) - solid if solid else self._length + len(chunk)
        if self._length > MAX_WHITE_RUN:
            raise AnswerRefused("the answer does not end: white space only")
