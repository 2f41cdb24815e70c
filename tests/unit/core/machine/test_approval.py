"""A request to a person stays as long as what it says is true, and no longer."""

from __future__ import annotations

import pytest

from controller.core.analysis.sequential_tests import GapTime
from controller.core.effects import AnswerCommand
from controller.core.events import EvidenceJudged
from controller.core.judging.judgement import Gap
from controller.core.machine import decide
from controller.core.rollout import Gating, Rollout
from schemas.terms import CommandStatus, CommandVerb, HealthGap, PhaseName, Verdict
from tests.builders import MINUTE, T0, make_command, make_report
from tests.unit.core.machine.states import after, in_phase, judged

LATER = T0 + 10 * MINUTE


def awaiting() -> Rollout:
    """Return a rollout that asks for approval since `T0`, with five minutes of grace."""
    return in_phase(PhaseName.AWAITING_APPROVAL)


def gap(kind: HealthGap, seconds: float) -> EvidenceJudged:
    """Return evidence that has had a gap for so long."""
    gaps, times = (Gap(kind, "for a test"),), {kind: GapTime(seconds)}
    return judged(gaps=gaps, gap_times=times, at=LATER, visit=awaiting().visit_index)


def test_a_gap_of_seconds_does_not_withdraw_a_request() -> None:
    """An app restarts, a partition changes hands: the person is not asked a second time."""
    rollout = awaiting()
    assert decide(rollout, gap(HealthGap.STALE, 3), LATER) == (rollout, ())


def test_a_gap_that_lasts_withdraws_a_request() -> None:
    """After the plan's grace time what the person was told is not true any more."""
    assert isinstance(after(awaiting(), gap(HealthGap.STALE, 300), LATER).phase, Gating)


@pytest.mark.parametrize(
    "kind", [HealthGap.TAINTED, HealthGap.REPEATED_OUTCOMES, HealthGap.BELOW_MIN_SAMPLE]
)
def test_what_time_does_not_close_withdraws_at_once(kind: HealthGap) -> None:
    """Waiting for it would only leave a wrong request standing."""
    assert isinstance(after(awaiting(), gap(kind, 0), LATER).phase, Gating)


def test_statistics_that_no_longer_pass_withdraw_at_once() -> None:
    """Grace is for gaps: a regression of a signal is evidence."""
    metrics = (make_report(safe=Verdict.INCONCLUSIVE),)
    evidence = judged(metrics=metrics, at=LATER, visit=awaiting().visit_index)
    assert isinstance(after(awaiting(), evidence, LATER).phase, Gating)


def test_nobody_approves_during_a_gap() -> None:
    """A request outlives a short gap, and raising in the middle of it would be raising blindly."""
    rollout = awaiting()
    command = make_command(
        CommandVerb.APPROVE,
        issued_at=LATER,
        expected_revision=rollout.revision,
        gaps=("stale: nothing was counted for 61 s",),
    )
    still, (answer,) = decide(rollout, command, LATER)
    assert still is rollout
    assert isinstance(answer, AnswerCommand)
    assert answer.status is CommandStatus.REJECTED
    assert "nothing was counted for 61 s" in answer.reason
    assert "approve once it can, or promote" in answer.reason
