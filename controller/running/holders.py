"""Which replica runs each live rollout, and whether its guardrails see there.

Does not belong here: where that comes from (`rollout_views.py`), what follows (`visibility.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from controller.core.rollout import Rollout


class Holder(NamedTuple):
    """Which replica runs a live rollout, as far as the claims of all replicas say."""

    flag_key: str
    rollout: Rollout
    is_claimed: bool  # by a replica that works; False: by none, or not known
    why: str | None = None  # why no replica runs it; None: one does, or not known
    is_watched: bool = False  # by that replica: its guardrails see


class Held:
    """What follows from all holders, kept while they are the same."""

    def __init__(self, holders: Sequence[Holder]) -> None:
        self.holders = holders
        self.by_flag = {one.flag_key: one for one in holders}
        #: Flags that no replica runs.
        self.unheld = frozenset(one.flag_key for one in holders if one.why is not None)
        #: By flag, the rollouts that are watched where they run.
        self.watched = {one.flag_key: one.rollout.rollout_id for one in holders if one.is_watched}
