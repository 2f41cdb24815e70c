"""Which event partitions there are, and the keys by which their totals are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controller.ports import Topology
from controller.telemetry import EVENT_TOPICS


class EventPartitions:
    """The event topics as they are now."""

    def __init__(self, topology: Topology, streams: tuple[str, str], epoch: int) -> None:
        """`streams` are the names under which evaluations and outcomes are counted."""
        self._topology = topology
        self._streams = dict(zip(EVENT_TOPICS, streams, strict=True))
        self._epoch = epoch

    @property
    def keys(self) -> Sequence[str]:
        """The key of every partition's totals. Raises KeyError before the topics are known."""
        return tuple(
            f"{stream}/{number}/{self._epoch}"
            for topic, stream in self._streams.items()
            for number in range(self._topology.partitions(topic))
        )

    @property
    def counts(self) -> Mapping[str, int]:
        """How many partitions each event topic has, by logical name; empty before that is known."""
        try:
            return {topic: self._topology.partitions(topic) for topic in self._streams}
        except KeyError:
            return {}

    @property
    def topics(self) -> Mapping[str, str]:
        """The logical topic of each stream."""
        return {stream: topic for topic, stream in self._streams.items()}
