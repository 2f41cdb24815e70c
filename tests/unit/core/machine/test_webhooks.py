"""Gate webhooks: which replies count, and that none of them ever raises anything by itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from controller.core.analysis.sequential_tests import SequentialTests
from controller.core.effects import AskAdvice, PublishDecision, RaiseAlert
from controller.core.events import EvidenceJudged
from controller.core.evidence import WebhookReply
from controller.core.invariants import Step, violations
from controller.core.judging.gate import judge
from controller.core.judging.judgement import Gap, Judgement
from controller.core.machine import decide
from controller.core.machine.obstacles import asks_webhooks
from controller.core.plan import GateWebhook
from controller.core.rollout import AwaitingApproval, Baking, Paused, RolledBack, Rollout
from schemas.terms import (
    WEBHOOK_GAPS,
    AlertKind,
    Approval,
    CommandVerb,
    GateAnswer,
    HealthGap,
    HoldReason,
    OnBreach,
    Verdict,
)
from tests.builders import (
    HOUR,
    T0,
    make_breach,
    make_command,
    make_evidence,
    make_judgement,
    make_plan,
    make_report,
    make_rollout,
    make_stages,
)
from tests.unit.core.machine.states import ADVISED, FROZEN, GATE, SOON, in_phase

TESTS = GateWebhook("load-test")
AUDIT = GateWebhook("audit", on_fail=OnBreach.ROLL_BACK)


def at_gate(*webhooks: GateWebhook, **fields: Any) -> Rollout:
    """Return a rollout at the gate of 10 %."""
    plan = make_plan(gate_webhooks=webhooks or (TESTS,), **fields.pop("plan", {}))
    return make_rollout(plan=plan, phase=GATE, updated_at=T0, **fields)


def reply(answer: GateAnswer | HealthGap, endpoint: str = "load-test", **fields: Any) -> Any:
    """Return a reply about the gate of `at_gate`."""
    gap = answer if isinstance(answer, HealthGap) else None
    said = None if isinstance(answer, HealthGap) else answer
    return WebhookReply(
        **{
            "endpoint": endpoint,
            "gate_id": GATE.gate_id,
            "plan_version": make_plan().version,
            "at": SOON,
            "answer": said,
            "gap": gap,
            "words": "because",
            **fields,
        }
    )


def replied(*replies: WebhookReply, **fields: Any) -> EvidenceJudged:
    """Return evidence that passes, with these replies and the gaps that they are."""
    gaps = tuple(Gap(one.gap, str(one)) for one in replies if one.gap is not None)
    return EvidenceJudged(make_judgement(at=SOON, replies=replies, gaps=gaps, **fields))


def test_the_pass_of_every_webhook_lets_the_gate_pass() -> None:
    """And of no fewer."""
    rollout = at_gate(TESTS, AUDIT)
    one = replied(reply(GateAnswer.PASS))
    assert decide(rollout, one, SOON) == (rollout, ())
    both = replied(reply(GateAnswer.PASS), reply(GateAnswer.PASS, "audit"))
    after, _ = decide(rollout, both, SOON)
    assert after is not None
    assert (after.percent, type(after.phase)) == (50, Baking)


def test_silence_passes_no_gate_and_ends_in_a_pause() -> None:
    """At `max_bake`, with the name of who was silent."""
    rollout = at_gate()
    assert decide(rollout, replied(), SOON) == (rollout, ())
    after, effects = decide(rollout, replied(), GATE.until)
    assert after is not None
    assert isinstance(after.phase, Paused)
    assert "no `pass` yet from load-test" in str(effects)


@pytest.mark.parametrize("gap", WEBHOOK_GAPS)
def test_no_answer_is_a_gap_that_holds(gap: HealthGap) -> None:
    """Each kind, whatever the other webhook says; people are told what to do about it."""
    rollout = at_gate(TESTS, AUDIT)
    after, effects = decide(rollout, replied(reply(gap), reply(GateAnswer.PASS, "audit")), SOON)
    assert after is not None
    assert (after.percent, after.hold) == (10, HoldReason.HEALTH)
    (alert,) = [one for one in effects if isinstance(one, RaiseAlert)]
    assert alert.kind is AlertKind.HEALTH_GAP
    assert f"{gap}: load-test: because" in alert.summary


def test_hold_holds_and_is_told_once() -> None:
    """With the reason that the webhook gives."""
    rollout = at_gate()
    after, effects = decide(rollout, replied(reply(GateAnswer.HOLD)), SOON)
    assert after is not None
    assert (after.percent, after.hold) == (10, HoldReason.WEBHOOK)
    (decision,) = [one for one in effects if isinstance(one, PublishDecision)]
    assert "load-test answers hold: because" in decision.reason
    (alert,) = [one for one in effects if isinstance(one, RaiseAlert)]
    assert alert.kind is AlertKind.WEBHOOK_HOLDS
    assert decide(after, replied(reply(GateAnswer.HOLD)), SOON) == (after, ())


@pytest.mark.parametrize(
    ("on_fail", "stage", "expected"),
    [
        (OnBreach.PAUSE, 0, (10, Paused)),
        (OnBreach.ROLL_BACK, 0, (0, RolledBack)),
        (OnBreach.STEP_BACK, 0, (0, RolledBack)),
        (OnBreach.PAUSE, 1, (50, Paused)),
        (OnBreach.STEP_BACK, 1, (10, Baking)),
    ],
)
def test_fail_does_what_the_plan_says(on_fail: OnBreach, stage: int, expected: Any) -> None:
    """By default a person decides; below the first stage is only 0 %."""
    webhook = replace(TESTS, on_fail=on_fail)
    rollout = at_gate(webhook)
    if stage:
        plan = make_plan(stages=make_stages(10, 50), gate_webhooks=(webhook,))
        rollout = replace(in_phase(replace(GATE).name), plan=plan)
    event = replied(reply(GateAnswer.FAIL), visit=stage)
    after, effects = decide(rollout, event, SOON)
    assert after is not None
    assert (after.percent, type(after.phase)) == expected
    assert "gate webhook load-test answers fail: because" in str(effects)
    assert GateWebhook("x").on_fail is OnBreach.PAUSE


def test_fail_acts_whatever_else_stands_in_the_way() -> None:
    """Another webhook without an answer, a gap, a freeze, evidence that is not enough yet."""
    rollout = at_gate(TESTS, AUDIT, freeze=FROZEN)
    event = EvidenceJudged(
        make_judgement(
            at=SOON,
            metrics=(make_report(safe=Verdict.INCONCLUSIVE),),
            replies=(
                reply(HealthGap.WEBHOOK_NO_ANSWER),
                reply(GateAnswer.FAIL, "audit"),
            ),
            gaps=(Gap(HealthGap.WEBHOOK_NO_ANSWER, "it hangs"),),
        )
    )
    after, _ = decide(rollout, event, SOON)
    assert after is not None
    assert isinstance(after.phase, RolledBack)


def test_the_harshest_of_several_fails_acts() -> None:
    """In whatever order they are in the plan."""
    event = replied(reply(GateAnswer.FAIL), reply(GateAnswer.FAIL, "audit"))
    after, _ = decide(at_gate(TESTS, AUDIT), event, SOON)
    assert after is not None
    assert isinstance(after.phase, RolledBack)


def test_a_breach_comes_before_every_answer() -> None:
    """Neither `pass` nor `hold` delays or softens it."""
    for answer in GateAnswer:
        event = replied(reply(answer), metrics=(make_breach(),))
        after, effects = decide(at_gate(), event, SOON)
        assert after is not None
        assert isinstance(after.phase, RolledBack)
        assert "guardrail" in str(effects)


def test_pass_leaves_every_other_obstacle_where_it_is() -> None:
    """Gaps, statistics, a freeze, the model and people are asked all the same."""
    passed = reply(GateAnswer.PASS)
    stale = EvidenceJudged(
        make_judgement(at=SOON, replies=(passed,), gaps=(Gap(HealthGap.STALE, "old"),))
    )
    weak = replied(passed, metrics=(make_report(safe=Verdict.INCONCLUSIVE),))
    for rollout, event in (
        (at_gate(), stale),
        (at_gate(), weak),
        (at_gate(freeze=FROZEN), replied(passed)),
    ):
        after, _ = decide(rollout, event, SOON)
        assert after is not None
        assert after.percent == 10
    after, effects = decide(at_gate(plan={"advisor": ADVISED}), replied(passed), SOON)
    assert after is not None
    assert after.percent == 10
    assert isinstance(effects[0], AskAdvice)
    approval = {"stages": make_stages(10, 50, approval=Approval.REQUIRED)}
    after, _ = decide(at_gate(plan=approval), replied(passed), SOON)
    assert after is not None
    assert isinstance(after.phase, AwaitingApproval)


def judged(rollout: Rollout, *replies: WebhookReply) -> Judgement:
    """Return the judgement of good evidence with these replies, as they came."""
    evidence = make_evidence(replies={one.endpoint: one for one in replies})
    judgement, _ = judge(rollout, evidence, SequentialTests(), T0 + HOUR)
    return judgement


def test_only_a_fresh_reply_about_this_very_gate_counts() -> None:
    """One about another gate, or from minutes ago, is as good as none."""
    rollout, now = at_gate(), T0 + HOUR
    good = reply(GateAnswer.PASS, at=now)
    assert judged(rollout, good).replies == (good,)
    assert judged(rollout, replace(good, gate_id="gate-0")).replies == ()
    assert judged(rollout, replace(good, plan_version="another")).replies == ()
    old = replace(good, at=now - 3 * TESTS.every - timedelta(seconds=1))
    assert judged(rollout, old).replies == ()
    assert judged(rollout, replace(good, endpoint="another")).replies == ()
    assert judged(make_rollout(plan=rollout.plan), good).replies == ()  # it bakes


def test_no_pass_outlives_the_plan_that_it_was_about() -> None:
    """`apply` may change what the endpoint was asked about, while the same gate stays open."""
    rollout, now = at_gate(), T0 + HOUR
    good = reply(GateAnswer.PASS, at=now)
    other = make_plan(
        version="fedcba9876543210", gate_webhooks=(TESTS,), stages=make_stages(10, 100)
    )
    fields = {"plan": other, "expected_revision": rollout.revision, "issued_at": SOON}
    applied, _ = decide(rollout, make_command(CommandVerb.APPLY, **fields), SOON)
    assert applied is not None
    assert (applied.phase, applied.plan) == (rollout.phase, other)
    assert judged(applied, good).replies == ()
    frozen = replace(rollout, revision=rollout.revision + 2)  # frozen and thawed: the same plan
    assert judged(frozen, good).replies == (good,)


def test_trouble_is_a_gap_also_of_a_blind_plan() -> None:
    """A blind plan asks its webhooks, although it judges no event."""
    trouble = reply(HealthGap.WEBHOOK_HTTP_ERROR, at=T0 + HOUR)
    for fields in ({}, {"blind": True, "guardrails": ()}):
        gaps = judged(at_gate(plan=fields), trouble).gaps
        assert HealthGap.WEBHOOK_HTTP_ERROR in {gap.kind for gap in gaps}


def test_it_is_asked_only_where_everything_else_passes() -> None:
    """Its own gaps do not keep it from being asked again."""
    passes = make_judgement(at=SOON)
    trouble = replace(passes, gaps=(Gap(HealthGap.WEBHOOK_NO_ANSWER, "it hangs"),))
    assert asks_webhooks(at_gate(), passes, SOON)
    assert asks_webhooks(at_gate(), trouble, SOON)
    assert not asks_webhooks(at_gate(), replace(passes, gaps=(Gap(HealthGap.STALE, ""),)), SOON)
    assert not asks_webhooks(at_gate(), replace(passes, at=T0 - HOUR), SOON)
    assert not asks_webhooks(at_gate(), replace(passes, visit=5), SOON)
    assert not asks_webhooks(at_gate(freeze=FROZEN), passes, SOON)
    assert not asks_webhooks(at_gate(), None, SOON)
    weak = replace(passes, metrics=(make_report(safe=Verdict.INCONCLUSIVE),))
    assert not asks_webhooks(at_gate(), weak, SOON)
    assert not asks_webhooks(make_rollout(plan=at_gate().plan), passes, SOON)
    assert not asks_webhooks(make_rollout(phase=GATE), passes, SOON)


@pytest.mark.parametrize(
    "replies",
    [
        (),
        (reply(GateAnswer.HOLD),),
        (reply(GateAnswer.FAIL),),
        (reply(GateAnswer.PASS, gate_id="gate-0"),),
        (reply(GateAnswer.PASS, plan_version="another"),),
        (reply(GateAnswer.PASS, "another"),),
    ],
)
def test_an_advance_without_its_pass_would_break_the_controllers_own_rule(replies: Any) -> None:
    """I17 is checked before each save, whatever the state machine has decided."""
    rollout = at_gate()
    after, effects = decide(rollout, replied(reply(GateAnswer.PASS)), SOON)
    for said, rules in ((replies, ["I17"]), ((reply(GateAnswer.PASS),), [])):
        step = Step(rollout, replied(*said), SOON, after, effects)
        found = violations(step, outbox=0, outbox_limit=200, bake_left_seconds=None)
        assert [one.rule for one in found] == rules
        assert all(one.forbids for one in found)
