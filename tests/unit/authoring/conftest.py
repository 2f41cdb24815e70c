"""A model that writes what a test says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controller.adapters.llm.model_server import Completion, ModelServer
from controller.adapters.llm.openai import OpenAIDialect
from controller.adapters.llm.prompts import Prompt
from controller.adapters.memory import ManualClock
from controller.authoring.drafting import Model
from controller.errors import AdviceUnavailableError
from controller.settings import AdvisorSettings


class ScriptedServer(ModelServer):
    """Writes one text to every question; None: it cannot be reached. Keeps the prompts."""

    def __init__(self, content: str | None) -> None:
        super().__init__(
            AdvisorSettings(url="http://model.invalid"), ManualClock(), OpenAIDialect()
        )
        self._content = content
        self.prompts: list[Prompt] = []

    async def complete(
        self,
        prompt: Prompt,
        form: Mapping[str, Any],
        *,
        seconds: float,
        max_tokens: int | None = None,
        is_optional: bool = False,
    ) -> Completion:
        assert seconds > 0
        assert is_optional
        self.prompts.append(prompt)
        if self._content is None:
            raise AdviceUnavailableError("it cannot be reached")
        return Completion(self._content, 5, None, None, "{}")


def scripted(content: str | None) -> Model | None:
    """Return a model that writes `content`; None: no model."""
    return None if content is None else Model(ScriptedServer(content), "tiny", 30.0)
