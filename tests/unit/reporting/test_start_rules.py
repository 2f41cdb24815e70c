"""What a start is told of the rules for flags: a warning, a refusal, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from controller.core.rollout import Aborted, Rollout
from controller.reporting.start_rules import AgainstRules, against_rules
from controller.settings.flags import FlagsSettings, StartRulesSettings
from tests.builders import T0, make_plan, make_rollout

PLAN = make_plan(flag_key="Odd", owner="ada")


def active(flag_key: str, owner: str = "ada") -> Rollout:
    """Return a flag under way."""
    return make_rollout(flag_key=flag_key, plan=make_plan(flag_key=flag_key, owner=owner))


def told(*rollouts: Rollout, policy: str | None = None, **rules: Any) -> AgainstRules:
    """Return what is against the rules where each has the same policy."""
    names = ("name", "alike", "no_owner", "too_many_of_owner", "too_many")
    at_start = {} if policy is None else dict.fromkeys(names, policy)
    settings = FlagsSettings.model_validate({**rules, "at_start": at_start})
    return against_rules(PLAN, rollouts, settings)


def test_without_rules_nothing_is_told() -> None:
    """Whatever the policy."""
    assert told(active("a"), policy="refuse") == AgainstRules()


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"name_pattern": "[a-z]+"}, "the flag key Odd does not fit [a-z]+"),
        ({"most_active_per_owner": 2}, "ada would have 3 active flags, 2 are allowed"),
        ({"most_active": 3}, "there would be 4 active flags, 3 are allowed"),
    ],
)
def test_each_rule_warns_refuses_or_is_off(rules: dict[str, Any], words: str) -> None:
    """A warning is the default."""
    others = (active("a"), active("b"), active("c", "bob"))
    (warning,), refusals = told(*others, **rules)
    assert words in warning
    assert refusals == ()
    assert told(*others, policy="warn", **rules) == ((warning,), ())
    assert told(*others, policy="refuse", **rules) == ((), (warning,))
    assert told(*others, policy="off", **rules) == AgainstRules()


def test_a_key_that_looks_like_another_one_is_told() -> None:
    """Else the events of the other flag count for nobody, and the rollout serves nobody."""
    for typed in ("o-dd", "ODD", "o.d_d"):
        ((warning,), refusals) = told(active("a"), active(typed))
        assert f"Odd is another flag than {typed}, though the keys look alike" in warning
        assert f"if {typed} is meant, write its key" in warning
        assert refusals == ()
        assert told(active(typed), policy="refuse") == ((), (warning,))
        assert told(active(typed), policy="off") == AgainstRules()
    assert told(active("Odd"), active("odds"), active("old")) == AgainstRules()


def test_off_may_be_written_as_yaml_reads_it() -> None:
    """Without quotes it is false there."""
    at_start = StartRulesSettings.model_validate({"too_many": False})
    assert at_start.too_many == "off"
    with pytest.raises(ValidationError):
        StartRulesSettings.model_validate({"too_many": True})


def test_a_plan_needs_an_owner() -> None:
    """Blanks are none, and what cannot be seen."""
    settings = FlagsSettings(needs_owner=True)
    for owner in ("", "  ", "\u200b", " \u2060\u3164"):
        (warning,), _ = against_rules(make_plan(owner=owner), (), settings)
        assert "add `owner: TEAM`" in warning
    assert against_rules(PLAN, (), settings) == AgainstRules()


def test_the_limits_count_what_will_be_active() -> None:
    """The flag itself once, also where it is active already; what serves nothing does not count."""
    off = make_rollout(
        flag_key="off", plan=make_plan(flag_key="off", owner="ada"), phase=Aborted(T0, "why")
    )
    limits: dict[str, Any] = {"most_active": 2, "most_active_per_owner": 2}
    assert told(active("a"), active("Odd"), off, **limits) == AgainstRules()
    assert len(told(active("a"), active("b"), **limits).warnings) == 2
