"""Makes safe what brokers answer to a consumer's fetches, before aiokafka reads it.

Belongs here: which answers are checked, when, and how carefully; how long the next fetch may be
held. Does not belong here: the bytes themselves (`record_batches.py`), what a consumer gives out
(`consumer_records.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaError
from aiokafka.protocol.fetch import FetchRequest

from controller.adapters.kafka.record_batches import (
    LEFT_ALONE,
    UnpackBudget,
    following_offset,
    is_plain,
    make_safe,
)

log = structlog.get_logger(__name__)

#: Once nothing has arrived for so long, brokers may hold a fetch for longer, as far as the setting
#: is below that: most of what a quiet daemon does is to fetch nothing. A record that arrives is
#: answered at once all the same. What waits behind a fetch on its connection waits longer: looking
#: up offsets, and the first fetch after a partition was taken over.
QUIET_AFTER_SECONDS = 10.0
QUIET_WAIT_MS = 500

#: One thread for all consumers, so that only one decompression bomb at a time takes memory.
_unpacker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="unpack")


@dataclass(frozen=True, slots=True)
class _Careful:
    """What is known of a partition that is read carefully."""

    was_read: bool = False
    offset: int = -1  # from which it was fetched last
    following: int | None = None  # the offset behind the first batch of that


class FetchGuard:
    """Makes safe what brokers answer to one consumer's fetches, before aiokafka reads it."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        *,
        answered: Callable[[KafkaPartition], object] = lambda partition: None,
        unpacks_all: bool = False,
    ) -> None:
        """Guard a consumer that was not started yet.

        `answered` is called with each partition that the brokers answered for. `unpacks_all`:
        compressed batches are handed on uncompressed, however small, and the answer is kept in
        `contents` until aiokafka has taken it.
        """
        self._answered = answered
        self._unpacks_all = unpacks_all
        self._left_alone = 0 if unpacks_all else LEFT_ALONE
        self.contents: dict[tuple[KafkaPartition, int], bytes] = {}
        """What the answer that aiokafka reads now holds, by partition and offset asked for.

        aiokafka reads an answer without a pause, so one is kept at a time.
        """
        self.careful: dict[KafkaPartition, _Careful] = {}
        """Partitions whose records are checked before they are given out, until some are."""
        self.is_careful = False
        """Whether every record of every partition is checked before it is given out."""
        self._consumer: Any = consumer
        self._wait_ms: int = self._consumer._fetch_max_wait_ms
        self._arrived_at = float("-inf")  # the loop's time
        client: Any = consumer._client
        self._send = client.send
        client.send = self._guarded

    def read_carefully(self, partition: KafkaPartition) -> None:
        """Check every record of a partition before it is given out: aiokafka could not read one."""
        self.careful.setdefault(partition, _Careful())

    def read_everything_carefully(self) -> None:
        """Check every record of every partition before it is given out, from now on."""
        self.is_careful = True

    def is_read_carefully(self, partition: KafkaPartition) -> bool:
        """Return whether the records that were fetched last had been checked."""
        return partition in self.careful and self.careful[partition].was_read

    def following(self, partition: KafkaPartition, offset: int) -> int | None:
        """Return the offset behind the first batch of a careful fetch from `offset`.

        None when it is not known.
        """
        careful = self.careful.get(partition)
        return careful.following if careful is not None and careful.offset == offset else None

    async def _guarded(self, node: int, request: Any, **more: Any) -> Any:
        response = await self._send(node, request, **more)
        if isinstance(request, FetchRequest):
            try:
                response.topics = await self._safe_topics(request, response.topics or ())
                self._pace(response.topics)
            except Exception as error:
                log.exception("fetch_not_understood")
                raise KafkaError(f"an answer to a fetch that cannot be read: {error!r}") from error
        return response

    def _pace(self, topics: Sequence[Any]) -> None:
        """Choose for how long brokers may hold the next fetch, after an answer."""
        now = asyncio.get_running_loop().time()
        if any(partition[-1] for _, partitions in topics for partition in partitions):
            self._arrived_at = now
        is_quiet = now - self._arrived_at > QUIET_AFTER_SECONDS
        wait_ms = max(self._wait_ms, QUIET_WAIT_MS) if is_quiet else self._wait_ms
        self._consumer._fetcher._fetch_max_wait_ms = wait_ms

    async def _safe_topics(self, request: Any, topics: Sequence[Any]) -> list[Any]:
        """Return the answer's topics without unrequested partitions: aiokafka would stop there."""
        offsets = {
            (topic, number): offset
            for topic, partitions in request.topics
            for number, offset, _ in partitions
        }
        budget = UnpackBudget()
        safe: list[Any] = []
        contents: dict[tuple[KafkaPartition, int], bytes] = {}
        for topic, partitions in topics:
            safe_partitions = []
            for each in partitions:
                offset = offsets.get((topic, each[0]))
                if offset is not None:
                    partition = KafkaPartition(topic, each[0])
                    if each[1] == 0:
                        self._answered(partition)
                    content = await self._safe_content(partition, each[-1] or b"", offset, budget)
                    safe_partitions.append((*each[:-1], content))
                    contents[partition, offset] = content
            safe.append((topic, safe_partitions))
        if self._unpacks_all:
            self.contents = contents  # nothing is awaited from here to aiokafka
        return safe

    async def _safe_content(
        self, partition: KafkaPartition, content: bytes, offset: int, budget: UnpackBudget
    ) -> bytes:
        is_careful = self.is_careful or partition in self.careful
        if is_careful and content:
            self.careful[partition] = _Careful(True, offset, following_offset(content))
        if not content or (not is_careful and is_plain(content, offset, self._left_alone)):
            return content
        if budget.is_spent:
            return b""  # fetched again after what came before it
        made_safe = await asyncio.get_running_loop().run_in_executor(
            _unpacker,
            partial(
                make_safe,
                content,
                offset,
                budget,
                is_careful=is_careful,
                left_alone=self._left_alone,
            ),
        )
        for batch in made_safe.refused:
            log.warning(
                "batch_refused",
                topic=partition.topic,
                partition=partition.partition,
                offset=batch.offset,
                records=batch.records,
                reason=batch.why,
            )
        return made_safe.content
