"""Decisions and the judgements behind them, as they are published and read again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from controller.codec.cloud_events import SOURCE, optional_record, write_event
from controller.codec.plans import from_core_plan
from controller.core.effects import AppliedPlan, PublishDecision
from controller.core.judging.judgement import Judgement
from controller.core.rollout import Rollout
from schemas import decision
from schemas.advice import AdviceRecord


def decision_event(
    effect: PublishDecision, rollout: Rollout, effect_id: str, at: datetime, source: str = SOURCE
) -> bytes:
    """Return a decision with all its evidence; `rollout` is the one after it."""
    record = decision.Decision(
        flag=rollout.flag_key,
        rollout_id=rollout.rollout_id,
        revision=rollout.revision,
        at=at,
        kind=effect.kind,
        reason=effect.reason,
        issuer=effect.issuer,
        phase=rollout.phase.name,
        stage=None if effect.stage is None else effect.stage + 1,
        stage_name=None if effect.stage is None else rollout.plan.stages[effect.stage].name,
        from_percent=effect.from_percent,
        to_percent=effect.to_percent,
        audience=None if effect.stage is None else rollout.plan.stages[effect.stage].audience,
        plan=decision.PlanReference(name=rollout.plan.name, version=rollout.plan.version),
        gate_id=effect.gate_id,
        command_id=effect.command_id,
        judgement=None if effect.judgement is None else to_judgement_record(effect.judgement),
        advice=optional_record(AdviceRecord, effect.advice),
        applied=None if effect.applied is None else _applied(effect.applied),
        evidence_trouble=effect.evidence_trouble,
    )
    return write_event(decision.TYPE, effect_id, rollout.flag_key, at, record, source)


def decision_from(data: Mapping[str, Any]) -> decision.Decision:
    """Return the decision in an event's data. Raises pydantic.ValidationError.

    One that was too large for Kafka comes without its evidence (`adapters/kafka/trimming.py`).
    """
    return decision.Decision.model_validate({"judgement": None, "advice": None, **data})


def _applied(applied: AppliedPlan) -> decision.AppliedPlanRecord:
    return decision.AppliedPlanRecord(
        before=from_core_plan(applied.before),
        after=from_core_plan(applied.after),
        changes=list(applied.changes),
    )


def to_judgement_record(judgement: Judgement) -> decision.JudgementRecord:
    """Return all the evidence of one judgement, with its verdict."""
    return decision.JudgementRecord(
        at=judgement.at,
        visit=judgement.visit,
        verdict=judgement.statistics,
        gaps=[
            decision.GapRecord.model_validate(gap, from_attributes=True) for gap in judgement.gaps
        ],
        metrics=[
            decision.MetricRecord.model_validate(metric, from_attributes=True)
            for metric in judgement.metrics
        ],
        harm=decision.HarmRecord.model_validate(judgement.harm, from_attributes=True),
        exposures=dict(judgement.exposures),
        srm_e_value=judgement.srm_e_value,
        observed_share=judgement.observed_share,
        offsets=dict(judgement.offsets),
        batches=judgement.batches,
        incomplete=judgement.incomplete,
        webhooks=[
            decision.WebhookRecord.model_validate(reply, from_attributes=True)
            for reply in judgement.replies
        ],
    )
