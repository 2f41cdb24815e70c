"""Where the totals of arms are stored: in fields of their own, or in bundles of several flags.

While there are few flags, each arm has a field of its own; with many, a new arm goes into its
flag's bundle, because a save carries a bounded number of fields. The layout's description is in
`schemas/totals.py`. Does not belong here: what the totals are (`folding/arm_counters.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from controller.counting.folding.difference import ChangedArm
from controller.counting.folding.engine import Fold
from controller.counting.folding.flags_to_count import FlagsToCount
from schemas.totals import (
    bundle_name,
    bundle_number,
    bundle_of,
    decode_arm,
    decode_bundle,
    is_bundle_field,
    parse_field,
)

_OVER_AFTER_MS = 600_000  # after a visit's end; by then even its late events are rare
_CHECKED_PER_SAVE = 16  # bundles that are searched for arms of visits that are over; 0.5 ms
#: Such arms that get fields of their own per save, so that they are not written again and again.
MOVED_PER_SAVE = 32
_BUNDLES_PER_TURN = 128
#: Less of them when they are large: 2 ms by the native fold, which encodes every arm of a bundle.
_BYTES_PER_TURN = 512 * 1024


class StoredArms:
    """The fields of all arms of one partition."""

    def __init__(self, flags_to_count: FlagsToCount, flags_with_own_fields: int) -> None:
        """Start with nothing stored. With more flags than that, new arms go into bundles."""
        self._flags_to_count = flags_to_count
        self._flags_with_own_fields = flags_with_own_fields
        self._own: dict[tuple[str, str], set[str]] = {}  # by flag key and rollout id
        self._garbage: list[str] = []  # fields to delete after the next save
        #: Flag key -> rollouts with something stored, or about to be.
        self.rollouts: dict[str, set[str]] = {}

    def restore(self, fields: Mapping[str, bytes], fold: Fold) -> None:
        """Give a fold its stored totals.

        Raises ValueError or KeyError when we cannot have written them.
        """
        for name, value in fields.items():
            if is_bundle_field(name):
                bundle = bundle_number(name)
                for arm_name, arm_value in decode_bundle(value).items():
                    self._restore_arm(arm_name, arm_value, bundle, fold)
            else:
                self._restore_arm(name, value, None, fold)

    def _restore_arm(self, name: str, value: bytes, bundle: int | None, fold: Fold) -> None:
        place = parse_field(name)
        if place is None or place.arm is None:
            return
        fold.restore_arm(name, decode_arm(value), bundle)
        self.rollouts.setdefault(place.flag_key, set()).add(place.rollout_id)
        if bundle is None:
            self._note_own_field(place.flag_key, place.rollout_id, name)

    def _note_own_field(self, flag_key: str, rollout_id: str, name: str) -> None:
        self._own.setdefault((flag_key, rollout_id), set()).add(name)

    def bundle_of(self, flag_key: str, name: str) -> int | None:
        """Return the bundle for an arm that is not stored yet, None for a field of its own."""
        self.rollouts.setdefault(flag_key, set()).add(name.split("|")[1])
        if len(self._flags_to_count.flags) <= self._flags_with_own_fields:
            return None
        return bundle_of(flag_key)

    def changed_fields(self, fold: Fold) -> int:
        """Return how many fields the next save of arms will carry, or a few more."""
        own, bundled = fold.changed_arms
        bundles, to_write = fold.bundles
        return own + min(bundled, bundles) + to_write + MOVED_PER_SAVE

    def write(self, arms: Iterable[ChangedArm], fields: dict[str, bytes]) -> None:
        """Put the totals of arms into their own fields."""
        for name, flag_key, value in arms:
            fields[name] = value
            self._note_own_field(flag_key, name.split("|")[1], name)

    def write_bundles(
        self, fold: Fold, fields: dict[str, bytes], turn: int, freshest_ms: int
    ) -> Iterator[None]:
        """Put the bundles that have changed into `fields`; yield now and then.

        Some arms of visits that are over get fields of their own, so that they are not written
        again with every save of their bundle; `turn` varies which bundles are searched for those.
        """
        bundles = fold.bundles_to_write()
        for bundle, name in self._arms_to_move(fold, bundles, turn, freshest_ms):
            fields[name] = fold.give_own_field(bundle, name)
            flag_key, rollout_id, *_ = name.split("|")
            self._note_own_field(flag_key, rollout_id, name)
        size = 0
        for place, bundle in enumerate(bundles):
            if place % _BUNDLES_PER_TURN == 0 or size >= _BYTES_PER_TURN:
                size = 0
                yield
            content = fields[bundle_name(bundle)] = fold.take_bundle(bundle)
            size += len(content)

    def _arms_to_move(
        self, fold: Fold, bundles: Sequence[int], turn: int, freshest_ms: int
    ) -> list[tuple[int, str]]:
        """Return some (bundle, arm) of visits that are over."""
        until_ms = freshest_ms - _OVER_AFTER_MS
        begin = turn % max(1, len(bundles) - _CHECKED_PER_SAVE)
        over = (
            (bundle, name)
            for bundle in bundles[begin : begin + _CHECKED_PER_SAVE]
            for name in fold.names_in(bundle)
            if self._is_over(name, until_ms)
        )
        return [each for each, _ in zip(over, range(MOVED_PER_SAVE), strict=False)]

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

    def drop(self, flag_key: str, rollout_id: str) -> None:
        """Forget a rollout that is over.

        The next save deletes its own fields once it is written. Of its bundle the fold sees to it.
        """
        self._garbage += sorted(self._own.pop((flag_key, rollout_id), ()))
        self.rollouts.get(flag_key, set()).discard(rollout_id)

    def drain_garbage(self) -> list[str]:
        """Return the fields to delete after the save; they count as deleted from now on."""
        garbage, self._garbage = self._garbage, []
        return garbage
