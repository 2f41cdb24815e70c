"""The arms of one partition: their stored totals, and which have changed since the last save.

Belongs here: fields and bundles of arms, and the sets that belong to them. Does not belong here:
which arm an event falls into (`flag_partition.py`), what it adds (`fold.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from controller.counting.arm_counters import ArmCounter, FieldBundle
from controller.counting.flags_to_count import FlagsToCount
from controller.counting.membership import Memberships
from schemas.terms import Arm
from schemas.totals import (
    ArmCounts,
    bundle_entry,
    bundle_field,
    decode_arm,
    decode_bundle,
    encode_bundle,
    is_bundle_field,
    parse_field,
)

#: The kind of the set of contexts in neither arm, beside the arms' own.
NEITHER = "neither"

_OVER_AFTER_MS = 600_000  # after a visit's end; by then even its late events are rare
_CHECKED_PER_SAVE = 16  # bundles that are searched for arms of visits that are over; 0.5 ms
#: Such arms that get fields of their own per save, so that they are not written again and again.
MOVED_PER_SAVE = 32


class PartitionArms:
    """The counters and sets of all flags in one partition, as stored and as opened since."""

    def __init__(
        self,
        flags_to_count: FlagsToCount,
        *,
        counts_exposures: bool,
        exact_limit: int,
        flags_with_own_fields: int,
    ) -> None:
        """Start empty. With more flags than `flags_with_own_fields`, new arms go into bundles."""
        self._flags_to_count = flags_to_count
        self._flags_with_own_fields = flags_with_own_fields
        self.counts_exposures = counts_exposures
        self.memberships = Memberships(exact_limit)
        # Set number -> flag key, rollout id, arm; None for neither arm.
        self.exposure_of: dict[int, tuple[str, str, Arm | None]] = {}
        # Flag key -> rollouts with something stored.
        self.rollouts: dict[str, set[str]] = {}
        self.opened = 0  # counters that were opened so far
        self.changed: list[ArmCounter] = []  # with fields of their own
        self.changed_in_bundles: list[ArmCounter] = []
        self._bundles: dict[str, FieldBundle] = {}  # by their field
        # Bundles to be written although none of their arms may have changed.
        self._rewritten: dict[str, FieldBundle] = {}
        self._stored: dict[str, ArmCounts] = {}  # read on assignment, not opened yet
        self._garbage: list[str] = []  # fields to delete after the next save

    # - reading -

    def restore(self, fields: Mapping[str, bytes]) -> None:
        """Continue from stored fields.

        Raises ValueError or KeyError when we cannot have written them.
        """
        for name, value in fields.items():
            if is_bundle_field(name):
                bundle = self._bundles[name] = FieldBundle(name)
                for arm_name, arm_value in decode_bundle(value).items():
                    self._restore_arm(arm_name, arm_value)
                    bundle.entries[arm_name] = bundle_entry(arm_name, arm_value)
            else:
                self._restore_arm(name, value)
        self.memberships.restore(fields)
        for name in self.memberships.names():
            flag_key, rollout_id, _, kind = name.split("|")
            self.rollouts.setdefault(flag_key, set()).add(rollout_id)
            if kind in (Arm.TREATMENT, Arm.CONTROL, NEITHER):
                arm = None if kind == NEITHER else Arm(kind)
                number = self.memberships.set_of(name).number
                self.exposure_of[number] = (flag_key, rollout_id, arm)

    def _restore_arm(self, name: str, value: bytes) -> None:
        parsed = parse_field(name)
        if parsed is not None and parsed.arm is not None:
            self._stored[name] = decode_arm(value)
            self.rollouts.setdefault(parsed.flag_key, set()).add(parsed.rollout_id)

    def open(self, flag_key: str, arm: Arm, name: str) -> ArmCounter:
        """Return the counter of the arm whose field is called `name`, with its stored totals."""
        counts = self._stored.pop(name, None)
        home = None
        has_few_flags = len(self._flags_to_count.flags) <= self._flags_with_own_fields
        if self._bundles or not has_few_flags:
            bundle_name = bundle_field(flag_key)
            home = self._bundles.get(bundle_name)
            if home is None or name not in home.entries:
                if counts is not None or has_few_flags:
                    home = None  # what is stored in a field of its own stays there
                elif home is None:
                    home = self._bundles[bundle_name] = FieldBundle(bundle_name)
        return ArmCounter(flag_key, arm, name, counts or ArmCounts(), home)

    # - dropping -

    def drop(self, flag_key: str, rollout_id: str, counters: Iterable[ArmCounter]) -> None:
        """Forget a rollout, whose open counters are `counters`.

        The next save writes its bundle without it and deletes its own fields after that.
        """
        dropped = set(counters)
        self.changed = [counter for counter in self.changed if counter not in dropped]
        self.changed_in_bundles = [
            counter for counter in self.changed_in_bundles if counter not in dropped
        ]
        for counter in dropped:
            if counter.is_counting and counter.home is None:
                self._garbage.append(counter.field)
            counter.is_counting = False  # it may be about to be encoded
        prefix = f"{flag_key}|{rollout_id}|"
        bundle = self._bundles.get(bundle_field(flag_key))
        entries = {} if bundle is None else bundle.entries
        for name in [name for name in self._stored if name.startswith(prefix)]:
            del self._stored[name]
            if name not in entries:
                self._garbage.append(name)
        bundled = [name for name in entries if name.startswith(prefix)]
        if bundle is not None and bundled:
            for name in bundled:
                del entries[name]
            self._rewritten[bundle.name] = bundle
        self.memberships.drop(flag_key, rollout_id)
        for number in [
            n for n, exposure in self.exposure_of.items() if exposure[:2] == (flag_key, rollout_id)
        ]:
            del self.exposure_of[number]
        self.rollouts.get(flag_key, set()).discard(rollout_id)

    # - saving -

    @property
    def changed_fields(self) -> int:
        """How many fields of arms the next save will carry, or a few more."""
        bundles = min(len(self.changed_in_bundles), len(self._bundles)) + len(self._rewritten)
        return len(self.changed) + bundles + MOVED_PER_SAVE

    def drain_changed(self) -> tuple[list[ArmCounter], dict[str, FieldBundle]]:
        """Return the changed counters and the bundles to write; they count as saved from now on."""
        counters = self.changed + self.changed_in_bundles
        self.changed, self.changed_in_bundles = [], []
        rewritten, self._rewritten = self._rewritten, {}
        return counters, rewritten

    def drain_garbage(self) -> list[str]:
        """Return the fields to delete after the save; they count as deleted from now on."""
        garbage, self._garbage = self._garbage, []
        return garbage

    def entries_to_move(
        self, bundles: list[FieldBundle], start: int, freshest_ms: int
    ) -> list[tuple[FieldBundle, str]]:
        """Return some (bundle, arm field) of visits that are over.

        They get fields of their own, so that they are not written again with every save of their
        bundle. `start` varies which bundles are checked.
        """
        until_ms = freshest_ms - _OVER_AFTER_MS
        begin = start % max(1, len(bundles) - _CHECKED_PER_SAVE)
        entries: list[tuple[FieldBundle, str]] = []
        for bundle in bundles[begin : begin + _CHECKED_PER_SAVE]:
            for name in bundle.entries:
                if self._is_over(name, until_ms):
                    entries.append((bundle, name))
                    if len(entries) == MOVED_PER_SAVE:
                        return entries
        return entries

    def _is_over(self, name: str, until_ms: int) -> bool:
        """Return whether an arm's visit ended before `until_ms`."""
        place = parse_field(name)
        assert place is not None
        counted = self._flags_to_count.flags.get(place.flag_key)
        if counted is None or counted.rollout_id != place.rollout_id:
            return False
        if counted.present_visit == place.visit:
            return False  # it may be closed, and open again
        ends = [until for _, until, visit in counted.intervals if visit == place.visit]
        return bool(ends) and max(ends) < until_ms


def encode_bundles(bundles: Iterable[FieldBundle]) -> dict[str, bytes]:
    """Return the fields of bundles."""
    return {bundle.name: encode_bundle(bundle.entries.values()) for bundle in bundles}
