"""Replicas with different rules files are noticed on each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

from controller import bootstrap
from controller.adapters.memory import ManualClock
from controller.errors import StoreUnavailable
from controller.health import Faults, Scope
from controller.running.rule_agreement import (
    BEAT_SECONDS,
    BUCKETING,
    FAULT,
    FORGOTTEN_SECONDS,
    FRESH_SECONDS,
    SHARING,
    TOLD_AFTER_SECONDS,
    RuleAgreement,
    digest_of,
)
from controller.settings import Settings
from controller.settings.signal_rules import parse_rules
from tests.builders import T0

SETTING = "hooks.rules_file"


class Store:
    """What all replicas share, while it is there."""

    def __init__(self) -> None:
        self.fields: dict[bytes, bytes] = {}
        self.is_away = False

    async def write(self, mapping: Mapping[str, str | bytes]) -> None:
        """Keep these."""
        if self.is_away:
            raise StoreUnavailable("write the rules: no answer")
        for name, value in mapping.items():
            self.fields[name.encode()] = value.encode() if isinstance(value, str) else value

    async def read(self) -> Mapping[bytes, bytes]:
        """Return all."""
        return dict(self.fields)

    async def drop(self, names: Iterable[str]) -> None:
        """Forget these."""
        for name in names:
            self.fields.pop(name.encode(), None)


class Replica:
    """One with rules of its own."""

    def __init__(self, store: Store, clock: ManualClock, name: str, **rules: str) -> None:
        self.faults = Faults(clock.now)
        self.rules = {SETTING if key == "signals" else key: value for key, value in rules.items()}
        self.agreement = RuleAgreement(store, name, lambda: self.rules, clock, self.faults)

    @property
    def told(self) -> str:
        """Why its rules differ, empty where nothing is told."""
        fault = self.faults.of(Scope.DEPENDENCY, FAULT)
        return "" if fault is None else fault.why


class Fleet:
    """Replicas that share a store and a clock."""

    def __init__(self) -> None:
        self.store = Store()
        self.clock = ManualClock(T0)

    def replica(self, name: str, **rules: str) -> Replica:
        """Return one more."""
        return Replica(self.store, self.clock, name, **rules)

    async def live(self, seconds: float, *replicas: Replica) -> None:
        """Let time go by for these; the others are gone."""
        for _ in range(round(seconds / BEAT_SECONDS) + 1):
            for one in replicas:
                await one.agreement.beat()
            self.clock.advance(timedelta(seconds=BEAT_SECONDS))


async def test_a_difference_that_lasts_is_told_on_both_and_ends_with_it() -> None:
    """Only that of one file, and not while files are being replaced."""
    fleet = Fleet()
    one, other = (
        fleet.replica("a/1", signals="x", checks="c"),
        fleet.replica("b/2", signals="y", checks="c"),
    )
    await fleet.live(TOLD_AFTER_SECONDS - 2 * BEAT_SECONDS, one, other)
    assert (one.told, other.told) == ("", "")
    await fleet.live(TOLD_AFTER_SECONDS, one, other)
    assert one.told.startswith("hooks.rules_file says something else on b/2: each replica acts")
    assert other.told.startswith("hooks.rules_file says something else on a/1")
    other.rules[SETTING] = "x"
    await fleet.live(BEAT_SECONDS, one, other)
    assert (one.told, other.told) == ("", "")


async def test_replicas_that_assign_users_differently_are_told() -> None:
    """Without any rules file; with one that differs, both are told."""
    bootstrapped = bootstrap.Daemon(Settings.model_validate({"http": {"bucketing": "v2"}}))
    assert "rule_agreement" in dict(bootstrapped.outside.loops)
    assert bootstrapped.outside._rules == {BUCKETING: "v2"}
    await bootstrapped.connections.redis.close()
    fleet = Fleet()
    one, other = fleet.replica("a/1", signals="x"), fleet.replica("b/2", signals="x")
    one.rules[BUCKETING], other.rules[BUCKETING] = "v2", "v3"
    await fleet.live(2 * TOLD_AFTER_SECONDS, one, other)
    assert one.told.startswith("http.bucketing is another on b/2: the same user")
    other.rules[SETTING] = "y"
    await fleet.live(2 * TOLD_AFTER_SECONDS, one, other)
    assert "hooks.rules_file says something else on b/2" in one.told
    assert "http.bucketing is another on b/2" in one.told


async def test_a_replica_that_is_gone_differs_from_nobody() -> None:
    """Neither one that stops, nor one that was gone before this one came; Redis forgets it."""
    fleet = Fleet()
    old = fleet.replica("old/1", signals="x")
    await fleet.live(TOLD_AFTER_SECONDS, old)
    one, other = fleet.replica("a/1", signals="y"), fleet.replica("b/2", signals="z")
    await fleet.live(2 * TOLD_AFTER_SECONDS, one)
    assert one.told == "", "it was gone before"
    await fleet.live(2 * TOLD_AFTER_SECONDS, one, other)
    assert "b/2" in one.told
    await fleet.live(FRESH_SECONDS + BEAT_SECONDS, one)
    assert one.told == ""
    await fleet.live(FORGOTTEN_SECONDS, one)
    assert set(fleet.store.fields) == {b"a/1"}


async def test_a_replica_without_such_a_file_takes_no_part() -> None:
    """It acts on no signals, so it cannot act differently."""
    fleet = Fleet()
    one, other = fleet.replica("a/1", signals="x"), fleet.replica("b/2", checks="c")
    fleet.store.fields[b"strange"] = b"\xff = =="
    await fleet.live(2 * TOLD_AFTER_SECONDS, one, other)
    assert (one.told, other.told) == ("", "")


async def test_many_are_counted() -> None:
    """Three are named."""
    fleet = Fleet()
    one = fleet.replica("a/1", signals="x")
    others = [fleet.replica(f"b/{number}", signals="y") for number in range(5)]
    await fleet.live(2 * TOLD_AFTER_SECONDS, one, *others)
    assert "on b/0, b/1, b/2 and 2 more:" in one.told


async def test_that_nothing_can_be_compared_is_told() -> None:
    """As where Redis denies the right."""
    fleet = Fleet()
    one = fleet.replica("a/1", signals="x")
    fleet.store.is_away = True
    await fleet.live(0, one)
    fault = one.faults.of(Scope.DEPENDENCY, SHARING)
    assert fault is not None
    assert "rules files are not compared: write the rules: no answer" in fault.why
    fleet.store.is_away = False
    await fleet.live(0, one)
    assert one.faults.of(Scope.DEPENDENCY, SHARING) is None


def test_comments_and_layout_make_no_difference() -> None:
    """What a file says counts."""
    short = "rules: [{name: a, when: {service: x}, flags: x, do: pause}]\n"
    long = "version: 1\n# why\nrules:\n  - {name: a, do: pause, flags: [x], when: {service: [x]}}\n"
    assert digest_of(parse_rules(short, "a")) == digest_of(parse_rules(long, "b"))
    assert digest_of(parse_rules(short, "a")) != digest_of(
        parse_rules(short.replace("pause", "note"), "a")
    )
