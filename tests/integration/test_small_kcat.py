"""The small kcat of a checkout: it sends, or says once why not, and ends in any case."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.brokers import free_port
from tests.conftest import CreateTopics
from tests.patience import SLACK

KCAT = Path(__file__).parents[2] / "ops" / "kafka" / "bin" / "kcat"


def kcat(*options: str) -> tuple[int, str, float]:
    """Send one line; return exit code, what it says, and the seconds that it took."""
    began = time.monotonic()
    done = subprocess.run(
        [str(KCAT), "-P", *options],
        input='{"verb":"roll_back"}\n',
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr, time.monotonic() - began


@pytest.mark.real_kafka
async def test_a_missing_topic_is_said_once_and_soon(
    kafka: str, topic_prefix: str, create_topics: CreateTopics
) -> None:
    """The client alone would ask for it again for ever, with a line each time."""
    await create_topics(f"{topic_prefix}rollout.commands")
    options = ("-b", kafka, "-k", "flag", "-X", "message.timeout.ms=3000")
    assert kcat(*options, "-t", f"{topic_prefix}rollout.commands")[:2] == (0, "")
    code, said, seconds = kcat(*options, "-t", f"{topic_prefix}rollout.comands")
    assert code == 1
    assert said.count("\n") == 1
    assert f"nothing for topic {topic_prefix}rollout.comands in 3 s" in said
    assert seconds < 5 * SLACK


def test_a_broker_that_is_away_and_a_wrong_option_end_it_too() -> None:
    """One line each, with what to look at."""
    code, said, _ = kcat("-b", f"127.0.0.1:{free_port()}", "-t", "t", "-k", "flag")
    assert (code, said.count("\n")) == (1, 1)
    assert "no broker answers there" in said
    code, said, _ = kcat("-b", "127.0.0.1:9", "-t", "t", "-k", "flag", "-X", "acks=0")
    assert code == 2
    assert "only topic.partitioner=murmur2_random and message.timeout.ms=N are known" in said
