"""What a start that is cut off has opened is closed."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.metadata import MetadataRequest

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.errors import EventLogUnavailable
from controller.settings import KafkaSettings


async def test_a_start_that_is_cut_off_leaves_no_connection(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that is just starting takes the connection, and does not tell of its cluster."""
    send = AIOKafkaConnection.send
    asked = asyncio.Event()

    def hang(self: AIOKafkaConnection, request: Any, **options: Any) -> Any:
        if isinstance(request, MetadataRequest):
            asked.set()
            return asyncio.get_running_loop().create_future()
        return send(self, request, **options)

    monkeypatch.setattr(AIOKafkaConnection, "send", hang)
    settings = KafkaSettings(bootstrap_servers=kafka, start_seconds=1.0)
    with pytest.raises(EventLogUnavailable):
        async with KafkaReader(settings, ["alerts"]):
            raise AssertionError("it cannot have started")
    assert asked.is_set()
    assert not [
        one for one in gc.get_objects() if isinstance(one, AIOKafkaConnection) and one.connected()
    ]
