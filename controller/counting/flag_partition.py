"""One flag in one partition: which counter an event falls into.

Belongs here: the counters of each visit, and the choice by variant and time. Does not belong here:
what an event adds to a counter (`fold.py`), how totals are stored (`partition_arms.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from controller.counting.arm_counters import ArmCounter
from controller.counting.flags_to_count import CountedFlag
from controller.counting.partition_arms import NEITHER, PartitionArms
from schemas.terms import Arm
from schemas.totals import arm_field, part_field

_TREATMENT, _CONTROL = Arm.TREATMENT, Arm.CONTROL
_UNCOUNTED = -1  # the key of contexts in neither arm, among the visits


class FlagPartition:
    """One flag in one partition: its counters by visit, with those of one visit at hand."""

    __slots__ = (
        "_arms",
        "_counters",
        "control",
        "control_variant",
        "counted",
        "from_ms",
        "has_one_visit",
        "more_treatments",
        "treatment",
        "treatment_variant",
        "until_ms",
    )

    def __init__(self, arms: PartitionArms, counted: CountedFlag) -> None:
        """Start without a visit; the first event's is opened."""
        self._arms = arms
        # By visit: treatment and control. None: outside every visit.
        self._counters: dict[int | None, tuple[ArmCounter, ...]] = {}
        self.has_one_visit = False  # whether all its counters with exposures are one visit's
        self.apply(counted)

    def apply(self, counted: CountedFlag) -> None:
        """Count by a newer document of the same rollout."""
        self.counted = counted
        self.treatment_variant, self.control_variant = counted.treatment, counted.control
        self.more_treatments = counted.more_treatments
        self.treatment: ArmCounter | None = None
        self.control: ArmCounter | None = None
        self.from_ms = 0
        self.until_ms = 0  # an empty interval: no visit is at hand

    def counter_at(self, variant: str, time_ms: int) -> ArmCounter | None:
        """Return an event's counter, None for a variant of neither arm; keep its visit at hand."""
        counted = self.counted
        is_treatment = variant == counted.treatment or variant in counted.more_treatments
        if not is_treatment and variant != counted.control:
            return None
        if (interval := counted.interval_at(time_ms)) is not None:
            self.from_ms, self.until_ms, visit = interval
            self.treatment, self.control = self._counters.get(visit) or self._open(visit)
            return self.treatment if is_treatment else self.control
        treatment, control = self._counters.get(None) or self._open(None)
        return treatment if is_treatment else control

    def uncounted_counter(self, variant: str) -> ArmCounter | None:
        """Return the counter of contexts in neither arm, None for a variant that nobody serves.

        Nothing is counted there. But a later outcome of such a context must not be joined to an arm
        that it was in before.
        """
        if variant not in self.counted.uncounted:
            return None
        if (counters := self._counters.get(_UNCOUNTED)) is None:
            counted = self.counted
            counter = ArmCounter(counted.flag_key, None, "", None, None)
            if self._arms.counts_exposures:
                self._expose(counter, f"{counted.flag_key}|{counted.rollout_id}|-|{NEITHER}", None)
            counters = self._counters[_UNCOUNTED] = (counter,)
            self.has_one_visit = False
        return counters[0]

    def _open(self, visit: int | None) -> tuple[ArmCounter, ArmCounter]:
        """Open both arms of a visit.

        With 10,000 flags in eight partitions each microsecond here counts.
        """
        arms, counted = self._arms, self.counted
        flag_key, rollout_id = counted.flag_key, counted.rollout_id
        if visit is None:
            counters = treatment, control = (
                ArmCounter(flag_key, _TREATMENT, "", None, None),
                ArmCounter(flag_key, _CONTROL, "", None, None),
            )
        else:
            counters = treatment, control = (
                arms.open(flag_key, _TREATMENT, arm_field(flag_key, rollout_id, visit, _TREATMENT)),
                arms.open(flag_key, _CONTROL, arm_field(flag_key, rollout_id, visit, _CONTROL)),
            )
        self._counters[visit] = counters
        arms.opened += 2
        set_of = arms.memberships.set_of
        if arms.counts_exposures:
            for counter in counters:
                self._expose(
                    counter,
                    counter.field or f"{flag_key}|{rollout_id}|-|{counter.arm}",
                    counter.arm,
                )
            treatment.opposite, control.opposite = control.exposed, treatment.exposed
            self.has_one_visit = len(self._counters) == 1
        elif visit is not None:
            treatment.failed = control.failed = set_of(
                part_field(flag_key, rollout_id, visit, "errors")
            )
            if counted.conversions:
                treatment.converted = control.converted = {
                    conversion: set_of(
                        part_field(flag_key, rollout_id, visit, f"converted:{conversion}")
                    )
                    for conversion in sorted(counted.conversions)
                }
        return counters

    def _expose(self, counter: ArmCounter, name: str, arm: Arm | None) -> None:
        """Give a counter the set called `name` for its exposed contexts.

        For a counter that counts it has the name of its field.
        """
        counted = self.counted
        exposed = counter.exposed = self._arms.memberships.set_of(name)
        counter.number, counter.exact, counter.filters = (
            exposed.number,
            exposed.exact,
            exposed.filters,
        )
        self._arms.exposure_of[exposed.number] = (counted.flag_key, counted.rollout_id, arm)

    def counters(self) -> Iterable[ArmCounter]:
        """Return all open counters."""
        return chain.from_iterable(self._counters.values())

    def counter_of(self, visit: int, arm: Arm) -> ArmCounter | None:
        """Return one counter, None when its visit was not opened since the load."""
        return next(
            (counter for counter in self._counters.get(visit, ()) if counter.arm is arm), None
        )
