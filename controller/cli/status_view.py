"""Shows where rollouts stand, for people and machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from controller.cli.evidence_view import metrics_table
from controller.cli.operator_client import Event
from controller.cli.rendering import dashed
from controller.core.rollout import Rollout
from controller.reporting.evidence_words import (
    harm_words,
    incomplete_words,
    legend,
    verdict_words,
)
from controller.reporting.situation import Situation, about, moment
from controller.text import one_line, plural
from schemas.terms import Arm, HoldReason, PhaseName, Safe

_ASK_A_DAEMON = "--daemon URL, or ROLLOUTCTL_DAEMON, shows the newest"
_PHASE_STYLES = {
    PhaseName.COMPLETED: "green",
    PhaseName.ROLLED_BACK: "red",
    PhaseName.ABORTED: "red",
    PhaseName.PAUSED: "yellow",
    PhaseName.AWAITING_APPROVAL: "yellow",
}
_SAFE_STYLES = {Safe.YES: "green", Safe.NOT_YET: "yellow", Safe.NO: "red", Safe.ENDED: "dim"}


def status_table(situations: Iterable[Situation]) -> Table:
    """Return a table with one row per flag, those under way first."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for name, justify in (
        ("FLAG", "left"),
        ("PHASE", "left"),
        ("STAGE", "right"),
        ("SERVED", "right"),
        ("SINCE", "right"),
    ):
        # All columns are short enough to be shown whole, except perhaps the flag's key, which is
        # broken over lines and keeps its letters.
        is_whole = name != "FLAG"
        table.add_column(
            name,
            justify=justify,  # type: ignore[arg-type]
            no_wrap=is_whole,
            overflow="fold",
        )
    table.add_column("REASON", overflow="fold")
    for situation in sorted(
        situations, key=lambda each: (each.rollout.has_ended, each.rollout.flag_key)
    ):
        rollout = situation.rollout
        stage = (
            f"{situation.stage_number}/{len(rollout.plan.stages)}"
            if situation.stage_number
            else "–"
        )
        table.add_row(
            rollout.flag_key,
            phase_text(rollout),
            stage,
            rollout.served_words,
            about(situation.now - situation.since),
            Text(one_line(_reason(situation))),
        )
    return table


def _reason(situation: Situation) -> str:
    """Return why the rollout stands where it does, without repeating its phase."""
    if situation.unwatched is not None:
        return f"UNWATCHED: {situation.unwatched.why}"
    if situation.overdue is not None:
        return f"OVERDUE: {situation.overdue}"
    phase = situation.rollout.phase
    if situation.closed is not None:
        return situation.closed
    if situation.rollout.has_ended:
        words = getattr(phase, "reason", "") or situation.waits_for.removeprefix("nothing; ")
        return words if situation.frozen is None else f"{situation.frozen}; {words}"
    hold = None if situation.rollout.hold is HoldReason.FROZEN else situation.hold
    parts = (situation.frozen, hold, f"waits for {situation.waits_for}")
    return "; ".join(part for part in parts if part)


def phase_text(rollout: Rollout) -> Text:
    """Return the phase in words."""
    name = rollout.phase.name
    return Text(name.value.replace("_", " "), _PHASE_STYLES.get(name, "cyan"))


def show_flag(
    console: Console,
    situation: Situation,
    planes: Sequence[Text] = (),
    *,
    has_daemon: bool = False,
) -> None:
    """Show everything about one flag, the answer to "safe to advance?" first.

    `planes` has one line per flag plane, as a daemon reports it. `has_daemon`: one was asked for
    the newest evidence, so that nobody is told to.
    """
    rollout, now = situation.rollout, situation.now
    headline = Text(f"{rollout.flag_key}  ", "bold")
    headline.append_text(phase_text(rollout))
    headline.append(f", {rollout.served_words} served")
    if situation.stage_number is not None:
        headline.append(f", {situation.stage_words}")
    headline.append(f", revision {rollout.revision}")
    console.print(headline)
    answer, why = situation.safe_to_advance
    if answer is Safe.ENDED:
        _fact(console, "ended", Text(one_line(f"{why}, {moment(situation.since, now)}")))
    else:
        words = Text.assemble((answer.words, f"bold {_SAFE_STYLES[answer]}"), f": {one_line(why)}")
        _fact(console, "safe to advance?", words)
    if (unwatched := situation.unwatched) is not None:
        since = moment(unwatched.since, now).removeprefix("at ")
        _fact(console, "UNWATCHED", Text(one_line(f"since {since}: {unwatched.why}"), "bold red"))
        _fact(console, "to fix it", Text(one_line(unwatched.action)))
    if situation.overdue is not None:
        _fact(console, "OVERDUE", Text(situation.overdue, "bold red"))
    _fact(console, "waits for", Text(one_line(situation.waits_for)))
    if (
        situation.hold is not None
        and not why.startswith(situation.hold)
        and rollout.hold is not HoldReason.APPROVAL
    ):
        _fact(console, "hold", Text(one_line(situation.hold)))
    if situation.frozen is not None and situation.frozen != why:
        _fact(console, "frozen", Text(one_line(situation.frozen)))
    if situation.active is not None and situation.active != why:
        _fact(console, "active windows", Text(one_line(situation.active)))
    _fact(console, "since", Text(moment(situation.since, now)))
    _fact(console, "journey", _journey(situation))
    for place, line in enumerate(planes):
        _fact(console, "" if place else "flag planes", line)
    owner = f", owner {rollout.plan.owner}" if rollout.plan.owner else ""
    blind = ", BLIND: no evidence is judged" if rollout.plan.blind else ""
    ends_at = None if rollout.has_ended else rollout.plan.ends_at
    ends = f", ends {moment(ends_at, now)}" if ends_at is not None else ""
    plan = f"{rollout.plan.name}{owner}, started {moment(rollout.started_at, now)}{ends}{blind}"
    _fact(console, "plan", Text(one_line(plan)))
    if (refused := situation.refused) is not None:
        verb = "a command" if refused.verb is None else dashed(refused.verb)
        by = f" by {refused.issuer}" if refused.issuer else ""
        why = f"{verb}{by} {moment(refused.at, now)}: {refused.reason}"
        more = f"`rolloutctl commands {rollout.flag_key}` shows all"
        _fact(console, "last refused", Text(one_line(f"{why}; {more}")))
    if situation.advised:
        _fact(console, "advice so far", Text(_advice_record(situation)))
    _show_evidence(console, situation, above=why, has_daemon=has_daemon)


def _fact(console: Console, name: str, words: Text) -> None:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=16, style="dim")
    grid.add_column(overflow="fold")
    grid.add_row(name, words)
    console.print(_indented(grid))


def _indented(content: RenderableType, above: int = 0) -> Padding:
    """Return content two columns in; not filled up with spaces, since a pipe has no width."""
    return Padding(content, (above, 0, 0, 2), expand=False)


def _journey(situation: Situation) -> Text:
    rollout = situation.rollout
    reached = rollout.visits[-1].stage if rollout.visits else -1
    line = Text()
    for index, stage in enumerate(rollout.plan.stages):
        is_here = index == reached and not rollout.has_ended
        is_done = index < reached or rollout.phase.name is PhaseName.COMPLETED
        mark = ">" if is_here else "*" if is_done else "."
        of = "" if stage.audience is None else f" of {stage.audience}"
        called = f" ({stage.given_name})" if stage.given_name else ""
        line.append(
            f"{mark} {stage.percent:g} %{of}{called}",
            "bold" if is_here else "dim" if not is_done else "",
        )
        line.append("   ")
    return line


def _show_evidence(console: Console, situation: Situation, *, above: str, has_daemon: bool) -> None:
    """Show the newest decision and the newest judgement of the present visit.

    What stands in `above`, the text that was shown before, is not repeated.
    """
    basis, judgement = situation.judged_by, situation.judgement
    ask = "" if has_daemon else f"; {_ASK_A_DAEMON}"
    newest = situation.decision
    if newest is not None:
        kind = newest.kind.value.replace("_", " ")
        words = f"{kind} by {newest.issuer} {moment(newest.at, situation.now)}"
        if newest.reason and newest.reason not in above:
            words += f": {newest.reason.rstrip(': ')}"
        _fact(console, "last decision", Text(one_line(words)))
    if judgement is None:
        if not situation.rollout.plan.blind and situation.rollout.visits:
            words = f"no decision in this stage yet{ask}"
            _fact(console, "evidence", Text(words))
        return
    users = (
        f"users: {judgement.exposures.get(Arm.TREATMENT, 0):,} treatment, "
        f"{judgement.exposures.get(Arm.CONTROL, 0):,} control"
    )
    share = (
        ""
        if judgement.observed_share is None
        else f"; share observed {100 * judgement.observed_share:.3g} %"
    )
    age = f"{about(situation.now - judgement.at)} ago"
    words = f"{verdict_words(judgement)}; as of {age}"
    if judgement is not situation.newest and not situation.rollout.has_ended:
        words = f"{verdict_words(judgement)}; when last decided, {age}{ask}"
    _fact(console, "evidence", Text(words))
    if incomplete := incomplete_words(judgement):
        _fact(console, "", Text(one_line(incomplete), "yellow"))
    _fact(console, "", Text(f"{users}{share}"))
    for gap in judgement.gaps:
        if gap.detail not in above:
            _fact(console, "", Text(one_line(f"gap {gap.kind}: {gap.detail}"), "yellow"))
    if judgement.metrics:
        console.print(_indented(metrics_table(judgement), above=1))
        for metric in judgement.metrics:
            if metric.reason not in above:
                words = one_line(f"{metric.metric}: {metric.reason}")
                console.print(_indented(Text(words, "dim")))
        for line in legend(judgement, situation.rollout):
            console.print(_indented(Text(one_line(line), "dim")))
        console.print()
    if basis is not None and basis.advice is not None:
        advice = f"{basis.advice.choice} by {basis.advice.model}: {' '.join(basis.advice.reasons)}"
        _fact(console, "advice", Text(one_line(advice)))
    _fact(console, "harm so far", Text(harm_words(judgement)))


def _advice_record(situation: Situation) -> str:
    """Return what the model advised at the gates, or how often it agreed with the outcome."""
    gates = plural(len(situation.advised), "gate")
    if situation.advice_agreement is not None:
        agreed, _ = situation.advice_agreement
        return f"agreed with the outcome at {agreed} of {gates}"
    counts = Counter(choice.value.replace("_", " ") for choice in situation.advised)
    return f"{', '.join(f'{choice} at {count}' for choice, count in counts.items())} of {gates}"


def status_document(situation: Situation, state: Event) -> Event:
    """Return one flag's status as JSON. `state` is the document as published."""
    answer, why = situation.safe_to_advance
    return {
        "flag": situation.rollout.flag_key,
        "at": situation.now.isoformat(),
        "safe_to_advance": answer.value,
        "reason": why,
        "waits_for": situation.waits_for,
        "phase": situation.rollout.phase.name.value,
        "hold": situation.rollout.hold,
        "hold_words": situation.hold,
        "frozen": situation.frozen,
        "closed": situation.closed,
        "overdue": situation.overdue,
        "unwatched": None
        if situation.unwatched is None
        else {
            "why": situation.unwatched.why,
            "action": situation.unwatched.action,
            "since": situation.unwatched.since.isoformat(),
        },
        "stage": situation.stage_number,
        "stages": len(situation.rollout.plan.stages),
        "since": situation.since.isoformat(),
        "state": state,
        "judgement": None
        if situation.judgement is None
        else situation.judgement.model_dump(mode="json"),
        "advice": None
        if situation.judged_by is None or situation.judged_by.advice is None
        else situation.judged_by.advice.model_dump(mode="json"),
        "advice_agreement": None
        if situation.advice_agreement is None
        else dict(zip(("agreed", "gates"), situation.advice_agreement, strict=True)),
    }


def brief(situation: Situation) -> Text:
    """Return where a rollout stands in one line, without its flag."""
    rollout = situation.rollout
    stage = "" if situation.stage_number is None else f", {situation.stage_words}"
    is_over = rollout.has_ended and situation.closed is None
    waits = "" if is_over else f"; waits for {situation.waits_for}"
    if rollout.has_ended and situation.frozen is not None:
        waits = f"; {situation.frozen}{waits}"
    rest = f", {rollout.served_words} served{stage}, revision {rollout.revision}{waits}"
    return Text.assemble(phase_text(rollout), one_line(rest))


def now_line(situation: Situation, answered: int = 0) -> Text:
    """Return where the flag stands after a command; `answered` is the revision in its result."""
    rollout = situation.rollout
    if rollout.revision >= answered:
        return Text.assemble(("now       ", "dim"), brief(situation))
    late = (
        f"; older than the result: `rolloutctl status {rollout.flag_key}` shows revision "
        f"{answered} when Kafka has it"
    )
    label = ("before    ", "bold yellow")
    return Text.assemble(label, brief(situation), (one_line(late), "yellow"))
