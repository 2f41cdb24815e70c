"""The counters of one arm, which change with every event.

Belongs here: the numbers, and the sets of contexts that they are counted with. What an event does
to them is in `events.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from controller.counting.folding.activity import Activity
from controller.counting.folding.context_sets import ContextSet
from schemas.terms import Arm
from schemas.totals import ArmCounts, bundle_head

#: What is counted of a context's action, its outcomes in one batch: its end but no latency so far,
#: both, or neither, because the context is far more active than others.
UNTIMED, TIMED, LEFT_OUT = range(3)


class ArmCounter:
    """One arm of one flag in one visit, or outside every visit, in one partition.

    The numbers are those of `ArmCounts`. They are attributes here because they change with every
    event.
    """

    __slots__ = (
        "activity",
        "arm",
        "at_risk",
        "batch_contexts",
        "bundle",
        "bundle_head",
        "checked",
        "converted",
        "converted_counts",
        "errors",
        "evaluations",
        "exposed",
        "exposures",
        "failed",
        "field",
        "first_errors",
        "flag_key",
        "is_changed",
        "is_counting",
        "latency",
        "opposite",
        "ordered_buckets",
        "outcomes",
        "passed_on",
        "repeated",
        "switched",
    )

    def __init__(
        self, flag_key: str, arm: Arm | None, field: str, counts: ArmCounts | None
    ) -> None:
        """Begin with `counts`, the earlier totals; None outside every visit: nothing is counted.

        `arm` is None for contexts in neither.
        """
        self.flag_key = flag_key
        self.arm = arm
        self.field = field
        self.bundle: int | None = None  # of flags' arms that are stored together
        self.bundle_head = bundle_head(field)
        self.is_changed = False
        self.is_counting = counts is not None
        if counts is None:
            counts = _NOTHING_COUNTED
        # Also outside every visit, where they are the only number that changes.
        self.evaluations = counts.evaluations
        self.passed_on = counts.evaluations  # of them, those that `take_evaluations` returned
        self.exposures = counts.exposures
        self.switched = counts.switched
        self.outcomes = counts.outcomes
        self.errors = counts.errors
        self.at_risk = counts.at_risk
        self.first_errors = counts.first_errors
        self.checked = counts.checked
        self.repeated = counts.repeated
        self.converted_counts = dict(counts.converted)
        self.latency = dict(counts.latency)
        self.ordered_buckets = 0  # of `latency`, when it was last put in order
        self.exposed = _NO_SET
        self.opposite = _NO_SET  # the other arm's `exposed`
        self.failed = _NO_SET  # the visit's contexts with an error, shared by both arms
        self.converted: Mapping[str, ContextSet] = _NONE_CONVERTED  # likewise
        # Contexts with an outcome in this batch, and what is counted of it: one of the three below.
        # It begins with the batch's first outcome.
        self.batch_contexts = NO_CONTEXTS
        self.activity = Activity()

    def take(self) -> ArmCounts:
        """Return the totals, the histogram in the order of its buckets; the next batch begins."""
        self.is_changed = False
        self.batch_contexts = NO_CONTEXTS
        if self.ordered_buckets != len(self.latency):
            self.latency = {bucket: self.latency[bucket] for bucket in sorted(self.latency)}
            self.ordered_buckets = len(self.latency)
        return ArmCounts(
            self.evaluations,
            self.exposures,
            self.switched,
            self.outcomes,
            self.errors,
            self.at_risk,
            self.first_errors,
            self.converted_counts,
            self.latency,
            self.checked,
            self.repeated,
        )

    def take_evaluations(self) -> int:
        """Return the evaluations since the last call."""
        count, self.passed_on = self.evaluations - self.passed_on, self.evaluations
        return count


_NOTHING_COUNTED = ArmCounts()  # never changed
NO_CONTEXTS: dict[int, int] = {}  # never changed, either
_NONE_CONVERTED: Mapping[str, ContextSet] = {}
_NO_SET = ContextSet("", -1, 0)  # where a counter needs none
