"""What one command, flag, document or partition breaks stays in it.

Everything else goes on, and it is reported.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import structlog

from controller.adapters.memory import MemoryPublisher, MemoryRollouts
from controller.bootstrap import Daemon
from controller.codec.command_records import read_command
from controller.codec.commands import command_event
from controller.core.rollout import Baking, RaiseAlert, RolledBack, Rollout
from controller.deciding import (
    command_follower,
    command_inbox,
    command_partition,
    command_refusals,
    unknown_flags,
)
from controller.deciding.command_inbox import ReadCommand
from controller.deciding.flag_decision import EvidenceJudge
from controller.deciding.flag_worker import FlagWorker
from controller.errors import (
    BrokenInvariant,
    CommandRefused,
    CommandUnreadable,
    EventLogUnavailable,
    StoreUnavailable,
)
from controller.health import Faults, Scope
from controller.metrics import Metrics
from controller.running.state_follower import StateFollower
from controller.running.visibility import Holder, View, Visibility
from controller.settings import Settings
from schemas.terms import Severity
from tests.builders import make_plan, make_rollout
from tests.unit.deciding.test_flag_workers import FLAGS, TOPIC, Cluster, Replica, partition_of
from tests.unit.running.test_visibility import Alerts
from tests.virtual_time import in_virtual_time


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep tracebacks of mistakes made on purpose out of the report."""
    with structlog.testing.capture_logs():
        yield


async def percent_of(cluster: Cluster, flag: str) -> float | None:
    """Return what is decided for a flag."""
    rollout = await cluster.stored(flag)
    return None if rollout is None else rollout.percent


#: A record of a known flag that is no command.
BAD_ID = json.dumps({"verb": "freeze", "id": "no id!"}).encode()


def reasons(cluster: Cluster) -> list[str]:
    """Return why each command was answered as it was."""
    return [
        json.loads(entry.value)["data"]["reason"] for entry in cluster.publisher.distinct("results")
    ]


def alerts(cluster: Cluster) -> list[str]:
    """Return the kinds of the alerts published, each once."""
    return [
        json.loads(entry.value)["data"]["kind"] for entry in cluster.publisher.distinct("alerts")
    ]


# --- A1: a command that cannot be read
# --------------------------------------------------------------------------------


@in_virtual_time
async def test_a_command_that_we_fail_to_read_is_refused_and_nothing_else_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mistake of ours in reading ends with that record.

    The flag that runs goes on and obeys the next command.
    """
    cluster, flag = Cluster(), FLAGS[0]
    real_read = read_command

    def read(value: bytes | None, *source: Any) -> Any:
        if b"poison" in (value or b""):
            raise ZeroDivisionError("float division by zero")
        return real_read(value, *source)

    monkeypatch.setattr(command_inbox, "read_command", read)
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        cluster.order("freeze", flag, reason="poison")
        cluster.order("freeze", "unheard-of", reason="poison", partition=0)
        cluster.order("roll_back", flag)
        await cluster.passes(3)
        assert await percent_of(cluster, flag) == 0
        assert {type(fault) for _, fault in replica.refused} == {CommandRefused}
        assert "ZeroDivisionError" in str(replica.refused[0][1])
        assert cluster.results()["c2"] == "rejected"
        assert [fault.name for fault in replica.faults.current] == [f"{TOPIC}/0/1", f"{TOPIC}/0/2"]
        assert {fault.scope for fault in replica.faults.current} == {Scope.COMMAND}
        await cluster.passes(3700)
        assert replica.faults.current == ()
    assert cluster.committed(flag) == 4


@in_virtual_time
async def test_a_peek_that_fails_is_a_command_read_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is looked at first is a hint: a mistake in it costs no command."""
    cluster, flag = Cluster(), FLAGS[0]

    def peek(*_source: Any) -> None:
        raise OverflowError("a mistake of ours")

    monkeypatch.setattr(command_inbox, "peek_command", peek)
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(3)
        cluster.order("roll_back", flag)
        await cluster.passes(3)
        assert await percent_of(cluster, flag) == 0


@in_virtual_time
async def test_a_command_that_cannot_even_be_refused_is_given_up() -> None:
    """When refusing fails too, the command is reported and the partition goes on."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        real_refuse = replica.inbox.refuse

        async def refuse(refused: Sequence[Any]) -> None:
            if any(record.offset == 1 for record, _ in refused):
                raise ValueError("year 10209 is out of range")
            await real_refuse(refused)

        replica.inbox.refuse = refuse
        cluster.broker.append(TOPIC, b"{", key=flag.encode(), partition=0)
        cluster.broker.append(TOPIC, b"[", key=flag.encode(), partition=0)
        cluster.order("roll_back", flag)
        await cluster.passes(5)
        assert await percent_of(cluster, flag) == 0
        assert [record.offset for record, _ in replica.refused] == [2]
        assert [fault.name for fault in replica.faults.current] == [f"{TOPIC}/0/1"]
    assert cluster.committed(flag) == 4


# --- A4: totals that cannot be read
# -----------------------------------------------------------------------------------


@in_virtual_time
async def test_totals_of_one_flag_that_cannot_be_read_blind_no_other() -> None:
    """One flag's totals are damaged: it is reported, the other is rolled back by its own.

    Once fixed, the fault is over.
    """
    cluster, damaged, other = Cluster(), FLAGS[0], FLAGS[1]
    async with cluster.replica() as replica:
        cluster.order("start", damaged)
        cluster.order("start", other)
        await cluster.passes(90)
        rollout = await cluster.stored(other)
        assert rollout is not None
        await cluster.count(rollout, errors=300)
        real_read, is_damaged = cluster.totals.read, [True]

        async def read(keys: Sequence[str], wanted: Mapping[str, Any]) -> Any:
            if damaged in wanted and is_damaged:
                raise BrokenInvariant("totals cannot be read")
            return await real_read(keys, wanted)

        cluster.totals.read = read  # type: ignore[method-assign, assignment]
        await cluster.passes(5)
        assert isinstance((await cluster.stored(other) or rollout).phase, RolledBack)
        (fault,) = replica.faults.current
        assert (fault.scope, fault.name) == (Scope.FLAG, damaged)
        assert damaged in fault.fix
        is_damaged.clear()
        await cluster.passes(5)
        assert replica.faults.current == ()


@in_virtual_time
async def test_a_mistake_in_looking_does_not_end_the_looks() -> None:
    """What is shown with the evidence fails for one flag: it is contained there, whatever it is."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        before = replica.totals.views()[0].read_at
        real_drift = replica.actuation.drift

        def drift(_: Rollout) -> str | None:
            raise RuntimeError("a mistake of ours")

        replica.actuation.drift = drift
        await cluster.passes(10)
        (view,) = replica.totals.views()
        assert before is not None
        assert view.read_at is not None
        assert view.read_at - before < 2
        assert [fault.name for fault in replica.faults.current] == [flag]
        replica.actuation.drift = real_drift
        await cluster.passes(3)
        (view,) = replica.totals.views()
        assert cluster.clock.monotonic() - (view.read_at or 0) <= 1.1
        assert view.evidence is not None
        assert replica.faults.current == ()


# --- A7: a worker that fails again and again
# --------------------------------------------------------------------------


class Poison:
    """Makes the machine fail at every tick, as a gate time beyond the year 9999 does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
        self.flag, self.failures, self.is_on = flag, 0, True
        self._real = FlagWorker._seconds_to_deadline
        monkeypatch.setattr(FlagWorker, "_seconds_to_deadline", self._failing())

    def _failing(self) -> Any:
        """Return what fails when it is this flag's turn."""

        def fail(worker: Any) -> float | None:
            if self.is_on and worker.flag_key == self.flag and worker.rollout is not None:
                self.failures += 1
                raise OverflowError("date value out of range")
            return self._real(worker)

        return fail


@in_virtual_time
async def test_a_worker_that_fails_is_restarted_ever_later_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Restarts come after 5 s, doubling to 5 min; one alert says so.

    The fault ends when the worker runs again.
    """
    cluster, flag, other = Cluster(), FLAGS[0], FLAGS[1]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        cluster.order("start", other)
        await cluster.passes(3)
        poison = Poison(monkeypatch, flag)
        cluster.order("freeze", flag)  # wakes it
        await cluster.passes(140)
        assert poison.failures == 5  # after 0, 5, 15, 35 and 75 s
        (fault,) = replica.faults.current
        assert (fault.scope, fault.name) == (Scope.FLAG, flag)
        assert "date value out of range" in fault.why
        assert alerts(cluster).count("flag_broken") == 1
        await cluster.passes(3600)
        assert poison.failures <= 6 + 3600 // 300 + 3
        cluster.order("roll_back", other)
        await cluster.passes(3)
        assert await percent_of(cluster, other) == 0
        poison.is_on = False
        await cluster.passes(320)
        assert replica.faults.current == ()
        assert replica.pool.broken == {}


@in_virtual_time
async def test_a_roll_back_does_not_wait_for_the_restart_of_a_failing_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An order that lowers restarts the worker at once.

    And goes before the evidence on which it fails.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(3)

        def fail(*_: Any) -> Any:
            raise OverflowError("a mistake of ours in judging")

        monkeypatch.setattr(EvidenceJudge, "judge", fail)
        await cluster.passes(600)
        cluster.order("roll_back", flag)
        await cluster.passes(1.5)
        assert await percent_of(cluster, flag) == 0
        assert cluster.results()["c2"] == "accepted"


@in_virtual_time
async def test_an_alert_of_a_broken_flag_waits_for_kafka_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kafka takes no alert when the worker fails: the next failure tries again."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(3)
        cluster.publisher.outage.is_down = True
        Poison(monkeypatch, flag)
        cluster.order("freeze", flag)
        await cluster.passes(20)
        assert "flag_broken" not in alerts(cluster)
        cluster.publisher.outage.is_down = False
        await cluster.passes(60)
        assert alerts(cluster).count("flag_broken") == 1


# --- A3: documents that cannot be read
# --------------------------------------------------------------------------------


@in_virtual_time
async def test_a_damaged_document_is_replaced_by_the_state_topic_s_and_said_loudly() -> None:
    """The stored document is damaged, the state topic has one.

    The flag goes on from there, with an alert.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(3)
    rollout = await cluster.stored(flag)
    assert rollout is not None
    cluster.newest[flag] = rollout
    cluster.rollouts.damage(flag, "no JSON")
    async with cluster.replica():
        await cluster.passes(3)
        assert await cluster.stored(flag) == rollout
        assert "flag_broken" in alerts(cluster)
        cluster.order("roll_back", flag)
        await cluster.passes(3)
        assert await percent_of(cluster, flag) == 0


@in_virtual_time
@pytest.mark.parametrize("is_newer", [True, False])
async def test_a_flag_that_cannot_be_read_stands_still_alone(is_newer: bool) -> None:
    """A newer release's document is never overwritten; a damaged one stops its flag alone."""
    cluster, flag, other = Cluster(), FLAGS[0], FLAGS[1]
    async with cluster.replica():
        cluster.order("start", flag)
        cluster.order("start", other)
        await cluster.passes(3)
    rollout = await cluster.stored(flag)
    assert rollout is not None
    if is_newer:
        cluster.newest[flag] = rollout
    token = (await cluster.rollouts.load(flag)).token
    cluster.rollouts.damage(flag, "schema_version 99", is_newer=is_newer)
    async with cluster.replica() as replica:
        cluster.order("roll_back", flag)
        cluster.order("freeze", flag)
        cluster.order("roll_back", other)
        await cluster.passes(8)
        assert await percent_of(cluster, other) == 0
        refusals = [fault for _, fault in replica.refused if isinstance(fault, CommandRefused)]
        assert [fault.flag_key for fault in refusals] == [flag, flag]
        assert all("repair flag" in fault.reason for fault in refusals)
        fault = replica.faults.of(Scope.FLAG, flag)
        assert fault is not None
        assert f"repair flag {flag}" in fault.fix
        assert (await cluster.rollouts.load(flag)).token == token
        cluster.newest[flag] = rollout
        assert await cluster.rollouts.discard(flag)
        await cluster.passes(320)
        assert await cluster.stored(flag) == rollout
        assert replica.faults.of(Scope.FLAG, flag) is None
    assert cluster.committed(flag) == 3


@in_virtual_time
async def test_a_roll_back_of_a_repaired_flag_is_obeyed_at_once() -> None:
    """The flag stood still for long and was repaired.

    An order that lowers does not wait for the next try.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(3)
    rollout = await cluster.stored(flag)
    assert rollout is not None
    cluster.rollouts.damage(flag, "no JSON")
    async with cluster.replica() as replica:
        await cluster.passes(400)
        cluster.order("promote", flag)
        await cluster.passes(1)
        assert [str(fault) for _, fault in replica.refused if "repair flag" in str(fault)]
        cluster.newest[flag] = rollout
        cluster.order("roll_back", flag)
        await cluster.passes(1)
        assert cluster.results()["c3"] == "accepted"
        assert await percent_of(cluster, flag) == 0
        assert len(replica.refused) == 1


# --- what is over with a flag that went, or with a run
# ----------------------------------------------------------------


@in_virtual_time
async def test_a_flag_that_is_handed_over_leaves_no_fault() -> None:
    """Its blind guardrails and its broken rules are reported by who runs it.

    Not by who ran it, for ever.
    """
    cluster, blind, wrong, late = Cluster(), FLAGS[0], FLAGS[1], FLAGS[2]
    async with cluster.replica() as replica:
        for flag in (blind, wrong, late):
            cluster.order("start", flag)
        await cluster.passes(3)
        reading = asyncio.Event()

        async def read(keys: Sequence[str], wanted: Mapping[str, Any]) -> Any:
            if late in wanted and len(wanted) == 1:
                reading.set()
                await asyncio.sleep(2)  # it is handed over meanwhile
            raise BrokenInvariant("totals cannot be read")

        cluster.totals.read = read  # type: ignore[method-assign, assignment]
        replica.faults.report(
            Scope.FLAG, wrong, "a decision would break invariant I1", reporter="invariants"
        )
        await cluster.passes(5)
        reading.clear()
        await reading.wait()
        assert {fault.name for fault in replica.faults.current} >= {blind, wrong}
        await replica.log.reassign(frozenset())
        await cluster.passes(10)
        assert replica.pool.rollouts == {}
        assert replica.faults.current == ()


@in_virtual_time
async def test_a_run_begins_without_the_faults_of_the_run_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The part is restarted while a worker is broken.

    When that works again, nothing says that it does not.
    """
    cluster, flag = Cluster(), FLAGS[0]
    replica = Replica(cluster)
    await replica.log.start()
    task = asyncio.create_task(replica.workers.run())
    await cluster.passes(2)
    cluster.order("start", flag)
    await cluster.passes(3)
    poison = Poison(monkeypatch, flag)
    cluster.order("freeze", flag)
    await cluster.passes(2)
    assert set(replica.pool.broken) == {flag}
    replica.totals._unread.add("flag-gone")
    task.cancel()
    await asyncio.wait([task])
    poison.is_on = False
    task = asyncio.create_task(replica.workers.run())
    await cluster.passes(0)
    assert replica.pool.broken == {}
    assert replica.totals._unread == set()
    assert replica.faults.current == ()
    await cluster.passes(5)
    assert cluster.results()["c2"] == "accepted"
    task.cancel()
    await asyncio.wait([task])
    await replica.log.stop()


@in_virtual_time
async def test_a_commit_that_fails_is_tried_again() -> None:
    """What is done stays done: the next commit tells the brokers, though nothing else happens."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        real_commit = replica.log.commit

        async def commit(offsets: Mapping[Any, int]) -> None:
            del offsets
            raise EventLogUnavailable("no broker answers")

        replica.log.commit = commit  # type: ignore[method-assign]
        cluster.order("freeze", flag)
        await cluster.passes(3)
        assert cluster.committed(flag) == 1
        replica.log.commit = real_commit  # type: ignore[method-assign]
        await cluster.passes(5)
        assert cluster.committed(flag) == 2


async def test_damage_found_at_start_up_is_over_on_replicas_that_do_not_run_the_flag() -> None:
    """Whoever runs it has repaired it.

    The state topic brings a newer document, or the store is asked again.
    """
    daemon = Daemon(Settings.model_validate({}))
    rollouts, damaged = MemoryRollouts(), daemon.connections.damaged
    follower = StateFollower(
        daemon.connections, daemon.registry, daemon.state_plane, daemon.health, daemon.faults
    )

    def faults() -> list[tuple[str, str]]:
        return [(fault.name, fault.reporter) for fault in daemon.faults.current]

    for flag in FLAGS.values():
        rollouts.damage(flag, "schema_version 99")
        damaged.add(flag, "schema_version 99")
    daemon.faults.report(Scope.FLAG, FLAGS[1], "its worker stopped", reporter="worker")
    await damaged.recheck(rollouts)
    assert len(faults()) == len(FLAGS) + 1
    follower.update(make_rollout(plan=make_plan(flag_key=FLAGS[0])))
    assert (FLAGS[0], "start-up") not in faults()
    await rollouts.discard(FLAGS[1])
    await damaged.recheck(rollouts)
    assert (FLAGS[1], "start-up") not in faults()
    assert (FLAGS[1], "worker") in faults()
    assert len(faults()) == len(FLAGS) - 1


@in_virtual_time
async def test_a_stopped_worker_takes_no_other_part_s_fault_away() -> None:
    """It runs again and its own fault is over; what ingest found is there as before."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        replica.faults.report(
            Scope.FLAG, flag, "its contexts fill the partition", reporter="budget"
        )
        worker = replica.pool.worker(flag)
        assert worker is not None
        decider: Any = worker._decider
        real, decider.decide = decider.decide, None
        await cluster.passes(3)
        assert {fault.reporter for fault in replica.faults.current} == {"budget", "worker"}
        decider.decide = real
        await cluster.passes(60)
        assert {fault.reporter for fault in replica.faults.current} == {"budget"}


# --- a worker that is shown everything, and judges or saves nothing -------------------------------


class OwnViews:
    """The rollouts of one replica, alone in the world."""

    expected_partitions = 1
    store_trouble = None

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def why_all_blind(self) -> str | None:
        """Return none."""
        return None

    def newest(self, flag_key: str) -> Rollout | None:
        """Return none."""
        return None

    def views(self) -> Sequence[View]:
        """Return what runs here."""
        return self._replica.totals.views()

    def holders(self) -> Sequence[Holder]:
        """Return nothing: nobody claims."""
        return ()


@asynccontextmanager
async def watched(cluster: Cluster, replica: Replica) -> AsyncIterator[list[RaiseAlert]]:
    """Watch the watching, as the daemon does."""
    metrics = Metrics(version="test")
    alerts = Alerts(MemoryPublisher(), cluster.clock, metrics)
    faults = Faults(cluster.clock.now)
    visibility = Visibility(cluster.clock, OwnViews(replica), alerts, metrics, faults)
    task = asyncio.create_task(visibility.run())
    try:
        yield alerts.raised
    finally:
        task.cancel()
        await asyncio.wait([task])


async def in_a_stage(cluster: Cluster, flag: str) -> Rollout:
    """Start a rollout, and go on until some are served the treatment."""
    cluster.order("start", flag)
    await cluster.passes(1)
    rollout = await cluster.stored(flag)
    assert rollout is not None
    assert rollout.percent > 0
    return rollout


async def counting(cluster: Cluster, rollout: Rollout, seconds: int) -> None:
    """Count on for so long: the totals are saved and read as ever."""
    for second in range(seconds):
        await cluster.count(rollout, errors=10 + second % 2)
        await cluster.passes(1)


@in_virtual_time
@pytest.mark.parametrize("is_read", [True, False])
async def test_a_flag_that_cannot_be_saved_while_its_totals_are_is_unwatched(
    *, is_read: bool
) -> None:
    """Only the rollouts' hashes cannot be written: an alert, a fault and a reason."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica, watched(cluster, replica) as alerts:
        rollout = await in_a_stage(cluster, flag)
        await counting(cluster, rollout, 10)
        assert alerts == []
        assert replica.pool.unsaved == {}
        real_save = cluster.rollouts.save

        async def save(*_: Any, **__: Any) -> bool:
            raise StoreUnavailable("no permission")

        if is_read:
            cluster.rollouts.save = save  # type: ignore[method-assign]
        else:
            cluster.rollouts.outage.is_down = True
        await counting(cluster, rollout, 12)
        (alert,) = alerts
        assert alert.severity is Severity.CRITICAL
        assert "its state has not been" in alert.summary
        fault = replica.faults.of(Scope.FLAG, flag, reporter="saving")
        assert fault is not None
        assert replica.faults.degrading
        assert "its state has not been saved for" in replica.pool.unsaved[flag]
        cluster.rollouts.save = real_save  # type: ignore[method-assign]
        cluster.rollouts.outage.is_down = False
        await counting(cluster, rollout, 12)
        assert [alert.severity for alert in alerts] == [Severity.CRITICAL, Severity.INFO]
        assert replica.faults.current == ()
        assert replica.pool.unsaved == {}


@in_virtual_time
async def test_a_save_that_fails_for_a_moment_is_no_fault() -> None:
    """A second of an outage is nothing that anybody has to know."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica, watched(cluster, replica) as alerts:
        rollout = await in_a_stage(cluster, flag)
        await counting(cluster, rollout, 5)
        cluster.rollouts.outage.is_down = True
        await counting(cluster, rollout, 1)
        cluster.rollouts.outage.is_down = False
        await counting(cluster, rollout, 20)
        assert alerts == []
        assert replica.faults.reported[Scope.FLAG] == 0


@in_virtual_time
async def test_a_rollout_whose_worker_is_dead_for_two_minutes_is_unwatched() -> None:
    """It is shown its totals, and nobody judges them; a failing restart ends no alert."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica, watched(cluster, replica) as alerts:
        rollout = await in_a_stage(cluster, flag)
        await counting(cluster, rollout, 5)
        worker = replica.pool.worker(flag)
        assert worker is not None
        judge: Any = worker._judge
        real, judge.judge = judge.judge, None
        await counting(cluster, rollout, 10)
        (alert,) = alerts
        assert alert.severity is Severity.CRITICAL
        assert "its worker stopped" in alert.summary
        await counting(cluster, rollout, 110)
        assert len(alerts) == 1
        judge.judge = real
        await counting(cluster, rollout, 90)
        assert [alert.severity for alert in alerts] == [Severity.CRITICAL, Severity.INFO]


@in_virtual_time
async def test_a_rollout_whose_worker_hangs_is_unwatched() -> None:
    """It waits for something that never comes, and nothing fails."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica, watched(cluster, replica) as alerts:
        rollout = await in_a_stage(cluster, flag)
        await counting(cluster, rollout, 5)
        worker = replica.pool.worker(flag)
        assert worker is not None

        async def hang() -> None:
            await asyncio.Event().wait()

        worker._correct_times = hang  # type: ignore[method-assign]
        await counting(cluster, rollout, 10)
        (alert,) = alerts
        assert "its worker has handled no totals for" in alert.summary


# --- B1: the command topic grows
# --------------------------------------------------------------------------------------


async def grow(cluster: Cluster, replicas: Sequence[Replica], partitions: int) -> None:
    """Give the command topic more partitions.

    As the brokers and then each replica's view of them.
    """
    await cluster.broker.grow(TOPIC, partitions)
    cluster.partitions = partitions
    del replicas


@in_virtual_time
async def test_roll_back_works_throughout_when_the_command_topic_grows() -> None:
    """From 4 to 6 partitions flags move.

    Commands to the old and the new one are obeyed, and none goes round in circles.
    """
    cluster = Cluster()
    flags = [f"flag-{number}" for number in range(12)]
    async with cluster.replica() as first, cluster.replica() as second:
        for flag in flags:
            cluster.order("start", flag)
        await cluster.passes(5)
        before = {flag: cluster.partition_of(flag) for flag in flags}
        await grow(cluster, [first, second], 6)
        moved = [flag for flag in flags if cluster.partition_of(flag) != before[flag]]
        assert len(moved) > 3
        for number, flag in enumerate(flags):  # half of the senders have not heard of it
            cluster.order("roll_back", flag, partition=before[flag] if number % 2 else None)
        await cluster.passes(5)
        assert {await percent_of(cluster, flag) for flag in flags} == {0.0}
        assert set(cluster.results().values()) == {"accepted"}
        assert len(cluster.broker.records(TOPIC)) <= 3 * len(flags)
        await cluster.passes(5)
        running = [*first.pool.rollouts, *second.pool.rollouts]
        assert sorted(running) == sorted(flags)
        for replica in (first, second):
            numbers = {number for _, number in replica.workers.follower.owned}
            assert all(cluster.partition_of(flag) in numbers for flag in replica.pool.rollouts)


@in_virtual_time
async def test_a_command_is_forwarded_once_at_most() -> None:
    """The forwarder believes in another number of partitions than the broker.

    The copy is carried out where it arrives.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        replica.topic.home_of = lambda _: 3  # never where a copy arrives
        real_forward, forwarded = replica.inbox.forward, [0]

        async def forward(command: ReadCommand) -> None:
            forwarded[0] += 1
            if forwarded[0] < 10:  # for ever, else
                await real_forward(command)

        replica.inbox.forward = forward
        cluster.order("roll_back", flag)
        await cluster.passes(10)
        assert await percent_of(cluster, flag) == 0
        assert len(cluster.broker.records(TOPIC)) == 3
        assert cluster.results()["c2"] == "accepted"


@in_virtual_time
async def test_a_flag_that_another_replica_started_is_taken_up() -> None:
    """The state topic tells of a flag of ours after its partition was taken over.

    Its guardrails are watched at once.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(3)
    rollout = await cluster.stored(flag)
    assert rollout is not None
    cluster.transitions.clear()
    async with cluster.replica() as replica:
        await cluster.passes(2)
        assert replica.pool.rollouts == {}
        cluster.newest[flag] = rollout
        await cluster.passes(2)
        assert set(replica.pool.rollouts) == {flag}


# --- B4: committed beyond the end
# -------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_committed_offset_beyond_the_end_reads_the_log_from_its_start() -> None:
    """The topic was truncated under its committed offset.

    Every command in it is obeyed, once, and flags stay here.
    """
    cluster, flag = Cluster(), FLAGS[0]
    cluster.broker.committed("deciders")[TOPIC, 0] = 500
    cluster.order("start", flag)
    async with cluster.replica() as replica:
        await cluster.passes(3)
        assert cluster.results() == {"c1": "accepted"}
        (fault,) = replica.faults.current
        assert (fault.scope, fault.name) == (Scope.PARTITION, f"{TOPIC}/0")
        assert "500" in fault.why
        cluster.order("roll_back", flag)
        await cluster.passes(30)
        assert await percent_of(cluster, flag) == 0
        assert replica.released == []
    assert cluster.committed(flag) == 2


# --- D4: flags that do not exist
# --------------------------------------------------------------------------------------


@in_virtual_time
async def test_commands_of_flags_that_do_not_exist_leave_nothing() -> None:
    """No worker, nothing stored.

    Each is answered from its record alone, and the same again when it is read again.
    """
    cluster = Cluster()
    for _ in range(2):
        async with cluster.replica() as replica:
            for number in range(500):
                cluster.order("roll_back", f"nobody-{number}")
            cluster.order("start", "too-late", expected_revision=7)
            cluster.order("start", FLAGS[2])
            await cluster.passes(5)
            assert set(replica.pool.flag_keys) == {FLAGS[2]}
            assert list(await cluster.rollouts.flag_keys()) == [FLAGS[2]]
            reasons = {str(fault) for _, fault in replica.refused}
            assert len(replica.refused) == 501
            assert "the flag has no rollout: start one" in reasons
            lanes = replica.workers.follower.partitions
            assert not any(lane.open or lane.unknown or lane.queued for lane in lanes)
            assert not len(replica.workers.commands)


@in_virtual_time
async def test_commands_of_one_flag_keep_their_order_whether_it_exists_or_not() -> None:
    """`start, roll_back` of a flag never heard of, among a flood of others, ends at 0 %.

    `roll_back, start` does not.
    """
    cluster, first, second = Cluster(), FLAGS[0], FLAGS[1]
    async with cluster.replica():
        for number in range(300):
            cluster.order("roll_back", f"nobody-{number}")
        for flag, verbs in ((first, ("start", "roll_back")), (second, ("roll_back", "start"))):
            for verb in verbs:
                cluster.order(verb, flag)
        await cluster.passes(5)
        assert await percent_of(cluster, first) == 0
        assert await percent_of(cluster, second) == 10


@in_virtual_time
async def test_an_honest_order_does_not_wait_behind_a_flood() -> None:
    """A rollback is carried out before any number of commands for unknown flags."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        refused_at: list[int] = []

        read_before: list[int] = []

        async def refuse(refused: Sequence[Any]) -> None:
            read_before.append(sum(len(lane.open) for lane in replica.workers.follower.partitions))
            refused_at.extend(record.offset for record, _ in refused)
            await asyncio.sleep(0.05)  # Kafka takes its time

        replica.inbox.refuse = refuse
        for number in range(5000):
            cluster.order("roll_back", f"nobody-{number}", partition=0)
        cluster.order("roll_back", flag)
        for _ in range(100):
            await asyncio.sleep(0.01)
            if await percent_of(cluster, flag) == 0:
                break
        assert await percent_of(cluster, flag) == 0
        assert len(refused_at) < 500
        assert min(read_before) >= 5000  # all is read before the first of them is answered
        await cluster.passes(30)
        assert len(refused_at) == 5000
    assert cluster.committed(flag) == 5002


@in_virtual_time
async def test_strangers_wait_for_the_store_and_hold_up_nobody() -> None:
    """Whether a flag exists cannot be asked while Redis is away.

    Nothing is committed, nothing is refused wrongly.
    """
    cluster = Cluster()
    async with cluster.replica() as replica:
        cluster.rollouts.outage.is_down = True
        cluster.order("roll_back", FLAGS[0])
        await cluster.passes(30)
        assert replica.refused == []
        assert cluster.committed(FLAGS[0]) is None
        cluster.rollouts.outage.is_down = False
        await cluster.passes(5)
        assert [
            fault.flag_key for _, fault in replica.refused if isinstance(fault, CommandRefused)
        ] == [FLAGS[0]]
    assert cluster.committed(FLAGS[0]) == 1


@in_virtual_time
async def test_a_flag_that_only_the_store_knows_is_no_stranger() -> None:
    """A rollout that no topic told us of is stored all the same: its roll back is carried out."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(3)
    cluster.transitions.clear()
    async with cluster.replica():
        cluster.order("roll_back", flag)
        await cluster.passes(5)
        assert await percent_of(cluster, flag) == 0


@in_virtual_time
async def test_of_one_flag_only_so_many_commands_wait() -> None:
    """While Redis is away, the hundred first commands of a flag wait.

    Others are refused, those that lower are not.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        real_save = cluster.rollouts.save
        gate = asyncio.Event()

        async def save(*args: Any, **kwargs: Any) -> bool:
            await gate.wait()
            return await real_save(*args, **kwargs)

        cluster.rollouts.save = save  # type: ignore[method-assign]
        for _ in range(150):
            cluster.order("promote", flag)
        cluster.order("roll_back", flag)
        await cluster.passes(10)
        assert len(cluster.results()) == 1
        gate.set()
        await cluster.passes(10)
        assert await percent_of(cluster, flag) == 0
        assert len(cluster.results()) == 152
        assert sum("send it again" in reason for reason in reasons(cluster)) == 50
        assert replica.refused == []
    assert cluster.committed(flag) == 152


@in_virtual_time
async def test_a_command_refused_as_too_much_is_not_carried_out_by_the_next_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its refusal is kept as its answer.

    Read again behind an uncommitted record, it gets the same.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)

        async def refuse(refused: Sequence[Any]) -> None:
            if any(isinstance(fault, CommandUnreadable) for _, fault in refused):
                await asyncio.Event().wait()  # Kafka takes none of it
            replica.refused.extend(refused)

        replica.inbox.refuse = refuse
        real_save, gate = cluster.rollouts.save, asyncio.Event()

        async def save(*args: Any, **kwargs: Any) -> bool:
            await gate.wait()
            return await real_save(*args, **kwargs)

        cluster.rollouts.save = save  # type: ignore[method-assign]
        cluster.broker.append(TOPIC, BAD_ID, key=flag.encode(), partition=0)
        for _ in range(100):
            cluster.order("unfreeze", flag)
        cluster.order("promote", flag)  # c102
        await cluster.passes(10)
        gate.set()
        await cluster.passes(10)
        told = [
            fault.command_id for _, fault in replica.refused if isinstance(fault, CommandRefused)
        ]
        assert "c102" in told or cluster.results()["c102"] == "rejected"
        assert await percent_of(cluster, flag) == 10
        assert cluster.committed(flag) == 1
    cluster.publisher.published.clear()
    monkeypatch.setattr(command_follower, "COMMANDS_PER_FETCH", 20)  # fewer wait at once, there
    async with cluster.replica():
        await cluster.passes(10)
        assert await percent_of(cluster, flag) == 10
        assert cluster.results()["c102"] == "rejected"
    assert cluster.committed(flag) == 103


@in_virtual_time
async def test_a_command_refused_for_a_fault_is_not_carried_out_by_the_next_owner() -> None:
    """Nothing keeps that refusal, so it is told once the command is committed.

    Not behind an open one.
    """
    cluster, flag = Cluster(), FLAGS[0]
    open_flag = next(name for number in range(99) if partition_of(name := f"other-{number}") == 0)
    async with cluster.replica():
        cluster.order("start", flag)
        cluster.order("start", open_flag)
        await cluster.passes(3)
    rollout = await cluster.stored(flag)
    assert rollout is not None
    cluster.rollouts.damage(flag, "no JSON")
    real_save, gate = cluster.rollouts.save, asyncio.Event()

    async def save(flag_key: str, **kwargs: Any) -> bool:
        if flag_key == open_flag and not gate.is_set():
            await asyncio.Event().wait()
        return await real_save(flag_key, **kwargs)

    cluster.rollouts.save = save  # type: ignore[method-assign]
    async with cluster.replica() as first:
        await cluster.passes(3)
        cluster.order("freeze", open_flag)  # stays open
        cluster.order("promote", flag)  # c4
        await cluster.passes(5)
        assert cluster.committed(flag) == 2
    gate.set()
    cluster.newest[flag] = rollout
    async with cluster.replica() as second:
        await cluster.passes(10)
        told = [
            fault.command_id
            for _, fault in (*first.refused, *second.refused)
            if isinstance(fault, CommandRefused)
        ]
        assert (cluster.results().get("c4"), told) == ("accepted", [])
    assert cluster.committed(flag) == 4


# --- refusals that Kafka does not take
# --------------------------------------------------------------------------------


def make_limits_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fifty commands wait, sixty refusals, and a hundred commits."""
    monkeypatch.setattr(command_partition, "UNKNOWN_LIMIT", 50)
    monkeypatch.setattr(command_refusals, "REFUSALS_LIMIT", 60)
    monkeypatch.setattr(command_partition, "UNCOMMITTED_LIMIT", 100)
    monkeypatch.setattr(command_follower, "UNCOMMITTED_LIMIT", 100)


async def never(_refused: Sequence[Any]) -> None:
    """Refuse as while Kafka takes nothing."""
    await asyncio.Event().wait()


@in_virtual_time
async def test_records_that_cannot_be_set_aside_keep_no_roll_back_waiting() -> None:
    """The quarantine is away.

    220 roll backs of a flag without a proper id wait for it, an honest one is obeyed.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        real_refuse, replica.inbox.refuse = replica.inbox.refuse, never
        for number in range(220):
            value = json.dumps({"verb": "roll_back", "id": f"bad id {number}!"}).encode()
            cluster.broker.append(TOPIC, value, key=flag.encode(), partition=0)
        await cluster.passes(3)
        cluster.order("roll_back", flag)
        await cluster.passes(1)
        assert await percent_of(cluster, flag) == 0
        assert cluster.results() == {"c1": "accepted", "c2": "accepted"}
        assert not len(replica.workers.commands)
        assert cluster.committed(flag) == 1
        replica.inbox.refuse = real_refuse
    async with cluster.replica() as replica:
        await cluster.passes(5)
        assert len(replica.refused) == 220
    assert cluster.committed(flag) == 222


@in_virtual_time
async def test_answers_that_kafka_does_not_take_keep_no_roll_back_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many refusals wait.

    The oldest are given up, loudly, before commands are read no more.
    """
    make_limits_small(monkeypatch)
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        cluster.order("start", flag)
        await cluster.passes(3)
        replica.inbox.refuse = never
        for number in range(500):
            cluster.order("promote", f"nobody-{number}", partition=0)
        cluster.order("roll_back", flag)
        await cluster.passes(20)
        assert await percent_of(cluster, flag) == 0
        fault = replica.faults.of(Scope.PARTITION, f"{TOPIC}/0")
        assert fault is not None
        assert "got no answer" in fault.why


@in_virtual_time
@pytest.mark.parametrize("limit", ["REFUSALS_LIMIT", "REFUSALS_BYTES"])
async def test_refusals_that_wait_are_bounded_and_keep_no_frames(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """A flood that Kafka is slow to answer costs what waits, by number and bytes, and no frames."""
    unreadable = json.dumps({"filler": "x" * 1000}).encode()
    most = 60 if limit == "REFUSALS_LIMIT" else 60 * len(unreadable)
    monkeypatch.setattr(command_refusals, limit, most)
    cluster = Cluster()
    async with cluster.replica() as replica:
        handed: list[Any] = []

        async def refuse(refused: Sequence[Any]) -> None:
            handed.extend(refused)
            await asyncio.sleep(2)

        replica.inbox.refuse = refuse
        for _ in range(500):
            cluster.broker.append(TOPIC, unreadable, key=b"nobody", partition=0)
        await cluster.passes(1)
        waiting = replica.workers._refusals._waiting
        assert 60 <= len(waiting) <= 60 + unknown_flags.ANSWERED_AT_ONCE
        for fault in [one.fault for one in waiting] + [fault for _, fault in handed]:
            assert (fault.__traceback__, fault.__cause__, fault.__context__) == (None, None, None)
        await cluster.passes(60)
        assert len(handed) == 500
        assert replica.workers._refusals._waiting_bytes == 0


@in_virtual_time
async def test_while_kafka_takes_its_time_no_refusal_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slow is not away: what is refused waits, and each gets its answer."""
    make_limits_small(monkeypatch)
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:

        async def refuse(refused: Sequence[Any]) -> None:
            await asyncio.sleep(2)
            replica.refused.extend(refused)

        replica.inbox.refuse = refuse
        for number in range(500):
            cluster.order("promote", f"nobody-{number}", partition=0)
        await cluster.passes(60)
        assert len(replica.refused) == 500
    assert cluster.committed(flag) == 500


# --- B7: what is read a second time
# -----------------------------------------------------------------------------------


@in_virtual_time
async def test_last_week_s_roll_back_does_not_lower_this_week_s_rollout() -> None:
    """Redis and the group's offsets are lost together.

    The old order is read again, and is one for an earlier rollout.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(3)
        cluster.order("roll_back", flag)
        await cluster.passes(timedelta(hours=2).total_seconds())
        cluster.order("start", flag)
        await cluster.passes(5)
        assert await percent_of(cluster, flag) == 10
        rollout = await cluster.stored(flag)
        assert rollout is not None
    cluster.newest[flag] = rollout
    cluster.rollouts._flags.clear()
    cluster.broker.committed("deciders").clear()
    cluster.publisher.published.clear()
    async with cluster.replica():
        await cluster.passes(5)
        assert await percent_of(cluster, flag) == 10
        assert cluster.results()["c2"] == "rejected"
        cluster.order("roll_back", flag)
        await cluster.passes(3)
        assert await percent_of(cluster, flag) == 0


@in_virtual_time
async def test_an_operator_with_a_slow_clock_is_obeyed() -> None:
    """An order that arrives now was meant now.

    An hour that a laptop is behind keeps nothing at 10 %.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(30)
        command = command_event(
            read_command(
                json.dumps({"verb": "roll_back", "issuer": "ada", "id": "late"}).encode(),
                (),
                flag.encode(),
                round((cluster.clock.now() - timedelta(hours=1)).timestamp() * 1000),
            )
        )
        now = round(cluster.clock.now().timestamp() * 1000)
        cluster.broker.append(
            TOPIC, command, key=flag.encode(), partition=partition_of(flag), timestamp_ms=now
        )
        await cluster.passes(3)
        assert cluster.results()["late"] == "accepted"
        assert await percent_of(cluster, flag) == 0


# --- the loops themselves
# ---------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_mistake_in_following_commands_is_a_fault_and_not_the_end() -> None:
    """Whatever fails around reading, commands go on being read, and the fault ends with it."""
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica() as replica:
        real_count = replica.topology.partitions

        def count() -> int:
            raise KeyError("commands")

        replica.topology.partitions = count
        await cluster.passes(5)
        assert [(fault.scope, fault.name) for fault in replica.faults.current] == [
            (Scope.PART, "commands")
        ]
        replica.topology.partitions = real_count
        cluster.order("start", flag)
        await cluster.passes(5)
        assert isinstance(
            (await cluster.stored(flag) or replace(cluster.transitions[0])).phase, Baking
        )
        assert replica.faults.current == ()
