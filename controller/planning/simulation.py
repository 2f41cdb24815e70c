"""One plan in virtual time.

`decide` and `judge` as the daemon runs them, on drawn totals, at looks that are far apart.

The daemon looks at every flush, about once a second. The evidence at a look is the same however
many came before it, so the simulation looks where it matters and skips the rest:

- while some evidence of harm is there (an e-value of 3, or recent evidence that begins a bet),
  looks follow each other at 7 % of the time since the stage, or the harm in it, began, so a find is
  dated late by at most that; without evidence at 25 % while there is harm, else each time at twice
  the time;
- an undecided gate is looked at every 5 % of the stage's time;
- the first look is when the smaller arm is expected to have a batch (8 contexts), at least a second
  after the begin.

Fewer looks find a little less, and later: figures are on the careful side for harm, and a false
roll back between two looks may go unseen, which `ops/simulate.md` puts in numbers. Advice always
says proceed and people approve at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import numpy as np

from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.effects import AskAdvice, PublishDecision
from controller.core.events import AdviceReceived, CommandReceived, Event, EvidenceJudged, Ticked
from controller.core.evidence import Evidence, PartitionProgress, VisitTotals
from controller.core.judging.batches import MIN_BATCH
from controller.core.judging.gate import check_harm, judge
from controller.core.judging.judgement import Advice, Judgement
from controller.core.machine import decide, next_deadline
from controller.core.metrics.virtual import DrawnArm
from controller.core.plan import Plan
from controller.core.rollout import (
    AwaitingApproval,
    Baking,
    Completed,
    Gating,
    Paused,
    RolledBack,
    Rollout,
)
from controller.core.visits import Visit
from controller.planning.virtual_traffic import Effect, TrafficSource
from schemas.terms import (
    AdviceChoice,
    AdvisorMode,
    Arm,
    CommandVerb,
    DecisionKind,
    HoldReason,
    Verdict,
)

WARM_E_VALUE = 3.0
WARM_STEP = 0.07
HARM_STEP = 0.25
QUIET_STEP = 1.0
GATE_STEP = 0.05
SHORTEST_STEP = timedelta(seconds=1)
#: Virtual time after which a run is given up: a plan may be frozen for ever.
LONGEST = timedelta(days=3650)

_TOPICS = ("flag.evaluations/0", "request.outcomes/0")
_PROCEED = Advice(AdviceChoice.PROCEED, 100, ("simulated",), "simulated", "", 0)
_ISSUER = "simulation"


@dataclass(slots=True)
class VirtualRollout:
    """One virtual rollout, after its end."""

    #: completed | rolled_back | paused: undecided at max_bake, or another reason | given_up
    ended: str
    reason: str
    started_at: datetime
    at: datetime  # of the end
    stage: int  # the last one it was in, 0-based
    stage_times: dict[int, timedelta] = field(
        default_factory=dict
    )  # from entering it to passing its gate
    #: The same without what bakes and gates do not count: closed by active windows, and settling.
    open_times: dict[int, timedelta] = field(default_factory=dict)
    stage_contexts: dict[int, int] = field(default_factory=dict)  # of treatment, at its end
    metric: str | None = None  # the guardrail that found harm
    found_at: datetime | None = None  # when a guardrail first found harm, whatever it led to
    harm_began_at: datetime | None = None  # None: it never came to that
    harmed_contexts: int = 0  # of treatment since then
    extra_failures: float = 0.0  # contexts that failed beyond control's rate, since then
    looks: int = 0
    lacking: tuple[
        str, ...
    ] = ()  # where it ended undecided: the gaps, else the metrics that were not shown safe
    path: list[tuple[timedelta, float]] = field(
        default_factory=list
    )  # since the begin, and the percentage served from then on

    @property
    def is_found(self) -> bool:
        """Whether harm was found while there was some."""
        return (
            self.found_at is not None
            and self.harm_began_at is not None
            and self.found_at >= self.harm_began_at
        )


def run_once(
    plan: Plan, source: TrafficSource, starts_at: datetime, rng: np.random.Generator
) -> VirtualRollout:
    """Return what becomes of one virtual rollout.

    `starts_at` is UTC; freeze windows, active windows and dates hold from there. The plan's
    `ends_at` does not: an end by the calendar says nothing about the stages and their gates.
    """
    return _Virtual(
        replace(plan, ends_at=None, external=(), gate_webhooks=()), source, starts_at, rng
    ).run()


class _Virtual:
    """The loop, with what it has drawn so far."""

    def __init__(
        self, plan: Plan, source: TrafficSource, starts_at: datetime, rng: np.random.Generator
    ) -> None:
        self._source = source
        self._rng = rng
        self._started_at = starts_at
        self._at = starts_at
        self._tests = SequentialTests()
        self._visit = -1  # that the totals belong to
        self._arms = {arm: DrawnArm() for arm in Arm}
        self._drawn_until = starts_at
        self._origin = starts_at  # looks are spaced by the time since
        self._looks = 0
        self._is_warm = False
        self._judgement: Judgement | None = None
        self._run = VirtualRollout(
            "given_up", "still undecided after ten years", starts_at, starts_at, 0
        )
        order = CommandReceived(
            "start-1",
            CommandVerb.START,
            _ISSUER,
            "",
            starts_at,
            plan=plan,
            # Advice that may be given is given at once, so it takes no time from `max_bake`.
            has_advisor=plan.advisor.mode is AdvisorMode.REQUIRED,
        )
        started, _ = decide(None, order, starts_at)
        assert started is not None
        self._rollout: Rollout = started
        self._run.path.append((timedelta(0), started.percent))

    def run(self) -> VirtualRollout:
        while not self._rollout.has_ended and not isinstance(self._rollout.phase, Paused):
            deadline, look_at = next_deadline(self._rollout), self._next_look()
            soonest = min((at for at in (deadline, look_at) if at is not None), default=None)
            if soonest is None or soonest > self._started_at + LONGEST:
                break
            self._at = max(soonest, self._at)
            if self._is_counting:
                self._draw()
            if deadline is not None and deadline <= self._at:
                self._handle(Ticked())
            if self._is_counting:
                self._look()
        return self._finished()

    @property
    def _is_counting(self) -> bool:
        """Whether a stage gathers evidence: it is in one, and inside an active window."""
        return self._rollout.stage_index is not None and self._rollout.closed_since is None

    # --- when to look

    def _next_look(self) -> datetime | None:
        """Return when the next look is due, None outside of stages and while it is closed."""
        rollout = self._rollout
        if not self._is_counting:
            return None
        visit = rollout.visits[-1]
        self._enter(visit)
        now = max(self._at, visit.counting_since)
        # Traffic may be so thin that the first batch would come after the last datetime.
        seconds = min(MIN_BATCH / self._slower_arm(visit), LONGEST.total_seconds())
        first = max(timedelta(seconds=seconds), SHORTEST_STEP)
        rate = WARM_STEP if self._is_warm else HARM_STEP if self._active(visit, now) else QUIET_STEP
        step = max((now - self._origin) * rate, first)
        if isinstance(rollout.phase, Gating):
            step = min(step, max(visit.counted_until(now) * GATE_STEP, SHORTEST_STEP))
        changes = [
            self._started_at + effect.after
            for effect in self._source.traffic.effects
            if effect.after is not None and self._started_at + effect.after > now
        ]
        return min((now + step, *changes))

    def _slower_arm(self, visit: Visit) -> float:
        """Return the contexts per second of the arm that gets fewer."""
        share = visit.percent / 100
        return self._source.traffic.contexts_per_second * (
            share if share == 1 else min(share, 1 - share)
        )

    def _enter(self, visit: Visit) -> None:
        """Count from zero when the rollout is in another visit."""
        index = self._rollout.visit_index
        if index != self._visit:
            self._visit = index
            self._arms = {arm: DrawnArm() for arm in Arm}
            self._drawn_until = visit.counts_from
            self._origin = visit.counts_from
            if self._active(
                visit, visit.entered_at
            ):  # what is served while it settles does harm, and does not count
                settled = (visit.counts_from - visit.entered_at).total_seconds()
                self._run.harm_began_at = self._run.harm_began_at or visit.entered_at
                self._run.harmed_contexts += round(
                    self._source.traffic.contexts_per_second * visit.percent / 100 * settled
                )

    def _active(self, visit: Visit, at: datetime) -> list[Effect]:
        return [
            effect
            for effect in self._source.traffic.effects
            if effect.is_active(visit, at, self._started_at)
        ]

    # --- looking

    def _draw(self) -> None:
        """Let happen what happens until now in the present visit."""
        visit = self._rollout.visits[-1]
        self._enter(visit)
        active = self._active(visit, self._drawn_until)
        treatment = self._arms[Arm.TREATMENT]
        contexts, failed = treatment.contexts, treatment.failed
        self._source.draw(self._arms, visit, self._drawn_until, self._at, active, self._rng)
        if active:
            run = self._run
            run.harm_began_at = run.harm_began_at or self._drawn_until
            run.harmed_contexts += treatment.contexts - contexts
            run.extra_failures += (
                treatment.failed
                - failed
                - (treatment.contexts - contexts) * self._source.traffic.error_rate
            )
        elif self._active(visit, self._at):
            self._origin = self._at  # harm begins here: looks are spaced from now
        self._drawn_until = max(self._at, visit.counting_since)

    def _look(self) -> None:
        self._enter(self._rollout.visits[-1])
        at = self._at
        totals = VisitTotals(self._arms[Arm.TREATMENT].totals(), self._arms[Arm.CONTROL].totals())
        progress = tuple(PartitionProgress(name, 1, 1, at, at) for name in _TOPICS)
        evidence = Evidence(at, {self._visit: totals}, progress, len(_TOPICS))
        self._looks += 1
        if isinstance(self._rollout.phase, Baking):
            # While a stage bakes, drawn traffic leads nowhere but to a breach: it has no gap that
            # lasts. Where no breach is possible, the report costs for nothing.
            seen, self._tests = check_harm(self._rollout, evidence, self._tests, at)
            self._is_warm = self._tests.is_suspicious or any(
                harm.e_value >= WARM_E_VALUE for harm in seen
            )
            if not any(harm.is_possible for harm in seen):
                return
        judgement, self._tests = judge(self._rollout, evidence, self._tests, at)
        self._judgement = judgement
        self._is_warm = self._tests.is_suspicious or any(
            metric.e_value >= WARM_E_VALUE for metric in judgement.metrics
        )
        self._handle(EvidenceJudged(judgement))

    def _handle(self, event: Event) -> None:
        """Decide, and be the model and the people that it asks."""
        before = self._rollout
        after, effects = decide(before, event, self._at)
        assert after is not None
        self._rollout = after
        if before.closed_since is not None and after.closed_since is None and after.visits:
            self._origin += after.visits[-1].counting_since - before.closed_since
        if after.percent != before.percent:
            self._run.path.append((self._at - self._started_at, after.percent))
        judgement = event.judgement if isinstance(event, EvidenceJudged) else None
        self._note(
            before, judgement, [effect for effect in effects if isinstance(effect, PublishDecision)]
        )
        for effect in effects:
            if isinstance(effect, AskAdvice) and judgement is not None:
                self._handle(AdviceReceived(effect.gate_id, effect.round, _PROCEED))
                self._handle(EvidenceJudged(judgement))
        if isinstance(self._rollout.phase, AwaitingApproval) and not isinstance(
            before.phase, AwaitingApproval
        ):
            revision = self._rollout.revision
            self._handle(
                CommandReceived(
                    f"approve-{revision}",
                    CommandVerb.APPROVE,
                    _ISSUER,
                    "",
                    self._at,
                    revision,
                )
            )

    def _note(
        self, before: Rollout, judgement: Judgement | None, decisions: Iterable[PublishDecision]
    ) -> None:
        run = self._run
        for decision in decisions:
            if judgement is not None and judgement.breach is not None and run.found_at is None:
                run.found_at, run.metric = self._at, judgement.breach.metric
            if (
                decision.kind in (DecisionKind.ADVANCE, DecisionKind.COMPLETE)
                and before.stage_index is not None
            ):
                stage = before.stage_index
                visit = before.visits[-1]
                taken = self._at - visit.entered_at
                run.stage_times.setdefault(stage, taken)
                still = visit.still_after(visit.entered_at, self._at)
                run.open_times.setdefault(stage, taken - still)
                run.stage_contexts.setdefault(stage, self._arms[Arm.TREATMENT].contexts)

    def _finished(self) -> VirtualRollout:
        run, phase = self._run, self._rollout.phase
        run.at, run.looks = self._at, self._looks
        run.stage = self._rollout.visits[-1].stage if self._rollout.visits else 0
        if isinstance(phase, Completed):
            run.ended, run.reason = "completed", ""
        elif isinstance(phase, RolledBack):
            run.ended, run.reason = "rolled_back", phase.reason
        elif isinstance(phase, Paused):
            run.ended = "undecided" if phase.reason is HoldReason.MAX_BAKE else "paused"
            run.reason = phase.reason.value
            if phase.reason is HoldReason.MAX_BAKE and self._judgement is not None:
                run.lacking = _lacking(self._judgement)
        return run


def _lacking(judgement: Judgement) -> tuple[str, ...]:
    """Return what kept a gate from passing."""
    gaps = tuple(dict.fromkeys(gap.kind.value for gap in judgement.gaps))
    return gaps or tuple(
        metric.metric for metric in judgement.metrics if metric.safe is not Verdict.PASS
    )
