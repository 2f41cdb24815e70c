"""One partition's key and fields in Redis, for several integration tests."""

from __future__ import annotations

from schemas.terms import Arm
from schemas.totals import (
    ArmCounts,
    PartitionCounts,
    arm_field,
    encode_arm,
    encode_progress,
)

KEY = "flag.evaluations/3/1"
HASH = "rolloutd:agg:{flag.evaluations/3/1}"
FIELD = arm_field("new-checkout", "start-1", 0, Arm.TREATMENT)


def fields(exposures: int) -> dict[str, bytes]:
    """Return what ingest saves after so many evaluations, one exposure each."""
    return {
        **encode_progress(PartitionCounts(end=exposures, counted=exposures)),
        FIELD: encode_arm(ArmCounts(exposures=exposures)),
    }
