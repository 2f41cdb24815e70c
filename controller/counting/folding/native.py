"""The native fold, where it was built (`make native`) or installed: `controller/counting/native/`.

Without it the reference runs, and counts the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import log
from typing import Any, Final

from controller.core.evidence import GAMMA, HIGHEST_BUCKET, LOWEST_BUCKET
from controller.counting.folding.difference import ChangedArm, Difference, SealedSet
from controller.counting.folding.engine import Fold, NativeFault
from controller.counting.folding.events import Counted
from controller.counting.native_place import load_native, native_place
from controller.ports import Record
from schemas.quarantine import (
    MAX_BODY,
    MAX_JSON,
    MAX_REFUSALS,
    WrittenRefusals,
    why_as_json,
)
from schemas.terms import Arm, EventFormat
from schemas.totals import MOST_CHANGED
from schemas.wire import read_evaluations, read_outcomes


def native_fold(module: Any) -> Callable[..., Fold]:
    """Return what makes native folds, with the parameters of `PartitionFold`."""
    return partial(
        module.PartitionFold,
        most_changed=MOST_CHANGED,
        lowest_bucket=LOWEST_BUCKET,
        highest_bucket=HIGHEST_BUCKET,
        log_gamma=log(GAMMA),
        readers={"evaluations": read_evaluations, "outcomes": read_outcomes},
        types={
            "counted": Counted,
            "difference": Difference,
            "changed_arm": ChangedArm,
            "sealed_set": SealedSet,
            "refusals": WrittenRefusals,
            "why_as_json": why_as_json,
        },
        refusal_limits={"refusals": MAX_REFUSALS, "body": MAX_BODY, "json": MAX_JSON},
        arms=[Arm.TREATMENT, Arm.CONTROL],
        fault_type=NativeFault,
    )


def batch_reader(
    *formats: EventFormat,
) -> Callable[[bytes, int, int], tuple[Sequence[Record], int, int]] | None:
    """Return what reads record batches for topics of these formats.

    None where the native part was not built, or other code than it reads the records: to that,
    records as the consumer gives them are cheaper. The function reads plain batches from a place in
    the bytes on, leaving out records before an offset. It returns the records, the place behind the
    last batch, and the offset behind that.
    """
    if NATIVE is None or any(each is not EventFormat.ROLLOUTD for each in formats):
        return None
    read: Callable[[bytes, int, int], tuple[Sequence[Record], int, int]] = NATIVE.read_batches
    return read


NATIVE, REFUSED = load_native(native_place())
ENGINE: Final = "python" if NATIVE is None else "native"
