"""GET /status: a public page about chosen releases, and the same as JSON.

Public: it has the names that the operator chose, percentages, and words of ours; never keys, plans,
owners, reasons, or anything that a person or a model wrote. Made once per `cache_seconds`, whatever
many people ask for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

import msgspec
import xxhash
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from controller.cancellation import task_group
from controller.core.rollout import Aborted, Completed, Paused, RolledBack, Rollout, Scheduled
from controller.errors import StoreUnavailable
from controller.reporting.headline import Tone, tone_of
from controller.reporting.situation import Situation
from controller.web.answers import header, is_named, send_bytes
from controller.web.flags import FlagBoard
from controller.web.page.rendering import POLICY, Renderer
from controller.web.reports import ReportSource
from schemas.decision import JudgementRecord
from schemas.terms import Verdict

PATH: Final = "/status"
#: For all reports together. Without them health is said from the state alone.
_REPORT_SECONDS: Final = 2.0


class Release(StrEnum):
    """What becomes of a release."""

    PLANNED = "planned"
    ROLLING_OUT = "rolling out"
    PAUSED = "paused"
    OFF_FOR_NOW = "off for now"
    RELEASED = "released"
    WITHDRAWN = "withdrawn"


class ReleaseHealth(StrEnum):
    """How a release fares."""

    GOOD = "no problem found"
    PROBLEM = "a problem was found"
    UNKNOWN = "being checked"
    NOT_SERVED = "not served"


#: Signs beside the words, so that color is never the only one.
_MARKS: Final = {
    ReleaseHealth.GOOD: "✓",
    ReleaseHealth.PROBLEM: "▲",
    ReleaseHealth.UNKNOWN: "?",
    ReleaseHealth.NOT_SERVED: "○",
}
_TONES: Final = {
    ReleaseHealth.GOOD: "done",
    ReleaseHealth.PROBLEM: "harm",
    ReleaseHealth.UNKNOWN: "unknown",
    ReleaseHealth.NOT_SERVED: "rests",
}


class PublicRelease(msgspec.Struct, frozen=True):
    """One release as the public may know it."""

    name: str
    state: Release
    percent: float  # of users, as decided
    health: ReleaseHealth
    since: datetime  # of the state


class PublicStatus(msgspec.Struct, frozen=True):
    """All releases that the public may know."""

    title: str
    at: datetime  # when this was made
    summary: str
    releases: tuple[PublicRelease, ...]
    stale_since: datetime | None  # since when newer decisions may be missing; None: current


@dataclass(frozen=True, slots=True)
class PublicNames:
    """What the operator allows to be shown."""

    names: Mapping[str, str]  # by flag key
    title: str
    cache_seconds: int


@dataclass(frozen=True, slots=True)
class _Made:
    until: datetime
    page: bytes
    document: bytes


class StatusPage:
    """The page, and at `/status.json` the document."""

    def __init__(
        self,
        allowed: PublicNames,
        board: FlagBoard,
        reports: ReportSource,
        renderer: Renderer,
        now: Callable[[], datetime],
    ) -> None:
        self._allowed = allowed
        self._board = board
        self._reports = reports
        self._renderer = renderer
        self._now = now
        self._made: _Made | None = None
        self._making = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what was made last, and 304 to whom has it."""
        made = await self._newest()
        is_document = scope["path"].endswith(".json")
        body = made.document if is_document else made.page
        kind = b"application/json" if is_document else b"text/html; charset=utf-8"
        tag = f'"{xxhash.xxh3_64_hexdigest(body)}"'
        kept = f"public, max-age={self._allowed.cache_seconds}".encode()
        headers = [(b"cache-control", kept), (b"etag", tag.encode())]
        if is_named(header(scope, b"if-none-match"), tag):
            await send({"type": "http.response.start", "status": 304, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        policy = [] if is_document else [(b"content-security-policy", POLICY)]
        await send_bytes(send, 200, body, [*headers, (b"content-type", kind), *policy])

    async def _newest(self) -> _Made:
        """Return the page, made again where it is too old; all who wait share one."""
        async with self._making:
            now = self._now()
            if self._made is None or now >= self._made.until:
                status = await self._status(now)
                self._made = _Made(
                    now + timedelta(seconds=self._allowed.cache_seconds),
                    self._renderer.part(
                        "status.html",
                        status=status,
                        marks=_MARKS,
                        tones=_TONES,
                    ).encode(),
                    msgspec.json.encode(status),
                )
            return self._made

    async def _status(self, now: datetime) -> PublicStatus:
        found = [
            (name, rollout)
            for key, name in self._allowed.names.items()
            if (rollout := self._board.rollout(key)) is not None
        ]
        judged = await self._judged([rollout for _, rollout in found])
        releases = [
            self._release(name, rollout, judged.get(rollout.flag_key), now)
            for name, rollout in found
        ]
        stale_since = now if self._board.why_nothing_known else self._board.stale_since
        return PublicStatus(
            title=self._allowed.title,
            at=now.astimezone(UTC),
            summary=summary_of(releases, is_stale=stale_since is not None),
            releases=tuple(releases),
            stale_since=stale_since,
        )

    async def _judged(self, rollouts: Sequence[Rollout]) -> Mapping[str, JudgementRecord]:
        """Return the newest evidence by flag key: what comes in time, all asked at once."""
        judged: dict[str, JudgementRecord] = {}

        async def ask(rollout: Rollout) -> None:
            with suppress(StoreUnavailable):
                report = await self._reports.report(rollout)
                if report is not None and report.judgement is not None:
                    judged[rollout.flag_key] = report.judgement

        with suppress(TimeoutError):
            async with asyncio.timeout(_REPORT_SECONDS), task_group() as tasks:
                for rollout in rollouts:
                    tasks.create_task(ask(rollout))
        return judged

    def _release(
        self, name: str, rollout: Rollout, judgement: JudgementRecord | None, now: datetime
    ) -> PublicRelease:
        situation = Situation(rollout, (), max(now, rollout.updated_at), judgement)
        return PublicRelease(
            name=name,
            state=state_of(rollout),
            percent=rollout.percent,
            health=health_of(situation),
            since=_since(rollout),
        )


def status_routes(page: StatusPage) -> list[Route]:
    """Return the addresses of the page and its document."""
    return [Route(path, page, methods=["GET"]) for path in (PATH, f"{PATH}.json")]


def state_of(rollout: Rollout) -> Release:
    """Return what becomes of a release, in the public's words."""
    match rollout.phase:
        case RolledBack() | Aborted():
            return Release.WITHDRAWN
        case _ if rollout.closed_since is not None:
            return Release.OFF_FOR_NOW
        case Completed():
            return Release.RELEASED
        case Scheduled():
            return Release.PLANNED
        case Paused():
            return Release.PAUSED
        case _:
            return Release.ROLLING_OUT


def health_of(situation: Situation) -> ReleaseHealth:
    """Return how a release fares; that people are asked to decide is nobody else's business.

    A release that people took back had no problem unless the evidence shows one.
    """
    judgement = situation.judgement
    if judgement is not None and any(one.harm is Verdict.FAIL for one in judgement.metrics):
        return ReleaseHealth.PROBLEM
    if state_of(situation.rollout) is Release.WITHDRAWN:
        return ReleaseHealth.NOT_SERVED
    is_unknown = tone_of(situation) is Tone.UNKNOWN
    return ReleaseHealth.UNKNOWN if is_unknown else ReleaseHealth.GOOD


def _since(rollout: Rollout) -> datetime:
    """Return when what the public sees began: a stage's gate is nothing that it sees."""
    visit = rollout.present_visit
    if visit is None or state_of(rollout) is not Release.ROLLING_OUT:
        return rollout.phase_since
    return visit.entered_at


def summary_of(releases: list[PublicRelease], *, is_stale: bool) -> str:
    """Return the page's first sentence."""
    if is_stale:
        return "This may be out of date: newer decisions are not known here."
    if not releases:
        return "Nothing is being released."
    problems = [one for one in releases if one.health is ReleaseHealth.PROBLEM]
    if not problems:
        return "No problem found in any release."
    return f"A problem was found: {', '.join(one.name for one in problems)}."
