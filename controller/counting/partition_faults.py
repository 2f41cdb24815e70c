"""Reports what goes wrong in one partition as a fault of that partition alone.

Belongs here: counters, logs and faults. Does not belong here: what is done about it
(`assignment.py`).
"""

from __future__ import annotations

import structlog

from controller.counting.dependencies import Dependencies
from controller.counting.folding.engine import NativeFault
from controller.counting.owned_partition import OwnedPartition, PartitionPair
from controller.counting.pair_order import CAREFUL_RECORDS, FoldingFailed, failure_of
from controller.health import Scope, partition_remedy

_REPORTER = "counting"  # reports these faults, and alone clears them
_HIDING = "open transaction"  # reports records that cannot be read yet
_END_TRANSACTION = (
    "end it: restart its producer, or find it with `kafka-transactions.sh find-hanging`, and "
    "abort it"
)
_NATIVE_FAULT = "report the log line `native_fold_failed` to the maintainers; nothing is lost"
_REBASED = "look at the flags in a stage: it is tainted, and a person decides how it goes on"
# A rebase is shown as a fault for so long. The loss that it left stays in the evidence.
_REBASE_SHOWN_SECONDS = 600.0


class PartitionFaults:
    """Reports what goes wrong in partitions, and clears it once they are counted beyond it."""

    def __init__(self, dependencies: Dependencies) -> None:
        """Report to the dependencies' `faults`, and count in their `counters`."""
        self._faults = dependencies.faults
        self._counters = dependencies.counters
        self._metrics = dependencies.metrics
        self._logger = structlog.get_logger()

    def record_failure(self, owned: OwnedPartition, mistake: BaseException) -> None:
        """Report a partition that cannot be counted, because of a mistake of ours."""
        self._counters.mistakes += 1
        owned.is_faulty = True
        owned.trouble = str(mistake) or repr(mistake)
        why = f"it cannot be counted: {owned.trouble}"
        self._report(owned, why, partition_remedy(owned.name, why))
        self._logger.error("partition_failed", topic_partition=owned.key, exc_info=mistake)

    def record_native_fault(self, owned: OwnedPartition, fault: NativeFault) -> None:
        """Report that the reference goes on with a partition, because the native fold failed."""
        self._counters.native_faults += 1
        self._metrics.native_faults.inc()
        owned.is_faulty = True
        owned.failed_at = max(owned.failed_at, owned.totals.position)
        owned.trouble = f"the native fold failed: {fault}; the reference counts on in Python"
        self._report(owned, owned.trouble, _NATIVE_FAULT)
        self._logger.error("native_fold_failed", topic_partition=owned.key, exc_info=fault)

    def record_rebase(
        self, owned: OwnedPartition, *, fence: int, offset: int, why: str, now: float
    ) -> None:
        """Report that counting goes on at `offset` of another log than the stored one."""
        self._counters.rebases += 1
        owned.rebased_at = now
        owned.is_faulty = True
        self._logger.error(
            "partition_rebased",
            topic_partition=owned.key,
            from_offset=fence,
            to_offset=offset,
            reason=why,
        )
        self._report(owned, f"{why}; counting goes on at {offset}", _REBASED)

    def record_loss(self, owned: OwnedPartition, offset: int, first: int) -> None:
        """Log that the log deleted the records from `offset` to before `first` unread."""
        self._counters.gaps += 1
        self._logger.error(
            "records_lost", topic_partition=owned.key, from_offset=offset, to_offset=first
        )

    def report_hidden(self, owned: OwnedPartition, records: int) -> None:
        """Report records that nobody can read until the transaction before them has ended."""
        why = f"a producer's open transaction hides its last {records:,} records"
        self._faults.report(Scope.PARTITION, owned.name, why, _END_TRANSACTION, reporter=_HIDING)

    def clear_hidden(self, owned: OwnedPartition) -> None:
        """Clear what `report_hidden` reported: the transaction has ended."""
        self._faults.clear(Scope.PARTITION, owned.name, reporter=_HIDING)

    def isolate(self, failure: FoldingFailed) -> None:
        """Have the failed batch's records tried one by one, so that those that fail are set aside.

        One that fails on what was counted, and not on the trial's totals, is remembered for the
        next time. What lies before it is then saved first, so that each such failure moves the
        fence.
        """
        owned = failure.owned
        if isinstance(failure.__cause__, NativeFault):
            return  # no record's fault: the reference counts them all
        owned.careful_to = max(owned.careful_to, failure.last + CAREFUL_RECORDS)
        if failure.first == failure.last:
            owned.poisoned[failure.first] = failure_of(failure.__cause__)
            owned.save_at = max(owned.save_at, failure.first + 1)

    def report_set_aside(self, pair: PartitionPair) -> None:
        """Log the records that were set aside since the last call."""
        for owned in pair.owned():
            if owned.set_aside:
                (offset, why), records = owned.set_aside[0], len(owned.set_aside)
                owned.set_aside = []
                self._counters.mistakes += records
                self._logger.error(
                    "record_set_aside",
                    topic_partition=owned.key,
                    offset=offset,
                    records=records,
                    error=why,
                )

    def clear_if_recovered(self, owned: OwnedPartition, now: float) -> None:
        """Clear a partition's fault once it has been saved beyond the place where it failed."""
        if not owned.is_faulty or owned.totals.position < owned.failed_at:
            return
        if owned.rebased_at is not None and now - owned.rebased_at < _REBASE_SHOWN_SECONDS:
            return
        owned.is_faulty, owned.rebased_at, owned.failures = False, None, 0
        self.clear(owned)

    def clear(self, owned: OwnedPartition) -> None:
        """Clear what counting itself reported of a partition."""
        self._faults.clear(Scope.PARTITION, owned.name, reporter=_REPORTER)

    def _report(self, owned: OwnedPartition, why: str, fix: str) -> None:
        self._faults.report(Scope.PARTITION, owned.name, why, fix, reporter=_REPORTER)
