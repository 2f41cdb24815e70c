"""Decisions, alerts and results of commands, as people and machines read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from controller.cli.operator_client import Event, as_alert, as_decision, as_rollout
from controller.cli.rendering import dashed, show_line
from controller.cli.status_view import brief
from controller.reporting.evidence_words import HARM_WORDS, SAFE_WORDS, estimate, verdict_words
from controller.reporting.situation import Situation, clock
from controller.text import one_line
from schemas import result
from schemas.alert import Alert
from schemas.command import Command
from schemas.decision import Decision
from schemas.result import Result
from schemas.terms import Arm, CommandStatus, DecisionKind, Severity, Verdict

_DECISION_STYLES = {
    DecisionKind.ADVANCE: "green",
    DecisionKind.COMPLETE: "green",
    DecisionKind.ROLL_BACK: "red",
    DecisionKind.STEP_BACK: "red",
    DecisionKind.ABORT: "red",
    DecisionKind.END: "yellow",
    DecisionKind.CLOSE: "yellow",
    DecisionKind.OPEN: "green",
    DecisionKind.PAUSE: "yellow",
    DecisionKind.HOLD: "yellow",
}
#: Columns before the words of a watched line: its kind and its time.
HANG = 24
_SEVERITY_STYLES = {Severity.CRITICAL: "red", Severity.WARNING: "yellow", Severity.INFO: "dim"}


def decision_line(decision: Decision, now: datetime, *, with_flag: bool) -> Text:
    """Return a decision as one line."""
    moved = (
        f"{decision.from_percent:g} -> {decision.to_percent:g} %"
        if decision.from_percent != decision.to_percent
        else f"{decision.to_percent:g} %"
    )
    moved += "" if decision.audience is None else f" of {one_line(decision.audience)}"
    by = "" if decision.issuer == "rolloutd" else f" (by {decision.issuer})"
    return Text.assemble(
        (f"{clock(decision.at, now)}  ", "dim"),
        f"{decision.flag}  " if with_flag else "",
        (
            f"{decision.kind.value.replace('_', ' '):<9}  ",
            _DECISION_STYLES.get(decision.kind, "bold"),
        ),
        f"{moved:<12}  ",
        one_line(f"{decision.reason.rstrip(': ')}{by}"),
    )


def show_decision(console: Console, decision: Decision, now: datetime) -> None:
    """Show a decision, and below it the verdict of each guardrail that it rests on."""
    show_line(console, decision_line(decision, now, with_flag=False), hang=14)
    judgement = decision.judgement
    if judgement is None:
        return
    if judgement.gaps and judgement.verdict is Verdict.PASS:
        show_line(console, Text(f"    {verdict_words(judgement)}", "dim"), hang=6)
    for gap in judgement.gaps:
        show_line(console, Text(f"    gap {one_line(f'{gap.kind}: {gap.detail}')}", "dim"))
    for metric in judgement.metrics:
        worse = HARM_WORDS.get(metric.harm, metric.harm.value.replace("_", " "))
        good = SAFE_WORDS.get(metric.safe, metric.safe.value.replace("_", " "))
        arms = f"{estimate(metric, Arm.TREATMENT)} against {estimate(metric, Arm.CONTROL)}"
        show_line(
            console,
            Text(f"    {metric.metric}: {arms}; worse? {worse}; proven safe? {good}", "dim"),
            hang=6,
        )
    if decision.advice is not None:
        advice = f"{decision.advice.choice}: {' '.join(decision.advice.reasons)}"
        show_line(console, Text(f"    advice {one_line(advice)}", "dim"))


def alert_line(alert: Alert, now: datetime) -> Text:
    """Return an alert as one line that ends with what to do."""
    return Text.assemble(
        (f"{clock(alert.at, now)}  ", "dim"),
        (f"{alert.severity.value:<8}  ", _SEVERITY_STYLES[alert.severity]),
        one_line(f"{alert.summary}. To do: {alert.action}"),
    )


def stamp(at: datetime, now: datetime) -> tuple[str, str]:
    """Return the moment at the beginning of a line, with its style."""
    return f"{clock(at, now)}  ", "dim"


def transition_lines(events: Sequence[Event], now: datetime) -> Iterator[Text]:
    """Yield the lines about one transition: its decision, then what an alert asks people to do.

    The state is shown where no decision tells about it. An alert says what it is about and what to
    do; only the reason that its decision gives is not repeated.
    """
    decisions = [one for one in map(as_decision, events) if one is not None]
    for event in sorted(events, key=lambda each: as_decision(each) is None):
        alert = as_alert(event)
        if alert is not None:
            told = alert.model_copy(update={"summary": _without_reason(alert, decisions)})
            yield Text.assemble(("alert     ", "dim"), alert_line(told, now))
        elif as_rollout(event) is None or not decisions:
            line = event_line(event, now)
            if line is not None:
                yield line


def _without_reason(alert: Alert, decisions: Sequence[Decision]) -> str:
    """Return an alert's summary without the reason at its end that a decision above has given."""
    for decision in decisions:
        reason = decision.reason.rstrip(": ")
        if reason and alert.summary.rstrip(": ").endswith(reason):
            head = alert.summary.rstrip(": ").removesuffix(reason).rstrip(": ")
            return head or alert.kind.value.replace("_", " ")
    return alert.summary


def event_line(event: Event, now: datetime) -> Text | None:
    """Return an event of `rolloutctl watch` as one line, None for any other event."""
    decision, alert, rollout = as_decision(event), as_alert(event), as_rollout(event)
    if decision is not None:
        return Text.assemble(("decision  ", "dim"), decision_line(decision, now, with_flag=True))
    if alert is not None:
        return Text.assemble(("alert     ", "dim"), alert_line(alert, now))
    if (answer := answer_line(event, now)) is not None:
        return Text.assemble(("refused   ", "dim"), answer)
    if rollout is not None:
        situation = Situation(rollout, (), now)
        at = (f"{clock(rollout.updated_at, now)}  ", "dim")
        return Text.assemble(("state     ", "dim"), at, f"{rollout.flag_key}  ", brief(situation))
    return None


def result_line(answer: Result, *, with_issuer: bool = False) -> Text:
    """Return the answer to a command, with who sent it for whoever may be another."""
    is_accepted = answer.status is CommandStatus.ACCEPTED
    why = "" if answer.reason == "done" else f": {one_line(answer.reason)}"
    by = f" by {one_line(answer.issuer)}" if with_issuer and answer.issuer else ""
    return Text.assemble(
        (answer.status.value, "bold green" if is_accepted else "bold red"),
        f"  {'unknown verb' if answer.verb is None else dashed(answer.verb)} "
        f"{answer.flag}{by}{why} (revision {answer.revision})",
    )


def is_done(event: Event) -> bool:
    """Return whether an event says that a command was carried out."""
    return bool(
        event["type"] == result.TYPE and event["data"].get("status") == CommandStatus.ACCEPTED
    )


def answer_line(event: Event, now: datetime) -> Text | None:
    """Return the answer to a command as a line of a list, None for any other event.

    A record that was no command has no flag, and its place for an id.
    """
    if event["type"] != result.TYPE:
        return None
    data = event["data"]
    if data.get("flag") is None:
        why = one_line(str(data.get("reason")))
        said = Text.assemble(("rejected", "bold red"), f"  {data.get('command_id')}: {why}")
        at = str(data.get("at"))
    else:
        try:
            answer = Result.model_validate(data)
        except ValidationError:
            return None
        said, at = result_line(answer, with_issuer=True), answer.at.isoformat()
    return Text.assemble(stamp(datetime.fromisoformat(at), now), said)


def result_document(command: Command, answer: Result | None) -> Mapping[str, Any]:
    """Return a result as JSON.

    Without a result the status is `unknown`: the command may still be carried out.
    """
    if answer is not None:
        return answer.model_dump(mode="json")
    return {
        "command_id": command.id,
        "flag": command.flag,
        "verb": command.verb.value,
        "status": "unknown",
        "reason": "no result in time; the command may still be carried out, repeating it with the "
        "same id is safe",
        "revision": None,
        "at": None,
        "issuer": command.issuer,
    }
