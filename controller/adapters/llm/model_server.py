"""One bounded question to a model server, whichever dialect it speaks.

Transport, limits, circuit and daily budget.

Belongs here: one HTTP call, and which failures keep us from asking again. Does not belong here: how
a dialect words request and completion (`openai.py`, `ollama.py`), what is asked (`prompts.py`),
what an answer must look like (`schemas/advice.py`), and what advice may do (`core/machine.py`).

Neither server nor model is trusted. One deadline covers waiting for a turn, connecting and the last
byte; no more than `max_answer_bytes` are read, however many are sent, and in small pieces, so that
the loop goes on. httpcore, the transport below httpx, knows no redirects, cookies, proxies of the
environment or compression: what is not there cannot be turned against us. Whatever goes wrong is
AdviceUnavailableError with a printable reason.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import ssl
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import httpcore
import msgspec

from controller.adapters.http.tls import client_context
from controller.adapters.llm.prompts import Prompt
from controller.errors import AdviceUnavailableError, ConfigInvalid
from controller.ports import Clock
from controller.settings import AdvisorSettings

# : Any will do: with temperature 0 it makes servers that sample anyway answer the same question
# alike.
SEED = 7

# : An answer in the form has no run of white space longer than an indentation. Some JSON grammars
# let a model emit it for ever.
MAX_WHITE_RUN = 512

# : What a server may say about its refusal, and how long we listen to it: the status alone already
# is the news.
REFUSAL_MAX_BYTES = 4_096
REFUSAL_SECONDS = 0.5
REFUSAL_MAX_CHARS = 200

# : What is parsed between two turns of the loop. The worst a server can send in as much, chunks of
# one byte, takes about 20 ms.
PIECE_BYTES = 4_096
CHUNKS_PER_TURN = 64

# : Larger heads are refused: a proxy's cookies fit, and a head of nothing but tiny lines is parsed
# in about 20 ms.
HEAD_MAX_BYTES = 8_192

#: Only an operator fixes these: a wrong key, a wrong address, a model the server does not have.
LASTING_STATUSES = frozenset({401, 403, 404})

# : Of a day's questions those that no gate waits for (explanations, looks for anomalies) may use
# one in this many.
OPTIONAL_SHARE = 2

_STATUS_WORDS = {
    400: "refused the question",
    401: "refused the key",
    403: "refused the key",
    404: "has no such model or address",
    408: "gave up waiting",
    429: "has too many questions",
    503: "is not ready",
}

_WHITE_RUN = re.compile(rf"\s{{{MAX_WHITE_RUN + 1}}}")
_WHITE_BYTES = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Written:
    """What stands in a completion.

    Token counts are the server's claims, None where it makes none.
    """

    content: str | None
    finish_reason: str  # "stop": whole
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote, whole, and what it took."""

    content: str
    latency_ms: int
    prompt_tokens: int | None
    completion_tokens: int | None
    parameters: str  # what was asked besides the prompt, as compact JSON


class Dialect(Protocol):
    """How one kind of server words its questions and completions."""

    @property
    def parameters_in(self) -> tuple[str, ...]:
        """Keys of the request that are kept with an answer, so that it can be asked for again."""

    def address(self, base: str) -> str:
        """Return where questions are posted to."""

    def models_address(self, base: str) -> str:
        """Return where the server lists its models."""

    def request(
        self, settings: AdvisorSettings, prompt: Prompt, form: Mapping[str, Any], max_tokens: int
    ) -> dict[str, Any]:
        """Return the body of the request; `form` is the JSON Schema of the answer."""

    def read(self, body: bytes, settings: AdvisorSettings) -> Written:
        """Return what stands in a completion.

        Raises MsgspecError, ValueError or RecursionError for anything else.
        """

    def read_models(self, body: bytes) -> tuple[str, ...]:
        """Return the names of the models listed. Raises like `read`."""


class ServerTrouble(AdviceUnavailableError):
    """The server gave no completion at all.

    Its fault or its surroundings', not the model's. The circuit counts these.
    """

    def __init__(self, reason: str, *, is_lasting: bool = False) -> None:
        super().__init__(reason)
        self.is_lasting = is_lasting  # it will not pass by itself


class Circuit:
    """Keeps us from asking a server that is away.

    Open for a while after failures in a row, then one question as a probe.

    Only ServerTrouble counts. An answer that cannot be used proves that the server is there, and
    must not let one flag's text silence the advice of all others.
    """

    def __init__(self, clock: Clock, *, failures: int, seconds: float) -> None:
        self._clock = clock
        self._limit = failures
        self._seconds = seconds
        self._failures = 0
        self._open_until: float | None = None  # monotonic; None: closed
        self._is_probing = False
        self._last_trouble = ""

    @property
    def why_open(self) -> str | None:
        """Why no question is let through now; None when one is."""
        if self._open_until is None:
            return None
        left = self._open_until - self._clock.monotonic()
        if left > 0:
            return f"not asked for another {left:.0f} s after: {self._last_trouble}"
        return (
            f"one question is out to see whether it works again after: {self._last_trouble}"
            if self._is_probing
            else None
        )

    def check(self) -> None:
        """Raise AdviceUnavailableError while no question is let through."""
        if (why := self.why_open) is not None:
            raise AdviceUnavailableError(why)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Let one question through and learn from how it ends; cancelled, it teaches nothing.

        Raises like `check`.
        """
        self.check()
        is_probe = self._open_until is not None
        self._is_probing = self._is_probing or is_probe
        try:
            yield
        except ServerTrouble as trouble:
            self._failed(trouble)
            raise
        except AdviceUnavailableError:
            self._worked()
            raise
        else:
            self._worked()
        finally:
            if is_probe:
                self._is_probing = False

    def _worked(self) -> None:
        self._failures = 0
        self._open_until = None

    def _failed(self, trouble: ServerTrouble) -> None:
        self._failures += 1
        if trouble.is_lasting or self._failures >= self._limit or self._open_until is not None:
            self._open_until = self._clock.monotonic() + self._seconds
            self._last_trouble = str(trouble)


class Budget:
    """So many questions per UTC day and replica.

    A loop of gates must not keep a machine's CPUs busy for days.
    """

    def __init__(self, clock: Clock, questions: int) -> None:
        self._clock = clock
        self._questions = questions
        self._day: date | None = None
        self._asked = 0

    def take(self, *, is_optional: bool) -> None:
        """Count one question.

        Raises AdviceUnavailableError when its share of the day is used up.
        """
        today = self._clock.now().date()
        if today != self._day:
            self._day, self._asked = today, 0
        limit = self._questions // OPTIONAL_SHARE if is_optional else self._questions
        if self._asked >= limit:
            raise AdviceUnavailableError(
                f"the day's {limit} questions are used up; the next day begins at 00:00 UTC"
            )
        self._asked += 1


@contextmanager
def nothing_else() -> Iterator[None]:
    """Let nothing but AdviceUnavailableError out.

    No answer, and no mistake of ours in reading it, may end a gate.

    A cancellation that nobody asked for, as libraries let slip now and then, is such a mistake too.
    """
    task = asyncio.current_task()
    cancels_before = 0 if task is None else task.cancelling()
    try:
        yield
    except AdviceUnavailableError:
        raise
    except asyncio.CancelledError as error:
        if task is None or task.cancelling() > cancels_before:
            raise
        raise ServerTrouble("the question was broken off from within") from error
    except Exception as error:
        said = _shown(str(error))
        raise ServerTrouble(
            f"asking failed unexpectedly: {type(error).__name__}: {said}"
        ) from error


class ModelServer:
    """Asks one model at one server.

    At most `concurrency` questions are out; waiting for a turn uses up the deadline.
    """

    def __init__(
        self,
        settings: AdvisorSettings,
        clock: Clock,
        dialect: Dialect,
        *,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        """Connect to nothing yet; `network` takes the place of the machine's.

        Raises ConfigInvalid without a usable address, or with certificates that cannot be used.
        """
        if settings.url is None:
            raise ConfigInvalid("advisor.url is not set: give the address of a model server")
        if not settings.url.isascii():
            raise ConfigInvalid(
                f"advisor.url is not ASCII: {settings.url!r}; write the host name as "
                f"xn--..., escape the path"
            )
        self._settings = settings
        self._clock = clock
        self._dialect = dialect
        self._base = settings.url
        parts = urlsplit(settings.url)
        self.name = f"{parts.scheme}://{parts.netloc}"
        self._circuit = Circuit(
            clock, failures=settings.breaker_failures, seconds=settings.breaker_seconds
        )
        self._budget = Budget(clock, settings.questions_per_day)
        self._turns = asyncio.Semaphore(settings.concurrency)
        self._giving_way: set[asyncio.Timeout] = set()  # of questions that no gate waits for
        self._connections = httpcore.AsyncConnectionPool(
            ssl_context=client_context(settings, "advisor", is_used=parts.scheme == "https"),
            max_connections=None,  # questions are counted by turns
            # gates are minutes apart: a kept connection would be found dead when needed
            max_keepalive_connections=0,
            network_backend=_BoundedNetwork(network or httpcore.AnyIOBackend()),
        )
        # Otherwise loaded by the first question, which would hold up the loop for 0.15 s.
        importlib.import_module("anyio._backends._asyncio")

    @property
    def trouble(self) -> str | None:
        """Why the model is not asked now; None while it is."""
        return self._circuit.why_open

    async def complete(
        self,
        prompt: Prompt,
        form: Mapping[str, Any],
        *,
        seconds: float,
        max_tokens: int | None = None,
        is_optional: bool = False,
    ) -> Completion:
        """Return what the model writes, within `seconds` from now, the settings' deadline at most.

        `form` is the JSON Schema asked for; whether the answer keeps it is for the caller to see.
        `is_optional`: no gate waits for it, and it is called off when one asks and there is no
        other turn. Raises AdviceUnavailableError for whatever goes wrong.
        """
        if not is_optional:
            if self._turns.locked():
                for optional in self._giving_way:
                    optional.reschedule(asyncio.get_running_loop().time())
            return await self._complete(prompt, form, seconds, max_tokens, is_optional=False)
        way = asyncio.timeout(None)
        try:
            async with way:
                self._giving_way.add(way)
                return await self._complete(prompt, form, seconds, max_tokens, is_optional=True)
        except TimeoutError:
            raise AdviceUnavailableError("gave way to a gate's question") from None
        finally:
            self._giving_way.discard(way)

    async def _complete(
        self,
        prompt: Prompt,
        form: Mapping[str, Any],
        seconds: float,
        max_tokens: int | None,
        *,
        is_optional: bool,
    ) -> Completion:
        seconds = min(seconds, self._settings.deadline_seconds)
        if seconds <= 0:
            raise AdviceUnavailableError("the deadline was over before the model could be asked")
        self._circuit.check()
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                await self._turns.acquire()
        except TimeoutError:
            raise AdviceUnavailableError(
                f"earlier questions to the model took all of the {seconds:.1f} s"
            ) from None
        try:
            self._circuit.check()  # it may have opened while we waited: that question costs nothing
            self._budget.take(is_optional=is_optional)
            with self._circuit.attempt(), nothing_else():
                request = self._dialect.request(
                    self._settings, prompt, form, max_tokens or self._settings.max_tokens
                )
                return await self._ask(request, deadline)
        finally:
            self._turns.release()

    async def models(self, *, seconds: float) -> tuple[str, ...]:
        """Return the models the server says it has. Raises AdviceUnavailableError.

        Neither circuit nor budget know of it.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        with nothing_else():
            body, _ = await self._bounded(
                b"GET", self._dialect.models_address(self._base), None, deadline
            )
        try:
            return tuple(_shown(name) for name in self._dialect.read_models(body))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ServerTrouble(
                f"{self.name} sent no list of models: {_shown(str(error))}"
            ) from None

    async def close(self) -> None:
        """Close what is open; a question still out ends in AdviceUnavailableError."""
        await self._connections.aclose()

    async def _ask(self, request: Mapping[str, Any], deadline: float) -> Completion:
        """Ask once and read the completion."""
        body, latency_ms = await self._bounded(
            b"POST", self._dialect.address(self._base), json.dumps(request).encode(), deadline
        )
        try:
            written = self._dialect.read(body, self._settings)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ServerTrouble(
                f"{self.name} sent no chat completion: {_shown(str(error))}"
            ) from None
        if written.finish_reason != "stop":
            raise AdviceUnavailableError(
                f"the answer was cut off: finish_reason {_shown(written.finish_reason)}"
            )
        if written.content is None:
            raise AdviceUnavailableError("the model wrote nothing")
        if _WHITE_RUN.search(written.content):
            raise AdviceUnavailableError(
                f"the answer has more than {MAX_WHITE_RUN} characters of white space in a row"
            )
        kept = {key: request[key] for key in self._dialect.parameters_in if key in request}
        return Completion(
            content=written.content,
            latency_ms=latency_ms,
            prompt_tokens=written.prompt_tokens,
            completion_tokens=written.completion_tokens,
            parameters=json.dumps(kept, separators=(",", ":")),
        )

    async def _bounded(
        self, method: bytes, address: str, content: bytes | None, deadline: float
    ) -> tuple[bytes, int]:
        """Return the body of one exchange and how many milliseconds it took.

        Raises ServerTrouble.
        """
        started = self._clock.monotonic()
        try:
            async with asyncio.timeout_at(deadline):
                body = await self._exchange(method, address, content)
        except TimeoutError:
            took = self._clock.monotonic() - started
            raise ServerTrouble(
                f"{self.name} gave no complete answer within {took:.1f} s"
            ) from None
        except _NETWORK_ERRORS as error:
            raise ServerTrouble(f"{self.name} {self._what_failed(error)}") from error
        return body, max(0, round(1000 * (self._clock.monotonic() - started)))

    async def _exchange(self, method: bytes, address: str, content: bytes | None) -> bytes:
        """Return the body of a 200 that says it is JSON.

        Raises ServerTrouble and `_NETWORK_ERRORS`.
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
                raise ServerTrouble(
                    await self._refusal(response), is_lasting=response.status in LASTING_STATUSES
                )
            media_type = _header(response, b"content-type").partition(";")[0].strip().lower()
            if media_type != "application/json":
                raise ServerTrouble(
                    f"{self.name} answered with {_shown(media_type) or 'no content type'}, not JSON"
                )
            if _header(response, b"content-encoding").strip().lower() not in ("", "identity"):
                raise ServerTrouble(f"{self.name} sent a packed answer, which was not asked for")
            return await _read(response, self._settings.max_answer_bytes)

    async def _refusal(self, response: httpcore.Response) -> str:
        """Return status and, when it comes soon, what the server says about it; never our key."""
        status = response.status
        meaning = _STATUS_WORDS.get(
            status, "redirected us, which is not followed" if 300 <= status < 400 else "failed"
        )
        text = f"{self.name} {meaning} (HTTP {status})"
        try:
            async with asyncio.timeout(REFUSAL_SECONDS):
                body = await _read(response, REFUSAL_MAX_BYTES)
            message = msgspec.json.decode(body, type=_Refusal).message
        except (
            *_NETWORK_ERRORS,
            TimeoutError,
            ServerTrouble,
            msgspec.MsgspecError,
            RecursionError,
        ):
            return text  # nothing readable: the status stands alone
        if self._settings.api_key is not None:
            message = message.replace(self._settings.api_key.get_secret_value(), "***")
        return f"{text}: {_shown(message)}" if message else text

    def _what_failed(self, error: Exception) -> str:
        match error:
            case httpcore.ConnectTimeout():
                return (
                    f"accepted no connection within {self._settings.connect_timeout_seconds:.1f} s"
                )
            case httpcore.ConnectError():
                return f"cannot be reached: {_shown(str(_root(error)))}"
            case httpcore.ReadError() | httpcore.WriteError() | httpcore.RemoteProtocolError():
                return f"broke off: {_shown(str(error)) or type(error).__name__}"
            case _:
                return f"cannot be asked: {_shown(str(error)) or type(error).__name__}"


# --- the network, in small pieces
# -----------------------------------------------------------------------------------------

# : What a connection may end in. ValueError and OSError, because httpcore does not translate all
# that goes wrong below it: a : host name that cannot be one, for example.
_NETWORK_ERRORS = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
    OSError,
    ValueError,
)

_INTERIM = re.compile(rb"HTTP/\d\.\d 1")


class _BoundedStream(httpcore.AsyncNetworkStream):
    """Reads little at a time, and only a response that begins with its own head.

    The parser above it is thorough and slow: 64 KiB of one-byte chunks, of tiny header lines or of
    interim responses (1xx, which we never ask for) would hold up the loop for a fifth of a second,
    the last for as long as the server likes.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._head: bytes | None = b""  # as far as it has come; None: it is complete

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's signature
        piece = await self._stream.read(min(max_bytes, PIECE_BYTES), timeout)
        if self._head is not None:
            self._head += piece
            if _INTERIM.match(self._head):
                raise httpcore.RemoteProtocolError("an interim response, which was not asked for")
            if b"\r\n\r\n" in self._head[:HEAD_MAX_BYTES]:
                self._head = None
            elif len(self._head) >= HEAD_MAX_BYTES:
                raise httpcore.RemoteProtocolError(f"more than {HEAD_MAX_BYTES} bytes of headers")
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return _BoundedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _BoundedNetwork(httpcore.AsyncNetworkBackend):
    """Connects like the network it is given, with bounded streams."""

    def __init__(self, network: httpcore.AsyncNetworkBackend) -> None:
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _BoundedStream(
            await self._network.connect_tcp(host, port, timeout, local_address, socket_options)
        )


# --- what comes back
# --------------------------------------------------------------------------------------------------


class _RefusalDetail(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _RefusalDetail | str = ""
    detail: str = ""

    @property
    def message(self) -> str:
        """The server's words, wherever it keeps them."""
        return (self.error if isinstance(self.error, str) else self.error.message) or self.detail


def _header(response: httpcore.Response, name: bytes) -> str:
    """Return a header's value, of several the first; empty when it is missing."""
    return next(
        (value.decode("latin-1") for key, value in response.headers if key.lower() == name), ""
    )


def _root(error: BaseException) -> BaseException:
    """Return what the network said first.

    `connection refused` rather than `all connection attempts failed`.
    """
    while (
        before := error.__cause__ or error.__context__
    ) is not None:  # httpcore raises `from None`
        error = before
        while isinstance(error, BaseExceptionGroup):  # one per address of the host
            error = error.exceptions[0]
    return error


async def _read(response: httpcore.Response, limit: int) -> bytes:
    """Return the whole body.

    Raises ServerTrouble beyond `limit` bytes or in endless white space, and `_NETWORK_ERRORS`.
    """
    body = bytearray()
    white_run = count = 0
    async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_stream())) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > limit:
                raise ServerTrouble(f"the answer is longer than {limit} bytes")
            solid = len(chunk.rstrip(_WHITE_BYTES))
            white_run = len(chunk) - solid if solid else white_run + len(chunk)
            if white_run > MAX_WHITE_RUN:
                raise ServerTrouble("the answer does not end: white space only")
            count += 1
            if count % CHUNKS_PER_TURN == 0:
                await asyncio.sleep(0)
    return bytes(body)


def printable(text: str) -> str:
    """Return text with everything that could move a cursor as a space."""
    return "".join(char if char.isprintable() else " " for char in text)


def _shown(text: str) -> str:
    """Return a stranger's words fit for a log line and a reason."""
    return printable(text[:REFUSAL_MAX_CHARS]).strip()


def token_count(claimed: object) -> int | None:
    """Return a server's count of tokens, None for what cannot be one."""
    return claimed if type(claimed) is int and 0 <= claimed < 2**53 else None
