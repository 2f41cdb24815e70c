"""The demo's screen: a live picture of 80 columns by 24 lines, or plain lines for a pipe."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.segment import Segment
from rich.text import Text

from controller.demo.apps import Report
from controller.demo.scenarios import Scenario
from controller.text import plural
from schemas.terms import DecisionKind, Severity

#: Alerts and advice below the rollout, which shows its decisions itself.
_MOST_NEWS = 3
_LOWEST_TREE = 8
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

    #: Whether it shows pictures, and not only events.
    is_live: bool

    def served_at(self, url: str) -> None:
        """Show where the daemon's page is, for as long as the demo runs."""

    def add_line(self, line: Text) -> None:
        """Add a line to the list of events."""

    def show(self, report: Report, rollout: RenderableType) -> None:
        """Show the present state: what the apps know, and the rollout as the daemon shows it."""

    def close(self) -> None:
        """Stop updating; the picture stays."""


class Terminal:
    """A live picture: the apps, and the rollout as `rolloutctl get --watch` shows it."""

    is_live = True

    def __init__(self, console: Console, scenario: Scenario, advisor_words: str) -> None:
        self._console, self._scenario, self._advisor_words = console, scenario, advisor_words
        self._news: list[Text] = []
        self._page = Text()
        self._rate = _Rate()
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._live.start()

    def served_at(self, url: str) -> None:
        self._page = Text.assemble((" the page, while this runs: ", "dim"), url)

    def add_line(self, line: Text) -> None:
        self._news.append(line)

    def show(self, report: Report, rollout: RenderableType) -> None:
        self._rate.update(report)
        head = [*self._head(), _one_line(self._page), self._served(report), Text()]
        news = self._news[-_MOST_NEWS:]
        room = max(self._console.height - len(head) - len(news) - 1, _LOWEST_TREE)
        options = self._console.options.update(height=room)
        lines = self._console.render_lines(Padding(rollout, (0, 1)), options, pad=False)
        self._live.update(Group(*head, _Lines(_trimmed(lines)), *news), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _head(self) -> Sequence[RenderableType]:
        title = Text.assemble(
            (" rolloutd demo ", "bold reverse"), f" {self._scenario.name}: {self._scenario.title}"
        )
        return [_one_line(title), _one_line(Text(f" {self._advisor_words}", "dim"))]

    def _served(self, report: Report) -> Text:
        lowest, highest = min(report.percents, default=0.0), max(report.percents, default=0.0)
        served = f"{lowest:g} %" if lowest == highest else f"{lowest:g} to {highest:g} %"
        line = Text(f" {len(report.percents)} apps serve {served}", "dim")
        line.append(
            " · all traffic has stopped"
            if report.is_silent
            else f" · {self._rate.per_second:,.0f} requests/s",
            "dim",
        )
        line.append(f" · {plural(report.treated_users, 'user')} on the new version", "dim")
        return _one_line(line)


class _Lines:
    """Lines that were rendered before."""

    def __init__(self, lines: Sequence[Sequence[Segment]]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._lines:
            yield from line
            yield Segment.line()


def _trimmed(lines: Sequence[Sequence[Segment]]) -> Sequence[Sequence[Segment]]:
    """Return the lines without the empty ones at their end, which fill a given height."""
    kept = list(lines)
    while kept and not "".join(segment.text for segment in kept[-1]).strip():
        kept.pop()
    return kept


class Lines:
    """Plain lines, for a pipe or a log."""

    is_live = False

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

    def show(self, report: Report, rollout: RenderableType) -> None:
        """Show nothing: events come as lines, and pictures are for terminals."""

    def close(self) -> None:
        """Do nothing."""


class Silent:
    """Nothing at all, for `--json`."""

    is_live = False

    def served_at(self, url: str) -> None:
        """Do nothing."""

    def add_line(self, line: Text) -> None:
        """Do nothing."""

    def show(self, report: Report, rollout: RenderableType) -> None:
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


def _elapsed(at: datetime, started_at: datetime) -> str:
    return f"{(at - started_at).total_seconds():5.1f} s"


def _one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
