"""Plans: from the document that people write to the core's plan, and back.

Fields that mean the same on both sides are listed once, in tables, and copied both ways. What
differs has a function for each direction: guardrails, audiences and freeze windows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from controller.core.audience import Audience, Condition
from controller.core.plan import (
    DEFAULT_GAP_POLICIES,
    DEFAULT_WITHIN,
    AdvisorPolicy,
    CounterQueries,
    ExternalMetric,
    GateWebhook,
    Guardrail,
    Plan,
    Stage,
    Window,
)
from controller.plans import core_window
from schemas.audiences import ConditionDocument
from schemas.external import (
    VARIANT,
    CountersDocument,
    ExternalMetricDocument,
    PrometheusDocument,
)
from schemas.gate_webhooks import GateWebhookDocument
from schemas.guardrails import Comparison, GuardrailDocument
from schemas.plan import (
    ActiveWindowDocument,
    AdvisorDocument,
    FreezeWindowDocument,
    PlanDocument,
    StageDocument,
    Variants,
    VariantShare,
)
from schemas.terms import METRIC_GAPS, WEBHOOK_GAPS, WEEKDAYS, HealthGap, Operator

#: Fields with the same meaning on both sides: name in the core, name in the document.
_Fields = Mapping[str, str]


def _same_names(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_PLAN_FIELDS: Final[_Fields] = {
    **_same_names("name", "description", "owner", "alpha", "beta"),
    **_same_names("fresh_within", "health_grace", "start_at", "ends_at", "expires_at", "blind"),
    **_same_names("four_eyes"),
    "flag_key": "flag",
    "flag_type": "type",
}
_VARIANT_FIELDS: Final[_Fields] = _same_names("treatment", "control", "unassigned")
# `max_bake` and `name` are not here: the core has the effective value of the one, an empty text in
# place of None for the other.
_STAGE_FIELDS: Final[_Fields] = _same_names(
    "percent", "bake", "settle", "min_sample", "approval", "audience", "control"
)
# `to_percent` is not here, for the same reason.
_GUARDRAIL_FIELDS: Final[_Fields] = _same_names(
    "metric", "role", "limit", "on_breach", "from_percent"
)
# The queries are not here: the core has one for each arm. Nor is the limit, which has a direction.
_EXTERNAL_FIELDS: Final[_Fields] = _same_names(
    "name",
    "margin",
    "every",
    "misses",
    "of",
    "repeats",
    "newest_within",
    "role",
    "on_breach",
    "from_percent",
)
_WEBHOOK_FIELDS: Final[_Fields] = _same_names("endpoint", "every", "on_fail")
_ADVISOR_FIELDS: Final[_Fields] = _same_names("mode", "deadline", "hold_rounds", "hold_for")

_MINUTE: Final = timedelta(minutes=1)
_MINUTES_PER_DAY: Final = 24 * 60

#: Operators whose operand a document writes as a list.
_LIST_OPERATORS: Final = frozenset({Operator.IN, Operator.STARTS_WITH, Operator.ENDS_WITH})


def _for_core(document: object, fields: _Fields) -> dict[str, Any]:
    return {ours: getattr(document, theirs) for ours, theirs in fields.items()}


def _for_document(core: object, fields: _Fields) -> dict[str, Any]:
    return {theirs: getattr(core, ours) for ours, theirs in fields.items()}


# --- from the document ---


def to_core_plan(document: PlanDocument, *, version: str | None = None) -> Plan:
    """Return the plan in the core's units, every default filled in.

    `version` is the one that is stored with it; None: its hash, which takes longer than all else.
    """
    shares_with_control = [stage.percent for stage in document.stages if stage.percent < 100]
    last_with_control = max(shares_with_control, default=100.0)
    plan = Plan(
        version=version or "",
        **_for_core(document, _PLAN_FIELDS),
        **_for_core(document.variants, _VARIANT_FIELDS),
        stages=tuple(
            Stage(
                **_for_core(stage, _STAGE_FIELDS),
                max_bake=stage.longest_bake,
                given_name=stage.name or "",
            )
            for stage in document.stages
        ),
        guardrails=tuple(
            _core_guardrail(guardrail, last_with_control=last_with_control)
            for guardrail in document.guardrails
        ),
        external=tuple(
            _core_external(metric, document.variants, last_with_control=last_with_control)
            for metric in document.external
        ),
        gate_webhooks=tuple(
            GateWebhook(**_for_core(webhook, _WEBHOOK_FIELDS)) for webhook in document.gate_webhooks
        ),
        advisor=AdvisorPolicy(**_for_core(document.advisor, _ADVISOR_FIELDS)),
        freeze_windows=tuple(core_window(window) for window in document.freeze_windows),
        active=tuple(core_window(window) for window in document.active),
        gap_policies={**DEFAULT_GAP_POLICIES, **document.health},
        audiences=tuple(
            Audience(name, tuple(tuple(map(_core_condition, clause)) for clause in clauses))
            for name, clauses in document.audiences.items()
        ),
        split=tuple((share.name, share.weight) for share in document.variants.split),
        values=_with_one_number_type(document.variants.values),
    )
    return plan if version is not None else replace(plan, version=plan_version(plan))


def plan_version(plan: Plan) -> str:
    """Return 16 hex digits that name exactly this plan, however its document was written."""
    canonical = json.dumps(
        from_core_plan(plan).model_dump(mode="json"), sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _core_guardrail(document: GuardrailDocument, *, last_with_control: float) -> Guardrail:
    """Return one guardrail.

    `last_with_control` is the largest percentage that leaves contexts in control. A guardrail
    without a limit only compares, so by default it ends there.
    """
    to_percent = document.to_percent
    if to_percent is None:
        to_percent = last_with_control if document.limit is None else 100.0
    compare = document.compare
    return Guardrail(
        **_for_core(document, _GUARDRAIL_FIELDS),
        margin=compare.margin if compare else None,
        gate_margin=compare.gate_margin if compare else None,
        in_points=compare is not None and compare.in_points,
        to_percent=to_percent,
        within=DEFAULT_WITHIN if document.within is None else document.within,
    )


def _core_external(
    document: ExternalMetricDocument, variants: Variants, *, last_with_control: float
) -> ExternalMetric:
    """Return one external metric, with the query of each arm."""
    asked = document.prometheus
    limit = document.at_most if document.at_least is None else document.at_least
    treatment, control = _core_asked(asked.treatment), _core_asked(asked.control)
    if treatment is None:
        names = "|".join([one.name for one in variants.split] or [variants.treatment])
        query = asked.query or ""
        has_arms = VARIANT in (query if isinstance(query, str) else query.text)
        treatment = _core_asked(query, names)
        control = _core_asked(query, variants.control) if has_arms else None
    assert treatment is not None
    to_percent = document.to_percent
    if to_percent is None:
        to_percent = last_with_control if limit is None else 100.0
    return ExternalMetric(
        **_for_core(document, _EXTERNAL_FIELDS),
        treatment=treatment,
        control=control,
        newest=asked.newest,
        limit=limit,
        is_better_when_higher=document.higher_is_better or document.at_least is not None,
        to_percent=to_percent,
    )


def _core_asked(
    asked: str | CountersDocument | None, variant: str = VARIANT
) -> str | CounterQueries | None:
    """Return what is asked for one arm."""
    if asked is None or isinstance(asked, str):
        return None if asked is None else asked.replace(VARIANT, variant)
    return CounterQueries(
        **{
            part: None if query is None else query.replace(VARIANT, variant)
            for part, query in asked.queries.items()
        }
    )


def _core_condition(document: ConditionDocument) -> Condition:
    # The schema makes sure that there is exactly one operator.
    operator = next(each for each in Operator if document.operand(each) is not None)
    operand = document.operand(operator)
    values = tuple(operand) if isinstance(operand, list) else (operand,)
    return Condition(document.attribute, operator, values)


def _with_one_number_type(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with all numbers as floats if one is.

    Typed clients refuse an integer where they expect a float.
    """
    has_float = any(isinstance(value, float) for value in values.values())
    return {
        name: float(value)
        if has_float and isinstance(value, int) and not isinstance(value, bool)
        else value
        for name, value in values.items()
    }


# --- to the document ---


def from_core_plan(plan: Plan) -> PlanDocument:
    """Return the plan as a document with nothing left to defaults.

    `to_core_plan` of that document is the same plan again.
    """
    return PlanDocument(
        **_for_document(plan, _PLAN_FIELDS),
        variants=Variants(
            **_for_document(plan, _VARIANT_FIELDS),
            split=[VariantShare(name=name, weight=weight) for name, weight in plan.split],
            values=dict(plan.values),
        ),
        audiences={
            audience.name: [list(map(_condition_document, clause)) for clause in audience.any_of]
            for audience in plan.audiences
        },
        stages=[
            StageDocument(
                **_for_document(stage, _STAGE_FIELDS),
                max_bake=stage.max_bake,
                name=stage.given_name or None,
            )
            for stage in plan.stages
        ],
        guardrails=[_guardrail_document(guardrail) for guardrail in plan.guardrails],
        external=[_external_document(metric) for metric in plan.external],
        gate_webhooks=[
            GateWebhookDocument(**_for_document(webhook, _WEBHOOK_FIELDS))
            for webhook in plan.gate_webhooks
        ],
        advisor=AdvisorDocument(**_for_document(plan.advisor, _ADVISOR_FIELDS)),
        freeze_windows=[_freeze_document(window) for window in plan.freeze_windows],
        active=[_active_document(window) for window in plan.active],
        # In the order of the word list, so that equal plans are equal bytes.
        health={gap: plan.gap_policies[gap] for gap in HealthGap if _is_written(gap, plan)},
    )


def _is_written(gap: HealthGap, plan: Plan) -> bool:
    """Return whether a document says what the gap does.

    It does not where the plan cannot have the gap: the releases before external metrics and gate
    webhooks read such a plan, and give it the same version.
    """
    if gap not in plan.gap_policies:
        return False
    if plan.gap_policies[gap] != DEFAULT_GAP_POLICIES[gap]:
        return True
    if gap in METRIC_GAPS:
        return bool(plan.external)
    return gap not in WEBHOOK_GAPS or bool(plan.gate_webhooks)


def _guardrail_document(guardrail: Guardrail) -> GuardrailDocument:
    compare = None
    if guardrail.margin is not None:
        compare = Comparison(
            margin=guardrail.margin,
            gate_margin=guardrail.gate_margin,
            in_points=guardrail.in_points,
        )
    return GuardrailDocument(
        **_for_document(guardrail, _GUARDRAIL_FIELDS),
        compare=compare,
        to_percent=guardrail.to_percent,
        within=guardrail.within if guardrail.has_floor else None,
    )


def _external_document(metric: ExternalMetric) -> ExternalMetricDocument:
    is_floor = metric.is_better_when_higher
    return ExternalMetricDocument(
        **_for_document(metric, _EXTERNAL_FIELDS),
        prometheus=PrometheusDocument(
            treatment=_document_asked(metric.treatment),
            control=_document_asked(metric.control),
            newest=metric.newest,
        ),
        at_least=metric.limit if is_floor else None,
        at_most=None if is_floor else metric.limit,
        higher_is_better=is_floor,
        to_percent=metric.to_percent,
    )


def _document_asked(asked: str | CounterQueries | None) -> str | CountersDocument | None:
    if not isinstance(asked, CounterQueries):
        return asked
    return CountersDocument(bad=asked.bad, good=asked.good, total=asked.total)


def _condition_document(condition: Condition) -> ConditionDocument:
    is_list = condition.operator in _LIST_OPERATORS
    operand = list(condition.values) if is_list else condition.values[0]
    return ConditionDocument.model_validate(
        {"attribute": condition.attribute, condition.operator.value: operand}
    )


def _freeze_document(window: Window) -> FreezeWindowDocument:
    return FreezeWindowDocument(**_window_fields(window))


def _active_document(window: Window) -> ActiveWindowDocument:
    first, last = window.first_day, window.last_day
    dates = None if first is None or last is None else f"{first}..{last}"
    return ActiveWindowDocument(**_window_fields(window), dates=dates)


def _window_fields(window: Window) -> dict[str, Any]:
    is_within_a_day = window.minutes <= _MINUTES_PER_DAY
    end = _clock((window.start_minute + window.minutes) % _MINUTES_PER_DAY)
    return {
        "days": [WEEKDAYS[day - 1] for day in sorted(window.weekdays)],
        "begins": _clock(window.start_minute),
        "ends": end if is_within_a_day else None,
        "lasts": None if is_within_a_day else window.minutes * _MINUTE,
        "timezone": window.timezone,
    }


def _clock(minute_of_day: int) -> str:
    return f"{minute_of_day // 60:02}:{minute_of_day % 60:02}"
