"""What has changed in a partition since its last save, as values: what a save is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple

from schemas.terms import Arm


class SealedSet(NamedTuple):
    """A set whose exact members have just moved into one of its filters."""

    number: int
    layer: int  # which of its filters
    keys: int  # how many are in it
    words: bytes  # its bits: 64-bit words, little-endian


#: Flag key, arm or None for contexts in neither, and how many. A flag may come several times.
NewEvaluations = tuple[str, Arm | None, int]


class ChangedArm(NamedTuple):
    """The totals of one arm that has changed and has a field of its own."""

    field: str  # the arm's name: `schemas.totals.arm_field`
    flag_key: str
    value: bytes  # as they are stored: `schemas.totals.encode_arm`


@dataclass(slots=True)
class Difference:
    """Everything that has changed but the totals of arms, which are taken some at a time.

    Entries are as in the journal: set number (u32) and context digest (u64), little-endian.
    """

    arms: Sequence[Any]  # those with fields of their own, for `take_totals`
    #: Flags whose totals have changed; of more than `MOST_CHANGED`, one more than that.
    flag_keys: AbstractSet[str]
    names: Sequence[tuple[int, str]]  # sets that are new
    members: bytes  # entries of contexts that are new in a set
    exposures: Mapping[int, bytes]  # slice of time -> entries
    forgotten: Sequence[int]  # slices of time whose exposures no outcome can reach any more
