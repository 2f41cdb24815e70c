"""The smallest valid core values: a test states only what matters to it.

`make_plan(stages=...)` and so on take any field of the value as keyword. Times are relative to
`T0`, a Monday morning.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from controller.core.events import CommandReceived
from controller.core.evidence import ArmTotals, Evidence, PartitionProgress, VisitTotals
from controller.core.judging.judgement import Advice, Harm, Judgement, MetricReport
from controller.core.metrics.conversion import VirtualConversions
from controller.core.metrics.error_rate import VirtualErrors
from controller.core.metrics.kind import ArmSummary
from controller.core.metrics.latency import VirtualLatency
from controller.core.plan import AdvisorPolicy, ExternalMetric, Guardrail, Plan, Stage
from controller.core.rollout import Baking, Rollout
from controller.core.visits import Visit
from controller.planning.virtual_traffic import Effect, VirtualTraffic
from schemas.terms import AdviceChoice, AdvisorMode, Arm, CommandVerb, MetricRole, OnBreach, Verdict

T0 = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def make_stage(**overrides: Any) -> Stage:
    """Return a stage of 10 %: 1 min settle, 10 min bake, at most 1 h, 100 contexts per arm."""
    fields: dict[str, Any] = {
        "percent": 10.0,
        "bake": 10 * MINUTE,
        "settle": MINUTE,
        "min_sample": 100,
        "max_bake": HOUR,
    }
    return Stage(**{**fields, **overrides})


def make_stages(*percents: float, **overrides: Any) -> tuple[Stage, ...]:
    """Return one stage per percentage, alike otherwise."""
    return tuple(make_stage(percent=float(percent), **overrides) for percent in percents)


def make_guardrail(**overrides: Any) -> Guardrail:
    """Return an error rate that must stay below 5 % and may be 10 % above control's."""
    return Guardrail(**{"metric": "error_rate", "limit": 0.05, "margin": 0.1, **overrides})


def make_external(**overrides: Any) -> ExternalMetric:
    """Return a 95th percentile that must stay below 0.3; 3 of 5 looks are a breach."""
    fields: dict[str, Any] = {
        "name": "p95",
        "treatment": "t",
        "control": None,
        "newest": None,
        "limit": 0.3,
        "margin": None,
    }
    return ExternalMetric(**{**fields, **overrides})


def make_plan(**overrides: Any) -> Plan:
    """Return a plan of 10, 50 and 100 % with one guardrail and no advisor.

    A test that wants advice asks for it.
    """
    fields: dict[str, Any] = {
        "name": "three-steps",
        "version": "0123456789abcdef",
        "flag_key": "new-checkout",
        "treatment": "on",
        "control": "off",
        "stages": make_stages(10, 50, 100),
        "guardrails": (make_guardrail(),),
        "advisor": AdvisorPolicy(mode=AdvisorMode.OFF),
    }
    return Plan(**{**fields, **overrides})


def make_traffic(
    contexts_per_second: float,
    *,
    error_rate: float = 0.005,
    conversions: Mapping[str, float] = MappingProxyType({}),
    effects: tuple[Effect, ...] = (),
) -> VirtualTraffic:
    """Return virtual traffic whose latency has a p50 of 50 ms and a p99 of 150 ms."""
    control = (
        VirtualErrors(error_rate),
        VirtualConversions(conversions),
        VirtualLatency(50.0, 150.0),
    )
    return VirtualTraffic(contexts_per_second, control, effects)


def make_visit(**overrides: Any) -> Visit:
    """Return the visit of the first stage that began at `T0` and still lasts.

    It counts after a minute.
    """
    fields: dict[str, Any] = {
        "stage": 0,
        "percent": 10.0,
        "entered_at": T0,
        "counts_from": T0 + MINUTE,
    }
    return Visit(**{**fields, **overrides})


def make_rollout(**overrides: Any) -> Rollout:
    """Return a rollout that began at `T0` and bakes in its first stage.

    `percent` and `visits` follow the phase's stage when they are not given: one visit per stage up
    to it, an hour each.
    """
    plan: Plan = overrides.get("plan") or make_plan()
    phase = overrides.get("phase") or Baking(
        stage=0, until=T0 + plan.stages[0].settle + plan.stages[0].bake
    )
    inner = getattr(phase, "held", phase)
    stage: int | None = getattr(inner, "stage", None)
    visits = tuple(
        make_visit(
            stage=index,
            percent=plan.stages[index].percent,
            entered_at=T0 + index * HOUR,
            counts_from=T0 + index * HOUR + plan.stages[index].settle,
            left_at=None if index == stage else T0 + (index + 1) * HOUR,
        )
        for index in range(0 if stage is None else stage + 1)
    )
    fields: dict[str, Any] = {
        "flag_key": plan.flag_key,
        "rollout_id": "start-1",
        "revision": 1,
        "plan": plan,
        "phase": phase,
        "percent": 0.0 if stage is None else plan.stages[stage].percent,
        "visits": visits,
        "started_at": T0,
        "updated_at": visits[-1].entered_at if visits else T0,
    }
    return Rollout(**{**fields, **overrides, "phase": phase})


def make_command(verb: CommandVerb | str = CommandVerb.PAUSE, **overrides: Any) -> CommandReceived:
    """Return a command that was issued a second after `T0`."""
    fields: dict[str, Any] = {
        "command_id": "command-1",
        "verb": CommandVerb(verb),
        "issuer": "ada",
        "reason": "because",
        "issued_at": T0 + timedelta(seconds=1),
    }
    return CommandReceived(**{**fields, **overrides})


def make_arm_summary(**overrides: Any) -> ArmSummary:
    """Return an arm of 1000 trials with 10 errors."""
    return ArmSummary(
        **{"trials": 1000, "events": 10, "estimate": 0.01, "low": 0.004, "high": 0.02, **overrides}
    )


def make_report(**overrides: Any) -> MetricReport:
    """Return an error rate that is shown not worse: no harm found, safe."""
    fields: dict[str, Any] = {
        "metric": "error_rate",
        "role": MetricRole.GUARDRAIL,
        "on_breach": OnBreach.ROLL_BACK,
        "harm": Verdict.INCONCLUSIVE,
        "safe": Verdict.PASS,
        "arms": {Arm.TREATMENT: make_arm_summary(), Arm.CONTROL: make_arm_summary()},
        "e_value": 0.5,
        "threshold": 100.0,
        "e_value_safe": 40.0,
        "threshold_safe": 20.0,
        "margin": 0.1,
        "limit": 0.05,
        "reason": "error_rate 1.00 % against 1.00 %",
    }
    return MetricReport(**{**fields, **overrides})


def make_breach(**overrides: Any) -> MetricReport:
    """Return an error rate that is worse than allowed."""
    fields: dict[str, Any] = {
        "harm": Verdict.FAIL,
        "safe": Verdict.FAIL,
        "arms": {
            Arm.TREATMENT: make_arm_summary(events=100, estimate=0.1, low=0.08, high=0.13),
            Arm.CONTROL: make_arm_summary(),
        },
        "e_value": 1e6,
        "e_value_safe": 0.0,
        "reason": "error_rate 10.00 % against 1.00 %",
    }
    return make_report(**{**fields, **overrides})


def make_judgement(**overrides: Any) -> Judgement:
    """Return a judgement of the first visit, an hour after `T0`, that allows advancing."""
    fields: dict[str, Any] = {
        "at": T0 + HOUR,
        "visit": 0,
        "gaps": (),
        "metrics": (make_report(),),
        "harm": Harm(),
        "exposures": {Arm.TREATMENT: 1000, Arm.CONTROL: 9000},
        "observed_share": 0.1,
        "offsets": {"flag.evaluations/0": 10_000},
        "batches": 60,
    }
    return Judgement(**{**fields, **overrides})


def make_advice(choice: AdviceChoice | str = AdviceChoice.PROCEED, **overrides: Any) -> Advice:
    """Return the opinion of a small model."""
    fields: dict[str, Any] = {
        "choice": AdviceChoice(choice),
        "confidence": 80,
        "reasons": ("error rates are alike",),
        "model": "tiny",
        "prompt_sha256": "0" * 64,
        "latency_ms": 15,
    }
    return Advice(**{**fields, **overrides})


def make_totals(**overrides: Any) -> ArmTotals:
    """Return an arm of 1000 contexts.

    One request each, 10 of them failed, all of 50 ms (bucket 198).
    """
    fields: dict[str, Any] = {
        "evaluations": 1000,
        "exposures": 1000,
        "outcomes": 1000,
        "errors": 10,
        "at_risk": 1000,
        "first_errors": 10,
        "latency": {198: 1000},
    }
    return ArmTotals(**{**fields, **overrides})


def make_evidence(**overrides: Any) -> Evidence:
    """Return what the first visit counted until an hour after `T0`.

    Both arms alike, one partition, nothing late.
    """
    at = overrides.get("at", T0 + HOUR)
    fields: dict[str, Any] = {
        "at": at,
        "visits": {0: VisitTotals(treatment=make_totals(), control=make_totals())},
        "partitions": (make_progress(freshest=at, reported_at=at),),
        "expected_partitions": 1,
    }
    return Evidence(**{**fields, **overrides})


def make_progress(**overrides: Any) -> PartitionProgress:
    """Return a partition that is counted to its end."""
    fields: dict[str, Any] = {
        "topic_partition": "flag.evaluations/0",
        "next_offset": 10_000,
        "end_offset": 10_000,
        "freshest": T0 + HOUR,
        "reported_at": T0 + HOUR,
    }
    return PartitionProgress(**{**fields, **overrides})
