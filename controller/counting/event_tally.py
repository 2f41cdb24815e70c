"""Reads single records, and adds up what their events were for each flag.

Belongs here: reading, and which tallies are kept. Does not belong here: what is kept of one flag
(`flag_tally.py`), what a class means (`event_classes.py`), and which records are read: counting
gives some of its own (`event_sampling.py`), `rolloutctl events` all that it reads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from controller.counting.event_classes import (
    FAILED_STATUS,
    OLD_TIME_MS,
    SLOW_MS,
    arm_of,
    classify,
    describe,
    duration_words,
    misspelled,
    nearest,
)
from controller.counting.event_fields import (
    NOTHING_SENT,
    SentFields,
    encoding_words,
    fields_sent,
    misnamed_words,
)
from controller.counting.flag_tally import EventSample, FlagTally, OutcomeReading
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.ports import Record, TopicPartition
from schemas import wire
from schemas.envelope import MAX_TIME_MS
from schemas.events import (
    EvaluationFields,
    EvaluationReader,
    OutcomeFields,
    OutcomeReader,
    Packed,
)
from schemas.record_refused import RecordRefused
from schemas.terms import EventClass, EventRemark

#: Flags without a rollout of which samples and counts are kept.
MOST_UNKNOWN_FLAGS: Final = 100
#: Classes of events that may lack the flag or the variant because the field is misnamed.
_FOR_LACK_OF_A_FIELD: Final = (EventClass.UNJOINED, EventClass.UNKNOWN_VARIANT)
#: Contexts whose partition is remembered, to find those in several.
_MOST_CONTEXTS: Final = 20_000
#: Comparisons of flag keys in a summary: each takes some 0.1 ms, in which no event is counted.
_MOST_COMPARISONS: Final = 100
_MOST_SUMMED_UP: Final = 200  # flags with a rollout in a summary
_REFUSED_BYTES: Final = 64 * 1024  # of a refused value that is searched for flags and fields
_MOST_REFUSED_FLAGS: Final = 8

#: Returns the (flag key, variant) pairs of a context's exposures before a time in ms.
FlagsOf = Callable[[str, int], Sequence[tuple[str, str]]]

_Fields = TypeVar("_Fields")


@dataclass(frozen=True, slots=True)
class _Source:
    """A record that is read, and for how many records it stands."""

    topic: str
    partition: int
    record: Record
    kind: str  # evaluation or outcome
    weight: float


@dataclass(frozen=True, slots=True)
class _Event:
    """One event of a record, whatever its flags are."""

    context: str
    time_ms: int
    outcome: OutcomeReading | None  # None: an evaluation
    sent: SentFields
    remarks: tuple[EventRemark, ...]


class EventTally:
    """What the events of all flags were, as far as they were read; bounded in memory."""

    def __init__(
        self,
        flags_to_count: FlagsToCount,
        read_evaluations: EvaluationReader[Record] | Packed[EvaluationFields],
        read_outcomes: OutcomeReader[Record] | Packed[OutcomeFields],
    ) -> None:
        """Start empty. The readers are those of the topics' formats (`schemas/formats.py`)."""
        self.flags_to_count = flags_to_count
        self._read_evaluations = read_evaluations
        self._read_outcomes = read_outcomes
        self._flags: dict[str, FlagTally] = {}
        self._unknown: OrderedDict[str, FlagTally] = OrderedDict()
        #: Events that name no flag: outcomes that joined nothing, and refused records.
        self.unattributed = FlagTally()
        self._places: OrderedDict[tuple[bool, str], int] = OrderedDict()
        # Whether records are keyed by one context. Those with many events may have no key.
        self.checks_keys = not any(
            isinstance(read, Packed) for read in (read_evaluations, read_outcomes)
        )
        self.has_partitions = False  # as far as is known: with one, keys decide nothing
        self.unjoined_words = (
            "it names no flag, and its context has no evaluation shortly before it"
        )
        self.most_per_record: int | None = None  # events read of a record of many; None: all
        self.only_context: str | None = None  # events of other contexts are left out; None: of any

    # - reading records -

    def add_evaluations(
        self,
        where: TopicPartition,
        record: Record,
        weight: float = 1.0,
        *,
        latest_ms: int = MAX_TIME_MS,
    ) -> list[EventSample]:
        """Count the evaluations in a record, which stands for `weight` records; return them.

        `where` is the record's topic and partition, which the records of counting do not hold.

        `latest_ms` is the latest time accepted of the record and of its events.
        """
        refusals: list[RecordRefused] = []
        read = self._read_evaluations
        if isinstance(read, Packed):
            contents = read.unpack(record, latest_ms=latest_ms)
            events: Sequence[EvaluationFields] = contents.events
            refusals += [] if contents.refused is None else [contents.refused]
        else:
            events = list(
                read((record,), lambda _, refused: refusals.append(refused), latest_ms=latest_ms)
            )
        events, weight = self._some(events, weight)
        source = _Source(*where, record, "evaluation", weight)
        found = []
        for context, flag_key, variant, time_ms in events:
            if self.only_context not in (None, context):
                continue
            sent = self._sent(source, read)
            event = self._seen(source, context, time_ms, None, sent)
            found.append(self._add(source, event, flag_key, variant))
        return found + self._add_refused(source, refusals, read)

    def add_outcomes(
        self,
        where: TopicPartition,
        record: Record,
        weight: float = 1.0,
        *,
        flags_of: FlagsOf,
        latest_ms: int = MAX_TIME_MS,
    ) -> list[EventSample]:
        """Count the outcomes in a record, once for each of their flags; return them.

        `flags_of` gives the flags of an outcome that names none.
        """
        refusals: list[RecordRefused] = []
        read = self._read_outcomes
        if isinstance(read, Packed):
            contents = read.unpack(record, latest_ms=latest_ms)
            events: Sequence[OutcomeFields] = contents.events
            refusals += [] if contents.refused is None else [contents.refused]
        else:
            reading = read(
                (record,), lambda _, refused: refusals.append(refused), latest_ms=latest_ms
            )
            events = [fields[1:] for fields in reading]
        events, weight = self._some(events, weight)
        source = _Source(*where, record, "outcome", weight)
        found = []
        for context, time_ms, named, has_failed, latency_ms, conversions in events:
            if self.only_context not in (None, context):
                continue
            sent = self._sent(source, read)
            understood = OutcomeReading(
                has_failed,
                sent.error_type,
                sent.status_code,
                latency_ms,
                tuple(conversions),
                is_joined=not named,
            )
            event = self._seen(source, context, time_ms, understood, sent)
            for flag_key, variant in named or flags_of(context, time_ms) or (("", ""),):
                found.append(self._add(source, event, flag_key, variant))
        return found + self._add_refused(source, refusals, read)

    def _some(self, events: Sequence[_Fields], weight: float) -> tuple[Sequence[_Fields], float]:
        """Return the events of a record to count, and for how many events each stands."""
        most = self.most_per_record
        if most is None or len(events) <= most:
            return events, weight
        return events[:most], weight * len(events) / most

    @staticmethod
    def _sent(source: _Source, read: object) -> SentFields:
        """Return the fields of an event of our own format; of others nothing is known."""
        is_ours = read is wire.read_evaluations or read is wire.read_outcomes
        return fields_sent(source.record.value, source.kind) if is_ours else NOTHING_SENT

    def _seen(
        self,
        source: _Source,
        context: str,
        time_ms: int,
        outcome: OutcomeReading | None,
        sent: SentFields,
    ) -> _Event:
        """Return an event with what looks wrong about it, whatever its flags are."""
        record, remarks = source.record, []
        self.has_partitions = self.has_partitions or source.partition > 0
        if record.key is None and self.has_partitions and self.checks_keys:
            remarks.append(EventRemark.NO_KEY)
        if self._is_scattered(source.kind == "evaluation", context, source.partition):
            remarks.append(EventRemark.SCATTERED)
        if record.timestamp - time_ms > OLD_TIME_MS:
            remarks.append(EventRemark.OLD_TIME)
        if outcome is not None and (outcome.latency_ms or 0.0) > SLOW_MS:
            remarks.append(EventRemark.SLOW)
        if (
            outcome is not None
            and not outcome.has_failed
            and (outcome.status_code or 0) >= FAILED_STATUS
        ):
            remarks.append(EventRemark.NO_ERROR_TYPE)
        if sent.misnamed is not None:
            remarks.append(EventRemark.MISNAMED_FIELD)
        return _Event(context, time_ms, outcome, sent, tuple(remarks))

    def _add(self, source: _Source, event: _Event, flag_key: str, variant: str) -> EventSample:
        flag = self.flags_to_count.flags.get(flag_key)
        if not flag_key:
            found, why = EventClass.UNJOINED, self.unjoined_words
        elif flag is None and flag_key in self.flags_to_count.over:
            found, why = EventClass.AFTER_END, "its rollout ended long ago"
        else:
            found = classify(flag, variant, event.time_ms)
            why = describe(found, flag_key, flag, variant, event.time_ms)
        sample = EventSample(
            found,
            source.kind,
            source.topic,
            source.partition,
            source.record.offset,
            event.time_ms,
            flag_key,
            variant,
            event.context,
            _why(found, why, event, source.record.timestamp),
            event.remarks,
            arm_of(flag, variant),
            event.outcome,
            ()
            if flag is None or event.outcome is None
            else tuple(one for one in event.outcome.conversions if one not in flag.conversions),
            event.sent.unread,
            None if event.sent.misnamed is None else event.sent.misnamed[1],
        )
        is_timed = event.outcome is not None and event.outcome.latency_ms is not None
        self._tally_of(flag_key).add(sample, source.weight, is_timed=is_timed)
        return sample

    def _is_scattered(self, of_evaluations: bool, context: str, partition: int) -> bool:
        """Return whether a context was in another partition of the topic before."""
        places, place = self._places, (of_evaluations, context)
        home = places.setdefault(place, partition)
        if home != partition:
            places[place] = partition  # a topic that got more partitions moves a context once
            return True
        if len(places) > _MOST_CONTEXTS:
            places.popitem(last=False)
        return False

    def _add_refused(
        self, source: _Source, refusals: Iterable[RecordRefused], read: object
    ) -> list[EventSample]:
        """Count a refused record for the flags that its text names, else for none."""
        record, found = source.record, []
        for refused in refusals:
            # The field that it lacks may be there under another name.
            is_small = len(record.value or b"") <= _REFUSED_BYTES
            misnamed = self._sent(source, read).misnamed if is_small else None
            asked = encoding_words(record.value) if misnamed is None else misnamed_words(misnamed)
            question = "" if asked is None else f"; {asked}"
            for flag_key in flags_named_in(record.value, self.flags_to_count.flags) or ("",):
                sample = EventSample(
                    EventClass.REFUSED,
                    source.kind,
                    source.topic,
                    source.partition,
                    record.offset,
                    record.timestamp,
                    flag_key,
                    "",
                    "",
                    f"{refused}{question}",
                    () if misnamed is None else (EventRemark.MISNAMED_FIELD,),
                    meant_field=None if misnamed is None else misnamed[1],
                )
                self._tally_of(flag_key).add(sample, source.weight, is_timed=False)
                found.append(sample)
        return found

    def _tally_of(self, flag_key: str) -> FlagTally:
        """Return the tally of a flag; of unknown flags those seen last are kept."""
        if not flag_key:
            return self.unattributed
        flag = self.flags_to_count.flags.get(flag_key)
        if flag is not None:
            tally = self._flags.get(flag_key)
            if tally is None or tally.rollout_id != flag.rollout_id:
                tally = self._flags[flag_key] = FlagTally(flag.rollout_id)
            return tally
        tally = self._unknown.get(flag_key)
        if tally is None:
            tally = self._unknown[flag_key] = FlagTally()
            if len(self._unknown) > MOST_UNKNOWN_FLAGS:
                self._unknown.popitem(last=False)
        else:
            self._unknown.move_to_end(flag_key)
        return tally

    # - what was found -

    def of(self, flag_key: str) -> FlagTally | None:
        """Return the tally of a flag, None when no event of it was read."""
        return self._flags.get(flag_key) or self._unknown.get(flag_key)

    @property
    def flags(self) -> Mapping[str, FlagTally]:
        """The tallies of flags with a rollout; a copy, so that another thread may read it."""
        return dict(self._flags)

    @property
    def unknown_flags(self) -> Mapping[str, FlagTally]:
        """The tallies of the flags without a rollout that were seen last; a copy."""
        return dict(self._unknown)

    def drop_ended(self) -> None:
        """Forget flags whose rollout is not counted any more, and unknown ones that have one."""
        known = self.flags_to_count.flags
        for flag_key in self._flags.keys() - known.keys():
            del self._flags[flag_key]
        for flag_key in self._unknown.keys() & known.keys():
            del self._unknown[flag_key]

    def document(self, flag_key: str, *, has_whole_ids: bool = False) -> dict[str, Any]:
        """Return what the events of a flag were as JSON-ready values; see `FlagTally.document`."""
        flag = self.flags_to_count.flags.get(flag_key)
        tally = self.of(flag_key) or FlagTally()
        near = None
        if flag is None:
            near = nearest(flag_key, self.flags_to_count.flags)
        return {
            "flag": flag_key,
            "has_rollout": flag is not None,
            "nearest": near,
            **tally.document(
                has_begun=flag is not None and flag.began_ms is not None,
                has_whole_ids=has_whole_ids,
            ),
        }

    def by_flag_and_class(self) -> dict[tuple[str, str], float]:
        """Return the number of events by flag and class; may be called from another thread."""
        return {
            (flag_key, found.value): count
            for flag_key, tally in self.flags.items()
            for found, count in tally.counts.classes.items()
        }

    def document_as_json(self, flag_key: str | None) -> bytes | None:
        """Return `document` of a flag as JSON, None of an unknown flag without events.

        Without a flag, `summary`.
        """
        if flag_key is None:
            return msgspec.json.encode(self.summary())
        if flag_key not in self.flags_to_count.flags and self.of(flag_key) is None:
            return None
        return msgspec.json.encode(self.document(flag_key))

    def summary(self, *, has_whole_ids: bool = False) -> dict[str, Any]:
        """Return the number of events of flags by class, and of those that name none.

        Of very many flags the first ones by key are listed.
        """
        listed = sorted(self._flags)[:_MOST_SUMMED_UP]
        meant = misspelled(self._unknown, self.flags_to_count.flags)
        most = sorted(self._unknown.items(), key=lambda each: -each[1].counts.total)
        for flag_key, _ in most[: _MOST_COMPARISONS // max(len(self.flags_to_count.flags), 1)]:
            near = meant.get(flag_key) or nearest(flag_key, self.flags_to_count.flags)
            meant |= {} if near is None else {flag_key: near}
        return {
            "flags": {
                flag_key: _rounded(self._flags[flag_key].counts.classes) for flag_key in listed
            },
            "omitted_flags": len(self._flags) - len(listed),
            "unknown_flags": {
                flag_key: {
                    "events": round(tally.counts.total),
                    "nearest": meant.get(flag_key),
                }
                for flag_key, tally in most
            },
            "misnamed_fields": {
                flag_key: found
                for flag_key in listed
                if (found := self._flags[flag_key].misnamed()) is not None
            },
            "unattributed": self.unattributed.document(has_whole_ids=has_whole_ids),
        }


def _rounded(counts: Mapping[EventClass, float]) -> dict[str, int]:
    return {each.value: round(count) for each, count in counts.items()}


def _why(found: EventClass, why: str, event: _Event, timestamp_ms: int) -> str:
    """Return why an event does not count, or what looks wrong about one that does."""
    if not why or event.sent.misnamed is None:
        return why or _remark_words(event, timestamp_ms)
    # A misnamed field is the cause where the event seems to name no flag or no variant.
    question = misnamed_words(event.sent.misnamed)
    return f"{question}; {why}" if found in _FOR_LACK_OF_A_FIELD else f"{why}; {question}"


def _remark_words(event: _Event, timestamp_ms: int) -> str:
    """Return what looks wrong about an event that counts; empty where nothing does."""
    words = {
        EventRemark.NO_KEY: "its record has no key",
        EventRemark.SCATTERED: "its context was in another partition before",
        EventRemark.OLD_TIME: f"its time is {duration_words(timestamp_ms - event.time_ms)} older "
        f"than its record",
    }
    if event.outcome is not None:
        words[EventRemark.SLOW] = f"it took {duration_words(event.outcome.latency_ms or 0.0)}"
        words[EventRemark.NO_ERROR_TYPE] = (
            f"its status code is {event.outcome.status_code}, but without error.type it counts as "
            f"a success"
        )
    if event.sent.misnamed is not None:
        words[EventRemark.MISNAMED_FIELD] = misnamed_words(event.sent.misnamed)
    return "; ".join(words[remark] for remark in event.remarks)


class _NamedFlags(msgspec.Struct, gc=False):
    flag_key: Any = msgspec.field(default=None, name="feature_flag.key")
    flags: Any = msgspec.field(default=None, name="rolloutd.flags")


class _AnyEvent(msgspec.Struct, gc=False):
    data: _NamedFlags = msgspec.field(default_factory=_NamedFlags)


def _data_of_event(value: bytes) -> _NamedFlags:
    return msgspec.json.decode(value, type=_AnyEvent).data


def _read_named_flags(value: bytes) -> _NamedFlags:
    return msgspec.json.decode(value, type=_NamedFlags)


def flags_named_in(value: bytes | None, known: Mapping[str, object]) -> list[str]:
    """Return the flags with a rollout that the text of a refused record names, as far as it can.

    The record may hold anything, so only keys that are known are returned.
    """
    if not value or len(value) > _REFUSED_BYTES:
        return []
    names: list[Any] = []
    for read in (_data_of_event, _read_named_flags):
        try:
            data = read(value)
        except (ValueError, RecursionError):
            continue
        names.append(data.flag_key)
        flags = data.flags if isinstance(data.flags, list) else ()
        names += [each.get("feature_flag.key") for each in flags if isinstance(each, dict)]
    found = dict.fromkeys(name for name in names if isinstance(name, str) and name in known)
    return list(found)[:_MOST_REFUSED_FLAGS]
