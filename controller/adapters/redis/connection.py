"""One Redis or Redis Cluster, and the rules that every call to it keeps.

Belongs here: connecting, deadlines, retries, what Redis's errors mean to us, and the script that
writes behind a fence. Does not belong here: which keys there are and what they hold.

A call that failed may have been done, and may still be done later. So every write can be repeated:
retries are ours, of the same bytes, within one deadline, and the script tells a repeat from another
writer's write.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from typing import Any, Final, Self, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from controller.adapters.redis.permits import Permits
from controller.codec.merging import digest_of
from controller.errors import BrokenInvariant, ConfigInvalid, StoreUnavailable
from controller.retrying import Backoff, until_done

T = TypeVar("T")

_SCRIPT = resources.files("controller.adapters.redis").joinpath("fenced_save.lua").read_text()
#: The name that Redis gives the script.
_SCRIPT_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()

#: Pauses between two tries of one call: short against the 100 ms of a flush, long enough for a
#: server to start.
BACKOFF: Final = Backoff(first_seconds=0.02, longest_seconds=0.25, jitter=0.5)

#: Calls under way at once.
CONNECTIONS: Final = 8

#: Fields of one HDEL or HSET: about 1 ms of the server's one thread.
FIELDS_PER_CALL: Final = 2_000

#: What a try may raise that passes by itself, unless `_check_retry_helps` says otherwise.
_TROUBLE = (RedisError, RedisClusterException, OSError)

_PREFIX = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")

#: Beginnings of answers that another try within a second or two does not change.
_NO_USE_TO_RETRY = ("MISCONF", "OOM", "NOPERM", "NOAUTH", "WRONGPASS", "NOREPLICAS")


#: What to correct in the settings, by a part of what the error says.
_FIXES: Final = {
    "Authentication required": "set redis.password_file, and redis.username for an ACL user",
    "invalid username-password pair": "correct redis.username and redis.password_file",
    "CERTIFICATE_VERIFY_FAILED": "let redis.ca_file name the PEM file of the authority that signed "
    "its certificate, and redis.url a name that stands in it",
    "WRONG_VERSION_NUMBER": "it answers without TLS: write redis:// in redis.url, or give it TLS",
}


#: What redis-py says of a connection that failed: the system's number (of each address of a name,
#: amid other words), the address, and mostly words.
_NO_CONNECTION: Final = re.compile(r"Error (.*?) ?connecting to (\S+?)(?:\. (.*))?")


#: A Redis without TLS takes the first message of a handshake for the begin of a command, and waits
#: for its end.
_NO_TLS_THERE: Final = (
    "; redis.url asks for TLS (rediss://): if Redis has none there, write redis:// or its TLS port"
)


class RightMissing(StoreUnavailable):
    """Our Redis user may not run a command, or not on this key.

    It passes once the right is granted.
    """


def chunks(items: Iterable[T], size: int) -> list[list[T]]:
    """Return the items in lists of `size`, the last one perhaps shorter."""
    listed = list(items)
    return [listed[at : at + size] for at in range(0, len(listed), size)]


class RedisConnection:
    """A pool of connections that makes every call within a deadline and under one key prefix."""

    def __init__(
        self, client: Any, *, prefix: str, deadline_seconds: float, connections: int = CONNECTIONS
    ) -> None:
        """`client` is a `redis.asyncio` Redis or RedisCluster; see `connect`.

        It answers bytes and does not retry. Raises ConfigInvalid for an unusable prefix.
        """
        if not _PREFIX.match(prefix):
            raise ConfigInvalid(
                f"Redis prefix {prefix!r}: 1 to 64 of letters, digits, dot, underscore, "
                f"colon, hyphen"
            )
        self.client = client
        self.prefix = prefix
        self._deadline_seconds = deadline_seconds
        #: Why every call is refused, except those about the identity; None: they are made.
        self.why_refused: str | None = None
        self._permits = Permits(connections)
        self._asks_for_tls = False

    @property
    def heard_at(self) -> float | None:
        """When Redis last answered a call, in seconds of the loop's clock; None: never."""
        return self._permits.heard_at

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        prefix: str = "rolloutd:",
        is_cluster: bool = False,
        deadline_seconds: float = 2.0,
        try_seconds: float = 0.5,
        connect_seconds: float | None = None,
        health_check_seconds: float = 15.0,
        connections: int = CONNECTIONS,
    ) -> Self:
        """Return a connection; nothing is connected before the first call.

        `url` is redis:// or rediss:// with user, password and database as redis-py takes them.
        `deadline_seconds` bounds a call with all its tries (loading a whole hash has five times as
        long), `try_seconds` the silence of the server within one try, `connect_seconds` making a
        connection (None: the same). A connection that was idle for `health_check_seconds` is
        checked before use. Raises ConfigInvalid for an unusable address.
        """
        options: dict[str, Any] = {
            "socket_timeout": try_seconds,
            "socket_connect_timeout": try_seconds if connect_seconds is None else connect_seconds,
            "health_check_interval": health_check_seconds,
            "socket_keepalive": True,
            # Repeats are ours. With its default a client of redis-py sends up to ten.
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,  # nothing here needs RESP3, and proxies without HELLO refuse it
            "client_name": "rolloutd",
        }
        try:
            if is_cluster:
                client: Any = redis.asyncio.RedisCluster.from_url(
                    url, max_connections=connections, **options
                )
            else:
                pool = redis.asyncio.BlockingConnectionPool.from_url(
                    url, max_connections=connections, timeout=deadline_seconds, **options
                )
                client = redis.asyncio.Redis.from_pool(pool)
        except (ValueError, RedisClusterException) as error:
            raise ConfigInvalid(f"the Redis address cannot be used: {error}") from error
        made = cls(
            client, prefix=prefix, deadline_seconds=deadline_seconds, connections=connections
        )
        made._asks_for_tls = url.startswith("rediss://")
        return made

    async def close(self) -> None:
        """Drop all connections, within the deadline. Raises StoreUnavailable."""
        try:
            async with asyncio.timeout(self._deadline_seconds):
                await self.client.aclose()
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable(f"Redis connections did not close: {error}") from error

    async def call(
        self,
        purpose: str,
        make: Callable[[], Awaitable[T]],
        *,
        times_deadline: float = 1.0,
        is_about_identity: bool = False,
    ) -> T:
        """Return the result of `make()`, which is repeated while that may help.

        `make()` must bear repeating. The deadline, `times_deadline` times the configured one,
        covers all tries. While more calls are under way than there are connections, this one waits
        before it begins, for as long as Redis answers others within the deadline.
        `is_about_identity` makes the call even while others are refused. Raises StoreUnavailable,
        and BrokenInvariant for what Redis can only answer to a mistake of ours.
        """
        if self.why_refused is not None and not is_about_identity:
            raise StoreUnavailable(f"{purpose}: {self.why_refused}")
        seconds = self._deadline_seconds * times_deadline
        trouble: BaseException | None = None

        def report(error: Exception, _pause_seconds: float) -> None:
            nonlocal trouble
            trouble = error
            _check_retry_helps(purpose, error)

        try:
            async with self._permits.one(seconds) as deadline, asyncio.timeout_at(deadline):
                answer = await until_done(
                    partial(self._try, make), trouble=_TROUBLE, backoff=BACKOFF, report=report
                )
                self._permits.hear()
                return answer
        except TimeoutError as error:
            why = f"Redis gave no answer within {seconds:g} s"
            if trouble is not None:  # it did answer, or refused, at each try that ended
                why = f"tried for {seconds:g} s: {_description(trouble)}"
            if self._asks_for_tls and self.heard_at is None and not _has_refused(trouble):
                why += _NO_TLS_THERE
            raise StoreUnavailable(f"{purpose}: {why}") from error

    async def answers_to(
        self, purpose: str, queue: Callable[[Any], object], *, times_deadline: float = 1.0
    ) -> list[Any]:
        """Return the answers to all commands that `queue` adds to a pipeline, in one round trip.

        Each command must bear repeating. An answer is an exception where its key holds another kind
        of value: somebody else wrote it, and that concerns this key alone. Raises as `call` does.
        """

        async def send() -> list[Any]:
            async with self.client.pipeline(transaction=False) as pipeline:
                queue(pipeline)
                rows: list[Any] = await pipeline.execute(raise_on_error=False)
            for row in rows:
                if isinstance(row, Exception) and not str(row).startswith("WRONGTYPE"):
                    raise row
            return rows

        return await self.call(purpose, send, times_deadline=times_deadline)

    async def _try(self, make: Callable[[], Awaitable[T]]) -> T:
        """Return the result of one try."""
        try:
            return await make()
        except ReadOnlyError:
            # The server is a former primary. Idle connections are dropped, so that the name is
            # resolved again.
            if isinstance(self.client, redis.asyncio.Redis):
                await self.client.connection_pool.disconnect(inuse_connections=False)
            raise

    async def fenced_save(
        self,
        key: str,
        *,
        fence: str,
        expected: int | None,
        after: int,
        fields: Mapping[str, bytes],
        purpose: str,
        guard: tuple[str, str] = ("", ""),
    ) -> tuple[bool, int | None]:
        """Write `fields` and the fence `after`, if the stored fence is `expected` (None: no fence).

        `guard` is a second field and its required content (empty for a missing field). Returns
        (True, after) when written, now or by an earlier try; (False, the stored fence or None) when
        not. Raises StoreUnavailable when the outcome is unknown.
        """
        words: list[str | bytes] = [fence, "" if expected is None else str(expected), str(after)]
        words += (digest_of(expected, after, fields), *guard)
        for name, value in fields.items():
            words += (name, value)

        async def evaluate() -> Any:
            try:
                return await self.client.evalsha(_SCRIPT_SHA, 1, key, *words)
            except NoScriptError:  # the server is new or was restarted
                return await self.client.eval(_SCRIPT, 1, key, *words)

        answer = await self.call(purpose, evaluate)
        if answer[0] == 1:
            return True, after
        return False, int(answer[1]) if len(answer) > 1 and answer[1] is not None else None

    async def ask_time(self) -> datetime:
        """Return Redis's wall clock, within half the deadline. Raises StoreUnavailable.

        It is the lightest call there is, so it also shows that Redis answers.
        """
        seconds, microseconds = await self.call(
            "ask Redis for the time", self.client.time, times_deadline=0.5
        )
        return datetime.fromtimestamp(int(seconds) + int(microseconds) / 1e6, UTC)


def _has_refused(trouble: BaseException | None) -> bool:
    """Return whether a try ended by an answer, and not by silence."""
    return trouble is not None and not isinstance(trouble, redis.exceptions.TimeoutError)


def _check_retry_helps(purpose: str, error: Exception) -> None:
    """Return when another try may help; raise what the error means when none can."""
    text = _description(error)
    if isinstance(error, ReadOnlyError):
        return
    if isinstance(error, ResponseError) and text.startswith(("WRONGTYPE", "ROLLOUTD")):
        raise BrokenInvariant(f"{purpose}: {text}") from error
    if isinstance(error, NoPermissionError):
        raise RightMissing(
            f"{purpose}: {text}: grant the right to our user, see ops/security.md"
        ) from error
    is_lasting = isinstance(error, OutOfMemoryError | AuthenticationError)
    if is_lasting or text.startswith(_NO_USE_TO_RETRY):
        raise StoreUnavailable(f"{purpose}: {text}") from error


def _description(error: BaseException | None) -> str:
    """Return what an error says, and how to fix it where it tells that."""
    text = (str(error) or type(error).__name__).rstrip(".")
    if (unreached := _NO_CONNECTION.fullmatch(text)) is not None:
        code, place, why = unreached.groups()
        numbers = sorted(set(re.findall(r"(?:^|Errno )(\d+)", code)), key=int)
        if numbers and (not why or why.startswith("Connect call failed")):
            why = ", ".join(os.strerror(int(number)).lower() for number in numbers)
        text = f"no connection to {place}: {why or code or 'no reason is given'}"
    for mark, fix in _FIXES.items():
        if mark in text:
            return f"{text}: {fix}"
    return text
