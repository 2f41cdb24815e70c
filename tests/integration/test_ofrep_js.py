"""OpenFeature's OFREP clients for JavaScript, server and web, against the real server.

From npm, where there is Node.js.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.core.rollout import RolledBack
from controller.health import Health
from controller.telemetry import Metrics
from controller.web.app import make_app
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from controller.web.server import HttpServer
from tests.builders import T0, make_rollout
from tests.flag_clients import details_of, installed_ofrep_clients, line_of, ofrep_client
from tests.reports import no_reports

USERS = [f"user-{number}" for number in range(10_000)]


@pytest.fixture(scope="session")
def installed() -> Path:
    """The directory that has the clients installed, kept between runs.

    Skips, saying why, where they cannot be had.
    """
    return installed_ofrep_clients()


@pytest.fixture
async def served() -> AsyncIterator[tuple[FlagBoard, str]]:
    """A trusted board behind the real server, and its address."""
    board = FlagBoard(generation=Generation.V3)
    board.trust()
    app = make_app(
        board,
        Health(()),
        Metrics(version="1"),
        describe=lambda rollout: b"{}",
        reports=no_reports(),
    )
    server = HttpServer(app, port=0)
    await server.start()
    yield board, f"http://127.0.0.1:{server.port}"
    app.state.event_streams.end()
    await server.stop(2.0)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.rare)])
async def test_a_server_side_client_sees_the_decided_share(
    installed: Path, served: tuple[FlagBoard, str], count: int
) -> None:
    """From 1 to 100 % the share is right and everyone stays in; at 0 % nobody is in.

    Variant, reason and metadata arrive.
    """
    board, address = served
    users = USERS[:count]

    async with ofrep_client(installed, "server", address, "new-checkout") as process:
        before: set[str] = set()
        found: list[dict[str, Any]] = []
        for revision, percent in enumerate([1.0, 10.0, 25.0, 50.0, 100.0], start=1):
            board.update(make_rollout(revision=revision, percent=percent))
            found = await details_of(process, users)
            now = {user for user, one in zip(users, found, strict=True) if one["value"]}
            share = percent / 100
            assert abs(len(now) - len(users) * share) <= 4 * math.sqrt(
                len(users) * share * (1 - share)
            )
            assert before <= now
            before = now
        metadata = {"flagSetId": "rolloutd", "version": "5", "rolloutd.rollout_id": "start-1"}
        assert found[0] == {
            "value": True,
            "variant": "on",
            "reason": "SPLIT",
            "flagMetadata": metadata,
        }
        board.update(make_rollout(revision=6, percent=100.0, phase=RolledBack(T0, "breach")))
        assert not any(one["value"] for one in await details_of(process, users))
        board.doubt("reading again")
        assert {one["errorCode"] for one in await details_of(process, users)} == {"GENERAL"}


async def test_a_web_client_is_told_of_changes(
    installed: Path, served: tuple[FlagBoard, str]
) -> None:
    """Without polling, it sees rises and a roll back in the moment of each."""
    board, address = served
    board.update(make_rollout(percent=0.0))
    async with ofrep_client(installed, "web", address, "new-checkout") as process:
        assert await line_of(process) is False
        for revision, percent in ((2, 100.0), (3, 0.0), (4, 100.0)):
            board.update(make_rollout(revision=revision, percent=percent))
            started = time.monotonic()
            assert await line_of(process) is (percent > 0)
            assert time.monotonic() - started < 30  # it measures 0.02 s; a poll comes later
