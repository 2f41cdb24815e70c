"""Which totals are read again: those that may have changed, and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec.structs import replace as renewed

from controller.core.evidence import PartitionProgress, VisitTotals
from controller.deciding.given_evidence import Progress
from controller.deciding.known_totals import KnownTotals
from controller.ports import PartitionHead
from schemas.totals import LatelyChanged
from tests.builders import T0
from tests.streams import make_arm

FLAGS = ("a", "b", "c")
TOTALS = {0: VisitTotals(make_arm(1000), make_arm(9000))}
CHANGED = LatelyChanged("w", number=5, since=2, next=7, flags={"a": 5, "b": 3})


def head(
    changed: LatelyChanged | None = CHANGED, *, fence: int = 7, name: str = "e/0"
) -> PartitionHead:
    """Return what one partition says."""
    return PartitionHead(PartitionProgress(name, fence, fence, T0, T0), changed)


def as_of(seconds: float) -> tuple[Progress, float]:
    """Return partitions as read then."""
    return Progress((), 1, T0), seconds


def known(*heads: PartitionHead) -> KnownTotals:
    """Return the totals of all flags as read at 1 s, after these heads."""
    totals = KnownTotals()
    for flag_key in FLAGS:
        totals.want(flag_key, ("r", [0]))
    totals.take_heads(heads, as_of(1))
    assert totals.unknown == set(FLAGS)
    for flag_key in FLAGS:
        totals.take(flag_key, TOTALS, as_of(1))
    assert totals.unknown == set()
    return totals


SINCE_THEN = renewed(CHANGED, number=9, flags={"a": 5, "b": 9, "gone": 8})


@pytest.mark.parametrize(
    ("before", "now", "unknown"),
    [
        (head(), head(), ""),  # a heartbeat
        (head(), head(renewed(CHANGED, next=8), fence=8), ""),  # only records that change nothing
        (head(), head(SINCE_THEN, fence=9), "b"),
        (head(), head(renewed(SINCE_THEN, since=6), fence=9), "abc"),  # more than are named
        (head(), head(renewed(SINCE_THEN, writer="x"), fence=9), "abc"),  # it has changed hands
        (head(), head(renewed(CHANGED, writer="x")), "abc"),  # perhaps its save came before ours
        (head(), head(renewed(CHANGED, number=4), fence=6), "abc"),  # Redis lost its last writes
        (head(), head(None, fence=9), "abc"),  # an older release saved
        (head(None), head(None, fence=9), "abc"),
        (head(None), head(None), ""),
        (head(None), head(), "abc"),  # it was upgraded
    ],
)
def test_what_has_changed_is_read(before: PartitionHead, now: PartitionHead, unknown: str) -> None:
    """By what the owner of the partition says, and everything where that is not enough."""
    totals = known(before)
    totals.take_heads([now], as_of(2))
    assert totals.unknown == set(unknown)
    for flag_key in FLAGS:
        _, seconds = totals.as_of(flag_key) or as_of(0)
        assert seconds == (1 if flag_key in unknown else 2)


def test_what_has_changed_is_as_old_as_the_heads_before() -> None:
    """It was read a minute ago, and was known to be the same until the last look."""
    totals = known(head())
    totals.take_heads([head()], as_of(50))
    totals.take_heads([head(SINCE_THEN, fence=9)], as_of(51))
    assert [(totals.as_of(flag_key) or as_of(0))[1] for flag_key in FLAGS] == [51, 50, 51]


def test_a_partition_that_appears_or_goes_may_concern_every_flag() -> None:
    """Redis was emptied, or a partition was added."""
    other = head(name="e/1")
    for before, now in (([head()], [head(), other]), ([head(), other], [head()]), ([head()], [])):
        totals = known(*before)
        totals.take_heads(now, as_of(2))
        assert totals.unknown == set(FLAGS)


def test_of_several_partitions_all_count() -> None:
    """One says `a`, the other `b`."""
    first, second = head(), head(name="e/1")
    totals = known(first, second)
    changed = [
        head(renewed(CHANGED, number=6, flags={key: 6}), fence=8, name=name)
        for name, key in (("e/0", "a"), ("e/1", "b"))
    ]
    totals.take_heads(changed, as_of(2))
    assert totals.unknown == {"a", "b"}
    totals.take_heads(changed, as_of(3))
    assert totals.unknown == {"a", "b"}  # until they are read


def test_other_visits_are_read_and_what_is_wanted_no_more_is_forgotten() -> None:
    """A flag that has moved on to another stage, and one whose rollout is over."""
    totals = known(head())
    totals.want("a", ("r", [0, 1]))
    totals.want("b", ("r", [0]))
    totals.want("c", None)
    assert (totals.unknown, set(totals.totals)) == ({"a"}, {"a", "b"})
    totals.take("c", TOTALS, as_of(2))  # it was read meanwhile
    assert (set(totals.totals), totals.as_of("c")) == ({"a", "b"}, None)


def test_what_cannot_be_read_whole_is_read_again() -> None:
    """It heals as soon as it can, and is as new as it was read."""
    totals = known(head())
    damaged = {0: replace(TOTALS[0], unreadable=("e/0",))}
    totals.doubt(["a"])
    totals.take("a", damaged, as_of(5))
    assert totals.unknown == {"a"}
    assert (totals.as_of("a") or as_of(0))[1] == 5
