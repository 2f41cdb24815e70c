"""The differences between model servers: addresses, bodies of requests, forms of answers.

A new kind of server is a class with these methods and one line in `advisor.DIALECTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from controller.adapters.llm.prompts import Prompt
from controller.settings import AdvisorSettings

#: Any value will do. With temperature 0 it makes servers that sample anyway answer the same
#: question alike.
SEED: Final = 7

#: More characters per token than any tokenizer reaches in a prompt of ours, which is full of
#: numbers: it takes 3 to 4.5. Ollama keeps half a context of a prompt that does not fit, so what is
#: left of one seems to have at least twice as many.
MAX_CHARS_PER_TOKEN: Final = 5.5


@dataclass(frozen=True, slots=True)
class Written:
    """A completion as the server sent it, whole or not.

    Token counts are the server's claims, None where it makes none.
    """

    content: str | None
    finish_reason: str  # "stop": whole
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Dialect(Protocol):
    """How one kind of server words requests and completions."""

    @property
    def parameters_in(self) -> tuple[str, ...]:
        """Keys of the request that are kept with an answer, so that it can be requested again."""

    def address(self, base: str) -> str:
        """Return the address that questions are posted to."""

    def models_address(self, base: str) -> str:
        """Return the address that lists the server's models."""

    def request(
        self, settings: AdvisorSettings, prompt: Prompt, form: Mapping[str, Any], max_tokens: int
    ) -> dict[str, Any]:
        """Return the body of the request; `form` is the JSON Schema of the answer."""

    def read(self, body: bytes, settings: AdvisorSettings) -> Written:
        """Return the completion in a body.

        Raises MsgspecError, ValueError or RecursionError for anything else.
        """

    def read_models(self, body: bytes) -> tuple[str, ...]:
        """Return the names of the models listed. Raises like `read`."""


def has_lost_words(prompt: Prompt, prompt_tokens: int | None) -> bool:
    """Return whether a server read so few tokens that it must have cut the prompt.

    Without a claim, or with 0, nothing is known, and it returns False.
    """
    chars = sum(len(message["content"]) for message in prompt.messages)
    return bool(prompt_tokens) and chars > MAX_CHARS_PER_TOKEN * (prompt_tokens or 0)


def token_count(claim: object) -> int | None:
    """Return a server's count of tokens, None for a value that cannot be one."""
    return claim if type(claim) is int and 0 <= claim < 2**53 else None
