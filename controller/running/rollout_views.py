"""Lists the live rollouts that this replica should watch, and the replica of each other one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from contextlib import suppress
from typing import Final

from controller.core.rollout import Rollout
from controller.deciding.deciding import Deciding
from controller.deciding.registry import RolloutRegistry
from controller.health import Faults, Health, Scope
from controller.ports import Clock
from controller.running.claims import MOST_UNSEEN, Claims
from controller.running.holders import Holder
from controller.running.reporter import SILENT_AFTER_SECONDS
from controller.running.visibility import Unseen, View, needs_watching

#: A process that has not started by then may be kept from it by an outage.
STARTING_SECONDS: Final = 30.0
#: A replica claims its command partitions while its loop began a round so lately.
WORKED_WITHIN_SECONDS: Final = 3.0


class WorkingPartitions:
    """The command partitions that this replica really works on."""

    def __init__(self, deciding: Deciding, clock: Clock) -> None:
        self._deciding = deciding
        self._clock = clock

    def numbers(self) -> Sequence[int]:
        """Return their numbers; none when the loop that follows commands stands still."""
        at = self._deciding.follower.followed_at
        if at is None or self._clock.monotonic() - at > WORKED_WITHIN_SECONDS:
            return ()
        return sorted(number for _, number in self._deciding.follower.owned)


class RolloutViews:
    """Combines what this replica runs with what the claims of all replicas say."""

    def __init__(
        self,
        deciding: Deciding,
        registry: RolloutRegistry,
        claims: Claims,
        health: Health,
        clock: Clock,
        faults: Faults,
        *,
        event_topics: Sequence[str],
        store_heard_at: Callable[[], float | None],
    ) -> None:
        """`store_heard_at`: when the store answered last, monotonic seconds; None: never."""
        self._deciding = deciding
        self._registry = registry
        self._claims = claims
        self._health = health
        self._clock = clock
        self._faults = faults
        self._event_topics = event_topics
        self._store_heard_at = store_heard_at
        self._began_at = clock.monotonic()
        #: What the holders were made of, and they. Of thousands of rollouts they seldom change.
        self._held: tuple[object, Sequence[Holder]] = (None, ())

    @property
    def expected_partitions(self) -> int:
        """How many event partitions there are, 0 before that is known."""
        return sum(self._deciding.totals.partitions.counts.values())

    @property
    def turn_seconds(self) -> float:
        """How long a rollout that runs here waits for its turn while all is well."""
        return self._deciding.totals.turn_seconds

    @property
    def store_trouble(self) -> str | None:
        """Why the store cannot be used."""
        return self._claims.trouble

    def why_store_silent(self) -> str | None:
        """Return for how long the store has answered nothing, None while it answers."""
        heard_at, now = self._store_heard_at(), self._clock.monotonic()
        silent = now - (self._began_at if heard_at is None else heard_at)
        if silent <= SILENT_AFTER_SECONDS:
            return None
        since = " since this replica started," if heard_at is None else ""
        return f"Redis has not answered{since} for {silent:.0f} s"

    def why_all_blind(self) -> str | None:
        """Return why no guardrail can see: event topics that are not counted completely."""
        fault = self._faults.of(Scope.DEPENDENCY, "kafka topics")
        if fault is None or not any(topic in fault.why for topic in self._event_topics):
            return None  # another topic's trouble blinds no guardrail
        return fault.why

    def newest(self, flag_key: str) -> Rollout | None:
        """Return the newest document of a flag."""
        return self._registry.newest(flag_key)

    def runs_here(self, flag_key: str) -> bool:
        """Return whether this replica has the commands of a flag, and so runs it."""
        return self._is_in(flag_key, self._owned())

    def _owned(self) -> Collection[int]:
        """Return the command partitions that this replica has."""
        return {number for _, number in self._deciding.follower.owned}

    def _is_in(self, flag_key: str, owned: Collection[int]) -> bool:
        """Return whether a flag's commands are in one of these partitions."""
        with suppress(KeyError):  # the number of partitions is not known yet
            return bool(owned) and self._deciding.topic.home_of(flag_key) in owned
        return False

    def views(self) -> Sequence[View]:
        """Return every live rollout that this replica should watch, whether it runs here or not.

        While this replica cannot start, it may not know who else runs a flag. After a while, and
        at once where Redis answers nothing, it watches every live rollout: no replica can read
        totals then. Its alerts have keys that all replicas share.
        """
        silent = self.why_store_silent()
        views: list[View] = list(self._deciding.totals.views())
        here = {view.flag_key for view in views}
        owned = self._owned()
        is_late = self._clock.monotonic() - self._began_at > STARTING_SECONDS
        watches_all = (is_late or silent is not None) and not self._health.has_started
        rollouts = self._registry.rollouts
        for flag_key in rollouts.keys() - here:
            rollout = rollouts[flag_key]
            if rollout.has_ended:
                continue
            if self._is_in(flag_key, owned) or (watches_all and not self._is_known(flag_key)):
                views.append(Unseen(flag_key, rollout, trouble=silent or ""))
        return views

    def holders(self) -> Sequence[Holder]:
        """Return, for every live rollout that needs watching, which replica runs it.

        The same object as before, while nothing about them has changed.
        """
        owned = self._owned()
        try:
            numbers = range(self._deciding.topic.partitions)
        except KeyError:  # it is not known yet
            return ()
        # By command partition: whether it is claimed, why no replica runs it, and which of its
        # flags no guardrail sees.
        judged = [
            (*self._claims.judge(number, is_owned=number in owned), self._claims.unseen(number))
            for number in numbers
        ]
        made_of = (self._registry.rollouts_version, judged)
        if self._held[0] != made_of:
            self._held = made_of, [self._holder(one, judged) for one in self._live()]
        return self._held[1]

    def _live(self) -> Sequence[Rollout]:
        return [one for one in self._registry.rollouts.values() if needs_watching(one)]

    def _holder(
        self, rollout: Rollout, judged: Sequence[tuple[bool, str | None, Collection[str] | None]]
    ) -> Holder:
        is_claimed, why, unseen = judged[self._deciding.topic.home_of(rollout.flag_key)]
        is_watched = is_claimed and unseen is not None and rollout.flag_key not in unseen
        return Holder(rollout.flag_key, rollout, is_claimed, why, is_watched)

    def unseen(self, seen: Set[str]) -> Mapping[int, Collection[str]]:
        """Return the flags by command partition that need watching and are not `seen` here.

        Of each partition no more than one above what a claim names: this is asked for every second,
        and behind a backlog no flag may be seen.
        """
        topic, rollouts = self._deciding.topic, self._registry.rollouts
        unseen: dict[int, list[str]] = {}
        full = 0  # partitions of which there are enough
        with suppress(KeyError):  # the number of partitions is not known yet
            for flag_key in rollouts.keys() - seen:
                number = topic.home_of(flag_key)
                named = unseen.get(number, ())
                if len(named) > MOST_UNSEEN or not needs_watching(rollouts[flag_key]):
                    continue
                unseen[number] = [*named, flag_key]
                full += len(unseen[number]) > MOST_UNSEEN
                if full == topic.partitions:
                    break
        return unseen

    def _is_known(self, flag_key: str) -> bool:
        """Return whether the claims say who runs a flag that is not ours, or that nobody does."""
        try:
            number = self._deciding.topic.home_of(flag_key)
        except KeyError:
            return False
        is_claimed, why = self._claims.judge(number, is_owned=False)
        return is_claimed or why is not None
