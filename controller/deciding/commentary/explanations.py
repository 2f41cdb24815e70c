"""Explains alerts by a model, for people.

Alerts are published before they are explained, one question is asked at a time, and what there is
no room for is dropped. Whatever goes wrong here is logged and forgotten. Nothing here can change a
percentage: it only adds alerts.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Protocol

import structlog

from controller.core.effects import RaiseAlert
from controller.core.rollout import Rollout
from controller.errors import AdviceUnavailableError
from controller.ports import Commentator
from controller.telemetry import Metrics
from schemas.terms import AdvisorMode, AlertKind, Severity

#: Alerts that wait for an explanation. More at once are an incident, in which nobody reads guesses.
WAITING_LIMIT = 20
#: What a breach causes (0 % served everywhere, alerts out) has the machine to itself first.
EXPLAIN_AFTER_SECONDS = 1.0

EXPLAINED = frozenset(
    {
        AlertKind.ROLLED_BACK,
        AlertKind.STEPPED_BACK,
        AlertKind.PAUSED,
        AlertKind.ADVISOR_HOLDS,
        AlertKind.HEALTH_GAP,
        AlertKind.SIGNAL_REGRESSION,
        AlertKind.SRM,
    }
)


class RolloutAlerts(Protocol):
    """Publishes alerts about rollouts of this replica: `worker_pool.WorkerPool`."""

    def alert_about(self, rollout: Rollout, alert: RaiseAlert) -> None:
        """Publish an alert, unless the flag has begun another rollout since."""


class ExplanationQueue:
    """Alerts that are to be explained. Bounded."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._waiting: asyncio.Queue[tuple[Rollout, RaiseAlert]] = asyncio.Queue(WAITING_LIMIT)

    def request(self, rollout: Rollout, alert: RaiseAlert) -> None:
        """Queue an alert that has evidence, of a plan that allows the model. Returns at once."""
        if (
            alert.kind not in EXPLAINED
            or alert.judgement is None
            or (alert.kind is AlertKind.HEALTH_GAP and alert.severity is Severity.INFO)  # over
            or rollout.plan.advisor.mode is AdvisorMode.OFF
        ):
            return
        try:
            self._waiting.put_nowait((rollout, alert))
        except asyncio.QueueFull:
            self._metrics.explanations.of("dropped").inc()

    async def next(self) -> tuple[Rollout, RaiseAlert]:
        """Return the oldest alert that waits."""
        return await self._waiting.get()


class Explainer:
    """Publishes each queued alert again, with the model's guess at the cause.

    The same kind and dedup key, with severity info.
    """

    def __init__(
        self,
        queue: ExplanationQueue,
        model: Commentator,
        metrics: Metrics,
        alerts: RolloutAlerts,
        *,
        after_seconds: float = EXPLAIN_AFTER_SECONDS,
    ) -> None:
        self._queue = queue
        self._model = model
        self._metrics = metrics
        self._alerts = alerts
        self._after_seconds = after_seconds
        self._logger = structlog.get_logger()

    async def run(self) -> None:
        """Explain what is queued, until cancelled."""
        while True:
            rollout, alert = await self._queue.next()
            await asyncio.sleep(self._after_seconds)
            log = self._logger.bind(flag_key=rollout.flag_key, kind=alert.kind)
            try:
                await self._explain(rollout, alert)
            except AdviceUnavailableError as trouble:
                self._metrics.explanations.of("unavailable").inc()
                self._metrics.dependency_errors.of("advisor").inc()
                log.info("explanation_unavailable", error=str(trouble))
            except Exception:  # ours: nobody waits for an explanation
                self._metrics.explanations.of("unavailable").inc()
                log.exception("explanation_failed")

    async def _explain(self, rollout: Rollout, alert: RaiseAlert) -> None:
        explanation = await self._model.explain(rollout, alert)
        steps = "; ".join(step.rstrip(".") for step in explanation.next_steps)
        self._alerts.alert_about(
            rollout,
            replace(
                alert,
                severity=Severity.INFO,
                summary=f"a guess by the model {explanation.model}: {explanation.likely_cause}",
                action=steps or alert.action,
                explanation=explanation,
            ),
        )
        self._metrics.explanations.of("attached").inc()
        self._logger.info(
            "alert_explained",
            flag_key=rollout.flag_key,
            kind=alert.kind,
            advisor_model=explanation.model,
            duration_ms=explanation.latency_ms,
        )
