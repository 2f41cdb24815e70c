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
from controller.bootstrap import Daemon
from controller.running.garbage_collection import FullCollections
from controller.settings import Settings
from tests.virtual_time import LoopClock, in_virtual_time

#: Makes the objects of a dozen looks at ten thousand flags, 1.4 million, and prints how many passes
#: visited the youngest, the young, and all meanwhile.
LOOKS = """
import gc
from controller.running.garbage_collection import limit_collections
{limit}
gc.collect()
before = gc.get_stats()
looks = {{}}
for look in range(12):
    for flag in range(10_000):
        looks[look, flag] = [[number] for number in range(10)]
print(*(now["collections"] - was["collections"] for now, was in zip(gc.get_stats(), before)))
"""


def passes(limit: str) -> list[int]:
    """Return the passes over the youngest objects, the young, and all, of such a process."""
    done = subprocess.run(
        [sys.executable, "-c", LOOKS.format(limit=limit)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(word) for word in done.stdout.split()]


def test_looks_at_thousands_of_flags_cause_no_pass_over_all_objects() -> None:
    """By itself Python makes some: that is what held up the loop. Young cycles are still found."""
    assert passes("")[2] > 2
    youngest, young, full = passes("limit_collections()")
    assert 30 < youngest < 120, "each visits 20,000 objects that are new"
    assert youngest / 8 < young < youngest, "no step visits so many that the loop would stand still"
    assert full == 0


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


async def test_a_replica_runs_them() -> None:
    """Without the loop nothing would visit old objects any more."""
    daemon = Daemon(Settings())
    assert "garbage" in dict(daemon.oversight.loops)
