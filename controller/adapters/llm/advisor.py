"""Advice at gates from a language model: the question, the answer, and which server is asked.

Belongs here: the `Advisor` and `Commentator` ports. How a server is asked is `model_server.py`, in
which words `openai.py`, `localai.py` and `ollama.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import httpcore

from controller.adapters.llm.dialect import Dialect
from controller.adapters.llm.localai import LocalAIDialect
from controller.adapters.llm.model_server import Completion, ModelServer
from controller.adapters.llm.ollama import OllamaDialect
from controller.adapters.llm.openai import OpenAIDialect
from controller.adapters.llm.prompts import (
    MAX_ROLLOUTS,
    explanation_prompt,
    gate_prompt,
    look_prompt,
)
from controller.adapters.llm.trouble import form_fix, only_advice_errors
from controller.core.effects import AskAdvice, RaiseAlert
from controller.core.judging.judgement import Advice, Explanation, Judgement
from controller.core.rollout import Rollout
from controller.errors import AdviceUnavailableError
from controller.ports import Clock
from controller.settings import AdvisorSettings
from controller.text import printable
from schemas.advice import (
    ANOMALIES_SCHEMA,
    ANSWER_SCHEMA,
    EXPLANATION_SCHEMA,
    AdviceAnswer,
    AnomaliesAnswer,
    ExplanationAnswer,
    FormT,
    parse_form,
)
from schemas.terms import AdviceChoice

#: A question ends this much before the gate's own deadline, so that the reason is ours and the
#: circuit counts it.
MARGIN_SECONDS = 0.01

#: Bytes of an answer kept with the decision: a usual answer whole, or enough of an odd one to see
#: what is odd.
RAW_MAX_BYTES = 2_048

DIALECTS: dict[str, type[Dialect]] = {
    "openai": OpenAIDialect,
    "localai": LocalAIDialect,
    "ollama": OllamaDialect,
}


class ModelAdvisor:
    """Asks one model at one server about the evidence of gates."""

    def __init__(
        self,
        settings: AdvisorSettings,
        clock: Clock,
        *,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        """Connect to nothing yet; `network` replaces the machine's network.

        Raises ConfigInvalid.
        """
        self._settings = settings
        self._clock = clock
        self._previous: Mapping[str, Judgement] = {}
        self.server = ModelServer(settings, clock, DIALECTS[settings.protocol](), network=network)

    @property
    def trouble(self) -> str | None:
        """Why the model is not asked now; None while it is."""
        return self.server.trouble

    async def ask(self, rollout: Rollout, question: AskAdvice) -> Advice:
        left = (question.until - self._clock.now()).total_seconds() - MARGIN_SECONDS
        if left <= 0:
            raise AdviceUnavailableError("the deadline was over before the model could be asked")
        with only_advice_errors():
            return await self._ask(rollout, question, left)

    async def _ask(self, rollout: Rollout, question: AskAdvice, left: float) -> Advice:
        prompt = gate_prompt(rollout, question)
        completion = await self.server.complete(prompt, ANSWER_SCHEMA, seconds=left)
        answer = _read(self._settings.protocol, completion, AdviceAnswer)
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

    async def explain(self, rollout: Rollout, alert: RaiseAlert) -> Explanation:
        with only_advice_errors():
            return await self._explain(rollout, alert)

    async def _explain(self, rollout: Rollout, alert: RaiseAlert) -> Explanation:
        visits = rollout.visits
        percents = (0.0, *(visit.percent for visit in visits))
        records = [
            ("enters", percents[n], visit.percent, f"stage {visit.stage + 1}")
            for n, visit in enumerate(visits)
        ]
        prompt = explanation_prompt(rollout.plan, alert.summary, alert.judgement, records)
        completion = await self.server.complete(
            prompt, EXPLANATION_SCHEMA, seconds=self._settings.deadline_seconds, is_optional=True
        )
        answer = _read(self._settings.protocol, completion, ExplanationAnswer)
        return Explanation(
            likely_cause=answer.likely_cause,
            next_steps=tuple(answer.next_steps),
            model=self._settings.model,
            server=self.server.name,
            prompt=prompt.version,
            prompt_sha256=prompt.sha256,
            latency_ms=completion.latency_ms,
        )

    async def review(
        self, evidence: Mapping[str, tuple[Rollout, Judgement]]
    ) -> Sequence[tuple[str, str]]:
        with only_advice_errors():
            return await self._look_over(evidence)

    async def _look_over(
        self, evidence: Mapping[str, tuple[Rollout, Judgement]]
    ) -> Sequence[tuple[str, str]]:
        # Those nearest to an alarm come first: a prompt has room for a dozen.
        ordered = sorted(
            evidence.values(), key=lambda each: (-_nearness(each[1]), each[0].flag_key)
        )[:MAX_ROLLOUTS]
        prompt = look_prompt(ordered, self._previous)
        self._previous = {key: judgement for key, (_, judgement) in evidence.items()}
        completion = await self.server.complete(
            prompt, ANOMALIES_SCHEMA, seconds=self._settings.deadline_seconds, is_optional=True
        )
        return [
            (ordered[one.rollout - 1][0].flag_key, one.what)
            for one in _read(self._settings.protocol, completion, AnomaliesAnswer).unusual
            if one.rollout <= len(ordered)
        ]

    async def why_unreachable(self, seconds: float) -> str | None:
        """Return why the server does not answer within `seconds`, None when it does."""
        try:
            await self.server.models(seconds=seconds)
        except AdviceUnavailableError as error:
            return str(error)
        return None

    async def close(self) -> None:
        """Close every connection; a question still out ends in AdviceUnavailableError."""
        await self.server.close()


def _read(protocol: str, completion: Completion, form: type[FormT]) -> FormT:
    try:
        return parse_form(completion.content, form)
    except ValueError as refusal:
        raise AdviceUnavailableError(str(refusal), fix=form_fix(protocol)) from None


def _nearness(judgement: Judgement) -> float:
    """Return how near the nearest metric is to its alarm, as a share of it."""
    return max((metric.e_value / metric.threshold for metric in judgement.metrics), default=0.0)


def kept_raw(completion: Completion) -> str:
    """Return the part of an answer that is kept with the decision: printable and bounded."""
    return printable(completion.content).encode()[:RAW_MAX_BYTES].decode(errors="ignore")
