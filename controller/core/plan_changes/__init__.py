"""What applying a new plan to a running rollout does: the plan that results, and each change.

`stages.py` puts the stages of both plans together, `comparison.py` judges every change. All of it
is pure, so that `rolloutctl apply` shows what the daemon will do.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from controller.core.plan import Plan
from controller.core.plan_changes.comparison import Change, compare
from controller.core.plan_changes.stages import combined_stages
from controller.core.plan_changes.windows import window_words
from schemas.terms import ChangeEffect

__all__ = ["Change", "PlanChange", "change_of", "window_words"]

#: What may still change once the last stage has passed its gate.
_AFTER_COMPLETION: Final = frozenset({"ends_at", "active", "name", "owner", "description", "type"})
_ONLY_TIMES: Final = (
    "the rollout has completed, and only its end and active windows can change: start a new one"
)


@dataclass(frozen=True, slots=True)
class PlanChange:
    """A new plan for a running rollout, and every difference from the running one."""

    plan: Plan  # what the rollout goes on with: stages that were entered stay in it
    changes: tuple[Change, ...]  # empty: nothing is to be changed

    @property
    def refusals(self) -> tuple[Change, ...]:
        """The changes that cannot be made to a running rollout."""
        return tuple(one for one in self.changes if one.effect is ChangeEffect.REFUSED)

    @property
    def needs_reason(self) -> bool:
        """Whether a reason and the revision are needed.

        They are for what gets less careful, and for whatever begins the present stage again: an
        undecided gate would get another chance with each cut of a hundredth of a percent.
        """
        is_looser = any(one.effect is ChangeEffect.NEEDS_REASON for one in self.changes)
        return is_looser or self.restarts

    @property
    def restarts(self) -> bool:
        """Whether the present stage starts again, with evidence from zero."""
        effects = (ChangeEffect.LOWERS, ChangeEffect.RESTARTS)
        return any(one.effect in effects for one in self.changes)

    @property
    def words(self) -> str:
        """The changes in one line, at most five of them in full."""
        if not self.changes:
            return "the plan is as it is running already"
        shown = [str(one) for one in self.changes[:5]]
        more = len(self.changes) - len(shown)
        return "; ".join(shown) + (f"; and {more} more" if more else "")


def change_of(
    old: Plan, new: Plan, present: int | None, *, has_completed: bool = False
) -> PlanChange:
    """Return what applying `new` to a rollout that runs by `old` does.

    `present` is the index of the present stage, None before the start. Applying the same plan
    again changes nothing. A rollout that has completed has no stage left to run by another plan:
    when it ends and when it is active can change, and who owns it.
    """
    if has_completed:
        present = len(old.stages) - 1
    stages = combined_stages(old.stages, new.stages, present)
    version = new.version
    if stages != new.stages:  # it is neither plan: it gets an identity of its own
        text = f"{old.version} {new.version} {present}"
        version = hashlib.sha256(text.encode()).hexdigest()[:16]
    plan = replace(new, stages=stages, version=version, flag_key=old.flag_key)
    changes = tuple(compare(old, replace(plan, flag_key=new.flag_key), present))
    if has_completed:
        changes = tuple(map(_after_completion, changes))
    return PlanChange(plan if changes else old, changes)


def _after_completion(change: Change) -> Change:
    if change.path in _AFTER_COMPLETION or change.effect is ChangeEffect.REFUSED:
        return change
    return replace(change, effect=ChangeEffect.REFUSED, why=_ONLY_TIMES)
