"""In which formats the event topics are read, and what a format's readers look like.

Belongs here: the choice. What a format means is its own module's: `wire.py` (ours), `otlp.py`,
`go_feature_flag.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from schemas import go_feature_flag, wire
from schemas.envelope import MAX_TIME_MS, RecordRefused
from schemas.wire import Readable

E_co = TypeVar("E_co", covariant=True)
R = TypeVar("R", bound=Readable)

#: Context id, flag key, variant, time in ms.
EvaluationFields = tuple[str, str, str, int]
#: Context id, time in ms, (flag key, variant) pairs, is error, latency in ms, conversions.
OutcomeFields = tuple[str, int, Sequence[tuple[str, str]], bool, float | None, Sequence[str]]


class EventFormat(StrEnum):
    """How the records of an event topic are written."""

    ROLLOUTD = "rolloutd"  # one CloudEvent a record: schemas/json
    OTLP_JSON = "otlp_json"  # what the OpenTelemetry Collector's Kafka exporter writes
    OTLP_PROTO = "otlp_proto"
    GO_FEATURE_FLAG = "go_feature_flag"  # what GO Feature Flag's Kafka exporter writes

    @property
    def is_otlp(self) -> bool:
        """Whether a record is one export of logs or spans."""
        return self in (EventFormat.OTLP_JSON, EventFormat.OTLP_PROTO)


@dataclass(frozen=True, slots=True)
class Contents(Generic[E_co]):
    """What one record of a packed format holds."""

    events: Sequence[E_co]  # those that can be used
    refused: RecordRefused | None = None  # about those that cannot: the first one's, and how many


class Unpack(Protocol[E_co]):
    """Returns what one record holds, and raises nothing, whatever that is."""

    def __call__(self, record: Readable, *, latest_ms: int = MAX_TIME_MS) -> Contents[E_co]:
        """`latest_ms` is the latest time accepted of the record and of each of its events."""


@dataclass(frozen=True, slots=True)
class Packed(Generic[E_co]):
    """A format whose records hold many events each."""

    unpack: Unpack[E_co]


class EvaluationReader(Protocol[R]):
    """Yields evaluations, of a format with one a record, and reports each record without one."""

    def __call__(
        self,
        records: Iterable[R],
        refused: Callable[[R, RecordRefused], None],
        *,
        latest_ms: int = MAX_TIME_MS,
    ) -> Iterator[EvaluationFields]:
        """`latest_ms` is the latest time accepted of a record and of its event."""


class OutcomeReader(Protocol[R]):
    """Yields outcomes, of a format with one a record, and reports each record without one."""

    def __call__(
        self,
        records: Iterable[R],
        refused: Callable[[R, RecordRefused], None],
        *,
        latest_ms: int = MAX_TIME_MS,
    ) -> Iterator[tuple[R, str, int, Sequence[tuple[str, str]], bool, float | None, Sequence[str]]]:
        """`latest_ms` is the latest time accepted of a record and of its event."""


def evaluation_reader(
    event_format: EventFormat, *, of_spans: bool = False
) -> EvaluationReader[R] | Packed[EvaluationFields]:
    """Return what reads a topic of evaluations.

    `of_spans`: its OTLP holds spans with evaluations as events, not logs.

    Raises ModuleNotFoundError for OTLP protobuf without the extra `otlp`.
    """
    if event_format.is_otlp:
        from schemas import otlp

        encoding = (
            otlp.json_encoding()
            if event_format is EventFormat.OTLP_JSON
            else otlp.protobuf_encoding()
        )
        return Packed(encoding.evaluations_of_spans if of_spans else encoding.evaluations_of_logs)
    if event_format is EventFormat.GO_FEATURE_FLAG:
        return go_feature_flag.read_evaluations
    return wire.read_evaluations


def outcome_reader(event_format: EventFormat) -> OutcomeReader[R] | Packed[OutcomeFields]:
    """Return what reads a topic of outcomes; OTLP's are spans.

    Raises ModuleNotFoundError for OTLP protobuf without the extra `otlp`, and ValueError for a
    format without outcomes.
    """
    if event_format.is_otlp:
        from schemas import otlp

        encoding = (
            otlp.json_encoding()
            if event_format is EventFormat.OTLP_JSON
            else otlp.protobuf_encoding()
        )
        return Packed(encoding.outcomes_of_spans)
    if event_format is EventFormat.GO_FEATURE_FLAG:
        raise ValueError("GO Feature Flag exports no outcomes")
    return wire.read_outcomes
