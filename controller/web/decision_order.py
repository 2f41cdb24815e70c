"""Which of two documents of one flag is served: the newer one, and of one revision the lower.

Belongs here: comparing two documents. Does not belong here: where they come from (`flags.py`).
"""

from __future__ import annotations

from controller.core.rollout import Rollout
from controller.core.serving import percent_to_serve, serving


def lowers(rollout: Rollout, than: Rollout) -> bool:
    """Return whether a document is newer and gives treatment to no more contexts."""
    return rollout.revision > than.revision and exposure(rollout) <= exposure(than)


def is_same_decision(rollout: Rollout, other: Rollout) -> bool:
    """Return whether two documents are of one revision and serve the same.

    Their times may differ: one was lowered here before it was saved.
    """
    if rollout is other:
        return True  # read in the topic, and again by the flag's worker
    documents = [(one.revision, one.rollout_id, serving(one)) for one in (rollout, other)]
    return documents[0] == documents[1]


def is_newer(rollout: Rollout, than: Rollout) -> bool:
    """Return whether a document is newer; of two of one revision the lower one counts as newer."""
    if rollout.revision == than.revision:
        return exposure(rollout) < exposure(than)
    return rollout.revision > than.revision


def exposure(rollout: Rollout) -> tuple[float, float]:
    """Return a key that is lower for the document that gives treatment to fewer contexts."""
    return percent_to_serve(rollout), sum(ring.percent for ring in serving(rollout).rings)
