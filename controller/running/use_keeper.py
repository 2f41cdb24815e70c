"""Keeps how flags are used where every replica shows the same, also after a restart.

Once a minute it adds what was counted here to the hour's counts, notes when each flag was evaluated
last and how its rollout stands, and reads what all replicas have. Nothing waits for it and nothing
is decided by it.

Belongs here: what is kept, and when. Does not belong here: counting
(`counting/folding/evaluation_hours.py`), summaries (`flag_summaries.py`), keys
(`adapters/redis/flag_uses.py`), what is found about a flag (`reporting/inventory.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import nlargest
from itertools import islice
from typing import Final

from controller.codec.flag_summaries import summary_from_json
from controller.counting.folding.evaluation_hours import FlagArm
from controller.errors import BrokenInvariant, OperatingTrouble
from controller.health import Faults, Scope, redis_fix
from controller.ports import Clock, FlagUse, FlagUses, FlagUseStore, Use
from controller.running.claims import replica_name
from controller.running.flag_summaries import FlagSummaries
from schemas.terms import Arm, UseKind

BEAT_SECONDS: Final = 60.0
DAY_HOURS: Final = 24
#: Counts added by one call.
COUNTS_PER_CALL: Final = 1_000
#: Flags without a rollout that one replica adds to one hour: whoever sends events makes them up.
MOST_NAMED: Final = 200
#: Of those of all replicas, so many are shown.
MOST_UNKNOWN: Final = 100
#: Flags gone through between two turns of the loop.
_PER_TURN: Final = 1_000
_HOUR_SECONDS: Final = 3600
USES: Final = "flag uses"
_FIX: Final = redis_fix(
    "the keys of the uses", "the inventory lacks evaluations, lift and last decision"
)
_KIND_OF: Final[Mapping[Arm | None, UseKind]] = {
    Arm.TREATMENT: UseKind.TREATMENT,
    Arm.CONTROL: UseKind.CONTROL,
    None: UseKind.NEITHER,
}


@dataclass(frozen=True, slots=True)
class _Parcel:
    """Counts of an hour on their way to the store, which takes each number once."""

    number: int
    hour: int
    counts: Mapping[Use, int]


@dataclass(slots=True)
class _Day:
    """What was counted in some hours, over all replicas."""

    hour: int = -1  # the present one
    counts: Counter[Use] = field(default_factory=Counter)
    evaluated: dict[str, int] = field(default_factory=dict)  # flag -> the last hour of them

    def add(self, hour: int, counts: Mapping[Use, int]) -> None:
        """Add an hour; the hours rise."""
        self.counts.update(counts)
        self.evaluated.update(dict.fromkeys((use.flag_key for use in counts), hour))

    def copy(self) -> _Day:
        """Return a day that may be changed."""
        return _Day(self.hour, self.counts.copy(), self.evaluated.copy())


class UseKeeper:
    """Adds the counts of this replica to those of all, and reads the sum."""

    def __init__(
        self,
        flag_keys: Callable[[], Collection[str]],
        counted: Callable[[], Mapping[int, Counter[FlagArm]]],
        unknown: Callable[[], Mapping[str, int]],
        summaries: FlagSummaries,
        store: FlagUseStore,
        clock: Clock,
        faults: Faults,
    ) -> None:
        """`flag_keys` are those with a rollout.

        `counted` takes what was counted since it was called last, `unknown` the events since then
        of flags without a rollout.
        """
        self._flag_keys = flag_keys
        self._counted = counted
        self._unknown = unknown
        self._named: tuple[int, set[str]] = (0, set())  # an hour, and the unknown flags added to it
        self._summaries = summaries
        self._store = store
        self._clock = clock
        self._faults = faults
        self._writer = replica_name()
        self._number = 0
        self._parcels: deque[_Parcel] = deque()
        self._notes: dict[Use, bytes] = {}
        self._earlier = _Day()  # the hours of the day that hardly change any more
        self._gone: frozenset[Use] = frozenset()  # notes on flags without a rollout
        self.uses = FlagUses()

    async def run(self) -> None:
        """Keep and read once a minute until cancelled. While Redis is away, counts wait."""
        while True:
            await self.beat()
            await asyncio.sleep(BEAT_SECONDS)

    async def beat(self) -> None:
        """Add what was counted, note what is new, read what all replicas know."""
        try:
            await self._add()
            self._notes = dict(await self._store.notes()) or await self._restored()
            day = await self._read()
            await self._note(day)
            await self._show(day)
        except (OperatingTrouble, BrokenInvariant) as trouble:
            self._faults.report(Scope.DEPENDENCY, USES, str(trouble), _FIX)
        else:
            self._faults.clear(Scope.DEPENDENCY, USES)

    async def flush(self) -> None:
        """Add what was counted, at the end of the process. While Redis is away, that is lost."""
        try:
            await self._add()
        except (OperatingTrouble, BrokenInvariant) as trouble:
            self._faults.report(Scope.DEPENDENCY, USES, str(trouble), _FIX)

    # - adding -

    @property
    def _hour(self) -> int:
        return int(self._clock.now().timestamp()) // _HOUR_SECONDS

    async def _add(self) -> None:
        """Add what waits, then what was counted since; while Redis is away the latter adds up."""
        await self._send()
        self._pack()
        await self._send()

    def _pack(self) -> None:
        """Put what was counted into parcels. Hours that nobody shows any more are left out."""
        now = self._hour
        for hour, counts in sorted(self._counted().items()):
            if not now - DAY_HOURS < hour <= now + 1:
                continue
            self._pack_hour(hour, {_use(*one): count for one, count in counts.items()})
        if self._named[0] != now:
            self._named = (now, set())
        unknown = {}
        for name, count in self._unknown().items():
            if name in self._named[1] or len(self._named[1]) < MOST_NAMED:
                self._named[1].add(name)
                unknown[Use(UseKind.UNKNOWN, name)] = count
        self._pack_hour(now, unknown)

    def _pack_hour(self, hour: int, counts: Mapping[Use, int]) -> None:
        uses = iter(counts.items())
        while part := dict(islice(uses, COUNTS_PER_CALL)):
            self._number += 1
            self._parcels.append(_Parcel(self._number, hour, part))

    async def _send(self) -> None:
        """Add the parcels in order: one of unknown outcome is added again, and counts once."""
        while self._parcels:
            one = self._parcels[0]
            await self._store.add(one.hour, one.counts, writer=self._writer, number=one.number)
            self._parcels.popleft()

    # - reading -

    async def _read(self) -> _Day:
        """Return the day; hours that hardly change any more are read once an hour."""
        now = self._hour
        if self._earlier.hour != now:
            earlier = _Day(now)
            for hour in range(now - DAY_HOURS + 1, now - 1):
                earlier.add(hour, await self._store.hour(hour))
                await asyncio.sleep(0)
            self._earlier = earlier
        day = self._earlier.copy()
        for hour in (now - 1, now):
            day.add(hour, await self._store.hour(hour))
        return day

    # - noting -

    async def _restored(self) -> dict[Use, bytes]:
        """Write to a store that was emptied what is known here, and return it.

        Else a flag that is in use looks as if nobody had evaluated it for as long as it is watched.
        """
        await self._store.write_notes(self._notes)
        return self._notes

    async def _note(self, day: _Day) -> None:
        """Note when flags were evaluated last, and drop notes on flags without a rollout."""
        flag_keys = frozenset(self._flag_keys())
        new = await self._summaries.new(self._notes)
        for place, flag_key in enumerate(flag_keys, start=1):
            if place % _PER_TURN == 0:
                await asyncio.sleep(0)
            watched = Use(UseKind.WATCHED, flag_key)
            if watched not in self._notes:
                new[watched] = b"%d" % self._hour
            evaluated = Use(UseKind.EVALUATED, flag_key)
            hour = day.evaluated.get(flag_key, -1)
            if hour > _number(self._notes.get(evaluated)):
                new[evaluated] = b"%d" % hour
        await self._store.write_notes(new)
        self._notes.update(new)
        # A flag that is new may be known here a moment later than to whoever wrote of it.
        gone = frozenset(
            use
            for use in self._notes
            if use.flag_key not in flag_keys and use.kind is not UseKind.DIGEST
        )
        dropped = gone & self._gone
        await self._store.drop_notes(dropped)
        for use in dropped:  # else they would be given to the store again once it has no others
            del self._notes[use]
        self._gone = gone - dropped

    # - showing -

    async def _show(self, day: _Day) -> None:
        flag_keys = list(self._flag_keys())
        found = {}
        for place, flag_key in enumerate(flag_keys, start=1):
            found[flag_key] = self._use(flag_key, day.counts)
            if place % _PER_TURN == 0:
                await asyncio.sleep(0)
        unknown = (
            (count, use.flag_key)
            for use, count in day.counts.items()
            if use.kind is UseKind.UNKNOWN and use.flag_key not in found
        )
        most = {name: count for count, name in nlargest(MOST_UNKNOWN, unknown)}
        self.uses = FlagUses(found, most, self.uses.version + 1)

    def _use(self, flag_key: str, counts: Counter[Use]) -> FlagUse:
        noted = self._notes.get(Use(UseKind.SUMMARY, flag_key))
        summary = None if noted is None else summary_from_json(noted)
        return FlagUse(
            counts[Use(UseKind.TREATMENT, flag_key)],
            counts[Use(UseKind.CONTROL, flag_key)],
            counts[Use(UseKind.NEITHER, flag_key)],
            _time(self._notes.get(Use(UseKind.EVALUATED, flag_key))),
            _time(self._notes.get(Use(UseKind.WATCHED, flag_key))),
            None if summary is None else summary.decision,
            () if summary is None else summary.lifts,
        )


def _use(flag_key: str, arm: Arm | None) -> Use:
    return Use(_KIND_OF[arm], flag_key)


def _number(note: bytes | None) -> int:
    """Return the hour in a note, -1 for none and for one that we did not write."""
    return int(note) if note is not None and note.isdigit() and len(note) < 10 else -1


def _time(note: bytes | None) -> datetime | None:
    hour = _number(note)
    return None if hour < 0 else datetime.fromtimestamp(hour * _HOUR_SECONDS, UTC)
