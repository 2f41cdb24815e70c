"""Time, the topics that we write, the state topic, the model, and systems that are asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from controller.core.effects import AskAdvice, RaiseAlert
from controller.core.judging.judgement import Advice, Explanation, Judgement
from controller.core.plan import CounterQuestion
from controller.core.rollout import Gating, Rollout
from controller.ports.rollouts import OutboxEntry
from schemas.quarantine import WrittenRefusals
from schemas.signal import Signal
from schemas.terms import Arm, GateAnswer


class Clock(Protocol):
    """Wall time for records, monotonic time for durations inside the process."""

    def now(self) -> datetime:
        """Return UTC now; never runs backwards in a process, even if the wall clock is set back."""

    def monotonic(self) -> float:
        """Return seconds of a clock that nobody can set."""


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The time of another machine, and two moments of our monotonic clock around it."""

    at: datetime  # UTC
    asked_at: float
    answered_at: float


class RefusedRecords(Protocol):
    """Records that cannot be used, until the quarantine topic has them. Bounded."""

    def add(self, topic: str, partition: int, refusals: Sequence[WrittenRefusals]) -> None:
        """Queue refusals for the quarantine topic."""

    async def flushed(self, seconds: float) -> None:
        """Return once everything added so far is published, or does not get through.

        After `seconds` at the latest.
        """


class Publisher(Protocol):
    """Writes records to our own topics."""

    async def publish(self, entries: Sequence[OutboxEntry]) -> None:
        """Return once every entry is acknowledged by all in-sync replicas.

        Raises EventLogUnavailable; a repeat is harmless.
        """

    def partition_of(self, key: str, partitions: int) -> int:
        """Return the partition that a record with this key goes to, in a topic of so many."""


class Advisor(Protocol):
    """A language model that is asked for its opinion at a gate."""

    async def ask(self, rollout: Rollout, question: AskAdvice) -> Advice:
        """Return parsed advice before `question.until`.

        Raises AdviceUnavailableError for whatever else the server does.
        """


class Commentator(Protocol):
    """A language model that is asked for information for people.

    Nothing waits for it, and no decision follows from it.
    """

    async def explain(self, rollout: Rollout, alert: RaiseAlert) -> Explanation:
        """Return a guess at why an alert was raised. Raises AdviceUnavailableError."""

    async def review(
        self, seen: Mapping[str, tuple[Rollout, Judgement]]
    ) -> Sequence[tuple[str, str]]:
        """Return (flag key, one sentence) for what is unusual in all evidence together.

        Raises AdviceUnavailableError.
        """


@dataclass(frozen=True, slots=True)
class RetiredFlag:
    """A flag that rolloutd let go of: the state topic has no document of it any more."""

    flag_key: str
    revision: int  # that retired it; documents up to it are void


class StateFeed(Protocol):
    """The compacted state topic, followed from its beginning by every replica."""

    def documents(self) -> AsyncIterator[Rollout | RetiredFlag]:
        """Yield each flag's document, or that it was retired, oldest first, then live."""

    async def caught_up(self) -> None:
        """Return once everything that was in the topic at start has been yielded."""


class Sample(NamedTuple):
    """The one number that a query of a monitoring system gives."""

    value: float
    evaluated_at: float  # seconds since 1970, by the monitoring system's clock


class CounterSample(NamedTuple):
    """The counters that a question finds, all of one moment."""

    #: By arm and by part (bad, good, total): the value of each series, by a digest of its labels.
    values: Mapping[Arm, Mapping[str, Mapping[str, float]]]
    evaluated_at: float  # seconds since 1970, by the monitoring system's clock


class AlertQueue(Protocol):
    """Alerts that are published in order, as soon as Kafka takes them."""

    def add(self, rollout: Rollout, alert: RaiseAlert) -> None:
        """Queue an alert. Returns at once."""


class Inlet(Protocol):
    """Stores signals in their topic."""

    async def store(self, signals: Sequence[Signal]) -> None:
        """Return once Kafka has them. Raises OperatingTrouble when it is not known to."""


class GateWebhooks(Protocol):
    """Systems of an operator's own that are asked at gates."""

    @property
    def endpoints(self) -> frozenset[str]:
        """The names that the settings have an address for."""

    async def ask(
        self, endpoint: str, rollout: Rollout, gate: Gating, judgement: Judgement, at: datetime
    ) -> tuple[GateAnswer, str]:
        """Return the answer about an open gate, and its reason. Raises NotAnswered."""


class Queries(Protocol):
    """A monitoring system that external metrics are asked of."""

    async def sample(self, query: str) -> Sample:
        """Return what a query gives now. Raises NotMeasured."""

    async def counters(self, question: CounterQuestion) -> CounterSample:
        """Return the counters of both arms now, at least one series of each. Raises NotMeasured."""
