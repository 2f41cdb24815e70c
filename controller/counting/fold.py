"""Adds one event to the counters: the hot path of the daemon.

Plain synchronous code: no await, few calls and objects per event. Whatever depends on a flag's plan
is looked up once and kept (`flags_to_count.py`, `flag_partition.py`). The two loops are compiled
(ops/decisions/0010-compiled.md) and are longer than a function may be elsewhere, because a call per
event costs as much as counting it. Belongs here: events and counters. Does not belong here: records
and offsets (`partition_totals.py`), bytes (`counted_flags.py`).

The unit is the context. Per arm and visit: exposures are distinct contexts. A context is at risk
once per batch, a batch being what lies between two saves of a partition, until its first error in
that visit *in either arm*. There is one set of errors per visit: with one per arm, contexts that
move into the treatment would be fresh there, while the control keeps only survivors. Of a context's
latencies in a batch the first is used for the test. It is not a random one, but which one it is
depends neither on the value nor on the arm, so both arms are sampled alike. `latency_all` has every
value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, log
from typing import Final

from controller.core.evidence import GAMMA, HIGHEST_BUCKET, LOWEST_BUCKET
from controller.counting.counted_flags import CountedFlags
from controller.counting.duplicates import NOT_SAMPLED, RecentRecords
from controller.counting.flags_to_count import OPEN_END_MS, FlagsToCount
from controller.counting.membership import digest_of
from controller.counting.recent_exposures import ExposureSlice
from controller.ports import Record
from schemas.events import EvaluationFields
from schemas.totals import PartitionCounts

IS_COMPILED: Final = not __file__.endswith(".py")
"""Whether these loops run compiled: ops/decisions/0010-compiled.md."""

#: The record of an outcome, and the fields of `schemas.events.OutcomeFields`.
OutcomeOfRecord = tuple[
    Record, str, int, Sequence[tuple[str, str]], bool, float | None, Sequence[str]
]

_LOG_GAMMA = log(GAMMA)


class Fold:
    """Adds the events of one partition to the counters of its flags."""

    def __init__(self, flags: CountedFlags, flags_to_count: FlagsToCount) -> None:
        """Count into `flags`; report to `flags_to_count` what falls into none of their arms."""
        self._flags = flags
        self._flags_to_count = flags_to_count
        self._recent_records = RecentRecords()
        self.now_ms: int = OPEN_END_MS  # by our clock; no counted event counts as younger

    def count_evaluations(
        self, events: Iterable[EvaluationFields], records: PartitionCounts
    ) -> tuple[int, int, int]:
        """Count evaluations; return how many were counted, late and ignored.

        In `records` only the freshest event's time is updated.
        """
        flags, arms = self._flags, self._flags.arms
        freshest = records.freshest_ms or 0
        counted = ignored = late = 0
        open_flags, memberships = flags.open_flags, arms.memberships
        changed, bundled = arms.changed, arms.changed_in_bundles
        outside = flags.outside
        recent = flags.recent
        journal = memberships.journal.tail
        exposures: ExposureSlice | None = None
        slice_from = slice_until = 0  # an empty slice of time; the first event's is looked up
        digest_of_context = digest_of
        for context_id, flag_key, variant, time_ms in events:
            flag = open_flags.get(flag_key) or flags.open(flag_key)
            if flag is None:
                ignored += 1
                flags.note_ended(flag_key, variant)
                continue
            if time_ms > freshest:
                freshest = time_ms
            if flag.from_ms <= time_ms < flag.until_ms:
                if variant == flag.control_variant:
                    counter = flag.control
                else:
                    is_treatment = (
                        variant == flag.treatment_variant or variant in flag.more_treatments
                    )
                    counter = flag.treatment if is_treatment else None
            else:
                counter = flag.counter_at(variant, time_ms)
            if counter is None:
                ignored += 1
                counter = flag.uncounted_counter(variant)
                if counter is None:
                    self._flags_to_count.other_variants += 1
                    flags.note(flag_key, None)
                    continue
                late -= 1  # it is counted as late below
            digest = digest_of_context(context_id.encode())
            is_first = False  # of this context to this flag in the present visit
            if counter.is_counting:
                counted += 1
                counter.evaluations += 1
                if not counter.is_changed:
                    counter.is_changed = True
                    (changed if counter.home is None else bundled).append(counter)
                if digest not in counter.exact and not (
                    counter.filters and digest in counter.exposed
                ):
                    if counter.exposed.is_full:
                        continue
                    counter.exact.add(digest)  # Memberships.add, without the call
                    journal.append(counter.number)
                    journal.append(digest)
                    if len(counter.exact) == counter.exposed.seal_at:
                        memberships.seal_later(counter.exposed)
                    counter.exposures += 1
                    opposite = counter.opposite
                    if digest in opposite.exact or (opposite.filters and digest in opposite):
                        counter.switched += 1
                    else:
                        is_first = True
            else:
                late += 1
                counter.evaluations += 1
                if not counter.is_changed:
                    counter.is_changed = True
                    outside.append(counter)
                if counter.exposed.is_full:
                    continue
            if recent is None:
                continue
            if not slice_from <= time_ms < slice_until:
                slice_from = time_ms - time_ms % recent.slice_ms
                slice_until = slice_from + recent.slice_ms
                exposures = recent.slice_at(time_ms // recent.slice_ms)
            if exposures is not None:
                if is_first and flag.has_one_visit:
                    tail = exposures.log.tail
                    tail.append(counter.number)
                    tail.append(digest)
                else:
                    exposures.record(flag_key, counter.number, digest)
        records.freshest_ms = min(freshest, self.now_ms) or None
        return counted, late, ignored

    def count_outcomes(
        self,
        events: Iterable[OutcomeOfRecord],
        records: PartitionCounts,
        room: float,
        join: CountedFlags | None,
        joinable_until_ms: float,
    ) -> tuple[Record | None, int, int, int]:
        """Count outcomes; return the record that must wait, and the counted, late and ignored.

        The latter are numbers of outcomes. The record is None when none must wait. `room`, `join`
        and `joinable_until_ms` are as for `PartitionTotals.fold_outcomes`. In `records` only the
        freshest event's time is updated.
        """
        partition_flags, arms = self._flags, self._flags.arms
        freshest = records.freshest_ms or 0
        stopped_at: Record | None = None
        counted = ignored = late = 0
        open_flags, memberships = partition_flags.open_flags, arms.memberships
        changed, bundled = arms.changed, arms.changed_in_bundles
        digest_of_context = digest_of
        room += len(changed) + len(bundled) + len(memberships.new_names)
        has_grown = (
            True  # whether anything that counts against `room` was added since the last check
        )
        are_indexed = False
        for record, context_id, time_ms, named, is_error, latency_ms, conversions in events:
            if has_grown:
                has_grown = False
                if len(changed) + len(bundled) + len(memberships.new_names) >= room:
                    stopped_at = record
                    break
            flags = named
            digest = digest_of_context(context_id.encode())
            if not flags:
                partition_flags.joins = True
                if join is not None:
                    are_indexed = are_indexed or join.index_exposures()
                    if record.timestamp > joinable_until_ms or not are_indexed:
                        stopped_at = record
                        break
                    flags = join.exposures(digest, time_ms)
                if not flags:
                    self._flags_to_count.unjoined += 1
            if latency_ms is None:
                bucket = None
            elif latency_ms <= 0.001:
                bucket = LOWEST_BUCKET
            else:  # core.evidence.bucket_of, without the call
                bucket = ceil(log(latency_ms) / _LOG_GAMMA)
                if bucket > HIGHEST_BUCKET:
                    bucket = HIGHEST_BUCKET
            is_counted = is_late = False
            for flag_key, variant in flags:
                flag = open_flags.get(flag_key) or partition_flags.open(flag_key)
                if flag is None:
                    continue
                if time_ms > freshest:
                    freshest = time_ms
                if flag.from_ms <= time_ms < flag.until_ms:
                    if variant == flag.control_variant:
                        counter = flag.control
                    else:
                        is_treatment = (
                            variant == flag.treatment_variant or variant in flag.more_treatments
                        )
                        counter = flag.treatment if is_treatment else None
                else:
                    counter = flag.counter_at(variant, time_ms)
                    has_grown = True
                if counter is None:
                    self._flags_to_count.other_variants += variant not in flag.counted.uncounted
                    continue
                if not counter.is_counting:
                    is_late = True
                    continue
                is_counted = True
                if not counter.is_changed:
                    counter.is_changed = has_grown = True
                    counter.batch_contexts = {}
                    (changed if counter.home is None else bundled).append(counter)
                counter.outcomes += 1
                failed = counter.failed
                batch_contexts = counter.batch_contexts
                is_timed = batch_contexts.get(digest)
                if is_timed is None:
                    batch_contexts[digest] = bucket is not None
                    if digest not in failed.exact and not (failed.filters and digest in failed):
                        counter.at_risk += 1
                    if bucket is not None:
                        latency = counter.latency
                        latency[bucket] = latency[bucket] + 1 if bucket in latency else 1
                elif bucket is not None:
                    latency = counter.latency_again
                    if not is_timed:
                        batch_contexts[digest] = True
                        latency = counter.latency
                    latency[bucket] = latency.get(bucket, 0) + 1
                if is_error:
                    counter.errors += 1
                    if memberships.add(failed, digest):
                        counter.first_errors += 1
                for conversion in conversions:
                    converted = counter.converted.get(conversion)
                    if converted is not None and memberships.add(converted, digest):
                        counter.converted_counts[conversion] = (
                            counter.converted_counts.get(conversion, 0) + 1
                        )
            if is_counted:
                counted += 1
                if not digest & NOT_SAMPLED:
                    self._count_repetition(record, time_ms, flags)
            elif is_late:
                late += 1
            else:
                ignored += 1
        records.freshest_ms = min(freshest, self.now_ms) or None
        return stopped_at, counted, late, ignored

    def _count_repetition(
        self, record: Record, time_ms: int, flags: Iterable[tuple[str, str]]
    ) -> None:
        """Count an outcome of a sampled context as checked, and as repeated if it came before."""
        came_before = self._recent_records.came_before(record)
        for flag_key, variant in flags:
            flag = self._flags.open_flags.get(flag_key)
            counter = None if flag is None else flag.counter_at(variant, time_ms)
            if counter is not None and counter.is_counting:
                counter.checked += 1
                counter.repeated += came_before
