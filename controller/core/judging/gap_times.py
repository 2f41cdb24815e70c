"""How long each kind of gap lasts: carried from one judgement to the next.

A gap of a moment is ordinary: an app restarts, a partition changes hands, nobody comes for a
minute. What matters is a gap that stays.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import timedelta

from controller.core.analysis.sequential_tests import GapTime
from schemas.terms import HealthGap

#: The daemon judges about once a second, and seldom where nothing changes (`quiet.py`). After a
#: longer break of ours nobody knows whether a gap lasted through it, so that time counts neither as
#: lasting nor as over.
LONGEST_BREAK = timedelta(seconds=90)
#: For so long a gap has been gone at most when it is not found for the first time.
JUST_GONE_SECONDS = 1.0


def follow(
    times: Mapping[HealthGap, GapTime],
    found: Collection[HealthGap],
    since_previous: timedelta,
    grace: timedelta,
) -> Mapping[HealthGap, GapTime]:
    """Return how long each kind of gap has lasted, after a judgement that found some.

    `since_previous` is the time since the judgement before it. A gap that is found again within
    `grace` goes on if it had lasted for `grace`; a shorter one begins again. It is forgotten once
    it has been gone for `grace`.
    """
    passed = max(since_previous.total_seconds(), 0.0)
    step = passed if since_previous <= LONGEST_BREAK else 0.0
    limit = grace.total_seconds()
    after = {}
    for kind in HealthGap:
        before = times.get(kind)
        if kind in found:
            if before is None or (before.gone and before.lasted < limit):
                after[kind] = GapTime()
            else:
                after[kind] = GapTime(before.lasted + (0.0 if before.gone else step))
        elif before is not None:
            # Just gone, it may have been there until a moment ago.
            gone = before.gone + (step if before.gone else min(passed, JUST_GONE_SECONDS))
            if gone < limit:
                after[kind] = replace(before, gone=gone)
    return after


def after_quiet(times: Mapping[HealthGap, GapTime], seconds: float) -> Mapping[HealthGap, GapTime]:
    """Return how long each kind of gap has lasted, or been gone, after so long without a change."""
    return {
        kind: replace(gap, gone=gap.gone + seconds)
        if gap.gone
        else replace(gap, lasted=gap.lasted + seconds)
        for kind, gap in times.items()
    }


def is_settled_gap(gap: GapTime, grace: timedelta) -> bool:
    """Return whether a gap is there and has lasted for `grace`, so that more time adds nothing."""
    return not gap.gone and gap.lasted >= grace.total_seconds()
