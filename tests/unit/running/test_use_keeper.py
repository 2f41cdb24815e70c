"""What is kept of how flags are used: the same for all replicas, each evaluation once."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import pytest

from controller.adapters.memory import ManualClock, MemoryFlagUses, MemoryReports
from controller.codec.flag_summaries import summary_to_json
from controller.core.judging.judgement import Judgement
from controller.core.rollout import Rollout
from controller.counting.folding.evaluation_hours import EvaluationHours
from controller.errors import BrokenInvariant
from controller.health import Faults, Scope
from controller.ports import FlagSummary, FlagUse, LastDecision, Lift, Use
from controller.running.flag_summaries import FlagSummaries
from controller.running.use_keeper import (
    COUNTS_PER_CALL,
    DAY_HOURS,
    MOST_NAMED,
    MOST_UNKNOWN,
    USES,
    UseKeeper,
)
from schemas.terms import Arm, DecisionKind, UseKind
from tests.builders import HOUR, T0, make_rollout

FLAG = "new-checkout"


class Nothing:
    """The flags that run on a replica: none, until a test has some."""

    def __init__(self) -> None:
        self.rollouts: dict[str, Rollout] = {}

    def judgement_of(self, flag_key: str) -> Judgement | None:
        """Return none: summaries have tests of their own."""
        return None


class Replica:
    """A replica that counts evaluations of some flags."""

    def __init__(self, store: MemoryFlagUses, clock: ManualClock) -> None:
        self.flags = {FLAG}
        self.clock = clock
        self.counted = EvaluationHours()
        self.unknown: dict[str, int] = {}
        self.faults = Faults(lambda: T0)
        self.running = Nothing()
        summaries = FlagSummaries(self.running, MemoryReports(), clock)
        self.keeper = UseKeeper(
            lambda: self.flags,
            self.counted.take,
            self.take_unknown,
            summaries,
            store,
            clock,
            self.faults,
        )

    def count(self, arm: Arm | None, count: int, flag_key: str = FLAG) -> None:
        """Count evaluations now."""
        self.counted.add(flag_key, arm, count, int(self.clock.now().timestamp() * 1000))

    def take_unknown(self) -> dict[str, int]:
        """Return the new events of flags without a rollout."""
        taken, self.unknown = self.unknown, {}
        return taken

    async def use(self, flag_key: str = FLAG) -> FlagUse:
        """Return how a flag is used, as known after a beat."""
        await self.keeper.beat()
        return self.keeper.uses.by_flag[flag_key]


@pytest.fixture
def clock() -> ManualClock:
    """A clock at the beginning of an hour."""
    return ManualClock(T0)


@pytest.fixture
def store() -> MemoryFlagUses:
    """What all replicas share."""
    return MemoryFlagUses()


@pytest.fixture
def replica(store: MemoryFlagUses, clock: ManualClock) -> Replica:
    """One replica."""
    return Replica(store, clock)


async def test_every_replica_shows_the_sum_of_all(
    replica: Replica, store: MemoryFlagUses, clock: ManualClock
) -> None:
    """Also one that counts nothing, and one that was started later."""
    other = Replica(store, clock)
    replica.count(Arm.TREATMENT, 3)
    replica.count(None, 1)
    other.count(Arm.TREATMENT, 4)
    other.count(Arm.CONTROL, 2)
    await replica.keeper.beat()
    await other.keeper.beat()
    expected = FlagUse(7, 2, 1, T0, T0)
    assert expected.evaluations == 10
    for one in (replica, other, Replica(store, clock)):
        assert await one.use() == expected


async def test_what_is_noted_of_a_rollout_is_shown_by_every_replica(
    replica: Replica, store: MemoryFlagUses, clock: ManualClock
) -> None:
    """Not only by the one that runs it."""
    decision, lift = LastDecision(DecisionKind.COMPLETE, T0), Lift("paid", 0.1, None, 0.2, T0)
    summary = FlagSummary("start-1", 3, decision, (lift,))
    await store.write_notes({Use(UseKind.SUMMARY, FLAG): summary_to_json(summary)})
    use = await replica.use()
    assert (use.decision, use.lifts) == (decision, (lift,))
    other = Replica(store, clock)
    other.running.rollouts = {FLAG: make_rollout(revision=3)}
    assert await other.use() == use
    other.running.rollouts = {FLAG: make_rollout(revision=9, rollout_id="start-2")}
    assert (await other.use()).lifts == ()
    assert (await replica.use()).lifts == ()


async def test_an_emptied_store_gets_again_what_a_replica_knows(
    replica: Replica, store: MemoryFlagUses, clock: ManualClock
) -> None:
    """Else a flag that was evaluated two days ago is one that never was, and is tidied up."""
    replica.count(Arm.TREATMENT, 1)
    await replica.keeper.beat()
    clock.advance(timedelta(days=2))
    await replica.keeper.beat()
    await store.drop_notes(list(await store.notes()))
    await replica.keeper.beat()
    use = await Replica(store, clock).use()
    assert (use.evaluated_at, use.watched_since) == (T0, T0)


async def test_a_day_is_counted_and_no_more(replica: Replica, clock: ManualClock) -> None:
    """What is older is known as the time of the last evaluation."""
    for _ in range(2 * DAY_HOURS):
        replica.count(Arm.TREATMENT, 1)
        clock.advance(HOUR)
        await replica.keeper.beat()
    last = T0 + (2 * DAY_HOURS - 1) * HOUR
    began = T0 + HOUR
    assert await replica.use() == FlagUse(DAY_HOURS - 1, 0, 0, last, began)
    clock.advance(timedelta(days=30))
    assert await replica.use() == FlagUse(0, 0, 0, last, began)


async def test_what_was_counted_while_redis_is_away_is_added_later(
    replica: Replica, store: MemoryFlagUses, clock: ManualClock
) -> None:
    """Once, although it was tried again and again, and in the hour in which it was counted."""
    store.outage.is_down = True
    for _ in range(3):
        replica.count(Arm.TREATMENT, 5)
        await replica.keeper.beat()
    fault = replica.faults.of(Scope.DEPENDENCY, USES)
    assert fault is not None
    assert "ops/security.md" in fault.fix
    clock.advance(HOUR)
    store.outage.is_down = False
    store.outage.lost_replies = 1
    await replica.keeper.beat()
    assert (await replica.use()).treatment == 15
    assert replica.faults.of(Scope.DEPENDENCY, USES) is None
    hour = int(T0.timestamp()) // 3600
    assert await store.hour(hour) == {Use(UseKind.TREATMENT, FLAG): 15}


async def test_a_stop_adds_what_was_counted_since_the_last_minute(
    replica: Replica, store: MemoryFlagUses, clock: ManualClock
) -> None:
    """A restart loses nothing."""
    replica.count(Arm.CONTROL, 5)
    await replica.keeper.flush()
    assert (await Replica(store, clock).use()).control == 5
    store.outage.is_down = True
    replica.count(Arm.CONTROL, 5)
    await replica.keeper.flush()


async def test_hours_that_nobody_shows_are_left_out(
    replica: Replica, store: MemoryFlagUses
) -> None:
    """Such as those of records that are counted again from last week."""
    replica.counted.add(FLAG, Arm.TREATMENT, 1, 0)
    await replica.keeper.beat()
    assert await store.hour(0) == {}
    assert (await replica.use()).evaluated_at is None


async def test_many_flags_are_added_in_parts(replica: Replica, store: MemoryFlagUses) -> None:
    """A call does not hold Redis up."""
    flags = 2 * COUNTS_PER_CALL + 1
    replica.flags = {f"flag-{number}" for number in range(flags)}
    for flag_key in replica.flags:
        replica.count(Arm.TREATMENT, 1, flag_key)
    sizes: list[int] = []
    add = store.add

    async def measured(hour: int, counts: object, **named: object) -> None:
        sizes.append(len(counts))  # type: ignore[arg-type]
        await add(hour, counts, **named)  # type: ignore[arg-type]

    store.add = measured  # type: ignore[method-assign]
    await replica.keeper.beat()
    assert max(sizes) == COUNTS_PER_CALL
    assert sum(sizes) == flags
    assert {one.treatment for one in replica.keeper.uses.by_flag.values()} == {1}


async def test_flags_without_a_rollout_are_known_to_every_replica(
    replica: Replica, store: MemoryFlagUses, clock: ManualClock
) -> None:
    """The most frequent first, for a day; a flag that gets a rollout is none of them."""
    other = Replica(store, clock)
    replica.unknown = {"typo": 20, "retired": 100}
    other.unknown = {"typo": 90}
    await replica.keeper.beat()
    await other.keeper.beat()
    await replica.keeper.beat()
    for one in (replica, other):
        assert list(one.keeper.uses.unknown.items()) == [("typo", 110), ("retired", 100)]
        assert set(one.keeper.uses.by_flag) == {FLAG}
    replica.flags = {FLAG, "typo"}
    await replica.keeper.beat()
    assert replica.keeper.uses.unknown == {"retired": 100}
    clock.advance(timedelta(days=1))
    await replica.keeper.beat()
    assert replica.keeper.uses.unknown == {}


async def test_names_that_senders_make_up_are_bounded(
    replica: Replica, store: MemoryFlagUses, clock: ManualClock
) -> None:
    """In what is kept of an hour, and in what is shown; known names go on being counted."""
    for beat in range(5):
        replica.unknown = {"first": 10, **{f"made-up-{beat}-{n}": 20 for n in range(100)}}
        await replica.keeper.beat()
    hour = await store.hour(int(T0.timestamp()) // 3600)
    assert len(hour) == MOST_NAMED
    assert hour[Use(UseKind.UNKNOWN, "first")] == 50
    assert len(replica.keeper.uses.unknown) == MOST_UNKNOWN
    assert next(iter(replica.keeper.uses.unknown)) == "first"
    clock.advance(HOUR)
    replica.unknown = {"later": 30}
    await replica.keeper.beat()
    assert "later" in replica.keeper.uses.unknown


async def test_notes_on_a_retired_flag_go(replica: Replica, store: MemoryFlagUses) -> None:
    """Not at once: a new flag may be known to another replica a moment earlier."""
    replica.count(Arm.TREATMENT, 1)
    await replica.keeper.beat()
    replica.flags = {"other"}
    await replica.keeper.beat()
    assert any(use.flag_key == FLAG for use in await store.notes())
    await replica.keeper.beat()
    assert {use.flag_key for use in await store.notes()} == {"other"}
    assert set(replica.keeper.uses.by_flag) == {"other"}


class Written(MemoryFlagUses):
    """A store that remembers which notes it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Use] = []

    async def write_notes(self, notes: Mapping[Use, bytes]) -> None:
        """Write and remember them."""
        self.given += notes
        await super().write_notes(notes)


async def test_notes_on_the_last_retired_flag_do_not_come_back(clock: ManualClock) -> None:
    """A store that has no notes any more is not one that was emptied."""
    store = Written()
    replica, other = Replica(store, clock), Replica(store, clock)
    replica.count(Arm.TREATMENT, 1)
    for one in (replica, other):
        await one.keeper.beat()
        one.flags.clear()
    for _ in range(2):
        for one in (replica, other):
            await one.keeper.beat()
    store.given.clear()
    for one in (replica, other, replica, other):
        await one.keeper.beat()
    assert store.given == []
    assert await store.notes() == {}


async def test_a_strangers_key_is_a_fault(replica: Replica, store: MemoryFlagUses) -> None:
    """It stops nothing."""

    async def refusing() -> None:
        raise BrokenInvariant("WRONGTYPE")

    store.notes = refusing  # type: ignore[method-assign,assignment]
    await replica.keeper.beat()
    assert replica.faults.of(Scope.DEPENDENCY, USES) is not None
