"""One context weighs no more than several others together, in either fold."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest

from controller.counting.folding.activity import ALWAYS, GROUPS, MULTIPLE, Activity
from controller.counting.folding.context_sets import digest_of
from controller.counting.folding.engine import Fold
from controller.counting.folding.native import NATIVE, native_fold
from controller.counting.folding.partition_fold import PartitionFold
from controller.ports import Record
from schemas.totals import ArmCounts, decode_arm
from tests.both_folds import FLAGS, NOW_MS, Side
from tests.builders import HOUR, T0
from tests.records import at_ms, outcome_value

BOT = "bot"

# --- the rule ---


def counted(actions: Sequence[str]) -> dict[str, int]:
    """Return how many actions of each context count, when they come in this order."""
    activity = Activity()
    found = dict.fromkeys(actions, 0)
    for context in actions:
        found[context] += activity.add(digest_of(context.encode()))
    return found


def people(number: int) -> list[str]:
    """Return so many contexts, none of them in the bot's group."""
    group = digest_of(BOT.encode()) % GROUPS
    names = (f"u{each}" for each in range(10 * number + 1000))
    return [name for name in names if digest_of(name.encode()) % GROUPS != group][:number]


@pytest.mark.parametrize("number", [2, 10, 100, 5000])
def test_a_bot_counts_a_few_times_only(number: int) -> None:
    """Half of all actions are its own: people count, and the bot as often as several of them."""
    users, chance = people(number), Random(1)
    actions = [each for _ in range(10_000) for each in (BOT, chance.choice(users))]
    if number <= MULTIPLE:  # then it is not far more active than each of the others
        actions = [each for one in actions for each in ([one] if one != BOT else [BOT] * 20)]
    found = counted(actions)
    assert sum(found[user] for user in set(users) & found.keys()) == 10_000
    assert 2 * ALWAYS <= found[BOT] <= 60


@pytest.mark.parametrize("number", [1, 2, 5, 30, 200, 2000])
def test_equal_contexts_all_count_however_active(number: int) -> None:
    """Harm that begins late among a few busy users is found: none of their actions is left out."""
    users = [f"u{each}" for each in range(number)]
    chance = Random(2)
    actions = [each for _ in range(1000) for each in chance.sample(users, number)]
    assert sum(counted(actions).values()) == len(actions)


@pytest.mark.parametrize(("number", "most"), [(30, 0.1), (300, 0.02), (3000, 0.0)])
def test_skewed_activity_is_hardly_left_out(number: int, most: float) -> None:
    """Where people's activity is lognormal with sigma 1, nearly all of it counts."""
    left_out = []
    for seed in range(20):
        chance = Random(seed)
        weights = [chance.lognormvariate(0, 1) for _ in range(number)]
        actions = chance.choices([f"{seed}-{each}" for each in range(number)], weights, k=3000)
        left_out.append(1 - sum(counted(actions).values()) / len(actions))
    assert sum(left_out) / len(left_out) <= most


def test_one_alone_counts_until_others_come() -> None:
    """Nobody can be far more active than others where there are none."""
    assert counted([BOT] * 1000)[BOT] == 1000
    activity = Activity()
    for _ in range(1000):
        activity.add(digest_of(BOT.encode()))
    assert activity.add(digest_of(people(1)[0].encode()))
    assert not activity.add(digest_of(BOT.encode()))


def test_a_quiet_arm_takes_no_table() -> None:
    """Of 10,000 flags most have few actions per partition; the table of others takes 1.1 KB."""
    activity = Activity()
    for number in range(ALWAYS):
        activity.add(number)
    assert len(activity._counts) == 0
    activity.add(0)
    assert sys.getsizeof(activity._counts) < 1_200


# --- what is counted of an action that is left out ---

FOLDS = [
    PartitionFold,
    pytest.param(
        None if NATIVE is None else native_fold(NATIVE),
        marks=pytest.mark.skipif(NATIVE is None, reason="NO NATIVE FOLD: `make native` builds it"),
    ),
]
either_fold = pytest.mark.parametrize("new_fold", FOLDS, ids=["reference", "native"])
BATCHES = 100


class Arm:
    """Treatment's counts in one partition, with batches at will."""

    def __init__(self, new_fold: Callable[..., Fold]) -> None:
        self.side = Side(new_fold, 1000)
        self.offset = 0

    def batch(self, *outcomes: tuple[str, dict[str, Any]]) -> ArmCounts:
        """Count some outcomes as one batch and save; return the totals."""
        records = []
        for context, more in outcomes:
            value = outcome_value(
                context, time_ms=at_ms(T0 + HOUR / 2), flags=[(FLAGS[0], "on")], **more
            )
            records.append(Record("t", 0, self.offset, NOW_MS, None, value, ()))
            self.offset += 1
        assert self.side.fold(False, records, 1000) == len(records)
        return decode_arm(self.side.save(False)[f"{FLAGS[0]}|start-{FLAGS[0]}|0|treatment"])

    def busy(self) -> ArmCounts:
        """Let a bot have an outcome in many batches, and a new person in each of them."""
        bot, users = (BOT, {"latency_ms": 1.0}), people(BATCHES)
        return [self.batch(bot, (user, {"latency_ms": 50.0})) for user in users][-1]


@either_fold
def test_a_bot_leaves_what_is_compared(new_fold: Callable[..., Fold]) -> None:
    """It is at risk, and has a duration that is tested, a few times; raw counts have all of it."""
    totals = Arm(new_fold).busy()
    assert totals.outcomes == 2 * BATCHES
    assert BATCHES + 2 * ALWAYS <= totals.at_risk <= BATCHES + 4 * ALWAYS
    assert sum(totals.latency.values()) == totals.at_risk


@either_fold
def test_a_failure_that_is_left_out_is_in_neither_part_of_the_rate(
    new_fold: Callable[..., Fold],
) -> None:
    """No first error without its trial: a batch with more errors than trials is no evidence.

    Errors for people and conversions have it, like every outcome.
    """
    arm = Arm(new_fold)
    before = arm.busy()
    after = arm.batch((BOT, {"latency_ms": 1.0}), (BOT, {"error": True, "conversions": ["paid"]}))
    assert (after.at_risk, after.first_errors) == (before.at_risk, 0)
    assert after.latency == before.latency
    assert (after.errors, after.converted) == (1, {"paid": 1})


@either_fold
def test_an_action_that_is_left_out_ends_no_other(new_fold: Callable[..., Fold]) -> None:
    """A bot that fails for long is no failed context: it counts again once others are as active."""
    arm = Arm(new_fold)
    before = arm.busy()
    arm.batch((BOT, {"error": True}))
    users = people(BATCHES)
    quiet = [arm.batch(*((user, {}) for user in users)) for _ in range(40)][-1]
    assert quiet.at_risk == before.at_risk + 40 * BATCHES
    after = arm.batch((BOT, {"error": True}))
    assert (after.at_risk, after.first_errors) == (quiet.at_risk + 1, 1)


@either_fold
def test_activity_begins_again_with_a_load(new_fold: Callable[..., Fold]) -> None:
    """It is not stored: after a restart or a rebalance a bot counts a few times more."""
    arm = Arm(new_fold)
    before = arm.busy()
    assert arm.batch((BOT, {})).at_risk == before.at_risk
    arm.side.totals[False] = arm.side.load(False)
    assert arm.batch((BOT, {})).at_risk == before.at_risk + 1
