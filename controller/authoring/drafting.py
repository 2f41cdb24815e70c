"""A draft by a model, which our own code checks, or by a template; and who wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from controller.adapters.llm.model_server import ModelServer
from controller.adapters.llm.prompts import Prompt
from controller.errors import AdviceUnavailableError

T = TypeVar("T")

#: A draft is longer than a verdict at a gate, and a person waits for it once.
MAX_TOKENS = 1_024


@dataclass(frozen=True, slots=True)
class Model:
    """The model that writes drafts."""

    server: ModelServer
    name: str
    deadline_seconds: float


@dataclass(frozen=True, slots=True)
class Draft(Generic[T]):
    """A draft and its author."""

    content: T
    author: str  # "template", or the model's name
    why_template: str | None  # why no model wrote it; None when one did

    @property
    def origin(self) -> str:
        """A line about the author, which is shown above the draft."""
        if self.why_template is None:
            return f"drafted by the model {self.author} and checked; read it before you use it"
        return f"from the built-in template, no model: {self.why_template}"


async def draft(
    model: Model | None,
    prompt: Prompt,
    form: Mapping[str, Any],
    *,
    read: Callable[[str], T],
    template: Callable[[], T],
) -> Draft[T]:
    """Return the model's draft if `read` accepts it, else the template's with the reason.

    `read` raises ValueError for a text that must not be shown as a draft.
    """
    if model is None:
        return Draft(template(), "template", "no model is configured, or --no-model was given")
    try:
        written = await model.server.complete(
            prompt, form, seconds=model.deadline_seconds, max_tokens=MAX_TOKENS, is_optional=True
        )
        return Draft(read(written.content), model.name, None)
    except (AdviceUnavailableError, ValueError) as refusal:
        return Draft(template(), "template", f"{refusal}")
