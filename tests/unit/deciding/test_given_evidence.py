"""Whether a worker would find the same again in totals that it got before."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from controller.core.evidence import Evidence, Loss, VisitTotals
from controller.core.rollout import Rollout
from controller.deciding.given_evidence import READ_EVERY_SECONDS, Facts, Given, Progress
from tests.builders import HOUR, T0, make_rollout
from tests.streams import make_arm, make_evidence, make_progress

NOW = T0 + HOUR
LATER = NOW + timedelta(seconds=2)
VISITS = {0: VisitTotals(make_arm(1000), make_arm(9000))}
ROLLOUT = make_rollout()


def is_enough(
    evidence: Evidence,
    *,
    rollout: Rollout = ROLLOUT,
    is_quiet: bool = True,
    seconds: float = 2.0,
    given: Evidence | None = None,
) -> bool:
    """Return whether what was given at `NOW` is enough, by these later totals."""
    worker: Any = SimpleNamespace(quiet_until=lambda _: LATER + HOUR if is_quiet else None)
    before = Given(ROLLOUT, *read(given or make_evidence(VISITS, NOW)), at=100.0)
    return before.is_enough(rollout, *read(evidence), worker, 100.0 + seconds, evidence.at)


def read(evidence: Evidence) -> tuple[Facts, Progress]:
    """Return evidence as it was read: what is of the rollout, and what of the partitions."""
    facts = Facts(evidence.visits, evidence.actuation_drift, evidence.readings, evidence.replies)
    progress = Progress(evidence.partitions, evidence.expected_partitions, evidence.at)
    assert facts.evidence(progress, evidence.at) == evidence
    return facts, progress


SAME = make_evidence(VISITS, LATER)


def test_the_same_totals_are_enough() -> None:
    """Whatever the time is, and however often the partitions were reported since."""
    assert is_enough(SAME)


@pytest.mark.parametrize(
    "other",
    [
        replace(SAME, visits={0: VisitTotals(make_arm(1001), make_arm(9000))}),
        replace(SAME, partitions=make_progress(LATER, losses=(Loss(T0, NOW),))),
        replace(SAME, partitions=make_progress(LATER, reported_at=NOW - HOUR)),
        replace(SAME, partitions=make_progress(LATER, freshest=NOW - HOUR)),
        replace(SAME, partitions=SAME.partitions[:1]),
        replace(SAME, expected_partitions=SAME.expected_partitions + 1),
        replace(SAME, actuation_drift="a plane serves 5 %"),
        replace(SAME, readings={"lag": object()}),  # type: ignore[dict-item]
        replace(SAME, replies={"approve": object()}),  # type: ignore[dict-item]
    ],
)
def test_anything_that_decides_something_is_given(other: Evidence) -> None:
    """Each by itself."""
    assert not is_enough(other)


def test_a_changed_rollout_and_totals_that_wait_are_given_again() -> None:
    """After a second: what is newer than that may be on its way."""
    assert not is_enough(SAME, rollout=replace(ROLLOUT, revision=ROLLOUT.revision + 1))
    assert not is_enough(SAME, is_quiet=False)
    assert is_enough(SAME, is_quiet=False, seconds=READ_EVERY_SECONDS / 2)


def test_records_that_begin_to_wait_matter_where_the_present_visit_is_not_counted_yet() -> None:
    """Its events may be among them; where the newest counted is of the visit, it is no lag yet."""
    old = ROLLOUT.visits[-1].counts_from - timedelta(seconds=1)
    plan = replace(ROLLOUT.plan, fresh_within=2 * HOUR)
    rollout = replace(ROLLOUT, plan=plan)
    given = make_evidence(VISITS, NOW, partitions=make_progress(NOW, freshest=old))
    waiting = make_progress(LATER, freshest=old, end_offset=900)
    worker: Any = SimpleNamespace(quiet_until=lambda _: LATER + HOUR)
    before = Given(rollout, *read(given), at=100.0)
    later = read(make_evidence(VISITS, LATER, partitions=waiting))
    assert not before.is_enough(rollout, *later, worker, 102.0, LATER)
    # The same where records waited before, and what is counted has reached the visit since.
    lagged = Given(rollout, *later, at=100.0)
    reached = read(make_evidence(VISITS, LATER, partitions=make_progress(LATER, end_offset=900)))
    assert not lagged.is_enough(rollout, *reached, worker, 102.0, LATER)
    assert lagged.is_enough(rollout, *later, worker, 102.0, LATER)
    assert is_enough(replace(SAME, partitions=make_progress(LATER, end_offset=900)))
