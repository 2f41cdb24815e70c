"""The counters of one arm in one visit: the one table that every list of them is made from.

A row is a field of `Counters` with its type, default, merge rule and meaning. From the table come
the sum of two arms (`core.evidence.ArmTotals`), the merging of partitions (`codec.merging`), what
the sequential tests remember (`core.analysis.sequential_tests`), and the stored form
(`schemas.totals.ArmCounts`). The two folds repeat the names, and tests compare them with the table:
the reference (`counting.folding.arm_counters.ArmCounter`) and the native one (`arms.rs`,
`partition_fold/arm_counts.rs`).

Append a new counter at the end: the order is the order of arguments, and of stored state. What an
older release stored lacks it, and is read as if it were 0.

Belongs here: names and how to merge. Does not belong here: how events are counted
(`controller/counting`), and what a metric makes of the counters (`controller/core/metrics`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, auto
from operator import attrgetter
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec.structs import fields


class Shape(Enum):
    """What a counter holds. It also says how two are merged: by adding, key by key in a mapping."""

    NUMBER = auto()  # one number
    BY_NAME = auto()  # {name: number}; a name that is absent counts 0
    BY_BUCKET = auto()  # {log bucket: number}, a histogram


class Counter(NamedTuple):
    """One row of the table."""

    name: str
    shape: Shape
    is_tested: bool  # the sequential tests use it, so that they remember how much they have used
    words: str  # what it counts, plural, for people

    def merge(self, parts: Iterable[Any]) -> Any:
        """Return the sum of this counter over several parts."""
        values = map(attrgetter(self.name), parts)
        return sum(values) if self.shape is Shape.NUMBER else add_by_key(values)


def _row(shape: Shape, words: str, *, is_tested: bool = False) -> msgspec.Meta:
    return msgspec.Meta(extra={"row": (shape, is_tested, words)})


_NUMBER, _BY_NAME, _BY_BUCKET = Shape
#: So far below what 64 bits hold that counting on never leaves them.
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
#: A log bucket and its number share a word of 64 bits where thousands of histograms are kept.
Bucket = Annotated[int, msgspec.Meta(ge=-(2**15), lt=2**15)]
BucketCount = Annotated[int, msgspec.Meta(ge=0, lt=2**48)]


class Counters(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False
):
    """What is counted for one arm in one visit, from its beginning on.

    Counts are absolute, so that merging and differencing are exact. The statistical unit is the
    context. The error test uses `at_risk` and `first_errors`, the latency test uses `latency`: what
    these count leaves out contexts that are far more active than the others
    (`counting.folding.activity`). `outcomes` and `errors` count raw events, for the picture and for
    people.
    """

    #: Events.
    evaluations: Annotated[Count, _row(_NUMBER, "evaluations")] = 0
    #: Distinct contexts that saw this arm.
    exposures: Annotated[Count, _row(_NUMBER, "exposures", is_tested=True)] = 0
    #: Of them those that had seen the other arm before (multiple exposure).
    switched: Annotated[Count, _row(_NUMBER, "contexts that saw both arms")] = 0
    #: Events.
    outcomes: Annotated[Count, _row(_NUMBER, "outcomes")] = 0
    #: Events.
    errors: Annotated[Count, _row(_NUMBER, "errors")] = 0
    #: Context-batches with an outcome, of contexts without an error so far in this visit.
    at_risk: Annotated[Count, _row(_NUMBER, "contexts with an outcome", is_tested=True)] = 0
    #: Contexts with a first error in this visit.
    first_errors: Annotated[Count, _row(_NUMBER, "first errors", is_tested=True)] = 0
    #: Conversion name -> distinct contexts.
    converted: Annotated[Mapping[str, Count], _row(_BY_NAME, "conversions", is_tested=True)] = {}
    #: Log bucket -> values, one per context and batch.
    latency: Annotated[
        Mapping[Bucket, BucketCount], _row(_BY_BUCKET, "latency values", is_tested=True)
    ] = {}
    #: Outcomes that were checked for repetition: all of about one context in 64.
    checked: Annotated[Count, _row(_NUMBER, "outcomes checked for repetition")] = 0
    #: Of them those that had come before, byte for byte. There may be more that nobody recognized.
    repeated: Annotated[Count, _row(_NUMBER, "repeated outcomes")] = 0


COUNTERS = tuple(
    Counter(row.name, *row.type.__metadata__[-1].extra["row"]) for row in fields(Counters)
)
"""The table, in the order of `Counters`' fields."""

TESTED_COUNTERS = tuple(counter for counter in COUNTERS if counter.is_tested)
"""The counters that the sequential tests use."""

values_of = attrgetter(*(counter.name for counter in COUNTERS))
"""Return the values of any object that has all counters, in the table's order."""


def merged_values(parts: Sequence[Any]) -> list[Any]:
    """Return the sum of each counter over `parts`, in the table's order."""
    return [counter.merge(parts) for counter in COUNTERS]


def add_by_key(mappings: Iterable[Mapping[Any, int]]) -> dict[Any, int]:
    """Return the sum of mappings, key by key."""
    merged: dict[Any, int] = {}
    for mapping in mappings:
        for key, count in mapping.items():
            merged[key] = merged.get(key, 0) + count
    return merged
