"""Is an outcome one that was there before.

What producers that retry or replay write a second time, byte for byte.

An event's source and id are its own (CloudEvents 1.0), so two events are never written alike,
however coarse their clocks and latencies are; and whoever sends one again sends the same bytes. Not
found are events that are written anew for sending them again, copies that come after `REMEMBERED`
others or across a restart, and those of contexts that nobody looks at: what is counted here is a
part of what there is, and never what is not there.

Belongs here: the memory. Does not belong here: which outcomes are looked at (`counting.py`) and
what it means (`core/judging/gate.py`).
"""

from __future__ import annotations

from controller.ports import Record

# : Every outcome is looked at of the contexts whose digest has none of these bits, one of 64. All
# others cost one test; and a : context's outcomes are looked at all or none, so that what is sent
# again meets its first copy.
NOT_SAMPLED = 63

REMEMBERED = 4096
"""Records that are remembered at least, twice as many at most, about 0.5 MB a partition. As one of 64 they stand for some
260,000 outcomes: two minutes of a partition that takes 2,000 a second, where a producer tries again for two minutes."""


class RecentRecords:
    """The records last looked at, by a hash of what they say."""

    __slots__ = ("_before", "_offsets")

    def __init__(self) -> None:
        """Start with none."""
        self._offsets: dict[int, int] = {}  # hash -> where it was first seen
        self._before: dict[int, int] = {}

    def came_before(self, record: Record) -> bool:
        """Return whether an earlier record says the same, and remember this one.

        The same record read again, or looked at for several of its events, is no second one.
        """
        content = hash(record.value)
        if record.headers:  # in binary mode the source and the id stand there
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
