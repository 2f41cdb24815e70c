"""The inventory of flags: each rule, and what a rule leaves alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from controller.core.rollout import Aborted, Completed, Rollout
from controller.ports import FlagUse, FlagUses
from controller.reporting.inventory import InventoryFinding, counted_findings, inventory
from controller.settings.flags import FlagsSettings
from schemas.terms import FlagFinding, FlagType
from tests.builders import T0, make_plan, make_rollout, make_stages

DAY = timedelta(days=1)
NOW = T0 + 31 * DAY


def flag(key: str = "f", percent: float = 100.0, **plan: Any) -> Rollout:
    """Return a flag whose rollout ended at `T0`."""
    phase = Completed(T0) if percent else Aborted(T0, "because")
    made = make_plan(flag_key=key, stages=make_stages(100), **plan)
    return make_rollout(flag_key=key, plan=made, phase=phase, percent=percent, updated_at=T0)


def found(*rollouts: Rollout, **rules: Any) -> dict[str, list[FlagFinding]]:
    """Return the findings of each flag."""
    listed = inventory(rollouts, NOW, FlagsSettings(**rules))
    return {one.rollout.flag_key: [each.kind for each in one.findings] for one in listed}


@pytest.mark.parametrize("percent", [0.0, 100.0])
def test_a_flag_that_nothing_will_change_is_stale(percent: float) -> None:
    """After 30 days at 0 % or 100 %; the action is to retire it."""
    (one,) = inventory([flag(percent=percent)], NOW, FlagsSettings())
    (stale,) = one.findings
    assert stale.kind is FlagFinding.STALE
    assert f"{percent:g} % for 31 days" in stale.why
    assert "rolloutctl retire f --reason" in stale.action
    assert ("make treatment the only code" in stale.action) == (percent == 100)


def test_what_is_meant_to_stay_is_not_stale() -> None:
    """Operational flags, permissions, young ones, and rollouts under way."""
    young = replace(flag("young"), updated_at=NOW - 29 * DAY)
    kept = [flag(kind, flag_type=FlagType(kind)) for kind in ("ops", "permission")]
    assert found(young, *kept, replace(make_rollout(), updated_at=T0)) == {
        "young": [],
        "ops": [],
        "permission": [],
        "new-checkout": [],
    }
    assert found(flag(), stale_after_days=None) == {"f": []}


def test_each_rule_is_off_until_it_is_set() -> None:
    """Expiry is the plan's own; the others are settings."""
    one = flag("Odd_Key", expires_at=T0 + DAY)
    assert found(one, stale_after_days=None) == {"Odd_Key": [FlagFinding.EXPIRED]}
    rules = {"needs_owner": True, "name_pattern": "[a-z-]+", "most_active": 1}
    assert found(one, flag("two", owner="ada"), **rules, stale_after_days=None) == {
        "Odd_Key": [
            FlagFinding.EXPIRED,
            FlagFinding.NO_OWNER,
            FlagFinding.NAME,
            FlagFinding.TOO_MANY,
        ],
        "two": [FlagFinding.TOO_MANY],
    }


@pytest.mark.parametrize("owner", [" ", "\u200b", "\u2060\u3164"])
def test_an_owner_that_nobody_can_see_is_none(owner: str) -> None:
    """Neither is there anybody to ask, nor is a limit of this owner's exceeded."""
    flags = [flag(name, owner=owner) for name in ("a", "b")]
    rules = {"needs_owner": True, "most_active_per_owner": 1, "stale_after_days": None}
    assert found(*flags, **rules) == {key: [FlagFinding.NO_OWNER] for key in "ab"}


def test_too_many_flags_of_one_owner_are_reported_at_this_owner_alone() -> None:
    """What serves nothing does not count."""
    flags = [flag(f"a{number}", owner="ada") for number in range(3)]
    off = flag("off", 0.0, owner="ada")
    of_findings = found(*flags, off, flag("b", owner="bob"), most_active_per_owner=2)
    crowded = {key for key, ones in of_findings.items() if FlagFinding.TOO_MANY_OF_OWNER in ones}
    assert crowded == {"a0", "a1", "a2"}


def unevaluated(
    one: Rollout, use: FlagUse | None, days: float | None = 30
) -> list[InventoryFinding]:
    """Return what is found about a flag that is used so."""
    rules = FlagsSettings(stale_after_days=None, unevaluated_after_days=days)
    uses = FlagUses({} if use is None else {one.flag_key: use})
    assert counted_findings([one], NOW, rules, uses)["not_evaluated"] in (0, 1)
    (listed,) = inventory([one], NOW, rules, uses)
    return list(listed.findings)


def test_a_flag_that_no_app_evaluates_is_found() -> None:
    """Also while its rollout is under way, and where no evaluation ever came."""
    for use in (FlagUse(0, 0, 0, T0, T0), FlagUse(0, 0, 0, None, T0)):
        (ended,) = unevaluated(flag(), use)
        assert ended.kind is FlagFinding.NOT_EVALUATED
        assert ended.why == "no app has reported an evaluation for 31 days"
        assert ended.action.startswith("rolloutctl retire f ")
    (live,) = unevaluated(make_rollout(started_at=T0), FlagUse(0, 0, 0, T0, T0))
    assert "abort" in live.action
    assert unevaluated(flag(), FlagUse(0, 0, 0, T0, T0), days=None) == []


@pytest.mark.parametrize(
    "use",
    [
        None,
        FlagUse(),
        FlagUse(0, 0, 1, T0, T0),
        FlagUse(0, 0, 0, NOW - 29 * DAY, T0),
        FlagUse(0, 0, 0, None, NOW - 29 * DAY),
        FlagUse(0, 0, 0, T0, NOW - 29 * DAY),
    ],
)
def test_a_flag_that_may_be_evaluated_is_left_alone(use: FlagUse | None) -> None:
    """Nothing is known of it, it is evaluated, or it is watched for a short time only."""
    assert unevaluated(flag(), use) == []


def test_a_new_rollout_has_its_time() -> None:
    """Nobody evaluated the flag before it began."""
    use = FlagUse(0, 0, 0, None, T0)
    assert unevaluated(make_rollout(started_at=NOW - DAY), use) == []


def test_flags_to_tidy_come_first_and_are_counted() -> None:
    """Then by key."""
    flags = [flag("z"), replace(flag("a"), updated_at=NOW)]
    assert list(found(*flags)) == ["z", "a"]
    counts = counted_findings(flags, NOW, FlagsSettings())
    assert counts[FlagFinding.STALE] == 1
    assert set(counts) == set(FlagFinding)


@pytest.mark.parametrize("pattern", ["(", "(a+)+", "(a*)*b", "x" * 201])
def test_a_pattern_that_cannot_be_used_is_refused(pattern: str) -> None:
    """It is applied to every flag key."""
    with pytest.raises(ValidationError):
        FlagsSettings(name_pattern=pattern)
