"""Checks that a Redis server is fit for totals and rollouts: version, eviction, durability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis.asyncio

from controller.adapters.redis.connection import RedisConnection, RightMissing
from controller.errors import ConfigInvalid

#: Scripts with `#!lua` begin with Redis 7.0. Valkey answers with the Redis version it is compatible
#: with.
OLDEST_SERVER: Final = (7, 0)


async def check_server(connection: RedisConnection) -> Sequence[str]:
    """Return what an operator should know about this Redis, one sentence each; empty for nothing.

    Raises ConfigInvalid when it cannot be used: too old, or set to evict keys when memory is short.
    """

    async def info() -> Mapping[str, Mapping[str, Any]]:
        return await _info_by_node(connection.client)

    try:
        nodes = await connection.call("read INFO of the server", info)
    except RightMissing as missing:
        what_to_check = (
            "that it is 7.0 or later, that maxmemory-policy is noeviction and appendonly yes"
        )
        return [f"{missing}. Without INFO nothing is known of this Redis: see {what_to_check}"]
    warnings: list[str] = []
    for node, values in nodes.items():
        _check_usable(node, values)
        warnings += _durability_warnings(node, values)
    return warnings


def _check_usable(node: str, info: Mapping[str, Any]) -> None:
    version = str(info.get("redis_version", "0"))
    if tuple(int(number) for number in version.split(".")[:2]) < OLDEST_SERVER:
        raise ConfigInvalid(f"{node} is version {version}: rolloutd needs Redis 7.0 or Valkey")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and info.get("maxmemory", 0) > 0:
        raise ConfigInvalid(
            f"{node} has maxmemory-policy {policy}: it would silently drop totals "
            f"and rollouts; set noeviction"
        )


def _durability_warnings(node: str, info: Mapping[str, Any]) -> list[str]:
    if not info.get("aof_enabled"):
        warning = (
            f"{node} has no append-only file (appendonly no): after a crash everything since its "
            f"last snapshot is counted again, as far as Kafka still has it"
        )
        return [warning]
    if info.get("aof_last_write_status") != "ok":
        return [f"{node} cannot write its append-only file"]
    return []


async def _info_by_node(client: Any) -> Mapping[str, Mapping[str, Any]]:
    if isinstance(client, redis.asyncio.RedisCluster):
        answers: dict[str, dict[str, Any]] = await client.info(
            target_nodes=redis.asyncio.RedisCluster.PRIMARIES
        )
        return {f"Redis at {node}": info for node, info in answers.items()}
    return {"Redis": await client.info()}
