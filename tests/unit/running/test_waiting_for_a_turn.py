"""A rollout among thousands waits for its turn to be looked at: that alone is no blindness."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.running.test_visibility import Bench


@pytest.mark.parametrize(
    ("turn", "silent", "earliest", "latest"),
    [
        (30.0, None, 36, 39),  # five seconds after its turn was due, confirmed for two
        (600.0, None, 66, 69),  # no turn is longer than a minute
        (30.0, "Redis has not answered for 9 s", 6, 9),  # that is no turn to wait for
    ],
)
def test_a_rollout_that_waits_for_its_turn_among_thousands_is_watched(
    turn: float, silent: str | None, earliest: int, latest: int
) -> None:
    """It is looked at seldom, and nothing is broken: thousands of alerts would say nothing more."""
    bench = Bench()
    bench.passes(20)
    read_at = bench.clock.monotonic()
    watched: Any = bench.visibility._rollouts
    seen: Any = bench.views
    watched.views = lambda: [view._replace(read_at=read_at, handled_at=read_at) for view in seen()]
    bench.turn_seconds, bench.store_silent = turn, silent
    bench.passes(earliest - 1)
    assert bench.raised == []
    bench.passes(latest - earliest + 1)
    assert len(bench.raised) == 1


def test_a_reader_that_is_busy_makes_no_partition_look_silent() -> None:
    """What was read last was fresh then, with records waiting, and is judged as of that moment."""
    bench = Bench()
    for one in bench.partitions.values():
        one.end_offset = 200
    bench.turn_seconds = 30.0
    for _ in range(20):
        for one in bench.partitions.values():
            one.next_offset += 1
        bench.passes(1)
    bench.is_readable = False
    bench.passes(34)
    assert bench.raised == []
    bench.passes(4)
    (alert,) = bench.raised
    assert "its totals have not been read for" in alert.summary
