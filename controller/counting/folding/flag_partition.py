"""One flag in one partition: which counter an event falls into.

Belongs here: the counters of each visit, and the choice by variant and time. Does not belong here:
what an event adds to a counter (`events.py`), which counters have stored totals
(`partition_arms.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from controller.counting.folding.arm_counters import ArmCounter
from controller.counting.folding.flags_to_count import CountedFlag
from controller.counting.folding.partition_arms import NEITHER, PartitionArms
from schemas.terms import Arm
from schemas.totals import arm_field, part_field

_TREATMENT, _CONTROL = Arm.TREATMENT, Arm.CONTROL
_UNCOUNTED = -1  # the key of contexts in neither arm, among the visits


class FlagPartition:
    """One flag in one partition: its counters by visit, with those of one visit at hand."""

    __slots__ = (
        "_arms",
        "_control",
        "_control_variant",
        "_counters",
        "_from_ms",
        "_more_treatments",
        "_treatment",
        "_treatment_variant",
        "_until_ms",
        "counted",
        "has_one_visit",
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
        self._treatment_variant, self._control_variant = counted.treatment, counted.control
        self._more_treatments = counted.more_treatments
        self._treatment: ArmCounter | None = None
        self._control: ArmCounter | None = None
        self._from_ms = 0
        self._until_ms = 0  # an empty interval: no visit is at hand

    def counter_at(self, variant: str, time_ms: int) -> ArmCounter | None:
        """Return an event's counter, None for a variant of neither arm; keep its visit at hand."""
        if not self._from_ms <= time_ms < self._until_ms:
            return self._counter_of_visit_at(variant, time_ms)
        if variant == self._control_variant:
            return self._control
        if variant == self._treatment_variant or variant in self._more_treatments:
            return self._treatment
        return None

    def _counter_of_visit_at(self, variant: str, time_ms: int) -> ArmCounter | None:
        """Return the same of a visit that may not be at hand."""
        arm = self.counted.arms.get(variant)
        if arm is None:
            return None
        interval = self.counted.interval_at(time_ms)
        visit = None if interval is None else interval[2]
        treatment, control = self._counters.get(visit) or self._open(visit)
        if interval is not None:
            self._from_ms, self._until_ms, _ = interval
            self._treatment, self._control = treatment, control
        return treatment if arm is _TREATMENT else control

    def uncounted_counter(self, variant: str) -> ArmCounter | None:
        """Return the counter of contexts in neither arm, None for a variant that nobody serves.

        Nothing is counted there. But a later outcome of such a context must not be joined to an arm
        that it was in before.
        """
        counted = self.counted
        if variant not in counted.uncounted:
            return None
        if (counters := self._counters.get(_UNCOUNTED)) is None:
            counter = ArmCounter(counted.flag_key, None, "", None)
            if self._arms.counts_exposures:
                self._expose(counter, f"{counted.flag_key}|{counted.rollout_id}|-|{NEITHER}", None)
            counters = self._counters[_UNCOUNTED] = (counter,)
            self.has_one_visit = False
        return counters[0]

    def _open(self, visit: int | None) -> tuple[ArmCounter, ArmCounter]:
        """Open both arms of a visit."""
        arms, counted = self._arms, self.counted
        flag_key, rollout_id = counted.flag_key, counted.rollout_id
        if visit is None:
            counters = treatment, control = (
                ArmCounter(flag_key, _TREATMENT, "", None),
                ArmCounter(flag_key, _CONTROL, "", None),
            )
        else:
            counters = treatment, control = (
                arms.open(flag_key, _TREATMENT, arm_field(flag_key, rollout_id, visit, _TREATMENT)),
                arms.open(flag_key, _CONTROL, arm_field(flag_key, rollout_id, visit, _CONTROL)),
            )
        self._counters[visit] = counters
        self.has_one_visit = len(self._counters) == 1
        arms.opened += 2
        if arms.counts_exposures:
            for counter in counters:
                outside = f"{flag_key}|{rollout_id}|-|{counter.arm}"
                self._expose(counter, counter.field or outside, counter.arm)
            treatment.opposite, control.opposite = control.exposed, treatment.exposed
        elif visit is not None:
            self._share_sets(visit, counters)
        return counters

    def _share_sets(self, visit: int, counters: tuple[ArmCounter, ArmCounter]) -> None:
        """Give both arms of a visit its sets of contexts that failed or converted."""
        counted, set_of = self.counted, self._arms.sets.set_of
        flag_key, rollout_id = counted.flag_key, counted.rollout_id
        failed = set_of(part_field(flag_key, rollout_id, visit, "errors"))
        converted = {
            conversion: set_of(part_field(flag_key, rollout_id, visit, f"converted:{conversion}"))
            for conversion in sorted(counted.conversions)
        }
        for counter in counters:
            counter.failed, counter.converted = failed, converted

    def _expose(self, counter: ArmCounter, name: str, arm: Arm | None) -> None:
        """Give a counter the set called `name` for its exposed contexts.

        For a counter that counts it has the name of its field.
        """
        counted = self.counted
        counter.exposed = self._arms.sets.set_of(name)
        self._arms.exposure_of[counter.exposed.number] = (counted.flag_key, counted.rollout_id, arm)

    def counters(self) -> Iterable[ArmCounter]:
        """Return all open counters."""
        return chain.from_iterable(self._counters.values())

    def counter_of(self, visit: int, arm: Arm) -> ArmCounter | None:
        """Return one counter, None when its visit was not opened since the load."""
        return next(
            (counter for counter in self._counters.get(visit, ()) if counter.arm is arm), None
        )
