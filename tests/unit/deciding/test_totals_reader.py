"""When totals are read: often, at little cost, and at once after an outage of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from controller.deciding.given_evidence import READ_EVERY_SECONDS
from controller.deciding.totals_reader import (
    BEHIND_RECORDS,
    FLAGS_PER_READ,
    FLAGS_PER_TURN,
    READ_ALL_EVERY_SECONDS,
    STUCK_AFTER_SECONDS,
)
from controller.errors import StoreUnavailable
from controller.health import Faults, Scope
from controller.ports import PartitionHead
from schemas.totals import LatelyChanged, bundle_of
from tests.builders import T0, make_rollout
from tests.unit.deciding.totals_world import (
    LATE,
    LOOK_SECONDS,
    BusyClock,
    Lagging,
    ManyFlags,
    Pool,
    Quiet,
    Store,
    reader_of,
)
from tests.virtual_time import LoopClock, in_virtual_time


async def reads(store: Store, *, for_seconds: float, then: Any = None) -> list[float]:
    """Return when the store was read, while new totals arrive all the time."""
    pool: Any = Pool()
    reader = reader_of(pool, store)

    async def save() -> None:
        while True:
            reader.totals_saved()
            await asyncio.sleep(0.05)

    with suppress(TimeoutError):
        async with asyncio.timeout(for_seconds), asyncio.TaskGroup() as tasks:
            tasks.create_task(save())
            tasks.create_task(reader.run())
            if then is not None:
                tasks.create_task(then())
    return store.read_at


@in_virtual_time
async def test_after_an_outage_totals_are_read_at_once() -> None:
    """Harm that begins as the store is back must not wait for nine times the outage."""
    store = Store()
    store.is_away, store.seconds = True, 2.0

    async def come_back() -> None:
        await asyncio.sleep(9)
        store.is_away, store.seconds = False, 0.001

    read_at = await reads(store, for_seconds=20, then=come_back)
    first = min(at for at in read_at if at > 9)
    assert first < 9 + 2 * READ_EVERY_SECONDS


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.001, 90, 110), (0.05, 18, 22)])
def test_reading_takes_a_small_part_of_the_time(seconds: float, least: int, most: int) -> None:
    """Ten times a second, and less often where a read takes long; never less than every other."""

    @in_virtual_time
    async def run() -> None:
        store = Store()
        store.seconds = seconds
        assert least <= len(await reads(store, for_seconds=10)) <= most

    run()


@pytest.mark.parametrize(("lag", "others"), [(0, 1), (BEHIND_RECORDS + 1, 9)])
@in_virtual_time
async def test_looks_at_many_flags_leave_time_to_others(lag: int, others: int) -> None:
    """After each few flags the loop is everybody else's, longer while counting is behind."""
    clock, faults = BusyClock(), Faults(lambda: T0)
    pool: Any = ManyFlags(1_000, clock)
    reader = reader_of(pool, Lagging(lag), clock=clock, faults=faults)
    with suppress(TimeoutError):
        async with asyncio.timeout(1_000 * LOOK_SECONDS * others + 1.5):
            await reader.run()
    assert reader.turn_seconds > 0.75 * (others + 1) * clock.worked
    fault = faults.of(Scope.PART, "looks")
    assert fault is not None
    assert fault.why.startswith("each of 1,000 rollouts is looked at only every")
    pauses = [later - at - LOOK_SECONDS for at, later in pairwise(pool.looks)]
    assert len(pool.looks) >= 1_000
    assert sum(pauses) >= 0.75 * others * clock.worked  # there is none after the last few
    longest = [number for number, pause in enumerate(pauses) if pause > LOOK_SECONDS]
    assert longest[:2] == [FLAGS_PER_TURN - 1, 2 * FLAGS_PER_TURN - 1]


@in_virtual_time
async def test_totals_are_not_read_again_while_no_fence_moves() -> None:
    """Thousands of quiet rollouts cost a look at the fences; a save elsewhere is read at once."""
    clock, store, faults = LoopClock(), Quiet(), Faults(lambda: T0)
    pool: Any = Pool()
    given: list[int] = []
    inbox = SimpleNamespace(
        put_totals=lambda new: given.append(new.evidence.visits[0].treatment.exposures)
    )
    pool.worker = lambda _: SimpleNamespace(inbox=inbox, quiet_until=lambda _: LATE)
    reader = reader_of(pool, store, clock=clock, faults=faults)
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(reader.run())
        await asyncio.sleep(READ_ALL_EVERY_SECONDS)
        assert (store.totals_read, given) == ([1], [7])
        store.fence = 8  # an older release counted
        await asyncio.sleep(2 * READ_EVERY_SECONDS)
        assert (store.totals_read, given) == ([1] * 3, [7, 8])  # one more: after half a minute
        pool.rollouts = {"g": make_rollout(flag_key="g")}  # another rollout has begun
        pool.tell("f")
        pool.tell("g")
        await asyncio.sleep(2 * READ_EVERY_SECONDS)
        assert (store.totals_read, given) == ([1] * 4, [7, 8, 8])
        await asyncio.sleep(READ_ALL_EVERY_SECONDS + READ_EVERY_SECONDS)
        assert store.totals_read == [1] * 5  # whatever was repaired by hand
        assert faults.current == ()
        reading.cancel()


@in_virtual_time
async def test_only_flags_that_changed_are_read_and_the_others_are_as_good_as_read() -> None:
    """Of a thousand flags three get events, and the others cost nothing."""
    clock, store = LoopClock(), Quiet()
    pool: Any = Pool()
    pool.rollouts = {f"f{n}": make_rollout(flag_key=f"f{n}") for n in range(1_000)}
    given: list[str] = []
    drifts: list[str] = []

    def worker(flag_key: str) -> Any:
        inbox = SimpleNamespace(put_totals=lambda _: given.append(flag_key))
        return SimpleNamespace(
            inbox=inbox, quiet_until=lambda _: LATE, handled_at=clock.monotonic()
        )

    pool.worker = worker
    store.changed = LatelyChanged("w", 0, 0, store.fence, {})
    reader = reader_of(pool, store, clock=clock)
    reader._actuation = SimpleNamespace(drift=lambda one: drifts.append(one.flag_key))
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(reader.run())
        await asyncio.sleep(3 * READ_EVERY_SECONDS)
        assert (len(given), store.totals_read) == (1_000, [FLAGS_PER_READ] * 5)
        await asyncio.sleep(64)  # they have settled, and all were read twice more
        given.clear()
        drifts.clear()
        store.totals_read.clear()
        for number in range(1, 51):
            store.fence += 1
            changed = {f"f{n}": number for n in range(3)}
            store.changed = LatelyChanged("w", number, 0, store.fence, changed)
            reader.totals_saved()
            await asyncio.sleep(0.15)
        assert set(given) == {"f0", "f1", "f2"} == set(drifts)
        assert set(store.totals_read) == {3}
        assert len(store.totals_read) >= 40
        ages = [clock.monotonic() - (view.read_at or 0) for view in reader.views()]
        assert len(ages) == 1_000
        assert max(ages) < READ_EVERY_SECONDS
        reading.cancel()


@in_virtual_time
async def test_flags_that_are_stored_together_are_read_together() -> None:
    """A bundle is read whole: with thousands of flags, one that is read for each costs a backlog.

    At most one bundle of each read goes on in the next.
    """
    store = Quiet()
    pool: Any = ManyFlags(8 * FLAGS_PER_READ, BusyClock())
    bundles: list[set[int]] = []

    async def read(keys: Sequence[str], wanted: Mapping[str, Any]) -> Any:
        bundles.append({bundle_of(flag_key) for flag_key in wanted})
        return await Quiet.read(store, keys, wanted)

    store.read = read  # type: ignore[method-assign, assignment]
    with suppress(TimeoutError):
        async with asyncio.timeout(READ_ALL_EVERY_SECONDS - 1):
            await reader_of(pool, store).run()
    assert len(bundles) == 8
    assert sum(map(len, bundles)) <= len(set[int]().union(*bundles)) + 7


@in_virtual_time
async def test_a_flag_whose_totals_are_not_read_does_not_look_read() -> None:
    """The store says that they have changed, and then answers nothing: they are as old as before.

    The others, which have not changed, are as new as that.
    """
    clock, store = LoopClock(), Quiet()
    pool: Any = Pool()
    pool.rollouts = {f"f{n}": make_rollout(flag_key=f"f{n}") for n in range(2)}
    inbox = SimpleNamespace(put_totals=lambda _: None)
    pool.worker = lambda _: SimpleNamespace(
        inbox=inbox, quiet_until=lambda _: LATE, handled_at=clock.monotonic()
    )
    store.changed = LatelyChanged("w", 0, 0, store.fence, {})
    reader = reader_of(pool, store, clock=clock)
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(reader.run())
        await asyncio.sleep(3 * READ_EVERY_SECONDS)

        async def away(*_: object) -> Any:
            raise StoreUnavailable("away")

        store.read = away  # type: ignore[method-assign, assignment]
        store.fence += 1
        store.changed = LatelyChanged("w", 1, 0, store.fence, {"f0": 1})
        await asyncio.sleep(10)
        ages = {one.flag_key: clock.monotonic() - (one.read_at or 0) for one in reader.views()}
        assert 9 < ages["f0"] < 12
        assert ages["f1"] < 2 * READ_EVERY_SECONDS
        reading.cancel()


@in_virtual_time
async def test_totals_that_cannot_be_read_keep_no_flag_behind_them_unread() -> None:
    """Flags are read two hundred at a time; one of the first is damaged."""
    store = Quiet()
    real = store.read

    async def read(keys: Sequence[str], wanted: Mapping[str, Any]) -> Any:
        if "f0" in wanted:
            raise ValueError("damaged")
        return await real(keys, wanted)

    store.read = read  # type: ignore[method-assign, assignment]
    pool: Any = Pool()
    pool.rollouts = {f"f{n}": make_rollout(flag_key=f"f{n}") for n in range(2 * FLAGS_PER_READ)}
    given: set[str] = set()

    def worker(flag_key: str) -> Any:
        inbox = SimpleNamespace(put_totals=lambda _: given.add(flag_key))
        return SimpleNamespace(inbox=inbox, quiet_until=lambda _: LATE)

    pool.worker = worker
    reader = reader_of(pool, store)
    with suppress(TimeoutError):
        async with asyncio.timeout(3 * READ_EVERY_SECONDS):
            await reader.run()
    assert given == pool.rollouts.keys() - {"f0"}


@in_virtual_time
async def test_reading_belongs_to_the_turn_that_a_flag_waits_for() -> None:
    """The last of many flags is read long after the first, also while workers look at none."""
    store, clock = Store(), LoopClock()
    store.seconds = 4.0
    pool: Any = ManyFlags(5 * FLAGS_PER_READ, BusyClock())
    reader = reader_of(pool, store, clock=clock)
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(reader.run())
        await asyncio.sleep(18)
        assert reader.turn_seconds >= 16  # of the present pass
        await asyncio.sleep(10)
        assert reader.turn_seconds >= 24  # a flag may have been first in the last, and be last now
        reading.cancel()


@in_virtual_time
async def test_what_is_given_with_known_totals_is_a_second_old_at_most() -> None:
    """A pass over many flags is long: partitions as of its beginning would look silent."""
    clock, store = BusyClock(), Quiet()
    store.changed = LatelyChanged("w", 0, 0, store.fence, {})
    pool: Any = ManyFlags(600, clock)
    ages: list[float] = []

    def put_totals(totals: Any) -> None:
        clock.worked += LOOK_SECONDS
        reported_at = totals.evidence.partitions[0].reported_at
        ages.append((LoopClock().now() - reported_at).total_seconds())

    pool.put_totals = put_totals
    with suppress(TimeoutError):
        async with asyncio.timeout(20):
            await reader_of(pool, store, clock=clock).run()
    looked_at_again = ages[600:]
    assert len(looked_at_again) > 600
    assert max(looked_at_again) < 2 * READ_EVERY_SECONDS


@in_virtual_time
async def test_no_flag_is_looked_at_before_its_moment() -> None:
    """Nothing is found then, also where the turn after this one comes later than the moment."""
    clock, store = BusyClock(), Quiet()
    store.changed = LatelyChanged("w", 0, 0, store.fence, {})
    pool: Any = ManyFlags(600, clock)
    began = clock.now()
    moment = began + timedelta(seconds=12)
    looks: list[float] = []

    def worker(flag_key: str) -> Any:
        def put_totals(_: object) -> None:
            clock.worked += LOOK_SECONDS
            looks.append((clock.now() - began).total_seconds())
            quiet_until[flag_key] = moment if looks[-1] < 12 else LATE

        inbox = SimpleNamespace(put_totals=put_totals)
        return SimpleNamespace(inbox=inbox, quiet_until=lambda _: quiet_until[flag_key])

    quiet_until: dict[str, Any] = {}
    pool.worker = worker
    reader = reader_of(pool, store, clock=clock)
    with suppress(TimeoutError):
        async with asyncio.timeout(25):
            await reader.run()
    assert min(looks[600:]) >= 12
    assert len(looks) == 1_200


@in_virtual_time
async def test_nobody_waits_for_a_turn_where_nothing_gets_on() -> None:
    """Turns were long; then reads fail: whoever is not watched must be told of soon."""
    clock, faults = BusyClock(), Faults(lambda: T0)
    pool: Any = ManyFlags(2_600, clock)
    store = Lagging(0)
    reader = reader_of(pool, store, clock=clock, faults=faults)
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(reader.run())
        await asyncio.sleep(15)
        assert reader.turn_seconds > 15

        async def away(*_: object) -> Any:
            raise StoreUnavailable("away")

        store.read = store.heads = away  # type: ignore[method-assign, assignment]
        await asyncio.sleep(2 * STUCK_AFTER_SECONDS)
        assert reader.turn_seconds == 0
        reading.cancel()


@in_virtual_time
async def test_of_a_few_flags_what_was_saved_here_is_read_at_once() -> None:
    """Nobody asks first what has changed, but for each second: a breach comes that much sooner."""
    store = Quiet()
    asked: list[float] = []
    real = store.heads

    async def heads(keys: Sequence[str]) -> Sequence[PartitionHead]:
        asked.append(asyncio.get_running_loop().time())
        return await real(keys)

    store.heads = heads  # type: ignore[method-assign, assignment]
    store.changed = LatelyChanged("w", 0, 0, store.fence, {})
    await reads(store, for_seconds=10)
    assert 85 <= len(store.totals_read) <= 110
    assert 9 <= len(asked) <= 11
