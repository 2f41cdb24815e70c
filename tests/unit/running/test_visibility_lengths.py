"""An alert comes in time, its all-clear is true, and so is the length that it names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from controller.running.holders import Holder
from controller.running.visibility import Unseen, View
from schemas.terms import Severity
from tests.builders import make_rollout
from tests.unit.running.test_visibility import Bench

SILENT = "Redis has not answered since this replica started, for 5 s"


@dataclass
class Length:
    """How long an all-clear says that a rollout was unwatched."""

    seconds: int
    is_longer: bool

    @classmethod
    def of(cls, bench: Bench) -> Length:
        """Return the length in the newest alert, which is an all-clear."""
        assert bench.raised[-1].severity is Severity.INFO
        found = re.search(r"after (at least )?(\d+) s", bench.raised[-1].summary)
        assert found is not None
        return cls(int(found[2]), found[1] is not None)


class Starting(Bench):
    """A replica that has just started, and cannot read what it knows to be running."""

    def views(self) -> Sequence[View]:
        """Return the rollout as no worker here has it."""
        if self.store_silent is None:
            return super().views()
        rollout = make_rollout()
        return [Unseen(rollout.flag_key, rollout, trouble=self.store_silent)]


def test_a_length_counts_from_the_last_sight_and_not_from_its_notice() -> None:
    """Seven seconds pass until people are told; they were unwatched for these, too."""
    bench = Bench()
    bench.passes(30)
    bench.is_readable = False
    bench.passes(52)
    bench.is_readable = True
    bench.passes(1)
    assert Length.of(bench) == Length(53, is_longer=False)


def test_who_never_saw_it_watched_says_at_least() -> None:
    """A replica that was restarted in the middle knows no beginning."""
    bench = Starting()
    bench.store_silent = SILENT
    bench.passes(20)
    bench.store_silent = None
    bench.passes(1)
    assert Length.of(bench) == Length(20, is_longer=True)


def test_a_time_that_nobody_observed_may_belong_to_it() -> None:
    """Another replica ran it, and nothing was known of that for a minute."""
    bench = Bench()
    bench.passes(30)
    rollout, bench.rollout = bench.rollout, None
    assert rollout is not None
    bench.passes(60)
    bench.newest = rollout
    bench.holders = [Holder("new-checkout", rollout, False, "no replica runs this flag: nobody")]
    bench.passes(20)
    bench.holders = [Holder("new-checkout", rollout, True, is_watched=True)]
    bench.passes(1)
    assert Length.of(bench).is_longer


def test_what_another_replica_saw_until_now_has_a_known_beginning() -> None:
    """It said so a second ago."""
    bench = Bench()
    rollout, bench.rollout = bench.rollout, None
    assert rollout is not None
    bench.newest = rollout
    watched = Holder("new-checkout", rollout, True, is_watched=True)
    bench.holders = [watched]
    bench.passes(30)
    bench.holders = [Holder("new-checkout", rollout, False, "no replica runs this flag: nobody")]
    bench.passes(20)
    bench.holders = [watched]
    bench.passes(1)
    assert Length.of(bench) == Length(20, is_longer=False)


def test_a_store_that_says_nothing_is_no_takeover_to_wait_for() -> None:
    """A replica that starts without Redis tells it at once, and once."""
    bench = Starting()
    bench.store_silent = SILENT
    assert bench.seconds_to_alert() <= 3
    assert SILENT in bench.raised[0].summary
    bench.passes(60)
    assert len(bench.raised) == 1


@pytest.mark.parametrize("handles", [True, False])
def test_an_all_clear_waits_for_a_worker_that_has_handled_totals(*, handles: bool) -> None:
    """Totals that were read and that no worker judged yet are no sight."""
    bench = Starting()
    bench.store_silent = SILENT
    bench.passes(3)
    bench.store_silent, bench.is_handling = None, handles
    bench.passes(1)
    assert [alert.severity for alert in bench.raised[1:]] == [Severity.INFO] * handles


@pytest.mark.parametrize(("rollouts", "pause"), [(1, 1.0), (7_500, 2.5), (30_000, 3.0)])
def test_thousands_of_rollouts_are_checked_less_often(rollouts: int, pause: float) -> None:
    """However long one check takes: others may have held it up."""
    bench = Bench()
    rollout = make_rollout()
    bench.holders = [Holder(f"flag-{n}", rollout, True) for n in range(rollouts)]
    bench.passes(1)
    assert bench.visibility._pause_seconds == pytest.approx(pause, rel=0.01)
