"""How flags are used, in Redis, where every replica adds to it and reads it.

Belongs here: keys and calls. Does not belong here: what is counted and noted, and when
(`running/use_keeper.py`).

| key | what |
|---|---|
| `<prefix>uses` | hash: `<kind>|<flag>` -> note |
| `<prefix>uses:{<hour>}` | hash: `<kind>|<flag>` -> count, `#<writer>` -> number of its last call |

The hours expire. Nothing is decided by any of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import partial
from importlib import resources
from typing import Any, Final

from redis.exceptions import NoScriptError

from controller.adapters.redis.connection import FIELDS_PER_CALL, RedisConnection, chunks
from controller.ports import Use
from schemas.terms import UseKind

_SCRIPT = resources.files("controller.adapters.redis").joinpath("add_once.lua").read_text()
_SCRIPT_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()

#: Counts of one call of `add`: about 2 ms of the server's one thread.
COUNTS_PER_CALL: Final = 2_000
#: An hour is read for a day; it is kept a little longer than that.
HOUR_KEPT_SECONDS: Final = 27 * 3600
#: Fields of one HSCAN.
_FIELDS_PER_SLICE: Final = 1_000
#: Digits of a count; a longer one was not written by us.
_MAX_DIGITS: Final = 18
_KINDS: Final = {kind.value: kind for kind in UseKind}


class RedisFlagUses:
    """Implements `controller.ports.FlagUseStore`. Each call takes half the deadline at most."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    async def add(self, hour: int, counts: Mapping[Use, int], *, writer: str, number: int) -> None:
        key, client = self._hour(hour), self._connection.client
        words: list[str] = [f"#{writer}", str(number)]
        for use, count in counts.items():
            words += (_name(use), str(count))

        async def send() -> Any:
            try:
                await client.evalsha(_SCRIPT_SHA, 1, key, *words)
            except NoScriptError:  # the server is new or was restarted
                await client.eval(_SCRIPT, 1, key, *words)
            return await client.expire(key, HOUR_KEPT_SECONDS)

        await self._connection.call("add to the uses of flags", send, times_deadline=0.5)

    async def hour(self, hour: int) -> Mapping[Use, int]:
        fields = await self._read(self._hour(hour))
        return {
            use: int(value)
            for use, value in fields.items()
            if value.isdigit() and len(value) <= _MAX_DIGITS
        }

    async def notes(self) -> Mapping[Use, bytes]:
        return await self._read(self._notes)

    async def write_notes(self, notes: Mapping[Use, bytes]) -> None:
        for uses in chunks(notes, FIELDS_PER_CALL):
            fields = {_name(use): notes[use] for use in uses}
            write = partial(self._connection.client.hset, self._notes, mapping=fields)
            await self._connection.call("note the uses of flags", write, times_deadline=0.5)

    async def drop_notes(self, uses: Iterable[Use]) -> None:
        for part in chunks(uses, FIELDS_PER_CALL):
            drop = partial(self._connection.client.hdel, self._notes, *map(_name, part))
            await self._connection.call("drop notes on flags", drop, times_deadline=0.5)

    async def _read(self, key: str) -> dict[Use, bytes]:
        """Return the fields of a hash that we wrote, read in slices."""
        found: dict[Use, bytes] = {}
        cursor = 0
        while True:
            scan = partial(self._connection.client.hscan, key, cursor, count=_FIELDS_PER_SLICE)
            cursor, fields = await self._connection.call(
                "read the uses of flags", scan, times_deadline=0.5
            )
            for name, value in fields.items():
                kind, _, flag_key = name.decode(errors="replace").partition("|")
                if kind in _KINDS:
                    found[Use(_KINDS[kind], flag_key)] = value
            if cursor == 0:
                return found

    @property
    def _notes(self) -> str:
        return f"{self._connection.prefix}uses"

    def _hour(self, hour: int) -> str:
        return f"{self._notes}:{{{hour}}}"


def _name(use: Use) -> str:
    return f"{use.kind}|{use.flag_key}"
