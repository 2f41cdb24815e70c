"""The fleet screen: is anything wrong, is anything waiting for a person, and all rollouts by line.

Belongs here: what the screen shows. Does not belong here: the words (`reporting/`), HTML
(`templates/`), and HTTP (`routes.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

from controller.core.rollout import Rollout
from controller.errors import StoreUnavailable
from controller.health import Faults
from controller.ports import OF_NO_FLAG
from controller.reporting.headline import MARKS, brief, needs_attention, tone_of
from controller.reporting.situation import Situation
from controller.reporting.views import MARKS_OF_STAGES, Urgency, ladder
from controller.text import one_line
from controller.web.flags import FlagBoard
from controller.web.fleet_order import FleetOrder, FleetSlice, Question
from controller.web.incidents import Incidents
from controller.web.page.incident_screen import waiting_in
from controller.web.page.rendering import Renderer, ScreenSection
from controller.web.questions import LONGEST_SEARCH, MOST_PAGES, Query, number, state_of
from controller.web.reports import ReportSource
from schemas.decision import JudgementRecord

#: Rollouts of one page: with them it stays below 100 kB.
ROWS: Final = 40
#: Rollouts that need a person, shown on top; the list has all of them.
MOST_NEEDS: Final = 8
#: Rows made before other requests get a turn, and reports that are read at a time.
_PER_TURN: Final = 8
#: Refused commands shown, of no flag with a rollout, and for how long.
REFUSED: Final = 5
REFUSED_FOR: Final = timedelta(hours=1)
#: Words such as `in 4m 10s` change no more often than this, so that a quiet page stays quiet.
QUIET: Final = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class FleetView:
    """What one page of the list shows; the key of its stream."""

    part: str = ""
    state: str = ""
    owner: str = ""
    number: int = 1  # of the page, 1 for the first

    @classmethod
    def asked(cls, query: Query) -> FleetView:
        """Return what a query asks for. Raises QuestionRefused for a parameter that is wrong."""

        def of(name: str) -> str:
            return query.get(name, [""])[-1].strip()[:LONGEST_SEARCH]

        state_of(of("state"))
        return cls(of("q"), of("state"), of("owner"), number(query, "page", 1, 1, MOST_PAGES))

    def url(self, path: str = "/", **changed: str | int) -> str:
        """Return the address of this view, or of one that differs."""
        values = {"q": self.part, "state": self.state, "owner": self.owner, "page": self.number}
        values |= changed
        kept = {name: value for name, value in values.items() if value not in ("", 1)}
        return f"{path}?{urlencode(kept)}" if kept else path


class FleetScreen:
    """Makes the sections of the fleet screen."""

    def __init__(
        self,
        board: FlagBoard,
        reports: ReportSource,
        renderer: Renderer,
        now: Callable[[], datetime],
        faults: Faults | None,
        order: FleetOrder,
        incidents: Incidents | None = None,
    ) -> None:
        """`incidents` None: nobody is notified."""
        self._board = board
        self._reports = reports
        self._renderer = renderer
        self._now = now
        self._faults = faults
        self._order = order
        self._incidents = incidents

    async def sections(self, view: FleetView) -> list[ScreenSection]:
        """Return the screen. While it is not known which rollouts there are, it says so."""
        now = quiet(self._now(), QUIET)
        if (why_not := self._board.why_nothing_known) is not None:
            faults = () if self._faults is None else self._faults.current[:10]
            return self._renderer.blocks("unknown.html", {"why": why_not, "faults": faults})
        state = state_of(view.state)
        question = Question(view.part, state, view.owner or None)
        listed = await self._order.listed(question)
        pages = max(1, -(-len(listed.rollouts) // ROWS))
        present = min(view.number, pages)
        shown = listed.rollouts[(present - 1) * ROWS : present * ROWS]
        judged, trouble = await self._judgements(shown)
        rows: dict[str, str] = {}
        for count, rollout in enumerate(shown, start=1):
            row = self._row(rollout, now, judged.get(rollout.flag_key))
            rows[f"row-{rollout.flag_key}"] = self._renderer.part("row.html", row=row)
            if count % _PER_TURN == 0:
                await asyncio.sleep(0)
        needs = [
            self._row(one, now, judged.get(one.flag_key)) for one in await self._needs(listed, view)
        ]
        told = None if self._incidents is None else (await self._incidents.known())[0]
        values = {
            "waiting": waiting_in(told),
            "view": view,
            "number": present,
            "pages": pages,
            "total": len(listed.rollouts),
            "counts": {kind.name.lower(): count for kind, count in listed.counts.items()},
            "all": sum(listed.counts.values()),
            "needs": needs,
            "rows": list(rows.values()),
            "trouble": trouble,
            "refused": await self._refused(),
            "stale_since": self._board.stale_since,
            "why_stale": self._board.why_stale,
            "faults": () if self._faults is None else self._faults.current[:10],
            "is_narrowed": bool(view.part or view.state or view.owner),
        }
        sections = self._renderer.blocks("fleet.html", values)
        return [
            ScreenSection(one.id, one.html, rows) if one.id == "list" else one for one in sections
        ]

    async def _refused(self) -> Sequence[dict[str, Any]]:
        """Return what was lately published as a command and is none of a flag with a rollout."""
        with suppress(StoreUnavailable):  # the page says so already
            events = await self._reports.news(OF_NO_FLAG, "results")
            found = [_refused(event["data"]) for event in events if "data" in event]
            since = self._now() - REFUSED_FOR
            return [one for one in found if one is not None and one["at"] >= since][:REFUSED]
        return []

    async def _needs(self, listed: FleetSlice, view: FleetView) -> Sequence[Rollout]:
        """Return the first rollouts that need a person, whatever the list is narrowed to."""
        if view.part or view.owner or view.state:
            listed = await self._order.listed(Question(state=Urgency.ATTENTION))
        now = self._now()
        first = listed.rollouts[:MOST_NEEDS]
        return [one for one in first if needs_attention(one, now) or self._reports.unwatched(one)]

    def _row(
        self, rollout: Rollout, now: datetime, judgement: JudgementRecord | None
    ) -> dict[str, Any]:
        """Return what the line of a rollout shows."""
        unwatched = self._reports.unwatched(rollout)
        since = None if unwatched is None else unwatched.since
        now = max(now, rollout.updated_at)
        return _row(Situation(rollout, (), now, judgement, unwatched), since)

    async def _judgements(
        self, rollouts: Sequence[Rollout]
    ) -> tuple[dict[str, JudgementRecord], str | None]:
        """Return the newest evidence of rollouts under way, and why some cannot be had."""
        judged: dict[str, JudgementRecord] = {}
        live = [one for one in rollouts if not one.has_ended]
        for at in range(0, len(live), _PER_TURN):
            some = live[at : at + _PER_TURN]
            try:
                reports = await asyncio.gather(*map(self._reports.report, some))
            except StoreUnavailable as away:
                return judged, f"Redis is away, and has the evidence: {one_line(str(away))}"
            for rollout, report in zip(some, reports, strict=True):
                if report is not None and report.judgement is not None:
                    judged[rollout.flag_key] = report.judgement
        return judged, None


def _refused(data: Any) -> dict[str, Any] | None:
    """Return a refused command as it is shown; None for what nobody can read."""
    try:
        verb = "a record" if data["verb"] is None else str(data["verb"]).replace("_", " ")
        at = datetime.fromisoformat(data["at"])
        return {
            "at": at,
            "what": verb,
            "flag": data["flag"],
            "by": data.get("issuer"),
            "reason": str(data["reason"]),
        }
    except (KeyError, TypeError, ValueError):
        return None


def quiet(now: datetime, step: timedelta) -> datetime:
    """Return a time that is rounded down, so that words made with it change seldom."""
    seconds = step.total_seconds()
    return datetime.fromtimestamp(now.timestamp() // seconds * seconds, now.tzinfo)


def _row(situation: Situation, since: datetime | None) -> dict[str, Any]:
    """Return what the line of a rollout shows; `since` when it is so, None: since its phase is."""
    rollout, tone = situation.rollout, tone_of(situation)
    is_over = rollout.has_ended and not rollout.may_open_again
    return {
        "flag": rollout.flag_key,
        "tone": tone.value,
        "mark": MARKS[tone],
        "ladder": [
            {"state": state, "mark": MARKS_OF_STAGES[state], "percent": percent}
            for state, percent in ladder(rollout)
        ],
        "serving": rollout.served_words,
        "phase": rollout.phase.name.value.replace("_", " "),
        "since": since or situation.since,
        "now": brief(situation),
        "next": "" if is_over else one_line(situation.waits_for),
        "owner": rollout.plan.owner,
        "plan": rollout.plan.name,
    }
