"""What `rolloutctl` shows: sober tables and lines that fit 80 columns, and the same facts as JSON.

Everything that others wrote (reasons, issuers, the model's words) passes `one_line`, so that
nothing in it can move a terminal's cursor or forge a line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from controller.cli.operator_client import Event, as_alert, as_decision, as_rollout
from controller.cli.situation import Safe, Situation, about, clock, ended_words, moment
from controller.core.metrics import kind_to_show
from controller.core.rollout import Rollout
from controller.plans import Finding
from controller.text import one_line
from schemas.alert import Alert
from schemas.command import Command
from schemas.decision import Decision, JudgementRecord, MetricRecord
from schemas.result import Result
from schemas.terms import (
    Arm,
    CommandStatus,
    CommandVerb,
    DecisionKind,
    HoldReason,
    PhaseName,
    Severity,
    Verdict,
)

_NARROWEST = 40
_PHASE_STYLES = {
    PhaseName.COMPLETED: "green",
    PhaseName.ROLLED_BACK: "red",
    PhaseName.ABORTED: "red",
    PhaseName.PAUSED: "yellow",
    PhaseName.AWAITING_APPROVAL: "yellow",
}
_DECISION_STYLES = {
    DecisionKind.ADVANCE: "green",
    DecisionKind.COMPLETE: "green",
    DecisionKind.ROLL_BACK: "red",
    DecisionKind.STEP_BACK: "red",
    DecisionKind.ABORT: "red",
    DecisionKind.PAUSE: "yellow",
    DecisionKind.HOLD: "yellow",
}
_SEVERITY_STYLES = {Severity.CRITICAL: "red", Severity.WARNING: "yellow", Severity.INFO: "dim"}
_SAFE_STYLES = {Safe.YES: "green", Safe.NOT_YET: "yellow", Safe.NO: "red", Safe.ENDED: "dim"}
_HARM_WORDS = {Verdict.FAIL: "YES", Verdict.INCONCLUSIVE: "no", Verdict.PASS: "no"}
_SAFE_WORDS = {Verdict.PASS: "yes", Verdict.INCONCLUSIVE: "not yet", Verdict.FAIL: "NO"}


def make_console(stream: TextIO, *, is_coloured: bool) -> Console:
    """Return a console on a stream; colour only where it is wanted and a terminal is there."""
    return Console(
        file=stream,
        color_system="auto" if is_coloured else None,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )


def dashed(verb: CommandVerb) -> str:
    """Return a verb as it is typed."""
    return verb.value.replace("_", "-")


def to_json(document: Any) -> str:
    """Return one line of ASCII JSON, keys in the given order."""
    return json.dumps(document, separators=(",", ":"))


# --- status
# --------------------------------------------------------------------------------------------------


def status_table(situations: Iterable[Situation]) -> Table:
    """Return one row per flag, those under way first."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for name, justify in (
        ("FLAG", "left"),
        ("PHASE", "left"),
        ("STAGE", "right"),
        ("SERVED", "right"),
        ("SINCE", "right"),
    ):
        # Short enough to be read whole, except perhaps the flag's key: that one folds rather than
        # loses letters.
        table.add_column(name, justify=justify, no_wrap=name != "FLAG", overflow="fold")  # type: ignore[arg-type]
    table.add_column("WAITS FOR", overflow="fold")
    for one in sorted(situations, key=lambda each: (each.rollout.has_ended, each.rollout.flag_key)):
        rollout = one.rollout
        stage = f"{one.stage_number}/{len(rollout.plan.stages)}" if one.stage_number else "–"
        table.add_row(
            rollout.flag_key,
            phase_text(rollout),
            stage,
            rollout.served_words,
            about(one.now - one.since),
            Text(one_line(_short_wait(one))),
        )
    return table


def _short_wait(one: Situation) -> str:
    if one.overdue is not None:
        return f"OVERDUE: {one.overdue}"
    if one.rollout.has_ended:
        return ended_words(one.rollout.phase)
    return f"{one.waits_for}; {one.hold}" if one.hold is not None else one.waits_for


def phase_text(rollout: Rollout) -> Text:
    """Return the phase in words."""
    name = rollout.phase.name
    return Text(name.value.replace("_", " "), _PHASE_STYLES.get(name, "cyan"))


def show_flag(console: Console, one: Situation, planes: Sequence[Text] = ()) -> None:
    """Show all that is known of one flag, its answer first.

    `planes` are lines of a daemon's about its flag planes.
    """
    rollout, now = one.rollout, one.now
    headline = Text(f"{rollout.flag_key}  ", "bold")
    headline.append_text(phase_text(rollout))
    headline.append(f", {rollout.served_words} served")
    if one.stage_number is not None:
        headline.append(f", stage {one.stage_number} of {len(rollout.plan.stages)}")
    headline.append(f", revision {rollout.revision}")
    console.print(headline)
    answer, why = one.safe_to_advance
    if answer is Safe.ENDED:
        _fact(console, "ended", Text(one_line(f"{why}, {moment(one.since, now)}")))
    else:
        said = Text.assemble((answer.value, f"bold {_SAFE_STYLES[answer]}"), f": {one_line(why)}")
        _fact(console, "safe to advance?", said)
    if one.overdue is not None:
        _fact(console, "OVERDUE", Text(one.overdue, "bold red"))
    _fact(console, "waits for", Text(one_line(one.waits_for)))
    if (
        one.hold is not None
        and not why.startswith(one.hold)
        and rollout.hold is not HoldReason.APPROVAL
    ):
        _fact(console, "hold", Text(one_line(one.hold)))
    if one.frozen is not None and one.frozen != why:
        _fact(console, "frozen", Text(one_line(one.frozen)))
    _fact(console, "since", Text(moment(one.since, now)))
    _fact(console, "journey", _journey(one))
    for place, line in enumerate(planes):
        _fact(console, "" if place else "flag planes", line)
    owner = f", owner {rollout.plan.owner}" if rollout.plan.owner else ""
    blind = ", BLIND: no evidence is looked at" if rollout.plan.blind else ""
    plan = f"{rollout.plan.name}{owner}, started {moment(rollout.started_at, now)}{blind}"
    _fact(console, "plan", Text(one_line(plan)))
    if one.advised:
        _fact(console, "advice so far", Text(_advice_record(one)))
    _show_evidence(console, one, told=why)


def _fact(console: Console, name: str, said: Text) -> None:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=16, style="dim")
    grid.add_column(overflow="fold")
    grid.add_row(name, said)
    console.print(Padding(grid, (0, 0, 0, 2)))


def _journey(one: Situation) -> Text:
    rollout = one.rollout
    reached = rollout.visits[-1].stage if rollout.visits else -1
    line = Text()
    for index, stage in enumerate(rollout.plan.stages):
        is_here = index == reached and not rollout.has_ended
        is_done = index < reached or rollout.phase.name is PhaseName.COMPLETED
        mark = ">" if is_here else "*" if is_done else "."
        of = "" if stage.audience is None else f" of {stage.audience}"
        line.append(
            f"{mark} {stage.percent:g} %{of}", "bold" if is_here else "dim" if not is_done else ""
        )
        line.append("   ")
    return line


def _show_evidence(console: Console, one: Situation, *, told: str) -> None:
    """Show the newest decision and the newest published judgement of the present stay, without what was `told` above."""
    said, seen = one.judged_by, one.judgement
    newest = one.decision
    if newest is not None:
        words = (
            f"{newest.kind.value.replace('_', ' ')} by {newest.issuer} {moment(newest.at, one.now)}"
        )
        if newest.reason and newest.reason not in told:
            words += f": {newest.reason.rstrip(': ')}"
        _fact(console, "last decision", Text(one_line(words)))
    if said is None or seen is None:
        if not one.rollout.plan.blind and one.rollout.visits:
            _fact(
                console,
                "evidence",
                Text("none published for this stage yet; it comes with the next decision"),
            )
        return
    users = (
        f"users: {seen.exposures.get(Arm.TREATMENT, 0):,} treatment, "
        f"{seen.exposures.get(Arm.CONTROL, 0):,} control"
    )
    share = (
        "" if seen.observed_share is None else f"; share observed {100 * seen.observed_share:.3g} %"
    )
    _fact(
        console,
        "evidence",
        Text(f"verdict {seen.verdict.value.replace('_', ' ')}, judged {moment(seen.at, one.now)}"),
    )
    _fact(console, "", Text(f"{users}{share}"))
    for gap in seen.gaps:
        if gap.detail not in told:
            _fact(console, "", Text(one_line(f"{gap.kind}: {gap.detail}"), "yellow"))
    if seen.metrics:
        console.print(Padding(metrics_table(seen), (1, 0, 0, 2)))
        for metric in seen.metrics:
            if metric.reason not in told:
                console.print(
                    Padding(
                        Text(one_line(f"{metric.metric}: {metric.reason}"), "dim"), (0, 0, 0, 2)
                    )
                )
        console.print()
    if said.advice is not None:
        advice = f"{said.advice.choice} by {said.advice.model}: {' '.join(said.advice.reasons)}"
        _fact(console, "advice", Text(one_line(advice)))
    _fact(console, "harm so far", Text(_harm_words(seen)))


def _advice_record(one: Situation) -> str:
    """Return what the model advised at the gates.

    And once the rollout has ended, whether that was right.
    """
    gates = f"{len(one.advised)} gate{'s' if len(one.advised) > 1 else ''}"
    if one.advice_agreement is not None:
        agreed, _ = one.advice_agreement
        return f"agreed with the outcome at {agreed} of {gates}"
    counts = Counter(choice.value.replace("_", " ") for choice in one.advised)
    return f"{', '.join(f'{choice} at {count}' for choice, count in counts.items())} of {gates}"


def _harm_words(seen: JudgementRecord) -> str:
    harm = seen.harm
    excess = (
        ""
        if harm.excess_failed_requests is None
        else f", {harm.excess_failed_requests:,.1f} above control's rate"
    )
    return (
        f"{harm.exposed_contexts:,} users had treatment; {harm.failed_requests:,} of their "
        f"requests failed{excess}"
    )


def metrics_table(seen: JudgementRecord) -> Table:
    """Return each guardrail's arms and its two answers."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    table.add_column("METRIC", overflow="fold")
    table.add_column("ROLE", no_wrap=True)
    for name in ("TREATMENT", "CONTROL", "WORSE?", "SHOWN AS GOOD?"):
        table.add_column(name, justify="right", no_wrap=True)
    for metric in seen.metrics:
        is_harm, is_safe = metric.harm is Verdict.FAIL, metric.safe is Verdict.PASS
        table.add_row(
            metric.metric,
            metric.role.value,
            _estimate(metric, Arm.TREATMENT),
            _estimate(metric, Arm.CONTROL),
            Text(
                _HARM_WORDS.get(metric.harm, metric.harm.value.replace("_", " ")),
                "bold red" if is_harm else "",
            ),
            Text(
                _SAFE_WORDS.get(metric.safe, metric.safe.value.replace("_", " ")),
                "green" if is_safe else "yellow",
            ),
        )
    return table


def _estimate(metric: MetricRecord, arm: Arm) -> str:
    measured = metric.arms.get(arm)
    if measured is None or measured.estimate is None:
        return "–"
    if kind_to_show(metric.metric).is_share:
        return f"{100 * measured.estimate:.3g} %"
    return f"{measured.estimate:,.0f} ms"


def status_document(one: Situation, state: Event) -> Event:
    """Return one flag's status for machines. `state` is the document as published."""
    answer, why = one.safe_to_advance
    return {
        "flag": one.rollout.flag_key,
        "at": one.now.isoformat(),
        "safe_to_advance": answer.value.replace(" ", "_"),
        "reason": why,
        "waits_for": one.waits_for,
        "hold": one.hold,
        "frozen": one.frozen,
        "overdue": one.overdue,
        "stage": one.stage_number,
        "stages": len(one.rollout.plan.stages),
        "since": one.since.isoformat(),
        "state": state,
        "judgement": None if one.judgement is None else one.judgement.model_dump(mode="json"),
        "advice": None
        if one.judged_by is None or one.judged_by.advice is None
        else one.judged_by.advice.model_dump(mode="json"),
        "advice_agreement": None
        if one.advice_agreement is None
        else dict(zip(("agreed", "gates"), one.advice_agreement, strict=True)),
    }


# --- decisions, alerts, everything as it comes
# ------------------------------------------------------------------------------


def decision_line(one: Decision, now: datetime, *, with_flag: bool) -> Text:
    """Return a decision as one line."""
    moved = (
        f"{one.from_percent:g} -> {one.to_percent:g} %"
        if one.from_percent != one.to_percent
        else f"{one.to_percent:g} %"
    )
    moved += "" if one.audience is None else f" of {one_line(one.audience)}"
    by = "" if one.issuer == "rolloutd" else f" (by {one.issuer})"
    return Text.assemble(
        (f"{clock(one.at, now)}  ", "dim"),
        f"{one.flag}  " if with_flag else "",
        (f"{one.kind.value.replace('_', ' '):<9}  ", _DECISION_STYLES.get(one.kind, "bold")),
        f"{moved:<12}  ",
        one_line(f"{one.reason.rstrip(': ')}{by}"),
    )


def show_decision(console: Console, one: Decision, now: datetime) -> None:
    """Show a decision, and below it the verdict of each guardrail it was made on."""
    _line(console, decision_line(one, now, with_flag=False))
    seen = one.judgement
    if seen is None:
        return
    for gap in seen.gaps:
        _line(console, Text(f"    gap {one_line(f'{gap.kind}: {gap.detail}')}", "dim"))
    for metric in seen.metrics:
        worse = _HARM_WORDS.get(metric.harm, metric.harm.value)
        good = _SAFE_WORDS.get(metric.safe, metric.safe.value)
        arms = f"{_estimate(metric, Arm.TREATMENT)} against {_estimate(metric, Arm.CONTROL)}"
        _line(
            console,
            Text(f"    {metric.metric}: {arms}; worse? {worse}; shown as good? {good}", "dim"),
        )
    if one.advice is not None:
        _line(
            console,
            Text(
                f"    advice {one_line(f'{one.advice.choice}: ' + ' '.join(one.advice.reasons))}",
                "dim",
            ),
        )


def alert_line(one: Alert, now: datetime) -> Text:
    """Return an alert as one line, what to do last."""
    return Text.assemble(
        (f"{clock(one.at, now)}  ", "dim"),
        (f"{one.severity.value:<8}  ", _SEVERITY_STYLES[one.severity]),
        one_line(f"{one.summary}. To do: {one.action}"),
    )


def event_line(event: Event, now: datetime) -> Text | None:
    """Return any event that is watched as one line; None for what is no such event."""
    said, told, stands = as_decision(event), as_alert(event), as_rollout(event)
    if said is not None:
        return Text.assemble(("decision  ", "dim"), decision_line(said, now, with_flag=True))
    if told is not None:
        return Text.assemble(("alert     ", "dim"), alert_line(told, now))
    if stands is not None:
        one = Situation(stands, (), now)
        at = (f"{clock(stands.updated_at, now)}  ", "dim")
        return Text.assemble(("state     ", "dim"), at, f"{stands.flag_key}  ", brief(one))
    return None


def brief(one: Situation) -> Text:
    """Return where a rollout stands in one line, without its flag."""
    rollout = one.rollout
    stage = (
        ""
        if one.stage_number is None
        else f", stage {one.stage_number} of {len(rollout.plan.stages)}"
    )
    waits = "" if rollout.has_ended else f"; waits for {one.waits_for}"
    rest = f", {rollout.served_words} served{stage}, revision {rollout.revision}{waits}"
    return Text.assemble(phase_text(rollout), one_line(rest))


def _line(console: Console, text: Text) -> None:
    """Print one line: wrapped for a reader, whole for a pipe."""
    console.print(text, soft_wrap=not console.is_terminal or console.width < _NARROWEST)


def plain(text: str) -> Text:
    """Return text from elsewhere as one unstyled line."""
    return Text(one_line(text))


def show_line(console: Console, text: Text) -> None:
    """Print one line: wrapped for a reader, whole for a pipe."""
    _line(console, text)


# --- commands and plans
# --------------------------------------------------------------------------------------------------


def result_line(answer: Result) -> Text:
    """Return the answer to a command."""
    is_accepted = answer.status is CommandStatus.ACCEPTED
    why = "" if answer.reason == "done" else f": {one_line(answer.reason)}"
    return Text.assemble(
        (answer.status.value, "bold green" if is_accepted else "bold red"),
        f"  {'unknown verb' if answer.verb is None else dashed(answer.verb)} "
        f"{answer.flag}{why} (revision {answer.revision})",
    )


def now_line(one: Situation) -> Text:
    """Return where the flag stands after a command."""
    return Text.assemble(("now       ", "dim"), brief(one))


def result_document(order: Command, answer: Result | None) -> Mapping[str, Any]:
    """Return a result for machines.

    Without one its status is `unknown`, and the command may still be carried out.
    """
    if answer is not None:
        return answer.model_dump(mode="json")
    return {
        "command_id": order.id,
        "flag": order.flag,
        "verb": order.verb.value,
        "status": "unknown",
        "reason": "no result in time; the command may still be carried out, repeating it with the "
        "same id is safe",
        "revision": None,
        "at": None,
    }


def finding_line(finding: Finding, source: str) -> Text:
    """Return a finding as compilers write it."""
    return Text(one_line(finding.located(source)), "red" if finding.is_error else "yellow")


def finding_document(finding: Finding, source: str) -> Mapping[str, Any]:
    """Return a finding for machines."""
    return {
        "file": source,
        "line": finding.line,
        "column": finding.column,
        "severity": "error" if finding.is_error else "warning",
        "path": list(finding.path),
        "message": finding.message,
        "fix": finding.fix,
    }


def templates_table(descriptions: Mapping[str, str]) -> Table:
    """Return the plan templates."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    table.add_column("TEMPLATE", no_wrap=True)
    table.add_column("WHAT IT DOES", overflow="fold")
    for name, description in descriptions.items():
        table.add_row(name, description)
    return table


def shown(names: Sequence[str], most: int = 8) -> str:
    """Return names for a sentence."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
