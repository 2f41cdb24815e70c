"""What is done about signals: once, never a raise, and with words for people."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from controller.core.rollout import Freeze, RaiseAlert, Rollout
from controller.errors import OperatingTrouble, StoreUnavailable
from controller.health import Faults, Scope
from controller.responding.memory import SIGNALS, SignalMemory
from controller.responding.responder import Responder
from controller.settings.signal_rules import SignalRule
from schemas.command import Command
from schemas.report import LiveReport
from schemas.result import Result
from schemas.terms import CommandStatus, CommandVerb, Severity, SignalStatus
from tests.builders import HOUR, MINUTE, T0
from tests.unit.responding.test_matching import BEGAN, rollout, rule
from tests.unit.responding.test_matching import signal as made_signal


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.at = BEGAN + MINUTE

    def now(self) -> Any:
        """Return the time."""
        return self.at

    def monotonic(self) -> float:
        """Return it in seconds."""
        return (self.at - T0).total_seconds()


class Store:
    """A hash in Redis."""

    def __init__(self) -> None:
        self.fields: dict[bytes, bytes] = {}
        self.is_down = False

    async def write(self, mapping: Any) -> None:
        """Set fields."""
        self._check()
        self.fields |= {name.encode(): value for name, value in mapping.items()}

    async def read(self) -> dict[bytes, bytes]:
        """Return all."""
        self._check()
        return dict(self.fields)

    async def drop(self, names: Any) -> None:
        """Delete fields."""
        self._check()
        for name in names:
            self.fields.pop(name.encode(), None)

    def _check(self) -> None:
        if self.is_down:
            raise StoreUnavailable("Redis is away")


class World:
    """A responder with everything around it."""

    def __init__(self, *rules: SignalRule, rollouts: tuple[Rollout, ...] = ()) -> None:
        self.rules = list(rules) or [rule()]
        self.rollouts = {one.flag_key: one for one in rollouts or (rollout("checkout-a"),)}
        self.commands: list[Command] = []
        self.alerts: list[RaiseAlert] = []
        self.trouble: set[str] = set()
        self.refusal = ""
        self.clock, self.store = Clock(), Store()
        self.faults = Faults(self.clock.now)
        self.crash()

    def crash(self) -> None:
        """Begin again, with what is stored."""
        self.memory = SignalMemory(self.store, self.clock, self.faults)
        self.responder = Responder(
            lambda: self.rules,
            lambda: self.rollouts,
            self,
            self,
            self,
            self.memory,
            self.clock,
        )

    async def report(self, _rollout: Rollout) -> LiveReport | None:
        """Know no evidence."""
        raise StoreUnavailable("away")

    def add(self, _rollout: Rollout, alert: RaiseAlert) -> None:
        """Note an alert."""
        self.alerts.append(alert)

    async def send(self, command: Command) -> Result | str:
        """Carry out a command."""
        if command.flag in self.trouble:
            raise OperatingTrouble("Kafka is away")
        self.commands.append(command)
        one = self.rollouts[command.flag]
        if command.verb is CommandVerb.FREEZE:
            one = replace(one, freeze=Freeze(self.clock.now(), command.issuer, command.reason))
        if command.verb is CommandVerb.UNFREEZE:
            one = replace(one, freeze=None)
        self.rollouts[command.flag] = one
        return Result(
            command_id=command.id,
            flag=command.flag,
            verb=command.verb,
            status=CommandStatus.REJECTED if self.refusal else CommandStatus.ACCEPTED,
            reason=self.refusal,
            revision=2,
            at=self.clock.now(),
        )

    async def tell(self, status: str = "firing", **told: Any) -> list[str]:
        """Handle a signal; return what was commanded because of it."""
        before = len(self.commands)
        self.clock.at += timedelta(seconds=2)
        number = told.pop("id", f"{status}-{self.clock.at.timestamp()}")
        fields = {"id": number, "status": SignalStatus(status), "received_at": self.clock.at}
        await self.responder.handle(made_signal(**{**fields, **told}))
        return [f"{one.verb.value} {one.flag}" for one in self.commands[before:]]


async def test_a_flag_is_lowered_and_people_are_told_why() -> None:
    """With the rule and the signal in the reason, and the issuer of the endpoint."""
    world = World()
    assert await world.tell(link="https://alerts.example/1") == ["roll_back checkout-a"]
    (command,) = world.commands
    assert command.issuer == "signal:alertmanager/prod"
    assert "down: alertmanager/prod says 'Checkout is down'" in command.reason
    assert "https://alerts.example/1" in command.reason
    (alert,) = world.alerts
    assert alert.severity is Severity.WARNING
    assert "rolled back to 0 %" in alert.summary
    assert "1. checkout-a (rose from 0 to 10 %" in alert.summary
    assert world.memory.recent[0].done == ("checkout-a: rolled back to 0 %",)


async def test_the_same_firing_acts_once_and_a_new_one_again() -> None:
    """Repeats by a new delivery, by a retry, and after a restart; but not in the quiet time."""
    world = World()
    assert await world.tell() == ["roll_back checkout-a"]
    assert await world.tell() == []
    world.crash()
    assert await world.tell(id="retry") == []
    assert await world.tell(id="retry") == []
    await world.tell("resolved")
    began = BEGAN + 2 * MINUTE
    assert await world.tell(started_at=began) == []  # quiet
    world.clock.at += 11 * MINUTE
    assert await world.tell(started_at=began) == ["roll_back checkout-a"]


async def test_a_system_that_tells_no_begin_fires_once_until_it_is_over() -> None:
    """Each delivery is one of its own; what counts is whether it fires already."""
    world = World(rule(quiet="0s"))
    assert await world.tell(started_at=None) == ["roll_back checkout-a"]
    assert await world.tell(started_at=None) == []
    await world.tell("resolved", started_at=None)
    assert await world.tell(started_at=None) == ["roll_back checkout-a"]


async def test_a_new_rollout_of_a_flag_is_acted_on_again() -> None:
    """It may be the cause again, while the condition fires on."""
    world = World()
    await world.tell()
    one = rollout("checkout-a", -2 * MINUTE)
    world.rollouts["checkout-a"] = replace(one, rollout_id="start-2", started_at=BEGAN)
    assert await world.tell() == ["roll_back checkout-a"]


async def test_a_storm_acts_once_on_each_flag() -> None:
    """A thousand conditions of one rule within the quiet time."""
    world = World(rollouts=(rollout("checkout-a"), rollout("checkout-b")))
    for number in range(1000):
        await world.tell(condition=f"c-{number}", id=f"s-{number}")
        world.clock.at -= timedelta(seconds=1.9)
    assert len(world.commands) == 2
    assert len(world.alerts) == 2
    assert len(world.memory.recent) == 200


async def test_what_is_over_raises_nothing_and_is_told() -> None:
    """The flag stays, and a person is asked to look."""
    world = World()
    await world.tell()
    assert await world.tell("resolved") == []
    assert "is over; the flag stays at" in world.alerts[-1].summary
    assert world.alerts[-1].severity is Severity.INFO
    assert "stays at" in world.memory.recent[0].done[0]


async def test_nothing_that_a_signal_says_is_a_raise() -> None:
    """Whatever the rule does, only what lowers, pauses or freezes is sent."""
    for action in ("roll_back", "step_back", "pause", "hold", "note"):
        for status in ("firing", "resolved", "note"):
            world = World(rule(do=action))
            await world.tell(status)
            assert {one.verb for one in world.commands} <= {
                CommandVerb.ROLL_BACK,
                CommandVerb.STEP_BACK,
                CommandVerb.PAUSE,
                CommandVerb.FREEZE,
            }


async def test_a_gate_is_held_while_any_condition_fires() -> None:
    """The last one that is over lets go; a freeze by a person stays."""
    world = World(rule(do="hold"))
    assert await world.tell(condition="one") == ["freeze checkout-a"]
    assert await world.tell(condition="two") == []
    world.crash()
    assert await world.tell("resolved", condition="one") == []
    assert world.memory.recent[0].done == ("checkout-a: held by another condition still",)
    assert await world.tell("resolved", condition="two") == ["unfreeze checkout-a"]

    frozen = replace(rollout("checkout-a"), freeze=Freeze(T0, "ada", "sale week"))
    world = World(rule(do="hold"), rollouts=(frozen,))
    assert await world.tell() == []
    assert await world.tell("resolved") == []
    assert "frozen by ada" in world.memory.recent[0].done[0]


async def test_a_rollout_that_is_started_while_it_fires_is_held_too() -> None:
    """With the next repeat of the same delivery; nothing else of it is done again."""
    world = World(rule(name="hold", do="hold"), rule(flags="search"))
    assert await world.tell(id="s") == ["freeze checkout-a"]
    for flag_key in ("checkout-b", "search"):
        one = rollout(flag_key, -2 * MINUTE)
        world.rollouts[flag_key] = replace(one, rollout_id="start-2", started_at=world.clock.at)
    assert await world.tell(id="s") == ["freeze checkout-b"]
    assert await world.tell(id="s") == []
    assert sorted(await world.tell("resolved")) == ["unfreeze checkout-a", "unfreeze checkout-b"]
    assert await world.tell(id="s") == [], "a late copy"


async def test_there_is_nothing_to_step_back_to_in_the_first_stage() -> None:
    """It is paused, so that it does not go on."""
    world = World(rule(do="step_back"))
    assert await world.tell() == ["pause checkout-a"]
    assert "there is no stage below" in world.alerts[0].summary


async def test_a_dry_rule_tells_what_it_would_do() -> None:
    """And sends nothing."""
    world = World(rule(dry_run=True))
    assert await world.tell() == []
    assert "would roll back" in world.alerts[0].summary


async def test_a_refusal_is_told_in_its_own_words() -> None:
    """As when somebody was quicker."""
    world = World(rule(do="pause"))
    world.refusal = "it has ended"
    await world.tell()
    assert "pause was refused: it has ended" in world.alerts[0].summary


async def test_what_could_not_be_sent_is_sent_again_and_the_rest_is_not() -> None:
    """Under the same id, so that it is carried out once."""
    world = World(rollouts=(rollout("checkout-a"), rollout("checkout-b")))
    world.trouble = {"checkout-b"}
    with pytest.raises(OperatingTrouble):
        await world.tell(id="s")
    world.trouble = set()
    world.crash()
    assert await world.tell(id="s") == ["roll_back checkout-b"]
    assert await world.tell(id="s") == []


async def test_a_crash_between_command_and_memory_repeats_the_same_command() -> None:
    """Redis is away, so nothing is remembered: the id is the same, and the flag's worker knows."""
    world = World()
    world.store.is_down = True
    await world.tell(id="s")
    assert world.faults.of(Scope.DEPENDENCY, SIGNALS) is not None
    world.crash()
    await world.tell(id="s")
    one, other = world.commands
    assert one.id == other.id
    world.store.is_down = False
    await world.tell(id="s2")
    assert world.faults.of(Scope.DEPENDENCY, SIGNALS) is None


async def test_what_others_wrote_into_the_memory_is_left_alone() -> None:
    """Fields that we did not write, and values that we cannot read."""
    world = World()
    world.store.fields = {b"\xff": b"", b"act|x": b"{", b"other": b"1", b"condition|x": b"[]"}
    assert await world.tell() == ["roll_back checkout-a"]


async def test_what_is_old_is_forgotten() -> None:
    """After a week nothing is left of a condition."""
    world = World()
    await world.tell()
    assert len(world.store.fields) == 3
    world.clock.at += 8 * 24 * HOUR
    await world.memory.refresh()
    assert world.store.fields == {}
