"""How it looks: narrow, without codes when piped.

And with nothing of others' words that could move a cursor.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from controller.cli import event_view, rendering, status_view
from controller.cli.operator_client import Event, as_decision, as_rollout, read_event
from controller.cli.status import situation_of
from controller.codec.alerts import alert_event
from controller.codec.decisions import decision_event, to_judgement_record
from controller.codec.rollouts import state_event, to_state
from controller.core.effects import PublishDecision, RaiseAlert
from controller.core.judging.judgement import Gap, Harm
from controller.core.rollout import (
    Aborted,
    AwaitingApproval,
    Completed,
    Gating,
    Phase,
    RolledBack,
    Scheduled,
)
from controller.reporting.evidence_words import harm_words
from controller.reporting.situation import Situation
from controller.reporting.views import summary
from schemas import result
from schemas.command import Command
from schemas.result import Result
from schemas.terms import (
    AlertKind,
    Arm,
    CommandStatus,
    CommandVerb,
    DecisionKind,
    HealthGap,
    HoldReason,
    Severity,
)
from tests.builders import (
    HOUR,
    MINUTE,
    T0,
    make_advice,
    make_breach,
    make_judgement,
    make_report,
    make_rollout,
)

HOSTILE = "\x1b[2J\x1b]0;owned\x07 line\nforged \u202e"
GATING = Gating(0, "gate-1", T0, T0 + HOUR)


def make_decision_event(**overrides: object) -> Event:
    """Return a hold with all its evidence, as published."""
    judgement = make_judgement(metrics=(make_report(), make_breach(metric="latency_p99")))
    fields = {
        "kind": DecisionKind.HOLD,
        "reason": "because",
        "judgement": judgement,
        "advice": make_advice(),
        **overrides,
    }
    effect = PublishDecision(from_percent=10, to_percent=10, stage=0, issuer="rolloutd", **fields)  # type: ignore[arg-type]
    event = read_event(decision_event(effect, make_rollout(phase=GATING), "new-checkout/1/1", T0))
    assert event is not None
    return event


def make_situation(**overrides: object) -> Situation:
    """Return a held gate with its decision, a minute after `T0`."""
    decision = as_decision(make_decision_event(reason=str(overrides.pop("reason", "because"))))
    assert decision is not None
    rollout = make_rollout(**{"phase": GATING, "hold": HoldReason.SIGNAL, **overrides})
    return Situation(rollout, (decision,), T0 + MINUTE)


def shown(one: Situation, width: int = 80) -> str:
    """Return the view of one flag as a pipe gets it."""
    stream = io.StringIO()
    console = rendering.make_console(stream, is_colored=True)
    console.width = width
    status_view.show_flag(console, one)
    return stream.getvalue()


@pytest.mark.parametrize("reason", ["because", "a reason of many words " * 20, "x" * 300])
def test_the_view_of_a_flag_fits_80_columns(reason: str) -> None:
    """Long reasons fold; nothing is cut off."""
    text = shown(make_situation(reason=reason))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert reason.replace(" ", "") in "".join(text.split())


def test_the_table_of_flags_fits_80_columns_and_keeps_long_keys_whole() -> None:
    """A key of 128 characters folds rather than loses letters."""
    key = "a" * 128
    stream = io.StringIO()
    console = rendering.make_console(stream, is_colored=False)
    console.width = 80
    one = make_situation(phase=AwaitingApproval(0, "gate-1", T0, HoldReason.APPROVAL), flag_key=key)
    console.print(status_view.status_table([one]))
    lines = stream.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert "".join(line.split(" ")[0] for line in lines[1:]).startswith(key)


def test_nothing_that_others_wrote_reaches_the_terminal_as_it_is() -> None:
    """Escape sequences, line breaks and direction marks in a reason print as `?` or spaces."""
    one = make_situation(reason=HOSTILE, phase=RolledBack(T0, HOSTILE), hold=None)
    stream = io.StringIO()
    console = rendering.make_console(stream, is_colored=False)
    event = make_decision_event(reason=HOSTILE)
    console.print(event_view.event_line(event, T0))
    console.print(status_view.status_table([one]))
    text = shown(one) + stream.getvalue()
    assert not any(char in text for char in "\x1b\x07\u202e")
    assert not any(line.startswith("forged") for line in text.splitlines())


def test_a_pipe_gets_no_codes_and_whole_lines() -> None:
    """What is piped is for grep: one event is one line."""
    stream = io.StringIO()
    console = rendering.make_console(stream, is_colored=True)
    decision = as_decision(make_decision_event(reason="long " * 60, judgement=None, advice=None))
    assert decision is not None
    event_view.show_decision(console, decision, T0)
    assert "\x1b" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1


def test_a_breach_is_told_in_the_view_of_the_flag() -> None:
    """What was found worse says YES in capitals, with both arms' numbers."""
    text = shown(make_situation())
    row = next(line for line in text.splitlines() if "latency_p99" in line)
    assert row.split() == ["latency_p99", "guardrail", "0", "ms", "0", "ms", "YES", "NO"]
    assert "because" in text


def test_evidence_says_how_old_it_is_and_a_daemon_s_newer_one_is_shown() -> None:
    """Numbers of an earlier decision are called that; a daemon has those of now."""
    breached = (make_breach(metric="latency_p99"),)
    event = make_decision_event(judgement=make_judgement(at=T0, metrics=breached))
    decision = as_decision(event)
    assert decision is not None
    one = replace(make_situation(), decisions=(decision,))
    assert "when last decided, 1m ago; --daemon URL, or ROLLOUTCTL_DAEMON" in shown(one, 200)
    newer = to_judgement_record(make_judgement(at=one.now - timedelta(seconds=3)))
    text = shown(replace(one, newest=newer), 200)
    assert "as of 3s ago" in text
    assert "when last decided" not in text
    assert "latency_p99" not in text  # it was in the older judgement only
    of_another_visit = newer.model_copy(update={"visit": 7})
    assert "when last decided" in shown(replace(one, newest=of_another_visit), 200)


def test_a_stage_without_a_decision_says_where_its_evidence_is() -> None:
    """During a long bake a daemon has the numbers, and nothing else has."""
    baking = Situation(make_rollout(), (), T0 + MINUTE)
    assert "no decision in this stage yet; --daemon URL" in shown(baking, 200)


def test_the_table_says_why_and_never_wraps_in_a_pipe() -> None:
    """The last column has the cause of an ended rollout and the hold of one under way."""
    stream = io.StringIO()
    ended = make_situation(phase=RolledBack(T0, "too many errors " * 20), hold=None)
    held = make_situation(flag_key="other")
    console = rendering.make_console(stream, is_colored=False)
    console.print(status_view.status_table([ended, held]))
    header, *rows = stream.getvalue().splitlines()
    assert header.split()[-1] == "REASON"
    assert len(rows) == 2
    assert "a signal regressed: because; waits for evidence" in rows[0]
    assert rows[1].count("rolled back") == 1
    assert "too many errors too many errors" in rows[1]


@pytest.mark.parametrize(
    ("failed", "excess", "words"),
    [
        (12, 2.9, "12 of their requests failed, about 3 of them beyond control's rate"),
        (1, 0.6, "1 of their requests failed, less than one of them beyond control's rate"),
        (1, 0.2, "1 of their requests failed, less than one of them beyond control's rate"),
        (7, 0.0, "7 of their requests failed, no more than at control's rate"),
        (0, 0.0, "none of their requests failed"),
    ],
)
def test_harm_is_told_in_whole_failures(failed: int, excess: float, words: str) -> None:
    """Nobody has had 0.9 failures, and 1 failure is not 1 more than at a rate that expects 0.4."""
    record = to_judgement_record(make_judgement(harm=Harm(1_000, failed, excess)))
    assert harm_words(record) == f"1,000 users had treatment; {words}"


def test_harm_without_a_control_is_not_compared_with_one() -> None:
    """At 100 % nobody is left in control, and the excess counts the stages before alone."""
    everybody = {Arm.TREATMENT: 9_000}
    for excess, words in ((0.0, "no more than at"), (4.0, "about 4 of them beyond")):
        judgement = make_judgement(harm=Harm(9_000, 70, excess), exposures=everybody)
        shown = harm_words(to_judgement_record(judgement))
        assert shown.endswith(f", {words} control's rate, where there was a control")


def test_gaps_are_told() -> None:
    """A gap in the evidence is named with its numbers."""
    judgement = make_judgement(gaps=(Gap(HealthGap.STALE, "the freshest event is 90 s old"),))
    decision = as_decision(make_decision_event(judgement=judgement))
    assert decision is not None
    text = shown(
        Situation(make_rollout(phase=GATING, hold=HoldReason.HEALTH), (decision,), T0 + MINUTE)
    )
    assert "stale: the freshest event is 90 s old" in text


@pytest.mark.parametrize("hold", [None, *HoldReason])
@pytest.mark.parametrize(
    "phase",
    [Scheduled(T0), GATING, Completed(T0), RolledBack(T0, "a test"), Aborted(T0, "a test")],
    ids=lambda phase: str(phase.name),
)
def test_machines_read_one_spelling_everywhere(phase: Phase, hold: HoldReason | None) -> None:
    """Phase, hold and answer are the same in the terminal's JSON, the API and the state topic."""
    one = Situation(make_rollout(phase=phase, hold=hold), (), T0)
    state = to_state(one.rollout).model_dump(mode="json")
    terminal = json.loads(rendering.to_json(status_view.status_document(one, state)))
    api = summary(one.rollout, T0).model_dump(mode="json")
    assert terminal["phase"] == api["phase"] == state["phase"]["name"]
    assert terminal["hold"] == api["hold"] == state["hold"]
    assert terminal["hold_words"] == api["hold_words"]
    assert terminal["safe_to_advance"] == api["safe_to_advance"]["answer"]
    assert " " not in terminal["safe_to_advance"]


def test_status_for_machines_holds_the_document_as_published() -> None:
    """The JSON form has the state document, the answer and the evidence, under stable names."""
    one = make_situation()
    state = to_state(one.rollout).model_dump(mode="json")
    document = json.loads(rendering.to_json(status_view.status_document(one, state)))
    assert list(document) == [
        "flag", "at", "safe_to_advance", "reason", "waits_for", "phase", "hold", "hold_words",
        "frozen", "closed", "overdue", "unwatched", "stage", "stages", "since",
        "state", "judgement", "advice", "advice_agreement",
    ]  # fmt: skip
    assert document["safe_to_advance"] == "no"
    assert document["state"] == state
    seen = make_judgement(metrics=(make_report(), make_breach(metric="latency_p99")))
    assert document["judgement"] == to_judgement_record(seen).model_dump(mode="json")
    assert document["advice"]["choice"] == "proceed"


def test_a_missing_result_is_unknown_to_machines_not_rejected() -> None:
    """Without a result nobody knows: the same names as of a result, and the status says so."""
    order = Command(
        id="one",
        flag="new-checkout",
        verb=CommandVerb.PAUSE,
        issuer="ada",
        issued_at=T0,
        reason="",
        expected_revision=None,
    )
    answer = Result(
        command_id="one",
        flag="new-checkout",
        verb=CommandVerb.PAUSE,
        status=CommandStatus.ACCEPTED,
        reason="done",
        revision=2,
        at=T0,
    )
    known, unknown = (
        event_view.result_document(order, answer),
        event_view.result_document(order, None),
    )
    assert list(known) == list(unknown)
    assert (known["status"], unknown["status"]) == ("accepted", "unknown")


def test_every_watched_event_is_one_line() -> None:
    """State, decisions and alerts each have a line that names the flag.

    What is something else has none.
    """
    rollout = make_rollout(phase=GATING)
    alert = RaiseAlert(
        AlertKind.PAUSED, Severity.WARNING, "new-checkout paused at 10 %", "look", "key"
    )
    values = [
        state_event(rollout, "new-checkout/1/0", T0),
        alert_event(alert, rollout, "new-checkout/1/1", T0),
    ]
    events = [make_decision_event(), *(read_event(value) for value in values)]
    for event in events:
        assert event is not None
        line = event_view.event_line(event, T0 + timedelta(seconds=1))
        assert line is not None
        assert "new-checkout" in line.plain
        assert "\n" not in line.plain
    assert event_view.event_line({"type": "org.example.other", "data": {}}, T0) is None


def test_a_decision_that_lost_its_evidence_is_still_shown() -> None:
    """A decision too large for Kafka was published without its largest members.

    The rest is told.
    """
    event = make_decision_event()
    del event["data"]["judgement"]
    decision = as_decision(event)
    assert decision is not None
    assert decision.reason == "because"


@pytest.mark.parametrize(
    "value", [None, b"", b"[]", b"{", b'{"type": 1}', b'{"type": "x", "data": 3}', b"[" * 100_000]
)
def test_what_is_no_event_is_passed_over(value: bytes | None) -> None:
    """A stray record on one of our topics hides nothing and breaks nothing."""
    assert read_event(value) is None
    assert as_rollout({"type": "io.rolloutd.state.v1", "data": {"schema_version": 99}}) is None


def test_advice_is_one_line_of_a_flags_view() -> None:
    """What the model advised so far stands in the view.

    And once the rollout has ended, how often it was right.
    """
    decision = as_decision(make_decision_event())
    assert decision is not None
    so_far = decision.model_copy(update={"gate_id": "g-1"})
    assert "advice so far proceed at 1 of 1 gate" in " ".join(
        shown(Situation(make_rollout(), (so_far,), T0)).split()
    )
    ended = so_far.model_copy(update={"kind": DecisionKind.COMPLETE, "issuer": "rolloutd"})
    assert "agreed with the outcome at 1 of 1 gate" in " ".join(
        shown(Situation(make_rollout(), (ended,), T0)).split()
    )


def test_a_refusal_before_this_rollout_is_not_its_own() -> None:
    """What was refused of an earlier rollout is not told of this one; who sent it is told."""
    now = datetime.now(UTC)
    rollout = make_rollout(started_at=now - MINUTE)

    def refused(at: datetime) -> Event:
        data = {"command_id": "c-1", "flag": "new-checkout", "verb": "resume", "revision": 1}
        data |= {"status": "rejected", "reason": "nothing is paused", "at": at.isoformat()}
        return {"id": "c-1", "type": result.TYPE, "data": data | {"issuer": "ada"}}

    assert situation_of(rollout, results=[refused(now - 2 * MINUTE)]).refused is None
    out = io.StringIO()
    console = rendering.make_console(out, is_colored=False)
    situation = situation_of(rollout, results=[refused(now - MINUTE / 2)])
    status_view.show_flag(console, situation)
    assert "last refused     resume by ada at " in out.getvalue()
    line = event_view.answer_line(refused(now), now)
    assert line is not None
    assert "rejected  resume new-checkout by ada: nothing is paused (revision 1)" in line.plain


def test_a_pipe_gets_no_spaces_at_the_end_of_a_line() -> None:
    """A pager would break each row of a table into a row and empty lines."""
    out = io.StringIO()
    console = rendering.make_console(out, is_colored=False)
    console.print(rendering.templates_table({"canary": "one, two", "default": "a longer text"}))
    lines = out.getvalue().splitlines()
    assert lines == ["TEMPLATE  WHAT IT DOES", "canary    one, two", "default   a longer text"]


def test_a_reader_that_has_gone_is_an_error_and_no_exit() -> None:
    """What ends the process from within a task cannot be told from a crash."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8", buffering=1) as gone:
        with pytest.raises(BrokenPipeError):
            rendering.make_console(gone, is_colored=False).print("a line")
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # where the rest goes on closing
