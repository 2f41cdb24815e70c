"""Asks the model at a gate, and turns whatever it does into one event."""

from __future__ import annotations

import asyncio

import structlog

from controller.core.advice_outcome import agrees, ended_by_evidence
from controller.core.effects import AskAdvice, PublishDecision
from controller.core.events import AdviceReceived, AdviceUnavailable
from controller.core.rollout import Rollout
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.flag.flag_inbox import FlagInbox
from controller.errors import AdviceUnavailableError
from schemas.terms import AdviceChoice, DecisionKind


class AdviceAsker:
    """Asks for one flag. A model that hangs delays nothing but its own gate."""

    def __init__(self, flag_key: str, dependencies: WorkerDependencies, inbox: FlagInbox) -> None:
        self._flag_key = flag_key
        self._dependencies = dependencies
        self._inbox = inbox
        self._logger = structlog.get_logger().bind(flag_key=flag_key)

    def start(self, tasks: asyncio.TaskGroup, rollout: Rollout, question: AskAdvice) -> None:
        """Put the question in a task of its own; the answer arrives in the inbox."""
        tasks.create_task(self._ask(rollout, question), name=f"advice:{self._flag_key}")

    async def _ask(self, rollout: Rollout, question: AskAdvice) -> None:
        """Ask, and queue one event: at the question's deadline at the latest."""
        clock, metrics = self._dependencies.clock, self._dependencies.metrics
        seconds = (question.until - clock.now()).total_seconds()
        began = clock.monotonic()
        event: AdviceReceived | AdviceUnavailable
        try:
            async with asyncio.timeout(seconds):
                advice = await self._dependencies.advisor.ask(rollout, question)
            event = AdviceReceived(question.gate_id, question.round, advice)
            self._logger.info(
                "advice_received",
                gate_id=question.gate_id,
                choice=advice.choice,
                advisor_model=advice.model,
                duration_ms=advice.latency_ms,
            )
            metrics.advice.of(advice.choice).inc()
        except (AdviceUnavailableError, TimeoutError) as trouble:
            why = str(trouble) or f"no answer within {seconds:.0f} s"
            event = AdviceUnavailable(question.gate_id, question.round, why)
            self._logger.warning("advice_unavailable", gate_id=question.gate_id, error=why)
            metrics.advice.of("unavailable").inc()
            metrics.dependency_errors.of("advisor").inc()
        metrics.advice_duration_seconds.observe(clock.monotonic() - began)
        self._inbox.put(event)


class AdviceAgreement:
    """Counts whether advice agreed with how the rollout ended."""

    def __init__(self, dependencies: WorkerDependencies) -> None:
        self._metrics = dependencies.metrics
        #: The last advice at each gate, by gate id, since this process runs the flag.
        self._choices: dict[str, AdviceChoice] = {}

    def add(self, decision: PublishDecision) -> None:
        """Keep the advice of a decision; count all once the evidence has ended the rollout."""
        if decision.kind is DecisionKind.START:
            self._choices.clear()
        if decision.advice is not None and decision.gate_id is not None:
            self._choices[decision.gate_id] = decision.advice.choice
        if ended_by_evidence(decision.kind, decision.issuer):
            for choice in self._choices.values():
                agreement = "yes" if agrees(choice, decision.kind) else "no"
                self._metrics.advice_agreement.of(choice, agreement).inc()
            self._choices.clear()
