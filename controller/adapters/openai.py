"""Advice from any server that speaks OpenAI's chat completions: LocalAI, llama.cpp's server, vLLM, Ollama's `/v1`.

Belongs here: one bounded HTTP call, and which failures keep us from asking again. Does not belong here: what is asked
(`prompts.py`), what an answer must look like (`schemas/advice.py`), and what advice may do (`core/machine.py`).

Neither server nor model is trusted. One deadline covers waiting for a turn, connecting and the last byte; no more than
`max_answer_bytes` are read, however many are sent; redirects are not followed, cookies and proxies do not exist, nothing is
decompressed. Whatever goes wrong is AdviceUnavailableError with a printable reason.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

import httpx
import msgspec

from controller.adapters.prompts import Prompt, gate_prompt
from controller.core.judgement import Advice
from controller.core.rollout import AskAdvice, Rollout
from controller.errors import AdviceUnavailableError, ConfigInvalid
from controller.ports import Clock
from controller.settings import AdvisorSettings
from schemas.advice import ANSWER_SCHEMA, parse_answer
from schemas.terms import AdviceChoice

#: Any will do: with temperature 0 it makes servers that sample anyway answer the same question alike.
SEED = 7

#: We give up this much before the gate's own deadline, so that the reason is ours and the circuit learns of it.
MARGIN_SECONDS = 0.01

#: An answer in the form has no run of white space longer than an indentation. Some JSON grammars let a model emit it for ever.
MAX_WHITE_RUN = 512

#: Kept of an answer with the decision: a complete usual one, or enough of an odd one to see what is odd.
RAW_MAX_BYTES = 2_048

#: What a server may say about its refusal, and how long we listen to it: the status alone already is the news.
REFUSAL_MAX_BYTES = 4_096
REFUSAL_SECONDS = 0.5
REFUSAL_MAX_CHARS = 200

#: A body in thousands of tiny chunks that arrive at once is parsed without a pause; the loop gets its turn after so many.
CHUNKS_PER_TURN = 64

#: Only an operator mends these: a wrong key, a wrong address, a model the server does not have.
LASTING_STATUSES = frozenset({401, 403, 404})

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


class ServerTrouble(AdviceUnavailableError):
    """The server gave no completion at all: its fault or its surroundings', not the model's. The circuit counts these."""

    def __init__(self, reason: str, *, is_lasting: bool = False) -> None:
        super().__init__(reason)
        self.is_lasting = is_lasting  # it will not pass by itself


class Circuit:
    """Keeps us from asking a server that is away: open for a while after failures in a row, then one question as a probe.

    Only ServerTrouble counts. An answer that cannot be used proves that the server is there, and must not let one flag's
    text silence the advice of all others.
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
        return f"one question is out to see whether it works again after: {self._last_trouble}" if self._is_probing else None

    def check(self) -> None:
        """Raise AdviceUnavailableError while no question is let through."""
        if (why := self.why_open) is not None:
            raise AdviceUnavailableError(why)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Let one question through and learn from how it ends; cancelled, it teaches nothing. Raises like `check`."""
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


class OpenAIAdvisor:
    """Asks one model at one server. At most `concurrency` questions are out; waiting for a turn uses up the deadline."""

    def __init__(self, settings: AdvisorSettings, clock: Clock, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """Connect to nothing yet; `transport` takes the place of the network. Raises ConfigInvalid without an address."""
        if settings.url is None:
            raise ConfigInvalid("advisor.url is not set: give the address of an OpenAI-compatible server")
        self._settings = settings
        self._clock = clock
        self._endpoint = completions_url(settings.url)
        parts = urlsplit(settings.url)
        self._server = f"{parts.scheme}://{parts.netloc}"
        self._circuit = Circuit(clock, failures=settings.breaker_failures, seconds=settings.breaker_seconds)
        self._turns = asyncio.Semaphore(settings.concurrency)
        self._transport = transport or _transport(is_tls=parts.scheme == "https")

    @property
    def trouble(self) -> str | None:
        """Why the model is not asked now; None while it is."""
        return self._circuit.why_open

    async def ask(self, rollout: Rollout, question: AskAdvice) -> Advice:
        left = (question.until - self._clock.now()).total_seconds() - MARGIN_SECONDS
        seconds = min(left, self._settings.deadline_seconds)
        if seconds <= 0:
            raise AdviceUnavailableError("the deadline was over before the model could be asked")
        self._circuit.check()
        deadline = asyncio.get_running_loop().time() + seconds
        prompt = gate_prompt(rollout, question)
        try:
            async with asyncio.timeout_at(deadline):
                await self._turns.acquire()
        except TimeoutError:
            raise AdviceUnavailableError(f"earlier questions to the model took all of the {seconds:.1f} s") from None
        try:
            with self._circuit.attempt():
                return await self._call(prompt, deadline)
        finally:
            self._turns.release()

    async def close(self) -> None:
        """Close what is open; a question still out ends in AdviceUnavailableError."""
        await self._transport.aclose()

    async def _call(self, prompt: Prompt, deadline: float) -> Advice:
        """Ask once and read the answer."""
        started = self._clock.monotonic()
        try:
            async with asyncio.timeout_at(deadline):
                body = await self._post(self._request(prompt))
        except TimeoutError:
            took = self._clock.monotonic() - started
            raise ServerTrouble(f"{self._server} gave no complete answer within {took:.1f} s") from None
        # ValueError and OSError, because not all that goes wrong below is translated: a host name, for example.
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
            raise ServerTrouble(f"{self._server} {self._what_failed(error)}") from error
        latency_ms = round(1000 * (self._clock.monotonic() - started))
        content = _content(body, self._server)
        try:
            answer = parse_answer(content)
        except ValueError as refusal:
            raise AdviceUnavailableError(str(refusal)) from None
        return Advice(
            choice=AdviceChoice(answer.verdict),
            confidence=answer.confidence,
            reasons=tuple(answer.reasons),
            model=self._settings.model,
            prompt_sha256=prompt.sha256,
            latency_ms=max(0, latency_ms),
            raw=_printable(content).encode()[:RAW_MAX_BYTES].decode(errors="ignore"),
        )

    def _request(self, prompt: Prompt) -> httpx.Request:
        settings = self._settings
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # nothing to unpack, so nothing that grows
            "Connection": "close",
            "Content-Type": "application/json",
            "User-Agent": "rolloutd",
        }
        if settings.api_key is not None:
            headers["Authorization"] = f"Bearer {settings.api_key.get_secret_value()}"
        content = json.dumps(completion_request(settings, prompt)).encode()
        # The deadline bounds everything after the connection.
        timeout = httpx.Timeout(None, connect=settings.connect_timeout_seconds)
        return httpx.Request(
            "POST", self._endpoint, headers=headers, content=content, extensions={"timeout": timeout.as_dict()}
        )

    async def _post(self, request: httpx.Request) -> bytes:
        """Return the body of a 200 that says it is JSON. Raises ServerTrouble and what httpx raises."""
        response = await self._transport.handle_async_request(request)
        try:
            if response.status_code != 200:
                raise ServerTrouble(await self._refusal(response), is_lasting=response.status_code in LASTING_STATUSES)
            media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media_type != "application/json":
                raise ServerTrouble(f"{self._server} answered with {_shown(media_type) or 'no content type'}, not JSON")
            if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
                raise ServerTrouble(f"{self._server} sent a packed answer, which was not asked for")
            return await _read(response, self._settings.max_answer_bytes)
        finally:
            await response.aclose()

    async def _refusal(self, response: httpx.Response) -> str:
        """Return status and, when it comes soon, what the server says about it; never our key."""
        status = response.status_code
        meaning = _STATUS_WORDS.get(status, "redirected us, which is not followed" if 300 <= status < 400 else "failed")
        text = f"{self._server} {meaning} (HTTP {status})"
        try:
            async with asyncio.timeout(REFUSAL_SECONDS):
                body = await _read(response, REFUSAL_MAX_BYTES)
            message = msgspec.json.decode(body, type=_Refusal).message
        except (TimeoutError, httpx.HTTPError, ServerTrouble, msgspec.MsgspecError, ValueError, RecursionError):
            return text  # nothing readable: the status stands alone
        if self._settings.api_key is not None:
            message = message.replace(self._settings.api_key.get_secret_value(), "***")
        return f"{text}: {_shown(message)}" if message else text

    def _what_failed(self, error: Exception) -> str:
        match error:
            case httpx.ConnectTimeout():
                return f"accepted no connection within {self._settings.connect_timeout_seconds:.1f} s"
            case httpx.ConnectError():
                return f"cannot be reached: {_shown(str(error))}"
            case httpx.ReadError() | httpx.WriteError() | httpx.RemoteProtocolError():
                return f"broke off: {_shown(str(error)) or type(error).__name__}"
            case _:
                return f"cannot be asked: {_shown(str(error)) or type(error).__name__}"


class NoAdvisor:
    """Stands in where no model is configured: there is never advice."""

    @property
    def trouble(self) -> str | None:
        """Nothing is wrong: nobody is to be asked."""
        return None

    async def ask(self, rollout: Rollout, question: AskAdvice) -> Advice:
        raise AdviceUnavailableError("no model is configured: advisor.url is not set")

    async def close(self) -> None:
        """Nothing is open."""


def make_advisor(settings: AdvisorSettings, clock: Clock) -> OpenAIAdvisor | NoAdvisor:
    """Return the advisor that the settings name; connects to nothing yet."""
    return NoAdvisor() if settings.url is None else OpenAIAdvisor(settings, clock)


def completions_url(base: str) -> str:
    """Return the address to post to; `base` may or may not end in `/v1`."""
    return base.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"


def completion_request(settings: AdvisorSettings, prompt: Prompt) -> dict[str, Any]:
    """Return the body of the request.

    The answer's form is asked for twice, here and in the prompt: servers keep little of a schema, or none. Not streamed,
    because LocalAI doubles the first token of a streamed answer that follows a schema.
    """
    return {
        "model": settings.model,
        "messages": list(prompt.messages),
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "advice", "strict": True, "schema": ANSWER_SCHEMA},
        },
        "stream": False,
        "temperature": 0,
        "seed": SEED,
        "max_tokens": settings.max_tokens,
    }


def _transport(*, is_tls: bool) -> httpx.AsyncBaseTransport:
    """Return the bare transport: it has no cookies, redirects, proxies or decoding.

    A fresh connection per question, because gates are minutes apart and a kept one would be found dead when it is needed.
    """
    # Without TLS a context that trusts nobody: the default one would read the authorities from disk.
    tls = ssl.create_default_context() if is_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx.AsyncHTTPTransport(verify=tls, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))


# --- what comes back ------------------------------------------------------------------------------------------------------


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1, max_length=1)]


class _RefusalDetail(msgspec.Struct):
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _RefusalDetail | str = ""
    detail: str = ""

    @property
    def message(self) -> str:
        """The server's words, wherever it keeps them."""
        return (self.error if isinstance(self.error, str) else self.error.message) or self.detail


async def _read(response: httpx.Response, limit: int) -> bytes:
    """Return the whole body. Raises ServerTrouble beyond `limit` bytes or in endless white space, and what httpx raises."""
    body = bytearray()
    white_run = count = 0
    async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_raw())) as chunks:
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


def _content(body: bytes, server: str) -> str:
    """Return what the model wrote.

    Raises ServerTrouble unless `body` is a completion, AdviceUnavailableError unless the completion is whole.
    """
    try:
        choice = msgspec.json.decode(body, type=_Completion).choices[0]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ServerTrouble(f"{server} sent no chat completion: {_shown(str(error))}") from None
    if choice.finish_reason != "stop":
        raise AdviceUnavailableError(f"the answer was cut off: finish_reason {_shown(str(choice.finish_reason))}")
    if choice.message.content is None:
        raise AdviceUnavailableError("the model wrote nothing")
    if _WHITE_RUN.search(choice.message.content):
        raise AdviceUnavailableError(f"the answer has more than {MAX_WHITE_RUN} characters of white space in a row")
    return choice.message.content


def _printable(text: str) -> str:
    """Return text with everything that could move a cursor as a space."""
    return "".join(char if char.isprintable() else " " for char in text)


def _shown(text: str) -> str:
    """Return a stranger's words fit for a log line and a reason."""
    return _printable(text[:REFUSAL_MAX_CHARS]).strip()
