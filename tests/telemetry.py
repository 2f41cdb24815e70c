"""Exports as an instrumented fleet makes them.

By OpenTelemetry's own SDK and encoder, in both encodings of the Collector.

The Collector writes JSON by the same mapping as protobuf's own, but for ids, which are hexadecimal
there and unread here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode

from schemas.terms import EventFormat

_NS = 1_000_000  # in a millisecond
_RESOURCE = Resource({"service.name": "checkout-api"})


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a user: what it was served and how it ended."""

    context: str
    flags: Sequence[tuple[str, str]]
    at_ms: int  # when it was over
    latency_ms: int = 5
    error: bool = False
    conversions: Sequence[str] = ()


def encoded(message: Message, encoding: EventFormat) -> bytes:
    """Return a message as the Collector's Kafka exporter writes it."""
    if encoding is EventFormat.OTLP_PROTO:
        return message.SerializeToString()
    return json.dumps(MessageToDict(message, use_integers_for_enums=True)).encode()


def export_of_logs(requests: Sequence[Request], encoding: EventFormat) -> bytes:
    """Return one export with a log record for each evaluation.

    And what else a service logs in between.
    """
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    provider = LoggerProvider(resource=_RESOURCE, shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    logger = provider.get_logger("openfeature")
    for request in requests:
        logger.emit(
            LogRecord(
                timestamp=request.at_ms * _NS,
                body="GET /checkout",
                attributes={"feature_flag.key": "a"},
            )
        )
        for flag, variant in request.flags:
            attributes: dict[str, Any] = {
                "feature_flag.key": flag,
                "feature_flag.result.variant": variant,
                "feature_flag.result.reason": "split",
                "feature_flag.context.id": request.context,
            }
            logger.emit(
                LogRecord(
                    timestamp=request.at_ms * _NS,
                    event_name="feature_flag.evaluation",
                    attributes=attributes,
                )
            )
    return encoded(encode_logs(exporter.get_finished_logs()), encoding)


def export_of_spans(requests: Sequence[Request], encoding: EventFormat) -> bytes:
    """Return an export with a server span per request, its evaluations and a client span."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=_RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("asgi")
    for request in requests:
        end = request.at_ms * _NS
        span = tracer.start_span(
            "GET /checkout", kind=SpanKind.SERVER, start_time=end - request.latency_ms * _NS
        )
        for flag, variant in request.flags:
            attributes = {
                "feature_flag.key": flag,
                "feature_flag.result.variant": variant,
                "feature_flag.context.id": request.context,
            }
            span.add_event("feature_flag.evaluation", attributes, timestamp=end)
        if request.conversions:
            span.set_attribute("rolloutd.conversions", list(request.conversions))
        if request.error:
            span.set_attribute("error.type", "500")
            span.set_status(Status(StatusCode.ERROR))
        tracer.start_span("SELECT", kind=SpanKind.CLIENT, start_time=end - _NS).end(end)
        span.end(end)
    return encoded(encode_spans(exporter.get_finished_spans()), encoding)
