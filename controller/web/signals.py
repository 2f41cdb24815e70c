"""GET /api/v1/signals: what monitoring systems told lately, and what was done about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import xxhash
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from controller.responding.memory import Recent
from controller.web.answers import send_tagged
from schemas.api import BASE, SignalEntry, SignalList

if TYPE_CHECKING:
    from controller.web.hooks.endpoint import Hooks

PATH: Final = f"{BASE}/signals"


class SignalSource(Protocol):
    """What is known of signals: `running/signal_parts.py`."""

    hooks: Hooks | None  # takes deliveries; None: there is no endpoint

    async def recent(self) -> Sequence[Recent]:
        """Return the newest ones, newest first."""


class SignalsRead:
    """GET /api/v1/signals: the newest signals, newest first, and what was done about each."""

    def __init__(self, source: SignalSource) -> None:
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what this replica knows; while Redis is away that is what it saw itself."""
        entries = [
            SignalEntry.model_validate(one, from_attributes=True)
            for one in await self._source.recent()
        ]
        body = SignalList(signals=entries).model_dump_json().encode()
        await send_tagged(scope, send, body, f'"{xxhash.xxh3_64_hexdigest(body)}"')


def delivery_routes(source: SignalSource | None) -> list[Route]:
    """Return the route that takes deliveries, none where there is no endpoint."""
    if source is None or source.hooks is None:
        return []
    from controller.web.hooks.endpoint import PATH as HOOKS

    return [Route(HOOKS, source.hooks, methods=["POST", "OPTIONS"])]


def misdirected_of(source: SignalSource | None) -> Callable[[Scope], object]:
    """Return what is told of requests for another host: deliveries among them are counted."""
    hooks = None if source is None else source.hooks
    return (lambda _: None) if hooks is None else hooks.misdirected


def signal_routes(source: SignalSource | None) -> list[Route]:
    """Return the route of what was told, none where nobody can tell anything."""
    return [] if source is None else [Route(PATH, SignalsRead(source), methods=["GET"])]
