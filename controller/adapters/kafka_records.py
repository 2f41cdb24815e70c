"""Records as aiokafka read them, without the `ConsumerRecord` it makes of each: half of what reading costs.

Belongs here: the one place that reaches into how aiokafka hands records out. It only says what a record becomes; which ones
come, in what order and up to where stays `getmany`'s own business: positions, checksums, aborted transactions.
"""

from __future__ import annotations

from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer import fetcher

#: What makes a ConsumerRecord, a method of what holds a partition's fetched bytes. None where aiokafka has changed that.
_WRAPPING = "_consumer_record" if hasattr(getattr(fetcher, "PartitionRecords", None), "_consumer_record") else None


def leave_bare(consumer: AIOKafkaConsumer) -> None:
    """Let `getmany` hand out what has been fetched by now as it was read; what comes later is wrapped, until called again.

    Where aiokafka is not as known, nothing happens, and a ConsumerRecord has the same names.
    """
    fetched = getattr(getattr(consumer, "_fetcher", None), "_records", None)
    if _WRAPPING is None or not isinstance(fetched, dict):
        return
    for result in fetched.values():
        records = getattr(result, "_partition_records", None)  # a FetchError has none, nor has a result that was used up
        if type(records) is fetcher.PartitionRecords:
            setattr(records, _WRAPPING, _as_read)


def _as_read(topic_partition: Any, record: Any) -> Any:
    """Return the record aiokafka has unpacked: it has all that ConsumerRecord has but the topic, the partition and sizes."""
    return record
