"""Which records are read for one context (`rolloutctl events`), and the lines about them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import timedelta

import pytest
from aiokafka import ConsumerRecord

from controller.cli.event_lines import outcome_words, sample_line, show_flag_events
from controller.cli.event_tap import EventTap
from controller.cli.operator_client import NewestRollouts
from controller.cli.rendering import make_console
from controller.counting.flag_tally import EventSample, OutcomeReading
from controller.settings import KafkaSettings
from schemas.terms import Arm, EventClass
from tests.builders import T0, make_rollout, make_visit
from tests.records import at_ms, evaluation_value

FLAG = "new-checkout"
AT = at_ms(T0 + timedelta(minutes=5))


def make_tap(context: str) -> EventTap:
    """Return a tap for one context, which knows one rollout."""
    rollout = make_rollout(visits=(make_visit(entered_at=T0, counts_from=T0),))
    tap = EventTap(KafkaSettings(), context)
    tap.know(NewestRollouts({FLAG: rollout}))
    return tap


def record_of(value: bytes, key: bytes | None = None) -> ConsumerRecord:
    """Return a record of the evaluation topic as Kafka's client does."""
    topic = KafkaSettings().topic("evaluations")
    return ConsumerRecord(topic, 0, 7, AT, 0, key, value, None, -1, len(value), ())


def upper_escapes(context: str, value: bytes) -> bytes:
    """Return the record with the escapes of a JSON writer that uses capital hex digits."""
    escaped = json.dumps(context)[1:-1]
    capital = "".join(
        "\\u" + part[:4].upper() + part[4:] if number else part
        for number, part in enumerate(escaped.split("\\u"))
    )
    return value.replace(escaped.encode(), capital.encode())


@pytest.mark.parametrize(
    "context", ["user-42", "jörg@example.com", "a/b", 'say "x"', "R&D", "日本"]
)
def test_a_context_is_found_however_its_writer_escapes_it(context: str) -> None:
    """As ASCII with small or capital hex digits, as UTF-8, with escaped slashes, as Go does."""
    ascii_value = evaluation_value(context, "on", time_ms=AT)
    event = json.loads(ascii_value)
    utf8_value = json.dumps(event, ensure_ascii=False).encode()
    values = [
        ascii_value,
        upper_escapes(context, ascii_value),
        utf8_value,
        utf8_value.replace(b"/", b"\\/"),
        utf8_value.replace(b"&", b"\\u0026"),
    ]
    for value in values:
        (sample,) = make_tap(context).read(record_of(value))
        assert (sample.context, sample.event_class) == (context, EventClass.COUNTED), value


def test_records_that_do_not_hold_the_context_are_not_decoded() -> None:
    """Neither events of others, nor refused records of others; its own refused ones are shown."""
    tap = make_tap("user-42")
    others = evaluation_value("user-43", "on", time_ms=AT)
    assert tap.read(record_of(others)) == []
    assert tap.read(record_of(b"nonsense", b"user-43")) == []
    for mine in (record_of(b"nonsense of user-42"), record_of(b"nonsense", b"user-42")):
        (sample,) = tap.read(mine)
        assert sample.event_class is EventClass.REFUSED


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (OutcomeReading(False, None, None, 183.4, (), False), "ok, 183 ms"),
        (OutcomeReading(False, None, 200, 0.25, (), False), "ok (status 200), 0.25 ms"),
        (OutcomeReading(True, "500", 500, 12_345, (), False), "failed (error.type 500), 12,345 ms"),
        (OutcomeReading(True, None, None, None, (), True),
         "failed, no duration, joined by context"),
        (
            OutcomeReading(False, None, None, 9.0, ("buy", "wink"), False),
            "ok, 9 ms, converted buy, wink",
        ),
    ],
)  # fmt: skip
def test_an_outcome_is_put_into_words(outcome: OutcomeReading, words: str) -> None:
    """Failed or ok comes first."""
    assert outcome_words(outcome) == words


def test_what_others_wrote_cannot_move_the_cursor() -> None:
    """Error types, conversions and contexts are text from outside."""
    outcome = OutcomeReading(True, "\x1b[2J", None, 1.0, ("\n",), is_joined=False)
    sample = EventSample(
        EventClass.COUNTED, "outcome", "t", 0, 1, AT, FLAG, "on", "\x1b[A", "", (), Arm.TREATMENT,
        outcome, ("\x07",),
    )  # fmt: skip
    line = sample_line(sample).plain
    assert line.isprintable()
    assert "no guardrail of the plan counts the conversion ?" in line
    assert "conversion" not in sample_line(replace(sample, uncounted_conversions=())).plain


def test_a_class_that_needs_nothing_has_no_task() -> None:
    """`to do: nothing to do` says two things."""
    stream = io.StringIO()
    console = make_console(stream, is_colored=False)
    found: dict[str, object] = {"evaluations": 1, "outcomes": 0, "samples": ()}
    for name, hint in (("settling", "nothing to do: they settle"), ("no key", "send the key")):
        classes = {name: {**found, "hint": hint}}
        document = {"flag": FLAG, "has_rollout": True, "events": 1, "classes": classes}
        show_flag_events(console, {**document, "remarks": {}}, "read")
    lines = [line.strip() for line in stream.getvalue().splitlines()]
    assert "nothing to do: they settle" in lines
    assert "to do: send the key" in lines
