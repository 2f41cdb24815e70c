"""The types that every event format shares: the input and the output of its reader.

Belongs here: types only. Does not belong here: reading (`wire.py`, `otlp.py`,
`go_feature_flag.py`), and the choice of a format (`formats.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from schemas.envelope import MAX_TIME_MS, Headers
from schemas.record_refused import RecordRefused

#: Context id, flag key, variant, time in ms.
EvaluationFields = tuple[str, str, str, int]
#: Context id, time in ms, (flag key, variant) pairs, is error, latency in ms, conversions. Whoever
#: takes it apart names every value, so that the type check finds who must know of a new one.
OutcomeFields = tuple[str, int, Sequence[tuple[str, str]], bool, float | None, Sequence[str]]


class Readable(Protocol):
    """What is read of a Kafka record."""

    @property
    def value(self) -> bytes | None:
        """The event."""

    @property
    def key(self) -> bytes | None:
        """The context id of an event that names none."""

    @property
    def timestamp(self) -> int:
        """Milliseconds since 1970 UTC; the time of an event that names none."""

    @property
    def headers(self) -> Headers:
        """The attributes of an event in binary mode."""


E_co = TypeVar("E_co", covariant=True)
R = TypeVar("R", bound=Readable)


@dataclass(frozen=True, slots=True)
class Contents(Generic[E_co]):
    """What one record of a packed format holds."""

    events: Sequence[E_co]  # the usable ones
    refused: RecordRefused | None = None  # why the first unusable one is refused, and how many are


class Unpack(Protocol[E_co]):
    """Returns what one record holds, and raises nothing, whatever that is."""

    def __call__(self, record: Readable, *, latest_ms: int = MAX_TIME_MS) -> Contents[E_co]:
        """`latest_ms` is the latest time accepted of the record and of each of its events."""


@dataclass(frozen=True, slots=True)
class Packed(Generic[E_co]):
    """A format whose records hold many events each."""

    unpack: Unpack[E_co]


class EvaluationReader(Protocol[R]):
    """Yields evaluations of a format with one a record, and reports each record without one."""

    def __call__(
        self,
        records: Iterable[R],
        refused: Callable[[R, RecordRefused], None],
        *,
        latest_ms: int = MAX_TIME_MS,
    ) -> Iterator[EvaluationFields]:
        """`latest_ms` is the latest time accepted of a record and of its event."""


class OutcomeReader(Protocol[R]):
    """Yields outcomes of a format with one a record, and reports each record without one."""

    def __call__(
        self,
        records: Iterable[R],
        refused: Callable[[R, RecordRefused], None],
        *,
        latest_ms: int = MAX_TIME_MS,
    ) -> Iterator[tuple[R, *OutcomeFields]]:
        """`latest_ms` is the latest time accepted of a record and of its event."""
