"""What a gate webhook is asked: one open gate, with all the evidence."""

from __future__ import annotations

from datetime import datetime

from controller.codec.cloud_events import SOURCE, write_event
from controller.codec.decisions import to_judgement_record
from controller.core.judging.judgement import Judgement
from controller.core.rollout import Gating, Rollout
from schemas import gate_question as wire
from schemas.decision import PlanReference


def gate_question(
    rollout: Rollout,
    gate: Gating,
    judgement: Judgement,
    at: datetime,
    message_id: str,
    source: str = SOURCE,
) -> bytes:
    """Return the question as a CloudEvent."""
    plan, stage = rollout.plan, rollout.plan.stages[gate.stage]
    following = plan.stages[gate.stage + 1 : gate.stage + 2]
    record = wire.GateQuestion(
        flag=rollout.flag_key,
        rollout_id=rollout.rollout_id,
        revision=rollout.revision,
        gate_id=gate.gate_id,
        stage=gate.stage + 1,
        stage_name=stage.name,
        percent=rollout.percent,
        next_percent=following[0].percent if following else None,
        audience=stage.audience,
        plan=PlanReference(name=plan.name, version=plan.version),
        owner=plan.owner,
        opened_at=gate.since,
        closes_at=gate.until,
        judgement=to_judgement_record(judgement),
    )
    return write_event(wire.TYPE, message_id, rollout.flag_key, at, record, source)
