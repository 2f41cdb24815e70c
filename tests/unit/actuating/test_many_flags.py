"""What thousands of flags cost the reconcile loop."""

from __future__ import annotations

import asyncio
from typing import Any

from controller.adapters.memory import MemoryFlagPlane
from controller.core.rollout import Rollout
from controller.ports import Served
from schemas.terms import AlertKind
from tests.unit.actuating.test_reconciler import SlowPlane, Told, decided
from tests.virtual_time import in_virtual_time, settled


class CountingPlane(MemoryFlagPlane):
    """Counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__("counting")
        self.looks = 0

    async def look(self, rollout: Rollout) -> Served:
        self.looks += 1
        return await super().look(rollout)


@in_virtual_time
async def test_a_decision_costs_its_own_flag_however_many_there_are() -> None:
    """Thousands of flags are taken over one by one: each time all would be a quadratic number."""
    plane, flags = CountingPlane(), 1_000
    async with Told().running(plane) as actuation:
        turns = 0
        real = actuation._turn

        def turn(*arguments: Any) -> tuple[bool, float]:
            nonlocal turns
            turns += 1
            return real(*arguments)

        actuation._turn = turn  # type: ignore[method-assign, assignment]
        for number in range(flags):
            actuation.request(decided(f"flag-{number}"))
            await asyncio.sleep(0)
        await settled()
        assert turns == flags
        assert plane.looks == 2 * flags  # before and after it serves
        actuation.request(decided("flag-7", percent=50, revision=2))
        await settled()
        assert plane.looks == 2 * flags + 2
        await asyncio.sleep(6)
        assert plane.looks == 3 * flags + 2  # the next round compares all


class HerePlane(CountingPlane):
    """In the memory of this process: it can be looked at without waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.glances = 0
        self.is_broken = False

    def look_at_once(self, rollout: Rollout) -> Served:
        """Return what `look` returns."""
        self.glances += 1
        if self.is_broken:
            raise KeyError(rollout.flag_key)
        _, percent = self._served.get(rollout.flag_key, (0, None))
        return Served.compared(percent, rollout.percent)


@in_virtual_time
async def test_what_a_plane_here_serves_as_decided_costs_one_glance() -> None:
    """A round goes through all flags, and takes the long way for those alone that differ."""
    plane, told = HerePlane(), Told()
    async with told.running(plane) as actuation:
        for number in range(1_000):
            actuation.request(decided(f"flag-{number}"))
        await settled()
        plane.looks = plane.glances = 0
        await asyncio.sleep(6)
        assert (plane.looks, plane.glances) == (0, 1_000)
        plane.meddle("flag-7", 80)
        before = actuation.standings("flag-8")
        await asyncio.sleep(5)
        assert (await plane.look(decided("flag-7"))).percent == 10
        assert plane.looks == 3  # before and after it serves, and here
        assert [alert.kind for _, alert in told.alerts] == [AlertKind.FOREIGN_EDIT]
        assert actuation.standings("flag-8") != before  # it was looked at later
        plane.outage.is_down = plane.is_broken = True
        await asyncio.sleep(5)
        assert len(actuation.mismatches) == 1_000
        plane.outage.is_down = plane.is_broken = False
        await asyncio.sleep(6)
        assert actuation.mismatches == {}


@in_virtual_time
async def test_a_round_of_a_plane_here_serves_what_is_decided_meanwhile() -> None:
    """A lowering does not wait until thousands of flags are looked at."""
    plane, served_at = HerePlane(), []
    async with Told().running(plane) as actuation:
        for number in range(3_000):
            actuation.request(decided(f"flag-{number}"))
        await settled()
        glance, serve = plane.look_at_once, plane.serve

        def look_at_once(rollout: Rollout) -> Served:
            if plane.glances == 1_000:
                actuation.request(decided("flag-2999", percent=0, revision=2))
            return glance(rollout)

        async def served(rollout: Rollout) -> None:
            served_at.append(plane.glances)
            await serve(rollout)

        plane.look_at_once = look_at_once  # type: ignore[method-assign]
        plane.serve = served  # type: ignore[method-assign]
        plane.glances = 0
        await asyncio.sleep(6)
        assert plane.glances == 2_000  # of thousands a part
        assert served_at[0] < 2_000
        await asyncio.sleep(5)
        assert plane.glances == 3_000 - 1  # it was looked at by the long way
        plane.meddle("flag-0", 80)
        plane.meddle("flag-2998", 80)
        await asyncio.sleep(10)
        assert plane.glances >= 6_000 - 1
        assert [(await plane.look(decided(f"flag-{n}"))).percent for n in (0, 2_998)] == [10, 10]


@in_virtual_time
async def test_what_a_plane_here_does_not_serve_is_tried_in_each_round() -> None:
    """However many others there are: of these a part is looked at in each."""
    plane = HerePlane()
    async with Told().running(plane) as actuation:
        for number in range(9_000):
            actuation.request(decided(f"flag-{number}"))
        await asyncio.sleep(1)
        plane.outage.is_down = plane.is_broken = True
        actuation.request(decided("flag-8999", percent=0, revision=2))
        await settled()
        assert len(actuation.mismatches) == 1
        plane.outage.is_down = plane.is_broken = False
        await asyncio.sleep(5.5)
        assert actuation.mismatches == {}


@in_virtual_time
async def test_a_round_leaves_turns_to_others() -> None:
    """A plane in memory answers without a pause, for thousands of flags."""
    plane, turns = CountingPlane(), 0
    async with Told().running(plane) as actuation:
        for number in range(1_000):
            actuation.request(decided(f"flag-{number}"))
        while plane.looks < 2_000:
            await asyncio.sleep(0)
            turns += 1
    assert turns >= 10


@in_virtual_time
async def test_a_decision_that_was_overtaken_is_not_served_any_more() -> None:
    """Lowered while it waits behind a slow call: the older, higher one must not come after."""
    plane = SlowPlane(1.0)
    async with Told().running(plane) as actuation:
        actuation.request(decided("other", percent=1))
        await asyncio.sleep(0.5)  # its call lasts
        actuation.request(decided("first", percent=50, revision=1))
        actuation.request(decided("flag", percent=60, revision=1))
        await asyncio.sleep(1.0)  # that of the first lasts, and the flag waits
        actuation.request(decided("flag", percent=0, revision=2))
        await asyncio.sleep(4.0)
        assert (await plane.look(decided("flag"))).percent == 0
    assert plane.served == ["other 1", "first 50", "flag 0"]
