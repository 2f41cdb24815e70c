"""A log line that repeats is written once, summed up every minute, and its end is reported."""

from __future__ import annotations

from typing import Any

import pytest

from controller.repeated_lines import MOST_REASONS, MOST_TROUBLES, RepeatedLines


def line(event: str = "save_failed", **keys: Any) -> dict[str, Any]:
    """Return a warning with these keys."""
    return {"event": event, "level": "warning", **keys}


def test_a_trouble_of_ten_minutes_is_a_dozen_lines() -> None:
    """One line at its start, a summary a minute with the count, one line when it is over."""
    repeats = RepeatedLines()
    written = [repeats.admits(line(error="no answer"), now) for now in range(600)]
    assert written == [True] + [False] * 599
    repeats = RepeatedLines()
    summaries = []
    for now in range(700):
        if now < 600:
            repeats.admits(line(error="no answer"), now)
        summaries += repeats.due(now)
    minutes = [one for one in summaries if one["event"] == "save_failed"]
    assert [one["repeated"] for one in minutes] == [60] * 9 + [59]
    assert summaries[-1] == {
        "event": "repeats_ended",
        "level": "info",
        "repeats_of": "save_failed",
        "lines": 600,
        "lasted_seconds": 599,
    }


def test_a_line_that_comes_once_is_followed_by_nothing() -> None:
    """Without repeats there is no summary and no end."""
    repeats = RepeatedLines()
    assert repeats.admits(line(), 0.0)
    assert [one for now in range(200) for one in repeats.due(now)] == []
    assert repeats.admits(line(), 200.0)


def test_lines_about_different_things_are_no_repeats() -> None:
    """Another flag, partition, offset or plane is another trouble, and so is another level."""
    repeats = RepeatedLines()
    for keys in ({"flag_key": "a"}, {"flag_key": "b"}, {"offset": 7}, {"offset": 8}, {}):
        assert repeats.admits(line(**keys), 0.0), keys
        assert not repeats.admits(line(**keys), 1.0), keys
    assert repeats.admits({**line(), "level": "error"}, 1.0)


def test_another_reason_is_written_at_once() -> None:
    """The same trouble for another reason is news, up to a limit; other figures are not."""
    repeats = RepeatedLines()
    assert repeats.admits(line(error="no answer for 1.5 s"), 0.0)
    assert not repeats.admits(line(error="no answer for 2.5 s"), 1.0)
    names = [f"{letter} is away" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    written = [repeats.admits(line(error=name), 2.0) for name in names]
    assert written == [True] * (MOST_REASONS - 1) + [False] * (len(names) - MOST_REASONS + 1)


def test_a_much_worse_line_is_written_and_the_largest_is_kept() -> None:
    """A stall of more than twice the largest one is written; the summary has the largest."""
    repeats = RepeatedLines()
    durations = [300, 310, 650, 640, 1_000, 700]
    written = [repeats.admits(line(duration_ms=each), 0.0) for each in durations]
    assert written == [True, False, True, False, False, False]
    [summary] = repeats.due(1.0, is_last=True)
    assert summary["largest_duration_ms"] == 1_000


@pytest.mark.parametrize("level", ["debug", "info"])
def test_what_happens_by_design_is_always_written(level: str) -> None:
    """A decision or an answer is never taken for a repeat."""
    repeats = RepeatedLines()
    made = {"event": "decision_made", "level": level, "flag_key": "f"}
    assert all(repeats.admits(made, 0.0) for _ in range(100))


@pytest.mark.parametrize("event", ["settings_reloaded", "settings_not_reloaded"])
def test_the_answer_to_a_signal_is_always_written(event: str) -> None:
    """Each SIGHUP has nothing but its line to say what came of it."""
    repeats = RepeatedLines()
    assert all(repeats.admits(line(event), now) for now in range(10))
    assert repeats.due(100.0) == []


def test_memory_is_bounded() -> None:
    """Beyond a thousand troubles, lines of one name are one trouble, and none is kept for ever."""
    repeats = RepeatedLines()
    count = MOST_TROUBLES + 500
    written = sum(repeats.admits(line(flag_key=str(number)), 0.0) for number in range(count))
    assert written == MOST_TROUBLES + 1
    assert len(repeats._troubles) == MOST_TROUBLES + 1
    repeats.due(61.0)
    assert len(repeats._troubles) == 0


def test_an_exception_is_not_kept() -> None:
    """Its frames, and all they hold, can be freed; its type is part of the reason."""
    repeats = RepeatedLines()
    assert repeats.admits(line(exc_info=ValueError("a")), 0.0)
    assert repeats.admits(line(exc_info=KeyError("a")), 0.0)
    assert not repeats.admits(line(exc_info=KeyError("b")), 0.0)
    [summary] = repeats.due(1.0, is_last=True)
    assert "exc_info" not in summary
