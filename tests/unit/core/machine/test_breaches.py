"""Breached guardrails: each one acts or is told, also during the pause that another one caused."""

from __future__ import annotations

from controller.core.effects import PublishDecision, RaiseAlert
from controller.core.events import EvidenceJudged
from controller.core.machine import decide
from controller.core.rollout import Paused, Rollout
from schemas.terms import AlertKind, CommandVerb, DecisionKind, OnBreach, PhaseName, Severity
from tests.builders import MINUTE, make_breach, make_command, make_report, make_rollout
from tests.unit.core.machine.states import SOON, after, judged

ERRORS = make_breach(on_breach=OnBreach.PAUSE)
LATENCY = make_breach(metric="latency_p99", on_breach=OnBreach.PAUSE)
WELL = make_report(e_value=0.5)
SLOW_NO_MORE = make_report(metric="latency_p99", e_value=0.5)


def both(*metrics: object) -> EvidenceJudged:
    """Return a judgement with these reports."""
    return judged(metrics=metrics)


def paused() -> Rollout:
    """Return a rollout that the error rate has paused."""
    return after(make_rollout(), both(ERRORS, SLOW_NO_MORE))


def alerts(rollout: Rollout, event: EvidenceJudged, at: object = SOON) -> list[RaiseAlert]:
    """Return the alerts that evidence leads to."""
    _, effects = decide(rollout, event, at)  # type: ignore[arg-type]
    return [each for each in effects if isinstance(each, RaiseAlert)]


def test_a_second_breach_during_the_pause_of_the_first_is_told_once() -> None:
    """Each guardrail has a page of its own, and the second one is in the audit log as well."""
    rollout = paused()
    assert rollout.told_breaches == {"error_rate"}
    second = both(ERRORS, LATENCY)
    told, effects = decide(rollout, second, SOON)
    assert told is not None
    decision, alert = effects
    assert isinstance(decision, PublishDecision)
    assert isinstance(alert, RaiseAlert)
    assert decision.kind is DecisionKind.HOLD
    assert "latency_p99" in decision.reason
    assert (alert.kind, alert.severity) == (AlertKind.BREACH, Severity.CRITICAL)
    assert alert.dedup_key == "new-checkout/start-1/1/breach/latency_p99"
    assert alert.judgement is second.judgement
    assert told.phase == rollout.phase
    assert told.told_breaches == {"error_rate", "latency_p99"}
    assert decide(told, second, SOON) == (told, ())


def test_two_breaches_at_once_are_named_by_one_pause() -> None:
    """What pauses is everything that was breached, not the first of it."""
    (alert,) = alerts(make_rollout(), both(ERRORS, LATENCY))
    assert alert.kind is AlertKind.PAUSED
    assert "guardrail error_rate" in alert.summary
    assert "guardrail latency_p99" in alert.summary
    rollout = after(make_rollout(), both(ERRORS, LATENCY))
    assert decide(rollout, both(ERRORS, LATENCY), SOON) == (rollout, ())


def test_the_end_of_a_breach_is_told_and_the_pause_stays() -> None:
    """Each one ends by itself, a minute after the last news at the earliest."""
    rollout = after(paused(), both(ERRORS, LATENCY))
    later = SOON + MINUTE
    ended = judged(metrics=(ERRORS, SLOW_NO_MORE), at=later)
    assert decide(rollout, judged(metrics=(ERRORS, SLOW_NO_MORE)), SOON) == (rollout, ())
    (alert,) = alerts(rollout, ended, later)
    assert (alert.kind, alert.severity) == (AlertKind.BREACH, Severity.INFO)
    assert alert.dedup_key == "new-checkout/start-1/1/breach/latency_p99"
    still = after(rollout, ended, later)
    assert still.told_breaches == {"error_rate"}
    assert still.phase == rollout.phase
    (again,) = alerts(still, judged(metrics=(ERRORS, LATENCY), at=later), later)
    assert again.severity is Severity.CRITICAL


def test_a_breach_on_the_edge_is_not_over() -> None:
    """An e-value just below its threshold may be above it again with the next event."""
    rollout, later = paused(), SOON + MINUTE
    edge = make_report(e_value=WELL.threshold / 2)
    assert decide(rollout, judged(metrics=(edge,), at=later), later) == (rollout, ())


def test_a_guardrail_that_rolls_back_acts_during_any_pause() -> None:
    """It is not told and left alone, whatever paused the rollout before."""
    harsh = make_breach(metric="latency_p99", on_breach=OnBreach.ROLL_BACK)
    assert after(paused(), both(ERRORS, harsh)).phase.name is PhaseName.ROLLED_BACK


def test_who_resumes_is_told_of_every_breach_again() -> None:
    """A resumed rollout pauses again, and nothing of the earlier pause is taken as known."""
    rollout = after(paused(), both(ERRORS, LATENCY))
    resumed = after(rollout, make_command(CommandVerb.RESUME, issued_at=SOON))
    assert resumed.told_breaches == frozenset()
    again = after(resumed, both(ERRORS, LATENCY))
    assert isinstance(again.phase, Paused)
    assert again.told_breaches == {"error_rate", "latency_p99"}
