"""A drafted audience.

Plans and both flag planes take it and mean the same by it, and a model may not make anything up.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext

from controller.authoring.targeting import (
    OPERATORS,
    Attribute,
    ConditionAnswer,
    Segments,
    Suggestion,
    by_words,
    draft_audience,
    read_segments,
    suggest,
)
from controller.errors import ConfigInvalid
from controller.plans import lint_text
from schemas.terms import Operator
from tests.unit.authoring.conftest import ScriptedServer, scripted

logging.getLogger("openfeature.contrib").setLevel(
    logging.CRITICAL
)  # it logs each text that is no version

FILE = """
attributes:
  country: {values: [de, fr, us]}
  tier: {values: [free, pro]}
  email: {}
  orders: {type: number}
  app-version: {type: version}
  joined: {type: date}
samples:
  - {targetingKey: u-1, country: de, tier: pro, email: a@corp.example, orders: 12,
     app-version: 2.4.1, joined: 2026-03-01}
  - {targetingKey: u-2, country: us, tier: free, email: b@mail.example, orders: 0,
     app-version: 2.3.9, joined: 2026-02-28}
  - {targetingKey: u-3, country: null}
"""
SEGMENTS = read_segments(FILE, "segments.yaml")


def condition(attribute: str, operator: str, *values: str) -> ConditionAnswer:
    """Return one condition, as a model writes it."""
    return ConditionAnswer(attribute=attribute, operator=Operator(operator), values=list(values))


def drafted(*conditions: ConditionAnswer) -> Suggestion:
    """Return what becomes of conditions."""
    return suggest(conditions, SEGMENTS, "suggested")


def who(suggestion: Suggestion) -> list[int]:
    """Return the numbers of the sample users that belong to an audience."""
    return [number for number, user in enumerate(SEGMENTS.samples, 1) if suggestion.includes(user)]


def in_a_plan(block: str) -> list[str]:
    """Return what `plan lint` says of a plan with this block pasted in."""
    stages = "stages: [{percent: 100, bake: 1d, audience: suggested}, {percent: 100, bake: 1d}]\n"
    plan = f"name: p\nflag: f\nowner: o\n{block}{stages}guardrails: ['error_rate < 1%']\n"
    return [str(finding) for finding in lint_text(plan)[1]]


def by_flagd(targeting: dict[str, Any], user: dict[str, Any]) -> bool:
    """Tell whether flagd's evaluator gives a user the treatment."""
    flag = {
        "state": "ENABLED",
        "variants": {"on": True, "off": False},
        "defaultVariant": "off",
        "targeting": targeting,
    }
    core = FlagdCore()
    core.set_flags(json.dumps({"flags": {"f": flag}}))
    return core.resolve_boolean_value("f", False, EvaluationContext("u", user)).value


def by_unleash(strategies: Sequence[Any], user: dict[str, Any]) -> bool:
    """Tell whether one of the strategies lets a user in."""
    return any(
        all(is_met(constraint, user) for constraint in each["constraints"]) for each in strategies
    )


def is_met(constraint: dict[str, Any], user: dict[str, Any]) -> bool:
    """Return what Unleash makes of one constraint, of those that are written here.

    Contexts are texts to it.
    """
    if (known := user.get(constraint["contextName"])) is None:
        return False
    mine = str(known)
    kind, _, comparison = constraint["operator"].partition("_")
    match kind:
        case "IN":
            return mine in constraint["values"]
        case "STR":
            starts = comparison == "STARTS_WITH"
            return any(
                mine.startswith(text) if starts else mine.endswith(text)
                for text in constraint["values"]
            )
        case "NUM":
            return compare(comparison, float(mine), float(constraint["value"]))
        case "SEMVER":
            own, edge = (tuple(map(int, text.split("."))) for text in (mine, constraint["value"]))
            return compare(comparison, own, edge)
        case "DATE":
            at, edge_at = (datetime.fromisoformat(text) for text in (mine, constraint["value"]))
            return at < edge_at if comparison == "BEFORE" else at > edge_at
    raise AssertionError(f"operator {constraint['operator']} is not written here")


def compare(comparison: str, mine: Any, edge: Any) -> bool:
    """Return what Unleash says of two numbers or versions."""
    held = {
        "EQ": mine == edge,
        "GT": mine > edge,
        "LT": mine < edge,
        "GTE": mine >= edge,
        "LTE": mine <= edge,
    }
    return bool(held[comparison])


# --- what is written ---


@pytest.mark.parametrize(
    ("one", "written", "expected"),
    [
        (condition("tier", "eq", "pro"), {"eq": "pro"}, [1]),
        (condition("country", "in", "de", "fr"), {"in": ["de", "fr"]}, [1]),
        (condition("email", "ends_with", "@corp.example"), {"ends_with": ["@corp.example"]}, [1]),
        (condition("email", "starts_with", "b@", "c@"), {"starts_with": ["b@", "c@"]}, [2]),
        (condition("orders", "eq", "0"), {"eq": 0}, [2]),
        (condition("orders", "in", "12", "-1.5"), {"in": [12, -1.5]}, [1]),
        (condition("orders", "gte", "11.5"), {"gte": 11.5}, [1]),
        (condition("orders", "lte", "12"), {"lte": 12}, [1, 2]),
        (condition("app-version", "sem_ver", ">= 2.4.0"), {"sem_ver": ">= 2.4.0"}, [1]),
        (condition("app-version", "sem_ver", "~2.3"), {"sem_ver": "~2.3"}, [2]),
        (condition("joined", "before", "2026-03-01"), {"before": "2026-03-01"}, [2]),
        (condition("joined", "after", "2026-03-01"), {"after": "2026-03-01"}, [1]),
    ],
)
def test_each_operator_is_a_plans(
    one: ConditionAnswer, written: dict[str, Any], expected: list[int]
) -> None:
    """Values become the attribute's type, and who lacks the attribute does not match."""
    made = drafted(one)
    assert made.block == {"suggested": [{"attribute": one.attribute, **written}]}
    assert who(made) == expected


def test_all_conditions_must_hold() -> None:
    """Several conditions narrow the audience.

    None is everybody, on every plane, and asks for no audience.
    """
    assert who(
        drafted(condition("country", "in", "de", "us"), condition("tier", "eq", "free"))
    ) == [2]
    everybody = drafted()
    assert who(everybody) == [1, 2, 3]
    assert everybody.to_flagd("on", "off") is None
    assert everybody.unleash == [{"constraints": []}]
    assert everybody.to_yaml() == "audiences: {}\n"


def test_the_block_is_a_plans() -> None:
    """What is printed says in YAML what was drafted.

    And passes `plan lint` where it is pasted, texts quoted as they need.
    """
    made = drafted(
        condition("email", "starts_with", "on", "12", "2026-03-01", "ä: ["),
        condition("joined", "after", "2026-03-01"),
    )
    assert yaml.safe_load(made.to_yaml()) == {"audiences": made.block}
    assert in_a_plan(made.to_yaml()) == []
    assert in_a_plan(made.to_yaml().replace("'2026-03-01'", "soon")) != []


def test_treatment_and_control_are_named_for_flagd() -> None:
    """The rule gives one variant or the other.

    Unleash has no word for a range and gets two strategies.
    """
    made = drafted(condition("tier", "eq", "pro"), condition("app-version", "sem_ver", ">= 2.4.0"))
    targeting = made.to_flagd("new", "old")
    assert targeting is not None
    assert targeting["if"][1:] == ["new", "old"]
    tier = {"contextName": "tier", "operator": "IN", "values": ["pro"]}
    assert made.unleash == [
        {
            "constraints": [
                tier,
                {"contextName": "app-version", "operator": operator, "value": "2.4.0"},
            ]
        }
        for operator in ("SEMVER_GT", "SEMVER_EQ")
    ]


MIDNIGHT = datetime(2026, 3, 1, tzinfo=UTC)
operands = {
    "country": st.sampled_from(["de", "fr", "us"]),
    "email": st.sampled_from(["a@corp.example", "b@mail.example", "a", "example"]),
    "orders": st.integers(-3, 3).map(str) | st.sampled_from(["0.5", "-1.50"]),
    "app-version": st.tuples(*[st.integers(0, 2)] * 3).map(lambda parts: ".".join(map(str, parts))),
    "joined": st.integers(-30, 30).map(
        lambda hours: f"{MIDNIGHT + timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}"
    ),
}
comparisons = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])


@st.composite
def conditions_and_user(draw: st.DrawFn) -> tuple[list[ConditionAnswer], dict[str, Any]]:
    """Draw conditions on attributes of every type, and a user that has some of them."""
    conditions = []
    for name in draw(st.lists(st.sampled_from(sorted(operands)), unique=True, max_size=3)):
        operator = draw(st.sampled_from(OPERATORS[SEGMENTS.attributes[name].type]))
        is_list = operator in (Operator.IN, Operator.STARTS_WITH, Operator.ENDS_WITH)
        values = draw(st.lists(operands[name], min_size=1, max_size=3 if is_list else 1))
        if operator is Operator.SEM_VER:
            values = [f"{draw(comparisons)} {values[0]}"]
        conditions.append(ConditionAnswer(attribute=name, operator=operator, values=values))
    user: dict[str, Any] = {
        name: draw(values) for name, values in operands.items() if draw(st.booleans())
    }
    return conditions, {**user, "orders": float(user["orders"])} if "orders" in user else user


@given(conditions_and_user())
def test_both_flag_planes_mean_the_same(
    drawn: tuple[list[ConditionAnswer], dict[str, Any]],
) -> None:
    """What is shown of the sample users is what flagd and Unleash would serve them."""
    conditions, user = drawn
    made = drafted(*conditions)
    targeting = made.to_flagd("on", "off")
    assert (targeting is None or by_flagd(targeting, user)) == made.includes(user)
    assert by_unleash(made.unleash, user) == made.includes(user)


# --- what a model may not make up ---


@pytest.mark.parametrize(
    ("made_up", "reason"),
    [
        ([condition("password", "eq", "x")], "no attribute of the file"),
        ([condition("country", "eq", "at")], "a value it never has: 'at'"),
        ([condition("country", "in", "de", "at")], "a value it never has: 'at'"),
        ([condition("country", "gte", "3")], "compares the text country by gte"),
        ([condition("app-version", "eq", "2.4.0")], "compares the version app-version by eq"),
        ([condition("joined", "gte", "2026-03-01")], "compares the date joined by gte"),
        ([condition("orders", "gte", "many")], "compares the number orders with 'many'"),
        ([condition("orders", "gte", "nan")], "compares the number orders"),
        ([condition("orders", "in", "1", "1e999")], "compares the number orders"),
        ([condition("orders", "eq", "9" * 16)], "compares the number orders"),
        ([condition("app-version", "sem_ver", "latest")], "'latest' is no version range"),
        ([condition("app-version", "sem_ver", "2.4.0")], "'2.4.0' is no version range"),
        ([condition("joined", "before", "yesterday")], "'yesterday' is no moment"),
        ([condition("email", "eq", "a", "b")], "gives eq more than one value"),
        (
            [condition("orders", "gte", "5"), condition("orders", "lte", "4")],
            "nobody belongs to it",
        ),
        (
            [condition("tier", "eq", "pro"), condition("tier", "eq", "free")],
            "two different values at once",
        ),
        ([condition("orders", "in", *map(str, range(20)))] * 2, "'suggested' takes 400 strategies"),
        ([condition("orders", "in", *map(str, range(20)))] * 8, "takes 25600000000 strategies"),
    ],
)
async def test_what_is_made_up_is_not_shown(made_up: list[ConditionAnswer], reason: str) -> None:
    """A model that uses what the file does not know.

    Or what nobody meets, is replaced by the template, with the reason.
    """
    with pytest.raises(ValueError, match=reason):
        drafted(*made_up)
    answer = json.dumps({"conditions": [one.model_dump(mode="json") for one in made_up]})
    made = await draft_audience(scripted(answer), "pro users", SEGMENTS, "suggested")
    assert made.author == "template"
    assert reason in made.origin
    assert who(made.content) == [1]


@pytest.mark.parametrize(
    ("operator", "values"),
    [
        ("not_in", ["de"]),
        ("is_not_one_of", ["de"]),
        ("", ["de"]),
        ("in", []),
        ("in", [""]),
        ("in", ["x" * 101]),
        ("eq", [1]),
    ],
)
async def test_what_the_form_does_not_have_is_not_taken(operator: str, values: list[Any]) -> None:
    """There is no operator that matches whom nothing is known of, so there is no `not`.

    And values are texts.
    """
    answer = json.dumps(
        {"conditions": [{"attribute": "country", "operator": operator, "values": values}]}
    )
    made = await draft_audience(scripted(answer), "pro users", SEGMENTS, "suggested")
    assert made.author == "template"
    assert "not in the form" in made.origin


async def test_a_sound_answer_is_taken() -> None:
    """Conditions that use what the file knows are the model's."""
    answer = {
        "conditions": [{"attribute": "email", "operator": "ends_with", "values": ["@corp.example"]}]
    }
    made = await draft_audience(scripted(json.dumps(answer)), "our own people", SEGMENTS, "staff")
    assert (made.author, made.why_template) == ("tiny", None)
    assert list(made.content.block) == ["staff"]
    assert who(made.content) == [1]


async def test_no_user_of_the_file_is_told_to_the_model() -> None:
    """Samples are for trying an audience on.

    What stands in them about people does not go into the prompt.
    """
    sent = json.dumps(await asked(FILE))
    assert "u-1" not in sent
    assert "corp.example" not in sent
    assert "country" in sent


async def test_the_model_is_offered_what_the_file_can_use() -> None:
    """The form has the operators of the types that there are, and no others.

    All its values are texts.
    """
    offered = json.loads(
        (await asked("{attributes: {a: {type: date}, b: {type: version}}, samples: [{}]}"))["form"]
    )
    item = offered["properties"]["conditions"]["items"]["properties"]
    assert item["attribute"]["enum"] == ["a", "b"]
    assert item["operator"]["enum"] == ["sem_ver", "before", "after"]
    assert item["values"]["items"]["type"] == "string"


async def asked(text: str) -> dict[str, str]:
    """Return what a model is told about a file, with the form of its answer."""
    model = scripted('{"conditions": []}')
    assert model is not None
    await draft_audience(model, "pro users", read_segments(text, "segments.yaml"), "suggested")
    assert isinstance(model.server, ScriptedServer)
    (prompt,) = model.server.prompts
    system, question = (message["content"] for message in prompt.messages)
    return {
        "system": system,
        "question": question,
        "form": next(line for line in system.splitlines() if line[:1] == "{"),
    }


def test_the_template_knows_whole_words_only() -> None:
    """Without a model, listed values that stand in the description are used.

    And nothing is guessed.
    """
    assert by_words("pro customers in DE", SEGMENTS) == [
        condition("country", "in", "de"),
        condition("tier", "in", "pro"),
    ]
    assert by_words("professionals in Denmark", SEGMENTS) == []


@pytest.mark.parametrize(
    ("description", "countries", "tiers"),
    [
        ("pro users in DE, not in us", ["de"], ["pro"]),
        ("pro users not in us or de", ["fr"], ["pro"]),
        ("pro users, not in us, de", ["fr"], ["pro"]),
        ("not in us, only pro", ["de", "fr"], ["pro"]),
        ("everybody except us; pro", ["de", "fr"], ["pro"]),
        ("users who don't live in us", ["de", "fr"], None),
        ("us but not de", ["us"], None),
        ("de, but not de", ["fr", "us"], None),
        ("without us, de and fr", None, None),
    ],
)
def test_the_template_never_turns_a_negation_around(
    description: str, countries: list[str] | None, tiers: list[str] | None
) -> None:
    """Who is ruled out is drafted as a list of the others, or nothing is drafted."""
    segments = Segments(
        attributes={
            "country": Attribute(values=["de", "fr", "us"]),
            "tier": Attribute(values=["free", "pro"]),
        },
        samples=[{}],
    )
    expected = [("country", countries), ("tier", tiers)]
    assert [(one.attribute, sorted(one.values)) for one in by_words(description, segments)] == [
        (attribute, values) for attribute, values in expected if values is not None
    ]


@given(st.text(max_size=200))
async def test_any_answer_gives_an_audience_of_the_file(answer: str) -> None:
    """Whatever a model writes, there is a draft."""
    made = await draft_audience(scripted(answer), "pro users", SEGMENTS, "suggested")
    assert who(made.content) == [1]


# --- the file ---


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "file"),
        ("attributes: {}", "attributes"),
        ("{attributes: {a: {type: colour}}, samples: [{}]}", "attributes.a.type"),
        ("{attributes: {a: {type: number, values: ['1']}}, samples: [{}]}", "only texts"),
        (
            "{attributes: {a: {values: [no]}}, samples: [{}]}",
            "attributes.a.values.0: 'False' is read as a truth value: put it in",
        ),
        ("{attributes: {a: {values: ['']}}, samples: [{}]}", "attributes.a.values.0"),
        ("{attributes: {'a b': {}}, samples: [{}]}", "attributes"),
        ("a: [", "not YAML"),
        ("{attributes: {a: {}}, samples: []}", "samples"),
        ("{attributes: {a: {}}, samples: [{b: [1]}]}", "samples.0.b: is none of a text, a number"),
        ("{attributes: {a: {}}, samples: [{b: .nan}]}", "samples.0.b: is none of a text, a number"),
        (
            "{attributes: {a: {}}, samples: [{a: no}]}",
            "samples.0.a: 'False' is read as a truth value, and a is a text: put it in",
        ),
        (
            "{attributes: {a: {type: version}}, samples: [{}, {a: 2.4}]}",
            "samples.1.a: '2.4' is read as a number, and a is a ver",
        ),
        (
            "{attributes: {a: {type: date}}, samples: [{a: 2026}]}",
            "samples.0.a: '2026' is read as a number, and a is a date",
        ),
        (
            "{attributes: {a: {type: number}}, samples: [{a: '2'}]}",
            "samples.0.a: '2' is read as a text, and a is a number",
        ),
        (
            "{attributes: {a: {type: number}}, samples: [{a: true}]}",
            "samples.0.a: 'True' is read as a truth value",
        ),
    ],
)
def test_a_broken_file_is_refused(text: str, reason: str) -> None:
    """What is wrong with the file is said with its place."""
    with pytest.raises(ConfigInvalid, match=reason):
        read_segments(text, "segments.yaml")
