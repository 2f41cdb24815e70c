"""What a consumer of aiokafka gives out, made small.

Belongs here: the one place that reaches into how aiokafka gives records out. It decides what a
record becomes, and how many come at a time. Which ones come, in what order and up to which position
stays with `getmany`: positions, checksums, aborted transactions. Does not belong here: what brokers
answer (`fetch_guard.py`), runs of native records (`record_runs.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from operator import attrgetter, lt
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException, RecordTooLargeError

from controller.adapters.kafka.fetch_guard import FetchGuard
from controller.adapters.kafka.record_runs import ReadBatches, Run, RunsAndBatches

# What is changed here: how a fetched partition is drained, and what makes a ConsumerRecord of its
# content.
_CHANGED = {"FetchResult": "getall", "PartitionRecords": "_consumer_record"}
_IS_KNOWN = all(hasattr(getattr(fetcher, name, None), method) for name, method in _CHANGED.items())

#: What `getmany` raises for a record that cannot be read. The second is for a batch that claims to
#: be longer than it is.
UNREADABLE = (CorruptRecordException, RecordTooLargeError)

_offset_of = attrgetter("offset")


def name_faults(consumer: AIOKafkaConsumer) -> None:
    """Let `getmany` of a started consumer name the partition that cannot be read.

    It then raises CorruptRecordException with the partition in its message, and nothing else.
    """
    _replace_fetched(consumer, None)


def leave_bare(
    consumer: AIOKafkaConsumer,
    guard: FetchGuard | None = None,
    read_batches: ReadBatches | None = None,
) -> None:
    """Let `getmany` of a started consumer give out bare records, and name faults as above.

    For a consumer that is read by `getmany` alone. With `read_batches` plain batches come as runs
    of native records, of what the consumer's `guard` keeps. With an aiokafka that is built
    differently nothing happens, and a ConsumerRecord has the same names.
    """

    def batches(partition: Any, records: Any) -> _Batches:
        key = partition, records.next_fetch_offset
        content = None if guard is None else guard.contents.pop(key, None)
        if content is None or read_batches is None:
            return _Batches(records, records._records)
        return _Batches(records, RunsAndBatches(content, records, read_batches))

    _replace_fetched(consumer, batches)


def _replace_fetched(
    consumer: AIOKafkaConsumer, batches: Callable[[Any, Any], _Batches] | None
) -> None:
    owner: Any = getattr(consumer, "_fetcher", None)
    fetched = getattr(owner, "_records", None)
    if _IS_KNOWN and isinstance(fetched, dict):
        owner._records = _Fetched(fetched, batches)


class _Fetched(OrderedDict[Any, Any]):
    """What was fetched and not yet given out, by partition.

    Results are changed as they arrive, before any is read.
    """

    def __init__(
        self, fetched: dict[Any, Any], batches: Callable[[Any, Any], _Batches] | None
    ) -> None:
        """`batches` makes what takes the place of a result's batches; None: nothing does."""
        self._batches = batches
        super().__init__()
        for partition, result in fetched.items():
            self[partition] = result

    def __setitem__(self, partition: Any, result: Any) -> None:
        super().__setitem__(partition, result)
        records: Any = getattr(
            result, "_partition_records", None
        )  # a FetchError has none, and neither has an exhausted result
        if type(records) is fetcher.PartitionRecords and "getall" not in vars(result):
            drain: Callable[..., Sequence[Any]] = fetcher.FetchResult.getall
            if self._batches is not None:
                # Without effect where some were read before: the rest comes one by one.
                batches = records._records = self._batches(partition, records)
                records._consumer_record = _as_read
                drain = partial(_drain, batches)
            result.getall = partial(_named, partition, drain, result)


def _named(
    partition: Any,
    drain: Callable[..., Sequence[Any]],
    result: Any,
    max_records: int | None = None,
) -> Sequence[Any]:
    """Return what `drain` gives of a result.

    Raises CorruptRecordException for whatever it raises, and for offsets that do not rise.
    """
    content = result._partition_records
    try:
        records = drain(result, max_records)
    except Exception as error:
        why = str(error) or type(error).__name__
        raise CorruptRecordException(
            why if str(partition) in why else f"{why} - {partition}"
        ) from error
    if content is not None and not result.has_more():
        # All given out, or dropped because of a pause or a seek. In a circle its megabyte would be
        # kept until a collection, and those are rare here: native records are not objects.
        content._records = content._records_iterator = None
        vars(result).pop("getall", None)
    if not isinstance(records, list):
        return records  # a run, whose offsets rise
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
    """Consecutive records, handed on like one record with the last one's offset."""

    __slots__ = ("offset", "records")

    def __init__(self, records: Sequence[Any]) -> None:
        self.records = records
        self.offset = records[-1].offset


class _Batches:
    """The batches of one fetch of a partition, in place of aiokafka's."""

    __slots__ = ("_owner", "_read", "has_next", "limit")

    def __init__(self, owner: Any, read: Any) -> None:
        """`owner` are aiokafka's PartitionRecords, and `read` gives their batches."""
        self._owner = owner
        self._read = read
        self.has_next = read.has_next
        self.limit: int | None = None  # records the next slice may have

    def next_batch(self) -> _Batch | None:
        """Return the next batch, its records by the slice."""
        batch = self._read.next_batch()
        return None if batch is None else _Batch(batch, self)

    def slices(self, batch: Any) -> Iterator[_Slice]:
        """Yield the records of a batch from the position on.

        Raises CorruptRecordException for a record beyond its batch.
        """
        if type(batch) is Run:
            yield from self._slices_of_run(batch.records)
            return
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

    def _slices_of_run(self, records: Sequence[Any]) -> Iterator[_Slice]:
        begin = 0
        while begin < len(records):
            end = len(records) if self.limit is None else begin + self.limit
            yield _Slice(records[begin:end])
            begin = end


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


def _drain(batches: _Batches, result: Any, max_records: int | None = None) -> Sequence[Any]:
    """Return at most `max_records` records: `FetchResult.getall`, by the slice.

    A run that comes first is handed out alone, as it is.
    """
    if not result.check_assignment(result._topic_partition) or not result.has_more():
        return []
    taken: list[Any] = []
    run: Sequence[Any] | None = None
    batches.limit = max_records
    for each in result._partition_records:
        if type(each) is not _Slice:
            taken.append(each)
        elif taken or isinstance(each.records, list):
            taken += each.records
        else:
            run = each.records
        count = len(taken) if run is None else len(run)
        if max_records is not None:
            batches.limit = max_records - count
        if (max_records is not None and count >= max_records) or (run and batches.has_next()):
            result._update_position()
            break
    else:
        result._update_position()
        result._partition_records = None
    return taken if run is None else run
