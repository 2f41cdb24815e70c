"""The HTTP surface in this process.

A board that is trusted, and a client that talks to the application without a socket.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from starlette.applications import Starlette

from controller.core.rollout import Rollout
from controller.health import Faults, Health
from controller.ports import PlaneStanding
from controller.telemetry import Metrics
from controller.web.app import make_app
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from tests.builders import T0, make_judgement, make_rollout
from tests.reports import make_report, reports_of


class HandClock:
    """Monotonic seconds that a test sets."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


EVENTS: dict[str | None, bytes] = {
    None: b'{"flag":null}',
    "new-checkout": b'{"flag":"new-checkout"}',
}


@dataclass
class Surface:
    """Everything behind the HTTP surface."""

    clock: HandClock
    board: FlagBoard
    health: Health
    metrics: Metrics
    app: Starlette
    faults: Faults


#: What is known of the flag: its evidence, and how its planes stand.
REPORT = make_report(
    make_rollout(),
    make_judgement(),
    PlaneStanding("ofrep", True, 10.0, 10.0, None, None, T0),
    PlaneStanding("redis", False, 10.0, 25.0, "serves 25 %, decided is 10 %", T0, T0),
)


def describe(rollout: Rollout) -> bytes:
    """Write what tells documents apart."""
    return b'{"flag_key":"%b","revision":%d}' % (rollout.flag_key.encode(), rollout.revision)


@pytest.fixture
def surface() -> Surface:
    """One flag, `new-checkout`, at 10 % in revision 1.

    Health with a required `event_log` and an optional `advisor`.
    """
    clock = HandClock()
    board = FlagBoard(generation=Generation.V3, monotonic=clock)
    board.update(make_rollout())
    board.trust()
    health = Health(required=["event_log"], optional=["advisor"])
    metrics = Metrics(version="1.2.3", planes=["ofrep"])
    metrics.watch(percents=board.percents, components=health.components.values)
    faults = Faults(lambda: T0)
    app = make_app(
        board,
        health,
        metrics,
        describe=describe,
        reports=reports_of({"new-checkout": REPORT}),
        events_of=EVENTS.get,
        faults=faults,
    )
    return Surface(clock, board, health, metrics, app, faults)


@pytest.fixture
async def client(surface: Surface) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the surface.

    Errors of the application come back as answers, as they do over a socket.
    """
    transport = httpx.ASGITransport(app=surface.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
