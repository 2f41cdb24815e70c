"""What one command, flag, document or partition breaks stays in it.

Everything else goes on, and it is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from controller.codec.command_records import read_command
from controller.core.rollout import RolledBack, Rollout
from controller.deciding.commands import command_inbox
from controller.deciding.flag.flag_decision import EvidenceJudge
from controller.errors import (
    BrokenInvariant,
    CommandRefused,
)
from controller.health import Scope
from tests.unit.deciding.cluster import FLAGS, TOPIC, Cluster
from tests.unit.deciding.containment_helpers import Poison, actions, alerts, percent_of
from tests.virtual_time import in_virtual_time

# --- A1: a command that cannot be read ---


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


# --- A4: totals that cannot be read ---


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
        assert view.progress is not None
        assert replica.faults.current == ()


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


# --- A3: documents that cannot be read ---

CHECK = "check that this is where it should be; roll back if not"


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
        assert actions(cluster, "flag_broken") == [CHECK]
        cluster.order("roll_back", flag)
        await cluster.passes(3)
        assert await percent_of(cluster, flag) == 0


@in_virtual_time
@pytest.mark.parametrize("has_ended", [False, True])
async def test_a_rollout_that_redis_lost_is_restored_and_said(has_ended: bool) -> None:
    """Redis has been emptied: the live rollout goes on, with an alert; an ended one needs none.

    The alert asks for what `ops/running.md` asks for: nothing, but after an outage of both.
    """
    cluster, flag = Cluster(), FLAGS[0]
    async with cluster.replica():
        cluster.order("start", flag)
        await cluster.passes(3)
        if has_ended:
            cluster.order("abort", flag)
            await cluster.passes(3)
    rollout = await cluster.stored(flag)
    assert rollout is not None
    cluster.newest[flag] = rollout
    await cluster.rollouts.discard(flag)
    assert alerts(cluster).count("flag_broken") == 0
    async with cluster.replica():
        await cluster.passes(3)
        assert await cluster.stored(flag) == rollout
    nothing = f"nothing, unless Kafka was away when Redis was lost; then {CHECK}"
    assert actions(cluster, "flag_broken") == ([] if has_ended else [nothing])


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
