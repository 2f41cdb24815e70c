"""The OpenAPI document of the HTTP API, from `schemas/api.py`. `schemas/generate.py` writes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel

from schemas.api import BASE, ENDPOINTS, Endpoint, Problem

_INFO = {
    "title": "rolloutd",
    "version": "1.0.0",
    "description": (
        "Every rollout, from any replica. What is read carries an ETag. A request that has no "
        'answer gets `{"error": why}`. Later releases may add fields and paths.'
    ),
    "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
}
_REFERENCES = "#/components/schemas/{model}"


def openapi(tidy: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document; `tidy` takes what pydantic adds out of a schema."""
    schemas: dict[str, Any] = {}
    models: list[type[BaseModel]] = [Problem, *(one.answer for one in ENDPOINTS)]
    models += [model for one in ENDPOINTS for _, model in one.answers.values()]
    bodies = [one.body for one in ENDPOINTS if one.body is not None]
    for model in (*models, *bodies):
        mode: Literal["validation", "serialization"] = (
            "validation" if model in bodies else "serialization"
        )
        schema = tidy(model.model_json_schema(by_alias=True, mode=mode, ref_template=_REFERENCES))
        for name, definition in {**schema.pop("$defs", {}), model.__name__: schema}.items():
            if schemas.setdefault(name, definition) != definition:
                raise ValueError(f"two models are called {name}: rename one")
    return {
        "openapi": "3.1.0",
        "info": _INFO,
        "servers": [{"url": "http://localhost:8080", "description": "Any replica."}],
        "security": [],
        "paths": {
            BASE + one.path: {"get" if one.body is None else "post": _operation(one)}
            for one in ENDPOINTS
        },
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    words = re.sub(r"[{}]", "", endpoint.path).strip("/").split("/")
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", endpoint.path)
    ]
    parameters += [
        {
            "name": one.name,
            "in": "query",
            "required": False,
            "description": one.description,
            "schema": dict(one.schema),
        }
        for one in endpoint.parameters
    ]
    name = "".join(word.capitalize() for word in words)
    problems = {
        str(status): _answer(why, Problem.__name__) for status, why in endpoint.statuses.items()
    }
    if endpoint.body is not None:
        documents = {
            str(status): _answer(what, model.__name__)
            for status, (what, model) in endpoint.answers.items()
        }
        return {
            "operationId": f"post{name}",
            "summary": endpoint.summary,
            "security": [{"token": []}],
            "parameters": parameters,
            "requestBody": {
                "required": True,
                "content": _content(endpoint.body.__name__),
            },
            "responses": {
                "200": _answer("It was carried out.", endpoint.answer.__name__),
                **documents,
                **problems,
            },
        }
    return {
        "operationId": f"get{name}",
        "summary": endpoint.summary,
        "parameters": parameters,
        "responses": {
            "200": _answer("The newest there is.", endpoint.answer.__name__),
            "304": {"description": "As named by `If-None-Match`."},
            **problems,
        },
    }


def _answer(description: str, model: str) -> dict[str, Any]:
    return {"description": description, "content": _content(model)}


def _content(model: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCES.format(model=model)}}}
