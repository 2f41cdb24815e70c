"""Who runs which flags is known by claims, so that a flag that nobody runs is seen by everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta

import pytest

from controller.adapters.memory import ManualClock, MemoryPublisher
from controller.core.rollout import Rollout
from controller.deciding.given_evidence import Progress
from controller.deciding.totals_reader import WatchView
from controller.errors import StoreUnavailable
from controller.health import Faults, Scope
from controller.running.claims import Claims, Knowledge
from controller.running.holders import Holder
from controller.running.visibility import View, Visibility, needs_watching
from controller.telemetry import Metrics
from schemas.terms import Severity
from tests.builders import T0, make_rollout
from tests.unit.running.test_visibility import Alerts

T0_MS = round(T0.timestamp() * 1000)


class MemoryClaims:
    """One Redis hash, which may be away or take no writes."""

    def __init__(self) -> None:
        self.values: dict[int, bytes] = {}
        self.is_away = False
        self.is_full = False

    def _check(self, fault: bool) -> None:
        if fault:
            raise StoreUnavailable("gone")

    async def claim(self, values: Mapping[int, bytes]) -> None:
        """Write one value for each partition."""
        self._check(self.is_away or self.is_full)
        self.values |= values

    async def claims(self) -> Mapping[int, bytes]:
        """Return all."""
        self._check(self.is_away)
        return dict(self.values)

    async def drop_claims(self, partitions: Sequence[int]) -> None:
        """Forget some."""
        self._check(self.is_away)
        for partition in partitions:
            self.values.pop(partition, None)


class Replica:
    """What one replica owns, claims, sees and says."""

    def __init__(self, name: str, clock: ManualClock, store: MemoryClaims) -> None:
        self.clock = clock
        self.owned: set[int] = set()
        self.rollout = make_rollout()
        self.is_seeing = True
        self.faults = Faults(clock.now)
        self.claims = Claims(
            clock,
            store,
            self.faults,
            replica=name,
            working=lambda: sorted(self.owned),
            unseen=self.unseen,
        )
        metrics = Metrics(version="test")
        alerts = Alerts(MemoryPublisher(), clock, metrics)
        self.raised = alerts.raised
        self.visibility = Visibility(clock, self, alerts, metrics, self.faults)

    expected_partitions = 0
    store_trouble = None
    turn_seconds = 0.0

    def unseen(self) -> Mapping[int, Sequence[str]]:
        """Return the flag, unless its guardrails see here."""
        flag_key = self.rollout.flag_key
        return {} if flag_key in self.visibility.seen else {3: [flag_key]}

    def why_store_silent(self) -> str | None:
        """Return none."""

    def why_all_blind(self) -> str | None:
        """Return none."""

    def newest(self, flag_key: str) -> Rollout | None:
        """Return the rollout."""
        return self.rollout

    def views(self) -> Sequence[View]:
        """Return the flag, if its partition 3 is ours: read a moment ago."""
        if 3 not in self.owned:
            return []
        progress = Progress((), 0 if self.is_seeing else 4, self.clock.now())
        key = self.rollout.flag_key
        now = self.clock.monotonic()
        return [WatchView(key, self.rollout, progress, now, handled_at=now)]

    def holders(self) -> Sequence[Holder]:
        """Return what is known of who runs the flag."""
        if not needs_watching(self.rollout):
            return []
        is_claimed, why = self.claims.judge(3, is_owned=3 in self.owned)
        flag_key = self.rollout.flag_key
        unseen = self.claims.unseen(3)
        is_watched = is_claimed and unseen is not None and flag_key not in unseen
        return [Holder(flag_key, self.rollout, is_claimed, why, is_watched)]

    @property
    def said(self) -> list[Severity]:
        """How severe each alert was."""
        return [alert.severity for alert in self.raised]


class Fleet:
    """Two replicas on one store, a second at a time."""

    def __init__(self) -> None:
        self.clock = ManualClock(T0)
        self.store = MemoryClaims()
        self.one = Replica("one", self.clock, self.store)
        self.two = Replica("two", self.clock, self.store)

    def passes(self, seconds: int) -> None:
        """Claim and look once a second."""

        async def beat() -> None:
            for replica in (self.one, self.two):
                await replica.claims.beat()

        for _ in range(seconds):
            self.clock.advance(timedelta(seconds=1))
            asyncio.run(beat())
            for replica in (self.one, self.two):
                replica.visibility.check()


def test_a_partition_that_nobody_claims_is_said_by_both_under_one_key() -> None:
    """Within fifteen seconds, open while it lasts, over with the claim of whoever takes it."""
    fleet = Fleet()
    fleet.one.owned = {3}
    fleet.passes(60)
    assert fleet.one.said == fleet.two.said == []
    fleet.one.owned = set()
    fleet.passes(13)
    assert fleet.one.said == fleet.two.said == [Severity.CRITICAL]
    summary = fleet.two.raised[0].summary
    assert "nobody has its partition 3 of rollout.commands" in summary
    assert len({alert.dedup_key for alert in (*fleet.one.raised, *fleet.two.raised)}) == 1
    fleet.passes(120)
    assert fleet.one.said == fleet.two.said == [Severity.CRITICAL]
    fleet.two.owned = {3}
    fleet.passes(3)
    assert fleet.one.said == fleet.two.said == [Severity.CRITICAL, Severity.INFO]
    assert "another replica runs it now" in fleet.one.raised[1].summary
    assert "guardrails see again" in fleet.two.raised[1].summary


def test_a_partition_that_changes_hands_is_no_alarm() -> None:
    """Five seconds between two owners are how a rebalance is."""
    fleet = Fleet()
    for _ in range(10):
        fleet.one.owned, fleet.two.owned = {3}, set()
        fleet.passes(20)
        fleet.one.owned = set()
        fleet.passes(5)
        fleet.two.owned = {3}
        fleet.passes(20)
    assert fleet.one.said == fleet.two.said == []


def test_a_claim_of_our_own_says_nothing_once_the_partition_is_lost() -> None:
    """It is seconds old, and an episode does not end by it."""
    fleet = Fleet()
    fleet.one.owned = {3}
    fleet.passes(30)
    fleet.one.is_seeing = False
    fleet.passes(10)
    assert fleet.one.said == [Severity.CRITICAL]
    fleet.one.owned = set()
    fleet.passes(60)
    assert fleet.one.said == fleet.two.said == [Severity.CRITICAL]


def test_without_redis_who_ran_it_last_speaks_for_it_until_another_claims_it() -> None:
    """Claims are unknown then: the other replica is silent, an open episode stays open."""
    fleet = Fleet()
    fleet.one.owned = {3}
    fleet.passes(30)
    fleet.store.is_away = True
    fleet.passes(30)
    assert fleet.one.said == fleet.two.said == []
    fleet.one.owned = set()
    fleet.passes(10)
    assert fleet.one.said == [Severity.CRITICAL]
    assert fleet.two.said == []
    fault = fleet.two.faults.of(Scope.DEPENDENCY, "claims")
    assert fault is not None
    fleet.store.is_away = False
    fleet.two.owned = {3}
    fleet.passes(10)
    assert fleet.one.said == [Severity.CRITICAL, Severity.INFO]
    assert fleet.two.said == []
    assert fleet.one.faults.current == fleet.two.faults.current == ()
    fleet.store.is_away = True
    fleet.passes(60)
    assert len(fleet.one.said) == 2


def test_redis_back_after_long_gives_everybody_time_to_claim() -> None:
    """Old claims in it say nothing yet: the owner has not been able to write."""
    fleet = Fleet()
    fleet.one.owned = {3}
    fleet.passes(30)
    fleet.store.is_away = True
    fleet.passes(300)
    fleet.store.is_away, fleet.store.is_full = False, True
    fleet.passes(7)
    fleet.store.is_full = False
    fleet.passes(30)
    assert fleet.two.said == []


def test_an_ended_rollout_is_over_although_nobody_runs_it() -> None:
    """Its document says so."""
    fleet = Fleet()
    fleet.one.owned = {3}
    fleet.passes(30)
    fleet.one.owned = set()
    fleet.passes(20)
    assert fleet.two.said == [Severity.CRITICAL]
    fleet.one.rollout = fleet.two.rollout = make_rollout(percent=0.0)
    fleet.passes(2)
    assert fleet.two.said == [Severity.CRITICAL, Severity.INFO]
    assert "it has ended" in fleet.two.raised[1].summary


def test_claims_of_partitions_that_are_gone_are_deleted() -> None:
    """An hour later, by whoever works; what is no claim is left alone."""
    fleet = Fleet()
    fleet.store.values = {7: f"{T0_MS} gone".encode(), 8: b"?"}
    fleet.one.owned = {3}
    fleet.passes(3_500)
    assert 7 in fleet.store.values
    fleet.passes(200)
    assert fleet.store.values.keys() == {3, 8}


@pytest.mark.parametrize("skew_ms", [-3_600_000, -20_000, 0, 20_000, 3_600_000])
def test_a_clock_that_is_wrong_hides_nobody_and_keeps_nobody_alive(skew_ms: int) -> None:
    """Fresh is what changes; for what never changed the clock is asked once."""
    known, value = Knowledge({}, None, 0.0), b""
    for second in range(100):
        value = f"{T0_MS + second * 1000 + skew_ms} other".encode()
        known = known.read({0: value}, T0_MS + second * 1000, float(second))
    assert known.holder(0, 99.0) == "other"
    for second in range(100, 110):
        known = known.read({0: value}, T0_MS + second * 1000, float(second))
    assert known.holder(0, 107.0) == "other"
    assert known.holder(0, 107.1) is None
    assert known.is_certain(109.0)


def test_a_claim_that_is_old_at_the_first_reading_is_nobodys() -> None:
    """All replicas restarted: what the last one wrote a minute ago says nothing."""
    known = Knowledge({}, None, 0.0).read({0: f"{T0_MS} dead".encode()}, T0_MS + 60_000, 0.0)
    assert known.holder(0, 0.0) is None
    assert not known.is_certain(8.0)
    for second in range(1, 10):
        known = known.read({}, T0_MS, float(second))
    assert known.is_certain(9.0)
    assert not known.is_known(14.1)
