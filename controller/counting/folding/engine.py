"""The interface of a fold: what the reference in Python and the native one both are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from controller.counting.folding.difference import (
    ChangedArm,
    Difference,
    NewEvaluations,
    SealedSet,
)
from controller.counting.folding.events import Counted, OutcomeOfRecord
from controller.counting.folding.flags_to_count import CountedFlag
from controller.ports import Record
from schemas.events import EvaluationFields, EvaluationReader, OutcomeReader
from schemas.quarantine import WrittenRefusals
from schemas.totals import ArmCounts


class NativeFault(RuntimeError):
    """The native fold failed where it never should; what it holds may be half a change.

    Each of its methods raises it, also those that are called later.
    """


class Fold(Protocol):
    """Everything that is counted of the events of one partition.

    `PartitionFold` says what each does, and is what each is compared with. `read_evaluations` and
    `read_outcomes` take records, `count_evaluations` and `count_outcomes` events that were read;
    `PartitionTotals.fold_evaluations` and `fold_outcomes`, which call them, also see to positions
    and refusals.
    """

    joins: bool

    @property
    def opened(self) -> int: ...

    @property
    def changed_arms(self) -> tuple[int, int]: ...

    @property
    def bundles(self) -> tuple[int, int]: ...

    @property
    def new_entries(self) -> tuple[int, list[int]]: ...

    @property
    def new_sets(self) -> int: ...

    @property
    def sealing_capacity(self) -> int: ...

    @property
    def exact_members(self) -> int: ...

    @property
    def load(self) -> int: ...

    @property
    def recent_entries(self) -> int: ...

    def set_time(self, now_ms: int, latest_ms: int) -> None: ...

    def count_evaluations(self, events: Iterable[EvaluationFields]) -> Counted: ...

    def count_outcomes(
        self,
        events: Iterable[OutcomeOfRecord],
        room: float,
        partner: Any | None,
        joinable_until_ms: float,
    ) -> Counted: ...

    def read_evaluations(
        self,
        records: Sequence[Record],
        read: EvaluationReader[Record],
        refused: list[WrittenRefusals],
        latest_ms: int,
    ) -> Counted: ...

    def read_outcomes(
        self,
        records: Sequence[Record],
        read: OutcomeReader[Record],
        refused: list[WrittenRefusals],
        latest_ms: int,
        room: float,
        partner: Any | None,
        joinable_until_ms: float,
    ) -> Counted: ...

    def begin_batch(self) -> None: ...

    def restore_arm(self, name: str, counts: ArmCounts, bundle: int | None) -> None: ...

    def restore_set(self, number: int, name: str) -> None: ...

    def restore_filter(self, number: int, words: bytes, keys: int) -> None: ...

    def restore_members(self, entries: bytes) -> None: ...

    def restore_exposures(self, slices: dict[int, bytes]) -> None: ...

    def end_restore(self, above: int) -> None: ...

    def apply(self, counted: CountedFlag) -> str | None: ...

    def drop(self, flag_key: str, rollout_id: str) -> None: ...

    def close(self) -> None: ...

    def index_exposures(self) -> bool: ...

    def exposures(self, digest: int, time_ms: int) -> Sequence[tuple[str, str]]: ...

    def forget_oldest(self) -> bool: ...

    def expire_exposures(self, time_ms: int) -> None: ...

    def seal_early(self) -> bool: ...

    def close_largest(self) -> str | None: ...

    def drain(self) -> Difference: ...

    def take_totals(self, arms: Sequence[Any]) -> Sequence[ChangedArm]: ...

    def bundles_to_write(self) -> Sequence[int]: ...

    def names_in(self, bundle: int) -> Sequence[str]: ...

    def give_own_field(self, bundle: int, name: str) -> bytes: ...

    def take_bundle(self, bundle: int) -> bytes: ...

    def take_evaluations(self) -> Sequence[NewEvaluations]: ...

    def live(self, entries: bytes) -> bytes: ...

    def seal_next(self) -> SealedSet | None: ...
