"""Fields that nothing reads: which are additions, and which were meant to be others."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from rich.console import Console

from controller.cli.event_lines import show_flag_events, show_summary
from controller.counting.event_classes import FIELD_HINTS
from controller.counting.event_fields import (
    _COUNTS,
    _OTHER_WORDS,
    encoding_words,
    fields_sent,
    meant_field,
)
from controller.counting.event_tally import EventTally
from controller.counting.flag_tally import EventSample
from controller.ports import Record
from schemas.evaluation import Evaluation
from schemas.outcome import Outcome
from schemas.terms import EventClass, EventRemark
from schemas.wire import read_evaluations, read_outcomes
from tests.records import at_ms, evaluation_value, make_record, outcome_value
from tests.unit.counting.partition_counting import AT, make_directory

FLAG = "new-checkout"


def make_tally() -> EventTally:
    """Return a tally of one flag's rollout."""
    return EventTally(make_directory(), read_evaluations, read_outcomes)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (gzip.compress(b"{}", mtime=0), "is compressed with gzip"),
        (b"\x00\x00\x00\x00\x07avro", "begins as Avro or Protobuf of a schema registry; send JSON"),
        ("\ufeff{}".encode(), "begins with a byte order mark; leave it out"),
        ("{}".encode("utf-16"), "is UTF-16; send UTF-8"),
        (b"{", None),
        (b"", None),
    ],
)
def test_what_is_no_json_is_told_by_its_beginning(value: bytes, words: str | None) -> None:
    """A sender that compresses or uses a registry is not helped by the place of a byte."""
    record = make_record(0, value, topic="e", timestamp_ms=at_ms(AT))
    (sample,) = make_tally().add_evaluations(("e", 0), record)
    said = encoding_words(value)
    assert (said is None) == (words is None)
    assert said is None or (said.startswith(f"the value {words}") and sample.why.endswith(said))


def outcome(tally: EventTally, **fields: Any) -> EventSample:
    """Read an outcome of the flag with further fields."""
    event = json.loads(outcome_value("u1", time_ms=at_ms(AT), flags=((FLAG, "on"),)))
    event["data"].update(fields)
    record = make_record(0, json.dumps(event).encode(), topic="o", timestamp_ms=at_ms(AT))
    (sample,) = tally.add_outcomes(("o", 0), record, flags_of=lambda *_: [])
    return sample


@pytest.mark.parametrize(
    "name",
    ["error_type", "errorType", "error-type", "is_error", "is_eror", "faild", "eror.type"],
)
def test_a_failure_under_another_name_does_not_pass_silently(name: str) -> None:
    """It counts, since a sender may be newer; and everybody who looks is asked what was meant."""
    tally = make_tally()
    sample = outcome(tally, **{name: "500"})
    assert sample.remarks == (EventRemark.MISNAMED_FIELD,)
    assert sample.why == f"nothing reads its field {name}; did you mean error.type?"
    with (console := Console(width=200)).capture() as shown:
        show_flag_events(console, tally.document(FLAG), "read")
    assert "misnamed field" in shown.get()
    assert "did you mean error.type?" in shown.get()
    assert f"fields that nothing reads: {name} (1)" in shown.get()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("duration_ms", "http.server.request.duration"),
        ("http.server.duration", "http.server.request.duration"),  # OpenTelemetry's former name
        ("http.server.request_duration", "http.server.request.duration"),
        ("feature_flag.context_id", "feature_flag.context.id"),
        ("rolloutd_flags", "rolloutd.flags"),
        ("rolloutd.flag", "rolloutd.flags"),
        ("flag", "rolloutd.flags"),
        ("targetingKye", "feature_flag.context.id"),
        ("latncy_ms", "http.server.request.duration"),
        ("conversion", "rolloutd.conversions"),
    ],
)
def test_every_field_that_counts_has_its_near_misses(name: str, meant: str) -> None:
    """Not only the failure: without a duration or its conversions an outcome says less, too."""
    assert meant_field(name, "outcome") == meant


@pytest.mark.parametrize(
    "fields",
    [
        {"trace_id": "abc", "http.client.ip": "10.0.0.1", "team": "payments"},
        {"error": False},
        {"error_type": None},
        {"error_type": "500", "error.type": "500"},
        {"http.route": "/x", "http.request.method": "GET", "http.response.status_code": 200},
        {"http.client.request.duration": 0.2, "rpc.server.duration": 3},
        {"user_agent.name": "x", "url.path": "/", "server.address": "y", "error.message": "z"},
    ],
)
def test_additions_and_what_says_nothing_new_are_no_fault(fields: dict[str, Any]) -> None:
    """Producers may send more than rolloutd reads, today or later."""
    assert outcome(make_tally(), **fields).remarks == ()


@pytest.mark.parametrize(
    "name", ["feature_flag.set.id", "feature_flag.context.kind", "feature_flag.result.reason"]
)
@pytest.mark.parametrize("kind", ["outcome", "evaluation"])
def test_other_names_of_opentelemetry_are_not_mistyped(name: str, kind: str) -> None:
    """They are near in letters, and fields of their own."""
    assert meant_field(name, kind) is None


@pytest.mark.parametrize("name", ["conversation", "lags", "mirror", "contexts", "erf", ""])
def test_other_words_that_are_near_are_not_mistyped(name: str) -> None:
    """One letter is a slip; more, or the first one, make another word."""
    assert meant_field(name, "outcome") is None


def test_a_misnamed_list_of_flags_is_named_where_the_outcome_is_lost() -> None:
    """The outcome joins nothing, so its flag cannot show it: the events without a flag do."""
    tally = make_tally()
    event = json.loads(outcome_value("u1", time_ms=at_ms(AT), flags=((FLAG, "on"),)))
    event["data"]["rolloutd.flag"] = event["data"].pop("rolloutd.flags")
    record = make_record(0, json.dumps(event).encode(), topic="o", timestamp_ms=at_ms(AT))
    (sample,) = tally.add_outcomes(("o", 0), record, flags_of=lambda *_: [])
    assert sample.event_class is EventClass.UNJOINED
    assert "did you mean rolloutd.flags?" in sample.why
    document = tally.document(FLAG) | {"unattributed": tally.unattributed.document()}
    with (console := Console(width=400)).capture() as shown:
        show_flag_events(console, document, "read")
    assert "misnamed field" in shown.get()
    assert "`rolloutd.flags` lists each flag" in shown.get()
    assert "fields that nothing reads: rolloutd.flag (1)" in shown.get()


def test_a_misnamed_field_is_named_also_where_the_event_does_not_count() -> None:
    """Whoever is shown an event for its field is asked after that field."""
    tally = make_tally()
    early = at_ms(AT) - 86_400_000
    event = json.loads(outcome_value("u1", time_ms=early, flags=((FLAG, "on"),)))
    event["data"]["error_type"] = "500"
    record = make_record(0, json.dumps(event).encode(), topic="o", timestamp_ms=early)
    (sample,) = tally.add_outcomes(("o", 0), record, flags_of=lambda *_: [])
    assert sample.event_class is EventClass.BEFORE_START
    assert sample.why.endswith("; nothing reads its field error_type; did you mean error.type?")


def test_a_misnamed_variant_is_named_where_the_variant_is_unknown() -> None:
    """What the plan has stays the last part, which alerts read."""
    event = json.loads(evaluation_value("u1", "on", time_ms=at_ms(AT), flag=FLAG))
    event["data"]["varient"] = event["data"].pop("feature_flag.result.variant")
    event["data"]["feature_flag.result.value"] = "blue"
    record = Record("e", 0, 0, at_ms(AT), b"u1", json.dumps(event).encode(), ())
    (sample,) = make_tally().add_evaluations(("e", 0), record)
    assert sample.event_class is EventClass.UNKNOWN_VARIANT
    assert "did you mean feature_flag.result.variant?" in sample.why


def test_the_hint_is_about_the_field_that_was_meant() -> None:
    """A misnamed conversion is no failure."""
    tally = make_tally()
    outcome(tally, **{"rolloutd.conversion": ["purchase"]})
    hint = tally.document(FLAG)["remarks"]["misnamed_field"]["hint"]
    assert "`rolloutd.conversions` lists" in hint
    assert "error.type" not in hint


def test_every_field_that_counts_has_its_hint() -> None:
    """A field that is asked after is explained."""
    counts = {name for names in _COUNTS.values() for name in names}
    assert counts == set(FIELD_HINTS) == set(_OTHER_WORDS.values())


def test_an_evaluation_with_its_context_under_another_name_is_remarked() -> None:
    """Then the record's key is taken for the context."""
    event = json.loads(evaluation_value("u1", "on", time_ms=at_ms(AT), flag=FLAG))
    event["data"]["contextId"] = event["data"].pop("feature_flag.context.id")
    record = Record("e", 0, 0, at_ms(AT), b"u1", json.dumps(event).encode(), ())
    (sample,) = make_tally().add_evaluations(("e", 0), record)
    assert "did you mean feature_flag.context.id?" in sample.why


def refused(kind: str, data: dict[str, Any], tally: EventTally) -> EventSample:
    """Read an event with this data that is refused."""
    type_ = f"io.rolloutd.{kind}.v1"
    event = {"specversion": "1.0", "type": type_, "source": "/x", "id": "1", "data": data}
    record = make_record(0, json.dumps(event).encode(), topic="t", timestamp_ms=at_ms(AT))
    if kind == "evaluation":
        (sample,) = tally.add_evaluations(("t", 0), record)
    else:
        (sample,) = tally.add_outcomes(("t", 0), record, flags_of=lambda *_: [])
    assert sample.event_class is EventClass.REFUSED
    return sample


CONTEXT = {"feature_flag.context.id": "u1"}
KEY, VARIANT = "feature_flag.key", "feature_flag.result.variant"


@pytest.mark.parametrize(
    ("kind", "data", "name", "meant"),
    [
        ("evaluation", {"feature_flag.kee": FLAG, VARIANT: "on"}, "feature_flag.kee", KEY),
        ("evaluation", {"feature_flag_key": FLAG, VARIANT: "on"}, "feature_flag_key", KEY),
        ("evaluation", {"flagKey": FLAG, VARIANT: "on"}, "flagKey", KEY),
        ("evaluation", {KEY: FLAG, "varient": "on"}, "varient", VARIANT),
        ("evaluation", {KEY: FLAG, "feature_flag.result.varient": "on"},
         "feature_flag.result.varient", VARIANT),
        ("evaluation", {KEY: FLAG, "variation": "on"}, "variation", VARIANT),
        ("outcome", {"rolloutd.flags": [{"feature_flag.kye": FLAG, VARIANT: "on"}]},
         "feature_flag.kye", KEY),
        ("outcome", {"rolloutd.flags": [{KEY: FLAG, "variant": "on"}]}, "variant", VARIANT),
    ],
)  # fmt: skip
def test_a_refused_event_is_asked_after_its_misnamed_field(
    kind: str, data: dict[str, Any], name: str, meant: str
) -> None:
    """Why it is refused names a field that its sender believes to have sent."""
    tally = make_tally()
    sample = refused(kind, data | CONTEXT, tally)
    assert sample.why.endswith(f"; nothing reads its field {name}; did you mean {meant}?")
    with (console := Console(width=400)).capture() as shown:
        show_summary(console, tally.summary(), "read")
    assert f"did you mean {meant}?" in shown.get()


def test_a_refused_event_without_a_near_name_is_not_asked_after() -> None:
    """What is refused for another reason says that reason alone."""
    assert "did you mean" not in refused("evaluation", {"a": 1, **CONTEXT}, make_tally()).why


def test_without_a_flag_misnamed_fields_are_shown_too() -> None:
    """Of each flag's events, and of those that name none."""
    tally = make_tally()
    outcome(tally, error_type="500")
    event = json.loads(outcome_value("u1", time_ms=at_ms(AT), flags=((FLAG, "on"),)))
    event["data"]["rolloutd.flag"] = event["data"].pop("rolloutd.flags")
    record = make_record(0, json.dumps(event).encode(), topic="o", timestamp_ms=at_ms(AT))
    tally.add_outcomes(("o", 0), record, flags_of=lambda *_: [])
    with (console := Console(width=400)).capture() as shown:
        show_summary(console, tally.summary(), "read")
    lines = [line.strip() for line in shown.get().splitlines()]
    question = "nothing reads its field error_type; did you mean error.type?"
    assert f"misnamed field in 1 event: {question}" in lines
    assert "did you mean rolloutd.flags?" in shown.get()
    assert "fields that nothing reads: rolloutd.flag (1)" in lines
    assert any(line.startswith("misnamed field") and line.endswith("1 event") for line in lines)
    assert sum("did you mean rolloutd.flags?" in line for line in lines) == 1, "once per event"


def test_what_the_contract_names_is_read_or_known() -> None:
    """No field of the contract is listed as one that nothing reads."""
    for kind, model in (("outcome", Outcome), ("evaluation", Evaluation)):
        names = [field.alias for field in model.model_fields.values()]
        sent = fields_sent(json.dumps(dict.fromkeys(filter(None, names), "x")).encode(), kind)
        assert sent.unread == ()


@pytest.mark.parametrize("value", [None, b"", b"[]", b"7", b"\xff", b'{"data":' * 2000])
def test_what_is_no_event_says_nothing(value: bytes | None) -> None:
    """The readers have refused it; this one raises nothing."""
    assert fields_sent(value, "outcome").unread == ()


def test_a_name_cannot_control_a_terminal_or_forge_a_line() -> None:
    """Names of fields stand in alerts and on screens, and senders choose them."""
    hostile = "error\x1b\ntype"
    sent = fields_sent(json.dumps({"data": {hostile: "500", "\u202ex": 1}}).encode(), "outcome")
    assert all(name.isprintable() for name in sent.unread)
    sample = outcome(make_tally(), **{"error\x1btype": "500"})
    assert sample.why == "nothing reads its field error?type; did you mean error.type?"


def test_names_are_bounded() -> None:
    """Senders choose them."""
    tally = make_tally()
    for number in range(50):
        outcome(tally, **{f"x{number}-{place}": 1 for place in range(30)}, **{"y" * 5000: 1})
    document = tally.document(FLAG)
    assert len(document["unread_fields"]) == 20
    assert all(len(name) <= 80 for name in document["unread_fields"])
