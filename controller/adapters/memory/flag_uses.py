"""How flags are used, in memory: `controller.ports.FlagUseStore`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from controller.adapters.memory.outage import Outage
from controller.errors import StoreUnavailable
from controller.ports import Use


class MemoryFlagUses:
    """Keeps counts and notes as they come; nothing expires."""

    def __init__(self) -> None:
        self.outage = Outage(StoreUnavailable)
        self._hours: defaultdict[int, Counter[Use]] = defaultdict(Counter)
        self._numbers: dict[tuple[int, str], int] = {}
        self._notes: dict[Use, bytes] = {}

    async def add(self, hour: int, counts: Mapping[Use, int], *, writer: str, number: int) -> None:
        self.outage.before()
        if number > self._numbers.get((hour, writer), -1):
            self._numbers[hour, writer] = number
            self._hours[hour].update(counts)
        self.outage.after()

    async def hour(self, hour: int) -> Mapping[Use, int]:
        self.outage.before()
        self.outage.after()
        return dict(self._hours.get(hour, {}))

    async def notes(self) -> Mapping[Use, bytes]:
        self.outage.before()
        self.outage.after()
        return dict(self._notes)

    async def write_notes(self, notes: Mapping[Use, bytes]) -> None:
        self.outage.before()
        self._notes.update(notes)
        self.outage.after()

    async def drop_notes(self, uses: Iterable[Use]) -> None:
        self.outage.before()
        for use in uses:
            self._notes.pop(use, None)
        self.outage.after()
