"""`rolloutctl watch` on a real broker, without a daemon."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime

import pytest
from aiokafka import AIOKafkaProducer

from controller.codec.rollouts import state_event
from controller.settings import KafkaSettings
from tests.builders import make_rollout
from tests.cli_process import rolloutctl, spawn
from tests.conftest import CreateTopics

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"


@pytest.fixture
async def settings(kafka: str, topic_prefix: str, create_topics: CreateTopics) -> KafkaSettings:
    """Settings of a daemon whose topics exist."""
    made = KafkaSettings(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    await create_topics(*(made.topic(topic) for topic in ("state", "decisions", "alerts")))
    return made


async def publish(producer: AIOKafkaProducer, settings: KafkaSettings) -> None:
    """Publish a rollout's state."""
    now = datetime.now(UTC)
    event = state_event(make_rollout(updated_at=now), "new-checkout/1/0", now)
    await producer.send_and_wait(settings.topic("state"), event, FLAG.encode())


async def read_until(stream: asyncio.StreamReader | None, words: str) -> str:
    """Return the first line with `words`."""
    assert stream is not None
    async with asyncio.timeout(60):
        while True:
            line = (await stream.readline()).decode()
            assert line, f"it ended before {words!r}"
            if words in line:
                return line


async def test_a_flag_without_a_rollout_is_said_at_once(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """With the nearest name, in both forms of output; nothing waits in silence."""
    await publish(producer, settings)
    for options in ((), ("--json",)):
        code, out, err = await rolloutctl(settings, "watch", "new-chekout", *options)
        assert (code, out) == (1, "")
        assert f"new-chekout has no rollout; did you mean {FLAG}?" in err
        assert "--wait waits until it has one" in err


@pytest.mark.parametrize("command", ["decisions", "alerts", "changelog"])
async def test_a_misspelled_flag_has_no_empty_past(
    settings: KafkaSettings, producer: AIOKafkaProducer, command: str
) -> None:
    """Nothing found of it would read as if nothing had happened."""
    await publish(producer, settings)
    code, out, err = await rolloutctl(settings, command, "new-chekout")
    assert (code, out) == (1, "")
    assert f"new-chekout has no rollout; did you mean {FLAG}?" in err


async def test_on_request_it_waits_for_a_rollout_and_says_so(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """Also without a flag, when none is under way."""
    watchers = [await spawn(settings, "watch", *options) for options in ((FLAG, "--wait"), ())]
    for process in watchers:
        await read_until(process.stderr, "waiting")
    await publish(producer, settings)
    for process in watchers:
        await read_until(process.stdout, f"{FLAG}  ")
        process.send_signal(signal.SIGINT)
        await process.communicate()
        assert process.returncode == 130


async def test_without_the_right_to_results_the_rest_is_shown(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """The topics of this test have no results: whoever may not read them sees none either."""
    await publish(producer, settings)
    code, out, err = await rolloutctl(settings, "status", "new-checkout")
    assert (code, "new-checkout" in out) == (0, True), err
