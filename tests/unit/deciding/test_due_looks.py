"""Which flags are looked at: those of which something may be new."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from controller.core.evidence import Loss
from controller.deciding.due_looks import DueLooks
from controller.deciding.given_evidence import Progress
from tests.builders import HOUR, T0, make_external, make_plan, make_rollout
from tests.streams import make_progress

NOW = T0 + HOUR
SECOND = timedelta(seconds=1)
PLAN = make_plan(fresh_within=60 * SECOND)
ONE, OTHER = make_rollout(flag_key="one", plan=PLAN), make_rollout(flag_key="other", plan=PLAN)


def progress(at: datetime = NOW, expected: int = 2, **fields: Any) -> Progress:
    """Return two partitions as read then."""
    return Progress(make_progress(at, **fields), expected, at)


def resting(*, seconds: float = 300) -> DueLooks:
    """Return two flags that rest for so long."""
    looks, read = DueLooks(), progress()
    for rollout in (ONE, OTHER):
        looks.wake(rollout.flag_key)
    assert looks.due(read, NOW) == {"one", "other"}
    for rollout in (ONE, OTHER):
        looks.rest(rollout, NOW + seconds * SECOND, read)
    assert looks.due(progress(NOW + SECOND), NOW + SECOND) == set()
    return looks


def test_a_flag_wakes_when_something_is_noted_and_at_its_moment() -> None:
    """And stays awake until it may rest."""
    looks = resting()
    looks.wake("one")
    for second in (2, 3):
        at = NOW + second * SECOND
        assert looks.due(progress(at), at) == {"one"}
    read = progress(NOW + 4 * SECOND)
    looks.due(read, NOW + 4 * SECOND)
    looks.rest(ONE, NOW + 20 * SECOND, read)
    for second, due in ((19, set()), (20, {"one"}), (299, {"one"}), (300, {"one", "other"})):
        at = NOW + second * SECOND
        assert looks.due(progress(at), at) == due
    looks.forget("one")
    at = NOW + 301 * SECOND
    assert looks.due(progress(at), at) == {"other"}


def test_a_flag_that_was_looked_at_meanwhile_rests_on() -> None:
    """Its earlier moment is none any more; there is one entry of it, however often it rests."""
    looks = resting(seconds=20)
    for second in range(2, 15):
        read = progress(NOW + second * SECOND)
        looks.wake("one")
        looks.due(read, NOW + second * SECOND)
        looks.rest(ONE, NOW + (second + 300) * SECOND, read)
    assert len(looks._alarms) == 2
    for second, due in ((20, {"other"}), (313, {"other"}), (314, {"one", "other"})):
        at = NOW + second * SECOND
        assert looks.due(progress(at), at) == due


@pytest.mark.parametrize(
    "now",
    [
        progress(NOW + 2 * SECOND, 3),
        progress(NOW + 2 * SECOND, losses=(Loss(T0, NOW),)),
        progress(NOW + 2 * SECOND, reported_at=NOW - HOUR),
        progress(NOW + 2 * SECOND, freshest=NOW - HOUR),
        progress(NOW + 2 * SECOND, freshest=T0 - HOUR, end_offset=10_000_000),
    ],
)
def test_all_wake_when_the_partitions_say_something_else(now: Progress) -> None:
    """A partition is silent, old, lost or behind: it may concern every flag."""
    assert resting().due(now, NOW + 2 * SECOND) == {"one", "other"}


def test_records_that_wait_a_moment_wake_nobody() -> None:
    """While events come, there are always some that are not counted yet."""
    now = progress(NOW + 2 * SECOND, end_offset=10_000_000)
    assert now.lagging
    assert resting().due(now, NOW + 2 * SECOND) == set()


def test_what_may_be_news_at_any_time_never_rests() -> None:
    """External metrics, a visit that is yet to count, and what was compared with other progress."""
    looks, read = resting(), progress(NOW + 2 * SECOND)
    asked = replace(ONE, plan=replace(PLAN, external=(make_external(),)))
    settling = replace(ONE, visits=(replace(ONE.visits[-1], counts_from=NOW + HOUR),))
    for rollout, of in ((asked, read), (settling, read), (ONE, progress())):
        looks.wake("one")
        looks.due(read, NOW + 2 * SECOND)
        looks.rest(rollout, NOW + HOUR, of)
        assert looks.due(read, NOW + 2 * SECOND) == {"one"}
