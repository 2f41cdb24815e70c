"""The dialect of OpenAI's chat completions: LocalAI, llama.cpp's server, vLLM, Ollama's `/v1`.

Belongs here: how such a server words a request and a completion. Everything else is
`model_server.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from controller.adapters.llm.dialect import SEED, Written, token_count
from controller.adapters.llm.prompts import Prompt
from controller.settings import AdvisorSettings


class OpenAIDialect:
    """The form of `/v1/chat/completions`."""

    parameters_in = ("temperature", "seed", "max_tokens")

    def address(self, base: str) -> str:
        """Return the address to post to; `base` may or may not end in `/v1`."""
        return f"{_root_of(base)}/v1/chat/completions"

    def models_address(self, base: str) -> str:
        return f"{_root_of(base)}/v1/models"

    def request(
        self, settings: AdvisorSettings, prompt: Prompt, form: Mapping[str, Any], max_tokens: int
    ) -> dict[str, Any]:
        """Return the body of the request.

        The answer's form is requested twice, here and in the prompt: servers keep little of a
        schema, or none. The answer is not streamed, because LocalAI doubles the first token of a
        streamed answer that follows a schema.
        """
        return {
            "model": settings.model,
            "messages": list(prompt.messages),
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": form},
            },
            "stream": False,
            "temperature": 0,
            "seed": SEED,
            "max_tokens": max_tokens,
        }

    def read(self, body: bytes, settings: AdvisorSettings) -> Written:
        completion = msgspec.json.decode(body, type=_Completion)
        choice, usage = (
            completion.choices[0],
            completion.usage if isinstance(completion.usage, dict) else {},
        )
        return Written(
            content=choice.message.content,
            finish_reason=str(choice.finish_reason),
            prompt_tokens=token_count(usage.get("prompt_tokens")),
            completion_tokens=token_count(usage.get("completion_tokens")),
        )

    def read_models(self, body: bytes) -> tuple[str, ...]:
        return tuple(model.id for model in msgspec.json.decode(body, type=_Models).data)


def _root_of(base: str) -> str:
    return base.rstrip("/").removesuffix("/v1")


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1, max_length=1)]
    usage: Any = None  # only a claim: never a reason to refuse an answer


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: Annotated[list[_Model], msgspec.Meta(max_length=10_000)]
