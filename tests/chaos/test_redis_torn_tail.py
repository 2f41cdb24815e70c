from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from controller.adapters.redis.connection import RedisConnection
from controller.adapters.redis.rollouts import RedisRollouts
from controller.adapters.redis.totals import RedisTotals
from controller.codec.merging import Merger
from controller.errors import StoreUnavailable
from controller.ports import NO_FENCE, OutboxEntry, StoredPartition
from schemas.terms import Arm
from schemas.totals import (
    ArmCounts,
    PartitionCounts,
    arm_field,
    bundle_entry,
    decode_arm,
    decode_bundle,
    decode_progress,
    encode_arm,
    encode_bundle,
    encode_progress,
    is_bundle_field,
    parse_field,
)
from tests.brokers import RedisServer

KEY = "flag.evaluations/0/1"
FLAGS = 12
BUNDLES_HERE = 3


def flag_of(offset: int) -> int:
    """Return the flag of the record at `offset`.

    The log is a function, so that a recount needs no broker.
    """
    return offset % FLAGS


def names_of(flag: int) -> str:
    """Return the field that counts a flag."""
    return arm_field(f"flag-{flag}", "start-1", 0, Arm.TREATMENT)


@dataclass
class Counter:
    """The smallest owner of a partition.

    Totals in memory, fence in Redis, loaded again when refused.
    """

    totals: RedisTotals
    is_bundling: bool = (
        False  # at random one flag is taken out of the bundles, as visits that are over are
    )
    position: int | None = None
    counts: dict[int, ArmCounts] = field(default_factory=dict)
    taken_out: set[int] = field(default_factory=set)

    async def load(self) -> None:
        """Take over what is stored, as on assignment."""
        stored = await self.totals.load(KEY)
        self.position = stored.next_offset
        arms = arms_in(stored)
        self.counts = {
            flag: decode_arm(arms[names_of(flag)])
            for flag in range(FLAGS)
            if names_of(flag) in arms
        }
        self.taken_out = {flag for flag in range(FLAGS) if names_of(flag) in stored.fields}

    async def count(self, records: int) -> None:
        """Fold the next records and save what changed with the new fence."""
        begin = self.position or 0
        dirty = set()
        for offset in range(begin, begin + records):
            counted = self.counts.get(flag_of(offset), ArmCounts()).evaluations
            self.counts[flag_of(offset)] = ArmCounts(evaluations=counted + 1)
            dirty.add(flag_of(offset))
        after = begin + records
        progress = encode_progress(PartitionCounts(end=after, counted=after))
        changed = (
            self.bundled(dirty)
            if self.is_bundling
            else {names_of(flag): encode_arm(self.counts[flag]) for flag in dirty}
        )
        refused = await self.totals.save(
            KEY, expected=self.position, next_offset=after, fields={**progress, **changed}
        )
        self.position = after
        if refused is not None:
            await self.load()

    def bundled(self, dirty: set[int]) -> dict[str, bytes]:
        """Return the fields to write when flags share bundles, three or four in each."""
        rewritten = {flag % BUNDLES_HERE for flag in dirty - self.taken_out}
        if len(self.counts) == FLAGS and rewritten and len(self.taken_out) < FLAGS // 2:
            self.taken_out.add(
                min(flag for flag in range(FLAGS) if flag % BUNDLES_HERE in rewritten)
            )
        fields = {
            names_of(flag): encode_arm(self.counts[flag])
            for flag in self.taken_out & self.counts.keys()
        }
        for number in rewritten:
            held = [
                flag
                for flag in self.counts
                if flag % BUNDLES_HERE == number and flag not in self.taken_out
            ]
            fields[f"arms/{number}"] = encode_bundle(
                bundle_entry(names_of(flag), encode_arm(self.counts[flag])) for flag in held
            )
        return fields


def arms_in(stored: StoredPartition) -> dict[str, bytes]:
    """Return every arm by its name, and check that none stands in two places."""
    own = [name for name in stored.fields if parse_field(name) is not None]
    bundles = [
        decode_bundle(value) for name, value in stored.fields.items() if is_bundle_field(name)
    ]
    arms, _ = Merger().arms(KEY, stored.fields)
    assert len(own) + sum(map(len, bundles)) == sum(parse_field(name) is not None for name in arms)
    return arms


async def check(totals: RedisTotals) -> int | None:
    """Assert that every flag's total is what the records before the fence add up to.

    Return the fence.
    """
    stored = await totals.load(KEY)
    fence = stored.next_offset or 0
    expected = [len(range(flag, fence, FLAGS)) for flag in range(FLAGS)]
    arms = arms_in(stored)
    found = [decode_arm(arms.get(names_of(flag), b"{}")).evaluations for flag in range(FLAGS)]
    assert found == expected, f"totals do not add up to the fence {fence}"
    if stored.next_offset is not None:
        progress = decode_progress(stored.fields)
        assert progress.adds_up(fence)
        assert sum(found) == progress.counted == fence
    return stored.next_offset


@pytest.mark.parametrize("is_bundling", [False, True])
@pytest.mark.parametrize(
    ("seed", "rounds"), [(1, 12), pytest.param(2, 200, marks=pytest.mark.long)]
)
async def test_a_torn_tail_loses_and_doubles_nothing(
    own_redis: RedisServer, seed: int, rounds: int, *, is_bundling: bool
) -> None:
    """Redis killed with up to 4 KB cut off its file, restarted twice each time.

    Totals always match their fence.

    After the first restart a little is counted on top of the torn end; the second restart reads
    both together.
    """
    dice = random.Random(seed)
    store = RedisConnection.connect(own_redis.url, deadline_seconds=5)
    totals = RedisTotals(store)
    counter = Counter(totals, is_bundling)
    lost_writes = 0
    for _ in range(rounds):
        await counter.load()
        for _ in range(dice.randrange(1, 40)):
            await counter.count(dice.randrange(0, 30))
            if dice.random() < 0.1:
                await totals.drop(KEY, ["flag-99|start-1|0|treatment"])
        before = counter.position
        own_redis.kill9()
        own_redis.cut_aof_tail(dice.randrange(4096))
        own_redis.start()
        fence = await check(totals)
        lost_writes += fence != before
        is_zombie = dice.random() < 0.5
        if (
            not is_zombie
        ):  # a zombie still believes in its position and its totals from before the crash
            await counter.load()
        for _ in range(dice.randrange(0, 3)):
            await counter.count(dice.randrange(0, 30))
            await check(totals)
        own_redis.kill9()
        if dice.random() < 0.5:
            own_redis.cut_aof_tail(dice.randrange(256))
        own_redis.start()
        await check(totals)
    await store.close()
    assert lost_writes > rounds / 3, "the cuts took nothing: the test has lost its teeth"


async def test_a_lost_file_is_counted_again_from_nothing(own_redis: RedisServer) -> None:
    """A Redis emptied under a live owner refuses its next save.

    And the count begins again without a remainder.
    """
    store = RedisConnection.connect(own_redis.url)
    totals = RedisTotals(store)
    counter = Counter(totals)
    await counter.count(50)
    await store.client.flushall()
    refused = await totals.save(KEY, expected=50, next_offset=60, fields={})
    assert refused == NO_FENCE
    await counter.load()
    assert counter.position is None
    await counter.count(20)
    assert await check(totals) == 20
    await store.close()


async def test_document_and_effects_survive_a_torn_tail_together(own_redis: RedisServer) -> None:
    """Whatever is cut off, the tests' state stored is that of the token stored.

    And so are its effects.
    """
    dice = random.Random(7)
    store = RedisConnection.connect(own_redis.url, deadline_seconds=5)
    rollouts = RedisRollouts(store)
    for _ in range(8):
        token = (await rollouts.load("f")).token
        for _ in range(dice.randrange(1, 20)):
            effect = OutboxEntry(
                f"outbox:{token}", f"f/{token}/0", "decisions", "f", b"x" * dice.randrange(200)
            )
            assert await rollouts.save(
                "f", expected_token=token, tests=b"%d" % (token + 1), outbox=[effect]
            )
            token += 1
        own_redis.kill9()
        own_redis.cut_aof_tail(dice.randrange(2048))
        for _ in range(2):
            own_redis.start()
            stored = await rollouts.load("f")
            assert stored.tests == (b"%d" % stored.token if stored.token else b"")
            assert [entry.effect_id for entry in stored.outbox] == [
                f"f/{n}/0" for n in range(stored.token)
            ]
            assert list(await rollouts.flag_keys()) == ["f"] if stored.token else True
            own_redis.kill9()
        own_redis.start()
    await store.close()


async def test_a_count_goes_on_through_kills(own_redis: RedisServer) -> None:
    """An owner that counts while Redis is killed ends with totals that match its fence."""
    dice = random.Random(11)
    store = RedisConnection.connect(own_redis.url, try_seconds=0.2, deadline_seconds=0.4)
    totals = RedisTotals(store)
    counter = Counter(totals)
    for _ in range(6):
        for turn in range(dice.randrange(5, 30)):
            if turn == 4:
                own_redis.kill9()
            try:
                await counter.count(dice.randrange(1, 20))
            except StoreUnavailable:
                own_redis.start()
                await counter.load()
        await check(totals)
    await store.close()
