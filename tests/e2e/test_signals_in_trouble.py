"""Signals of a real daemon while Redis, a replica or the rules are away: once each, and told."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from schemas.terms import CommandVerb
from tests.brokers import RedisServer
from tests.e2e.test_signals import QUICK_TO_REJOIN, Monitored, start
from tests.live import Client, quick_plan
from tests.patience import SLACK

pytestmark = pytest.mark.real_kafka


async def decided(client: Client, kind: str, count: int = 1) -> list[tuple[str, int]]:
    """Return flag and revision of each decision of a kind; a crash may publish one twice.

    Waits for so many, as what is served may be ahead of what is published.
    """
    await client.decisions(kind, count)
    found = await client.read("rollout.decisions")
    return sorted(
        {
            (one["data"]["flag"], one["data"]["revision"])
            for one in found
            if one["data"]["kind"] == kind
        }
    )


async def test_what_redis_cannot_save_is_done_once_when_it_is_back(
    kafka: str, own_redis: RedisServer, topic_prefix: str, tmp_path: Path
) -> None:
    """The delivery is in Kafka, so it is taken. 0 % is served at once; people hear how it ended."""
    daemon = Monitored(kafka, own_redis.url, tmp_path, topic_prefix, **QUICK_TO_REJOIN)
    stages = [{"percent": percent, "bake": "1h", "settle": "0s"} for percent in (5, 10, 20)]
    async with daemon, Client(kafka, topic_prefix) as client:
        plan = quick_plan("checkout-a", stages=stages)
        await client.command(CommandVerb.START, "checkout-a", plan=plan)
        await client.command(CommandVerb.PROMOTE, "checkout-a", to_stage="20%")
        await daemon.until("checkout-a", lambda one: one["percent"] == 20)
        await start(client, daemon, "search")
        own_redis.kill9()
        daemon.rules.write_text(daemon.rules.read_text().replace("recent, most: 1", "search"))
        daemon.send(signal.SIGHUP)
        async with asyncio.timeout(20 * SLACK):
            while not daemon.log_lines("signal_rules_read"):
                await asyncio.sleep(0.1)
        assert (await daemon.deliver("Sla", condition="sla", began=7)).status_code == 202
        await daemon.until("search", lambda one: one["percent"] == 0)
        assert (await daemon.deliver("Storm", condition="storm", began=7)).status_code == 202
        async with asyncio.timeout(60 * SLACK):
            while len(daemon.log_lines("signal_handled")) < 2:
                await asyncio.sleep(0.1)
        own_redis.start()
        await daemon.until("checkout-a", lambda one: one["percent"] == 10)
        await daemon.until_done("search: serves 0 % now", 90)
        await daemon.until_done("checkout-a: stepped back (try", 90)
        for name in ("Sla", "Storm"):
            again = await daemon.deliver(name, condition=name.lower(), began=7)
            assert again.status_code == 202
        assert await decided(client, "roll_back") == [("search", 2)]
        assert await decided(client, "step_back") == [("checkout-a", 3)]
        told = await client.alerts("signal", 3)
        assert any("stepped back (try" in one["summary"] for one in told)


async def test_a_hold_outlives_restarts_and_ends_without_its_rule(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A stop, a rule that is removed while it fires, and a kill right after the end was taken."""
    daemon = Monitored(kafka, redis_url, tmp_path, topic_prefix, **QUICK_TO_REJOIN)
    async with daemon, Client(kafka, topic_prefix) as client:
        await start(client, daemon, "checkout-a")
        began = int(time.time())
        await daemon.deliver("Slow", began=began)
        await daemon.until("checkout-a", lambda one: one["freeze"] is not None)
        await daemon.stop()
        daemon.rules.write_text("version: 1\nrules: []\n")
        await daemon.start()
        held = await daemon.until("checkout-a", lambda one: one["freeze"] is not None)
        assert held["percent"] == 10
        assert (await daemon.deliver("Slow", "resolved", began=began)).status_code == 202
        daemon.kill9()
        await daemon.start()
        await daemon.until("checkout-a", lambda one: one["freeze"] is None)
        assert await decided(client, "resume") == [("checkout-a", 3)]


async def test_of_two_replicas_the_other_acts_when_the_one_in_turn_is_killed(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Between the acceptance of a delivery and its action, whichever has taken it."""
    one = Monitored(kafka, redis_url, tmp_path, topic_prefix, **QUICK_TO_REJOIN)
    two = Monitored(kafka, redis_url, tmp_path, topic_prefix, **QUICK_TO_REJOIN)
    flags = [f"checkout-{number}" for number in range(4)]
    async with one, two, Client(kafka, topic_prefix) as client:
        for number, flag_key in enumerate(flags, start=1):
            await start(client, two, flag_key)
            taken = await two.deliver("Down", condition=flag_key, began=number)
            assert taken.status_code == 202
            await asyncio.sleep(0.02 * (number - 1))
            one.kill9()
            await two.until(flag_key, lambda found: found["percent"] == 0)
            await one.start()
            again = await one.deliver("Down", condition=flag_key, began=number)
            assert again.status_code == 202
            one, two = two, one
        rolled_back = await decided(client, "roll_back", len(flags))
        assert rolled_back == [(flag_key, 2) for flag_key in flags]


@pytest.mark.rare
async def test_replicas_with_different_rules_say_so(
    kafka: str, redis_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Which one acts is chance: both name the setting and the other replica, until it is right."""
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
    one, two = (Monitored(kafka, redis_url, place, topic_prefix) for place in places)

    async def until_told(count: int) -> None:
        async with asyncio.timeout(60 * SLACK):
            while True:
                told = [fault for each in (one, two) for fault in await faults(each)]
                if len(told) == count:
                    break
                await asyncio.sleep(0.5)
        assert all("hooks.rules_file says something else on" in fault for fault in told)

    async with one, two:
        two.rules.write_text(two.rules.read_text().replace("do: roll_back", "do: note"))
        two.send(signal.SIGHUP)
        await until_told(2)
        two.rules.write_text("# the same\n" + one.rules.read_text())
        two.send(signal.SIGHUP)
        await until_told(0)


async def faults(daemon: Monitored) -> list[str]:
    """Return what a replica says of rules that differ."""
    known = (await daemon.standing())["faults"]
    return [one["reason"] for one in known if one["name"] == "rules_differ"]
