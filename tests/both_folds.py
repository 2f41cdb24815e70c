"""The native fold beside the reference: one pair of partitions each, with a store of its own.

Belongs here: both sides, and records as a broker sends them. Does not belong here: what is sent
(`tests/property/test_native_fold.py`, `tests/hostile/fold_fuzz.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from controller.counting.counted_flags import FLAGS_WITH_OWN_FIELDS, Changes
from controller.counting.folding.engine import Fold
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.counting.partition_totals import PartitionTotals
from controller.ports import Record
from schemas.quarantine import WrittenRefusals
from schemas.totals import encode_progress
from schemas.wire import read_evaluations, read_outcomes
from tests.builders import HOUR, MINUTE, T0, make_guardrail, make_plan, make_rollout, make_visit
from tests.records import at_ms

NOW_MS = at_ms(T0 + 3 * HOUR)
VISITS = (
    make_visit(entered_at=T0, counts_from=T0 + MINUTE, left_at=T0 + HOUR),
    make_visit(stage=1, entered_at=T0 + HOUR, counts_from=T0 + HOUR + MINUTE),
)
FLAGS = ("new-checkout", "search", "nobody-knows", "")


def directory() -> FlagsToCount:
    """Return a directory of two flags, one with several visits and a conversion."""
    found = FlagsToCount()
    guardrails = (make_guardrail(), make_guardrail(metric="conversion:paid"))
    for number, flag_key in enumerate(FLAGS[:2]):
        plan = make_plan(flag_key=flag_key, guardrails=guardrails[: 2 - number])
        found.count_for(make_rollout(plan=plan, visits=VISITS, rollout_id=f"start-{flag_key}"))
    return found


def batches_of(records: Sequence[Record], per_batch: int, codec: int = 0) -> bytes:
    """Return records as a broker sends them."""
    content = b""
    for begin in range(0, len(records), per_batch):
        some = records[begin : begin + per_batch]
        builder = DefaultRecordBatchBuilder(
            magic=2,
            compression_type=codec,
            is_transactional=0,
            producer_id=-1,
            producer_epoch=-1,
            base_sequence=-1,
            batch_size=2**30,
        )
        for record in some:
            delta = record.offset - some[0].offset
            builder.append(delta, record.timestamp, record.key, record.value, list(record.headers))
        batch = bytes(builder.build())
        content += struct.pack(">q", some[0].offset) + batch[8:]
    return content


class Side:
    """One of both folds with its own directory and store, for a pair of partitions."""

    def __init__(
        self,
        new_fold: Callable[..., Fold],
        exact_limit: int,
        flags_with_own_fields: int = FLAGS_WITH_OWN_FIELDS,
    ) -> None:
        self.new_fold = new_fold
        self.exact_limit = exact_limit
        self.flags_with_own_fields = flags_with_own_fields
        self.directory = directory()
        self.stored: dict[bool, dict[str, bytes]] = {True: {}, False: {}}
        self.totals = {kind: self.load(kind) for kind in (True, False)}
        self.refused: list[WrittenRefusals] = []

    def load(self, of_evaluations: bool) -> PartitionTotals:
        """Return what a new owner has."""
        totals = PartitionTotals(
            self.directory,
            counts_exposures=of_evaluations,
            exact_limit=self.exact_limit,
            window_ms=1_800_000 if of_evaluations else None,
            flags_with_own_fields=self.flags_with_own_fields,
            new_fold=self.new_fold,
        )
        totals.set_time(NOW_MS)
        stored = dict(self.stored[of_evaluations])
        if stored:
            totals.restore(int(stored.pop("next")), stored)
        return totals

    def fold(self, of_evaluations: bool, records: Any, room: float) -> int:
        """Fold records; return how many."""
        totals = self.totals[of_evaluations]
        if of_evaluations:
            folded = totals.fold_evaluations(records, read_evaluations)
        else:
            folded = totals.fold_outcomes(
                records,
                read_outcomes,
                room=room,
                partner=self.totals[True],
                joinable_until_ms=NOW_MS,
            )
        self.refused += totals.take_refused()
        return folded

    def save(self, of_evaluations: bool, dropped: str = "") -> Mapping[str, bytes]:
        """Write what has changed; return all that is stored.

        The rollout of `dropped` ends when the first slice is encoded.
        """
        totals, stored = self.totals[of_evaluations], self.stored[of_evaluations]
        changes = Changes()
        for _ in totals.drain_changes(changes):
            if dropped:
                totals.flags.drop(dropped, f"start-{dropped}")
        stored |= changes.fields | encode_progress(totals.progress)
        stored["next"] = b"%d" % totals.position
        for name in changes.garbage:
            stored.pop(name, None)
        return stored

    def begin_batch(self) -> None:
        """Begin the next batch of outcomes without a save."""
        self.totals[False].begin_batch()

    def noticed(self) -> object:
        """Return what was recorded beside the totals."""
        found = self.directory
        for totals in self.totals.values():
            for _ in totals.note_evaluations():
                pass
        return (
            found.unknown_flags,
            found.unknown_names,
            found.other_variants,
            found.unjoined,
            found.evaluations.take(),
            [totals.flags.changed_fields for totals in self.totals.values()],
            [totals.flags.load for totals in self.totals.values()],
            list(self.refused),
        )


def swap(reference: Side, native: Side) -> None:
    """Let each side go on with what the other has stored."""
    for of_evaluations in (True, False):
        assert native.save(of_evaluations) == reference.save(of_evaluations)
    reference.stored, native.stored = native.stored, reference.stored
    for side in (reference, native):
        side.totals = {kind: side.load(kind) for kind in (True, False)}
