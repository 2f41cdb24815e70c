"""`rolloutctl events` and `rolloutctl quarantine` on a real broker, without a daemon."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from aiokafka import AIOKafkaProducer

from controller.codec.rollouts import state_event
from controller.settings import KafkaSettings
from schemas import quarantine
from schemas.record_refused import RecordRefused
from schemas.terms import EventFormat, QuarantineReason
from tests.builders import make_rollout, make_visit
from tests.cli_process import rolloutctl, spawn
from tests.conftest import CreateTopics
from tests.records import at_ms, evaluation_value, outcome_value
from tests.telemetry import Request, export_of_spans

pytestmark = pytest.mark.real_kafka

FLAG = "new-checkout"
TOPICS = ("evaluations", "outcomes", "state", "quarantine")


@pytest.fixture
async def settings(kafka: str, topic_prefix: str, create_topics: CreateTopics) -> KafkaSettings:
    """Settings of a daemon whose topics exist."""
    made = KafkaSettings(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    await create_topics(*(made.topic(topic) for topic in TOPICS))
    return made


async def start_rollout(producer: AIOKafkaProducer, settings: KafkaSettings) -> datetime:
    """Publish a rollout that began an hour ago, and return the time."""
    now = datetime.now(UTC)
    began = now - timedelta(hours=1)
    visit = make_visit(entered_at=began, counts_from=began + timedelta(minutes=1))
    rollout = make_rollout(visits=(visit,), started_at=began, updated_at=now)
    event = state_event(rollout, "new-checkout/1/0", now)
    await producer.send_and_wait(settings.topic("state"), event, FLAG.encode())
    return now


async def test_outcomes_without_flags_are_joined_as_counting_joins_them(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """To the evaluation of their context, whatever partition each is in; others are named."""
    now = await start_rollout(producer, settings)
    for number in range(20):
        user = f"u{number}"
        # Both records get the same time: the evaluation is read first all the same.
        for topic, value in (
            ("evaluations", evaluation_value(user, "on", time_ms=at_ms(now) - 1000)),
            ("outcomes", outcome_value(user, time_ms=at_ms(now), latency_ms=183_000)),
        ):
            await producer.send_and_wait(
                settings.topic(topic), value, user.encode(), timestamp_ms=at_ms(now)
            )
    await producer.send_and_wait(
        settings.topic("outcomes"), outcome_value("stranger", time_ms=at_ms(now)), b"stranger"
    )
    code, out, err = await rolloutctl(settings, "events", FLAG, "--json")
    assert code == 0, err
    found = json.loads(out)
    counted = found["classes"]["counted"]
    assert (counted["evaluations"], counted["outcomes"]) == (20, 20), out
    assert found["remarks"]["slow"]["events"] == 20
    assert found["unattributed"]["classes"]["unjoined"]["outcomes"] == 1


async def test_both_topics_are_read_over_one_span(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """One outcome in ten evaluations stays one in ten, however few records are read.

    Ids are whole, so that one can be given to --context.
    """
    now = await start_rollout(producer, settings)
    for number in range(300):
        user, at = f"customer-{number:04}", now - timedelta(seconds=330 - number)
        sent = [("evaluations", evaluation_value(user, "on", time_ms=at_ms(at)))]
        if number % 10 == 9:
            sent.append(("outcomes", outcome_value(user, time_ms=at_ms(at), latency_ms=183_000)))
        for topic, value in sent:
            await producer.send(settings.topic(topic), value, user.encode(), timestamp_ms=at_ms(at))
    await producer.flush()
    code, out, err = await rolloutctl(settings, "events", FLAG, "--json", "--last", "60")
    assert code == 0, err
    found = json.loads(out)
    counted = found["classes"]["counted"]
    assert 20 <= counted["evaluations"] <= 60
    assert counted["evaluations"] / 10 - 1 <= counted["outcomes"] <= counted["evaluations"] / 10 + 1
    assert found["read"]["is_cut"]
    assert "unjoined" not in found["unattributed"]["classes"]
    sample = found["remarks"]["slow"]["samples"][-1]["context"]
    assert sample == "customer-0299"
    _, people, _ = await rolloutctl(settings, "events", FLAG, "--last", "60")
    assert "customer-0299" in people
    assert "and some older ones" not in people


async def test_events_of_others_are_left_out_for_a_context(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """A refused record belongs to the context that its key or its text names."""
    now = await start_rollout(producer, settings)
    await producer.send_and_wait(settings.topic("evaluations"), b"nonsense", b"u2")
    for user in ("u1", "u2"):
        ended = outcome_value(user, time_ms=at_ms(now))
        await producer.send_and_wait(settings.topic("outcomes"), ended, user.encode())
    for options, refused, unjoined in (
        ((), 1, ["u1", "u2"]),
        (("--context", "u1"), 0, ["u1"]),
        (("--context", "u2"), 1, ["u2"]),
    ):
        code, out, err = await rolloutctl(settings, "events", FLAG, "--json", *options)
        assert code == 0, err
        classes = json.loads(out.splitlines()[-1])["unattributed"]["classes"]
        assert classes.get("refused", {"evaluations": 0})["evaluations"] == refused
        assert classes["unjoined"]["outcomes"] == len(unjoined)
        assert sorted(one["context"] for one in classes["unjoined"]["samples"]) == unjoined


async def test_an_app_developer_sees_how_each_event_was_understood(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """Failed or ok, with which duration, in which arm, and why it does not count."""
    now = await start_rollout(producer, settings)
    evaluated = evaluation_value("u1", "on", time_ms=at_ms(now) - 1000)
    await producer.send_and_wait(settings.topic("evaluations"), evaluated, b"u1")
    unmarked = json.loads(outcome_value("u1", time_ms=at_ms(now) - 400, flags=((FLAG, "on"),)))
    unmarked["data"]["http.response.status_code"] = 503
    outcomes = (
        outcome_value("u1", time_ms=at_ms(now) - 800, error=True, latency_ms=183),
        outcome_value("u1", time_ms=at_ms(now) - 600, flags=((FLAG, "off"),), latency_ms=1.5),
        json.dumps(unmarked).encode(),
        outcome_value("u1", time_ms=at_ms(now) - 200, flags=((FLAG, "treatment"),)),
        outcome_value("u2", time_ms=at_ms(now), flags=((FLAG, "on"),)),
    )
    for value in outcomes:
        await producer.send_and_wait(settings.topic("outcomes"), value, b"u1")
    code, out, err = await rolloutctl(settings, "events", FLAG, "--context", "u1")
    assert code == 0, err
    shown = [line.partition("Z  ")[2] for line in out.splitlines() if line.startswith("20")]
    expected = (
        ("counted         evaluation  new-checkout on (treatment) of u1  ", ""),
        ("counted         outcome     new-checkout on (treatment) of u1  ",
         "failed (error.type 500), 183 ms, joined by context"),
        ("counted         outcome     new-checkout off (control) of u1  ", "ok, 1.5 ms"),
        ("counted         outcome     new-checkout on (treatment) of u1  ",
         "ok (status 503), no duration"),
        ("unknown variant outcome     new-checkout treatment of u1  ", "ok, no duration"),
    )  # fmt: skip
    assert len(shown) == len(expected)
    for line, (what, understood) in zip(shown, expected, strict=True):
        assert line.startswith(what + understood)
    assert "its status code is 503, but without error.type it counts as a success" in shown[3]
    assert "the plan has no variant treatment; it has on, off" in shown[4]
    topics = f"{settings.topic('evaluations')} and {settings.topic('outcomes')}"
    assert f"6 records read of {topics}, from " in out


async def test_a_context_without_events_is_said_with_what_was_read(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """And what to check next: nothing at all, other flags, or records that do not name it."""
    code, out, err = await rolloutctl(settings, "events", FLAG, "--context", "u1")
    assert (code, out) == (1, "")
    assert f"no event of the context u1 for the flag {FLAG}: 0 records read of " in err
    assert "next: check that apps send to Kafka at " in err
    now = await start_rollout(producer, settings)
    value = evaluation_value("u1", "on", time_ms=at_ms(now), flag="new-checkuot")
    await producer.send_and_wait(settings.topic("evaluations"), value, b"u1")
    code, out, err = await rolloutctl(settings, "events", FLAG, "--context", "u1")
    assert (code, out) == (1, "")
    assert "it has events of other flags: new-checkuot (1)" in err
    code, out, err = await rolloutctl(settings, "events", FLAG, "--context", "U1", "--json")
    assert code == 1
    found = json.loads(out)
    assert (found["context_events"], found["read"]["records"]) == (0, 1)
    assert found["read"]["topics"] == [settings.topic("evaluations"), settings.topic("outcomes")]
    assert "compare the id with feature_flag.context.id" in err


async def test_of_many_records_the_newest_are_read(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """And the output says so."""
    now = await start_rollout(producer, settings)
    for number in range(400):
        value = evaluation_value(f"u{number}", "on", time_ms=at_ms(now))
        await producer.send(settings.topic("evaluations"), value, f"u{number}".encode())
    await producer.flush()
    code, out, err = await rolloutctl(settings, "events", FLAG, "--last", "40")
    assert code == 0, err
    # Each partition is cut at the moment at which the one with most records is.
    read = re.search(r"(\d+) records read", out)
    assert read is not None
    assert 1 <= int(read[1]) <= 40
    assert "--last reads more" in out


async def test_spans_in_one_topic_are_both_events(
    settings: KafkaSettings, producer: AIOKafkaProducer, create_topics: CreateTopics
) -> None:
    """In the format of the Collector, an evaluation and an outcome each."""
    now = await start_rollout(producer, settings)
    topic = f"{settings.topic_prefix}otlp_spans"
    await create_topics(topic)
    spans = [Request(f"u{number}", [(FLAG, "on")], at_ms(now)) for number in range(10)]
    await producer.send_and_wait(topic, export_of_spans(spans, EventFormat.OTLP_JSON))
    kinds = ("EVALUATIONS", "OUTCOMES")
    environ = {
        **{f"ROLLOUTD_KAFKA__TOPICS__{kind}": "otlp_spans" for kind in kinds},
        **{f"ROLLOUTD_KAFKA__FORMATS__{kind}": "otlp_json" for kind in kinds},
    }
    code, out, err = await rolloutctl(settings, "events", FLAG, "--json", **environ)
    assert code == 0, err
    counted = json.loads(out)["classes"]["counted"]
    assert (counted["evaluations"], counted["outcomes"]) == (10, 10)


async def until_printed(
    process: asyncio.subprocess.Process, words: str, send: Callable[[], object]
) -> str:
    """Return the line with `words`; `send` is called until it comes."""
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while True:
            send()
            with suppress(TimeoutError):
                line = (await asyncio.wait_for(process.stdout.readline(), 1)).decode()
                if words in line:
                    return line


async def test_new_events_are_shown_as_they_come(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """Until Ctrl-C: an event that does not count gets a line."""
    now = await start_rollout(producer, settings)
    process = await spawn(settings, "events", FLAG, "--watch")
    value = evaluation_value("user-42", "treatment", time_ms=at_ms(now))
    tasks = []

    def send() -> None:
        tasks.append(
            asyncio.ensure_future(producer.send(settings.topic("evaluations"), value, b"user-42"))
        )

    line = await until_printed(process, "treatment of user-42  ", send)
    assert "the plan has no variant treatment; it has on, off" in line
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 130
    await asyncio.gather(*tasks)


async def test_refused_records_are_shown_as_text(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """With reason, place and fix; nothing in them moves a terminal's cursor."""
    refused = RecordRefused(QuarantineReason.NOT_JSON, "trailing comma", "send one JSON object")
    refusals = [
        quarantine.refusal(offset, at_ms(datetime.now(UTC)), body, refused)
        for offset, body in enumerate([b'{"feature_flag.key":"new-checkout",}\x1b[2J', b"\xff\x00"])
    ]
    value = quarantine.encode("flag.evaluations", 3, *quarantine.written(refusals))
    await producer.send_and_wait(settings.topic("quarantine"), value, b"flag.evaluations/3")
    code, out, err = await rolloutctl(settings, "quarantine")
    assert code == 0, err
    assert "not_json  flag.evaluations/3 offset 0" in out
    assert "trailing comma; send one JSON object" in out
    assert '{"feature_flag.key":"new-checkout",}?[2J' in out
    assert "\x1b" not in out
    code, out, err = await rolloutctl(settings, "quarantine", "--flag", FLAG, "--json")
    assert code == 0, err
    assert [json.loads(line)["offset"] for line in out.splitlines()] == [0]
    code, out, err = await rolloutctl(settings, "quarantine", "--flag", "other")
    assert (code, out) == (0, "")
    assert "no record that names other was refused" in err
    assert "1 refused record names no flag" in err
