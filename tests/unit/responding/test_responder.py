"""What is done about signals: once, never a raise, and with words for people."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from controller.core.effects import RaiseAlert
from controller.core.rollout import Baking, Freeze, RolledBack, Rollout
from controller.errors import OperatingTrouble, StoreUnavailable
from controller.health import Faults, Scope
from controller.responding.commanding import Commander
from controller.responding.memory import SIGNALS, SignalMemory
from controller.responding.responder import Responder
from controller.responding.retries import Retries
from controller.settings.signal_rules import SignalRule
from controller.web.hooks.sources import read_signals
from schemas.command import Command
from schemas.report import LiveReport
from schemas.result import Result
from schemas.terms import CommandStatus, CommandVerb, Severity, SignalStatus
from tests.builders import HOUR, MINUTE, T0
from tests.unit.responding.test_matching import BEGAN, rollout, rule
from tests.unit.responding.test_matching import signal as made_signal
from tests.unit.web.hooks.deliveries import DATADOG


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

    async def set_new(self, name: str, value: bytes, fence: str) -> bytes:
        """Set a field that is not there."""
        self._check()
        self.fields[fence.encode()] = b"1"
        return self.fields.setdefault(name.encode(), value)

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


class Died(Exception):
    """The process was killed."""


class World:
    """A responder with everything around it."""

    def __init__(self, *rules: SignalRule, rollouts: tuple[Rollout, ...] = ()) -> None:
        self.rules = list(rules) or [rule()]
        self.rollouts = {one.flag_key: one for one in rollouts or (rollout("checkout-a"),)}
        self.commands: list[Command] = []
        self.alerts: list[RaiseAlert] = []
        self.trouble: set[str] = set()
        self.dies_before_alerts = False
        self.lowered_at_flush: list[int] = []
        self.refusal = ""
        self.unknown = ""  # what is said of a command without a result
        self.clock, self.store = Clock(), Store()
        self.faults = Faults(self.clock.now)
        self.crash()

    def crash(self) -> None:
        """Begin again, with what is stored."""
        self.memory = SignalMemory(self.store, self.clock, self.faults)
        commander = Commander(self, self.clock)
        parts = (self, self.memory, self.clock)
        self.retries = Retries(lambda: self.rules, lambda: self.rollouts, commander, *parts)
        self.responder = Responder(
            lambda: self.rules, lambda: self.rollouts, self, commander, self.retries, *parts
        )

    async def report(self, _rollout: Rollout) -> LiveReport | None:
        """Know no evidence."""
        raise StoreUnavailable("away")

    def add(self, _rollout: Rollout, alert: RaiseAlert) -> None:
        """Note an alert."""
        self.alerts.append(alert)

    async def flush(self, seconds: float) -> bool:
        """Die, where Kafka is to have nothing of them."""
        self.lowered_at_flush.append(len(self.commands))
        if self.dies_before_alerts:
            self.alerts.clear()
            raise Died
        return bool(seconds)

    async def send(self, command: Command) -> Result | str:
        """Carry out a command."""
        if command.flag in self.trouble:
            raise OperatingTrouble("Kafka is away")
        self.commands.append(command)
        if self.unknown:
            return self.unknown
        one = self.rollouts[command.flag]
        if self.refusal:
            pass
        elif command.verb is CommandVerb.FREEZE:
            one = replace(one, freeze=Freeze(self.clock.now(), command.issuer, command.reason))
        elif command.verb is CommandVerb.UNFREEZE:
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

    async def wait(self, seconds: float) -> list[str]:
        """Let retries run for so long; return what was commanded."""
        before, end = len(self.commands), self.clock.at + timedelta(seconds=seconds)
        while self.clock.at < end:
            self.clock.at += timedelta(seconds=1)
            await self.retries.try_due()
        return [f"{one.verb.value} {one.flag}" for one in self.commands[before:]]

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


async def test_a_late_copy_of_an_earlier_firing_is_no_news() -> None:
    """After some more firings of a monitor that flaps."""
    world = World(rule(quiet="1m"))
    first = BEGAN - HOUR
    await world.tell(id="f-first", started_at=first)
    for number in range(20):
        await world.tell("resolved", id=f"r-{number}")
        world.clock.at += 5 * MINUTE
        assert await world.tell(id=f"f-{number}", started_at=world.clock.at)
    world.clock.at += 5 * MINUTE
    assert await world.tell(id="f-first", started_at=first) == []


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


async def test_a_storm_takes_no_more_flags_than_one_signal_may() -> None:
    """Of different conditions; and a monitor that flaps is no second incident, either."""
    fleet = tuple(rollout(f"flag-{number}", number * MINUTE) for number in range(1, 9))
    world = World(rule(flags="recent", most=2, order="newest"), rollouts=fleet)
    for number in range(30):
        await world.tell(condition=f"c-{number}", id=f"s-{number}")
    assert [one.flag for one in world.commands] == ["flag-1", "flag-2"]
    assert "changed its most flags" in world.memory.recent[0].done[0]
    for number in range(5):
        await world.tell("resolved", condition="c-0", id=f"r-{number}")
        began = BEGAN + timedelta(seconds=number)
        assert await world.tell(condition="c-0", id=f"a-{number}", started_at=began) == []
    world.clock.at += 11 * MINUTE
    assert await world.tell(condition="c-0", id="later", started_at=BEGAN + 2 * MINUTE)


async def test_a_monitor_of_datadog_that_repeats_acts_once() -> None:
    """Each repetition has another date, and is of the same cycle until it has recovered."""

    async def tell(transition: str, cycle: str) -> list[str]:
        world.clock.at += 30 * MINUTE
        before, date = len(world.commands), str(int(world.clock.at.timestamp() * 1000))
        told = {**DATADOG, "transition": transition, "cycle": cycle, "date": date}
        body = msgspec.json.encode(told)
        for one in read_signals("datadog", "prod", body, world.clock.at):
            await world.responder.handle(one)
        return [one.verb.value for one in world.commands[before:]]

    world = World(rule(when={"hooks": "datadog/*"}, do="pause"))
    assert await tell("Triggered", "c-1") == ["pause"]
    assert await tell("Re-Triggered", "c-1") == []
    assert await tell("Re-Triggered", "c-1") == []
    assert await tell("Recovered", "c-1") == []
    assert await tell("Triggered", "c-2") == ["pause"]


async def test_what_is_told_again_takes_no_more_flags() -> None:
    """Also under another id, and after the flag that it took serves nothing any more."""
    for began in (BEGAN, None):
        fleet = tuple(rollout(f"flag-{number}", number * MINUTE) for number in range(1, 5))
        world = World(rule(flags="recent", most=2, order="newest"), rollouts=fleet)
        taken = await world.tell(id="s-1", started_at=began)
        assert taken == ["roll_back flag-1", "roll_back flag-2"]
        one = world.rollouts["flag-1"]
        world.rollouts["flag-1"] = replace(one, phase=RolledBack(BEGAN, "harm"), percent=0.0)
        for number in range(2, 5):
            world.clock.at += 11 * MINUTE
            assert await world.tell(id=f"s-{number}", started_at=began) == []


async def test_what_fires_anew_while_it_goes_on_takes_the_next_flag() -> None:
    """As an objective that is still missed after a look in between."""
    fleet = tuple(rollout(f"flag-{number}", number * MINUTE) for number in range(1, 4))
    world = World(rule(flags="recent", most=1, order="newest"), rollouts=fleet)
    taken = []
    for number in range(4):
        began = BEGAN + timedelta(seconds=number)
        taken += await world.tell(id=f"s-{number}", started_at=began)
    assert taken == ["roll_back flag-1", "roll_back flag-2", "roll_back flag-3"]


async def test_of_two_replicas_one_acts_and_after_a_crash_it_is_the_same() -> None:
    """Neither has read what the other did: the claim decides, and its signal acts whatever comes.

    The second one has died before its command was sent.
    """
    one, other = World(rule(do="step_back")), World(rule(do="step_back"))
    later = replace(rollout("checkout-a"), phase=Baking(1, BEGAN))
    for world in (one, other):
        world.store, world.rollouts = one.store, {"checkout-a": later}
        world.crash()
        await world.memory.refresh()
    other.trouble = {"checkout-a"}
    with pytest.raises(OperatingTrouble):
        await other.tell(id="b", condition="b")
    one.clock.at -= timedelta(seconds=2)  # it has read what is remembered just now
    assert await one.tell(id="a", condition="a") == []
    assert "because of another signal" in one.memory.recent[0].done[0]
    other.trouble = set()
    other.crash()
    assert await other.tell(id="b", condition="b") == ["step_back checkout-a"]
    assert await one.tell(id="c", condition="c") == []


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


async def test_a_crash_between_command_and_alert_loses_no_alert() -> None:
    """The flag is at 0 % by then, and no rule would look at it: what was begun is finished."""
    world = World()
    world.dies_before_alerts = True
    with pytest.raises(Died):
        await world.tell(id="s")
    one = world.rollouts["checkout-a"]
    world.rollouts["checkout-a"] = replace(one, phase=RolledBack(BEGAN, "harm"), percent=0.0)
    world.dies_before_alerts = False
    world.crash()
    await world.tell(id="s")
    first, again = world.commands
    assert first.id == again.id
    (alert,) = world.alerts
    assert "checkout-a: rolled back to 0 %, because" in alert.summary
    await world.tell(id="s")
    assert len(world.commands) == 2
    await world.tell("resolved")
    assert "stays at" in world.alerts[-1].summary


async def test_what_is_finished_is_told_once_though_the_rest_cannot_be_sent() -> None:
    """The signal is handled again each second, until the command of the last flag goes out."""
    world = World(rollouts=(rollout("checkout-a"), rollout("checkout-b")))
    world.trouble = {"checkout-a", "checkout-b"}
    with pytest.raises(OperatingTrouble):
        await world.tell(id="s")
    world.trouble = {"checkout-b"}
    for _ in range(5):
        world.crash()
        with pytest.raises(OperatingTrouble):
            await world.tell(id="s")
    assert [one.flag for one in world.commands] == ["checkout-a"]
    assert len(world.alerts) == 1


async def test_alerts_that_kafka_does_not_take_delay_no_command() -> None:
    """They are waited for once, after the last of many flags was lowered."""
    fleet = tuple(rollout(f"flag-{number}") for number in range(100))
    world = World(rule(flags="flag-*"), rollouts=fleet)
    await world.tell()
    assert world.lowered_at_flush == [100]


async def test_a_crash_after_a_step_back_repeats_the_step_and_adds_no_pause() -> None:
    """From the second stage it came to the first, where another signal would pause it."""
    world = World(rule(do="step_back"))
    one = rollout("checkout-a")
    world.rollouts["checkout-a"] = replace(one, phase=Baking(1, BEGAN))
    world.dies_before_alerts = True
    with pytest.raises(Died):
        await world.tell(id="s")
    world.rollouts["checkout-a"] = replace(one, phase=Baking(0, BEGAN))
    world.dies_before_alerts = False
    world.crash()
    assert await world.tell(id="s") == ["step_back checkout-a"]
    assert len({one.id for one in world.commands}) == 1


async def test_what_was_begun_by_a_rule_that_is_gone_is_left() -> None:
    """As by one that is tried dry by now, and for a flag whose rollout is another one."""
    later = replace(rollout("checkout-a"), rollout_id="start-2", started_at=BEGAN + HOUR)
    for rules, now in (
        ([], rollout("checkout-a")),
        ([rule(dry_run=True)], rollout("checkout-a")),
        ([rule()], later),
    ):
        world = World()
        world.trouble = {"checkout-a"}
        with pytest.raises(OperatingTrouble):
            await world.tell(id="s")
        world.trouble, world.rules, world.rollouts = set(), rules, {"checkout-a": now}
        world.crash()
        assert await world.tell(id="s", received_at=BEGAN + MINUTE) == []


async def test_what_others_wrote_into_the_memory_is_left_alone() -> None:
    """Fields that we did not write, and values that we cannot read."""
    world = World()
    world.store.fields = {b"\xff": b"", b"act|x": b"{", b"other": b"1", b"condition|x": b"[]"}
    assert await world.tell() == ["roll_back checkout-a"]


async def test_what_is_old_is_forgotten() -> None:
    """After a week nothing is left of a condition."""
    world = World()
    await world.tell()
    assert len(world.store.fields) == 5
    world.crash()  # a claim is in Redis alone
    world.clock.at += 8 * 24 * HOUR
    await world.memory.refresh()
    assert world.store.fields == {}
