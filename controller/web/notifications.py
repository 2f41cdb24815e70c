"""GET /api/v1/notifications: who was told of what, and which channels work."""

from __future__ import annotations

from typing import Final, Protocol

import xxhash
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from controller.errors import OperatingTrouble
from controller.web.answers import send_error, send_tagged
from controller.web.signals import SignalSource, signal_routes
from schemas.api import BASE, NotificationsView

PATH: Final = f"{BASE}/notifications"


class NotificationSource(Protocol):
    """What is known of notifications: `running/notification_parts.py`."""

    async def standing(self) -> NotificationsView:
        """Return how notifying stands. Raises StoreUnavailable."""


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
        content = found.model_dump_json(exclude={"at"}).encode()
        tag = f'"{xxhash.xxh3_64_hexdigest(content)}"'
        await send_tagged(scope, send, found.model_dump_json().encode(), tag)


def told_routes(
    signals: SignalSource | None, notifications: NotificationSource | None
) -> list[Route]:
    """Return the routes of what monitors told us and what we told people, where there are any."""
    routes = signal_routes(signals)
    if notifications is not None:
        routes.append(Route(PATH, NotificationsRead(notifications), methods=["GET"]))
    return routes
