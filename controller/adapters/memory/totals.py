"""The event partitions' totals in memory: `controller.ports.Totals`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controller.adapters.memory.outage import Outage
from controller.codec.merging import (
    Merger,
    ReadFaults,
    TotalsRead,
    check_totals_save,
    digest_of,
    fields_of,
    stored_partition,
    visits_of,
)
from controller.core.evidence import PartitionProgress, VisitTotals
from controller.errors import (
    StoreUnavailable,
)
from controller.health import Faults
from controller.ports import (
    NO_FENCE,
    PartitionHead,
    StoredPartition,
)
from schemas.totals import FORMAT, MAX_FIELDS_PER_SAVE, rebased_field


class MemoryTotals:
    """The partitions' hashes as dicts, with fence, repeats and refusals as in the Redis adapter."""

    max_fields = MAX_FIELDS_PER_SAVE

    def __init__(self, faults: Faults | None = None) -> None:
        """Start empty. What `read` cannot read is reported to `faults`."""
        self.hashes: dict[str, dict[str, bytes]] = {}
        self.outage = Outage(StoreUnavailable)
        self._merger = Merger()
        self._faults = ReadFaults(faults)

    async def load(self, partition_key: str) -> StoredPartition:
        self.outage.before()
        fields = dict(self.hashes.get(partition_key, {}))
        self.outage.after()
        return stored_partition(partition_key, fields)

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
        self.outage.before()
        answer = self._save(partition_key, expected, next_offset, fields, rebased)
        self.outage.after()
        return answer

    def _save(
        self,
        partition_key: str,
        expected: int | None,
        next_offset: int,
        fields: Mapping[str, bytes],
        rebased: int,
    ) -> int | None:
        stored = self.hashes.get(partition_key, {})
        digest = digest_of(expected, next_offset, fields).encode()
        fence = int(stored["next"]) if "next" in stored else None
        if fence == next_offset and stored["digest"] == digest:
            return None
        if fence != expected or stored.get("rebased", b"") != rebased_field(rebased):
            return NO_FENCE if fence is None else fence
        self.hashes[partition_key] = {
            **stored,
            **fields,
            "next": b"%d" % next_offset,
            "digest": digest,
            "format": b"%d" % FORMAT,
        }
        return None

    async def drop(self, partition_key: str, fields: Sequence[str]) -> None:
        self.outage.before()
        stored = self.hashes.get(partition_key, {})
        for name in fields:
            stored.pop(name, None)
        self.outage.after()

    async def discard(self, partition_key: str) -> bool:
        self.outage.before()
        gone = self.hashes.pop(partition_key, None)
        self.outage.after()
        return gone is not None

    async def read(
        self, partition_keys: Sequence[str], wanted: Mapping[str, tuple[str, Sequence[int]]]
    ) -> tuple[Mapping[str, Mapping[int, VisitTotals]], Sequence[PartitionProgress]]:
        self.outage.before()
        self.outage.after()
        hashes = [self.hashes.get(key, {}) for key in partition_keys]
        visits = visits_of(wanted)
        names = fields_of(visits)
        reading = TotalsRead(self._merger, partition_keys, wanted)
        reading.take_heads(hashes)
        for stored in hashes:
            reading.take_row({name: stored.get(name) for name in names})
        for visit in visits:
            reading.merge(visit)
        self._faults.note(reading.unreadable, reading.damaged)
        return reading.found, reading.progress

    async def heads(self, partition_keys: Sequence[str]) -> Sequence[PartitionHead]:
        self.outage.before()
        self.outage.after()
        reading = TotalsRead(self._merger, partition_keys, {})
        reading.take_heads([self.hashes.get(key, {}) for key in partition_keys])
        return reading.heads
