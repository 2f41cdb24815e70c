"""Whether anybody sees what a live stage does, and saying so within ten seconds when nobody does.

A rollout is unwatched while its guardrails cannot see: totals that cannot be read, partitions that
nobody counts or that stand still, saves that fail. A gate notices that at the end of a bake; here
it is noticed during it. Nothing is changed by it (a flag that nobody watches stays where it is),
but people are alerted, through Kafka alone, so that it works with Redis away.

Belongs here: the judgement, which is pure, and the loop that repeats it. Does not belong here:
where the evidence comes from, and how an alert is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Protocol

import structlog

from controller.core.evidence import Evidence
from controller.core.rollout import RaiseAlert, Rollout
from controller.errors import OperatingTrouble
from controller.health import Faults, Scope
from controller.ports import Clock
from schemas.terms import AlertKind, Severity

LOOK_EVERY_SECONDS: Final = 1.0
#: Totals are read every second.
LOOKED_WITHIN_SECONDS: Final = 5.0
#: A worker is shown totals every second, and has saved what follows from them in milliseconds.
HANDLED_WITHIN_SECONDS: Final = 5.0
#: A partition's owner writes once a second at least, and under load every two seconds.
REPORTED_WITHIN: Final = timedelta(seconds=7)
#: A fence moves with every save; so long means that nothing is folded.
MOVED_WITHIN_SECONDS: Final = 7.0
#: Records wait for so long, and nothing newer than so old is counted: it crawls behind its log.
BEHIND_SECONDS: Final = 60.0
#: A reason has to last: partitions that move from one replica to another are between two owners.
CONFIRMED_AFTER_SECONDS: Final = 2.0
#: A replica that has just begun to see a rollout waits this long before it alerts.
GRACE_SECONDS: Final = 10.0
REPEATED_EVERY_SECONDS: Final = 300.0
#: Alerts kept while Kafka takes none. All they say is said again every five minutes.
WAITING_LIMIT: Final = 500
_SENT_AT_ONCE: Final = 50
_NAMED: Final = 3

_NOTHING: Final[Mapping[str, float]] = {}

#: Who reports a fault of a flag, and alone clears it.
_REPORTER: Final = "sight"

log = structlog.get_logger(__name__)


class View(Protocol):
    """One rollout as the replica that runs it sees it: `controller.deciding.flag_workers.WatchView`."""

    @property
    def flag_key(self) -> str: ...

    @property
    def rollout(self) -> Rollout: ...

    @property
    def evidence(self) -> Evidence | None: ...

    @property
    def looked_at(self) -> float | None: ...

    @property
    def handled_at(self) -> float | None: ...

    @property
    def trouble(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Unseen:
    """A rollout of which this replica has only the document: nobody has taken it up here yet."""

    flag_key: str
    rollout: Rollout
    evidence: None = None
    looked_at: None = None
    handled_at: None = None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Holder:
    """What is known of who runs a live rollout, by the claims of all replicas."""

    flag_key: str
    rollout: Rollout
    is_claimed: bool  # by a replica that is there; False: by none, or that is not known
    why: str | None = None  # why nobody runs it; None: somebody does, or that is not known


def needs_watching(rollout: Rollout) -> bool:
    """Return whether somebody is exposed and a guardrail is to see it."""
    return rollout.stage_index is not None and rollout.percent > 0 and not rollout.plan.blind


def why_unwatched(
    evidence: Evidence | None,
    seconds_since_look: float,
    expected_partitions: int,
    now: datetime,
    standing_seconds: Mapping[str, float],
    waiting_seconds: Mapping[str, float] = _NOTHING,
) -> str | None:
    """Return why guardrails cannot see, None while they can.

    `standing_seconds`: by partition, for how long its fence has stood while the log went on;
    `waiting_seconds`: for how long records have waited there without a break.
    """
    if seconds_since_look > LOOKED_WITHIN_SECONDS:
        return f"its totals have not been read for {seconds_since_look:.0f} s"
    if evidence is None:
        return None  # it was taken up a moment ago
    reasons = []
    missing = max(expected_partitions, evidence.expected_partitions) - len(evidence.partitions)
    if missing > 0:
        total = missing + len(evidence.partitions)
        reasons.append(f"{missing} of {total} event partitions are not counted")
    for partition in evidence.partitions:
        silence = now - partition.reported_at
        stands = standing_seconds.get(partition.topic_partition, 0.0)
        if silence > REPORTED_WITHIN:
            reasons.append(
                f"{partition.topic_partition} was last reported {silence.total_seconds():.0f} s ago"
            )
        elif stands > MOVED_WITHIN_SECONDS:
            waiting = partition.end_offset - partition.next_offset
            reasons.append(
                f"{partition.topic_partition} has stood still for {stands:.0f} s with "
                f"{waiting:,} records waiting"
            )
        elif (
            waiting_seconds.get(partition.topic_partition, 0.0) > BEHIND_SECONDS
            and partition.freshest
        ):
            age = (now - partition.freshest).total_seconds()
            if age > BEHIND_SECONDS:
                reasons.append(f"{partition.topic_partition} is counted {age:.0f} s behind its log")
    return _some(reasons) or None


@dataclass(slots=True)
class _Episode:
    """A time in which nobody sees one rollout."""

    rollout: Rollout
    why: str
    since: float  # monotonic seconds
    alerted_at: float | None = None  # None: not confirmed yet


@dataclass(slots=True)
class _Stand:
    """Where a partition's fence stands, and since when it stands there with records waiting."""

    offset: int
    since: float
    waiting_since: float  # since when records have waited, wherever it stood


@dataclass(frozen=True, slots=True)
class Waiting:
    """An alert on its way to Kafka."""

    rollout: Rollout
    alert: RaiseAlert
    at: datetime = field(compare=False)


class Visibility:
    """Watches the watching, for as long as `run` runs."""

    def __init__(
        self,
        clock: Clock,
        *,
        views: Callable[[], Iterable[View]],
        expected_partitions: Callable[[], int],
        also_blind: Callable[[], str | None],
        send: Callable[[Sequence[Waiting]], Awaitable[None]],
        count: Callable[[int], None] = lambda unwatched: None,
        note: Callable[[RaiseAlert], None] = lambda alert: None,
        holders: Callable[[], Iterable[Holder]] = tuple,
        newest: Callable[[str], Rollout | None] = lambda flag_key: None,
        store_trouble: Callable[[], str | None] = lambda: None,
        faults: Faults | None = None,
    ) -> None:
        """`also_blind` is a reason that holds for every rollout, None for none.

        `views` are the rollouts that are to be seen here, `holders` says of any who runs it, and
        `newest` is the newest document of a flag. `store_trouble` is why the store cannot be used.

        `send` returns once Kafka has the alerts, and raises OperatingTrouble. `count` takes how
        many rollouts are unwatched, `note` each alert as it is raised.
        """
        self._clock = clock
        self._views = views
        self._expected_partitions = expected_partitions
        self._also_blind = also_blind
        self._send = send
        self._count = count
        self._note = note
        self._holders = holders
        self._newest = newest
        self._store_trouble = store_trouble
        self._faults = faults
        self._seen_first: dict[str, tuple[str, float]] = {}  # by flag: rollout, since when
        self._stands: dict[str, _Stand] = {}
        self._episodes: dict[str, _Episode] = {}
        self._waiting: list[Waiting] = []
        self._unheld: frozenset[str] = frozenset()  # flags that nobody runs
        self._sending: list[Waiting] = []
        self._wake = asyncio.Event()

    @property
    def unwatched(self) -> Mapping[str, str]:
        """Flags whose rollout nobody sees now, and why."""
        return {
            flag_key: one.why
            for flag_key, one in self._episodes.items()
            if one.alerted_at is not None
        }

    async def run(self) -> None:
        """Look once a second, and send what is to be said, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_alerts(), name="sight:alerts")
            while True:
                self.look()
                await asyncio.sleep(LOOK_EVERY_SECONDS)

    def look(self) -> None:
        """Judge every rollout once."""
        now = self._clock.monotonic()
        views = [view for view in self._views() if needs_watching(view.rollout)]
        blind = self._also_blind()
        expected = self._expected_partitions()
        standing = self._standing(views, now)
        waiting = {partition: now - one.waiting_since for partition, one in self._stands.items()}
        here = {view.flag_key for view in views}
        holders = {one.flag_key: one for one in self._holders() if needs_watching(one.rollout)}
        away = [one for key, one in holders.items() if key not in here and one.why is not None]
        for flag_key in self._seen_first.keys() - here:
            del self._seen_first[flag_key]
        self._unheld = frozenset(key for key, one in holders.items() if one.why is not None)
        for view in views:
            rollout = view.rollout
            known = self._seen_first.get(view.flag_key)
            if known is None or known[0] != rollout.rollout_id:
                known = self._seen_first[view.flag_key] = (rollout.rollout_id, now)
            since = known[1]
            looked_at = since if view.looked_at is None else max(view.looked_at, since)
            why = (
                blind
                or view.trouble
                or why_unwatched(
                    view.evidence,
                    now - looked_at,
                    expected,
                    self._clock.now(),
                    standing,
                    waiting,
                )
                or None
            )
            handled_at = since if view.handled_at is None else max(view.handled_at, since)
            if why is None and now - handled_at > HANDLED_WITHIN_SECONDS:
                why = f"its worker has seen no look through for {now - handled_at:.0f} s"
            holder = holders.get(view.flag_key)
            if why is None and holder is not None:
                why = holder.why
            if why is None and view.evidence is None and self._goes_on(rollout):
                continue  # taken up a moment ago: it is not known yet whether it is seen
            self._follow(rollout, why, now, judged_since=since)
        for one in away:
            self._follow(one.rollout, one.why, now)
        for flag_key in list(self._episodes.keys() - here - {one.flag_key for one in away}):
            self._end_elsewhere(self._episodes[flag_key], holders.get(flag_key), now)
        self._count(len(self.unwatched))

    def _goes_on(self, rollout: Rollout) -> bool:
        """Return whether there is an episode of this very rollout."""
        episode = self._episodes.get(rollout.flag_key)
        return episode is not None and episode.rollout.rollout_id == rollout.rollout_id

    def _end_elsewhere(self, episode: _Episode, holder: Holder | None, now: float) -> None:
        """End what is not to be seen here any more, if somebody else sees it or it is over."""
        newest = self._newest(episode.rollout.flag_key)
        if newest is not None and newest.rollout_id != episode.rollout.rollout_id:
            self._end(episode, now, "another rollout has begun")
        elif newest is not None and not needs_watching(newest):
            self._end(episode, now, "it has ended")
        elif holder is not None and holder.is_claimed:
            self._end(episode, now, "another replica runs it now")

    def _standing(self, views: Sequence[View], now: float) -> Mapping[str, float]:
        """Return for how long each partition's fence has stood with records waiting."""
        newest: dict[str, tuple[int, bool]] = {}
        for view in views:
            for one in () if view.evidence is None else view.evidence.partitions:
                known, _ = newest.get(one.topic_partition, (-1, False))
                if one.next_offset >= known:
                    newest[one.topic_partition] = (
                        one.next_offset,
                        one.end_offset > one.next_offset,
                    )
        for gone in self._stands.keys() - newest.keys():
            del self._stands[gone]
        for partition, (offset, has_more) in newest.items():
            stand = self._stands.get(partition)
            if stand is None or not has_more:
                self._stands[partition] = _Stand(offset, now, now)
            elif stand.offset != offset:
                self._stands[partition] = _Stand(offset, now, stand.waiting_since)
        return {partition: now - stand.since for partition, stand in self._stands.items()}

    def _follow(
        self,
        rollout: Rollout,
        why: str | None,
        now: float,
        judged_since: float | None = None,
    ) -> None:
        """Begin, repeat or end the alert about one rollout.

        `judged_since`: when this replica began to see it; None: no grace is needed.
        """
        episode = self._episodes.get(rollout.flag_key)
        if episode is not None and episode.rollout.rollout_id != rollout.rollout_id:
            self._end(episode, now, "another rollout has begun")
            episode = None
            episode = None
        if why is None:
            if episode is not None:
                self._end(episode, now, "guardrails see again")
            return
        if episode is None:
            episode = self._episodes[rollout.flag_key] = _Episode(rollout, why, now)
        said = episode.why
        episode.rollout, episode.why = rollout, why
        is_new = episode.alerted_at is None
        is_young = judged_since is not None and now - judged_since < GRACE_SECONDS
        if is_new and (is_young or now - episode.since < CONFIRMED_AFTER_SECONDS):
            return
        action = self._action(rollout.flag_key)
        if self._faults is not None and (is_new or said != why):
            self._faults.report(Scope.FLAG, rollout.flag_key, why, action, reporter=_REPORTER)
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
            f"{rollout.flag_key}: {rollout.served_words} is served and nobody sees what it "
            f"does: {why}",
            action,
        )

    def _action(self, flag_key: str) -> str:
        """Return what helps now: a command helps only where somebody can carry it out."""
        if self._store_trouble() is not None:
            waits, first = "Redis", "free or restore Redis"
        elif flag_key in self._unheld:
            waits = "a replica"
            first = (
                "`rolloutctl doctor` says what each replica waits for: bring one back, and see "
                "whether others than rolloutd are in the consumer group of the commands"
            )
        else:
            first = "`rolloutctl doctor` says what is broken; if it cannot be fixed now, roll back"
            return f"{first}: `rolloutctl roll-back {flag_key}`"
        lower = "until then lower the flag in its flag plane"
        return f"{first}; {lower}: a roll-back by command waits for {waits}"

    def _end(self, episode: _Episode, now: float, why: str) -> None:
        """Say that it is over, if it was said that it had begun."""
        rollout = episode.rollout
        del self._episodes[rollout.flag_key]
        if episode.alerted_at is None:
            return
        if self._faults is not None:
            self._faults.clear(Scope.FLAG, rollout.flag_key, reporter=_REPORTER)
        seconds = now - episode.since
        log.info(
            "rollout_watched_again", flag_key=rollout.flag_key, seconds=round(seconds), reason=why
        )
        self._raise(
            rollout,
            Severity.INFO,
            f"{rollout.flag_key}: no longer unwatched after {seconds:.0f} s: {why}",
            "nothing: what happened meanwhile is counted, and judged, as far as Kafka still has it",
        )

    def _raise(self, rollout: Rollout, severity: Severity, summary: str, action: str) -> None:
        key = f"{rollout.flag_key}/{rollout.rollout_id}/{AlertKind.UNWATCHED}"
        alert = RaiseAlert(AlertKind.UNWATCHED, severity, summary, action, key)
        if severity is Severity.CRITICAL:
            # What waits for Kafka is said once: all of it would come at the same moment.
            sending = {id(one) for one in self._sending}
            waiting = self._waiting
            said = {id(one) for one in waiting if one.alert.dedup_key == key} - sending
            self._waiting = [one for one in waiting if id(one) not in said]
        self._waiting.append(Waiting(rollout, alert, self._clock.now()))
        del self._waiting[:-WAITING_LIMIT]
        self._note(alert)
        self._wake.set()

    async def _send_alerts(self) -> None:
        """Hand alerts to Kafka in order. While it takes none, they wait; the judging goes on."""
        while True:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            batch = self._sending = self._waiting[:_SENT_AT_ONCE]
            try:
                try:
                    await self._send(batch)
                finally:
                    self._sending = []
            except OperatingTrouble as trouble:
                log.warning("sight_alerts_wait", error=str(trouble), alerts=len(self._waiting))
                await asyncio.sleep(LOOK_EVERY_SECONDS)
            else:
                sent = {id(one) for one in batch}
                self._waiting = [one for one in self._waiting if id(one) not in sent]


def _some(reasons: Sequence[str]) -> str:
    more = len(reasons) - _NAMED
    return "; ".join(reasons[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
