"""Detect outcomes that were delivered twice, by producers that retry or replay.

An event's source and id are its own (CloudEvents 1.0), so no two events are equal, however coarse
their clocks and latencies are. A producer that sends an event again sends the same bytes. Not
detected are events that are encoded again for sending them again, copies that come after
`REMEMBERED` other records or across a restart, and those of contexts that are not sampled. So the
count is a lower bound.

Belongs here: the memory of records. Does not belong here: which outcomes are checked (`events.py`)
and what follows (`core/judging/gaps.py`).
"""

from __future__ import annotations

from controller.ports import Record

#: Contexts whose digest has none of these bits are sampled, one of 64. All others cost one test. Of
#: a context all outcomes are checked or none, so that a copy meets its original.
NOT_SAMPLED = 63

REMEMBERED = 4096
"""How many records are remembered at least; at most twice as many, about 0.5 MB per partition.

As one of 64 they stand for some 260,000 outcomes. That is two minutes of a partition that takes
2,000 a second, and a producer tries again for two minutes.
"""


class RecentRecords:
    """The records checked last, by a hash of their content."""

    __slots__ = ("_before", "_offsets")

    def __init__(self) -> None:
        """Start with none."""
        self._offsets: dict[int, int] = {}  # hash -> offset of the first record with it
        self._before: dict[int, int] = {}

    def came_before(self, record: Record) -> bool:
        """Return whether an earlier record has the same content, and remember this one.

        The same record read again, or checked for several of its events or flags, is no second one.
        """
        content = hash(record.value)
        if record.headers:  # in binary mode they hold the source and the id
            content = hash(
                (content, *(header for header in record.headers if header[0].startswith("ce_")))
            )
        first = self._offsets.get(content)
        if first is None:
            first = self._before.get(content, record.offset)
            if len(self._offsets) >= REMEMBERED:
                self._before, self._offsets = self._offsets, {}
            self._offsets[content] = first
        return first != record.offset
