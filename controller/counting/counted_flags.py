"""All flags of one partition: what is stored of them, and what has changed since the last save.

Belongs here: restoring, dropping, the memory budget, what a save carries, and which exposures an
outcome without flags is joined to. Does not belong here: what an event adds (`fold.py`), offsets
and progress (`partition_totals.py`), when things are saved (`saving.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from controller.counting.arm_counters import NO_CONTEXTS, ArmCounter
from controller.counting.evaluation_hours import FlagArm
from controller.counting.flag_partition import FlagPartition
from controller.counting.flags_to_count import CountedFlag, FlagsToCount
from controller.counting.partition_arms import PartitionArms, encode_bundles
from controller.counting.recent_exposures import RecentExposures
from schemas.terms import Arm
from schemas.totals import encode_arm, parse_field

FLAGS_WITH_OWN_FIELDS = 250
"""With more flags under rollout, arms that are counted for the first time go into bundles.

With fewer, all arms in use fit into one save as fields of their own. Those are smaller to write and
easier to inspect.
"""

# How much is done before others may run.
_ENCODED_PER_TURN = 400  # arms; with a full histogram one takes about 10 µs, so 4 ms
_BUNDLES_PER_TURN = 128  # a few KB each
_INDEXED_PER_TURN = 20_000  # recent exposures, after the first outcome without flags; about 10 ms

# An exposure takes so much less memory than a membership, unless outcomes without flags have the
# exposures indexed.
_EXPOSURES_PER_MEMBERSHIP = 4
_CLOSE_AGAIN = 20  # the load must grow by a twentieth before the next flag is closed


@dataclass(slots=True)
class Changes:
    """What one save carries."""

    fields: dict[str, bytes] = field(default_factory=dict)
    garbage: list[str] = field(default_factory=list)  # fields to delete once it is written
    flag_keys: frozenset[str] = frozenset()


class CountedFlags:
    """The flags of one partition with their counters, sets and recent exposures."""

    def __init__(
        self,
        flags_to_count: FlagsToCount,
        *,
        counts_exposures: bool,
        exact_limit: int,
        window_ms: int | None,
        flags_with_own_fields: int,
    ) -> None:
        """Start empty. The parameters are those of `PartitionTotals`."""
        self._flags_to_count = flags_to_count
        self.arms = PartitionArms(
            flags_to_count,
            counts_exposures=counts_exposures,
            exact_limit=exact_limit,
            flags_with_own_fields=flags_with_own_fields,
        )
        self.open_flags: dict[str, FlagPartition] = {}
        # Counters outside every visit that have evaluations since the last save.
        self.outside: list[ArmCounter] = []
        # Other evaluations since then: of flags whose rollout is over, and of unknown variants.
        self._others: dict[FlagArm, int] = {}
        has_recent = window_ms is not None and counts_exposures
        self.recent = RecentExposures(window_ms or 0) if has_recent else None
        # Whether an outcome without flags came. Then both partitions of the pair are counted in the
        # order of time.
        self.joins = False
        self._closed_at = 0  # load at which the last flag was closed
        self.full_flags: dict[str, None] = {}  # whose new contexts the budget has no room for

    # - reading -

    def restore(self, fields: Mapping[str, bytes]) -> None:
        """Continue from stored fields.

        Raises ValueError or KeyError when we cannot have written them.
        """
        self.arms.restore(fields)
        if self.recent is not None:
            self.arms.memberships.reserve(self.recent.restore(fields))
        self.joins = fields.get("joins") == b"1"

    def open(self, flag_key: str) -> FlagPartition | None:
        """Open a flag; return None for a flag without a rollout."""
        counted = self._flags_to_count.flags.get(flag_key)
        if counted is None:
            self._flags_to_count.count_unknown(flag_key)
            return None
        flag = self.open_flags[flag_key] = FlagPartition(self.arms, counted)
        self.arms.rollouts.setdefault(flag_key, set()).add(counted.rollout_id)
        return flag

    def apply(self, counted: CountedFlag) -> None:
        """Count by a newer document of a flag; the totals of an older rollout of it are dropped."""
        flag = self.open_flags.get(counted.flag_key)
        if flag is not None:
            if flag.counted.rollout_id == counted.rollout_id:
                flag.apply(counted)
            else:
                self.drop(counted.flag_key, flag.counted.rollout_id)

    # - evaluations that no arm counts -

    def note_ended(self, flag_key: str, variant: str) -> None:
        """Note an evaluation of a flag that is not counted, if its rollout is over."""
        arms = self._flags_to_count.ended_arms.get(flag_key)
        if arms is not None:
            self.note(flag_key, arms.get(variant))

    def note(self, flag_key: str, arm: Arm | None, count: int = 1) -> None:
        """Note evaluations that no counter passes on; the next save does."""
        if count:
            self._others[flag_key, arm] = self._others.get((flag_key, arm), 0) + count

    def _pass_on(self, counter: ArmCounter, at_ms: int) -> None:
        """Pass on the evaluations that a counter has got since the last save."""
        count = counter.evaluations - counter.noted
        if count:
            counter.noted = counter.evaluations
            self._flags_to_count.evaluations.add(counter.flag_key, counter.arm, count, at_ms)

    def _pass_on_others(self, at_ms: int) -> None:
        """Pass on the evaluations since the last save that are in no total."""
        outside, self.outside = self.outside, []
        for counter in outside:
            counter.is_changed = False
            self._pass_on(counter, at_ms)
        others, self._others = self._others, {}
        for (flag_key, arm), count in others.items():
            self._flags_to_count.evaluations.add(flag_key, arm, count, at_ms)

    # - joining -

    def index_exposures(self) -> bool:
        """Index some more of the exposures that were counted; return whether all are indexed."""
        return self.recent is None or self.recent.catch_up(_INDEXED_PER_TURN)

    def exposures(self, digest: int, time_ms: int) -> list[tuple[str, str]]:
        """Return (flag key, variant) of a context's last exposure to each flag within the window.

        Only flags with a rollout are returned.
        """
        if self.recent is None:
            return []
        variants: dict[str, str | None] = {}
        for number in self.recent.last(digest, time_ms):
            exposure = self.arms.exposure_of.get(number)
            if exposure is None:
                continue
            flag_key, rollout_id, arm = exposure
            counted = self._flags_to_count.flags.get(flag_key)
            is_current = counted is not None and counted.rollout_id == rollout_id
            if counted is not None and is_current and flag_key not in variants:
                variants[flag_key] = (
                    None
                    if arm is None
                    else counted.treatment
                    if arm is Arm.TREATMENT
                    else counted.control
                )
        return [
            (flag_key, variant) for flag_key, variant in variants.items() if variant is not None
        ]

    # - dropping -

    def close(self) -> None:
        """Let go of all flags; only the garbage collector would free their memory otherwise."""
        self.open_flags.clear()

    def drop(self, flag_key: str, rollout_id: str) -> None:
        """Forget a rollout that is over.

        The next save writes its bundle without it and deletes its own fields after that.
        """
        counters: list[ArmCounter] = []
        flag = self.open_flags.get(flag_key)
        if flag is not None and flag.counted.rollout_id == rollout_id:
            del self.open_flags[flag_key]
            counters = list(flag.counters())
            for counter in counters:
                self.note(flag_key, counter.arm, counter.evaluations - counter.noted)
                counter.noted = counter.evaluations
        self.arms.drop(flag_key, rollout_id, counters)
        if self.recent is not None and not self.arms.exposure_of:
            self.recent.clear()
        self.full_flags.pop(flag_key, None)

    def drop_superseded(self) -> None:
        """Drop what is stored of rollouts that are over, or that are not their flag's present one.

        Only to be called when the counted flags are known to be newer than the hash: a replica that
        lags behind would take a newer rollout for an older one.
        """
        for flag_key, rollout_ids in list(self.arms.rollouts.items()):
            counted = self._flags_to_count.flags.get(flag_key)
            if counted is not None:
                superseded = rollout_ids - {counted.rollout_id}
            elif flag_key in self._flags_to_count.over:
                superseded = set(rollout_ids)
            else:
                continue  # its document may be unreadable: it is not known to be over
            for rollout_id in superseded:
                self.drop(flag_key, rollout_id)
            if not rollout_ids:
                del self.arms.rollouts[flag_key]

    def expire_exposures(self, time_ms: int) -> None:
        """Drop the exposures that no outcome from `time_ms` on can reach."""
        if self.recent is not None:
            self.recent.expire_at(time_ms)

    def keep_budget(self, most: int) -> list[str]:
        """Keep the contexts of this partition within `most`; return the flags that it closes.

        What is given up, in this order, one step per save: exposures of the older part of the
        attribution window; exactness of the largest sets; new contexts of the flag that has most.
        That flag's exposures and conversions then stay as they are here, and an outcome that names
        no flag is joined only to contexts known before. Outcomes that name their flags, and errors,
        are counted as before.
        """
        recent, memberships = self.recent, self.arms.memberships
        load = memberships.load
        if recent is not None:
            load += recent.entries // _EXPOSURES_PER_MEMBERSHIP
        if load <= most:
            self._closed_at = 0
            return []
        if recent is not None and recent.forget_oldest():
            return []
        if memberships.seal_early():
            return []
        if load < self._closed_at + self._closed_at // _CLOSE_AGAIN:
            return []  # the flag that was closed last was the one that grew
        self._closed_at = load
        closed = memberships.close_largest()
        if closed is None:
            return []
        self.full_flags[closed] = None
        return [closed]

    # - saving -

    @property
    def has_changed(self) -> bool:
        """Whether an arm has changed since the last save."""
        return bool(self.arms.changed or self.arms.changed_in_bundles)

    @property
    def changed_fields(self) -> int:
        """How many fields the next save will carry, or a few more."""
        recent = 0 if self.recent is None else self.recent.changed
        return self.arms.changed_fields + self.arms.memberships.changed + recent

    def drain_changes(
        self, changes: Changes, position: int, freshest_ms: int, last_ms: int
    ) -> Iterator[None]:
        """Put everything that has changed since the last save into `changes`; begin the next batch.

        `position` and `freshest_ms` are the partition's, `last_ms` the time of its last record.
        Yields now and then, for others to run. Nothing may be counted before the end; rollouts may
        be applied and dropped.
        """
        counters, bundles_to_write = self.arms.drain_changed()
        self._pass_on_others(last_ms)
        flag_keys = set()
        self._drain_sets(changes)
        fields = changes.fields
        for begin in range(0, len(counters), _ENCODED_PER_TURN):
            yield
            for counter in counters[begin : begin + _ENCODED_PER_TURN]:
                counter.is_changed = False
                counter.batch_contexts = NO_CONTEXTS
                self._pass_on(counter, last_ms)
                if not counter.is_counting:
                    continue  # dropped meanwhile
                flag_keys.add(counter.flag_key)
                value = encode_arm(counter.counts())
                home = counter.home
                if home is None:
                    fields[counter.field] = value
                else:
                    home.entries[counter.field] = counter.head + value
                    bundles_to_write[home.name] = home
        changes.flag_keys = frozenset(flag_keys)
        yield
        bundles = list(bundles_to_write.values())
        for bundle, name in self.arms.entries_to_move(bundles, position, freshest_ms):
            fields[name] = bundle.entries.pop(name)[len(name) + 3 :]
            self._give_own_field(name)
        for begin in range(0, len(bundles), _BUNDLES_PER_TURN):
            yield
            fields.update(encode_bundles(bundles[begin : begin + _BUNDLES_PER_TURN]))

    def _give_own_field(self, name: str) -> None:
        """Let an arm that was stored in a bundle be stored in a field of its own."""
        place = parse_field(name)
        assert place is not None
        flag = self.open_flags.get(place.flag_key)
        if flag is not None and place.arm is not None:
            counter = flag.counter_of(place.visit, place.arm)
            if counter is not None:
                counter.home = None

    def _drain_sets(self, changes: Changes) -> None:
        fields, garbage = self.arms.memberships.drain_changes()
        changes.fields |= fields
        changes.garbage += garbage
        if self.recent is not None:
            fields, garbage = self.recent.drain_changes()
            changes.fields |= fields
            changes.garbage += garbage
        if self.joins:
            changes.fields["joins"] = b"1"
        changes.garbage += self.arms.drain_garbage()
