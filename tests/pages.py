"""A replica with rollouts in every state that the page shows, over a store in memory.

For tests of the page without a broker: in this process, or on a real socket for a browser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from starlette.applications import Starlette

from controller.adapters.memory import ManualClock, MemoryReports
from controller.codec.alerts import alert_event
from controller.codec.decisions import decision_event
from controller.codec.reports import live_report, point_to_bytes, report_to_json
from controller.core.effects import PublishDecision, RaiseAlert
from controller.core.judging.judgement import Advice, Gap, Harm, Judgement, MetricReport
from controller.core.plan import AdvisorPolicy, Plan, Stage
from controller.core.rollout import (
    Aborted,
    AwaitingApproval,
    Baking,
    Completed,
    Gating,
    Paused,
    Phase,
    RolledBack,
    Rollout,
    Scheduled,
)
from controller.health import Faults, Health
from controller.ports import CourseKey, PlaneStanding
from controller.reporting.situation import Situation
from controller.running.report_reader import ReportReader
from controller.telemetry import Metrics
from controller.web.admission import Admission
from controller.web.app import make_app
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from schemas.decision import JudgementRecord
from schemas.terms import (
    AdviceChoice,
    AlertKind,
    Approval,
    Arm,
    DecisionKind,
    HealthGap,
    HoldReason,
    OnBreach,
    Severity,
    Verdict,
)
from tests.builders import (
    make_advice,
    make_arm_summary,
    make_guardrail,
    make_plan,
    make_report,
    make_stage,
    make_visit,
)

MINUTE: Final = timedelta(minutes=1)


class PageWorld:
    """A replica that shows rollouts which other replicas run."""

    def __init__(
        self,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        admit: Callable[[FlagBoard], Admission] | None = None,
        **surface: Any,
    ) -> None:
        """`surface` are further arguments of `make_app`; `admit` makes who may sign in."""
        self.now = now
        self.store = MemoryReports()
        self.clock = ManualClock()
        self.board = FlagBoard(generation=Generation.V3, monotonic=lambda: 1.0, now=now)
        self.faults = Faults(now)
        self.app: Starlette = make_app(
            self.board,
            Health(required=[]),
            Metrics(version="1"),
            describe=lambda _: b"{}",
            reports=ReportReader(lambda _: None, self.store, self.clock),
            now=now,
            faults=self.faults,
            admission=None if admit is None else admit(self.board),
            **surface,
        )

    def show(self, *rollouts: Rollout) -> None:
        """Let the replica know rollouts, and that it knows all."""
        for rollout in rollouts:
            self.board.update(rollout)
        self.board.trust()

    async def judged(self, rollout: Rollout, judgement: Judgement, *planes: PlaneStanding) -> None:
        """Keep a rollout's newest evidence."""
        report = live_report(rollout, judgement, planes, at=self.now(), replica="test/1")
        await self.store.write(rollout.flag_key, report_to_json(report))
        self.clock.advance(timedelta(seconds=2))  # what was read before is read again

    async def course(self, rollout: Rollout, judgements: Sequence[Judgement]) -> None:
        """Keep the course of the present stage."""
        percent = rollout.visits[-1].percent
        points = {int(one.at.timestamp()): point_to_bytes(percent, one) for one in judgements}
        report = await self.store.read(rollout.flag_key) or b""
        key = CourseKey(rollout.rollout_id, rollout.visit_index)
        await self.store.write(rollout.flag_key, report, key, points)

    async def decided(self, rollout: Rollout, at: datetime, **fields: Any) -> None:
        """Publish a decision about a rollout."""
        effect = PublishDecision(
            **{
                "kind": DecisionKind.HOLD,
                "reason": "not enough evidence yet",
                "from_percent": rollout.percent,
                "to_percent": rollout.percent,
                "stage": rollout.stage_index,
                "issuer": "rolloutd",
                **fields,
            }
        )
        event = decision_event(effect, rollout, f"{rollout.flag_key}/{at.timestamp()}/d", at)
        await self.store.append_news(rollout.flag_key, "decisions", [event])

    async def alerted(self, rollout: Rollout, at: datetime, **fields: Any) -> None:
        """Publish an alert about a rollout."""
        effect = RaiseAlert(
            **{
                "kind": AlertKind.ROLLED_BACK,
                "severity": Severity.CRITICAL,
                "summary": "rolled back",
                "action": "find the cause",
                "dedup_key": rollout.flag_key,
                **fields,
            }
        )
        event = alert_event(effect, rollout, f"{rollout.flag_key}/{at.timestamp()}/a", at)
        await self.store.append_news(rollout.flag_key, "alerts", [event])


def plan_of(flag_key: str, owner: str, **overrides: Any) -> Plan:
    """Return a plan of five stages with three guardrails; the fourth stage needs approval."""
    stages = [_stage(percent) for percent in (1, 10, 25, 50, 100)]
    stages[2] = replace(stages[2], approval=Approval.REQUIRED)
    fields: dict[str, Any] = {
        "name": f"{flag_key}-canary",
        "flag_key": flag_key,
        "owner": owner,
        "stages": tuple(stages),
        "guardrails": (
            make_guardrail(limit=0.05, margin=0.1),
            make_guardrail(metric="latency_p99", limit=800.0, margin=None),
            make_guardrail(metric="conversion:checkout", limit=None, margin=0.1),
        ),
        "advisor": AdvisorPolicy(),
    }
    return make_plan(**{**fields, **overrides})


def _stage(percent: float) -> Stage:
    return make_stage(percent=float(percent), bake=10 * MINUTE, settle=timedelta(seconds=10))


def rollout_in(
    phase: Callable[[datetime], Phase], flag_key: str, stage: int, at: datetime, **overrides: Any
) -> Rollout:
    """Return a rollout that entered `stage` four minutes before `at`; earlier ones took 11 each.

    `phase` makes its phase from the time at which the stage was entered.
    """
    plan = overrides.pop("plan", None) or plan_of(flag_key, overrides.pop("owner", "payments"))
    entered = [at - 4 * MINUTE - 11 * MINUTE * (stage - index) for index in range(stage + 1)]
    made = phase(entered[-1])
    has_ended = isinstance(made, Completed | RolledBack | Aborted)
    visits = tuple(
        make_visit(
            stage=index,
            percent=plan.stages[index].percent,
            entered_at=begun,
            counts_from=begun + plan.stages[index].settle,
            left_at=entered[index + 1] if index < stage else at - MINUTE if has_ended else None,
        )
        for index, begun in enumerate(entered)
    )
    back = isinstance(made, RolledBack | Aborted)
    fields: dict[str, Any] = {
        "flag_key": flag_key,
        "rollout_id": f"start-of-{flag_key}",
        "revision": 11,
        "plan": plan,
        "phase": made,
        "percent": 0.0 if back else plan.stages[stage].percent,
        "visits": () if isinstance(made, Scheduled) else visits,
        "started_at": entered[0],
        "updated_at": at - MINUTE if has_ended else entered[-1],
    }
    return Rollout(**{**fields, **overrides})


def phases_at(at: datetime) -> dict[str, Phase]:
    """Return one phase of each kind; those with a stage are in the second."""
    soon = at + 5 * MINUTE
    return {
        "scheduled": Scheduled(soon),
        "baking": Baking(1, soon),
        "gating": Gating(1, "gate-1", at, soon),
        "awaiting": AwaitingApproval(1, "gate-1", at, HoldReason.APPROVAL),
        "paused": Paused(at, HoldReason.OPERATOR, Baking(1, soon)),
        "completed": Completed(at),
        "rolled_back": RolledBack(at, "error_rate 4 %"),
        "aborted": Aborted(at, "changed our mind"),
    }


def situation_in(phase: Phase, at: datetime, judgement: JudgementRecord | None = None) -> Situation:
    """Return a rollout in a phase."""
    return Situation(rollout_in(lambda _: phase, "new-checkout", 1, at), (), at, judgement)


def judgement_at(
    at: datetime, users: int, visit: int = 1, *, is_harmful: bool = False, **overrides: Any
) -> Judgement:
    """Return what `users` of the new version show: nothing wrong, or an error rate that is."""
    share = 0.041 if is_harmful else 0.0105
    width = 1.6 / math.sqrt(max(users, 1))
    new = make_arm_summary(
        trials=users * 3,
        events=round(users * share),
        estimate=share,
        low=max(share - width * 0.2, 0.0),
        high=share + width * 0.3,
    )
    old = make_arm_summary(
        trials=users * 27, events=round(users * 0.09), estimate=0.0093, low=0.008, high=0.011
    )
    part = min(users / 2_500, 1.0)
    errors = make_report(
        arms={Arm.TREATMENT: new, Arm.CONTROL: old},
        harm=Verdict.FAIL if is_harmful else Verdict.INCONCLUSIVE,
        safe=Verdict.FAIL if is_harmful else Verdict.PASS if part >= 1 else Verdict.INCONCLUSIVE,
        e_value=4e4 if is_harmful else 0.6,
        threshold=300.0,
        e_value_safe=0.01 if is_harmful else 20.0**part,
        threshold_safe=20.0,
        gate_margin=0.5,
        ratio=share / 0.0093,
        ratio_low=max(share / 0.0093 - width * 10, 0.05),
        ratio_high=share / 0.0093 + width * 16,
        reason=f"error_rate {100 * share:.2f} % against 0.93 % of {users * 3:,} user actions",
    )
    metrics = (errors, _latency(users), _conversion(users, part))
    return Judgement(
        **{
            "at": at,
            "visit": visit,
            "gaps": (),
            "metrics": metrics,
            "harm": Harm(users + 150, round(users * share), round(users * (share - 0.0093))),
            "exposures": {Arm.TREATMENT: users, Arm.CONTROL: 9 * users},
            "observed_share": 0.1,
            "offsets": {},
            "batches": 60,
            **overrides,
        }
    )


def _latency(users: int) -> MetricReport:
    new = make_arm_summary(trials=users, estimate=204.0, low=190.0, high=231.0)
    old = make_arm_summary(trials=9 * users, estimate=208.0, low=203.0, high=214.0)
    return make_report(
        metric="latency_p99",
        arms={Arm.TREATMENT: new, Arm.CONTROL: old},
        limit=800.0,
        margin=None,
        reason="p99 204 ms against 208 ms",
    )


def _conversion(users: int, part: float) -> MetricReport:
    new = make_arm_summary(trials=users, estimate=0.0312, low=0.027, high=0.036)
    old = make_arm_summary(trials=9 * users, estimate=0.0305, low=0.029, high=0.032)
    return make_report(
        metric="conversion:checkout",
        arms={Arm.TREATMENT: new, Arm.CONTROL: old},
        limit=None,
        on_breach=OnBreach.PAUSE,
        margin=0.1,
        gate_margin=0.5,
        ratio=0.98,
        ratio_low=0.85,
        ratio_high=1.13,
        e_value_safe=20.0 ** (0.7 * part),
        threshold_safe=20.0,
        safe=Verdict.INCONCLUSIVE,
        reason="conversion 3.12 % against 3.05 %",
    )


async def filled(world: PageWorld) -> PageWorld:
    """Fill a replica with one rollout in each state that people tell apart."""
    at = world.now()
    breached = rollout_in(
        lambda _: RolledBack(at - MINUTE, "error_rate 4.1 % against 0.93 %: worse than allowed"),
        "new-checkout",
        1,
        at,
    )
    asking = rollout_in(
        lambda since: AwaitingApproval(2, "gate-3", at - MINUTE, HoldReason.APPROVAL),
        "search-v3",
        2,
        at,
        owner="search",
        hold=HoldReason.APPROVAL,
    )
    baking = rollout_in(
        lambda since: Baking(1, at + 6 * MINUTE), "pricing-api", 1, at, owner="pricing"
    )
    paused = rollout_in(
        lambda since: Paused(at - MINUTE, HoldReason.OPERATOR, Gating(3, "g", since, at + MINUTE)),
        "recommendations",
        3,
        at,
        owner="ml",
        hold=HoldReason.OPERATOR,
    )
    blind = rollout_in(lambda since: Baking(0, at + 6 * MINUTE), "eu-tax", 0, at, owner="tax")
    waiting = rollout_in(
        lambda _: Scheduled(at + timedelta(hours=3)),
        "summer-sale",
        0,
        at,
        owner="shop",
        percent=0.0,
    )
    done = rollout_in(lambda _: Completed(at - MINUTE), "dark-mode", 4, at, owner="web")
    world.show(breached, asking, baking, paused, blind, waiting, done)
    planes = (
        PlaneStanding("ofrep", True, 10.0, 10.0, None, None, at),
        PlaneStanding("unleash", False, 10.0, 25.0, "serves 25 %, decided is 10 %", at, at),
    )
    await world.judged(baking, judgement_at(at, 1_548), *planes)
    await world.course(
        baking, [judgement_at(at - timedelta(seconds=2 * (110 - n)), 14 * n) for n in range(1, 111)]
    )
    await world.judged(breached, judgement_at(at - MINUTE, 900, is_harmful=True), planes[0])
    await world.course(
        breached,
        [
            judgement_at(at - MINUTE - timedelta(seconds=2 * (60 - n)), 15 * n, is_harmful=n > 30)
            for n in range(1, 61)
        ],
    )
    await world.judged(asking, judgement_at(at, 4_900, visit=2), planes[0])
    gap = Gap(HealthGap.NO_OUTCOMES, "no outcomes from the new version for 4 min")
    await world.judged(blind, judgement_at(at, 40, visit=0, gaps=(gap,)))
    await _news(world, at, breached, asking, baking)
    return world


async def _news(
    world: PageWorld, at: datetime, breached: Rollout, asking: Rollout, baking: Rollout
) -> None:
    """Publish what was decided and alerted."""
    await world.decided(
        baking,
        at - 15 * MINUTE,
        kind=DecisionKind.START,
        reason="",
        from_percent=0.0,
        to_percent=1.0,
        issuer="ada@example.org",
    )
    await world.decided(
        baking,
        at - 4 * MINUTE,
        kind=DecisionKind.ADVANCE,
        reason="every guardrail passes",
        from_percent=1.0,
        to_percent=10.0,
    )
    await world.decided(
        breached,
        at - MINUTE,
        kind=DecisionKind.ROLL_BACK,
        reason="error_rate 4.1 % against 0.93 %: worse than allowed",
        from_percent=10.0,
        to_percent=0.0,
        judgement=judgement_at(at - MINUTE, 900, is_harmful=True),
    )
    await world.alerted(
        breached,
        at - MINUTE,
        summary="new-checkout was rolled back from 10 % to 0 %",
        action="find the cause, fix it, then restart the rollout",
    )
    advice: Advice = make_advice(AdviceChoice.PROCEED, reasons=("error rates are alike",))
    await world.decided(
        asking,
        at - MINUTE,
        reason="approval is needed",
        gate_id="gate-3",
        advice=advice,
        judgement=judgement_at(at - MINUTE, 4_800, visit=2),
    )
