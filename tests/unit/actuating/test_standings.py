"""How each plane stands to what was decided, as status and reports show it."""

from __future__ import annotations

import asyncio

from controller.actuating.reconciler import FlagReconciler
from controller.adapters.memory import MemoryFlagPlane
from tests.builders import T0
from tests.unit.actuating.test_reconciler import Told, decided
from tests.virtual_time import in_virtual_time, settled


def whys(actuation: FlagReconciler) -> list[str | None]:
    """Return why each plane does not serve what was decided."""
    return [one.why for one in actuation.standings("new-checkout") or ()]


@in_virtual_time
async def test_how_planes_stand_is_renewed_with_each_change() -> None:
    """A decision, an answer, an outage and its end: each is seen at once."""
    plane, told = MemoryFlagPlane("good"), Told()
    async with told.running(plane) as actuation:
        actuation.request(decided(percent=50))
        await settled()
        assert whys(actuation) == [None]
        before = actuation.standings("new-checkout")
        plane.outage.is_down = True
        await asyncio.sleep(6)
        assert whys(actuation) not in ([None], [])
        plane.outage.is_down = False
        await asyncio.sleep(6)
        assert whys(actuation) == [None]
        assert actuation.standings("new-checkout") != before  # it was looked at later
        actuation.request(decided(percent=10, revision=2))
        assert [one.decided_percent for one in actuation.standings("new-checkout") or ()] == [10]


@in_virtual_time
async def test_each_plane_says_whether_it_has_converged() -> None:
    """Per flag and plane: what was decided, what was read, why not and since when.

    Nothing of another replica's flags.
    """
    good, away, told = MemoryFlagPlane("good"), MemoryFlagPlane("away"), Told()
    away.outage.is_down = True
    async with told.running(good, away) as actuation:
        assert actuation.standings("new-checkout") is None
        actuation.request(decided(percent=50))
        assert whys(actuation) == ["not looked at yet", "not looked at yet"]
        await settled()
        standings = actuation.standings("new-checkout")
        assert standings is not None
        assert [
            (one.plane, one.is_converged, one.decided_percent, one.percent) for one in standings
        ] == [
            ("good", True, 50.0, 50.0),
            ("away", False, 50.0, None),
        ]
        assert (standings[0].why, standings[0].since) == (None, None)
        assert (standings[1].since, standings[1].looked_at) == (T0, None)
        assert actuation.converged() == {
            ("new-checkout", "good"): True,
            ("new-checkout", "away"): False,
        }
        assert told.metric("actuations_total", plane="good", outcome="served") == 1
        assert told.metric("actuations_total", plane="away", outcome="failed") == 1
        assert told.metric("dependency_errors_total", dependency="flag_plane") == 1
        actuation.drop(["new-checkout"])
        assert (actuation.standings("new-checkout"), actuation.converged()) == (None, {})
