"""Commands that wait for Redis outlive the process, and lower what it remembers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from controller.codec.waiting_commands import WaitingCommand
from controller.deciding.commands.direct_commands import (
    KEPT,
    NOTHING_CHANGED,
    SERVED_HERE,
)
from controller.deciding.commands.waiting_commands import FAULT, READ_SECONDS
from controller.errors import LastKnownUnavailable, StoreUnavailable
from controller.health import Scope
from controller.ports import StoredRollout
from schemas.result import Result
from schemas.terms import CommandStatus
from tests.builders import HOUR, T0, make_rollout
from tests.unit.deciding.commands.direct_world import (
    Disk,
    Replica,
    Shared,
    order,
    two_replicas,
)
from tests.unit.deciding.worker_world import FLAG
from tests.virtual_time import in_virtual_time, settled


@in_virtual_time
async def test_a_replica_that_knows_only_its_file_lowers_and_keeps_it() -> None:
    """Kafka and Redis are away: 0 % at once, after another restart, and saved in the end."""
    async with two_replicas() as (shared, owner, _):
        shared.rollouts.outage.is_down = True
        decided, disk = owner.served[-1], Disk()
        late = Replica(shared, disk)
        late.identity_trouble = StoreUnavailable("Redis gave no answer")
        async with late.running():
            with pytest.raises(StoreUnavailable):
                await late.direct.carry_out(order())  # nothing is served, nothing is lowered
            late.remember(decided)
            answer = await late.direct.carry_out(order())
            assert isinstance(answer, str)
            assert SERVED_HERE in answer
            assert KEPT in answer
            assert late.percent == 0
        again = Replica(shared, disk)
        again.identity_trouble = StoreUnavailable("Redis gave no answer")
        async with again.running():
            again.remember(decided)
            assert again.percent == 0
            assert owner.percent == 10
            shared.rollouts.outage.is_down, again.identity_trouble = False, None
            await asyncio.sleep(20)
            assert owner.percent == 0
            assert not disk.commands


@in_virtual_time
async def test_a_flag_that_is_remembered_after_the_command_was_read_is_lowered() -> None:
    """The order of the two at a start does not matter."""
    async with two_replicas() as (shared, owner, _):
        shared.rollouts.outage.is_down = True
        late = Replica(shared, Disk(order()))
        late.identity_trouble = StoreUnavailable("Redis gave no answer")
        late.remembered = owner.served[-1]
        async with late.running():
            await asyncio.sleep(1)
            assert late.percent == 0


@in_virtual_time
async def test_a_command_of_an_earlier_rollout_lowers_no_later_one() -> None:
    """A file that was left behind for a week is not carried out."""
    async with two_replicas() as (shared, owner, _):
        late = Replica(shared, Disk(order(issued_at=T0 - 48 * HOUR)))
        async with late.running():
            late.remember(owner.served[-1])
            await asyncio.sleep(5)
            assert (owner.percent, late.percent) == (10, 10)


@in_virtual_time
async def test_a_rollout_that_began_meanwhile_is_not_lowered() -> None:
    """Within the tolerance for slow clocks, too: the command is kept with its rollout."""
    async with two_replicas() as (shared, owner, _):
        disk = Disk(order())
        disk.commands = [WaitingCommand(order(), "the-one-before")]
        late = Replica(shared, disk)
        async with late.running():
            late.remember(owner.served[-1])
            assert late.percent == 10
            await asyncio.sleep(5)
            assert (owner.percent, late.percent) == (10, 10)
            assert not disk.commands
            shared.publisher.outage.is_down = False
            await asyncio.sleep(60)
        (refused,) = (one for one in _results(shared) if one["command_id"] == "http-1")
        assert (refused["status"], "earlier rollout" in refused["reason"]) == ("rejected", True)


@in_virtual_time
async def test_a_rollout_that_begins_during_the_save_is_not_lowered() -> None:
    """Redis goes away while the command is saved, and another rollout has begun when it is back."""
    async with two_replicas() as (shared, owner, asked):
        real, first = shared.rollouts.save, owner.served[-1]
        later = replace(first, rollout_id="another-one", revision=first.revision + 1)
        saves = 0

        async def save(flag_key: str, **fields: Any) -> bool:
            nonlocal saves
            saves += 1
            if saves == 1:
                await real(flag_key, expected_token=fields["expected_token"], rollout=later)
                raise StoreUnavailable("gone")
            return await real(flag_key, **fields)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(shared.rollouts, "save", save)
            answer = await asked.direct.carry_out(order())
        assert isinstance(answer, Result)
        assert "earlier rollout" in answer.reason
        stored = await shared.rollouts.load(FLAG)
        assert stored.rollout == later


def _results(shared: Shared) -> list[dict[str, Any]]:
    """Return each result that was published."""
    return [json.loads(entry.value)["data"] for entry in shared.publisher.distinct("results")]


@in_virtual_time
async def test_a_rollout_that_began_while_the_process_lived_is_not_lowered() -> None:
    """Also without a restart between the command and the return of Redis."""
    async with two_replicas() as (shared, owner, asked):
        real = shared.rollouts.load
        first = owner.served[-1]
        later = replace(first, rollout_id="another-one")

        async def load(flag_key: str) -> StoredRollout:
            return replace(await real(flag_key), rollout=later)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(shared.rollouts, "load", load)
            shared.rollouts.outage.is_down = True
            assert isinstance(await asked.direct.carry_out(order()), str)
            assert asked.percent == 0
            shared.rollouts.outage.is_down = False
            answer = await asked.direct.carry_out(order())
            await asyncio.sleep(20)
        assert isinstance(answer, Result)
        assert answer.status is CommandStatus.REJECTED
        assert "earlier rollout" in answer.reason
        assert owner.percent == 10
        assert not asked.direct.waiting


@in_virtual_time
async def test_a_repeat_while_redis_is_away_lowers_no_later_rollout() -> None:
    """This replica may read of it from Kafka before it reaches Redis again."""
    async with two_replicas() as (shared, owner, asked):
        first = owner.served[-1]
        shared.rollouts.outage.is_down = True
        assert SERVED_HERE in str(await asked.direct.carry_out(order()))
        asked.registry.update(replace(first, rollout_id="another-one", revision=99))
        assert asked.percent == 10
        assert NOTHING_CHANGED in str(await asked.direct.carry_out(order()))
        assert asked.percent == 10


@in_virtual_time
async def test_a_command_that_did_not_wait_is_for_the_rollout_that_runs_now() -> None:
    """Although the replica that is asked still knows the one before."""
    async with two_replicas() as (_, owner, asked):
        asked.remembered = replace(owner.served[-1], rollout_id="the-one-before")
        answer = await asked.direct.carry_out(order())
        assert isinstance(answer, Result)
        assert answer.status is CommandStatus.ACCEPTED
        await asyncio.sleep(2)
        assert owner.percent == 0


class SlowDisk(Disk):
    """It answers late."""

    seconds = 10.0

    async def read(self) -> Sequence[WaitingCommand]:
        """Return them late."""
        await asyncio.sleep(self.seconds)
        return self.commands


@in_virtual_time
async def test_a_slow_disk_is_waited_for() -> None:
    """As the last known state is; what is remembered can wait until then."""
    async with two_replicas() as (shared, owner, _):
        shared.rollouts.outage.is_down = True
        late = Replica(shared, SlowDisk(order()))
        late.identity_trouble = StoreUnavailable("Redis gave no answer")
        async with late.running():
            async with asyncio.timeout(SlowDisk.seconds + 1):
                await late.direct.restored()
            late.remember(owner.served[-1])
            assert late.percent == 0
            assert late.faults.of(Scope.DEPENDENCY, FAULT) is None


class BadDisk(Disk):
    """What it holds is refused, and cannot be renamed at first."""

    aside = ""
    is_stuck = True

    async def read(self) -> Sequence[WaitingCommand]:
        """Refuse."""
        raise LastKnownUnavailable("x may be written by other users, so it is not used")

    async def write(self, commands: Sequence[WaitingCommand]) -> None:
        """Replace what is there."""
        assert self.aside, "overwritten"
        await super().write(commands)

    async def set_aside(self) -> str:
        """Rename it."""
        if self.is_stuck:
            raise LastKnownUnavailable("x cannot be renamed")
        self.aside = "x.unread"
        return self.aside


@in_virtual_time
async def test_a_file_that_cannot_be_read_is_kept_aside_and_said() -> None:
    """It may hold a roll back that nobody else knows."""
    async with two_replicas() as (shared, _, _):
        disk = BadDisk()
        late = Replica(shared, disk)
        late.remembered = make_rollout(percent=10.0)
        async with late.running():
            await settled()
            fault = late.faults.of(Scope.DEPENDENCY, FAULT)
            assert fault is not None
            assert "may be lost" in fault.why
            assert "written by other users" in fault.why
            disk.is_stuck = False
            shared.rollouts.outage.is_down = True
            assert KEPT in str(await late.direct.carry_out(order()))
            assert (disk.aside, len(disk.commands)) == ("x.unread", 1)


@in_virtual_time
async def test_a_disk_that_hangs_delays_no_start() -> None:
    """For so long, and no longer."""
    async with two_replicas() as (shared, _, _):
        disk = SlowDisk(order())
        disk.seconds = 1000.0
        late = Replica(shared, disk)
        async with late.running():
            async with asyncio.timeout(READ_SECONDS + 1):
                await late.direct.restored()
            fault = late.faults.of(Scope.DEPENDENCY, FAULT)
            assert fault is not None
            assert "the disk gave no answer" in fault.why
