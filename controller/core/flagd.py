"""flagd's definition of a flag, as plain values: what its HTTP document, its gRPC stream and its files all say.

Treatment comes first and the sum of the weights never changes, so a higher percentage only adds buckets at the end: nobody who
is in falls out, and lowering it removes the last in first. Weights are integers, because flagd takes a fraction for the
default variant. How contexts fall into buckets is `web/bucketing.py`.

Source: flagd's flag schema, which `SCHEMA` names.
"""

from __future__ import annotations

from typing import Any

from controller.core.rollout import Rollout
from controller.core.serving import percent_to_serve

#: What a document of definitions says of itself.
SCHEMA = "https://flagd.dev/schema/v0/flags.json"

#: Buckets, and the sum of the weights: steps of 0.01 %.
WEIGHT_TOTAL = 10_000


def weight_of(percent: float) -> int:
    """Return how many of the `WEIGHT_TOTAL` buckets are in treatment at `percent`, in [0, 100], to the nearest 0.01."""
    if not 0 <= percent <= 100:
        raise ValueError(f"a percentage lies in [0, 100], not at {percent}")
    return round(percent * (WEIGHT_TOTAL / 100))


def definition_of(rollout: Rollout) -> dict[str, Any]:
    """Return the definition that stands under the flag's key. Evaluators refuse other keys: what is ours is metadata."""
    treatment, control = rollout.plan.treatment, rollout.plan.control
    weight = weight_of(percent_to_serve(rollout))
    return {
        "state": "ENABLED",
        "variants": {treatment: True, control: False},
        "defaultVariant": control,
        "targeting": {"fractional": [[treatment, weight], [control, WEIGHT_TOTAL - weight]]},
        "metadata": metadata_of(rollout),
    }


def metadata_of(rollout: Rollout) -> dict[str, str]:
    """Return what clients get beside a variant; flagd allows text, numbers and booleans."""
    return {"version": str(rollout.revision), "rolloutd.rollout_id": rollout.rollout_id}
