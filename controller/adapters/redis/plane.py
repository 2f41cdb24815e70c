"""Redis keys as a flag plane, for readers that know nothing but `GET`.

A switch and a share per flag.

| key | what |
|---|---|
| `flag:<flag>` | `true` while anybody gets the treatment, else `false` |
| `flag:<flag>:rollout` | percentage of contexts that get it, 0 to 100 |
| `flag:<flag>:rolloutd` | `<revision> <switch> <share>` as we wrote them last: stops late writers, shows edits |

All three are written by one command, in a script that refuses what is older than what stands there.
Who is in at a percentage is the reader's affair: a hash of flag and user that does not depend on
the percentage keeps users in as it grows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisError

from controller.core.rollout import Rollout
from controller.core.serving import percent_to_serve, serving
from controller.errors import ConfigInvalid, FlagPlaneUnavailable
from controller.ports import Served

_SCRIPT = resources.files("controller.adapters.redis").joinpath("plane.lua").read_text()

SHARE, MARKER = ":rollout", ":rolloutd"
"""Ends of the keys beside the switch. A flag whose own key ends so would share a key with another flag."""

CONNECTIONS = 4

MAX_DIGITS = 15
"""Of a revision: somebody else may have written anything there."""


@dataclass(frozen=True, slots=True)
class _Keys:
    """What stands in a flag's three keys; empty text for a missing one."""

    switch: str
    share: str
    marker: str

    @property
    def percent(self) -> float | None:
        """What readers make of switch and share; None when that cannot be known."""
        if not self.switch and not self.share and not self.marker:
            return None
        if self.switch != "true":
            return 0.0
        try:
            percent = float(self.share or "100")  # a switch alone is on for everybody
        except ValueError:
            return None
        return percent if 0 <= percent <= 100 else None

    @property
    def revision(self) -> int:
        """The revision that was written last, -1 for none."""
        digits = self.marker.partition(" ")[0]
        is_number = digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS
        return int(digits) if is_number else -1

    @property
    def is_edited(self) -> bool:
        """True when we wrote last and something else stands there now.

        Without a marker nobody can tell.
        """
        return self.revision >= 0 and self.marker.split(" ")[1:] != [self.switch, self.share]


class RedisPlane:
    """Implements `controller.ports.FlagPlane` on one Redis.

    Nothing is connected before the first call.
    """

    name = "redis"

    def __init__(self, url: str, *, key_prefix: str = "flag:", call_seconds: float = 0.5) -> None:
        """`url` as redis-py takes it, with user and password.

        Raises ConfigInvalid for one it cannot open.
        """
        try:
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=call_seconds,
                socket_timeout=call_seconds,
                socket_connect_timeout=call_seconds,
                socket_keepalive=True,
                retry=Retry(NoBackoff(), 0),  # the next look is the retry
                protocol=2,
                client_name="rolloutd",
                decode_responses=True,
                encoding_errors="replace",  # what somebody else wrote may be anything
            )
        except ValueError as error:
            raise ConfigInvalid(f"planes.redis.url cannot be used: {error}") from error
        self._client = redis.asyncio.Redis.from_pool(pool)
        self._script = self._client.register_script(_SCRIPT)
        self._prefix = key_prefix
        self._call_seconds = call_seconds
        self._seen: dict[str, _Keys] = {}  # by flag, at the last look

    async def serve(self, rollout: Rollout) -> None:
        keys = self._names(rollout.flag_key)
        percent = percent_to_serve(rollout)
        share = f"{percent:.2f}".rstrip("0").rstrip(".")
        switch = "true" if percent > 0 else "false"
        seen = self._seen.get(rollout.flag_key, _Keys("", "", ""))
        arguments: list[str | int] = [
            rollout.revision,
            switch,
            share,
            share,
            seen.switch,
            seen.share,
        ]
        # A refusal is no trouble: the look that follows says in words what stands there.
        await self._call(self._script(keys=keys, args=arguments))

    async def look(self, rollout: Rollout) -> Served:
        found = await self._call(self._client.mget(self._names(rollout.flag_key)))
        keys = self._seen[rollout.flag_key] = _Keys(*(value or "" for value in found))
        decided = percent_to_serve(rollout)
        if keys.revision > rollout.revision:
            return Served(
                keys.percent,
                f"was written by revision {keys.revision}, newer than ours, "
                f"{rollout.revision}; if that is an old "
                f"installation's, delete {self._names(rollout.flag_key)[2]}",
            )
        edited_by = "a client of Redis" if keys.is_edited else None
        if keys.percent == decided and keys.revision < rollout.revision:
            # The marker has to follow: a late writer of a revision in between would be taken for
            # the newest.
            return Served(keys.percent, f"is not marked as revision {rollout.revision}", edited_by)
        return Served.compared(keys.percent, decided, edited_by=edited_by).short_of(
            serving(rollout).beyond_share
        )

    async def close(self) -> None:
        """Drop all connections."""
        try:
            async with asyncio.timeout(self._call_seconds):
                await self._client.aclose()
        except (TimeoutError, RedisError, OSError) as error:
            raise FlagPlaneUnavailable(f"connections did not close: {error}") from error

    def _names(self, flag_key: str) -> list[str]:
        """Return the names of a flag's keys.

        Raises FlagPlaneUnavailable for a flag that would share one with another.
        """
        if flag_key.endswith((SHARE, MARKER)):
            raise FlagPlaneUnavailable(
                f"cannot serve a flag whose key ends in {SHARE} or {MARKER}: rename the flag"
            )
        switch = self._prefix + flag_key
        return [switch, switch + SHARE, switch + MARKER]

    async def _call(self, call: Awaitable[Any]) -> Any:
        """Return a command's answer. Raises FlagPlaneUnavailable when there is none in time."""
        task = asyncio.current_task()
        cancels_before = 0 if task is None else task.cancelling()
        try:
            async with asyncio.timeout(self._call_seconds):
                answer = await call
        except TimeoutError as error:
            raise FlagPlaneUnavailable(
                f"Redis gave no answer within {self._call_seconds:g} s"
            ) from error
        except ReadOnlyError as error:
            # A former primary: connections are dropped, so that its name is looked up again.
            await self._client.connection_pool.disconnect(inuse_connections=False)
            raise FlagPlaneUnavailable(f"Redis refuses to write: {error}") from error
        except (RedisError, OSError) as error:
            raise FlagPlaneUnavailable(f"Redis: {error}") from error
        # redis-py sends through asyncio.wait_for, which in Python 3.11 swallows a cancellation that
        # comes as it finishes.
        if task is not None and task.cancelling() > cancels_before:
            raise asyncio.CancelledError
        return answer
