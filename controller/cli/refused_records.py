"""What `rolloutctl quarantine` does: reads refused records, and shows why and what they hold."""

from __future__ import annotations

import base64
import binascii
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import typer
from aiokafka import ConsumerRecord
from pydantic import ValidationError
from rich.text import Text

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.cli import rendering
from controller.cli.common import complain, output
from controller.cli.operator_client import read_event
from controller.counting.event_fields import encoding_words, fields_sent, misnamed_words
from controller.errors import EventLogUnavailable
from controller.settings import KafkaSettings
from controller.text import one_line, plural
from schemas import quarantine
from schemas.envelope import format_time, time_of
from schemas.quarantine import Quarantined, RefusedRecord
from schemas.terms import EventFormat

#: Characters of a refused record that are shown to people.
_SHOWN_CHARS: Final = 400
#: So many kinds of refusals are counted in one line: all of ours, of a few topics.
_KINDS: Final = 20
#: What stands before the name of a flag: in evaluations and outcomes, and in commands.
_FLAG_KEYS: Final = (b'"feature_flag.key"', b'"flag"')


@dataclass(frozen=True, slots=True)
class QuarantineRequest:
    """Which refused records to show."""

    kafka: KafkaSettings
    flag: str | None  # only records whose text names it; None: all
    since: timedelta
    last: int
    follows: bool
    is_json: bool


@dataclass(frozen=True, slots=True)
class QuarantinedRecord:
    """One refused record and where it is."""

    topic: str
    partition: int
    record: RefusedRecord

    @property
    def body(self) -> bytes:
        """Its first bytes."""
        try:
            return base64.b64decode(self.record.body)
        except (ValueError, binascii.Error):
            return b""

    @property
    def names_any_flag(self) -> bool:
        """Whether what was kept of its text has the name of some flag."""
        return any(key in self.body for key in _FLAG_KEYS)

    def names(self, flag: str) -> bool:
        """Return whether its text names a flag, as far as the text was kept."""
        return f'"{flag}"'.encode() in self.body or flag in self.record.detail


async def run_quarantine(request: QuarantineRequest) -> None:
    """Show the refused records of the requested time, and go on if that is requested."""
    async with KafkaReader(request.kafka, ["quarantine"]) as reader:
        since = datetime.now(UTC) - request.since
        starts = await reader.offsets_at(since, "quarantine")
        ends = await reader.ends("quarantine")
        kept: deque[QuarantinedRecord] = deque(maxlen=request.last)
        reasons: Counter[tuple[str, str]] = Counter()
        others = flagless = 0
        async for record in reader.in_time_order(starts, ends):
            for refused in refused_in(record):
                if request.flag is None or refused.names(request.flag):
                    kept.append(refused)
                    reasons[refused.topic, refused.record.reason.value] += 1
                else:
                    others += 1
                    flagless += not refused.names_any_flag
        for refused in kept:
            _show(request, refused)
        for line in _left_out(request.flag, since, len(kept), reasons, others, flagless):
            complain(line)
        if not request.follows:
            return
        complain("following new refusals; Ctrl-C ends")
        async for new in reader.follow(ends):
            if isinstance(new, EventLogUnavailable):
                complain(f"{new}; still following")
            elif new is not None:
                for refused in refused_in(new):
                    if request.flag is None or refused.names(request.flag):
                        _show(request, refused)


def _left_out(
    flag: str | None,
    since: datetime,
    shown: int,
    reasons: Counter[tuple[str, str]],
    others: int,
    flagless: int,
) -> Iterator[str]:
    """Yield what is not shown: earlier records, and those that do not name the flag.

    `reasons` counts the records found, by topic and reason: a flood of one kind, which alone is
    shown, hides no other kind.
    """
    found = reasons.total()
    earlier = found - shown
    if not found:
        named = f" that names {flag}" if others else ""
        yield f"no record{named} was refused since {format_time(since)}"
    elif earlier:
        hidden = plural(earlier, "earlier one is", "earlier ones are")
        yield f"{hidden} not shown; --last shows more"
        most = reasons.most_common(_KINDS)
        kinds = (f"{topic} {reason} {count:,}" for (topic, reason), count in most)
        yield f"all since {format_time(since)}, by reason: {', '.join(kinds)}"
    if flagless:
        records = plural(flagless, "refused record names", "refused records name")
        yield f"{records} no flag, and may be about {flag} too: without --flag all are shown"


def refused_in(record: ConsumerRecord) -> Iterator[QuarantinedRecord]:
    """Yield the refused records that a record of the quarantine holds."""
    event = read_event(record.value)
    if event is None or event["type"] != quarantine.TYPE:
        return
    try:
        quarantined = Quarantined.model_validate(event["data"])
    except ValidationError:
        return  # another writer's, or a later release's
    for one in quarantined.refusals:
        yield QuarantinedRecord(quarantined.topic, quarantined.partition, one)


def misnamed_field(kafka: KafkaSettings, refused: QuarantinedRecord) -> tuple[str, str] | None:
    """Return a field that nothing reads and the one that was meant, of an event of our format."""
    formats = {
        kafka.topic("evaluations"): ("evaluation", kafka.formats.evaluations),
        kafka.topic("outcomes"): ("outcome", kafka.formats.outcomes),
    }
    kind, event_format = formats.get(refused.topic, ("", None))
    if event_format is not EventFormat.ROLLOUTD:
        return None
    return fields_sent(refused.body, kind).misnamed


def _document(request: QuarantineRequest, refused: QuarantinedRecord) -> dict[str, Any]:
    record = refused.record
    misnamed = misnamed_field(request.kafka, refused)
    return {
        "time": format_time(time_of(record.timestamp_ms)),
        "topic": refused.topic,
        "partition": refused.partition,
        "offset": record.offset,
        "reason": record.reason.value,
        "detail": record.detail,
        "size": record.size,
        "sha256": record.sha256,
        "text": refused.body.decode(errors="replace"),
        "is_trimmed": record.is_trimmed,
        "question": (
            encoding_words(refused.body) if misnamed is None else misnamed_words(misnamed)
        ),
    }


def _show(request: QuarantineRequest, refused: QuarantinedRecord) -> None:
    document = _document(request, refused)
    if request.is_json:
        typer.echo(rendering.to_json(document))
        return
    console = output()
    place = f"{document['topic']}/{document['partition']} offset {document['offset']}"
    head = Text.assemble(
        (f"{document['time']}  ", "dim"),
        (f"{document['reason']}  ", "bold yellow"),
        one_line(place),
    )
    rendering.show_line(console, head)
    rendering.show_line(console, Text(f"    {one_line(document['detail'])}"))
    if document["question"] is not None:
        rendering.show_line(console, Text(f"    {one_line(document['question'])}", "bold yellow"))
    text = one_line(document["text"]) or "(empty)"
    is_cut = document["is_trimmed"] or len(text) > _SHOWN_CHARS
    more = f"… ({document['size']:,} bytes)" if is_cut else ""
    rendering.show_line(console, Text(f"    {text[:_SHOWN_CHARS]}{more}", "dim"))
