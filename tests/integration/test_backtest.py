"""`rolloutctl backtest` on a real broker.

Recorded events of two topics and several partitions through a plan.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.settings import KafkaSettings
from schemas.terms import EventFormat
from tests.cli_process import rolloutctl
from tests.conftest import CreateTopics
from tests.records import at_ms, evaluation_value, outcome_value
from tests.telemetry import Request, export_of_spans

pytestmark = pytest.mark.real_kafka

BEGAN = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
SECONDS = 420

PLAN = """name: short
flag: new-checkout
owner: payments
stages:
  - {percent: 50, bake: 2m, settle: 10s, min_sample: 50, max_bake: 10m}
  - {percent: 100, bake: 1m, settle: 10s, min_sample: 50, max_bake: 10m}
guardrails: [error_rate < 10%]
"""


@pytest.fixture
async def settings(kafka: str, topic_prefix: str, create_topics: CreateTopics) -> KafkaSettings:
    """Settings of a daemon whose topics exist."""
    made = KafkaSettings(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    # Recorded two hours ago: the topics keep what is older than a broker's short retention would.
    await create_topics(
        made.topic("evaluations"),
        made.topic("outcomes"),
        made.topic("decisions"),
        configs={"retention.ms": "-1", "message.timestamp.after.max.ms": str(2**62)},
    )
    return made


@pytest.fixture
async def producer(kafka: str) -> AsyncIterator[AIOKafkaProducer]:
    """A plain producer."""
    made = AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=20)
    await made.start()
    yield made
    await made.stop()


async def record(
    producer: AIOKafkaProducer,
    settings: KafkaSettings,
    worse: float,
    ahead: Mapping[int, timedelta] | None = None,
) -> None:
    """Write seven minutes of ten users a second.

    Treatment fails `worse` times as often as the 2 % of control. `ahead`: by second, how far the
    clock of one more record of each topic is ahead.
    """
    lot = random.Random(3)
    sent = []
    for second in range(SECONDS):
        if ahead is not None and second in ahead:
            time_ms = at_ms(BEGAN + timedelta(seconds=second) + ahead[second])
            for logical, value in (
                ("evaluations", evaluation_value("wrong", "on", time_ms=time_ms)),
                ("outcomes", outcome_value("wrong", time_ms=time_ms)),
            ):
                topic = settings.topic(logical)
                await producer.send_and_wait(topic, value, b"wrong", timestamp_ms=time_ms)
        for number in range(10):
            user, variant = f"u{second}-{number}", lot.choice(["on", "off"])
            time_ms = at_ms(BEGAN) + 1000 * second + 100 * number
            is_error = lot.random() < 0.02 * (worse if variant == "on" else 1)
            evaluated = evaluation_value(user, variant, time_ms=time_ms)
            happened = outcome_value(user, time_ms=time_ms + 20, error=is_error)
            sent.append(
                await producer.send(
                    settings.topic("evaluations"), evaluated, user.encode(), timestamp_ms=time_ms
                )
            )
            sent.append(
                await producer.send(
                    settings.topic("outcomes"), happened, user.encode(), timestamp_ms=time_ms + 20
                )
            )
    await asyncio.gather(*sent)


async def test_what_was_recorded_is_decided_as_it_would_have_been(
    settings: KafkaSettings, producer: AIOKafkaProducer, tmp_path: Path
) -> None:
    """Joined over partitions, in the order of time.

    A harm is rolled back when it shows, in words and for machines.
    """
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    await record(producer, settings, worse=20)
    window = ("--from", BEGAN.isoformat(), "--to", (BEGAN + timedelta(seconds=SECONDS)).isoformat())
    code, out, err = await rolloutctl(settings, "backtest", str(plan), *window, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert [one["kind"] for one in told["decisions"]] == ["start", "roll_back"]
    found_at = datetime.fromisoformat(told["decisions"][-1]["at"])
    assert BEGAN + timedelta(seconds=10) < found_at < BEGAN + timedelta(seconds=90)
    assert told["decisions"][-1]["metrics"][0]["harm"] == "fail"
    code, out, err = await rolloutctl(settings, "backtest", str(plan), *window)
    assert code == 0, err
    assert "roll back" in out
    assert "ended rolled back after" in out


async def test_a_healthy_recording_is_promoted(
    settings: KafkaSettings, producer: AIOKafkaProducer, tmp_path: Path
) -> None:
    """Both stages pass, and every record of the window that was read is accounted for."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    await record(producer, settings, worse=1)
    window = ("--from", BEGAN.isoformat(), "--to", (BEGAN + timedelta(seconds=SECONDS)).isoformat())
    code, out, err = await rolloutctl(settings, "backtest", str(plan), *window, "--json")
    assert code == 0, err
    told = json.loads(out)
    moves = [(one["kind"], one["to_percent"]) for one in told["decisions"] if one["kind"] != "hold"]
    assert moves == [("start", 50.0), ("advance", 100.0), ("complete", 100.0)]
    assert told["records"]["counted"] == pytest.approx(2 * 10 * 180, abs=60)
    assert told["records"]["refused"] == 0


async def test_records_from_the_future_change_nothing(
    settings: KafkaSettings, producer: AIOKafkaProducer, tmp_path: Path
) -> None:
    """Of a clock that was ahead then, and of one that is ahead still; with an end and without.

    The daemon refuses them and counts what is behind them.
    """
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    ahead = {0: timedelta(hours=1), 60: timedelta(days=3), 200: timedelta(minutes=20)}
    await record(producer, settings, worse=1, ahead=ahead)
    begins = ("--from", (BEGAN - timedelta(minutes=5)).isoformat())
    ends = ("--to", (BEGAN + timedelta(seconds=SECONDS)).isoformat())
    for window in (begins, (*begins, *ends)):
        code, out, err = await rolloutctl(settings, "backtest", str(plan), *window, "--json")
        assert code == 0, err
        told = json.loads(out)
        decisions = [one for one in told["decisions"] if one["kind"] != "hold"]
        moves = [(one["kind"], one["to_percent"]) for one in decisions]
        assert moves == [("start", 50.0), ("advance", 100.0), ("complete", 100.0)]
        assert datetime.fromisoformat(decisions[-1]["at"]) < BEGAN + timedelta(seconds=SECONDS)
        assert told["records"]["counted"] == pytest.approx(2 * 10 * 180, abs=60)
        assert told["records"]["refused"] == 2 * sum(second < 200 for second in ahead)


async def test_a_backtest_begins_with_the_flags_first_event(
    settings: KafkaSettings, producer: AIOKafkaProducer, tmp_path: Path
) -> None:
    """An hour without the flag is not waited out at a gate, and other flags' events are none."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    earlier = at_ms(BEGAN - timedelta(minutes=30))
    await producer.send_and_wait(
        settings.topic("evaluations"),
        evaluation_value("u0", "on", time_ms=earlier, flag="another"),
        b"u0",
        timestamp_ms=earlier,
    )
    await record(producer, settings, worse=20)
    window = (
        *("--from", (BEGAN - timedelta(hours=1)).isoformat()),
        *("--to", (BEGAN + timedelta(seconds=SECONDS)).isoformat()),
    )
    code, out, err = await rolloutctl(settings, "backtest", str(plan), *window, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert datetime.fromisoformat(told["from"]) == BEGAN
    assert datetime.fromisoformat(told["requested_from"]) == BEGAN - timedelta(hours=1)
    assert [one["kind"] for one in told["decisions"]] == ["start", "roll_back"]
    _, out, _ = await rolloutctl(settings, "backtest", str(plan), *window)
    assert "begins at the flag's first event, 1h after --from" in out


async def test_recorded_spans_are_gone_through(
    settings: KafkaSettings, producer: AIOKafkaProducer, create_topics: CreateTopics, tmp_path: Path
) -> None:
    """One topic of spans for evaluations and outcomes is counted as both."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    topic = f"{settings.topic_prefix}otlp_spans"
    await create_topics(topic, configs={"retention.ms": "-1"})
    for second in range(60):
        time_ms = at_ms(BEGAN) + 1000 * second
        spans = [
            Request(
                f"u{second}-{number}",
                [("new-checkout", "on" if number % 2 else "off")],
                time_ms,
                error=bool(number % 2),
            )
            for number in range(10)
        ]
        await producer.send(
            topic, export_of_spans(spans, EventFormat.OTLP_JSON), timestamp_ms=time_ms + 500
        )
    await producer.flush()
    window = ("--from", BEGAN.isoformat(), "--to", (BEGAN + timedelta(seconds=60)).isoformat())
    names = {
        f"ROLLOUTD_KAFKA__TOPICS__{name}": "otlp_spans" for name in ("EVALUATIONS", "OUTCOMES")
    }
    formats = {
        f"ROLLOUTD_KAFKA__FORMATS__{name}": "otlp_json" for name in ("EVALUATIONS", "OUTCOMES")
    }
    code, out, err = await rolloutctl(
        settings, "backtest", str(plan), *window, "--json", **names, **formats
    )
    assert code == 0, err
    told = json.loads(out)
    assert [one["kind"] for one in told["decisions"]] == ["start", "roll_back"]
    assert told["records"]["refused"] == 0


async def test_partitions_are_merged_by_time(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """Records of two topics come in the order of their timestamps, all of them.

    And only those of the window.
    """
    await record(producer, settings, worse=1)
    async with KafkaReader(settings, ["evaluations", "outcomes"]) as reader:
        starts = await reader.offsets_at(BEGAN + timedelta(seconds=100), "evaluations", "outcomes")
        ends = await reader.offsets_at(BEGAN + timedelta(seconds=200), "evaluations", "outcomes")
        stamps = [one.timestamp async for one in reader.in_time_order(starts, ends)]
    assert len(stamps) == pytest.approx(2000, abs=2)
    assert stamps == sorted(stamps)
    assert stamps[0] >= at_ms(BEGAN + timedelta(seconds=100))
    assert stamps[-1] < at_ms(BEGAN + timedelta(seconds=200))
