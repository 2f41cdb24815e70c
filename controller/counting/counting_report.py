"""Reports on counting: metrics after each save, and views of the partitions.

Between saves the hot path touches no metric.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import structlog

from controller.counting.assignment import Assignment
from controller.counting.dependencies import Dependencies
from controller.counting.log_ends import LogEnds
from controller.counting.owned_partition import OwnedPartition, PartitionState, PartitionView
from controller.counting.refusals import RefusalBacklog
from schemas.quarantine import WrittenRefusals
from schemas.terms import QuarantineReason, RecordClass

_RECORD_CLASSES = (
    RecordClass.COUNTED,
    RecordClass.QUARANTINED,
    RecordClass.LATE,
    RecordClass.IGNORED,
)
_SEE = "`rolloutctl quarantine` shows them, and how to fix each"
_SCATTERED = (
    "a context's events are in several partitions and it is counted once in each: see "
    "ops/formats.md"
)


class CountingReport:
    """Brings the metrics up to date with what was saved."""

    def __init__(
        self,
        dependencies: Dependencies,
        assignment: Assignment,
        ends: LogEnds,
        refusals: RefusalBacklog,
    ) -> None:
        """Report on the partitions of `assignment`."""
        self._metrics = dependencies.metrics
        self._counters = dependencies.counters
        self._flags_to_count = dependencies.flags_to_count
        self._assignment = assignment
        self._ends = ends
        self._refusals = refusals
        # As far as the metrics know.
        self._unknown_reported = 0
        self._dropped_reported = 0
        self._scattered_reported = 0
        self._logger = structlog.get_logger()

    def update(self, owned: OwnedPartition) -> None:
        """Update the metrics after a save of one partition."""
        topic = "evaluations" if owned.is_counting_exposures else "outcomes"
        progress = owned.totals.progress
        totals = (progress.counted, progress.quarantined, progress.late, progress.ignored)
        records = self._counters.records[owned.partition[0]]
        for kind, total, reported in zip(_RECORD_CLASSES, totals, owned.reported, strict=True):
            self._metrics.events.of(topic, kind).inc(total - reported)
            records.read += total - reported
            if kind is RecordClass.QUARANTINED:
                records.refused += total - reported
        records.refused -= owned.totals.take_partly_refused()
        owned.reported = totals
        of_topic = [
            each
            for each in self._assignment.owned.values()
            if each.is_counting_exposures == owned.is_counting_exposures
        ]
        self._metrics.partitions_owned.of(topic).set(len(of_topic))
        self.update_lag()
        refusals, counted = self._refusals, self._flags_to_count
        self._metrics.refusals_waiting.set(refusals.waiting)
        self._metrics.refusals_dropped.inc(refusals.dropped - self._dropped_reported)
        self._dropped_reported = refusals.dropped
        self._metrics.unknown_flag_events.inc(counted.unknown_flags - self._unknown_reported)
        self._unknown_reported = counted.unknown_flags
        if counted.scattered and not self._scattered_reported:
            self._logger.warning("contexts_scattered", topic=owned.partition[0], reason=_SCATTERED)
        self._metrics.scattered_contexts.inc(counted.scattered - self._scattered_reported)
        self._scattered_reported = counted.scattered

    def update_lag(self) -> None:
        """Update the records that are not saved yet, as far as the log's end is known."""
        for topic, is_of_exposures in (("evaluations", True), ("outcomes", False)):
            lags = [
                self._ends.lag_of(each)
                for each in self._assignment.owned.values()
                if each.is_counting_exposures == is_of_exposures
                and (each.state is PartitionState.READY or each.saved is not None)
            ]
            self._metrics.lag_records.of(topic).set(sum(lags))

    def count_refusals(self, topic: str, refusals: Sequence[WrittenRefusals]) -> None:
        """Count refused records by their reason, and log them; repeats of a line are summed up."""
        counts = Counter[QuarantineReason]()
        for some in refusals:
            counts.update(some.by_reason)
        self._counters.records[topic].reasons.update(counts)
        for reason, count in counts.items():
            self._metrics.quarantined.of(reason).inc(count)
            self._logger.warning(
                "records_refused", topic=topic, reason=reason.value, records=count, remedy=_SEE
            )

    def views(self, now: float) -> list[PartitionView]:
        """Return how every partition stands; `now` is on the monotonic clock."""
        return [self._view(owned, now) for owned in self._assignment.owned.values()]

    def _view(self, owned: OwnedPartition, now: float) -> PartitionView:
        since = owned.unsaved_since
        return PartitionView(
            topic=owned.partition[0],
            partition=owned.partition[1],
            state=owned.state,
            next_offset=owned.totals.position,
            saved_offset=None if owned.saved is None else owned.counted_from,
            end_offset=self._ends.end_of(owned),
            records=owned.totals.progress,
            unmoved_seconds=now - owned.moved_at,
            trouble=owned.trouble,
            unsaved_seconds=0.0 if since is None else max(0.0, now - since),
            heard_seconds=self._ends.silent_seconds(owned, now),
            counts_exposures=owned.is_counting_exposures,
            saved_seconds=now - owned.saved_at,
            save_trouble=owned.save_trouble,
        )
