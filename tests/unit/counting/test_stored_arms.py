"""Where the totals of arms are stored, and how long a save of them keeps the loop."""

from __future__ import annotations

from controller.core.evidence import HIGHEST_BUCKET, LOWEST_BUCKET
from controller.counting.counted_flags import new_fold
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.counting.layout.stored_arms import StoredArms
from schemas.terms import Arm
from schemas.totals import ArmCounts, arm_field


def test_a_save_of_large_bundles_lets_others_have_their_turn() -> None:
    """An arm of a slow service has hundreds of buckets, and each bundle is encoded whole."""
    flags_to_count = FlagsToCount()
    fold = new_fold(
        flags_to_count,
        counts_exposures=False,
        exact_limit=10,
        window_ms=None,
        bundle_of=lambda flag_key, name: None,
        indexed_per_turn=1,
    )
    latency = dict.fromkeys(range(LOWEST_BUCKET, HIGHEST_BUCKET), 1_000_000_000)
    for bundle in range(40):
        for flag_key, visits in ((f"stays-{bundle}", 5), ("over", 1)):
            for visit in range(visits):
                name = arm_field(flag_key, f"start-{bundle}", visit, Arm.TREATMENT)
                fold.restore_arm(name, ArmCounts(outcomes=1, latency=latency), bundle)
        fold.drop("over", f"start-{bundle}")  # so that the bundle is written
    fields: dict[str, bytes] = {}
    written, largest = 0, 0
    for _ in StoredArms(flags_to_count, 0).write_bundles(fold, fields, 0, 0):
        before, written = written, sum(map(len, fields.values()))
        largest = max(largest, written - before)
    assert len(fields) == 40
    assert sum(map(len, fields.values())) > 2_000_000
    assert 256 * 1024 < largest < 768 * 1024
