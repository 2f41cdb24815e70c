"""Alerts, as they are published and read again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from controller.codec.cloud_events import SOURCE, optional_record, write_event
from controller.core.effects import RaiseAlert
from controller.core.rollout import Rollout
from schemas import alert
from schemas.advice import ExplanationRecord
from schemas.decision import HarmRecord


def alert_event(
    effect: RaiseAlert, rollout: Rollout, effect_id: str, at: datetime, source: str = SOURCE
) -> bytes:
    """Return an alert with the harm so far."""
    record = alert.Alert(
        flag=rollout.flag_key,
        rollout_id=rollout.rollout_id,
        revision=rollout.revision,
        at=at,
        kind=effect.kind,
        severity=effect.severity,
        summary=effect.summary,
        action=effect.action,
        dedup_key=effect.dedup_key,
        phase=rollout.phase.name,
        stage=None if rollout.stage_index is None else rollout.stage_index + 1,
        percent=rollout.percent,
        stage_name=rollout.stage_name,
        harm=optional_record(HarmRecord, effect.judgement and effect.judgement.harm),
        explanation=optional_record(ExplanationRecord, effect.explanation),
    )
    return write_event(alert.TYPE, effect_id, rollout.flag_key, at, record, source)


def alert_from(data: Mapping[str, Any]) -> alert.Alert:
    """Return the alert in an event's data. Raises pydantic.ValidationError.

    One that was too large for Kafka comes without the harm (`adapters/kafka/trimming.py`).
    """
    return alert.Alert.model_validate({"harm": None, **data})
