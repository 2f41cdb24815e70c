"""In which order a pair's records are folded, how many at a time, and which have to wait.

Outcomes without flags are joined to the exposures of their context, so both partitions of a pair
are folded in the order of their records' timestamps where it matters. Plain synchronous code
between two looks at the loop. Belongs here: order, waiting, bounds. Does not belong here: what a
record adds up to (`counting.py`), fetching and saving (`ingest.py`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from math import inf

from controller.counting.owned_partition import (
    OwnedPartition,
    Pacing,
    PartitionPair,
    PartitionState,
)
from controller.counting.partition_totals import (
    PartitionTotals,
    ReadEvaluations,
    ReadOutcomes,
    up_to,
)
from controller.ports import Clock, EventLog, Record, TopicPartition
from controller.settings import CountingSettings
from schemas.envelope import MAX_AHEAD_MS
from schemas.events import Packed
from schemas.quarantine import MAX_REFUSALS
from schemas.totals import MAX_FIELDS_PER_SAVE, PROGRESS_FIELDS

# : Fields left free in a save for what cannot be known before: progress, and the last outcome's 64
# flags with all their sets.
_SPARE_FIELDS = len(PROGRESS_FIELDS) + 700
_LEAST_ROOM = 200  # fields; with less a save comes first, in place of ever smaller batches
# : Fields one evaluation may change: its arm or its bundle, and parts of two journals and of the
# list of names.
_FIELDS_PER_EVALUATION = 2
# so many more at a time: rarely, for what else exists at that moment is never looked at again
# either
_FROZEN_LANES = 500
# : Refused records that wait for a save at most, of one partition: 2.5 MB. With fewer a flood of
# poison would save more often : than good traffic does, and each save costs as much as a thousand
# records.
_REFUSALS_PER_SAVE = 4 * MAX_REFUSALS
FOLDED_AT_ONCE = 1000  # records of a partition: 4 ms or so
#: So many records after one that failed are tried first, which takes several times as long as
#: counting them; a failure that comes unawares costs a load of the partition.
CAREFUL_RECORDS = 10_000
_TRIED_AT_ONCE = 100  # records that are tried first: 10 ms or so
_PACKED_BYTES_AT_ONCE = (
    128 * 1024
)  # of records that hold many events: 10 ms or so; a single one may be larger

_Fold = Callable[[PartitionTotals], int]


class PairOrder:
    """Folds what pairs of partitions have at hand."""

    def __init__(
        self,
        log: EventLog,
        clock: Clock,
        settings: CountingSettings,
        pacing: Pacing,
        *,
        read_evaluations: ReadEvaluations,
        read_outcomes: ReadOutcomes,
        trial: Callable[[TopicPartition], PartitionTotals],
    ) -> None:
        """`trial` makes empty totals on which records are tried, and which are never saved."""
        self._trial = trial
        self._log = log
        self._clock = clock
        self._settings = settings
        self._pacing = pacing
        self._read_evaluations = read_evaluations
        self._read_outcomes = read_outcomes
        self.has_packed = isinstance(read_evaluations, Packed) or isinstance(read_outcomes, Packed)
        self._slice = min(FOLDED_AT_ONCE, settings.fetch_max_records)
        self._unfrozen_lanes = 0
        self._now_ms = 0
        self.longest_seconds = 0.0  # that one call kept the loop to itself

    def fold(self, pair: PartitionPair, now: float) -> int:
        """Fold what a pair has at hand, outcomes and evaluations in the order of their timestamps where it matters."""
        folded = 0
        began = self._clock.monotonic()
        self._now_ms = int(self._clock.now().timestamp() * 1000)
        for owned in pair.owned():
            owned.totals.set_time(self._now_ms)
        is_careful = any(owned.is_careful for owned in pair.owned())
        opened = sum(owned.totals.opened_lanes for owned in pair.owned())
        with _no_collection():
            while folded < FOLDED_AT_ONCE:
                step = self._fold_outcomes(pair, now) + self._fold_evaluations(pair, now)
                folded += step
                if step == 0 or self.has_packed or (is_careful and folded >= _TRIED_AT_ONCE):
                    break
            self._unfrozen_lanes += (
                sum(owned.totals.opened_lanes for owned in pair.owned()) - opened
            )
            if self._unfrozen_lanes >= _FROZEN_LANES:
                # What is made for a flag lives as long as its partition is ours
                # (`PartitionTotals.close`). Of 10,000 flags it is two million objects, and a
                # collection that looked at them would hold the loop up for a second.
                gc.freeze()
                self._unfrozen_lanes = 0
        if folded:
            self.longest_seconds = max(self.longest_seconds, self._clock.monotonic() - began)
        return folded

    def room(self, owned: OwnedPartition) -> int:
        """Return how many more fields may change before the next save.

        0 when nothing may be folded now.
        """
        totals = owned.totals
        if (
            owned.state is not PartitionState.READY
            or owned.is_busy
            or owned.is_leaving
            or not owned.pending
        ):
            return 0
        if len(totals.refused) >= _REFUSALS_PER_SAVE:
            return 0
        if totals.position - owned.counted_from >= self._settings.max_unsaved_records:
            return 0
        if owned.counted_from < owned.save_at <= totals.position:
            return 0
        room = MAX_FIELDS_PER_SAVE - _SPARE_FIELDS - totals.changed_fields
        return room if room >= _LEAST_ROOM else 0

    def _fold_outcomes(self, pair: PartitionPair, now: float) -> int:
        owned = pair.outcomes
        if owned is None:
            return 0
        room = self.room(owned)
        if room == 0:
            return 0
        batch = self._at_hand(owned, self._slice, self._read_outcomes)
        evaluations = pair.evaluations
        join = None
        if evaluations is not None and evaluations.state is not PartitionState.STOPPED:
            join = evaluations.totals
        joinable_until_ms = self._joinable_until(pair, now)
        with _blamed(owned, batch):

            def fold(totals: PartitionTotals) -> int:
                return totals.fold_outcomes(
                    batch,
                    self._read_outcomes,
                    room=room,
                    join=join,
                    joinable_until_ms=joinable_until_ms,
                )

            taken = 1 if self._sets_aside(owned, batch[0], fold) else fold(owned.totals)
        if taken:
            owned.last_timestamp_ms = min(batch[taken - 1].timestamp, self._now_ms + MAX_AHEAD_MS)
            del owned.pending[:taken]
            pair.held_since = None
        elif pair.held_since is None:
            pair.held_since = now
        return taken

    def _joinable_until(self, pair: PartitionPair, now: float) -> float:
        """Return the timestamp up to which every evaluation has been folded.

        As far as can be known.
        """
        owned = pair.evaluations
        if owned is None or owned.state is PartitionState.STOPPED:
            return inf
        if owned.state is not PartitionState.READY:
            return -inf
        if owned.pending:
            return owned.pending[0].timestamp - 1
        waited = 0.0 if pair.held_since is None else now - pair.held_since
        end = self._log.end_offset(owned.partition)
        if end is not None and owned.totals.position >= end:
            # All there is has been folded. What is under way may still be older than the outcome:
            # that is what grace is for.
            return inf if waited >= self._pacing.join_grace_seconds else owned.last_timestamp_ms
        # The log has more, or may have: a transaction's marker is counted in its end and never
        # comes, so patience has an end.
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
        count = min(room // _FIELDS_PER_EVALUATION, self._slice)
        if count == 0:
            return 0
        batch = self._at_hand(owned, count, self._read_evaluations)
        until = self._exposable_until(pair, now)
        if batch[-1].timestamp > until:
            head = batch[0]
            batch = batch[: up_to(batch, until)]
            if not batch and head.timestamp > self._now_ms + MAX_AHEAD_MS:
                batch = [head]  # nothing is to wait for a time that will not come: it is refused
            if not batch:
                return 0
        # Refusals of a whole batch may go beyond what one quarantine record holds; the save splits
        # them.
        with _blamed(owned, batch):

            def fold(totals: PartitionTotals) -> int:
                return totals.fold_evaluations(batch, self._read_evaluations, room=room)

            taken = 1 if self._sets_aside(owned, batch[0], fold) else fold(owned.totals)
        if taken:
            owned.last_timestamp_ms = min(batch[taken - 1].timestamp, self._now_ms + MAX_AHEAD_MS)
            del owned.pending[:taken]
        return taken

    def _sets_aside(self, owned: OwnedPartition, record: Record, fold: _Fold) -> bool:
        """Set the next record aside if it cannot be counted. Near a failure each is tried first.

        It is tried on totals that are never saved, because one that fails may leave half a change:
        so one load serves for all the records that fail, however many there are.
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
        is_usable = trial is not None and trial.position - trial.records.start <= CAREFUL_RECORDS
        if trial is not None and is_usable and _failure_on(trial, fold, self._now_ms) is None:
            return None
        # An earlier failure may have spoiled those totals: it has to fail on empty ones, too.
        empty = self._trial(owned.partition)
        empty.start_at(owned.pending[0].offset)
        why = _failure_on(empty, fold, self._now_ms)
        if trial is None or why is None:
            owned.end_trial()
            owned.trial = empty
        else:
            empty.close()
        return why

    def _at_hand(
        self, owned: OwnedPartition, count: int, read: ReadEvaluations | ReadOutcomes
    ) -> list[Record]:
        """Return at most `count` records to fold next.

        Of a packed format a bounded number of bytes, at least one record.
        """
        if owned.pending[0].offset <= owned.careful_to:
            return owned.pending[:1]
        batch = owned.pending[:count]
        if isinstance(read, Packed):
            sizes = accumulate(len(record.value or b"") for record in batch)
            batch = batch[: max(1, sum(size <= _PACKED_BYTES_AT_ONCE for size in sizes))]
        return batch

    def _exposable_until(self, pair: PartitionPair, now: float) -> float:
        """Return the timestamp up to which evaluations may be folded without running ahead of outcomes that need them.

        A pair that has never joined is only kept within a third of the window, so that the first
        join finds its exposures.
        """
        owned = pair.outcomes
        if owned is None or owned.state is PartitionState.STOPPED:
            return inf
        if owned.state is not PartitionState.READY:
            return inf if now - owned.delivered_at >= self._pacing.join_patience_seconds else -inf
        ahead = 0 if owned.totals.joins else self._settings.attribution_window_ms // 3
        if owned.pending:
            return owned.pending[0].timestamp + ahead
        end = self._log.end_offset(owned.partition)
        if end is not None and owned.totals.position >= end:
            return inf
        if now - owned.delivered_at >= self._pacing.join_patience_seconds:
            return inf
        return owned.last_timestamp_ms + ahead


def _failure_on(totals: PartitionTotals, fold: _Fold, now_ms: int) -> str | None:
    totals.set_time(now_ms)
    try:
        fold(totals)
    except Exception as mistake:
        return failure_of(mistake)
    return None


def failure_of(mistake: BaseException | None) -> str:
    """Return what the quarantine says of a record that a mistake of ours keeps from counting."""
    return f"rolloutd failed on this record: {mistake!r}"


class FoldingFailed(Exception):
    """A mistake of ours in one partition's records; which it was is this one's cause."""

    def __init__(self, owned: OwnedPartition, batch: Sequence[Record]) -> None:
        super().__init__(f"offsets {batch[0].offset} to {batch[-1].offset} of {owned.key}")
        self.owned = owned
        self.first, self.last = batch[0].offset, batch[-1].offset


@contextmanager
def _blamed(owned: OwnedPartition, batch: Sequence[Record]) -> Iterator[None]:
    """Say which partition and records an exception came from."""
    try:
        yield
    except Exception as mistake:
        raise FoldingFailed(owned, batch) from mistake


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector still.

    What is folded makes no cycles, and a pass in the midst of it costs 5 to 20 %.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
