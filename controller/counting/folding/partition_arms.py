"""The counters and sets of all flags in one partition, and which have changed since the last save.

Belongs here: counters as restored and as opened since. Does not belong here: which arm an event
falls into (`flag_partition.py`), what it adds (`events.py`), where arms are stored
(`layout/stored_arms.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from controller.counting.folding.arm_counters import ArmCounter
from controller.counting.folding.bundles import Bundles
from controller.counting.folding.context_sets import ContextSets
from schemas.terms import Arm
from schemas.totals import ArmCounts, encode_arm

#: The kind of the set of contexts in neither arm, beside the arms' own.
NEITHER = "neither"
_EXPOSED = {Arm.TREATMENT.value: Arm.TREATMENT, Arm.CONTROL.value: Arm.CONTROL, NEITHER: None}


class PartitionArms:
    """The counters and sets of all flags in one partition."""

    def __init__(
        self,
        *,
        counts_exposures: bool,
        exact_limit: int,
        bundle_of: Callable[[str, str], int | None],
    ) -> None:
        """Start empty.

        `bundle_of` says in which bundle a new arm will be stored, by the key of its flag and its
        name, None for one with a field of its own; it is asked once of each.
        """
        self.counts_exposures = counts_exposures
        self.sets = ContextSets(exact_limit)
        # Set number -> flag key, rollout id, arm; None for neither arm.
        self.exposure_of: dict[int, tuple[str, str, Arm | None]] = {}
        self.opened = 0  # counters that were opened so far
        self.changed: list[ArmCounter] = []
        self.changed_in_bundles = 0  # of those that have changed
        self.bundles = Bundles()
        self._bundle_of = bundle_of
        # Restored, not opened yet: totals, and the bundle that they are stored in.
        self._stored: dict[str, tuple[ArmCounts, int | None]] = {}

    def restore_arm(self, name: str, counts: ArmCounts, bundle: int | None) -> None:
        """Take over the stored totals of an arm, and the bundle that they are stored in."""
        self._stored[name] = counts, bundle
        if bundle is not None:
            self.bundles.put(bundle, name, encode_arm(counts))

    def restore_set(self, number: int, name: str) -> None:
        """Take over a stored set."""
        self.sets.place(number, name)
        flag_key, rollout_id, _, kind = name.split("|")
        if kind in _EXPOSED:
            self.exposure_of[number] = (flag_key, rollout_id, _EXPOSED[kind])

    def open(self, flag_key: str, arm: Arm, name: str) -> ArmCounter:
        """Return the counter of the arm called `name`, with its stored totals."""
        if name in self._stored:
            counts, bundle = self._stored.pop(name)
        else:
            counts, bundle = ArmCounts(), self._bundle_of(flag_key, name)
        counter = ArmCounter(flag_key, arm, name, counts)
        counter.bundle = bundle
        if bundle is not None:
            self.bundles.open(bundle)
        return counter

    def give_own_field(self, counter: ArmCounter | None, bundle: int, name: str) -> bytes:
        """Take an arm out of its bundle; return its totals, as they are stored.

        `counter` is its counter, None when it was not opened yet.
        """
        self.bundles.remove(bundle, name)
        if counter is not None:
            counter.bundle = None
            return encode_arm(counter.take())
        counts, _ = self._stored[name]
        self._stored[name] = counts, None
        return encode_arm(counts)

    def note_change(self, counter: ArmCounter) -> None:
        """List a counter among those that have changed; a batch of its contexts begins."""
        counter.is_changed = True
        counter.batch_contexts = {}
        self.changed.append(counter)
        if counter.bundle is not None:
            self.changed_in_bundles += 1

    def drop(self, flag_key: str, rollout_id: str, counters: Iterable[ArmCounter]) -> None:
        """Forget a rollout, whose open counters are `counters`; its sets are dropped apart."""
        dropped = set(counters)
        for counter in dropped:
            counter.is_counting = False  # it may be about to be saved
            if counter.bundle is not None:
                self.bundles.remove(counter.bundle, counter.field)
        self.changed = [counter for counter in self.changed if counter not in dropped]
        self.changed_in_bundles = sum([counter.bundle is not None for counter in self.changed])
        prefix = f"{flag_key}|{rollout_id}|"
        for name in [name for name in self._stored if name.startswith(prefix)]:
            _, bundle = self._stored.pop(name)
            if bundle is not None:
                self.bundles.remove(bundle, name)
        self.exposure_of = {
            number: exposure
            for number, exposure in self.exposure_of.items()
            if exposure[:2] != (flag_key, rollout_id)
        }
