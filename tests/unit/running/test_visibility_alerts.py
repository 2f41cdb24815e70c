"""Alerts on their way to Kafka, and who waits until it has them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from controller.adapters.memory import ManualClock, MemoryPublisher
from controller.codec.outbox import outbox_entry
from controller.core.effects import RaiseAlert
from controller.running.visibility_alerts import RETRY_SECONDS, VisibilityAlerts
from controller.telemetry import Metrics
from schemas.terms import AlertKind, Severity
from tests.builders import T0, make_rollout
from tests.unit.running.test_visibility import Bench
from tests.virtual_time import in_virtual_time

ALERT = RaiseAlert(AlertKind.SIGNAL, Severity.WARNING, "it fires", "look at it", "key")


@asynccontextmanager
async def running(publisher: MemoryPublisher) -> AsyncIterator[VisibilityAlerts]:
    """Alerts that are published meanwhile."""
    alerts = VisibilityAlerts(publisher, ManualClock(T0), Metrics(version="test"), "test")
    task = asyncio.create_task(alerts.run())
    try:
        yield alerts
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@in_virtual_time
async def test_who_flushes_waits_until_kafka_has_the_alerts() -> None:
    """And no longer than it said."""
    publisher = MemoryPublisher()
    async with running(publisher) as alerts:
        assert await alerts.flush(0.0)  # nothing waits
        publisher.outage.is_down = True
        alerts.add(make_rollout(), ALERT)
        assert not await alerts.flush(3 * RETRY_SECONDS)
        waiting = asyncio.create_task(alerts.flush(3 * RETRY_SECONDS))
        await asyncio.sleep(0)
        publisher.outage.is_down = False
        assert await waiting
        assert len(publisher.published) == 1


@in_virtual_time
async def test_who_flushes_does_not_wait_for_what_comes_later() -> None:
    """A stream of alerts would hold it for ever."""
    publisher = MemoryPublisher()
    async with running(publisher) as alerts:
        alerts.add(make_rollout(), ALERT)
        waiting = asyncio.create_task(alerts.flush(RETRY_SECONDS))
        await asyncio.sleep(0.001)
        publisher.outage.is_down = True
        alerts.add(make_rollout(), ALERT)
        assert await waiting
        assert len(alerts) == 1


@in_virtual_time
async def test_an_outage_of_a_thousand_flags_is_told_and_ended_for_each() -> None:
    """One check raises them all, before any of them is published; so it is with the all-clears."""
    publisher = MemoryPublisher()
    keys = [f"flag-{number}" for number in range(1_000)]
    critical = [replace(ALERT, severity=Severity.CRITICAL, dedup_key=key) for key in keys]
    over = [replace(ALERT, severity=Severity.INFO, dedup_key=key) for key in keys]
    async with running(publisher) as alerts:
        for of_all in (critical, critical, over):
            for alert in of_all:
                alerts.add(make_rollout(), alert)
        assert await alerts.flush(10.0)
        assert len(alerts) == 0
    told = [json.loads(entry.value)["data"] for entry in publisher.published]
    assert [one["dedup_key"] for one in told] == [*keys, *keys]  # a repeat replaces what waits
    assert {one["severity"] for one in told[1_000:]} == {Severity.INFO}


def test_an_alert_can_be_written_as_the_topic_wants_it() -> None:
    """The event passes the schema, with a kind that readers know."""
    bench = Bench()
    bench.is_taken_up = False
    bench.passes(12)
    entry = outbox_entry(bench.raised[0], "new-checkout", make_rollout(), "id-1", T0)
    assert entry.topic == "alerts"
    assert b'"kind":"unwatched"' in entry.value
