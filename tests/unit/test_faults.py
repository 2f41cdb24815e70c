"""Faults are contained: named, bounded, logged once at each end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import structlog

from controller.health import Faults, Scope

START = datetime(2026, 1, 1, tzinfo=UTC)


class _Time:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


def test_a_fault_keeps_its_beginning_and_shows_its_newest_reason() -> None:
    """A fault that is reported again began when it began."""
    time = _Time()
    faults = Faults(time)
    faults.report(
        Scope.FLAG, "checkout", "its document cannot be read", "rolloutd repair flag checkout"
    )
    time.now += timedelta(seconds=5)
    faults.report(
        Scope.FLAG, "checkout", "it still cannot be read", "rolloutd repair flag checkout"
    )
    (fault,) = faults.current
    assert (fault.since, fault.why, fault.times) == (START, "it still cannot be read", 2)


def test_a_fault_is_logged_once_when_it_begins_and_once_when_it_ends() -> None:
    """A fault that lasts does not flood the log."""
    faults = Faults(_Time())
    with structlog.testing.capture_logs() as lines:
        for _ in range(10):
            faults.report(Scope.PLANE, "unleash", "401")
        faults.clear(Scope.PLANE, "unleash")
        faults.clear(Scope.PLANE, "unleash")
    assert [line["event"] for line in lines] == ["fault_contained", "fault_cleared"]


def test_the_list_is_bounded_by_scope_and_counts_what_found_no_room() -> None:
    """A flood of faults of one kind neither fills the memory nor hides the other kinds."""
    faults = Faults(_Time())
    for number in range(1_000):
        faults.report(Scope.COMMAND, f"id-{number}", "no such flag")
    faults.report(Scope.CLOCK, "redis", "31 s ahead")
    assert len(faults.current) == Faults.MOST_PER_SCOPE + 1
    assert faults.more[Scope.COMMAND] == 900
    assert faults.reported[Scope.COMMAND] == 1_000
    assert faults.of(Scope.CLOCK, "redis") is not None


def test_a_flood_of_old_faults_hides_no_later_one_and_more_falls_again() -> None:
    """The oldest of the scope give way; what is over is counted as hidden no longer."""
    time = _Time()
    faults = Faults(time)
    for number in range(2 * Faults.MOST_KEPT):
        time.now += timedelta(seconds=1)
        faults.report(Scope.COMMAND, f"id-{number}", "no such flag")
    newest = f"id-{2 * Faults.MOST_KEPT - 1}"
    assert faults.current[-1].name == newest
    assert len(faults.current) == Faults.MOST_PER_SCOPE
    assert faults.more[Scope.COMMAND] == Faults.MOST_KEPT - Faults.MOST_PER_SCOPE
    for number in range(2 * Faults.MOST_KEPT - 1):
        faults.clear(Scope.COMMAND, f"id-{number}")
    assert [fault.name for fault in faults.current] == [newest]
    assert faults.more[Scope.COMMAND] == 0


def test_thousands_of_faults_that_take_turns_do_not_flood_the_log() -> None:
    """Redis takes the saves of no flag, and each says so every few seconds."""
    faults = Faults(_Time())
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            for number in range(3 * Faults.MOST_KEPT):
                faults.report(Scope.FLAG, f"flag-{number}", "it is not saved", reporter="saving")
    assert len(lines) == Faults.MOST_KEPT


def test_each_reporter_clears_only_its_own_fault() -> None:
    """Two parts find something wrong with one flag.

    Both are shown, and one that is over hides none.
    """
    faults = Faults(_Time())
    faults.report(Scope.FLAG, "checkout", "its contexts fill the partition", reporter="budget")
    faults.report(Scope.FLAG, "checkout", "its worker stopped", reporter="worker")
    assert [fault.reporter for fault in faults.current] == ["budget", "worker"]
    faults.clear(Scope.FLAG, "checkout")
    faults.clear(Scope.FLAG, "checkout", reporter="worker")
    assert [fault.reporter for fault in faults.current] == ["budget"]
    assert faults.of(Scope.FLAG, "checkout", reporter="worker") is None
    fault = faults.of(Scope.FLAG, "checkout")
    assert fault is not None
    assert fault.reporter == "budget"
