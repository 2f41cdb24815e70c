"""A thousand alerts at once, or in a minute, on one route with every type of channel."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from controller.adapters.redis.connection import RedisConnection
from tests.fault_server import Exchange
from tests.integration.test_channels_in_trouble import Everywhere, alerts_in
from tests.integration.test_notifier import World
from tests.notification_services import Service, Trouble
from tests.patience import SLACK

A_THOUSAND = [(f"flag-{flag}", number) for number in range(1, 11) for flag in range(100)]
#: Requests that a service takes in so many seconds before it answers 429: what each documents for
#: a channel or key, and the short bursts that Slack and Discord say they bear.
LIMITS: Mapping[str, tuple[int, float]] = {
    "slack": (70, 60.0),
    "slack_webhook": (65, 60.0),
    "teams": (5, 1.0),
    "discord": (35, 60.0),
    "pagerduty": (120, 60.0),
}
#: Most requests for all of it, where a message may hold several: while they arrive for a minute,
#: some channels take one a second. Alertmanager hears of all again every two minutes.
GROUPED = {"slack": 80, "slack_webhook": 80, "teams": 80, "discord": 100, "alertmanager": 450}


def metered(service: Service, most: int, seconds: float) -> Trouble:
    """Return a trouble that answers 429 to more than so many requests in so many seconds."""
    times: deque[float] = deque()

    async def answer(exchange: Exchange) -> bool:
        now = time.monotonic()
        while times and now - times[0] > seconds:
            times.popleft()
        times.append(now)
        if len(times) <= most:
            return False
        service.refused.append(f"{len(times)} requests in {seconds} s")
        await exchange.answer("{}", status="429 Too Many Requests", headers={"Retry-After": "2"})
        return True

    return answer


def lacking(everywhere: Everywhere, count: int) -> Mapping[str, int]:
    """Return how many alerts each channel has not shown, where any is."""
    shown = {kind: len(alerts_in(texts)) for kind, texts in everywhere.texts().items()}
    return {kind: count - one for kind, one in shown.items() if one < count}


@pytest.mark.parametrize(
    ("alerts", "values", "arrive_in", "wait"),
    [
        pytest.param(A_THOUSAND[::3], {}, 0.0, 20.0, id="at-once"),
        pytest.param(
            A_THOUSAND, {"per_minute": None}, 60.0, 300.0, id="in-a-minute", marks=pytest.mark.long
        ),
    ],
)
async def test_a_storm_is_grouped_and_nothing_of_it_is_lost(
    store: RedisConnection,
    alerts: Sequence[tuple[str, int]],
    values: Mapping[str, Any],
    arrive_in: float,
    wait: float,
) -> None:
    """Within the limits of each service, those of a rollout in order, each by its number."""
    everywhere = Everywhere(World(store))
    async with everywhere.running(**values):
        if arrive_in:
            for kind, limit in LIMITS.items():
                everywhere.services[kind].trouble = metered(everywhere.services[kind], *limit)
        async with everywhere.world.replica():
            for flag, number in alerts:
                everywhere.world.news.add(number, flag)
                if arrive_in:
                    await asyncio.sleep(arrive_in / len(alerts))
            until = time.monotonic() + wait * SLACK
            while lacking(everywhere, len(alerts)) and time.monotonic() < until:
                await asyncio.sleep(0.5)
        book = await everywhere.world.book()
    assert lacking(everywhere, len(alerts)) == {}
    assert everywhere.refused() == {}
    assert book.dead == {}
    for texts in everywhere.texts().values():
        shown = alerts_in(texts)
        for flag in ("flag-0", "flag-30", "flag-60"):
            assert [one for one in shown if one[0] == flag] == [
                one for one in alerts if one[0] == flag
            ]
    requests = {kind: len(everywhere.services[kind].server.requests) for kind in GROUPED}
    requests["email"] = len(everywhere.mail.mails)
    print(f"requests: {requests}")  # noqa: T201
    assert [kind for kind, count in requests.items() if count > GROUPED.get(kind, 60)] == []
