"""OFREP 0.3.0: single and bulk evaluation over HTTP, for any OpenFeature client.

Evaluation follows the decided percentage by the context's targeting key. Other attributes are read
only for flags with audiences. A POST here changes nothing: it is how the protocol carries a
context.

Source: open-feature/protocol, service/openapi.yaml.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
import xxhash
from starlette.types import Receive, Scope, Send

from controller.errors import BadInput
from controller.telemetry import Metrics
from controller.web.answers import (
    CLOSE,
    BodyRefused,
    guarded_json_head,
    read_body,
    send_json,
    send_tagged,
)
from controller.web.clients import RateLimit, client_of
from controller.web.flags import FlagBoard
from controller.web.served_flag import ServedFlag

_NO_KEY = (
    "the evaluation context has no targetingKey, and this flag is served to a share of contexts"
)
_NOT_REMEMBERED = "it is not known yet whether this flag has a rollout"
#: A client that cannot be answered yet tries again after this.
_RETRY_AFTER = (b"retry-after", b"1")
#: Longest time of a change from one replica to another while all is well.
_CATCH_UP_SECONDS = 1.0
#: Work of a bulk evaluation between two turns of the loop, and between two checks of the clock.
_SLICE_SECONDS = 0.001
_FLAGS_PER_SLICE = 20
#: How often a bulk evaluation is repeated because a flag changed during it.
_ATTEMPTS = 3
#: Characters of an unknown key that the answer repeats: a hostile one may be long.
_MAX_ECHO = 128
#: An address without query, escapes, or anything else that has to be parsed.
_PLAIN_URL = re.compile(re.escape(b"/ofrep/v1/evaluate/flags/") + rb"([A-Za-z0-9._~:@/-]{1,256})")


class _Context(msgspec.Struct, gc=False):
    targeting_key: str = msgspec.field(default="", name="targetingKey")


class _Single(msgspec.Struct, gc=False):
    context: _Context | None = None


class _Bulk(msgspec.Struct, gc=False):
    context: _Context


class _Attributes(msgspec.Struct, gc=False):
    context: dict[str, Any]


_decode_single = msgspec.json.Decoder(_Single).decode
_decode_bulk = msgspec.json.Decoder(_Bulk).decode
_decode_attributes = msgspec.json.Decoder(_Attributes).decode


class _Unusable(BadInput):
    """The request cannot be used; `code` is OFREP's error code."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


def failure(code: str, why: str, key: str | None = None) -> bytes:
    """Return OFREP's failed evaluation as JSON.

    Clients read code and details of every failure, so both are always present.
    """
    named = {} if key is None else {"key": key[:_MAX_ECHO]}
    return msgspec.json.encode({**named, "errorCode": code, "errorDetails": why})


class EvaluateOne:
    """POST /ofrep/v1/evaluate/flags/{key}: one flag for one context.

    A plain ASGI application, because apps wait for it.
    """

    def __init__(self, board: FlagBoard, metrics: Metrics, max_body_bytes: int) -> None:
        self._board = board
        self.max_body_bytes = max_body_bytes
        self._treated = metrics.evaluations.of("treatment")
        self._untreated = metrics.evaluations.of("control")
        self._refused = metrics.evaluations.of("refused")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one evaluation."""
        key: str = scope["path_params"]["key"]
        try:
            body = await read_body(receive, self.max_body_bytes)
        except BodyRefused as refusal:
            await self._refuse(send, refusal.status, failure("GENERAL", str(refusal), key), CLOSE)
            return
        if (why_not := self._board.why_not) is not None:
            await self._refuse(send, 503, failure("GENERAL", why_not, key), _RETRY_AFTER)
            return
        flag = self._board.get(key)
        if flag is None and self._board.is_remembering:
            why = f"{_NOT_REMEMBERED}: {self._board.why_stale}"
            await self._refuse(send, 503, failure("GENERAL", why, key), _RETRY_AFTER)
            return
        if flag is None:
            await self._refuse(
                send, 404, failure("FLAG_NOT_FOUND", "no rollout has this flag key", key)
            )
            return
        try:
            answer = answer_one(flag, body)
        except _Unusable as trouble:
            await self._refuse(send, 400, failure(trouble.code, str(trouble), key))
            return
        self._count(flag, answer)
        await send_json(send, 200, answer)

    def success(self, key: str, body: bytes) -> bytes | None:
        """Return the answer of a success and count it; None, and nothing counted, for all else."""
        if len(body) > self.max_body_bytes or self._board.why_not is not None:
            return None
        flag = self._board.get(key)
        if flag is None:
            return None
        try:
            answer = answer_one(flag, body)
        except Exception:  # the application meets it again, and answers and logs it
            return None
        self._count(flag, answer)
        return answer

    def _count(self, flag: ServedFlag, answer: bytes) -> None:
        (self._treated if flag.treats(answer) else self._untreated).inc()

    async def _refuse(
        self, send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]
    ) -> None:
        self._refused.inc()
        await send_json(send, status, body, *headers)


class PlainEvaluations:
    """Successes of `EvaluateOne` without the application around it. Implements `AnswersAtOnce`.

    The answers are those of the application, whose router and guard are repeated here for what is
    usual; `tests/property/test_at_once.py` compares them byte by byte.
    """

    prefix: Final = b"/ofrep/v1/evaluate/flags/"

    def __init__(self, evaluate: EvaluateOne, is_our_host: Callable[[str], bool]) -> None:
        """`is_our_host` says of a Host header whether the guard would let it pass."""
        self._evaluate = evaluate
        self._is_our_host = is_our_host
        self.max_body_bytes = evaluate.max_body_bytes

    def takes(self, url: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
        """Return whether the address is that of a flag, and the only Host is one of ours."""
        host: bytes | None = None
        for name, value in headers:
            if name == b"host":
                if host is not None:
                    return False
                host = value
            elif name == b"transfer-encoding":  # trailers may follow, which are headers too
                return False
        return (
            host is not None
            and self._is_our_host(host.decode("latin-1"))
            and _plain_key(url) is not None
        )

    def answer(self, url: bytes, body: bytes) -> tuple[bytes, bytes] | None:
        """Return a success, None for all else."""
        key = _plain_key(url)
        answer = None if key is None else self._evaluate.success(key, body)
        return None if answer is None else (guarded_json_head(len(answer)), answer)


@lru_cache(maxsize=4_096)
def _plain_key(url: bytes) -> str | None:
    """Return the flag key in the address of a single evaluation, None when it must be parsed."""
    found = _PLAIN_URL.fullmatch(url)
    return None if found is None else found[1].decode("ascii")


class EvaluateAll:
    """POST /ofrep/v1/evaluate/flags: every flag for one context, with an ETag over the answer."""

    def __init__(
        self,
        board: FlagBoard,
        max_body_bytes: int,
        event_streams: bytes = b"",
        *,
        per_second: float = 0.0,
    ) -> None:
        """`event_streams` is the JSON list of streams that announce changes; empty for none.

        `per_second` is the number of requests that one client may make, 0: no limit.
        """
        self._board = board
        self._rate = RateLimit(per_second)
        self._max_body_bytes = max_body_bytes
        self._tail = b',"eventStreams":%b' % event_streams if event_streams else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one bulk evaluation, or 304 when nothing changed for this context."""
        wait = self._rate.seconds_to_wait(client_of(scope.get("client")))
        if wait:
            why = "too many bulk evaluations from this address: see http.max_bulk_per_second"
            retry_after = (b"retry-after", str(math.ceil(wait)).encode())
            await send_json(send, 429, failure("GENERAL", why), retry_after, CLOSE)
            return
        try:
            body = await read_body(receive, self._max_body_bytes)
        except BodyRefused as refusal:
            await send_json(send, refusal.status, failure("GENERAL", str(refusal)), CLOSE)
            return
        if (why_not := self._board.why_not) is not None:
            await send_json(send, 503, failure("GENERAL", why_not), _RETRY_AFTER)
            return
        await self._catch_up(scope)
        try:
            answer = await self._answer(body)
        except _Unusable as trouble:
            await send_json(send, 400, failure(trouble.code, str(trouble)))
            return
        if (why_not := self._board.why_not) is not None:  # it may be doubted since
            await send_json(send, 503, failure("GENERAL", why_not), _RETRY_AFTER)
            return
        await send_tagged(scope, send, answer, f'"{xxhash.xxh3_64_hexdigest(answer)}"')

    async def _answer(self, body: bytes) -> bytes:
        """Return the answer as JSON. Raises _Unusable.

        With thousands of flags this takes tens of milliseconds, and a rollback must not wait for
        it. So the loop gets turns in between, and after a change the evaluation is repeated.
        """
        targeting_key = _read_bulk(body)
        attributes: Mapping[str, Any] | None = None
        answers: list[bytes] = []
        flags: Sequence[ServedFlag] = ()
        for _attempt in range(_ATTEMPTS):
            if self._board.flags is flags:
                break
            flags = self._board.flags
            if attributes is None and any(flag.reads_attributes for flag in flags):
                attributes = _read_attributes(body)
            answers = await _evaluated(flags, targeting_key, attributes)
        return b'{"flags":[%b]%b}' % (b",".join(answers), self._tail)

    async def _catch_up(self, scope: Scope) -> None:
        """Wait a moment when another replica announced a change that has not reached us.

        The event's time comes back in the query. If answered at once, the client would keep its
        evaluation until the next change.
        """
        query: bytes = scope["query_string"]
        if b"flagConfigLastModified=" not in query:
            return
        modified = parse_qs(query.decode("latin-1")).get("flagConfigLastModified", [""])[0]
        if not (modified.isascii() and modified.isdigit() and len(modified) < 12):
            return
        with suppress(TimeoutError), self._board.changes() as changed:
            async with asyncio.timeout(_CATCH_UP_SECONDS):
                while int(self._board.changed_at.timestamp()) < int(modified):
                    await changed.wait()
                    changed.clear()


async def _evaluated(
    flags: Sequence[ServedFlag], targeting_key: str, attributes: Mapping[str, Any] | None
) -> list[bytes]:
    """Return each flag's answer for one context; the loop gets a turn after each slice."""
    answers: list[bytes] = []
    began = time.perf_counter()
    for start in range(0, len(flags), _FLAGS_PER_SLICE):
        if time.perf_counter() - began > _SLICE_SECONDS:
            await asyncio.sleep(0)
            began = time.perf_counter()
        answers += [
            flag.evaluate(targeting_key, attributes)
            if targeting_key
            else failure("TARGETING_KEY_MISSING", _NO_KEY, flag.rollout.flag_key)
            if flag.needs_key
            else flag.control
            for flag in flags[start : start + _FLAGS_PER_SLICE]
        ]
    return answers


def answer_one(flag: ServedFlag, body: bytes) -> bytes:
    """Return the answer to a single evaluation.

    An empty targeting key counts as none, as in flagd. Raises BadInput.
    """
    targeting_key = _read_single(body)
    if targeting_key:
        return flag.evaluate(
            targeting_key, _read_attributes(body) if flag.reads_attributes else None
        )
    if flag.needs_key:
        raise _Unusable("TARGETING_KEY_MISSING", _NO_KEY)
    return flag.control


def _read_single(body: bytes) -> str:
    """Return the targeting key of a single evaluation, empty for none. Raises _Unusable."""
    try:
        context = _decode_single(body).context
        return "" if context is None else context.targeting_key
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        raise _unusable(error) from None


def _read_bulk(body: bytes) -> str:
    """Return the targeting key of a bulk evaluation, empty for none. Raises _Unusable."""
    try:
        return _decode_bulk(body).context.targeting_key
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        raise _unusable(error) from None


def _read_attributes(body: bytes) -> Mapping[str, Any]:
    """Return the attributes of a context, the targeting key among them. Raises _Unusable."""
    try:
        return _decode_attributes(body).context
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        raise _unusable(error) from None


def _unusable(error: Exception) -> _Unusable:
    """Return OFREP's error for a body; the decoder's messages name places, not values."""
    if isinstance(error, msgspec.ValidationError):  # it is JSON of another form
        return _Unusable("INVALID_CONTEXT", str(error))
    if isinstance(error, RecursionError):
        return _Unusable("PARSE_ERROR", "the body is nested too deeply")
    return _Unusable("PARSE_ERROR", "the body is not valid JSON in UTF-8")
