"""Limits how often this process tries to connect to a broker that is away.

Each client of aiokafka has several loops that connect again every 100 ms. With all clients of a
replica that was more than a hundred attempts a second, from every replica, at a broker that may be
starting.

Belongs here: when a client may try a broker's address. Does not belong here: what a client does
without a connection; for aiokafka it is the same as one that was refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from aiokafka.client import AIOKafkaClient, ConnectionGroup

from controller.adapters.kafka.connection_ends import close_what_a_start_leaves
from controller.adapters.kafka.connection_frames import read_frames

#: One attempt in this time, by whichever client. A broker that is back is met this much later.
PAUSE_SECONDS: Final = 0.3

Address = tuple[str, int]


class ConnectionPace:
    """Who may try a broker that is away, and when: one attempt in `PAUSE_SECONDS`."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._tried_at: dict[Address, float] = {}  # of brokers that are away, the last attempt

    def may_try(self, address: Address) -> bool:
        """Return whether the broker may be tried now; if it is away, this attempt is noted."""
        tried_at, now = self._tried_at.get(address), self._monotonic()
        if tried_at is None:
            return True
        if now - tried_at < PAUSE_SECONDS:
            return False
        self._tried_at[address] = now  # before the attempt, which may take long
        return True

    def note(self, address: Address, *, is_connected: bool) -> None:
        """Note how an attempt ended."""
        if is_connected:
            self._tried_at.pop(address, None)
        else:
            self._tried_at[address] = self._monotonic()


#: Of all clients of the process, because they meet the same brokers.
_PACE: Final = ConnectionPace()


def pace_connections(client: AIOKafkaClient, pace: ConnectionPace = _PACE) -> None:
    """Have a client try a broker that is away when `pace` lets it, and leave no connection behind.

    Its connections read frames (`connection_frames.py`): this is the one place that meets each new
    one. To be called before it connects.
    """
    connect = client._get_conn

    async def connect_at_pace(node_id: Any, **options: Any) -> Any:
        present = client._conns.get((node_id, options.get("group", ConnectionGroup.DEFAULT)))
        if present is not None and present.connected():
            return present
        broker = client.cluster.broker_metadata(node_id)
        if broker is None:
            return await connect(node_id, **options)
        address = (broker.host, broker.port)
        if not pace.may_try(address):
            client.force_metadata_update()  # as after a refusal: another broker may lead now
            return None
        connection = await connect(node_id, **options)
        pace.note(address, is_connected=connection is not None)
        if connection is not None:
            read_frames(connection)
        return connection

    client._get_conn = connect_at_pace
    close_what_a_start_leaves(client)
