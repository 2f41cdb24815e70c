"""Notices that replicas have different rules files, or assign users differently.

A signal, a notification or a check is one replica's at a time: whichever it is acts by the file
that it has read. So replicas whose files differ act differently by chance. And a user whom two
replicas assign differently changes the variant from one request to the next. Each writes to Redis
what its files say, as a short hash, and how it assigns, and reads what the others write.

Belongs here: comparing, and when a difference is told. Does not belong here: what the files say
(`signal_parts.py`, `notification_parts.py`, `check_parts.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from pydantic import BaseModel

from controller.errors import OperatingTrouble
from controller.health import Faults, Scope, redis_fix
from controller.ports import Clock

FAULT: Final = "rules_differ"
SHARING: Final = "rules_shared"
BEAT_SECONDS: Final = 5.0
#: A replica that has written nothing for so long is gone: three beats.
FRESH_SECONDS: Final = 15.0
#: Files are replaced on one replica after the other: a difference that lasts is a mistake.
TOLD_AFTER_SECONDS: Final = 30.0
#: What a replica that is gone has written is deleted after so long.
FORGOTTEN_SECONDS: Final = 600.0
#: Others are named up to this many.
_NAMED: Final = 3
_FIX: Final = "give every replica the same file, then send SIGHUP to each"
#: A setting and no file.
BUCKETING: Final = "http.bucketing"
_BUCKETING_FIX: Final = "set http.bucketing alike on every replica, and restart those that differ"
_SHARING_FIX: Final = redis_fix(
    "the key of the rules", "nobody notices replicas with different rules files"
)


class RuleStore(Protocol):
    """A hash that all replicas share: `adapters/redis/shared_hash.py`. Raises StoreUnavailable."""

    async def write(self, mapping: Mapping[str, str | bytes]) -> None:
        """Set these fields."""

    async def read(self) -> Mapping[bytes, bytes]:
        """Return all fields."""

    async def drop(self, names: Iterable[str]) -> None:
        """Delete these fields."""


def digest_of(rules: BaseModel) -> str:
    """Return a short hash of what a file says; comments and layout do not count."""
    return hashlib.sha256(rules.model_dump_json().encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class _Other:
    """What another replica has written."""

    value: bytes
    changed_at: float  # our monotonic seconds when it was seen to change
    is_alive: bool  # it has changed since we know it


class RuleAgreement:
    """Compares the rules of this replica with those of the others for as long as `run` runs."""

    def __init__(
        self,
        store: RuleStore,
        replica: str,
        rules: Callable[[], Mapping[str, str]],
        clock: Clock,
        faults: Faults,
    ) -> None:
        """`rules` returns the hash of each file in use, by the setting that names the file."""
        self._store = store
        self._replica = replica
        self._rules = rules
        self._clock = clock
        self._faults = faults
        self._beats = 0
        self._others: dict[str, _Other] = {}
        self._differs_since: dict[str, float] = {}  # by setting

    async def run(self) -> None:
        """Write and compare every few seconds until cancelled."""
        while True:
            await self.beat()
            await asyncio.sleep(BEAT_SECONDS)

    async def beat(self) -> None:
        """Write and compare once. What Redis does not take is written at a later beat."""
        mine = self._rules()
        self._beats += 1
        words = [str(self._beats), *(f"{name}={value}" for name, value in sorted(mine.items()))]
        try:
            await self._store.write({self._replica: " ".join(words)})
            stored = await self._store.read()
            now = self._clock.monotonic()
            self._hear(stored, now)
            if gone := [name for name, one in self._others.items() if _is_gone(one, now)]:
                await self._store.drop(gone)
        except OperatingTrouble as trouble:
            why = f"rules files are not compared: {trouble}"
            self._faults.report(Scope.DEPENDENCY, SHARING, why, _SHARING_FIX)
            return
        self._faults.clear(Scope.DEPENDENCY, SHARING)
        self._compare(mine, now)

    def _hear(self, stored: Mapping[bytes, bytes], now: float) -> None:
        """Note what the others have written. No clock of another machine is trusted."""
        heard: dict[str, _Other] = {}
        for field, value in stored.items():
            name = field.decode(errors="replace")
            known = self._others.get(name)
            if name == self._replica:
                continue
            if known is None or known.value != value:
                heard[name] = _Other(value, now, is_alive=known is not None)
            else:
                heard[name] = known
        self._others = heard

    def _compare(self, mine: Mapping[str, str], now: float) -> None:
        differing: dict[str, list[str]] = {}
        for name, other in self._others.items():
            if not other.is_alive or now - other.changed_at > FRESH_SECONDS:
                continue
            theirs = _parse(other.value)
            for setting in mine.keys() & theirs.keys():
                if theirs[setting] != mine[setting]:
                    differing.setdefault(setting, []).append(name)
        self._differs_since = {
            setting: self._differs_since.get(setting, now) for setting in differing
        }
        told = {
            setting: names
            for setting, names in differing.items()
            if now - self._differs_since[setting] >= TOLD_AFTER_SECONDS
        }
        if not told:
            self._faults.clear(Scope.DEPENDENCY, FAULT)
            return
        self._faults.report(Scope.DEPENDENCY, FAULT, *_words(told))


def _words(told: Mapping[str, list[str]]) -> tuple[str, str]:
    """Return what differs, by setting on which replicas, and how to fix it."""
    whys, fixes = [], []
    files = [
        f"{setting} says something else on {_named(names)}"
        for setting, names in sorted(told.items())
        if setting != BUCKETING
    ]
    if files:
        text = "; ".join(files)
        whys.append(f"{text}: each replica acts by its own file, and which one acts is chance")
        fixes.append(_FIX)
    if BUCKETING in told:
        whys.append(
            f"{BUCKETING} is another on {_named(told[BUCKETING])}: the same user has one variant "
            f"here and another there, and counts in both arms"
        )
        fixes.append(_BUCKETING_FIX)
    return "; ".join(whys), "; ".join(fixes)


def _is_gone(other: _Other, now: float) -> bool:
    return now - other.changed_at > FORGOTTEN_SECONDS


def _named(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(sorted(names)[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _parse(value: bytes) -> Mapping[str, str]:
    """Return the hash of each file; nothing of what no replica wrote."""
    pairs = (word.partition("=") for word in value.decode(errors="replace").split(" ")[1:])
    return {name: found for name, equals, found in pairs if equals}
