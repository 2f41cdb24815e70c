"""Each rule that is checked in production is seen to find the mistake it is there for.

And to keep quiet without one.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from controller.core.effects import AnswerCommand, PublishDecision
from controller.core.events import Event, EvidenceJudged, Ticked
from controller.core.invariants import RULES, Step, violations
from controller.core.judging.judgement import Gap
from controller.core.machine import decide
from controller.core.plan import AdvisorPolicy, Window
from controller.core.rollout import AdviceRound, Baking, Gating, RolledBack, Rollout
from schemas.terms import (
    AdviceChoice,
    AdvisorMode,
    Arm,
    CommandStatus,
    CommandVerb,
    HealthGap,
    OnBreach,
)
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_advice,
    make_breach,
    make_command,
    make_judgement,
    make_plan,
    make_rollout,
    make_stages,
)

GATE = Gating(0, "gate-1", T0 + 11 * MINUTE, T0 + HOUR)
NOW = T0 + 12 * MINUTE
OFFICE = Window(frozenset(range(1, 6)), 540, 480, "UTC")  # T0 is a Monday, 9:00
PASSES = EvidenceJudged(make_judgement(at=NOW))
ADVISED = AdvisorPolicy(
    mode=AdvisorMode.CAN_HOLD, deadline=timedelta(seconds=30), hold_rounds=2, hold_for=5 * MINUTE
)


def check(step: Step, **overrides: Any) -> list[str]:
    """Return which rules a step breaks."""
    limits: dict[str, Any] = {"outbox": 0, "outbox_limit": 200, "bake_left_seconds": None}
    return [one.rule for one in violations(step, **{**limits, **overrides})]


def step_of(before: Rollout | None, event: Event, now: datetime = NOW) -> Step:
    """Return what the machine decides."""
    after, effects = decide(before, event, now)
    return Step(before, event, now, after, effects)


def advance(**overrides: Any) -> Step:
    """Return a gate that passes."""
    return step_of(make_rollout(phase=GATE, **overrides), PASSES)


def raised(step: Step, **changes: Any) -> Step:
    """Return the same decision with another rollout after it."""
    assert step.after is not None
    return replace(step, after=replace(step.after, **changes))


def test_what_the_machine_decides_breaks_none() -> None:
    """A start, a pass, a tick, a roll back."""
    started = step_of(None, make_command(CommandVerb.START, issued_at=NOW, plan=make_plan()))
    assert check(started) == []
    assert check(advance()) == []
    assert check(step_of(make_rollout(), Ticked(), T0 + HOUR), bake_left_seconds=-2940.0) == []
    assert check(step_of(make_rollout(), make_command(CommandVerb.ROLL_BACK))) == []
    assert check(step_of(make_rollout(phase=GATE), Ticked(), T0 + 2 * HOUR)) == []


def test_i1_a_raise_without_a_decision() -> None:
    """Nothing goes up without a decision in the audit log."""
    passed = advance()
    assert check(replace(passed, effects=())) == ["I1"]


def test_i1_a_raise_by_time_alone() -> None:
    """A tick in a bake raises nothing, whatever it says it decided."""
    passed = advance()
    assert "I1" in check(replace(passed, event=Ticked()))


def test_i1_a_raise_by_a_command_that_may_not() -> None:
    """A pause, or a command that the decision does not name, raises nothing."""
    promoted = step_of(make_rollout(), make_command(CommandVerb.PROMOTE, issued_at=NOW))
    assert check(promoted) == []
    assert "I1" in check(replace(promoted, event=make_command(CommandVerb.PAUSE)))
    assert "I1" in check(
        replace(promoted, event=make_command(CommandVerb.PROMOTE, command_id="other"))
    )


def test_i1_two_stages_by_one_gate() -> None:
    """One gate leads one stage up."""
    plan = make_plan(stages=make_stages(10, 20, 50, 100))
    passed = step_of(make_rollout(plan=plan, phase=GATE), PASSES)
    assert check(raised(passed, phase=Baking(2, T0 + 2 * HOUR), percent=50.0)) == ["I1"]


def test_i1_another_gate_is_named() -> None:
    """The decision names the gate that was asked."""
    passed = advance()
    effects = tuple(
        replace(one, gate_id="gate-0") if isinstance(one, PublishDecision) else one
        for one in passed.effects
    )
    assert check(replace(passed, effects=effects)) == ["I1"]


def test_i1_more_contexts_at_a_lower_percentage_is_a_raise() -> None:
    """From 50 % of a small audience to 10 % of everybody: the later stage counts."""
    passed = advance()
    assert check(replace(raised(passed, percent=5.0), effects=())) == ["I1"]


@pytest.mark.parametrize("on_breach", OnBreach)
def test_i3_a_breach_that_changes_nothing(on_breach: OnBreach) -> None:
    """A breach that leaves the flag where it is breaks the rule.

    What the machine does about it does not.
    """
    before = make_rollout(phase=Baking(1, T0 + 2 * HOUR))
    seen = make_judgement(at=T0 + 61 * MINUTE, visit=1, metrics=(make_breach(on_breach=on_breach),))
    event = EvidenceJudged(seen)
    assert check(Step(before, event, seen.at, before, ())) == ["I3"]
    assert check(step_of(before, event, seen.at)) == []


def test_i4_a_roll_back_that_is_undone() -> None:
    """0 % stays until another rollout is started."""
    ended = replace(make_rollout(), phase=RolledBack(T0, "because"), percent=0.0, revision=2)
    late = Step(ended, PASSES, NOW, replace(make_rollout(), revision=3), ())
    assert "I4" in check(late)
    other = Step(ended, PASSES, NOW, replace(make_rollout(), revision=3, rollout_id="start-2"), ())
    assert "I4" in check(other)
    again = step_of(
        ended,
        make_command(CommandVerb.START, plan=make_plan(), command_id="start-2", issued_at=NOW),
    )
    assert check(again) == []


def test_i4_a_pass_with_too_few_contexts() -> None:
    """Both arms need the stage's minimum sample; a blind plan asks for none.

    At 100 % there is one arm.
    """
    few = make_judgement(at=NOW, exposures={Arm.TREATMENT: 1000, Arm.CONTROL: 99})
    event = EvidenceJudged(few)
    assert check(step_of(make_rollout(phase=GATE), event)) == ["I4'"]
    blind = make_plan(blind=True, guardrails=())
    assert check(step_of(make_rollout(plan=blind, phase=GATE), event)) == []
    whole = make_plan(stages=make_stages(100))
    assert check(step_of(make_rollout(plan=whole, phase=GATE), event)) == []


def test_i5_answers() -> None:
    """A command without an answer, with two, with another's, and a rejected one that acts."""
    lowered = step_of(make_rollout(), make_command(CommandVerb.ROLL_BACK))
    silent = tuple(one for one in lowered.effects if not isinstance(one, AnswerCommand))
    (answer,) = (one for one in lowered.effects if isinstance(one, AnswerCommand))
    assert check(replace(lowered, effects=silent)) == ["I5"]
    assert check(replace(lowered, effects=(*lowered.effects, answer))) == ["I5"]
    assert check(replace(lowered, effects=(*silent, replace(answer, command_id="other")))) == ["I5"]
    assert check(
        replace(lowered, effects=(*silent, replace(answer, status=CommandStatus.REJECTED)))
    ) == ["I5"]
    passed = advance()
    assert check(replace(passed, effects=(*passed.effects, answer))) == ["I5"]


def test_i6_advice_that_raises() -> None:
    """`proceed` lets a gate pass whose evidence does not: the same gate without advice stays."""
    plan = make_plan(advisor=ADVISED)
    closed = AdviceRound(1, T0 + HOUR, make_advice(AdviceChoice.PROCEED), is_closed=True)
    before = make_rollout(plan=plan, phase=replace(GATE, advice=closed))
    assert check(step_of(before, PASSES)) == []
    unsafe = EvidenceJudged(make_judgement(at=NOW, gaps=(Gap(HealthGap.STALE, "old"),)))
    heeded = replace(step_of(before, PASSES), event=unsafe)
    assert check(heeded) == ["I6", "I17"]


def test_i7_revisions() -> None:
    """A transition without a new revision, and one that skips."""
    passed = advance()
    assert passed.before is not None
    assert "I7" in check(raised(passed, revision=passed.before.revision))
    assert check(raised(passed, revision=passed.before.revision + 2)) == ["I7"]
    asked = step_of(make_rollout(plan=make_plan(advisor=ADVISED), phase=GATE), PASSES)
    assert asked.after is not asked.before  # the question to the model is no transition
    assert check(asked) == []


def test_i14_a_full_outbox() -> None:
    """Nothing is raised, everything may be lowered."""
    assert check(advance(), outbox=200) == ["I14"]
    assert check(step_of(make_rollout(), make_command(CommandVerb.ROLL_BACK)), outbox=500) == []


def test_i16_a_gate_that_does_not_close() -> None:
    """Past its deadline a gate is over; a freeze keeps it, a command does not have to close it."""
    before = make_rollout(phase=GATE)
    held = replace(before, revision=2, updated_at=T0 + 2 * HOUR)
    assert check(Step(before, Ticked(), T0 + 2 * HOUR, held, ())) == ["I16"]
    assert check(Step(before, Ticked(), T0 + 30 * MINUTE, held, ())) == []
    frozen = step_of(before, make_command(CommandVerb.FREEZE), T0 + 2 * HOUR)
    assert check(frozen) == []


@pytest.mark.parametrize("kind", list(HealthGap))
def test_i17_an_advance_with_a_gap(kind: HealthGap) -> None:
    """Whatever is missing, nothing advances on it."""
    seen = make_judgement(at=NOW, gaps=(Gap(kind, "a gap"),))
    assert check(replace(advance(), event=EvidenceJudged(seen))) == ["I17"]


def test_i19_a_bake_cut_short() -> None:
    """The gate opens only when this process has seen the bake go by."""
    opened = step_of(make_rollout(), Ticked(), T0 + HOUR)
    assert check(opened, bake_left_seconds=30.0) == ["I19"]
    assert check(opened, bake_left_seconds=0.5) == []
    (violation,) = violations(opened, outbox=0, outbox_limit=200, bake_left_seconds=30.0)
    assert violation.forbids


def test_i25_nobody_is_served_outside_active_windows() -> None:
    """A closed rollout serves 0 %, and opens within a window only; neither is saved."""
    plan = make_plan(active=(OFFICE,))
    evening, morning = T0 + 8 * HOUR, T0 + 24 * HOUR
    closing = step_of(make_rollout(plan=plan), Ticked(), evening)
    opening = step_of(closing.after, Ticked(), morning)
    assert check(closing) == check(opening) == []
    served = raised(closing, percent=10.0)
    at_night = raised(opening, updated_at=evening + HOUR)
    for step in (served, at_night):
        (violation,) = violations(step, outbox=0, outbox_limit=200, bake_left_seconds=None)
        assert (violation.rule, violation.forbids) == ("I25", True)


def test_what_raises_is_forbidden_and_what_lowers_is_not() -> None:
    """A broken rule keeps a raise from being saved, and never a roll back."""
    passed = replace(advance(), effects=())
    (raising,) = violations(passed, outbox=0, outbox_limit=200, bake_left_seconds=None)
    assert raising.forbids
    lowered = replace(step_of(make_rollout(), make_command(CommandVerb.ROLL_BACK)), effects=())
    (lowering,) = violations(lowered, outbox=0, outbox_limit=200, bake_left_seconds=None)
    assert not lowering.forbids


def test_every_rule_has_a_label() -> None:
    """The counter knows each rule by its name."""
    assert len(set(RULES)) == len(RULES) == 12
