"""Totals per arm, their merging, and the latency histogram: what was counted, not what it means.

Counting happens in `counting/ingest.py`, per partition; here the partitions' totals are added up
into what a gate looks at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from schemas.terms import Arm

# : Ratio of two neighbouring bucket edges. With the estimate of `bucket_value` the relative error
# is at most : (gamma - 1) / (gamma + 1) = 0.99 %.
GAMMA = 1.02
_LOG_GAMMA = math.log(GAMMA)
# : Buckets below and above these are clamped: 1 microsecond and about 28 hours, so that no value
# can grow the histogram : without bound.
LOWEST_BUCKET = math.ceil(math.log(0.001) / _LOG_GAMMA)
HIGHEST_BUCKET = math.ceil(math.log(1e8) / _LOG_GAMMA)


def bucket_of(latency_ms: float) -> int:
    """Return the bucket i with gamma^(i-1) < latency_ms <= gamma^i, clamped to the range.

    0 ms falls into the lowest.
    """
    if latency_ms <= 0.001:
        return LOWEST_BUCKET
    return min(math.ceil(math.log(latency_ms) / _LOG_GAMMA), HIGHEST_BUCKET)


def bucket_value(bucket: int) -> float:
    """Return the latency in ms that stands for a bucket: within 1 % of every value in it.

    Source: C. Masson, J. E. Rim, H. K. Lee, DDSketch, PVLDB 12 (2019) 2195-2205, section 2.1.
    """
    return float(2 * GAMMA**bucket / (GAMMA + 1))


Histogram = Mapping[int, int]
"""Latency counts by log bucket, sparse: {bucket: count > 0}. Merging is adding."""


def merge_histograms(histograms: Iterable[Histogram]) -> dict[int, int]:
    """Return the sum of sparse histograms."""
    merged: dict[int, int] = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            merged[bucket] = merged.get(bucket, 0) + count
    return merged


def quantile(histogram: Histogram, q: float) -> float | None:
    """Return the q-quantile in ms (the smallest value with at least q of all at or below it), None for an empty histogram."""
    total = sum(histogram.values())
    if total == 0:
        return None
    rank = max(1, math.ceil(q * total))
    seen = 0
    for bucket in sorted(histogram):
        seen += histogram[bucket]
        if seen >= rank:
            return bucket_value(bucket)
    raise AssertionError("a histogram's counts add up to its total")


@dataclass(frozen=True, slots=True)
class ArmTotals:
    """What was counted for one arm in one visit.

    Absolute since the visit began, so that merging and differencing are exact.

    The statistical unit is the context: `at_risk` and `first_errors` are what the error test uses,
    `latency` what the latency test uses. `outcomes`, `errors` and `latency_all` are raw events, for
    the picture and for people.
    """

    evaluations: int = 0  # events
    exposures: int = 0  # distinct contexts that saw this arm
    switched: int = 0  # of them already seen in the other arm (multiple exposure)
    outcomes: int = 0  # events
    errors: int = 0  # events
    at_risk: int = (
        0  # context-batches with an outcome, of contexts without an error so far in this visit
    )
    first_errors: int = 0  # contexts with a first error in this visit
    converted: Mapping[str, int] = field(
        default_factory=dict
    )  # conversion name -> distinct contexts
    latency: Histogram = field(default_factory=dict)  # one value per context and batch
    latency_all: Histogram = field(default_factory=dict)  # every value
    checked: int = 0  # outcomes, all of about one context in 64, that were looked at for repetition
    # of them those that had come before, byte for byte; there may be more that were not recognised
    repeated: int = 0

    def __add__(self, other: ArmTotals) -> ArmTotals:
        """Return the totals of both, as over two partitions."""
        return ArmTotals(
            evaluations=self.evaluations + other.evaluations,
            exposures=self.exposures + other.exposures,
            switched=self.switched + other.switched,
            outcomes=self.outcomes + other.outcomes,
            errors=self.errors + other.errors,
            at_risk=self.at_risk + other.at_risk,
            first_errors=self.first_errors + other.first_errors,
            converted={
                name: self.converted.get(name, 0) + other.converted.get(name, 0)
                for name in {*self.converted, *other.converted}
            },
            latency=merge_histograms((self.latency, other.latency)),
            latency_all=merge_histograms((self.latency_all, other.latency_all)),
            checked=self.checked + other.checked,
            repeated=self.repeated + other.repeated,
        )


@dataclass(frozen=True, slots=True)
class VisitTotals:
    """Both arms of one visit, merged over all partitions."""

    treatment: ArmTotals = ArmTotals()
    control: ArmTotals = ArmTotals()
    #: Partitions whose part of this visit is stored and cannot be read: it is missing above.
    unreadable: tuple[str, ...] = ()

    def arm(self, arm: Arm) -> ArmTotals:
        """Return one arm by name."""
        return self.treatment if arm is Arm.TREATMENT else self.control


@dataclass(frozen=True, slots=True)
class Loss:
    """A time of which records are known to be lost in one partition."""

    since: datetime | None  # time of the last record before the loss; None: the beginning of time
    until: datetime | None  # of the first one behind it; None: none was read yet

    def touches(self, begin: datetime, end: datetime) -> bool:
        """Whether any moment of [begin, end] may have lost records."""
        is_after = self.since is not None and self.since > end
        is_before = self.until is not None and self.until < begin
        return not (is_after or is_before)

    def __str__(self) -> str:
        """Return the time in words."""
        since = "the beginning" if self.since is None else self.since.isoformat(timespec="seconds")
        until = "now" if self.until is None else self.until.isoformat(timespec="seconds")
        return f"{since} to {until}"


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """How far one event partition has been counted."""

    topic_partition: str  # "topic/partition"
    next_offset: int  # the fence
    end_offset: int  # of the log when last looked at
    freshest: datetime | None  # greatest event time counted, None before the first
    reported_at: datetime  # when its owner last wrote, by the owner's clock
    losses: tuple[Loss, ...] = ()  # of records, oldest first


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was counted for one rollout, at one moment.

    `visits` holds the present visit and any other that changed.
    """

    at: datetime
    visits: Mapping[int, VisitTotals]  # by index into Rollout.visits
    partitions: tuple[PartitionProgress, ...]
    expected_partitions: int  # event partitions that exist; fewer reports than that is a gap
    actuation_drift: str | None = (
        None  # a flag plane that does not serve the decided percentage, and since when
    )
