from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, FormatChecker
from pydantic import BaseModel

from schemas import envelope, evaluation, generate, outcome
from schemas.wire import decode_evaluation, decode_outcome

SCHEMAS = Path(generate.__file__).parent
ARRIVAL = 1_795_230_000_000
EVENTS = {topic.name: topic for topic in generate.TOPICS}


def load(path: Path) -> Any:
    """Return a JSON file."""
    return json.loads(path.read_text("utf-8"))


def test_generated_files_are_what_the_models_say() -> None:
    """A change of a model comes with its schemas: run python -m schemas.generate."""
    assert generate.drift() == []


def test_every_schema_has_an_example() -> None:
    """Whoever emits an event finds one to copy."""
    names = {path.name.removesuffix(".schema.json") for path in (SCHEMAS / "json").iterdir()}
    assert (
        names
        == {path.stem for path in (SCHEMAS / "examples").iterdir()}
        == {*EVENTS, *generate.DOCUMENTS}
    )


@pytest.mark.parametrize("name", [*EVENTS, *generate.DOCUMENTS])
def test_examples_follow_their_schema(name: str) -> None:
    """Each example is valid by the JSON Schema that other languages use.

    And the schema itself is valid.
    """
    schema = load(SCHEMAS / "json" / f"{name}.schema.json")
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema, format_checker=FormatChecker()).validate(
        load(SCHEMAS / "examples" / f"{name}.json")
    )


@pytest.mark.parametrize("name", EVENTS)
def test_examples_are_read_by_the_codec(name: str) -> None:
    """Each event example opens as a CloudEvent of its type, fits its model.

    And is small enough for any broker.
    """
    value = (SCHEMAS / "examples" / f"{name}.json").read_bytes()
    event = envelope.read(value, ARRIVAL, [], [EVENTS[name].event_type])
    EVENTS[name].model.model_validate_json(json.dumps(event.data))
    assert len(value) <= 64 * 1024


@pytest.mark.parametrize("name", generate.DOCUMENTS)
def test_documents_fit_their_model(name: str) -> None:
    """Each document example is accepted by its model."""
    model: type[BaseModel] = generate.DOCUMENTS[name]
    model.model_validate_json((SCHEMAS / "examples" / f"{name}.json").read_bytes())


def test_the_examples_of_apps_can_be_counted() -> None:
    """The fast path reads the evaluation and the outcome that apps are told to copy.

    And they belong together.
    """
    served = decode_evaluation(
        (SCHEMAS / "examples" / "evaluation.json").read_bytes(), None, ARRIVAL, []
    )
    ended = decode_outcome((SCHEMAS / "examples" / "outcome.json").read_bytes(), None, ARRIVAL, [])
    assert (served.context_id, (served.flag_key, served.variant)) == (
        ended.context_id,
        ended.flags[0],
    )
    assert (ended.is_error, ended.latency_ms) == (True, 187.0)


@pytest.mark.parametrize(
    ("name", "event_type", "data"),
    [
        ("evaluation", evaluation.TYPE, {"feature_flag.key": "a"}),
        (
            "evaluation",
            evaluation.TYPE,
            {"feature_flag.key": "a b", "feature_flag.result.variant": "on"},
        ),
        (
            "evaluation",
            evaluation.TYPE,
            {"feature_flag.key": "a", "feature_flag.result.variant": None},
        ),
        ("evaluation", evaluation.TYPE, {"feature_flag.key": "a", "feature_flag.result.value": 3}),
        ("outcome", outcome.TYPE, {"http.server.request.duration": -1}),
        ("outcome", outcome.TYPE, {"rolloutd.flags": [{"feature_flag.key": "a"}]}),
        ("outcome", outcome.TYPE, {"error.type": ""}),
        ("outcome", evaluation.TYPE, {}),
    ],
)
def test_schemas_refuse_what_the_codec_refuses(
    name: str, event_type: str, data: dict[str, Any]
) -> None:
    """A sender who checks by the schema learns of a mistake before we do."""
    schema = load(SCHEMAS / "json" / f"{name}.schema.json")
    event = {"specversion": "1.0", "type": event_type, "source": "/shop", "id": "1", "data": data}
    assert not Draft202012Validator(schema).is_valid(event)


def test_the_asyncapi_document_names_every_topic() -> None:
    """Nine channels at the default addresses, each with one operation as seen from rolloutd."""
    document = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text("utf-8"))
    assert [channel["address"] for channel in document["channels"].values()] == [
        topic.address for topic in generate.TOPICS
    ]
    received = {
        name
        for name, operation in document["operations"].items()
        if operation["action"] == "receive"
    }
    assert received == {"receiveEvaluation", "receiveOutcome", "receiveCommand", "receiveSignal"}
    assert len(document["operations"]) == 9


def test_every_reference_in_the_asyncapi_document_leads_somewhere() -> None:
    """No reference points outside the document or at nothing."""
    document = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text("utf-8"))

    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            return [
                found
                for name, item in node.items()
                for found in (
                    [item] if name == "$ref" and isinstance(item, str) else references(item)
                )
            ]
        return (
            [found for item in node for found in references(item)] if isinstance(node, list) else []
        )

    for reference in references(document):
        assert reference.startswith("#/")
        place = document
        for step in reference[2:].split("/"):
            place = place[step]
