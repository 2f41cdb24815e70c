"""Which rollouts a replica watches, also while it cannot know who else does."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import pytest

from controller.adapters.memory import ManualClock
from controller.core.rollout import Rollout
from controller.deciding.deciding import Deciding
from controller.deciding.registry import RolloutRegistry
from controller.health import Faults, Health
from controller.running import rollout_views
from controller.running.claims import MOST_UNSEEN, Claims
from controller.running.reporter import OPTIONAL, REQUIRED
from controller.running.rollout_views import RolloutViews
from tests.builders import T0, make_rollout
from tests.unit.running.test_claims import MemoryClaims

FLAG = make_rollout().flag_key


@dataclass
class Stand:
    """A replica that has just started, with a rollout on the state topic."""

    clock: ManualClock = field(default_factory=lambda: ManualClock(T0))
    heard_at: float | None = None
    has_started: bool = False
    topic: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(home_of=lambda flag_key: 3, partitions=4)
    )

    def __post_init__(self) -> None:
        clock, faults = self.clock, Faults(self.clock.now)
        self.store = MemoryClaims()
        self.claims = Claims(clock, self.store, faults, replica="one", working=list)
        deciding = SimpleNamespace(
            totals=SimpleNamespace(views=list, partitions=SimpleNamespace(counts={})),
            follower=SimpleNamespace(owned=frozenset()),
            topic=self.topic,
        )
        registry = RolloutRegistry()
        registry.update(make_rollout())
        self.registry = registry
        self.views = RolloutViews(
            cast(Deciding, deciding),
            registry,
            self.claims,
            Health(REQUIRED, OPTIONAL, now=clock.now),
            clock,
            faults,
            event_topics=(),
            store_heard_at=lambda: self.heard_at,
        )

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(timedelta(seconds=seconds))


def test_a_replica_that_starts_without_redis_watches_what_is_live_at_once() -> None:
    """No replica can read totals then: after five seconds, not after half a minute."""
    stand = Stand()
    stand.passes(4)
    assert stand.views.views() == []
    stand.passes(1)
    (view,) = stand.views.views()
    assert (view.flag_key, view.trouble) == (
        FLAG,
        "Redis has not answered since this replica started, for 5 s",
    )
    stand.heard_at = stand.clock.monotonic()
    stand.passes(1)
    assert stand.views.views() == []
    assert stand.views.why_store_silent() is None
    stand.passes(9)
    assert stand.views.why_store_silent() == "Redis has not answered for 10 s"


async def test_a_flag_is_watched_elsewhere_only_where_its_guardrails_see() -> None:
    """The claim of the replica that runs it says so, for each flag."""
    stand = Stand()
    unseen: dict[int, list[str]] = {}
    other = Claims(
        stand.clock,
        stand.store,
        Faults(stand.clock.now),
        replica="two",
        working=lambda: [3],
        unseen=lambda: unseen,
    )
    too_many_to_name = [f"flag-{number}" for number in range(21)]
    for flag_keys, is_watched in (
        ([FLAG], False),
        (["another"], True),
        (too_many_to_name, False),
        ([], True),
    ):
        stand.passes(1)
        unseen[3] = flag_keys
        await other.beat()
        await stand.claims.beat()
        (holder,) = stand.views.holders()
        assert (holder.is_claimed, holder.is_watched) == (True, is_watched)


async def test_holders_are_made_anew_where_something_has_changed() -> None:
    """Another rollout, or what a claim says; the time of a claim is nothing new."""
    stand = Stand()
    unseen: dict[int, list[str]] = {}
    of_two = {"replica": "two", "working": lambda: [3], "unseen": lambda: unseen}
    other = Claims(stand.clock, stand.store, Faults(stand.clock.now), **of_two)  # type: ignore[arg-type]
    made = []
    for change in (None, "other", None, "unseen", None):
        if change == "other":
            stand.registry.update(make_rollout(flag_key="other"))
        elif change == "unseen":
            unseen[3] = ["other"]
        stand.passes(1)
        await other.beat()
        await stand.claims.beat()
        made.append(stand.views.holders())
    assert [later is earlier for earlier, later in pairwise(made)] == [False, True, False, True]
    assert [one.flag_key for one in made[-1] if one.is_watched] == [FLAG]
    stand.passes(10)  # nobody claims any more
    assert not any(one.is_watched for one in stand.views.holders())


async def test_the_claim_of_an_earlier_release_says_nothing_of_sight() -> None:
    """It names its replica alone, and counts as before."""
    stand = Stand()
    stand.store.values = {3: f"{round(T0.timestamp() * 1000)} two".encode()}
    await stand.claims.beat()
    (holder,) = stand.views.holders()
    assert (holder.is_claimed, holder.is_watched) == (True, True)


def test_what_is_not_seen_here_is_unseen_in_its_partition() -> None:
    """Also what nobody has judged yet."""
    stand = Stand()
    assert stand.views.unseen(set()) == {3: [FLAG]}
    assert stand.views.unseen({FLAG}) == {}


def test_nothing_is_unseen_before_the_partitions_are_known() -> None:
    """A claim is of a partition, and Kafka has not said yet how many there are."""
    stand = Stand()

    def home_of(flag_key: str) -> int:
        raise KeyError("commands")

    stand.topic.home_of = home_of
    assert stand.views.unseen(set()) == {}


def test_no_more_is_asked_of_the_unseen_than_a_claim_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a backlog thousands of flags are unseen, and a claim then means all of a partition."""
    stand = Stand()
    stand.passes(1)
    for number in range(1_000):
        stand.registry.update(make_rollout(flag_key=f"flag-{number}"))
    asked = []

    def needs_watching(rollout: Rollout) -> bool:
        asked.append(rollout.flag_key)
        return True

    monkeypatch.setattr(rollout_views, "needs_watching", needs_watching)
    stand.topic.home_of = lambda flag_key: int(flag_key == "flag-7")
    unseen = stand.views.unseen({FLAG})
    assert {number: len(flag_keys) for number, flag_keys in unseen.items()} == {
        0: MOST_UNSEEN + 1,
        1: 1,
    }
    assert len(asked) == MOST_UNSEEN + 2
    homes = []

    def home_of(flag_key: str) -> int:
        homes.append(flag_key)
        return int(flag_key.removeprefix("flag-")) % 4

    stand.topic.home_of = home_of
    asked.clear()
    unseen = stand.views.unseen({FLAG})
    assert sorted(unseen) == [0, 1, 2, 3]
    assert {len(flag_keys) for flag_keys in unseen.values()} == {MOST_UNSEEN + 1}
    assert len(asked) == 4 * (MOST_UNSEEN + 1)
    assert len(homes) < 500  # it ends once there are enough of each
