"""A real OpenFeature client against the real server, on a socket."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable

import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails, Reason

from controller.core.rollout import RolledBack
from controller.health import Health
from controller.telemetry import Metrics
from controller.web.app import make_app
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from controller.web.server import HttpServer
from tests.builders import T0, make_rollout
from tests.reports import no_reports

USERS = [f"user-{number}" for number in range(300)]  # the client takes 4 ms an evaluation


@pytest.fixture
def board() -> FlagBoard:
    """A trusted board without a flag."""
    board = FlagBoard(generation=Generation.V3)
    board.trust()
    return board


@pytest.fixture
async def client(board: FlagBoard) -> AsyncIterator[OpenFeatureClient]:
    """The OpenFeature SDK with its OFREP provider, pointed at our server.

    It blocks: call it in a thread.
    """
    server = HttpServer(
        make_app(
            board,
            Health(()),
            Metrics(version="1"),
            describe=lambda rollout: b"{}",
            reports=no_reports(),
        ),
        port=0,
    )
    await server.start()
    provider = OFREPProvider(f"http://127.0.0.1:{server.port}")
    api.set_provider(provider)
    yield api.get_client()
    api.clear_providers()
    provider.session.close()
    await server.stop()


async def beating(board: FlagBoard, work: Callable[[], set[str]]) -> set[str]:
    """Do blocking work in a thread, while the board knows that the process runs."""
    task = asyncio.create_task(asyncio.to_thread(work))
    while not task.done():
        board.beat()
        await asyncio.wait([task], timeout=0.5)
    return task.result()


async def test_users_see_the_decided_share_and_nobody_falls_out(
    board: FlagBoard, client: OpenFeatureClient
) -> None:
    """From 1 over 10, 25 and 50 to 100 % the share is right and everyone stays in.

    At 0 % nobody is in.
    """

    def treated() -> set[str]:
        return {
            user
            for user in USERS
            if client.get_boolean_value("new-checkout", False, EvaluationContext(user))
        }

    before: set[str] = set()
    for revision, percent in enumerate([1.0, 10.0, 25.0, 50.0, 100.0], start=1):
        board.update(make_rollout(revision=revision, percent=percent))
        now = await beating(board, treated)
        share = percent / 100
        assert abs(len(now) - len(USERS) * share) <= 4 * math.sqrt(len(USERS) * share * (1 - share))
        assert before <= now, "a user who was in fell out while the percentage rose"
        before = now
    board.update(
        make_rollout(revision=6, percent=0.0, phase=RolledBack(T0, "guardrail error_rate"))
    )
    assert await beating(board, treated) == set()


async def test_the_client_understands_every_answer(
    board: FlagBoard, client: OpenFeatureClient
) -> None:
    """Variant, reason and metadata arrive.

    Each refusal is the error the SDK has for it, with the app's default as value.
    """

    def details(
        targeting_key: str | None, default: bool = True, key: str = "new-checkout"
    ) -> FlagEvaluationDetails[bool]:
        return client.get_boolean_details(
            key, default, EvaluationContext(targeting_key, {"plan": "pro"})
        )

    board.update(make_rollout(revision=7, percent=100.0))
    found = await asyncio.to_thread(details, "user-1", False)
    assert (found.value, found.variant, found.reason, found.error_code) == (
        True,
        "on",
        Reason.SPLIT,
        None,
    )
    assert found.flag_metadata == {
        "flagSetId": "rolloutd",
        "version": "7",
        "rolloutd.rollout_id": "start-1",
    }

    nameless = await asyncio.to_thread(details, None)
    assert (nameless.value, nameless.error_code) == (True, ErrorCode.TARGETING_KEY_MISSING)
    unknown = await asyncio.to_thread(details, "user-1", True, "other")
    assert (unknown.value, unknown.error_code) == (True, ErrorCode.FLAG_NOT_FOUND)
    board.doubt("reading again")
    doubtful = await asyncio.to_thread(details, "user-1", False)
    assert (doubtful.value, doubtful.error_code) == (False, ErrorCode.GENERAL)
    board.trust()

    board.update(
        make_rollout(revision=8, percent=0.0, phase=RolledBack(T0, "guardrail error_rate"))
    )
    off = await asyncio.to_thread(details, None)
    assert (off.value, off.variant, off.reason) == (False, "off", Reason.STATIC)
