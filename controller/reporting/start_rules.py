"""The rules of the inventory that are known before a rollout begins, and what a start is told.

Pure. The answer to a start, `plan lint` and the page say the same because they ask here. Which rule
warns and which refuses is a setting (`flags.at_start`). A plan whose `expires_at` has passed is
refused by the state machine, whatever the settings say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from controller.core.plan import Plan
from controller.core.rollout import Rollout
from controller.plans import Finding
from controller.plans.finding import error, warning
from controller.reporting.inventory import Census, has_allowed_name
from controller.settings.flags import FlagsSettings, StartPolicy
from controller.text import is_blank, plural
from controller.yaml_places import Path
from schemas.plan import PlanDocument
from schemas.terms import FlagFinding


class AgainstRules(NamedTuple):
    """What is against the rules, one phrase each: what it is, then what to change."""

    warnings: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


class _Broken(NamedTuple):
    """A rule that a start would break."""

    kind: FlagFinding
    path: Path  # of the part of the plan that breaks it
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}: {self.fix}"


def against_rules(plan: Plan, rollouts: Iterable[Rollout], rules: FlagsSettings) -> AgainstRules:
    """Return what is against the rules if a rollout begins by this plan, beside those there are."""
    policy_of = _policies(rules)
    broken = list(_broken(plan.flag_key, plan.owner, rollouts, rules))
    return AgainstRules(
        tuple(str(one) for one in broken if policy_of[one.kind] == "warn"),
        tuple(str(one) for one in broken if policy_of[one.kind] == "refuse"),
    )


def start_findings(
    document: PlanDocument, rollouts: Iterable[Rollout], rules: FlagsSettings
) -> Iterator[Finding]:
    """Yield what a start by this plan would be told of the rules, as findings about the plan.

    What is refused is an error. Without `rollouts` the limits on their number are never broken.
    """
    policy_of = _policies(rules)
    for one in _broken(document.flag, document.owner, rollouts, rules):
        path = one.path if set(one.path) <= document.model_fields_set else ()
        if policy_of[one.kind] == "refuse":
            yield error(path, f"a start is refused: {one.what}", one.fix)
        elif policy_of[one.kind] == "warn":
            yield warning(path, one.what, one.fix)


def _policies(rules: FlagsSettings) -> dict[FlagFinding, StartPolicy]:
    at_start = rules.at_start
    return {
        FlagFinding.NAME: at_start.name,
        FlagFinding.NO_OWNER: at_start.no_owner,
        FlagFinding.TOO_MANY_OF_OWNER: at_start.too_many_of_owner,
        FlagFinding.TOO_MANY: at_start.too_many,
    }


def _broken(
    flag_key: str, owner: str, rollouts: Iterable[Rollout], rules: FlagsSettings
) -> Iterator[_Broken]:
    if not has_allowed_name(flag_key, rules):
        what = f"the flag key {flag_key} does not fit {rules.name_pattern} (flags.name_pattern)"
        yield _Broken(FlagFinding.NAME, ("flag",), what, "choose one that does")
    if rules.needs_owner and is_blank(owner):
        what = "the plan names no owner (flags.needs_owner)"
        yield _Broken(FlagFinding.NO_OWNER, ("owner",), what, "add `owner: TEAM` to it")
    most_of_owner, most = rules.most_active_per_owner, rules.most_active
    if most_of_owner is None and most is None:
        return
    census = Census.of(one for one in rollouts if one.flag_key != flag_key)
    of_owner, active = census.of_owner[owner] + 1, census.active + 1
    if most_of_owner is not None and not is_blank(owner) and of_owner > most_of_owner:
        allowed = f"{plural(most_of_owner, 'is', 'are')} allowed (flags.most_active_per_owner)"
        what = f"{owner} would have {plural(of_owner, 'active flag')}, {allowed}"
        fix = "complete or retire one of this owner first, see `rolloutctl flags`"
        yield _Broken(FlagFinding.TOO_MANY_OF_OWNER, ("owner",), what, fix)
    if most is not None and active > most:
        allowed = f"{plural(most, 'is', 'are')} allowed (flags.most_active)"
        what = f"there would be {plural(active, 'active flag')}, {allowed}"
        fix = "complete or retire one first, see `rolloutctl flags --stale`"
        yield _Broken(FlagFinding.TOO_MANY, (), what, fix)
