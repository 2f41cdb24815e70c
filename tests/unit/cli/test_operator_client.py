"""What the operator's side makes of records that were published more than once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from aiokafka import ConsumerRecord

from controller.adapters.kafka.topic_reader import KafkaReader
from controller.cli.operator_client import Event, RepeatFilter, follow_events, newest_events


def make_event(effect_id: str, time: str = "2026-01-05T09:00:00Z") -> Event:
    """Return an event as rolloutd publishes one."""
    return {"type": "t", "source": "rolloutd", "id": effect_id, "time": time, "data": {}}


@dataclass
class Topic:
    """The records of a topic, as a reader gives them."""

    events: Sequence[Event]

    def records(self) -> list[ConsumerRecord]:
        """Return them all."""
        fields: dict[str, Any] = {
            "topic": "rollout.decisions",
            "partition": 0,
            "offset": 0,
            "timestamp": 0,
            "timestamp_type": 0,
            "key": b"flag",
            "checksum": None,
            "serialized_key_size": 0,
            "serialized_value_size": 0,
            "headers": (),
        }
        return [ConsumerRecord(**fields, value=json.dumps(one).encode()) for one in self.events]

    async def newest(self, _: str, count: int, __: str | None) -> list[ConsumerRecord]:
        """Return the last ones."""
        return self.records()[-count:]

    async def follow(self, _: object) -> AsyncIterator[ConsumerRecord]:
        """Yield all."""
        for record in self.records():
            yield record


def reader_of(*effect_ids: str) -> KafkaReader:
    """Return what reads a topic with these effects."""
    return cast(KafkaReader, Topic([make_event(one) for one in effect_ids]))


async def test_an_event_that_was_published_twice_is_listed_once() -> None:
    """Two replicas that handle one flag for a moment both publish its outbox."""
    reader = reader_of("f/1/1", "f/2/1", "f/1/1", "f/3/1", "f/2/1", "f/3/1")
    events = await newest_events(reader, "decisions", 3, "flag")
    assert sorted(event["id"] for event in events) == ["f/1/1", "f/2/1", "f/3/1"]
    followed = [event async for event in follow_events(reader, {}, "flag")]
    assert [event["id"] for event in followed if isinstance(event, dict)] == [
        "f/1/1",
        "f/2/1",
        "f/3/1",
    ]


def test_an_alert_that_comes_again_later_is_another_one() -> None:
    """That something is over has the id of the alert that it began, and another time."""
    repeats = RepeatFilter(10)
    first, later = make_event("k/1"), make_event("k/1", "2026-01-05T09:05:00Z")
    assert [repeats.is_first(one) for one in (first, later, first)] == [True, True, False]
    assert all(repeats.is_first({"type": "t", "data": {}}) for _ in range(2))


def test_only_the_newest_ids_are_remembered() -> None:
    """A `watch` of weeks does not grow."""
    repeats = RepeatFilter(2)
    assert all(repeats.is_first(make_event(one)) for one in ("a", "b", "c", "a"))
