"""The flags that shell completion offers, from a real broker."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from controller.cli import known_flags
from controller.cli.common import KafkaOptions
from controller.settings import KafkaSettings
from tests.conftest import CreateTopics


async def test_flags_come_from_the_state_topic(
    kafka: str,
    topic_prefix: str,
    create_topics: CreateTopics,
    producer: AIOKafkaProducer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each key of a document that was not removed is offered, and kept for the next time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(known_flags, "_PATIENCE_SECONDS", 60.0)  # a busy machine
    settings = KafkaSettings(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    topic = settings.topic("state")
    await create_topics(topic)
    for key in (b"new-search", b"new-checkout", b"old", b"retired", b"$(reboot)", b"\xff"):
        await producer.send_and_wait(topic, b"{}", key)
    await producer.send_and_wait(topic, None, b"retired")
    environ = KafkaOptions(None, kafka, topic_prefix).environ

    offered = await asyncio.to_thread(known_flags.flags_beginning, "", None, environ)
    assert offered == ["new-checkout", "new-search", "old"]
    assert json.loads(known_flags.cache_file(settings).read_text()) == offered
    await producer.send_and_wait(topic, b"{}", b"newest")
    again = await asyncio.to_thread(known_flags.flags_beginning, "new", None, environ)
    assert again == ["new-checkout", "new-search"]
