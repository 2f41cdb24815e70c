"""Writes what other languages build against.

`schemas/json/*.schema.json`, `schemas/asyncapi.yaml` and `schemas/openapi.yaml`, from the models.

Run `python -m schemas.generate` after changing a model; `--check` only tells whether that was
forgotten (exit code 1). The output depends on the models alone, so that a difference in a review is
a change of the contract.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from schemas import (
    advice,
    alert,
    command,
    decision,
    evaluation,
    gate_question,
    outcome,
    plan,
    quarantine,
    result,
    signal,
    state,
)
from schemas.envelope import CloudEvent
from schemas.openapi import openapi
from schemas.topics import TOPIC_POLICIES

HERE = Path(__file__).parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: Of the AsyncAPI document: changes with the contract, not with the software.
CONTRACT_VERSION = "1.0.0"


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic and the one event type on it."""

    name: str  # of the channel, the message and the schema file
    address: str  # by default
    model: type[BaseModel]  # of `data`
    event_type: str
    key: str  # what the record key is
    partition_note: str
    is_received: bool  # by rolloutd
    summary: str

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Configuration of the Kafka topic."""
        policy = TOPIC_POLICIES[self.address.partition(".")[2]]
        retention = {} if policy.retention_ms is None else {"retention.ms": policy.retention_ms}
        return {"cleanup.policy": [policy.cleanup], **retention}


_BY_FLAG = (
    "Partitions share the flags among replicas; the number may differ from that of the event "
    "topics."
)
_BY_CONTEXT = (
    "As many partitions as the other event topic: both are keyed by context and read by the "
    "same replica."
)

TOPICS = (
    Topic(
        "evaluation",
        "flag.evaluations",
        evaluation.Evaluation,
        evaluation.TYPE,
        "The context id, UTF-8.",
        _BY_CONTEXT,
        True,
        "An app served a variant of a flag to a context.",
    ),
    Topic(
        "outcome",
        "request.outcomes",
        outcome.Outcome,
        outcome.TYPE,
        "The context id, UTF-8.",
        _BY_CONTEXT,
        True,
        "A request is over: how it ended, how long it took, what it led to.",
    ),
    Topic(
        "command",
        "rollout.commands",
        command.Command,
        command.TYPE,
        "The flag key.",
        _BY_FLAG,
        True,
        "An operator wants something done.",
    ),
    Topic(
        "signal",
        "rollout.signals",
        signal.Signal,
        signal.TYPE,
        "The endpoint and the condition, so that what is told of one condition stays in order.",
        "Partitions share the signals among replicas; the number is free.",
        True,
        "A monitoring system says that something fires or is over.",
    ),
    Topic(
        "result",
        "rollout.results",
        result.Result,
        result.TYPE,
        "The flag key.",
        _BY_FLAG,
        False,
        "The one answer to a command id.",
    ),
    Topic(
        "decision",
        "rollout.decisions",
        decision.Decision,
        decision.TYPE,
        "The flag key.",
        _BY_FLAG,
        False,
        "What the controller did, with all its evidence: the audit log.",
    ),
    Topic(
        "alert",
        "rollout.alerts",
        alert.Alert,
        alert.TYPE,
        "The flag key.",
        _BY_FLAG,
        False,
        "Something people must know, and what to do.",
    ),
    Topic(
        "state",
        "rollout.state",
        state.RolloutState,
        state.TYPE,
        "The flag key.",
        _BY_FLAG,
        False,
        "The rollout document after each transition: what apps may follow.",
    ),
    Topic(
        "quarantine",
        "rollout.quarantine",
        quarantine.Quarantined,
        quarantine.TYPE,
        "The topic and partition refused from, as in `flag.evaluations/3`.",
        _BY_FLAG,
        False,
        "Records that were refused, and why.",
    ),
)

#: Documents that travel inside events or outside Kafka; plain JSON without an envelope.
DOCUMENTS: Mapping[str, type[BaseModel]] = {
    "plan": plan.PlanDocument,
    "advice": advice.AdviceAnswer,
    "gate_question": gate_question.GateQuestion,
    "gate_reply": gate_question.GateReply,
}


# --- JSON Schema


def _tidy(schema: Any) -> Any:
    """Return the schema without `title`, which pydantic makes from names.

    And without OpenAPI's `discriminator`.

    Only keywords are looked at: below `properties` and `$defs` a `title` is somebody's attribute.
    """
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidy: dict[str, Any] = {}
    for keyword, content in schema.items():
        if keyword in ("properties", "$defs"):
            tidy[keyword] = {name: _tidy(item) for name, item in content.items()}
        elif keyword in ("default", "examples", "enum", "const"):
            tidy[keyword] = content
        elif keyword not in ("title", "discriminator"):
            tidy[keyword] = _tidy(content)
    return tidy


def _data_schema(
    model: type[BaseModel], ref_template: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the model's schema and the definitions it refers to, as on the wire."""
    schema = _tidy(
        model.model_json_schema(by_alias=True, mode="validation", ref_template=ref_template)
    )
    definitions = schema.pop("$defs", {})
    return schema, definitions


def _event_schema(topic: Topic, data: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a structured CloudEvent whose `data` is as given."""
    schema = _tidy(CloudEvent.model_json_schema(mode="validation"))
    properties = schema["properties"]
    properties["type"] = {"const": topic.event_type, "type": "string"}
    properties["subject"] = {
        "type": ["string", "null"],
        "description": "The flag's key, where the event is about one flag.",
    }
    properties["datacontenttype"] = {"type": ["string", "null"], "description": "application/json"}
    properties["data"] = data
    return {
        "description": topic.summary,
        "type": "object",
        "properties": properties,
        "required": ["specversion", "type", "source", "id", "data"],
    }


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return file name -> JSON Schema.

    Of each event with its envelope, and of the documents without one.
    """
    schemas: dict[str, dict[str, Any]] = {}
    for topic in TOPICS:
        data, definitions = _data_schema(topic.model, "#/$defs/{model}")
        name = topic.model.__name__
        event = _event_schema(topic, {"$ref": f"#/$defs/{name}"})
        schemas[topic.name] = {
            "title": topic.event_type,
            **event,
            "$defs": {**definitions, name: data},
        }
    for document_name, model in DOCUMENTS.items():
        data, definitions = _data_schema(model, "#/$defs/{model}")
        schemas[document_name] = {
            "title": model.__name__,
            **data,
            **({"$defs": definitions} if definitions else {}),
        }
    return {
        f"{name}.schema.json": {"$schema": DIALECT, **schema} for name, schema in schemas.items()
    }


# --- AsyncAPI


_INFO = {
    "title": "rolloutd",
    "version": CONTRACT_VERSION,
    "description": (
        "What rolloutd reads from apps and operators, and what it writes. Every "
        "record is a CloudEvent 1.0: structured "
        "JSON is written; structured and binary (ce_ headers) are read. Addresses "
        "are the defaults; each can be "
        "configured. Attributes that are not listed are ignored in evaluations and "
        "outcomes. A record that cannot be "
        "used goes to rollout.quarantine, and the next one is read. What rolloutd "
        "writes comes at least once: a repeat is the same record with the same id."
    ),
    "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
}
_SERVERS = {
    "kafka": {
        "host": "{bootstrap}",
        "protocol": "kafka",
        "description": "One cluster, or one set of addresses, per environment.",
        "variables": {
            "bootstrap": {"default": "localhost:9092", "description": "A broker, host:port."}
        },
    }
}


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI 3.0.0 document; send and receive are as seen from rolloutd."""
    components: dict[str, Any] = {}
    for topic in TOPICS:
        data, definitions = _data_schema(topic.model, "#/components/schemas/{model}")
        name = topic.model.__name__
        for each, definition in {**definitions, name: data}.items():
            if components.setdefault(each, definition) != definition:
                raise ValueError(f"two models are called {each}: rename one")
        components[f"{name}Event"] = _event_schema(topic, {"$ref": f"#/components/schemas/{name}"})
    return {
        "asyncapi": "3.0.0",
        "info": _INFO,
        "defaultContentType": "application/cloudevents+json",
        "servers": _SERVERS,
        "channels": {topic.name: _channel(topic) for topic in TOPICS},
        "operations": {
            f"{'receive' if topic.is_received else 'send'}{topic.name.capitalize()}": {
                "action": "receive" if topic.is_received else "send",
                "channel": {"$ref": f"#/channels/{topic.name}"},
                "summary": topic.summary,
                "messages": [{"$ref": f"#/channels/{topic.name}/messages/{topic.name}"}],
            }
            for topic in TOPICS
        },
        "components": {
            "messages": {topic.name: _message(topic) for topic in TOPICS},
            "schemas": components,
        },
    }


def _channel(topic: Topic) -> dict[str, Any]:
    return {
        "address": topic.address,
        "description": f"{topic.summary} {topic.partition_note}",
        "messages": {topic.name: {"$ref": f"#/components/messages/{topic.name}"}},
        "bindings": {
            "kafka": {
                "topicConfiguration": dict(topic.configuration),
                "bindingVersion": "0.5.0",
            }
        },
    }


def _message(topic: Topic) -> dict[str, Any]:
    return {
        "name": topic.event_type,
        "summary": topic.summary,
        "contentType": "application/cloudevents+json",
        "payload": {"$ref": f"#/components/schemas/{topic.model.__name__}Event"},
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": topic.key},
                "bindingVersion": "0.5.0",
            }
        },
    }


# --- files


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, which some AsyncAPI tools cannot read."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a repeated value again."""
        return True


def files() -> dict[Path, str]:
    """Return everything that is generated: path -> content."""
    contents = {
        HERE / "json" / name: json.dumps(schema, indent=2, ensure_ascii=True) + "\n"
        for name, schema in json_schemas().items()
    }
    for name, document in (("asyncapi.yaml", asyncapi()), ("openapi.yaml", openapi(_tidy))):
        text = yaml.dump(
            copy.deepcopy(document), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=False
        )
        contents[HERE / name] = (
            f"# Generated by `python -m schemas.generate`; change the models instead.\n{text}"
        )
    return contents


def drift() -> list[str]:
    """Return what on disk is not what the models say.

    Stale, missing and left-over files, by name.
    """
    wanted = files()
    stale = [
        path
        for path, content in wanted.items()
        if not path.exists() or path.read_text("utf-8") != content
    ]
    left_over = [path for path in (HERE / "json").glob("*.json") if path not in wanted]
    return sorted(path.relative_to(HERE.parent).as_posix() for path in [*stale, *left_over])


def main() -> int:
    """Write the files, or with --check name those that differ. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m schemas.generate", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when something would change"
    )
    if parser.parse_args().check:
        differing = drift()
        for name in differing:
            sys.stderr.write(f"{name} is not what the models say; run python -m schemas.generate\n")
        return 1 if differing else 0
    wanted = files()
    for path, content in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
    for path in (HERE / "json").glob("*.json"):
        if path not in wanted:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
