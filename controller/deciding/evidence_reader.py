"""Reads one rollout's evidence for a worker that was given none yet.

A command may come before the first evidence: to a worker that has just started, or to a guest, on a
replica that does not run the flag. Its decision then says all the same what was counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from controller.core.evidence import Evidence
from controller.core.rollout import Rollout
from controller.deciding.event_partitions import EventPartitions
from controller.ports import Clock, Totals


class EvidenceReader:
    """Reads the totals of one rollout."""

    def __init__(self, totals: Totals, partitions: EventPartitions, clock: Clock) -> None:
        self._totals = totals
        self._partitions = partitions
        self._clock = clock

    async def read(self, rollout: Rollout) -> Evidence:
        """Return what is counted of a rollout; it does not say what flag planes serve.

        Raises OperatingTrouble while it cannot be read, and KeyError before the event topics are
        known.
        """
        keys = self._partitions.keys
        wanted = {rollout.flag_key: (rollout.rollout_id, visits_to_read(rollout))}
        totals, progress = await self._totals.read(keys, wanted)
        visits = totals.get(rollout.flag_key, {})
        return Evidence(self._clock.now(), visits, tuple(progress), len(keys), None)


def visits_to_read(rollout: Rollout) -> Sequence[int]:
    """Return the numbers of the visits that tests still take: the present and the one before."""
    return range(max(len(rollout.visits) - 2, 0), len(rollout.visits))
