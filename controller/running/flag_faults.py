"""Faults of single flags that no worker reports.

Damaged documents, records that are of no use or too large, and times ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from typing import Final

from controller.codec.rollouts import state_event
from controller.codec.tombstones import DELETED
from controller.core.future_times import AHEAD_AT_MOST_SECONDS, seconds_ahead
from controller.core.rollout import Rollout
from controller.deciding.flag.flag_worker import START_UP
from controller.deciding.registry import RolloutRegistry
from controller.errors import DocumentUnreadable
from controller.health import Faults, Scope
from controller.ports import Clock, Rollouts

#: The reporters of these faults, each of which alone clears its own.
_TIMES: Final = "times"
_REFUSED: Final = "state-topic"
_SIZE: Final = "state-size"
#: Of refused records of the state topic, shown at once. Whoever may write there invents keys.
_REFUSED_SHOWN: Final = 20
_REFUSED_FIX: Final = (
    "see state_refused in the log; the next decision about the flag writes a good one"
)
_STRAY_FIX: Final = (
    "no rollout has this flag key, so whoever wrote the record deletes it: write one with the same "
    "key and no value; state_refused in the log has its place"
)
_SIZE_FIX: Final = "roll back or abort, start a new rollout, and raise kafka.max_record_bytes"
#: State records encoded at once to learn their size; one takes some 0.2 ms.
MEASURED_AT_ONCE: Final = 20
#: Those passed over at once because the topic has them; one takes less than a microsecond.
PASSED_AT_ONCE: Final = 2_000
_TIMES_FIX: Final = (
    "it is brought back by itself once the clocks agree: see the fault of scope clock"
)


class DamagedDocuments:
    """Flags whose stored document could not be read at the start.

    Other flags start, and a damaged one is served as the state topic says.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._flag_keys: set[str] = set()

    def add(self, flag_key: str, why: str) -> None:
        """Note that one flag's document cannot be read."""
        fix = f"rolloutd repair flag {flag_key}, or run the release that wrote it"
        why = f"what is stored for it cannot be read: {why}"
        self._flag_keys.add(flag_key)
        self._faults.report(Scope.FLAG, flag_key, why, fix, reporter=START_UP)

    def clear(self, flag_key: str) -> None:
        """Note that one flag's document can be read again, or is gone."""
        self._flag_keys.discard(flag_key)
        self._faults.clear(Scope.FLAG, flag_key, reporter=START_UP)

    async def recheck(self, rollouts: Rollouts) -> None:
        """Read the documents again: another replica may run the flag, and have repaired it.

        Raises StoreUnavailable.
        """
        for flag_key in sorted(self._flag_keys):
            try:
                stored = await rollouts.load(flag_key)
            except DocumentUnreadable:
                continue
            if not stored.trouble:
                self.clear(flag_key)


class TimesAhead:
    """Rollouts whose stored times lie ahead: nothing about them moves until that is corrected."""

    def __init__(self, clock: Clock, faults: Faults) -> None:
        self._clock = clock
        self._faults = faults
        self._flag_keys: set[str] = set()

    def report(self, rollouts: Mapping[str, Rollout]) -> None:
        """Report those of the rollouts of this replica, and clear all others."""
        now = self._clock.now()
        latest = now + timedelta(seconds=AHEAD_AT_MOST_SECONDS)
        ahead = {key: one for key, one in rollouts.items() if one.updated_at > latest}
        for flag_key, rollout in ahead.items():
            self._flag_keys.add(flag_key)
            why = (
                f"its last transition is {seconds_ahead(rollout, now):.0f} s ahead of the clocks, "
                f"so nothing about it moves"
            )
            self._faults.report(Scope.FLAG, flag_key, why, _TIMES_FIX, reporter=_TIMES)
        for flag_key in self._flag_keys - ahead.keys():
            self.clear(flag_key)  # corrected, or another replica runs it now

    def clear(self, flag_key: str) -> None:
        """Clear the fault of one flag, if there is one."""
        if flag_key in self._flag_keys:
            self._flag_keys.discard(flag_key)
            self._faults.clear(Scope.FLAG, flag_key, reporter=_TIMES)


class RefusedStates:
    """Flags whose newest record of the state topic cannot be used."""

    def __init__(self, registry: RolloutRegistry, faults: Faults, *, topic: str) -> None:
        self._registry = registry
        self._faults = faults
        self._topic = topic
        self._reported: frozenset[str] = frozenset()

    def report(self, corrupt: Mapping[str, str]) -> None:
        """Report some of them, flags with a rollout first; `corrupt` is the reason by flag key."""
        known = self._registry.rollouts
        # What is deleted of a key without a rollout is the correction of a record written there.
        left = (key for key, why in corrupt.items() if key in known or why != DELETED)
        shown: Sequence[str] = sorted(left, key=lambda flag_key: flag_key not in known)
        shown = shown[:_REFUSED_SHOWN]
        for flag_key in self._reported.difference(shown):
            self._faults.clear(Scope.FLAG, flag_key, reporter=_REFUSED)
        self._reported = frozenset(shown)
        for flag_key in shown:
            why = f"its newest record in {self._topic} is of no use: {corrupt[flag_key]}"[:300]
            fix = _REFUSED_FIX if flag_key in known else _STRAY_FIX
            self._faults.report(Scope.FLAG, flag_key, why, fix, reporter=_REFUSED)


class LargeStates:
    """Flags whose state record is too large to be written: other replicas do not learn of it there.

    Each replica that knows such a rollout says so, also one that learned of it over Redis.
    """

    def __init__(
        self,
        faults: Faults,
        *,
        most_bytes: Callable[[str], int],
        in_topic: Callable[[str], int | None],
    ) -> None:
        """`most_bytes` gives the largest value that is written, by key.

        `in_topic` gives the revision that the state topic has of a flag. Such a document was
        written, so it needs no measuring: to encode ten thousand at a start takes seconds.
        """
        self._faults = faults
        self._most_bytes = most_bytes
        self._in_topic = in_topic
        self._reasons: dict[str, str] = {}
        self._unmeasured: dict[str, Rollout] = {}  # oldest first

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why, by flag."""
        return dict(self._reasons)

    def update(self, rollout: Rollout) -> None:
        """Note the newest rollout of a flag: a listener of the registry."""
        self._unmeasured[rollout.flag_key] = rollout

    def measure(self) -> None:
        """Report what is too large of that which was noted, and clear what is not.

        Called once a second: what was decided meanwhile has mostly come back from the topic.
        """
        measured = 0
        for flag_key, rollout in [*islice(self._unmeasured.items(), PASSED_AT_ONCE)]:
            if self._in_topic(flag_key) == rollout.revision:
                self._clear(flag_key)
            elif measured < MEASURED_AT_ONCE:
                self._measure(rollout)
                measured += 1
            else:
                return
            del self._unmeasured[flag_key]

    def _measure(self, rollout: Rollout) -> None:
        flag_key = rollout.flag_key
        effect_id = f"{flag_key}/{rollout.revision}/0"
        size = len(state_event(rollout, effect_id, rollout.updated_at))
        most = self._most_bytes(flag_key)
        if size > most:
            why = (
                f"its state record has {size} bytes, at most {most} are written: other replicas "
                f"may serve what was decided before"
            )
            self._reasons[flag_key] = why
            self._faults.report(Scope.FLAG, flag_key, why, _SIZE_FIX, reporter=_SIZE)
        else:
            self._clear(flag_key)

    def _clear(self, flag_key: str) -> None:
        if self._reasons.pop(flag_key, None) is not None:
            self._faults.clear(Scope.FLAG, flag_key, reporter=_SIZE)
