"""In which order a pair's records are folded, how many at a time, and which must wait.

Outcomes without flags are joined to the exposures of their context. So both partitions of a pair
are folded in the order of their records' timestamps where it matters. Plain synchronous code, which
runs between two turns of the event loop. Belongs here: order, waiting, bounds. Does not belong
here: what a record adds (`partition_totals.py`), fetching and saving (`fetching.py`, `saving.py`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from itertools import accumulate
from math import inf

from controller.counting.dependencies import Dependencies
from controller.counting.folding.context_sets import digest_of
from controller.counting.folding.engine import NativeFault
from controller.counting.owned_partition import (
    OwnedPartition,
    PartitionPair,
    PartitionState,
)
from controller.counting.partition_totals import (
    PartitionTotals,
    ReadEvaluations,
    ReadOutcomes,
    up_to,
)
from controller.counting.refusals import MOST_BYTES
from controller.ports import Record, TopicPartition
from controller.settings import CountingSettings
from schemas.envelope import MAX_AHEAD_MS
from schemas.events import Packed
from schemas.quarantine import MAX_JSON
from schemas.totals import MAX_FIELDS_PER_SAVE, PROGRESS_FIELDS

# Fields left free in a save for what cannot be known before: progress, and the last outcome's 64
# flags with all their sets.
_SPARE_FIELDS = len(PROGRESS_FIELDS) + 700
_LEAST_ROOM = 200  # fields; with less a save comes first, not ever fewer records at once
# Fields that one evaluation may change: its arm or its bundle, and parts of two journals and of the
# list of names.
_FIELDS_PER_EVALUATION = 2
# Counters are frozen so many at a time. Rarely, because no collection visits again whatever else
# exists at that moment.
_FROZEN_COUNTERS = 500
# What refused records of one partition take while they wait for a save, at most: the bytes of four
# full records of the quarantine topic, or some 5,000 refusals of small values. With less, a flood
# of bad records would save more often than good traffic does. Each save costs as much as a thousand
# records. With many partitions it is less: what all have together may wait for the quarantine.
_REFUSED_BYTES_PER_SAVE = 4 * MAX_JSON
FOLDED_AT_ONCE = 1000  # records of a partition: 4 ms or so by the reference, 1 by the native fold
#: So many records after one that failed are tried first. That takes several times as long as
#: counting them, but a failure without a trial costs a load of the partition.
CAREFUL_RECORDS = 10_000
_TRIED_AT_ONCE = 100  # records that are tried first: 10 ms or so
# Of records that hold many events: 10 ms or so. A single one may be larger.
_PACKED_BYTES_AT_ONCE = 128 * 1024

_Fold = Callable[[PartitionTotals], int]


class PairOrder:
    """Folds what pairs of partitions have pending."""

    def __init__(
        self,
        dependencies: Dependencies,
        readers: tuple[ReadEvaluations, ReadOutcomes],
        owned: Sized,
        trial: Callable[[TopicPartition], PartitionTotals],
    ) -> None:
        """`owned` are the partitions that this replica has.

        `trial` makes empty totals to try records on, which are never saved. It is
        `Assignment.trial_totals`.
        """
        self._events = dependencies.events
        self._clock = dependencies.clock
        self._settings: CountingSettings = dependencies.settings
        self._pacing = dependencies.pacing
        self._owned = owned
        self._trial = trial
        self._sampling = dependencies.sampling
        self._read_evaluations, self._read_outcomes = readers
        self.has_packed = any(isinstance(read, Packed) for read in readers)
        self._at_once = min(FOLDED_AT_ONCE, self._settings.fetch_max_records)
        self._unfrozen_counters = 0
        self._now_ms = 0
        self.longest_seconds = 0.0  # that one call kept the loop to itself

    def fold(self, pair: PartitionPair, now: float) -> int:
        """Fold what a pair has pending; return how many records.

        Outcomes and evaluations are folded in the order of their timestamps where it matters.
        """
        folded = 0
        began = self._clock.monotonic()
        self._now_ms = int(self._clock.now().timestamp() * 1000)
        for owned in pair.owned():
            owned.totals.set_time(self._now_ms)
        is_careful = any(owned.is_careful for owned in pair.owned())
        opened = sum(owned.totals.flags.fold.opened for owned in pair.owned())
        with _no_collection():
            while folded < FOLDED_AT_ONCE:
                step = self._fold_outcomes(pair, now) + self._fold_evaluations(pair, now)
                folded += step
                if step == 0 or self.has_packed or (is_careful and folded >= _TRIED_AT_ONCE):
                    break
            self._unfrozen_counters += (
                sum(owned.totals.flags.fold.opened for owned in pair.owned()) - opened
            )
            if self._unfrozen_counters >= _FROZEN_COUNTERS:
                # What is made for a flag lives as long as its partition is ours
                # (`CountedFlags.close`). For 10,000 flags that is two million objects, and a
                # collection that visits them would hold up the event loop for a second.
                gc.freeze()
                self._unfrozen_counters = 0
        if folded:
            self.longest_seconds = max(self.longest_seconds, self._clock.monotonic() - began)
        return folded

    def room(self, owned: OwnedPartition) -> int:
        """Return how many more fields may change before the next save; 0: fold nothing now."""
        totals = owned.totals
        if (
            owned.state is not PartitionState.READY
            or owned.is_busy
            or owned.is_leaving
            or not owned.pending
        ):
            return 0
        share = MOST_BYTES // len(self._owned)
        if totals.refused_bytes >= min(_REFUSED_BYTES_PER_SAVE, share):
            return 0
        if totals.position - owned.counted_from >= self._settings.max_unsaved_records:
            return 0
        if owned.counted_from < owned.save_at <= totals.position:
            return 0
        room = MAX_FIELDS_PER_SAVE - _SPARE_FIELDS - totals.flags.changed_fields
        return room if room >= _LEAST_ROOM else 0

    def has_room(self, owned: OwnedPartition) -> bool:
        """Return whether anything pending may be folded before the next save."""
        return self.room(owned) > 0

    def _fold_outcomes(self, pair: PartitionPair, now: float) -> int:
        owned = pair.outcomes
        if owned is None:
            return 0
        room = self.room(owned)
        if room == 0:
            return 0
        records = self._next_records(owned, self._at_once, self._read_outcomes)
        evaluations = pair.evaluations
        partner = None
        if evaluations is not None and evaluations.state is not PartitionState.STOPPED:
            partner = evaluations.totals
        joinable_until_ms = self._joinable_until(pair, now)
        with _located(owned, records):

            def fold(totals: PartitionTotals) -> int:
                return totals.fold_outcomes(
                    records,
                    self._read_outcomes,
                    room=room,
                    partner=partner,
                    joinable_until_ms=joinable_until_ms,
                )

            folded = 1 if self._sets_aside(owned, records[0], fold) else fold(owned.totals)
        if folded:
            owned.last_timestamp_ms = min(
                records[folded - 1].timestamp, self._now_ms + MAX_AHEAD_MS
            )
            owned.pending.drop(folded)
            pair.held_since = None
            self._sample(owned, records[:folded], now, partner)
        elif pair.held_since is None:
            pair.held_since = now
        return folded

    def _joinable_until(self, pair: PartitionPair, now: float) -> float:
        """Return the timestamp up to which every evaluation has been folded, as far as is known."""
        owned = pair.evaluations
        if owned is None or owned.state is PartitionState.STOPPED:
            return inf
        if owned.state is not PartitionState.READY:
            return -inf
        if owned.pending:
            return owned.pending.first.timestamp - 1
        waited = 0.0 if pair.held_since is None else now - pair.held_since
        end = self._events.end_offset(owned.partition)
        if end is not None and owned.totals.position >= end:
            # Everything in the log has been folded. An evaluation that is on its way may still be
            # older than the outcome: hence the grace.
            return inf if waited >= self._pacing.join_grace_seconds else owned.last_timestamp_ms
        # The log has more, or may have: a transaction's marker counts in its end and never comes,
        # so the waiting has an end.
        patience = self._pacing.join_patience_seconds
        return (
            inf
            if min(waited, now - owned.delivered_at) >= patience
            else owned.last_timestamp_ms - 1
        )

    def _fold_evaluations(self, pair: PartitionPair, now: float) -> int:
        owned = pair.evaluations
        if owned is None:
            return 0
        room = self.room(owned)
        count = min(room // _FIELDS_PER_EVALUATION, self._at_once)
        if count == 0:
            return 0
        records = self._next_records(owned, count, self._read_evaluations)
        until = self._exposable_until(pair, now)
        if records[-1].timestamp > until:
            head = records[0]
            records = records[: up_to(records, until)]
            if not records and head.timestamp > self._now_ms + MAX_AHEAD_MS:
                records = [head]  # it would wait forever for its time, so it is refused
            if not records:
                return 0
        # Refusals of all these records may exceed what one quarantine record holds; the save splits
        # them.
        with _located(owned, records):

            def fold(totals: PartitionTotals) -> int:
                return totals.fold_evaluations(records, self._read_evaluations, room=room)

            folded = 1 if self._sets_aside(owned, records[0], fold) else fold(owned.totals)
        if folded:
            owned.last_timestamp_ms = min(
                records[folded - 1].timestamp, self._now_ms + MAX_AHEAD_MS
            )
            owned.pending.drop(folded)
            self._sample(owned, records[:folded], now, None)
        return folded

    def _sample(
        self,
        owned: OwnedPartition,
        records: Sequence[Record],
        now: float,
        partner: PartitionTotals | None,
    ) -> None:
        """Let some of the records that were counted be shown and judged, too."""

        def flags_of(context_id: str, time_ms: int) -> Sequence[tuple[str, str]]:
            if partner is None:
                return ()
            return partner.flags.fold.exposures(digest_of(context_id.encode()), time_ms)

        self._sampling.offer(
            owned.partition,
            records,
            now,
            self._now_ms,
            of_evaluations=owned.is_counting_exposures,
            flags_of=flags_of,
        )

    def _sets_aside(self, owned: OwnedPartition, record: Record, fold: _Fold) -> bool:
        """Set the next record aside if it cannot be counted; return whether it was.

        Near a failure each record is tried first, on totals that are never saved, because one that
        fails may leave half a change. So one load serves for all records that fail, however many
        there are.
        """
        if record.offset > owned.careful_to:
            return False
        why = owned.poisoned.get(record.offset) or self._failure(owned, fold)
        if why is None:
            return False
        owned.totals.set_aside(record, why)
        owned.set_aside.append((record.offset, why))
        owned.careful_to = max(owned.careful_to, record.offset + CAREFUL_RECORDS)
        return True

    def _failure(self, owned: OwnedPartition, fold: _Fold) -> str | None:
        """Return why a record cannot be counted, None when it can, as far as a trial shows."""
        trial = owned.trial
        is_usable = trial is not None and trial.position - trial.progress.start <= CAREFUL_RECORDS
        if trial is not None and is_usable and _failure_on(trial, fold, self._now_ms) is None:
            return None
        # An earlier failure may have damaged those totals, so it must fail on empty ones, too.
        empty = self._trial(owned.partition)
        empty.start_at(owned.pending.first.offset)
        why = _failure_on(empty, fold, self._now_ms)
        if trial is None or why is None:
            owned.end_trial()
            owned.trial = empty
        else:
            empty.flags.close()
        return why

    def _next_records(
        self, owned: OwnedPartition, count: int, read: ReadEvaluations | ReadOutcomes
    ) -> Sequence[Record]:
        """Return at most `count` records to fold next, at least one.

        Of a packed format their bytes are bounded, too.
        """
        if owned.pending.first.offset <= owned.careful_to:
            return owned.pending.head(1)
        records = owned.pending.head(count)
        if isinstance(read, Packed):
            sizes = accumulate(len(record.value or b"") for record in records)
            records = records[: max(1, sum(size <= _PACKED_BYTES_AT_ONCE for size in sizes))]
        return records

    def _exposable_until(self, pair: PartitionPair, now: float) -> float:
        """Return the timestamp up to which evaluations may be folded now.

        Those after it would run ahead of outcomes that need them. A pair that has never joined is
        only kept within a third of the window, so that the first join finds its exposures.
        """
        owned = pair.outcomes
        if owned is None or owned.state is PartitionState.STOPPED:
            return inf
        if owned.state is not PartitionState.READY:
            return inf if now - owned.delivered_at >= self._pacing.join_patience_seconds else -inf
        ahead = 0 if owned.totals.flags.fold.joins else self._settings.attribution_window_ms // 3
        if owned.pending:
            return owned.pending.first.timestamp + ahead
        end = self._events.end_offset(owned.partition)
        if end is not None and owned.totals.position >= end:
            return inf
        if now - owned.delivered_at >= self._pacing.join_patience_seconds:
            return inf
        return owned.last_timestamp_ms + ahead


def _failure_on(totals: PartitionTotals, fold: _Fold, now_ms: int) -> str | None:
    totals.set_time(now_ms)
    try:
        fold(totals)
    except NativeFault:
        raise  # of the fold, and not of the record
    except Exception as mistake:
        return failure_of(mistake)
    return None


def failure_of(mistake: BaseException | None) -> str:
    """Return what the quarantine says of a record on which a mistake of ours occurs."""
    return f"rolloutd failed on this record: {mistake!r}"


class FoldingFailed(Exception):
    """A mistake of ours in one partition's records; its cause is the mistake."""

    def __init__(self, owned: OwnedPartition, records: Sequence[Record]) -> None:
        super().__init__(f"offsets {records[0].offset} to {records[-1].offset} of {owned.key}")
        self.owned = owned
        self.first, self.last = records[0].offset, records[-1].offset


@contextmanager
def _located(owned: OwnedPartition, records: Sequence[Record]) -> Iterator[None]:
    """Raise FoldingFailed, with partition and records, for what the block raises."""
    try:
        yield
    except Exception as mistake:
        raise FoldingFailed(owned, records) from mistake


@contextmanager
def _no_collection() -> Iterator[None]:
    """Stop the garbage collector: folding makes no cycles, and a collection costs 5 to 20 %."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
