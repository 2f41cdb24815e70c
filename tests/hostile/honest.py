"""Honest documents, one of each kind that comes in from outside.

What hostile ones are made from.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from controller.codec.plans import to_core_plan
from controller.core.plan import Plan
from controller.core.rollout import (
    Aborted,
    AdviceRound,
    AwaitingApproval,
    Baking,
    Completed,
    Freeze,
    Gating,
    Paused,
    RolledBack,
    Rollout,
    Scheduled,
)
from schemas.plan import PlanDocument
from schemas.terms import HoldReason
from tests.builders import HOUR, T0, make_advice, make_rollout


def evaluation(
    flag_key: str = "new-checkout", context: str = "user-1", variant: str = "on", at: str = ""
) -> dict[str, Any]:
    """Return an evaluation as an app sends it."""
    return {
        "specversion": "1.0",
        "type": "io.rolloutd.evaluation.v1",
        "source": "/app",
        "id": "1",
        "time": at or datetime.now(UTC).isoformat(),
        "data": {
            "feature_flag.key": flag_key,
            "feature_flag.result.variant": variant,
            "feature_flag.context.id": context,
        },
    }


def outcome(
    flag_key: str = "new-checkout", context: str = "user-1", variant: str = "on", at: str = ""
) -> dict[str, Any]:
    """Return an outcome as an app sends it."""
    return {
        "specversion": "1.0",
        "type": "io.rolloutd.outcome.v1",
        "source": "/app",
        "id": "1",
        "time": at or datetime.now(UTC).isoformat(),
        "data": {
            "feature_flag.context.id": context,
            "http.server.request.duration": 0.25,
            "error.type": "500",
            "rolloutd.flags": [
                {"feature_flag.key": flag_key, "feature_flag.result.variant": variant}
            ],
            "rolloutd.conversions": ["purchase"],
        },
    }


def plan(flag_key: str = "new-checkout") -> dict[str, Any]:
    """Return a plan that uses everything a plan can have."""
    return {
        "name": "everything",
        "flag": flag_key,
        "description": "a plan",
        "owner": "team",
        "type": "release",
        "variants": {
            "treatment": "on",
            "control": "off",
            "unassigned": "none",
            "split": [{"name": "a", "weight": 1}, {"name": "b", "weight": 3}],
            "values": {"off": "x", "a": "y", "b": "z"},
        },
        "audiences": {
            "beta": [{"attribute": "plan", "in": ["pro", "team"]}, {"attribute": "age", "gte": 18}]
        },
        "stages": [
            {
                "percent": 5,
                "bake": "10m",
                "settle": "1m",
                "min_sample": 100,
                "audience": "beta",
                "control": "equal",
            },
            {"percent": 25.5, "bake": "1h", "max_bake": "3h", "approval": "required"},
            {"percent": 100, "bake": "1d", "min_sample": 1000},
        ],
        "guardrails": [
            {"metric": "error_rate", "limit": 0.05, "compare": {"margin": 0.1, "gate_margin": 0.2}},
            {
                "metric": "latency_p99",
                "limit": 300.0,
                "on_breach": "pause",
                "from_percent": 5,
                "to_percent": 100,
            },
            {"metric": "conversion:purchase", "role": "signal", "compare": {"margin": 0.05}},
        ],
        "advisor": {"mode": "can_hold", "deadline": "30s", "hold_rounds": 3, "hold_for": "10m"},
        "freeze_windows": [
            {"days": ["fri", "sat"], "from": "16:00", "to": "08:00", "timezone": "Europe/Berlin"}
        ],
        "health": {"srm": "pause", "stale": "wait"},
        "alpha": 0.01,
        "beta": 0.05,
        "fresh_within": "1m",
        "start_at": "2026-11-22T03:00:00Z",
        "expires_at": "2027-11-22T03:00:00Z",
        "traffic": 5000.0,
    }


def command(verb: str = "start", flag_key: str = "new-checkout") -> dict[str, Any]:
    """Return a command as an operator publishes it, without an envelope."""
    fields: dict[str, Any] = {
        "id": "command-1",
        "flag": flag_key,
        "verb": verb,
        "issuer": "ada",
        "reason": "because",
        "issued_at": datetime.now(UTC).isoformat(),
        "expected_revision": 3,
    }
    if verb in ("start", "restart"):
        fields["plan"] = plan(flag_key)
    return fields


def full_plan() -> Plan:
    """Return `plan` in the core's units."""
    return to_core_plan(PlanDocument.model_validate(plan()))


def rollouts() -> list[Rollout]:
    """Return a rollout in every phase."""
    phases = [
        Scheduled(T0),
        Baking(0, T0 + HOUR),
        Gating(
            1,
            "gate.1",
            T0,
            T0 + HOUR,
            AdviceRound(1, T0 + HOUR, make_advice(), is_closed=True, held_until=T0 + HOUR),
        ),
        AwaitingApproval(1, "gate.1", T0, HoldReason.APPROVAL),
        Paused(T0, HoldReason.OPERATOR, Baking(1, T0 + HOUR)),
        Completed(T0 + HOUR),
        RolledBack(T0 + HOUR, "guardrail"),
        Aborted(T0 + HOUR, "asked"),
    ]
    plan_ = full_plan()
    return [
        make_rollout(plan=plan_, phase=phase, freeze=Freeze(T0, "ada", "holiday"))
        for phase in phases
    ]


def advice() -> dict[str, Any]:
    """Return a model's answer."""
    return {"reasons": ["error_rate is alike", "enough data"], "verdict": "hold", "confidence": 70}


def completion() -> dict[str, Any]:
    """Return an OpenAI-compatible server's answer around a model's."""
    message = {"role": "assistant", "content": json.dumps(advice())}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 600, "completion_tokens": 40}
    return {
        "id": "1",
        "object": "chat.completion",
        "model": "tiny",
        "choices": [choice],
        "usage": usage,
    }


def otlp_logs() -> dict[str, Any]:
    """Return an OTLP export of one evaluation log."""
    attributes = [
        {"key": "feature_flag.key", "value": {"stringValue": "new-checkout"}},
        {"key": "feature_flag.result.variant", "value": {"stringValue": "on"}},
        {"key": "feature_flag.context.id", "value": {"stringValue": "user-1"}},
    ]
    record = {
        "timeUnixNano": str(int(datetime.now(UTC).timestamp() * 1e9)),
        "eventName": "feature_flag.evaluation",
        "attributes": attributes,
    }
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}


def otlp_spans() -> dict[str, Any]:
    """Return an OTLP export of one request's span."""
    end = int(datetime.now(UTC).timestamp() * 1e9)
    span = {
        "traceId": "0af7651916cd43dd8448eb211c80319c",
        "spanId": "b7ad6b7169203331",
        "name": "GET /",
        "kind": 2,
        "startTimeUnixNano": str(end - 250_000_000),
        "endTimeUnixNano": str(end),
        "attributes": [
            {"key": "feature_flag.context.id", "value": {"stringValue": "user-1"}},
            {"key": "http.response.status_code", "value": {"intValue": "500"}},
        ],
        "status": {"code": 2},
        "events": [
            {
                "name": "feature_flag.evaluation",
                "timeUnixNano": str(end),
                "attributes": otlp_logs()["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0][
                    "attributes"
                ],
            }
        ],
    }
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


def go_feature_flag() -> dict[str, Any]:
    """Return an evaluation as GO Feature Flag's Kafka exporter writes it."""
    return {
        "kind": "feature",
        "contextKind": "user",
        "userKey": "user-1",
        "creationDate": int(datetime.now(UTC).timestamp()),
        "key": "new-checkout",
        "variation": "on",
        "value": True,
        "default": False,
        "source": "SERVER",
    }


def ofrep() -> dict[str, Any]:
    """Return the body of an OFREP evaluation."""
    return {"context": {"targetingKey": "user-1", "plan": "pro", "age": 30, "appVersion": "2.4.0"}}
