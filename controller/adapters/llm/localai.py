"""The dialect of LocalAI: OpenAI's chat completions with a grammar of our own.

LocalAI makes a grammar of a JSON Schema that drops its bounds: a model may write digits until it is
cut off. It takes a finished grammar as well, in the field `grammar`, and passes it on to llama.cpp.
Other servers ignore that field, except llama.cpp's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controller.adapters.llm.grammar import grammar_of
from controller.adapters.llm.openai import OpenAIDialect
from controller.adapters.llm.prompts import Prompt
from controller.settings import AdvisorSettings


class LocalAIDialect(OpenAIDialect):
    """The form of LocalAI's `/v1/chat/completions`."""

    def request(
        self, settings: AdvisorSettings, prompt: Prompt, form: Mapping[str, Any], max_tokens: int
    ) -> dict[str, Any]:
        """Return the body of the request.

        The grammar ends every answer. So `max_tokens` is raised where the longest answer needs
        more, at one token per character: a limit below it would only cut answers off.
        """
        grammar = grammar_of(form)
        request = super().request(settings, prompt, form, max(max_tokens, grammar.longest))
        del request["response_format"]  # LocalAI's own grammar would take its place
        return {**request, "grammar": grammar.text}
