"""A right that the daemon needs is taken away by a mistake, under a release that fails.

It is rolled back, or people are told; and it goes on when the right is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.failing_release import FailingRelease
from tests.guarded_kafka import GuardedKafka, documented
from tests.live import Client, DaemonProcess

pytestmark = [pytest.mark.one_worker, pytest.mark.rare]

READ_EVENTS = ("Read", {"flag.evaluations", "request.outcomes"})
READ_OUTCOMES = ("Read", {"request.outcomes"})
READ_COMMANDS = ("Read", {"rollout.commands"})
READ_STATE = ("Read", {"rollout.state"})
ANNOUNCE = ("Write", {"rollout.decisions", "rollout.alerts", "rollout.state", "rollout.results"})


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedKafka]:
    """A guarded Kafka with the guide's rights."""
    with GuardedKafka(tmp_path_factory.mktemp("guarded")) as broker:
        yield broker


def rights_to(operation: str, topics: set[str]) -> list[Any]:
    """Return the daemon's rights to do something with topics."""
    found = [
        one
        for one in documented()
        if one.principal == "User:rolloutd"
        and one.name in topics
        and one.operation.name.title() == operation
    ]
    assert found, (operation, topics)
    return found


@pytest.mark.parametrize(
    ("operation", "topics"),
    [READ_EVENTS, READ_OUTCOMES, READ_COMMANDS, READ_STATE, ANNOUNCE],
    ids=["events", "outcomes", "commands", "state", "announcements"],
)
async def test_a_right_is_taken_away(
    guarded: GuardedKafka,
    redis_url: str,
    tmp_path: Path,
    operation: str,
    topics: set[str],
    request: pytest.FixtureRequest,
) -> None:
    """The failing release is rolled back, or people hear within 10 s that nobody watches it."""
    name = request.node.callspec.id
    environ = guarded.environment() | {"ROLLOUTD_REDIS__KEY_PREFIX": f"{name}:"}
    rights = rights_to(operation, topics)
    async with (
        DaemonProcess(guarded.guarded, redis_url, tmp_path, prefix="", **environ) as daemon,
        Client(guarded.kafka.bootstrap, "") as client,
        FailingRelease(client, daemon, f"release-{name}") as release,
    ):
        await asyncio.to_thread(guarded.take, rights)
        try:
            release.fail()
            noticed = await release.is_noticed()
            print(f"{name}: {noticed.how} after {noticed.seconds:.1f} s")
        finally:
            await asyncio.to_thread(guarded.give, rights)
        await daemon.until(release.flag_key, lambda one: one["phase"]["name"] == "rolled_back")
