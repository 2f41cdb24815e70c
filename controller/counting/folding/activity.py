"""How much one context may weigh in the comparisons: no more than several others together.

A bot, a health check or a load test is one context, stands in one arm, and makes many requests.
Were all its actions compared, an arm would be as good or as bad as its bot. So an action (the first
outcome of a context in a batch) is left out while its context is far more active than the others.

Contexts are counted in groups, by their digest, because to count each would take memory without
bound. The contexts of a group that is far more active than the average of the other groups weigh
too much. Where many contexts come, a group is a 128th of them, and one context alone has to make
some 6 % of an arm's actions in a partition. Where few come, each is a group of its own: equal
contexts stay equal, however active they are, so harm that begins late is found. One alone has
nobody to be compared with, and counts.

Whether an action counts follows from what came before it, never from how it ends. So what is
compared stays a fair sample of either arm.

Belongs here: the rule. Does not belong here: what is counted of an action (`events.py`). Nothing
here is stored: after a restart a group has to become active again to be left out.
"""

from __future__ import annotations

GROUPS = 128
"""Groups of contexts; a power of two. 1 KB per arm and partition; the native fold takes half."""

ALWAYS = 8
"""Actions that count whatever the others do: most contexts make no more.

An arm's first actions are in no group: many arms of quiet flags never get more, and need no memory.
"""

MULTIPLE = 8
"""How many times as active as the average of the others a group may be.

Of 127 others, 8 averages are 6 % of all: less than the usual margin of 10 %. Of people with
lognormal activity (sigma 1) who each are a group, one in 200 is above it.
"""

_GROUP_OF = GROUPS - 1


class Activity:
    """The actions of one arm's contexts in one partition, by groups of contexts."""

    __slots__ = ("_actions", "_counts", "_used")

    def __init__(self) -> None:
        """Start without an action."""
        self._actions = -ALWAYS  # those in groups, once it is above 0
        self._used = 0  # groups with an action
        self._counts = _NO_GROUPS

    def add(self, digest: int) -> bool:
        """Add an action of a context; return whether it counts."""
        actions = self._actions = self._actions + 1
        if actions <= 0:
            return True
        counts = self._counts
        if counts is _NO_GROUPS:
            counts = self._counts = [0] * GROUPS
        group = digest & _GROUP_OF
        own = counts[group] = counts[group] + 1
        if own == 1:
            self._used += 1
        return own <= ALWAYS or (own - ALWAYS) * (self._used - 1) <= MULTIPLE * (actions - own)


_NO_GROUPS: list[int] = []
