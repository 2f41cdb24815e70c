"""Logs and counts what was decided about one flag: one line holds all evidence of a decision."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from controller.core.effects import AnswerCommand, AskAdvice, Effect, PublishDecision, RaiseAlert
from controller.core.rollout import Baking, Gating, Rollout
from controller.deciding.dependencies import WorkerDependencies
from controller.deciding.flag.advice import AdviceAgreement
from controller.telemetry import UNKNOWN_VERB


class DecisionLog:
    """Writes one canonical line per effect, and counts."""

    def __init__(self, flag_key: str, dependencies: WorkerDependencies) -> None:
        self._dependencies = dependencies
        self._metrics = dependencies.metrics
        self._advice = AdviceAgreement(dependencies)
        self._logger = structlog.get_logger().bind(flag_key=flag_key)

    def record(
        self, before: Rollout | None, after: Rollout | None, effects: Sequence[Effect]
    ) -> None:
        """Log and count effects that were saved, with the rollout before and after them."""
        is_by_command = any(isinstance(effect, AnswerCommand) for effect in effects)
        for effect in effects:
            match effect:
                case PublishDecision():
                    self._metrics.decisions.of(effect.kind).inc()
                    self._logger.info("decision_made", **decision_line(effect, after))
                    self._advice.add(effect)
                case AnswerCommand():
                    self._record_answer(effect)
                case RaiseAlert():
                    self._metrics.alerts.of(effect.kind, effect.severity).inc()
                    self._request_explanation(after, effect, is_by_command=is_by_command)
                case AskAdvice():
                    self._logger.info("advice_asked", gate_id=effect.gate_id, round=effect.round)
        if before is None or after is None:
            return
        if isinstance(before.phase, Baking) and isinstance(after.phase, Gating):
            self._logger.info("gate_opened", **gate_line(after, after.phase))
        if isinstance(before.phase, Gating) and not isinstance(after.phase, Gating):
            self._metrics.gate_duration_seconds.observe(
                (after.updated_at - before.phase.since).total_seconds()
            )

    def _request_explanation(
        self, after: Rollout | None, alert: RaiseAlert, *, is_by_command: bool
    ) -> None:
        """Ask for a guess at the cause, except where an operator is the cause."""
        queue = self._dependencies.explanations
        if after is not None and queue is not None and not is_by_command:
            queue.request(after, alert)

    def _record_answer(self, answer: AnswerCommand) -> None:
        self._metrics.commands.of(answer.verb or UNKNOWN_VERB, answer.status).inc()
        self._logger.info(
            "command_answered",
            command_id=answer.command_id,
            verb=answer.verb,
            status=answer.status,
            reason=answer.reason,
        )


def gate_line(rollout: Rollout, gate: Gating) -> dict[str, object]:
    """Return the keys of the line that says that a bake is over: no decision reports that."""
    return {
        "rollout_id": rollout.rollout_id,
        "revision": rollout.revision,
        "phase": gate.name,
        "stage": gate.stage + 1,
        "gate_id": gate.gate_id,
        "percent": rollout.percent,
        "undecided_until": gate.until.isoformat(),
    }


def decision_line(decision: PublishDecision, rollout: Rollout | None) -> dict[str, object]:
    """Return the keys of the canonical log line: everything the decision rests on, in figures."""
    line: dict[str, object] = {
        "decision": decision.kind,
        "reason": decision.reason,
        "from_percent": decision.from_percent,
        "percent": decision.to_percent,
        "issuer": decision.issuer,
    }
    if rollout is not None:
        line |= {
            "rollout_id": rollout.rollout_id,
            "revision": rollout.revision,
            "phase": rollout.phase.name,
        }
    if decision.stage is not None:
        line["stage"] = decision.stage + 1
    if decision.gate_id is not None:
        line["gate_id"] = decision.gate_id
    if decision.advice is not None:
        line |= {"advice": decision.advice.choice, "advisor_model": decision.advice.model}
    judgement = decision.judgement
    if judgement is not None:
        line |= {
            "exposures": {arm.value: count for arm, count in judgement.exposures.items()},
            "gaps": [gap.kind.value for gap in judgement.gaps],
            "metrics": {
                metric.metric: {
                    "harm": metric.harm.value,
                    "safe": metric.safe.value,
                    "e_value": metric.e_value,
                    "e_value_safe": metric.e_value_safe,
                    "estimates": {
                        arm.value: summary.estimate for arm, summary in metric.arms.items()
                    },
                }
                for metric in judgement.metrics
            },
            "exposed_contexts": judgement.harm.exposed_contexts,
            "failed_requests": judgement.harm.failed_requests,
            "offsets": dict(judgement.offsets),
        }
    return line
