"""Checks that the guardrails of live rollouts can see, and alerts when they cannot.

A rollout is unwatched while its guardrails cannot see: totals cannot be read, partitions are not
counted or stand still, saves fail. A gate notices that at the end of a bake; here it is noticed
during the bake. Nothing is changed by it, because an unwatched flag stays where it is, but people
are alerted within ten seconds after one of these conditions holds, within fifteen where there are
thousands of rollouts, and within about a minute where each of those waits for its turn.

Belongs here: when people are alerted, and the loop that checks. Does not belong here: what blinds
guardrails (`blindness.py`), where fences stand (`fence_watch.py`), where the evidence comes from
(`rollout_views.py`), and how an alert is published (`visibility_alerts.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple, Protocol

import structlog

from controller.cancellation import task_group
from controller.core.effects import RaiseAlert
from controller.core.rollout import Rollout
from controller.health import KAFKA, Faults, Scope
from controller.ports import AlertQueue, Clock
from controller.reporting.unwatched import Unwatched, unwatched_words
from controller.running.blindness import Blindness, Partitions, blindness_of
from controller.running.fence_watch import FenceWatch, PartitionsRead
from controller.running.holders import Held, Holder
from controller.telemetry import Metrics
from schemas.terms import AlertKind, Severity

CHECK_EVERY_SECONDS: Final = 1.0
#: With thousands of rollouts or alerts checks are rarer: one of ten thousand rollouts takes 50 ms,
#: among other work twice that. It does not depend on the time that checks take: one that others
#: hold up must not delay the next. A reason is noticed by the next check, and confirmed by the one
#: after it.
CHECKED_PER_SECOND: Final = 3_000
CHECK_AT_LEAST_EVERY_SECONDS: Final = 3.0
#: A worker gets totals every second, and saves what follows from them in milliseconds.
HANDLED_WITHIN_SECONDS: Final = 5.0
#: With very many rollouts, or far behind the log, each waits for its turn. A longer wait counts as
#: unwatched.
MOST_TURN_SECONDS: Final = 60.0
#: A reason has to last: a partition that moves between replicas has no owner for a moment.
CONFIRMED_AFTER_SECONDS: Final = 2.0
#: A replica that has just begun to watch a rollout waits this long before it alerts.
GRACE_SECONDS: Final = 10.0
REPEATED_EVERY_SECONDS: Final = 300.0
#: Checks that are further apart than so many of the present pauses leave a time of which nothing is
#: known.
UNOBSERVED_PAUSES: Final = 3

#: The reporter of unwatched flags, which alone clears them.
_REPORTER: Final = "visibility"

log = structlog.get_logger(__name__)


class View(PartitionsRead, Protocol):
    """One rollout as the replica that runs it sees it: `deciding/totals_reader.py` has one."""

    @property
    def flag_key(self) -> str: ...

    @property
    def rollout(self) -> Rollout: ...

    @property
    def handled_at(self) -> float | None: ...

    @property
    def trouble(self) -> str: ...


class Unseen(NamedTuple):
    """A rollout of which this replica has only the document: no worker runs it here yet."""

    flag_key: str
    rollout: Rollout
    progress: None = None
    read_at: None = None
    handled_at: None = None
    trouble: str = ""


def needs_watching(rollout: Rollout) -> bool:
    """Return whether contexts are exposed and a guardrail is to watch them."""
    return rollout.percent > 0 and not rollout.plan.blind and rollout.stage_index is not None


def why_unneeded(rollout: Rollout) -> str:
    """Return why a rollout needs no watching any more, in words."""
    return "it is closed: nobody has treatment" if rollout.closed_since else "it has ended"


class WatchedRollouts(Protocol):
    """What is known about live rollouts: `rollout_views.py`."""

    @property
    def expected_partitions(self) -> int:
        """How many event partitions there are."""

    @property
    def turn_seconds(self) -> float:
        """How long a rollout that runs here waits for its turn while all is well."""

    @property
    def store_trouble(self) -> str | None:
        """Why the store cannot be used, None while it can."""

    def why_store_silent(self) -> str | None:
        """Return for how long the store has answered nothing, None while it answers."""

    def why_all_blind(self) -> str | None:
        """Return a reason that holds for every rollout, None for none."""

    def newest(self, flag_key: str) -> Rollout | None:
        """Return the newest document of a flag."""

    def views(self) -> Iterable[View]:
        """Return the rollouts that this replica should watch."""

    def holders(self) -> Sequence[Holder]:
        """Return which replica runs each live rollout that needs watching.

        The same object as before says that nothing has changed.
        """


class OwnAlerts(AlertQueue, Protocol):
    """Publishes alerts for as long as `Visibility` runs: `visibility_alerts.py`."""

    async def run(self) -> None:
        """Publish what is queued, until cancelled."""


@dataclass(slots=True)
class _Episode:
    """A time in which one rollout is unwatched."""

    rollout: Rollout
    why: str
    since: float  # monotonic seconds
    noticed_at: float
    is_longer: bool  # it may have begun before `since`, while nobody here could tell
    alerted_at: float | None = None  # None: not confirmed yet


def pause_after(checked: int) -> float:
    """Return the seconds until the next check, where one has `checked` rollouts or alerts."""
    return min(max(checked / CHECKED_PER_SECOND, CHECK_EVERY_SECONDS), CHECK_AT_LEAST_EVERY_SECONDS)


class Visibility:
    """Checks about once a second whether each live rollout is watched."""

    def __init__(
        self,
        clock: Clock,
        rollouts: WatchedRollouts,
        alerts: OwnAlerts,
        metrics: Metrics,
        faults: Faults,
    ) -> None:
        self._clock = clock
        self._rollouts = rollouts
        self._alerts = alerts
        self._metrics = metrics
        self._faults = faults
        self._watched_since: dict[str, tuple[str, float]] = {}  # by flag: rollout, since when
        self._fences = FenceWatch()
        self._partitions = Partitions(clock.now(), {})  # at the present check
        #: What is found at the present check of those whose totals were read together, and when.
        self._found: dict[tuple[int, float], Blindness | None] = {}
        self._turn_seconds = 0.0  # for which a rollout may wait for its turn
        self._episodes: dict[str, _Episode] = {}
        self._pause_seconds = CHECK_EVERY_SECONDS  # until the next check
        #: By flag, the rollout that was watched at the last check, here or by another replica; and
        #: when that check was.
        self._watched: Mapping[str, str] = {}
        self._watched_at = clock.monotonic()
        #: The same of flags that are watched no longer, with the time of the last check at which
        #: they were.
        self._watched_before: dict[str, tuple[str, float]] = {}
        self._seen_here: frozenset[str] = frozenset()
        self._held = Held(())
        self._cause: str | None = None  # other faults of this replica; None: not looked at yet

    @property
    def unwatched(self) -> Mapping[str, str]:
        """Flags whose rollout is unwatched now, with the reason."""
        return {
            flag_key: episode.why
            for flag_key, episode in self._episodes.items()
            if episode.alerted_at is not None
        }

    def unwatched_since(self, flag_key: str) -> Unwatched | None:
        """Return that a flag's rollout is unwatched, as this replica sees it; None: it does not."""
        episode = self._episodes.get(flag_key)
        if episode is None or episode.alerted_at is None:
            return None
        why = unwatched_words(episode.rollout, episode.why)
        lasted = timedelta(seconds=self._clock.monotonic() - episode.since)
        return Unwatched(why, self._action(flag_key), self._clock.now() - lasted)

    @property
    def episodes(self) -> Collection[str]:
        """Flags that are unwatched as this replica sees it, also where nobody was told yet."""
        return self._episodes.keys()

    @property
    def seen(self) -> frozenset[str]:
        """Flags whose guardrails saw at the last check, on this replica."""
        return self._seen_here

    async def run(self) -> None:
        """Check again and again, and publish alerts, until cancelled."""
        async with task_group() as tasks:
            tasks.create_task(self._alerts.run(), name="visibility:alerts")
            while True:
                self.check()
                await asyncio.sleep(self._pause_seconds)

    def check(self) -> None:
        """Check every rollout once."""
        now = self._clock.monotonic()
        self._cause = None
        held = self._rollouts.holders()
        if held is not self._held.holders:
            self._held = Held(held)
        holders, unheld = self._held.by_flag, self._held.unheld
        views = [view for view in self._rollouts.views() if self._is_to_watch(view)]
        here = {view.flag_key for view in views}
        self._pause_seconds = pause_after(len(holders.keys() | here))
        for flag_key in self._watched_since.keys() - here:
            del self._watched_since[flag_key]
        self._partitions = self._fences.follow(views, now, self._clock.now())
        self._follow_views(views, now)
        elsewhere = [holders[key] for key in unheld - here]
        for holder in elsewhere:
            if holder.why is not None:
                self._follow(holder.rollout, Blindness(holder.why), now)
        for flag_key in list(self._episodes.keys() - here - unheld):
            self._end_elsewhere(self._episodes[flag_key], holders.get(flag_key), now)
        self._note_watched(views, now)
        self._metrics.unwatched_rollouts.set(len(self.unwatched))

    def _is_to_watch(self, view: View) -> bool:
        holder = self._held.by_flag.get(view.flag_key)  # of the same rollout: that was asked
        is_held = holder is not None and holder.rollout is view.rollout
        return is_held or needs_watching(view.rollout)

    def _follow_views(self, views: Sequence[View], now: float) -> None:
        """Judge each rollout that is to be watched here."""
        blind, expected = self._rollouts.why_all_blind(), self._rollouts.expected_partitions
        # A takeover needs time. It is not what is waited for while the store says nothing.
        has_grace = self._rollouts.why_store_silent() is None
        turn = self._rollouts.turn_seconds if has_grace else 0.0
        self._turn_seconds = min(turn, MOST_TURN_SECONDS)
        self._found.clear()
        seen = []
        for view in views:
            rollout, holder = view.rollout, self._held.by_flag.get(view.flag_key)
            since = self._watched_from(view, now)
            found = Blindness(blind) if blind else self._blindness(view, since, expected, now)
            if found is None and holder is not None and holder.why is not None:
                found = Blindness(holder.why)
            has_handled = view.progress is not None and view.handled_at is not None
            if found is None and not has_handled and self._goes_on(rollout):
                continue  # its worker was started a moment ago: nothing is known yet
            if found is None and has_handled:
                seen.append(view.flag_key)
            if found is not None or view.flag_key in self._episodes:
                self._follow(rollout, found, now, watched_since=since if has_grace else None)
        self._seen_here = frozenset(seen)

    def _note_watched(self, views: Sequence[View], now: float) -> None:
        """Note which rollouts are watched, here or by another replica."""
        seen = self._seen_here
        here = {view.flag_key: view.rollout.rollout_id for view in views if view.flag_key in seen}
        watched = {**self._held.watched, **here}
        for flag_key in self._watched.keys() - watched.keys():
            self._watched_before[flag_key] = self._watched[flag_key], self._watched_at
        for flag_key, (_, at) in list(self._watched_before.items()):
            is_over = flag_key in watched or not self._is_observed(at, now)
            if is_over and flag_key not in self._episodes:
                del self._watched_before[flag_key]
        self._watched, self._watched_at = watched, now

    def _is_observed(self, at: float, until: float) -> bool:
        """Return whether checks tell what was between two times (monotonic seconds)."""
        return until - at <= UNOBSERVED_PAUSES * self._pause_seconds

    def _watched_from(self, view: View, now: float) -> float:
        """Return since when this replica watches a rollout."""
        watched = self._watched_since.get(view.flag_key)
        if watched is None or watched[0] != view.rollout.rollout_id:
            watched = self._watched_since[view.flag_key] = (view.rollout.rollout_id, now)
        return watched[1]

    def _blindness(self, view: View, since: float, expected: int, now: float) -> Blindness | None:
        """Return why the guardrails of a rollout that is to be watched here cannot see."""
        if view.trouble:
            return Blindness(view.trouble)
        read_at = since if view.read_at is None else max(view.read_at, since)
        read = id(view.progress), read_at
        if read not in self._found:
            turn = self._turn_seconds
            seconds = now - read_at
            self._found[read] = blindness_of(
                view.progress, seconds, expected, self._partitions, turn
            )
        found = self._found[read]
        handled_at = since if view.handled_at is None else max(view.handled_at, since)
        unhandled = now - handled_at
        if found is None and unhandled > HANDLED_WITHIN_SECONDS + self._turn_seconds:
            least = "at least " if view.handled_at is None else ""
            why = f"its worker has handled no totals for {least}{unhandled:.0f} s"
            return Blindness(why, unhandled)
        return found

    def _goes_on(self, rollout: Rollout) -> bool:
        """Return whether this rollout has an episode that goes on."""
        episode = self._episodes.get(rollout.flag_key)
        return episode is not None and episode.rollout.rollout_id == rollout.rollout_id

    def _end_elsewhere(self, episode: _Episode, holder: Holder | None, now: float) -> None:
        """End an episode of a rollout that is not watched here any more.

        It ends when the rollout is over, or when another replica sees what it does. To run it is
        not enough: that replica may have to read and count everything first.
        """
        newest = self._rollouts.newest(episode.rollout.flag_key)
        if newest is not None and newest.rollout_id != episode.rollout.rollout_id:
            self._end(episode, now, "another rollout has begun")
        elif newest is not None and not needs_watching(newest):
            self._end(episode, now, why_unneeded(newest))
        elif holder is not None and holder.is_watched:
            self._end(episode, now, "another replica runs it now, and its guardrails see")

    def _follow(
        self,
        rollout: Rollout,
        blindness: Blindness | None,
        now: float,
        watched_since: float | None = None,
    ) -> None:
        """Begin, repeat or end the alert about one rollout.

        `watched_since`: when this replica began to watch it; None: no grace is needed.
        """
        episode = self._episodes.get(rollout.flag_key)
        if episode is not None and episode.rollout.rollout_id != rollout.rollout_id:
            self._end(episode, now, "another rollout has begun")
            episode = None
        if blindness is None:
            if episode is not None:
                self._end(episode, now, "guardrails see again")
            return
        why = blindness.why
        if episode is None:
            episode = self._episodes[rollout.flag_key] = self._begun(rollout, blindness, now)
        previous = episode.why
        episode.rollout, episode.why = rollout, why
        is_new = episode.alerted_at is None
        is_young = watched_since is not None and now - watched_since < GRACE_SECONDS
        if is_new and (is_young or now - episode.noticed_at < CONFIRMED_AFTER_SECONDS):
            return
        action = self._action(rollout.flag_key)
        if is_new or previous != why:
            fix = self._fix(rollout.flag_key, action)
            self._faults.report(Scope.FLAG, rollout.flag_key, why, fix, reporter=_REPORTER)
        if not is_new and now - (episode.alerted_at or now) < REPEATED_EVERY_SECONDS:
            return
        episode.alerted_at = now
        if is_new:
            log.error(
                "rollout_unwatched", flag_key=rollout.flag_key, percent=rollout.percent, reason=why
            )
        self._raise(
            rollout,
            Severity.CRITICAL,
            f"{rollout.flag_key}: {unwatched_words(rollout, why)}",
            action,
        )

    def _begun(self, rollout: Rollout, blindness: Blindness, now: float) -> _Episode:
        """Return an episode that began when its reason says, or before this replica could tell."""
        since = now - blindness.seconds
        flag_key = rollout.flag_key
        rollout_id, at = self._watched_before.get(flag_key, ("", 0.0))
        if flag_key in self._watched:
            rollout_id, at = self._watched[flag_key], self._watched_at
        is_known = rollout_id == rollout.rollout_id and self._is_observed(at, since)
        return _Episode(rollout, blindness.why, since, now, is_longer=not is_known)

    def _action(self, flag_key: str) -> str:
        """Return what helps now: a command helps only where a replica can carry it out."""
        first = "`rolloutctl doctor` says what is broken; if it cannot be fixed now, roll back"
        return self._way_around(flag_key) or f"{first}: `rolloutctl rollback {flag_key}`"

    def _way_around(self, flag_key: str) -> str:
        """Return what helps while no command by Kafka is carried out, empty where one is."""
        if self._rollouts.store_trouble is not None:
            waits, first = "Redis", "start or restore Redis, or free its memory"
        elif flag_key in self._held.unheld:
            waits = "a replica"
            first = (
                "`rolloutctl doctor` says what each replica waits for: bring one back, and see "
                "whether all have the same redis.url, and whether others than rolloutd are in the "
                "consumer group of the commands"
            )
        elif self._faults.of(Scope.DEPENDENCY, KAFKA) is not None:
            waits, first = "its broker", "start Kafka, or correct kafka.bootstrap_servers"
        else:
            return ""
        lower = "until then lower the flag over HTTP (ops/operating.md) and in its flag plane"
        return f"{first}; {lower}: a rollback by Kafka waits for {waits}"

    def _fix(self, flag_key: str, action: str) -> str:
        """Return what helps now, for whoever reads the replica's own report already."""
        if self._way_around(flag_key):
            return action
        if self._cause is None:  # once in a check: thousands of flags may be blind by one cause
            # Also without what senders do: counting goes on.
            others = [
                one
                for one in self._faults.current
                if one.reporter != _REPORTER and one.scope is not Scope.TOPIC
            ]
            named = (f"{one.scope.value} {one.name}: {one.why}" for one in others[:3])
            self._cause = "; ".join(named)
        unnamed = "what the reason names, and see whether all replicas have the same redis.url"
        first = f"repair {self._cause or unnamed}"
        return f"{first}; if that takes too long, roll back: `rolloutctl rollback {flag_key}`"

    def _end(self, episode: _Episode, now: float, why: str) -> None:
        """Close an episode, with an alert if there was one when it began."""
        rollout = episode.rollout
        del self._episodes[rollout.flag_key]
        if episode.alerted_at is None:
            return
        self._faults.clear(Scope.FLAG, rollout.flag_key, reporter=_REPORTER)
        seconds = now - episode.since
        least = "at least " if episode.is_longer else ""
        log.info(
            "rollout_watched_again",
            flag_key=rollout.flag_key,
            seconds=round(seconds),
            is_longer=episode.is_longer,
            reason=why,
        )
        newest = self._rollouts.newest(rollout.flag_key)
        if newest is not None and newest.rollout_id == rollout.rollout_id:
            rollout = newest  # it may have been lowered meanwhile
        counted = "what happened meanwhile is counted, and judged, as far as Kafka still has it"
        self._raise(
            rollout,
            Severity.INFO,
            f"{rollout.flag_key}: no longer unwatched after {least}{seconds:.0f} s: {why}",
            "nothing" if rollout.has_ended else f"nothing: {counted}",
        )

    def _raise(self, rollout: Rollout, severity: Severity, summary: str, action: str) -> None:
        key = f"{rollout.flag_key}/{rollout.rollout_id}/{AlertKind.UNWATCHED}"
        alert = RaiseAlert(AlertKind.UNWATCHED, severity, summary, action, key)
        self._alerts.add(rollout, alert)
