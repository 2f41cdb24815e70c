"""Reading a language model's answer, which may be anything."""

import json
from typing import Any, get_args

import pytest

from schemas.advice import ANSWER_MAX_BYTES, ANSWER_SCHEMA, AdviceAnswer, parse_form

GOOD = {"verdict": "hold", "confidence": 80, "reasons": ["p99 rises"]}


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(GOOD),
        json.dumps(GOOD).encode(),
        json.dumps(GOOD, indent=4) + "\n\n",
        "```json\n" + json.dumps(GOOD) + "\n```",
        "```\n" + json.dumps(GOOD) + "\n```\n",
    ],
)
def test_answer_in_the_form_is_read(answer: str | bytes) -> None:
    """An answer in the form is read, also with white space or one fence around it."""
    assert parse_form(answer, AdviceAnswer) == AdviceAnswer(
        verdict="hold", confidence=80, reasons=["p99 rises"]
    )


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   ",
        b"\xff\xfe",
        "\ud800",
        "null",
        "[]",
        '"proceed"',
        "proceed",
        "Sure! " + json.dumps(GOOD),
        json.dumps(GOOD) + " I hope this helps",
        json.dumps(GOOD) * 2,
        json.dumps(GOOD)[:-1],
        "```json\n" + json.dumps(GOOD) + "\n``` done",
        '{"verdict": "hold", "verdict": "proceed", "confidence": 80, "reasons": []}',
        '{"verdict": "hold", "confidence": NaN, "reasons": []}',
        '{"verdict": "hold", "confidence": 1e999, "reasons": []}',
        '{"verdict": "hold", "confidence": ' + "9" * 5000 + ', "reasons": []}',
        "[" * 8000,
        " " * (ANSWER_MAX_BYTES + 1),
        json.dumps({**GOOD, "confidence": 80.0}),
        json.dumps({**GOOD, "confidence": "80"}),
        json.dumps({**GOOD, "confidence": True}),
        json.dumps({**GOOD, "confidence": 101}),
        json.dumps({**GOOD, "confidence": -1}),
        json.dumps({**GOOD, "confidence": None}),
        json.dumps({**GOOD, "verdict": "PROCEED"}),
        json.dumps({**GOOD, "verdict": "advance"}),
        json.dumps({**GOOD, "verdict": ["hold"]}),
        json.dumps({**GOOD, "reasons": "p99"}),
        json.dumps({**GOOD, "reasons": ["a"] * 6}),
        json.dumps({**GOOD, "reasons": ["a" * 201]}),
        json.dumps({**GOOD, "reasons": [1]}),
        json.dumps({**GOOD, "percent": 100}),
        json.dumps({"verdict": "hold", "confidence": 80}),
    ],
)
def test_anything_else_is_refused_with_a_reason(answer: str | bytes) -> None:
    """Anything but exactly one answer in the form is refused with a short printable reason."""
    with pytest.raises(ValueError) as refusal:
        parse_form(answer, AdviceAnswer)
    assert 0 < len(str(refusal.value)) < 300
    assert str(refusal.value).isprintable()


def test_largest_answer_in_the_form_fits_the_cap() -> None:
    """The longest answer the form allows, all of it escaped, is still read."""
    answer = json.dumps(
        {"verdict": "hold", "confidence": 100, "reasons": ["\N{GRINNING FACE}" * 200] * 5}, indent=4
    )
    assert len(answer) > 12_000
    assert len(parse_form(answer, AdviceAnswer).reasons[0]) == 200


def test_control_characters_in_reasons_become_spaces() -> None:
    """A reason cannot move the cursor of the terminal it is shown in."""
    answer = parse_form(
        json.dumps({**GOOD, "reasons": ["\x1b[2Jall\u202egood\ud800"]}), AdviceAnswer
    )
    assert answer.reasons == [" [2Jall good "]


def test_schema_sent_to_servers_is_the_form_that_is_read() -> None:
    """The schema sent along asks for exactly what is read.

    And uses only what LocalAI's converter keeps or may drop.
    """
    generated = AdviceAnswer.model_json_schema()
    sent: dict[str, Any] = ANSWER_SCHEMA
    assert set(sent["properties"]) == set(generated["properties"]) == set(AdviceAnswer.model_fields)
    assert sent["properties"]["verdict"]["enum"] == list(
        get_args(AdviceAnswer.model_fields["verdict"].annotation)
    )
    for name, field in generated["properties"].items():
        for bound in ("minimum", "maximum", "maxItems", "type"):
            assert field.get(bound) == sent["properties"][name].get(bound)
    assert (
        generated["properties"]["reasons"]["items"]["maxLength"]
        == sent["properties"]["reasons"]["items"]["maxLength"]
    )
    assert "$" not in json.dumps(sent)
    assert '"number"' not in json.dumps(sent)
