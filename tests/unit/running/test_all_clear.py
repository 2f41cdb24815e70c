"""The alert of a replica that was killed is ended by the one that runs the flag now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from controller.actuating.plane_alerts import not_served, served_again
from controller.adapters.memory import ManualClock
from controller.codec.outbox import outbox_entry
from controller.core.effects import RaiseAlert
from controller.core.rollout import RolledBack, Rollout
from controller.errors import EventLogUnavailable
from controller.health import Faults, Scope
from controller.notifying.notifier import Seen
from controller.ports import PlaneStanding
from controller.running.all_clear import ALERTS, OVER_SECONDS, SILENT_SECONDS, AllClears
from controller.running.open_alerts import OpenAlerts
from schemas.terms import AlertKind, Severity
from tests.builders import T0, make_rollout
from tests.virtual_time import in_virtual_time

FLAG = "new-checkout"


def unwatched(severity: Severity = Severity.CRITICAL, rollout: Rollout | None = None) -> RaiseAlert:
    """Return the alert, or its all-clear."""
    about = rollout or make_rollout()
    key = f"{FLAG}/{about.rollout_id}/{AlertKind.UNWATCHED}"
    return RaiseAlert(AlertKind.UNWATCHED, severity, f"{FLAG}: nobody sees", "do", key)


class Topic:
    """The topic of alerts, as far as it is read."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[Sequence[Seen] | EventLogUnavailable] = asyncio.Queue()

    async def follow(self, cursor: Mapping[str, int]) -> AsyncGenerator[Sequence[Seen], None]:
        """Yield what the test puts there."""
        while True:
            batch = await self.waiting.get()
            if isinstance(batch, EventLogUnavailable):
                raise batch
            yield batch


class Bench:
    """A replica that runs the flag and sees it, a second at a time."""

    def __init__(self) -> None:
        self.clock = ManualClock(T0)
        self.topic = Topic()
        self.open = OpenAlerts()
        self.seen: set[str] = {FLAG}
        self.episodes: set[str] = set()
        self.is_here = True
        self.newest: Rollout | None = make_rollout()
        self.planes: list[PlaneStanding] | None = None
        self.sent: list[RaiseAlert] = []
        self.faults = Faults(self.clock.now)
        self.offset = 0
        self.all_clears = AllClears(
            self.clock,
            self.topic,
            self.open,
            self,
            runs_here=lambda _: self.is_here,
            newest=lambda _: self.newest,
            standings=lambda _: self.planes,
            alerts=self,
            faults=self.faults,
        )

    def add(self, rollout: Rollout, alert: RaiseAlert) -> None:
        """Note what is sent."""
        self.sent.append(alert)

    async def reads(self, *alerts: RaiseAlert) -> None:
        """Let the replica read these records of the topic; without any, that Kafka answers."""
        batch = []
        for alert in alerts:
            self.offset += 1
            at = self.clock.now()
            entry = outbox_entry(alert, FLAG, make_rollout(), f"e{self.offset}", at)
            batch.append(Seen("rollout.alerts/0", self.offset, entry.value))
        await self.hears(batch)

    async def hears(self, batch: Sequence[Seen] | EventLogUnavailable) -> None:
        """Let the replica hear from Kafka, or that it does not answer."""
        task = asyncio.create_task(self.all_clears._follow())
        self.topic.waiting.put_nowait(batch)
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})

    async def passes(self, seconds: float) -> None:
        """Look once a second."""
        for _ in range(int(seconds)):
            self.clock.advance(timedelta(seconds=1))
            await self.all_clears.check()


async def test_an_alert_that_nobody_ended_is_ended_once() -> None:
    """Twenty seconds after the flag is seen here, with the key of the alert."""
    bench = Bench()
    await bench.reads(unwatched(), unwatched())
    await bench.passes(OVER_SECONDS)
    assert bench.sent == []
    await bench.passes(60)
    (alert,) = bench.sent
    assert (alert.kind, alert.severity) == (AlertKind.UNWATCHED, Severity.INFO)
    assert alert.dedup_key == unwatched().dedup_key
    assert alert.summary.startswith(f"{FLAG}: no longer unwatched: guardrails see again")


def broken(severity: Severity = Severity.CRITICAL) -> RaiseAlert:
    """Return the alert that the flag's worker has stopped, or what is said of its document."""
    key = f"{FLAG}/{make_rollout().rollout_id}/1/{AlertKind.FLAG_BROKEN}"
    return RaiseAlert(AlertKind.FLAG_BROKEN, severity, f"{FLAG}: nobody watches it", "do", key)


async def test_a_broken_flag_has_its_end_once_its_worker_runs_again() -> None:
    """Not before, and not because nobody has treatment: the worker may still stand still."""
    bench = Bench()
    assert bench.newest is not None
    rollout, bench.seen = bench.newest, set()
    await bench.reads(broken())
    await bench.passes(60)
    bench.newest = replace(rollout, percent=0.0)
    await bench.passes(60)
    assert bench.sent == []
    bench.newest, bench.seen = rollout, {FLAG}
    await bench.passes(60)
    (alert,) = bench.sent
    assert (alert.kind, alert.severity) == (AlertKind.FLAG_BROKEN, Severity.INFO)
    assert alert.dedup_key == broken().dedup_key
    assert alert.summary == f"{FLAG}: its worker runs again"


def faulty() -> RaiseAlert:
    """Return the alert of a fault of the events."""
    key = f"{FLAG}/{make_rollout().rollout_id}/event_faults/unknown_variant"
    return RaiseAlert(AlertKind.EVENT_FAULTS, Severity.WARNING, f"{FLAG}: 40 % of", "do", key)


async def test_a_fault_of_events_whose_teller_was_killed_is_over_when_not_repeated() -> None:
    """It is repeated hourly; and what has ended needs no events."""
    bench = Bench()
    await bench.reads(faulty())
    await bench.passes(60)
    assert bench.sent == []
    bench.clock.advance(timedelta(minutes=60))
    await bench.reads(faulty())
    bench.clock.advance(timedelta(minutes=80))
    await bench.passes(60)
    assert bench.sent == []
    bench.clock.advance(timedelta(minutes=10))
    await bench.passes(60)
    (alert,) = bench.sent
    assert (alert.severity, alert.dedup_key) == (Severity.INFO, faulty().dedup_key)
    assert alert.summary == f"{FLAG}: the fault of its events was not told again"


async def test_a_fault_of_events_is_over_with_its_rollout() -> None:
    """At once, whoever told of it."""
    bench = Bench()
    await bench.reads(faulty())
    assert bench.newest is not None
    bench.newest = replace(bench.newest, phase=RolledBack(T0, "why"), percent=0.0)
    await bench.passes(60)
    (alert,) = bench.sent
    assert alert.summary == f"{FLAG}: it has ended"


async def test_a_document_that_was_replaced_is_for_people_to_look_at() -> None:
    """The flag goes on, and perhaps not from where it should be: nobody ends that alert."""
    bench = Bench()
    await bench.reads(broken(Severity.WARNING))
    await bench.passes(60)
    assert bench.sent == []


@pytest.mark.parametrize("stands", ["not seen yet", "unwatched here", "runs elsewhere", "unknown"])
async def test_it_stays_open_while_the_trouble_stands_or_is_not_known_to_be_over(
    stands: str,
) -> None:
    """A false all-clear is worse than none."""
    bench = Bench()
    await bench.reads(unwatched())
    if stands == "not seen yet":
        bench.seen = set()
    elif stands == "unwatched here":
        bench.episodes = {FLAG}
    elif stands == "runs elsewhere":
        bench.is_here = False
    else:
        bench.newest = None
    await bench.passes(600)
    assert bench.sent == []


async def test_what_its_teller_ended_or_tells_again_is_left_to_it() -> None:
    """The all-clear on the topic counts, and a trouble that comes back begins the wait again."""
    bench = Bench()
    await bench.reads(unwatched())
    await bench.passes(15)
    bench.seen = set()
    await bench.passes(1)
    bench.seen = {FLAG}
    await bench.passes(15)
    assert bench.sent == []
    await bench.reads(unwatched(Severity.INFO))
    await bench.passes(600)
    assert bench.sent == []


async def test_without_kafka_nothing_is_ended_and_a_long_silence_is_a_fault() -> None:
    """The all-clear of another replica may wait on a topic that cannot be read."""
    bench = Bench()
    await bench.reads(unwatched())
    await bench.passes(10)
    await bench.hears(EventLogUnavailable("no broker answers"))
    await bench.passes(SILENT_SECONDS + 1)
    assert bench.sent == []
    await bench.hears(EventLogUnavailable("no broker answers"))
    fault = bench.faults.of(Scope.DEPENDENCY, ALERTS)
    assert fault is not None
    assert "Read on the topic of alerts" in fault.fix
    await bench.reads()
    assert bench.faults.of(Scope.DEPENDENCY, ALERTS) is None
    await bench.passes(OVER_SECONDS)
    assert bench.sent == []
    await bench.passes(1)
    assert len(bench.sent) == 1


@pytest.mark.parametrize("how", ["ended", "another"])
async def test_a_rollout_that_is_over_needs_no_watching(how: str) -> None:
    """Also where the flag is seen by nobody any more."""
    bench = Bench()
    bench.seen = set()
    await bench.reads(unwatched())
    rolled_back = RolledBack(T0, "harm")
    bench.newest = (
        replace(make_rollout(), phase=rolled_back, percent=0.0)
        if how == "ended"
        else replace(make_rollout(), rollout_id="start-2")
    )
    await bench.passes(OVER_SECONDS + 1)
    (alert,) = bench.sent
    assert ("it has ended" if how == "ended" else "another rollout has begun") in alert.summary


async def test_a_plane_that_serves_again_ends_its_alert() -> None:
    """As `served_again` would, and only for the plane of the alert."""
    bench, rollout = Bench(), make_rollout()
    told = not_served(rollout, "unleash", "serves 25 %", T0)
    await bench.reads(told)
    off = PlaneStanding("unleash", False, 10.0, 25.0, "serves 25 %", T0, T0)
    ofrep = PlaneStanding("ofrep", True, 10.0, 10.0, None, None, T0)
    for planes in (None, [ofrep, off], [ofrep, replace(off, is_converged=True, looked_at=None)]):
        bench.planes = planes
        await bench.passes(60)
        assert bench.sent == []
    bench.planes = [ofrep, replace(off, is_converged=True)]
    await bench.passes(OVER_SECONDS + 1)
    (alert,) = bench.sent
    assert alert.dedup_key == served_again(rollout, "unleash", T0).dedup_key == told.dedup_key
    assert "unleash serves what was decided again" in alert.summary


async def test_records_that_are_none_of_ours_change_nothing() -> None:
    """The topic may hold anything; what a model says of an alert ends nothing."""
    open_alerts = OpenAlerts()
    for value in (b"", b"unwatched", b'{"type":"x","data":"unwatched"}', b'["unwatched"]'):
        open_alerts.take(value)
    assert open_alerts.newest == ()
    value = outbox_entry(unwatched(), FLAG, make_rollout(), "e", T0).value
    open_alerts.take(value)
    explained = value.replace(b'"critical"', b'"info"')
    words = (
        b'"explanation":{"likely_cause":"c","next_steps":[],"model":"m","server":"s","prompt":"p",'
        b'"prompt_sha256":"0","latency_ms":1}'
    )
    assert b'"explanation":null' in explained
    open_alerts.take(explained.replace(b'"explanation":null', words))
    assert len(list(open_alerts.newest)) == 1
    assert open_alerts.unwatched(make_rollout()) is not None
    open_alerts.take(explained)
    assert open_alerts.unwatched(make_rollout()) is None


async def test_thousands_of_open_alerts_leave_turns_to_others() -> None:
    """With a plane that is away each flag may have one, and each is looked at every second."""
    bench = Bench()
    for number in range(3_000):
        alert = not_served(make_rollout(flag_key=f"flag-{number}"), "unleash", "is away", T0)
        entry = outbox_entry(alert, f"flag-{number}", make_rollout(), f"e{number}", T0)
        bench.open.take(entry.value)
    bench.topic.waiting.put_nowait(())
    await bench.reads()
    checking, turns = asyncio.create_task(bench.all_clears.check()), 0
    while not checking.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 10


@pytest.mark.parametrize(("alerts", "checks"), [(10, 30), (6_000, 15), (12_000, 10)])
def test_with_thousands_of_open_alerts_checks_are_rarer(
    monkeypatch: pytest.MonkeyPatch, alerts: int, checks: int
) -> None:
    """Behind a backlog each flag may have one: they are looked at every third second at least."""

    @in_virtual_time
    async def run() -> None:
        bench, made = Bench(), 0
        for number in range(alerts):
            alert = replace(unwatched(), dedup_key=f"key-{number}")
            bench.open.take(outbox_entry(alert, FLAG, make_rollout(), "e", T0).value)

        async def check(_: AllClears) -> None:
            nonlocal made
            made += 1

        monkeypatch.setattr(AllClears, "check", check)
        with suppress(TimeoutError):
            async with asyncio.timeout(29.5):
                await bench.all_clears.run()
        assert made == checks

    run()
