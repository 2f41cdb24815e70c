"""Keeps open pages current: one stream per page, and each change rendered once for all of them.

A page's stream carries the sections that changed, as htmx swaps them, and something at least every
two seconds, so that a page notices when it is cut off. One task renders for all streams: at once
when a decision comes, about once a second for evidence, and never more than a tenth of its time,
however many different pages are open. A client that falls behind gets the whole screen again; one
that takes nothing is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog
from starlette.types import Receive, Scope, Send

from controller.telemetry import Metrics
from controller.web.flags import FlagBoard
from controller.web.page.rendering import ScreenSection, digest, has_other_parts
from controller.web.streams import Count, OpenStream, Streams

_log = structlog.get_logger(__name__)

#: A page says that it is cut off when it has heard nothing for twice as long.
BEAT_SECONDS: Final = 2.0
#: Between two passes over all open pages, without a decision.
PACE_SECONDS: Final = 1.0
#: Decisions of one moment are shown together.
GATHER_SECONDS: Final = 0.05
#: Rendering rests for so many times as long as it took.
_REST: Final = 9.0
_LONGEST_REST: Final = 1.0
#: Messages that may wait for one client; then it gets the whole screen in their place.
_MOST_WAITING: Final = 4
_BEAT: Final = b"event: beat\ndata: 1\n\n"
#: For a page whose parts are others now (a rollout has gone, a new release shows more), or whose
#: reader may see others.
_RELOAD: Final = b"event: reload\ndata: 1\n\n"


@dataclass(frozen=True, slots=True)
class LiveScreen:
    """What an open page shows."""

    key: Hashable  # the same for pages that show the same
    #: Returns the sections, None where nothing has changed since the last time; empty: it is gone.
    render: Callable[[], Awaitable[list[ScreenSection] | None]]
    is_behind: Callable[[], bool]  # whether something was decided since the last time


@dataclass(slots=True, eq=False)
class _Reader:
    stream: OpenStream
    seen: str  # the digest of what the page shows already
    waiting: list[bytes] = field(default_factory=list)
    told_at: float = 0.0


@dataclass(slots=True)
class _View:
    """One screen that is open in at least one page."""

    screen: LiveScreen
    readers: set[_Reader] = field(default_factory=set)
    sections: list[ScreenSection] = field(default_factory=list)


class LivePages:
    """The streams of all open pages, and the one task that renders for them."""

    def __init__(
        self,
        board: FlagBoard,
        metrics: Metrics,
        most_streams: int,
        slow_seconds: float = 5.0,
        pace_seconds: float = PACE_SECONDS,
    ) -> None:
        self._board = board
        self._pace_seconds = pace_seconds
        self._events = metrics.page_events
        count = Count(
            metrics.page_streams.set,
            metrics.page_streams_ended.of("refused").inc,
            metrics.page_streams_ended.of("slow").inc,
        )
        self._streams = Streams(most_streams, slow_seconds, count)
        self._views: dict[Hashable, _View] = {}
        self._task: asyncio.Task[None] | None = None
        self._beaten_at = 0.0

    def end(self) -> None:
        """End every stream in order, because the process stops; pages go on at another replica."""
        self._streams.end()

    async def serve(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        screen: LiveScreen,
        seen: str,
        may_go_on: Callable[[], bool] = lambda: True,
    ) -> None:
        """Answer one page's stream. `seen` is the digest of what the page shows already.

        `may_go_on` is asked before each message, so at least every two seconds: whether the page
        may still show it. Where it may not, the page is loaded again, and shows what it may.
        """

        async def write(stream: OpenStream) -> None:
            await self._write(_Reader(stream, seen), screen, may_go_on)

        await self._streams.serve(scope, receive, send, write)

    async def _write(
        self, reader: _Reader, screen: LiveScreen, may_go_on: Callable[[], bool]
    ) -> None:
        view = self._views.setdefault(screen.key, _View(screen))
        view.readers.add(reader)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep_current(), name="live_pages")
        stream = reader.stream
        try:
            await stream.write(b"retry: 1000\n\n" + _BEAT)
            if view.sections:
                _bring_up_to_date(reader, view.sections, time.monotonic())
            while not stream.is_over:
                await stream.wake.wait()
                stream.wake.clear()
                body = b"".join(reader.waiting)
                news = sum(one is not _BEAT for one in reader.waiting)
                reader.waiting.clear()
                if body and not may_go_on():
                    await stream.write(_RELOAD)
                    return
                if body and not stream.is_over:
                    await stream.write(body)
                    self._events.inc(news)
        finally:
            view.readers.discard(reader)
            if not view.readers and self._views.get(screen.key) is view:
                del self._views[screen.key]

    async def _keep_current(self) -> None:
        """Render what changes until no page is open."""
        with self._board.changes() as changed:
            while self._views:
                for view in list(self._views.values()):
                    began = time.monotonic()
                    await self._refresh(view)
                    rest = min(_REST * (time.monotonic() - began), _LONGEST_REST)
                    await self._pause(changed, rest)
                await self._pause(changed, self._pace_seconds)

    async def _pause(self, changed: asyncio.Event, seconds: float) -> None:
        """Wait; meanwhile show what is decided at once, and give signs of life."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await changed.wait()
        if changed.is_set():
            await asyncio.sleep(GATHER_SECONDS)
            changed.clear()
            for view in list(self._views.values()):
                if view.screen.is_behind():
                    await self._refresh(view)
        now = time.monotonic()
        if now - self._beaten_at >= PACE_SECONDS / 2:
            self._beaten_at = now
            for view in self._views.values():
                for reader in view.readers:
                    if now - reader.told_at >= BEAT_SECONDS - PACE_SECONDS:
                        _tell(reader, _BEAT, now)

    async def _refresh(self, view: _View) -> None:
        """Render a screen, and give its readers what has changed."""
        try:
            sections = await view.screen.render()
        except Exception as error:  # a defect of one screen is none of another's
            _log.exception("page_not_rendered", error_type=type(error).__name__)
            return
        if sections is None:
            return
        now, before, view.sections = time.monotonic(), view.sections, sections
        if [one.id for one in before] != [one.id for one in sections]:
            for reader in view.readers:
                _bring_up_to_date(reader, sections, now)
            return
        changes = changed_sections(before, sections)
        if not changes:
            return
        body = _event(changes)
        for reader in view.readers:
            _tell(reader, body, now)
            if len(reader.waiting) > _MOST_WAITING:
                reader.waiting[:] = [message(sections)]


def _bring_up_to_date(reader: _Reader, sections: list[ScreenSection], now: float) -> None:
    """Give a reader the whole screen where its page shows another one."""
    name = digest(sections)
    if reader.seen != name:
        _tell(reader, _RELOAD if has_other_parts(reader.seen, name) else message(sections), now)


def _tell(reader: _Reader, body: bytes, now: float) -> None:
    """Give a reader something to send; a sign of life only where nothing else waits."""
    if body is _BEAT and reader.waiting:
        return
    reader.waiting.append(body)
    reader.told_at = now
    reader.stream.wake.set()


def changed_sections(before: list[ScreenSection], after: list[ScreenSection]) -> Mapping[str, str]:
    """Return the HTML of what differs, by the id of the element that it replaces."""
    old = {section.id: section for section in before}
    changes: dict[str, str] = {}
    for section in after:
        known = old.get(section.id)
        if known is not None and known.html == section.html:
            continue
        if known is not None and known.parts and list(known.parts) == list(section.parts):
            parts = {
                name: html for name, html in section.parts.items() if known.parts[name] != html
            }
            if parts:
                changes |= parts
                continue
        changes[section.id] = section.html
    return changes


def message(sections: list[ScreenSection]) -> bytes:
    """Return the event that replaces every section of a screen."""
    return _event({section.id: section.html for section in sections})


def _event(changes: Mapping[str, str]) -> bytes:
    """Return an event that htmx swaps: one part of a page for each id."""
    text = "".join(
        f'<hx-partial id="{name}" hx-swap="outerMorph">{html}</hx-partial>'
        for name, html in changes.items()
    )
    lines = "\n".join(f"data: {line}" for line in text.splitlines())
    return f"{lines}\n\n".encode()
