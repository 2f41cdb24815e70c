"""Every scenario rehearsed without processes.

The real gate and the real state machine on drawn traffic, in simulated time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from controller.codec.plans import to_core_plan
from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.effects import AskAdvice, PublishDecision
from controller.core.events import (
    AdviceReceived,
    AdviceUnavailable,
    CommandReceived,
    Event,
    EvidenceJudged,
    Ticked,
)
from controller.core.evidence import ArmTotals, Evidence, PartitionProgress, VisitTotals, bucket_of
from controller.core.judging.gate import judge
from controller.core.judging.judgement import Advice
from controller.core.machine import decide
from controller.core.rollout import Rollout
from controller.demo.ending import ending_difference
from controller.demo.run import LONGEST_SECONDS
from controller.demo.scenarios import SCENARIOS, AdvisorPart, Scenario, Service, plan_of
from schemas.plan import PlanDocument
from schemas.terms import AdviceChoice, Arm, CommandVerb

START = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
TICK = timedelta(milliseconds=100)
REQUESTS_PER_SECOND = 3_000
OBJECTION = Advice(AdviceChoice.HOLD, 80, ("not today",), "stand-in", "0" * 64, 1)


@dataclass
class Rehearsal:
    """One scenario's course."""

    scenario: Scenario
    seed: int
    rollout: Rollout | None = None
    now: datetime = START
    decisions: list[PublishDecision] = field(default_factory=list)
    stage_seconds: list[float] = field(default_factory=list)

    def run(self) -> Rehearsal:
        """Play until nothing moves any more."""
        self._random = np.random.default_rng(self.seed)
        self._totals: dict[int, VisitTotals] = {}
        self._tests = SequentialTests()
        self._service, self._freshest = Service(), START
        self._silent_at: datetime | None = None
        plan = to_core_plan(plan_of(self.scenario))
        self._tell(CommandReceived("go", CommandVerb.START, "demo", "", START, plan=plan))
        while self._is_moving() and self.now - START < timedelta(seconds=2 * LONGEST_SECONDS):
            self.now += TICK
            self._serve()
            self._tell(Ticked())
            if self._is_moving():
                self._look()
        return self

    def _is_moving(self) -> bool:
        return self.rollout is not None and self.rollout.phase.name in ("baking", "gating")

    def _tell(self, event: Event) -> None:
        before = self.rollout
        self.rollout, effects = decide(self.rollout, event, self.now)
        self.decisions += [effect for effect in effects if isinstance(effect, PublishDecision)]
        if (
            before is not None
            and self.rollout is not None
            and before.percent != self.rollout.percent
        ):
            self.stage_seconds.append((self.now - before.visits[-1].entered_at).total_seconds())
        for effect in effects:
            if isinstance(effect, AskAdvice):
                asked = (effect.gate_id, effect.round)
                is_objecting = self.scenario.advisor is AdvisorPart.OBJECTS
                self._tell(
                    AdviceReceived(*asked, OBJECTION)
                    if is_objecting
                    else AdviceUnavailable(*asked, "too late")
                )

    def _serve(self) -> None:
        """Draw a tick's requests, as `apps.py` makes them one by one."""
        assert self.rollout is not None
        index = self.rollout.visit_index
        visit, fault = self.rollout.visits[index], self.scenario.fault
        if (
            self._silent_at is None
            and fault.silent_from_percent is not None
            and visit.percent >= fault.silent_from_percent
        ):
            self._silent_at = self.now + timedelta(seconds=fault.silent_after_seconds)
        if self.now < visit.counts_from or (
            self._silent_at is not None and self.now >= self._silent_at
        ):
            return
        self._freshest = self.now
        requests = int(self._random.poisson(REQUESTS_PER_SECOND * TICK.total_seconds()))
        treated = int(self._random.binomial(requests, visit.percent / 100))
        known = self._totals.get(index, VisitTotals())
        self._totals[index] = VisitTotals(
            known.treatment + self._arm(Arm.TREATMENT, treated, visit.percent),
            known.control + self._arm(Arm.CONTROL, requests - treated, visit.percent),
        )

    def _arm(self, arm: Arm, requests: int, percent: float) -> ArmTotals:
        service, fault, draw = self._service, self.scenario.fault, self._random
        rate, lost, slow = service.error_rate, 0.0, 0.0
        if arm is Arm.TREATMENT:
            rate *= fault.error_factor if percent >= fault.errors_from_percent else 1.0
            lost, slow = fault.lost_exposures, fault.slow_share
        latency = service.median_ms * np.exp(service.spread * draw.standard_normal(requests))
        latency += fault.slow_ms * (draw.random(requests) < slow)
        errors = int(draw.binomial(requests, rate))
        histogram: Mapping[int, int] = Counter(bucket_of(float(value)) for value in latency)
        exposures = requests - int(draw.binomial(requests, lost))
        return ArmTotals(
            evaluations=exposures,
            exposures=exposures,
            outcomes=requests,
            errors=errors,
            at_risk=requests,
            first_errors=errors,
            latency=histogram,
        )

    def _look(self) -> None:
        assert self.rollout is not None
        partitions = tuple(
            PartitionProgress(f"{topic}/0", 1, 1, self._freshest, self.now)
            for topic in ("evaluations", "outcomes")
        )
        evidence = Evidence(self.now, dict(self._totals), partitions, len(partitions))
        judgement, self._tests = judge(self.rollout, evidence, self._tests, self.now)
        self._tell(EvidenceJudged(judgement))

    @property
    def seconds(self) -> float:
        return (self.now - START).total_seconds()


# : Enough to catch a plan that no longer fits, few enough for every run; 100 seeds of each were
# played when it was written.
SEEDS = range(3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_each_scenario_ends_as_named_by_the_real_engine(name: str, seed: int) -> None:
    """Gate and state machine bring every scenario to its end within the demo's time."""
    rehearsal = Rehearsal(SCENARIOS[name], seed).run()
    assert rehearsal.rollout is not None
    decisions = [{"reason": decision.reason} for decision in rehearsal.decisions]
    assert ending_difference(SCENARIOS[name].ending, rehearsal.rollout, decisions) is None
    assert rehearsal.seconds < 30


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_plan_of_the_demo_relaxes_the_engine(name: str) -> None:
    """Alpha and beta of every scenario's plan are the contract's defaults."""
    plan = plan_of(SCENARIOS[name])
    defaults = PlanDocument.model_fields
    assert (plan.alpha, plan.beta) == (defaults["alpha"].default, defaults["beta"].default)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_plan_is_the_same_but_for_whom_it_asks(name: str) -> None:
    """Scenarios differ in what apps and advisor do, not in what they are judged by.

    Only where the traffic stops, the clock ends a gate.
    """
    healthy, plan = plan_of(SCENARIOS["healthy"]), plan_of(SCENARIOS[name])
    silent_from = SCENARIOS[name].fault.silent_from_percent
    longest = {"max_bake": healthy.stages[0].max_bake}
    stages = [
        stage.model_copy(update=longest)
        if silent_from is not None and stage.percent >= silent_from
        else stage
        for stage in plan.stages
    ]
    alike = plan.model_copy(update={"advisor": healthy.advisor, "stages": stages})
    assert alike == healthy


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "silence"])
def test_a_busy_machine_has_a_minute_for_each_gate(name: str) -> None:
    """It counts and decides late; the clock must not end what evidence decides."""
    minute = timedelta(seconds=60)
    stages = plan_of(SCENARIOS[name]).stages
    assert all(stage.max_bake is not None and stage.max_bake >= minute for stage in stages)


def test_an_ending_that_differs_is_told_apart() -> None:
    """A rollout that completed is no roll back.

    And one that rolled back in stage 1 did not do so in stage 3.
    """
    completed = Rehearsal(SCENARIOS["healthy"], 0).run()
    rolled_back = Rehearsal(SCENARIOS["errors"], 0).run()
    assert completed.rollout is not None
    assert rolled_back.rollout is not None
    said = [{"reason": rolled_back.decisions[-1].reason}]
    assert (
        ending_difference(SCENARIOS["errors"].ending, completed.rollout, said)
        == "it ended completed, not rolled back"
    )
    assert (
        ending_difference(SCENARIOS["late"].ending, rolled_back.rollout, said)
        == "it ended in stage 1, not in stage 3"
    )
    assert "does not name latency_p99" in (
        ending_difference(SCENARIOS["latency"].ending, rolled_back.rollout, said) or ""
    )
