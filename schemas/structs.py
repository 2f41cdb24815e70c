"""The part of an event that is counted, as msgspec decodes it.

The contract is in `evaluation.py` and `outcome.py`. Checks that msgspec cannot make are in
`wire.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from schemas.envelope import MAX_ATTRIBUTE, MAX_CONTEXT_ID
from schemas.outcome import MAX_CONVERSIONS, MAX_DURATION_SECONDS, MAX_FLAGS

_Attribute = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ATTRIBUTE)]
_ContextId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CONTEXT_ID)]
_NOTHING = msgspec.Raw()


class EvaluationData(msgspec.Struct, gc=False):
    """The counted part of an evaluation; `old_*` have OpenTelemetry's former names."""

    flag_key: str = msgspec.field(name="feature_flag.key")
    variant: str | None = msgspec.field(default=None, name="feature_flag.result.variant")
    context_id: _ContextId | None = msgspec.field(default=None, name="feature_flag.context.id")
    value: msgspec.Raw = msgspec.field(default=_NOTHING, name="feature_flag.result.value")
    old_variant: str | None = msgspec.field(default=None, name="feature_flag.variant")
    old_value: msgspec.Raw = msgspec.field(default=_NOTHING, name="value")


class EvaluatedFlagData(msgspec.Struct, gc=False):
    """One of the flags an outcome names."""

    flag_key: str = msgspec.field(name="feature_flag.key")
    variant: str = msgspec.field(name="feature_flag.result.variant")


class OutcomeData(msgspec.Struct, gc=False):
    """The counted part of an outcome."""

    context_id: _ContextId | None = msgspec.field(default=None, name="feature_flag.context.id")
    duration: Annotated[float, msgspec.Meta(ge=0, le=MAX_DURATION_SECONDS)] | None = msgspec.field(
        default=None, name="http.server.request.duration"
    )
    error_type: _Attribute | None = msgspec.field(default=None, name="error.type")
    flags: Annotated[list[EvaluatedFlagData], msgspec.Meta(max_length=MAX_FLAGS)] | None = (
        msgspec.field(default=None, name="rolloutd.flags")
    )
    conversions: Annotated[list[str], msgspec.Meta(max_length=MAX_CONVERSIONS)] | None = (
        msgspec.field(default=None, name="rolloutd.conversions")
    )


class EvaluationRecord(msgspec.Struct, gc=False):
    """An evaluation in structured mode."""

    specversion: Literal["1.0"]
    type: Literal["io.rolloutd.evaluation.v1"]
    id: _Attribute
    source: _Attribute
    data: EvaluationData
    time: str | None = None


class OutcomeRecord(msgspec.Struct, gc=False):
    """An outcome in structured mode."""

    specversion: Literal["1.0"]
    type: Literal["io.rolloutd.outcome.v1"]
    id: _Attribute
    source: _Attribute
    data: OutcomeData
    time: str | None = None


decode_evaluation_record = msgspec.json.Decoder(EvaluationRecord).decode
decode_evaluation_data = msgspec.json.Decoder(EvaluationData).decode
decode_outcome_record = msgspec.json.Decoder(OutcomeRecord).decode
decode_outcome_data = msgspec.json.Decoder(OutcomeData).decode
decode_text = msgspec.json.Decoder(str).decode
