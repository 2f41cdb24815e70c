"""Redis keys as a flag plane: a switch and a share per flag, for readers that only use `GET`.

| key | what |
|---|---|
| `flag:<flag>` | `true` while any context gets the treatment, else `false` |
| `flag:<flag>:rollout` | percentage of contexts that get it, 0 to 100 |
| `flag:<flag>:rolloutd` | the marker: `<revision> <switch> <share>` as we wrote them last |

The marker stops late writers and shows edits. All three keys are written by one command, in a
script that refuses an older revision than the stored one. The reader decides which contexts a
percentage includes. A hash of flag and user that does not depend on the percentage keeps users in
as it grows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Self

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisError

from controller.adapters.redis.address import redis_url
from controller.cancellation import swallowed_cancellation_raised
from controller.core.rollout import Rollout
from controller.core.serving import percent_to_serve, serving
from controller.errors import ConfigInvalid, FlagPlaneUnavailable
from controller.ports import Clock, Served
from controller.settings.planes import RedisPlaneSettings

_SCRIPT = resources.files("controller.adapters.redis").joinpath("plane.lua").read_text()

#: Delete a retired flag's switch and share, unless a newer revision wrote them. The marker goes a
#: day later: until then it stops late writers.
_RETIRE = """#!lua
local marked = string.match(redis.call('GET', KEYS[3]) or '', '^(%d+) ')
if marked and tonumber(marked) > tonumber(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('SET', KEYS[3], ARGV[1] .. '  ', 'EX', ARGV[2])
return 1
"""
MARKED_SECONDS = 25 * 3600

#: Ends of the keys beside the switch. A flag whose own key ends so would share a key with another.
SHARE, MARKER = ":rollout", ":rolloutd"

CONNECTIONS = 4

#: Digits of a revision that are read: another client may have written anything there.
MAX_DIGITS = 15


@dataclass(frozen=True, slots=True)
class _Keys:
    """The contents of a flag's three keys; empty text for a missing key."""

    switch: str
    share: str
    marker: str

    @property
    def percent(self) -> float | None:
        """The percentage that readers serve by switch and share; None when that is not known."""
        if not self.switch and not self.share and not self.marker:
            return None
        if self.switch != "true":
            return 0.0
        try:
            percent = float(self.share or "100")  # without a share the switch is for everybody
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
        """True when the keys are not as we wrote them last; without a marker that is not known."""
        return self.revision >= 0 and self.marker.split(" ")[1:] != [self.switch, self.share]


class RedisPlane:
    """Implements `controller.ports.FlagPlane`; nothing is connected before the first call."""

    name = "redis"

    def __init__(self, url: str, *, key_prefix: str = "flag:", call_seconds: float = 0.5) -> None:
        """`url` is as redis-py takes it, with user and password.

        Raises ConfigInvalid for an address that cannot be used.
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
                encoding_errors="replace",  # another client may have written any bytes
            )
        except ValueError as error:
            raise ConfigInvalid(f"planes.redis.url cannot be used: {error}") from error
        self._client = redis.asyncio.Redis.from_pool(pool)
        self._script = self._client.register_script(_SCRIPT)
        self._retire = self._client.register_script(_RETIRE)
        self._prefix = key_prefix
        self._call_seconds = call_seconds
        self._read: dict[str, _Keys] = {}  # by flag, at the last look

    @classmethod
    def from_settings(cls, name: str, settings: RedisPlaneSettings, clock: Clock) -> Self:
        return cls(
            redis_url(settings),
            key_prefix=settings.key_prefix,
            call_seconds=settings.call_timeout_seconds,
        )

    @staticmethod
    def can_serve_audiences(settings: RedisPlaneSettings) -> bool:
        """Return False: a switch and a percentage are all that the keys can say."""
        return False

    async def serve(self, rollout: Rollout) -> None:
        keys = self._names(rollout.flag_key)
        percent = percent_to_serve(rollout)
        share = f"{percent:.2f}".rstrip("0").rstrip(".")
        switch = "true" if percent > 0 else "false"
        read = self._read.get(rollout.flag_key, _Keys("", "", ""))
        arguments: list[str | int] = [
            rollout.revision,
            switch,
            share,
            share,
            read.switch,
            read.share,
        ]
        # A refusal of the script is no trouble: the next look reports what the keys hold.
        await self._call(self._script(keys=keys, args=arguments))

    async def look(self, rollout: Rollout) -> Served:
        values = await self._call(self._client.mget(self._names(rollout.flag_key)))
        keys = self._read[rollout.flag_key] = _Keys(*(value or "" for value in values))
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
            # The marker must be updated: otherwise a late writer of a revision in between would
            # count as the newest.
            return Served(keys.percent, f"is not marked as revision {rollout.revision}", edited_by)
        return Served.compared(keys.percent, decided, edited_by=edited_by).short_of(
            serving(rollout).beyond_share
        )

    async def retire(self, flag_key: str, revision: int) -> None:
        """Delete what `GET` reads of a flag that was retired as this revision."""
        self._read.pop(flag_key, None)
        names = self._names(flag_key)
        await self._call(self._retire(keys=names, args=[revision, MARKED_SECONDS]))

    async def close(self) -> None:
        """Drop all connections, within the deadline of a call. Raises FlagPlaneUnavailable."""
        try:
            async with asyncio.timeout(self._call_seconds):
                await self._client.aclose()
        except (TimeoutError, RedisError, OSError) as error:
            raise FlagPlaneUnavailable(f"connections did not close: {error}") from error

    def _names(self, flag_key: str) -> list[str]:
        """Return the names of a flag's keys: switch, share, marker.

        Raises FlagPlaneUnavailable for a flag that would share a key with another.
        """
        if flag_key.endswith((SHARE, MARKER)):
            raise FlagPlaneUnavailable(
                f"cannot serve a flag whose key ends in {SHARE} or {MARKER}: rename the flag"
            )
        switch = self._prefix + flag_key
        return [switch, switch + SHARE, switch + MARKER]

    async def _call(self, call: Awaitable[Any]) -> Any:
        """Return a command's answer. Raises FlagPlaneUnavailable when there is none in time."""
        try:
            with swallowed_cancellation_raised():
                async with asyncio.timeout(self._call_seconds):
                    return await call
        except TimeoutError as error:
            raise FlagPlaneUnavailable(
                f"Redis gave no answer within {self._call_seconds:g} s"
            ) from error
        except ReadOnlyError as error:
            # The server is a former primary. Connections are dropped, so that the name is resolved
            # again.
            await self._client.connection_pool.disconnect(inuse_connections=False)
            raise FlagPlaneUnavailable(f"Redis refuses to write: {error}") from error
        except (RedisError, OSError) as error:
            raise FlagPlaneUnavailable(f"Redis: {error}") from error
