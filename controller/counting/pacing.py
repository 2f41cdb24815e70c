"""The limits of counting in time and memory that an operator does not choose.

The operator's choices are `CountingSettings`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pacing:
    """Limits of counting; durations in seconds."""

    # Between two saves of a partition at most, however long saving takes.
    longest_flush_seconds: float = 2.0
    # Of the time that may go to saving: with many flags saves become rarer, not slower.
    saving_share: float = 0.2
    # Added while there is a backlog: the pause once more, within these limits. Totals are old then,
    # and are new soonest by catching up. With thousands of flags a save writes them all, whatever
    # passed since the last one; so it comes every 4 s. After 6 s without one a replica says that it
    # saves late (`running/reporter.py`), and after 7 s a partition looks silent (`blindness.py`).
    backlog_seconds: float = 0.4
    longest_backlog_seconds: float = 2.0
    # An idle partition is saved as often: no traffic must not look like an owner that is silent.
    heartbeat_seconds: float = 0.9
    commit_seconds: float = 1.0  # between two commits of offsets
    # Fetched and not yet folded, per partition; with more, its fetching pauses.
    pending_records: int = 5_000
    # An outcome waits so long for evaluations that may be on their way, when none are there.
    join_grace_seconds: float = 0.25
    # It waits so long for evaluations that the log has and that do not come.
    join_patience_seconds: float = 5.0
    revoke_seconds: float = 2.0  # for the last save before a partition is handed over
    drain_seconds: float = 2.0  # for the last saves at the end
    # A save waits at most so long to learn whether offsets that it skipped were lost records.
    holes_seconds: float = 1.0
    # A save waits at most so long for room for its refusals, and again for them to be written.
    quarantine_seconds: float = 2.0
    ends_seconds: float = 1.0  # between two requests where the log ends
    sweep_seconds: float = 60.0  # between two checks for rollouts that ended
    failed_seconds: float = 0.5  # before a partition is loaded again after a mistake of ours
    stopped_seconds: float = 10.0  # between two tries of a partition that is stopped
    retry_seconds: float = 0.2  # between two tries of a call that failed within its own deadline

    def backlog_pause(self, pause: float) -> float:
        """Return what a backlog adds to the pause between two saves."""
        return max(self.backlog_seconds, min(pause, self.longest_backlog_seconds))
