"""Passes over all objects come seldom, because they hold up the event loop."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref
from datetime import timedelta

import pytest

from controller.adapters.memory import ManualClock
from controller.running.garbage_collection import FullCollections, limit_collections
from tests.virtual_time import LoopClock, in_virtual_time

#: Replaces the objects of ten thousand flags again and again, and prints how many passes visited
#: young objects, and how many all.
LOOKS = """
import gc
from controller.running.garbage_collection import limit_collections
{limit}
gc.collect()
looks = {{}}
for look in range(12):
    for flag in range(10_000):
        looks[flag] = [[number] for number in range(10)]
young, _, all = (each["collections"] for each in gc.get_stats())
print(young, all)
"""


def passes(limit: str) -> tuple[int, int]:
    """Return the passes over young objects, and over all, of such a process."""
    done = subprocess.run(
        [sys.executable, "-c", LOOKS.format(limit=limit)],
        capture_output=True,
        text=True,
        check=True,
    )
    young, full = map(int, done.stdout.split())
    return young, full


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="it has no passes over all objects")
def test_looks_at_thousands_of_flags_cause_no_pass_over_all_objects() -> None:
    """By itself Python would make one for every few looks: that is what holds up the loop."""
    _, full_by_itself = passes("")
    young, full = passes(limit_collections.__name__ + "()")
    assert young > 3, "young cycles are still found"
    assert (full_by_itself > 1, full) == (True, 1), "but for the one that the script asks for"


class Node:
    """Something that may hold itself."""

    def __init__(self) -> None:
        self.itself = self


def test_a_cycle_that_nobody_uses_is_freed() -> None:
    """However old it is."""
    node = Node()
    gc.collect()  # it is an old object now
    seen = weakref.ref(node)
    del node
    FullCollections(ManualClock()).visit()
    assert seen() is None


@pytest.mark.parametrize(
    ("takes", "pause"),
    [(0.005, 60.0), (0.5, 500.0), (1.2, 1_200.0), (30.0, 3_600.0)],
    ids=["few objects", "thousands of rollouts", "more", "too many for any rule"],
)
def test_passes_take_a_thousandth_of_the_time(takes: float, pause: float) -> None:
    """At least one a minute is allowed, and at most an hour passes without any."""
    clock = ManualClock()

    def collect() -> int:
        clock.advance(timedelta(seconds=takes))
        return 0

    assert FullCollections(clock, collect).visit() == pytest.approx(pause)


@in_virtual_time
async def test_they_go_on_until_cancelled() -> None:
    """The first comes after a minute, once a replica has taken over its flags."""
    at: list[float] = []
    clock = LoopClock()

    def collect() -> int:
        at.append(clock.monotonic())
        return 0

    began = clock.monotonic()
    running = asyncio.create_task(FullCollections(clock, collect).run())
    await asyncio.sleep(200)
    running.cancel()
    assert [each - began for each in at] == pytest.approx([60, 120, 180])
