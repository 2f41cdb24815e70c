"""The counted evidence: totals per arm, their sums, and the latency histogram.

Belongs here: values that a gate reads, added up over partitions. Does not belong here: counting,
which `controller/counting` does per partition, and what the numbers mean, which `core/metrics` and
`core/judging` say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import ceil, log

from schemas.counters import COUNTERS, Counters, merged_values
from schemas.terms import Arm, GateAnswer, HealthGap, MeasurementGap

#: Ratio of two neighbouring bucket edges. With the estimate of `bucket_value` the relative error is
#: at most (gamma - 1) / (gamma + 1) = 0.99 %.
GAMMA = 1.02
_LOG_GAMMA = log(GAMMA)
#: Buckets below and above these are clamped: 1 microsecond and about 28 hours, so that no value can
#: grow the histogram without bound.
LOWEST_BUCKET = ceil(log(0.001) / _LOG_GAMMA)
HIGHEST_BUCKET = ceil(log(1e8) / _LOG_GAMMA)


def bucket_of(latency_ms: float) -> int:
    """Return the bucket i with gamma^(i-1) < latency_ms <= gamma^i, clamped to the range.

    0 ms falls into the lowest.
    """
    if latency_ms <= 0.001:
        return LOWEST_BUCKET
    bucket = ceil(log(latency_ms) / _LOG_GAMMA)
    return bucket if bucket < HIGHEST_BUCKET else HIGHEST_BUCKET


def bucket_value(bucket: int) -> float:
    """Return the latency in ms that stands for a bucket: within 1 % of every value in it.

    Source: C. Masson, J. E. Rim, H. K. Lee, DDSketch, PVLDB 12 (2019) 2195-2205, section 2.1.
    """
    return float(2 * GAMMA**bucket / (GAMMA + 1))


Histogram = Mapping[int, int]
"""Latency counts by log bucket, sparse: {bucket: count > 0}. `add_by_key` merges several."""


def quantile(histogram: Histogram, q: float) -> float | None:
    """Return the q-quantile in ms, None for an empty histogram.

    It is the smallest value with at least q of all values at or below it.
    """
    total = sum(histogram.values())
    if total == 0:
        return None
    rank = max(1, ceil(q * total))
    up_to = 0
    for bucket in sorted(histogram):
        up_to += histogram[bucket]
        if up_to >= rank:
            return bucket_value(bucket)
    raise AssertionError("a histogram's counts add up to its total")


class ArmTotals(Counters, frozen=True):
    """What was counted for one arm in one visit; `schemas.counters` is the table of its fields."""

    def __add__(self, other: ArmTotals) -> ArmTotals:
        """Return the totals of both, as over two partitions."""
        return ArmTotals(*merged_values((self, other)))

    def without_latency(self) -> ArmTotals:
        """Return the totals without the histogram that the tests use."""
        values = {counter.name: getattr(self, counter.name) for counter in COUNTERS}
        return ArmTotals(**{**values, "latency": {}})


NOTHING_COUNTED = ArmTotals()


@dataclass(frozen=True, slots=True)
class VisitTotals:
    """Both arms of one visit, merged over all partitions."""

    treatment: ArmTotals = NOTHING_COUNTED
    control: ArmTotals = NOTHING_COUNTED
    #: Partitions whose part of this visit is stored but cannot be read: it is missing above.
    unreadable: tuple[str, ...] = ()

    def arm(self, arm: Arm) -> ArmTotals:
        """Return one arm by name."""
        return self.treatment if arm is Arm.TREATMENT else self.control


@dataclass(frozen=True, slots=True)
class Loss:
    """A span of time of which one partition has lost records."""

    since: datetime | None  # time of the last record before the loss; None: unknown
    until: datetime | None  # time of the first record after it; None: none yet

    def touches(self, begin: datetime, end: datetime) -> bool:
        """Return whether any moment of [begin, end] may have lost records."""
        is_after = self.since is not None and self.since > end
        is_before = self.until is not None and self.until < begin
        return not (is_after or is_before)

    def __str__(self) -> str:
        """Return the span of time in words."""
        since = "the beginning" if self.since is None else self.since.isoformat(timespec="seconds")
        until = "now" if self.until is None else self.until.isoformat(timespec="seconds")
        return f"{since} to {until}"


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """How far one event partition has been counted."""

    topic_partition: str  # "topic/partition"
    next_offset: int  # the fence
    end_offset: int  # of the log at the owner's last check
    freshest: datetime | None  # greatest event time counted, None before the first
    reported_at: datetime  # when the owner last wrote, by the owner's clock
    losses: tuple[Loss, ...] = ()  # of records, oldest first

    @property
    def lag(self) -> int:
        """How many offsets of the log are not counted yet; never negative."""
        return max(self.end_offset - self.next_offset, 0)


@dataclass(frozen=True, slots=True)
class Reading:
    """The newest answer of a monitoring system about one external metric."""

    at: datetime  # when the newest of its questions was due
    since: datetime  # when the oldest was: no question is used for two looks
    treatment: float | None = None  # None: there is no number, and `gap` says why
    control: float | None = None  # None: it was not asked for
    gap: MeasurementGap | None = None
    words: str = ""  # of the gap
    #: By arm and by part of `plan.CounterQueries`: each series' value. None: it is no reading of
    #: counters.
    counters: Mapping[Arm, Mapping[str, Mapping[str, float]]] | None = None


@dataclass(frozen=True, slots=True)
class WebhookReply:
    """What a gate webhook has answered about one gate, or why it has not."""

    endpoint: str  # its name in the settings
    gate_id: str  # of the gate that it was asked about; it says nothing about any other
    plan_version: str  # of the plan that it was asked about; a gate outlives `apply`
    at: datetime  # when it was asked
    answer: GateAnswer | None = None  # None: there is none, and `gap` says why
    gap: HealthGap | None = None
    words: str = ""  # the reason that it gives, or what is wrong

    def __str__(self) -> str:
        """Return `load-test answers hold: still running`."""
        if self.answer is None:
            return f"{self.endpoint}: {self.words}"
        return f"{self.endpoint} answers {self.answer}" + (f": {self.words}" if self.words else "")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that was counted for one rollout, at one moment.

    `visits` holds the present visit and each other one that changed.
    """

    at: datetime
    visits: Mapping[int, VisitTotals]  # by index into Rollout.visits
    partitions: tuple[PartitionProgress, ...]
    expected_partitions: int  # event partitions that exist; fewer reports than that is a gap
    #: Which flag plane does not serve the decided percentage, and since when; None: all serve it.
    actuation_drift: str | None = None
    #: The newest answer for each external metric of the plan, by name; none before the first.
    readings: Mapping[str, Reading] = field(default_factory=dict)
    #: The newest reply of each gate webhook to a question about an open gate, by endpoint.
    replies: Mapping[str, WebhookReply] = field(default_factory=dict)
