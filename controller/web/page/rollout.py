"""The screen of one rollout: whether it is safe, and what happens next.

Belongs here: what the screen shows. Does not belong here: the words (`reporting/`), the drawings
(`drawing.py`), HTML (`templates/`), and HTTP (`routes.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import ValidationError

from controller.core.rollout import Rollout
from controller.core.serving import percent_to_serve
from controller.errors import StoreUnavailable
from controller.reporting.command_lines import WHAT, command_line
from controller.reporting.comparison import bound_words, comparison_of
from controller.reporting.evidence_words import (
    estimate,
    harm_words,
    incomplete_words,
    legend,
    proven_words,
    ratio_legend,
    verdict_words,
    worse_words,
)
from controller.reporting.fitting import fitting_commands
from controller.reporting.headline import headline
from controller.reporting.progress import GateCheckState, gate_checks, proof_share
from controller.reporting.situation import Situation, about
from controller.reporting.unwatched import Unwatched
from controller.reporting.views import MARKS_OF_STAGES, ladder, stage_views
from controller.text import one_line
from controller.web.flags import FlagBoard
from controller.web.incidents import Incidents
from controller.web.page.buttons import VisitorRights, button_rows
from controller.web.page.charts import charts
from controller.web.page.drawing import interval
from controller.web.page.fleet import quiet
from controller.web.page.incident_screen import flag_rows, of_flag
from controller.web.page.rendering import Renderer, ScreenSection
from controller.web.reports import ReportSource
from schemas.api import AlertEvent, DecisionEvent, FittingCommand, ResultEvent
from schemas.decision import Decision, JudgementRecord, MetricRecord
from schemas.notifications import IncidentEntry
from schemas.report import LiveReport, PlaneRecord, StageHistory
from schemas.terms import Arm, CommandStatus

#: Decisions, alerts and refused commands shown.
NEWS: Final = 15
#: Advice shown: one round each.
ADVICE: Final = 5
#: Metrics shown; a plan has fewer than ten.
METRICS: Final = 20
#: Words such as `in 4m 10s`, and charts, change no more often than this.
QUIET: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a rollout at one moment."""

    rollout: Rollout
    report: LiveReport | None
    decisions: Sequence[DecisionEvent]  # newest first
    alerts: Sequence[AlertEvent]
    trouble: str | None  # why there may be more that cannot be had
    incidents: Sequence[IncidentEntry] = ()  # open ones
    unwatched: Unwatched | None = None
    refused: Sequence[ResultEvent] = ()  # commands, newest first

    def is_like(self, other: Known | None) -> bool:
        """Return whether a screen of this shows the same, but for the time."""
        if other is None or self.rollout is not other.rollout or self.trouble != other.trouble:
            return False
        if (self.unwatched is None) != (other.unwatched is None):
            return False
        return (
            _told(self.report) == _told(other.report)
            and self.incidents == other.incidents
            and [one.id for one in self.decisions] == [one.id for one in other.decisions]
            and [one.id for one in self.alerts] == [one.id for one in other.alerts]
            and [one.id for one in self.refused] == [one.id for one in other.refused]
        )


def _told(report: LiveReport | None) -> object:
    if report is None:
        return None
    judged = None if report.judgement is None else report.judgement.at
    return judged, [(one.plane, one.percent, one.reason) for one in report.planes]


class RolloutScreen:
    """Makes the sections of a rollout's screen."""

    def __init__(
        self,
        board: FlagBoard,
        reports: ReportSource,
        renderer: Renderer,
        now: Callable[[], datetime],
        incidents: Incidents | None = None,
    ) -> None:
        """`incidents` None: nobody is notified."""
        self._incidents = incidents
        self._board = board
        self._reports = reports
        self._renderer = renderer
        self._now = now

    @property
    def moment(self) -> int:
        """The time as the screen's words use it: the same number, the same words."""
        return int(self._now().timestamp() // QUIET.total_seconds())

    async def known(self, rollout: Rollout) -> Known:
        """Return what is known of a rollout; without Redis, what is known all the same."""
        report: LiveReport | None = None
        decisions: list[DecisionEvent] = []
        alerts: list[AlertEvent] = []
        refused: list[ResultEvent] = []
        trouble = None
        try:
            report = await self._reports.report(rollout)
            found = await self._reports.news(rollout.flag_key, "decisions")
            decisions = [one for event in found if (one := _decision(event)) is not None]
            found = await self._reports.news(rollout.flag_key, "alerts")
            alerts = [told for event in found if (told := _alert(event)) is not None]
            found = await self._reports.news(rollout.flag_key, "results")
            refused = [one for one in map(_refused, found) if one is not None]
        except StoreUnavailable as away:
            trouble = f"Redis is away, and has evidence and history: {one_line(str(away))}"
        view = None if self._incidents is None else (await self._incidents.known())[0]
        incidents = of_flag(view, rollout.flag_key)
        unwatched = self._reports.unwatched(rollout)
        return Known(rollout, report, decisions, alerts, trouble, incidents, unwatched, refused)

    async def _history(self, rollout: Rollout) -> StageHistory | None:
        """Return the course of the present stage; None where it cannot be had, or has none."""
        if not rollout.visits:
            return None
        try:
            return await self._reports.history(rollout, rollout.visit_index)
        except StoreUnavailable:
            return None  # `known` says so

    async def sections(
        self, known: Known, steering: VisitorRights | None = None
    ) -> list[ScreenSection]:
        """Return the screen. `steering` is what who looks at it may do; None: it only shows."""
        rollout, report = known.rollout, known.report
        now = max(quiet(self._now(), QUIET), rollout.updated_at)
        oldest_first = [one.data for one in reversed(known.decisions)]
        newest = None if report is None else report.judgement
        situation = Situation(rollout, oldest_first, now, newest, known.unwatched)
        judgement = situation.judgement
        if judgement is not None and judgement.visit != rollout.visit_index:
            judgement = None
        gaps = [] if judgement is None else [f"{one.kind}: {one.detail}" for one in judgement.gaps]
        commands = fitting_commands(rollout, now, gaps)
        values: dict[str, Any] = {
            "flag": rollout.flag_key,
            "plan": rollout.plan,
            "rollout": rollout,
            "head": headline(situation),
            "incidents": flag_rows(known.incidents),
            "safe": situation.safe_to_advance,
            "situation": situation,
            "at": None if judgement is None else judgement.at,
            "trouble": known.trouble,
            "stale_since": self._board.stale_since,
            "why_stale": self._board.why_stale,
            "stages": _stages(rollout, now),
            "checks": [
                {
                    "name": one.name,
                    "state": one.state.value,
                    "why": one.why,
                    "mark": one.state.mark,
                }
                for one in gate_checks(situation)
            ],
            "judgement": judgement,
            "verdict": "" if judgement is None else verdict_words(judgement),
            "metrics": [] if judgement is None else _metrics(judgement),
            "legend": []
            if judgement is None
            else [*ratio_legend(judgement), *legend(judgement, rollout)],
            "users": {}
            if judgement is None
            else {arm.value: judgement.exposures.get(arm, 0) for arm in Arm},
            "incomplete": "" if judgement is None else incomplete_words(judgement),
            "harm": "" if judgement is None else harm_words(judgement),
            "charts": charts(await self._history(rollout), judgement),
            "planes": [] if report is None else [_plane(one, rollout) for one in report.planes],
            "advice": _advice(oldest_first),
            **button_rows(commands, rollout, steering),
            "fitting": [_command(one, rollout) for one in commands if one.fits],
            "unfitting": [_command(one, rollout) for one in commands if not one.fits],
            "news": _news(known),
        }
        return self._renderer.blocks("rollout.html", values)


def _plane(plane: PlaneRecord, rollout: Rollout) -> dict[str, Any]:
    """Return whether a plane serves what is decided now; its report may be older than that."""
    is_asked = plane.decided_percent == percent_to_serve(rollout)
    state = "blocks" if not plane.is_converged else "passed" if is_asked else "open"
    why = plane.reason or ""
    if state == "open":
        why = f"not asked yet since {percent_to_serve(rollout):g} % was decided"
    elif state == "blocks":
        why = f"decided {plane.decided_percent:g} %: {why}"
    return {"view": plane, "state": state, "why": why, "mark": GateCheckState(state).mark}


def _stages(rollout: Rollout, now: datetime) -> list[dict[str, Any]]:
    """Return the stages with their marks, and for how long each lasted."""
    stages = []
    for stage, (state, _) in zip(stage_views(rollout), ladder(rollout), strict=True):
        entered = stage.entered_at
        lasted = "" if entered is None else about((stage.left_at or now) - entered)
        words = "rolled back here" if state == "back" else state
        stages.append(
            {
                "view": stage,
                "state": state,
                "words": words,
                "lasted": lasted,
                "mark": MARKS_OF_STAGES[state],
            }
        )
    return stages


def _metrics(judgement: JudgementRecord) -> list[dict[str, Any]]:
    return [_metric(one) for one in judgement.metrics[:METRICS]]


def _metric(metric: MetricRecord) -> dict[str, Any]:
    comparison = comparison_of(metric)
    return {
        "name": metric.metric,
        "role": metric.role.value,
        "new": estimate(metric, Arm.TREATMENT),
        "old": estimate(metric, Arm.CONTROL),
        "words": comparison.words,
        "drawing": interval(comparison),
        "bound": bound_words(metric),
        "worse": worse_words(metric),
        "is_worse": metric.harm.value == "fail",
        "proven": proven_words(metric),
        "percent": math.floor(100 * proof_share(metric)),
        "reason": metric.reason,
        "trials": {arm.value: _trials(metric, arm) for arm in Arm},
    }


def _trials(metric: MetricRecord, arm: Arm) -> int:
    measured = metric.arms.get(arm)
    return 0 if measured is None else measured.trials


def _advice(decisions: Sequence[Decision]) -> list[dict[str, Any]]:
    """Return the newest advice of each gate, newest first."""
    by_gate = {one.gate_id: one for one in decisions if one.advice is not None}
    newest = list(by_gate.values())[::-1][:ADVICE]
    return [{"at": one.at, "stage": one.stage_name or "", "advice": one.advice} for one in newest]


def _command(command: FittingCommand, rollout: Rollout) -> dict[str, Any]:
    return {
        "verb": command.verb.value.replace("_", " "),
        "what": WHAT[command.verb],
        "line": command_line(command, rollout),
        "why_not": command.why_not or "",
        "after": f"{command.percent:g} %, {command.phase.value.replace('_', ' ')}",
        "raises": command.raises,
    }


def _news(known: Known) -> list[dict[str, Any]]:
    """Return decisions and alerts in one list, newest first."""
    news: list[dict[str, Any]] = []
    for decision in known.decisions:
        one = decision.data
        change = (
            ""
            if one.from_percent == one.to_percent
            else (f"{one.from_percent:g} % → {one.to_percent:g} %")
        )
        news.append(
            {
                "at": one.at,
                "is_alert": False,
                "what": one.kind.value.replace("_", " "),
                "change": change,
                "text": one.reason,
                "by": one.issuer,
                "action": "",
                "severity": "",
                "revision": one.revision,
            }
        )
    for alert in known.alerts:
        told = alert.data
        news.append(
            {
                "at": told.at,
                "is_alert": True,
                "what": told.kind.value.replace("_", " "),
                "change": "",
                "text": told.summary,
                "by": "",
                "action": told.action,
                "severity": told.severity.value,
                "revision": told.revision,
            }
        )
    for event in known.refused:
        result = event.data
        verb = "a command" if result.verb is None else result.verb.value.replace("_", " ")
        news.append(
            {
                "at": result.at,
                "is_alert": False,
                "what": f"refused: {verb}",
                "change": "",
                "text": result.reason,
                "by": result.issuer or "",
                "action": "",
                "severity": "",
                "revision": result.revision,
            }
        )
    return sorted(news, key=lambda one: one["at"], reverse=True)[:NEWS]


def _decision(event: dict[str, Any]) -> DecisionEvent | None:
    """Return a decision; None for one that a newer release wrote and this one cannot read."""
    try:
        return DecisionEvent.model_validate(event)
    except ValidationError:
        return None


def _refused(event: dict[str, Any]) -> ResultEvent | None:
    """Return the result of a command that was refused, None for any other."""
    try:
        told = ResultEvent.model_validate(event)
    except ValidationError:
        return None
    return told if told.data.status is CommandStatus.REJECTED else None


def _alert(event: dict[str, Any]) -> AlertEvent | None:
    try:
        return AlertEvent.model_validate(event)
    except ValidationError:
        return None
