"""GET /api/v1/notifications: who was told of what, and which channels work."""

from __future__ import annotations

import asyncio
from typing import Final

import xxhash
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from controller.errors import OperatingTrouble
from controller.web.answers import send_error, send_tagged
from controller.web.incidents import Incidents, NotificationSource, TakeIncidents
from controller.web.signals import SignalSource, signal_routes
from schemas.api import BASE
from schemas.notifications import NotificationsView

PATH: Final = f"{BASE}/notifications"


class NotificationsRead:
    """GET /api/v1/notifications: channels, open incidents and dead letters, of all replicas."""

    def __init__(self, source: NotificationSource) -> None:
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is stored; while Redis is away nothing is known."""
        try:
            found = await self._source.standing()
        except OperatingTrouble as trouble:
            await send_error(send, 503, f"not known now: {trouble}", (b"retry-after", b"2"))
            return
        # In a thread: it may be megabytes after a storm, and no decision may wait for it.
        content, tag = await asyncio.to_thread(_written, found)
        await send_tagged(scope, send, content, tag)


def _written(found: NotificationsView) -> tuple[bytes, str]:
    """Return the document and its tag, which does not change with the time alone."""
    lasting = found.model_dump_json(exclude={"at"}).encode()
    return found.model_dump_json().encode(), f'"{xxhash.xxh3_64_hexdigest(lasting)}"'


def told_routes(
    signals: SignalSource | None,
    notifications: NotificationSource | None,
    incidents: Incidents | None,
) -> list[Route]:
    """Return the routes of what monitors told us and what we told people, where there are any."""
    routes = signal_routes(signals)
    if notifications is not None:
        routes.append(Route(PATH, NotificationsRead(notifications), methods=["GET"]))
    if incidents is not None and incidents.guardian is not None:
        routes.append(Route(f"{PATH}/acknowledge", TakeIncidents(incidents), methods=["POST"]))
    return routes
