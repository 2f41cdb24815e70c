"""A plan tried on recorded events: counted, judged and decided as the daemon would have done.

Time is the records' own: the timestamps at which Kafka received them. Each slice of time is folded,
in batches as long as the daemon's, because a context is at risk once per batch. The plan's virtual
rollout then judges the totals. Another decision was served then, so the records are not expected to
have the plan's split, unless the caller requests it.

Belongs here: folding and deciding. Does not belong here: reading Kafka, and words
(`cli/backtest_run.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Literal, NamedTuple

from controller.codec.merging import Merger, arms_of
from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.effects import AskAdvice, PublishDecision
from controller.core.events import AdviceReceived, CommandReceived, Event, EvidenceJudged, Ticked
from controller.core.evidence import ArmTotals, Evidence, PartitionProgress, VisitTotals
from controller.core.judging.gate import judge
from controller.core.judging.judgement import Advice, Judgement
from controller.core.machine import decide, next_deadline
from controller.core.plan import Plan
from controller.core.rollout import AwaitingApproval, Rollout
from controller.counting.counted_flags import Changes
from controller.counting.folding.flags_to_count import CountedFlag, FlagsToCount
from controller.counting.partition_totals import PartitionTotals, ReadEvaluations, ReadOutcomes
from controller.ports import Record
from schemas import wire
from schemas.terms import AdviceChoice, AdvisorMode, Arm, CommandVerb, HealthGap

_PROCEED = Advice(AdviceChoice.PROCEED, 100, ("assumed",), "assumed", "", 0)
_ISSUER = "backtest"
#: The records have the split that was served then, so these gaps count on request only.
_OF_THE_SPLIT = (HealthGap.SRM, HealthGap.ACTUATION_DRIFT)
#: In silence it is judged at most this far apart, so that a gap is seen to last.
_JUDGED_IN_SILENCE = timedelta(seconds=30)
#: How long it is judged so after a change and the plan's `health_grace`: by then every gap that
#: lasts has acted, and only deadlines are left.
_SETTLED_AFTER = timedelta(minutes=2)


class Source(NamedTuple):
    """One event partition."""

    kind: Literal["evaluations", "outcomes"]
    partition: int


@dataclass(frozen=True, slots=True)
class DatedDecision:
    """One decision, and when it would have been taken."""

    at: datetime
    decision: PublishDecision


@dataclass(frozen=True, slots=True)
class RecordCounts:
    """How many records fell into each class so far."""

    counted: int
    late: int  # while settling, or of a visit that was over
    ignored: int  # of other flags or variants, or joined to no exposure
    refused: int


class Backtest:
    """A virtual rollout that judges records, slice by slice."""

    def __init__(
        self,
        plan: Plan,
        starts_at: datetime,
        sources: Sequence[Source],
        *,
        exact_limit: int,
        window_ms: int,
        batch_ms: int = 100,
        counts_split: bool = False,
        read_evaluations: ReadEvaluations = wire.read_evaluations,
        read_outcomes: ReadOutcomes = wire.read_outcomes,
    ) -> None:
        """Start the plan at `starts_at`, UTC.

        `sources` are all event partitions there are; evaluations and outcomes of one number are a
        pair. `exact_limit` and `window_ms` are ingest's, `batch_ms` is its time between two saves.
        With `counts_split` the split of contexts is held against the plan's percentages. External
        metrics and gate webhooks are left out.
        """
        # What a monitoring system or a gate webhook said then is not recorded.
        plan = replace(plan, external=(), gate_webhooks=())
        self.decisions: list[DatedDecision] = []
        self.judgement: Judgement | None = None
        self.judged_at = starts_at
        self._counts_split = counts_split
        self._batch_ms = batch_ms
        self._read_evaluations, self._read_outcomes = read_evaluations, read_outcomes
        self._flags = FlagsToCount()
        self._tests = SequentialTests()
        self._merger = Merger()
        self._arms: dict[Source, dict[str, bytes]] = {source: {} for source in sources}
        self._totals = {
            source: PartitionTotals(
                self._flags,
                counts_exposures=source.kind == "evaluations",
                exact_limit=exact_limit,
                window_ms=window_ms if source.kind == "evaluations" else None,
            )
            for source in sources
        }
        self._at = starts_at
        self._started: set[Source] = set()
        order = CommandReceived(
            "start-1",
            CommandVerb.START,
            _ISSUER,
            "backtest",
            starts_at,
            plan=plan,
            has_advisor=plan.advisor.mode is AdvisorMode.REQUIRED,  # else it would take no time
        )
        self.rollout: Rollout | None = None
        self._handle(order)

    @property
    def is_over(self) -> bool:
        """Whether more records change nothing.

        A pause is no end: guardrails stay armed. Nor is completion where active windows close it.
        """
        rollout = self._current()
        return rollout.has_ended and not rollout.may_open_again

    @property
    def records(self) -> RecordCounts:
        """How many records fell into each class, over all partitions."""
        counts = [totals.progress for totals in self._totals.values()]
        return RecordCounts(
            counted=sum(count.counted for count in counts),
            late=sum(count.late for count in counts),
            ignored=sum(count.ignored for count in counts),
            refused=sum(count.quarantined for count in counts),
        )

    def advance(self, at: datetime, batch: Mapping[Source, Sequence[Record]]) -> None:
        """Fold the records up to `at` and judge the totals.

        In each source they follow the records of the previous call.
        """
        # Deadlines before `at` come first, each at its own time: a deadline does not wait for
        # traffic. Events are counted by their own times, whatever was decided before them.
        while (
            not self.is_over
            and (deadline := next_deadline(self._current())) is not None
            and deadline <= at
        ):
            before = self.rollout
            self._at = max(deadline, self._at)
            self._handle(Ticked())
            if self.rollout is before:
                break
            if not batch:
                self._judge()
        self._at = at
        for totals in self._totals.values():
            totals.set_time(_ms(at))
        # In this order, because an outcome may be joined to an exposure of this slice.
        for kind in ("evaluations", "outcomes"):
            for source, records in batch.items():
                if source.kind == kind and records:
                    self._fold(source, records)
        self._judge()

    def pass_silence(self, until: datetime, every: timedelta) -> None:
        """Let time pass without a record, until `until`; judge as long as gaps may yet act.

        `every` is the time between two checks.
        """
        grace = self._current().plan.health_grace + _SETTLED_AFTER
        silent_since = self._at
        while self._at < until and not self.is_over:
            rollout = self._current()
            at = self._at + min(every, _JUDGED_IN_SILENCE)
            if at - max(silent_since, rollout.updated_at) > grace:
                deadline = next_deadline(rollout)
                at = until if deadline is None else max(deadline, at)
            self.advance(min(at, until), {})

    def _judge(self) -> None:
        """Judge the totals as they are, and let the rollout decide."""
        if self.is_over or self._current().stage_index is None:
            return
        judgement, self._tests = judge(self._current(), self._evidence(), self._tests, self._at)
        if not self._counts_split:
            judgement = replace(
                judgement,
                gaps=tuple(gap for gap in judgement.gaps if gap.kind not in _OF_THE_SPLIT),
            )
        self.judgement, self.judged_at = judgement, self._at
        self._handle(EvidenceJudged(judgement))

    def _current(self) -> Rollout:
        assert self.rollout is not None
        return self.rollout

    def _fold(self, source: Source, records: Sequence[Record]) -> None:
        totals = self._totals[source]
        if source not in self._started:
            self._started.add(source)
            totals.start_at(records[0].offset)
        if source.kind == "evaluations":
            totals.fold_evaluations(records, self._read_evaluations)
        else:
            for _, batch in groupby(records, lambda record: record.timestamp // self._batch_ms):
                self._fold_outcomes(source, list(batch))
                totals.begin_batch()
        totals.take_refused()
        changes = Changes()
        for _ in totals.drain_changes(changes):
            pass  # nothing else runs here
        self._arms[source].update(
            {
                name: value
                for name, value in self._merger.arms("", changes.fields)[0].items()
                if name in self._arm_names()
            }
        )

    def _fold_outcomes(self, source: Source, batch: Sequence[Record]) -> None:
        """Fold a batch of outcomes; each call folds only as many as exposures are indexed for."""
        evaluations = self._totals.get(Source("evaluations", source.partition))
        while batch:
            folded = self._totals[source].fold_outcomes(
                batch, self._read_outcomes, partner=evaluations
            )
            batch = batch[folded:]

    def _arm_names(self) -> set[str]:
        rollout = self._current()
        return {
            name
            for visit in range(len(rollout.visits))
            for name in arms_of((rollout.flag_key, rollout.rollout_id, visit))
        }

    def _evidence(self) -> Evidence:
        rollout = self._current()
        visits = {}
        for index in range(len(rollout.visits)):
            visit = (rollout.flag_key, rollout.rollout_id, index)
            names = arms_of(visit)
            raw = tuple(arms.get(name) for arms in self._arms.values() for name in names)
            visits[index] = self._merger.merge(visit, raw)
        return Evidence(self._at, visits, tuple(self._progress()), len(self._totals))

    def _progress(self) -> Iterator[PartitionProgress]:
        for source, totals in self._totals.items():
            freshest = totals.progress.freshest_ms
            yield PartitionProgress(
                topic_partition=f"{source.kind}/{source.partition}",
                next_offset=totals.position,
                end_offset=totals.position,
                freshest=None if freshest is None else datetime.fromtimestamp(freshest / 1000, UTC),
                reported_at=self._at,
            )

    def _handle(self, event: Event) -> None:
        """Decide, and answer for the model and for people: both agree at once."""
        before = self.rollout
        after, effects = decide(before, event, self._at)
        self.rollout = after
        if after is None:
            return
        if before is None or after.revision != before.revision:
            counted = self._flags.count_for(after)
            if isinstance(counted, CountedFlag):
                for totals in self._totals.values():
                    totals.flags.apply(counted)
        self.decisions += [
            DatedDecision(self._at, effect)
            for effect in effects
            if isinstance(effect, PublishDecision)
        ]
        for effect in effects:
            if isinstance(effect, AskAdvice) and isinstance(event, EvidenceJudged):
                self._handle(AdviceReceived(effect.gate_id, effect.round, _PROCEED))
                self._handle(event)
        was_waiting = before is not None and isinstance(before.phase, AwaitingApproval)
        if isinstance(after.phase, AwaitingApproval) and not was_waiting and self.rollout is after:
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
        return visits.get(self._current().visit_index, VisitTotals(ArmTotals(), ArmTotals()))

    def share(self) -> float | None:
        """Return treatment's share of the present visit's contexts, None without any."""
        totals = self.totals()
        exposed = sum(totals.arm(arm).exposures for arm in Arm)
        return totals.treatment.exposures / exposed if exposed else None


class Replay:
    """Gives a backtest its records in slices of time, and the silence between them."""

    def __init__(self, test: Backtest, begins: datetime, every: timedelta) -> None:
        """Begin at the time of the backtest's start; a slice is `every` long."""
        self._test = test
        self._every = every
        self._until = begins + every
        self._batch: dict[Source, list[Record]] = {}

    def take(self, at: datetime, sources: Iterable[Source], record: Record) -> bool:
        """Take the next record by time; return whether a slice was judged before it."""
        is_next = at >= self._until
        if is_next:
            self._judge(self._until)
            silent = (at - self._until) // self._every * self._every
            self._test.pass_silence(self._until + silent, self._every)
            self._until += silent + self._every
        for source in sources:
            self._batch.setdefault(source, []).append(record)
        return is_next

    def end(self, at: datetime) -> None:
        """Judge what is left, and let time pass until `at`."""
        if not self._test.is_over:
            self._judge(min(self._until, at))
            self._test.pass_silence(at, self._every)

    def _judge(self, at: datetime) -> None:
        self._test.advance(at, self._batch)
        self._batch = {}


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
