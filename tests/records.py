"""Event records as apps send them.

And a stand-in for the loop around `PartitionTotals` that loads, folds and saves by hand.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from controller.codec.merging import Merger
from controller.counting.counted_flags import FLAGS_WITH_OWN_FIELDS, Changes
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.counting.partition_totals import PartitionTotals, ReadEvaluations, ReadOutcomes
from controller.ports import Record
from schemas.counters import COUNTERS, Shape
from schemas.envelope import MAX_TIME_MS
from schemas.events import Contents, Packed, Readable, Unpack
from schemas.quarantine import Refusal, WrittenRefusals
from schemas.record_refused import RecordRefused
from schemas.totals import ArmCounts, decode_arm, encode_progress, parse_field
from schemas.wire import (
    decode_evaluation,
    decode_outcome,
    read_evaluations,
    read_outcomes,
)
from tests.builders import HOUR, T0

#: When records arrive unless a test says otherwise: after whatever happens in it.
ARRIVAL_MS = int((T0 + 24 * HOUR).timestamp() * 1000)


def refusals_in(written: Iterable[WrittenRefusals]) -> list[Refusal]:
    """Return refusals one by one, checked against what is said of them all."""
    refusals = []
    for some in written:
        read = msgspec.json.decode(b"[%b]" % some.json, type=list[Refusal])
        assert (some.count, some.first_offset, some.last_offset, some.latest_ms) == (
            len(read),
            read[0].offset,
            read[-1].offset,
            max(one.timestamp_ms for one in read),
        )
        assert b",".join(map(msgspec.json.encode, read)) == some.json
        assert dict(some.by_reason) == Counter(one.reason for one in read)
        refusals += read
    return refusals


def is_alone(refused: RecordRefused) -> bool:
    """Return whether a refusal keeps nothing of where it was raised."""
    return not (refused.__traceback__ or refused.__context__ or refused.__cause__)


def distinct_counts() -> dict[str, Any]:
    """Return a value for each counter of an arm: all differ, and none is the default."""
    values: dict[str, Any] = {}
    for number, counter in enumerate(COUNTERS, start=1):
        match counter.shape:
            case Shape.NUMBER:
                values[counter.name] = number
            case Shape.BY_NAME:
                values[counter.name] = {"bought": number}
            case Shape.BY_BUCKET:
                values[counter.name] = {7: number}
    return values


def at_ms(at: datetime) -> int:
    """Return a time in ms since the epoch."""
    return round(at.timestamp() * 1000)


def _value(kind: str, data: dict[str, Any], time_ms: int) -> bytes:
    event = {
        "specversion": "1.0",
        "type": f"io.rolloutd.{kind}.v1",
        "source": "/app",
        "id": "1",
        "time": datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(),
        "data": data,
    }
    return json.dumps(event).encode()


def evaluation_value(
    context: str, variant: str, *, time_ms: int, flag: str = "new-checkout"
) -> bytes:
    """Return an evaluation as an app writes it."""
    data = {
        "feature_flag.key": flag,
        "feature_flag.result.variant": variant,
        "feature_flag.context.id": context,
    }
    return _value("evaluation", data, time_ms)


def outcome_value(
    context: str,
    *,
    time_ms: int,
    flags: Sequence[tuple[str, str]] = (),
    error: bool = False,
    latency_ms: float | None = None,
    conversions: Sequence[str] = (),
) -> bytes:
    """Return an outcome as an app writes it; without flags it is to be joined."""
    data: dict[str, Any] = {"feature_flag.context.id": context}
    if flags:
        data["rolloutd.flags"] = [
            {"feature_flag.key": flag, "feature_flag.result.variant": variant}
            for flag, variant in flags
        ]
    if error:
        data["error.type"] = "500"
    if latency_ms is not None:
        data["http.server.request.duration"] = latency_ms / 1000
    if conversions:
        data["rolloutd.conversions"] = list(conversions)
    return _value("outcome", data, time_ms)


def make_record(
    offset: int,
    value: bytes | None,
    *,
    topic: str = "t",
    timestamp_ms: int = ARRIVAL_MS,
    partition: int = 0,
) -> Record:
    """Return a record with no key and no headers."""
    return Record(topic, partition, offset, timestamp_ms, None, value, ())


def _unpacked(decode: Callable[..., tuple[Any, ...]]) -> Unpack[Any]:
    def unpack(record: Readable, *, latest_ms: int = MAX_TIME_MS) -> Contents[Any]:
        events, refused = [], None
        for line in (record.value or b"").splitlines():
            try:
                events.append(tuple(decode(line, None, record.timestamp, (), latest_ms=latest_ms)))
            except RecordRefused as problem:
                refused = refused or problem
        return Contents(events, refused)

    return unpack


#: Readers of a format that only tests know: our own events, several to a record, one a line.
LINES: tuple[ReadEvaluations, ReadOutcomes] = (
    Packed(_unpacked(decode_evaluation)),
    Packed(_unpacked(decode_outcome)),
)


class Owner:
    """Counts one partition by hand.

    The steps `Ingest` takes, one call each, so that a test chooses what lies between them.
    """

    def __init__(
        self,
        directory: FlagsToCount,
        *,
        counts_exposures: bool,
        stored: dict[str, bytes] | None = None,
        exact_limit: int = 1000,
        window_ms: int | None = 1_800_000,
        flags_with_own_fields: int = FLAGS_WITH_OWN_FIELDS,
        readers: tuple[ReadEvaluations, ReadOutcomes] = (read_evaluations, read_outcomes),
        number: int = 0,
    ) -> None:
        """Load what is stored, or begin at offset 0."""
        self.read_evaluations, self.read_outcomes = readers
        self.totals = PartitionTotals(
            directory,
            counts_exposures=counts_exposures,
            exact_limit=exact_limit,
            window_ms=window_ms if counts_exposures else None,
            flags_with_own_fields=flags_with_own_fields,
            number=number,
        )
        if stored:
            self.totals.restore(
                int(stored["next"]),
                {name: value for name, value in stored.items() if name != "next"},
            )
        self.expected = int(stored["next"]) if stored else None

    def fold(self, records: Sequence[Record], *, partner: PartitionTotals | None = None) -> None:
        """Fold records, all of them."""
        if self.totals.counts_exposures:
            assert self.totals.fold_evaluations(records, self.read_evaluations) == len(records)
        else:
            assert self.totals.fold_outcomes(records, self.read_outcomes, partner=partner) == len(
                records
            )

    def save(self, stored: dict[str, bytes]) -> bool:
        """Write what changed into `stored` and delete garbage.

        Return False, and write nothing, when the fence is not ours.
        """
        fence = int(stored["next"]) if "next" in stored else None
        changes = Changes()
        for _ in self.totals.drain_changes(changes):
            pass
        if fence != self.expected:
            return False
        stored |= (
            changes.fields
            | encode_progress(self.totals.progress)
            | {"next": b"%d" % self.totals.position}
        )
        for name in changes.garbage:
            stored.pop(name, None)
        self.expected = self.totals.position
        return True


def arms_in(stored: dict[str, bytes]) -> dict[tuple[str, int, str], ArmCounts]:
    """Return (flag key, visit, arm) -> totals of a hash.

    Arms with nothing but zeros are left out.
    """
    found = {}
    for name, value in Merger().arms("", stored)[0].items():
        parsed = parse_field(name)
        if parsed is not None and parsed.arm is not None and decode_arm(value) != ArmCounts():
            found[parsed.flag_key, parsed.visit, parsed.arm.value] = decode_arm(value)
    return found
