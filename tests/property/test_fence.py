from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from controller.adapters.memory import MemoryTotals
from controller.errors import StoreUnavailable
from schemas.terms import Arm
from schemas.totals import (
    ArmCounts,
    PartitionCounts,
    arm_field,
    decode_arm,
    decode_progress,
    encode_arm,
    encode_progress,
)

KEY = "e/0/1"
FLAGS = 3
NAMES = [arm_field(f"flag-{n}", "r", 0, Arm.TREATMENT) for n in range(FLAGS)]


@dataclass(frozen=True)
class Save:
    """The arguments of one save, to be sent now, later, or again."""

    expected: int | None
    after: int
    fields: tuple[tuple[str, bytes], ...]


@dataclass(eq=False)
class Owner:
    """Somebody who believes to own the partition."""

    fence: int | None
    folded: int  # offset up to which `counts` holds everything
    counts: dict[int, int] = field(default_factory=dict)
    saved: dict[int, int] = field(
        default_factory=dict
    )  # as of the last save that is known to be written
    pending: Save | None = None  # sent, and the outcome is not known


class Counting(RuleBasedStateMachine):
    """Owners fold, save, lose replies, go to sleep and wake as zombies.

    The store loses its last writes, or all of them.

    The log is a function of the offset: record n is of flag `n % FLAGS`. Whatever happens, totals
    match their fence.
    """

    owners: Bundle[Owner] = Bundle("owners")
    late: Bundle[Save] = Bundle("late")  # saves that are still on their way

    def __init__(self) -> None:
        super().__init__()
        self.totals = MemoryTotals()
        self.snapshots: list[dict[str, dict[str, bytes]]] = [{}]

    @rule(target=owners)
    def assigned(self) -> Owner:
        """A new owner loads what is stored. The others are not told: they are zombies now."""
        owner = Owner(None, 0)
        self._load(owner)
        return owner

    @rule(owner=owners, records=st.integers(0, 7))
    def fold(self, owner: Owner, records: int) -> None:
        """An owner reads on."""
        for offset in range(owner.folded, owner.folded + records):
            owner.counts[offset % FLAGS] = owner.counts.get(offset % FLAGS, 0) + 1
        owner.folded += records

    @rule(target=late, owner=owners, reply=st.sampled_from(("comes", "is lost", "save is late")))
    def save(self, owner: Owner, reply: str) -> Save | MultipleResults[Save]:
        """An owner saves what changed.

        An unknown outcome is repeated with the same arguments before anything else.
        """
        save = owner.pending or self._changes(owner)
        owner.pending = save
        if reply == "save is late":
            return save
        self.totals.outage.lost_replies = int(reply == "is lost")
        try:
            refused = self._send(save)
        except StoreUnavailable:
            return multiple()
        owner.pending = None
        if refused is None:
            owner.fence = save.after
            owner.saved.update({n: decode_arm(value).evaluations for n, value in self._arms(save)})
        else:
            self._load(owner)
        return multiple()

    @rule(save=consumes(late))
    def a_late_save_arrives(self, save: Save) -> None:
        """What was given up on is carried out after all."""
        self._send(save)

    @rule(back=st.integers(1, 4))
    def the_store_loses_its_last_writes(self, back: int) -> None:
        """A torn tail, or a fail-over: the store is what it was some writes ago."""
        self.snapshots = self.snapshots[:-back] or self.snapshots[:1]
        self.totals.hashes = copy.deepcopy(self.snapshots[-1])

    @rule()
    def the_store_is_emptied(self) -> None:
        """Everything is gone."""
        self.snapshots = [{}]
        self.totals.hashes = {}

    @invariant()
    def totals_match_their_fence(self) -> None:
        """Each record before the fence is counted once, and none after it."""
        stored = asyncio.run(self.totals.load(KEY))
        fence = stored.next_offset or 0
        for n, name in enumerate(NAMES):
            counted = decode_arm(stored.fields.get(name, b"{}")).evaluations
            assert counted == len(range(n, fence, FLAGS)), f"flag {n} at fence {fence}"
        assert stored.next_offset is None or decode_progress(stored.fields).adds_up(fence)

    def _load(self, owner: Owner) -> None:
        stored = asyncio.run(self.totals.load(KEY))
        owner.fence, owner.folded = stored.next_offset, stored.next_offset or 0
        owner.counts = {
            n: decode_arm(stored.fields[name]).evaluations
            for n, name in enumerate(NAMES)
            if name in stored.fields
        }
        owner.saved = dict(owner.counts)

    def _changes(self, owner: Owner) -> Save:
        progress = encode_progress(PartitionCounts(end=owner.folded, counted=owner.folded))
        changed = {
            NAMES[n]: encode_arm(ArmCounts(evaluations=count))
            for n, count in owner.counts.items()
            if owner.saved.get(n) != count
        }
        return Save(owner.fence, owner.folded, tuple({**progress, **changed}.items()))

    def _arms(self, save: Save) -> list[tuple[int, bytes]]:
        return [(NAMES.index(name), value) for name, value in save.fields if name in NAMES]

    def _send(self, save: Save) -> int | None:
        try:
            return asyncio.run(
                self.totals.save(
                    KEY, expected=save.expected, next_offset=save.after, fields=dict(save.fields)
                )
            )
        finally:
            if self.totals.hashes != self.snapshots[-1]:
                self.snapshots.append(copy.deepcopy(self.totals.hashes))


TestCounting = Counting.TestCase
TestCounting.__doc__ = "Whatever owners and store go through, totals match their fence."
