"""What `rolloutctl watch` makes of the events of one transition, and how its lines look."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from controller.cli import event_view, rendering
from controller.cli.news import TOGETHER_WITHIN_SECONDS, Transitions
from controller.cli.operator_client import Event, read_event
from controller.codec.alerts import alert_event
from controller.codec.decisions import decision_event, to_judgement_record
from controller.codec.rollouts import state_event
from controller.core.effects import PublishDecision, RaiseAlert
from controller.core.rollout import RolledBack
from controller.reporting.evidence_words import evidence_line
from schemas.terms import AlertKind, DecisionKind, Severity
from tests.builders import T0, make_breach, make_judgement, make_report, make_rollout

REASON = "guardrail error_rate: too many"
ENDED = make_rollout(phase=RolledBack(T0, REASON), revision=7)


def event_of(value: bytes) -> Event:
    """Return an event as it was published."""
    event = read_event(value)
    assert event is not None
    return event


STATE = event_of(state_event(ENDED, "new-checkout/7/0", T0))
DECISION = event_of(
    decision_event(
        PublishDecision(DecisionKind.ROLL_BACK, REASON, 10, 0, 0, "rolloutd"),
        ENDED,
        "new-checkout/7/1",
        T0,
    )
)
ALERT = event_of(
    alert_event(
        RaiseAlert(
            AlertKind.ROLLED_BACK,
            Severity.CRITICAL,
            f"new-checkout rolled back from 10 % to 0 %: {REASON}",
            "find the cause; then start a new rollout",
            "key",
        ),
        ENDED,
        "new-checkout/7/2",
        T0,
    )
)


def lines_of(*events: Event) -> list[str]:
    """Return what is shown of the events of one transition."""
    return [line.plain for line in event_view.transition_lines(events, T0)]


def test_one_transition_is_told_once_in_any_order() -> None:
    """The decision comes first, the alert adds what to do, and the state adds nothing.

    The alert says what it is about. Only the long reason stands once.
    """
    for events in ((STATE, DECISION, ALERT), (ALERT, STATE, DECISION), (DECISION, ALERT, STATE)):
        lines = lines_of(*events)
        assert [line.split()[0] for line in lines] == ["decision", "alert"]
        assert REASON in lines[0]
        assert lines[1].endswith(
            "critical  new-checkout rolled back from 10 % to 0 %. To do: find the cause; then "
            "start a new rollout"
        )


@pytest.mark.parametrize("reason", ["", "rolled", "too many"])
def test_an_alert_keeps_its_summary_beside_another_or_no_reason(reason: str) -> None:
    """A decision without a reason, or with a word of the summary, takes nothing from the alert."""
    published = {**DECISION, "data": {**DECISION["data"], "reason": reason}}
    decision, alert = lines_of(published, ALERT)
    assert decision.startswith("decision")
    assert "new-checkout rolled back from 10 % to 0 %" in alert
    assert "To do: find the cause" in alert


def test_what_has_no_decision_is_told_by_its_state_or_alert() -> None:
    """A gate that opens is no decision, and neither is an alert of a stopped worker."""
    assert [line.split()[0] for line in lines_of(STATE)] == ["state"]
    (line,) = lines_of(ALERT)
    assert REASON in line


def test_events_of_a_transition_wait_for_each_other() -> None:
    """Events of one revision are given out together, and those of another apart from them."""
    news = Transitions()
    news.add(STATE, 10.0)
    news.add(DECISION, 10.3)
    later = {**STATE, "data": {**STATE["data"], "revision": 8}}
    news.add(later, 10.4)
    assert news.complete(10.0 + TOGETHER_WITHIN_SECONDS - 0.01) == []
    assert news.complete(10.0 + TOGETHER_WITHIN_SECONDS) == [[STATE, DECISION]]
    assert news.complete(99.0) == [[later]]
    assert news.complete(99.0) == []


def test_a_long_line_hangs_under_its_words_on_a_terminal_only() -> None:
    """The time stays alone at the left for a reader; a pipe gets one line."""
    line = Text("09:00:00 UTC  " + "word " * 40)
    terminal, pipe = io.StringIO(), io.StringIO()
    rendering.show_line(Console(file=terminal, force_terminal=True, width=60), line, hang=14)
    rendering.show_line(rendering.make_console(pipe, is_colored=False), line, hang=14)
    first, *rest = terminal.getvalue().splitlines()
    assert first.startswith("09:00:00 UTC  word")
    assert rest
    assert all(other.startswith(" " * 14 + "word") for other in rest)
    assert len(pipe.getvalue().splitlines()) == 1


def test_evidence_is_one_line_with_both_answers() -> None:
    """Users of both arms, and per metric both estimates, harm and safety."""
    judgement = make_judgement(metrics=(make_report(), make_breach(metric="latency_p99")))
    line = evidence_line(to_judgement_record(judgement))
    assert line.startswith("users 1,000 against 9,000; error_rate ")
    assert "latency_p99 0 ms against 0 ms, worse? YES, proven safe? NO" in line


def test_a_refused_command_is_watched_and_one_that_was_done_is_not_told_twice() -> None:
    """What was done has its decision; a refusal has nothing else that tells of it."""
    data = {
        "command_id": "c1", "flag": "new-checkout", "verb": "approve", "status": "rejected",
        "reason": "stale: revision 24 was expected", "revision": 25, "at": "2026-01-05T09:00:00Z",
    }  # fmt: skip
    refused = {"id": "c1", "type": "io.rolloutd.result.v1", "data": data}
    (line,) = lines_of(refused)
    assert line.startswith("refused ")
    assert "rejected  approve new-checkout: stale: revision 24 was expected" in line
    assert not event_view.is_done(refused)
    assert event_view.is_done({**refused, "data": {**data, "status": "accepted"}})
    place = {**data, "flag": None, "verb": None, "command_id": "rollout.commands/0/7"}
    (line,) = lines_of({**refused, "data": place})
    assert "rejected  rollout.commands/0/7: stale" in line
