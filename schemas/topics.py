"""The configuration of each of our topics, by its logical name.

Both the AsyncAPI document and the topics that rolloutd creates follow this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
WEEK_MS: Final = 7 * _DAY_MS


@dataclass(frozen=True, slots=True)
class TopicPolicy:
    """How long a topic keeps its records, and who gives them their time."""

    cleanup: Literal["delete", "compact"]
    retention_ms: int | None = None  # of a topic that deletes; None: it compacts
    has_broker_time: bool = False  # records are timed by the broker, not by their producer


def _kept_for(retention_ms: int, *, has_broker_time: bool = False) -> TopicPolicy:
    return TopicPolicy("delete", retention_ms, has_broker_time)


#: Events are kept for a week, so that a replica that was away for a long weekend misses none.
#: Decisions are the audit log: two years. Records that we write have the broker's time. They are
#: then in order for a reader by time, and show how wrong our own clock is.
TOPIC_POLICIES: Final[Mapping[str, TopicPolicy]] = {
    "evaluations": _kept_for(WEEK_MS),
    "outcomes": _kept_for(WEEK_MS),
    "commands": _kept_for(WEEK_MS),
    "signals": _kept_for(2 * WEEK_MS, has_broker_time=True),
    "results": _kept_for(WEEK_MS, has_broker_time=True),
    "decisions": _kept_for(2 * 366 * _DAY_MS, has_broker_time=True),
    "alerts": _kept_for(90 * _DAY_MS, has_broker_time=True),
    "state": TopicPolicy("compact"),
    "quarantine": _kept_for(2 * WEEK_MS, has_broker_time=True),
}
