"""What `rolloutctl events` does: reads the event topics, and shows what events are for a flag.

It reads without a consumer group and needs no daemon: the rollouts come from the state topic, and
events are classified by the code with which the daemon samples its own.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import typer
from aiokafka import ConsumerRecord
from rich.text import Text

from controller.adapters.kafka.topic_reader import KafkaReader, Offsets
from controller.cli import event_lines, rendering
from controller.cli.common import EXIT_REJECTED, complain, output, without_rollout
from controller.cli.operator_client import NewestRollouts, read_rollouts
from controller.counting.event_tally import EventTally
from controller.counting.flag_tally import EventSample
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.errors import EventLogUnavailable
from controller.ports import TopicPartition
from controller.settings import KafkaSettings
from controller.text import one_line
from schemas.envelope import MAX_AHEAD_MS, format_time, time_of
from schemas.formats import evaluation_reader, outcome_reader
from schemas.terms import EventClass

_EVENT_TOPICS: tuple[Literal["evaluations"], Literal["outcomes"]] = ("evaluations", "outcomes")
#: Contexts whose last evaluations are remembered, for outcomes that name no flag.
_MOST_CONTEXTS: Final = 50_000
#: Lines about single events per second while following; the rest is counted.
_LINES_PER_SECOND: Final = 5
_SUMMARY_SECONDS: Final = 10.0
#: Records read of each topic unless told otherwise. Those that do not hold the context that is
#: looked for are not decoded, so that many more can be read.
_MOST_RECORDS: Final = 20_000
_MOST_RECORDS_FOR_CONTEXT: Final = 500_000


@dataclass(frozen=True, slots=True)
class TapRequest:
    """Which events to read, and which of them to show."""

    kafka: KafkaSettings
    flag: str | None  # None: all
    context: str | None  # show each event of this context; None: of any
    since: timedelta
    last: int | None  # records read of each topic; None: as many as are usual
    follows: bool
    is_json: bool

    @property
    def most(self) -> int:
        """How many records of each topic are read."""
        if self.last is not None:
            return self.last
        return _MOST_RECORDS if self.context is None else _MOST_RECORDS_FOR_CONTEXT


@dataclass(slots=True)
class _Reading:
    """What was read, so that a person can judge what it means that nothing was found."""

    topics: Sequence[str]
    since: datetime
    until: datetime
    is_cut: bool  # older records were left out, because there are too many
    records: int = 0
    # When the first record of each partition that was cut was written, for one context; ms since
    # 1970. Its events are shown from wherever they are.
    first_ms: dict[TopicPartition, int] = field(default_factory=dict)
    found: int = 0  # events that were requested
    is_of_context: bool = False  # events of one context were
    other_flags: Counter[str] = field(default_factory=Counter)  # of the context, if one was

    def add(self, record: ConsumerRecord) -> None:
        """Note a record that was read."""
        self.records += 1
        if self.is_of_context and self.is_cut:
            self.first_ms.setdefault((record.topic, record.partition), record.timestamp)

    @property
    def words(self) -> str:
        """What was read, as in `12 records read of flag.evaluations, from … to …`."""
        since = self.since
        if self.first_ms:
            since = max(since, time_of(max(self.first_ms.values())))
        words = (
            f"{self.records:,} record{'s' * (self.records != 1)} read of "
            f"{' and '.join(self.topics)}, {'all ' * self.is_cut}from {format_time(since)} to "
            f"{format_time(self.until)}"
        )
        # Each partition is cut where it has too many, so some are read from earlier on than others.
        older = ", and some older ones" if self.first_ms else ""
        return f"{words}{older} (--last reads more)" if self.is_cut else words

    def document(self) -> dict[str, object]:
        """Return it as JSON-ready values."""
        return {
            "topics": list(self.topics),
            "from": format_time(max(self.since, time_of(max(self.first_ms.values(), default=0)))),
            "to": format_time(self.until),
            "records": self.records,
            "is_cut": self.is_cut,
        }


class EventTap:
    """Reads single records of the event topics, as the daemon reads those it samples."""

    def __init__(self, kafka: KafkaSettings, context: str | None = None) -> None:
        """Know no rollout yet. `context`: events of others are left out; None: of any."""
        self._spellings = () if context is None else _spellings(context)
        self._flags = FlagsToCount()
        self._kinds = [kafka.topic(logical) for logical in _EVENT_TOPICS]
        self.tally = _tally_of(self._flags, kafka)
        self._earlier = _tally_of(self._flags, kafka)  # of records that are only learned from
        self.tally.unjoined_words = (
            "it names no flag, and no evaluation of its context is among the records that were read"
        )
        self.tally.only_context = context
        # The last variants of contexts, by flag: for outcomes that name no flag.
        self._exposures: OrderedDict[str, dict[str, str]] = OrderedDict()

    def know(self, newest: NewestRollouts) -> None:
        """Classify by these rollouts from now on."""
        for rollout in newest.rollouts.values():
            self._flags.count_for(rollout)

    def read(self, record: ConsumerRecord) -> list[EventSample]:
        """Return what the events in a record are, one entry for each flag of each event.

        A refused record that holds the context that is looked for is among them.
        """
        if self._spellings and not any(
            each == record.key or each in (record.value or b"") for each in self._spellings
        ):
            return []
        latest_ms = int(time.time() * 1000) + MAX_AHEAD_MS
        evaluations, outcomes = self._kinds
        found = []
        where = (record.topic, record.partition)
        if record.topic == evaluations:
            found += self.tally.add_evaluations(where, record, latest_ms=latest_ms)
            for sample in found:
                if sample.event_class is not EventClass.REFUSED:
                    self._note_exposure(sample)
        if record.topic == outcomes:
            found += self.tally.add_outcomes(
                where, record, flags_of=self._flags_of, latest_ms=latest_ms
            )
        return found

    def learn(self, record: ConsumerRecord) -> None:
        """Note what an older record says for the join of later ones; it is not counted."""
        if record.topic == self._kinds[0]:
            latest_ms = int(time.time() * 1000) + MAX_AHEAD_MS
            where = (record.topic, record.partition)
            for sample in self._earlier.add_evaluations(where, record, latest_ms=latest_ms):
                if sample.event_class is not EventClass.REFUSED:
                    self._note_exposure(sample)

    def _note_exposure(self, sample: EventSample) -> None:
        variants = self._exposures.setdefault(sample.context, {})
        variants[sample.flag_key] = sample.variant
        self._exposures.move_to_end(sample.context)
        if len(self._exposures) > _MOST_CONTEXTS:
            self._exposures.popitem(last=False)

    def _flags_of(self, context: str, time_ms: int) -> Sequence[tuple[str, str]]:
        return list(self._exposures.get(context, {}).items())


def _tally_of(flags: FlagsToCount, kafka: KafkaSettings) -> EventTally:
    return EventTally(
        flags,
        evaluation_reader(kafka.formats.evaluations, of_spans=kafka.is_one_topic),
        outcome_reader(kafka.formats.outcomes),
    )


async def run_events(request: TapRequest) -> None:
    """Read recent events, show what they are, and go on with new ones if that is requested."""
    kafka = request.kafka
    topics = _EVENT_TOPICS[:1] if kafka.is_one_topic else _EVENT_TOPICS
    tap = EventTap(kafka, request.context)
    async with KafkaReader(kafka, [*topics, "state"]) as reader:
        state_ends = await reader.ends("state")
        newest = await read_rollouts(reader, state_ends)
        tap.know(newest)
        ends = await reader.ends(*topics)
        tap.tally.has_partitions = any(one.partition > 0 for one in ends)
        now = datetime.now(UTC)
        since = now - request.since
        starts, cut = _begin(await reader.offsets_at(since, *topics), ends, request.most)
        reading = _Reading([kafka.topic(topic) for topic in topics], since, now, bool(cut))
        reading.is_of_context = request.context is not None
        begin_ms = 0
        if cut and not reading.is_of_context:
            # Both topics are cut at one moment: numbers of unlike spans cannot be compared.
            begin_ms = max((await reader.first_times(cut, ends)).values(), default=0)
            reading.since = max(since, time_of(begin_ms))
        async for record in reader.in_time_order(starts, ends):
            if record.timestamp < begin_ms:
                tap.learn(record)
                continue
            reading.add(record)
            samples = tap.read(record)
            if request.context is not None:
                _show_of_context(request, reading, samples)
        if not request.follows or reading.records:
            _show(request, tap.tally, reading, newest)
        if request.follows:
            await _follow(request, reader, tap, newest, {**state_ends, **ends})
    if request.flag is not None and request.flag not in newest.rollouts:
        raise typer.Exit(EXIT_REJECTED)
    if request.context is not None and not reading.found:
        raise typer.Exit(EXIT_REJECTED)


def _spellings(context: str) -> tuple[bytes, ...]:
    """Return how a context id may be spelled in a record: as it is, or escaped in JSON."""
    escaped = json.dumps(context)[1:-1]
    capital = re.sub(r"\\u[0-9a-f]{4}", lambda found: f"\\u{found[0][2:].upper()}", escaped)
    plain = {context, json.dumps(context, ensure_ascii=False)[1:-1], escaped, capital}
    go = {_escaped_as_by_go(each) for each in plain}
    slashes = {each.replace("/", "\\/") for each in plain | go}
    return tuple(sorted(each.encode() for each in plain | go | slashes))


def _escaped_as_by_go(text: str) -> str:
    return "".join(f"\\u{ord(char):04x}" if char in "&<>" else char for char in text)


def _begin(starts: Offsets, ends: Offsets, most: int) -> tuple[Offsets, Offsets]:
    """Return where to begin in each partition, and in those for which it is after `starts`."""
    topics = Counter(one.topic for one in ends)
    later = {one: max(starts[one], end - most // topics[one.topic]) for one, end in ends.items()}
    return later, {one: begin for one, begin in later.items() if begin > starts[one]}


async def _follow(
    request: TapRequest, reader: KafkaReader, tap: EventTap, newest: NewestRollouts, start: Offsets
) -> None:
    """Show each event that is not counted, some per second, and now and then what there was."""
    counts: Counter[EventClass] = Counter()
    shown = second = 0
    summed_up_at = time.monotonic()
    complain("following new events; Ctrl-C ends")
    async for record in reader.follow(start):
        if isinstance(record, EventLogUnavailable):
            complain(f"{record}; still following")
        elif record is not None and record.topic == request.kafka.topic("state"):
            newest.update(record)
            tap.know(newest)
        elif record is not None:
            for sample in _selected(request, tap.read(record)):
                counts[sample.event_class] += 1
                if int(time.monotonic()) != second:
                    second, shown = int(time.monotonic()), 0
                is_due = shown < _LINES_PER_SECOND or request.context is not None
                if is_due and (request.context or sample.event_class is not EventClass.COUNTED):
                    shown += 1
                    _show_sample(request, sample)
        if time.monotonic() - summed_up_at >= _SUMMARY_SECONDS:
            summed_up_at = time.monotonic()
            _sum_up(request, counts)
            counts.clear()


def _selected(request: TapRequest, samples: Sequence[EventSample]) -> list[EventSample]:
    """Return the events that were requested; those that name no flag may be of any flag."""
    return [sample for sample in samples if request.flag in (None, sample.flag_key or request.flag)]


# --- output ---


def _show_of_context(
    request: TapRequest, reading: _Reading, samples: Sequence[EventSample]
) -> None:
    """Show the events of the context that is looked for, and count those of other flags."""
    selected = _selected(request, samples)
    reading.found += len(selected)
    for sample in selected:
        _show_sample(request, sample)
    for sample in samples:
        if sample not in selected:
            reading.other_flags[sample.flag_key] += 1


def _show_sample(request: TapRequest, sample: EventSample) -> None:
    if request.is_json:
        typer.echo(
            rendering.to_json({"flag": sample.flag_key, **sample.document(has_whole_ids=True)})
        )
    else:
        rendering.show_line(output(), event_lines.sample_line(sample))


def _sum_up(request: TapRequest, counts: Mapping[EventClass, int]) -> None:
    if request.is_json:
        return
    words = ", ".join(f"{count:,} {event_lines.in_words(found)}" for found, count in counts.items())
    line = Text(f"last {_SUMMARY_SECONDS:.0f} s: {words or 'no event'}", "dim")
    rendering.show_line(output(), line)


def _show(
    request: TapRequest, tally: EventTally, reading: _Reading, newest: NewestRollouts
) -> None:
    """Show what the events were, and what was read."""
    if request.context is not None and not reading.found:
        for line in _nothing_found(request, reading, newest):
            complain(line)
    if request.flag is None:
        document = tally.summary(has_whole_ids=True)
    else:
        document = {
            **tally.document(request.flag, has_whole_ids=True),
            "unattributed": tally.unattributed.document(has_whole_ids=True),
        }
    if request.is_json:
        of_context = {} if request.context is None else {"context_events": reading.found}
        typer.echo(rendering.to_json({**document, "read": reading.document(), **of_context}))
    elif request.context is not None and not reading.found:
        return
    elif request.flag is None:
        event_lines.show_summary(output(), document, reading.words)
    else:
        event_lines.show_flag_events(output(), document, reading.words)


def _nothing_found(request: TapRequest, reading: _Reading, newest: NewestRollouts) -> Iterator[str]:
    """Yield what it may mean that a context has no event: what was read, and what to check."""
    context = one_line(request.context or "")
    of_flag = "" if request.flag is None else f" for the flag {request.flag}"
    yield f"no event of the context {context}{of_flag}: {reading.words}"
    if request.flag is not None and request.flag not in newest.rollouts:
        yield without_rollout(request.flag, newest.rollouts, newest.retired)
    if reading.other_flags:
        named = (
            f"{one_line(flag)} ({count:,})" for flag, count in reading.other_flags.most_common(5)
        )
        yield (
            f"it has events of other flags: {', '.join(named)}; "
            f"`rolloutctl events --context {context}` shows them"
        )
    elif not reading.records:
        yield (
            f"next: check that apps send to Kafka at {request.kafka.bootstrap_servers}, to these "
            f"topics; look further back with --since 2h"
        )
    else:
        yield (
            "next: look further back with --since 2h; compare the id with feature_flag.context.id "
            "in what the app sends, letter for letter; `rolloutctl quarantine` shows refused "
            "records"
        )
    if not request.follows:
        yield "with --watch it waits for new events"
