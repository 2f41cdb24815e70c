"""What each operator means: the same on every flag plane, so every corner is written down."""

from __future__ import annotations

from typing import Any

import pytest

from controller.core.audience import Audience, Condition, Scalar, matcher
from schemas.terms import Operator


def matches(operator: str, *values: Scalar, **attributes: Any) -> bool:
    """Tell whether a condition on the attribute `it` matches."""
    return matcher(Audience("a", ((Condition("it", Operator(operator), values),),)))(attributes)


@pytest.mark.parametrize(
    ("operator", "values", "matching", "others"),
    [
        ("eq", ("DE",), ["DE"], ["de", "", " DE", None, True, ["DE"], {"DE": 1}]),
        ("eq", (1,), [1, 1.0], [True, "1", 2, None, [1]]),
        ("eq", (True,), [True], [1, "true", False, None]),
        ("eq", (0,), [0, -0.0], [False, "", None, [], "0"]),
        ("in", ("pro", "team", 7), ["pro", "team", 7, 7.0], ["Pro", "proteam", "7", None, ["pro"]]),
        ("gte", (18.0,), [18, 18.0, 1e300], [17.999, "18", "99", True, None, [20]]),
        ("lte", (0.0,), [0, -5, -1e300], [0.001, "", "-1", False, None, []]),
        ("starts_with", ("pro",), ["pro", "professional"], ["Pro", "a pro", None, 5, ["pro"]]),
        (
            "ends_with",
            ("@corp.example", "@corp.test"),
            ["a@corp.example", "b@corp.test"],
            ["a@corp.example.org", None],
        ),
        (
            "sem_ver",
            (">= 2.4.0",),
            ["2.4.0", "v2.4", "3", "2.4.1-rc.1", "10.0.0+b"],
            ["2.4.0-rc.1", "2.3.9", "2", "x", 3, None, "2026-03-01", "3-rc.1", "3.1+b"],
        ),
        ("sem_ver", ("^1.2",), ["1.0.0", "1.9"], ["2.0.0", "0.9"]),
        ("sem_ver", ("~1.2",), ["1.2.0", "1.2.9-a"], ["1.3.0"]),
        (
            "sem_ver",
            ("< 1.0.0-beta.11",),
            ["1.0.0-beta.2", "1.0.0-beta", "1.0.0-alpha", "1.0.0-9"],
            ["1.0.0-beta.x", "1.0.0-rc"],
        ),
        (
            "before",
            ("2026-03-01",),
            ["2026-02-28T23:59:59Z", "1999-12-31"],
            ["2026-03-01", "2026-03-01T00:00:00Z", 0, "", "n/a"],
        ),
        (
            "after",
            ("2026-03-01",),
            ["2026-03-01", "2026-03-01T00:00:00Z", "2027-01-01"],
            ["2026-02-28", "soon", None],
        ),
        (
            "after",
            ("2026-03-01T12:00:00Z",),
            ["2026-03-01T12:00:00+00:00"],
            ["2026-03-01", "2026-03-01T11:59:59.999Z"],
        ),
    ],
)
def test_operators(
    operator: str, values: tuple[Scalar, ...], matching: list[Any], others: list[Any]
) -> None:
    """An operator compares without converting, and what it does not know does not match."""
    assert [value for value in matching if not matches(operator, *values, it=value)] == []
    assert [value for value in others if matches(operator, *values, it=value)] == []


@pytest.mark.parametrize("operator", [each for each in Operator if each is not Operator.SEM_VER])
def test_missing_attribute_matches_nothing(operator: Operator) -> None:
    """Nobody is let in by what is not known of them."""
    assert not matches(operator, 0 if operator in (Operator.GTE, Operator.LTE) else "")


def test_conditions_of_a_list_hold_together_and_one_list_suffices() -> None:
    """Conditions side by side narrow an audience, lists side by side widen it."""
    german = Condition("country", Operator.EQ, ("DE",))
    paying = Condition("plan", Operator.IN, ("pro",))
    named = Condition("targetingKey", Operator.IN, ("u-1",))
    belongs = matcher(Audience("a", ((german, paying), (named,))))
    assert belongs({"country": "DE", "plan": "pro"})
    assert belongs({"targetingKey": "u-1"})
    assert not belongs({"country": "DE"})
    assert not belongs({})


def test_a_text_of_a_megabyte_is_no_version() -> None:
    """Reading its digits would take longer than a request may."""
    assert not matches("sem_ver", "> 1.0.0", it="9" * 1_000_000)
