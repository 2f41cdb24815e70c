"""Reports what is unusual in the evidence of all rollouts together, for people.

No test is about it: a rule compares with the evidence before, and a model may read all of it. It
only adds alerts; whatever goes wrong here is logged and forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import structlog

from controller.core.anomaly import Anomaly, find_anomalies
from controller.core.effects import RaiseAlert
from controller.core.judging.judgement import Judgement
from controller.core.rollout import Rollout
from controller.deciding.commentary.explanations import RolloutAlerts
from controller.errors import AdviceUnavailableError
from controller.ports import Commentator
from schemas.terms import AdvisorMode, AlertKind, Severity

#: What the model reports is published once per visit of a stage, whatever its words are.
_BY_MODEL = "by-model"


class JudgedRollouts(RolloutAlerts, Protocol):
    """The rollouts of this replica, with their evidence: `worker_pool.WorkerPool`."""

    @property
    def judgements(self) -> Mapping[str, tuple[Rollout, Judgement]]:
        """The newest judgement of each rollout that is in a stage, by flag key."""


class AnomalyWatch:
    """Examines the evidence of this replica's rollouts now and then."""

    def __init__(
        self, pool: JudgedRollouts, model: Commentator | None, *, every_seconds: float
    ) -> None:
        self._pool = pool
        self._model = model
        self._every_seconds = every_seconds
        self._previous: dict[str, Judgement] = {}
        self._reported: set[str] = set()  # dedup keys of present rollouts
        self._logger = structlog.get_logger()

    async def run(self) -> None:
        """Examine until cancelled."""
        while True:
            await asyncio.sleep(self._every_seconds)
            try:
                await self.examine()
            except Exception:  # ours: it is for information only
                self._logger.exception("anomaly_watch_failed")

    async def examine(self) -> None:
        """Examine once, and report what is new."""
        present = dict(self._pool.judgements)
        judgements = {key: judgement for key, (_, judgement) in present.items()}
        prefixes = tuple(f"{key}/{rollout.rollout_id}/" for key, (rollout, _) in present.items())
        self._reported = {key for key in self._reported if key.startswith(prefixes)}
        for anomaly in find_anomalies(self._previous, judgements):
            rollout = present[anomaly.flag_key][0]
            self._report(rollout, anomaly, anomaly.metric, Severity.WARNING)
        self._previous = judgements
        if self._model is not None:
            await self._ask(self._model, present)

    async def _ask(self, model: Commentator, present: dict[str, tuple[Rollout, Judgement]]) -> None:
        """Report what the model calls unusual, of plans that allow the model."""
        allowed = {
            key: each
            for key, each in present.items()
            if each[0].plan.advisor.mode is not AdvisorMode.OFF
        }
        if not allowed:
            return
        try:
            remarks = await model.review(allowed)
        except AdviceUnavailableError as trouble:
            self._logger.info("anomaly_watch_unavailable", error=str(trouble))
            return
        for flag_key, remark in remarks:
            anomaly = Anomaly(flag_key, "", f"the model finds unusual: {remark}")
            self._report(allowed[flag_key][0], anomaly, _BY_MODEL, Severity.INFO)

    def _report(self, rollout: Rollout, anomaly: Anomaly, about: str, severity: Severity) -> None:
        kind = AlertKind.ANOMALY
        key = f"{rollout.flag_key}/{rollout.rollout_id}/{len(rollout.visits)}/{kind}/{about}"
        if key in self._reported:
            return
        self._reported.add(key)
        self._logger.info("anomaly_seen", flag_key=rollout.flag_key, what=anomaly.what)
        action = "look at what these flags and services share; nothing was changed because of it"
        summary = f"{rollout.flag_key}: {anomaly.what}"
        self._pool.alert_about(rollout, RaiseAlert(kind, severity, summary, action, key))
