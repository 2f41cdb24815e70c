"""How long gaps last: continuous, capped where nobody judged, and steady at the edge."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from controller.core.analysis.sequential_tests import (
    GapTime,
    SequentialTests,
    decode_tests,
    encode_tests,
)
from controller.core.judging.gap_times import JUST_GONE_SECONDS, after_quiet, follow
from schemas.terms import HealthGap

GRACE = timedelta(minutes=5)
SECOND = timedelta(seconds=1)
STALE, SILENT = HealthGap.STALE, HealthGap.NO_OUTCOMES
Times = Mapping[HealthGap, GapTime]


def after(times: Times, pattern: str, step: timedelta = SECOND) -> Times:
    """Return the times after judgements that found `stale` (`x`) or did not (`.`)."""
    for one in pattern:
        times = follow(times, {STALE} if one == "x" else set(), step, GRACE)
    return times


def test_a_gap_lasts_from_the_judgement_that_found_it_first() -> None:
    """The first finding counts nothing, each later one the time since the one before."""
    assert after({}, "x") == {STALE: GapTime()}
    assert after({}, "x" * 301) == {STALE: GapTime(300)}


def test_a_gap_that_is_gone_for_a_moment_begins_again() -> None:
    """Silence of less than the grace time adds up to nothing, however often it comes."""
    assert after({}, ("x" * 299 + ".") * 20 + "x") == {STALE: GapTime()}


def test_a_gap_that_lasted_goes_on_over_a_moment_without_it() -> None:
    """One event in a silent hour is no end: nothing flaps at the edge."""
    lasted = after({}, "x" * 301)
    assert after(lasted, "." * 299) == {STALE: GapTime(300, gone=299)}
    assert after(lasted, "." * 299 + "x") == {STALE: GapTime(300)}
    assert after(lasted, "." * 300) == {}


def test_time_that_nobody_judged_counts_for_neither() -> None:
    """After an outage of ours nobody knows whether a gap lasted or was gone."""
    hours = timedelta(hours=3)
    assert after(after({}, "xx"), "x", hours) == {STALE: GapTime(1)}
    assert after(after({}, "x" * 301), "x", hours) == {STALE: GapTime(300)}
    assert after(after({}, "x" * 301), ".", hours) == {STALE: GapTime(300, JUST_GONE_SECONDS)}
    assert after(after({}, "xx"), "x", -hours) == {STALE: GapTime(1)}


def test_gaps_go_on_while_nothing_changes() -> None:
    """What is there lasts, and what is gone stays gone."""
    times = {STALE: GapTime(10), SILENT: GapTime(300, gone=2)}
    assert after_quiet(times, 250) == {STALE: GapTime(260), SILENT: GapTime(300, gone=252)}


def test_without_grace_nothing_is_kept() -> None:
    """With a grace time of 0 a gap is gone when it is not found."""
    none = timedelta(0)
    assert follow({STALE: GapTime(9)}, set(), SECOND, none) == {}
    assert follow({}, {STALE, SILENT}, SECOND, none) == {STALE: GapTime(), SILENT: GapTime()}


def test_times_are_stored() -> None:
    """A restart forgets no time, and what an earlier release stored has none."""
    times = {STALE: GapTime(12.5), SILENT: GapTime(300, gone=3)}
    assert decode_tests(encode_tests(SequentialTests(gap_times=times))).gap_times == times


def test_a_gap_that_is_just_gone_may_have_been_there_until_a_moment_ago() -> None:
    """Quiet rollouts are judged twice a minute: that half minute is no time without the gap."""
    grace = timedelta(seconds=20)
    lasting = {HealthGap.STALE: GapTime(lasted=300)}
    gone = follow(lasting, (), timedelta(seconds=30), grace)
    assert gone == {HealthGap.STALE: GapTime(lasted=300, gone=JUST_GONE_SECONDS)}
    assert follow(gone, (), timedelta(seconds=18), grace) != {}
    assert follow(gone, (), timedelta(seconds=19), grace) == {}
