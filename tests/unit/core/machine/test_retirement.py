"""Retiring a flag: what is refused, what is announced, and what comes after."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.core.effects import AnswerCommand, PublishDecision, RaiseAlert
from controller.core.machine import decide, next_deadline
from controller.core.rollout import Completed, Retired
from schemas.terms import (
    AlertKind,
    CommandStatus,
    CommandVerb,
    DecisionKind,
    PhaseName,
    Severity,
)
from tests.builders import HOUR, T0, make_command, make_plan, make_rollout, make_stages
from tests.unit.core.machine.states import SOON, in_phase, judged

COMPLETED = make_rollout(
    plan=make_plan(stages=make_stages(100)), phase=Completed(T0), percent=100.0, revision=7
)


def test_a_flag_that_serves_nothing_is_retired_by_one_command() -> None:
    """0 % is decided, nothing moves it any more, and the audit log and an alert say it."""
    after, effects = decide(in_phase(PhaseName.ABORTED), make_command(CommandVerb.RETIRE), SOON)
    assert after is not None
    assert isinstance(after.phase, Retired)
    assert after.has_ended
    assert after.percent == 0
    assert next_deadline(after) is None
    decision, alert, answer = effects
    assert isinstance(decision, PublishDecision)
    assert decision.kind is DecisionKind.RETIRE
    assert isinstance(alert, RaiseAlert)
    assert (alert.kind, alert.severity) == (AlertKind.RETIRED, Severity.INFO)
    assert isinstance(answer, AnswerCommand)
    assert answer.status is CommandStatus.ACCEPTED


def test_a_flag_that_serves_treatment_is_retired_only_by_who_has_seen_it() -> None:
    """The refusal says what apps would get; with the revision it is done, with a warning."""
    after, (refusal,) = decide(COMPLETED, make_command(CommandVerb.RETIRE), SOON)
    assert after is COMPLETED
    assert isinstance(refusal, AnswerCommand)
    assert refusal.status is CommandStatus.REJECTED
    assert "it serves 100 %" in refusal.reason
    assert "the default of their own code" in refusal.reason
    command = replace(make_command(CommandVerb.RETIRE), expected_revision=7)
    after, effects = decide(COMPLETED, command, SOON)
    assert after is not None
    assert isinstance(after.phase, Retired)
    alert = effects[1]
    assert isinstance(alert, RaiseAlert)
    assert alert.severity is Severity.WARNING
    assert "no longer 100 %" in alert.summary


def test_a_flag_that_its_plan_still_switches_is_not_retired() -> None:
    """Its active windows and its end are a service that somebody relies on."""
    timed = replace(COMPLETED, plan=replace(COMPLETED.plan, ends_at=SOON + HOUR))
    command = replace(make_command(CommandVerb.RETIRE), expected_revision=7)
    after, (refusal,) = decide(timed, command, SOON)
    assert after is timed
    assert isinstance(refusal, AnswerCommand)
    assert "still switches it on and off" in refusal.reason


@pytest.mark.parametrize("phase", [PhaseName.BAKING, PhaseName.PAUSED, PhaseName.SCHEDULED])
def test_a_rollout_under_way_is_not_retired(phase: PhaseName) -> None:
    """The refusal says what comes first."""
    _, (refusal,) = decide(in_phase(phase), make_command(CommandVerb.RETIRE), SOON)
    assert isinstance(refusal, AnswerCommand)
    assert "let it complete, abort it or roll it back first" in refusal.reason


def test_a_retired_flag_is_moved_by_no_evidence() -> None:
    """It serves nothing that could be harmful."""
    retired = in_phase(PhaseName.RETIRED)
    assert decide(retired, judged(), SOON) == (retired, ())


def test_the_next_rollout_goes_on_from_the_last_revision() -> None:
    """Also when nothing of the flag is stored any more: ids and documents are never used twice."""
    command = replace(make_command(CommandVerb.START, plan=make_plan()), last_revision=41)
    after, _ = decide(None, command, T0)
    assert after is not None
    assert after.revision == 42
