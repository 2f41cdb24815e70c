"""Some rounds of the fold fuzzer; `make fold-fuzz` runs ten million records."""

from __future__ import annotations

import pytest

from controller.counting.folding.native import NATIVE
from tests.hostile.fold_fuzz import RECORDS_PER_ROUND, run_round

pytestmark = pytest.mark.skipif(
    NATIVE is None, reason="NO NATIVE FOLD: `make native` builds it, with Rust 1.85"
)


@pytest.mark.parametrize("seed", range(1, 7))
def test_both_folds_agree_on_hostile_records(seed: int) -> None:
    """Classes, refusals, counts and every stored byte are equal over a long random history."""
    figures = run_round(seed)
    assert figures["records"] >= RECORDS_PER_ROUND
    assert figures["saves"] > 0
