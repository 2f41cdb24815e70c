"""The objects that every flag worker of a replica shares."""

from __future__ import annotations

from dataclasses import dataclass

from controller.codec.cloud_events import SOURCE
from controller.deciding.commentary.explanations import ExplanationQueue
from controller.deciding.evidence_reader import EvidenceReader
from controller.deciding.preflight import Preflight
from controller.deciding.raise_guard import RaiseGuard
from controller.deciding.registry import RolloutRegistry
from controller.health import Faults
from controller.ports import Advisor, Clock, Publisher, Reports, Rollouts
from controller.retrying import Backoff
from controller.telemetry import Metrics

LONGEST_RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class WorkerDependencies:
    """What every flag worker of a replica shares."""

    rollouts: Rollouts
    reports: Reports  # what every replica can show; nothing is decided by it
    publisher: Publisher
    advisor: Advisor  # without a configured model, every question raises AdviceUnavailableError
    clock: Clock
    metrics: Metrics
    faults: Faults  # what is contained in a flag or a command
    registry: RolloutRegistry  # passes on what is decided; has the state topic's documents
    guard: RaiseGuard
    explanations: ExplanationQueue | None = None  # alerts that a model may explain; None: no model
    preflight: Preflight | None = None  # looks for what a start needs; None: nobody does
    # For commands that come before the first evidence does; None: their decisions have none.
    evidence: EvidenceReader | None = None
    has_advisor: bool = True  # whether a model is configured
    source: str = SOURCE  # of every CloudEvent that is published
    # First pause after Redis or Kafka failed. It doubles up to 5 s, except after a save.
    retry_seconds: float = 0.2

    @property
    def backoff(self) -> Backoff:
        """The pauses while Redis or Kafka is away."""
        return Backoff(self.retry_seconds, LONGEST_RETRY_SECONDS, jitter=0.5)
