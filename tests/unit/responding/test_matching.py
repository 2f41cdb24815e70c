"""Which flags a signal meets, in which order, and what is intended for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from controller.core.rollout import Completed, RolledBack, Rollout
from controller.responding.matching import Response, response
from controller.responding.suspects import last_rise, suspect
from controller.settings.signal_rules import SignalRule
from schemas.decision import JudgementRecord
from schemas.signal import Signal
from schemas.terms import SignalAction, Verdict
from tests.builders import HOUR, MINUTE, T0, make_plan, make_rollout, make_visit
from tests.unit.settings.test_signal_rules import make_signal

BEGAN = T0 + 3 * HOUR


def rule(**overrides: Any) -> SignalRule:
    """Return a rule for all flags of checkout."""
    fields: dict[str, Any] = {"name": "down", "flags": "checkout-*", "do": "roll_back"}
    return SignalRule.model_validate({**fields, **overrides})


def rollout(flag_key: str, rose: timedelta = HOUR, **overrides: Any) -> Rollout:
    """Return a rollout at 10 % whose percentage rose so long before it began to fire."""
    plan = make_plan(flag_key=flag_key, owner=overrides.pop("owner", ""))
    visit = make_visit(entered_at=BEGAN - rose, counts_from=BEGAN - rose + MINUTE)
    return make_rollout(plan=plan, visits=(visit,), **overrides)


def signal(**overrides: Any) -> Signal:
    """Return a signal of a condition that began at `BEGAN`."""
    fields = {"started_at": BEGAN, "received_at": BEGAN + MINUTE, "service": ""}
    return make_signal(**{**fields, **overrides})


def found(
    rules: list[SignalRule],
    *rollouts: Rollout,
    evidence: Mapping[str, JudgementRecord] | None = None,
    **told: Any,
) -> Response:
    """Return what the rules intend."""
    known = evidence or {}
    return response(
        rules,
        signal(**told),
        {one.flag_key: one for one in rollouts},
        lambda one: known.get(one.flag_key),
    )


def flags(answer: Response) -> list[str]:
    """Return the flags that are meant, in order."""
    return [one.rollout.flag_key for one in answer.intents]


def judgement(harm: Verdict = Verdict.INCONCLUSIVE, e_value: float = 1.0) -> JudgementRecord:
    """Return a judgement of one metric."""
    return JudgementRecord.model_validate(
        {
            "at": T0.isoformat(),
            "visit": 0,
            "verdict": "inconclusive",
            "gaps": [],
            "metrics": [
                {
                    "metric": "error_rate",
                    "role": "guardrail",
                    "on_breach": "roll_back",
                    "harm": harm,
                    "safe": "inconclusive",
                    "arms": {},
                    "e_value": e_value,
                    "threshold": 100.0,
                    "e_value_safe": 1.0,
                    "threshold_safe": 20.0,
                    "margin": 0.1,
                    "limit": None,
                    "reason": "",
                }
            ],
            "harm": {"failed_requests": 0, "exposed_contexts": 0, "excess_failed_requests": None},
            "exposures": {},
            "srm_e_value": 1.0,
            "observed_share": 0.1,
            "offsets": {},
            "batches": 1,
        }
    )


def test_named_flags_that_are_on_are_meant() -> None:
    """Not those of other names, nor one that is off and stays off."""
    off = replace(rollout("checkout-off"), phase=RolledBack(BEGAN, "harm"), percent=0.0)
    done = replace(rollout("checkout-done"), phase=Completed(BEGAN), percent=100.0)
    fleet = (rollout("checkout-a"), rollout("search"), off, done)
    assert flags(found([rule()], *fleet)) == ["checkout-a"]
    answer = found([rule(completed=True)], *fleet)
    assert sorted(flags(answer)) == ["checkout-a", "checkout-done"]
    assert {one.action for one in answer.intents} == {SignalAction.ROLL_BACK}


def test_without_a_rule_nothing_is_meant() -> None:
    """A rule about other signals is none about this one."""
    assert found([rule(when={"service": "search"})], rollout("checkout-a")).rules == ()


def test_a_rollout_that_began_after_the_signal_is_left_alone() -> None:
    """As when signals waited while nobody read them."""
    late = replace(rollout("checkout-a"), started_at=BEGAN + HOUR)
    assert found([rule()], late).intents == ()


def test_recent_flags_are_those_that_rose_within_the_time_before() -> None:
    """The newest first; at most three, and the others are named."""
    fleet = [rollout(f"flag-{minutes}", minutes * MINUTE) for minutes in (1, 40, 3, 12, 7, 29)]
    later = rollout("flag-later", -5 * MINUTE)
    answer = found([rule(flags="recent")], *fleet, later)
    assert flags(answer) == ["flag-1", "flag-3", "flag-7"]
    assert [one.rollout.flag_key for one in answer.left_out] == ["flag-12", "flag-29"]


def test_evidence_outweighs_a_rise_and_a_rise_outweighs_a_name() -> None:
    """Each reason stands in the words."""
    rising = rollout("checkout-rising", MINUTE)
    worse = rollout("checkout-worse", 90 * MINUTE)
    owned = rollout("checkout-owned", 10 * HOUR, owner="payments")
    quiet = rollout("checkout-quiet", 9 * HOUR)
    answer = found(
        [rule()],
        quiet,
        owned,
        rising,
        worse,
        service="payments",
        evidence={"checkout-worse": judgement(e_value=60.0)},
    )
    assert flags(answer) == [
        "checkout-worse",
        "checkout-rising",
        "checkout-owned",
        "checkout-quiet",
    ]
    words = [one.suspect.words for one in answer.intents]
    assert "its error_rate looks worse in treatment" in words[0]
    assert "rose from 0 to 10 % 1 min before" in words[1]
    assert "is of payments" in words[2]
    assert "named by the rule alone" in words[3]


def test_harm_that_is_certain_stands_first() -> None:
    """Before harm that only looks so."""
    certain = suspect(rollout("a"), BEGAN, "", judgement(harm=Verdict.FAIL))
    likely = suspect(rollout("b"), BEGAN, "", judgement(e_value=99.0))
    assert certain.score > likely.score
    assert "is worse in treatment" in certain.words


def test_of_two_rules_for_a_flag_the_stronger_acts() -> None:
    """Whatever the order of the rules. What holds the flag besides comes after it."""
    rules = [
        rule(name="hold", do="hold"),
        rule(name="back", do="step_back"),
        rule(name="dry", do="roll_back", dry_run=True),
    ]
    for order in (rules, rules[::-1]):
        intents = found(order, rollout("checkout-a")).intents
        assert [one.rule.name for one in intents] == ["back", "hold"]
        assert intents[0].action is SignalAction.STEP_BACK


def test_what_ends_a_rollout_needs_no_hold_besides() -> None:
    """Nothing goes on that could be held."""
    hold = rule(name="hold", do="hold", completed=True)
    done = replace(rollout("checkout-a"), phase=Completed(BEGAN), percent=100.0)
    for do, one in (("roll_back", rollout("checkout-a")), ("step_back", done)):
        (intent,) = found([hold, rule(do=do, completed=True)], one).intents
        assert intent.rule.name == "down"


def test_a_percentage_that_fell_has_not_risen() -> None:
    """The last rise is the one before it fell."""
    visits = (
        make_visit(percent=10.0, entered_at=T0),
        make_visit(stage=1, percent=50.0, entered_at=T0 + HOUR),
        make_visit(percent=10.0, entered_at=T0 + 2 * HOUR),
    )
    rise = last_rise(make_rollout(visits=visits))
    assert rise is not None
    assert (rise.at, rise.before, rise.after) == (T0 + HOUR, 10.0, 50.0)
    assert last_rise(make_rollout(visits=())) is None


def test_the_newest_comes_first_where_the_rule_says_so() -> None:
    """And a flag on which the rule has acted makes room for the next one."""
    rules = [rule(flags="recent", within="2h", most=1, order="newest")]
    rollouts = [rollout("checkout-old", HOUR), rollout("checkout-new", 10 * MINUTE)]
    assert flags(found(rules, *rollouts)) == ["checkout-new"]
    known = {one.flag_key: one for one in rollouts}
    answer = response(
        rules, signal(), known, rests=lambda _rule, one: one.flag_key == "checkout-new"
    )
    assert flags(answer) == ["checkout-old"]


def test_without_a_limit_nobody_makes_room() -> None:
    """A rule for all of its flags names each, also one that it leaves alone for a while."""
    rollouts = {"checkout-a": rollout("checkout-a")}
    answer = response([rule()], signal(), rollouts, rests=lambda _rule, _one: True)
    assert flags(answer) == ["checkout-a"]
