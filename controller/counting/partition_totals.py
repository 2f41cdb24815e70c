"""Adds up one event partition: records in, totals per arm and each record's class out.

Belongs here: offsets, which class each record falls into, refusals, and how many records may be
folded before a save. Does not belong here: what an event adds (`folding/events.py`), what is stored
of flags (`counted_flags.py`), fetching and saving (`ingest.py`, `saving.py`), what the numbers mean
(`core/evidence.py`). The offsets of records that come together rise.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from typing import Any

from controller.counting.counted_flags import (
    FLAGS_WITH_OWN_FIELDS,
    Changes,
    CountedFlags,
    new_fold,
)
from controller.counting.folding.context_sets import digest_of
from controller.counting.folding.engine import Fold
from controller.counting.folding.events import Counted
from controller.counting.folding.flags_to_count import OPEN_END_MS, FlagsToCount
from controller.counting.folding.refused import refusal_of
from controller.counting.layout.changed_flags import ChangedFlags
from controller.errors import BrokenInvariant
from controller.ports import Record
from schemas.envelope import MAX_AHEAD_MS, MAX_TIME_MS
from schemas.events import (
    Contents,
    EvaluationFields,
    EvaluationReader,
    OutcomeFields,
    OutcomeReader,
    Packed,
)
from schemas.quarantine import WrittenRefusals, written
from schemas.terms import QuarantineReason
from schemas.totals import PartitionCounts, decode_progress
from schemas.wire import RecordRefused

#: One event a record, as `schemas.wire` reads them, or many. `schemas/formats.py` has the reader of
#: each configured format.
ReadEvaluations = EvaluationReader[Record] | Packed[EvaluationFields]
ReadOutcomes = OutcomeReader[Record] | Packed[OutcomeFields]

_CHECKED_AFTER_A_LOSS = 32  # records whose timestamps say when a loss was over
_REPORT_IT = "report this record to the maintainers; it was left out, and counting went on"

MAX_FIELDS_PER_RECORD = 1_500
"""How many fields one record of many events may change.

It is half of what a save carries, so that after a save there is always room for one.
"""
_ENTRIES_PER_FIELD = 128  # memberships; a chunk takes twice as many, but there are two journals
# Names of sets; half of what a field takes, because their numbers need not begin with one.
_SETS_PER_FIELD = 32
#: Of evaluations: the contexts that each arm has exposed. Of outcomes it is one, the contexts that
#: failed, beside one for each conversion.
_SETS_PER_VISIT = 2
_OTHER_FIELDS = 8  # the ends of journals and of the list of names


class PartitionTotals:
    """Everything counted in one event partition."""

    def __init__(
        self,
        flags_to_count: FlagsToCount,
        *,
        counts_exposures: bool,
        exact_limit: int,
        window_ms: int | None = None,
        flags_with_own_fields: int = FLAGS_WITH_OWN_FIELDS,
        number: int = 0,
        new_fold: Callable[..., Fold] = new_fold,
    ) -> None:
        """Start empty.

        `counts_exposures`: a partition of evaluations, else of outcomes. `exact_limit` is how many
        contexts a set holds exactly. `window_ms` is the attribution window of an evaluation
        partition, None to remember no exposures. `number` is the partition's own. `new_fold` makes
        its fold.
        """
        self._flags_to_count = flags_to_count
        self._number = number
        self.counts_exposures = counts_exposures
        self.flags = CountedFlags(
            flags_to_count,
            counts_exposures=counts_exposures,
            exact_limit=exact_limit,
            window_ms=window_ms,
            flags_with_own_fields=flags_with_own_fields,
            new_fold=new_fold,
        )
        self.changed_flags = ChangedFlags()
        self.position = 0  # the offset to read next
        self.progress = PartitionCounts()
        self.refused: list[WrittenRefusals] = []  # since `take_refused`
        self.refused_bytes = 0  # what those take
        self._partly_refused = 0  # packed records with good events, since they were taken
        self.now_ms: int = OPEN_END_MS  # by our clock; no counted record counts as younger
        self._latest_ms: int = MAX_TIME_MS  # the latest time accepted of a record and its event

    def set_time(self, now_ms: int) -> None:
        """Set the time by our own clock, the latest that an event's time is believed."""
        self.now_ms = now_ms
        self._latest_ms = now_ms + MAX_AHEAD_MS
        self.flags.fold.set_time(now_ms, self._latest_ms)

    # - progress -

    def start_at(self, offset: int) -> None:
        """Begin counting at `offset`, with nothing stored."""
        self.position = self.progress.start = offset

    def restore(self, next_offset: int, fields: Mapping[str, bytes]) -> None:
        """Continue from a stored hash.

        Times in the future are not believed: an earlier release may have counted them. Raises
        BrokenInvariant when we cannot have written it, or when it does not add up.
        """
        self.position = next_offset
        try:
            self.progress = decode_progress(fields)
            self.flags.restore(fields)
        except (ValueError, KeyError) as error:
            raise BrokenInvariant(f"what is stored cannot be read: {error}") from error
        progress = self.progress
        if not progress.adds_up(next_offset):
            raise BrokenInvariant(
                f"stored records {progress} do not add up to the fence {next_offset}"
            )
        if progress.freshest_ms is not None:
            progress.freshest_ms = min(progress.freshest_ms, self.now_ms)
        if progress.last_ms is not None:
            progress.last_ms = min(progress.last_ms, self.now_ms)

    def drain_changes(self, changes: Changes) -> Iterator[None]:
        """Put everything that has changed since the last save into `changes`; begin the next batch.

        Yields now and then, for others to run. Nothing may be folded before the end; rollouts may
        be applied and dropped.
        """
        return self.flags.drain_changes(changes, self.position, self.progress.freshest_ms or 0)

    @property
    def last_ms(self) -> int:
        """The time of the last record, ms since the epoch; ours while there was none."""
        return self.now_ms if self.progress.last_ms is None else self.progress.last_ms

    def note_evaluations(self) -> Iterator[None]:
        """Pass on the evaluations since the last call, to the hour of the last record.

        Yields now and then, for others to run.
        """
        return self.flags.note_evaluations(self.last_ms)

    def begin_batch(self) -> None:
        """Begin the next batch of outcomes without a save.

        A context is at risk once per batch.
        """
        self.flags.fold.begin_batch()

    def skip_to(self, offset: int, end: int) -> None:
        """Go on at `offset`, because the log no longer has what lies before: holes, and a loss.

        `end` is the offset after the last record of the log.
        """
        self.pass_holes(offset)
        self.lose(self.progress.last_ms or 0, is_over=offset >= end)

    def pass_holes(self, offset: int) -> None:
        """Go on at `offset`, because the log holds no record for us before it: holes, no loss."""
        self.progress.holes += offset - self.position
        self.position = offset

    def rebase(self, offset: int, end: int) -> None:
        """Go on at `offset` of another log.

        What was counted stays, although its records are gone. The classes begin again, so that they
        add up to offsets of one log. The time in between is a loss.
        """
        progress = self.progress
        self.position = offset
        self.progress = PartitionCounts(
            start=offset,
            freshest_ms=progress.freshest_ms,
            last_ms=progress.last_ms,
            losses=progress.losses,
            topic_id=progress.topic_id,
            rebased=progress.rebased + 1,
        )
        self.lose(progress.last_ms or 0, is_over=offset >= end)

    def lose(self, from_ms: int, *, is_over: bool) -> None:
        """Record a loss since `from_ms`, until now or until the next record that is read."""
        self.progress.note_loss(from_ms, self.now_ms if is_over else None)

    def _advance(self, records: Sequence[Record]) -> None:
        """Put the position behind records that begin at or after it; missing offsets are holes."""
        position = records[-1].offset + 1
        holes = position - self.position - len(records)
        if holes < 0:
            raise BrokenInvariant(
                f"{len(records)} records from offset {self.position} to {position}: some came twice"
            )
        progress = self.progress
        progress.holes += holes
        self.position = position
        if progress.losses and progress.losses[-1][1] is None:
            # The latest of the first few, because one of them may have been sent late.
            ends = max([record.timestamp for record in records[:_CHECKED_AFTER_A_LOSS]])
            progress.end_loss(min(ends, self.now_ms) if ends >= 0 else self.now_ms)
        last_ms = records[-1].timestamp
        if last_ms >= 0:
            progress.last_ms = last_ms if last_ms < self.now_ms else self.now_ms

    # - refusals -

    def set_aside(self, record: Record, why: str) -> None:
        """Refuse the next record unread, because counting it failed."""
        if record.offset >= self.position:
            why_not = RecordRefused(QuarantineReason.INVALID, why, _REPORT_IT)
            self._refuse(record, why_not)
            self._advance((record,))

    def _refuse(self, record: Record, why: RecordRefused) -> None:
        self._keep_refused(written([refusal_of(record, why)]))

    def _keep_refused(self, refused: Sequence[WrittenRefusals]) -> None:
        """Count and keep refused records, until they are saved."""
        for some in refused:
            self.progress.quarantined += some.count
            self.refused_bytes += some.size
        self.refused += refused

    def take_refused(self) -> Sequence[WrittenRefusals]:
        """Return what was refused since the last call."""
        refused, self.refused, self.refused_bytes = self.refused, [], 0
        return refused

    def take_partly_refused(self) -> int:
        """Return how many of the records quarantined since the last call have good events, too."""
        count, self._partly_refused = self._partly_refused, 0
        return count

    # - folding records of one event -

    def fold_evaluations(
        self, records: Sequence[Record], read: ReadEvaluations, *, room: float = inf
    ) -> int:
        """Count evaluations and return how many records were folded.

        That is all, or of a packed format as many as `room` allows. Records before the position are
        dropped, because they were counted. Offsets left out are holes. `room` is as for outcomes.
        """
        size = len(records)
        records = self._uncounted(records)
        if isinstance(read, Packed):
            return size - len(records) + self._fold_packed_evaluations(records, read, room)
        if records:
            refused: list[WrittenRefusals] = []
            fold = self.flags.fold
            counted = fold.read_evaluations(records, read, refused, self._latest_ms)
            self._finish(records, counted, refused)
        return size

    def fold_outcomes(
        self,
        records: Sequence[Record],
        read: ReadOutcomes,
        *,
        room: float = inf,
        partner: PartitionTotals | None = None,
        joinable_until_ms: float = inf,
    ) -> int:
        """Count outcomes and return how many records were folded.

        Fewer than given when `room` more fields have changed. Also when a record without flags is
        younger than `joinable_until_ms`, because not all evaluations before it have been counted;
        and while exposures are not all indexed, in which case each call indexes some more.
        `partner` are the totals of the evaluations of the same partition number, None for none.
        """
        size = len(records)
        records = self._uncounted(records)
        dropped = size - len(records)
        if isinstance(read, Packed):
            return dropped + self._fold_packed_outcomes(
                records, read, room, partner, joinable_until_ms
            )
        refused: list[WrittenRefusals] = []
        counted = self.flags.fold.read_outcomes(
            records,
            read,
            refused,
            self._latest_ms,
            room,
            None if partner is None else partner.flags.fold,
            joinable_until_ms,
        )
        if counted.stopped_at is not None:
            records = records[: _index_of(records, counted.stopped_at.offset)]
        self._finish(records, counted, refused)
        return dropped + len(records)

    def _finish(
        self, records: Sequence[Record], counted: Counted, refused: Sequence[WrittenRefusals]
    ) -> None:
        """Put each record into its class, and the position behind them."""
        self._keep_refused(refused)
        if records:
            self._advance(records)
        progress = self.progress
        progress.counted += counted.counted
        progress.late += counted.late
        progress.ignored += counted.ignored
        self._freshen(counted.freshest_ms)

    def _freshen(self, freshest_ms: int) -> None:
        """Note the time of the freshest event; none is believed to be younger than our clock."""
        progress = self.progress
        freshest_ms = max(progress.freshest_ms or 0, freshest_ms)
        progress.freshest_ms = min(freshest_ms, self.now_ms) or None

    def _uncounted(self, records: Sequence[Record]) -> Sequence[Record]:
        """Return records without those that lie before the position."""
        if records and records[0].offset < self.position:
            return records[_index_of(records, self.position) :]
        return records

    # - folding records of many events: all events of a record or none, and one class per record -

    def _fold_packed_evaluations(
        self, records: Sequence[Record], packed: Packed[EvaluationFields], room: float
    ) -> int:
        """Count records of many evaluations and return how many records were folded."""
        limit = room + self.flags.changed_fields
        for folded, record in enumerate(records):
            contents = packed.unpack(record, latest_ms=self._latest_ms)
            fields = self._fields_of(
                [(flag_key, at) for _, flag_key, _, at in contents.events], 2 * len(contents.events)
            )
            if fields > MAX_FIELDS_PER_RECORD:
                contents, fields = _too_many_fields(fields), 0
            if self.flags.changed_fields + fields > limit:
                return folded
            for context_id, _, _, _ in contents.events:
                digest = digest_of(context_id.encode())
                self._flags_to_count.record_place(True, digest, self._number)
            counted = self.flags.fold.count_evaluations(contents.events)
            self._finish_packed(record, contents.refused, counted)
        return len(records)

    def _fold_packed_outcomes(
        self,
        records: Sequence[Record],
        packed: Packed[OutcomeFields],
        room: float,
        partner: PartitionTotals | None,
        joinable_until_ms: float,
    ) -> int:
        """Count records of many outcomes and return how many records were folded."""
        limit = room + self.flags.changed_fields
        for folded, record in enumerate(records):
            contents = packed.unpack(record, latest_ms=self._latest_ms)
            if not all(flags for _, _, flags, _, _, _ in contents.events):
                self.flags.fold.joins = True
                if partner is not None and (
                    record.timestamp > joinable_until_ms or not partner.flags.fold.index_exposures()
                ):
                    return folded
            # They are joined here and not while counting, because what a record changes must be
            # known before any of it is counted.
            events = [_joined(event, partner) for event in contents.events]
            touched = [
                (flag_key, time_ms)
                for _, time_ms, flags, _, _, _ in events
                for flag_key, _ in flags
            ]
            fields = self._fields_of(touched, sum(map(_memberships, events)))
            if fields > MAX_FIELDS_PER_RECORD:
                contents, events, fields = _too_many_fields(fields), [], 0
            if self.flags.changed_fields + fields > limit:
                return folded
            for context_id, *_ in events:
                digest = digest_of(context_id.encode())
                self._flags_to_count.record_place(False, digest, self._number)
            counted = self.flags.fold.count_outcomes(
                ((record, *event) for event in events), inf, None, inf
            )
            self._finish_packed(record, contents.refused, counted)
        return len(records)

    def _fields_of(self, touched: Sequence[tuple[str, int]], entries: int) -> int:
        """Return how many fields a record may change, at most.

        `touched` are (flag key, time), `entries` how many memberships may be new.
        """
        if not touched:
            return 0
        earliest, latest = min(at for _, at in touched), max(at for _, at in touched)
        arms = names = 0
        for flag_key in {flag_key for flag_key, _ in touched}:
            known = self._flags_to_count.flags.get(flag_key)
            if known is not None:
                visits = sum(
                    begin <= latest and earliest < until for begin, until, _ in known.intervals
                )
                arms += 2 * visits
                names += (visits + 1) * (_SETS_PER_VISIT + len(known.conversions))
        return (
            min(arms, len(touched))
            + names // _SETS_PER_FIELD
            + entries // _ENTRIES_PER_FIELD
            + _OTHER_FIELDS
        )

    def _finish_packed(
        self, record: Record, refused: RecordRefused | None, counted: Counted
    ) -> None:
        """Put a record whose events were counted into its one class, and the position behind it."""
        self._freshen(counted.freshest_ms)
        if refused is not None:
            # It counts as quarantined, whatever else was in it.
            self._refuse(record, refused)
            self._partly_refused += counted.counted + counted.late + counted.ignored > 0
        elif counted.counted:
            self.progress.counted += 1
        elif counted.late:
            self.progress.late += 1
        else:
            self.progress.ignored += 1
        self._advance((record,))


def _joined(event: OutcomeFields, partner: PartitionTotals | None) -> OutcomeFields:
    """Return an outcome with the flags of its context's exposures, unless it names flags."""
    context_id, time_ms, flags, is_error, latency_ms, conversions = event
    if flags:
        return event
    if partner is not None:
        flags = partner.flags.fold.exposures(digest_of(context_id.encode()), time_ms)
    return context_id, time_ms, flags, is_error, latency_ms, conversions


def _memberships(event: OutcomeFields) -> int:
    """Return how many memberships an outcome may add: for each flag, a failure and conversions."""
    _, _, flags, is_error, _, conversions = event
    return len(flags) * (is_error + len(conversions))


def _too_many_fields(fields: int) -> Contents[Any]:
    return Contents(
        (),
        RecordRefused(
            QuarantineReason.TOO_LARGE,
            f"it may change {fields} totals, at most {MAX_FIELDS_PER_RECORD} are changed "
            f"by one record",
            "lower the Collector's send_batch_max_size",
        ),
    )


def _index_of(records: Sequence[Record], offset: int) -> int:
    """Return how many of `records` lie before `offset`."""
    return bisect_left(records, offset, key=lambda record: record.offset)


def up_to(records: Sequence[Record], timestamp_ms: float) -> int:
    """Return how many at the head of `records` are not younger than `timestamp_ms`.

    The timestamps of the records are taken as rising.
    """
    return bisect_right(records, timestamp_ms, key=lambda record: record.timestamp)
