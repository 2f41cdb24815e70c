"""Why the guardrails of a rollout cannot see: totals, partitions and fences, judged by their age.

Pure: time is an argument. The constants say when each condition holds. Does not belong here: what
follows from it (`visibility.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from controller.core.evidence import PartitionProgress
from controller.text import plural

#: The fences are read every second, and the totals where one has moved.
READ_WITHIN_SECONDS: Final = 5.0
#: A partition's owner writes once a second at least, and with thousands of flags every two seconds,
#: or every four while there is a backlog. Shorter than what makes evidence stale
#: (`core/judging/staleness.py`): people hear of it first.
REPORTED_WITHIN: Final = timedelta(seconds=7)
#: A fence moves with every save. So long means that nothing is counted.
MOVED_WITHIN_SECONDS: Final = 7.0
#: A partition is far behind its log when records have waited for so long and the newest that is
#: counted is so old.
BEHIND_SECONDS: Final = 60.0
#: How many reasons a text names.
_NAMED: Final = 3

_NOTHING: Final[Mapping[str, float]] = {}


@dataclass(frozen=True, slots=True)
class Blindness:
    """Why guardrails cannot see."""

    why: str
    seconds: float = 0.0  # for how long they have not, by the reason alone; 0: it does not say


class ReadPartitions(Protocol):
    """Event partitions as they were read: `deciding/given_evidence.py` has them."""

    @property
    def partitions(self) -> tuple[PartitionProgress, ...]: ...

    @property
    def expected_partitions(self) -> int:
        """How many there are."""


def blindness_of(
    progress: ReadPartitions | None,
    seconds_since_read: float,
    expected_partitions: int,
    partitions: Partitions,
    turn_seconds: float = 0.0,
) -> Blindness | None:
    """Return why guardrails cannot see, None while they can.

    `progress`: None before totals were read here. `turn_seconds`: for how long a rollout waits for
    its turn to be read, while all is well.
    """
    if seconds_since_read > READ_WITHIN_SECONDS + turn_seconds:
        least = "at least " if progress is None else ""
        why = f"its totals have not been read for {least}{seconds_since_read:.0f} s"
        return Blindness(why, seconds_since_read)
    if progress is None:
        return None  # its worker was started a moment ago
    reasons = []
    missing = max(expected_partitions, progress.expected_partitions) - len(progress.partitions)
    if missing > 0:
        total = missing + len(progress.partitions)
        are = "is" if missing == 1 else "are"
        why = f"{missing} of {plural(total, 'event partition')} {are} not counted"
        reasons.append(Blindness(why))
    reasons += partitions.reasons(progress.partitions)
    if not reasons:
        return None
    return Blindness(_some([one.why for one in reasons]), max(one.seconds for one in reasons))


class Partitions:
    """What is wrong with event partitions at one moment, looked at once for all rollouts."""

    def __init__(
        self,
        now: datetime,
        standing_seconds: Mapping[str, float],
        waiting_seconds: Mapping[str, float] = _NOTHING,
        newest: Iterable[PartitionProgress] = (),
    ) -> None:
        """`standing_seconds`: by partition, for how long its fence has stood while the log went on.

        `waiting_seconds`: for how long records have waited there without a break. `newest`: what
        was read last of each partition; a rollout that waits for its turn has older evidence.
        """
        self._newest = {one.topic_partition: one for one in newest}
        self._now = now
        self._standing = standing_seconds
        self._waiting = waiting_seconds
        # By identity, with what was identified: partitions that were read together are one tuple.
        self._found: dict[int, tuple[tuple[PartitionProgress, ...], Sequence[Blindness]]] = {}

    def reasons(self, partitions: tuple[PartitionProgress, ...]) -> Sequence[Blindness]:
        """Return what is wrong with each of some partitions."""
        known = self._found.get(id(partitions))
        if known is None:
            found = [
                reason for partition in partitions if (reason := self._of(partition)) is not None
            ]
            known = self._found[id(partitions)] = (partitions, found)
        return known[1]

    def _of(self, partition: PartitionProgress) -> Blindness | None:
        stands = self._standing.get(partition.topic_partition, 0.0)
        waits = self._waiting.get(partition.topic_partition, 0.0)
        newest = self._newest.get(partition.topic_partition, partition)
        return _of_partition(newest, self._now, stands, waits)


def _of_partition(
    partition: PartitionProgress, now: datetime, stands: float, waits: float
) -> Blindness | None:
    """Return what is wrong with one partition, None for nothing."""
    name, silence = partition.topic_partition, now - partition.reported_at
    if silence > REPORTED_WITHIN:
        seconds = silence.total_seconds()
        return Blindness(f"{name} was last reported {seconds:.0f} s ago", seconds)
    if stands > MOVED_WITHIN_SECONDS:
        why = (
            f"{name} has stood still for at least {stands:.0f} s with "
            f"{plural(partition.lag, 'record')} waiting"
        )
        return Blindness(why, stands)
    if waits > BEHIND_SECONDS and partition.freshest:
        age = (now - partition.freshest).total_seconds()
        if age > BEHIND_SECONDS:
            return Blindness(f"{name} is counted {age:.0f} s behind its log", waits)
    return None


def _some(reasons: Sequence[str]) -> str:
    more = len(reasons) - _NAMED
    return "; ".join(reasons[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
