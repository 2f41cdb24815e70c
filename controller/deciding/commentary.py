"""What people are told beside the decisions.

Explanations of alerts, and movement that no test is about.

Behind everything else: alerts are out before they are explained, one question is asked at a time,
what there is no room for is dropped, and whatever goes wrong here is logged and forgotten. Nothing
here can reach a percentage: it only adds alerts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from controller.core.anomaly import Movement, unusual
from controller.core.judging.judgement import Judgement
from controller.core.rollout import RaiseAlert, Rollout
from controller.errors import AdviceUnavailableError
from controller.metrics import Metrics
from controller.ports import Commentator
from schemas.terms import AdvisorMode, AlertKind, Severity

# : Alerts that wait for an explanation. More at once are an incident, in which people do not read
# guesses.
WAITING_LIMIT = 20
#: What a breach sets in motion (0 % served everywhere, alerts out) has the machine to itself first.
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
#: What the model found is told once per stay in a stage, whatever it calls it.
_BY_MODEL = "by-model"

Raise = Callable[
    [Rollout, RaiseAlert], None
]  # publish, unless another rollout of the flag has begun


class Explainer:
    """Asks why alerts were raised, and raises each again with the guess.

    Same kind, same dedup key, for information.
    """

    def __init__(
        self,
        model: Commentator,
        metrics: Metrics,
        raise_alert: Raise,
        *,
        after_seconds: float = EXPLAIN_AFTER_SECONDS,
    ) -> None:
        self._model = model
        self._after_seconds = after_seconds
        self._metrics = metrics
        self._raise_alert = raise_alert
        self._waiting: asyncio.Queue[tuple[Rollout, RaiseAlert]] = asyncio.Queue(WAITING_LIMIT)
        self._log = structlog.get_logger()

    def want(self, rollout: Rollout, alert: RaiseAlert) -> None:
        """Note that an alert wants explaining.

        Only one with evidence, of a plan that has a model asked. Never blocks.
        """
        if (
            alert.kind not in EXPLAINED
            or alert.judgement is None
            or rollout.plan.advisor.mode is AdvisorMode.OFF
        ):
            return
        try:
            self._waiting.put_nowait((rollout, alert))
        except asyncio.QueueFull:
            self._metrics.explanations.of("dropped").inc()

    async def run(self) -> None:
        """Explain what waits, until cancelled."""
        while True:
            rollout, alert = await self._waiting.get()
            await asyncio.sleep(self._after_seconds)
            log = self._log.bind(flag_key=rollout.flag_key, kind=alert.kind)
            try:
                await self._explain(rollout, alert)
            except AdviceUnavailableError as trouble:
                self._metrics.explanations.of("unavailable").inc()
                log.info("explanation_unavailable", error=str(trouble))
            except (
                Exception
            ):  # a mistake of ours in what nobody waits for must not stop what everybody does
                self._metrics.explanations.of("unavailable").inc()
                log.exception("explanation_failed")

    async def _explain(self, rollout: Rollout, alert: RaiseAlert) -> None:
        explanation = await self._model.explain(rollout, alert)
        log = self._log.bind(flag_key=rollout.flag_key, kind=alert.kind)
        steps = "; ".join(step.rstrip(".") for step in explanation.next_steps)
        self._raise_alert(
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
        log.info(
            "alert_explained", advisor_model=explanation.model, duration_ms=explanation.latency_ms
        )


class Lookout:
    """Looks over the evidence of all rollouts here now and then, by rule and.

    Where there is one, by a model.
    """

    def __init__(
        self,
        evidence: Callable[[], Mapping[str, tuple[Rollout, Judgement]]],
        model: Commentator | None,
        raise_alert: Raise,
        *,
        every_seconds: float,
    ) -> None:
        self._evidence = evidence
        self._model = model
        self._raise_alert = raise_alert
        self._every_seconds = every_seconds
        self._before: dict[str, Judgement] = {}
        self._told: set[str] = set()  # dedup keys of rollouts under way
        self._log = structlog.get_logger()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(self._every_seconds)
            try:
                await self.look()
            except Exception:  # see above: for information only, and never the end of the daemon
                self._log.exception("look_failed")

    async def look(self) -> None:
        """Look once, and tell what is new."""
        seen = dict(self._evidence())
        now = {key: judgement for key, (_, judgement) in seen.items()}
        prefixes = tuple(f"{key}/{rollout.rollout_id}/" for key, (rollout, _) in seen.items())
        self._told = {key for key in self._told if key.startswith(prefixes)}
        for movement in unusual(self._before, now):
            self._tell(seen[movement.flag_key][0], movement, movement.metric, Severity.WARNING)
        self._before = now
        if self._model is None or not seen:
            return
        asked = {
            key: each
            for key, each in seen.items()
            if each[0].plan.advisor.mode is not AdvisorMode.OFF
        }
        if not asked:
            return
        try:
            found = await self._model.look_over(asked)
        except AdviceUnavailableError as trouble:
            self._log.info("look_unavailable", error=str(trouble))
            return
        for flag_key, what in found:
            movement = Movement(flag_key, "", f"the model finds unusual: {what}")
            self._tell(asked[flag_key][0], movement, _BY_MODEL, Severity.INFO)

    def _tell(self, rollout: Rollout, movement: Movement, about: str, severity: Severity) -> None:
        key = f"{rollout.flag_key}/{rollout.rollout_id}/{len(rollout.visits)}/{AlertKind.ANOMALY}/{about}"
        if key in self._told:
            return
        self._told.add(key)
        self._log.info("anomaly_seen", flag_key=rollout.flag_key, what=movement.what)
        action = "look at what these flags and services share; nothing was changed because of it"
        summary = f"{rollout.flag_key}: {movement.what}"
        self._raise_alert(rollout, RaiseAlert(AlertKind.ANOMALY, severity, summary, action, key))
