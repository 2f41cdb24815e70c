"""What flag planes have to serve, as a pure function of the rollout: the same for every plane."""

from __future__ import annotations

from controller.core.rollout import Aborted, Paused, RolledBack, Rollout, Scheduled


def percent_to_serve(rollout: Rollout) -> float:
    """Return the percentage a plane must serve, in [0, 100].

    It is the decided one. That nothing is served before the start and after a rollback is stated here once more, since
    this is the last place where a mistake anywhere else can be kept from the users.
    """
    phase = rollout.phase.held if isinstance(rollout.phase, Paused) else rollout.phase
    return 0.0 if isinstance(phase, Scheduled | RolledBack | Aborted) else rollout.percent
