"""The inventory of flags: every flag with a rollout, and what a person should put right about it.

Pure. The page, the API, the metrics and `rolloutctl flags` say the same because they ask here. The
rules are settings (`flags`); a rule that is off finds nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from controller.core.rollout import Rollout
from controller.ports import FlagUse, FlagUses, LastDecision, Lift
from controller.settings.flags import FlagsSettings
from controller.text import is_blank, plural
from schemas.inventory import (
    EvaluationsRecord,
    FindingRecord,
    FlagLine,
    LastDecisionRecord,
    LiftRecord,
)
from schemas.terms import FlagFinding, FlagType

#: Flags of these types are meant to stay, also at 0 % and 100 %.
_STAYS: Final = frozenset({FlagType.OPS, FlagType.PERMISSION})
_NO_USES: Final = FlagUses()


@dataclass(frozen=True, slots=True)
class InventoryFinding:
    """Something that a person should put right about a flag."""

    kind: FlagFinding
    why: str
    action: str


@dataclass(frozen=True, slots=True)
class Census:
    """How many flags there are: what the rules about many flags ask."""

    active: int = 0
    of_owner: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, rollouts: Iterable[Rollout]) -> Census:
        """Return the census of all flags with a rollout."""
        owners = Counter(one.plan.owner for one in rollouts if is_active(one))
        return cls(owners.total(), owners)


def is_active(rollout: Rollout) -> bool:
    """Return whether a flag counts against the limits: it is under way, or serves treatment."""
    return not rollout.has_ended or rollout.percent > 0 or rollout.may_open_again


def findings(
    rollout: Rollout,
    now: datetime,
    rules: FlagsSettings,
    census: Census,
    use: FlagUse | None = None,
) -> tuple[InventoryFinding, ...]:
    """Return what a person should put right about a flag, in the order of `FlagFinding`.

    `use` None: it is not known how the flag is used.
    """
    found = (
        _stale(rollout, now, rules),
        _expired(rollout, now),
        _without_owner(rollout, rules),
        _misnamed(rollout, rules),
        _too_many_of_owner(rollout, rules, census),
        _too_many(rollout, rules, census),
        _not_evaluated(rollout, now, rules, use),
    )
    return tuple(one for one in found if one is not None)


def _stale(rollout: Rollout, now: datetime, rules: FlagsSettings) -> InventoryFinding | None:
    age = now - rollout.updated_at
    is_constant = rollout.has_ended and not rollout.may_open_again and rollout.percent in (0, 100)
    if rules.stale_after_days is None or rollout.plan.flag_type in _STAYS or not is_constant:
        return None
    if age < timedelta(days=rules.stale_after_days):
        return None
    why = f"{rollout.percent:g} % for {plural(age.days, 'day')}, and nothing will change it"
    first = "make treatment the only code; then " if rollout.percent else ""
    return InventoryFinding(FlagFinding.STALE, why, f"{first}{_retire(rollout)}")


def _retire(rollout: Rollout) -> str:
    return f'rolloutctl retire {rollout.flag_key} --reason "not used any more"'


def _expired(rollout: Rollout, now: datetime) -> InventoryFinding | None:
    expires_at = rollout.plan.expires_at
    if expires_at is None or now < expires_at or not is_active(rollout):
        return None
    why = f"its plan expired {plural((now - expires_at).days, 'day')} ago"
    if rollout.has_ended:
        return InventoryFinding(FlagFinding.EXPIRED, why, _retire(rollout))
    action = "apply a plan with a later expires_at, promote, roll back or abort"
    return InventoryFinding(FlagFinding.EXPIRED, why, action)


def _without_owner(rollout: Rollout, rules: FlagsSettings) -> InventoryFinding | None:
    if not rules.needs_owner or not is_blank(rollout.plan.owner) or not is_active(rollout):
        return None
    action = "apply its plan with an owner"
    return InventoryFinding(FlagFinding.NO_OWNER, "its plan names no owner", action)


def _misnamed(rollout: Rollout, rules: FlagsSettings) -> InventoryFinding | None:
    if has_allowed_name(rollout.flag_key, rules):
        return None
    action = "give the next rollout a flag key that fits; retire this one"
    return InventoryFinding(FlagFinding.NAME, f"its key does not fit {rules.name_pattern}", action)


def has_allowed_name(flag_key: str, rules: FlagsSettings) -> bool:
    """Return whether a flag key fits the convention, if there is one."""
    pattern = rules.name_pattern
    return pattern is None or _compiled(pattern).fullmatch(flag_key) is not None


@lru_cache(maxsize=8)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _too_many_of_owner(
    rollout: Rollout, rules: FlagsSettings, census: Census
) -> InventoryFinding | None:
    owner, most = rollout.plan.owner, rules.most_active_per_owner
    count = census.of_owner[owner]
    if most is None or count <= most or is_blank(owner) or not is_active(rollout):
        return None
    why = f"{owner} has {plural(count, 'active flag')}, {plural(most, 'is', 'are')} allowed"
    return InventoryFinding(
        FlagFinding.TOO_MANY_OF_OWNER, why, "complete or retire flags of this owner"
    )


def _too_many(rollout: Rollout, rules: FlagsSettings, census: Census) -> InventoryFinding | None:
    most = rules.most_active
    if most is None or census.active <= most or not is_active(rollout):
        return None
    why = f"there are {plural(census.active, 'active flag')}, {plural(most, 'is', 'are')} allowed"
    return InventoryFinding(FlagFinding.TOO_MANY, why, "complete or retire flags")


def _not_evaluated(
    rollout: Rollout, now: datetime, rules: FlagsSettings, use: FlagUse | None
) -> InventoryFinding | None:
    days = rules.unevaluated_after_days
    if days is None or use is None or use.watched_since is None or use.evaluations:
        return None
    # A new rollout of an old flag has its time, and so has a flag that is watched only since today.
    since = max(use.evaluated_at or use.watched_since, use.watched_since, rollout.started_at)
    age = now - since
    if age < timedelta(days=days):
        return None
    why = f"no app has reported an evaluation for {plural(age.days, 'day')}"
    if rollout.has_ended and not rollout.may_open_again:
        return InventoryFinding(FlagFinding.NOT_EVALUATED, why, _retire(rollout))
    action = f"let its app report evaluations (rolloutctl doctor), or abort and {_retire(rollout)}"
    return InventoryFinding(FlagFinding.NOT_EVALUATED, why, action)


@dataclass(frozen=True, slots=True)
class ListedFlag:
    """One flag with what was found about it."""

    rollout: Rollout
    findings: tuple[InventoryFinding, ...]
    use: FlagUse | None = None  # None: not known

    @property
    def place(self) -> tuple[bool, str]:
        """The sort key: flags with findings first, then by key."""
        return not self.findings, self.rollout.flag_key

    def line(self) -> FlagLine:
        """Return it as the API and `rolloutctl flags --json` show it."""
        rollout, use = self.rollout, self.use
        known = FlagUse() if use is None else use
        return FlagLine(
            flag=rollout.flag_key,
            owner=rollout.plan.owner,
            flag_type=rollout.plan.flag_type,
            phase=rollout.phase.name,
            percent=rollout.percent,
            started_at=rollout.started_at,
            updated_at=rollout.updated_at,
            expires_at=rollout.plan.expires_at,
            evaluations=None if use is None else evaluations_record(use),
            evaluated_at=known.evaluated_at,
            watched_since=known.watched_since,
            lifts=[
                LiftRecord(
                    conversion=one.conversion,
                    lift=one.estimate,
                    low=one.low,
                    high=one.high,
                    at=one.at,
                )
                for one in known.lifts
            ],
            last_decision=_decision_record(known.decision),
            findings=[
                FindingRecord(finding=one.kind, why=one.why, action=one.action)
                for one in self.findings
            ],
        )


def evaluations_record(use: FlagUse) -> EvaluationsRecord:
    """Return the evaluations of the last 24 hours as the API shows them."""
    return EvaluationsRecord(treatment=use.treatment, control=use.control, neither=use.neither)


def use_of(line: FlagLine) -> FlagUse | None:
    """Return how a flag is used, from the line that another replica made of it."""
    if line.evaluations is None:
        return None
    evaluations = line.evaluations
    return FlagUse(
        evaluations.treatment,
        evaluations.control,
        evaluations.neither,
        line.evaluated_at,
        line.watched_since,
        None if line.last_decision is None else _decision_of(line.last_decision),
        tuple(Lift(one.conversion, one.lift, one.low, one.high, one.at) for one in line.lifts),
    )


def findings_of(line: FlagLine) -> tuple[InventoryFinding, ...]:
    """Return what was found about a flag, from the line that a replica made of it."""
    return tuple(InventoryFinding(one.finding, one.why, one.action) for one in line.findings)


def _decision_record(decision: LastDecision | None) -> LastDecisionRecord | None:
    return None if decision is None else LastDecisionRecord(kind=decision.kind, at=decision.at)


def _decision_of(record: LastDecisionRecord) -> LastDecision:
    return LastDecision(record.kind, record.at)


def decision_words(use: FlagUse | None) -> str:
    """Return the newest decision, as in `roll back`; empty where it is not known."""
    if use is None or use.decision is None:
        return ""
    return use.decision.kind.value.replace("_", " ")


def evaluations_words(use: FlagUse | None) -> str:
    """Return the evaluations of the last 24 hours in words, a dash where they are not known."""
    if use is None:
        return "–"
    counts = {"treatment": use.treatment, "control": use.control, "neither": use.neither}
    return ", ".join(f"{count:,} {arm}" for arm, count in counts.items() if count) or "none"


def counted(flags: Iterable[ListedFlag]) -> dict[FlagFinding, int]:
    """Return how many flags have each finding; every finding is there."""
    counts = Counter(one.kind for listed in flags for one in listed.findings)
    return {kind: counts[kind] for kind in FlagFinding}


def inventory(
    rollouts: Sequence[Rollout], now: datetime, rules: FlagsSettings, uses: FlagUses = _NO_USES
) -> list[ListedFlag]:
    """Return every flag with what was found about it, in order."""
    census = Census.of(rollouts)
    listed = [listing(one, now, rules, census, uses) for one in rollouts]
    return sorted(listed, key=lambda one: one.place)


def listing(
    rollout: Rollout, now: datetime, rules: FlagsSettings, census: Census, uses: FlagUses
) -> ListedFlag:
    """Return a flag with what was found about it."""
    use = uses.by_flag.get(rollout.flag_key)
    return ListedFlag(rollout, findings(rollout, now, rules, census, use), use)


def counted_findings(
    rollouts: Sequence[Rollout], now: datetime, rules: FlagsSettings, uses: FlagUses = _NO_USES
) -> dict[str, int]:
    """Return how many flags have each finding: the inventory's figures, without its order."""
    census = Census.of(rollouts)
    listed = (listing(one, now, rules, census, uses) for one in rollouts)
    counts = Counter(one.kind for each in listed for one in each.findings)
    return {kind.value: counts[kind] for kind in FlagFinding}
