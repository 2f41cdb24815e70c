"""The servers of a replica, as its settings say."""

from __future__ import annotations

from typing import Any, cast

import httpx
import pytest

from controller.adapters.memory import ManualClock
from controller.health import Faults, Health
from controller.ports import FlagUses
from controller.settings import Settings
from controller.telemetry import Metrics
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from controller.web.steering import Steering
from controller.web.surface import Surface, make_board
from controller.web.views import Readyz
from tests.brokers import free_port
from tests.builders import make_rollout
from tests.reports import no_reports


@pytest.mark.parametrize(
    ("http", "status"),
    [
        ({"host": "127.0.0.1"}, 200),
        ({"host": "0.0.0.0"}, 403),
        ({"host": "0.0.0.0", "readers": "anyone"}, 200),
    ],
)
async def test_who_may_read_about_rollouts_follows_from_the_settings(
    http: dict[str, Any], status: int
) -> None:
    """On a real socket: beyond loopback nothing is shown that the settings do not allow."""
    port = free_port()
    settings = Settings.model_validate({"http": {**http, "port": port, "ops_port": 0}})
    clock = ManualClock()
    board = make_board(settings, clock)
    board.update(make_rollout())
    board.trust()
    surface = Surface(
        settings,
        board,
        Health(required=["http"]),
        Metrics(version="1"),
        Faults(clock.now),
        reports=no_reports(),
        clock=clock,
        steering=cast(Steering, None),
        admission=None,
        events_of=lambda _: None,
        uses=FlagUses,
        signals=None,
        notifications=None,
    )
    await surface.start()
    try:
        base = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=base, headers={"accept": "text/html"}) as client:
            for path in ("/", "/ui/rollouts/new-checkout", "/api/v1/rollouts", "/rollouts"):
                assert (await client.get(path)).status_code == status, path
            assert (await client.get("/flagd/flags.json")).status_code == 200
    finally:
        for _, close in surface.closers:
            await close()


def test_a_probe_is_answered_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that has no descriptor left answered 500, and nobody saw what was wrong."""

    def refuse(*_: object, **_named: object) -> object:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    board = FlagBoard(generation=Generation.V3)
    assert Readyz(Health(required=[]), board).report()["version"]
