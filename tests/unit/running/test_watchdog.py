"""The judgement on a consumer's progress, and the loops that act on it.

With a clock that is turned by hand.
"""

from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from controller.adapters.memory import ManualClock
from controller.errors import EventLogUnavailable
from controller.running.watchdog import (
    ConsumerWatchdog,
    Progress,
    ProgressJudge,
    Remedy,
    StallMeter,
)
from controller.settings import WatchdogSettings

ZERO, ONE = ("flag.evaluations", 0), ("flag.evaluations", 1)


def make_judge() -> ProgressJudge:
    """Return a judge that loses patience after 20 s and forgives 3 rebuilds."""
    return ProgressJudge(20.0, 3)


def test_standing_still_with_records_waiting_is_stuck_after_the_time_given() -> None:
    """Lag with an unmoved position is stuck at 20 s, not before."""
    judge = make_judge()
    assert judge.judge(0.0, {ZERO: (5, 9)}, is_reading=True) is Remedy.NONE
    assert judge.judge(19.9, {ZERO: (5, 12)}, is_reading=True) is Remedy.NONE
    assert judge.judge(20.0, {ZERO: (5, 12)}, is_reading=True) is Remedy.REBUILD
    assert judge.stuck == (ZERO,)


def test_the_end_of_the_log_is_no_standstill() -> None:
    """A partition that was idle for an hour has 20 s again from the first waiting record."""
    judge = make_judge()
    judge.judge(0.0, {ZERO: (9, 9)}, is_reading=True)
    judge.judge(3599.0, {ZERO: (9, 9)}, is_reading=True)
    assert judge.judge(3600.0, {ZERO: (9, 10)}, is_reading=True) is Remedy.NONE
    assert judge.judge(3618.0, {ZERO: (9, 10)}, is_reading=True) is Remedy.NONE
    assert judge.judge(3619.0, {ZERO: (9, 10)}, is_reading=True) is Remedy.REBUILD


def test_slow_progress_is_progress() -> None:
    """A position that moves by one record at a time is not stuck, however large the lag."""
    judge = make_judge()
    for second in range(0, 600, 15):
        assert judge.judge(float(second), {ZERO: (second, 10**9)}, is_reading=True) is Remedy.NONE


def test_one_stuck_partition_is_not_hidden_by_the_others() -> None:
    """While the others move, the one that stands still is found, and alone."""
    judge = make_judge()
    for second in range(20):
        judge.judge(float(second), {ZERO: (5, 9), ONE: (second, 99)}, is_reading=True)
    assert judge.judge(20.0, {ZERO: (5, 9), ONE: (20, 99)}, is_reading=True) is Remedy.REBUILD
    assert judge.stuck == (ZERO,)


def test_a_position_set_back_is_movement() -> None:
    """A seek to an earlier offset starts the time again."""
    judge = make_judge()
    judge.judge(0.0, {ZERO: (5, 9)}, is_reading=True)
    judge.judge(15.0, {ZERO: (2, 9)}, is_reading=True)
    assert judge.judge(30.0, {ZERO: (2, 9)}, is_reading=True) is Remedy.NONE


def test_partitions_that_are_gone_or_paused_are_forgotten() -> None:
    """A partition that was away and comes back has the whole time again."""
    judge = make_judge()
    judge.judge(0.0, {ZERO: (5, 9)}, is_reading=True)
    judge.judge(10.0, {}, is_reading=True)
    assert judge.judge(25.0, {ZERO: (5, 9)}, is_reading=True) is Remedy.NONE


def test_nobody_reading_is_not_the_consumers_fault() -> None:
    """While nobody asks for records nothing is stuck, and the time starts when somebody does."""
    judge = make_judge()
    judge.judge(0.0, {ZERO: (5, 9)}, is_reading=True)
    for second in range(1, 100):
        assert judge.judge(float(second), None, is_reading=False) is Remedy.NONE
    assert judge.judge(100.0, {ZERO: (5, 9)}, is_reading=True) is Remedy.NONE
    assert judge.judge(119.0, {ZERO: (5, 9)}, is_reading=True) is Remedy.NONE
    assert judge.judge(120.0, {ZERO: (5, 9)}, is_reading=True) is Remedy.REBUILD


def test_no_answer_is_judged_like_no_progress() -> None:
    """Brokers, or a rebalance, that give no answer for 20 s call for a new consumer."""
    judge = make_judge()
    assert judge.judge(0.0, None, is_reading=True) is Remedy.NONE
    assert judge.judge(19.0, None, is_reading=True) is Remedy.NONE
    assert judge.judge(20.0, None, is_reading=True) is Remedy.REBUILD


def test_after_the_rebuilds_given_only_an_exit_is_left() -> None:
    """Three rebuilds that do not help are followed by an exit."""
    judge = make_judge()
    now = 0.0
    fixes = []
    for _ in range(4):
        judge.judge(now, {ZERO: (5, 9)}, is_reading=True)
        now += 20.0
        fixes.append(judge.judge(now, {ZERO: (5, 9)}, is_reading=True))
        judge.rebuilt(now, succeeded=True)
    assert fixes == [Remedy.REBUILD] * 3 + [Remedy.EXIT]


def test_rebuilds_that_helped_are_forgotten() -> None:
    """After 40 s without a standstill the count begins again."""
    judge = make_judge()
    judge.rebuilt(0.0, succeeded=True)
    judge.rebuilt(1.0, succeeded=True)
    judge.judge(2.0, {ZERO: (5, 9)}, is_reading=True)
    judge.judge(20.0, {ZERO: (6, 9)}, is_reading=True)
    assert judge.rebuilds == 2
    judge.judge(41.0, {ZERO: (9, 9)}, is_reading=True)
    assert judge.rebuilds == 0


def test_an_outage_never_ends_the_process() -> None:
    """Rebuilds that fail because no broker answers are tried for ever."""
    judge = make_judge()
    now = 0.0
    for _ in range(100):
        judge.judge(now, None, is_reading=True)
        now += 20.0
        assert judge.judge(now, None, is_reading=True) is Remedy.REBUILD
        judge.rebuilt(now, succeeded=False)


class Consumer:
    """A consumer that shows what the test wants shown, and notes what was done to it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.progress: Progress | Exception = {ZERO: (5, 9)}
        self.since_fetch: float | None = 0.1
        self.is_outage = False
        self.rebuilds = 0
        self.rebuild_error: Exception | None = None
        self.given_up: list[str] = []
        self.watchdog = ConsumerWatchdog(
            "events",
            WatchdogSettings(stuck_after_seconds=20.0, max_rebuilds=1),
            self.clock,
            progress=self.show,
            seconds_since_fetch=lambda: self.since_fetch,
            rebuild=self.rebuild,
            give_up=self.given_up.append,
            are_brokers_away=lambda: self.is_outage,
            sleep=self.sleep,
        )

    async def show(self) -> Progress:
        """Return the progress, or raise."""
        if isinstance(self.progress, Exception):
            raise self.progress
        return self.progress

    async def rebuild(self) -> None:
        """Count, or raise."""
        if self.rebuild_error is not None:
            raise self.rebuild_error
        self.rebuilds += 1

    async def sleep(self, seconds: float) -> None:
        """Turn the clock."""
        self.clock.advance(timedelta(seconds=seconds))


async def test_a_stuck_consumer_is_rebuilt_and_then_given_up() -> None:
    """A consumer that stands still is rebuilt once, as set.

    Still standing still, it is given up, with the reason.
    """
    consumer = Consumer()
    await consumer.watchdog.run()
    assert consumer.rebuilds == 1
    assert consumer.given_up == [
        "no progress after 1 rebuilds of the consumer: ['flag.evaluations/0']"
    ]
    assert consumer.watchdog.stuck == (ZERO,)
    assert consumer.clock.monotonic() == pytest.approx(Consumer().clock.monotonic() + 40.0, abs=2.0)


@pytest.mark.parametrize("error", [EventLogUnavailable, AttributeError, AssertionError])
async def test_rebuilding_against_no_broker_goes_on(error: type[Exception]) -> None:
    """A rebuild that fails, in whatever way, is no reason to give up and ends no watch."""
    consumer = Consumer()
    consumer.progress = error("away")
    consumer.rebuild_error = error("still away")
    for _ in range(200):
        assert await consumer.watchdog.look()
        consumer.clock.advance(timedelta(seconds=1))
    assert not consumer.given_up


async def test_a_consumer_keeps_its_place_in_the_group_over_an_outage() -> None:
    """A new one would lose it, and meet the same silence; one that stays silent after is stuck."""
    consumer = Consumer()
    consumer.is_outage = True
    consumer.progress = EventLogUnavailable("away")

    async def passes(seconds: int) -> None:
        for _ in range(seconds):
            assert await consumer.watchdog.look()
            consumer.clock.advance(timedelta(seconds=1))

    await passes(600)
    assert consumer.rebuilds == 0
    consumer.is_outage = False
    await passes(19)
    assert consumer.rebuilds == 0
    await passes(2)
    assert consumer.rebuilds == 1


async def test_a_consumer_that_stands_still_is_stuck_whatever_others_hear() -> None:
    """Its brokers answer, so another client's silence is no outage."""
    consumer = Consumer()
    consumer.is_outage = True
    for _ in range(21):
        assert await consumer.watchdog.look()
        consumer.clock.advance(timedelta(seconds=1))
    assert consumer.rebuilds == 1


@pytest.mark.parametrize("since", [None, 10.0, 3600.0])
async def test_a_reader_that_waits_for_something_else_is_left_alone(since: float | None) -> None:
    """When nobody has asked for records lately, or ever, the consumer is not looked at."""
    consumer = Consumer()
    consumer.since_fetch = since
    for _ in range(100):
        assert await consumer.watchdog.look()
        consumer.clock.advance(timedelta(seconds=1))
    assert consumer.rebuilds == 0


async def test_the_stall_meter_reports_by_how_much_it_was_woken_late() -> None:
    """An oversleep of 120 ms is reported as such, a punctual one as nothing."""
    clock = ManualClock()
    delays: list[float] = []
    late = 0.120

    async def sleep(seconds: float) -> None:
        clock.advance(timedelta(seconds=seconds + late))

    meter = StallMeter(clock, delays.append, warning_seconds=0.05, sleep=sleep)
    assert await meter.look() == pytest.approx(0.120)
    late = 0.0
    await meter.look()
    assert delays == [pytest.approx(0.120), pytest.approx(0.0)]


@pytest.mark.parametrize(("collecting", "warnings"), [(0.0, 1), (0.06, 1), (0.11, 0)])
async def test_a_pass_of_the_garbage_collector_is_measured_and_no_reason_to_warn(
    collecting: float, warnings: int
) -> None:
    """It comes seldom, and what the warning advises would not help. The rest of a delay counts."""
    clock = ManualClock()
    delays: list[float] = []
    collected = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal collected
        clock.advance(timedelta(seconds=seconds + 0.120))
        collected += collecting

    meter = StallMeter(
        clock,
        delays.append,
        warning_seconds=0.05,
        collecting_seconds=lambda: collected,
        sleep=sleep,
    )
    with capture_logs() as lines:
        await meter.look()
    assert delays == [pytest.approx(0.120)]
    assert [line["event"] for line in lines] == ["loop_stalled"] * warnings
