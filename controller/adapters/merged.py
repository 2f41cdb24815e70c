"""Raw fields of many partitions in, merged totals out; and what both stores agree on when they save.

Belongs here: what `redis.py` and `memory.py` must do alike, byte for byte. Does not belong here: I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import xxhash

from controller.core.evidence import ArmTotals, PartitionProgress, VisitTotals, merge_histograms
from controller.errors import BrokenInvariant
from controller.ports import StoredPartition
from schemas.terms import Arm
from schemas.totals import (
    FORMAT,
    MAX_FIELDS_PER_SAVE,
    ArmCounts,
    arm_field,
    bundle_field,
    decode_arm,
    decode_bundle,
    decode_progress,
    is_bundle_field,
)

VisitKey = tuple[str, str, int]
"""(flag key, rollout id, visit)"""


OWN_FIELDS = frozenset({"next", "digest", "format"})
"""Fields of a partition's hash that the stores write by themselves."""


def digest_of(expected: int | None, after: int, fields: Mapping[str, bytes]) -> str:
    """Return what tells one save's arguments from another's: 32 hex digits.

    Stored with every save. A save that finds its own digest beside its own new fence was done by an earlier try; one that finds
    the fence alone meets the work of somebody else who got just as far, and must not take it for its own.
    """
    state = xxhash.xxh3_128(b"%d>%d" % (-1 if expected is None else expected, after))
    for name, value in fields.items():
        text = name.encode()
        state.update(b"%d:%d:" % (len(text), len(value)))  # lengths first: no two lists of fields run together alike
        state.update(text)
        state.update(value)
    return state.hexdigest()


def check_totals_save(expected: int | None, next_offset: int, fields: Mapping[str, bytes]) -> None:
    """Raise ValueError for what no store may be asked to write."""
    if next_offset < (expected or 0):
        raise ValueError(f"a fence only moves forward: {expected} to {next_offset}")
    if len(fields) > MAX_FIELDS_PER_SAVE:
        raise ValueError(f"{len(fields)} fields in one save, {MAX_FIELDS_PER_SAVE} allowed: save earlier")
    if not OWN_FIELDS.isdisjoint(fields):
        raise ValueError(f"{', '.join(sorted(OWN_FIELDS))} are written by the store itself")


def outbox_number(name: str) -> int:
    """Return n of the field name `outbox:<n>`. Raises ValueError for any other name."""
    kind, _, number = name.partition(":")
    if kind != "outbox" or not (number.isascii() and number.isdigit()):
        raise ValueError(f"{name!r} is not the name of an outbox field")
    return int(number)


def check_format(partition_key: str, fields: Mapping[str, bytes]) -> None:
    """Raise BrokenInvariant when a hash was written by a newer rolloutd, or is no hash of ours."""
    stored = fields.get("format", b"")
    if not stored.isdigit():
        raise BrokenInvariant(f"the hash of {partition_key} has no format: it was not written by rolloutd")
    if int(stored) > FORMAT:
        raise BrokenInvariant(
            f"the hash of {partition_key} has format {int(stored)} and this rolloutd knows {FORMAT}: upgrade it"
        )


def stored_partition(partition_key: str, fields: Mapping[str, bytes]) -> StoredPartition:
    """Return a hash as `Totals.load` gives it. Raises BrokenInvariant when it was not written by us."""
    stored = fields.get("next")
    if stored is None:
        return StoredPartition(None, {})
    check_format(partition_key, fields)
    if not stored.isdigit():
        raise BrokenInvariant(f"the fence of {partition_key} is {stored!r}, not an offset")
    return StoredPartition(int(stored), {name: value for name, value in fields.items() if name not in OWN_FIELDS})


def to_core(counts: ArmCounts) -> ArmTotals:
    """Return an arm's totals as the core has them; the dicts are shared, not copied."""
    return ArmTotals(
        counts.evaluations,
        counts.exposures,
        counts.switched,
        counts.outcomes,
        counts.errors,
        counts.at_risk,
        counts.first_errors,
        counts.converted,
        counts.latency,
        counts.latency_all,
        counts.checked,
        counts.repeated,
    )


def merge_arms(parts: Iterable[ArmCounts]) -> ArmTotals:
    """Return the sum over partitions, in one pass."""
    parts = list(parts)
    if len(parts) == 1:
        return to_core(parts[0])
    converted: dict[str, int] = {}
    for part in parts:
        for name, contexts in part.converted.items():
            converted[name] = converted.get(name, 0) + contexts
    return ArmTotals(
        evaluations=sum(part.evaluations for part in parts),
        exposures=sum(part.exposures for part in parts),
        switched=sum(part.switched for part in parts),
        outcomes=sum(part.outcomes for part in parts),
        errors=sum(part.errors for part in parts),
        at_risk=sum(part.at_risk for part in parts),
        first_errors=sum(part.first_errors for part in parts),
        converted=converted,
        latency=merge_histograms(part.latency for part in parts if part.latency),
        latency_all=merge_histograms(part.latency_all for part in parts if part.latency_all),
        checked=sum(part.checked for part in parts),
        repeated=sum(part.repeated for part in parts),
    )


class Merger:
    """Merges visits over partitions and remembers the bytes it last saw: what did not change is not decoded again.

    `capacity`: visits remembered, least recently read dropped first; about 30 KB each at 8 partitions and 100 buckets per arm.
    As many bundles are remembered, opened; what they hold is mostly the same bytes.
    """

    def __init__(self, capacity: int = 20_000) -> None:
        self._capacity = capacity
        self._bundles: OrderedDict[tuple[str, str], tuple[bytes, dict[str, bytes]]] = OrderedDict()
        self._seen: OrderedDict[VisitKey, tuple[tuple[bytes | None, ...], list[ArmCounts | None], VisitTotals]] = OrderedDict()

    def arms(self, partition_key: str, fields: Mapping[str, bytes | None]) -> dict[str, bytes]:
        """Return the arms in a partition's fields, those in bundles too, by name; an arm's own field goes before its bundle.

        Raises BrokenInvariant for a bundle that cannot be read.
        """
        bundled: dict[str, bytes] = {}
        own: dict[str, bytes] = {}
        for name, value in fields.items():
            if value is None:
                continue
            if is_bundle_field(name):
                bundled |= self._opened(partition_key, name, value)
            else:
                own[name] = value
        return bundled | own

    def _opened(self, partition_key: str, name: str, value: bytes) -> dict[str, bytes]:
        digest = xxhash.xxh3_128_digest(value)  # in place of a copy: a bundle may be large, and opening it costs ten times this
        key = (partition_key, name)
        known = self._bundles.get(key)
        if known is not None and known[0] == digest:
            self._bundles.move_to_end(key)
            return known[1]
        try:
            arms = decode_bundle(value)
        except ValueError as error:
            raise BrokenInvariant(f"{name} of {partition_key} cannot be read: {error}") from error
        self._bundles[key] = (digest, arms)
        self._bundles.move_to_end(key)
        if len(self._bundles) > self._capacity:
            self._bundles.popitem(last=False)
        return arms

    def merge(self, visit: VisitKey, raw: tuple[bytes | None, ...]) -> VisitTotals:
        """Return one visit's totals over all partitions.

        `raw` is treatment and control of the first partition, then of the second, and so on; None is a field that is missing.
        Raises BrokenInvariant when a field cannot be read.
        """
        before = self._seen.get(visit)
        if before is not None:
            self._seen.move_to_end(visit)
            if before[0] == raw:
                return before[2]
        known_raw, known = ((), []) if before is None or len(before[0]) != len(raw) else before[:2]
        counts: list[ArmCounts | None] = []
        for index, value in enumerate(raw):
            if known_raw and known_raw[index] == value:
                counts.append(known[index])
            else:
                counts.append(None if value is None else _decoded(visit, value))
        totals = VisitTotals(
            treatment=merge_arms(part for part in counts[0::2] if part is not None),
            control=merge_arms(part for part in counts[1::2] if part is not None),
        )
        self._seen[visit] = (raw, counts, totals)
        if len(self._seen) > self._capacity:
            self._seen.popitem(last=False)
        return totals


def visits_of(wanted: Mapping[str, tuple[str, Sequence[int]]]) -> list[VisitKey]:
    """Return the visits that a `Totals.read` asks for, those that share a bundle together."""
    visits = [(flag_key, rollout_id, visit) for flag_key, (rollout_id, visits) in wanted.items() for visit in visits]
    return sorted(visits, key=lambda visit: bundle_field(visit[0]))


def arms_of(visit: VisitKey) -> tuple[str, str]:
    """Return the names of a visit's two arms, treatment first."""
    return arm_field(*visit, Arm.TREATMENT), arm_field(*visit, Arm.CONTROL)


def fields_of(visits: Iterable[VisitKey]) -> list[str]:
    """Return the names of all fields in which the arms of these visits may stand: their own and their bundles."""
    names: dict[str, None] = {}
    for visit in visits:
        names |= dict.fromkeys((*arms_of(visit), bundle_field(visit[0])))
    return list(names)


def progress_of(partition_key: str, fields: Mapping[str, bytes]) -> PartitionProgress | None:
    """Return a partition's progress, None when it was never counted. Raises BrokenInvariant when it cannot be read."""
    stored = fields.get("next")
    if stored is None:
        return None
    check_format(partition_key, fields)
    try:
        next_offset = int(stored)
        counts = decode_progress(fields)
    except ValueError as error:
        raise BrokenInvariant(f"the hash of {partition_key} cannot be read: {error}") from error
    return PartitionProgress(
        topic_partition=partition_key.rsplit("/", 1)[0],
        next_offset=next_offset,
        end_offset=counts.end,
        freshest=_moment(counts.freshest_ms),
        reported_at=datetime.fromtimestamp(counts.reported_at_ms / 1000, UTC),
        tainted_from=_moment(counts.tainted_from_ms),
    )


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _decoded(visit: VisitKey, value: bytes) -> ArmCounts:
    try:
        return decode_arm(value)
    except ValueError as error:
        raise BrokenInvariant(f"totals of {visit[0]}, visit {visit[2]}, cannot be read: {error}") from error
