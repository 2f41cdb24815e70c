"""The topics that tell what happens, read from a cursor that somebody else keeps.

Belongs here: where reading begins, and handing over what came together. Does not belong here: what
a record means (`notifying/intake.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Final

import structlog
from aiokafka import TopicPartition as KafkaPartition

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.errors import EventLogUnavailable
from controller.notifying.notifier import Seen
from controller.settings import KafkaSettings

#: Records handed over together, and read ahead.
_AT_ONCE: Final = 200
#: The topics are looked at again after so long: one may have been replaced.
_REOPENED_AFTER_SECONDS: Final = 600.0
#: So often, while nothing comes, whether one has got more partitions.
_QUIET_SECONDS: Final = 10.0

log = structlog.get_logger(__name__)


class KafkaNewsLog:
    """Implements `controller.notifying.notifier.NewsLog`."""

    def __init__(
        self, settings: KafkaSettings, topics: Sequence[str], *, from_last: int = 0
    ) -> None:
        """`topics` by their logical names.

        `from_last`: with an empty cursor, the last records of each partition that are read first.
        """
        self._settings = settings
        self._topics = topics
        self._from_last = from_last

    async def follow(self, cursor: Mapping[str, int]) -> AsyncGenerator[Sequence[Seen], None]:
        """Yield what comes, from the cursor on, which the caller moves on.

        The first list is of no records: it says that Kafka has answered. Raises
        EventLogUnavailable.
        """
        while True:
            async with (
                KafkaReader(self._settings, self._topics) as reader,
                aclosing(self._follow(reader, cursor)) as batches,
            ):
                async for seen in batches:
                    yield seen

    async def _follow(
        self, reader: KafkaReader, cursor: Mapping[str, int]
    ) -> AsyncGenerator[Sequence[Seen], None]:
        """Yield until it is time to look at the topics again."""
        starts, is_first = await self._starts(reader, cursor)
        if is_first:
            # Noted at once, so that nothing which happens from now on is taken for the past.
            yield [Seen(_place(one), offset - 1, b"") for one, offset in starts.items()]
        waiting: asyncio.Queue[Seen | EventLogUnavailable] = asyncio.Queue(_AT_ONCE)

        async def fetch() -> None:
            async for record in reader.follow(starts):
                if isinstance(record, EventLogUnavailable):
                    await waiting.put(record)
                elif record is not None:
                    place = f"{record.topic}/{record.partition}"
                    await waiting.put(Seen(place, record.offset, record.value or b""))

        loop = asyncio.get_running_loop()
        until = loop.time() + _REOPENED_AFTER_SECONDS
        task = asyncio.create_task(fetch(), name="notifications: fetch")
        try:
            while loop.time() < until and not reader.has_grown:
                getting = asyncio.create_task(waiting.get())
                try:
                    await asyncio.wait(
                        {getting, task}, timeout=_QUIET_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    found = [getting.result()] if getting.done() else []
                finally:
                    getting.cancel()
                if not found and task.done():
                    task.result()
                while not waiting.empty():
                    found.append(waiting.get_nowait())
                yield [one for one in found if isinstance(one, Seen)]
                if troubles := [one for one in found if isinstance(one, EventLogUnavailable)]:
                    raise troubles[0]
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _starts(
        self, reader: KafkaReader, cursor: Mapping[str, int]
    ) -> tuple[dict[KafkaPartition, int], bool]:
        """Return where each partition is read on, and whether nothing was ever read."""
        ends = await reader.ends(*self._topics)
        if not cursor and not self._from_last:
            return ends, True
        begins = await reader.begins(*self._topics)
        if not cursor:
            return {one: max(begins[one], end - self._from_last) for one, end in ends.items()}, True
        starts: dict[KafkaPartition, int] = {}
        for one, end in ends.items():
            wanted = cursor.get(_place(one), 0)  # a partition that was added is read whole
            starts[one] = wanted if begins[one] <= wanted <= end else begins[one]
            if starts[one] != wanted:
                log.warning(
                    "news_lost" if wanted < begins[one] else "topic_made_anew",
                    place=_place(one),
                    cursor=wanted,
                    goes_on_at=starts[one],
                )
        return starts, False


def _place(partition: KafkaPartition) -> str:
    return f"{partition.topic}/{partition.partition}"
