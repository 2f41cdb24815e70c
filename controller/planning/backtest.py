"""One plan over recorded events.

Counted as the daemon counts them, judged and decided as it would have been then.

Time is the records' own: the timestamps at which Kafka took them. Every slice of it is folded, its
totals are what one flush brings, and the plan's virtual rollout looks at them. What was served then
was not the plan's doing, so the split that a stage would have decided is not held against the
records, unless it is asked for.

Belongs here: folding and deciding. Does not belong here: reading Kafka, and words
(`cli/backtest.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from controller.codec.merging import Merger, arms_of
from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.evidence import ArmTotals, Evidence, PartitionProgress, VisitTotals
from controller.core.judging.gate import judge
from controller.core.judging.judgement import Advice, Judgement
from controller.core.machine import decide, next_deadline
from controller.core.plan import Plan
from controller.core.rollout import (
    AdviceReceived,
    AskAdvice,
    AwaitingApproval,
    CommandReceived,
    Event,
    EvidenceJudged,
    PublishDecision,
    Rollout,
    Ticked,
)
from controller.counting.counted_flags import Changes
from controller.counting.partition_totals import PartitionTotals, ReadEvaluations, ReadOutcomes
from controller.counting.watched_flags import WatchedFlag, WatchedFlags
from controller.ports import Record
from schemas import wire
from schemas.terms import AdviceChoice, Arm, CommandVerb, HealthGap

_PROCEED = Advice(AdviceChoice.PROCEED, 100, ("assumed",), "assumed", "", 0)
_ISSUER = "backtest"
#: What is recorded was dealt by whoever dealt it then; the plan's shares are held against it on
#: request only.
_OF_THE_SPLIT = (HealthGap.SRM, HealthGap.ACTUATION_DRIFT)


class Source(NamedTuple):
    """One event partition."""

    kind: Literal["evaluations", "outcomes"]
    partition: int


@dataclass(frozen=True, slots=True)
class Decided:
    """One decision, and when it would have been taken."""

    at: datetime
    decision: PublishDecision


@dataclass(frozen=True, slots=True)
class Counted:
    """What became of the records so far."""

    counted: int
    late: int  # while settling, or of a visit that was over
    ignored: int  # of other flags or variants, or joined to nobody
    refused: int


class Backtest:
    """A virtual rollout that records are fed to, slice by slice."""

    def __init__(
        self,
        plan: Plan,
        starts_at: datetime,
        sources: Sequence[Source],
        *,
        exact_limit: int,
        window_ms: int,
        counts_split: bool = False,
        read_evaluations: ReadEvaluations = wire.read_evaluations,
        read_outcomes: ReadOutcomes = wire.read_outcomes,
    ) -> None:
        """Start the plan at `starts_at`, UTC.

        `sources` are all event partitions there are; evaluations and outcomes of one number are a
        pair. `exact_limit` and `window_ms` are ingest's. With `counts_split` the split of contexts
        is held against the plan's percentages.
        """
        self.decided: list[Decided] = []
        self.judgement: Judgement | None = None
        self.judged_at = starts_at
        self._counts_split = counts_split
        self._read_evaluations, self._read_outcomes = read_evaluations, read_outcomes
        self._directory = WatchedFlags()
        self._tests = SequentialTests()
        self._merger = Merger()
        self._arms: dict[Source, dict[str, bytes]] = {source: {} for source in sources}
        self._totals = {
            source: PartitionTotals(
                self._directory,
                counts_exposures=source.kind == "evaluations",
                exact_limit=exact_limit,
                window_ms=window_ms if source.kind == "evaluations" else None,
            )
            for source in sources
        }
        self._at = starts_at
        self._are_begun: set[Source] = set()
        order = CommandReceived(
            "start-1", CommandVerb.START, _ISSUER, "backtest", starts_at, plan=plan
        )
        self.rollout: Rollout | None = None
        self._handle(order)

    @property
    def is_over(self) -> bool:
        """Whether more records can change anything: no once it has ended or waits for a person."""
        rollout = self._now()
        return rollout.has_ended or rollout.phase.name == "paused"

    @property
    def records(self) -> Counted:
        """What became of all records so far."""
        counts = [totals.records for totals in self._totals.values()]
        return Counted(
            counted=sum(count.counted for count in counts),
            late=sum(count.late for count in counts),
            ignored=sum(count.ignored for count in counts),
            refused=sum(count.quarantined for count in counts),
        )

    def advance(self, at: datetime, batch: Mapping[Source, Sequence[Record]]) -> None:
        """Fold the records up to `at`, which follow those before in each source.

        And look at what they add up to.
        """
        # First what was due before they came, at its own time: a deadline does not wait for
        # traffic.
        while (
            not self.is_over
            and (deadline := next_deadline(self._now())) is not None
            and deadline <= at
        ):
            before = self.rollout
            self._at = max(deadline, self._at)
            self._handle(Ticked())
            if self.rollout is before:
                break
        self._at = at
        for kind in (
            "evaluations",
            "outcomes",
        ):  # in this order: an outcome may be joined to an exposure of this slice
            for source, records in batch.items():
                if source.kind == kind and records:
                    self._fold(source, records)
        if self.is_over or self._now().stage_index is None:
            return
        judgement, self._tests = judge(self._now(), self._evidence(), self._tests, at)
        if not self._counts_split:
            judgement = replace(
                judgement,
                gaps=tuple(gap for gap in judgement.gaps if gap.kind not in _OF_THE_SPLIT),
            )
        self.judgement, self.judged_at = judgement, at
        self._handle(EvidenceJudged(judgement))

    def _now(self) -> Rollout:
        assert self.rollout is not None
        return self.rollout

    def _fold(self, source: Source, records: Sequence[Record]) -> None:
        totals = self._totals[source]
        if source not in self._are_begun:
            self._are_begun.add(source)
            totals.start_at(records[0].offset)
        if source.kind == "evaluations":
            totals.fold_evaluations(records, self._read_evaluations)
        else:
            evaluations = self._totals.get(Source("evaluations", source.partition))
            totals.fold_outcomes(records, self._read_outcomes, join=evaluations)
        totals.refused.clear()
        changes = Changes()
        for _ in totals.drain_changes(changes):
            pass  # nobody else runs here
        self._arms[source].update(
            {
                name: value
                for name, value in self._merger.arms("", changes.fields)[0].items()
                if name in self._wanted()
            }
        )

    def _wanted(self) -> set[str]:
        rollout = self._now()
        return {
            name
            for visit in range(len(rollout.visits))
            for name in arms_of((rollout.flag_key, rollout.rollout_id, visit))
        }

    def _evidence(self) -> Evidence:
        rollout = self._now()
        visits = {}
        for index in range(len(rollout.visits)):
            visit = (rollout.flag_key, rollout.rollout_id, index)
            names = arms_of(visit)
            raw = tuple(arms.get(name) for arms in self._arms.values() for name in names)
            visits[index] = self._merger.merge(visit, raw)
        return Evidence(self._at, visits, tuple(self._progress()), len(self._totals))

    def _progress(self) -> Iterator[PartitionProgress]:
        for source, totals in self._totals.items():
            freshest = totals.records.freshest_ms
            yield PartitionProgress(
                topic_partition=f"{source.kind}/{source.partition}",
                next_offset=totals.position,
                end_offset=totals.position,
                freshest=None if freshest is None else datetime.fromtimestamp(freshest / 1000, UTC),
                reported_at=self._at,
            )

    def _handle(self, event: Event) -> None:
        """Decide, and be the model and the people that it asks: both agree at once."""
        before = self.rollout
        after, effects = decide(before, event, self._at)
        self.rollout = after
        if after is None:
            return
        if before is None or after.revision != before.revision:
            watched = self._directory.watch(after)
            if isinstance(watched, WatchedFlag):
                for totals in self._totals.values():
                    totals.flags.apply(watched)
        self.decided += [
            Decided(self._at, effect) for effect in effects if isinstance(effect, PublishDecision)
        ]
        for effect in effects:
            if isinstance(effect, AskAdvice) and isinstance(event, EvidenceJudged):
                self._handle(AdviceReceived(effect.gate_id, effect.round, _PROCEED))
                self._handle(event)
        was_asked = before is not None and isinstance(before.phase, AwaitingApproval)
        if isinstance(after.phase, AwaitingApproval) and not was_asked and self.rollout is after:
            self._handle(
                CommandReceived(
                    f"approve-{after.revision}",
                    CommandVerb.APPROVE,
                    _ISSUER,
                    "assumed",
                    self._at,
                    after.revision,
                )
            )

    def totals(self) -> VisitTotals:
        """Return the present visit's totals over all partitions."""
        visits = self._evidence().visits
        return visits.get(self._now().visit_index, VisitTotals(ArmTotals(), ArmTotals()))

    def share(self) -> float | None:
        """Return treatment's share of the present visit's contexts, None without any."""
        totals = self.totals()
        exposed = sum(totals.arm(arm).exposures for arm in Arm)
        return totals.treatment.exposures / exposed if exposed else None
