"""The Protocols of all that the daemon needs from the outside; adapters implement them.

Every call is bounded in time by the adapter (one deadline, from settings) and raises only
exceptions of `controller.errors`.
"""

from controller.ports.counting import (
    NO_FENCE,
    EventLog,
    Record,
    StoredPartition,
    TopicPartition,
    Topology,
    Totals,
)
from controller.ports.flag_uses import (
    FlagSummary,
    FlagUse,
    FlagUses,
    FlagUseStore,
    LastDecision,
    Lift,
    Use,
)
from controller.ports.planes import (
    ClosablePlane,
    ConfiguredPlane,
    DroppingPlane,
    FlagPlane,
    FollowingPlane,
    PlaneStanding,
    RetiringPlane,
    RunningPlane,
    Served,
)
from controller.ports.rollouts import (
    NEWS_TOPICS,
    CourseKey,
    OutboxEntry,
    Reports,
    Rollouts,
    StoredRollout,
)
from controller.ports.surroundings import (
    Advisor,
    Clock,
    ClockReading,
    Commentator,
    Publisher,
    Queries,
    RefusedRecords,
    RetiredFlag,
    Sample,
    StateFeed,
)

__all__ = [
    "NEWS_TOPICS",
    "NO_FENCE",
    "Advisor",
    "Clock",
    "ClockReading",
    "ClosablePlane",
    "Commentator",
    "ConfiguredPlane",
    "CourseKey",
    "DroppingPlane",
    "EventLog",
    "FlagPlane",
    "FlagSummary",
    "FlagUse",
    "FlagUseStore",
    "FlagUses",
    "FollowingPlane",
    "LastDecision",
    "Lift",
    "OutboxEntry",
    "PlaneStanding",
    "Publisher",
    "Queries",
    "Record",
    "RefusedRecords",
    "Reports",
    "RetiredFlag",
    "RetiringPlane",
    "Rollouts",
    "RunningPlane",
    "Sample",
    "Served",
    "StateFeed",
    "StoredPartition",
    "StoredRollout",
    "TopicPartition",
    "Topology",
    "Totals",
    "Use",
]
