"""Makes safe what a consumer of aiokafka receives, and small what it gives out.

Belongs here: the one place that reaches into how aiokafka takes records in and gives them out. It
decides what aiokafka unpacks, what a record becomes, and how many come at a time. Which ones come,
in what order and up to which position stays with `getmany`: positions, checksums, aborted
transactions. Does not belong here: the bytes themselves (`record_batches.py`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from operator import attrgetter, lt
from typing import Any, ClassVar

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException, KafkaError, RecordTooLargeError
from aiokafka.protocol.fetch import FetchRequest

from controller.adapters.kafka.record_batches import (
    Budget,
    following_offset,
    is_plain,
    make_safe,
)

log = structlog.get_logger(__name__)

# What is changed here: how a fetched partition is drained, and what makes a ConsumerRecord of its
# content.
_CHANGED = {"FetchResult": "getall", "PartitionRecords": "_consumer_record"}
_IS_KNOWN = all(hasattr(getattr(fetcher, name, None), method) for name, method in _CHANGED.items())

#: One thread for all consumers, so that only one decompression bomb at a time takes memory.
_unpacker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="unpack")

#: What `getmany` raises for a record that cannot be read. The second is for a batch that claims to
#: be longer than it is.
UNREADABLE = (CorruptRecordException, RecordTooLargeError)

_offset_of = attrgetter("offset")


# --- what a consumer gets ---


@dataclass(frozen=True, slots=True)
class _Careful:
    """What is known of a partition that is read carefully."""

    was_read: bool = False
    offset: int = -1  # from which it was fetched last
    following: int | None = None  # the offset behind the first batch of that


class Guard:
    """Makes safe what brokers answer to one consumer's fetches, before aiokafka reads it."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        *,
        answered: Callable[[KafkaPartition], object] = lambda partition: None,
    ) -> None:
        """Guard a consumer that was not started yet.

        `answered` is called with each partition that the brokers answered for.
        """
        self._answered = answered
        self.careful: dict[KafkaPartition, _Careful] = {}
        """Partitions whose records are checked before they are given out, until some are."""
        self.is_careful = False
        """Whether every record of every partition is checked before it is given out."""
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
            except Exception as error:
                log.exception("fetch_not_understood")
                raise KafkaError(f"an answer to a fetch that cannot be read: {error!r}") from error
        return response

    async def _safe_topics(self, request: Any, topics: Sequence[Any]) -> list[Any]:
        """Return the answer's topics without unrequested partitions: aiokafka would stop there."""
        offsets = {
            (topic, number): offset
            for topic, partitions in request.topics
            for number, offset, _ in partitions
        }
        budget = Budget()
        safe: list[Any] = []
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
            safe.append((topic, safe_partitions))
        return safe

    async def _safe_content(
        self, partition: KafkaPartition, content: bytes, offset: int, budget: Budget
    ) -> bytes:
        is_careful = self.is_careful or partition in self.careful
        if is_careful and content:
            self.careful[partition] = _Careful(True, offset, following_offset(content))
        if not content or (not is_careful and is_plain(content, offset)):
            return content
        if budget.is_spent:
            return b""  # fetched again after what came before it
        made_safe = await asyncio.get_running_loop().run_in_executor(
            _unpacker, partial(make_safe, content, offset, budget, is_careful=is_careful)
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


# --- what a consumer gives out ---


def name_faults(consumer: AIOKafkaConsumer) -> None:
    """Let `getmany` of a started consumer name the partition that cannot be read.

    It then raises CorruptRecordException with the partition in its message, and nothing else.
    """
    _replace_fetched(consumer, _Fetched)


def leave_bare(consumer: AIOKafkaConsumer) -> None:
    """Let `getmany` of a started consumer give out bare records, and name faults as above.

    For a consumer that is read by `getmany` alone. With an aiokafka that is built differently
    nothing happens, and a ConsumerRecord has the same names.
    """
    _replace_fetched(consumer, _FetchedBare)


def _replace_fetched(consumer: AIOKafkaConsumer, kind: type[_Fetched]) -> None:
    owner: Any = getattr(consumer, "_fetcher", None)
    fetched = getattr(owner, "_records", None)
    if _IS_KNOWN and isinstance(fetched, dict):
        owner._records = kind(fetched)


class _Fetched(OrderedDict[Any, Any]):
    """What was fetched and not yet given out, by partition.

    Results are changed as they arrive, before any is read.
    """

    is_bare: ClassVar = False

    def __setitem__(self, partition: Any, result: Any) -> None:
        super().__setitem__(partition, result)
        records: Any = getattr(
            result, "_partition_records", None
        )  # a FetchError has none, and neither has an exhausted result
        if type(records) is fetcher.PartitionRecords and "getall" not in vars(result):
            drain = result.getall
            if self.is_bare:
                # Without effect where some were read before: the rest comes one by one.
                batches = records._records = _Batches(records)
                records._consumer_record = _as_read
                drain = partial(_drain, result, batches)
            result.getall = partial(_named, partition, drain)


class _FetchedBare(_Fetched):
    is_bare: ClassVar = True


def _named(
    partition: Any, drain: Callable[..., list[Any]], max_records: int | None = None
) -> list[Any]:
    """Return what `drain` gives.

    Raises CorruptRecordException for whatever it raises, and for offsets that do not rise.
    """
    try:
        records = drain(max_records)
    except Exception as error:
        why = str(error) or type(error).__name__
        raise CorruptRecordException(
            why if str(partition) in why else f"{why} - {partition}"
        ) from error
    offsets = list(map(_offset_of, records))
    if not all(map(lt, offsets, islice(offsets, 1, None))):
        raise CorruptRecordException(f"offsets do not rise - {partition}")
    return records


def _as_read(topic_partition: Any, record: Any) -> Any:
    """Return the record that aiokafka unpacked.

    It is a ConsumerRecord without topic, partition and sizes.
    """
    return record


class _Slice:
    """Consecutive records of a batch, handed on like one record with the last one's offset."""

    __slots__ = ("offset", "records")

    def __init__(self, records: list[Any]) -> None:
        self.records = records
        self.offset = records[-1].offset


class _Batches:
    """The batches of one fetch of a partition, in place of aiokafka's."""

    __slots__ = ("_owner", "_read", "has_next", "limit")

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._read = owner._records
        self.has_next = self._read.has_next
        self.limit: int | None = None  # records the next slice may have

    def next_batch(self) -> _Batch | None:
        """Return the next batch, its records by the slice."""
        batch = self._read.next_batch()
        return None if batch is None else _Batch(batch, self)

    def slices(self, batch: Any) -> Iterator[_Slice]:
        """Yield the records of a batch from the position on.

        Raises CorruptRecordException for a record beyond its batch.
        """
        records = chain(
            batch
        )  # an iterator of its own: islice asks for one each time, and a batch gives only one
        while taken := list(islice(records, self.limit)):
            position = self._owner.next_fetch_offset
            if taken[0].offset < position:  # a fetch from the middle of a batch brings all of it
                taken = [record for record in taken if record.offset >= position]
            if taken:
                if taken[-1].offset >= batch.next_offset:
                    raise CorruptRecordException("a record lies beyond its batch")
                yield _Slice(taken)


class _Batch:
    """One batch of aiokafka's, whose records are given out by the slice."""

    __slots__ = ("_batch", "_batches")

    def __init__(self, batch: Any, batches: _Batches) -> None:
        self._batch = batch
        self._batches = batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[_Slice]:
        return self._batches.slices(self._batch)

    def __next__(self) -> Any:
        return next(self._batch)  # so a control batch is asked for its one record


def _drain(result: Any, batches: _Batches, max_records: int | None = None) -> list[Any]:
    """Return at most `max_records` records: `FetchResult.getall`, by the slice."""
    if not result.check_assignment(result._topic_partition) or not result.has_more():
        return []
    taken: list[Any] = []
    batches.limit = max_records
    for each in result._partition_records:
        if type(each) is _Slice:
            taken += each.records
        else:
            taken.append(each)
        if max_records is not None:
            batches.limit = max_records - len(taken)
            if batches.limit <= 0:
                result._update_position()
                break
    else:
        result._update_position()
        result._partition_records = None
    return taken
