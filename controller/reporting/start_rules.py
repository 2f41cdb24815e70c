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
from controller.text import is_blank, key_letters, plural
from controller.yaml_places import Path
from schemas.plan import PlanDocument


class AgainstRules(NamedTuple):
    """What is against the rules, one phrase each: what it is, then what to change."""

    warnings: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


class _Broken(NamedTuple):
    """A rule that a start would break."""

    policy: StartPolicy
    path: Path  # of the part of the plan that breaks it
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}: {self.fix}"


def against_rules(plan: Plan, rollouts: Iterable[Rollout], rules: FlagsSettings) -> AgainstRules:
    """Return what is against the rules if a rollout begins by this plan, beside those there are."""
    broken = list(_broken(plan.flag_key, plan.owner, rollouts, rules))
    return AgainstRules(
        tuple(str(one) for one in broken if one.policy == "warn"),
        tuple(str(one) for one in broken if one.policy == "refuse"),
    )


def start_findings(
    document: PlanDocument, rollouts: Iterable[Rollout], rules: FlagsSettings
) -> Iterator[Finding]:
    """Yield what a start by this plan would be told of the rules, as findings about the plan.

    What is refused is an error. Without `rollouts` the rules about other flags are never broken.
    """
    for one in _broken(document.flag, document.owner, rollouts, rules):
        path = one.path if set(one.path) <= document.model_fields_set else ()
        if one.policy == "refuse":
            yield error(path, f"a start is refused: {one.what}", one.fix)
        elif one.policy == "warn":
            yield warning(path, one.what, one.fix)


def _broken(
    flag_key: str, owner: str, rollouts: Iterable[Rollout], rules: FlagsSettings
) -> Iterator[_Broken]:
    policy, others = rules.at_start, [one for one in rollouts if one.flag_key != flag_key]
    if not has_allowed_name(flag_key, rules):
        what = f"the flag key {flag_key} does not fit {rules.name_pattern} (flags.name_pattern)"
        yield _Broken(policy.name, ("flag",), what, "choose one that does")
    letters = key_letters(flag_key)
    alike = next((one.flag_key for one in others if key_letters(one.flag_key) == letters), None)
    if alike is not None:
        what = f"{flag_key} is another flag than {alike}, though the keys look alike"
        fix = f"if {alike} is meant, write its key, and abort what has begun under this one"
        yield _Broken(policy.alike, ("flag",), what, fix)
    if rules.needs_owner and is_blank(owner):
        what = "the plan names no owner (flags.needs_owner)"
        yield _Broken(policy.no_owner, ("owner",), what, "add `owner: TEAM` to it")
    most_of_owner, most = rules.most_active_per_owner, rules.most_active
    if most_of_owner is None and most is None:
        return
    census = Census.of(others)
    of_owner, active = census.of_owner[owner] + 1, census.active + 1
    if most_of_owner is not None and not is_blank(owner) and of_owner > most_of_owner:
        allowed = f"{plural(most_of_owner, 'is', 'are')} allowed (flags.most_active_per_owner)"
        what = f"{owner} would have {plural(of_owner, 'active flag')}, {allowed}"
        fix = "complete or retire one of this owner first, see `rolloutctl flags`"
        yield _Broken(policy.too_many_of_owner, ("owner",), what, fix)
    if most is not None and active > most:
        allowed = f"{plural(most, 'is', 'are')} allowed (flags.most_active)"
        what = f"there would be {plural(active, 'active flag')}, {allowed}"
        fix = "complete or retire one first, see `rolloutctl flags --stale`"
        yield _Broken(policy.too_many, (), what, fix)
