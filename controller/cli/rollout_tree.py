"""One rollout as a tree for the terminal: stages, gate, evidence, planes, news, commands.

Belongs here: layout. Does not belong here: words and estimates (`controller/reporting/`), which the
page shows, too.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from controller.core.rollout import Rollout
from controller.reporting.axis import axis_of
from controller.reporting.command_lines import command_line
from controller.reporting.comparison import bound_words, comparison_of
from controller.reporting.evidence_words import (
    estimate,
    harm_words,
    incomplete_words,
    proven_words,
    ratio_legend,
    worse_words,
)
from controller.reporting.fitting import fitting_commands
from controller.reporting.headline import Headline, Tone, headline
from controller.reporting.progress import GateCheckState, gate_checks, proof_share
from controller.reporting.situation import Situation, about, clock
from controller.reporting.views import MARKS_OF_STAGES, ladder, stage_views
from controller.text import one_line
from schemas.decision import Decision, JudgementRecord, MetricRecord
from schemas.terms import Arm, CommandVerb, MetricRole, Verdict

#: Decisions shown, the newest last.
NEWS: Final = 5
BRIEF_NEWS: Final = 3
#: Columns of a drawn interval, and of a bar.
_AXIS: Final = 29
_BAR: Final = 10
#: Branches that a low terminal does without, the first to go first.
_GIVE_WAY: Final = ("commands", "gate", "planes")
_GUIDE: Final = "│  "
_NARROWEST: Final = 20
_TONES: Final = {
    Tone.HARM: "bold red",
    Tone.WAITS: "bold yellow",
    Tone.UNKNOWN: "bold yellow",
    Tone.MOVES: "bold cyan",
    Tone.DONE: "bold green",
    Tone.RESTS: "dim",
}
_STAGES: Final = {"done": "green", "present": "bold cyan", "back": "bold red"}
_CHECKS: Final = {
    GateCheckState.PASSED: "green",
    GateCheckState.OPEN: "yellow",
    GateCheckState.BLOCKS: "bold red",
}
#: Shown last, as they are rarely what a person wants next.
_SELDOM: Final = {
    CommandVerb.FREEZE,
    CommandVerb.RETRY,
    CommandVerb.ABORT,
    CommandVerb.PROMOTE_FULL,
}


def rollout_tree(
    situation: Situation, planes: Sequence[Mapping[str, Any]] | None, trouble: str = ""
) -> RenderableType:
    """Return a rollout as a tree. Where it is given a height, its last resorts give way first.

    `planes` are a daemon's answers, None where none was asked. `trouble` says what is
    not at hand; empty for nothing.
    """
    judgement = situation.judgement
    rollout = situation.rollout
    branches = [_Branch("stages", "stages", _stages(situation), _stages_in_a_line(rollout))]
    if checks := _checks(situation):
        branches.append(_Branch("gate", f"gate of stage {situation.stage_number}", checks))
    if judgement is not None:
        title = _evidence_title(situation, judgement)
        facts = Group(*_facts(judgement))
        branches.append(_Branch("evidence", title, _evidence(judgement), facts))
    if planes:
        branches.append(_Branch("planes", "served by", _planes(planes)))
    if situation.decisions:
        news = _news(situation.decisions, situation.now)
        brief = _news(situation.decisions[-BRIEF_NEWS:], situation.now, is_brief=True)
        branches.append(_Branch("decisions", "last decisions", news, brief))
    branches.append(_Branch("commands", "commands that fit", _commands(situation)))
    return _Tree(_head(situation, headline(situation)), branches, trouble)


@dataclass(frozen=True, slots=True)
class _Branch:
    """One part of the tree, with a title of its own. `brief` is for a low terminal."""

    name: str
    title: str
    content: RenderableType
    brief: RenderableType | None = None


@dataclass(frozen=True, slots=True)
class _Tree:
    """The head, the branches that have room, and the end, which says what has none."""

    head: RenderableType
    branches: Sequence[_Branch]
    trouble: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        inside = options.update(height=None)
        lines = console.render_lines(self._whole(), inside, pad=False)
        if options.height is not None and len(lines) > options.height:
            for count in range(len(_GIVE_WAY) + 1):
                lines = console.render_lines(self._brief(_GIVE_WAY[:count]), inside, pad=False)
                if len(lines) <= options.height:
                    break
        for line in lines[: options.height]:
            yield from line
            yield Segment.line()

    def _whole(self) -> RenderableType:
        branches = [(one.title, one.content) for one in self.branches]
        return Group(self.head, *_branches(branches), self._end(""))

    def _brief(self, left_out: Container[str]) -> RenderableType:
        """Return the tree in fewer lines, without the branches of these names."""
        branches = [
            (one.title, one.content if one.brief is None else one.brief)
            for one in self.branches
            if one.name not in left_out
        ]
        names = [one.name for one in self.branches if one.name in left_out]
        more = ", ".join(["more words", *names])
        end = self._end(f"a terminal with more lines shows {more}")
        return Group(self.head, *_branches(branches), end)

    def _end(self, remark: str) -> Text:
        words = "; ".join(part for part in (one_line(self.trouble), remark) if part)
        return Text(f"└─ {words}".rstrip(), "yellow" if self.trouble else "dim")


def _head(situation: Situation, head: Headline) -> RenderableType:
    rollout = situation.rollout
    owner = f" · {rollout.plan.owner}" if rollout.plan.owner else ""
    facts = f"{rollout.plan.name}{owner} · revision {rollout.revision}"
    title = Text.assemble(
        (f"{head.mark} ", _TONES[head.tone]),
        (rollout.flag_key, "bold"),
        (f"  {one_line(facts)}", "dim"),
    )
    lines: list[RenderableType] = [
        title,
        Padding(Text(head.now, _TONES[head.tone]), (0, 0, 0, 2), expand=False),
    ]
    if head.next:
        words = Text(f"waits for {head.next}", "dim")
        lines.append(Padding(words, (0, 0, 0, 2), expand=False))
    return Group(*lines)


class _Guided:
    """Content with a line of the tree at its left."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        inside = options.update(width=max(options.max_width - len(_GUIDE), _NARROWEST))
        style = console.get_style("dim")
        for line in console.render_lines(self._content, inside, pad=False):
            yield Segment(_GUIDE, style)
            yield from line
            yield Segment.line()


def _branches(branches: Iterable[tuple[str, RenderableType]]) -> Iterator[RenderableType]:
    """Yield each branch: its title behind a line of the tree, and its content under it."""
    for title, content in branches:
        yield Text.assemble(("├─ ", "dim"), (title, "bold"))
        yield _Guided(content)


def _grid(*columns: int) -> Table:
    """Return a table without borders whose first columns have at least these widths."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for width in columns:
        grid.add_column(min_width=width, no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _stages(situation: Situation) -> Table:
    rollout, now = situation.rollout, situation.now
    grid = _grid(8, 8)
    for stage, (state, percent) in zip(stage_views(rollout), ladder(rollout), strict=True):
        of = "" if stage.audience is None else f" of {stage.audience}"
        style = _STAGES.get(state, "dim")
        lasted = ""
        if stage.entered_at is not None:
            ended = situation.since if rollout.has_ended else now
            lasted = about((stage.left_at or ended) - stage.entered_at)
        words = []
        if stage.name != f"{percent:g}%":
            words.append(stage.name)
        if state == "present":
            words.append(situation.brief)
        elif state == "back":
            words.append("rolled back here")
        elif stage.needs_approval and state == "ahead":
            words.append("ends with a person's approval")
        grid.add_row(
            Text(f"{MARKS_OF_STAGES[state]} {percent:g} %{of}", style),
            Text(lasted, "dim"),
            Text(one_line(" · ".join(words)), "" if state == "present" else "dim"),
        )
    return grid


def _stages_in_a_line(rollout: Rollout) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for state, percent in ladder(rollout):
        line.append(f"{MARKS_OF_STAGES[state]} {percent:g} %   ", _STAGES.get(state, "dim"))
    return line


def _checks(situation: Situation) -> Table | None:
    checks = gate_checks(situation)
    if not checks:
        return None
    grid = _grid(12)
    for check in checks:
        style = _CHECKS.get(check.state, "dim")
        grid.add_row(Text(f"{check.state.mark} {check.name}", style), Text(one_line(check.why)))
    return grid


def _evidence_title(situation: Situation, judgement: JudgementRecord) -> str:
    users = " against ".join(f"{judgement.exposures.get(arm, 0):,}" for arm in Arm)
    age = f"{about(situation.now - judgement.at)} ago"
    is_old = judgement is not situation.newest and not situation.rollout.has_ended
    return f"evidence {'of the last decision, ' if is_old else ''}{age}: users {users}"


def _evidence(judgement: JudgementRecord) -> RenderableType:
    rows = _facts(judgement)
    rows += [Text(words, "dim") for words in (*ratio_legend(judgement), harm_words(judgement))]
    return Group(*rows)


def _facts(judgement: JudgementRecord) -> list[RenderableType]:
    """Return the gaps and the metrics, without a legend."""
    rows: list[RenderableType] = [
        Text(one_line(f"{gap.kind.replace('_', ' ')}: {gap.detail}"), "yellow")
        for gap in judgement.gaps
    ]
    if incomplete := incomplete_words(judgement):
        rows.insert(0, Text(one_line(incomplete), "yellow"))
    for metric in judgement.metrics:
        rows += _metric(metric)
    return rows


def _metric(metric: MetricRecord) -> list[RenderableType]:
    """Return three lines: the arms with their difference, the interval, and both answers."""
    comparison = comparison_of(metric)
    is_worse, is_safe = metric.harm is Verdict.FAIL, metric.safe is Verdict.PASS
    arms = f"{estimate(metric, Arm.TREATMENT)} against {estimate(metric, Arm.CONTROL)}"
    role = "" if metric.role is MetricRole.GUARDRAIL else f" ({metric.role.value})"
    first = Text.assemble((one_line(metric.metric), "bold"), f"{role}  {arms}  {comparison.words}")
    second = Text.assemble("  ", interval(metric), (f"  asked: {bound_words(metric)}", "dim"))
    share = proof_share(metric)
    third = Text.assemble(
        "  worse? ",
        (worse_words(metric), "bold red" if is_worse else "bold"),
        "   proven safe? ",
        (f"{proven_words(metric)} {bar(share)}", "green" if is_safe else "yellow"),
        (f" {math.floor(100 * share)} %", "dim"),
    )
    return [first, second, third]


def interval(metric: MetricRecord) -> Text:
    """Return a metric's interval on one line: `├──●───┤`, `|` for equal arms, `┃` for the bound.

    The bound is drawn over the interval, and the estimate over both.
    """
    axis = axis_of(comparison_of(metric))
    cells = [(" ", "dim")] * _AXIS

    def column(share: float) -> int:
        return round(share * (_AXIS - 1))

    if axis.is_bounded:
        low, high = column(axis.low or 0.0), column(1.0 if axis.high is None else axis.high)
        cells[low : high + 1] = [("─", "")] * (high + 1 - low)
        if axis.low is not None:
            cells[low] = ("├", "")
        if axis.high is not None:
            cells[high] = ("┤", "")
    if axis.equal is not None:
        cells[column(axis.equal)] = ("|", "dim")
    if axis.line is not None:
        cells[column(axis.line)] = ("┃", "red")
    if axis.value is not None:
        cells[column(axis.value)] = ("●", "bold")
    return Text.assemble(("[", "dim"), *cells, ("]", "dim"))


def bar(share: float) -> str:
    """Return a bar that is full for 1 only."""
    filled = math.floor(min(max(share, 0.0), 1.0) * _BAR)
    return "█" * filled + "░" * (_BAR - filled)


def _planes(planes: Sequence[Mapping[str, Any]]) -> Table:
    grid = _grid(12)
    for plane in planes:
        is_converged = bool(plane.get("is_converged"))
        name = one_line(str(plane.get("plane")))
        mark, style = ("✓", "green") if is_converged else ("▲", "bold red")
        why = "" if is_converged else f"  not converged: {one_line(str(plane.get('reason')))}"
        percent = plane.get("percent")
        serves = "not known" if percent is None else f"{percent:g} %"
        grid.add_row(Text(f"{mark} {name}", style), Text(f"{serves}{why}"))
    return grid


def _news(decisions: Sequence[Decision], now: datetime, *, is_brief: bool = False) -> Table:
    grid = _grid(12, 9, 10)
    for one in decisions[-NEWS:]:
        is_same = one.from_percent == one.to_percent
        moved = "" if is_same else f"{one.from_percent:g} → "
        by = "" if one.issuer == "rolloutd" else f" (by {one.issuer})"
        why = Text(one_line(f"{one.reason.rstrip(': ')}{by}"), "dim")
        if is_brief:
            why.no_wrap, why.overflow = True, "ellipsis"
        grid.add_row(
            Text(clock(one.at, now), "dim"),
            one.kind.value.replace("_", " "),
            f"{moved}{one.to_percent:g} %",
            why,
        )
    return grid


def _commands(situation: Situation) -> RenderableType:
    rollout, judgement = situation.rollout, situation.judgement
    gaps = [] if judgement is None else [f"{gap.kind}: {gap.detail}" for gap in judgement.gaps]
    fitting = [one for one in fitting_commands(rollout, situation.now, gaps) if one.fits]
    often = [one for one in fitting if one.verb not in _SELDOM]
    lines = [Text(command_line(one, rollout)) for one in often]
    seldom = ", ".join(one.verb.value.replace("_", "-") for one in fitting if one.verb in _SELDOM)
    if seldom:
        lines.append(Text(f"also {seldom}", "dim"))
    return Group(*lines) if lines else Text("none", "dim")
