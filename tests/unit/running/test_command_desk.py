"""Commands of people: through Kafka, with their own result; lowering never waits for Kafka."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from controller.adapters.memory import MemoryPublisher, MemoryRollouts
from controller.codec.commands import command_event, to_command_received
from controller.core.rollout import RolledBack
from controller.deciding.flag.command_answers import answer_keys, digest_of
from controller.errors import EventLogUnavailable, OperatingTrouble
from controller.ports import OutboxEntry
from controller.running.command_desk import MOST_OPEN, ON_ITS_WAY, CommandDesk, Patience
from schemas.command import Command
from schemas.result import Result
from schemas.terms import ALWAYS_ACCEPTED, CommandStatus, CommandVerb
from tests.admission import accepted, answered
from tests.builders import T0, make_rollout
from tests.unit.deciding.cluster import PLAN

FLAG = "new-checkout"


class Direct:
    """The way past Kafka."""

    def __init__(self) -> None:
        self.commands: list[Command] = []

    async def carry_out(self, command: Command) -> Result | str:
        """Note a command."""
        self.commands.append(command)
        return accepted(command)


class HangingPublisher(MemoryPublisher):
    """Kafka that never acknowledges."""

    async def publish(self, entries: Sequence[OutboxEntry]) -> None:
        """Take what is published, and be silent."""
        await super().publish(entries)
        await asyncio.Event().wait()


class Office:
    """A desk and what is behind it."""

    def __init__(self, publisher: MemoryPublisher | None = None) -> None:
        self.publisher = publisher or MemoryPublisher()
        self.rollouts = MemoryRollouts()
        self.direct = Direct()
        self.desk = CommandDesk(self.publisher, self.rollouts, self.direct, Patience(0.2, 0.2, 0.2))

    async def exist(self) -> None:
        """Store something of the flag, so that a worker answers and stores what it answers."""
        await self.rollouts.save(FLAG, expected_token=0)

    async def answer(self, command: Command, result: Result, *, is_second: bool = False) -> None:
        """Store the answer to a command, as its flag's worker does."""
        event = to_command_received(command)
        second, first = answer_keys(event)
        value = {"data": result.model_dump(mode="json"), "rolloutddigest": digest_of(event)}
        token = (await self.rollouts.load(command.flag)).token
        key = second if is_second else first
        await self.rollouts.save(
            command.flag, expected_token=token, answer=(key, json.dumps(value).encode())
        )


def command(verb: CommandVerb = CommandVerb.APPROVE, **fields: Any) -> Command:
    """Return ada's command."""
    return Command(
        **{
            "id": "c-1",
            "flag": FLAG,
            "verb": verb,
            "issuer": "ada",
            "issued_at": T0,
            "expected_revision": 11,
            "reason": "r",
            **fields,
        }
    )


async def test_a_command_goes_to_its_topic_as_rolloutctl_sends_it() -> None:
    """Byte by byte, under its flag's key; its result comes back."""
    office, sent = Office(), command()
    await office.answer(sent, accepted(sent))
    answer = await office.desk.send(sent)
    assert isinstance(answer, Result)
    assert answer.command_id == sent.id
    entry = office.publisher.published[0]
    assert (entry.topic, entry.key, entry.value) == ("commands", FLAG, command_event(sent))
    assert office.direct.commands == []


async def test_a_repeated_lowering_gets_the_answer_of_the_first() -> None:
    """Where it would change nothing; a live rollout is lowered again, under whatever id."""
    office, sent = Office(), command(CommandVerb.ROLL_BACK, expected_revision=None)
    first = accepted(sent)
    await office.answer(sent, first)
    later = sent.model_copy(update={"issued_at": T0 + timedelta(minutes=1)})
    off = make_rollout(flag_key=FLAG, phase=RolledBack(T0, "5xx"), percent=0.0)
    answers = []
    for rollout in (make_rollout(flag_key=FLAG), off):
        token = (await office.rollouts.load(FLAG)).token
        await office.rollouts.save(FLAG, expected_token=token, rollout=rollout)
        answers.append(await office.desk.send(later))
        assert len(office.direct.commands) == 1, "past Kafka for the live rollout alone"
    assert answers[-1] == first


async def test_a_repeat_gets_the_answer_of_the_first() -> None:
    """Also when it is issued later."""
    office, sent = Office(), command()
    await office.answer(sent, answered(sent, CommandStatus.REJECTED, "stale"))
    again = await office.desk.send(sent.model_copy(update={"issued_at": T0.replace(year=2031)}))
    assert isinstance(again, Result)
    assert again.reason == "stale"


async def test_another_command_under_a_used_id_gets_its_own_answer() -> None:
    """Never the one that the id got before."""
    office, first = Office(), command()
    other = command(reason="another")
    await office.answer(first, accepted(first))
    assert await office.desk.send(other) == ON_ITS_WAY
    refused = answered(other, CommandStatus.REJECTED, "this id was used")
    await office.answer(other, refused, is_second=True)
    answer = await office.desk.send(other)
    assert isinstance(answer, Result)
    assert answer.reason == "this id was used"


async def test_a_command_without_a_result_is_on_its_way() -> None:
    """One that raises waits for its replica; it is not sent a second way."""
    office = Office()
    await office.exist()
    answer = await office.desk.send(command())
    assert isinstance(answer, str)
    assert "no result yet" in answer
    assert office.direct.commands == []


@pytest.mark.parametrize("verb", sorted(ALWAYS_ACCEPTED))
@pytest.mark.parametrize("kafka", ["silent", "refuses", "takes it, and nobody reads"])
async def test_lowering_goes_past_kafka(verb: CommandVerb, kafka: str) -> None:
    """As soon as Kafka does not take it, or no result comes."""
    office = Office(HangingPublisher() if kafka == "silent" else None)
    if kafka == "refuses":
        office.publisher.outage.is_down = True
    sent = command(verb)
    answer = await office.desk.send(sent)
    assert isinstance(answer, Result)
    assert office.direct.commands == [sent]


@pytest.mark.parametrize("is_silent", [True, False])
async def test_raising_never_goes_past_kafka(is_silent: bool) -> None:
    """It is said that it may still be carried out, and what works meanwhile."""
    office = Office(HangingPublisher() if is_silent else None)
    if not is_silent:
        office.publisher.outage.is_down = True
    with pytest.raises(OperatingTrouble, match="roll back, abort and pause work without Kafka"):
        await office.desk.send(command())
    assert office.direct.commands == []


async def test_a_kafka_that_hangs_costs_a_bounded_number_of_tasks() -> None:
    """Beyond it a command is refused at once, and one that lowers goes past Kafka at once."""
    office = Office(HangingPublisher())
    waiting = [
        asyncio.create_task(office.desk.send(command(id=f"c-{number}")))
        for number in range(MOST_OPEN)
    ]
    await asyncio.gather(*waiting, return_exceptions=True)
    with pytest.raises(OperatingTrouble, match="wait for Kafka already"):
        await office.desk.send(command(id="one-more"))
    assert isinstance(await office.desk.send(command(CommandVerb.PAUSE)), Result)


async def test_a_store_that_is_away_is_waited_for() -> None:
    """The command is on its way; one that lowers goes where it is served at once."""
    office = Office()
    office.rollouts.outage.is_down = True
    assert isinstance(await office.desk.send(command()), str)
    assert isinstance(await office.desk.send(command(CommandVerb.ABORT)), Result)


FALLING = {
    "name": "p",
    "flag": FLAG,
    "variants": {"treatment": "on", "control": "off"},
    "stages": [{"percent": 50, "bake": "1h"}, {"percent": 10, "bake": "1h"}],
}


@pytest.mark.parametrize("verb", [CommandVerb.START, CommandVerb.APPLY])
async def test_a_plan_that_lint_refuses_is_refused_at_once(verb: CommandVerb) -> None:
    """Its reader's answer for a flag without a rollout is stored nowhere."""
    office = Office()
    sent = command(verb, plan=FALLING, expected_revision=None)
    answer = await office.desk.send(sent)
    assert isinstance(answer, Result)
    assert (answer.status, answer.command_id) == (CommandStatus.REJECTED, "c-1")
    assert "does not rise above the 50 %" in answer.reason
    assert office.publisher.published == []


async def test_what_was_accepted_stays_the_answer_of_a_plan_that_is_too_old_now() -> None:
    """A repeat is issued later: a date of its plan may have passed meanwhile."""
    office = Office()
    sent = command(CommandVerb.START, plan=FALLING, expected_revision=None)
    await office.answer(sent, accepted(sent))
    answer = await office.desk.send(sent)
    assert isinstance(answer, Result)
    assert answer.status is CommandStatus.ACCEPTED


async def test_a_flag_that_does_not_exist_is_said_where_no_answer_is_stored() -> None:
    """The reader refuses by the same rule, and leaves nothing in the store."""
    office = Office()
    sent = command(CommandVerb.START, plan={**PLAN, "flag": FLAG}, expected_revision=7)
    answer = await office.desk.send(sent)
    assert len(office.publisher.published) == 1
    assert isinstance(answer, Result)
    assert answer.status is CommandStatus.REJECTED
    assert "revision 7 was expected" in answer.reason


def test_what_kafka_refuses_is_operating_trouble() -> None:
    """So the web answers it, and no traceback does."""
    assert issubclass(EventLogUnavailable, OperatingTrouble)
