"""The reconcile loop on planes in memory, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from controller.actuating.reconciler import FlagReconciler
from controller.adapters.memory import MemoryFlagPlane
from controller.core.audience import Audience, Condition
from controller.core.effects import RaiseAlert
from controller.core.rollout import RolledBack, Rollout
from controller.errors import BrokenInvariant
from controller.health import Faults, Scope
from controller.ports import FlagPlane, Served
from controller.telemetry import Metrics
from schemas.terms import AlertKind, Operator, Severity
from tests.builders import T0, make_plan, make_rollout, make_stage
from tests.virtual_time import LoopClock, in_virtual_time, settled


def decided(flag_key: str = "new-checkout", percent: float = 10.0, revision: int = 1) -> Rollout:
    """Return a document with this percentage."""
    return make_rollout(plan=make_plan(flag_key=flag_key), percent=percent, revision=revision)


async def served(plane: FlagPlane, flag_key: str = "new-checkout") -> float | None:
    """Return the percentage a plane serves."""
    return (await plane.look(decided(flag_key))).percent


class Told:
    """What the loop told the outside."""

    def __init__(self) -> None:
        self.alerts: list[tuple[str, RaiseAlert]] = []
        self.faults = Faults(lambda: T0)
        self.metrics = Metrics(version="test")

    def alert(self, flag_key: str, alert: RaiseAlert) -> None:
        """Note an alert."""
        self.alerts.append((flag_key, alert))

    def metric(self, name: str, **labels: str) -> float | None:
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(f"rolloutd_{name}", labels)

    @asynccontextmanager
    async def running(self, *planes: FlagPlane) -> AsyncIterator[FlagReconciler]:
        """Run an actuation loop over `planes`."""
        self.metrics = Metrics(version="test", planes=[plane.name for plane in planes])
        actuation = FlagReconciler(
            planes,
            LoopClock(),
            self,
            self.metrics,
            self.faults,
        )
        task = asyncio.create_task(actuation.run())
        await settled()
        try:
            yield actuation
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


class BrokenPlane(MemoryFlagPlane):
    """Raises what nobody expects, for one flag, as long as `error` is set."""

    def __init__(self, error: BaseException | None, *, flag_key: str = "new-checkout") -> None:
        super().__init__("broken")
        self.error = error
        self.flag_key = flag_key
        self.looks = 0

    async def look(self, rollout: Rollout) -> Served:
        if rollout.flag_key == self.flag_key:
            self.looks += 1
            if self.error is not None:
                raise self.error
        return await super().look(rollout)


class SlowPlane(MemoryFlagPlane):
    """Takes its time for every call to raise or lower."""

    def __init__(self, seconds: float) -> None:
        super().__init__("slow")
        self.seconds = seconds
        self.served: list[str] = []

    async def serve(self, rollout: Rollout) -> None:
        self.served.append(f"{rollout.flag_key} {rollout.percent:g}")
        await asyncio.sleep(self.seconds)
        await super().serve(rollout)


@in_virtual_time
async def test_what_is_decided_is_served_at_once() -> None:
    """A new document reaches every plane without waiting for a period.

    And an older one changes nothing.
    """
    planes = MemoryFlagPlane("one"), MemoryFlagPlane("two")
    async with Told().running(*planes) as actuation:
        actuation.request(decided(percent=50, revision=2))
        actuation.request(decided(percent=10, revision=1))
        await settled()
        assert [await served(plane) for plane in planes] == [50, 50]
    assert [plane.history for plane in planes] == [[("new-checkout", 2, 50.0)]] * 2


@in_virtual_time
async def test_a_foreign_edit_upwards_is_undone_within_a_period() -> None:
    """What somebody raised in the plane's own console is lowered within five seconds.

    And one warning names the person.
    """
    plane, told = MemoryFlagPlane(), Told()
    async with told.running(plane) as actuation:
        actuation.request(decided())
        await settled()
        plane.meddle("new-checkout", 100)
        await asyncio.sleep(5.1)
        assert await served(plane) == 10
        assert actuation.mismatches == {}
    assert [(alert.kind, alert.severity) for _, alert in told.alerts] == [
        (AlertKind.FOREIGN_EDIT, Severity.WARNING)
    ]
    assert "somebody" in told.alerts[0][1].summary


@in_virtual_time
async def test_a_foreign_edit_downwards_stays_until_decided_anew() -> None:
    """The lower value wins.

    It is told once and counts as drift, until it is put back or another percentage is decided.
    """
    plane, told = MemoryFlagPlane(), Told()
    async with told.running(plane) as actuation:
        actuation.request(decided(percent=25, revision=1))
        await settled()
        plane.meddle("new-checkout", 5)
        await asyncio.sleep(5.1)
        actuation.request(
            decided(percent=25, revision=2)
        )  # held because of it: a new revision, not another percentage
        await asyncio.sleep(60)
        assert await served(plane) == 5
        assert "by somebody" in (actuation.drift(decided()) or "")
        assert [alert.kind for _, alert in told.alerts] == [
            AlertKind.FOREIGN_EDIT,
            AlertKind.NOT_ACTUATED,
        ]
        plane.meddle("new-checkout", 25)
        await asyncio.sleep(5.1)
        assert actuation.drift(decided()) is None
        plane.meddle("new-checkout", 7)
        await asyncio.sleep(5.1)
        assert await served(plane) == 7
        actuation.request(decided(percent=50, revision=3))
        await settled()
        assert await served(plane) == 50


@in_virtual_time
async def test_a_rollback_lowers_whatever_somebody_else_wrote() -> None:
    """A flag that somebody lowered goes to zero all the same."""
    plane = MemoryFlagPlane()
    async with Told().running(plane) as actuation:
        actuation.request(decided(percent=25, revision=1))
        await settled()
        plane.meddle("new-checkout", 5)
        await asyncio.sleep(5.1)
        actuation.request(make_rollout(revision=2, phase=RolledBack(T0, "because"), percent=0.0))
        await settled()
        assert await served(plane) == 0


@in_virtual_time
async def test_decided_and_not_actuated_is_an_alarm_once() -> None:
    """A plane that is away for ten seconds raises one critical alert.

    And its gap has an age; back again, both are over.
    """
    plane, told = MemoryFlagPlane("unleash"), Told()
    async with told.running(plane) as actuation:
        plane.outage.is_down = True
        actuation.request(decided())
        await asyncio.sleep(8)
        assert told.alerts == []
        assert actuation.drift(decided()) is not None
        await asyncio.sleep(60)
        assert [(alert.kind, alert.severity) for _, alert in told.alerts] == [
            (AlertKind.NOT_ACTUATED, Severity.CRITICAL)
        ]
        assert (told.metric("actuation_gap_seconds", plane="unleash") or 0) >= 50
        plane.outage.is_down = False
        await asyncio.sleep(5.1)
        gap_seconds = told.metric("actuation_gap_seconds", plane="unleash")
        assert (actuation.drift(decided()), actuation.mismatches, gap_seconds) == (
            None,
            {},
            0.0,
        )
        assert [alert.severity for _, alert in told.alerts[1:]] == [Severity.INFO]
        plane.outage.is_down = True
        plane.meddle("new-checkout", 5)
        await asyncio.sleep(30)
    alerts = [alert for _, alert in told.alerts]
    assert [alert.severity for alert in alerts[2:]] == [Severity.CRITICAL]
    assert len({alert.dedup_key for alert in alerts}) == 1
    assert len({alert.occasion for alert in alerts}) == 3  # another outage is another alarm


@in_virtual_time
async def test_a_hanging_plane_holds_up_no_other() -> None:
    """While one plane hangs in every call, another serves what is decided at once."""
    quick = MemoryFlagPlane("quick")
    async with Told().running(SlowPlane(3600), quick) as actuation:
        actuation.request(decided(percent=50))
        await settled()
        actuation.request(decided(percent=0, revision=2))
        await settled()
        assert await served(quick) == 0


@in_virtual_time
async def test_lowering_goes_first_also_in_the_middle_of_a_round() -> None:
    """A flag rolled back while a slow plane works through forty others is next, not last."""
    plane = SlowPlane(1)
    async with Told().running(plane) as actuation:
        for number in range(40):
            actuation.request(decided(f"flag-{number}", percent=10))
        actuation.request(decided(percent=50))
        await asyncio.sleep(60)
        for number in range(40):
            actuation.request(decided(f"flag-{number}", percent=20, revision=2))
        await asyncio.sleep(3)
        actuation.request(decided(percent=0, revision=2))
        await asyncio.sleep(2.5)
        assert await served(plane) == 0
        await asyncio.sleep(60)
        assert [await served(plane, f"flag-{number}") for number in range(40)] == [20] * 40


@in_virtual_time
async def test_a_step_back_goes_before_raises_to_lower_percentages() -> None:
    """A flag lowered from 50 to 25 % is next, before others raised from 1 to 10 %."""
    plane = SlowPlane(1)
    async with Told().running(plane) as actuation:
        for number in range(10):
            actuation.request(decided(f"flag-{number}", percent=1))
        actuation.request(decided(percent=50))
        await asyncio.sleep(30)
        for number in range(10):
            actuation.request(decided(f"flag-{number}", percent=10, revision=2))
        actuation.request(decided(percent=25, revision=2))
        await asyncio.sleep(1.5)
        assert await served(plane) == 25
        assert [await served(plane, f"flag-{number}") for number in range(10)] == [1] * 10
        await asyncio.sleep(30)
        assert [await served(plane, f"flag-{number}") for number in range(10)] == [10] * 10


@in_virtual_time
async def test_a_rollback_goes_first_where_a_plane_was_never_read() -> None:
    """After a restart, 0 % goes before every percentage, whatever the plane serves."""
    plane = SlowPlane(1)
    async with Told().running(plane) as actuation:
        for number in range(10):
            actuation.request(decided(f"flag-{number}", percent=1))
        actuation.request(make_rollout(phase=RolledBack(T0, "because"), percent=0.0))
        plane.meddle("new-checkout", 50)
        await asyncio.sleep(1.5)
        assert await served(plane) == 0


@in_virtual_time
async def test_a_lost_reply_is_looked_up() -> None:
    """A plane that did what it was told and could not say so is found to serve it."""
    plane = MemoryFlagPlane()
    async with Told().running(plane) as actuation:
        plane.outage.lost_replies = 1
        actuation.request(decided())
        await asyncio.sleep(5.1)
        assert actuation.mismatches == {}
        assert await served(plane) == 10


@in_virtual_time
async def test_a_flag_that_moved_away_is_left_alone() -> None:
    """A dropped flag is neither served nor alarmed.

    Also when it was dropped during a call that failed.
    """
    plane, told = MemoryFlagPlane("unleash"), Told()

    class Dropping(MemoryFlagPlane):
        """Fails, and the flag moves to another replica meanwhile."""

        drop: FlagReconciler | None = None

        async def look(self, rollout: Rollout) -> Served:
            if self.drop is not None:
                self.drop.drop([rollout.flag_key])
            return await super().look(rollout)

    failing = Dropping("failing")
    async with told.running(plane, failing) as actuation:
        failing.drop = actuation
        failing.outage.is_down = True
        actuation.request(decided())
        await settled()
        assert actuation.mismatches == {}
        await asyncio.sleep(60)
        assert told.alerts == []


@in_virtual_time
async def test_a_flag_that_leaves_while_its_plane_breaks_leaves_no_fault() -> None:
    """Another replica tries it from then on: nothing here would ever clear the fault."""
    told = Told()

    class Breaking(MemoryFlagPlane):
        """Takes a second to raise what nobody expects."""

        async def look(self, rollout: Rollout) -> Served:
            await asyncio.sleep(1)
            raise RuntimeError("boom")

    async with told.running(Breaking("breaking")) as actuation:
        actuation.request(decided())
        await asyncio.sleep(0.5)
        actuation.drop(["new-checkout"])
        await asyncio.sleep(60)
        assert told.faults.of(Scope.PLANE, "breaking") is None


@in_virtual_time
async def test_rolled_back_is_served_as_zero() -> None:
    """The end of a rollout is served like any other percentage."""
    plane = MemoryFlagPlane()
    ended: Sequence[Rollout] = [
        decided(),
        make_rollout(revision=2, phase=RolledBack(T0, "because"), percent=0.0),
    ]
    async with Told().running(plane) as actuation:
        for rollout in ended:
            actuation.request(rollout)
            await settled()
    assert [percent for _, _, percent in plane.history] == [10, 0]


@in_virtual_time
async def test_an_edit_in_a_stage_for_an_audience_is_measured_by_what_everybody_gets() -> None:
    """While only staff has it, a share of everybody is a rise and is undone.

    A flag switched off stays off.
    """
    staff = Audience("staff", ((Condition("email", Operator.ENDS_WITH, ("@corp.example",)),),))
    stages = (make_stage(percent=50.0, audience="staff"), make_stage(percent=100.0))
    rollout = make_rollout(plan=make_plan(stages=stages, audiences=(staff,)))
    raised, off, told = EditedPlane("raised", 5.0), EditedPlane("off", 0.0), Told()
    async with told.running(raised, off) as actuation:
        actuation.request(rollout)
        await settled()
    assert (raised.served_count, off.served_count) == (1, 0)
    assert [alert.kind for _, alert in told.alerts] == [AlertKind.FOREIGN_EDIT] * 2


class EditedPlane:
    """Serves what somebody else set, until it is told."""

    def __init__(self, name: str, percent: float) -> None:
        self.name = name
        self.percent = percent
        self.served_count = 0

    async def serve(self, rollout: Rollout) -> None:
        self.served_count += 1

    async def look(self, rollout: Rollout) -> Served:
        return (
            Served(None, None)
            if self.served_count
            else Served(self.percent, "is not as it was written", "somebody")
        )


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("float division by zero"),
        RecursionError("too deep"),
        MemoryError(),
        KeyError("\x1b[31mname"),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
        BrokenInvariant("a mistake of ours"),
        asyncio.CancelledError(),
        ExceptionGroup("several", [OverflowError("1e999")]),
    ],
    ids=lambda error: type(error).__name__,
)
@in_virtual_time
async def test_whatever_a_plane_raises_is_its_own_trouble(error: BaseException) -> None:
    """A mistake in one plane at one flag is a gap and a fault.

    Other flags and planes are served.
    """
    told = Told()
    broken, whole = BrokenPlane(error), MemoryFlagPlane("whole")
    async with told.running(broken, whole) as actuation:
        actuation.request(decided())
        actuation.request(decided("other-flag", percent=25))
        await settled()
        assert [await served(plane, "other-flag") for plane in (broken, whole)] == [25, 25]
        assert await served(whole) == 10
        why = actuation.mismatches["new-checkout", "broken"]
        assert type(error).__name__ in why
        assert why.isprintable()
        (fault,) = told.faults.current
        assert (fault.scope, fault.name, fault.why) == (Scope.PLANE, "broken", why)
        assert fault.fix
        await asyncio.sleep(60)
        assert [alert.kind for _, alert in told.alerts] == [AlertKind.NOT_ACTUATED]
        broken.error = None
        await asyncio.sleep(90)
        assert actuation.mismatches == {}
        assert told.faults.current == ()


@in_virtual_time
async def test_a_flag_that_breaks_its_plane_is_tried_less_and_less() -> None:
    """Not every five seconds for ever.

    What is decided again is tried at once, and 0 % every time.
    """
    told = Told()
    broken = BrokenPlane(ZeroDivisionError())
    async with told.running(broken) as actuation:
        actuation.request(decided())
        await asyncio.sleep(600)
        assert 5 <= broken.looks <= 15
        before = broken.looks
        actuation.request(decided(percent=20, revision=2))
        await settled()
        assert broken.looks == before + 1
        actuation.request(decided(percent=0, revision=3))
        await settled()
        before = broken.looks
        await asyncio.sleep(20.1)
        assert broken.looks >= before + 4


@in_virtual_time
async def test_what_fails_beside_the_planes_ends_no_plane() -> None:
    """An alert that cannot be raised is noted as the plane's fault, and the plane goes on."""
    told = Told()
    plane = MemoryFlagPlane()

    def fail(flag_key: str, alert: RaiseAlert) -> None:
        raise KeyError(flag_key)

    told.alert = fail  # type: ignore[method-assign]
    async with told.running(plane) as actuation:
        actuation.request(decided())
        await settled()
        plane.meddle("new-checkout", 100)
        await asyncio.sleep(5.1)
        actuation.request(decided(percent=50, revision=2))
        await asyncio.sleep(5.1)
        assert await served(plane) == 50
