from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from controller.core.timeline import locate
from tests.builders import HOUR, MINUTE, T0, make_visit

# --- event time to visit ---


def test_nothing_is_located_without_visits() -> None:
    """A rollout that has not started counts nothing."""
    assert locate((), T0) is None


@pytest.mark.parametrize(
    ("at", "visit"),
    [
        (T0 - timedelta(microseconds=1), None),  # before the start
        (T0, None),  # settling
        (T0 + MINUTE - timedelta(microseconds=1), None),
        (T0 + MINUTE, 0),
        (T0 + HOUR - timedelta(microseconds=1), 0),
        (T0 + HOUR, None),  # the next stage settles
        (T0 + HOUR + MINUTE, 1),
        (T0 + 400 * HOUR, 1),  # still there
    ],
)
def test_an_event_counts_for_the_visit_of_its_own_time(at: datetime, visit: int | None) -> None:
    """A visit owns [counts_from, left_at); settling belongs to nobody."""
    visits = (
        make_visit(left_at=T0 + HOUR),
        make_visit(stage=1, percent=50.0, entered_at=T0 + HOUR, counts_from=T0 + HOUR + MINUTE),
    )
    assert locate(visits, at) == visit


def test_after_the_end_nothing_counts() -> None:
    """The last visit of an ended rollout is closed."""
    visits = (make_visit(left_at=T0 + HOUR),)
    assert locate(visits, T0 + HOUR) is None


def test_a_visit_that_ended_while_it_settled_counts_nothing() -> None:
    """A stage left before its settle was over has no interval at all."""
    visits = (
        make_visit(left_at=T0 + MINUTE / 2),
        make_visit(entered_at=T0 + MINUTE / 2, counts_from=T0 + 2 * MINUTE),
    )
    assert [
        locate(visits, T0 + seconds * timedelta(seconds=1)) for seconds in (20, 40, 90, 120)
    ] == [None, None, None, 1]
