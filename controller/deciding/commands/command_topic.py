"""Finds the partition of the command topic that a flag belongs to. Its owner runs the flag."""

from __future__ import annotations

from controller.ports import Publisher, Topology


class CommandTopic:
    """The command topic as it is now: it grows while the daemon runs."""

    def __init__(self, topology: Topology, publisher: Publisher) -> None:
        self._topology = topology
        self._publisher = publisher
        self._count = 0  # of partitions, when `_homes` were computed
        self._homes: dict[str, int] = {}

    @property
    def partitions(self) -> int:
        """How many partitions there are. Raises KeyError before that is known."""
        return self._topology.partitions("commands")

    def home_of(self, flag_key: str) -> int:
        """Return a flag's partition. Raises KeyError before the number of partitions is known.

        Cached: the hash of ten thousand keys takes a tenth of a second.
        """
        count = self.partitions
        if count != self._count:
            self._homes.clear()
            self._count = count
        home = self._homes.get(flag_key)
        if home is None:
            home = self._homes[flag_key] = self._publisher.partition_of(flag_key, count)
        return home
