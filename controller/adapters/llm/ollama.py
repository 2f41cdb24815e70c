"""The dialect of Ollama's own `/api/chat`.

Ollama's OpenAI-compatible address takes no size of the context to load, and silently cuts a longer
prompt: half of the context is left of it. Here `num_ctx` goes with every question, and `truncate`
asks for a refusal instead. Everything else is `model_server.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from controller.adapters.llm.dialect import SEED, Written, token_count
from controller.adapters.llm.prompts import Prompt
from controller.settings import AdvisorSettings


class OllamaDialect:
    """The form of `/api/chat`."""

    parameters_in = ("options", "keep_alive", "think")

    def address(self, base: str) -> str:
        """Return the address to post to; `base` may or may not end in `/api`."""
        return f"{_root_of(base)}/api/chat"

    def models_address(self, base: str) -> str:
        return f"{_root_of(base)}/api/tags"

    def request(
        self, settings: AdvisorSettings, prompt: Prompt, form: Mapping[str, Any], max_tokens: int
    ) -> dict[str, Any]:
        """Return the body of the request.

        `stream` must be given: by default the answer is a line of JSON per token.
        """
        return {
            "model": settings.model,
            "messages": list(prompt.messages),
            "format": form,
            "stream": False,
            "think": False,  # reasoning models would spend the tokens before the answer
            "keep_alive": settings.keep_alive,
            "truncate": False,  # refuse a prompt that does not fit; by default it is cut silently
            "shift": False,  # and end an answer that does not, in place of forgetting the prompt
            "options": {
                "temperature": 0,
                "seed": SEED,
                "num_ctx": settings.context_tokens,
                "num_predict": max_tokens,
            },
        }

    def read(self, body: bytes, settings: AdvisorSettings) -> Written:
        """Return the completion in the response.

        An answer counts as cut off when its prompt may have lost its beginning.
        """
        response = msgspec.json.decode(body, type=_Response)
        prompt_tokens, completion_tokens = (
            token_count(response.prompt_eval_count),
            token_count(response.eval_count),
        )
        reason = str(response.done_reason) if response.done else "not done"
        if (prompt_tokens or 0) + (completion_tokens or 0) >= settings.context_tokens:
            reason = (
                f"context of {settings.context_tokens} tokens is full: raise advisor.context_tokens"
            )
        return Written(response.message.content, reason, prompt_tokens, completion_tokens)

    def read_models(self, body: bytes) -> tuple[str, ...]:
        return tuple(model.name for model in msgspec.json.decode(body, type=_Tags).models)


def _root_of(base: str) -> str:
    return base.rstrip("/").removesuffix("/chat").removesuffix("/api")


class _Message(msgspec.Struct):
    content: str | None = None


class _Response(msgspec.Struct):
    message: _Message
    done: bool
    done_reason: str | None = None
    prompt_eval_count: Any = None
    eval_count: Any = None


class _Tag(msgspec.Struct):
    name: str


class _Tags(msgspec.Struct):
    models: Annotated[list[_Tag], msgspec.Meta(max_length=10_000)]
