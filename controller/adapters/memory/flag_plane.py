"""A flag plane in memory: `controller.ports.FlagPlane`."""

from __future__ import annotations

from controller.adapters.memory.outage import Outage
from controller.core.rollout import Rollout
from controller.errors import (
    FlagPlaneUnavailable,
)
from controller.ports import (
    Served,
)


class MemoryFlagPlane:
    """Serves percentages from a dict."""

    def __init__(self, name: str = "memory") -> None:
        self._name = name
        self.outage = Outage(FlagPlaneUnavailable)
        # (flag key, revision, percent), each change once.
        self.history: list[tuple[str, int, float]] = []
        self._served: dict[str, tuple[int, float]] = {}
        self._edited: set[str] = set()

    @property
    def name(self) -> str:
        return self._name

    async def serve(self, rollout: Rollout) -> None:
        self.outage.before()
        revision, percent = self._served.get(rollout.flag_key, (-1, None))
        if rollout.revision >= revision:
            self._served[rollout.flag_key] = (rollout.revision, rollout.percent)
            self._edited.discard(rollout.flag_key)
            if rollout.percent != percent:
                self.history.append((rollout.flag_key, rollout.revision, rollout.percent))
        self.outage.after()

    async def look(self, rollout: Rollout) -> Served:
        self.outage.before()
        self.outage.after()
        served = self._served.get(rollout.flag_key)
        editor = "somebody" if rollout.flag_key in self._edited else None
        return Served.compared(
            None if served is None else served[1], rollout.percent, edited_by=editor
        )

    def meddle(self, flag_key: str, percent: float) -> None:
        """Serve another percentage than was decided, as a person in the plane's own console can."""
        revision, _ = self._served.get(flag_key, (-1, None))
        self._served[flag_key] = (revision, percent)
        self._edited.add(flag_key)
