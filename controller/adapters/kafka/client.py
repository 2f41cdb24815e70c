"""Connects and stops clients of aiokafka in time, and says what their errors mean.

Belongs here: the options of a connection, and the reach into aiokafka's private parts that more
than one of our clients needs. Does not belong here: consumers' records (`consumer_records.py`),
calls (`consumer_calls.py`), groups
(`group_member.py`), publishing (`publisher.py`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaConnectionError, KafkaError

from controller.adapters.kafka.refusals import newest_refusal
from controller.cancellation import is_cancelled
from controller.ports import TopicPartition
from controller.settings import KafkaSettings

log = structlog.get_logger(__name__)

_PARTITION_IN_MESSAGE = re.compile(r"TopicPartition\(topic='([^']+)', partition=(\d+)\)")
_COORDINATOR_TASKS = (
    "_coordination_task",
    "_heartbeat_task",
    "_commit_refresh_task",
    "_reset_committed_task",
)
# Seconds at most, in each of three steps, for tasks whose connections were just cut.
_STOP_GRACE_SECONDS = 0.2


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Return the options that all our clients of aiokafka share.

    They say where the brokers are, who we are, and how long a request may wait for an answer.
    """
    security = settings.security
    options: dict[str, Any] = {
        "bootstrap_servers": [
            server.strip() for server in settings.bootstrap_servers.split(",") if server.strip()
        ],
        "client_id": settings.client_id,
        "request_timeout_ms": round(settings.request_timeout_seconds * 1000),
        # A client notices a new partition, or a topic that was missing, within 10 s.
        "metadata_max_age_ms": 10_000,
        "security_protocol": security.protocol,
        "ssl_context": security.ssl_context(),
    }
    if security.uses_sasl and security.password is not None:
        options["sasl_mechanism"] = security.sasl_mechanism
        options["sasl_plain_username"] = security.username
        options["sasl_plain_password"] = security.password.get_secret_value()
    return options


# --- errors ---


def reason_of(error: BaseException) -> str:
    """Return why a call failed, in words for logs and messages."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, KafkaConnectionError) and "Unable to bootstrap" in str(error):
        return newest_refusal() or "no broker answers"  # in place of the client's list of sockets
    return str(error) or type(error).__name__


def must_propagate(error: BaseException) -> bool:
    """Return whether an error is not the client's: we are cancelled, or the process ends.

    aiokafka also lets out the CancelledError of a task of its own that was ended. That one is the
    client's error.
    """
    if isinstance(error, asyncio.CancelledError):
        return is_cancelled()
    return not isinstance(error, Exception)


def partition_in(error: KafkaError) -> KafkaPartition | None:
    """Return the partition that a read error names, None when it names none."""
    match = _PARTITION_IN_MESSAGE.search(str(error))
    return None if match is None else KafkaPartition(match[1], int(match[2]))


def is_refusal(error: KafkaError) -> bool:
    """Return whether the brokers refused for a reason that a new connection would meet again."""
    return "Authorization" in type(error).__name__ or "Authentication" in type(error).__name__


# --- background tasks ---


async def stop_in_time(
    what: str,
    stopping: Coroutine[Any, Any, None],
    client: Any,
    leftovers: Callable[[], Iterable[asyncio.Task[Any]]],
    seconds: float,
) -> None:
    """Stop a client within `seconds`, or cut its connections and cancel its tasks.

    aiokafka's own `stop` waits for requests that a silent broker never answers. To cancel it leaves
    its tasks running.
    """
    grace = min(_STOP_GRACE_SECONDS, seconds / 6)
    task = asyncio.ensure_future(stopping)
    try:
        await asyncio.wait({task}, timeout=seconds - 3 * grace)
    finally:
        if not task.done():
            log.warning("kafka_stop_timed_out", client=what, seconds=seconds)
            ending = {task, asyncio.ensure_future(client.close())}
            await asyncio.wait(ending, timeout=grace)
            ending.update(leftovers())
            for one in ending:
                one.cancel()
            await asyncio.wait(ending, timeout=grace)
        # Also in time: a task that was still running may have connected again. Such a connection
        # closes at once, because no request is under way on it.
        closing = asyncio.ensure_future(client.close())
        await asyncio.wait({closing}, timeout=grace)
        closing.cancel()
    for one in {task, *leftovers()}:
        if one.done() and not one.cancelled() and one.exception() is not None:
            log.info("kafka_stop_failed", client=what, reason=str(one.exception()))


async def disconnect(closing: Coroutine[Any, Any, None], client: Any, seconds: float) -> None:
    """Close a client that only reads, within `seconds`; `client` has its connections.

    The end of the process closes what does not close in time. A connection that broke loses
    nothing, so its error is dropped.
    """
    task = asyncio.ensure_future(closing)
    await asyncio.wait([task], timeout=seconds)
    if not task.done():
        task.cancel()
    elif not task.cancelled():
        task.exception()
    for one in list(client._conns.values()):  # one that was opened meanwhile, or did not close
        one.close()


def background_tasks(client: AIOKafkaConsumer | AIOKafkaProducer) -> list[asyncio.Task[Any]]:
    """Return the background tasks of a consumer or producer, which aiokafka keeps private."""
    tasks: list[Any] = []
    for owner, names in (
        (getattr(client, "_coordinator", None), _COORDINATOR_TASKS),
        (getattr(client, "_fetcher", None), ("_fetch_task",)),
        (getattr(client, "_sender", None), ("_sender_task",)),
    ):
        tasks += [getattr(owner, name, None) for name in names]
    tasks += getattr(getattr(client, "_fetcher", None), "_pending_tasks", ())
    return [task for task in tasks if isinstance(task, asyncio.Task)]


def names_of(partitions: Iterable[TopicPartition]) -> list[str]:
    """Return partitions as `topic/number`, sorted, for logs and messages."""
    return [f"{topic}/{number}" for topic, number in sorted(partitions)]
