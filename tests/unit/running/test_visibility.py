"""A live rollout that nobody sees is reported within ten seconds, whatever the reason."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import pytest
import structlog

from controller.adapters.memory import ManualClock, MemoryPublisher
from controller.core.effects import RaiseAlert
from controller.core.evidence import PartitionProgress
from controller.core.rollout import RolledBack, Rollout
from controller.deciding.given_evidence import Progress
from controller.deciding.totals_reader import WatchView
from controller.health import Faults, Scope
from controller.ports import Clock
from controller.running.holders import Holder
from controller.running.visibility import (
    Unseen,
    View,
    Visibility,
    needs_watching,
)
from controller.running.visibility_alerts import VisibilityAlerts
from controller.telemetry import Metrics
from schemas.terms import AlertKind, Severity
from tests.builders import T0, make_plan, make_rollout
from tests.virtual_time import in_virtual_time

PARTITIONS = (
    "flag.evaluations/0",
    "flag.evaluations/1",
    "request.outcomes/0",
    "request.outcomes/1",
)


@dataclass
class Counting:
    """What one partition's owner last wrote."""

    next_offset: int = 100
    end_offset: int = 100
    is_reporting: bool = True
    is_there: bool = True
    lag: timedelta = timedelta(0)


class Alerts(VisibilityAlerts):
    """Alerts on their way to Kafka, and all that were ever raised."""

    def __init__(self, publisher: MemoryPublisher, clock: Clock, metrics: Metrics) -> None:
        super().__init__(publisher, clock, metrics, "/rolloutd")
        self.raised: list[RaiseAlert] = []

    def add(self, rollout: Rollout, alert: RaiseAlert) -> None:
        """Note an alert, and publish it."""
        self.raised.append(alert)
        super().add(rollout, alert)


class Watched:
    """What a bench's replica knows about rollouts."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.views = bench.views

    @property
    def expected_partitions(self) -> int:
        """How many partitions the bench expects."""
        return self._bench.expected

    @property
    def turn_seconds(self) -> float:
        """How long a rollout waits for its turn."""
        return self._bench.turn_seconds

    @property
    def store_trouble(self) -> str | None:
        """Why the store cannot be used."""
        return self._bench.store_trouble

    def why_store_silent(self) -> str | None:
        """Return for how long the store has answered nothing."""
        return self._bench.store_silent

    def why_all_blind(self) -> str | None:
        """Return a reason for all."""
        return self._bench.blind

    def newest(self, flag_key: str) -> Rollout | None:
        """Return the newest document."""
        return self._bench.newest

    def holders(self) -> Sequence[Holder]:
        """Return who runs what."""
        return self._bench.holders


class Bench:
    """A rollout, the partitions that are counted for it, and a second at a time."""

    def __init__(self) -> None:
        self.clock = ManualClock(T0)
        self.rollout: Rollout | None = make_rollout()
        self.partitions = {name: Counting() for name in PARTITIONS}
        self.is_readable = True
        self.blind: str | None = None
        self.is_taken_up = True
        self.is_handling = True
        self.trouble = ""
        self.expected = len(PARTITIONS)
        self.metrics = Metrics(version="test")
        self.publisher = MemoryPublisher()
        self.alerts = Alerts(self.publisher, self.clock, self.metrics)
        self.raised = self.alerts.raised
        self.newest: Rollout | None = None
        self.holders: list[Holder] = []
        self.store_trouble: str | None = None
        self.store_silent: str | None = None
        self.turn_seconds = 0.0
        self.faults = Faults(self.clock.now)
        self._progress: dict[str, PartitionProgress] = {}
        self._view: WatchView | None = None
        self.visibility = Visibility(
            self.clock, Watched(self), self.alerts, self.metrics, self.faults
        )

    @property
    def unwatched(self) -> float:
        """The gauge of unwatched rollouts."""
        value = self.metrics.registry.get_sample_value("rolloutd_unwatched_rollouts")
        assert value is not None
        return value

    @property
    def sent(self) -> list[str]:
        """The severity of each alert that Kafka has."""
        return [json.loads(entry.value)["data"]["severity"] for entry in self.publisher.published]

    def views(self) -> Sequence[View]:
        """Return what the replica knows."""
        if self.rollout is None:
            return []
        if not self.is_taken_up:
            return [Unseen(self.rollout.flag_key, self.rollout)]
        if self.is_readable:
            now = self.clock.now()
            for name, one in self.partitions.items():
                if one.is_reporting:
                    freshest = now - one.lag
                    self._progress[name] = PartitionProgress(
                        name, one.next_offset, one.end_offset, freshest, now
                    )
            there = tuple(
                self._progress[name] for name, one in self.partitions.items() if one.is_there
            )
            progress, read_at = Progress(there, self.expected, now), self.clock.monotonic()
            handled_at = None if self._view is None else self._view.handled_at
            if self.is_handling:
                handled_at = read_at
            self._view = WatchView(
                self.rollout.flag_key, self.rollout, progress, read_at, handled_at, self.trouble
            )
        view = self._view or WatchView(self.rollout.flag_key, self.rollout, None, None)
        return [view._replace(rollout=self.rollout)]

    def passes(self, seconds: int) -> None:
        """Look once a second."""
        for _ in range(seconds):
            self.clock.advance(timedelta(seconds=1))
            self.visibility.check()

    def seconds_to_alert(self) -> int:
        """Return after how many seconds the next alert comes, at most twenty."""
        before = len(self.raised)
        for seconds in range(1, 21):
            self.passes(1)
            if len(self.raised) > before:
                return seconds
        raise AssertionError("no alert within 20 s")


def _no_totals(bench: Bench) -> None:
    bench.is_readable = False


def _missing(bench: Bench) -> None:
    bench.partitions["request.outcomes/1"].is_there = False


def _silent(bench: Bench) -> None:
    bench.partitions["request.outcomes/1"].is_reporting = False


def _stands_still(bench: Bench) -> None:
    bench.partitions["request.outcomes/1"].end_offset += 1_000


def _more_partitions(bench: Bench) -> None:
    bench.expected = 6


def _hangs(bench: Bench) -> None:
    bench.is_handling = False


def _stopped(bench: Bench) -> None:
    bench.trouble = "its worker stopped: KeyError()"


def _topics_unequal(bench: Bench) -> None:
    bench.blind = "flag.evaluations has 4 partitions and request.outcomes 2"


@pytest.mark.parametrize(
    ("breaks", "why"),
    [
        (_no_totals, "its totals have not been read for"),
        (_missing, "1 of 4 event partitions is not counted"),
        (_silent, "request.outcomes/1 was last reported"),
        (_stands_still, "request.outcomes/1 has stood still for"),
        (_more_partitions, "2 of 6 event partitions are not counted"),
        (_topics_unequal, "flag.evaluations has 4 partitions"),
        (_hangs, "its worker has handled no totals for"),
        (_stopped, "its worker stopped: KeyError()"),
    ],
)
def test_whatever_blinds_the_guardrails_is_alerted_within_ten_seconds(
    breaks: object, why: str
) -> None:
    """One critical alert with the reason and a way out, a log line and the gauge.

    Then it is over, and that is said.
    """
    bench = Bench()
    bench.passes(30)
    assert bench.raised == []
    assert callable(breaks)
    with structlog.testing.capture_logs() as lines:
        breaks(bench)
        assert bench.seconds_to_alert() <= 10
    (alert,) = bench.raised
    assert (alert.kind, alert.severity) == (AlertKind.UNWATCHED, Severity.CRITICAL)
    assert why in alert.summary
    assert "10 % is served" in alert.summary
    assert "rolloutctl rollback new-checkout" in alert.action
    assert [line["event"] for line in lines] == ["fault_contained", "rollout_unwatched"]
    assert bench.unwatched == 1
    fresh = Bench()
    bench.partitions, bench.is_readable, bench.blind, bench.expected = (
        fresh.partitions,
        True,
        None,
        4,
    )
    bench.is_handling, bench.trouble = True, ""
    assert bench.seconds_to_alert() <= 2
    over = bench.raised[-1]
    assert (over.kind, over.severity, over.dedup_key) == (
        alert.kind,
        Severity.INFO,
        alert.dedup_key,
    )
    assert bench.unwatched == 0
    bench.passes(600)
    assert len(bench.raised) == 2


def test_while_it_lasts_it_is_said_again_every_five_minutes() -> None:
    """The same dedup key, so that it is one page."""
    bench = Bench()
    bench.passes(5)
    bench.is_readable = False
    bench.passes(1_000)
    assert len(bench.raised) == 4
    assert len({alert.dedup_key for alert in bench.raised}) == 1
    assert bench.visibility.unwatched.keys() == {"new-checkout"}


def test_partitions_that_change_hands_are_no_alarm() -> None:
    """A second between two owners.

    And records that wait while the fence moves, are how it always is.
    """
    bench = Bench()
    for second in range(120):
        outcomes = bench.partitions["request.outcomes/0"]
        outcomes.next_offset += 10
        outcomes.end_offset += 50
        bench.partitions["request.outcomes/1"].is_there = second % 10 != 0
        bench.partitions["flag.evaluations/1"].is_reporting = second % 6 == 0
        bench.passes(1)
    assert bench.raised == []


def test_a_rollout_that_no_worker_has_taken_up_is_unwatched() -> None:
    """With Redis away from the start there is the state topic's document alone: that is judged."""
    bench = Bench()
    bench.is_taken_up = False
    assert bench.seconds_to_alert() <= 11  # ten seconds after it was first seen
    assert "have not been read" in bench.raised[0].summary


@pytest.mark.parametrize(
    "rollout",
    [
        make_rollout(phase=RolledBack(T0, "guardrail")),
        make_rollout(plan=make_plan(blind=True, guardrails=())),
        make_rollout(percent=0.0),
    ],
)
def test_what_needs_no_watching_is_never_unwatched(rollout: Rollout) -> None:
    """Ended, blind by its plan, or served to nobody."""
    assert not needs_watching(rollout)
    bench = Bench()
    bench.rollout = rollout
    bench.is_readable = False
    bench.passes(60)
    assert bench.raised == []
    assert bench.unwatched == 0


def test_a_rollout_that_leaves_while_unwatched_is_closed() -> None:
    """It ended: the alert does not stay open for ever."""
    bench = Bench()
    bench.passes(5)
    bench.is_readable = False
    bench.passes(20)
    bench.rollout, bench.newest = None, make_rollout(phase=RolledBack(T0, "guardrail"))
    bench.passes(1)
    assert [alert.severity for alert in bench.raised] == [Severity.CRITICAL, Severity.INFO]
    assert bench.raised[-1].action == "nothing"
    (*_, last) = bench.alerts._waiting.values()
    assert last.rollout is bench.newest  # a pager reads its percentage


def test_the_next_rollout_of_a_flag_is_judged_afresh() -> None:
    """It has its own grace, and its own alert."""
    bench = Bench()
    bench.passes(5)
    bench.is_readable = False
    bench.passes(20)
    bench.rollout = make_rollout(rollout_id="start-2")
    bench.passes(1)
    assert len(bench.raised) == 2
    assert bench.seconds_to_alert() <= 10
    assert bench.raised[-1].dedup_key != bench.raised[0].dedup_key


def test_an_episode_outlasts_the_loss_of_its_partition() -> None:
    """No longer ours and nobody's: open, repeated, a fault; closed by another replica's claim."""
    bench = Bench()
    bench.passes(20)
    rollout, bench.rollout = bench.rollout, None
    assert rollout is not None
    bench.newest = rollout
    bench.passes(60)
    assert bench.raised == []  # nothing is known of who runs it
    bench.holders = [Holder("new-checkout", rollout, False, "no replica runs this flag: nobody")]
    assert bench.seconds_to_alert() <= 3
    assert "no replica runs this flag" in bench.raised[0].summary
    fault = bench.faults.of(Scope.FLAG, "new-checkout", reporter="visibility")
    assert fault is not None
    assert "no replica runs this flag" in fault.why
    assert bench.faults.degrading
    bench.holders = []  # Redis away: unknown again
    bench.passes(60)
    assert len(bench.raised) == 1
    assert bench.visibility.unwatched
    bench.holders = [Holder("new-checkout", rollout, True)]  # it has the flag, and sees nothing yet
    bench.passes(60)
    assert len(bench.raised) == 1
    bench.holders = [Holder("new-checkout", rollout, True, is_watched=True)]
    bench.passes(2)
    assert [alert.severity for alert in bench.raised] == [Severity.CRITICAL, Severity.INFO]
    assert "another replica runs it now, and its guardrails see" in bench.raised[1].summary
    assert bench.faults.current == ()


def test_taken_up_again_it_is_over_when_it_is_seen_and_not_before() -> None:
    """On recovery there is no INFO and critical in turn: no evidence yet is no sight."""
    bench = Bench()
    bench.passes(20)
    rollout, bench.rollout = bench.rollout, None
    assert rollout is not None
    bench.newest = rollout
    bench.holders = [Holder("new-checkout", rollout, False, "no replica runs this flag: nobody")]
    bench.passes(5)
    assert len(bench.raised) == 1
    bench.rollout, bench.holders = rollout, [Holder("new-checkout", rollout, True)]
    bench._view, bench.is_readable = None, False
    bench.passes(4)
    assert len(bench.raised) == 1
    bench.is_readable = True
    bench.partitions["request.outcomes/0"].is_there = False
    bench.passes(6)
    assert len(bench.raised) == 1
    bench.partitions["request.outcomes/0"].is_there = True
    bench.passes(30)
    assert [alert.severity for alert in bench.raised] == [Severity.CRITICAL, Severity.INFO]
    assert "guardrails see again" in bench.raised[1].summary


def test_who_has_just_taken_a_flag_over_waits_ten_seconds() -> None:
    """Partitions that are still being taken over are no alarm; ten seconds later they are."""
    bench = Bench()
    bench.partitions["request.outcomes/0"].is_there = False
    bench.passes(9)
    bench.partitions["request.outcomes/0"].is_there = True
    bench.passes(30)
    assert bench.raised == []
    fresh = Bench()
    fresh.partitions["request.outcomes/0"].is_there = False
    assert fresh.seconds_to_alert() <= 11


def test_the_remedy_is_one_that_can_be_carried_out() -> None:
    """A rollback by Kafka waits for Redis, and for a replica that reads commands."""
    bench = Bench()
    bench.passes(20)
    bench.is_readable, bench.store_trouble = False, "Redis gave no answer"
    bench.seconds_to_alert()
    (alert,) = bench.raised
    assert "or free its memory; until then lower the flag over HTTP" in alert.action
    assert "rolloutctl rollback" not in alert.action
    other = Bench()
    rollout, other.rollout = other.rollout, None
    assert rollout is not None
    other.newest = rollout
    other.holders = [Holder("new-checkout", rollout, False, "no replica runs this flag: nobody")]
    other.seconds_to_alert()
    assert "lower the flag over HTTP" in other.raised[0].action
    assert "rolloutctl rollback" not in other.raised[0].action


@in_virtual_time
async def test_alerts_wait_for_kafka_and_the_judging_goes_on() -> None:
    """While Kafka takes nothing alerts are kept, in order, each once, and sent once it does."""
    bench = Bench()
    bench.is_readable = False
    bench.publisher.outage.is_down = True
    running = asyncio.create_task(bench.visibility.run())
    for _ in range(400):
        await asyncio.sleep(1)
        bench.clock.advance(timedelta(seconds=1))
    assert bench.sent == []
    bench.is_readable = True
    await asyncio.sleep(2)
    bench.publisher.outage.is_down = False
    await asyncio.sleep(3)
    assert bench.sent == ["critical", "info"]
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def test_a_partition_that_crawls_far_behind_its_log_is_unwatched() -> None:
    """It moves at every look, and what it counts is an hour old: no breach of now is seen."""
    bench = Bench()
    bench.passes(10)
    behind = bench.partitions["request.outcomes/1"]
    behind.lag = timedelta(hours=1)
    behind.end_offset += 1_000_000
    for _ in range(55):
        behind.next_offset += 10
        bench.passes(1)
    assert bench.raised == []
    for _ in range(15):
        behind.next_offset += 10
        bench.passes(1)
    (alert,) = bench.raised
    assert "request.outcomes/1 is counted 3600 s behind its log" in alert.summary
    behind.lag = timedelta(seconds=30)
    bench.passes(1)
    assert bench.raised[-1].severity is Severity.INFO


def test_old_events_of_a_log_that_is_counted_to_its_end_are_no_lag() -> None:
    """Nothing happens for an hour: what was counted last is old, and nothing waits."""
    bench = Bench()
    bench.partitions["request.outcomes/1"].lag = timedelta(hours=1)
    bench.passes(300)
    assert bench.raised == []
