"""For how long brokers may hold a fetch: as the setting says, and longer while nothing comes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from aiokafka.protocol.fetch import FetchRequest

from controller.adapters.kafka.fetch_guard import (
    QUIET_AFTER_SECONDS,
    QUIET_WAIT_MS,
    FetchGuard,
)
from tests.unit.adapters.kafka.test_record_batches import batch
from tests.virtual_time import in_virtual_time


async def wait_after(contents: list[bytes], *, wait_ms: int = 100) -> int:
    """Return what is chosen after answers with these contents, a second apart."""
    answers = iter(contents)

    async def send(*_: object) -> Any:
        return SimpleNamespace(topics=[("t", [(0, 0, 9, 9, [], next(answers))])])

    fetcher = SimpleNamespace(_fetch_max_wait_ms=wait_ms)
    consumer: Any = SimpleNamespace(
        _client=SimpleNamespace(send=send), _fetcher=fetcher, _fetch_max_wait_ms=wait_ms
    )
    FetchGuard(consumer)
    for _ in contents:
        await asyncio.sleep(1)
        request = FetchRequest(wait_ms, 1, 1, 0, [("t", [(0, 0, 1)])])
        await consumer._client.send(0, request)
    return int(fetcher._fetch_max_wait_ms)


@in_virtual_time
async def test_a_fetch_is_held_longer_once_nothing_has_come_for_a_while() -> None:
    """And no longer than the setting says as soon as a record has come."""
    record, quiet = batch([b"1"]), int(QUIET_AFTER_SECONDS)
    assert await wait_after([record]) == 100
    assert await wait_after([record, *[b""] * quiet]) == 100
    assert await wait_after([record, *[b""] * (quiet + 1)]) == QUIET_WAIT_MS
    assert await wait_after([record, *[b""] * (quiet + 1), record]) == 100


@in_virtual_time
async def test_a_longer_setting_stays() -> None:
    """It was chosen for topics on which nothing is urgent."""
    assert await wait_after([b""] * 30, wait_ms=1_000) == 1_000
