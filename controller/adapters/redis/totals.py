"""The partitions' totals in Redis: one hash each, written by one script with one HSET.

Belongs here: keys and calls. Does not belong here: what the fields say (`schemas/totals.py`) and
how totals of several partitions are merged (`codec/merging.py`).

| key | what |
|---|---|
| `<prefix>agg:{<topic>/<partition>/<epoch>}` | hash: fence and totals of one event partition |

Braces are literal: a key's hash tag, so that Redis Cluster spreads partitions over its nodes. No
command touches two keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from controller.adapters.redis.connection import FIELDS_PER_CALL, RedisConnection, chunks
from controller.codec.merging import (
    Merger,
    ReadFaults,
    TotalsRead,
    check_totals_save,
    fields_of,
    stored_partition,
    visits_of,
)
from controller.core.evidence import PartitionProgress, VisitTotals
from controller.errors import BrokenInvariant, StoreUnavailable
from controller.health import Faults
from controller.ports import NO_FENCE, PartitionHead, StoredPartition
from schemas.totals import FORMAT, MAX_FIELDS_PER_SAVE, PROGRESS_FIELDS, rebased_field

#: Fields of one HSCAN of a partition's hash. With 3 KB each that is 1 MB, with filters of 64 KB
#: each 20 MB.
FIELDS_PER_SLICE: Final = 300
#: How often a hash is read again because it was written meanwhile. Only a zombie writes then.
MAX_LOADS: Final = 5
#: Visits of one HMGET: two arms each, and their bundles. With 10,000 flags a reply of 8 partitions
#: has 2 MB.
VISITS_PER_READ: Final = 200
#: Visits merged between two turns of the loop. 20 visits of 8 partitions take about 10 ms when
#: every total has changed.
VISITS_PER_TURN: Final = 20

#: Fields that every read of totals begins with.
_HEAD: Final = ("next", "format", "changed", *PROGRESS_FIELDS)

_Row = list[bytes | None] | Exception
"""The values of some fields of one hash, or what reading them raised."""


class RedisTotals:
    """Implements `controller.ports.Totals`."""

    max_fields = MAX_FIELDS_PER_SAVE

    def __init__(self, connection: RedisConnection, faults: Faults | None = None) -> None:
        """Report totals that `read` cannot read to `faults`."""
        self._connection = connection
        self._merger = Merger()
        self._faults = ReadFaults(faults)

    def _key(self, partition_key: str) -> str:
        return f"{self._connection.prefix}agg:{{{partition_key}}}"

    async def load(self, partition_key: str) -> StoredPartition:
        """Return the hash, read in slices: however large it is, each call meets its deadline.

        All slices are of one moment: a save in between changes the digest, and reading begins
        again. Raises StoreUnavailable, and BrokenInvariant for a hash that we did not write.
        """
        for _ in range(MAX_LOADS):
            before = await self._version(partition_key)
            fields = await self._slices(partition_key)
            if await self._version(partition_key) == before:
                return stored_partition(partition_key, fields)
        raise StoreUnavailable(f"load totals of {partition_key}: somebody keeps writing them")

    async def _version(self, partition_key: str) -> list[bytes | None]:
        key = self._key(partition_key)
        purpose = f"load the fence of {partition_key}"
        version: list[bytes | None] = await self._connection.call(
            purpose, lambda: self._connection.client.hmget(key, ["next", "digest"])
        )
        return version

    async def _slices(self, partition_key: str) -> dict[str, bytes]:
        key, purpose = self._key(partition_key), f"load totals of {partition_key}"
        fields: dict[str, bytes] = {}
        cursor = 0
        while True:
            scan = partial(self._connection.client.hscan, key, cursor, count=FIELDS_PER_SLICE)
            cursor, raw = await self._connection.call(purpose, scan, times_deadline=5)
            # Here and not of all at the end: ten million contexts have 40,000 fields.
            try:
                fields |= {name.decode(): value for name, value in raw.items()}
            except UnicodeDecodeError as error:
                raise BrokenInvariant(
                    f"the hash of {partition_key} has a field that we did not write: {error}"
                ) from error
            if cursor == 0:
                return fields

    async def save(
        self,
        partition_key: str,
        *,
        expected: int | None,
        next_offset: int,
        fields: Mapping[str, bytes],
        rebased: int = 0,
    ) -> int | None:
        check_totals_save(expected, next_offset, fields, rebased)
        is_done, stored = await self._connection.fenced_save(
            self._key(partition_key),
            fence="next",
            expected=expected,
            after=next_offset,
            fields={"format": b"%d" % FORMAT, **fields},
            purpose=f"save totals of {partition_key}",
            guard=("rebased", rebased_field(rebased).decode()),
        )
        if is_done:
            return None
        return NO_FENCE if stored is None else stored

    async def drop(self, partition_key: str, fields: Sequence[str]) -> None:
        key = self._key(partition_key)
        for chunk in chunks(fields, FIELDS_PER_CALL):
            await self._connection.call(
                f"drop totals of {partition_key}",
                partial(self._connection.client.hdel, key, *chunk),
            )

    async def discard(self, partition_key: str) -> bool:
        key = self._key(partition_key)
        # UNLINK frees the memory in another thread: a hash of 80 MB would hold the server up.
        deleted: int = await self._connection.call(
            f"discard totals of {partition_key}", lambda: self._connection.client.unlink(key)
        )
        return deleted > 0

    async def read(
        self, partition_keys: Sequence[str], wanted: Mapping[str, tuple[str, Sequence[int]]]
    ) -> tuple[Mapping[str, Mapping[int, VisitTotals]], Sequence[PartitionProgress]]:
        reading = TotalsRead(self._merger, partition_keys, wanted)
        # Without visits there is still one round, for the progress.
        for number, chunk in enumerate(chunks(visits_of(wanted), VISITS_PER_READ) or [[]]):
            names = fields_of(chunk)
            rows = await self._answers_to(partition_keys, [*_HEAD, *names])
            if number == 0:  # of the first round: never ahead of what later rounds read
                reading.take_heads(map(_head_of, rows))
            reading.begin_rows()
            for row in rows:
                values = [] if isinstance(row, Exception) else row[len(_HEAD) :]
                reading.take_row(dict(zip(names, values, strict=False)))
                await asyncio.sleep(0)
            for visits in chunks(chunk, VISITS_PER_TURN):
                await asyncio.sleep(0)  # decoding totals blocks the loop
                for visit in visits:
                    reading.merge(visit)
        self._faults.note(reading.unreadable, reading.damaged)
        return reading.found, reading.progress

    async def heads(self, partition_keys: Sequence[str]) -> Sequence[PartitionHead]:
        reading = TotalsRead(self._merger, partition_keys, {})
        reading.take_heads(map(_head_of, await self._answers_to(partition_keys, _HEAD)))
        return reading.heads

    async def _answers_to(self, partition_keys: Sequence[str], names: Sequence[str]) -> list[_Row]:
        """Return one row of values per partition, all requested at once.

        A row is an exception where the key holds something other than a hash.
        """

        def queue(pipeline: Any) -> None:
            for key in partition_keys:
                pipeline.hmget(self._key(key), names)

        return await self._connection.answers_to("read totals", queue) if partition_keys else []


def _head_of(row: _Row) -> Mapping[str, bytes | None] | Exception:
    """Return the fields of `_HEAD` that a row begins with."""
    return row if isinstance(row, Exception) else dict(zip(_HEAD, row, strict=False))
