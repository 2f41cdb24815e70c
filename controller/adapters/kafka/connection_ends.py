"""Closes connections that aiokafka opens and forgets.

A client that is started asks one broker for its cluster over a connection that it does not list
yet. Where the start is cut off there, as by a deadline, nobody closes it.

Belongs here: these connections. Does not belong here: stopping a client (`client.py`).
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import aiokafka.client
from aiokafka.conn import AIOKafkaConnection

_opened: ContextVar[list[AIOKafkaConnection] | None] = ContextVar("opened", default=None)
_create = aiokafka.client.create_conn


async def _create_noted(*place: Any, **options: Any) -> AIOKafkaConnection:
    """Connect as aiokafka does, and note the connection for a start that wants to know."""
    made = await _create(*place, **options)
    noted = _opened.get()
    if noted is not None:
        noted.append(made)
    return made


def close_what_a_start_leaves(client: aiokafka.client.AIOKafkaClient) -> None:
    """Have a client close its connections when its start is cut off. To be called before it."""
    aiokafka.client.create_conn = _create_noted
    bootstrap = client.bootstrap

    async def bootstrap_or_close() -> None:
        opened: list[AIOKafkaConnection] = []
        token = _opened.set(opened)
        try:
            await bootstrap()
        except BaseException:
            for one in opened:
                one.close()
            raise
        finally:
            _opened.reset(token)

    client.bootstrap = bootstrap_or_close
