"""Staleness: evidence that is older or less complete than it appears.

What passing time does to partitions and topics is stated once, as an `Age`. The words of a gap are
made from it, and whoever asks whether passing time has changed something compares ages.

Belongs here: detection. Does not belong here: the other gaps (`gaps.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum, auto

from controller.core.evidence import Evidence, PartitionProgress
from controller.core.judging.judgement import Gap
from controller.core.plan import Plan
from controller.core.visits import Visit
from controller.text import plural
from schemas.terms import HealthGap

#: A partition whose owner has not written for longer than this may have nobody counting it. Owners
#: write every 100 ms under traffic, and as a heartbeat without.
REPORT_WITHIN = timedelta(seconds=10)
_NAMES_SHOWN = 3  # partitions named in a gap's detail


class Age(Enum):
    """A condition of a partition, or of a topic's freshest counted event."""

    SILENT = auto()  # its owner has not written for too long
    AHEAD = auto()  # its time is too far in the future
    LAGS = auto()  # there are records to read, and what was counted last is too old
    OLD = auto()  # older than the plan's `fresh_within`, or nothing was counted yet


def uncounted(
    plan: Plan, visit: Visit, evidence: Evidence, fall: str | None, at: datetime
) -> str | None:
    """Return why less is counted of a visit than has happened in it, None where all is counted.

    So it is while everything is counted again: the store has lost what it had, or some of it. What
    is not counted may have happened all the same. `fall` is as in `stale`.
    """
    reasons = (_missing_partitions(evidence), _counting_lag(plan, visit, evidence, at), fall)
    return "; ".join(reason for reason in reasons if reason is not None) or None


def _missing_partitions(evidence: Evidence) -> str | None:
    reporting, expected = len(evidence.partitions), evidence.expected_partitions
    return f"{reporting} of {expected} event partitions report" if reporting < expected else None


def _counting_lag(plan: Plan, visit: Visit, evidence: Evidence, at: datetime) -> str | None:
    """Return how far counting is behind, None where what is not counted did not happen.

    A partition is behind if it has records to read, and the newest that it has counted is from
    before the stage or too old.
    """
    behind = [
        lag
        for partition in evidence.partitions
        if (lag := partition.lag)  # mostly none: ten thousand rollouts ask for each partition
        and (
            Age.LAGS in _ages_of_partition(partition, plan.fresh_within, at)
            or has_older_than(partition, visit.counts_from)
        )
    ]
    if not behind:
        return None
    return f"counting lags, {plural(sum(behind), 'record is', 'records are')} not counted yet"


def has_older_than(partition: PartitionProgress, moment: datetime) -> bool:
    """Return whether there are records to read, and the newest counted is from before `moment`."""
    freshest = partition.freshest
    return partition.lag > 0 and freshest is not None and freshest < moment


def merged(found: Iterable[Gap]) -> Iterator[Gap]:
    """Return the gaps with those of age in one, with every reason once."""
    stale: list[str] = []
    for gap in found:
        if gap.kind is not HealthGap.STALE:
            yield gap
        elif gap.detail not in stale:
            stale.append(gap.detail)
    if stale:
        yield Gap(HealthGap.STALE, "; ".join(stale))


def stale(
    plan: Plan,
    evidence: Evidence,
    last_event_at: datetime,
    fall: str | None,
    at: datetime,
) -> Iterator[Gap]:
    """Return the gap of evidence that is older or less complete than it appears.

    `last_event_at` is when the present visit's events were last seen to grow, `fall` the sentence
    about totals that fell back. Evidence that is exactly `fresh_within` old is still fresh.
    """
    details = []
    if (missing := _missing_partitions(evidence)) is not None:
        details.append(missing)
    delays = [
        ", ".join(found)
        for partition in evidence.partitions
        if (found := list(_partition_delays(partition, plan.fresh_within, at)))
    ]
    details += _first(delays)
    for topic, freshest in _freshest_by_topic(evidence.partitions).items():
        details += _topic_age(topic, freshest, plan.fresh_within, at)
    if not evidence.partitions and not evidence.expected_partitions:
        details.append("no event partition is known")
    if at - last_event_at > plan.fresh_within:
        silence = (at - last_event_at).total_seconds()
        details.append(f"nothing was counted for this stage for {silence:.0f} s")
    if fall is not None:
        details.append(fall)
    unreadable = sorted({name for totals in evidence.visits.values() for name in totals.unreadable})
    if unreadable:
        details.append(f"stored totals cannot be read in {', '.join(_first(unreadable))}")
    if details:
        yield Gap(HealthGap.STALE, "; ".join(details))


def _first(named: Sequence[str]) -> list[str]:
    """Return the first of what is named, and how many more there are."""
    more = len(named) - _NAMES_SHOWN
    return [*named[:_NAMES_SHOWN], *([f"and {more} more"] if more > 0 else [])]


def _partition_delays(
    partition: PartitionProgress, fresh_within: timedelta, at: datetime
) -> Iterator[str]:
    """Yield what delays one partition."""
    name, silence = partition.topic_partition, (at - partition.reported_at).total_seconds()
    for age in _ages_of_partition(partition, fresh_within, at):
        if age is Age.SILENT:
            yield f"{name} was last reported {silence:.0f} s ago"
        elif age is Age.AHEAD:
            yield f"{name} reports from a clock {-silence:.0f} s ahead"
        else:
            yield f"{name} lags {plural(partition.lag, 'record')} behind"


def _ages_of_partition(
    partition: PartitionProgress, fresh_within: timedelta, at: datetime
) -> Iterator[Age]:
    """Yield the conditions that hold of one partition.

    Lag is judged by time: it is too long when there are records to read and the freshest counted
    event is too old.
    """
    silence = at - partition.reported_at
    if silence > REPORT_WITHIN:
        yield Age.SILENT
    elif -silence > REPORT_WITHIN:
        yield Age.AHEAD
    if partition.lag and (partition.freshest is None or at - partition.freshest > fresh_within):
        yield Age.LAGS


def _topic_age(
    topic: str, freshest: datetime | None, fresh_within: timedelta, at: datetime
) -> Iterator[str]:
    """Yield what is wrong with the age of a topic's freshest counted event."""
    if freshest is None:
        yield f"no event was counted from {topic} yet"
        return
    age = _age_of_topic(freshest, fresh_within, at)
    if age is Age.OLD:
        yield f"the freshest event of {topic} is {(at - freshest).total_seconds():.0f} s old"
    elif age is Age.AHEAD:
        # It says nothing about the age of the others.
        ahead = f"{(freshest - at).total_seconds():.0f} s ahead"
        yield f"the freshest event of {topic} is {ahead} of this clock"


def _age_of_topic(freshest: datetime | None, fresh_within: timedelta, at: datetime) -> Age | None:
    if freshest is None or at - freshest > fresh_within:
        return Age.OLD
    return Age.AHEAD if freshest - at > fresh_within else None


def _freshest_by_topic(partitions: tuple[PartitionProgress, ...]) -> Mapping[str, datetime | None]:
    """Return the greatest event time counted per topic.

    Outcomes can stop while evaluations go on.
    """
    freshest: dict[str, datetime | None] = {}
    for partition in partitions:
        topic = partition.topic_partition.rpartition("/")[0]
        times = [time for time in (freshest.get(topic), partition.freshest) if time is not None]
        freshest[topic] = max(times, default=None)
    return freshest


def ages(
    partitions: tuple[PartitionProgress, ...], fresh_within: timedelta, at: datetime
) -> frozenset[tuple[str, Age]]:
    """Return which conditions hold, each with the name of its partition or topic.

    While they are the same, passing time has changed nothing about the partitions that a gap would
    say but its seconds.
    """
    topics = (
        (topic, age)
        for topic, freshest in _freshest_by_topic(partitions).items()
        if (age := _age_of_topic(freshest, fresh_within, at)) is not None
    )
    named = (
        (partition.topic_partition, age)
        for partition in partitions
        for age in _ages_of_partition(partition, fresh_within, at)
    )
    return frozenset((*named, *topics))
