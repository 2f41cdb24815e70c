"""The Kafka rights that ops/security.md lists, on a real broker that asks who comes.

Enough, and no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from controller.settings import TopicNames
from schemas.terms import CommandStatus, CommandVerb
from tests.guarded_kafka import GuardedKafka
from tests.live import Client, DaemonProcess, quick_plan

pytestmark = pytest.mark.one_worker

FLAG = "new-checkout"


@pytest.fixture(scope="module")
def guarded() -> Iterator[GuardedKafka]:
    """A guarded Kafka with the guide's rights."""
    with GuardedKafka() as broker:
        yield broker


async def test_the_daemon_runs_with_the_listed_rights(
    guarded: GuardedKafka, redis_url: str, tmp_path: Path
) -> None:
    """Start, roll back, forward, publish.

    Everything works, and nothing is refused by the broker.
    """
    environ = guarded.environment() | {"ROLLOUTD_REDIS__KEY_PREFIX": "guarded:"}
    async with (
        DaemonProcess(guarded.guarded, redis_url, tmp_path, prefix="", **environ) as daemon,
        Client(guarded.kafka.bootstrap, "") as client,
    ):
        answer = await client.command(CommandVerb.START, FLAG, plan=quick_plan(FLAG))
        assert answer.status is CommandStatus.ACCEPTED, answer.reason
        await daemon.until(FLAG, lambda document: document["percent"] > 0)
        # Bad records on both kinds of topics go to the quarantine.
        assert await asyncio.to_thread(guarded.write, "operator", "rollout.commands") is None
        assert await asyncio.to_thread(guarded.write, "apps", "flag.evaluations") is None
        await client.command(CommandVerb.ROLL_BACK, FLAG)
        await daemon.until(FLAG, lambda document: document["percent"] == 0)
        async with asyncio.timeout(60):
            while len(await client.read("rollout.quarantine")) < 2:
                await asyncio.sleep(0.2)
        for topic in ("rollout.decisions", "rollout.alerts", "rollout.state", "rollout.results"):
            assert await client.read(topic), topic
        refused = [
            line for line in daemon.log_path.read_text().splitlines() if "Authorization" in line
        ]
        # Looking at the topics' clean-up policies is what it can do without.
        assert [line for line in refused if "topic_policies_unknown" not in line] == []
        assert await daemon.stop() == 0


@pytest.mark.parametrize(
    ("user", "topics"),
    [
        ("apps", {"flag.evaluations", "request.outcomes"}),
        ("operator", {"rollout.commands"}),
    ],
)
def test_others_write_what_is_theirs(guarded: GuardedKafka, user: str, topics: set[str]) -> None:
    """Apps cannot promote a flag, operators cannot invent events or state."""
    for field in TopicNames.model_fields.values():
        error = guarded.write(user, str(field.default))
        if field.default in topics:
            assert error is None, field.default
        else:
            assert error is not None, field.default
            assert error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED


def test_the_daemon_cannot_invent_events(guarded: GuardedKafka) -> None:
    """What it counts it cannot write."""
    for topic in ("flag.evaluations", "request.outcomes"):
        error = guarded.write("rolloutd", topic)
        assert error is not None
        assert error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
