"""GO Feature Flag's definition of a flag, as in its files.

With two variations its buckets are cut once, at one end, so a growing percentage moves no context
out. With three or more it would.

Source: thomaspoignant/go-feature-flag, flag configuration; compared with its own evaluation in
tests/integration/test_go_feature_flag.py.
"""

from __future__ import annotations

from typing import Any

from controller.codec.flagd import metadata_of
from controller.core.rollout import Rollout
from controller.core.serving import percent_to_serve, variant_values


def definition_of(rollout: Rollout) -> dict[str, Any]:
    """Return the definition under the flag's key."""
    treatment, control = rollout.plan.treatment, rollout.plan.control
    values = variant_values(rollout.plan)
    percent = percent_to_serve(rollout)
    if percent in (0, 100):
        rule: dict[str, Any] = {"variation": treatment if percent else control}
    else:
        rule = {"percentage": {treatment: percent, control: round(100 - percent, 2)}}
    return {
        "variations": {treatment: values.get(treatment, True), control: values[control]},
        "defaultRule": rule,
        "version": str(rollout.revision),
        "metadata": metadata_of(rollout),
    }
