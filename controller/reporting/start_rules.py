"""The rules of the inventory that are known before a rollout begins, and what a start is told.

Pure. Which rule warns and which refuses is a setting (`flags.at_start`). A plan whose `expires_at`
has passed is refused by the state machine, whatever the settings say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from controller.core.plan import Plan
from controller.core.rollout import Rollout
from controller.reporting.inventory import Census, has_allowed_name
from controller.settings.flags import FlagsSettings, StartPolicy
from schemas.terms import FlagFinding


class AgainstRules(NamedTuple):
    """What is against the rules, one phrase each: what it is, then what to change."""

    warnings: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


def against_rules(plan: Plan, rollouts: Iterable[Rollout], rules: FlagsSettings) -> AgainstRules:
    """Return what is against the rules if a rollout begins by this plan, beside those there are."""
    found = list(_findings(plan, rollouts, rules))
    at_start = rules.at_start
    policy_of: dict[FlagFinding, StartPolicy] = {
        FlagFinding.NAME: at_start.name,
        FlagFinding.NO_OWNER: at_start.no_owner,
        FlagFinding.TOO_MANY_OF_OWNER: at_start.too_many_of_owner,
        FlagFinding.TOO_MANY: at_start.too_many,
    }
    return AgainstRules(
        tuple(words for kind, words in found if policy_of[kind] == "warn"),
        tuple(words for kind, words in found if policy_of[kind] == "refuse"),
    )


def _findings(
    plan: Plan, rollouts: Iterable[Rollout], rules: FlagsSettings
) -> Iterator[tuple[FlagFinding, str]]:
    if not has_allowed_name(plan.flag_key, rules):
        words = f"the flag key {plan.flag_key} does not fit {rules.name_pattern}"
        yield FlagFinding.NAME, f"{words} (flags.name_pattern): choose one that does"
    if rules.needs_owner and not plan.owner.strip():
        words = "the plan names no owner (flags.needs_owner): add `owner: TEAM` to it"
        yield FlagFinding.NO_OWNER, words
    most_of_owner, most = rules.most_active_per_owner, rules.most_active
    if most_of_owner is None and most is None:
        return
    census = Census.of(one for one in rollouts if one.flag_key != plan.flag_key)
    of_owner, active = census.of_owner[plan.owner] + 1, census.active + 1
    if most_of_owner is not None and plan.owner and of_owner > most_of_owner:
        words = f"{plan.owner} would have {of_owner} active flags, {most_of_owner} are allowed"
        todo = "complete or retire one of this owner first, see `rolloutctl flags`"
        yield FlagFinding.TOO_MANY_OF_OWNER, f"{words} (flags.most_active_per_owner): {todo}"
    if most is not None and active > most:
        words = f"there would be {active} active flags, {most} are allowed (flags.most_active)"
        todo = "complete or retire one first, see `rolloutctl flags --stale`"
        yield FlagFinding.TOO_MANY, f"{words}: {todo}"
