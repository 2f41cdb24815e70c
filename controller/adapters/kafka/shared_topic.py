"""One Kafka topic that is counted twice: spans hold evaluations and outcomes.

To counting it looks like two logs with the same records, called streams, each with a fence of its
own. So each stream counts a record exactly once, independently of the other's position. The second
stream is called `<topic>#outcomes`, which is no valid name of a topic. That name appears in Redis
and in the logs of counting.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from controller.ports import EventLog, Record, TopicPartition

_SECOND = "#outcomes"


def streams(topics: tuple[str, str]) -> tuple[str, str]:
    """Return the streams of evaluations and of outcomes, with two names when they are one topic."""
    evaluations, outcomes = topics
    return (evaluations, outcomes + _SECOND) if evaluations == outcomes else topics


def topic_of(stream: str) -> str:
    """Return the Kafka topic of a stream."""
    return stream.removesuffix(_SECOND)


class SharedTopic:
    """`controller.ports.EventLog` over another one's single topic, with two streams.

    Every partition appears in both streams. Kafka is read once, from the lower of the two
    positions. A stream never gets a record below its own.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        # By stream: the offset that it gets next, once it was sought.
        self._next: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(
            stream for partition in self._log.assignment for stream in _streams_of(partition)
        )

    def _forget_unassigned(self) -> None:
        """Forget streams whose partition was taken without notice."""
        assigned = self.assignment
        for stream in self._next.keys() - assigned:
            del self._next[stream]
        self._paused &= assigned

    def on_revoked(self, callback: Callable[[frozenset[TopicPartition]], Awaitable[None]]) -> None:
        async def revoked(partitions: frozenset[TopicPartition]) -> None:
            leaving = frozenset(
                stream for partition in partitions for stream in _streams_of(partition)
            )
            try:
                await callback(leaving)
            finally:
                for stream in leaving:
                    self._next.pop(stream, None)
                self._paused -= leaving

        self._log.on_revoked(revoked)

    async def fetch(
        self, max_records: int, timeout_seconds: float
    ) -> Mapping[TopicPartition, Sequence[Record]]:
        self._forget_unassigned()
        fetched: dict[TopicPartition, Sequence[Record]] = {}
        for partition, records in (await self._log.fetch(max_records, timeout_seconds)).items():
            for stream in _streams_of(partition):
                following = self._next.get(stream)
                if following is None or stream in self._paused:
                    continue  # not sought yet, or read again when it is resumed
                new = (
                    records
                    if records[0].offset >= following
                    else [one for one in records if one.offset >= following]
                )
                if new:
                    fetched[stream] = new
                    self._next[stream] = new[-1].offset + 1
        return fetched

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._next[partition] = offset
        self._go_back(_partition_of(partition))

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.update(partitions)
        self._log.pause(
            [one for one in _partitions_of(partitions) if self._paused.issuperset(_streams_of(one))]
        )

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.difference_update(partitions)
        for partition in _partitions_of(partitions):
            self._log.resume([partition])
            self._go_back(partition)

    def _go_back(self, partition: TopicPartition) -> None:
        """Read on from the lower position; a paused stream's does not count until it is resumed."""
        positions = [
            self._next[one]
            for one in _streams_of(partition)
            if one in self._next and one not in self._paused
        ]
        if positions:
            self._log.seek(partition, min(positions))

    async def bounds(self, partition: TopicPartition) -> tuple[int, int]:
        return await self._log.bounds(_partition_of(partition))

    def end_offset(self, partition: TopicPartition) -> int | None:
        return self._log.end_offset(_partition_of(partition))

    def position(self, partition: TopicPartition) -> int | None:
        following = self._next.get(partition)
        if following is None or partition in self._paused:
            return following  # what was read meanwhile was not given to it
        return max(following, self._log.position(_partition_of(partition)) or 0)

    def heard_at(self, partition: TopicPartition) -> float | None:
        return self._log.heard_at(_partition_of(partition))

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        ends = await self._log.ends(_partitions_of(partitions))
        return {stream: ends[_partition_of(stream)] for stream in partitions}

    async def committed(self, partition: TopicPartition) -> int | None:
        return await self._log.committed(_partition_of(partition))

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        lowest: dict[TopicPartition, int] = {}
        for stream, offset in offsets.items():
            partition = _partition_of(stream)
            lowest[partition] = min(offset, lowest.get(partition, offset))
        await self._log.commit(lowest)


def _streams_of(partition: TopicPartition) -> tuple[TopicPartition, TopicPartition]:
    topic, number = partition
    return (topic, number), (topic + _SECOND, number)


def _partition_of(stream: TopicPartition) -> TopicPartition:
    return topic_of(stream[0]), stream[1]


def _partitions_of(partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
    return list(dict.fromkeys(map(_partition_of, partitions)))
