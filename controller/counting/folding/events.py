"""What one event adds to the counters.

Whatever depends on a flag's plan is looked up once and kept (`flags_to_count.py`,
`flag_partition.py`). Belongs here: events and counters. Does not belong here: records and offsets
(`partition_totals.py`), what is stored (`layout/`).

The unit is the context. Per arm and visit: exposures are distinct contexts. A context is at risk
once per batch, a batch being what lies between two saves of a partition, until its first error in
that visit *in either arm*. There is one set of errors per visit: with one per arm, contexts that
move into the treatment would be fresh there, while the control keeps only survivors. Of a context's
latencies in a batch the first is used for the test. It is not a random one, but which one it is
depends neither on the value nor on the arm, so both arms are sampled alike.

A context's outcomes of one batch are its action. The actions of a context that is far more active
than the others are left out of everything that is compared (`activity.py`): they are not at risk,
their latencies are not tested, and no failure of them is a first error. So each first error has its
trial, and whether an action counts says nothing about how it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from controller.core.evidence import bucket_of
from controller.counting.folding.arm_counters import LEFT_OUT, TIMED, UNTIMED, ArmCounter
from controller.counting.folding.context_sets import digest_of
from controller.counting.folding.difference import NewEvaluations
from controller.counting.folding.duplicates import NOT_SAMPLED, RecentRecords
from controller.counting.folding.evaluation_hours import FlagArm
from controller.counting.folding.flag_partition import FlagPartition
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.counting.folding.partition_arms import PartitionArms
from controller.counting.folding.recent_exposures import RecentExposures
from controller.ports import Record
from schemas.events import EvaluationFields
from schemas.terms import Arm

#: The record of an outcome, and the fields of `schemas.events.OutcomeFields`.
OutcomeOfRecord = tuple[
    Record, str, int, Sequence[tuple[str, str]], bool, float | None, Sequence[str]
]


class Exposures(Protocol):
    """Where outcomes that name no flags find those that their context was served.

    It is the fold of the evaluations of the same partition number: the `partner`.
    """

    def index_exposures(self) -> bool:
        """Index some more of the exposures that were counted; return whether all are indexed."""

    def exposures(self, digest: int, time_ms: int) -> Sequence[tuple[str, str]]:
        """Return (flag key, variant) of a context's last exposure to each flag."""


class Counted(NamedTuple):
    """What a run of events was: numbers of events, and the time of the freshest one counted."""

    counted: int
    late: int
    ignored: int
    freshest_ms: int  # 0: no event was of a flag with a rollout
    stopped_at: Record | None = None  # the outcome that must wait, None when none must


class EventFold:
    """Adds the events of one partition to the counters of its flags."""

    def __init__(
        self, arms: PartitionArms, recent: RecentExposures | None, flags_to_count: FlagsToCount
    ) -> None:
        """Count into `arms`; remember exposures in `recent`; None for no joins.

        What falls into no arm is reported to `flags_to_count`.
        """
        self._arms = arms
        self._recent = recent
        self._flags_to_count = flags_to_count
        self._recent_records = RecentRecords()
        self.open_flags: dict[str, FlagPartition] = {}
        # Evaluations that no counter has: of flags whose rollout is over, and of unknown variants.
        self.others: dict[FlagArm, int] = {}
        self.joins = False  # whether an outcome without flags came

    def open(self, flag_key: str) -> FlagPartition | None:
        """Open a flag; return None for a flag without a rollout."""
        counted = self._flags_to_count.flags.get(flag_key)
        if counted is None:
            self._flags_to_count.count_unknown(flag_key)
            return None
        flag = self.open_flags[flag_key] = FlagPartition(self._arms, counted)
        return flag

    # - evaluations -

    def count_evaluations(self, events: Iterable[EvaluationFields]) -> Counted:
        """Count evaluations."""
        open_flags, count_evaluation = self.open_flags, self._count_evaluation
        counted = late = ignored = freshest_ms = 0
        for context_id, flag_key, variant, time_ms in events:
            flag = open_flags.get(flag_key) or self.open(flag_key)
            if flag is None:
                ignored += 1
                self._note_ended(flag_key, variant)
                continue
            if time_ms > freshest_ms:
                freshest_ms = time_ms
            counter = flag.counter_at(variant, time_ms)
            if counter is None:
                ignored += 1
                counter = flag.uncounted_counter(variant)
                if counter is None:
                    self._flags_to_count.other_variants += 1
                    self.note(flag_key, None)
                    continue
            elif counter.is_counting:
                counted += 1
            else:
                late += 1
            count_evaluation(flag, counter, digest_of(context_id.encode()), time_ms)
        return Counted(counted, late, ignored, freshest_ms)

    def _count_evaluation(
        self, flag: FlagPartition, counter: ArmCounter, digest: int, time_ms: int
    ) -> None:
        """Add one evaluation to a counter, and remember the exposure."""
        counter.evaluations += 1
        if not counter.is_changed and counter.is_counting:
            self._arms.note_change(counter)
        exposed = counter.exposed
        is_first = False  # of this context to this flag in the present visit
        if not counter.is_counting:
            if exposed.is_full:
                return
        elif digest not in exposed.exact and not (exposed.filters and digest in exposed):
            if exposed.is_full:
                return  # it takes no new contexts
            self._arms.sets.put(exposed, digest)
            counter.exposures += 1
            opposite = counter.opposite
            if digest in opposite.exact or (opposite.filters and digest in opposite):
                counter.switched += 1
            else:
                is_first = flag.has_one_visit
        if self._recent is not None and (exposures := self._recent.slice_of(time_ms)) is not None:
            if is_first:
                exposures.record_first(exposed.number, digest)
            else:
                exposures.record(flag.counted.flag_key, exposed.number, digest)

    # - outcomes -

    def count_outcomes(
        self,
        events: Iterable[OutcomeOfRecord],
        room: float,
        partner: Exposures | None,
        joinable_until_ms: float,
    ) -> Counted:
        """Count outcomes until one must wait.

        `room`, `partner` and `joinable_until_ms` are as for `PartitionTotals.fold_outcomes`.
        """
        open_flags, count_outcome = self.open_flags, self._count_outcome
        changed, new_sets = self._arms.changed, self._arms.sets.new
        counted = late = ignored = freshest_ms = 0
        limit = room + len(changed) + len(new_sets)
        joinable = _JoinableExposures(partner, joinable_until_ms)
        for record, context_id, time_ms, named, is_error, latency_ms, conversions in events:
            if len(changed) + len(new_sets) >= limit:
                return Counted(counted, late, ignored, freshest_ms, record)
            digest = digest_of(context_id.encode())
            flags = named or self._join(joinable, digest, time_ms, record.timestamp)
            if flags is None:
                return Counted(counted, late, ignored, freshest_ms, record)
            bucket = None if latency_ms is None else bucket_of(latency_ms)
            is_counted = is_late = False
            for flag_key, variant in flags:
                flag = open_flags.get(flag_key) or self.open(flag_key)
                if flag is None:
                    continue
                if time_ms > freshest_ms:
                    freshest_ms = time_ms
                counter = flag.counter_at(variant, time_ms)
                if counter is None:
                    is_other = variant not in flag.counted.uncounted
                    self._flags_to_count.other_variants += is_other
                elif not counter.is_counting:
                    is_late = True
                else:
                    is_counted = True
                    count_outcome(counter, digest, is_error, bucket, conversions)
                    if not digest & NOT_SAMPLED:
                        counter.checked += 1
                        counter.repeated += self._recent_records.came_before(record)
            if is_counted:
                counted += 1
            elif is_late:
                late += 1
            else:
                ignored += 1
        return Counted(counted, late, ignored, freshest_ms)

    def _join(
        self, joinable: _JoinableExposures, digest: int, time_ms: int, timestamp_ms: int
    ) -> Sequence[tuple[str, str]] | None:
        """Return the flags of an outcome that names none; None while it must wait."""
        self.joins = True
        flags = joinable.of(digest, time_ms, timestamp_ms)
        if flags is not None and not flags:
            self._flags_to_count.unjoined += 1
        return flags

    def _count_outcome(
        self,
        counter: ArmCounter,
        digest: int,
        is_error: bool,
        bucket: int | None,
        conversions: Sequence[str],
    ) -> None:
        """Add one outcome to one counter."""
        if not counter.is_changed:
            self._arms.note_change(counter)
        counter.outcomes += 1
        action = counter.batch_contexts.get(digest)
        if action is None:
            if counter.activity.add(digest):
                action = UNTIMED
                failed = counter.failed
                if digest not in failed.exact and not (failed.filters and digest in failed):
                    counter.at_risk += 1
            else:
                action = LEFT_OUT
        if action == UNTIMED and bucket is not None:
            action = TIMED
            latency = counter.latency
            latency[bucket] = latency.get(bucket, 0) + 1
        counter.batch_contexts[digest] = action
        if is_error:
            counter.errors += 1
            if action != LEFT_OUT and self._arms.sets.add(counter.failed, digest):
                counter.first_errors += 1
        for conversion in conversions:
            converted = counter.converted.get(conversion)
            if converted is not None and self._arms.sets.add(converted, digest):
                counts = counter.converted_counts
                counts[conversion] = counts.get(conversion, 0) + 1

    # - evaluations that no arm counts -

    def _note_ended(self, flag_key: str, variant: str) -> None:
        """Note an evaluation of a flag that is not counted, if its rollout is over."""
        arms = self._flags_to_count.ended_arms.get(flag_key)
        if arms is not None:
            self.note(flag_key, arms.get(variant))

    def note(self, flag_key: str, arm: Arm | None, count: int = 1) -> None:
        """Note evaluations that no counter has."""
        if count:
            self.others[flag_key, arm] = self.others.get((flag_key, arm), 0) + count

    def take_evaluations(self) -> Sequence[NewEvaluations]:
        """Return the evaluations since the last call: of arms, and those that no arm counts."""
        taken = [
            (counter.flag_key, counter.arm, count)
            for flag in self.open_flags.values()
            for counter in flag.counters()
            if (count := counter.take_evaluations())
        ]
        taken += [(flag_key, arm, count) for (flag_key, arm), count in self.others.items()]
        self.others.clear()
        return taken


class _JoinableExposures:
    """The exposures that outcomes without flags may be joined to now."""

    __slots__ = ("_are_indexed", "_partner", "_until_ms")

    def __init__(self, partner: Exposures | None, until_ms: float) -> None:
        """Take those of `partner`, None for none. They are all counted up to `until_ms`."""
        self._partner = partner
        self._until_ms = until_ms
        self._are_indexed = False

    def of(self, digest: int, time_ms: int, timestamp_ms: int) -> Sequence[tuple[str, str]] | None:
        """Return what a context was exposed to: `Exposures.exposures`.

        None while not everything before `timestamp_ms`, the outcome's record, is counted and
        indexed; some more is indexed then.
        """
        if self._partner is None:
            return ()
        if not self._are_indexed:
            self._are_indexed = self._partner.index_exposures()
        if not self._are_indexed or timestamp_ms > self._until_ms:
            return None
        return self._partner.exposures(digest, time_ms)
