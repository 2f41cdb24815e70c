"""All flags of one partition: what is counted of them, and where that is stored.

Belongs here: the fold and the layout put together, dropping, and the memory budget. Does not belong
here: what an event adds (`folding/`), which field holds what (`layout/`), offsets and progress
(`partition_totals.py`), when things are saved (`saving.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from controller.counting.folding.engine import Fold
from controller.counting.folding.flags_to_count import CountedFlag, FlagsToCount
from controller.counting.folding.native import NATIVE, native_fold
from controller.counting.folding.partition_fold import PartitionFold
from controller.counting.layout.stored_arms import StoredArms
from controller.counting.layout.stored_exposures import StoredExposures
from controller.counting.layout.stored_sets import StoredSets

FLAGS_WITH_OWN_FIELDS = 250
"""With more flags under rollout, arms that are counted for the first time go into bundles.

With fewer, all arms in use fit into one save as fields of their own. Those are smaller to write and
easier to inspect.
"""

# How much is done before others may run.
_INDEXED_PER_TURN = 20_000  # recent exposures, after the first outcome without flags; about 10 ms
_NOTED_PER_TURN = 2_000  # counts of evaluations; about 2 ms
_ENCODED_PER_TURN = 400  # arms; with a full histogram one takes about 10 µs, so 4 ms

# An exposure takes so much less memory than a membership, unless outcomes without flags have the
# exposures indexed.
_EXPOSURES_PER_MEMBERSHIP = 4
_CLOSE_AGAIN = 20  # the load must grow by a twentieth before the next flag is closed

#: Makes the fold of a partition: the native one where it was built.
new_fold: Callable[..., Fold] = PartitionFold if NATIVE is None else native_fold(NATIVE)


@dataclass(slots=True)
class Changes:
    """What one save carries."""

    fields: dict[str, bytes] = field(default_factory=dict)
    garbage: list[str] = field(default_factory=list)  # fields to delete once it is written
    #: Whose totals have changed; of more than `MOST_CHANGED` not all.
    flag_keys: set[str] = field(default_factory=set)


class CountedFlags:
    """The flags of one partition: counted by `fold`, stored as `schemas/totals.py` describes."""

    def __init__(
        self,
        flags_to_count: FlagsToCount,
        *,
        counts_exposures: bool,
        exact_limit: int,
        window_ms: int | None,
        flags_with_own_fields: int,
        new_fold: Callable[..., Fold] = new_fold,
    ) -> None:
        """Start empty.

        `new_fold` makes the fold; the other parameters are those of `PartitionTotals`.
        """
        self._flags_to_count = flags_to_count
        self._arms = StoredArms(flags_to_count, flags_with_own_fields)
        self._sets = StoredSets()
        self._exposures = StoredExposures()
        self.fold: Fold = new_fold(
            flags_to_count,
            counts_exposures=counts_exposures,
            exact_limit=exact_limit,
            window_ms=window_ms,
            bundle_of=self._arms.bundle_of,
            indexed_per_turn=_INDEXED_PER_TURN,
        )
        self._closed_at = 0  # load at which the last flag was closed
        self.full_flags: dict[str, None] = {}  # whose new contexts the budget has no room for

    def restore(self, fields: Mapping[str, bytes]) -> None:
        """Continue from stored fields.

        Raises ValueError or KeyError when we cannot have written them.
        """
        self._arms.restore(fields, self.fold)
        self._sets.restore(fields, self.fold)
        for flag_key, rollout_id in self._sets.rollouts():
            self._arms.rollouts.setdefault(flag_key, set()).add(rollout_id)
        self.fold.end_restore(self._exposures.restore(fields, self.fold))
        self.fold.joins = fields.get("joins") == b"1"

    def apply(self, counted: CountedFlag) -> None:
        """Count by a newer document of a flag; the totals of an older rollout of it are dropped."""
        superseded = self.fold.apply(counted)
        if superseded is not None:
            self.drop(counted.flag_key, superseded)

    # - dropping -

    def close(self) -> None:
        """Let go of all flags; only the garbage collector would free their memory otherwise."""
        self.fold.close()

    def drop(self, flag_key: str, rollout_id: str) -> None:
        """Forget a rollout that is over.

        The next save writes its bundle without it and deletes its own fields after that.
        """
        self.fold.drop(flag_key, rollout_id)
        self._arms.drop(flag_key, rollout_id)
        self._sets.drop(flag_key, rollout_id)
        self.full_flags.pop(flag_key, None)

    def drop_superseded(self) -> None:
        """Drop what is stored of rollouts that are over, or that are not their flag's present one.

        Only to be called when the counted flags are known to be newer than the hash: a replica that
        lags behind would take a newer rollout for an older one.
        """
        rollouts = self._arms.rollouts
        for flag_key, rollout_ids in list(rollouts.items()):
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
                del rollouts[flag_key]

    def keep_budget(self, most: int) -> list[str]:
        """Keep the contexts of this partition within `most`; return the flags that it closes.

        What is given up, in this order, one step per save: exposures of the older part of the
        attribution window; exactness of the largest sets; new contexts of the flag that has most.
        That flag's exposures and conversions then stay as they are here, and an outcome that names
        no flag is joined only to contexts known before. Outcomes that name their flags, and errors,
        are counted as before.
        """
        load = self.load
        if load <= most:
            self._closed_at = 0
            return []
        if self.fold.forget_oldest() or self.fold.seal_early():
            return []
        if load < self._closed_at + self._closed_at // _CLOSE_AGAIN:
            return []  # the flag that was closed last was the one that grew
        self._closed_at = load
        closed = self.fold.close_largest()
        if closed is None:
            return []
        self.full_flags[closed] = None
        return [closed]

    @property
    def load(self) -> int:
        """Memory in use, in exact memberships."""
        return self.fold.load + self.fold.recent_entries // _EXPOSURES_PER_MEMBERSHIP

    def note_evaluations(self, at_ms: int) -> Iterator[None]:
        """Pass on the evaluations since the last call, to the hour of this time.

        Yields now and then, for others to run.
        """
        hours = self._flags_to_count.evaluations
        taken = self.fold.take_evaluations()
        for begin in range(0, len(taken), _NOTED_PER_TURN):
            yield
            for flag_key, arm, count in taken[begin : begin + _NOTED_PER_TURN]:
                hours.add(flag_key, arm, count, at_ms)

    # - saving -

    @property
    def has_changed(self) -> bool:
        """Whether an arm has changed since the last save."""
        return any(self.fold.changed_arms)

    @property
    def changed_fields(self) -> int:
        """How many fields the next save will carry, or a few more."""
        members, exposures = self.fold.new_entries
        return (
            self._arms.changed_fields(self.fold)
            + self._sets.changed_fields(self.fold, members)
            + self._exposures.changed_fields(exposures)
        )

    def drain_changes(self, changes: Changes, turn: int, freshest_ms: int) -> Iterator[None]:
        """Put everything that has changed since the last save into `changes`; begin the next batch.

        `turn` varies what is searched for arms that are over. `freshest_ms` is the partition's.
        Yields now and then, for others to run. Nothing may be counted before the end; rollouts may
        be applied and dropped.
        """
        difference = self.fold.drain()
        changes.flag_keys |= difference.flag_keys
        for fields, garbage in (
            self._sets.write(difference, self.fold),
            self._exposures.write(difference),
        ):
            changes.fields |= fields
            changes.garbage += garbage
        if self.fold.joins:
            changes.fields["joins"] = b"1"
        changes.garbage += self._arms.drain_garbage()
        for begin in range(0, len(difference.arms), _ENCODED_PER_TURN):
            yield
            arms = self.fold.take_totals(difference.arms[begin : begin + _ENCODED_PER_TURN])
            self._arms.write(arms, changes.fields)
        yield
        yield from self._arms.write_bundles(self.fold, changes.fields, turn, freshest_ms)
