"""What blinds guardrails, from when on, and for how long it already has."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from controller.core.evidence import Evidence, PartitionProgress
from controller.running.blindness import Blindness, Partitions, blindness_of
from tests.builders import T0

NAME = "flag.evaluations/0"


def evidence_of(reported_seconds_ago: float, expected: int = 1) -> Evidence:
    """Return evidence of one partition with records waiting."""
    reported_at = T0 - timedelta(seconds=reported_seconds_ago)
    return Evidence(T0, {}, (PartitionProgress(NAME, 5, 9, T0, reported_at),), expected)


def test_a_look_a_moment_ago_with_nothing_wrong_is_sight() -> None:
    """Exactly at the bounds it still counts as seen."""
    now = T0
    progress = PartitionProgress("flag.evaluations/0", 5, 9, now, now - timedelta(seconds=7))
    evidence = Evidence(now, {}, (progress,), 1)
    assert blindness_of(evidence, 5.0, 1, Partitions(now, {"flag.evaluations/0": 7.0})) is None
    assert blindness_of(evidence, 5.1, 1, Partitions(now, {})) is not None
    assert blindness_of(evidence, 1.0, 1, Partitions(now, {"flag.evaluations/0": 7.1})) is not None
    assert blindness_of(None, 5.0, 1, Partitions(now, {})) is None


def test_a_reason_says_for_how_long_it_already_lasts() -> None:
    """By its own age; what is only seen to be missing has none."""
    assert blindness_of(evidence_of(0), 8.0, 1, Partitions(T0, {})) == Blindness(
        "its totals have not been read for 8 s", 8.0
    )
    assert blindness_of(evidence_of(9), 1.0, 1, Partitions(T0, {})) == Blindness(
        f"{NAME} was last reported 9 s ago", 9.0
    )
    stands = blindness_of(evidence_of(0), 1.0, 1, Partitions(T0, {NAME: 12.0}))
    assert stands == Blindness(
        f"{NAME} has stood still for at least 12 s with 4 records waiting", 12.0
    )
    missing = blindness_of(evidence_of(0, expected=3), 1.0, 3, Partitions(T0, {}))
    assert missing == Blindness("2 of 3 event partitions are not counted", 0.0)
    both = blindness_of(evidence_of(9, expected=3), 1.0, 3, Partitions(T0, {}))
    assert both is not None
    assert both.seconds == 9.0


def test_totals_that_were_never_read_here_may_be_unread_for_longer() -> None:
    """A process that has just started does not know since when nobody reads them."""
    found = blindness_of(None, 8.0, 1, Partitions(T0, {}))
    assert found == Blindness("its totals have not been read for at least 8 s", 8.0)


def test_older_evidence_is_judged_by_what_was_read_last() -> None:
    """A rollout that waits for its turn must not take its partitions for silent."""
    old, new = evidence_of(0), evidence_of(0)
    now = T0 + timedelta(seconds=20)
    newest = [replace(one, reported_at=now) for one in new.partitions]
    assert blindness_of(old, 20.0, 1, Partitions(now, {}, {}, newest), 30.0) is None
    assert blindness_of(old, 20.0, 1, Partitions(now, {}), 30.0) is not None
    assert blindness_of(old, 36.0, 1, Partitions(now, {}, {}, newest), 30.0) is not None
