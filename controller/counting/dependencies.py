"""The objects that the parts of counting share: ports, settings, and where they report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from controller.counting.background_tasks import BackgroundTasks
from controller.counting.event_sampling import EventSampling
from controller.counting.folding.engine import Fold
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.counting.pacing import Pacing
from controller.health import Faults
from controller.ports import Clock, EventLog, Topology, Totals
from controller.settings import CountingSettings
from controller.telemetry import Metrics
from schemas.terms import QuarantineReason


@dataclass(slots=True)
class ReadRecords:
    """The records of one topic that were counted here since the start, as far as they are saved."""

    read: int = 0  # with those refused
    refused: int = 0  # whole: of a packed one, no event counts
    reasons: Counter[QuarantineReason] = field(default_factory=Counter)  # also of parts

    def add(self, others: ReadRecords) -> None:
        """Add other records."""
        self.read += others.read
        self.refused += others.refused
        self.reasons.update(others.reasons)

    def since(self, before: ReadRecords) -> ReadRecords:
        """Return those that are here and were not `before`."""
        read, refused = self.read - before.read, self.refused - before.refused
        return ReadRecords(read, refused, self.reasons - before.reasons)


@dataclass(slots=True)
class IngestCounters:
    """What happened since the start, for metrics."""

    saves: int = 0
    save_troubles: int = 0  # tries with unknown outcome
    fences_lost: int = 0  # another process had counted
    fetch_troubles: int = 0
    gaps: int = 0  # times that the log had deleted records unread
    rebases: int = 0  # times that counting went on in another log
    mistakes: int = 0  # of ours, each contained in a partition
    native_faults: int = 0  # of the native fold; the reference went on
    records: defaultdict[str, ReadRecords] = field(  # by topic
        default_factory=lambda: defaultdict(ReadRecords)
    )


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What every part of counting may use."""

    events: EventLog
    totals: Totals
    clock: Clock
    metrics: Metrics
    settings: CountingSettings
    pacing: Pacing
    topics: tuple[str, str]  # the evaluations' and the outcomes'
    epoch: int  # part of the partitions' keys: a new one counts everything again
    faults: Faults  # of one partition or flag
    topology: Topology | None
    flags_to_count: FlagsToCount
    sampling: EventSampling
    new_fold: Callable[..., Fold]  # makes the fold of a partition
    counters: IngestCounters = field(default_factory=IngestCounters)
    tasks: BackgroundTasks = field(default_factory=BackgroundTasks)

    def now_ms(self) -> int:
        """Return the time in ms since the epoch."""
        return int(self.clock.now().timestamp() * 1000)
