"""Raw fields of many partitions in, merged totals out.

And what both stores agree on when they save.

Belongs here: what `adapters/redis` and `adapters/memory` must do alike, byte for byte.
Does not belong here: I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import xxhash

from controller.core.evidence import (
    ArmTotals,
    Loss,
    PartitionProgress,
    VisitTotals,
)
from controller.errors import BrokenInvariant
from controller.health import UPGRADE_FIRST, Faults, Scope, partition_remedy
from controller.ports import PartitionHead, StoredPartition
from schemas.counters import merged_values, values_of
from schemas.terms import Arm
from schemas.totals import (
    FORMAT,
    MAX_FIELDS_PER_SAVE,
    MOST_DIGITS,
    ArmCounts,
    arm_field,
    bundle_field,
    bundle_of,
    decode_arm,
    decode_bundle,
    decode_progress,
    is_bundle_field,
    lately_changed,
    parse_number,
    rebased_field,
)

VisitKey = tuple[str, str, int]
"""(flag key, rollout id, visit)"""


OWN_FIELDS = frozenset({"next", "digest", "format"})
"""Fields of a partition's hash that the stores write by themselves."""


def digest_of(expected: int | None, after: int, fields: Mapping[str, bytes]) -> str:
    """Return what tells one save's arguments from another's: 32 hex digits.

    Stored with every save. A save that finds its own digest beside its own new fence was done by an
    earlier try; one that finds the fence alone meets the work of somebody else who got just as far,
    and must not take it for its own.
    """
    state = xxhash.xxh3_128(b"%d>%d" % (-1 if expected is None else expected, after))
    for name, value in fields.items():
        text = name.encode()
        state.update(
            b"%d:%d:" % (len(text), len(value))
        )  # lengths first: no two lists of fields run together alike
        state.update(text)
        state.update(value)
    return state.hexdigest()


def check_totals_save(
    expected: int | None, next_offset: int, fields: Mapping[str, bytes], rebased: int = 0
) -> None:
    """Raise ValueError for what no store may be asked to write.

    `rebased` is as stored: a fence moves back in the save alone that counts another rebase.
    """
    is_rebase = fields.get("rebased", b"") != rebased_field(rebased)
    if next_offset < (expected or 0) and not is_rebase:
        raise ValueError(f"a fence only moves forward: {expected} to {next_offset}")
    if len(fields) > MAX_FIELDS_PER_SAVE:
        raise ValueError(
            f"{len(fields)} fields in one save, {MAX_FIELDS_PER_SAVE} allowed: save earlier"
        )
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
    if not is_number(stored):
        raise BrokenInvariant(
            f"the hash of {partition_key} has no format: it was not written by rolloutd"
        )
    if int(stored) > FORMAT:
        raise BrokenInvariant(
            f"the hash of {partition_key} has format {int(stored)} and this rolloutd knows "
            f"{FORMAT}: {UPGRADE_FIRST}"
        )


def stored_partition(partition_key: str, fields: Mapping[str, bytes]) -> StoredPartition:
    """Return a hash as `Totals.load` gives it.

    Raises BrokenInvariant when it was not written by us.
    """
    stored = fields.get("next")
    if stored is None:
        return StoredPartition(None, {})
    check_format(partition_key, fields)
    if not is_number(stored):
        raise BrokenInvariant(f"the fence of {partition_key} is {stored!r}, not an offset")
    return StoredPartition(
        int(stored), {name: value for name, value in fields.items() if name not in OWN_FIELDS}
    )


def is_number(value: bytes) -> bool:
    """Return whether a stored value is a number that we may have written."""
    return value.isdigit() and len(value) <= MOST_DIGITS


def topic_partition_of(partition_key: str) -> str:
    """Return `topic/partition` of a partition's key, which ends with the epoch."""
    return partition_key.rsplit("/", 1)[0]


class ReadFaults:
    """What of the stored totals could not be read the last time, reported once and cleared.

    Only what was reported here is cleared here: the partition's owner reports for itself.
    """

    def __init__(self, faults: Faults | None) -> None:
        self._faults = faults
        self._reported: set[tuple[Scope, str]] = set()

    def note(self, partitions: Mapping[str, str], flags: Mapping[str, str]) -> None:
        """Take what one reading could not read: partition key or flag key -> why."""
        if self._faults is None:
            return
        found = set()
        for partition_key, why in partitions.items():
            name = topic_partition_of(partition_key)
            found.add((Scope.PARTITION, name))
            self._faults.report(
                Scope.PARTITION, name, why, partition_remedy(name, why), reporter=_READING
            )
        for flag_key, why in flags.items():
            found.add((Scope.FLAG, flag_key))
            self._faults.report(Scope.FLAG, flag_key, why, _REMEDY_OF_FLAG, reporter=_READING)
        for scope, name in self._reported - found:
            self._faults.clear(scope, name, reporter=_READING)
        self._reported = found


#: Who reports: a partition's owner reports for itself.
_READING = "reading"
_REMEDY_OF_FLAG = "restore the hash from a backup, or discard it with `rolloutd repair partition`"


def to_core(counts: ArmCounts) -> ArmTotals:
    """Return an arm's totals as the core has them; the mappings are shared, not copied."""
    return ArmTotals(*values_of(counts))


def merge_arms(parts: Iterable[ArmCounts]) -> ArmTotals:
    """Return the sum over partitions."""
    parts = list(parts)
    return to_core(parts[0]) if len(parts) == 1 else ArmTotals(*merged_values(parts))


class Merger:
    """Merges visits over partitions and remembers the bytes it last saw.

    What did not change is not decoded again.

    `capacity`: visits remembered, least recently read dropped first; about 150 KB each at 8
    partitions and 100 buckets per arm, nearly all of it the decoded histograms. As many bundles are
    remembered, opened; what they hold is mostly the same bytes.
    """

    def __init__(self, capacity: int = 20_000) -> None:
        self._capacity = capacity
        self._bundles: OrderedDict[tuple[str, str], tuple[bytes, dict[str, bytes]]] = OrderedDict()
        self._damaged: dict[VisitKey, frozenset[int]] = {}  # partitions left out, by number
        self._seen: OrderedDict[
            VisitKey, tuple[tuple[bytes | None, ...], list[ArmCounts | None], VisitTotals]
        ] = OrderedDict()

    def arms(
        self, partition_key: str, fields: Mapping[str, bytes | None]
    ) -> tuple[dict[str, bytes], dict[str, str]]:
        """Return the arms in a partition's fields, those in bundles too, and what cannot be read.

        The first is name -> bytes; an arm's own field goes before its bundle. The second is name of
        a bundle -> why.
        """
        bundled: dict[str, bytes] = {}
        own: dict[str, bytes] = {}
        unreadable: dict[str, str] = {}
        for name, value in fields.items():
            if value is None:
                continue
            if is_bundle_field(name):
                try:
                    bundled |= self._opened(partition_key, name, value)
                except ValueError as error:
                    unreadable[name] = f"{name} of {partition_key} cannot be read: {error}"
            else:
                own[name] = value
        return bundled | own, unreadable

    def _opened(self, partition_key: str, name: str, value: bytes) -> dict[str, bytes]:
        digest = xxhash.xxh3_128_digest(
            value
        )  # in place of a copy: a bundle may be large, and opening it costs 90 times this
        key = (partition_key, name)
        known = self._bundles.get(key)
        if known is not None and known[0] == digest:
            self._bundles.move_to_end(key)
            return known[1]
        arms = decode_bundle(value)
        self._bundles[key] = (digest, arms)
        self._bundles.move_to_end(key)
        if len(self._bundles) > self._capacity:
            self._bundles.popitem(last=False)
        return arms

    def merge(self, visit: VisitKey, raw: tuple[bytes | None, ...]) -> VisitTotals:
        """Return one visit's totals over all partitions.

        `raw` is treatment and control of the first partition, then of the second, and so on; None
        is a field that is missing. A partition of which one arm cannot be read adds neither arm, so
        that the arms stay comparable; `VisitTotals.unreadable` then holds its number in `raw` as
        text.
        """
        before = self._seen.get(visit)
        if before is not None:
            self._seen.move_to_end(visit)
            if before[0] == raw:
                return before[2]
        known_raw, known = ((), []) if before is None or len(before[0]) != len(raw) else before[:2]
        counts: list[ArmCounts | None] = []
        unreadable: list[int] = []
        for index, value in enumerate(raw):
            if (
                known_raw
                and known_raw[index] == value
                and index // 2 not in self._damaged.get(visit, ())
            ):
                counts.append(known[index])
            else:
                try:
                    counts.append(None if value is None else decode_arm(value))
                except ValueError:
                    counts.append(None)
                    unreadable.append(index // 2)
        for number in unreadable:
            counts[2 * number] = counts[2 * number + 1] = None
        totals = VisitTotals(
            treatment=merge_arms(part for part in counts[0::2] if part is not None),
            control=merge_arms(part for part in counts[1::2] if part is not None),
            unreadable=tuple(str(number) for number in dict.fromkeys(unreadable)),
        )
        if unreadable:
            self._damaged[visit] = frozenset(unreadable)
        else:
            self._damaged.pop(visit, None)
        self._seen[visit] = (raw, counts, totals)
        if len(self._seen) > self._capacity:
            gone, _ = self._seen.popitem(last=False)
            self._damaged.pop(gone, None)
        return totals


class TotalsRead:
    """One `Totals.read`, without its I/O: what each partition gave, and what could not be read.

    What is damaged stays where it is: a partition's head or format costs that partition, a field
    costs the flags whose totals stand in it, in that partition alone.
    """

    def __init__(
        self,
        merger: Merger,
        partition_keys: Sequence[str],
        wanted: Mapping[str, tuple[str, Sequence[int]]],
    ) -> None:
        """`wanted` is as in `Totals.read`."""
        self._merger = merger
        self._keys = partition_keys
        self._arms: list[dict[str, bytes]] = []
        self._closed: list[dict[str, str]] = []  # per partition: bundles that cannot be read
        self.found: dict[str, dict[int, VisitTotals]] = {flag_key: {} for flag_key in wanted}
        self.heads: list[PartitionHead] = []
        self.unreadable: dict[str, str] = {}  # partition key -> why
        self.damaged: dict[str, str] = {}  # flag key -> why

    def take_heads(self, heads: Iterable[Mapping[str, bytes | None] | BaseException]) -> None:
        """Take each partition's progress fields, or what reading them raised."""
        for key, head in zip(self._keys, heads, strict=True):
            try:
                if isinstance(head, BaseException):
                    self.unreadable[key] = f"the hash of {key} cannot be read: {head}"
                    continue
                known = {name: value for name, value in head.items() if value is not None}
                progress = progress_of(key, known)
            except BrokenInvariant as broken:
                self.unreadable[key] = str(broken)
            else:
                if progress is not None:
                    self.heads.append(PartitionHead(progress, lately_changed(known)))

    @property
    def progress(self) -> list[PartitionProgress]:
        """How far the partitions are counted whose heads could be read."""
        return [head.progress for head in self.heads]

    def begin_rows(self) -> None:
        """Begin another round of rows."""
        self._arms, self._closed = [], []

    def take_row(self, fields: Mapping[str, bytes | None]) -> None:
        """Take the arms' fields of the next partition.

        Those of one that cannot be read are left out.
        """
        key = self._keys[len(self._arms)]
        arms, closed = ({}, {}) if key in self.unreadable else self._merger.arms(key, fields)
        self._arms.append(arms)
        self._closed.append(closed)

    def merge(self, visit: VisitKey) -> None:
        """Add up one visit over all partitions."""
        names = arms_of(visit)
        raw = tuple(arms.get(name) for arms in self._arms for name in names)
        totals = self._merger.merge(visit, raw)
        partitions = {int(number): "" for number in totals.unreadable}
        if any(self._closed):
            bundle = bundle_field(visit[0])
            for number, closed in enumerate(self._closed):
                if bundle in closed and not all(name in self._arms[number] for name in names):
                    partitions[number] = closed[bundle]
        if partitions:
            places = tuple(topic_partition_of(self._keys[number]) for number in sorted(partitions))
            totals = replace(totals, unreadable=places)
            self.damaged[visit[0]] = (
                f"totals of visit {visit[2]} cannot be read in {', '.join(places)}: they "
                f"are left out, and no gate passes"
            )
        self.found[visit[0]][visit[2]] = totals


def visits_of(wanted: Mapping[str, tuple[str, Sequence[int]]]) -> list[VisitKey]:
    """Return the visits that a `Totals.read` asks for, those that share a bundle together."""
    visits = [
        (flag_key, rollout_id, visit)
        for flag_key, (rollout_id, visits) in wanted.items()
        for visit in visits
    ]
    return sorted(visits, key=lambda visit: bundle_field(visit[0]))


def stored_together(flag_keys: Iterable[str]) -> list[str]:
    """Return flags so that those that share a bundle follow each other.

    A bundle is read whole. Of ten thousand flags in any order, each two hundred are in nearly two
    hundred bundles, which hold two thousand.
    """
    return sorted(flag_keys, key=bundle_of)


def arms_of(visit: VisitKey) -> tuple[str, str]:
    """Return the names of a visit's two arms, treatment first."""
    return arm_field(*visit, Arm.TREATMENT), arm_field(*visit, Arm.CONTROL)


def fields_of(visits: Iterable[VisitKey]) -> list[str]:
    """Return the names of all fields in which the arms of these visits may stand.

    Their own and their bundles.
    """
    names: dict[str, None] = {}
    for visit in visits:
        names |= dict.fromkeys((*arms_of(visit), bundle_field(visit[0])))
    return list(names)


def progress_of(partition_key: str, fields: Mapping[str, bytes]) -> PartitionProgress | None:
    """Return a partition's progress, None when it was never counted.

    Raises BrokenInvariant when it cannot be read.
    """
    stored = fields.get("next")
    if stored is None:
        return None
    check_format(partition_key, fields)
    try:
        next_offset = parse_number(fields, "next")
        counts = decode_progress(fields)
    except ValueError as error:
        raise BrokenInvariant(f"the hash of {partition_key} cannot be read: {error}") from error
    return PartitionProgress(
        topic_partition=topic_partition_of(partition_key),
        next_offset=next_offset,
        end_offset=counts.end,
        freshest=None if counts.freshest_ms is None else _moment(counts.freshest_ms),
        reported_at=_moment(counts.reported_at_ms),
        losses=tuple(
            Loss(_moment(since) if since else None, None if until is None else _moment(until))
            for since, until in counts.losses
        ),
    )


_LAST_MOMENT = datetime(9999, 12, 31, tzinfo=UTC)
_LAST_MOMENT_MS = int(_LAST_MOMENT.timestamp() * 1000)


def _moment(milliseconds: int) -> datetime:
    """Return the moment; what lies beyond the calendar is the end of it, so that none can raise."""
    if milliseconds >= _LAST_MOMENT_MS:
        return _LAST_MOMENT
    return datetime.fromtimestamp(max(milliseconds, 0) / 1000, UTC)
