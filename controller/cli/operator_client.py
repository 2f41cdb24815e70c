"""Giving commands and reading what the daemon says: the operator's side of the topics.

Every call raises EventLogUnavailable when Kafka is not reached.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import ConsumerRecord
from pydantic import ValidationError

from controller.adapters.kafka.publisher import KafkaPublisher
from controller.adapters.kafka.topic_reader import KafkaReader, Offsets
from controller.codec.alerts import alert_from
from controller.codec.commands import command_event
from controller.codec.decisions import decision_from
from controller.codec.rollouts import read_state
from controller.codec.signals import signal_event, signal_key
from controller.codec.tombstones import retired_revision
from controller.core.rollout import Rollout
from controller.errors import DocumentUnreadable, EventLogUnavailable
from controller.settings import KafkaSettings
from schemas import alert, decision, result, state
from schemas.alert import Alert
from schemas.command import Command
from schemas.decision import Decision
from schemas.result import Result
from schemas.signal import Signal
from schemas.terms import CommandStatus

Event = dict[str, Any]  # a structured CloudEvent
#: An event is published again within seconds. `watch` gets far fewer in that time.
MOST_IDS: Final = 1000
#: CloudEvents source of signals that people send.
SIGNAL_SOURCE: Final = "/rolloutctl"
#: Results come within a second; a person who waits longer is told what happens.
WAITING_SECONDS: Final = 3.0


def whoami() -> str:
    """Return user@host, as far as they have names."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"[:200]


@dataclass(slots=True)
class NewestRollouts:
    """The newest document of every flag, and why some cannot be read."""

    rollouts: dict[str, Rollout] = field(default_factory=dict)
    documents: dict[str, Event] = field(default_factory=dict)  # as published: the event's data
    unreadable: dict[str, str] = field(default_factory=dict)  # why, by record key
    retired: dict[str, int] = field(default_factory=dict)  # by flag, the revision that did it

    def update(self, record: ConsumerRecord) -> Rollout | None:
        """Return the rollout of a state record, None for one that is not newer or not readable."""
        key = (record.key or b"").decode(errors="replace")
        if record.value is None:
            self._retire(key, retired_revision(None, record.headers))
            return None
        try:
            rollout = read_state(record.value)
        except DocumentUnreadable as error:
            self.unreadable[key] = str(error)
            return None
        previous = self.rollouts.get(rollout.flag_key)
        if previous is not None and previous.revision >= rollout.revision:
            return None
        if rollout.revision <= self.retired.get(key, -1):
            return None
        self.rollouts[rollout.flag_key] = rollout
        self.documents[rollout.flag_key] = json.loads(record.value)["data"]
        self.unreadable.pop(key, None)
        return rollout

    def _retire(self, flag_key: str, revision: int | None) -> None:
        """Drop a flag that was retired; a record without a value by somebody else ends none."""
        present = self.rollouts.get(flag_key)
        if present is None:
            self.unreadable.pop(flag_key, None)  # whoever wrote it has deleted it
        if revision is None or (present is not None and present.revision > revision):
            return
        self.retired[flag_key] = revision
        self.unreadable.pop(flag_key, None)
        self.rollouts.pop(flag_key, None)
        self.documents.pop(flag_key, None)


@dataclass(slots=True)
class CommandResults:
    """What came back for the commands that were sent."""

    results: dict[str, Result] = field(default_factory=dict)  # by command id
    #: Why a command may not even have reached Kafka. What became of it is then unknown.
    error: str | None = None
    #: What people should know about a way past Kafka; empty: it was not taken.
    detour: str = ""
    #: A daemon has a command in memory alone, because Redis does not answer.
    is_pending: bool = False
    #: After the commands, if requested and available.
    newest: NewestRollouts = field(default_factory=NewestRollouts)


async def send_commands(
    commands: Sequence[Command],
    kafka: KafkaSettings,
    seconds: float,
    *,
    with_state: bool = False,
    gives_up_early: bool = False,
    on_waiting: Callable[[], None] | None = None,
) -> CommandResults:
    """Publish commands and return the results that come within `seconds`.

    With `with_state` also return the newest rollouts after the commands. `gives_up_early`: do not
    wait for results of commands that Kafka has not acknowledged. `on_waiting` is called once, where
    acknowledged commands have no result after `WAITING_SECONDS`. Raises EventLogUnavailable
    only before anything was published. After that, a result is missing or not; nothing is raised.
    """
    answers = CommandResults()
    open_commands = {command.id: command for command in commands}
    async with KafkaReader(kafka, ["commands", "results", "state"]) as reader:
        start = await reader.ends("results")  # before publishing, so that no answer is missed
        publisher = KafkaPublisher(kafka)
        try:
            await publisher.start()
            try:
                await publisher.publish_many(
                    [
                        ("commands", command.flag.encode(), command_event(command))
                        for command in open_commands.values()
                    ]
                )
            except EventLogUnavailable as error:
                answers.error = str(error)
                if gives_up_early:
                    return answers
            told = None
            if on_waiting is not None and answers.error is None:
                told = asyncio.get_running_loop().call_later(WAITING_SECONDS, on_waiting)
            try:
                async with asyncio.timeout(seconds):
                    async for record in reader.follow(start):
                        if isinstance(record, ConsumerRecord):
                            _note_result(record, open_commands, answers)
                        if len(answers.results) == len(open_commands):
                            break
            except TimeoutError:
                return answers  # the caller reports what is missing
            finally:
                if told is not None:
                    told.cancel()
        finally:
            await publisher.stop()
        if with_state:
            with suppress(EventLogUnavailable):  # the results are what counts
                answers.newest = await read_rollouts(reader)
    return answers


async def publish_signal(signal: Signal, kafka: KafkaSettings) -> None:
    """Publish a signal as a hook would. Raises EventLogUnavailable."""
    publisher = KafkaPublisher(kafka)
    try:
        await publisher.start()
        key, value = signal_key(signal).encode(), signal_event(signal, SIGNAL_SOURCE)
        await publisher.publish_many([("signals", key, value)])
    finally:
        await publisher.stop()


def _note_result(
    record: ConsumerRecord, open_commands: dict[str, Command], answers: CommandResults
) -> None:
    event = read_event(record.value)
    if event is None or event["type"] != result.TYPE:
        return
    try:
        answer = Result.model_validate(event["data"])
    except ValidationError:
        return  # another writer's, or a later release's
    command = open_commands.get(answer.command_id)
    if command is not None and answer.flag == command.flag:
        answers.results[command.id] = answer


async def read_rollouts(reader: KafkaReader, ends: Offsets | None = None) -> NewestRollouts:
    """Return the newest document of every flag up to `ends` of the state topic.

    Without `ends`, up to its present end.
    """
    newest = NewestRollouts()
    async for record in reader.read_to(await reader.ends("state") if ends is None else ends):
        newest.update(record)
    return newest


async def newest_events(
    reader: KafkaReader, topic: str, count: int, flag: str | None
) -> list[Event]:
    """Return the newest events of a topic, each once, of one flag or of all, oldest first.

    Whoever finds an effect in a flag's outbox publishes it: after a crash, and where two replicas
    handle one flag for a moment, it is in the topic more than once, each time with the same id.
    """
    repeats = RepeatFilter(2 * count)
    records = await reader.newest(topic, 2 * count, flag)
    events = [read_event(record.value) for record in records]
    return [event for event in events if event is not None and repeats.is_first(event)][-count:]


async def follow_events(
    reader: KafkaReader, start: Offsets, flag: str | None
) -> AsyncIterator[Event | EventLogUnavailable | None]:
    """Yield the events from `start` on, each once, of one flag or of all.

    Also yields None and errors, as `KafkaReader.follow` does.
    """
    key = None if flag is None else flag.encode()
    repeats = RepeatFilter(MOST_IDS)
    async for record in reader.follow(start):
        if not isinstance(record, ConsumerRecord):
            yield record
        elif key is None or record.key == key:
            event = read_event(record.value)
            if event is not None and repeats.is_first(event):
                yield event


class RepeatFilter:
    """Finds events that were published again, by their CloudEvents `source`, `id` and `time`.

    Alerts without a transition, such as that something is over, may share an id and not the time.
    """

    def __init__(self, most: int) -> None:
        """Remember the last `most` ids."""
        self._most = most
        self._seen: dict[tuple[str, ...], None] = {}  # in the order in which they came

    def is_first(self, event: Event) -> bool:
        """Return whether this event was not seen before; one without an id never was."""
        if not event.get("id"):
            return True
        name = tuple(str(event.get(field, "")) for field in ("source", "id", "time"))
        if name in self._seen:
            return False
        self._seen[name] = None
        if len(self._seen) > self._most:
            del self._seen[next(iter(self._seen))]
        return True


def read_event(value: bytes | None) -> Event | None:
    """Return a structured CloudEvent with its data, None for anything else."""
    try:
        event = json.loads(value or b"")
    except (ValueError, RecursionError):
        return None
    is_event = (
        isinstance(event, dict)
        and isinstance(event.get("type"), str)
        and isinstance(event.get("data"), dict)
    )
    return event if is_event else None


def as_decision(event: Event) -> Decision | None:
    """Return the decision in an event, None for anything else."""
    if event["type"] != decision.TYPE:
        return None
    try:
        return decision_from(event["data"])
    except ValidationError:
        return None


def as_alert(event: Event) -> Alert | None:
    """Return the alert in an event, None for anything else."""
    if event["type"] != alert.TYPE:
        return None
    try:
        return alert_from(event["data"])
    except ValidationError:
        return None


def as_refused(event: Event) -> Result | None:
    """Return the result of a command that was refused, None for any other event."""
    if event["type"] != result.TYPE or event["data"].get("status") != CommandStatus.REJECTED:
        return None
    try:
        return Result.model_validate(event["data"])
    except ValidationError:
        return None  # of a record that was no command, or of a later release


def as_rollout(event: Event) -> Rollout | None:
    """Return the rollout in an event of the state topic, None for anything else."""
    if event["type"] != state.TYPE:
        return None
    try:
        return read_state(json.dumps(event).encode())
    except DocumentUnreadable:
        return None
