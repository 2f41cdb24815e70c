"""The weekly digest of flags to tidy up: once, by one replica, also over a restart."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from controller.adapters.memory import ManualClock, MemoryFlagUses
from controller.core.effects import RaiseAlert
from controller.core.rollout import Completed, Rollout
from controller.ports import FlagUses
from controller.reporting.flag_digest import due_since
from controller.running.digest_watch import DigestWatch
from controller.settings.flags import FlagsSettings
from schemas.terms import AlertKind, Severity, Weekday
from tests.builders import T0, make_plan, make_rollout, make_stages

#: A Monday, 09:00 UTC.
MONDAY = T0
WEEK = timedelta(days=7)


def stale(flag_key: str) -> Rollout:
    """Return a flag that nobody needs for months."""
    plan = make_plan(flag_key=flag_key, stages=make_stages(100))
    at = MONDAY - 90 * timedelta(days=1)
    return make_rollout(
        flag_key=flag_key, plan=plan, phase=Completed(at), percent=100.0, updated_at=at
    )


class Replica:
    """A replica that runs some of all flags."""

    def __init__(
        self, store: MemoryFlagUses, clock: ManualClock, *runs: str, day: Weekday | None = "mon"
    ) -> None:
        self.flags = {key: stale(key) for key in ("b", "a", *"cdefg")}
        self.flags["live"] = make_rollout(flag_key="live")
        self.uses = FlagUses(version=1)
        self.given: list[tuple[str, RaiseAlert]] = []
        self.watch = DigestWatch(
            FlagsSettings(weekly_digest=day),
            lambda: self.flags,
            lambda: self.uses,
            lambda flag_key: flag_key in runs,
            store,
            self,
            clock,
        )

    def add(self, rollout: Rollout, alert: RaiseAlert) -> None:
        """Take an alert."""
        self.given.append((rollout.flag_key, alert))


@pytest.fixture
def clock() -> ManualClock:
    """A clock on Monday morning."""
    return ManualClock(MONDAY)


@pytest.fixture
def store() -> MemoryFlagUses:
    """What all replicas share."""
    return MemoryFlagUses()


async def test_the_digest_counts_findings_and_names_the_first_flags(
    store: MemoryFlagUses, clock: ManualClock
) -> None:
    """One alert, about the first of them, with what to do."""
    replica = Replica(store, clock, "a")
    await replica.watch.beat()
    ((flag_key, alert),) = replica.given
    assert flag_key == "a"
    assert (alert.kind, alert.severity) == (AlertKind.FLAG_DIGEST, Severity.INFO)
    assert alert.summary.startswith("7 flags to tidy up (7 stale). a: 100 % for 90 days")
    assert alert.summary.endswith("; and 2 more")
    assert "rolloutctl flags --stale" in alert.action
    assert alert.dedup_key == "flag_digest/2026-01-05"


async def test_it_is_given_once_a_week_by_the_replica_of_the_first_flag(
    store: MemoryFlagUses, clock: ManualClock
) -> None:
    """Not again after a restart, nor by a replica that takes the flag over."""
    first, other = Replica(store, clock, "a"), Replica(store, clock, "b", "c")
    for one in (other, first, first, other):
        await one.watch.beat()
    assert (len(first.given), len(other.given)) == (1, 0)
    restarted = Replica(store, clock, "a", "b")
    await restarted.watch.beat()
    clock.advance(WEEK - timedelta(hours=2))
    await restarted.watch.beat()
    assert restarted.given == []
    clock.advance(timedelta(hours=1))
    await restarted.watch.beat()
    await restarted.watch.beat()
    assert [alert.dedup_key for _, alert in restarted.given] == ["flag_digest/2026-01-12"]


async def test_there_is_no_digest_without_findings_or_when_it_is_off(
    store: MemoryFlagUses, clock: ManualClock
) -> None:
    """Nor before it is known how flags are used. A finding on Tuesday is told on Tuesday."""
    off = Replica(store, clock, "a", day=None)
    await off.watch.beat()
    tidy = Replica(store, clock, "live", "a")
    flags, tidy.flags = tidy.flags, {"live": tidy.flags["live"]}
    await tidy.watch.beat()
    unknown = Replica(store, clock, "a")
    unknown.uses = FlagUses()
    await unknown.watch.beat()
    assert (off.given, tidy.given, unknown.given) == ([], [], [])
    clock.advance(timedelta(days=1))
    tidy.flags = flags
    await tidy.watch.beat()
    assert len(tidy.given) == 1


@pytest.mark.parametrize(
    ("now", "day", "due"),
    [
        (MONDAY, "mon", MONDAY.replace(hour=8)),
        (MONDAY.replace(hour=8), "mon", MONDAY.replace(hour=8)),
        (MONDAY.replace(hour=7), "mon", MONDAY.replace(hour=8) - WEEK),
        (MONDAY, "sun", MONDAY.replace(hour=8) - timedelta(days=1)),
        (MONDAY, "tue", MONDAY.replace(hour=8) - timedelta(days=6)),
    ],
)
def test_a_digest_is_due_from_its_day_on(now: datetime, day: Weekday, due: datetime) -> None:
    """Until the next one is."""
    assert due_since(now, day) == due
