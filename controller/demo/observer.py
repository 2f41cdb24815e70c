"""Reads the course of the demo from the topics: decisions, alerts and the rollout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord

from controller.codec.commands import command_event
from controller.codec.rollouts import read_state
from controller.core.rollout import Rollout
from controller.errors import OperatingTrouble
from controller.settings import TopicNames
from schemas.command import Command
from schemas.terms import CommandStatus

READ_SECONDS = 0.1


class CommandNotAccepted(OperatingTrouble):
    """The daemon rejected the demo's own command."""


@dataclass(slots=True)
class Course:
    """The rollout so far, as read from the topics."""

    rollout: Rollout | None = None
    document: dict[str, Any] | None = None  # of the same revision, as on `rollout.state`
    decisions: list[dict[str, Any]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    decision_events: set[str] = field(default_factory=set)  # ids: a repeat is the same decision


class Observer:
    """Follows one flag; an async context manager."""

    def __init__(self, bootstrap: str, flag: str | None = None) -> None:
        """Follow `flag`; None where there is only one."""
        self.flag = flag
        self.course = Course()
        self._bootstrap = bootstrap
        self._topics = TopicNames()
        self._followed = (
            self._topics.decisions,
            self._topics.alerts,
            self._topics.results,
            self._topics.state,
        )
        self._consumer = AIOKafkaConsumer(
            *self._followed, bootstrap_servers=bootstrap, auto_offset_reset="earliest"
        )

    async def __aenter__(self) -> Observer:
        try:
            await self._consumer.start()
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def send(self, command: Command) -> None:
        """Publish a command, as an operator's tool does."""
        producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap)
        try:
            await producer.start()
            value = command_event(command)
            await producer.send_and_wait(self._topics.commands, value, command.flag.encode())
        finally:
            await producer.stop()

    async def read(self) -> list[tuple[str, dict[str, Any]]]:
        """Take the records that have arrived, and return new decisions and alerts as (topic, data).

        Raises CommandNotAccepted.
        """
        news: list[tuple[str, dict[str, Any]]] = []
        batches = await self._consumer.getmany(timeout_ms=round(READ_SECONDS * 1000))
        for records in batches.values():
            for record in records:
                if self.flag is not None and record.key != self.flag.encode():
                    continue
                event = self._take(record)
                if event is not None:
                    news.append(event)
        return news

    def _take(self, record: ConsumerRecord) -> tuple[str, dict[str, Any]] | None:
        event = json.loads(record.value)
        course, data = self.course, event["data"]
        if record.topic == self._topics.results:
            if data["status"] == CommandStatus.REJECTED:
                raise CommandNotAccepted(f"the daemon rejected the command: {data['reason']}")
        elif record.topic == self._topics.state:
            rollout = read_state(record.value)
            if course.rollout is None or rollout.revision >= course.rollout.revision:
                course.rollout, course.document = rollout, data
        elif event["id"] not in course.decision_events:
            course.decision_events.add(event["id"])
            (course.decisions if record.topic == self._topics.decisions else course.alerts).append(
                data
            )
            return record.topic, data
        return None

    def is_decision(self, topic: str) -> bool:
        """Return whether a topic is that of decisions, and not of alerts."""
        return topic == self._topics.decisions


def last_reasons(decisions: Sequence[dict[str, Any]], count: int = 2) -> str:
    """Return the reasons of the last decisions."""
    return "; ".join(decision["reason"] for decision in decisions[-count:])
