"""A server that answers as LocalAI 4.7.0 was seen to answer.

Its model likes to write on: it ends nothing that the grammar lets it go on with. Where LocalAI
makes the grammar, from a JSON Schema, it drops every bound; so the model writes until `max_tokens`.
A character is a token here.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.fault_server import Exchange, Script
from tests.gbnf import longest_text

MODEL = "tiny"


def localai(model: str = MODEL) -> Script:
    """Return the script of a LocalAI that has this one model."""

    async def script(exchange: Exchange) -> None:
        if exchange.request.line.startswith("GET /v1/models"):
            await exchange.answer(json.dumps({"object": "list", "data": [{"id": model}]}))
            return
        try:
            request = json.loads(exchange.request.body)
        except ValueError:
            await _refuse(exchange, 400, "Bad Request", "failed parsing request body")
            return
        if request.get("model") != model:
            await _refuse(
                exchange, 404, "Not Found", f"model {json.dumps(request['model'])} not found"
            )
            return
        await exchange.answer(_completion(request))

    return script


async def _refuse(exchange: Exchange, code: int, words: str, message: str) -> None:
    error = {"code": code, "message": message, "type": "invalid_request_error"}
    await exchange.answer(json.dumps({"error": error}), status=f"{code} {words}")


def _completion(request: Mapping[str, Any]) -> str:
    most = int(request["max_tokens"])
    written = "".join(itertools.islice(_writing(request), most + 1))
    is_whole = len(written) <= most
    message = {"role": "assistant", "content": written[:most]}
    prompt_tokens = sum(len(each["content"]) for each in request["messages"])
    return json.dumps(
        {
            "object": "chat.completion",
            "model": request["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop" if is_whole else "length",
                    "message": message,
                }
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": len(message["content"]),
            },
        }
    )


def _writing(request: Mapping[str, Any]) -> Iterator[str]:
    """Return what the model writes, character by character, which may not end."""
    wanted = request.get("response_format", {})
    if wanted.get("type") == "json_schema":
        schema = wanted["json_schema"]["schema"]
        if "$ref" in json.dumps(schema):
            return iter("As you like it.")  # its grammar is empty: anything goes, with status 200
        return itertools.chain.from_iterable(_by_its_own_grammar(schema))
    if grammar := request.get("grammar"):
        return iter(longest_text(grammar))
    return iter("As you like it.")  # no form, or one that it does not know: ignored silently


def _by_its_own_grammar(schema: Mapping[str, Any]) -> Iterator[str]:
    """Return a value by the grammar that LocalAI makes: without any bound of the schema.

    Properties come in alphabetical order; numbers, texts and lists need not end.
    """
    if "enum" in schema:
        yield json.dumps(max(schema["enum"], key=len))
    elif schema["type"] == "integer":
        yield from itertools.repeat("7")
    elif schema["type"] == "string":
        yield from itertools.chain('"', itertools.repeat("x"))
    elif schema["type"] == "array":
        yield "["
        yield from _by_its_own_grammar(schema["items"])
    elif schema["type"] == "boolean":
        yield "false"
    else:
        for number, name in enumerate(sorted(schema["properties"])):
            yield f"{'{' if number == 0 else ','}{json.dumps(name)}:"
            yield from _by_its_own_grammar(schema["properties"][name])
        yield "}"
