"""What the relay does before the start is over, and when it deletes what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from controller.adapters.memory import ManualClock, MemoryRollouts
from controller.core.rollout import RolledBack, Rollout
from controller.deciding.registry import RolloutRegistry
from controller.health import Faults
from controller.running.decision_relay import KEPT_SECONDS, DecisionRelay
from tests.builders import T0, make_rollout

AT_HALF = make_rollout(percent=50.0, revision=7)
ROLLED_BACK = make_rollout(percent=0.0, revision=8, phase=RolledBack(T0, "5xx"))
FLAG = AT_HALF.flag_key


class Hash:
    """The relay's hash."""

    def __init__(self, **revisions: int) -> None:
        self.revisions = revisions

    async def write(self, revisions: Mapping[str, int]) -> None:
        """Write some."""
        self.revisions |= revisions

    async def read(self) -> Mapping[str, int]:
        """Return all."""
        return dict(self.revisions)

    async def drop(self, flag_keys: Sequence[str]) -> None:
        """Delete some."""
        for flag_key in flag_keys:
            del self.revisions[flag_key]


class World:
    """A relay, what is stored, and what it is told of Kafka and Redis."""

    def __init__(self, *known: Rollout, **relayed: int) -> None:
        self.clock = ManualClock(T0)
        self.hash = Hash(**relayed)
        self.rollouts = MemoryRollouts()
        self.registry = RolloutRegistry()
        for rollout in known:
            self.registry.update(rollout)
        self.silent: float | None = 0.0
        self.not_ours: str | None = None
        self.relay = DecisionRelay(
            self.clock,
            self.hash,
            self.rollouts,
            self.registry,
            Faults(self.clock.now),
            silent_seconds=lambda: self.silent,
            stuck_seconds=lambda: 0.0,
            why_not_ours=self._why_not_ours,
        )

    async def _why_not_ours(self) -> str | None:
        return self.not_ours

    async def beat_after(self, seconds: float) -> None:
        """Let so much time pass, and beat."""
        self.clock.advance(timedelta(seconds=seconds))
        await self.relay.beat()


async def test_a_newer_revision_is_kept_for_its_own_time() -> None:
    """A replica that is cut off for longer writes into a field that is about to be deleted."""
    world = World(make_rollout(revision=99), **{FLAG: 5})
    await world.beat_after(0)
    world.hash.revisions[FLAG] = 9
    await world.beat_after(KEPT_SECONDS - 1)
    await world.beat_after(2)
    assert world.hash.revisions == {FLAG: 9}
    await world.beat_after(KEPT_SECONDS)
    assert world.hash.revisions == {}


async def test_a_replica_that_never_heard_of_kafka_relays_within_its_environment() -> None:
    """It reads and writes as soon as Redis names this environment, and not before."""
    world = World()
    world.silent, world.not_ours = None, "Redis names staging"
    await world.rollouts.save(FLAG, expected_token=0, rollout=AT_HALF)
    world.hash.revisions[FLAG] = AT_HALF.revision
    await world.beat_after(0)
    assert world.registry.newest(FLAG) is None
    world.not_ours = None
    await world.beat_after(1)
    assert world.registry.newest(FLAG) == AT_HALF
    world.relay.request(ROLLED_BACK)
    await world.beat_after(1)
    assert world.hash.revisions == {FLAG: ROLLED_BACK.revision}


async def test_what_was_decided_long_ago_is_not_relayed() -> None:
    """Decided while Kafka took it, it is in the state topic: only the last half minute may not."""
    world = World()
    others = {f"flag-{number}": at for number, at in enumerate((0, 2, 24, 29))}
    for flag_key, seconds in others.items():
        at = T0 + timedelta(seconds=seconds)
        world.clock.advance(at - world.clock.now())
        world.relay.request(make_rollout(flag_key=flag_key, updated_at=at))
    await world.beat_after(22)  # a little more than half a minute after the second of them
    world.silent = None
    await world.beat_after(0)
    assert set(world.hash.revisions) == {"flag-2", "flag-3"}


async def test_the_newest_decision_of_a_flag_is_relayed() -> None:
    """Decided again, it is young again, and what came between the two is not forgotten with it."""
    world = World()
    world.relay.request(AT_HALF)
    world.clock.advance(timedelta(seconds=20))
    for rollout in (make_rollout(flag_key="other"), ROLLED_BACK):
        world.relay.request(replace(rollout, updated_at=world.clock.now()))
    world.silent = None
    await world.beat_after(25)
    assert world.hash.revisions == {"other": 1, FLAG: ROLLED_BACK.revision}


async def test_what_is_known_is_not_asked_for_again_and_what_is_not_is() -> None:
    """After an outage the relay has a revision of each of thousands of flags for minutes."""
    flags = [make_rollout(flag_key=f"flag-{number}", revision=3) for number in range(50)]
    world = World(*flags, **{one.flag_key: 3 for one in flags})
    await world.beat_after(0)
    asked: list[str] = []
    newest = world.registry.newest

    def asks(flag_key: str) -> Rollout | None:
        asked.append(flag_key)
        return newest(flag_key)

    world.registry.newest = asks  # type: ignore[method-assign]
    await world.beat_after(1)
    assert asked == []
    world.hash.revisions |= {"flag-7": 4, FLAG: AT_HALF.revision}
    await world.beat_after(1)
    await world.beat_after(1)
    assert sorted(asked) == sorted(["flag-7", FLAG] * 2)  # neither is stored yet
    await world.rollouts.save(FLAG, expected_token=0, rollout=AT_HALF)
    await world.beat_after(1)
    assert newest(FLAG) == AT_HALF
    asked.clear()
    await world.beat_after(1)
    assert asked == ["flag-7"]
