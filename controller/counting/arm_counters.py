"""One flag in one partition: a lane per arm and visit, with the numbers that change at every event.

Belongs here: which lane an event falls into. What falling in does to its numbers is the fold's, in
`counting.py`, whose loops reach into lanes directly: a call per event would cost as much as
counting it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from controller.counting.contexts import ContextSet, Filter
from controller.counting.watched_flags import WatchedFlag
from schemas.terms import Arm
from schemas.totals import ArmCounts, arm_field, bundle_entry, part_field

if TYPE_CHECKING:
    from controller.counting.partition_totals import PartitionTotals

_TREATMENT, _CONTROL = Arm.TREATMENT, Arm.CONTROL


class FieldBundle:
    """The arms of several flags that are stored in one field, encoded as of their last save."""

    __slots__ = ("entries", "name")

    def __init__(self, name: str) -> None:
        """Start empty."""
        self.name = name
        self.entries: dict[str, bytes] = {}  # arm field name -> what `encode_bundle` takes


class ArmCounter:
    """One arm of one flag in one visit, or outside every visit, in one partition.

    The numbers are `ArmCounts`', here because they change with every event; `latency_again` is what
    `latency_all` has more than `latency`.
    """

    __slots__ = (
        "arm",
        "at_risk",
        "checked",
        "converted",
        "converted_counts",
        "errors",
        "evaluations",
        "exact",
        "exposed",
        "exposures",
        "failed",
        "field",
        "filters",
        "first_errors",
        "flag_key",
        "head",
        "home",
        "is_changed",
        "is_counting",
        "latency",
        "latency_again",
        "number",
        "opposite",
        "outcomes",
        "repeated",
        "seen",
        "switched",
    )

    def __init__(
        self,
        flag_key: str,
        arm: Arm,
        field_name: str,
        counts: ArmCounts | None,
        home: FieldBundle | None,
    ) -> None:
        """`counts` is what was counted before, None outside every visit: nothing is counted there.

        `home` is the bundle its totals are stored in; None for a field of its own.
        """
        self.flag_key = flag_key
        self.arm = arm
        self.field = field_name
        self.home = home
        self.head = b"" if home is None else bundle_entry(field_name, b"")
        self.is_changed = False
        self.is_counting = counts is not None
        if counts is None:
            counts = _NOTHING_COUNTED
        self.evaluations = counts.evaluations
        self.exposures = counts.exposures
        self.switched = counts.switched
        self.outcomes = counts.outcomes
        self.errors = counts.errors
        self.at_risk = counts.at_risk
        self.first_errors = counts.first_errors
        self.checked = counts.checked
        self.repeated = counts.repeated
        self.converted_counts = counts.converted
        self.latency = counts.latency
        self.latency_again = {
            bucket: count - counts.latency.get(bucket, 0)
            for bucket, count in counts.latency_all.items()
            if count != counts.latency.get(bucket, 0)
        }
        self.number = -1  # of `exposed`
        self.exposed = _NO_SET
        self.exact = (
            _NO_SET.exact
        )  # of `exposed`, and the next, too: with many flags memory that is far apart costs time
        self.filters: Sequence[Filter] = ()
        self.opposite = _NO_SET  # what the other arm's `exposed` is
        self.failed = _NO_SET  # the visit's contexts with an error, shared by both arms
        self.converted: Mapping[str, ContextSet] = (
            _NONE_CONVERTED  # the visit's, shared by both arms
        )
        # : Contexts with an outcome in this batch, and whether one of them had a latency; begun
        # with the batch's first outcome.
        self.seen = NONE_SEEN

    def counts(self) -> ArmCounts:
        """Return what was counted."""
        latency_all = self.latency
        if self.latency_again:
            latency_all = dict(latency_all)
            for bucket, count in self.latency_again.items():
                latency_all[bucket] = latency_all.get(bucket, 0) + count
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
            latency_all,
            self.checked,
            self.repeated,
        )


_NOTHING_COUNTED = ArmCounts()  # never changed
NONE_SEEN: dict[int, bool] = {}  # never changed, either
_NONE_CONVERTED: Mapping[str, ContextSet] = {}
_NO_SET = ContextSet("", -1, 0)  # where a lane needs none
_UNCOUNTED = -1  # among a tally's visits: contexts in neither arm
NEITHER = "neither"  # what their set is called


class FlagPartition:
    """One flag in one partition: its lanes, the present visit's at hand."""

    __slots__ = (
        "_lanes",
        "_partition",
        "control",
        "control_variant",
        "from_ms",
        "has_one_visit",
        "more_treatments",
        "treatment",
        "treatment_variant",
        "until_ms",
        "watched",
    )

    def __init__(self, partition: PartitionTotals, watched: WatchedFlag) -> None:
        """Start at no visit; the first event finds one."""
        self._partition = partition
        self._lanes: dict[
            int | None, tuple[ArmCounter, ...]
        ] = {}  # by visit: treatment, control; and who is in neither arm
        self.has_one_visit = False  # whether all its lanes with exposures are one visit's
        self.take(watched)

    def take(self, watched: WatchedFlag) -> None:
        """Take a newer document of the same rollout."""
        self.watched = watched
        self.treatment_variant, self.control_variant = watched.treatment, watched.control
        self.more_treatments = watched.more_treatments
        self.treatment: ArmCounter | None = None
        self.control: ArmCounter | None = None
        self.from_ms = 0
        self.until_ms = 0  # an empty interval: look again

    def lane_at(self, variant: str, time_ms: int) -> ArmCounter | None:
        """Return the lane of an event, None for a variant that is neither arm.

        Keep the visit's lanes at hand.
        """
        watched = self.watched
        is_treatment = variant == watched.treatment or variant in watched.more_treatments
        if not is_treatment and variant != watched.control:
            return None
        for begin, until, visit in reversed(watched.intervals):
            if begin <= time_ms < until:
                self.from_ms, self.until_ms = begin, until
                self.treatment, self.control = self._lanes.get(visit) or self._open(visit)
                return self.treatment if is_treatment else self.control
        treatment, control = self._lanes.get(None) or self._open(None)
        return treatment if is_treatment else control

    def uncounted_lane(self, variant: str) -> ArmCounter | None:
        """Return the lane of a context in neither arm, None for a variant that the plan does not serve.

        Nothing is counted there; but what such a context does afterwards is not to be joined to an
        arm it was in before.
        """
        if variant not in self.watched.uncounted:
            return None
        if (lanes := self._lanes.get(_UNCOUNTED)) is None:
            partition, watched = self._partition, self.watched
            lane = ArmCounter(watched.flag_key, _CONTROL, "", None, None)
            if partition.counts_exposures:
                self._expose(lane, f"{watched.flag_key}|{watched.rollout_id}|-|{NEITHER}", None)
            lanes = self._lanes[_UNCOUNTED] = (lane,)
            self.has_one_visit = False
        return lanes[0]

    def _open(self, visit: int | None) -> tuple[ArmCounter, ArmCounter]:
        """Open both arms of a visit. 10,000 flags in eight partitions make this a matter of microseconds."""
        partition, watched = self._partition, self.watched
        flag_key, rollout_id = watched.flag_key, watched.rollout_id
        if visit is None:
            lanes = treatment, control = (
                ArmCounter(flag_key, _TREATMENT, "", None, None),
                ArmCounter(flag_key, _CONTROL, "", None, None),
            )
        else:
            lanes = treatment, control = (
                partition.lane(
                    flag_key, _TREATMENT, arm_field(flag_key, rollout_id, visit, _TREATMENT)
                ),
                partition.lane(
                    flag_key, _CONTROL, arm_field(flag_key, rollout_id, visit, _CONTROL)
                ),
            )
        self._lanes[visit] = lanes
        partition.opened_lanes += 2
        named = partition.memberships.named
        if partition.counts_exposures:
            for lane in lanes:
                self._expose(lane, lane.field or f"{flag_key}|{rollout_id}|-|{lane.arm}", lane.arm)
            treatment.opposite, control.opposite = control.exposed, treatment.exposed
            self.has_one_visit = len(self._lanes) == 1
        elif visit is not None:
            treatment.failed = control.failed = named(
                part_field(flag_key, rollout_id, visit, "errors")
            )
            if watched.conversions:
                treatment.converted = control.converted = {
                    conversion: named(
                        part_field(flag_key, rollout_id, visit, f"converted:{conversion}")
                    )
                    for conversion in sorted(watched.conversions)
                }
        return lanes

    def _expose(self, lane: ArmCounter, name: str, arm: Arm | None) -> None:
        """Give a lane its set of exposed contexts.

        One that counts has its own name for it, as for its totals.
        """
        watched = self.watched
        exposed = lane.exposed = self._partition.memberships.named(name)
        lane.number, lane.exact, lane.filters = exposed.number, exposed.exact, exposed.filters
        self._partition.exposure_of[exposed.number] = (watched.flag_key, watched.rollout_id, arm)

    def lanes(self) -> Iterable[ArmCounter]:
        """Return all lanes there are."""
        return chain.from_iterable(self._lanes.values())

    def lane_of(self, visit: int, arm: Arm) -> ArmCounter | None:
        """Return one lane, None when nothing has been counted into its visit since the load."""
        return next((lane for lane in self._lanes.get(visit, ()) if lane.arm is arm), None)
