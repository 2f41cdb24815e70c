"""A broker that is away is tried a few times a second, however many clients want it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka.client import AIOKafkaClient
from aiokafka.structs import BrokerMetadata

from controller.adapters.kafka.connection_pace import (
    PAUSE_SECONDS,
    ConnectionPace,
    pace_connections,
)

LOOPBACK = "127.0.0.1"


class SettableClock:
    """Monotonic seconds, as a test sets them."""

    now = 0.0

    def __call__(self) -> float:
        """Return them."""
        return self.now


class DyingBroker:
    """Takes connections, and closes each before it says a word."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[DyingBroker]:
        """Listen."""

        async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            writer.close()

        server = await asyncio.start_server(close, LOOPBACK, 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    def client(self, pace: ConnectionPace) -> AIOKafkaClient:
        """Return a client that knows this broker as number 1."""
        client = AIOKafkaClient(bootstrap_servers=f"{LOOPBACK}:{self.port}")
        client.cluster._brokers = {1: BrokerMetadata(1, LOOPBACK, self.port, None)}
        pace_connections(client, pace)
        return client


async def test_all_clients_together_try_it_once_in_a_while() -> None:
    """The loops of one replica made a hundred attempts a second."""
    clock = SettableClock()
    pace = ConnectionPace(clock)
    async with DyingBroker().running() as broker:
        clients = [broker.client(pace) for _ in range(5)]
        for attempts in range(1, 4):
            for client in clients * 4:
                assert not await client.ready(1)
            assert broker.connections == attempts
            clock.now += PAUSE_SECONDS
        for client in clients:
            await client.close()


def test_whoever_connects_lets_all_others_in_at_once() -> None:
    """They do not queue for a broker that is back."""
    clock = SettableClock()
    pace, address = ConnectionPace(clock), ("kafka-1", 9092)
    assert all(pace.may_try(address) for _ in range(5))  # nobody has failed yet
    pace.note(address, is_connected=False)
    assert not pace.may_try(address)
    assert pace.may_try(("kafka-2", 9092))
    clock.now += PAUSE_SECONDS
    assert [pace.may_try(address) for _ in range(3)] == [True, False, False]
    pace.note(address, is_connected=True)
    assert all(pace.may_try(address) for _ in range(5))
