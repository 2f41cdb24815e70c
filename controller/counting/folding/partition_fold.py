"""Everything that is counted of the events of one partition: the reference in Python.

Belongs here: the parts put together, joins, the memory budget, and what has changed since the last
save. Does not belong here: what an event adds (`events.py`), records and offsets
(`partition_totals.py`), which field holds what (`layout/`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from controller.counting.folding.arm_counters import ArmCounter
from controller.counting.folding.difference import (
    ChangedArm,
    Difference,
    NewEvaluations,
    SealedSet,
)
from controller.counting.folding.events import Counted, EventFold, Exposures, OutcomeOfRecord
from controller.counting.folding.flags_to_count import CountedFlag, FlagsToCount
from controller.counting.folding.partition_arms import PartitionArms
from controller.counting.folding.recent_exposures import RecentExposures
from controller.counting.folding.refused import FoundUnusable
from controller.ports import Record
from schemas.events import EvaluationFields, EvaluationReader, OutcomeReader
from schemas.quarantine import WrittenRefusals
from schemas.terms import Arm
from schemas.totals import MOST_CHANGED, ArmCounts, encode_arm, parse_field

_TREATMENT, _CONTROL = Arm.TREATMENT, Arm.CONTROL


class PartitionFold:
    """The flags of one partition with their counters, sets and recent exposures."""

    def __init__(
        self,
        flags_to_count: FlagsToCount,
        *,
        counts_exposures: bool,
        exact_limit: int,
        window_ms: int | None,
        bundle_of: Callable[[str, str], int | None],
        indexed_per_turn: int = 20_000,
    ) -> None:
        """Start empty.

        `window_ms` is the attribution window, None to remember no exposures. `bundle_of` is as for
        `PartitionArms`. `indexed_per_turn` is how many exposures `index_exposures` indexes. The
        other parameters are those of `PartitionTotals`.
        """
        self._indexed_per_turn = indexed_per_turn
        self._flags_to_count = flags_to_count
        self._arms = PartitionArms(
            counts_exposures=counts_exposures, exact_limit=exact_limit, bundle_of=bundle_of
        )
        has_recent = window_ms is not None and counts_exposures
        self._recent = RecentExposures(window_ms or 0) if has_recent else None
        self._events = EventFold(self._arms, self._recent, flags_to_count)

    def set_time(self, now_ms: int, latest_ms: int) -> None:
        """Set the time by our own clock, and the latest that is believed of an event."""
        if self._recent is not None:
            self._recent.set_time(now_ms, latest_ms)

    # - events -

    def count_evaluations(self, events: Iterable[EvaluationFields]) -> Counted:
        """Count evaluations."""
        return self._events.count_evaluations(events)

    def count_outcomes(
        self,
        events: Iterable[OutcomeOfRecord],
        room: float,
        partner: Exposures | None,
        joinable_until_ms: float,
    ) -> Counted:
        """Count outcomes until one must wait: `EventFold.count_outcomes`."""
        return self._events.count_outcomes(events, room, partner, joinable_until_ms)

    def read_evaluations(
        self,
        records: Sequence[Record],
        read: EvaluationReader[Record],
        refused: list[WrittenRefusals],
        latest_ms: int,
    ) -> Counted:
        """Count the evaluations of records; those without one are added to `refused`."""
        found = FoundUnusable()
        counted = self.count_evaluations(read(records, found.add, latest_ms=latest_ms))
        refused += found.refusals()
        return counted

    def read_outcomes(
        self,
        records: Sequence[Record],
        read: OutcomeReader[Record],
        refused: list[WrittenRefusals],
        latest_ms: int,
        room: float,
        partner: Exposures | None,
        joinable_until_ms: float,
    ) -> Counted:
        """Count the outcomes of records until one must wait; those without go to `refused`."""
        found = FoundUnusable()
        events = read(records, found.add, latest_ms=latest_ms)
        counted = self.count_outcomes(events, room, partner, joinable_until_ms)
        refused += found.refusals()
        return counted

    def begin_batch(self) -> None:
        """Begin the next batch of outcomes without a save.

        A context is at risk once per batch.
        """
        for counter in self._arms.changed:
            counter.batch_contexts = {}

    @property
    def joins(self) -> bool:
        """Whether an outcome without flags came.

        Then both partitions of the pair are counted in the order of time.
        """
        return self._events.joins

    @joins.setter
    def joins(self, joins: bool) -> None:
        self._events.joins = joins

    # - restoring: arms and sets, then filters, then members and exposures -

    def restore_arm(self, name: str, counts: ArmCounts, bundle: int | None) -> None:
        """Take over the stored totals of an arm, and the bundle that they are stored in."""
        self._arms.restore_arm(name, counts, bundle)

    def restore_set(self, number: int, name: str) -> None:
        """Take over a stored set. Raises ValueError when its name is none of ours."""
        self._arms.restore_set(number, name)

    def restore_filter(self, number: int, words: bytes, keys: int) -> None:
        """Give a set its next filter."""
        self._arms.sets.add_filter(number, words, keys)

    def restore_members(self, entries: bytes) -> None:
        """Put stored entries into their sets."""
        self._arms.sets.add_members(entries)

    def restore_exposures(self, slices: dict[int, bytes]) -> None:
        """Take over stored exposures by slice of time."""
        if self._recent is not None:
            self._recent.restore(slices)

    def end_restore(self, above: int) -> None:
        """Give new sets no number below `above`, and find the sets that are at their limit."""
        self._arms.sets.reserve(above)
        self._arms.sets.end_restore()

    # - flags -

    def apply(self, counted: CountedFlag) -> str | None:
        """Count by a newer document of a flag; return the older rollout of it that is over."""
        flag = self._events.open_flags.get(counted.flag_key)
        if flag is None:
            return None
        if flag.counted.rollout_id != counted.rollout_id:
            return flag.counted.rollout_id
        flag.apply(counted)
        return None

    def drop(self, flag_key: str, rollout_id: str) -> None:
        """Forget a rollout that is over."""
        counters: list[ArmCounter] = []
        flag = self._events.open_flags.get(flag_key)
        if flag is not None and flag.counted.rollout_id == rollout_id:
            del self._events.open_flags[flag_key]
            counters = list(flag.counters())
            for counter in counters:
                self._events.note(flag_key, counter.arm, counter.take_evaluations())
        self._arms.drop(flag_key, rollout_id, counters)
        self._arms.sets.drop(flag_key, rollout_id)
        if self._recent is not None and not self._arms.exposure_of:
            self._recent.clear()

    def close(self) -> None:
        """Let go of all flags; only the garbage collector would free their memory otherwise."""
        self._events.open_flags.clear()

    # - joining -

    def index_exposures(self) -> bool:
        """Index some more of the exposures that were counted; return whether all are indexed."""
        return self._recent is None or self._recent.catch_up(self._indexed_per_turn)

    def exposures(self, digest: int, time_ms: int) -> Sequence[tuple[str, str]]:
        """Return (flag key, variant) of a context's last exposure to each flag within the window.

        Only flags with a rollout are returned.
        """
        if self._recent is None:
            return []
        exposure_of, flags = self._arms.exposure_of, self._flags_to_count.flags
        variants: dict[str, str | None] = {}
        for number in self._recent.last(digest, time_ms):
            exposure = exposure_of.get(number)
            if exposure is None:
                continue
            flag_key, rollout_id, arm = exposure
            if flag_key in variants:
                continue
            counted = flags.get(flag_key)
            if counted is not None and counted.rollout_id == rollout_id:
                variants[flag_key] = (
                    counted.treatment
                    if arm is _TREATMENT
                    else counted.control
                    if arm is _CONTROL
                    else None
                )
        return [
            (flag_key, variant) for flag_key, variant in variants.items() if variant is not None
        ]

    # - budget -

    @property
    def load(self) -> int:
        """Memory that sets take, in exact memberships."""
        return self._arms.sets.load

    @property
    def recent_entries(self) -> int:
        """How many exposures are remembered."""
        return 0 if self._recent is None else self._recent.entries

    def forget_oldest(self) -> bool:
        """Forget the oldest slice of exposures; return whether there was one to forget."""
        return self._recent is not None and self._recent.forget_oldest()

    def expire_exposures(self, time_ms: int) -> None:
        """Drop the exposures that no outcome from `time_ms` on can reach."""
        if self._recent is not None:
            self._recent.expire_at(time_ms)

    def seal_early(self) -> bool:
        """Let the next save seal the largest set; return False when none is large enough."""
        return self._arms.sets.seal_early()

    def close_largest(self) -> str | None:
        """Close the sets of the flag with most contexts to new ones; return the flag or None."""
        return self._arms.sets.close_largest()

    # - what has changed -

    @property
    def opened(self) -> int:
        """How many counters were opened so far."""
        return self._arms.opened

    @property
    def changed_arms(self) -> tuple[int, int]:
        """How many arms have changed that are stored in fields of their own, and in bundles."""
        changed = len(self._arms.changed)
        return changed - self._arms.changed_in_bundles, self._arms.changed_in_bundles

    @property
    def bundles(self) -> tuple[int, int]:
        """How many bundles there are, and how many are to be written whatever changes."""
        bundles = self._arms.bundles
        return len(bundles), len(bundles.to_write())

    @property
    def new_entries(self) -> tuple[int, list[int]]:
        """How many members are new, and how many exposures of each slice that has new ones."""
        return self._arms.sets.added, [] if self._recent is None else self._recent.added

    @property
    def new_sets(self) -> int:
        """How many sets are new."""
        return self._arms.sets.new_names

    @property
    def sealing_capacity(self) -> int:
        """How many keys the filter has room for that `seal_next` will change; 0 for none."""
        return self._arms.sets.sealing_capacity

    @property
    def exact_members(self) -> int:
        """How many contexts are exact members, over all sets."""
        return self._arms.sets.exact_members

    def drain(self) -> Difference:
        """Return what has changed since the last save; it counts as saved from now on.

        The totals of `arms` are taken afterwards. Nothing may be counted before the end;
        rollouts may be applied and dropped.
        """
        arms = self._arms
        changed, arms.changed, arms.changed_in_bundles = arms.changed, [], 0
        flag_keys: set[str] = set()
        for counter in changed:
            flag_keys.add(counter.flag_key)
            if len(flag_keys) > MOST_CHANGED:
                break
        own: list[ArmCounter] = []
        note_bundled = arms.bundles.note
        for counter in changed:
            if counter.bundle is None:
                own.append(counter)
            else:
                note_bundled(counter)
        names, members = arms.sets.drain()
        exposures, forgotten = ({}, []) if self._recent is None else self._recent.drain()
        return Difference(own, flag_keys, names, members, exposures, forgotten)

    def take_totals(self, arms: Sequence[ArmCounter]) -> Sequence[ChangedArm]:
        """Return the totals of changed arms, but of those whose rollout was dropped meanwhile."""
        return [
            ChangedArm(arm.field, arm.flag_key, encode_arm(arm.take()))
            for arm in arms
            if arm.is_counting
        ]

    def bundles_to_write(self) -> Sequence[int]:
        """Return the numbers of the bundles that `take_bundle` is to be called for, sorted."""
        return self._arms.bundles.to_write()

    def names_in(self, bundle: int) -> Sequence[str]:
        """Return the names of the arms that were in a bundle when it was last written, sorted."""
        return self._arms.bundles.names(bundle)

    def give_own_field(self, bundle: int, name: str) -> bytes:
        """Take an arm out of its bundle, to be stored in a field of its own; return the content."""
        place = parse_field(name)
        assert place is not None
        assert place.arm is not None
        flag = self._events.open_flags.get(place.flag_key)
        counter = None if flag is None else flag.counter_of(place.visit, place.arm)
        return self._arms.give_own_field(counter, bundle, name)

    def take_bundle(self, bundle: int) -> bytes:
        """Return the content of a bundle: `schemas.totals.encode_bundle`."""
        return self._arms.bundles.take(bundle)

    def take_evaluations(self) -> Sequence[NewEvaluations]:
        """Return the evaluations since the last call: of arms, and those that no arm counts."""
        return self._events.take_evaluations()

    def live(self, entries: bytes) -> bytes:
        """Return those of some entries whose context is an exact member."""
        return self._arms.sets.live(entries)

    def seal_next(self) -> SealedSet | None:
        """Seal one set that is at its limit, None when none is."""
        return self._arms.sets.seal_next()
