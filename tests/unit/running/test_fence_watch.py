"""For how long each partition's fence has stood, whoever read it last."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from controller.core.evidence import PartitionProgress
from controller.running.fence_watch import FenceWatch
from tests.builders import T0

NAME = "request.outcomes/0"


@dataclass(frozen=True)
class Read:
    """The one partition, as it was read for a rollout."""

    partitions: tuple[PartitionProgress, ...]
    expected_partitions: int = 1


@dataclass(frozen=True)
class View:
    """A rollout with what was read for it, and when."""

    progress: Read
    read_at: float


def view(second: float, fence: int) -> View:
    """Return a rollout for which the partition was read at a second, as it was written then."""
    written = T0 + timedelta(seconds=second)
    return View(Read((PartitionProgress(NAME, fence, 100, written, written),)), second)


def standing(watch: FenceWatch, second: float, *views: View) -> list[str]:
    """Return what is wrong with the partition at a second."""
    partitions = watch.follow(views, second, T0 + timedelta(seconds=second))
    return [reason.why for reason in partitions.reasons(views[-1].progress.partitions)]


def test_a_fence_stands_from_when_it_was_read_first() -> None:
    """It is told once that is longer than seven seconds, and over as soon as it moves."""
    watch = FenceWatch()
    assert standing(watch, 0, view(0, 50)) == []
    assert standing(watch, 7, view(7, 50)) == []
    (why,) = standing(watch, 8, view(8, 50))
    assert why == f"{NAME} has stood still for at least 8 s with 50 records waiting"
    assert standing(watch, 9, view(9, 51)) == []


def test_a_fence_at_the_end_of_the_log_does_not_stand() -> None:
    """Nothing waits there, however long it lasts."""
    watch = FenceWatch()
    for second in range(30):
        assert standing(watch, second, view(second, 100)) == []


def test_the_newest_report_of_a_partition_counts() -> None:
    """A rollout that waits for its turn has an older one, which holds nothing up."""
    watch, old = FenceWatch(), view(0, 50)
    for second in range(1, 30):
        assert standing(watch, second, view(second, 50 + second), old) == []
