"""The HTTP API, version 1: every rollout, from any replica. `schemas/api.py` is its contract.

Belongs here: reading questions, and which view answers them. Does not belong here: what the views
say (`reporting/views.py`), and where evidence comes from (`reports.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from urllib.parse import parse_qs

import xxhash
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from controller.codec.plans import from_core_plan
from controller.core.rollout import Rollout
from controller.errors import StoreUnavailable
from controller.ports import NEWS_TOPICS
from controller.reporting.views import rollout_view, summary
from controller.web.answers import send_error, send_tagged
from controller.web.flags import FlagBoard
from controller.web.fleet_order import FleetOrder, Question
from controller.web.inventory import FlagPage, Lists
from controller.web.questions import LONGEST_SEARCH, Query, QuestionRefused, number, state_of
from controller.web.reports import EvidenceOf, HistoryOf, NewsOf, OfRollout, PlanesOf, ReportSource
from schemas.api import BASE, MOST_OF_A_PAGE, PAGE, RolloutList, RolloutView
from schemas.report import LiveReport

#: Rollouts written before other requests get a turn.
_PER_TURN = 20


class RolloutPage:
    """GET /api/v1/rollouts: all rollouts in one line each; q, owner, state, limit, offset."""

    def __init__(
        self,
        board: FlagBoard,
        reports: ReportSource,
        now: Callable[[], datetime],
        order: FleetOrder,
    ) -> None:
        self._board = board
        self._reports = reports
        self._now = now
        self._order = order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer those that fit the question; 503 while it is not known which there are."""
        if (why_not := self._board.why_nothing_known) is not None:
            await send_error(send, 503, why_not, (b"retry-after", b"1"))
            return
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        try:
            answer = await self.answer(query)
        except QuestionRefused as refused:
            await send_error(send, refused.status, str(refused))
            return
        body = answer.model_dump_json().encode()
        await send_tagged(scope, send, body, f'"{xxhash.xxh3_64_hexdigest(body)}"')

    async def answer(self, query: Query) -> RolloutList:
        """Return the rollouts that fit. Raises QuestionRefused for a parameter that is wrong."""
        limit = number(query, "limit", PAGE, 1, MOST_OF_A_PAGE)
        offset = number(query, "offset", 0, 0, 1_000_000)
        fitting = (await self._order.listed(question(query))).rollouts
        now, shown = self._now(), []
        for count, rollout in enumerate(fitting[offset : offset + limit], start=1):
            unwatched = self._reports.unwatched(rollout)
            shown.append(summary(rollout, now, None, unwatched))
            if count % _PER_TURN == 0:
                await asyncio.sleep(0)
        since = self._board.stale_since
        return RolloutList(
            rollouts=shown, total=len(fitting), offset=offset, at=now, stale_since=since
        )


def question(query: Query) -> Question:
    """Return which rollouts are asked for. Raises QuestionRefused for a state that there is not."""
    state = state_of(query.get("state", [""])[-1])
    part = query.get("q", [""])[-1].strip()[:LONGEST_SEARCH]
    return Question(part, state, query.get("owner", [None])[-1])


class WholeRollout(OfRollout):
    """GET /api/v1/rollouts/{flag}: everything about one rollout, with the commands that fit now."""

    def __init__(
        self, board: FlagBoard, reports: ReportSource, now: Callable[[], datetime]
    ) -> None:
        super().__init__(board, reports)
        self._now = now

    async def answer(self, rollout: Rollout, query: Query) -> bytes:
        """Return the view; without Redis, what is known all the same."""
        return (await self.view(rollout)).model_dump_json().encode()

    async def view(self, rollout: Rollout) -> RolloutView:
        """Return the view of a rollout."""
        report: LiveReport | None = None
        trouble: str | None = None
        try:
            report = await self._reports.report(rollout)
        except StoreUnavailable as away:
            trouble = f"it cannot be read from Redis: {away}"
        unwatched = self._reports.unwatched(rollout)
        return rollout_view(rollout, self._now(), report, trouble, unwatched=unwatched)


class PlanOf(OfRollout):
    """GET /api/v1/rollouts/{flag}/plan: the plan that a rollout runs, with all defaults."""

    async def answer(self, rollout: Rollout, query: Query) -> bytes:
        """Return the plan."""
        return from_core_plan(rollout.plan).model_dump_json(exclude_none=True).encode()


def api_routes(
    board: FlagBoard, reports: ReportSource, now: Callable[[], datetime], lists: Lists
) -> list[Route]:
    """Return the routes of the API; `lists` are the page's, too."""
    one = f"{BASE}/rollouts/{{flag_key}}"
    return [
        Route(f"{BASE}/rollouts", RolloutPage(board, reports, now, lists.fleet), methods=["GET"]),
        Route(f"{BASE}/flags", FlagPage(lists.inventory), methods=["GET"]),
        Route(one, WholeRollout(board, reports, now), methods=["GET"]),
        Route(f"{one}/evidence", EvidenceOf(board, reports), methods=["GET"]),
        Route(f"{one}/history", HistoryOf(board, reports), methods=["GET"]),
        *(
            Route(f"{one}/{topic}", NewsOf(board, reports, topic), methods=["GET"])
            for topic in NEWS_TOPICS
        ),
        Route(f"{one}/planes", PlanesOf(board, reports), methods=["GET"]),
        Route(f"{one}/plan", PlanOf(board, reports), methods=["GET"]),
    ]
