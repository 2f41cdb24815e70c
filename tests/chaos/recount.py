"""The independent verifier.

Reads the topics from the first record and adds them up in its own plain way.

It shares no code with the daemon, on purpose: what it knows of formats is what the contract says,
and its arithmetic is sets and counters over whole topics, with no batch, no fence and no memory
limit. Where it and the daemon differ, one of them is wrong.

Two numbers depend on where batches were cut and have bounds in place of a value: `at_risk` and
`latency`. An event from the time in which apps and replicas learn of a transition (settle, or as
long after the end) may count for the stay before it, or for none; every other event has exactly one
place. Does not belong here: doing harm (`rounds.py`).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

import redis
from aiokafka import AIOKafkaConsumer, TopicPartition

EVALUATIONS, OUTCOMES = "flag.evaluations", "request.outcomes"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z")
_LOG_BASE = math.log(1.02)
#: What lasts longer than so many readings is a finding.
_MOST_READINGS = 20
_SAID = ("commands", "results", "decisions", "state", "quarantine")
_NEVER = datetime.max.replace(tzinfo=UTC)

Place = tuple[str, int]  # topic without prefix, partition


@dataclass(frozen=True, slots=True)
class Read:
    """One record as it lies in a topic."""

    offset: int
    timestamp_ms: int
    value: bytes | None


# --- reading ---


async def read_topic(bootstrap: str, name: str) -> dict[int, list[Read]]:
    """Return every record of a topic, by partition, up to the ends seen at the beginning."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None
    )
    try:
        await consumer.start()
        await consumer._client._wait_on_metadata(name)
        partitions = [
            TopicPartition(name, number) for number in sorted(consumer.partitions_for_topic(name))
        ]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        found: dict[int, list[Read]] = {one.partition: [] for one in partitions}
        while any([await consumer.position(one) < ends[one] for one in partitions]):
            for one, records in (await consumer.getmany(timeout_ms=500)).items():
                found[one.partition] += [
                    Read(record.offset, record.timestamp, record.value)
                    for record in records
                    if record.offset < ends[one]
                ]
        return found
    finally:
        await consumer.stop()


async def end_offsets(bootstrap: str, names: Sequence[str]) -> dict[tuple[str, int], int]:
    """Return the end of every partition of the topics."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=None)
    try:
        await consumer.start()
        for name in names:
            await consumer._client._wait_on_metadata(name)
        partitions = [
            TopicPartition(name, number)
            for name in names
            for number in consumer.partitions_for_topic(name)
        ]
        ends = await consumer.end_offsets(partitions)
        return {(one.topic, one.partition): end for one, end in ends.items()}
    finally:
        await consumer.stop()


@dataclass
class World:
    """Everything there is to verify, read once at the end."""

    prefix: str
    settle: timedelta
    events: Mapping[str, Mapping[int, Sequence[Read]]]  # of the two counted topics
    said: Mapping[
        str, Mapping[int, Sequence[Read]]
    ]  # results, decisions, state, quarantine, alerts, commands
    hashes: Mapping[Place, Mapping[str, bytes]]
    documents: Mapping[str, dict[str, Any]]  # flag -> what Redis holds
    outboxes: Mapping[str, list[str]]  # flag -> fields that should be empty by now


async def read_world(bootstrap: str, redis_url: str, prefix: str, settle: timedelta) -> World:
    """Return what the brokers and Redis hold. To be called when nothing is sent any more.

    A rollout may still move by itself: pause for want of events, or pass a gate. Then what was said
    and Redis are of different moments, and both are read again; the events, which are many, are
    not.
    """
    store: Any = redis.Redis.from_url(redis_url)
    said: dict[str, Mapping[int, Sequence[Read]]] = {}
    try:
        events = {
            topic: await read_topic(bootstrap, prefix + topic) for topic in (EVALUATIONS, OUTCOMES)
        }
        hashes = {
            (topic, number): _words(store.hgetall(f"{prefix}agg:{{{prefix}{topic}/{number}/1}}"))
            for topic, partitions in events.items()
            for number in partitions
        }
        after = _rollouts(store, prefix)
        for _ in range(_MOST_READINGS):
            before = after
            said = {name: await read_topic(bootstrap, f"{prefix}rollout.{name}") for name in _SAID}
            after = _rollouts(store, prefix)
            is_still = _documents(before) == _documents(after)
            if is_still and not any((*_outboxes(before).values(), *_outboxes(after).values())):
                break
    finally:
        store.close()
    return World(prefix, settle, events, said, hashes, _documents(after), _outboxes(after))


Rollouts = Mapping[str, Mapping[str, bytes]]  # flag -> fields in Redis


def _rollouts(store: Any, prefix: str) -> Rollouts:
    flags = {flag.decode() for flag in store.smembers(f"{prefix}flags")}
    return {flag: _words(store.hgetall(f"{prefix}ro:{{{flag}}}")) for flag in flags}


def _documents(rollouts: Rollouts) -> dict[str, dict[str, Any]]:
    return {
        flag: json.loads(fields["document"])
        for flag, fields in rollouts.items()
        if fields.get("document")
    }


def _outboxes(rollouts: Rollouts) -> dict[str, list[str]]:
    return {
        flag: [name for name in fields if name.startswith("outbox:")]
        for flag, fields in rollouts.items()
    }


def _words(fields: Mapping[bytes, bytes]) -> dict[str, bytes]:
    return {name.decode(): value for name, value in fields.items()}


# --- timelines ---


@dataclass(frozen=True, slots=True)
class Stay:
    """One visit of one rollout."""

    rollout_id: str
    index: int
    entered: datetime
    counts_from: datetime
    left: datetime


Where = tuple[str, int]  # rollout id, visit


class Timeline:
    """All stays of all rollouts of one flag.

    Event time to the places it may have been counted in.
    """

    def __init__(self, documents: Iterable[Mapping[str, Any]], learning: timedelta) -> None:
        """`documents` are all that were published for the flag.

        `learning` is how long a change may be unknown.
        """
        newest: dict[str, Mapping[str, Any]] = {}
        for document in documents:
            known = newest.get(document["rollout_id"])
            if known is None or document["revision"] > known["revision"]:
                newest[document["rollout_id"]] = document
        self.stays: list[Stay] = []
        for document in sorted(newest.values(), key=lambda one: one["revision"]):
            visits = document["visits"]
            for index, visit in enumerate(visits):
                left = _moment(visit["left_at"]) if visit["left_at"] else _NEVER
                if index + 1 < len(visits):
                    left = min(left, _moment(visits[index + 1]["entered_at"]))
                self.stays.append(
                    Stay(
                        document["rollout_id"],
                        index,
                        _moment(visit["entered_at"]),
                        _moment(visit["counts_from"]),
                        left,
                    )
                )
        self._learning = learning

    def places(self, at: datetime) -> tuple[Where | None, ...]:
        """Return where an event of that time may count, the place it belongs to first.

        None stands for nowhere.
        """
        belongs: Where | None = None
        before: Where | None = None
        for stay in self.stays:
            where = (stay.rollout_id, stay.index)
            if stay.counts_from <= at < stay.left:
                belongs = where
            # A stay whose end was not known yet, by whoever counted.
            elif stay.counts_from <= at and stay.left <= at < stay.left + self._learning:
                before = where
        if belongs is None and before is not None:
            return (None, before)
        if belongs is not None and belongs[0] != self.stays[-1].rollout_id:
            # Counted late, when its flag had a newer rollout, it counts for none: nobody will look
            # at the old one again.
            return (belongs, None)
        return (belongs,)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


# --- counting ---


@dataclass
class Span:
    """A count with what is certain and what is possible; equal where no event was ambiguous."""

    least: int = 0
    most: int = 0

    def add(self, *, is_certain: bool) -> None:
        """Count one more."""
        self.least += is_certain
        self.most += 1

    def holds(self, number: int) -> bool:
        """Tell whether a number is within the bounds."""
        return self.least <= number <= self.most


@dataclass
class Contexts:
    """A set of contexts with what is certain and what is possible."""

    certain: set[str] = field(default_factory=set)
    possible: set[str] = field(default_factory=set)

    def add(self, context: str, *, is_certain: bool) -> bool:
        """Put a context in; return whether it is new among the possible ones."""
        is_new = context not in self.possible
        self.possible.add(context)
        if is_certain:
            self.certain.add(context)
        return is_new


@dataclass
class ArmRecount:
    """What one arm of one visit adds up to in one partition."""

    evaluations: Span = field(default_factory=Span)
    exposed: Contexts = field(default_factory=Contexts)
    switched: int = 0
    outcomes: Span = field(default_factory=Span)
    errors: Span = field(default_factory=Span)
    copies: int = 0  # outcomes whose record, byte for byte, had come before
    first_errors: int = 0
    converted: Counter[str] = field(default_factory=Counter)
    latencies: dict[int, Span] = field(default_factory=lambda: defaultdict(Span))  # every one
    certain_contexts: set[str] = field(default_factory=set)  # with an outcome


@dataclass
class PartitionRecount:
    """What one partition adds up to."""

    records: int = 0
    holes: int = 0
    quarantined: int = 0
    ignored: int = 0
    counted: Span = field(default_factory=Span)
    late: Span = field(default_factory=Span)
    arms: dict[tuple[str, str, int, str], ArmRecount] = field(
        default_factory=lambda: defaultdict(ArmRecount)
    )
    failed: dict[tuple[str, str, int], Contexts] = field(
        default_factory=lambda: defaultdict(Contexts)
    )
    bought: dict[tuple[str, str, int, str], Contexts] = field(
        default_factory=lambda: defaultdict(Contexts)
    )
    unsure: set[tuple[str, str, int]] = field(default_factory=set)  # visits with an ambiguous event
    quarantined_offsets: set[int] = field(default_factory=set)


class Recount:
    """Adds up the two event topics by the flags' timelines."""

    def __init__(self, timelines: Mapping[str, Timeline]) -> None:
        """`timelines`: of every flag that has a rollout."""
        self._timelines = timelines
        self._served: dict[str, list[tuple[int, str, str]]] = defaultdict(
            list
        )  # context -> (timestamp, flag, variant)

    def evaluations(self, records: Sequence[Read]) -> PartitionRecount:
        """Return what a partition of evaluations adds up to."""
        total = PartitionRecount()
        for record in _in_order(records, total):
            event = _event(record.value, "io.rolloutd.evaluation.v1")
            data = event["data"] if event is not None else {}
            flag, variant = (
                data.get("feature_flag.key", ""),
                data.get("feature_flag.result.variant", ""),
            )
            context = data.get("feature_flag.context.id", "")
            if event is None or not _is_name(flag) or not _is_name(variant) or not context:
                total.quarantined += 1
                total.quarantined_offsets.add(record.offset)
                continue
            if flag not in self._timelines or variant not in ("on", "off"):
                total.ignored += 1
                continue
            self._served[context].append((record.timestamp_ms, flag, variant))
            places = self._timelines[flag].places(_moment(event["time"]))
            _classify(total, places)
            arm = _arm(variant)
            for place, is_certain in _counting(places):
                counts = total.arms[flag, *place, arm]
                counts.evaluations.add(is_certain=is_certain)
                if counts.exposed.add(context, is_certain=is_certain):
                    other = total.arms[
                        flag, *place, "control" if arm == "treatment" else "treatment"
                    ]
                    counts.switched += context in other.exposed.possible
                if not is_certain:
                    total.unsure.add((flag, *place))
        return total

    def outcomes(self, records: Sequence[Read]) -> PartitionRecount:
        """Return what a partition of outcomes adds up to.

        The evaluations of all partitions must have been added up before.
        """
        total = PartitionRecount()
        written: set[bytes | None] = set()
        for record in _in_order(records, total):
            is_copy = record.value in written
            written.add(record.value)
            event = _event(record.value, "io.rolloutd.outcome.v1")
            data = event["data"] if event is not None else {}
            named = [
                (one.get("feature_flag.key"), one.get("feature_flag.result.variant"))
                for one in data.get("rolloutd.flags", [])
            ]
            duration = data.get("http.server.request.duration")
            is_valid = event is not None and bool(data.get("feature_flag.context.id"))
            is_valid = is_valid and all(
                _is_name(flag) and _is_name(variant) for flag, variant in named
            )
            if (
                event is None
                or not is_valid
                or (
                    duration is not None and (not isinstance(duration, int | float) or duration < 0)
                )
            ):
                total.quarantined += 1
                total.quarantined_offsets.add(record.offset)
                continue
            context, at = data["feature_flag.context.id"], _moment(event["time"])
            flags = named or self._last_served(context, record.timestamp_ms)
            spots = [
                (flag, _arm(variant), self._timelines[flag].places(at))
                for flag, variant in dict.fromkeys(flags)
                if flag in self._timelines and variant in ("on", "off")
            ]
            if not spots:
                total.ignored += 1
                continue
            _classify(total, *(places for _, _, places in spots))
            for flag, arm, places in spots:
                for place, is_certain in _counting(places):
                    self._add_outcome(
                        total, (flag, *place), arm, context, data, is_certain=is_certain
                    )
                    total.arms[flag, *place, arm].copies += is_copy
        return total

    def _add_outcome(
        self,
        total: PartitionRecount,
        visit: tuple[str, str, int],
        arm: str,
        context: str,
        data: Mapping[str, Any],
        *,
        is_certain: bool,
    ) -> None:
        counts = total.arms[*visit, arm]
        counts.outcomes.add(is_certain=is_certain)
        if is_certain:
            counts.certain_contexts.add(context)
        else:
            total.unsure.add(visit)
        duration = data.get("http.server.request.duration")
        if duration is not None:
            bucket = math.ceil(math.log(max(duration * 1000.0, 0.001)) / _LOG_BASE)
            counts.latencies[bucket].add(is_certain=is_certain)
        if "error.type" in data:
            counts.errors.add(is_certain=is_certain)
            counts.first_errors += total.failed[visit].add(context, is_certain=is_certain)
        for name in dict.fromkeys(data.get("rolloutd.conversions", [])):
            counts.converted[name] += total.bought[*visit, name].add(context, is_certain=is_certain)

    def _last_served(self, context: str, timestamp_ms: int) -> list[tuple[str, str]]:
        """Return what a context was last served of each flag, up to a record's timestamp."""
        last = {
            flag: variant
            for at, flag, variant in self._served.get(context, ())
            if at <= timestamp_ms
        }
        return list(last.items())


def _in_order(records: Sequence[Read], total: PartitionRecount) -> Iterable[Read]:
    expected = 0
    for record in records:
        total.holes += record.offset - expected
        expected = record.offset + 1
        total.records += 1
        yield record


def _event(value: bytes | None, kind: str) -> dict[str, Any] | None:
    """Return a CloudEvent of that type, None for anything else."""
    try:
        event = json.loads(value or b"")
    except ValueError:
        return None
    is_event = (
        isinstance(event, dict) and event.get("specversion") == "1.0" and event.get("type") == kind
    )
    return (
        event
        if is_event
        and event.get("id")
        and event.get("source")
        and isinstance(event.get("data"), dict)
        else None
    )


def _is_name(text: object) -> bool:
    return isinstance(text, str) and _NAME.match(text) is not None


def _arm(variant: str) -> str:
    return "treatment" if variant == "on" else "control"


def _counting(places: tuple[Where | None, ...]) -> list[tuple[Where, bool]]:
    """Return the visits an event may count in, and whether it must."""
    return [(place, len(places) == 1) for place in places if place is not None]


def _classify(total: PartitionRecount, *spots: tuple[Where | None, ...]) -> None:
    """Count a record with a known flag as counted or late, or as one of both."""
    must_count = any(None not in places for places in spots)
    may_count = any(place is not None for places in spots for place in places)
    total.counted.least += must_count
    total.counted.most += may_count
    total.late.least += not may_count
    total.late.most += not must_count


# --- verifying ---


@dataclass
class Findings:
    """What was compared, and every difference."""

    faults: list[str] = field(default_factory=list)
    records: int = 0
    counted: int = 0
    arms: int = 0
    exact_arms: int = 0
    ambiguous: int = 0
    commands: int = 0
    repeated_results: int = 0
    decisions: int = 0
    repeated_decisions: int = 0
    rises: int = 0
    details_lost: int = 0  # of refused events, counted, that a kill kept from the quarantine

    def expect(self, holds: object, fault: str) -> None:
        """Note a fault unless it holds."""
        if not holds:
            self.faults.append(fault)

    def summary(self) -> str:
        """Return the figures in one line."""
        return (
            f"{self.records} records, {self.counted} counted, {self.arms} arms compared "
            f"({self.exact_arms} of them to the last "
            f"event, {self.ambiguous} events while a change was being learnt), "
            f"{self.commands} command ids, "
            f"{self.repeated_results} results repeated, {self.decisions} decisions, "
            f"{self.repeated_decisions} repeated, "
            f"{self.rises} rises, {self.details_lost} details of refusals lost by kills, "
            f"{len(self.faults)} faults"
        )


def verify(
    world: World,
    acknowledged: Mapping[Place, Mapping[int, int]],
    *,
    unacknowledged: int = 0,
    served: Iterable[tuple[str, int, float]] = (),
    is_killed: bool = False,
) -> Findings:
    """Return what differs between the topics and what the daemon made of them.

    `acknowledged`: what the producer was told, offset to the CRC-32 of the value; of
    `unacknowledged` further records it knows nothing. `served`: (flag, revision, percent) as
    replicas served them at any time. `is_killed`: a replica was killed, which may lose the details
    of refused events that waited for the quarantine (`controller/counting/refusals.py`). They are
    counted all the same.
    """
    found = Findings()
    states = _events_of(world.said["state"])
    by_flag: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in states:
        by_flag[event["data"]["flag"]].append(event["data"])
    timelines = {flag: Timeline(documents, world.settle) for flag, documents in by_flag.items()}
    _verify_log(world, acknowledged, unacknowledged, found)
    recount = Recount(timelines)
    for topic, add_up in ((EVALUATIONS, recount.evaluations), (OUTCOMES, recount.outcomes)):
        for number, records in world.events[topic].items():
            _verify_partition(world, (topic, number), add_up(records), found, is_killed=is_killed)
    _verify_results(world, found)
    _verify_decisions(world, by_flag, served, found)
    return found


def _verify_log(
    world: World,
    acknowledged: Mapping[Place, Mapping[int, int]],
    unacknowledged: int,
    found: Findings,
) -> None:
    """Compare the log with what its producer was told.

    The basis of the recount must itself be whole.
    """
    unknown = 0
    for topic, partitions in world.events.items():
        for number, records in partitions.items():
            told = acknowledged.get((topic, number), {})
            lying = {record.offset: crc32(record.value or b"") for record in records}
            wrong = [offset for offset, check in told.items() if lying.get(offset) != check]
            found.expect(
                not wrong,
                f"{topic}/{number}: {len(wrong)} acknowledged records are not in the log: "
                f"{wrong[:5]}",
            )
            unknown += len(lying) - len(told)
    found.expect(
        unknown <= unacknowledged,
        f"{unknown} records in the log that nobody wrote ({unacknowledged} unacknowledged)",
    )


def _verify_partition(
    world: World, place: Place, total: PartitionRecount, found: Findings, *, is_killed: bool
) -> None:
    name = f"{place[0]}/{place[1]}"
    stored = world.hashes[place]
    if not stored:
        found.expect(total.records == 0, f"{name}: nothing stored of {total.records} records")
        return
    numbers = {
        key: int(stored[key])
        for key in ("next", "start", "end", "counted", "quarantined", "late", "ignored", "holes")
    }
    records = world.events[place[0]][place[1]]
    end = records[-1].offset + 1 if records else 0
    found.records += total.records
    found.counted += numbers["counted"]
    found.expect(
        numbers["next"] == end, f"{name}: counted up to {numbers['next']}, the log ends at {end}"
    )
    classes = sum(numbers[key] for key in ("counted", "quarantined", "late", "ignored", "holes"))
    found.expect(
        numbers["next"] - numbers["start"] == classes,
        f"{name}: {numbers['next']} - {numbers['start']} != {classes} classified",
    )
    for key, expected in (
        ("start", 0),
        ("holes", total.holes),
        ("quarantined", total.quarantined),
        ("ignored", total.ignored),
    ):
        found.expect(
            numbers[key] == expected, f"{name}: {key} is {numbers[key]}, recounted {expected}"
        )
    for key, span in (("counted", total.counted), ("late", total.late)):
        found.expect(
            span.holds(numbers[key]),
            f"{name}: {key} is {numbers[key]}, recounted {span.least} to {span.most}",
        )
    found.ambiguous += total.counted.most - total.counted.least
    _verify_quarantine(world, place, total.quarantined_offsets, found, may_lose=is_killed)
    bundled: dict[str, dict[str, Any]] = {}
    for key, value in stored.items():
        if key.startswith("arms/"):
            bundled |= json.loads(value)
    for flag, document in world.documents.items():
        rollout_id = document["rollout_id"]
        for visit in range(len(document["visits"])):
            names = {arm: f"{flag}|{rollout_id}|{visit}|{arm}" for arm in ("treatment", "control")}
            arms = {
                arm: json.loads(stored[own]) if own in stored else bundled.get(own, {})
                for arm, own in names.items()
            }
            named = {guardrail["metric"] for guardrail in document["plan"]["guardrails"]}
            _verify_visit(
                f"{name} {flag}|{visit}", (flag, rollout_id, visit), arms, named, total, found
            )


def _verify_visit(
    name: str,
    visit: tuple[str, str, int],
    stored: Mapping[str, dict[str, Any]],
    metrics: set[str],
    total: PartitionRecount,
    found: Findings,
) -> None:
    """Compare one visit's arms.

    To the last event where none was ambiguous, within bounds elsewhere.

    `metrics` are those the plan names: conversions that no guardrail names are not counted.
    """
    is_exact = visit not in total.unsure
    for arm, counts in stored.items():
        own = total.arms[*visit, arm]
        found.arms += 1
        found.exact_arms += is_exact
        for key, span in (
            ("evaluations", own.evaluations),
            ("exposures", Span(len(own.exposed.certain), len(own.exposed.possible))),
            ("outcomes", own.outcomes),
            ("errors", own.errors),
        ):
            number = counts.get(key, 0)
            found.expect(
                span.holds(number),
                f"{name}|{arm}: {key} is {number}, recounted {span.least} to {span.most}",
            )
        sampled = {int(bucket): count for bucket, count in counts.get("latency", {}).items()}
        for bucket, number in sampled.items():
            most = own.latencies.get(bucket, Span()).most
            found.expect(
                number <= most, f"{name}|{arm}: latency[{bucket}] is {number}, recounted {most}"
            )
        found.expect(
            bool(sampled) or not any(span.least for span in own.latencies.values()),
            f"{name}|{arm}: there is no latency, recounted {dict(own.latencies)}",
        )
        # One per context and batch: every context had at least one, if it was not known to have
        # failed before.
        at_risk, first_errors = counts.get("at_risk", 0), counts.get("first_errors", 0)
        found.expect(
            first_errors <= at_risk, f"{name}|{arm}: {at_risk} at risk, {first_errors} first errors"
        )
        found.expect(
            at_risk <= counts.get("outcomes", 0),
            f"{name}|{arm}: more at risk than outcomes: {at_risk}",
        )
        # Of a sample, and what is remembered does not outlive a crash: never more than there are.
        checked, repeated = counts.get("checked", 0), counts.get("repeated", 0)
        found.expect(
            checked <= counts.get("outcomes", 0),
            f"{name}|{arm}: more checked than outcomes: {checked}",
        )
        found.expect(
            repeated <= min(own.copies, checked),
            f"{name}|{arm}: repeated is {repeated} of {checked}, recounted {own.copies}",
        )
        if is_exact:
            found.expect(
                first_errors == own.first_errors,
                f"{name}|{arm}: first_errors is {first_errors}, recounted {own.first_errors}",
            )
            switched = counts.get("switched", 0)
            found.expect(
                switched == own.switched,
                f"{name}|{arm}: switched is {switched}, recounted {own.switched}",
            )
            converted = {key: count for key, count in counts.get("converted", {}).items() if count}
            expected = {
                key: count
                for key, count in own.converted.items()
                if count and f"conversion:{key}" in metrics
            }
            found.expect(
                converted == expected,
                f"{name}|{arm}: converted is {converted}, recounted {expected}",
            )
    failed = total.failed[visit]
    first_errors = sum(counts.get("first_errors", 0) for counts in stored.values())
    found.expect(
        len(failed.certain) <= first_errors <= len(failed.possible),
        f"{name}: first_errors of both arms is {first_errors}, recounted "
        f"{len(failed.certain)} to {len(failed.possible)}",
    )


def _verify_quarantine(
    world: World, place: Place, refused: set[int], found: Findings, *, may_lose: bool = False
) -> None:
    """Every refused record lies in the quarantine, and nothing else does; repeats are allowed.

    With `may_lose` the missing ones are a figure and no fault.
    """
    quarantined: set[int] = set()
    for event in _events_of(world.said["quarantine"]):
        data = event["data"]
        if (data["topic"], data["partition"]) == (world.prefix + place[0], place[1]):
            quarantined |= {refusal["offset"] for refusal in data["refusals"]}
    missing, extra = refused - quarantined, quarantined - refused
    found.details_lost += len(missing)
    found.expect(
        may_lose or not missing,
        f"{place[0]}/{place[1]}: {len(missing)} refused records are not in quarantine: "
        f"{sorted(missing)[:5]}",
    )
    found.expect(
        not extra,
        f"{place[0]}/{place[1]}: {len(extra)} good records are in quarantine: {sorted(extra)[:5]}",
    )


def _verify_results(world: World, found: Findings) -> None:
    """Each command id has exactly one distinct result, unknown verbs too.

    What names no id cannot be answered: quarantine.
    """
    asked: set[str] = set()
    for number, records in world.said["commands"].items():
        commands = {record.offset: _command_of(record) for record in records}
        asked |= {command["id"] for command in commands.values() if command is not None}
        unreadable = {offset for offset, command in commands.items() if command is None}
        _verify_quarantine(world, ("rollout.commands", number), unreadable, found)
    results: dict[str, set[str]] = defaultdict(set)
    count = 0
    for event in _events_of(world.said["results"]):
        results[event["id"]].add(json.dumps(event["data"], sort_keys=True))
        count += 1
        found.expect(
            event["id"] == event["data"]["command_id"],
            f"result {event['id']} is of {event['data']['command_id']}",
        )
    found.commands = len(asked)
    found.repeated_results = count - len(results)
    for command_id in sorted(asked):
        payloads = results.get(command_id, set())
        found.expect(
            len(payloads) == 1,
            f"command {command_id} has {len(payloads)} distinct results: {sorted(payloads)[:3]}",
        )
    found.expect(
        results.keys() <= asked,
        f"results of commands nobody sent: {sorted(results.keys() - asked)[:3]}",
    )


def _command_of(record: Read) -> dict[str, Any] | None:
    """Return a command that can be answered, None for anything else."""
    event = _event(record.value, "io.rolloutd.command.v1")
    return event["data"] if event is not None and isinstance(event["data"].get("id"), str) else None


def _verify_decisions(
    world: World,
    by_flag: Mapping[str, Sequence[dict[str, Any]]],
    served: Iterable[tuple[str, int, float]],
    found: Findings,
) -> None:
    """Decisions in order, each with one content; documents that follow from them.

    No rise without a command or a gate.
    """
    accepted = {
        event["id"]
        for event in _events_of(world.said["results"])
        if event["data"]["status"] == "accepted"
    }
    contents: dict[str, str] = {}
    rises: set[tuple[str, int]] = set()
    newest: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for event in _events_of(world.said["decisions"]):
        decision, content = event["data"], json.dumps(event["data"], sort_keys=True)
        known = contents.setdefault(event["id"], content)
        found.decisions += known is content
        found.repeated_decisions += known is not content
        found.expect(known == content, f"decision {event['id']} has two contents")
        flag, revision, place = event["id"].rsplit("/", 2)
        found.expect(
            (decision["flag"], decision["revision"]) == (flag, int(revision)),
            f"decision {event['id']} is of another",
        )
        if known is content:
            order = (int(revision), int(place))
            found.expect(
                order > newest[flag], f"decision {event['id']} first came after {newest[flag]}"
            )
            newest[flag] = max(newest[flag], order)
        if decision["to_percent"] > decision["from_percent"]:
            found.rises += known is content
            rises.add((flag, int(revision)))
            judgement = decision["judgement"]
            has_passed = (
                decision["gate_id"] is not None
                and judgement is not None
                and judgement["verdict"] == "pass"
            )
            found.expect(
                decision["command_id"] in accepted or has_passed,
                f"decision {event['id']} raises to {decision['to_percent']} by no command "
                f"and no gate",
            )
    percents: dict[tuple[str, int], float] = {}
    for flag, documents in by_flag.items():
        contents_of: dict[int, str] = {}
        for document in documents:
            content = json.dumps(document, sort_keys=True)
            revision = document["revision"]
            found.expect(
                contents_of.setdefault(revision, content) == content,
                f"{flag}: two documents of revision {revision}",
            )
            percents[flag, revision] = document["percent"]
        missing = set(range(1, max(contents_of) + 1)) - contents_of.keys()
        found.expect(not missing, f"{flag}: revisions never published: {sorted(missing)[:5]}")
        for revision in sorted(contents_of):
            is_rise = percents[flag, revision] > percents.get((flag, revision - 1), 0.0)
            found.expect(
                not is_rise or (flag, revision) in rises,
                f"{flag}: revision {revision} rose without a decision",
            )
        found.expect(
            documents[-1] == world.documents.get(flag),
            f"{flag}: the state topic ends at revision {documents[-1]['revision']}, "
            f"Redis holds {world.documents.get(flag, {}).get('revision')}",
        )
        found.expect(
            not world.outboxes.get(flag),
            f"{flag}: effects never published: {world.outboxes.get(flag)}",
        )
    for flag in world.documents.keys() - by_flag.keys():
        found.faults.append(f"{flag}: a document in Redis, none in the state topic")
    for flag, revision, percent in served:
        known_percent = percents.get((flag, revision))
        found.expect(
            known_percent == percent,
            f"{flag}: served {percent} % as revision {revision}, decided was {known_percent}",
        )


def _events_of(partitions: Mapping[int, Sequence[Read]]) -> list[dict[str, Any]]:
    """Return the CloudEvents of a topic, in each partition's order."""
    return [
        json.loads(record.value)
        for records in partitions.values()
        for record in records
        if record.value
    ]
