"""Drafted targeting: what rules mean, that both flag planes mean the same, and what a model may not make up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.authoring.targeting import (
    OPERATORS,
    Operator,
    Rule,
    Segments,
    by_words,
    check_rule,
    draft_rules,
    matches,
    read_segments,
    to_flagd,
    to_unleash,
)
from controller.errors import ConfigInvalid
from tests.unit.authoring.conftest import ScriptedServer, scripted

FILE = """
attributes:
  country: {values: [de, fr, us]}
  tier: {values: [free, pro]}
  email: {}
  orders: {type: number}
  app_version: {type: version}
samples:
  - {targetingKey: u-1, country: de, tier: pro, email: a@corp.example, orders: 12, app_version: 2.4.1}
  - {targetingKey: u-2, country: us, tier: free, email: b@mail.example, orders: 0, app_version: 2.3.9}
  - {targetingKey: u-3}
"""
SEGMENTS = read_segments(FILE, "segments.yaml")


def rule(attribute: str, operator: str, *values: str) -> Rule:
    """Return one condition."""
    return Rule(attribute=attribute, operator=Operator(operator), values=list(values))


def who(*rules: Rule) -> list[int]:
    """Return the numbers of the sample users that match."""
    return [number for number, user in enumerate(SEGMENTS.samples, 1) if matches(rules, user)]


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (rule("country", "is_one_of", "de", "fr"), [1]),
        (rule("country", "is_not_one_of", "de"), [2, 3]),
        (rule("email", "ends_with", "@corp.example"), [1]),
        (rule("email", "starts_with", "b@"), [2]),
        (rule("orders", "at_least", "12"), [1]),
        (rule("orders", "less_than", "12"), [2]),
        (rule("app_version", "newer_than", "2.4.0"), [1]),
        (rule("app_version", "older_than", "2.4.0"), [2]),
    ],
)
def test_each_operator_means_what_it_says(one: Rule, expected: list[int]) -> None:
    """Who lacks an attribute matches nothing about it, except that it is not one of some values."""
    assert who(one) == expected


def test_all_rules_must_match() -> None:
    """Several rules narrow the audience; none is everybody."""
    assert who(rule("country", "is_one_of", "de", "us"), rule("tier", "is_one_of", "free")) == [2]
    assert who() == [1, 2, 3]
    assert to_flagd((), "on", "off") is None
    assert to_unleash(()) == []


def json_logic(logic: Any, user: dict[str, Any]) -> Any:
    """Return what JsonLogic with flagd's operators gives, of those that are written here."""
    if not isinstance(logic, dict):
        return logic
    ((name, arguments),) = logic.items()
    if name == "var":
        return user.get(arguments)
    values = arguments if isinstance(arguments, list) else [arguments]
    if name == "if":
        return values[1] if json_logic(values[0], user) else values[2]
    if name == "and":
        return all(json_logic(each, user) for each in values)
    first, *rest = [json_logic(each, user) if isinstance(each, dict) else each for each in values]
    match name:
        case "!":
            return not first
        case "!=":
            return first != rest[0]
        case "in":
            return first in rest[0]
        case "starts_with":
            return isinstance(first, str) and first.startswith(rest[0])
        case "ends_with":
            return isinstance(first, str) and first.endswith(rest[0])
        case ">=":
            return (first or 0) >= rest[0]  # nothing is 0 in JsonLogic
        case "<":
            return (first or 0) < rest[0]
        case "sem_ver":
            if not isinstance(first, str):
                return False
            mine, edge = ([int(part) for part in text.split(".")] for text in (first, rest[1]))
            return mine > edge if rest[0] == ">" else mine < edge
    raise AssertionError(f"operator {name} is not written here")


def unleash(constraint: dict[str, Any], user: dict[str, Any]) -> bool:
    """Return what Unleash makes of one constraint, of those that are written here."""
    mine = user.get(constraint["contextName"])
    match constraint["operator"]:
        case "IN":
            return mine in constraint["values"]
        case "NOT_IN":
            return mine not in constraint["values"]
        case "STR_STARTS_WITH":
            return mine is not None and str(mine).startswith(tuple(constraint["values"]))
        case "STR_ENDS_WITH":
            return mine is not None and str(mine).endswith(tuple(constraint["values"]))
        case "NUM_GTE":
            return mine is not None and mine >= float(constraint["value"])
        case "NUM_LT":
            return mine is not None and mine < float(constraint["value"])
        case "SEMVER_GT" | "SEMVER_LT":
            if mine is None:
                return False
            own, edge = ([int(part) for part in text.split(".")] for text in (mine, constraint["value"]))
            return own > edge if constraint["operator"] == "SEMVER_GT" else own < edge
    raise AssertionError(f"operator {constraint['operator']} is not written here")


versions = st.tuples(*[st.integers(0, 12)] * 3).map(lambda parts: ".".join(map(str, parts)))
numbers = st.integers(-5, 30)
texts = st.sampled_from(["de", "fr", "us", "d", "e", "defr"])


@st.composite
def rules_and_user(draw: st.DrawFn) -> tuple[list[Rule], dict[str, Any]]:
    """Draw conditions on a text, a number and a version, and a user that has some of them."""
    rules = []
    for _ in range(draw(st.integers(0, 4))):
        kind, name, values = draw(
            st.sampled_from([("text", "country", texts), ("number", "orders", numbers.map(str)), ("version", "app", versions)])
        )
        operator = draw(st.sampled_from(OPERATORS[kind]))
        many = operator in (Operator.IS_ONE_OF, Operator.IS_NOT_ONE_OF)
        rules.append(
            Rule(attribute=name, operator=operator, values=draw(st.lists(values, min_size=1, max_size=3 if many else 1)))
        )
    user = {"country": draw(texts), "orders": draw(numbers), "app": draw(versions)}
    return rules, {name: value for name, value in user.items() if draw(st.booleans())}


@given(rules_and_user())
def test_both_flag_planes_mean_the_same(drawn: tuple[list[Rule], dict[str, Any]]) -> None:
    """What is shown of the sample users is what flagd and Unleash would serve them."""
    rules, user = drawn
    expected = matches(rules, user)
    written = to_flagd(rules, "on", "off")
    assert (written is None or json_logic(written, user) == "on") == expected
    assert all(unleash(constraint, user) for constraint in to_unleash(rules)) == expected


@pytest.mark.parametrize(
    ("made_up", "reason"),
    [
        (rule("password", "is_one_of", "x"), "no attribute of the file"),
        (rule("country", "is_one_of", "at"), "a value it never has: 'at'"),
        (rule("country", "at_least", "3"), "compares the text country with at_least"),
        (rule("orders", "at_least", "many"), "compares the number orders with 'many'"),
        (rule("orders", "at_least", "nan"), "compares the number orders"),
        (rule("app_version", "newer_than", "latest"), "compares the version app_version"),
        (rule("email", "ends_with", "a", "b"), "more than one value"),
    ],
)
async def test_a_rule_that_is_made_up_is_not_shown(made_up: Rule, reason: str) -> None:
    """A model that uses what the file does not know is replaced by the template, with the reason."""
    with pytest.raises(ValueError, match=reason):
        check_rule(made_up, SEGMENTS)
    answer = json.dumps({"rules": [made_up.model_dump(mode="json")]})
    made = await draft_rules(scripted(answer), "pro users", SEGMENTS)
    assert made.author == "template"
    assert reason in made.origin


async def test_a_sound_answer_is_taken() -> None:
    """Rules that use what the file knows are the model's."""
    answer = {"rules": [{"attribute": "email", "operator": "ends_with", "values": ["@corp.example"]}]}
    made = await draft_rules(scripted(json.dumps(answer)), "our own people", SEGMENTS)
    assert (made.author, made.why_template) == ("tiny", None)
    assert who(*made.content) == [1]


async def test_no_user_of_the_file_is_told_to_the_model() -> None:
    """Samples are for trying rules on: what stands in them about people does not go into the prompt."""
    model = scripted('{"rules": []}')
    assert model is not None
    await draft_rules(model, "pro users", SEGMENTS)
    assert isinstance(model.server, ScriptedServer)
    sent = json.dumps(model.server.prompts[0].messages)
    assert "u-1" not in sent
    assert "corp.example" not in sent
    assert "country" in sent


def test_the_template_knows_whole_words_only() -> None:
    """Without a model, listed values that stand in the description are used, and nothing is guessed."""
    assert by_words("pro customers in DE", SEGMENTS) == (rule("country", "is_one_of", "de"), rule("tier", "is_one_of", "pro"))
    assert by_words("professionals in Denmark", SEGMENTS) == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "file"),
        ("attributes: {}", "attributes"),
        ("{attributes: {a: {type: colour}}, samples: [{}]}", "attributes.a.type"),
        ("{attributes: {a: {type: number, values: ['1']}}, samples: [{}]}", "only texts"),
        ("{attributes: {'a b': {}}, samples: [{}]}", "attributes"),
        ("a: [", "not YAML"),
        ("{attributes: {a: {}}, samples: []}", "samples"),
    ],
)
def test_a_broken_file_is_refused(text: str, reason: str) -> None:
    """What is wrong with the file is said with its place."""
    with pytest.raises(ConfigInvalid, match=reason):
        read_segments(text, "segments.yaml")


@given(st.text(max_size=200))
async def test_any_answer_gives_rules_of_the_file(answer: str) -> None:
    """Whatever a model writes, the rules use what the file knows."""
    made = await draft_rules(scripted(answer), "pro users", SEGMENTS)
    for one in made.content:
        check_rule(one, Segments.model_validate(SEGMENTS.model_dump()))
