"""The metric `counters:NAME`: the share of bad events, by a monitoring system's counters.

Its events are what the counters have risen by between two looks, see `judging/counters.py`. They
are tested as user actions are. They are requests, though, and not users: rolloutd cannot know whose
they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.core.metrics.error_rate import ErrorRate
from schemas import metric_names


@dataclass(frozen=True, slots=True)
class CountersRate(ErrorRate):
    """The share of counted events that are bad."""

    names = metric_names.EXTERNAL_COUNTERS
    unit_words = "counted events"
    where_to_search = "the monitoring system's graph of these counters"

    def limit_words(self, limit: float) -> str:
        """Return what is compared with the limit."""
        return "were bad"
