"""Records as aiokafka read them, in slices and without the `ConsumerRecord` it makes of each: most of what reading costs.

Belongs here: the one place that reaches into how aiokafka hands records out. It only says what a record becomes and how many
come at a time; which ones come, in what order and up to where stays `getmany`'s own business: positions, checksums, aborted
transactions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer import fetcher

#: What is changed here: how a fetched partition is drained, and what makes a ConsumerRecord of what it holds.
_CHANGED = {"FetchResult": "getall", "PartitionRecords": "_consumer_record"}
_IS_KNOWN = all(hasattr(getattr(fetcher, name, None), method) for name, method in _CHANGED.items())


def leave_bare(consumer: AIOKafkaConsumer) -> None:
    """Let `getmany` of a started consumer hand out records as they were read.

    For a consumer that is read by `getmany` alone. Where aiokafka is not as known, nothing happens, and a ConsumerRecord has
    the same names.
    """
    owner: Any = getattr(consumer, "_fetcher", None)
    fetched = getattr(owner, "_records", None)
    if _IS_KNOWN and isinstance(fetched, dict):
        owner._records = _Fetched(fetched)


class _Fetched(OrderedDict[Any, Any]):
    """What was fetched and not yet handed out, by partition: results are changed as they come in, before any is read."""

    def __setitem__(self, partition: Any, result: Any) -> None:
        super().__setitem__(partition, result)
        records: Any = getattr(result, "_partition_records", None)  # a FetchError has none, nor has a result that was used up
        if type(records) is fetcher.PartitionRecords and "getall" not in vars(result):
            batches = records._records = _Batches(records)  # in vain where some were read before: the rest comes one by one
            records._consumer_record = _as_read
            result.getall = partial(_drain, result, batches)


def _as_read(topic_partition: Any, record: Any) -> Any:
    """Return the record aiokafka has unpacked: it has all that ConsumerRecord has but the topic, the partition and sizes."""
    return record


class _Slice:
    """Records that follow one another in a batch, handed on as if they were one record with the last one's offset."""

    __slots__ = ("offset", "records")

    def __init__(self, records: list[Any]) -> None:
        self.records = records
        self.offset = records[-1].offset


class _Batches:
    """The batches of one fetch of a partition, in place of aiokafka's."""

    __slots__ = ("_owner", "_read", "has_next", "wanted")

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._read = owner._records
        self.has_next = self._read.has_next
        self.wanted: int | None = None  # records the next slice may have

    def next_batch(self) -> _Batch | None:
        """Return the next batch, its records by the slice."""
        batch = self._read.next_batch()
        return None if batch is None else _Batch(batch, self)

    def slices(self, batch: Any) -> Iterator[_Slice]:
        """Yield what a batch has from the position on."""
        records = chain(batch)  # an iterator of its own: islice asks for one each time, and a batch gives one once
        while taken := list(islice(records, self.wanted)):
            position = self._owner.next_fetch_offset
            if taken[0].offset < position:  # a fetch from the middle of a batch brings all of it
                taken = [record for record in taken if record.offset >= position]
            if taken:
                yield _Slice(taken)


class _Batch:
    """One batch: aiokafka's in all but how its records are handed out."""

    __slots__ = ("_batch", "_batches")

    def __init__(self, batch: Any, batches: _Batches) -> None:
        self._batch = batch
        self._batches = batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[_Slice]:
        return self._batches.slices(self._batch)

    def __next__(self) -> Any:
        return next(self._batch)  # how a control batch is asked for its one record


def _drain(result: Any, batches: _Batches, max_records: int | None = None) -> list[Any]:
    """Return at most `max_records` records: `FetchResult.getall`, by the slice."""
    if not result.check_assignment(result._topic_partition) or not result.has_more():
        return []
    taken: list[Any] = []
    batches.wanted = max_records
    for each in result._partition_records:
        if type(each) is _Slice:
            taken += each.records
        else:
            taken.append(each)
        if max_records is not None:
            batches.wanted = max_records - len(taken)
            if batches.wanted <= 0:
                result._update_position()
                break
    else:
        result._update_position()
        result._partition_records = None
    return taken
