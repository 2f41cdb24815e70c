"""The formats in which event topics are read, and which readers belong to each.

Belongs here: the choice. Does not belong here: what a format means, which is its own module's:
`wire.py` (ours), `otlp.py`, `go_feature_flag.py`.
"""

from __future__ import annotations

from schemas import go_feature_flag, otlp, wire
from schemas.events import (
    EvaluationFields,
    EvaluationReader,
    OutcomeFields,
    OutcomeReader,
    Packed,
    R,
)
from schemas.terms import EventFormat


def evaluation_reader(
    event_format: EventFormat, *, of_spans: bool = False
) -> EvaluationReader[R] | Packed[EvaluationFields]:
    """Return what reads a topic of evaluations.

    `of_spans`: its OTLP holds spans with evaluations as events, not logs.

    Raises ModuleNotFoundError for OTLP protobuf without the extra `otlp`.
    """
    if event_format.is_otlp:
        readers = _otlp_readers(event_format)
        return Packed(readers.evaluations_of_spans if of_spans else readers.evaluations_of_logs)
    if event_format is EventFormat.GO_FEATURE_FLAG:
        return go_feature_flag.read_evaluations
    return wire.read_evaluations


def outcome_reader(event_format: EventFormat) -> OutcomeReader[R] | Packed[OutcomeFields]:
    """Return what reads a topic of outcomes; OTLP's are spans.

    Raises ModuleNotFoundError for OTLP protobuf without the extra `otlp`, and ValueError for a
    format without outcomes.
    """
    if event_format.is_otlp:
        readers = _otlp_readers(event_format)
        return Packed(readers.outcomes_of_spans)
    if event_format is EventFormat.GO_FEATURE_FLAG:
        raise ValueError("GO Feature Flag exports no outcomes")
    return wire.read_outcomes


def _otlp_readers(event_format: EventFormat) -> otlp.OtlpReaders:
    if event_format is EventFormat.OTLP_JSON:
        return otlp.json_readers()
    return otlp.protobuf_readers()
