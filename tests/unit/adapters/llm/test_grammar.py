"""The grammar of each form: everything in it can be read, and the longest answer is known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from controller.adapters.llm.grammar import MAX_INTEGER, grammar_of
from controller.adapters.llm.localai import LocalAIDialect
from controller.adapters.llm.prompts import gate_prompt
from controller.authoring.plan_draft import FORM, PlanAnswer
from controller.core.effects import AskAdvice
from controller.settings import AdvisorSettings
from schemas.advice import (
    ANOMALIES_SCHEMA,
    ANSWER_SCHEMA,
    EXPLANATION_SCHEMA,
    AdviceAnswer,
    AnomaliesAnswer,
    AnomalyAnswer,
    ExplanationAnswer,
    parse_form,
)
from tests.builders import T0, make_judgement, make_rollout
from tests.gbnf import longest_text, matches, shortest_text

FORMS: Mapping[str, Mapping[str, Any]] = {
    "answer": ANSWER_SCHEMA,
    "explanation": EXPLANATION_SCHEMA,
    "anomalies": ANOMALIES_SCHEMA,
    "plan": FORM,
}
#: What reads an answer in each form.
READ_AS: Mapping[str, type[BaseModel]] = {
    "answer": AdviceAnswer,
    "explanation": ExplanationAnswer,
    "anomalies": AnomaliesAnswer,
    "plan": PlanAnswer,
}


@pytest.mark.parametrize("name", FORMS)
def test_the_longest_answer_is_as_long_as_said(name: str) -> None:
    """The bound is exact or above: `max_tokens` from it cuts nothing off."""
    grammar = grammar_of(FORMS[name])
    longest = longest_text(grammar.text)
    assert len(longest) <= grammar.longest <= len(longest) + 10
    json.loads(longest)


@pytest.mark.parametrize("written", [shortest_text, longest_text])
@pytest.mark.parametrize("name", FORMS)
def test_what_the_grammar_allows_is_in_the_form(name: str, written: Callable[[str], str]) -> None:
    """The least and the most that a model may write: it is read, not refused."""
    text = written(grammar_of(FORMS[name]).text)
    parse_form(text, READ_AS[name])
    if name == "anomalies":  # the least has none; one of them, with as little as it may say
        [listed] = FORMS[name]["properties"].values()
        one = shortest_text(grammar_of(listed["items"]).text)
        parse_form(one, AnomalyAnswer)


@given(st.integers(0, 120), st.integers(0, 70_000), st.integers(0, 70_000))
def test_exactly_the_numbers_of_a_range_match(low: int, high: int, number: int) -> None:
    """A grammar has every number of its range and no other, and no leading zero."""
    high = max(low, high)
    grammar = grammar_of({"type": "integer", "minimum": low, "maximum": high}).text
    for each in {number, low, high, max(0, low - 1), high + 1, (low + high) // 2}:
        assert matches(grammar, str(each)) == (low <= each <= high), each
    for wrong in ("", "-1", f"0{high}", f"{low}.0", f"{high}0000"):
        assert not matches(grammar, wrong), wrong


def test_a_number_without_a_limit_gets_one() -> None:
    """Nothing in a grammar is without end."""
    grammar = grammar_of({"type": "integer", "minimum": 1}).text
    assert matches(grammar, str(MAX_INTEGER))
    assert not matches(grammar, str(MAX_INTEGER + 1))


@pytest.mark.parametrize(
    ("answer", "is_in_form"),
    [
        ({"reasons": ["a", "b"], "verdict": "hold", "confidence": 7}, True),
        ({"reasons": [], "verdict": "proceed", "confidence": 100}, True),
        ({"reasons": ["ä" * 200] * 5, "verdict": "roll_back", "confidence": 0}, True),
        ({"reasons": ["a" * 201], "verdict": "hold", "confidence": 7}, False),
        ({"reasons": ["a"] * 6, "verdict": "hold", "confidence": 7}, False),
        ({"reasons": [], "verdict": "advance", "confidence": 7}, False),
        ({"reasons": [], "verdict": "hold", "confidence": 101}, False),
        ({"verdict": "hold", "reasons": [], "confidence": 7}, False),
        ({"reasons": [], "verdict": "hold"}, False),
    ],
)
def test_the_answer_keeps_its_bounds(answer: dict[str, Any], *, is_in_form: bool) -> None:
    """Lengths, counts, choices and the range of the number are all in the grammar."""
    text = json.dumps(answer, ensure_ascii=False)
    assert matches(grammar_of(ANSWER_SCHEMA).text, text) is is_in_form


def test_names_of_others_cannot_break_out_of_the_grammar() -> None:
    """An attribute with quotes, backslashes or line ends is a literal like any other."""
    names = ['a"b', "c\\d", "e\nf", '" | "x']
    grammar = grammar_of({"type": "string", "enum": names}).text
    assert all(matches(grammar, json.dumps(name)) for name in names)
    assert not matches(grammar, "x")


@pytest.mark.parametrize(
    "form",
    [
        {"type": "string"},
        {"type": "array", "items": {"type": "boolean"}},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "integer"},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"$ref": "#/$defs/x"},
        {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": []},
    ],
)
def test_a_form_without_bounds_is_refused(form: dict[str, Any]) -> None:
    """What the grammar could not bound is a mistake of ours, not an answer without end."""
    with pytest.raises(ValueError):
        grammar_of(form)


def test_localai_gets_the_grammar_and_no_schema() -> None:
    """A schema would become a grammar without bounds; `max_tokens` has room for any answer."""
    settings = AdvisorSettings(url="http://advisor.invalid", protocol="localai")
    question = AskAdvice(gate_id="g", round=1, until=T0, judgement=make_judgement())
    prompt = gate_prompt(make_rollout(), question)
    request = LocalAIDialect().request(settings, prompt, ANSWER_SCHEMA, 512)
    assert "response_format" not in request
    assert request["grammar"] == grammar_of(ANSWER_SCHEMA).text
    assert request["max_tokens"] == grammar_of(ANSWER_SCHEMA).longest > 512
    assert (request["temperature"], request["stream"]) == (0, False)
    assert not re.search(r"[*+]", request["grammar"]), "a repetition without an end"
    longer = LocalAIDialect().request(settings, prompt, ANSWER_SCHEMA, 5_000)
    assert longer["max_tokens"] == 5_000
