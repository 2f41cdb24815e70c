"""The scenarios of the demo: one plan, and for each what the apps do and how it must end.

The statistics are the daemon's own, at the default alpha and beta. Two things make a rollout of
weeks fit into half a minute, and both stand in this file. Stages bake for two or three seconds,
because the apps serve thousands of requests a second. And the first gate, where treatment has few
of them, only has to exclude a release that is several times as bad as control.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from controller.plans import load_plan
from schemas.plan import AdvisorDocument, PlanDocument
from schemas.terms import AdvisorMode, HealthGap, HoldReason, PhaseName

FLAG_KEY = "new-checkout"

#: The gate at 1 % has some 30 treatment requests a second. With the engine's own margins (at most
#: twice as bad) it would take 20 to 40 s; to exclude four times as many errors and eight times as
#: many slow requests takes 4 to 7. From 10 % on it is 1.75 times the errors and twice the slow
#: requests, where the engine's margins would be 1.5 falling to 1.25: 2 to 4 s in place of 4 to 12.
#: At 100 % there is no control to compare with, so there the limits are judged.
_PLAN = f"""
name: demo
flag: {FLAG_KEY}
description: the new checkout, in half a minute
owner: the demo
stages:
  - {{percent: 1, bake: 3s, settle: 500ms, min_sample: 50, max_bake: 60s}}
  - {{percent: 10, bake: 3s, settle: 500ms, min_sample: 200, max_bake: 60s}}
  - {{percent: 25, bake: 2s, settle: 500ms, min_sample: 500, max_bake: 60s}}
  - {{percent: 50, bake: 2s, settle: 500ms, min_sample: 1000, max_bake: 60s}}
  - {{percent: 100, bake: 1500ms, settle: 500ms, min_sample: 1000, max_bake: 60s}}
guardrails:
  - {{metric: error_rate, compare: {{margin: 10%, gate_margin: 300%}}, to_percent: 9}}
  - metric: error_rate
    compare: {{margin: 10%, gate_margin: 75%}}
    from_percent: 10
    to_percent: 99
  - {{metric: error_rate, limit: 12%, from_percent: 100}}
  - {{metric: latency_p99, compare: {{margin: 20%, gate_margin: 700%}}, to_percent: 9}}
  - metric: latency_p99
    compare: {{margin: 20%, gate_margin: 100%}}
    from_percent: 10
    to_percent: 99
  - {{metric: latency_p99, limit: 400ms, from_percent: 100}}
advisor: {{mode: "off"}}
fresh_within: 2s
"""

#: A machine that is busy counts and decides late. A gate that needs two seconds elsewhere gets a
#: minute, so that no scenario ends by the clock where its evidence would decide. Only where the
#: traffic stops, the clock is what ends it.
_MAX_BAKE_IN_SILENCE = timedelta(seconds=12)


class AdvisorPart(StrEnum):
    """What answers the daemon's questions in a scenario."""

    NOBODY = "nobody"  # unless --advisor-url names a server
    HANGS = "hangs"  # accepts the question and never answers
    OBJECTS = "objects"  # a script, not a model: answers hold to everything


@dataclass(frozen=True, slots=True)
class Service:
    """How requests end, the same for both variants unless a fault says otherwise."""

    error_rate: float = 0.05
    median_ms: float = 40.0
    spread: float = 0.35  # sigma of log latency: p99 is 2.3 times the median


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """What is wrong with treatment, or with how it is measured. The default is nothing."""

    error_factor: float = 1.0
    #: The errors begin when at least this share of contexts is served treatment.
    errors_from_percent: float = 0.0
    slow_share: float = 0.0  # of treatment requests that take the slow path,
    slow_ms: float = 350.0  # which takes this much longer
    lost_exposures: float = 0.0  # share of treatment's evaluation events that are never sent
    silent_from_percent: float | None = None  # once this share is served, all apps fall silent
    silent_after_seconds: float = 0.7  # this long after it


@dataclass(frozen=True, slots=True)
class Ending:
    """How a scenario must end."""

    phase: PhaseName
    percent: float | None = None  # None: of the stage it ended in, whichever that is
    stage: int | None = None  # the stage it ended in, 0 for the first; None: any
    reason: HoldReason | None = None  # of the pause or of the wait for a person
    names: tuple[str, ...] = ()  # one of these words stands in the last decisions' reasons

    def __str__(self) -> str:
        words = [self.phase.value.replace("_", " ")]
        if self.names:
            words.append("by " + " or ".join(self.names))
        if self.stage is not None:
            words.append(f"in stage {self.stage + 1}")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One course of events with its ending."""

    name: str
    title: str
    fault: InjectedFault
    ending: Ending
    advisor: AdvisorPart = AdvisorPart.NOBODY


_EVIDENCE_GAPS = tuple(
    gap.value for gap in (HealthGap.STALE, HealthGap.NO_TRAFFIC, HealthGap.NO_OUTCOMES)
)
_COMPLETED = Ending(PhaseName.COMPLETED, percent=100.0)

SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "healthy", "a release as good as the one it replaces", InjectedFault(), _COMPLETED
        ),
        Scenario(
            "errors",
            "the release fails three times as often",
            InjectedFault(error_factor=3.0),
            Ending(PhaseName.ROLLED_BACK, percent=0.0, names=("error_rate",)),
        ),
        Scenario(
            "latency",
            "1 in 20 requests takes a slow path; the median does not move",
            InjectedFault(slow_share=0.05),
            Ending(PhaseName.ROLLED_BACK, percent=0.0, names=("latency_p99",)),
        ),
        Scenario(
            "late",
            "fine up to 10 %; with a quarter of the users on it, it fails three times as often",
            InjectedFault(error_factor=3.0, errors_from_percent=25.0),
            Ending(PhaseName.ROLLED_BACK, percent=0.0, stage=2, names=("error_rate",)),
        ),
        Scenario(
            "srm",
            "the apps lose a quarter of the new version's exposure events",
            InjectedFault(lost_exposures=0.25),
            Ending(PhaseName.PAUSED, reason=HoldReason.HEALTH, names=(HealthGap.SRM.value,)),
        ),
        Scenario(
            "silence",
            "all traffic stops in the middle of the second stage",
            InjectedFault(silent_from_percent=10.0),
            Ending(PhaseName.PAUSED, percent=10.0, stage=1, names=_EVIDENCE_GAPS),
        ),
        Scenario(
            "advisor-down",
            "healthy, but the model accepts every question and never answers",
            InjectedFault(),
            _COMPLETED,
            AdvisorPart.HANGS,
        ),
        Scenario(
            "advisor-objects",
            "healthy, but the advisor (a scripted stand-in, no model) says hold",
            InjectedFault(),
            Ending(PhaseName.AWAITING_APPROVAL, percent=1.0, stage=0, reason=HoldReason.ADVISOR),
            AdvisorPart.OBJECTS,
        ),
    )
}


def plan_of(scenario: Scenario, *, has_real_advisor: bool = False) -> PlanDocument:
    """Return the plan of a scenario.

    A real model may hold twice, like the scripted one.
    """
    plan = load_plan(_PLAN, "the demo's plan")
    silent_from = scenario.fault.silent_from_percent
    if silent_from is not None:
        stages = [
            stage.model_copy(update={"max_bake": _MAX_BAKE_IN_SILENCE})
            if stage.percent >= silent_from
            else stage
            for stage in plan.stages
        ]
        plan = plan.model_copy(update={"stages": stages})
    if has_real_advisor:
        policy: Mapping[str, str | int] = {
            "mode": AdvisorMode.CAN_HOLD,
            "deadline": "20s",
            "hold_rounds": 2,
            "hold_for": "1s",
        }
    elif scenario.advisor is AdvisorPart.NOBODY:
        return plan
    else:
        policy = {
            "mode": AdvisorMode.CAN_HOLD,
            "deadline": "1s",
            "hold_rounds": 2,
            "hold_for": "1s",
        }
    return plan.model_copy(update={"advisor": AdvisorDocument.model_validate(dict(policy))})
