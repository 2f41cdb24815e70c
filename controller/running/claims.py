"""Claims of replicas in Redis: each runs the flags of a command partition.

A consumer group does not show that no replica of ours is in it: every replica may have lost a
partition, or a stranger may own it. So each replica claims the partitions that it works on, once a
second, and reads the claims of the others. A claim decides nothing: it shows that a replica works.

Belongs here: when a claim is valid, and the loop that writes and reads claims. Does not belong
here: what follows from it (`visibility.py`), and how Redis is called.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import uuid4

import structlog

from controller.errors import OperatingTrouble
from controller.health import Faults, Scope, redis_fix
from controller.ports import Clock

CLAIM_EVERY_SECONDS: Final = 1.0
#: A claim that has not changed for longer is void.
FRESH_SECONDS: Final = 8.0
#: Claims that were not read for longer are not known.
READ_WITHIN_SECONDS: Final = 5.0
#: A claim this old is of a partition that no longer exists, or that no replica works on.
FORGOTTEN_SECONDS: Final = 3600.0
CLAIMS: Final = "claims"
#: A claim names at most so many flags whose guardrails do not see; with more, it means all.
MOST_UNSEEN: Final = 20
_EVERY_FLAG: Final = "*"
_REMEDY: Final = redis_fix("the key of the claims", "it is not noticed when no replica runs a flag")

log = structlog.get_logger(__name__)


class ClaimStore(Protocol):
    """Where claims are kept; `adapters/redis/claims.py`. Each call raises StoreUnavailable."""

    async def claim(self, values: Mapping[int, bytes]) -> None:
        """Write one value for each partition."""

    async def claims(self) -> Mapping[int, bytes]:
        """Return the newest value of every partition."""

    async def drop_claims(self, partitions: Sequence[int]) -> None:
        """Forget partitions."""


def replica_name() -> str:
    """Return a name that no other process has; it contains the name of this machine."""
    return f"{socket.gethostname()}/{uuid4().hex[:12]}"


@dataclass(frozen=True, slots=True)
class ReadClaim:
    """A partition's claim as it was read last."""

    replica: str
    at_ms: int  # as written, by the clock of its replica
    fresh_at: float  # our monotonic seconds when it was last known to be new
    unseen: frozenset[str] = frozenset()  # flags whose guardrails do not see there


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a replica knows of all claims. Pure: time is an argument."""

    claims: Mapping[int, ReadClaim]  # by partition
    read_at: float | None  # monotonic seconds; None: never
    known_since: float  # since when claims have been read without a gap

    def read(self, values: Mapping[int, bytes], now_ms: int, now: float) -> Knowledge:
        """Return what is known after reading.

        After the first reading, a claim is new when it has changed. The clocks of replicas need not
        agree for that.
        """
        claims: dict[int, ReadClaim] = {}
        for partition, value in values.items():
            parsed = _parse(value)
            if parsed is None:
                continue
            at_ms, replica, unseen = parsed
            previous = self.claims.get(partition)
            if previous is not None and (previous.at_ms, previous.replica) == (at_ms, replica):
                claims[partition] = previous
            elif previous is None and self.read_at is None:
                age_seconds = max(now_ms - at_ms, 0) / 1000
                claims[partition] = ReadClaim(replica, at_ms, now - age_seconds, unseen)
            else:
                claims[partition] = ReadClaim(replica, at_ms, now, unseen)
        return Knowledge(claims, now, self.known_since if self.is_known(now) else now)

    def is_known(self, now: float) -> bool:
        """Return whether claims were read a moment ago."""
        return self.read_at is not None and now - self.read_at <= READ_WITHIN_SECONDS

    def holder(self, partition: int, now: float) -> str | None:
        """Return which replica claims a partition, None for none."""
        claim = self.claims.get(partition)
        return None if claim is None or now - claim.fresh_at > FRESH_SECONDS else claim.replica

    def unseen(self, partition: int, now: float) -> Collection[str] | None:
        """Return the flags whose guardrails do not see on the replica that claims a partition.

        None: no flag's do, or no replica claims it.
        """
        claim = self.claims.get(partition)
        if claim is None or self.holder(partition, now) is None or _EVERY_FLAG in claim.unseen:
            return None
        return claim.unseen

    def is_certain(self, now: float) -> bool:
        """Return whether claims were read long enough to notice every working replica."""
        return self.is_known(now) and now - self.known_since > FRESH_SECONDS


def _written(at_ms: int, replica: str, unseen: Collection[str]) -> bytes:
    """Return a claim as it is stored. A release that does not know `unseen` passes over it."""
    named = sorted(unseen) if len(unseen) <= MOST_UNSEEN else [_EVERY_FLAG]
    return " ".join([str(at_ms), replica, *named]).encode()


def _parse(value: bytes) -> tuple[int, str, frozenset[str]] | None:
    """Return (milliseconds, replica, unseen flags), None for a value that no replica wrote."""
    at, *words = value.decode(errors="replace").split(" ")
    if not words or not (at.isascii() and at.isdigit() and len(at) < 20):
        return None
    return int(at), words[0], frozenset(words[1:])


class Claims:
    """Claims what this replica works on, and reads what the others claim."""

    def __init__(
        self,
        clock: Clock,
        store: ClaimStore,
        faults: Faults,
        *,
        replica: str,
        working: Callable[[], Sequence[int]],
        unseen: Callable[[], Mapping[int, Collection[str]]] = dict,
        topic: str = "rollout.commands",
    ) -> None:
        """`working` are the partitions of `topic` whose flags run here and now.

        `unseen` are the flags of each whose guardrails do not see: a claim says so, because another
        replica ends its alert by it.
        """
        self._clock = clock
        self._store = store
        self._faults = faults
        self._replica = replica
        self._working = working
        self._unseen = unseen
        self._topic = topic
        self._knowledge = Knowledge({}, None, clock.monotonic())
        #: Partitions that were worked on here and that no other replica has claimed since.
        self._last: set[int] = set()
        self._trouble_since: float | None = None
        self.trouble: str | None = None
        """Why the claims could not be written or read last."""

    async def run(self) -> None:
        """Write and read once a second until cancelled."""
        while True:
            await self.beat()
            await asyncio.sleep(CLAIM_EVERY_SECONDS)

    async def beat(self) -> None:
        """Write and read once. While Redis is away nothing is known; that raises nothing."""
        working = self._working()
        self._last.update(working)
        now_ms = round(self._clock.now().timestamp() * 1000)
        try:
            if working:
                unseen = self._unseen()
                await self._store.claim(
                    {one: _written(now_ms, self._replica, unseen.get(one, ())) for one in working}
                )
            claims = await self._store.claims()
            self._update(claims, now_ms)
            if working and (old := self._abandoned(now_ms)):
                await self._store.drop_claims(old)
        except OperatingTrouble as trouble:
            self._note_trouble(str(trouble))
        else:
            self.trouble, self._trouble_since = None, None
            self._faults.clear(Scope.DEPENDENCY, CLAIMS)

    def _update(self, claims: Mapping[int, bytes], now_ms: int) -> None:
        now = self._clock.monotonic()
        self._knowledge = self._knowledge.read(claims, now_ms, now)
        for partition in list(self._last):
            if self._knowledge.holder(partition, now) not in (None, self._replica):
                self._last.discard(partition)

    def _abandoned(self, now_ms: int) -> Sequence[int]:
        """Return the partitions whose claims are old and do not change."""
        now = self._clock.monotonic()
        oldest_ms = now_ms - FORGOTTEN_SECONDS * 1000
        return [
            partition
            for partition, claim in self._knowledge.claims.items()
            if claim.at_ms < oldest_ms and now - claim.fresh_at > FRESH_SECONDS
        ]

    def _note_trouble(self, why: str) -> None:
        now = self._clock.monotonic()
        self.trouble = why
        if self._trouble_since is None:
            self._trouble_since = now
            log.warning("claims_unavailable", error=why)
        if now - self._trouble_since > READ_WITHIN_SECONDS:
            self._faults.report(Scope.DEPENDENCY, CLAIMS, why, _REMEDY)

    def unseen(self, partition: int) -> Collection[str] | None:
        """Return the flags that no guardrail is known to see, of those that a replica runs.

        `partition` is that of their commands. None: perhaps none of its flags is seen.
        """
        now = self._clock.monotonic()
        return self._knowledge.unseen(partition, now) if self._knowledge.is_known(now) else None

    def judge(self, partition: int, *, is_owned: bool) -> tuple[bool, str | None]:
        """Return whether a replica runs a partition's flags, and why none does.

        (False, None) means not known. `is_owned`: the partition is this replica's now.
        """
        now = self._clock.monotonic()
        knowledge = self._knowledge
        if knowledge.is_known(now):
            holder = knowledge.holder(partition, now)
            if holder is not None and (is_owned or holder != self._replica):
                return True, None
            if holder is not None or not knowledge.is_certain(now):
                return False, None
            where = f"partition {partition} of {self._topic}"
            return False, f"no replica runs this flag: nobody has its {where}"
        # Without Redis nothing is known. A replica that could never read claims does not guess.
        if knowledge.read_at is not None and partition in self._last and not is_owned:
            where = f"partition {partition} of {self._topic}"
            return False, f"no replica is known to run this flag: this one lost its {where}"
        return False, None
