"""How far apart saves are at most, and who relies on it."""

from __future__ import annotations

from controller.counting.pacing import Pacing
from controller.running.blindness import MOVED_WITHIN_SECONDS, REPORTED_WITHIN
from controller.running.reporter import SAVED_WITHIN_SECONDS

#: What a save itself may take with thousands of flags, and the second in which it is noticed.
SLACK_SECONDS = 2.0


def test_with_thousands_of_flags_and_a_backlog_saves_come_every_four_seconds() -> None:
    """Each limit is reached, and nobody takes that for a partition that is not counted."""
    pacing = Pacing()
    added = pacing.backlog_pause(pacing.longest_flush_seconds)
    assert added == pacing.longest_backlog_seconds
    longest = pacing.longest_flush_seconds + added
    assert longest == 4.0
    within = min(SAVED_WITHIN_SECONDS, REPORTED_WITHIN.total_seconds(), MOVED_WITHIN_SECONDS)
    assert longest + SLACK_SECONDS <= within


def test_a_backlog_is_saved_half_a_second_apart_at_least() -> None:
    """However few flags there are: a save takes as long as some hundred events."""
    pacing = Pacing()
    assert 0.1 + pacing.backlog_pause(0.1) == 0.5
