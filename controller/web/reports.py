"""What is known of one rollout, from any replica: evidence, planes, course, decisions, alerts.

Belongs here: the endpoints. Does not belong here: where it comes from (`running/report_reader.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol
from urllib.parse import parse_qs

import msgspec
import xxhash
from starlette.types import Receive, Scope, Send

from controller.core.rollout import Rollout
from controller.errors import StoreUnavailable
from controller.reporting.unwatched import Unwatched
from controller.web.answers import send_error, send_tagged
from controller.web.flags import FlagBoard
from controller.web.questions import Query, QuestionRefused, digits, number
from schemas.api import EVENTS, MOST_EVENTS
from schemas.report import LiveReport, StageHistory

_RETRY: Final = (b"retry-after", b"1")


class ReportSource(Protocol):
    """What is known of any flag, whichever replica runs it.

    Each method raises StoreUnavailable while Redis is away.
    """

    async def report(self, rollout: Rollout) -> LiveReport | None:
        """Return the newest report on a rollout; None: there is none yet."""

    async def history(self, rollout: Rollout, visit: int) -> StageHistory:
        """Return the course of one of the rollout's visits."""

    async def news(self, flag_key: str, topic: str) -> Sequence[dict[str, Any]]:
        """Return the newest events of a topic about a flag, newest first, each once.

        Of no flag: the refused commands that are of no flag with a rollout.
        """

    @property
    def unwatched(self) -> Callable[[Rollout], Unwatched | None]:
        """Tells that nobody sees what a live rollout does; needs no Redis, and raises nothing."""


class OfRollout:
    """An endpoint about one flag's rollout: finds it, answers with an ETag, says what is away."""

    def __init__(self, board: FlagBoard, reports: ReportSource) -> None:
        self._board = board
        self._reports = reports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; 404 where there is nothing, 503 while it cannot be known."""
        served = self._board.get(scope["path_params"]["flag_key"])
        if served is None:
            await send_no_rollout(send, self._board)
            return
        try:
            query = parse_qs(scope["query_string"].decode("latin-1"))
            body = await self.answer(served.rollout, query)
        except QuestionRefused as refused:
            await send_error(send, refused.status, str(refused))
        except StoreUnavailable as trouble:
            await send_error(send, 503, f"Redis has it, and it cannot be read: {trouble}", _RETRY)
        else:
            await send_tagged(scope, send, body, f'"{xxhash.xxh3_64_hexdigest(body)}"')

    async def answer(self, rollout: Rollout, query: Query) -> bytes:
        """Return the document as JSON. Raises QuestionRefused and StoreUnavailable."""
        raise NotImplementedError


class EvidenceOf(OfRollout):
    """GET /api/v1/rollouts/{flag}/evidence: the newest judgement, as decisions carry it.

    There is one also while nothing is decided.
    """

    async def answer(self, rollout: Rollout, query: Query) -> bytes:
        """Return the judgement."""
        report = await self._reports.report(rollout)
        if report is None or report.judgement is None:
            raise QuestionRefused(
                404,
                "nothing was judged yet: the first evidence follows in a second where Redis and "
                "Kafka answer, which `rolloutctl doctor` tells",
            )
        return report.judgement.model_dump_json().encode()


class PlanesOf(OfRollout):
    """GET /api/v1/rollouts/{flag}/planes: whether each flag plane serves what was decided."""

    async def answer(self, rollout: Rollout, query: Query) -> bytes:
        """Return one entry per plane."""
        report = await self._reports.report(rollout)
        if report is None:
            raise QuestionRefused(404, "no plane was asked yet: ask again in a second")
        document = {
            "flag": rollout.flag_key,
            "is_converged": all(plane.is_converged for plane in report.planes),
            "planes": [plane.model_dump(mode="json") for plane in report.planes],
        }
        return msgspec.json.encode(document)


class HistoryOf(OfRollout):
    """GET /api/v1/rollouts/{flag}/history: the evidence over time in one stage.

    `visit` names another than the newest.
    """

    async def answer(self, rollout: Rollout, query: Query) -> bytes:
        """Return the course of the visit in `visit`, of the newest without it."""
        if not rollout.visits:
            raise QuestionRefused(404, "no stage has begun yet")
        asked = digits(query.get("visit", [str(len(rollout.visits) - 1)])[-1], 5)
        if asked is None or asked >= len(rollout.visits):
            last = len(rollout.visits) - 1
            numbers = (
                f"a number from 0, the first, to {last}, the newest" if last else "0, the only one"
            )
            raise QuestionRefused(400, f"visit is {numbers}")
        history = await self._reports.history(rollout, asked)
        return history.model_dump_json().encode()


class NewsOf(OfRollout):
    """GET /api/v1/rollouts/{flag}/{topic}: its newest decisions, alerts or results.

    The newest first, `limit` at most.
    """

    def __init__(self, board: FlagBoard, reports: ReportSource, topic: str) -> None:
        """`topic`: decisions, alerts or results."""
        super().__init__(board, reports)
        self._topic = topic
        self.purpose = f"the newest {topic}."

    async def answer(self, rollout: Rollout, query: Query) -> bytes:
        """Return the events as published, with `limit` of them at most."""
        limit = number(query, "limit", EVENTS, 1, MOST_EVENTS)
        events = await self._reports.news(rollout.flag_key, self._topic)
        return msgspec.json.encode({self._topic: events[:limit]})


async def send_no_rollout(send: Send, board: FlagBoard) -> None:
    """Answer 404, or 503 while the flag may have a rollout that is not known here yet."""
    why_unknown = board.why_nothing_known or (board.why_stale if board.is_remembering else None)
    if why_unknown is None:
        await send_error(send, 404, "no rollout has this flag key")
    else:
        await send_error(send, 503, why_unknown, _RETRY)
