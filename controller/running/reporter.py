"""Turns the state of all parts into what `/readyz` answers and the gauges of `/metrics`.

Here is when a silence or an age counts as a failure, in one place. A failure is to be visible
within five seconds; that nothing is saved and nothing says why, within seven. Where the `Signs`
come from is `health_watch.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from controller.counting.owned_partition import PartitionState, PartitionView
from controller.health import KAFKA, Faults, Health, Scope, kafka_fix
from controller.ports import TopicPartition
from controller.telemetry import EVENT_TOPICS, Metrics
from controller.text import plural

REPORT_EVERY_SECONDS: Final = 1.0
#: Brokers are asked about the state topic every second, and Redis is asked for the time. Three
#: missed answers in a row are an outage. With one more second to report it, five seconds pass.
SILENT_AFTER_SECONDS: Final = 4.0
#: Of an event partition records are requested all the time, so no answer is up to a second old when
#: a silence begins: it is noticed as early as the others are by a shorter limit.
UNHEARD_AFTER_SECONDS: Final = 3.5
#: A partition is saved ten times a second under load, and once a second without; with thousands of
#: flags and a backlog every four seconds (`counting/pacing.py`), and each takes its time.
SAVED_WITHIN_SECONDS: Final = 6.0
#: Where a save has failed since, nothing excuses the wait.
SAVED_WITHIN_TROUBLE_SECONDS: Final = 4.0
#: An effect is published in milliseconds; after so long it waits for Kafka.
PUBLISHED_WITHIN_SECONDS: Final = 4.0
#: More effects than this in the outbox wait for Kafka, not for their turn.
OUTBOX_WAITS: Final = 50
#: How many things of one kind a reason names.
_NAMED: Final = 5

QUARANTINE: Final = "quarantine"
#: The reporter of faults that are made here.
_HEALTH: Final = "health"

#: What must work before this replica is ready, and what it can do without for a while.
REQUIRED: Final = ("http", "kafka", "redis", "state", "counting", "saves", "flags", "serving")
OPTIONAL: Final = ("actuation", "outbox", "rollouts", "quarantine", "clock")


@dataclass(frozen=True, slots=True)
class Signs:
    """How everything is at one moment. A silence of None: there was no answer yet."""

    brokers: Mapping[str, float | None]  # seconds since they answered, by what was asked
    store_seconds: float | None  # since Redis answered
    store_trouble: str | None  # why it did not
    partitions: Sequence[PartitionView]
    topics: Mapping[str, str]  # logical name, by that in `partitions`
    expected: Mapping[str, int]  # partitions that exist, by logical topic
    owned_commands: Collection[TopicPartition]  # partitions of the command topic
    effects: int  # saved and not published
    effects_seconds: float  # for how long the oldest has been tried
    commands_lag: int = 0  # commands in them that are not read and done yet
    # Seconds for which a consumer group has assigned nothing, by what it reads.
    unassigned: Mapping[str, float] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)  # why, by flag
    unsaved: Mapping[str, str] = field(default_factory=dict)  # why, by flag: its state is not saved
    mismatches: Mapping[tuple[str, str], str] = field(
        default_factory=dict
    )  # why, by flag and plane
    not_served: str | None = None
    clocks: str | None = None
    advisor: str | None = None


class Reporter:
    """Turns signs into health and metrics."""

    def __init__(
        self, metrics: Metrics, health: Health, faults: Faults, *, kafka: str = "its address"
    ) -> None:
        """`kafka` is the address of the brokers, as it is set."""
        self._kafka = kafka
        self._metrics = metrics
        self._health = health
        self._faults = faults
        self._troubles = (0, 0)  # counters of ingest as last reported: Redis, Kafka
        self._assignment: set[TopicPartition] = set()  # as last reported

    def report(self, signs: Signs) -> None:
        """Report everything."""
        silent = _silent_seconds(signs)
        self._report("kafka", why_kafka(signs), silent)
        self._report("redis", why_redis(signs), signs.store_seconds or 0.0)
        self._report("state", why_state(signs), signs.brokers.get(STATE_TOPIC) or 0.0)
        uncounted = _longest_unheard_seconds(signs) if signs.partitions else silent
        self._report("counting", why_counting(signs), uncounted)
        self._report("saves", why_saves(signs), _oldest_save_seconds(signs))
        self._report("flags", "")
        stopped = {**signs.unsaved, **signs.broken}
        self._report("rollouts", _some(f"{key}: {why}" for key, why in stopped.items()))
        self._report("outbox", why_outbox(signs), signs.effects_seconds)
        mismatches = (f"{key} on {plane} {why}" for (key, plane), why in signs.mismatches.items())
        self._report("actuation", _some(mismatches))
        self._report("serving", signs.not_served or "")
        self._report("clock", signs.clocks or "")
        fault = self._faults.of(Scope.DEPENDENCY, QUARANTINE)
        self._report("quarantine", "" if fault is None else fault.why)
        self._report("advisor", signs.advisor or "")
        self._measure(signs)

    def report_brokers(self, silent_seconds: float | None) -> None:
        """Report a Kafka that does not answer as the fault that explains all others, with its fix.

        `silent_seconds`: since it answered about the state topic, None before it did. While this
        replica starts, the step that prepares the topics says what is wrong.
        """
        if self._health.is_running:
            is_away = (silent_seconds or 0.0) > SILENT_AFTER_SECONDS
            why = f"no broker at {self._kafka} answers" if is_away else ""
        else:
            part = self._health.components["kafka"]
            lasts = self._health.seconds_since(part.since) > SILENT_AFTER_SECONDS
            why = (part.why_not or "") if lasts else ""
        if why:
            fix = kafka_fix(self._kafka)
            self._faults.report(Scope.DEPENDENCY, KAFKA, why, fix, reporter=_HEALTH)
        else:
            self._faults.clear(Scope.DEPENDENCY, KAFKA, reporter=_HEALTH)

    def count_troubles(self, save_troubles: int, fetch_troubles: int) -> None:
        """Count the failed calls of ingest since the last report, from its running totals."""
        self._metrics.dependency_errors.of("redis").inc(save_troubles - self._troubles[0])
        self._metrics.dependency_errors.of("kafka").inc(fetch_troubles - self._troubles[1])
        self._troubles = (save_troubles, fetch_troubles)

    def _measure(self, signs: Signs) -> None:
        metrics = self._metrics
        metrics.outbox_entries.set(signs.effects)
        metrics.outbox_age_seconds.set(signs.effects_seconds)
        metrics.partitions_owned.of("commands").set(len(signs.owned_commands))
        metrics.lag_records.of("commands").set(signs.commands_lag)
        assignment = {(one.topic, one.partition) for one in signs.partitions}
        assignment.update(signs.owned_commands)
        if assignment != self._assignment:
            metrics.rebalances.inc()
            self._assignment = assignment
        for topic, of_topic in _by_topic(signs).items():
            metrics.partitions_owned.of(topic).set(len(of_topic))
        for topic, count in signs.expected.items():
            metrics.partitions_expected.of(topic).set(count)
        metrics.save_age_seconds.set(_oldest_save_seconds(signs))
        metrics.state_silence_seconds.set(signs.brokers.get(STATE_TOPIC) or 0.0)
        metrics.dependency_up.of("kafka").set(not why_kafka(signs))
        metrics.dependency_up.of("redis").set(not why_redis(signs))

    def _report(self, component: str, why_not: str, lasted_seconds: float = 0.0) -> None:
        """Report one component; an empty reason means it is ready.

        `lasted_seconds` is for how long it has been so, where that is known.
        """
        if component not in self._health.components:
            return  # the advisor, where none is configured
        if why_not:
            self._health.not_ready(component, why_not, lasted_seconds=lasted_seconds)
        else:
            self._health.ready(component)


#: The name of the state topic in `Signs.brokers`.
STATE_TOPIC: Final = "the state topic"


def why_kafka(signs: Signs) -> str:
    """Return what the brokers have not answered about; empty while they answer."""
    return _some(
        f"no broker has answered about {subject} for {seconds:.0f} s"
        for subject, seconds in {**signs.brokers, **_unassigned_in_silence(signs)}.items()
        if seconds is not None and seconds > SILENT_AFTER_SECONDS
    )


def _unassigned_in_silence(signs: Signs) -> Mapping[str, float]:
    """Return for how long groups have assigned nothing, where brokers do not answer at all."""
    is_silent = (signs.brokers.get(STATE_TOPIC) or 0.0) > SILENT_AFTER_SECONDS
    return signs.unassigned if is_silent else {}


def why_unassigned(signs: Signs) -> str:
    """Return what nothing is read of although brokers answer, because its group rebalances."""
    if _unassigned_in_silence(signs):
        return ""
    return _some(
        f"brokers answer, and the consumer group of {subject} has assigned no partitions for "
        f"{seconds:.0f} s: it rebalances"
        for subject, seconds in signs.unassigned.items()
        if seconds > SILENT_AFTER_SECONDS
    )


def why_redis(signs: Signs) -> str:
    """Return since when Redis has not answered, and why; empty while it does."""
    if signs.store_seconds is None:
        return signs.store_trouble or "Redis has not answered yet"
    if signs.store_seconds <= SILENT_AFTER_SECONDS:
        return ""
    trouble = "" if signs.store_trouble is None else f": {signs.store_trouble}"
    return f"Redis has not answered for {signs.store_seconds:.0f} s{trouble}"


def why_state(signs: Signs) -> str:
    """Return for how long no broker has said that the decisions known here are the newest."""
    seconds = signs.brokers.get(STATE_TOPIC)
    if seconds is None or seconds <= SILENT_AFTER_SECONDS:
        return ""
    return f"what is decided elsewhere has not been read for {seconds:.0f} s"


def why_counting(signs: Signs) -> str:
    """Return which partitions are not counted, empty while all of ours are.

    To have none is right where other replicas have them all, which is not known without Kafka.
    """
    if why := why_unassigned(signs):
        return why
    if not signs.partitions and (away := why_kafka(signs)):
        return f"none is counted here, and it is not known whether others count them: {away}"
    stopped = [one for one in signs.partitions if one.state is PartitionState.STOPPED]
    if stopped:
        return _some(f"{_name(one)}: {one.trouble}" for one in stopped)
    # A partition stays ours in an outage of its broker, and nothing of it can be read.
    if silent := [one for one in signs.partitions if _is_unheard(one)]:
        seconds = _longest_unheard_seconds(signs)
        return f"no broker has answered for {seconds:.0f} s about {_some(map(_name, silent))}"
    loading = sum(one.state is PartitionState.LOADING for one in signs.partitions)
    words = plural(loading, "partition is", "partitions are")
    return f"{words} being taken over" if loading else ""


def _is_unheard(view: PartitionView) -> bool:
    return (view.heard_seconds or 0.0) > UNHEARD_AFTER_SECONDS


def _is_saved_late(view: PartitionView) -> bool:
    within = SAVED_WITHIN_TROUBLE_SECONDS if view.save_trouble else SAVED_WITHIN_SECONDS
    return view.saved_seconds > within


def _longest_unheard_seconds(signs: Signs) -> float:
    """Return for how long no broker has answered about one of our partitions; 0 while they do."""
    return max(
        (one.heard_seconds or 0.0 for one in signs.partitions if _is_unheard(one)), default=0
    )


def why_saves(signs: Signs) -> str:
    """Return which totals are not saved: guardrails see only what is saved."""
    late = sorted(
        (one for one in signs.partitions if _is_saved_late(one)),
        key=lambda one: -one.saved_seconds,
    )
    late_words = _some(f"{_name(one)} was last saved {one.saved_seconds:.0f} s ago" for one in late)
    why = next((one.save_trouble for one in late if one.save_trouble), "")
    return f"{late_words}: {why}" if why else late_words


def why_outbox(signs: Signs) -> str:
    """Return what waits to be published, empty while nothing waits for Kafka."""
    if signs.effects_seconds > PUBLISHED_WITHIN_SECONDS:
        return (
            f"{plural(signs.effects, 'effect waits', 'effects wait')} for Kafka, the oldest for "
            f"{signs.effects_seconds:.0f} s"
        )
    return f"{signs.effects} effects wait for Kafka" if signs.effects >= OUTBOX_WAITS else ""


def _silent_seconds(signs: Signs) -> float:
    """Return for how long brokers have not answered, of the longest silence."""
    silences = [*signs.brokers.values(), *signs.unassigned.values()]
    return max((seconds or 0.0 for seconds in silences), default=0.0)


def _oldest_save_seconds(signs: Signs) -> float:
    """Return how long ago the partition was saved whose last save is the oldest."""
    return max((one.saved_seconds for one in signs.partitions), default=0.0)


def _by_topic(signs: Signs) -> Mapping[str, list[PartitionView]]:
    """Return our partitions by logical topic."""
    views: dict[str, list[PartitionView]] = {topic: [] for topic in EVENT_TOPICS}
    for view in signs.partitions:
        views[signs.topics[view.topic]].append(view)
    return views


def _name(view: PartitionView) -> str:
    return f"{view.topic}/{view.partition}"


def _some(reasons: Iterable[str]) -> str:
    """Return the first few reasons, and how many more there are."""
    all_reasons = list(reasons)
    more = len(all_reasons) - _NAMED
    return "; ".join(all_reasons[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
