"""What has changed in a partition since its last save, as values: what a save is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from controller.counting.folding.evaluation_hours import FlagArm
from schemas.terms import Arm


class SealedSet(NamedTuple):
    """A set whose exact members have just moved into one of its filters."""

    number: int
    layer: int  # which of its filters
    keys: int  # how many are in it
    words: bytes  # its bits: 64-bit words, little-endian


class ChangedArm(NamedTuple):
    """The totals of one arm that has changed."""

    field: str  # the arm's name: `schemas.totals.arm_field`
    flag_key: str
    arm: Arm
    bundle: int | None  # of flags' arms that are stored together; None: it has its own field
    evaluations: int  # those since the last save
    #: All of them, as they are stored: `schemas.totals.encode_arm`, of a bundle `bundle_entry`.
    value: bytes


@dataclass(slots=True)
class Difference:
    """Everything that has changed but the totals of arms, which are taken some at a time.

    Entries are as in the journal: set number (u32) and context digest (u64), little-endian.
    """

    arms: Sequence[Any]  # for `take_totals`
    evaluations: Mapping[FlagArm, int]  # that no arm passes on
    names: Sequence[tuple[int, str]]  # sets that are new
    members: bytes  # entries of contexts that are new in a set
    exposures: Mapping[int, bytes]  # slice of time -> entries
    forgotten: Sequence[int]  # slices of time whose exposures no outcome can reach any more
