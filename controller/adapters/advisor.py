"""Advice at gates from a language model: the question, the answer, and who is asked, as the settings say.

Belongs here: the Advisor port. How a server is asked is `model_server.py`, in which words `openai.py` and `ollama.py`.
"""

from __future__ import annotations

from typing import NoReturn

import httpcore

from controller.adapters.model_server import Completion, Dialect, ModelServer, printable
from controller.adapters.ollama import OllamaDialect
from controller.adapters.openai import OpenAIDialect
from controller.adapters.prompts import gate_prompt
from controller.core.judgement import Advice
from controller.core.rollout import AskAdvice, Rollout
from controller.errors import AdviceUnavailableError
from controller.ports import Clock
from controller.settings import AdvisorSettings
from schemas.advice import ANSWER_SCHEMA, parse_answer
from schemas.terms import AdviceChoice

#: We give up this much before the gate's own deadline, so that the reason is ours and the circuit learns of it.
MARGIN_SECONDS = 0.01

#: Kept of an answer with the decision: a complete usual one, or enough of an odd one to see what is odd.
RAW_MAX_BYTES = 2_048

DIALECTS: dict[str, type[Dialect]] = {"openai": OpenAIDialect, "ollama": OllamaDialect}


class ModelAdvisor:
    """Puts gates' evidence to one model at one server."""

    def __init__(self, settings: AdvisorSettings, clock: Clock, *, network: httpcore.AsyncNetworkBackend | None = None) -> None:
        """Connect to nothing yet; `network` takes the place of the machine's. Raises ConfigInvalid."""
        self._settings = settings
        self._clock = clock
        self.server = ModelServer(settings, clock, DIALECTS[settings.protocol](), network=network)

    @property
    def trouble(self) -> str | None:
        """Why the model is not asked now; None while it is."""
        return self.server.trouble

    async def ask(self, rollout: Rollout, question: AskAdvice) -> Advice:
        left = (question.until - self._clock.now()).total_seconds() - MARGIN_SECONDS
        if left <= 0:
            raise AdviceUnavailableError("the deadline was over before the model could be asked")
        prompt = gate_prompt(rollout, question)
        completion = await self.server.complete(prompt, ANSWER_SCHEMA, seconds=left)
        try:
            answer = parse_answer(completion.content)
        except ValueError as refusal:
            raise AdviceUnavailableError(str(refusal)) from None
        return Advice(
            choice=AdviceChoice(answer.verdict),
            confidence=answer.confidence,
            reasons=tuple(answer.reasons),
            model=self._settings.model,
            prompt_sha256=prompt.sha256,
            latency_ms=completion.latency_ms,
            raw=kept_raw(completion),
            server=self.server.name,
            prompt=prompt.version,
            parameters=completion.parameters,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
        )

    async def close(self) -> None:
        """Close what is open; a question still out ends in AdviceUnavailableError."""
        await self.server.close()


class NoAdvisor:
    """Stands in where no model is configured: there is never advice."""

    @property
    def trouble(self) -> str | None:
        """Nothing is wrong: nobody is to be asked."""
        return None

    async def ask(self, rollout: Rollout, question: AskAdvice) -> NoReturn:
        raise AdviceUnavailableError("no model is configured: advisor.url is not set")

    async def close(self) -> None:
        """Nothing is open."""


def make_advisor(settings: AdvisorSettings, clock: Clock) -> ModelAdvisor | NoAdvisor:
    """Return the advisor that the settings name; connects to nothing yet. Raises ConfigInvalid."""
    return NoAdvisor() if settings.url is None else ModelAdvisor(settings, clock)


def kept_raw(completion: Completion) -> str:
    """Return what is kept of an answer: printable, and cut."""
    return printable(completion.content).encode()[:RAW_MAX_BYTES].decode(errors="ignore")
