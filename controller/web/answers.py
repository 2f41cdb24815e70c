"""Reading requests and writing answers: bounded bodies, JSON, entity tags.

Does not belong here: what the endpoints answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec
from starlette.types import Receive, Scope, Send

from controller.errors import BadInput

#: Longest body that is read by default. An evaluation context is far smaller, and CloudEvents
#: require no more.
MAX_BODY_BYTES = 64 * 1024
#: The longest a client may take to send a body it has begun.
BODY_SECONDS = 5.0

#: On every answer: none is a page, and a browser must not run, frame or guess about it.
SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
#: After a body that was not read to its end, the next request on the connection cannot be found.
CLOSE = (b"connection", b"close")
_JSON = (b"content-type", b"application/json")
_NOT_KEPT = (b"cache-control", b"no-store")
_REVALIDATED = (b"cache-control", b"no-cache")


class BodyRefused(BadInput):
    """The request's body is too large, too slow, of another type, or never came whole."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def refuse_declared(scope: Scope, max_bytes: int) -> None:
    """Raise BodyRefused for a body that says in its head that it is too long.

    A client that waits for `100 Continue` then sends none of it.
    """
    length = header(scope, b"content-length")
    if length.isascii() and length.isdigit() and int(length) > max_bytes:
        raise _too_long(max_bytes)


def _too_long(max_bytes: int) -> BodyRefused:
    return BodyRefused(413, f"the body is longer than {max_bytes} bytes")


async def read_body(
    receive: Receive,
    max_bytes: int,
    within_seconds: float = BODY_SECONDS,
    *,
    grown: Callable[[int], object] = lambda _: None,
) -> bytes:
    """Return the whole body. `grown` is told the length of each piece that has come.

    Raises BodyRefused past `max_bytes` or `within_seconds`, and when the client has left.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(within_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise BodyRefused(400, "the client left before its request was complete")
                piece = message.get("body", b"")
                body += piece
                if len(body) > max_bytes:
                    raise _too_long(max_bytes)
                grown(len(piece))
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise BodyRefused(408, f"the body did not arrive within {within_seconds:g} s") from None


async def read_json_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Return the whole body of a request that says that it is JSON. Raises as `read_body`."""
    if header(scope, b"content-type").partition(";")[0].strip() != "application/json":
        raise BodyRefused(415, "this takes a JSON object: send it as application/json")
    return await read_body(receive, max_bytes)


async def send_bytes(
    send: Send, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]]
) -> None:
    """Send one complete answer."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send JSON that no cache may keep."""
    await send_bytes(send, status, body, (_JSON, _NOT_KEPT, *headers))


def guarded_json_head(length: int) -> bytes:
    """Return the headers of `send_json` behind the guard, as they are on the wire, with the end."""
    return b"%bcontent-length: %d\r\n%b\r\n" % (_JSON_LINES, length, _SECURITY_LINES)


def _lines(*headers: tuple[bytes, bytes]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)


_JSON_LINES = _lines(_JSON, _NOT_KEPT)
_SECURITY_LINES = _lines(*SECURITY_HEADERS)


async def send_error(send: Send, status: int, why: str, *headers: tuple[bytes, bytes]) -> None:
    """Send `{"error": why}`."""
    await send_json(send, status, msgspec.json.encode({"error": why}), *headers)


async def send_tagged(
    scope: Scope, send: Send, body: bytes, tag: str, *more: tuple[bytes, bytes]
) -> None:
    """Send JSON with its ETag, or 304 without a body when the client has this version.

    `more` are further headers.
    """
    headers = (_REVALIDATED, (b"etag", tag.encode()), *more)
    if is_named(header(scope, b"if-none-match"), tag):
        # No content-length: on a 304 it would have to be the length of the body that is not sent.
        await send({"type": "http.response.start", "status": 304, "headers": list(headers)})
        await send({"type": "http.response.body", "body": b""})
    else:
        await send_bytes(send, 200, body, (_JSON, *headers))


def header(scope: Scope, name: bytes) -> str:
    """Return a request header by its lower-case name, empty when absent.

    Repeated headers are joined by commas.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    return ",".join(value.decode("latin-1") for key, value in headers if key == name)


def is_named(if_none_match: str, tag: str) -> bool:
    """Return whether an If-None-Match header names `tag`.

    Weak comparison, RFC 9110 section 13.1.2; our tags hold no comma.
    """
    tags = {candidate.strip().removeprefix("W/") for candidate in if_none_match.split(",")}
    return tag in tags or "*" in tags
