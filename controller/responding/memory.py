"""What every replica remembers of signals: which conditions fire, what was done, what holds flags.

Kept in one hash in Redis, because any replica may get the next signal of a condition. This replica
reads it when it is older than a second. While Redis is away it goes by what it knows: a signal is
then acted on once too often rather than never.

Belongs here: what is kept, in which form and for how long. Does not belong here: what it means for
a signal (`responder.py`).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final, Protocol, TypeVar

import msgspec
import structlog

from controller.errors import OperatingTrouble
from controller.health import Faults, Scope, redis_fix
from controller.ports import Clock

FRESH_SECONDS: Final = 1.0
#: A condition that nobody has told about for so long is forgotten, also one that fires.
KEPT: Final = timedelta(days=7)
#: What a condition holds is let go of at its end, though nobody told about it for so long.
HELD: Final = timedelta(days=90)
#: Of each kind; the oldest are forgotten first.
MOST_KEPT: Final = 2_000
MOST_RECENT: Final = 200
#: One for each condition and flag: a storm of 100 conditions may hold 200 flags.
MOST_HOLDS: Final = 20_000
#: Ids of a condition that are remembered.
_MOST_IDS: Final = 50
SIGNALS: Final = "signals"
_FIX: Final = redis_fix("the key of the signals", "repeated signals may act again")
_CONDITION, _ACT, _CLAIM, _HOLD, _RECENT = "condition", "act", "claim", "hold", "recent"
_RETRY: Final = "retry"
#: A claim that nothing followed for so long is nobody's: whoever made it has forgotten its signal.
CLAIM_LASTS: Final = timedelta(minutes=10)
#: A try takes seconds: another replica goes on with it where its own is gone.
RETRY_CLAIM_LASTS: Final = timedelta(minutes=1)


class KnownCondition(msgspec.Struct, frozen=True):
    """What was told of a condition."""

    at: datetime  # of the last news
    is_firing: bool
    occurrence: str  # of the present or last firing
    ids: tuple[str, ...]  # of the last signals
    began: datetime | None = None  # the present firing, as far as it is told
    unended: datetime | None = None  # the first firing whose end is not told yet, before that


class Act(msgspec.Struct, frozen=True):
    """What a rule did last to a flag."""

    at: datetime
    flag: str
    rollout_id: str
    rule: str
    action: str
    occurrence: str
    signal: str = ""  # its id
    condition: str = ""  # as `condition_name` has it
    is_refused: bool = False  # nothing was done: the next firing acts whatever `quiet` is
    begun: str = ""  # the command that is given because of it; empty: it is done, and told
    earlier: Act | None = None  # while it is begun: what people had heard of just before


class Retry(msgspec.Struct, frozen=True):
    """A command that is given again, because it was refused or its result is not known."""

    at: datetime  # of the last try
    flag: str
    rollout_id: str
    rule: str  # empty: a flag is let go of
    signal: str  # as JSON
    begun: datetime  # of the first try
    refused: int  # how often it was refused
    sent: int  # how often it was tried
    begun_verb: str = ""  # the command that is given just now; empty: none is


class Claim(msgspec.Struct, frozen=True):
    """That a replica is about to act on a flag because of a signal."""

    at: datetime
    signal: str  # its id; of a retry, the replica that tries


class Hold(msgspec.Struct, frozen=True):
    """That a condition holds a flag."""

    at: datetime
    flag: str
    rule: str


class Recent(msgspec.Struct, frozen=True):
    """A signal and what was done, for people."""

    at: datetime
    hook: str
    status: str
    title: str
    service: str
    condition: str
    link: str
    done: tuple[str, ...]  # one sentence each


Entry = KnownCondition | Act | Claim | Hold | Recent | Retry
EntryT = TypeVar("EntryT", KnownCondition, Act, Claim, Hold, Recent, Retry)


_LIMITS: Final[Mapping[type[Entry], int]] = {
    KnownCondition: MOST_KEPT,
    Act: MOST_KEPT,
    Claim: MOST_KEPT,
    Hold: MOST_HOLDS,
    Recent: MOST_RECENT,
    Retry: MOST_KEPT,
}


class SignalStore(Protocol):
    """A hash; `adapters/redis/shared_hash.py`. Each call raises StoreUnavailable."""

    async def write(self, mapping: Mapping[str, str | bytes]) -> None:
        """Set these fields."""

    async def set_new(self, name: str, value: bytes, fence: str) -> bytes:
        """Set a field that is not there; return what it has then. `fence`: a field beside it."""

    async def read(self) -> Mapping[bytes, bytes]:
        """Return all fields."""

    async def drop(self, names: Iterable[str]) -> None:
        """Delete these fields."""


class SignalMemory:
    """What is remembered, shared by all replicas."""

    def __init__(self, store: SignalStore, clock: Clock, faults: Faults) -> None:
        self._store = store
        self._clock = clock
        self._faults = faults
        self._read_at = float("-inf")  # monotonic seconds
        self._entries: dict[str, Entry] = {}
        self._unwritten: dict[str, bytes] = {}
        self._replica = uuid.uuid4().hex  # names this process among those that share the memory
        self._logger = structlog.get_logger()

    async def refresh(self, fresh_seconds: float = FRESH_SECONDS) -> None:
        """Read what other replicas know, unless that was done so lately."""
        now = self._clock.monotonic()
        if now - self._read_at < fresh_seconds:
            return
        try:
            await self._write()
            stored = await self._store.read() or await self._restore()
        except OperatingTrouble as trouble:
            self._report(trouble)
            return
        self._faults.clear(Scope.DEPENDENCY, SIGNALS)
        self._read_at = now
        self._entries = dict(_readable(stored))
        await self._forget_old()

    async def _restore(self) -> Mapping[bytes, bytes]:
        """Write to a store that was emptied what is remembered here, and return it.

        Else a rule acts once more on a condition that fires for long, and at its end nothing lets
        go of what it holds. Claims are left out: what was done is known without them.
        """
        known = {
            name: msgspec.json.encode(one)
            for name, one in self._entries.items()
            if not isinstance(one, Claim)
        }
        if known:
            await self._store.write(known)
            self._logger.warning("signals_restored", number=len(known))
        return {name.encode(): value for name, value in known.items()}

    def condition(self, hook: str, condition: str) -> KnownCondition | None:
        """Return what was told of a condition, None: nothing."""
        return self._get(KnownCondition, _CONDITION, hook, condition)

    def act(self, flag_key: str, rule: str) -> Act | None:
        """Return what a rule did last to a flag, None: nothing."""
        return self._get(Act, _ACT, flag_key, rule)

    def acts_of(self, rule: str) -> list[Act]:
        """Return what a rule did last to each flag."""
        return [one for one in self._of(Act) if one.rule == rule]

    async def claim(self, act: Act) -> bool:
        """Return whether this signal may act now, and no other of any replica.

        A claim follows upon what the rule did last to the flag: of all that know of the same, one
        wins. After a crash the same signal wins again.
        """
        last = self.act(act.flag, act.rule)
        follows = "" if last is None else f"{last.rollout_id} {last.signal} {last.occurrence}"
        name = f"{_CLAIM}|{_digest(act.flag, act.rule, act.rollout_id, follows)}"
        return await self._wins(name, Claim(act.at, act.signal), CLAIM_LASTS)

    async def claim_retry(self, retry: Retry) -> bool:
        """Return whether this replica may try now, and no other."""
        about = (retry.flag, retry.rule, retry.begun.isoformat(), str(retry.sent))
        claim = Claim(self._clock.now(), self._replica)
        return await self._wins(f"{_CLAIM}|{_digest(*about)}", claim, RETRY_CLAIM_LASTS)

    async def _wins(self, name: str, claim: Claim, lasts: timedelta) -> bool:
        value = msgspec.json.encode(claim)
        try:
            stored = await self._store.set_new(name, value, _fence_of(name))
        except OperatingTrouble as trouble:
            self._report(trouble)
            return True  # once too often rather than never
        try:
            won = msgspec.json.decode(stored, type=Claim)
        except (ValueError, RecursionError):
            return True
        return won.signal == claim.signal or claim.at - won.at > lasts

    def held_besides(self, hook: str, condition: str, flag_key: str) -> list[Hold]:
        """Return by what other conditions a flag is held, of which somebody told lately."""
        limit = self._clock.now() - KEPT
        own = f"{_HOLD}|{_digest(hook, condition)}|{flag_key}"
        return [
            one
            for name, one in self._entries.items()
            if isinstance(one, Hold) and one.flag == flag_key and name != own and one.at > limit
        ]

    def holds_of(self, flag_key: str) -> list[Hold]:
        """Return by what conditions a flag is held."""
        return [one for one in self._of(Hold) if one.flag == flag_key]

    def held_by(self, hook: str, condition: str) -> list[Hold]:
        """Return what a condition holds."""
        prefix = f"{_HOLD}|{_digest(hook, condition)}|"
        return [
            one
            for name, one in self._entries.items()
            if name.startswith(prefix) and isinstance(one, Hold)
        ]

    @property
    def recent(self) -> list[Recent]:
        """The newest signals, newest first."""
        return sorted(self._of(Recent), key=lambda one: one.at, reverse=True)[:MOST_RECENT]

    async def keep_condition(self, hook: str, name: str, condition: KnownCondition) -> None:
        """Remember what was told of a condition."""
        kept = msgspec.structs.replace(condition, ids=condition.ids[-_MOST_IDS:])
        await self._keep(f"{_CONDITION}|{_digest(hook, name)}", kept)

    def acts_for(self, occurrence: str) -> list[Act]:
        """Return what was done because of one firing."""
        return [one for one in self._of(Act) if one.occurrence == occurrence]

    async def keep_act(self, act: Act) -> None:
        """Remember what a rule did to a flag."""
        await self._keep(f"{_ACT}|{_digest(act.flag, act.rule)}", act)

    def begun_by(self, signal_id: str) -> list[Act]:
        """Return what a signal began, and nobody told people of yet."""
        return [one for one in self._of(Act) if one.signal == signal_id and one.begun]

    def retry(self, flag_key: str, rule: str) -> Retry | None:
        """Return which command of a rule is given to a flag again, None: none is."""
        return self._get(Retry, _RETRY, flag_key, rule)

    @property
    def retries(self) -> list[Retry]:
        """All commands that are given again."""
        return self._of(Retry)

    async def keep_retry(self, retry: Retry) -> None:
        """Remember that a command is given again."""
        await self._keep(f"{_RETRY}|{_digest(retry.flag, retry.rule)}", retry)

    async def drop_retry(self, flag_key: str, rule: str) -> None:
        """Forget that a command is given again."""
        await self._forget(f"{_RETRY}|{_digest(flag_key, rule)}")

    async def keep_hold(self, hook: str, condition: str, hold: Hold) -> None:
        """Remember that a condition holds a flag."""
        await self._keep(f"{_HOLD}|{_digest(hook, condition)}|{hold.flag}", hold)

    async def drop_hold(self, hook: str, condition: str, flag_key: str) -> None:
        """Forget that a condition holds a flag."""
        await self._forget(f"{_HOLD}|{_digest(hook, condition)}|{flag_key}")

    async def keep_recent(self, signal_id: str, recent: Recent) -> None:
        """Remember a signal for people."""
        await self._keep(f"{_RECENT}|{signal_id}", recent)

    async def add_done(self, signal_id: str, words: str) -> None:
        """Remember for people what else was done about a signal, where it is still shown."""
        shown = self._entries.get(f"{_RECENT}|{signal_id}")
        if isinstance(shown, Recent):
            more = msgspec.structs.replace(shown, done=(*shown.done, words))
            await self.keep_recent(signal_id, more)

    def _get(self, kind: type[EntryT], word: str, *names: str) -> EntryT | None:
        found = self._entries.get(f"{word}|{_digest(*names)}")
        return found if isinstance(found, kind) else None

    def _of(self, kind: type[EntryT]) -> list[EntryT]:
        return [one for one in self._entries.values() if isinstance(one, kind)]

    async def _keep(self, name: str, entry: Entry) -> None:
        self._entries[name] = entry
        self._unwritten[name] = msgspec.json.encode(entry)
        while len(self._unwritten) > MOST_KEPT:
            del self._unwritten[next(iter(self._unwritten))]
        try:
            await self._write()
        except OperatingTrouble as trouble:
            self._report(trouble)

    async def _write(self) -> None:
        if waiting := dict(self._unwritten):
            await self._store.write(waiting)
            for name in waiting:
                self._unwritten.pop(name, None)

    async def _forget(self, name: str) -> None:
        self._entries.pop(name, None)
        self._unwritten.pop(name, None)
        await self._drop([name])

    async def _drop(self, names: Iterable[str]) -> None:
        try:
            await self._store.drop(list(names))
        except OperatingTrouble as trouble:
            self._report(trouble)

    async def _forget_old(self) -> None:
        """Forget what is old, and the oldest of each kind beyond the limits."""
        now = self._clock.now()
        gone: list[str] = []
        for kind, most in _LIMITS.items():
            named = [(one.at, name) for name, one in self._entries.items() if isinstance(one, kind)]
            by_age = sorted(named, reverse=True)
            gone += [name for _, name in by_age[most:]]
            kept = HELD if kind is Hold else KEPT
            gone += [name for at, name in by_age[:most] if at < now - kept]
            if kind is Hold and len(by_age) > most:
                # Their flags stay frozen, or go on too early.
                self._logger.error("signal_holds_forgotten", number=len(by_age) - most, most=most)
        if gone:
            for name in gone:
                del self._entries[name]
            fences = [_fence_of(name) for name in gone if name.startswith(f"{_CLAIM}|")]
            await self._drop([*gone, *fences])

    def _report(self, trouble: OperatingTrouble) -> None:
        why = f"what was done about signals is not shared: {trouble}"
        self._faults.report(Scope.DEPENDENCY, SIGNALS, why, _FIX)


_KINDS: Final[Mapping[str, type[Entry]]] = {
    _CONDITION: KnownCondition,
    _ACT: Act,
    _CLAIM: Claim,
    _HOLD: Hold,
    _RECENT: Recent,
    _RETRY: Retry,
}


def _readable(
    stored: Mapping[bytes, bytes],
) -> Iterable[tuple[str, Entry]]:
    """Yield what we wrote; anything else is somebody's mistake, and left where it is."""
    for name, value in stored.items():
        try:
            word = name.decode()
            kind = _KINDS[word.partition("|")[0]]
            yield word, msgspec.json.decode(value, type=kind)
        except (KeyError, ValueError, RecursionError):
            continue


def _fence_of(claim: str) -> str:
    """Return the field that says that a claim was made."""
    return f"fence|{claim}"


def condition_name(hook: str, condition: str) -> str:
    """Return the name of a condition, of bounded length."""
    return _digest(hook, condition)


def _digest(*names: str) -> str:
    return hashlib.sha256("\x00".join(names).encode(errors="replace")).hexdigest()[:24]
