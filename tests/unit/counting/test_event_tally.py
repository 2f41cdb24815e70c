"""What is kept of events: counts, samples and what looks wrong, bounded."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from controller.core.rollout import Scheduled
from controller.counting.event_classes import HINTS
from controller.counting.event_sampling import READ_PER_SECOND, EventSampling
from controller.counting.event_tally import MOST_UNKNOWN_FLAGS, EventTally
from controller.counting.flag_tally import SAMPLES, EventSample, OutcomeReading
from controller.counting.folding.flags_to_count import FlagsToCount
from controller.ports import Record
from schemas.terms import Arm, EventClass, EventRemark
from schemas.wire import read_evaluations, read_outcomes
from tests.builders import HOUR, MINUTE, T0, make_rollout, make_visit
from tests.records import LINES, at_ms, evaluation_value, make_record, outcome_value
from tests.unit.counting.partition_counting import AT, make_directory

FLAG = "new-checkout"


def make_tally() -> EventTally:
    """Return a tally of one flag's rollout."""
    return EventTally(make_directory(), read_evaluations, read_outcomes)


def no_exposures(context: str, time_ms: int) -> list[tuple[str, str]]:
    """Join nothing."""
    return []


def evaluation(
    variant: str = "on",
    *,
    context: str = "u1",
    flag: str = FLAG,
    at: datetime = AT,
    partition: int = 0,
    offset: int = 0,
    key: bytes | None = b"u1",
    delay_ms: int = 0,
) -> Record:
    """Return the record of an evaluation, which arrives `delay_ms` after it happened."""
    value = evaluation_value(context, variant, time_ms=at_ms(at), flag=flag)
    return Record("flag.evaluations", partition, offset, at_ms(at) + delay_ms, key, value, ())


def outcome(*, latency_ms: float, context: str = "u1") -> Record:
    """Return the record of an outcome that names the flag."""
    value = outcome_value(context, time_ms=at_ms(AT), flags=((FLAG, "on"),), latency_ms=latency_ms)
    return make_record(0, value, topic="request.outcomes", timestamp_ms=at_ms(AT))


def read(tally: EventTally, record: Record) -> list[EventSample]:
    """Read the evaluations of a record."""
    return tally.add_evaluations((record.topic, record.partition), record)


def test_the_commonest_mistake_is_shown_with_its_words() -> None:
    """`treatment` in place of `on`: the class, the variant, what the plan has, and where."""
    tally = make_tally()
    read(tally, evaluation("on"))
    read(tally, evaluation("treatment", partition=3, offset=17))
    document = tally.document(FLAG)
    assert document["classes"]["counted"]["evaluations"] == 1
    found = document["classes"]["unknown_variant"]
    assert (found["evaluations"], found["outcomes"]) == (1, 0)
    assert found["hint"] == HINTS[EventClass.UNKNOWN_VARIANT]
    assert found["samples"] == [
        {
            "class": "unknown_variant",
            "kind": "evaluation",
            "topic": "flag.evaluations",
            "partition": 3,
            "offset": 17,
            "time": "2026-01-05T09:10:00.000Z",
            "variant": "treatment",
            "arm": None,
            "context": "u1",
            "why": "the plan has no variant treatment; it has on, off",
            "remarks": ["scattered"],
            "unread_fields": [],
            "outcome": None,
        }
    ]
    assert document["unknown_variants"] == {"treatment": 1}


def test_every_class_and_remark_has_a_hint() -> None:
    """Nothing is shown without what to do about it."""
    assert set(HINTS) == {*EventClass, *EventRemark}


def test_events_of_an_earlier_rollout_are_not_called_faults() -> None:
    """After a restart the topics still hold them; only newer ones would need a clock that is set.

    While the first stage has not begun there is nothing to do.
    """
    tally = make_tally()
    read(tally, evaluation(at=T0 - HOUR))
    hint = tally.document(FLAG)["classes"]["before_start"]["hint"]
    assert hint.startswith("nothing to do for events from before this rollout began")
    assert "start the rollout" not in hint
    waiting = EventTally(FlagsToCount(), read_evaluations, read_outcomes)
    waiting.flags_to_count.count_for(make_rollout(phase=Scheduled(T0 + HOUR), visits=()))
    read(waiting, evaluation())
    found = waiting.document(FLAG)["classes"]["before_start"]
    assert found["hint"] == HINTS[EventClass.BEFORE_START]


def test_a_misspelled_flag_has_its_nearest() -> None:
    """An event of a flag without a rollout is kept under its own name."""
    tally = make_tally()
    read(tally, evaluation(flag="newcheckout"))
    document = tally.document("newcheckout")
    assert (document["has_rollout"], document["nearest"], document["events"]) == (False, FLAG, 1)
    assert tally.summary()["unknown_flags"] == {"newcheckout": {"events": 1, "nearest": FLAG}}


@pytest.mark.parametrize(
    ("record", "remark"),
    [
        (evaluation(delay_ms=11 * 60_000), EventRemark.OLD_TIME),
        (evaluation(partition=1, key=None), EventRemark.NO_KEY),
    ],
)
def test_what_misleads_is_remarked(record: Record, remark: EventRemark) -> None:
    """A counted event may look wrong: its time, its key."""
    (sample,) = read(make_tally(), record)
    assert (sample.event_class, sample.remarks) == (EventClass.COUNTED, (remark,))
    assert sample.why


def test_milliseconds_given_as_seconds_are_remarked() -> None:
    """183 seconds are possible and unlikely."""
    tally = make_tally()
    tally.add_outcomes(("request.outcomes", 0), outcome(latency_ms=183_000), flags_of=no_exposures)
    tally.add_outcomes(("request.outcomes", 0), outcome(latency_ms=183), flags_of=no_exposures)
    found = tally.of(FLAG)
    assert found is not None
    assert (found.window.timed, found.window.remarks) == (2, {EventRemark.SLOW: 1})


@pytest.mark.parametrize("is_binary", [False, True])
def test_how_an_outcome_was_understood_is_kept(is_binary: bool) -> None:
    """Failed or not, its duration, its arm, and whether its context led to its flag."""
    value = json.loads(outcome_value("u1", time_ms=at_ms(AT), error=True, latency_ms=183))
    headers = [("ce_specversion", b"1.0"), ("ce_type", b"io.rolloutd.outcome.v1")]
    headers += [("ce_id", b"1"), ("ce_source", b"/app"), ("content-type", b"application/json")]
    record = Record(
        "request.outcomes",
        0,
        0,
        at_ms(AT),
        b"u1",
        json.dumps(value["data"] if is_binary else value).encode(),
        tuple(headers) if is_binary else (),
    )
    (sample,) = make_tally().add_outcomes(
        ("request.outcomes", 0), record, flags_of=lambda *_: [(FLAG, "off")]
    )
    assert (sample.event_class, sample.arm) == (EventClass.COUNTED, Arm.CONTROL)
    understood = OutcomeReading(True, "500", None, 183.0, (), is_joined=True)
    assert sample.outcome == understood
    assert sample.document()["outcome"] == understood.document()


def test_a_failure_without_error_type_is_remarked() -> None:
    """A status code alone is not read: the request counts as a success."""
    value = json.loads(outcome_value("u1", time_ms=at_ms(AT), flags=((FLAG, "on"),)))
    tally = make_tally()
    for status, error in ((503, None), (404, None), (503, "503"), ("503", None), (True, None)):
        data = value["data"] | {"http.response.status_code": status}
        if error:
            data["error.type"] = error
        record = make_record(
            0, json.dumps(value | {"data": data}).encode(), topic="o", timestamp_ms=at_ms(AT)
        )
        (sample,) = tally.add_outcomes(("o", 0), record, flags_of=no_exposures)
        is_unseen = EventRemark.NO_ERROR_TYPE in sample.remarks
        assert is_unseen == ((status, error) == (503, None))
    found = tally.of(FLAG)
    assert found is not None
    assert found.counts.remarks == {EventRemark.NO_ERROR_TYPE: 1}
    sample = found.samples[EventRemark.NO_ERROR_TYPE][0]
    assert sample.why == "its status code is 503, but without error.type it counts as a success"


def test_conversions_that_no_guardrail_names_are_kept_apart() -> None:
    """They are read, and nothing counts them."""
    value = outcome_value(
        "u1", time_ms=at_ms(AT), flags=((FLAG, "on"),), conversions=("checkout", "wink")
    )
    record = make_record(0, value, topic="o", timestamp_ms=at_ms(AT))
    tally = make_tally()
    counted = frozenset({"checkout"})
    object.__setattr__(tally.flags_to_count.flags[FLAG], "conversions", counted)
    (sample,) = tally.add_outcomes(("o", 0), record, flags_of=no_exposures)
    assert sample.outcome is not None
    assert sample.outcome.conversions == ("checkout", "wink")
    assert sample.uncounted_conversions == ("wink",)


def test_of_one_context_only_its_events_are_counted() -> None:
    """Those of others are left out."""
    tally = make_tally()
    tally.only_context = "u1"
    assert len(read(tally, evaluation("on"))) == 1
    assert read(tally, evaluation("on", context="u2")) == []
    assert tally.document(FLAG)["events"] == 1


def test_a_context_that_moves_to_another_partition_once_is_remarked_once() -> None:
    """A topic with more partitions than before is no fault that lasts."""
    tally = make_tally()
    for number, partition in enumerate([0, 1, 1, 1]):
        read(tally, evaluation(partition=partition, offset=number))
    found = tally.of(FLAG)
    assert found is not None
    assert found.counts.remarks == {EventRemark.SCATTERED: 1}


def test_a_refused_record_counts_for_the_flags_that_it_names() -> None:
    """As far as its text is JSON; any other counts for no flag."""
    tally = make_tally()
    value = json.loads(evaluation_value("u1", "on", time_ms=at_ms(AT)))
    value["time"] = "yesterday"
    read(tally, make_record(0, json.dumps(value).encode()))
    read(tally, make_record(1, b"{"))
    assert tally.document(FLAG)["classes"]["refused"]["evaluations"] == 1
    assert tally.unattributed.counts.classes == {EventClass.REFUSED: 1}


def test_a_summary_guesses_what_a_mistyped_flag_meant() -> None:
    """Also where letters are exchanged; `events FLAG` did, and `events` did not."""
    tally = make_tally()
    typo = FLAG.replace("check", "chekc")
    read(tally, evaluation(flag=typo))
    assert tally.summary()["unknown_flags"] == {typo: {"events": 1, "nearest": FLAG}}


def test_nothing_that_senders_choose_grows_without_bound() -> None:
    """Flags, variants and samples are bounded."""
    tally = make_tally()
    for number in range(3 * MOST_UNKNOWN_FLAGS):
        read(tally, evaluation(flag=f"flag-{number}"))
        read(tally, evaluation(f"variant-{number}", context=f"u{number}"))
    found = tally.of(FLAG)
    assert found is not None
    assert len(tally.unknown_flags) == MOST_UNKNOWN_FLAGS
    assert len(found.unknown_variants) == 20
    assert len(found.samples[EventClass.UNKNOWN_VARIANT]) == SAMPLES


def test_another_rollout_of_a_flag_begins_again() -> None:
    """What the events of the rollout before were says nothing about this one."""
    tally = make_tally()
    read(tally, evaluation("treatment"))
    flags = tally.flags_to_count.flags
    object.__setattr__(flags[FLAG], "rollout_id", "start-2")
    read(tally, evaluation("on"))
    found = tally.of(FLAG)
    assert found is not None
    assert found.counts.classes == {EventClass.COUNTED: 1}


def test_the_most_frequent_unknown_flags_stay_in_the_list() -> None:
    """However many names senders make up meanwhile (a name with more than its share is kept)."""
    known = FlagsToCount(unknown_names_limit=5)
    for number in range(1000):
        known.count_unknown(f"noise-{number}")
        known.count_unknown("newcheckout")
    assert known.unknown_flags == 2000
    assert len(known.unknown_names) <= 5
    assert next(iter(known.most_unknown())) == "newcheckout"


# --- which records are read ---


def offer(sampling: EventSampling, count: int, now: float, partition: int = 0) -> None:
    """Offer a batch of counted records."""
    records = [evaluation(partition=partition, offset=number) for number in range(count)]
    sampling.offer(
        ("flag.evaluations", partition),
        records,
        now,
        at_ms(T0 + HOUR),
        of_evaluations=True,
        flags_of=no_exposures,
    )


def test_few_records_are_all_read() -> None:
    """Then the numbers are exact."""
    tally = make_tally()
    sampling = EventSampling(tally, of_packed=False)
    for second in range(10):
        offer(sampling, 7, float(second))
    found = tally.of(FLAG)
    assert found is not None
    assert (found.counts.read, found.counts.total) == (70, 70)


def test_of_many_records_a_bounded_number_is_read_and_stands_for_all() -> None:
    """Every partition has its share, and the estimate adds up to what was counted."""
    tally = make_tally()
    sampling = EventSampling(tally, of_packed=False)
    for second in range(5):
        for tenth in range(10):
            for partition in range(4):
                offer(sampling, 1000, second + tenth / 10, partition)
    found = tally.of(FLAG)
    assert found is not None
    # five seconds, and a first batch of each partition before the others are known
    assert found.counts.read <= 7 * READ_PER_SECOND
    assert found.counts.total == pytest.approx(200_000, rel=0.2)  # 50,000 of each


def test_a_mistake_in_it_does_not_stop_counting() -> None:
    """It is logged once, and nothing more is read."""
    tally = make_tally()
    tally.add_evaluations = None  # type: ignore[assignment,method-assign]
    sampling = EventSampling(tally, of_packed=False)
    offer(sampling, 3, 0.0)
    offer(sampling, 3, 1.0)
    assert tally.of(FLAG) is None


def test_a_record_of_many_events_is_read_in_part() -> None:
    """The events that are read stand for the others."""
    tally = EventTally(make_directory(), *LINES)
    EventSampling(tally, of_packed=True)
    value = b"\n".join(
        evaluation_value(f"u{number}", "on", time_ms=at_ms(AT)) for number in range(1000)
    )
    read(tally, make_record(0, value))
    found = tally.of(FLAG)
    assert found is not None
    assert (found.counts.read, found.counts.total) == (100, 1000)


def test_a_closed_time_is_told_from_settling() -> None:
    """Who reads `settling` waits for a minute; a closed rollout counts nothing until it opens."""
    known = make_directory()
    visit = make_visit().closed(AT).opened(AT + HOUR).closed(AT + 2 * HOUR)
    known.count_for(make_rollout(visits=(visit,), revision=99))
    tally = EventTally(known, *LINES)
    for at in (T0 + MINUTE / 60, AT, AT + HOUR, AT + 3 * HOUR):
        read(tally, evaluation(at=at))
    found = tally.of(FLAG)
    assert found is not None
    classes = {one: round(count) for one, count in found.counts.classes.items()}
    assert classes == {EventClass.SETTLING: 1, EventClass.CLOSED: 2, EventClass.COUNTED: 1}


def test_settling_is_told_from_too_early() -> None:
    """The two look alike to counting, and only one needs a person."""
    tally = make_tally()
    for at in (T0 - HOUR, T0 + MINUTE / 60):
        read(tally, evaluation(at=at))
    found = tally.of(FLAG)
    assert found is not None
    assert set(found.counts.classes) == {EventClass.BEFORE_START, EventClass.SETTLING}
