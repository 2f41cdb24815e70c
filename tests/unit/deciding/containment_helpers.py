"""What several tests of containment share."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controller.deciding.flag.flag_worker import FlagWorker
from tests.unit.deciding.cluster import Cluster


async def percent_of(cluster: Cluster, flag: str) -> float | None:
    """Return what is decided for a flag."""
    rollout = await cluster.stored(flag)
    return None if rollout is None else rollout.percent


def alerts(cluster: Cluster) -> list[str]:
    """Return the kinds of the alerts published, each once."""
    return [
        json.loads(entry.value)["data"]["kind"] for entry in cluster.publisher.distinct("alerts")
    ]


def actions(cluster: Cluster, kind: str) -> list[str]:
    """Return what the alerts of a kind ask to do, each alert once."""
    published = (json.loads(entry.value)["data"] for entry in cluster.publisher.distinct("alerts"))
    return [alert["action"] for alert in published if alert["kind"] == kind]


class Poison:
    """Makes the machine fail at every tick, as a gate time beyond the year 9999 does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
        self.flag, self.failures, self.is_on = flag, 0, True
        self._real = FlagWorker._seconds_to_deadline
        monkeypatch.setattr(FlagWorker, "_seconds_to_deadline", self._failing())

    def _failing(self) -> Any:
        """Return what fails when it is this flag's turn."""

        def fail(worker: Any) -> float | None:
            if self.is_on and worker.flag_key == self.flag and worker.rollout is not None:
                self.failures += 1
                raise OverflowError("date value out of range")
            return self._real(worker)

        return fail
