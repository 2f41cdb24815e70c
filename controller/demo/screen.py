"""The demo's screen: a live picture of 80 columns by 24 lines, or plain lines for a pipe."""

from __future__ import annotations

import math
import time
from datetime import datetime
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from controller.core.evidence import ArmTotals, quantile
from controller.core.judging.judgement import MetricReport
from controller.core.rollout import Baking, Gating
from controller.demo.apps import Report
from controller.demo.ending import is_at_rest
from controller.demo.observer import Course
from controller.demo.scenarios import Scenario
from schemas.plan import PlanDocument
from schemas.terms import Arm, DecisionKind, PhaseName, Severity, Verdict

_BAR_CELLS = 10
_OTHER_LINES = 19  # everything but the list of events
_FEWEST_EVENTS = 4
_COLORS = {
    DecisionKind.ADVANCE: "green",
    DecisionKind.COMPLETE: "bold green",
    DecisionKind.ROLL_BACK: "bold red",
    DecisionKind.PAUSE: "bold yellow",
    DecisionKind.HOLD: "yellow",
}
_SEVERITY_COLORS = {
    Severity.CRITICAL: "bold red",
    Severity.WARNING: "yellow",
    Severity.INFO: "dim",
}


class Screen(Protocol):
    """Shows the course of the demo."""

    def served_at(self, url: str) -> None:
        """Show where the daemon's page is, for as long as the demo runs."""

    def add_line(self, line: Text) -> None:
        """Add a line to the list of events."""

    def show(self, course: Course, report: Report, state: str) -> None:
        """Show the present state. `state` describes it before the rollout has begun."""

    def close(self) -> None:
        """Stop updating; the picture stays."""


class Terminal:
    """A live picture."""

    def __init__(
        self, console: Console, scenario: Scenario, plan: PlanDocument, advisor_words: str
    ) -> None:
        self._console, self._scenario, self._plan, self._advisor_words = (
            console,
            scenario,
            plan,
            advisor_words,
        )
        self._events: list[Text] = []
        self._page = Text()
        self._rate = _Rate()
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._live.start()

    def served_at(self, url: str) -> None:
        self._page = Text.assemble((" the page, while this runs: ", "dim"), url)

    def add_line(self, line: Text) -> None:
        self._events.append(line)

    def show(self, course: Course, report: Report, state: str) -> None:
        self._rate.update(report)
        rows: list[RenderableType] = [self._head(), _one_line(self._page)]
        if course.rollout is None:
            rows += [Text(f" {state}", "dim"), Text()]
        else:
            rows += [
                self._journey(course),
                self._served(course, report),
                Text(),
                _arms(course),
                Text(),
                *_metrics(course, self._console),
                Text(),
            ]
        room = max(_FEWEST_EVENTS, self._console.height - _OTHER_LINES)
        rows += self._events[-room:]
        self._live.update(Group(*rows), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _head(self) -> RenderableType:
        title = Text.assemble(
            (" rolloutd demo ", "bold reverse"), f" {self._scenario.name}: {self._scenario.title}"
        )
        return Group(_one_line(title), _one_line(Text(f" {self._advisor_words}", "dim")))

    def _journey(self, course: Course) -> Text:
        """Return the stages, and where among them the rollout is."""
        rollout = course.rollout
        assert rollout is not None
        name = rollout.phase.name
        reached = rollout.visits[-1].stage if rollout.visits else -1
        line = Text(" ")
        for index, stage in enumerate(self._plan.stages):
            is_done = index < reached or name is PhaseName.COMPLETED
            mark, style = ("✓", "green") if is_done else ("○", "dim")
            if index == reached and not is_done:
                is_lost = name in (PhaseName.ROLLED_BACK, PhaseName.ABORTED)
                mark, style = (
                    ("✗", "bold red")
                    if is_lost
                    else ("●", "bold yellow" if is_at_rest(rollout) else "bold cyan")
                )
            line.append(f"{mark} {stage.percent:g} %", style)
            line.append("   ")
        line.append(_phase_words(course), "bold")
        return _one_line(line)

    def _served(self, course: Course, report: Report) -> Text:
        decided = course.rollout.percent if course.rollout else 0.0
        lowest, highest = min(report.percents, default=0.0), max(report.percents, default=0.0)
        served = f"{lowest:g} %" if lowest == highest else f"{lowest:g} to {highest:g} %"
        line = Text(
            f" {len(report.percents)} apps serve {served}",
            "dim" if lowest == highest == decided else "yellow",
        )
        line.append(
            " · all traffic has stopped"
            if report.is_silent
            else f" · {self._rate.per_second:,.0f} requests/s",
            "dim",
        )
        line.append(f" · {report.treated_users:,} users on the new version", "dim")
        return _one_line(line)


class Lines:
    """Plain lines, for a pipe or a log."""

    def __init__(self, console: Console, scenario: Scenario, advisor_words: str) -> None:
        self._console = console
        console.print(
            f"rolloutd demo, {scenario.name}: {scenario.title}. {advisor_words}",
            soft_wrap=True,
            highlight=False,
        )

    def served_at(self, url: str) -> None:
        self._console.print(f"the page, while this runs: {url}", soft_wrap=True, highlight=False)

    def add_line(self, line: Text) -> None:
        self._console.print(line.plain.strip(), soft_wrap=True, highlight=False)

    def show(self, course: Course, report: Report, state: str) -> None:
        """Show nothing: events come as lines, and pictures are for terminals."""

    def close(self) -> None:
        """Do nothing."""


class Silent:
    """Nothing at all, for `--json`."""

    def served_at(self, url: str) -> None:
        """Do nothing."""

    def add_line(self, line: Text) -> None:
        """Do nothing."""

    def show(self, course: Course, report: Report, state: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def decision_line(decision: dict[str, Any], started_at: datetime) -> Text:
    """Return a decision as one line."""
    kind = DecisionKind(decision["kind"])
    moved = (
        f"{decision['from_percent']:g} → {decision['to_percent']:g} %"
        if decision["from_percent"] != decision["to_percent"]
        else f"{decision['to_percent']:g} %"
    )
    at = datetime.fromisoformat(decision["at"])
    line = Text.assemble(
        (f" {_elapsed(at, started_at)} ", "dim"),
        (f"{kind.value.replace('_', ' '):<10}", _COLORS.get(kind, "bold")),
        f"{moved:<12}",
        decision["reason"],
    )
    return _one_line(line)


def advice_line(decision: dict[str, Any], is_stand_in: bool) -> Text | None:
    """Return the model's advice before a decision, None without advice."""
    advice = decision["advice"]
    if advice is None:
        return None
    author = "scripted stand-in" if is_stand_in else advice["model"]
    return _one_line(
        Text.assemble(
            "        ",
            ("advice    ", "cyan"),
            f"{author}: {advice['choice']}: {'; '.join(advice['reasons'])}",
        )
    )


def alert_line(alert: dict[str, Any]) -> Text:
    """Return an alert as one line."""
    severity = Severity(alert["severity"])
    return _one_line(
        Text.assemble(
            "        ",
            ("alert     ", _SEVERITY_COLORS[severity]),
            f"{severity.value}: {alert['summary']}",
        )
    )


class _Rate:
    """Requests per second, smoothed."""

    def __init__(self) -> None:
        self.per_second = 0.0
        self._measured: tuple[float, int] | None = None

    def update(self, report: Report) -> None:
        now = time.monotonic()
        if self._measured is not None and now - self._measured[0] >= 1.0:
            self.per_second = (report.requests - self._measured[1]) / (now - self._measured[0])
            self._measured = None
        if self._measured is None:
            self._measured = (now, report.requests)


def _phase_words(course: Course) -> str:
    rollout = course.rollout
    assert rollout is not None
    name = rollout.phase.name.value.replace("_", " ")
    if isinstance(rollout.phase, Baking | Gating):
        hold = f": holding, {rollout.hold}" if rollout.hold is not None else ""
        return f"{name}{hold}"
    return name


def _arms(course: Course) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 1), show_edge=False, header_style="dim")
    table.add_column("this stage", min_width=9)
    for name in ("users", "requests", "failed requests", "p50", "p99"):
        table.add_column(name, justify="right", min_width=8)
    for arm in (Arm.TREATMENT, Arm.CONTROL):
        counted = course.totals.arm(arm)
        table.add_row(arm.value, *_arm_cells(counted))
    return table


def _arm_cells(counted: ArmTotals) -> tuple[str, ...]:
    if counted.outcomes == 0:
        return (f"{counted.exposures:,}", "0", "–", "–", "–")
    p50, p99 = (quantile(counted.latency_all, q) for q in (0.5, 0.99))
    return (
        f"{counted.exposures:,}",
        f"{counted.outcomes:,}",
        f"{100 * counted.errors / counted.outcomes:.2f} %",
        *(("–" if value is None else f"{value:.0f} ms") for value in (p50, p99)),
    )


def _metrics(course: Course, console: Console) -> list[RenderableType]:
    """Return three lines per guardrail: how far its two tests have come, and the reason in words.

    A reason longer than two lines is cut.
    """
    judgement = course.judgement
    metrics = list(judgement.metrics) if judgement is not None else []
    lines: list[RenderableType] = []
    for metric in metrics[:2]:
        lines += [_bars(metric), *_two_lines(metric.reason, console)]
    gaps = [] if judgement is None else [f"{gap.kind}: {gap.detail}" for gap in judgement.gaps]
    lines += [Text()] * (6 - len(lines))
    lines.append(
        _one_line(Text(f" not enough data yet: {'; '.join(gaps)}", "yellow")) if gaps else Text()
    )
    return lines


def _two_lines(reason: str, console: Console) -> list[Text]:
    """Return a reason over exactly two lines, three columns in."""
    lines = list(Text(reason, "dim").wrap(console, max(console.width - 3, 10)))
    first, rest = lines[0], Text(" ").join(lines[1:])
    return [_one_line(Text.assemble("   ", each)) for each in (first, rest)]


def _bars(metric: MetricReport) -> Text:
    line = Text(f" {metric.metric:<12}", "bold")
    harm_style = "bold red" if metric.harm is Verdict.FAIL else "red"
    line.append("harm ")
    line.append(_bar(metric.e_value, metric.threshold), harm_style)
    line.append(
        " yes" if metric.harm is Verdict.FAIL else " no ",
        harm_style if metric.harm is Verdict.FAIL else "dim",
    )
    if metric.e_value_safe is not None and metric.threshold_safe is not None:
        line.append("    safe ")
        line.append(_bar(metric.e_value_safe, metric.threshold_safe), "green")
        line.append(
            " yes" if metric.safe is Verdict.PASS else " not yet",
            "bold green" if metric.safe is Verdict.PASS else "dim",
        )
    return _one_line(line)


def _bar(e_value: float, threshold: float) -> str:
    """Return a bar of how near the evidence is to the threshold, on a log scale."""
    share = math.log(max(e_value, 1.0)) / math.log(threshold) if threshold > 1 else 1.0
    filled = min(_BAR_CELLS, int(share * _BAR_CELLS))
    return "█" * filled + "░" * (_BAR_CELLS - filled)


def _elapsed(at: datetime, started_at: datetime) -> str:
    return f"{(at - started_at).total_seconds():5.1f} s"


def _one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
